# SPDX-License-Identifier: Apache-2.0
"""Models of Hugging Face's hub, fetched into its cache at one commit.

`huggingface_hub` does the fetching. Which commit a branch stands for is asked
at each call, so that a run can say which one it used; without network, the
cache answers, and says so.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from absl import logging

from thicket.models.files import PICKLES, HubError, pickled
from thicket.models.folder_tokenizer import FILES as TOKENIZER_FILES
from thicket.models.safetensors import INDEX, WEIGHTS, weight_files

CONFIG = 'config.json'

BRANCH = 'main'

_TOKEN = 'HF_TOKEN'  # the variable; no other, and no file, is looked at
_SHOWN_CHARS = 200  # of another library's message


class Snapshot(NamedTuple):
  """A model in the hub's cache.

  Fields:
    folder: with `config.json`, weights and tokenizer.
    commit: that they are of, 40 hex digits.
  """

  folder: Path
  commit: str


def fetch(name: str, revision: str | None = None) -> Snapshot:
  """Fetches what is missing of a model, weights as safetensors only.

  Args:
    name: ORGANISATION/MODEL.
    revision: a branch, a tag or a commit; by default the branch `main`.

  Raises:
    HubError: there is no such model or revision, it may not be read, it has
      no safetensors, or it is not in the cache and the hub is out of reach.
    ModelFileError: its index of files is damaged.
  """
  from huggingface_hub import constants

  revision = revision or BRANCH
  if constants.HF_HUB_OFFLINE:
    return _cached(name, revision, 'HF_HUB_OFFLINE is set')
  there, why = _list(name, revision)
  if there is None:
    return _cached(name, revision, why)
  if not there & {WEIGHTS, INDEX}:
    raise HubError(f'{name}@{revision}: {_no_weights(there)}')
  folder = _download(name, revision, [CONFIG, INDEX, *TOKENIZER_FILES])
  weights = [WEIGHTS] if WEIGHTS in there else list(weight_files(folder))
  # Of the same commit, though the branch may have moved meanwhile.
  return Snapshot(_download(name, folder.name, weights), folder.name)


def file_names(folder: Path) -> list[str]:
  """Names of the files that are read of a folder in the hub's layout.

  Whether `config.json` and the weights are there is not looked at. Raises
  ModelFileError for an index that is none.
  """
  index = [] if os.path.exists(folder / WEIGHTS) else [INDEX]
  there = [n for n in TOKENIZER_FILES if os.path.lexists(folder / n)]
  return sorted({CONFIG, *there, *index, *weight_files(folder)})


def _list(name: str, revision: str) -> tuple[set[str] | None, str]:
  """Names of all files of a model; or None, and why the hub does not say.

  Raises HubError where it says that there are none.
  """
  import huggingface_hub
  from huggingface_hub import errors

  # Causes are left out: what a server says may hold what it was sent.
  try:
    api = huggingface_hub.HfApi(token=_token() or False)
    info = api.model_info(name, revision=revision)
  except (
    errors.RepositoryNotFoundError,
    errors.RevisionNotFoundError,
    errors.HFValidationError,
  ) as error:
    raise _refused(name, revision, error) from None
  except Exception as error:  # of any of the libraries below
    return None, f'the hub is out of reach: {_line(error)}'
  return {file.rfilename for file in info.siblings or ()}, ''


def _download(name: str, revision: str, files: Collection[str]) -> Path:
  """The cache's folder of a revision, with those files that there are."""
  try:
    return _snapshot(name, revision, files)
  except Exception as error:
    raise _refused(name, revision, error) from None


def _snapshot(
  name: str, revision: str, files: Collection[str], only_cached: bool = False
) -> Path:
  import huggingface_hub

  return Path(
    huggingface_hub.snapshot_download(
      name,
      revision=revision,
      token=_token() or False,
      local_files_only=only_cached,
      allow_patterns=[glob.escape(file) for file in files],
    )
  )


def _cached(name: str, revision: str, why: str) -> Snapshot:
  found = _find_cached(name, revision)
  if found is None:
    from huggingface_hub import constants

    raise HubError(
      f'{name}@{revision} is not in the cache {constants.HF_HUB_CACHE}, or '
      f'not whole, and {why}; fetch it once with network, or give the path of '
      'a folder'
    )
  absent = [x for x in TOKENIZER_FILES if not os.path.exists(found.folder / x)]
  logging.warning(
    '%s: taken from the cache, commit %s (%s)%s',
    name,
    found.commit,
    why,
    f'; not there, if the model has them: {", ".join(absent)}' * bool(absent),
  )
  return found


def _find_cached(name: str, revision: str) -> Snapshot | None:
  """What the cache has of a revision, if that is all of it."""
  try:
    folder = _snapshot(name, revision, [CONFIG, INDEX, *TOKENIZER_FILES], True)
  except (OSError, ValueError):  # not there; or no name of a model
    return None
  if not any(os.path.exists(folder / file) for file in (WEIGHTS, INDEX)):
    return None
  if not all(os.path.exists(folder / file) for file in file_names(folder)):
    return None
  return Snapshot(folder, folder.name)


def _refused(name: str, revision: str, error: Exception) -> HubError:
  from huggingface_hub import errors

  token = f'set {_TOKEN} to a token that may read it'
  if isinstance(error, errors.GatedRepoError):
    problem = f'its owner asks for consent; give it on its page, and {token}'
  elif isinstance(error, errors.RepositoryNotFoundError):
    problem = (
      f'there is no such model; check the name, if it is private {token}'
    )
  elif isinstance(error, errors.RevisionNotFoundError):
    problem = 'there is no such revision; give a branch, a tag or a commit'
  elif isinstance(error, errors.HFValidationError):
    problem = f'is no name of a model: {_line(error)}'
  else:
    problem = f'cannot be fetched: {_line(error)}; the same command goes on'
  return HubError(f'{name}@{revision}: {problem}')


def _no_weights(names: Collection[str]) -> str:
  of = lambda *suffixes: sorted(n for n in names if n.endswith(suffixes))
  if pickles := of(*PICKLES):
    return pickled(pickles[0])
  if ggufs := of('.gguf'):
    return f'has GGUF files only; fetch {ggufs[0]} and give its path'
  return f'has no {WEIGHTS} and no {INDEX}; take another model'


def _token() -> str | None:
  """What the variable holds, which secrets in files end with a line break.

  Raises HubError, without showing it, for what cannot be sent.
  """
  token = os.environ.get(_TOKEN, '').strip()
  if not token.isascii() or not token.isprintable() or ' ' in token:
    raise HubError(f'{_TOKEN} holds no token: a blank or a strange character')
  return token or None


def _line(error: Exception) -> str:
  text = ' '.join(str(error).split()) or type(error).__name__
  if token := _token():
    text = text.replace(token, '***')
  return text[:_SHOWN_CHARS]
