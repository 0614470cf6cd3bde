# SPDX-License-Identifier: Apache-2.0
"""Where rows come from: files of several formats, folders of them, and TFDS.

Each container gives the same rows: objects of text, numbers and lists.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, BinaryIO

from thicket.data import published
from thicket.data.rows import parse
from thicket.tasks import base

TFDS_PREFIX = 'tfds:'
PARTS = ('train', 'test')

Placed = Iterator[tuple[str, Any]]  # rows as read, with where they stand
Parts = dict[str, Iterable[base.Example]]  # by file or part

_BATCH_ROWS = 1024  # of a Parquet file that are in memory at once


def read_path(task: base.Parsed, path: str | os.PathLike[str] | None) -> Parts:
  """The rows of a file, of a folder's train and test, or of a fetched set.

  Raises:
    TaskError: nothing is there, or it cannot be told what is meant.
  """
  if path is None:
    return _fetched(task)
  path = pathlib.Path(path).expanduser()
  if path.is_file():
    return {str(path): _parsed(task, read_file(path))}
  if folder := published.prepared(task.name, path):
    return _read_prepared(task, folder)
  for prefix in ('', f'{task.name}_'):
    parts = {part: _find(path, prefix + part) for part in PARTS}
    if all(parts.values()):
      return {
        f'{path}, {part}': _parsed(task, _chain(files))
        for part, files in parts.items()
      }
  formats = ', '.join(sorted(_READERS))
  raise base.TaskError(
    f'{path}: is no file, and no folder with train.jsonl and test.jsonl '
    f'(or {task.name}_train.jsonl and {task.name}_test.jsonl; '
    f'formats: {formats}), nor with a fetched {task.name}'
  )


def read_file(path: pathlib.Path) -> Placed:
  """Rows of a file by its suffix, JSONL if that says nothing, lazily.

  Raises:
    TaskError: the file cannot be read; a line or row is named by its number.
  """
  return _READERS.get(path.suffix, _jsonl)(path)


def read_lines(lines: Iterable[bytes], path: pathlib.Path) -> Placed:
  """Rows of JSONL that is open; raises TaskError as `read_file`."""
  for where, line in _placed(lines, path):
    yield where, _load(line, where)


def read_tfds(
  task: base.Parsed, name: str, folder: str | os.PathLike[str] | None
) -> Parts:
  """The rows of TFDS's train and test, what there is; may download.

  Raises:
    TaskError: TFDS is not installed, has no such data or cannot prepare it.
  """
  tfds = import_tfds(f"source='{TFDS_PREFIX}{name}'")
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
      'it where there is a network, or give task.path a file'
    ) from error
  return _built(task, name, builder)


def import_tfds(what: str) -> Any:
  """TFDS's module; raises TaskError where `what` needs it and it is not."""
  try:
    import array_record  # noqa: F401
    import tensorflow_datasets
  except ImportError as error:
    raise base.TaskError(
      f"{what} needs TFDS ({error}): pip install -e '.[tfds]'"
    ) from error
  return tensorflow_datasets


def _fetched(task: base.Parsed) -> Parts:
  if task.name not in published.PUBLISHED:
    raise base.TaskError(
      f'{task.name} needs rows: set task.path to a file or a folder '
      f'({", ".join(sorted(_READERS))}), or task.source=tfds:NAME'
    )
  folder = published.prepared(task.name)
  if folder is None:
    raise base.TaskError(
      f'{task.name} has not been fetched into {published.data_folder()}: run '
      f'`python -m thicket.data fetch {task.name}`, or set task.path to a file '
      'or a folder'
    )
  return _read_prepared(task, folder)


def _read_prepared(task: base.Parsed, folder: pathlib.Path) -> Parts:
  tfds = import_tfds(str(folder))
  return _built(task, str(folder), tfds.builder_from_directory(folder))


def _built(task: base.Parsed, name: str, builder: Any) -> Parts:
  parts = [part for part in PARTS if part in builder.info.splits]
  if not parts:
    raise base.TaskError(
      f'{name}: has neither a train nor a test split, only '
      f'{sorted(builder.info.splits)}'
    )

  def rows(part: str) -> Placed:
    for number, row in enumerate(builder.as_data_source(split=part), start=1):
      yield f'{name}, {part}, row {number}', _plain(row)

  return {f'{name}, {part}': _parsed(task, rows(part)) for part in parts}


def _plain(value: Any) -> Any:
  """What TFDS gives of text, numbers and lists of them, as JSON would."""
  if isinstance(value, bytes):
    return value.decode('utf-8')
  if isinstance(value, Mapping):
    return {key: _plain(inner) for key, inner in value.items()}
  if hasattr(value, 'tolist'):
    value = value.tolist()
  return [_plain(x) for x in value] if isinstance(value, list) else value


def _find(folder: pathlib.Path, stem: str) -> list[pathlib.Path]:
  """The one file of a part, or the shards of one; none if there is none."""
  found = [[folder / f'{stem}{suffix}'] for suffix in _READERS]
  found = [files for files in found if files[0].is_file()]
  # As the hub's Parquet files are named: train-00000-of-00002.parquet.
  if shards := sorted(folder.glob(f'{stem}-*-of-*.parquet')):
    found.append(shards)
  if len(found) > 1:
    names = ' and '.join(files[0].name for files in found)
    raise base.TaskError(
      f'{folder} holds {names}: keep one, or give the path of a file'
    )
  return found[0] if found else []


def _chain(files: Iterable[pathlib.Path]) -> Placed:
  for file in files:
    yield from read_file(file)


def _parsed(task: base.Parsed, rows: Placed) -> Iterator[base.Example]:
  for where, row in rows:
    yield parse(task, row, where)


def _opened(path: pathlib.Path) -> BinaryIO:
  # Bytes: text mode would also end a line inside a string, at a lone \r.
  try:
    return path.open('rb')
  except OSError as error:
    raise base.TaskError(f'{path}: cannot be read: {error.strerror}') from error


def _placed(
  lines: Iterable[bytes], path: pathlib.Path
) -> Iterator[tuple[str, bytes]]:
  """The lines that are not empty, with where they stand."""
  for number, line in enumerate(lines, start=1):
    if line.strip():
      yield f'{path}, line {number}', line


def _jsonl(path: pathlib.Path) -> Placed:
  with _opened(path) as lines:
    yield from read_lines(lines, path)


def _tsv(path: pathlib.Path) -> Placed:
  """Tab-separated cells (IANA): columns named first, no quotes, no escapes."""
  columns: list[str] | None = None
  with _opened(path) as lines:
    for where, line in _placed(lines, path):
      try:
        cells = line.decode('utf-8').rstrip('\r\n').split('\t')
      except UnicodeDecodeError as error:
        raise base.TaskError(f'{where}: not UTF-8: {error}') from error
      if columns is None:
        columns = cells
        if len(set(columns)) < len(columns):
          raise base.TaskError(
            f'{where}: columns={columns}: one is named twice'
          )
        continue
      if len(cells) != len(columns):
        raise base.TaskError(
          f'{where}: {len(cells)} cells for the columns {columns}'
        )
      yield where, dict(zip(columns, cells, strict=True))


def _json(path: pathlib.Path) -> Placed:
  """A list of objects, all in memory at once."""
  try:
    text = path.read_bytes()
  except OSError as error:
    raise base.TaskError(f'{path}: cannot be read: {error.strerror}') from error
  rows = _load(text, str(path))
  if not isinstance(rows, list):
    raise base.TaskError(
      f'{path}: a {type(rows).__name__}, not a list of rows; a file with a row '
      'on each line is called .jsonl'
    )
  for number, row in enumerate(rows, start=1):
    yield f'{path}, row {number}', row


def _load(text: bytes, where: str) -> Any:
  try:
    return json.loads(text.decode('utf-8'))
  except (ValueError, RecursionError) as error:
    raise base.TaskError(f'{where}: not JSON: {error}') from error


def _parquet(path: pathlib.Path) -> Placed:
  try:
    import pyarrow
    from pyarrow import parquet
  except ImportError as error:
    raise base.TaskError(
      f"{path} needs pyarrow ({error}): pip install -e '.[parquet]'"
    ) from error
  number = 0
  try:
    with parquet.ParquetFile(path) as file:
      for batch in file.iter_batches(batch_size=_BATCH_ROWS):
        for row in batch.to_pylist():
          number += 1
          yield f'{path}, row {number}', row
  except (OSError, pyarrow.ArrowException) as error:
    reason = ' '.join(str(error).split())
    raise base.TaskError(
      f'{path}: cannot be read as Parquet after row {number}: {reason}'
    ) from error


_READERS: dict[str, Callable[[pathlib.Path], Placed]] = {
  '.jsonl': _jsonl,
  '.json': _json,
  '.parquet': _parquet,
  '.tsv': _tsv,
}
