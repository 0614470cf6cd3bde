# SPDX-License-Identifier: Apache-2.0
"""Fetches published data sets and keeps them as TFDS does, without TensorFlow.

A download that was cut off goes on where it stopped. What is kept has the hash
written in `published`, or is marked as another version; it is put in place
whole, so that a reader never sees half of it.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.client
import io
import json
import os
import pathlib
import shutil
import tempfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.progress import DownloadColumn, Progress, TimeRemainingColumn

from thicket.data import published, sources
from thicket.data.published import PUBLISHED, File, Published
from thicket.tasks.base import TaskError

_CHUNK_BYTES = 1 << 16
_PATIENCE_S = 60.0  # of a server that says nothing
_HASHES = 'sha256'  # the key of TFDS's metadata


def fetch(
  name: str,
  data_dir: str | os.PathLike[str] | None = None,
  *,
  folder: str | os.PathLike[str] | None = None,
  any_version: bool = False,
  console: Console | None = None,
) -> pathlib.Path:
  """Prepares a data set, once; the same call again does nothing.

  Args:
    name: a key of `published.PUBLISHED`.
    data_dir: where to, by default `published.data_folder()`.
    folder: where its files are at hand; by default they are downloaded.
    any_version: take rows of another hash than the published one.
    console: where progress goes.

  Returns:
    The folder in which TFDS finds it.

  Raises:
    TaskError: no such data set, no such file, no network, another hash than
      was published, or rows without its fields.
  """
  chosen = PUBLISHED.get(name)
  if chosen is None:
    raise TaskError(f'no data set {name!r}; there are: {", ".join(PUBLISHED)}')
  tfds = sources.import_tfds(f'fetch {name}')
  data_dir = pathlib.Path(data_dir or published.data_folder()).expanduser()
  console = console or Console(highlight=False)
  try:
    data_dir.mkdir(parents=True, exist_ok=True)
    if folder is None and _hashes(name, data_dir) == _official(chosen):
      console.print(f'{name} is there already')
      return data_dir / name / published.VERSION
    files, found = {}, {}
    for file in chosen.files:
      if folder is None:
        path = _download(name, file, data_dir, console)
      else:
        path = _at_hand(name, chosen, file, pathlib.Path(folder).expanduser())
      files[file.part] = path
      try:
        found[file.part] = _checked(path, file, any_version)
      except TaskError:
        if folder is None:
          path.unlink()  # what is wrong is not to be found again
        raise
    if _hashes(name, data_dir) == found:
      console.print(f'{name} is there already')
    else:
      _prepare(tfds, name, chosen, files, found, data_dir, console)
    if folder is None:
      for path in files.values():
        path.unlink()
  except OSError as error:
    raise TaskError(
      f'{name}: {error.filename or data_dir}: {error.strerror or error}; '
      '--data_dir is where data is kept'
    ) from error
  return data_dir / name / published.VERSION


def listed(data_dir: str | os.PathLike[str] | None = None) -> list[str]:
  """A line for each data set: its name, rows, licence and where it is kept."""
  data_dir = pathlib.Path(data_dir or published.data_folder()).expanduser()
  lines = []
  for name, chosen in PUBLISHED.items():
    rows = ' + '.join(f'{x.num_rows} {x.part}' for x in chosen.files)
    found = _hashes(name, data_dir)
    where = 'not fetched'
    if found is not None:
      where = str(data_dir / name / published.VERSION)
      if found != _official(chosen):
        where += ' (another version than was published)'
    lines.append(f'{name:10} {rows:22} {chosen.licence:4} {where}')
  return lines


def _official(chosen: Published) -> dict[str, str]:
  return {file.part: file.sha256 for file in chosen.files}


def _hashes(name: str, data_dir: pathlib.Path) -> dict[str, str] | None:
  """The hash of each part of what is prepared; None if nothing is."""
  folder = published.prepared(name, data_dir)
  if folder is None:
    return None
  try:
    text = (folder / 'metadata.json').read_text(encoding='utf-8')
    return json.loads(text)[_HASHES]
  except (OSError, ValueError, KeyError):
    return {}  # by other means than ours


def _checked(path: pathlib.Path, file: File, any_version: bool) -> str:
  found = _sha256(path)
  if found != file.sha256 and not any_version:
    raise TaskError(
      f'{path}: SHA-256 is {found} instead of {file.sha256}, which was '
      'published; --any-version takes it anyway'
    )
  return found


def _sha256(path: pathlib.Path) -> str:
  """Of a file's bytes, unpacked if they are packed; in hex digits."""
  digest = hashlib.sha256()
  try:
    with _open(path) as file:
      while data := file.read(_CHUNK_BYTES):
        digest.update(data)
  except (gzip.BadGzipFile, EOFError, zlib.error) as error:
    raise TaskError(f'{path} is damaged: {error}; fetch it again') from error
  return digest.hexdigest()


def _open(path: pathlib.Path) -> Any:
  return gzip.open(path) if path.suffix == '.gz' else path.open('rb')


def _at_hand(
  name: str, chosen: Published, file: File, folder: pathlib.Path
) -> pathlib.Path:
  names = [file.url.rpartition('/')[2], f'{name}_{file.part}.jsonl']
  if len(chosen.files) == 1:
    names.append(f'{name}.jsonl')
  plain = [x.removesuffix('.gz') for x in names]
  # Any name may be another data set's, such as test.jsonl: the hash decides.
  there = [folder / x for x in dict.fromkeys(names + plain)]
  there = [path for path in there if path.is_file()]
  if not there:
    raise TaskError(
      f'{folder} has none of {", ".join(dict.fromkeys(names + plain))}'
    )
  right = [path for path in there if _sha256(path) == file.sha256]
  return (right or there)[0]


def _download(
  name: str, file: File, data_dir: pathlib.Path, console: Console
) -> pathlib.Path:
  """The file, whole; what is there of it already is not asked for again."""
  suffix = '.gz' if file.url.endswith('.gz') else ''
  path = data_dir / f'.{name}-{file.part}.jsonl{suffix}'
  partial = path.with_name(f'{path.name}.partial')
  if path.exists():
    return path
  have = partial.stat().st_size if partial.exists() else 0
  request = urllib.request.Request(file.url)
  if have:
    request.add_header('Range', f'bytes={have}-')
  columns = (*Progress.get_default_columns()[:2], DownloadColumn())
  try:
    with (
      urllib.request.urlopen(request, timeout=_PATIENCE_S) as answer,
      Progress(*columns, TimeRemainingColumn(), console=console) as bars,
      # A server that knows no ranges sends all of it again.
      partial.open('ab' if answer.status == 206 else 'wb') as target,
    ):
      left = answer.headers['Content-Length']
      total = target.tell() + int(left) if left else None
      bar = bars.add_task(
        f'{name}, {file.part}', total=total, completed=target.tell()
      )
      while data := answer.read(_CHUNK_BYTES):
        target.write(data)
        bars.update(bar, advance=len(data))
      if total is not None and target.tell() < total:
        raise http.client.IncompleteRead(b'', total - target.tell())
  except urllib.error.HTTPError as error:
    if error.code != 416:  # nothing is left to send
      raise _no_download(file, error, data_dir, name) from error
  except (OSError, http.client.HTTPException) as error:
    raise _no_download(file, error, data_dir, name) from error
  partial.replace(path)
  return path


def _no_download(
  file: File, error: Exception, data_dir: pathlib.Path, name: str
) -> TaskError:
  return TaskError(
    f'{file.url}: {error}; the same command goes on where this stopped, or '
    f'fetch the file elsewhere and run `python -m thicket.data fetch {name} '
    '--from=FOLDER`'
  )


def _prepare(
  tfds: Any,
  name: str,
  chosen: Published,
  files: Mapping[str, pathlib.Path],
  hashes: Mapping[str, str],
  data_dir: pathlib.Path,
  console: Console,
) -> None:
  """Writes the rows as array_record and puts them in place."""
  import numpy as np

  kinds = {str: tfds.features.Text(), int: np.int64}

  # The builder's own table of names has no place for ours: TFDS knows gsm8k.
  class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Rows in the order and with the fields of the published file."""

    VERSION = tfds.core.Version(published.VERSION)
    # TFDS would look beside this file, through a package that it needs then.
    code_path = None

    def _info(self):
      fields = {key: kinds[kind] for key, kind in chosen.fields.items()}
      return tfds.core.DatasetInfo(
        builder=self,
        description=chosen.title,
        features=tfds.features.FeaturesDict(fields),
        homepage=chosen.homepage,
        license=chosen.licence,
        citation=chosen.citation,
        metadata=tfds.core.MetadataDict({_HASHES: dict(hashes)}),
        disable_shuffling=True,
      )

    def _split_generators(self, dl_manager):
      return {part: self._generate_examples(files[part]) for part in files}

    def _generate_examples(self, path):
      yield from enumerate(_rows(path, chosen))

  Builder.name = name
  with tempfile.TemporaryDirectory(
    prefix='.fetch-', dir=data_dir, ignore_cleanup_errors=True
  ) as folder:
    builder = Builder(data_dir=folder, file_format='array_record')
    # It would speak of downloads, of unknown size, into the folder in passing.
    hushed = io.StringIO()
    with (
      contextlib.redirect_stdout(hushed),
      contextlib.redirect_stderr(hushed),
    ):
      builder.download_and_prepare()
    target = data_dir / name
    if target.exists():  # another version, or what was left of one
      shutil.rmtree(target)
    os.replace(pathlib.Path(folder) / name, target)
  console.print(f'{name}: prepared in {target / published.VERSION}')


def _rows(path: pathlib.Path, chosen: Published) -> Iterator[dict[str, Any]]:
  """The rows of a file, which has all fields and no others."""
  with _open(path) as lines:
    for where, row in sources.read_lines(lines, path):
      right = isinstance(row, dict) and row.keys() == chosen.fields.keys()
      if not right or any(
        type(row[key]) is not kind for key, kind in chosen.fields.items()
      ):
        kinds = {key: kind.__name__ for key, kind in chosen.fields.items()}
        raise TaskError(
          f'{where}: {str(row)[:80]!r} has not the fields {kinds}'
        )
      yield row
