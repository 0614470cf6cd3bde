# SPDX-License-Identifier: Apache-2.0
"""Where rows come from: JSONL files, folders of two, and TFDS."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterable, Iterator

from thicket.data.rows import parse
from thicket.tasks import base

TFDS_PREFIX = 'tfds:'


def read_folder(task, path) -> dict[str, Iterable[base.Example]]:
  """The rows of one file, or of train and test; raises TaskError."""
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
      yield parse(task, row, where)


def read_tfds(task, name, folder) -> dict[str, Iterable[base.Example]]:
  """The rows of TFDS's train and test, what there is; raises TaskError."""
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
      yield parse(task, text, f'{name}, {part}, row {number}')

  parts = [part for part in ('train', 'test') if part in builder.info.splits]
  if not parts:
    raise base.TaskError(
      f'{name}: has neither a train nor a test split, only '
      f'{sorted(builder.info.splits)}'
    )
  return {f'{name}, {part}': rows(part) for part in parts}
