# SPDX-License-Identifier: Apache-2.0
"""Blocks of judged rows, and how they are brought together.

A row is keyed (member id, row id, draw) within its split. Blocks are dense on
these three axes, with a mask of what has been seen, because that is how rows
are judged, stored and read. Merging blocks looks only at their rows: how rows
were grouped into blocks, in which order they came and how answers were
numbered leaves no trace.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

BASE = -1  # the member id of the unperturbed model

# Type of each column, and what it holds where no row has been seen.
COLUMNS = {
  'reward': (np.float32, 0),
  'lenient': (np.float32, 0),
  'correct': (np.bool_, False),
  'lenient_correct': (np.bool_, False),
  'released': (np.float32, np.nan),
  'answer': (np.int32, -1),
  'lenient_answer': (np.int32, -1),
  'num_tokens': (np.int32, 0),
  'truncated': (np.bool_, False),
  'text': (np.int32, -1),
}
KEYS = {'members': np.int32, 'rows': np.int64, 'draws': np.int32}
# Columns of indices, each with the table of strings that it points into.
WORDS = {'answer': 'answers', 'lenient_answer': 'answers', 'text': 'texts'}
TABLES = tuple(dict.fromkeys(WORDS.values()))
# Columns that a row may lack, and get later: what is lacking contradicts none.
_OPTIONAL = ('released', 'text')

Keys = tuple[np.ndarray, np.ndarray, np.ndarray]  # members, rows, draws

_SHOWN_CHARS = 120  # of a value in a message, which has to stay one line


class LedgerError(ValueError):
  """A ledger cannot be opened, read or extended; the message says why."""


@dataclasses.dataclass(frozen=True, eq=False)
class Block:
  """A dense block of rows: m members x r row ids x d draws.

  Entries that `seen` denies hold 0, False, NaN or -1. Ids occur once on each
  axis. An answer of -1 abstains. Strict and lenient answers share one table, so
  that equal strings have equal indices.
  """

  members: np.ndarray  # int32 [m], BASE or at least 0
  rows: np.ndarray  # int64 [r]
  draws: np.ndarray  # int32 [d]
  seen: np.ndarray  # bool [m, r, d]
  reward: np.ndarray  # float32 [m, r, d], strict
  lenient: np.ndarray  # float32 [m, r, d]
  correct: np.ndarray  # bool [m, r, d], strict
  lenient_correct: np.ndarray  # bool [m, r, d]
  released: np.ndarray  # float32 [m, r, d]; NaN where no such rule was applied
  answer: np.ndarray  # int32 [m, r, d], strict, index into `answers`
  lenient_answer: np.ndarray  # int32 [m, r, d], index into `answers`
  num_tokens: np.ndarray  # int32 [m, r, d]
  truncated: np.ndarray  # bool [m, r, d]
  answers: tuple[str, ...]  # sorted, unique and used in what `view` gives
  texts: tuple[str, ...] | None = None  # m * r * d, row-major; '' if not kept


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
  """A block in the form it is stored and merged in."""

  keys: Keys
  seen: np.ndarray  # bool [m, r, d]
  columns: dict[str, np.ndarray]  # one for each of COLUMNS
  tables: dict[str, tuple[str, ...]]  # one for each of TABLES


def _cast(name: str, values: Any, dtype: Any, shape: Any = None) -> np.ndarray:
  """A private copy, exact but for the rounding of floats to float32."""
  array = np.asarray(values)
  with np.errstate(invalid='ignore'):
    cast = array.astype(dtype)
  if dtype is not np.float32 and not np.array_equal(cast, array):
    raise LedgerError(
      f'{name}: values of type {array.dtype} do not fit {np.dtype(dtype)}'
    )
  needed = (cast.size,) if shape is None else shape
  if cast.shape != needed:
    raise LedgerError(f'{name}: shape {cast.shape}, needs {needed}')
  return cast


def as_keys(members: Any, rows: Any, draws: Any) -> Keys:
  """Ids as arrays of their types, in the order given.

  Raises LedgerError for an id that occurs twice or does not fit its type.
  """
  ids = (members, rows, draws)
  keys = []
  for (name, dtype), values in zip(KEYS.items(), ids, strict=True):
    keys.append(_cast(name, values, dtype))
    unique, counts = np.unique(keys[-1], return_counts=True)
    if (counts > 1).any():
      raise LedgerError(
        f'{name}: {unique[counts.argmax()]} occurs twice; give each id once'
      )
  return tuple(keys)


def from_block(block: Block) -> Part:
  """The seen rows of a block as a part, copied, sorted and trimmed.

  Raises LedgerError, naming the field, for shapes and values that do not fit.
  """
  keys = as_keys(block.members, block.rows, block.draws)
  if (keys[0] < BASE).any():
    raise LedgerError(
      f'members: {keys[0].min()}; ids are at least 0, or {BASE} for the base'
    )
  shape = tuple(len(ids) for ids in keys)
  seen = _cast('seen', block.seen, np.bool_, shape)
  columns = {
    name: _cast(name, getattr(block, name), dtype, shape)
    for name, (dtype, _) in COLUMNS.items()
    if name != 'text'
  }
  for name, table in WORDS.items():
    if table != 'answers':
      continue
    ids = columns[name][seen]
    if ((ids < -1) | (ids >= len(block.answers))).any():
      raise LedgerError(
        f'{name}: indices {ids.min()} to {ids.max()} into a table of '
        f'{len(block.answers)} answers'
      )
  if block.texts is None:
    texts = ['']
    columns['text'] = np.full(shape, -1, np.int32)
  else:
    texts = sorted({'', *block.texts})
    # The empty text sorts first and means that none was kept.
    index = {text: i or -1 for i, text in enumerate(texts)}
    columns['text'] = _cast(
      'texts', [index[text] for text in block.texts], np.int32, (seen.size,)
    ).reshape(shape)
  tables = {'answers': tuple(block.answers), 'texts': tuple(texts)}
  return trim(Part(keys, seen, columns, tables), seen)


def to_block(part: Part) -> Block:
  """A part as callers see it; `texts` is None if no row has a text."""
  columns = dict(part.columns)
  text, table = columns.pop('text'), part.tables['texts']
  return Block(
    **dict(zip(KEYS, part.keys, strict=True)),
    seen=part.seen,
    **columns,
    answers=part.tables['answers'],
    texts=tuple(table[i] if i >= 0 else '' for i in text.flat)
    if table
    else None,
  )


def from_rewards(members: np.ndarray, rewards: np.ndarray, first: int) -> Block:
  """A block of nothing but rewards [m, r], of the rows from `first` on."""
  shape = (*rewards.shape, 1)
  columns = {
    name: np.full(shape, empty, dtype)
    for name, (dtype, empty) in COLUMNS.items()
    if name != 'text'
  }
  columns |= dict.fromkeys(('reward', 'lenient'), rewards.reshape(shape))
  return Block(
    members=members,
    rows=first + np.arange(shape[1], dtype=np.int64),
    draws=np.zeros(1, np.int32),
    seen=np.ones(shape, bool),
    answers=(),
    **columns,
  )


def trim(part: Part, seen: np.ndarray) -> Part:
  """The `seen` entries alone, without empty ids, keys sorted."""
  picks = []
  for axis, ids in enumerate(part.keys):
    kept = np.flatnonzero(seen.any(tuple({0, 1, 2} - {axis})))
    picks.append(kept[np.argsort(ids[kept])])
  grid = np.ix_(*picks)
  keys = tuple(ids[pick] for ids, pick in zip(part.keys, picks, strict=True))
  columns = {
    name: np.where(
      seen[grid], part.columns[name][grid], np.asarray(empty, dtype)
    )
    for name, (dtype, empty) in COLUMNS.items()
  }
  return _compact(Part(keys, seen[grid], columns, part.tables))


def _compact(part: Part) -> Part:
  """The same with tables sorted, unique and holding nothing unused."""
  columns, tables, lookups = dict(part.columns), {}, {}
  for name, table in part.tables.items():
    ids = [columns[word].ravel() for word in WORDS if WORDS[word] == name]
    used = np.unique(np.concatenate(ids))
    used = used[used >= 0]
    tables[name] = tuple(sorted({table[i] for i in used}))
    index = {word: i for i, word in enumerate(tables[name])}
    lookups[name] = np.full(len(table) + 1, -1, np.int32)
    lookups[name][used] = [index[table[i]] for i in used]
  for name, table in WORDS.items():
    columns[name] = lookups[table][columns[name]]  # the last serves id -1
  return dataclasses.replace(part, columns=columns, tables=tables)


def merge(parts: Sequence[Part], keys: Keys, say: str) -> Part:
  """The rows of all parts that lie on a grid of ids, axes in the ids' order.

  Raises LedgerError, which begins with `say` and names the key, if two parts
  hold different values for one row. Floats are compared bit for bit.
  """
  shape = tuple(len(ids) for ids in keys)
  seen = np.zeros(shape, np.bool_)
  columns = {
    name: np.full(shape, empty, dtype)
    for name, (dtype, empty) in COLUMNS.items()
  }
  words: dict[str, dict[str, int]] = {name: {} for name in TABLES}
  for part in parts:
    grids = _overlap(keys, part.keys)
    if grids is None:
      continue
    to, source = grids
    lookups = {
      name: _numbered(index, part.tables[name]) for name, index in words.items()
    }
    fresh = part.seen[source]
    both = fresh & seen[to]
    for name, column in columns.items():
      old, new, writes = column[to], part.columns[name][source], fresh
      if name in WORDS:
        new = lookups[WORDS[name]][new]
      differs = both & (_bits(old) != _bits(new))
      if name in _OPTIONAL:
        writes = fresh & _is_there(new)
        differs &= writes & _is_there(old)
      if differs.any():
        at = tuple(np.argwhere(differs)[0])
        table = (*words[WORDS[name]], None) if name in WORDS else None
        was, now = (table[x[at]] if table else x[at].item() for x in (old, new))
        member, row, draw = (
          ids[grid.flat[i]] for ids, grid, i in zip(keys, to, at, strict=True)
        )
        raise LedgerError(
          f'{say}, member {member}, row {row}, draw {draw}: {name} is held as '
          f'{_show(was)}, not {_show(now)}; a judged row never changes, so '
          'keep these rows in another --workdir'
        )
      column[to] = np.where(writes, new, old)
    seen[to] |= fresh
  tables = {name: tuple(index) for name, index in words.items()}
  return _compact(Part(keys, seen, columns, tables))


def _numbered(index: dict[str, int], table: Sequence[str]) -> np.ndarray:
  """int32, each word's number in `index`, which grows; the last is for -1."""
  ids = [index.setdefault(word, len(index)) for word in table]
  return np.array([*ids, -1], np.int32)


def _overlap(ours: Keys, theirs: Keys) -> tuple[tuple, tuple] | None:
  """Where two grids of ids meet, as an index into each; None if nowhere."""
  pairs = []
  for one, other in zip(ours, theirs, strict=True):
    _, here, there = np.intersect1d(
      one, other, assume_unique=True, return_indices=True
    )
    if not here.size:
      return None
    pairs.append((here, there))
  here, there = zip(*pairs, strict=True)
  return np.ix_(*here), np.ix_(*there)


def _bits(array: np.ndarray) -> np.ndarray:
  # NaN equals itself here, and -0.0 is not 0.0: stored means bit for bit.
  return array.view(np.int32) if array.dtype == np.float32 else array


def _is_there(array: np.ndarray) -> np.ndarray:
  """Where a column of `_OPTIONAL` holds a value."""
  return ~np.isnan(array) if array.dtype == np.float32 else array >= 0


def adds(part: Part, held: Part) -> np.ndarray:
  """Where a part has something that the held rows lack: bool [m, r, d]."""
  found = part.seen & ~held.seen
  for name in _OPTIONAL:
    has, had = (_is_there(x.columns[name]) for x in (part, held))
    found |= part.seen & has & ~had
  return found


def _show(value: Any) -> str:
  text = repr(value)
  return text if len(text) <= _SHOWN_CHARS else text[: _SHOWN_CHARS - 3] + '...'


def part_name(part: Part) -> str:
  """A folder name made of what a part holds of which rows, not of values."""
  tree = dict(zip(KEYS, part.keys, strict=True))
  tree |= {'seen': part.seen, 'text': part.columns['text'] >= 0}
  is_released = _is_there(part.columns['released'])
  if is_released.any():  # ranges of before it was kept have kept their names
    tree['released'] = is_released
  ends = part.keys[0][[0, -1]]
  first, last = ('base' if i == BASE else f'{i:06d}' for i in ends)
  return f'{first}-{last}-{_digest(tree).hex()[:12]}'


def _digest(tree: dict[str, np.ndarray]) -> bytes:
  sha = hashlib.sha256()
  for name in sorted(tree):
    array = tree[name]
    sha.update(f'{name} {array.dtype.str} {array.shape} '.encode())
    sha.update(array.tobytes())
  return sha.digest()


def pack(part: Part) -> dict[str, np.ndarray]:
  """A part as a flat dict of arrays, none of them empty, with a checksum."""
  tree = dict(zip(KEYS, part.keys, strict=True))
  tree |= {'seen': part.seen, **part.columns}
  for name, table in part.tables.items():
    # Lone surrogates occur in what a model writes and a tokenizer decodes.
    words = [word.encode('utf-8', 'surrogatepass') for word in table]
    # A byte more than the offsets tell: Orbax refuses empty arrays.
    tree[f'{name}_bytes'] = np.frombuffer(b''.join(words) + b'\0', np.uint8)
    tree[f'{name}_ends'] = np.cumsum([0, *map(len, words)], dtype=np.int64)
  # Only Orbax's index is checksummed, not the arrays themselves.
  return tree | {'digest': np.frombuffer(_digest(tree), np.uint8)}


def unpack(tree: dict[str, np.ndarray]) -> Part:
  """The part that was packed.

  Ranges of before `released` was kept lack that array, and hold no values of
  it. Raises ValueError for a wrong checksum, KeyError for a missing array.
  """
  tree = dict(tree)
  if tree.pop('digest').tobytes() != _digest(tree):
    raise ValueError('its checksum is wrong')
  dtype, empty = COLUMNS['released']
  tree.setdefault('released', np.full(tree['seen'].shape, empty, dtype))
  tables = {}
  for name in TABLES:
    data = tree[f'{name}_bytes'].tobytes()
    ends = tree[f'{name}_ends'].tolist()
    tables[name] = tuple(
      data[start:end].decode('utf-8', 'surrogatepass')
      for start, end in itertools.pairwise(ends)
    )
  return Part(
    keys=tuple(tree[name] for name in KEYS),
    seen=tree['seen'],
    columns={name: tree[name] for name in COLUMNS},
    tables=tables,
  )
