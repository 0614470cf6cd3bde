# SPDX-License-Identifier: Apache-2.0
"""Files of a model, none of them trusted: errors, links out of a folder, JSON.

A folder of a model comes from elsewhere. A name in it may be a link to any
file of this machine, an index may name one, and JSON may be anything.
"""

from __future__ import annotations

import hashlib
import json
import re
import reprlib
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

GET_AGAIN = 'the file is damaged or incomplete, get it again'

PICKLES = ('.bin', '.pt', '.pth', '.ckpt', '.pkl')  # ends of their names

_MAX_JSON_BYTES = 100_000_000  # the largest tokenizer.json is a third of it
_SHOWN_CHARS = 60  # of a name in a message, which has to stay one line


class ModelFileError(ValueError):
  """A model file cannot be read; the message says what is wrong with it."""


class HubError(ValueError):
  """A model cannot be found or fetched; the message says what to do."""


def file_error(
  path: Path, problem: str, remedy: str = GET_AGAIN
) -> ModelFileError:
  """The error of a file, in one line: path, problem, what to do."""
  return ModelFileError(f'{path}: {problem}; {remedy}')


def shown(value: object) -> str:
  """Something out of a file as a message shows it: cut, in one line."""
  if not isinstance(value, str):
    return ' '.join(reprlib.repr(value).split())
  more = '...' if len(value) > _SHOWN_CHARS else ''
  return repr(value[:_SHOWN_CHARS]) + more


def pickled(name: str) -> str:
  """What is wrong with weights in a file of Python's pickles, and a way out."""
  return (
    f'weights are pickled ({shown(name)}), and a pickle may run any program '
    'when it is read; take a revision with model.safetensors or, if you trust '
    "it, convert it with transformers: AutoModelForCausalLM.from_pretrained('"
    "MODEL').save_pretrained('FOLDER')"
  )


def listed(names: Iterable[str]) -> str:
  """Names in a message: all of them, quoted where they are unusual."""
  plain = re.compile(r'[\w./* -]{1,200}', re.ASCII).fullmatch
  return ', '.join(name if plain(name) else shown(name) for name in names)


def check_name(folder: Path, name: str) -> None:
  """Raises ModelFileError if a name, looked at alone, leaves the folder."""
  parts = PurePosixPath(name)
  if parts.is_absolute() or '..' in parts.parts or {'\\', '\0'} & {*name}:
    raise file_error(
      folder,
      f'names the file {shown(name)}, which is not inside the folder',
      'do not use it',
    )


def inside(folder: Path, name: str) -> Path:
  """Where a file of a folder is, by its name there, links followed.

  A link may lead to another file of the folder. In a cache of Hugging Face's
  hub, files are links into a folder of blobs beside it, which is fine.

  Raises ModelFileError where the name or a link leaves the folder, and where
  there is no such file.
  """
  check_name(folder, name)
  try:
    real = (folder / name).resolve(strict=True)
    home = folder.resolve(strict=True)
  except FileNotFoundError as error:
    raise file_error(
      folder, f'there is no file {shown(name)} in it', 'get the missing file'
    ) from error
  except (OSError, RuntimeError) as error:  # a name too long, links in a ring
    problem = f'{shown(name)} cannot be found: {error}'
    raise file_error(folder, problem) from error
  roots = [home]
  if home.parent.name == 'snapshots':
    repository = home.parents[1]
    # Of the repository, and of all repositories of the cache together.
    roots += [repository / 'blobs', repository.parent / 'blobs']
  if not any(real.is_relative_to(root) for root in roots):
    raise file_error(
      folder / name,
      f'is a link to {real}, outside the folder',
      'put the file itself there',
    )
  if not real.is_file():  # reading a pipe or a device may never end
    raise file_error(folder / name, 'is not a file')
  return real


def read_object(folder: Path, name: str) -> dict[str, Any]:
  """The object of a JSON file in a folder.

  Raises ModelFileError for a file that `inside` refuses, one that is too large
  or cannot be read, and anything but one object without repeated keys.
  """
  path = inside(folder, name)
  try:
    size = path.stat().st_size
    if size > _MAX_JSON_BYTES:
      problem = f'has {size} bytes, {_MAX_JSON_BYTES} are read at most'
      raise file_error(folder / name, problem)
    data = path.read_bytes()
  except OSError as error:
    raise file_error(
      folder / name, f'cannot be read: {error.strerror}', 'check the path'
    ) from error
  return parse_object(data, folder / name, 'is')


def parse_object(data: bytes, path: Path, what: str) -> dict[str, Any]:
  """The JSON object that bytes of a file spell; `what` begins the problem.

  Raises ModelFileError for anything but one object without repeated keys.
  """
  try:
    value = json.loads(data.decode(), object_pairs_hook=_unique)
  except RecursionError as error:
    raise file_error(path, f'{what} JSON nested too deeply') from error
  except ValueError as error:  # of JSON, UTF-8, `_unique`, too many digits
    problem = f'{what} no JSON: {" ".join(str(error).split())[:200]}'
    raise file_error(path, problem) from error
  if not isinstance(value, dict):
    raise file_error(
      path, f'{what} a JSON {type(value).__name__}, not an object'
    )
  return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  result = dict(pairs)
  if len(result) < len(pairs):
    seen: set[str] = set()
    twice = next(key for key, _ in pairs if key in seen or seen.add(key))
    raise ValueError(f'key {shown(twice)} occurs twice')
  return result


def sha256_of(path: Path) -> str:
  """SHA-256 of a file's bytes, in hex digits; raises OSError."""
  with path.open('rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def sha256_of_files(folder: Path, names: Iterable[str]) -> str:
  """SHA-256, in hex digits, of files of a folder: their names and their bytes.

  It is of lines `SHA-256  NAME`, sorted by name, as `sha256sum` writes them.
  Raises ModelFileError for a file that `inside` refuses, and OSError.
  """
  lines = [
    f'{sha256_of(inside(folder, name))}  {name}\n' for name in sorted(names)
  ]
  return hashlib.sha256(''.join(lines).encode()).hexdigest()
