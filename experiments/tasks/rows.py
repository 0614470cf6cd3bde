# SPDX-License-Identifier: Apache-2.0
"""Where the rows of each task lie in one folder, and how many there are."""

from __future__ import annotations

import bisect
import functools
import pathlib
import re

from thicket import data, tasks
from thicket.tasks import base


def find(name: str, folder: pathlib.Path) -> pathlib.Path | None:
  """What `config.task.path` has to be; None: the task makes its rows.

  Taken are FOLDER/NAME, if it is there, FOLDER itself, if it holds
  NAME_train and NAME_test of any format, or the one file NAME, NAME_test or
  NAME_train.

  Raises:
    TaskError: the task needs rows, and there are none, or several files.
  """
  if (folder / name).exists():
    return folder / name
  pattern = re.compile(rf'{re.escape(name)}(|_test|_train)\.\w+')
  files = [path for path in folder.glob(f'{name}*') if path.is_file()]
  parts = [
    match[1] for file in files if (match := pattern.fullmatch(file.name))
  ]
  if sorted(parts) == ['_test', '_train']:
    return folder
  if len(parts) == 1:
    (file,) = (file for file in files if pattern.fullmatch(file.name))
    return file
  if not parts and isinstance(tasks.make(name), base.Generated):
    return None
  found = f'{len(parts)} files' if parts else 'no rows'
  raise tasks.TaskError(
    f'{name}: {found} in {folder}; it takes {name}.jsonl, a folder {name}, or '
    f'{name}_train.jsonl and {name}_test.jsonl'
  )


def load(
  task: base.Task, path: pathlib.Path | None, most: int
) -> tuple[base.Example, ...]:
  """The first `most` test rows of seed 0, or all of them if there are fewer.

  Raises:
    TaskError: the rows cannot be read, or there is none for test.
  """

  @functools.cache
  def first(count: int) -> tuple[base.Example, ...]:
    splits = data.load(
      task, num_selection=1, num_validation=0, num_test=count, seed=0, path=path
    )
    return splits.test

  def are_too_many(count: int) -> bool:
    try:
      first(count)
    except tasks.TaskError:
      return True
    return False

  if not are_too_many(most):
    return first(most)
  first(1)  # raises what is wrong with the rows, if it is not their number
  counts = range(1, most)
  return first(counts[bisect.bisect_left(counts, True, key=are_too_many) - 1])
