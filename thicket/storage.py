# SPDX-License-Identifier: Apache-2.0
"""Where a run keeps its files, and text files replaced whole."""

from __future__ import annotations

import contextlib
import os
import uuid

from etils import epath


def is_local(path: epath.Path) -> bool:
  """Whether a path lies in a file system, not in a bucket."""
  return '://' not in os.fspath(path)


def write_atomically(path: epath.Path, text: str) -> None:
  """Replaces a text file whole: a reader never sees half of it.

  Several processes may write one file at once; the last one wins. Raises
  OSError.
  """
  # A name of its own, so that no writer takes another's half-written file.
  partial = path.parent / f'{path.name}.{uuid.uuid4().hex[:12]}.tmp'
  try:
    with partial.open('w') as file:
      file.write(text + '\n')
      file.flush()
      if is_local(path):
        os.fsync(file.fileno())
    partial.replace(path)
  except BaseException:
    with contextlib.suppress(OSError):
      partial.unlink()
    raise
