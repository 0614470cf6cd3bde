# SPDX-License-Identifier: Apache-2.0
"""What a configuration of values or labels asks for: models and their data.

A problem is everything one search needs. Some configurations ask for several:
the signals of Neural Thickets (arXiv 2603.12228, section 3) compare what was
pretrained on nothing, on a mixture of families, and on the target's own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx

from thicket import digits, pretrain, signals
from thicket.models import adapters, classifiers, mlp
from thicket.plan import ConfigError, one_of
from thicket.scoring import Batch, log_likelihood

Tree = Any
Config = ml_collections.ConfigDict


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
  """One pretrained model, and rows to select and to test on.

  Attributes:
    name: of its folder and in tables.
    output: a key of `scoring.SCORINGS`.
    apply: (params, batch) -> outputs [B, ...].
    params: tree of float arrays.
    selection: rows to select on.
    test: rows that selection does not see.
    sigmas: of the population.
    losses: float32 [steps] of the pretraining; empty without one.
  """

  name: str
  output: str
  apply: Callable[[Tree, Batch], jax.Array]
  params: Tree
  selection: Batch
  test: Batch
  sigmas: tuple[float, ...]
  losses: np.ndarray


def make(config: Config) -> Iterator[Problem]:
  """The problems of a configuration, each pretrained when it is asked for.

  Raises:
    ConfigError: naming the setting.
  """
  name = config.task.name
  one_of('task.name', name, PROBLEMS)
  for section, key, least in (
    ('population', 'size', 1),
    ('data', 'num_selection', 1),
    ('data', 'num_test', 2),  # one row has no interval
    ('model', 'width', 1),
    ('pretraining', 'steps', 0),
    ('pretraining', 'batch_size', 1),
    ('run', 'members_per_device', 1),
  ):
    if config[section][key] < least:
      raise ConfigError(
        f'{section}.{key} = {config[section][key]} is below {least}'
      )
  rows = config.data.num_selection
  if any(not 1 <= end <= rows for end in config.run.prune_after):
    raise ConfigError(
      f'run.prune_after = {tuple(config.run.prune_after)}: each lies in 1..'
      f'{rows}, data.num_selection'
    )
  try:
    yield from PROBLEMS[name](config)
  except ConfigError:
    raise
  except ValueError as error:
    raise ConfigError(f'{name}: {error}') from error


def _signals(config: Config) -> Iterator[Problem]:
  """One problem for each thing to pretrain on; see `configs/signals.py`."""
  steps, target = config.task.steps, config.task.target
  one_of('task.target', target, signals.TARGETS)
  one_of('model.initializer', config.model.initializer, mlp.INITIALIZERS)
  if steps < 1 or config.model.depth < 1:
    raise ConfigError(
      f'task.steps = {steps}, model.depth = {config.model.depth}: both are at '
      'least 1'
    )
  asked = tuple(config.pretraining.on)
  if not asked or len(set(asked)) < len(asked):
    raise ConfigError(f'pretraining.on = {asked}: name some, each once')
  for source in asked:
    one_of(
      'pretraining.on', source, (signals.NONE, signals.MIXED, *signals.FAMILIES)
    )
  model = mlp.MLP(
    config.model.width, config.model.depth, config.model.initializer
  )
  key_model, key_train, key_data = jax.random.split(
    jax.random.key(config.seed), 3
  )
  start = model.init(key_model, jnp.zeros((1, signals.CONTEXT)))

  def apply(params: Tree, batch: Batch) -> jax.Array:
    return mlp.rollout(model.apply, params, batch.inputs, steps)

  def loss(params: Tree, batch: Batch) -> jax.Array:
    return jnp.square(model.apply(params, batch.inputs) - batch.targets).mean()

  first, length = config.data.num_selection, signals.CONTEXT + steps
  drawn = signals.draw(
    (signals.TARGETS[target],), key_data, first + config.data.num_test, length
  )
  rows = Batch(drawn[:, : signals.CONTEXT], drawn[:, signals.CONTEXT :])
  for source in asked:
    params, losses = start, jnp.zeros(0)
    if source != signals.NONE:
      families = signals.of_pretraining(source)

      def sample(key: jax.Array, families=families) -> Batch:
        size = config.pretraining.batch_size
        return Batch(*signals.windows(families, key, size, length))

      params, losses = pretrain.pretrain(
        loss,
        start,
        sample,
        key=key_train,
        num_steps=config.pretraining.steps,
        learning_rate=config.pretraining.learning_rate,
      )
    population = config.population
    own = source == signals.NONE and population.sigmas_untrained
    yield Problem(
      name=f'{source}-{target}',
      output='value',
      apply=apply,
      params=params,
      selection=jax.tree.map(lambda x: x[:first], rows),
      test=jax.tree.map(lambda x: x[first:], rows),
      sigmas=tuple(own or population.sigmas),
      losses=np.asarray(losses),
    )


def _digits(config: Config) -> Iterator[Problem]:
  """A convolutional net on scikit-learn's digits; see `configs/vision.py`."""
  one_of('model.name', config.model.name, ('linen', 'nnx'))
  if config.data.num_pretrain < 1:
    raise ConfigError(
      f'data.num_pretrain = {config.data.num_pretrain} is below 1'
    )
  key_model, key_train = jax.random.split(jax.random.key(config.seed))
  try:
    splits = digits.load(
      num_pretrain=config.data.num_pretrain,
      num_selection=config.data.num_selection,
      num_test=config.data.num_test,
      seed=config.seed,
      shift=config.task.shift,
    )
  except (ValueError, ImportError) as error:
    raise ConfigError(f'digits: {error}') from error
  width = config.model.width
  if config.model.name == 'nnx':
    model = adapters.from_nnx(
      classifiers.ConvNetNNX(width, rngs=nnx.Rngs(key_model))
    )
  else:
    module = classifiers.ConvNet(width)
    model = adapters.from_linen(
      module, module.init(key_model, splits.selection.inputs[:1])
    )
  rows = Batch(*map(jnp.asarray, splits.pretrain[:2]))

  def apply(params: Tree, batch: Batch) -> jax.Array:
    return model.apply(params, batch.inputs)

  def loss(params: Tree, batch: Batch) -> jax.Array:
    return -log_likelihood(apply(params, batch), batch).mean()

  def sample(key: jax.Array) -> Batch:
    size = (config.pretraining.batch_size,)
    which = jax.random.randint(key, size, 0, len(rows.targets))
    return jax.tree.map(lambda x: x[which], rows)

  params, losses = pretrain.pretrain(
    loss,
    model.params,
    sample,
    key=key_train,
    num_steps=config.pretraining.steps,
    learning_rate=config.pretraining.learning_rate,
  )
  yield Problem(
    name=f'{config.model.name}-{config.task.shift or "digits"}',
    output='label',
    apply=apply,
    params=params,
    selection=Batch(*splits.selection[:2]),
    test=Batch(*splits.test[:2]),
    sigmas=tuple(config.population.sigmas),
    losses=np.asarray(losses),
  )


PROBLEMS: dict[str, Callable[[Config], Iterator[Problem]]] = {
  'signals': _signals,
  'digits': _digits,
}
