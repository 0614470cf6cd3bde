# SPDX-License-Identifier: Apache-2.0
"""Writes a member of a run, or a merge of members, as a model of its own.

  python -m thicket.export --workdir=runs/... --rank=1 --to=hf:FOLDER
  python -m thicket.export --workdir=runs/... --members=3,17 --weights=0.7,0.3 \
    --to=hf:FOLDER

The folder holds safetensors, config.json, the tokenizer and a model card, as
Hugging Face's loaders, and ours, read them. Members are drawn again from their
seeds, by the function that drew them for the run; nothing is evaluated.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import shutil
import sys
import uuid
from collections.abc import Iterator, Sequence

import jax
from absl import logging

from thicket import (
  families,
  model_card,
  perturb,
  prng,
  ranking,
  recipe,
  sharding,
  trees,
)
from thicket.ledger import LedgerError
from thicket.merging import ExportError, Mix, choose, tensors
from thicket.models import architectures, hub, shards
from thicket.models.files import ModelFileError
from thicket.models.load import DTYPES, LoadedModel, load
from thicket.models.tokenizer import TokenizerError
from thicket.models.weights import shapes as weight_shapes
from thicket.plan import ConfigError
from thicket.population import PopulationError
from thicket.stored import NotStored, Stored
from thicket.tasks.base import TaskError

SCHEME = 'hf'


def export_member(
  workdir: str | os.PathLike[str],
  to: str,
  *,
  rank: int | None = None,
  top: int | None = None,
  members: Sequence[int] | None = None,
  weights: Sequence[float] | None = None,
  dtype: str | None = None,
) -> pathlib.Path:
  """Writes one member, or a merge, of a finished run into a new folder.

  A merge is w + sum_i a_i (w_i - w) for each weight w of the base, in float32
  and rounded once; a member alone has the weights that the run evaluated.

  Args:
    workdir: folder or URL of the run.
    to: 'hf:FOLDER', a folder that is not there or is empty.
    rank: of the member in the selection, 1 is the best and the default.
    top: merge so many of the best instead.
    members: merge those with these ids instead, or write the only one.
    weights: the factors a_i, finite, in the order of the members; by default
      all 1 / number of members.
    dtype: of the written weights, a key of `DTYPES`; by default the run's.

  Returns:
    The folder. It appears whole, or not at all.

  Raises:
    ExportError: an argument is wrong, or the model or the noise is not what
      the run had.
    LedgerError, NotStored: there is no run, or no selection in it yet.
    HubError, ModelFileError, TokenizerError: the base cannot be loaded, or
      said in Hugging Face's words.
  """
  target = _target(to)
  if dtype is not None and dtype not in DTYPES:
    raise ExportError(f'--dtype={dtype}: known are {", ".join(DTYPES)}')
  stored = Stored(workdir)
  population = stored.plan.population
  found = ranking.rank(stored, stored.plan, stored.plan.greedy, population.size)
  mix = choose(
    population, found, rank=rank, top=top, members=members, weights=weights
  )
  dtype = dtype or stored.recipe['model']['dtype']
  command = _command(workdir, to, mix, dtype)
  with _appearing(target) as folder:
    model, perturber = _reopen(stored)
    config = architectures.hf_config(model.decoder.config, model.architecture)
    # Older versions of transformers know this name only.
    config['torch_dtype'] = dtype
    shapes = weight_shapes(model.spec, lambda segment: segment.full_name)
    written = tensors(model, perturber, population, mix, DTYPES[dtype])
    shards.write(folder, shapes, DTYPES[dtype], written)
    _write(folder / 'config.json', json.dumps(config, indent=2) + '\n')
    model.tokenizer.save(folder)
    base, notes = _base_name(stored, model), _notes(stored, dtype)
    card = model_card.render(stored, found, mix, base, dtype, command, notes)
    _write(folder / 'README.md', card)
  return target


def _reopen(stored: Stored) -> tuple[LoadedModel, perturb.Perturber]:
  """The run's base model on one device, and what drew its members."""
  noise = stored.recipe['noise']
  mesh = sharding.make_mesh(jax.devices()[:1])
  model = load(**stored.pinned.model, mesh=mesh)
  now = {
    'model': {
      'sha256': model.sha256,
      'tree': trees.fingerprint(model.params, model.spec),
    },
    'noise': {'prng': prng.NAME, 'version': prng.VERSION},
  }
  then = {
    part: {key: stored.recipe[part][key] for key in values}
    for part, values in now.items()
  }
  if lines := recipe.differences(then, now):
    raise ExportError(
      f'{stored.workdir}: members would not be those of the run: '
      f'{recipe.brief(lines)}; bring back the model file that the run had, or '
      f'thicket {stored.recipe["thicket"]}'
    )
  perturber = perturb.Perturber(
    model.params,
    model.spec,
    seed=stored.plan.population.seed,
    mesh=mesh,
    family=noise['family'],
    scale=noise['scale'],
    mask=trees.trainable(model.spec, only=noise['only'], skip=noise['skip']),
  )
  return model, perturber


def _base_name(stored: Stored, model: LoadedModel) -> str:
  """With its organisation, if the hub knows it; a file's without folders."""
  if model.revision is None:
    return model.name
  return stored.plan.labels['model'].partition('@')[0]


def _notes(stored: Stored, dtype: str) -> list[str]:
  """What keeps this copy from being what was evaluated, to the last bit."""
  noise, here = stored.recipe['noise'], prng.arithmetic()
  notes = []
  if dtype != stored.recipe['model']['dtype']:
    notes.append(
      f'The run evaluated its members in {stored.recipe["model"]["dtype"]}; '
      f'this copy was rounded to {dtype} and has not been evaluated.'
    )
  if families.rank_of(noise['family']):
    notes.append(
      'The run evaluated its members as the base and thin factors beside it; '
      'here they are added up, which rounds differently.'
    )
  if noise['arithmetic'] != here and noise['family'] != 'rademacher':
    notes.append(
      f'The run evaluated its members on `{noise["arithmetic"]}`; this copy '
      f'was written on `{here}`, where the last bits of its noise may differ.'
    )
    logging.warning('%s', notes[-1])
  return notes


def _target(to: str) -> pathlib.Path:
  """The folder to be written, which is not there yet, or is empty."""
  scheme, colon, name = to.partition(':')
  if scheme != SCHEME or not colon:
    raise ExportError(
      f"--to={to}: only {SCHEME}:FOLDER can be written, for Hugging Face's "
      'loaders'
    )
  if not name or '://' in name:
    raise ExportError(f'--to={to}: give a folder on this machine')
  target = pathlib.Path(name).expanduser().resolve()
  try:
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
      raise ExportError(
        f'--to={to}: exists and is not an empty folder; name another'
      )
  except OSError as error:
    raise _cannot_write(target, error) from error
  return target


@contextlib.contextmanager
def _appearing(target: pathlib.Path) -> Iterator[pathlib.Path]:
  """A folder that takes the target's place in the end, or is removed."""
  # Beside the target, as far as its path is there: a rename stays on one disk.
  place = next(parent for parent in target.parents if parent.exists())
  folder = place / f'.{target.name}.{uuid.uuid4().hex[:12]}.tmp'
  try:
    try:
      folder.mkdir()
      yield folder
      target.parent.mkdir(parents=True, exist_ok=True)
      folder.rename(target)
    except BaseException:
      shutil.rmtree(folder, ignore_errors=True)
      raise
  except OSError as error:
    raise _cannot_write(target, error) from error


def _cannot_write(target: pathlib.Path, error: OSError) -> ExportError:
  return ExportError(
    f'{target}: cannot be written: {error.strerror or error}; nothing is left '
    'of it'
  )


def _write(path: pathlib.Path, text: str) -> None:
  path.write_text(text, encoding='utf-8')


def _command(
  workdir: str | os.PathLike[str], to: str, mix: Mix, dtype: str
) -> list[str]:
  """What writes the same again, whatever the ranking may become."""
  flags = {
    'workdir': os.fspath(workdir),
    'members': ','.join(map(str, mix.members)),
    'weights': ','.join(map(repr, mix.weights)),
    'dtype': dtype,
    'to': to,
  }
  if mix.is_member:
    del flags['weights']
  flags = [f'--{name}={value}' for name, value in flags.items()]
  return ['python', '-m', 'thicket.export', *flags]


def _list(flag: str, text: str, kind: type) -> list:
  try:
    return [kind(part) for part in text.split(',')]
  except ValueError:
    raise ExportError(
      f'--{flag}={text}: give numbers with commas between'
    ) from None


def main(argv: list[str]) -> int:
  """Exports as the flags say; returns the exit code."""
  parser = argparse.ArgumentParser(
    prog='python -m thicket.export', description=__doc__.partition('\n')[0]
  )
  add = parser.add_argument
  add('--workdir', required=True, help='what a run printed')
  add('--to', required=True, help='hf:FOLDER, new or empty')
  add('--rank', type=int, help='which of the selected; by default 1, the best')
  add('--top', type=int, help='merge so many of the best')
  add('--members', help='ids, as 3,17: write that one, or merge those')
  add('--weights', help='of a merge, as 0.7,0.3; by default all alike')
  add('--dtype', help=f'{" or ".join(DTYPES)}; by default as in the run')
  asked = vars(parser.parse_args(argv))
  try:
    for flag, kind in (('members', int), ('weights', float)):
      if asked[flag] is not None:
        asked[flag] = _list(flag, asked[flag], kind)
    folder = export_member(**asked)
  except USER_ERRORS as error:
    print(f'thicket: {error}', file=sys.stderr)
    return 2
  print(f'model     {folder}')
  print(f'card      {folder / "README.md"}')
  return 0


USER_ERRORS = (
  ExportError,
  LedgerError,
  NotStored,
  ConfigError,
  TaskError,
  PopulationError,
  hub.HubError,
  ModelFileError,
  TokenizerError,
)

if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
