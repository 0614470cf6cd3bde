# SPDX-License-Identifier: Apache-2.0
"""Models of growing size and pretraining, and the density around each.

Density is delta(m) = P[s(theta + eps) >= s(theta) + m] (Neural Thickets, arXiv
2603.12228, section 2). Every model is pretrained here from scratch; models of
different sizes or seeds share no key: neither initial weights, nor data, nor
members, nor items. So seeds repeat the whole measurement, luck of members and
items included, and intervals over seeds hold all of it.

Sigmas are relative to each tensor's root mean square. `moves` are matched: the
sigma at which the outputs on pretraining data move by so much is looked up for
each model (see `thicket.analysis.displacement`). `relatives` are used as given.

Axes: S seeds, R rungs, G sigmas, N members, m margins.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

import thicket
from thicket import pretrain, scoring, signals
from thicket.analysis import density, displacement
from thicket.models import mlp

Tree = Any

LENGTH, STEPS_AHEAD = 70, 60  # values of a signal; of them predicted
BATCH = 256  # of pretraining
PROBES, PROBE_MEMBERS = 256, 32  # rows and members that measure a move
GRID = np.geomspace(1e-3, 4.0, 13)  # relative sigmas between which to look up
WORST = -100.0  # a rollout that explodes earns this; signals stay within 1.5


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
  """One size of model: how it is pretrained, and what is searched for.

  Attributes:
    init: key -> params.
    loss: (params, batch) -> scalar, of pretraining.
    sample: key -> batch, of pretraining.
    outputs: (params, probe) -> array, whose move is measured.
    probe: key -> inputs of fresh pretraining data.
    apply: (params, batch) -> outputs, for the search.
    score: (outputs, batch) -> rewards.
    items: key -> batch of all targets, `num_items` of each in turn.
  """

  init: Callable[[jax.Array], Tree]
  loss: Callable[[Tree, Tree], jax.Array]
  sample: Callable[[jax.Array], Tree]
  outputs: Callable[[Tree, Tree], jax.Array]
  probe: Callable[[jax.Array], Tree]
  apply: Callable[[Tree, Tree], Tree]
  score: Callable[[Tree, Tree], jax.Array]
  items: Callable[[jax.Array], scoring.Batch]


@dataclasses.dataclass(frozen=True)
class Ladder:
  """What is measured.

  Attributes:
    domain: a key of `DOMAINS`.
    widths: of the size ladder, all pretrained for `steps`.
    steps: of Adam.
    lengths: steps of the length ladder, all of width `width`.
    width: its width, one of `widths`.
    seeds: how many.
    members: N of each sigma.
    num_items: rows of each target.
    moves: matched displacements, in `Domain.move_unit`.
    relatives: sigmas as they are.
    absolute: margins in reward.
    relative: margins as a share of the base's error.
    levels: margins that end at an error, as a share of that of predicting 0:
      one bar for all models, however good the base.
  """

  domain: str
  widths: tuple[int, ...]
  steps: int
  lengths: tuple[int, ...]
  width: int
  seeds: int
  members: int
  num_items: int
  moves: tuple[float, ...]
  relatives: tuple[float, ...]
  absolute: tuple[float, ...]
  relative: tuple[float, ...]
  levels: tuple[float, ...]

  def models(self) -> list[tuple[int, int]]:
    """(width, steps) of every model of one seed, each once."""
    sizes = [(width, self.steps) for width in self.widths]
    return sizes + [
      (self.width, steps) for steps in self.lengths if steps != self.steps
    ]


@dataclasses.dataclass(frozen=True)
class Domain:
  """A kind of model with its targets.

  Attributes:
    task: (width, num_items) -> Task.
    targets: names, in the order of `Task.items`.
    best: the reward without error; error is best - score.
    reward_unit: of rewards and absolute margins.
    measure: of `displacement.MEASURES`.
    move_unit: of what it measures.
  """

  task: Callable[[int, int], Task]
  targets: tuple[str, ...]
  best: float
  reward_unit: str
  measure: str
  move_unit: str


SIGNAL_TARGETS = ('fixed_line', 'fixed_square', 'fixed_sinusoid')


@functools.cache  # one loss a width: its compiled pretraining serves all seeds
def signal_task(width: int, num_items: int) -> Task:
  """MLPs on all families of signals; rollouts on fixed targets."""
  model = mlp.MLP(width=width)
  families = signals.of_pretraining(signals.MIXED)

  def sample(key):
    return signals.windows(families, key, BATCH, LENGTH)

  def items(key):
    drawn = [
      signals.draw(
        (signals.TARGETS[name],), jax.random.fold_in(key, i), num_items, LENGTH
      )
      for i, name in enumerate(SIGNAL_TARGETS)
    ]
    rows = jnp.concatenate(drawn)
    return scoring.Batch(rows[:, : signals.CONTEXT], rows[:, signals.CONTEXT :])

  def score(outputs, batch):
    found = scoring.negative_mse(outputs, batch)
    return jnp.where(found > WORST, found, WORST)  # not a number too

  return Task(
    init=lambda key: model.init(key, jnp.zeros((1, signals.CONTEXT))),
    loss=lambda params, batch: jnp.square(
      model.apply(params, batch[0]) - batch[1]
    ).mean(),
    sample=sample,
    outputs=lambda params, inputs: model.apply(params, inputs),
    probe=lambda key: signals.windows(families, key, PROBES, LENGTH)[0],
    apply=lambda params, batch: mlp.rollout(
      model.apply, params, batch.inputs, STEPS_AHEAD
    ),
    score=score,
    items=items,
  )


DOMAINS = {
  'signals': Domain(
    signal_task,
    SIGNAL_TARGETS,
    0.0,
    'squared units of the signal',
    'rms',
    'RMS of the next value',
  ),
}


def matched_sigmas(
  moves: tuple[float, ...], found: displacement.Displacement
) -> list[float]:
  """Sigmas at which the outputs move by as much, interpolated log-log.

  Raises:
    ValueError: a move is outside what was measured.
  """
  low, high = found.mean[0], found.mean[-1]
  for move in moves:
    if not low <= move <= high:
      raise ValueError(
        f'moves has {move:g}, outside the displacements [{low:.3g}, '
        f'{high:.3g}] of sigmas {found.sigmas[0]:g} to {found.sigmas[-1]:g}'
      )
  # A mean over the same members at each sigma rises, but for rounding.
  rising = np.maximum.accumulate(found.mean)
  logs = np.interp(np.log(moves), np.log(rising), np.log(found.sigmas))
  return np.exp(logs).tolist()


def densities(
  rewards: np.ndarray,
  base: np.ndarray,
  groups: np.ndarray,
  best: float,
  silence: float,
  ladder: Ladder,
) -> dict[str, Any]:
  """The densities of one target.

  Args:
    rewards: [N * G, items].
    base: [items].
    groups: [N * G] the index of each member's sigma.
    best: the reward without error.
    silence: the error of predicting 0.
    ladder: gives the margins.

  Returns:
    'error' of the base; 'silence'; 'naive' and 'corrected', [G][m] lists, the
    absolute margins before the relative ones and the levels.
  """
  error = best - float(base.mean(dtype=np.float64))
  margins = [
    *ladder.absolute,
    *(error * share for share in ladder.relative),
    *(error - silence * share for share in ladder.levels),
  ]
  # Bounds for one model are not used: intervals are over seeds.
  found = density.solution_density(
    rewards, base, groups, margins, num_resamples=1
  )
  return {
    'error': error,
    'silence': silence,
    'naive': [group.estimate.tolist() for group in found],
    'corrected': [group.corrected.tolist() for group in found],
  }


def measure(
  ladder: Ladder, width: int, steps: int, seed: int, mesh: Mesh | None = None
) -> dict[str, Any]:
  """Pretrains one model, searches around it, and counts.

  Returns:
    What is kept of it: plain numbers.
  """
  domain = DOMAINS[ladder.domain]
  task = domain.task(width, ladder.num_items)
  # Lengths of one width and seed are one pretraining, stopped earlier or later.
  own = jax.random.fold_in(jax.random.key(seed), width)
  key_init, key_train, key_probe, key_items, key_move, key_members = (
    jax.random.fold_in(own, i) for i in range(6)
  )
  params, losses = pretrain.pretrain(
    task.loss, task.init(key_init), task.sample, key=key_train, num_steps=steps
  )
  moved = displacement.displacement(
    task.outputs,
    params,
    task.probe(key_probe),
    GRID,
    key=key_move,
    num_members=PROBE_MEMBERS,
    measure=domain.measure,
    scale='relative',
    mesh=mesh,
  )
  sigmas = [*matched_sigmas(ladder.moves, moved), *ladder.relatives]
  items = task.items(key_items)
  result = thicket.search(
    task.apply,
    params,
    items,
    task.score,
    key=key_members,
    num_members=ladder.members * len(sigmas),
    top_k=1,
    sigma=sigmas,
    scale='relative',
    mesh=mesh,
  )
  rewards, base = result.rewards, result.base_rewards
  groups = result.population.sigma_index(result.population.ids())
  targets = {}
  for i, target in enumerate(domain.targets):
    rows = slice(i * ladder.num_items, (i + 1) * ladder.num_items)
    targets[target] = densities(
      rewards[:, rows],
      base[rows],
      groups,
      domain.best,
      float(np.square(items.targets[rows]).mean()),
      ladder,
    )
  return {
    'width': width,
    'parameters': sum(x.size for x in jax.tree.leaves(params)),
    'steps': steps,
    'seed': seed,
    'loss': float(losses[-100:].mean()) if steps else None,
    'sigmas': sigmas,
    'targets': targets,
  }
