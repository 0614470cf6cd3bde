# SPDX-License-Identifier: Apache-2.0
"""What a configuration asks for, and the recipe that names its results."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import pathlib
import platform
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
  settings = {
    name: config.task[name]
    for name in ('prompt_template',)
    if config.task[name] is not None
  }
  task = tasks.make(config.task.name, **settings)
  population = Population(
    config.seed, config.population.size, tuple(config.population.sigmas)
  )
  sizes = tuple(sorted(set(config.ensemble.sizes)))
  if not sizes or not all(isinstance(k, int) and k >= 1 for k in sizes):
    raise ConfigError(
      f'ensemble.sizes = {tuple(config.ensemble.sizes)}: K is a whole number, '
      'at least 1'
    )
  if sizes[-1] > population.size:
    raise ConfigError(
      f'ensemble.sizes asks for K = {sizes[-1]} of N = {population.size} '
      'members; lower K or raise population.size'
    )
  _one_of('model.dtype', config.model.dtype, tuple(DTYPES))
  _one_of('population.family', config.population.family, perturb.FAMILIES)
  _one_of('population.scale', config.population.scale, perturb.SCALES)
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
  template = plan.task.prompt_template.encode()
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
    },
    'data': data.data_hash(plan.splits),
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
  """The class of devices on which Gaussian deviates have equal bits.

  On CPU it is the fused multiply-add that changes the last bit.
  """
  backend = jax.default_backend()
  if backend != 'cpu':
    return f'{backend}:{jax.devices()[0].device_kind}'
  try:
    flags = pathlib.Path('/proc/cpuinfo').read_text(encoding='utf-8').split()
  except OSError:
    return f'cpu:{platform.machine()}'
  fma = '+fma' if 'fma' in flags else ''
  return f'cpu:{platform.machine()}{fma}'
