# SPDX-License-Identifier: Apache-2.0
"""Every judged row, kept: one Orbax checkpoint for each finished range.

A row is keyed (member id, split, row id, draw). Callers append blocks of rows
in any order and grouping; what `view` gives depends only on the rows. A range
is finished when `append` returns. A process killed before that leaves rubbish
that nobody reads and that the next `open` removes.

    folder/recipe.json                      what the rows depend on
    folder/<split>/<first>-<last>-<hash>/   one range of rows
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import re
import traceback
from collections.abc import Sequence

import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from thicket import processes
from thicket.blocks import (
  Block,
  LedgerError,
  Part,
  adds,
  as_keys,
  from_block,
  pack,
  part_name,
  to_block,
  trim,
  unpack,
)

# Not as `merge`, which is a module of this package.
from thicket.blocks import merge as merge_parts
from thicket.interrupts import uninterrupted
from thicket.ledger import staging
from thicket.recipe import Recipe, brief, check_recipe, differences
from thicket.storage import (
  absolute,
  is_local,
  make_folder,
  os_errors,
  subfolders,
  write_atomically,
)

_RANGE = re.compile(r'(base|\d+)-(base|\d+)-[0-9a-f]{12}')
_SPLIT = re.compile(r'\w[\w-]*', re.ASCII)
RECIPE_FILE = 'recipe.json'
_PROBE_FILE = 'probe.tmp'
_SLACK_BYTES = 1 << 16  # Orbax's own files in a range: 10 kB measured
_SHOWN_CHARS = 120  # of a value or a reason, so that messages stay one line

# Faults of the place, not of the data: deleting a range would not help.
_NO_ROOM = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
_NO_ACCESS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.EMFILE)
_PLACE_ERRORS = [os.strerror(code) for code in _NO_ROOM + _NO_ACCESS]


class RecipeMismatch(LedgerError):
  """The folder holds rows of another recipe; the message names the fields."""


class Ledger:
  """Rows of one recipe, in a folder or in memory.

  Make one by `open`, `read` or `in_memory`. With several processes, all of
  them make the same calls in the same order.
  """

  def __init__(self, recipe: Recipe, folder: epath.Path | None, writable: bool):
    self.recipe = recipe
    self.folder = folder
    self._writable = writable
    self._parts: dict[str, list[Part]] = {}

  @classmethod
  def open(cls, folder: epath.PathLike, recipe: Recipe) -> Ledger:
    """The ledger of `recipe` in a folder, made there or resumed.

    Removes what killed processes have left, so a folder has one writer (with
    all its processes) at a time. Raises RecipeMismatch if the folder belongs
    to another recipe, LedgerError if it cannot be read or written.
    """
    folder = absolute(folder)
    stored = _claim(folder, recipe)
    # Only now: what lies in the folder of another recipe is not ours to touch.
    if processes.is_first():
      _remove_rubbish(folder)
    return cls(stored, folder, writable=True)

  @classmethod
  def claim(cls, folder: epath.PathLike, recipe: Recipe) -> Ledger:
    """As `read`, of a folder that from now on is this recipe's.

    Any number of processes may do so at once. Raises as `open` does.
    """
    folder = absolute(folder)
    return cls(_claim(folder, recipe), folder, writable=False)

  @classmethod
  def read(cls, folder: epath.PathLike) -> Ledger:
    """The ledger in a folder, whatever its recipe, for reading only.

    Changes nothing on disk, so a run may be writing there meanwhile; rows
    finished after a split is first asked for are not noticed. Raises
    LedgerError if there is no ledger.
    """
    folder = absolute(folder)
    return cls(_read_recipe(folder), folder, writable=False)

  @classmethod
  def in_memory(cls, recipe: Recipe) -> Ledger:
    """An empty ledger that behaves as one in a folder and writes nothing."""
    return cls(check_recipe(recipe), None, writable=True)

  @property
  def splits(self) -> tuple[str, ...]:
    """Names of the splits that hold a row, sorted."""
    names = {name for name, parts in self._parts.items() if parts}
    if self.folder is not None:
      try:
        found = [path for path in subfolders(self.folder) if _ranges(path)]
      except OSError as error:
        raise _read_error(self.folder, error) from error
      names.update(path.name for path in found)
    return tuple(sorted(names))

  def append(self, split: str, block: Block) -> None:
    """Saves the rows of a block that are new, as one range.

    Rows already held with the same values are left out; a text, or what the
    released rule says, may be added to a row that had none. On return the
    range is finished and survives a kill. Raises LedgerError for a row held
    with other values (naming its key), for a block whose shapes or indices do
    not fit, and for a full or read-only disk. Ctrl-C waits until the range is
    finished.
    """
    if not self._writable:
      raise LedgerError(
        f'{self.folder}: opened by read; use Ledger.open to append'
      )
    parts = self._loaded(split)
    part = from_block(block)
    say = self._say(split)
    held = merge_parts(parts, part.keys, say)
    merge_parts([held, part], part.keys, say)
    part = trim(part, adds(part, held))
    if not part.seen.size:
      return
    with uninterrupted():
      if self.folder is not None:
        path = self.folder / split / part_name(part)
        # An exception can fall between a commit and our note of it; then the
        # range is there although this object did not know.
        if _is_finished(path):
          merge_parts([_load(path), part], part.keys, say)
        else:
          _save(path, part)
      parts.append(part)

  def seen(
    self,
    split: str,
    members: Sequence[int] | np.ndarray,
    rows: Sequence[int] | np.ndarray,
    draws: Sequence[int] | np.ndarray = (0,),
  ) -> np.ndarray:
    """Which rows are held: bool [m, r, d], axes in the order asked for.

    Raises LedgerError for ids that occur twice and for damaged ranges.
    """
    keys = as_keys(members, rows, draws)
    return merge_parts(self._loaded(split), keys, self._say(split)).seen

  def view(
    self,
    split: str,
    members: Sequence[int] | np.ndarray | None = None,
    rows: Sequence[int] | np.ndarray | None = None,
    draws: Sequence[int] | np.ndarray | None = None,
  ) -> Block:
    """All held rows of the given ids in one dense block.

    Members are sorted, the base first; rows and draws come in the order asked
    for. An axis not given is the sorted ids that the split holds. The result
    does not depend on how rows were grouped into ranges. Raises LedgerError
    for ids that occur twice and for damaged ranges.
    """
    parts = self._loaded(split)
    asked = [None if members is None else np.sort(members), rows, draws]
    for axis, ids in enumerate(asked):
      if ids is None:
        held = [part.keys[axis] for part in parts]
        asked[axis] = np.unique(np.concatenate([*held, np.zeros(0, np.int64)]))
    return to_block(merge_parts(parts, as_keys(*asked), self._say(split)))

  def _say(self, split: str) -> str:
    return f'{self.folder or "ledger in memory"}: split {split}'

  def _loaded(self, split: str) -> list[Part]:
    if not _SPLIT.fullmatch(split):
      raise LedgerError(
        f'split {split!r}: use letters, digits, _ and -, it names a folder'
      )
    if split not in self._parts:
      parts = []
      if self.folder is not None:
        try:
          paths = _ranges(self.folder / split)
        except OSError as error:
          raise _read_error(self.folder / split, error) from error
        parts = [_load(path) for path in paths]
      self._parts[split] = parts
    return self._parts[split]


def _ranges(folder: epath.Path) -> list[epath.Path]:
  """Finished ranges of a split, sorted by name; none if it has no folder."""
  found = [p for p in subfolders(folder) if _RANGE.fullmatch(p.name)]
  return [path for path in found if _is_finished(path)]


def _is_finished(path: epath.Path) -> bool:
  try:
    with os_errors(path):
      return staging.is_finished(path)
  except OSError as error:
    raise _read_error(path, error) from error


def _remove_rubbish(folder: epath.Path) -> None:
  """Removes what killed saves have left in a ledger's splits."""
  try:
    with os_errors(folder):
      for split in subfolders(folder):
        finished = set(_ranges(split))
        for path in split.iterdir():
          if path.name == _PROBE_FILE:
            path.unlink()
          elif _RANGE.match(path.name) and path not in finished:
            path.rmtree()
  except OSError as error:
    raise _disk_error(folder, error) from error


def _claim(folder: epath.Path, recipe: Recipe) -> Recipe:
  """The recipe of a folder, written there if it has none; refuses another."""
  recipe = check_recipe(recipe)
  if processes.count() > 1 and not staging.is_direct(folder):
    raise LedgerError(
      f'{folder}: several processes need a folder that all see, or gs://'
    )
  if processes.is_first():
    try:
      with os_errors(folder):
        make_folder(folder)
        if not (folder / RECIPE_FILE).exists():
          if any(_ranges(path) for path in subfolders(folder)):
            raise LedgerError(
              f'{folder}: ranges without their {RECIPE_FILE}; restore that '
              'file or choose another --workdir'
            )
          write_atomically(
            folder / RECIPE_FILE, json.dumps(recipe, indent=2, sort_keys=True)
          )
    except OSError as error:
      raise _disk_error(folder, error) from error
  processes.meet()
  stored = _read_recipe(folder)
  lines = differences(stored, recipe)
  if lines:
    raise RecipeMismatch(
      f'{folder}: rows of another recipe: {brief(lines)}; choose another '
      '--workdir or restore the field'
    )
  return stored


def _read_recipe(folder: epath.Path) -> Recipe:
  path = folder / RECIPE_FILE
  try:
    with os_errors(path):
      text = path.read_text()
    return check_recipe(json.loads(text))
  except FileNotFoundError:
    raise LedgerError(
      f'{folder}: no ledger here ({RECIPE_FILE} is missing); check the path'
      + (', which all processes have to see' if processes.index() else '')
    ) from None
  except OSError as error:
    raise _read_error(path, error) from error
  except ValueError as error:
    raise LedgerError(
      f'{path}: not a recipe ({_reason(error)}); restore the file or choose '
      'another --workdir'
    ) from error


@functools.cache
def _checkpointer() -> ocp.Checkpointer:
  # Named, processes meet on the network of the hosts and not in a collective,
  # which would stand behind the generation of the next chunk.
  who = ocp.options.MultiprocessingOptions(
    active_processes={*range(processes.count())}
  )
  # OCDBT, because plain zarr reads a deleted file as zeros.
  handler = ocp.PyTreeCheckpointHandler(
    use_ocdbt=True, multiprocessing_options=who
  )
  return ocp.Checkpointer(handler, multiprocessing_options=who)


def _save(path: epath.Path, part: Part) -> None:
  tree = pack(part)
  try:
    if processes.is_first():
      make_folder(path.parent)
      if is_local(path):
        _probe(path.parent, sum(array.nbytes for array in tree.values()))
    staging.save(_checkpointer(), path, tree)
  except Exception as error:  # tensorstore raises ValueError for a full disk
    partial = staging.partial(path)
    with contextlib.suppress(OSError), os_errors(path):
      if processes.is_first() and not staging.is_finished(path):
        partial.rmtree(missing_ok=True)
    raise _disk_error(path.parent, error) from error


def _probe(folder: epath.Path, num_bytes: int) -> None:
  """Fails as a save would, but before it: Orbax's threads print tracebacks."""
  path = folder / _PROBE_FILE
  try:
    with path.open('wb') as file:
      file.write(bytes(num_bytes + _SLACK_BYTES))
  finally:
    path.unlink(missing_ok=True)


def _load(path: epath.Path) -> Part:
  try:
    return unpack(staging.restore(_checkpointer(), path))
  except Exception as error:  # by what is broken: OSError, ValueError, KeyError
    if _place_reason(error):
      raise _read_error(path, error) from error
    raise LedgerError(
      f'{path}: this range is damaged ({_reason(error)}); delete the folder '
      'to have it recomputed'
    ) from error


def _disk_error(folder: epath.Path, error: Exception) -> LedgerError:
  return LedgerError(
    f'{folder}: cannot save ({_reason(error)}); finished ranges are safe: '
    'make room or set permissions, and the same command resumes'
  )


def _read_error(path: epath.Path, error: Exception) -> LedgerError:
  return LedgerError(
    f'{path}: cannot read ({_reason(error)}); nothing is lost: put that right '
    'and run the same command'
  )


def _place_reason(error: Exception) -> str:
  story = ''.join(traceback.format_exception(error))
  return next((text for text in _PLACE_ERRORS if text in story), '')


def _reason(error: Exception) -> str:
  said = getattr(error, 'strerror', None) or str(error)
  first, *_ = said.splitlines() or [type(error).__name__]
  return _place_reason(error) or first[:_SHOWN_CHARS]
