# SPDX-License-Identifier: Apache-2.0
"""What a configuration asks for, and the recipe that names its results."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import re
from collections.abc import Collection, Sequence
from typing import Any

import ml_collections

from thicket import (
  batching,
  data,
  families,
  prng,
  processes,
  race,
  sampling,
  scales,
  tasks,
  trees,
)
from thicket.models import hub
from thicket.models.load import DTYPES, LoadedModel
from thicket.population import Population
from thicket.version import __version__

KEEP_TEXTS = ('none', 'test', 'all')
_ROWS = ('name', 'path', 'source')  # what config.task says besides settings


class ConfigError(ValueError):
  """A setting that makes no sense; the message names it and its value."""


@dataclasses.dataclass(frozen=True)
class Condition:
  """Under what answers are given: a prompt and a token rule.

  Answers under different conditions lie in ledgers of their own.

  Attributes:
    template: the prompt, with `{question}` in it.
    temperature: 0 is greedy.
    top_k, top_p: of the sampling rule, see `sampling.sampler`.
  """

  template: str
  temperature: float = 0.0
  top_k: int = 0
  top_p: float = 1.0

  @property
  def folder(self) -> str:
    """The name of its ledger, such as sample-0.7-1f2e3d4c."""
    parts = ['greedy']
    if self.temperature:
      parts = [f'sample-{self.temperature:g}']
      parts += [f'k{self.top_k}'] if self.top_k else []
      parts += [f'p{self.top_p:g}'] if self.top_p < 1 else []
    return '-'.join([*parts, _sha256(self.template)[:8]])


@dataclasses.dataclass(frozen=True)
class Selection:
  """How the K are found among N, see `ranking.rank`."""

  rerank: int  # M best members compared again on validation rows; 0: none
  race: bool
  race_z: float
  race_rows: tuple[int, ...]  # rows after which members may be dropped


@dataclasses.dataclass(frozen=True)
class Controls:
  """What is measured beside the ensemble, see `comparison.compare`."""

  temperatures: tuple[float, ...]
  top_k: int
  top_p: float
  unselected: bool
  same_sigma: bool
  prompts: tuple[str, ...]  # to choose from, the run's own first
  prompt_search: int  # N of the search under the chosen prompt; 0: none
  population_sizes: tuple[int, ...]  # N of the curve, ascending, without N
  validation: bool  # every member answers the validation rows too


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
  """What a configuration asks for, checked before any model is loaded."""

  task: tasks.Task
  splits: tasks.base.Splits
  population: Population
  sizes: tuple[int, ...]  # K of each vote, ascending
  max_new_tokens: int
  selection: Selection
  controls: Controls
  labels: dict[str, Any]  # of a report: model, family, scale

  @property
  def greedy(self) -> Condition:
    """The condition of the search."""
    return Condition(self.task.prompt_template)

  def sampled(self, temperature: float, template: str) -> Condition:
    """The condition of self-consistency at some temperature."""
    controls = self.controls
    return Condition(template, temperature, controls.top_k, controls.top_p)


def make_plan(
  config: ml_collections.ConfigDict, splits: tasks.base.Splits | None = None
) -> Plan:
  """Checks a configuration and reads its data.

  Args:
    config: as `configs/llm.py` makes it.
    splits: the rows, for a report that needs neither data nor model.

  Raises:
    ConfigError, TaskError, PopulationError, HubError: naming the setting.
  """
  if splits is None:
    hub.check_name(config.model.name, config.model.get('revision'))
  settings = {
    key: value
    for key, value in config.task.items()
    if key not in _ROWS and value is not None
  }
  task = tasks.make(config.task.name, **settings)
  population = Population(
    config.seed,
    config.population.size,
    tuple(config.population.sigmas),
    config.population.get('antithetic', False),  # older runs have none
  )
  asked = tuple(config.ensemble.sizes)
  if not asked or not all(type(k) is int and k >= 1 for k in asked):
    raise ConfigError(f'ensemble.sizes = {asked}: K is at least 1, and whole')
  sizes = tuple(sorted(set(asked)))
  if sizes[-1] > population.size:
    raise ConfigError(
      f'ensemble.sizes asks for K = {sizes[-1]} of N = {population.size} '
      'members; lower K or raise population.size'
    )
  one_of('model.dtype', config.model.dtype, tuple(DTYPES))
  try:
    families.rank_of(config.population.family)
  except ValueError as error:
    raise ConfigError(f'population.family: {error}') from error
  one_of('population.scale', config.population.scale, scales.SCALES)
  one_of('run.keep_texts', config.run.keep_texts, KEEP_TEXTS)
  workers = config.run.get('judge_processes', 0)  # older runs have no such key
  if workers < 0:
    raise ConfigError(
      f'run.judge_processes = {workers} is below 0, which is for none'
    )
  for name in ('only', 'skip'):
    try:
      re.compile(config.population[name])
    except re.error as error:
      raise ConfigError(
        f'population.{name} = {config.population[name]!r} is no regular '
        f'expression: {error}'
      ) from error
  limit = config.decode.max_new_tokens
  limit = task.max_new_tokens if limit is None else limit
  for name, value in (
    ('run.members_per_device', config.run.members_per_device),
    ('run.model_axis', config.run.get('model_axis', 1)),
    ('run.members_per_range', config.run.members_per_range),
    ('decode.max_new_tokens', limit),
    ('decode.rows', config.decode.rows),
  ):
    if value < 1:
      raise ConfigError(f'{name} = {value} is below 1')
  selection = _selection(config, population.size, sizes[-1])
  controls = _controls(config, task, population.size, sizes[-1])
  if splits is None:
    splits = data.load(
      task,
      num_selection=config.data.num_selection,
      num_validation=config.data.num_validation,
      num_test=config.data.num_test,
      seed=config.seed,
      path=config.task.path,
      source=config.task.source,
    )
  labels = {
    'model': config.model.name,
    'family': config.population.family,
    'scale': config.population.scale,
  }
  return Plan(
    task, splits, population, sizes, limit, selection, controls, labels
  )


def _selection(config: ml_collections.ConfigDict, n: int, k: int) -> Selection:
  asked = config.selection
  if asked.rerank and not k <= asked.rerank <= n:
    raise ConfigError(
      f'selection.rerank = {asked.rerank}: the members compared again are at '
      f'least K = {k} and at most N = {n}; 0 for none'
    )
  _needs_validation(config, 'selection.rerank', asked.rerank)
  if not asked.race_z > 0:
    raise ConfigError(f'selection.race_z = {asked.race_z} is not above 0')
  total = max(1, config.data.num_selection)  # too few are refused later
  rows = _counts('selection.race_rows', asked.race_rows, total)
  if not rows:
    batch = config.decode.rows
    first = batch if total >= 2 * batch else max(1, total // 4)
    rows = race.stages(total, first)
  elif rows[-1] != total:
    rows = (*rows, total)
  return Selection(asked.rerank, asked.race, asked.race_z, rows)


def _controls(
  config: ml_collections.ConfigDict, task: tasks.Task, n: int, k: int
) -> Controls:
  asked = config.controls
  temperatures = tuple(sorted({float(t) for t in asked.temperatures}))
  for temperature in temperatures:
    try:
      sampling.check(temperature, asked.top_k, asked.top_p)
    except ValueError as error:
      raise ConfigError(f'controls: {error}') from error
    if not temperature:
      raise ConfigError(
        'controls.temperatures: at 0 all samples are the greedy answer; give '
        'temperatures above 0'
      )
  if asked.prompt_search and asked.prompt_search < k:
    raise ConfigError(
      f'controls.prompt_search = {asked.prompt_search}: N is at least K = {k}; '
      '0 for no search'
    )
  _needs_validation(config, 'controls.validation', asked.validation)
  grid = _counts('controls.population_sizes', asked.population_sizes, 2**31)
  prompts = (task.prompt_template, *task.prompt_templates)
  return Controls(
    temperatures=temperatures,
    top_k=asked.top_k,
    top_p=asked.top_p,
    unselected=asked.unselected,
    same_sigma=asked.same_sigma,
    prompts=tuple(dict.fromkeys(prompts)) if asked.prompts else prompts[:1],
    prompt_search=asked.prompt_search,
    population_sizes=tuple(size for size in grid if k <= size < n),
    validation=asked.validation,
  )


def _counts(name: str, asked: Sequence[int], most: int) -> tuple[int, ...]:
  """Whole numbers from 1 to `most`, ascending, each once."""
  for number in asked:
    if type(number) is not int or not 1 <= number <= most:
      raise ConfigError(
        f'{name} = {tuple(asked)}: {number} is not a whole number in 1..{most}'
      )
  return tuple(sorted(set(asked)))


def _needs_validation(
  config: ml_collections.ConfigDict, name: str, is_asked: bool | int
) -> None:
  if is_asked and not config.data.num_validation:
    raise ConfigError(
      f'{name} = {is_asked} needs rows to validate on: set data.num_validation'
    )


def agree(
  config: ml_collections.ConfigDict,
  workdir: str | None,
  *,
  shard: object = None,
  fit_members: bool = False,
) -> None:
  """Has all processes compare their commands; nothing for one process.

  Raises:
    ProcessError: the commands differ; the message says in what.
    ConfigError: the settings are none for several processes.
  """
  asked = config.to_dict() | {'fit_members': fit_members}
  # Not by `recipe_hash`: a setting may be infinite.
  text = json.dumps(asked, sort_keys=True, default=str)
  processes.agree('their settings', _sha256(text)[:12])
  processes.agree(
    '--shard',
    str(shard),
    'the jobs of a job array are alone: give --distributed=off to each',
  )
  processes.agree('--workdir', str(workdir))
  several = processes.count() > 1 and config.run.get('model_axis', 1) > 1
  if several and config.population.scale == 'relative':
    raise ConfigError(
      'population.scale = relative: with several processes and '
      f'run.model_axis = {config.run.model_axis} no process holds a whole '
      'tensor, whose mean square this needs; take scale=modular or '
      'model_axis=1'
    )


def one_of(name: str, value: str, known: Collection[str]) -> None:
  """Raises ConfigError, with the near name, if a value is not known."""
  if value not in known:
    near = difflib.get_close_matches(value, known, n=1, cutoff=0.4)
    hint = f'did you mean {near[0]!r}? ' if near else ''
    raise ConfigError(f'{name} = {value!r}; {hint}known: {", ".join(known)}')


def make_recipe(
  config: ml_collections.ConfigDict,
  plan: Plan,
  model: LoadedModel,
  condition: Condition,
) -> dict[str, Any]:
  """Everything that a stored answer depends on, and nothing else.

  N, K, the sizes of splits, the mesh, chunks and folders are left out: changing
  them must find the answers that are already there.
  """
  settings = {
    field.name: getattr(plan.task, field.name)
    for field in dataclasses.fields(plan.task)
  }
  settings.pop('prompt_template')
  # The limit that counts is the one that decoding ends up with.
  settings.pop('max_new_tokens')
  rule: Any = 'greedy'
  if condition.temperature:
    rule = {
      'version': sampling.VERSION,
      'temperature': condition.temperature,
      'top_k': condition.top_k,
      'top_p': float(condition.top_p),
    }
  return {
    'thicket': __version__,
    'model': {
      'name': model.name,
      'sha256': model.sha256,
      # Of models of the hub; the others' recipes stay as they were.
      **({'revision': model.revision} if model.revision else {}),
      'dtype': config.model.dtype,
      'tree': trees.fingerprint(model.params, model.spec),
    },
    'task': {
      'name': plan.task.name,
      'prompt_template': _sha256(condition.template),
      'stop_strings': list(plan.task.stop_strings),
      'settings': settings,
    },
    'data': plan.splits.source,
    'noise': {
      'prng': prng.NAME,
      'version': prng.VERSION,
      'seed': config.seed,
      'family': config.population.family,
      'scale': config.population.scale,
      'sigmas': [float(sigma) for sigma in plan.population.sigmas],
      'antithetic': plan.population.antithetic,
      'only': config.population.only,
      'skip': config.population.skip,
      'arithmetic': prng.arithmetic(),
    },
    'decoding': {
      'rule': rule,
      'max_new_tokens': plan.max_new_tokens,
      'rows': config.decode.rows,
      'batching': batching.VERSION,
    },
  }


def _sha256(text: str) -> str:
  return hashlib.sha256(text.encode()).hexdigest()
