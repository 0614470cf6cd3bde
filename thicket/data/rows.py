# SPDX-License-Identifier: Apache-2.0
"""Rows: how they are known, compared, kept apart and stored as JSON.

A row is known by what it asks (`Task.identity`), not by its place in a file, so
that copies of a data set in other containers and orders have the same row ids.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from absl import logging

from thicket.tasks import base

SPLITS = ('selection', 'validation', 'test')


def parse(task: base.Parsed, row: Any, where: str) -> base.Example:
  """One row as the task reads it; raises TaskError naming where it stands."""
  if not isinstance(row, Mapping):
    raise base.TaskError(f'{where}: a {type(row).__name__}, not an object')
  try:
    example = task.parse(row, 0)
    hashed = digest(task.identity(example), 'row')
  except (base.TaskError, UnicodeError) as error:
    raise base.TaskError(f'{where}: {error}') from error
  # 63 of 64 bits: row ids are stored as signed integers.
  return dataclasses.replace(example, row_id=int.from_bytes(hashed) >> 1)


def digest(text: str, purpose: str) -> bytes:
  """Eight bytes that look random, others for each purpose."""
  return hashlib.blake2b(
    text.encode(), digest_size=8, person=purpose.encode()
  ).digest()


def without_repeats(
  task: base.Task, rows: Iterable[base.Example], where: str
) -> list[base.Example]:
  """One row of each identity; how many are dropped is logged.

  Which of several is kept depends on what they say, not on their order.
  """
  kept: dict[str, base.Example] = {}
  num_dropped = num_contrary = 0
  for row in rows:
    identity = task.identity(row)
    other = kept.setdefault(identity, row)
    if other is not row:
      num_dropped += 1
      num_contrary += other.gold != row.gold
      kept[identity] = min(other, row, key=lambda x: (x.question, x.gold))
  if num_dropped:
    logging.warning(
      '%s: dropped %d rows that repeat an earlier question%s',
      where,
      num_dropped,
      f', {num_contrary} with another answer' if num_contrary else '',
    )
  return list(kept.values())


def check_disjoint(task: base.Task, splits: base.Splits) -> None:
  """Raises TaskError where a row or a row id occurs twice, naming it."""
  seen: dict[str | int, str] = {}
  for name, rows in named(splits):
    for row in rows:
      for key in (task.identity(row), row.row_id):
        if key in seen:
          raise base.TaskError(
            f'row {row.row_id} of {name} is also in {seen[key]}: '
            f'{row.question[:60]!r}'
          )
        seen[key] = name


def named(
  splits: base.Splits,
) -> Iterator[tuple[str, tuple[base.Example, ...]]]:
  """Each split's name and rows."""
  for name in SPLITS:
    yield name, getattr(splits, name)


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
        'meta': json_meta(row, name),
      }
      for row in rows
    ]
    for name, rows in named(splits)
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


def json_meta(row: base.Example, where: str) -> dict[str, Any]:
  """A row's meta; raises TaskError where JSON would make another of it."""
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
