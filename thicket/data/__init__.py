# SPDX-License-Identifier: Apache-2.0
"""Rows for a task, cut into selection, validation and test.

Two rules make the splits safe to choose on. They are disjoint by construction,
also in questions that differ in spacing or case only; and they are nested: a
larger split begins with the rows of the smaller one, and asking for more of
one never moves another. Too few rows is an error: the code released with
Neural Thickets (arXiv 2603.12228) tests on its selection rows in that case.

Rows are known by what they ask, not by their place in a file, so that JSONL,
Parquet and TFDS copies of a data set give the same row ids, splits and source
hash. And rows that are added move no other: at the same sizes and seed, a new
row may take the place of one that is then left out, but none changes from one
split to another.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import os
from collections.abc import Callable, Iterable, Iterator

from absl import logging

from thicket.data import overlap, sources
from thicket.data.rows import (
  SPLITS,
  check_disjoint,
  digest,
  examples_from_json,
  examples_to_json,
  json_meta,
  without_repeats,
)
from thicket.tasks import base

__all__ = [
  'SPLITS',
  'check_disjoint',
  'examples_from_json',
  'examples_to_json',
  'load',
]

Rows = Callable[[], Iterable[base.Example]]


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

  Where the data has no test part of its own (generated rows, one file), half of
  the questions are for test, whatever the seed. The rest is put into
  an order drawn with `seed`: selection is taken from its front, validation
  from its back, and test from the front of its own.

  Args:
    task: the task that makes or parses the rows.
    num_selection: rows to score members on, at least 1.
    num_validation: rows to choose anything else on, at least 0.
    num_test: rows to report, at least 1.
    seed: which of the rows are taken, at least 0.
    path: a file (.jsonl, .json for a list, .parquet); or a folder with train
      and test in one of these formats, or with the task's name before them
      (gsm8k_train.jsonl); or where `python -m thicket.data fetch` or TFDS keeps
      data. By default, where the former does.
    source: 'generated', 'files' or 'tfds:NAME'. By default what the task and
      `path` imply. 'tfds:NAME' may download.

  Returns:
    The splits, of exactly the sizes asked for. Their `source` is a SHA-256
    over the row id, question, gold and meta of all rows but dropped repeats,
    taken or not, and whether each is for test. Sizes, seed, container and order
    do not change it.

  Raises:
    TaskError: a count or seed is out of range, there are too few rows, a file
      is missing, a line cannot be parsed (it is named by its number), or the
      source does not fit the task.
  """
  _check_counts(num_selection, num_validation, num_test, seed)
  train, test = _read(task, path, source)

  def place(row: base.Example) -> tuple[bytes, int]:
    draw = digest(f'{seed}:{task.identity(row)}', 'order')
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
  check_disjoint(task, splits)
  if near := overlap.near_duplicates(splits):
    logging.warning('%s: %s', task.name, overlap.said(near))
  return splits


class _Census:
  """Counts and hashes rows as they pass; no row or digest is kept."""

  def __init__(self):
    self.counts = {'train': 0, 'test': 0}
    self._total = 0

  def watch(
    self, part: str, rows: Iterable[base.Example]
  ) -> Iterator[base.Example]:
    for row in rows:
      told = [part, row.row_id, row.question, row.gold]
      if row.meta:
        told.append(json_meta(row, part))
      line = json.dumps(told, sort_keys=True)
      digest = hashlib.sha256(line.encode()).digest()
      # A sum has no order. Nor has xor, but a row that came twice would vanish.
      self._total = (self._total + int.from_bytes(digest)) % 2**256
      self.counts[part] += 1
      yield row

  def digest(self) -> str:
    text = json.dumps([self.counts, f'{self._total:064x}'])
    return hashlib.sha256(text.encode()).hexdigest()


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
    source = 'generated' if is_generated else 'files'
  if source == 'generated':
    if not isinstance(task, base.Generated) or path is not None:
      raise base.TaskError(
        f"{task.name}, path={path!r}: source='generated' needs a task that "
        f'generates its rows, and no path'
      )
    return _halves(task, task.examples)
  if not isinstance(task, base.Parsed):
    raise base.TaskError(
      f'{task.name} generates its rows: leave source={source!r} and '
      f'path={path!r} unset'
    )
  if source.startswith(sources.TFDS_PREFIX):
    parts = sources.read_tfds(
      task, source.removeprefix(sources.TFDS_PREFIX), path
    )
  elif source == 'files':
    parts = sources.read_path(task, path)
  else:
    raise base.TaskError(
      f"source={source!r}: must be 'generated', 'files' or 'tfds:NAME'"
    )
  unique = [without_repeats(task, rows, where) for where, rows in parts.items()]
  if len(unique) == 1:
    return _halves(task, lambda: unique[0])
  train, test = unique
  # The test rows stay as published; what can be chosen on gives way.
  tested = {task.identity(row) for row in test}
  kept = [row for row in train if task.identity(row) not in tested]
  if len(kept) < len(train):
    logging.warning(
      '%s: dropped %d training rows whose question is in test',
      task.name,
      len(train) - len(kept),
    )
  return lambda: kept, lambda: test


def _halves(task: base.Task, rows: Rows) -> tuple[Rows, Rows]:
  """Splits by identity alone: no seed selects what another tests on."""

  def is_test(example: base.Example) -> bool:
    return digest(task.identity(example), 'half')[0] < 128

  return (
    lambda: (row for row in rows() if not is_test(row)),
    lambda: (row for row in rows() if is_test(row)),
  )
