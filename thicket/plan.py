# SPDX-License-Identifier: Apache-2.0
"""What a configuration asks for, and the recipe that names its results."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import pathlib
import platform
import re
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections

import thicket
from thicket import data, perturb, prng, tasks, trees
from thicket.models import hub
from thicket.models.load import DTYPES, LoadedModel
from thicket.population import Population


class ConfigError(ValueError):
  """A setting that makes no sense; the message names it and its value."""


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
  """What a configuration asks for, checked before any model is loaded."""

  task: tasks.Task
  splits: tasks.base.Splits
  population: Population
  sizes: tuple[int, ...]  # K of each vote, ascending
  max_new_tokens: int


def make_plan(config: ml_collections.ConfigDict) -> Plan:
  """Checks a configuration and reads its data.

  Raises:
    ConfigError, TaskError, PopulationError, HubError: naming the setting.
  """
  hub.check_name(config.model.name)
  template = config.task.prompt_template
  settings = {} if template is None else {'prompt_template': template}
  task = tasks.make(config.task.name, **settings)
  population = Population(
    config.seed, config.population.size, tuple(config.population.sigmas)
  )
  asked = tuple(config.ensemble.sizes)
  if not asked or not all(isinstance(k, int) and k >= 1 for k in asked):
    raise ConfigError(f'ensemble.sizes = {asked}: K is at least 1, and whole')
  sizes = tuple(sorted(set(asked)))
  if sizes[-1] > population.size:
    raise ConfigError(
      f'ensemble.sizes asks for K = {sizes[-1]} of N = {population.size} '
      'members; lower K or raise population.size'
    )
  _one_of('model.dtype', config.model.dtype, tuple(DTYPES))
  _one_of('population.family', config.population.family, perturb.FAMILIES)
  _one_of('population.scale', config.population.scale, perturb.SCALES)
  for name in ('only', 'skip'):
    try:
      re.compile(config.population[name])
    except re.error as error:
      raise ConfigError(
        f'population.{name} = {config.population[name]!r} is no regular '
        f'expression: {error}'
      ) from error
  for name in ('members_per_device', 'members_per_range'):
    if config.run[name] < 1:
      raise ConfigError(f'run.{name} = {config.run[name]} is below 1')
  limit = config.decode.max_new_tokens
  limit = task.max_new_tokens if limit is None else limit
  if limit < 1:
    raise ConfigError(f'decode.max_new_tokens = {limit} is below 1')
  if config.decode.rows < 1:
    raise ConfigError(f'decode.rows = {config.decode.rows} is below 1')
  splits = data.load(
    task,
    num_selection=config.data.num_selection,
    num_validation=config.data.num_validation,
    num_test=config.data.num_test,
    seed=config.seed,
    path=config.task.path,
    source=config.task.source,
  )
  return Plan(task, splits, population, sizes, limit)


def _one_of(name: str, value: str, known: Sequence[str]) -> None:
  if value not in known:
    near = difflib.get_close_matches(value, known, n=1, cutoff=0.4)
    hint = f'did you mean {near[0]!r}? ' if near else ''
    raise ConfigError(f'{name} = {value!r}; {hint}known: {", ".join(known)}')


def make_recipe(
  config: ml_collections.ConfigDict, plan: Plan, model: LoadedModel
) -> dict[str, Any]:
  """Everything that a stored score depends on, and nothing else.

  N, K, the mesh, chunks and folders are left out: changing them must find the
  members that are already there.
  """
  splits = tasks.base.Splits
  settings = {
    field.name: getattr(plan.task, field.name)
    for field in dataclasses.fields(plan.task)
  }
  template = settings.pop('prompt_template').encode()
  # The limit that counts is the one that decoding ends up with.
  settings.pop('max_new_tokens')
  return {
    'thicket': thicket.__version__,
    'model': {
      'name': model.name,
      'sha256': model.sha256,
      'dtype': config.model.dtype,
      'tree': trees.fingerprint(model.params, model.spec),
    },
    'task': {
      'name': plan.task.name,
      'prompt_template': hashlib.sha256(template).hexdigest(),
      'stop_strings': list(plan.task.stop_strings),
      'settings': settings,
    },
    'data': {
      'selection': data.data_hash(splits(plan.splits.selection, (), ())),
      'test': data.data_hash(splits((), (), plan.splits.test)),
    },
    'noise': {
      'prng': prng.NAME,
      'version': prng.VERSION,
      'seed': config.seed,
      'family': config.population.family,
      'scale': config.population.scale,
      'sigmas': [float(sigma) for sigma in plan.population.sigmas],
      'only': config.population.only,
      'skip': config.population.skip,
      'arithmetic': _arithmetic(),
    },
    'decoding': {
      'rule': 'greedy',
      'max_new_tokens': plan.max_new_tokens,
      'rows': config.decode.rows,
    },
  }


def _arithmetic() -> str:
  """The class of devices on which members and their products have equal bits.

  On CPU the fused multiply-add changes the last bit of a Gaussian deviate, and
  the vector width the order of sums in a product.
  """
  backend = jax.default_backend()
  if backend != 'cpu':
    return f'{backend}:{jax.devices()[0].device_kind}'
  try:
    flags = pathlib.Path('/proc/cpuinfo').read_text(encoding='utf-8').split()
  except OSError:
    return f'cpu:{platform.machine()}'
  classes = [flag for flag in ('fma', 'avx2', 'avx512f') if flag in flags]
  return '+'.join([f'cpu:{platform.machine()}', *classes])
