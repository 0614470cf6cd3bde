# SPDX-License-Identifier: Apache-2.0
"""Rows for a task, cut into selection, validation and test.

Two rules make the splits safe to choose on. They are disjoint by construction,
also in questions that differ in spacing or case only; and they are nested: a
larger split begins with the rows of the smaller one, and asking for more of
one never moves another. Too few rows is an error: the code released with
Neural Thickets (arXiv 2603.12228) tests on its selection rows in that case.

Rows are known by their question, not by their place in a file, so that JSONL
and TFDS copies of a data set give the same row ids, splits and source hash.
"""

from __future__ import annotations

import dataclasses
import hashlib
import heapq
import json
import os
import pathlib
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from absl import logging

from thicket.tasks import base

Rows = Callable[[], Iterable[base.Example]]

TFDS_PREFIX = 'tfds:'
SPLITS = ('selection', 'validation', 'test')


def load(
  task: base.Task,
  *,
  num_selection: int,
  num_validation: int,
  num_test: int,
  seed: int,
  path: str | os.PathLike[str] | None = None,
  source: str | None = None,
) -> base.Splits:
  """Reads a task's rows and cuts them into disjoint splits.

  Where the data has no test part of its own (generated rows, one JSONL file),
  half of the questions are for test, whatever the seed. The rest is put into
  an order drawn with `seed`: selection is taken from its front, validation
  from its back, and test from the front of its own.

  Args:
    task: the task that makes or parses the rows.
    num_selection: rows to score members on, at least 1.
    num_validation: rows to choose anything else on, at least 0.
    num_test: rows to report, at least 1.
    seed: which of the rows are taken, at least 0.
    path: a JSONL file; or a folder with train.jsonl and test.jsonl, or with
      the task's name before them (gsm8k_train.jsonl); or TFDS's data folder.
    source: 'generated', 'jsonl' or 'tfds:NAME'. By default what the task and
      `path` imply. 'tfds:NAME' may download.

  Returns:
    The splits, of exactly the sizes asked for. Their `source` is a SHA-256
    over the row id, question and gold of all rows but dropped repeats, taken
    or not, and whether each is for test. Sizes, seed, container and order do
    not change it.

  Raises:
    TaskError: a count or seed is out of range, there are too few rows, a file
      is missing, a line cannot be parsed (it is named by its number), or the
      source does not fit the task.
  """
  _check_counts(num_selection, num_validation, num_test, seed)
  train, test = _read(task, path, source)

  def place(row: base.Example) -> tuple[bytes, int]:
    draw = _digest(f'{seed}:{_canonical(row.question)}', 'order')
    return draw, row.row_id

  census = _Census()
  # One row at least is asked of these two, so that both read to the end.
  selection = heapq.nsmallest(
    num_selection, census.watch('train', train()), key=place
  )
  tested = heapq.nsmallest(num_test, census.watch('test', test()), key=place)
  validation = heapq.nlargest(num_validation, train(), key=place)
  num_train = num_selection + num_validation
  if len({row.row_id for row in selection + validation}) < num_train:
    raise base.TaskError(
      f'{task.name}: num_selection={num_selection} and num_validation='
      f'{num_validation} need {num_train} rows, there are '
      f'{census.counts["train"]}; ask for fewer'
    )
  if len(tested) < num_test:
    raise base.TaskError(
      f'{task.name}: num_test={num_test}, but there are {len(tested)} '
      f'test rows; ask for fewer'
    )
  splits = base.Splits(
    selection=tuple(selection),
    validation=tuple(validation),
    test=tuple(tested),
    source=census.digest(),
  )
  check_disjoint(splits)
  return splits


def check_disjoint(splits: base.Splits) -> None:
  """Raises TaskError where a question or a row id occurs twice, naming it."""
  seen: dict[str | int, str] = {}
  for name, rows in _named(splits):
    for row in rows:
      for key in (_canonical(row.question), row.row_id):
        if key in seen:
          raise base.TaskError(
            f'row {row.row_id} of {name} is also in {seen[key]}: '
            f'{row.question[:60]!r}'
          )
        seen[key] = name


def examples_to_json(splits: base.Splits) -> dict[str, Any]:
  """The splits as JSON values, from which `examples_from_json` makes them anew.

  Raises:
    TaskError: the meta of a row, which is named, would not be the same again.
  """
  stored: dict[str, Any] = {
    name: [
      {
        'row_id': row.row_id,
        'question': row.question,
        'gold': row.gold,
        'meta': _json_meta(row, name),
      }
      for row in rows
    ]
    for name, rows in _named(splits)
  }
  return stored | {'source': splits.source}


def examples_from_json(stored: Mapping[str, Any]) -> base.Splits:
  """The splits that `examples_to_json` was given.

  Raises:
    TaskError: a field is missing, unknown or out of range.
  """
  try:
    rows = {
      name: tuple(base.Example(**row) for row in stored[name])
      for name in SPLITS
    }
    return base.Splits(**rows, source=stored['source'])
  except (KeyError, TypeError, AttributeError) as error:
    raise base.TaskError(
      f'stored rows cannot be read: {error!r}; load them from their source'
    ) from error


def _json_meta(row: base.Example, where: str) -> dict[str, Any]:
  meta = dict(row.meta)
  try:
    stored = json.loads(json.dumps(meta, allow_nan=False))
  except (TypeError, ValueError):
    stored = None
  # JSON makes lists of tuples and text of keys, without an error.
  if stored != meta:
    raise base.TaskError(
      f'row {row.row_id} of {where}: meta={meta!r} is not JSON; use objects '
      'with text as keys, lists, text, finite numbers, booleans and None'
    )
  return stored


class _Census:
  """Counts and hashes rows as they pass; no row or digest is kept."""

  def __init__(self):
    self.counts = {'train': 0, 'test': 0}
    self._total = 0

  def watch(
    self, part: str, rows: Iterable[base.Example]
  ) -> Iterator[base.Example]:
    for row in rows:
      line = json.dumps([part, row.row_id, row.question, row.gold])
      digest = hashlib.sha256(line.encode()).digest()
      # A sum has no order. Nor has xor, but a row that came twice would vanish.
      self._total = (self._total + int.from_bytes(digest)) % 2**256
      self.counts[part] += 1
      yield row

  def digest(self) -> str:
    text = json.dumps([self.counts, f'{self._total:064x}'])
    return hashlib.sha256(text.encode()).hexdigest()


def _named(
  splits: base.Splits,
) -> Iterator[tuple[str, tuple[base.Example, ...]]]:
  for name in SPLITS:
    yield name, getattr(splits, name)


def _check_counts(num_selection, num_validation, num_test, seed) -> None:
  for name, value, least in (
    ('num_selection', num_selection, 1),
    ('num_validation', num_validation, 0),
    ('num_test', num_test, 1),
    ('seed', seed, 0),
  ):
    if value < least:
      raise base.TaskError(f'{name}={value}: must be at least {least}')


def _read(task, path, source) -> tuple[Rows, Rows]:
  """The rows to choose on and the rows to test on, without overlap."""
  if source is None:
    is_generated = isinstance(task, base.Generated) and path is None
    source = 'generated' if is_generated else 'jsonl'
  if source == 'generated':
    if not isinstance(task, base.Generated) or path is not None:
      raise base.TaskError(
        f"{task.name}, path={path!r}: source='generated' needs a task that "
        f'generates its rows, and no path'
      )
    return _halves(task.examples)
  if not isinstance(task, base.Parsed):
    raise base.TaskError(
      f'{task.name} generates its rows: leave source={source!r} and '
      f'path={path!r} unset'
    )
  if source.startswith(TFDS_PREFIX):
    parts = _read_tfds(task, source.removeprefix(TFDS_PREFIX), path)
  elif source == 'jsonl':
    parts = _read_folder(task, path)
  else:
    raise base.TaskError(
      f"source={source!r}: must be 'generated', 'jsonl' or 'tfds:NAME'"
    )
  unique = [_without_repeats(rows, where) for where, rows in parts.items()]
  if len(unique) == 1:
    return _halves(lambda: unique[0])
  train, test = unique
  # The test rows stay as published; what can be chosen on gives way.
  tested = {_canonical(row.question) for row in test}
  kept = [row for row in train if _canonical(row.question) not in tested]
  if len(kept) < len(train):
    logging.warning(
      '%s: dropped %d training rows whose question is in test',
      task.name,
      len(train) - len(kept),
    )
  return lambda: kept, lambda: test


def _halves(rows: Rows) -> tuple[Rows, Rows]:
  """Splits by the question alone: no seed selects what another tests on."""

  def is_test(example: base.Example) -> bool:
    return _digest(_canonical(example.question), 'half')[0] < 128

  return (
    lambda: (row for row in rows() if not is_test(row)),
    lambda: (row for row in rows() if is_test(row)),
  )


def _without_repeats(
  rows: Iterable[base.Example], where: str
) -> list[base.Example]:
  first: dict[str, base.Example] = {}
  num_dropped = 0
  for row in rows:
    is_new = first.setdefault(_canonical(row.question), row) is row
    num_dropped += not is_new
  if num_dropped:
    logging.warning(
      '%s: dropped %d rows that repeat an earlier question', where, num_dropped
    )
  return list(first.values())


def _read_folder(task, path) -> dict[str, Iterable[base.Example]]:
  if path is None:
    raise base.TaskError(
      f'{task.name} needs rows: set path to a JSONL file or a folder, or '
      f"source='tfds:{task.name}'"
    )
  path = pathlib.Path(path)
  if path.is_file():
    return {str(path): _read_jsonl(task, path)}
  for prefix in ('', f'{task.name}_'):
    files = [path / f'{prefix}{part}.jsonl' for part in ('train', 'test')]
    if all(file.is_file() for file in files):
      return {str(file): _read_jsonl(task, file) for file in files}
  raise base.TaskError(
    f'{path}: is no file and no folder with train.jsonl and test.jsonl '
    f'(or {task.name}_train.jsonl and {task.name}_test.jsonl)'
  )


def _read_jsonl(task, path: pathlib.Path) -> Iterator[base.Example]:
  # Bytes: text mode would also end a line inside a string, at a lone \r.
  try:
    lines = path.open('rb')
  except OSError as error:
    raise base.TaskError(f'{path}: cannot be read: {error.strerror}') from error
  with lines:
    for number, line in enumerate(lines, start=1):
      if not line.strip():
        continue
      where = f'{path}, line {number}'
      try:
        row = json.loads(line.decode('utf-8'))
      except ValueError as error:
        raise base.TaskError(f'{where}: not JSON: {error}') from error
      yield _parse(task, row, where)


def _read_tfds(task, name, folder) -> dict[str, Iterable[base.Example]]:
  try:
    import array_record  # noqa: F401
    import tensorflow_datasets as tfds
  except ImportError as error:
    raise base.TaskError(
      f"source='{TFDS_PREFIX}{name}' needs TFDS ({error}): "
      f"pip install -e '.[tfds]'"
    ) from error
  # array_record is the only format that TFDS reads without TensorFlow.
  try:
    builder = tfds.builder(name, data_dir=folder, file_format='array_record')
  except tfds.core.DatasetNotFoundError as error:
    raise base.TaskError(
      f"source='{TFDS_PREFIX}{name}': TFDS has no such data set, and there is "
      f'none in path={folder!r}'
    ) from error
  try:
    builder.download_and_prepare()
  except Exception as error:  # of many kinds: network, disk, checksums
    reason = ' '.join(str(error).split())
    raise base.TaskError(
      f"source='{TFDS_PREFIX}{name}' could not be prepared: {reason}; prepare "
      'it where there is a network, or give task.path a JSONL file'
    ) from error

  def rows(part: str) -> Iterator[base.Example]:
    for number, row in enumerate(builder.as_data_source(split=part)):
      text = {
        key: value.decode('utf-8') if isinstance(value, bytes) else value
        for key, value in row.items()
      }
      yield _parse(task, text, f'{name}, {part}, row {number}')

  parts = [part for part in ('train', 'test') if part in builder.info.splits]
  if not parts:
    raise base.TaskError(
      f'{name}: has neither a train nor a test split, only '
      f'{sorted(builder.info.splits)}'
    )
  return {f'{name}, {part}': rows(part) for part in parts}


def _parse(task, row: Any, where: str) -> base.Example:
  if not isinstance(row, Mapping):
    raise base.TaskError(f'{where}: a {type(row).__name__}, not an object')
  try:
    example = task.parse(row, 0)
    digest = _digest(_canonical(example.question), 'row')
  except (base.TaskError, UnicodeError) as error:
    raise base.TaskError(f'{where}: {error}') from error
  # 63 of 64 bits: row ids are stored as signed integers.
  return dataclasses.replace(example, row_id=int.from_bytes(digest) >> 1)


def _canonical(question: str) -> str:
  """The question without what a reader would not notice."""
  text = unicodedata.normalize('NFKC', question).casefold()
  return ' '.join(text.split())


def _digest(text: str, purpose: str) -> bytes:
  return hashlib.blake2b(
    text.encode(), digest_size=8, person=purpose.encode()
  ).digest()
