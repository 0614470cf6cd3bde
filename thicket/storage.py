# SPDX-License-Identifier: Apache-2.0
"""Where a run keeps its files: a folder, or a bucket of Google's or Amazon's.

epath reads and writes them through gcsfs and s3fs. In a bucket there are no
folders, a file is replaced whole or not at all, and nothing can be appended.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import os
import re
import uuid
from collections.abc import Iterable, Iterator

import fsspec
from etils import epath

from thicket.blocks import LedgerError

# The library that reads a scheme, and the extra that installs it.
_SCHEMES = {'gs': ('gcsfs', 'gcs'), 's3': ('s3fs', 's3')}
_SHOWN_CHARS = 200  # of a library's message, so that ours stays one line


def as_path(path: epath.PathLike) -> epath.Path:
  """A path or a URL as given, checked without looking at what is there.

  Raises LedgerError for a scheme that is not known, no bucket, or a library
  that is not installed.
  """
  text = os.fspath(path)
  match = re.match(r'([A-Za-z][\w+.-]+):/+([^/]*)', text)
  if not match:
    return epath.Path(text).expanduser()
  scheme, bucket = match.groups()
  if scheme not in _SCHEMES or not text.startswith(f'{scheme}://{bucket}'):
    raise LedgerError(
      f'{text}: no such storage; give a folder, gs://BUCKET/FOLDER or '
      's3://BUCKET/FOLDER'
    )
  if not bucket:
    raise LedgerError(f'{text}: no bucket; give {scheme}://BUCKET/FOLDER')
  library, extra = _SCHEMES[scheme]
  if importlib.util.find_spec(library) is None:
    raise LedgerError(
      f"{text}: needs {library}; run pip install 'thicket[{extra}]'"
    )
  # What was listed once may have changed by what others have written since.
  fsspec.config.conf.setdefault(scheme, {})['use_listings_cache'] = False
  return epath.Path(text)


def absolute(path: epath.PathLike) -> epath.Path:
  """As `as_path`, independent of the current folder."""
  path = as_path(path)
  return path.resolve() if is_local(path) else path


def is_local(path: epath.Path) -> bool:
  """Whether a path lies in a file system, not in a bucket."""
  return '://' not in os.fspath(path)


def make_folder(path: epath.Path) -> None:
  """Makes a folder where there are such; raises OSError."""
  if is_local(path):  # s3fs would make a bucket of a mistyped name
    path.mkdir(parents=True, exist_ok=True)


def subfolders(path: epath.Path) -> list[epath.Path]:
  """Folders in a folder, sorted; none if it is not there. Raises OSError."""
  with os_errors(path):
    if not path.exists():
      return []
    return sorted(found for found in path.iterdir() if found.is_dir())


@contextlib.contextmanager
def os_errors(path: epath.Path) -> Iterator[None]:
  """Turns what the libraries of buckets raise into OSError with a reason."""
  try:
    yield
  except OSError as error:
    if error.strerror or is_local(path):
      raise
    raise _one_line(error) from error
  except Exception as error:  # they share no class: botocore, google.auth, ...
    if is_local(path) or isinstance(error, LedgerError):
      raise
    raise _one_line(error) from error


def _one_line(error: Exception) -> OSError:
  text = ' '.join(f'{type(error).__name__}: {error}'.split())
  kind = FileNotFoundError if isinstance(error, FileNotFoundError) else OSError
  return kind(errno.EIO, text[:_SHOWN_CHARS])


def write_atomically(path: epath.Path, text: str) -> None:
  """Replaces a text file whole: a reader never sees half of it.

  Several processes may write one file at once; the last one wins. Raises
  OSError.
  """
  if not is_local(path):
    with os_errors(path):
      path.write_text(text + '\n')
    return
  # A name of its own, so that no writer takes another's half-written file.
  partial = path.parent / f'{path.name}.{uuid.uuid4().hex[:12]}.tmp'
  try:
    with partial.open('w') as file:
      file.write(text + '\n')
      file.flush()
      os.fsync(file.fileno())
    partial.replace(path)
  except BaseException:
    with contextlib.suppress(OSError):
      partial.unlink()
    raise


class Lines:
  """A text file that lines are added to, here by this object alone."""

  def __init__(self, path: epath.Path):
    """Names the file; it is made by the first line."""
    self.path = path
    self._held: str | None = None  # all of it, where nothing can be appended

  def add(self, lines: Iterable[str]) -> None:
    """Adds lines, which end in a line end; raises OSError."""
    if is_local(self.path):
      with self.path.open('a') as file:
        file.writelines(lines)
      return
    with os_errors(self.path):
      if self._held is None:
        there = self.path.exists()
        self._held = self.path.read_text() if there else ''
      self._held += ''.join(lines)
      self.path.write_text(self._held)
