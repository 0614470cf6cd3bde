# SPDX-License-Identifier: Apache-2.0
"""One checkpoint of Orbax, also where Orbax cannot write.

Orbax knows folders and gs://. Elsewhere it saves into a folder that is then
copied, the file that makes it count last, as Orbax itself does on gs://.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from typing import Any

import orbax.checkpoint as ocp
from etils import epath

from thicket.storage import is_local

_COMMIT = ocp.path.atomicity.COMMIT_SUCCESS_FILE


def is_direct(path: epath.Path) -> bool:
  """Whether Orbax itself reads and writes there."""
  return is_local(path) or os.fspath(path).startswith('gs://')


def is_finished(path: epath.Path) -> bool:
  """Whether a checkpoint was saved to its end."""
  if is_direct(path):
    return ocp.path.step.is_path_finalized(path)
  return (path / _COMMIT).exists()


def partial(path: epath.Path) -> epath.Path:
  """Where a checkpoint lies until it is finished."""
  if is_local(path):
    return path.parent / (path.name + ocp.path.atomicity.TMP_DIR_SUFFIX)
  return path


def save(checkpointer: ocp.Checkpointer, path: epath.Path, tree: Any) -> None:
  """Saves a tree of arrays; on return it is finished."""
  args = ocp.args.PyTreeSave(tree)
  if is_direct(path):
    checkpointer.save(path, args=args)
    return
  with _folder() as local:
    checkpointer.save(local, args=args)
    for file in _files(local):
      (path / file.relative_to(local)).write_bytes(file.read_bytes())
  (path / _COMMIT).write_text('')


def restore(checkpointer: ocp.Checkpointer, path: epath.Path) -> Any:
  """The tree that was saved."""
  if is_direct(path):
    return checkpointer.restore(path)
  with _folder() as local:
    for file in _files(path):
      copy = local / file.relative_to(path)
      copy.parent.mkdir(parents=True, exist_ok=True)
      copy.write_bytes(file.read_bytes())
    return checkpointer.restore(local)


@contextlib.contextmanager
def _folder() -> Iterator[epath.Path]:
  """A name for a local folder, removed afterwards."""
  with tempfile.TemporaryDirectory(prefix='thicket-') as parent:
    yield epath.Path(parent) / 'range'


def _files(folder: epath.Path) -> Iterator[epath.Path]:
  for path in folder.iterdir():
    if path.is_dir():
      yield from _files(path)
    elif path.name != _COMMIT:
      yield path
