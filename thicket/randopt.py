# SPDX-License-Identifier: Apache-2.0
"""RandOpt on any pure function or Flax model, as one library call.

The same population, noise, selection and ledger as a run on a language model
(Neural Thickets, arXiv 2603.12228, algorithm 1); here the score is computed
on the device, in the same program as the model.

Axes: N members, K of them selected, M at a time, B rows.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from thicket import (
  perturb,
  prng,
  processes,
  pruning,
  scoring,
  selection,
  sharding,
  trees,
)
from thicket.blocks import from_rewards
from thicket.ledger import Ledger
from thicket.population import BASE, Members, Population
from thicket.storage import as_path
from thicket.user_rules import user_rules
from thicket.version import __version__

# Saved together, when a chunk makes at least so many; a kill loses them.
_MEMBERS_PER_RANGE = 128

Tree = Any
Apply = Callable[[Tree, Tree], Tree]


@dataclasses.dataclass(frozen=True)
class Member:
  """A selected member: its id, its sigma and its mean reward."""

  id: int
  sigma: float
  score: float


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
  """What `search` found.

  Attributes:
    ledger: the reward of the base (member -1) and of every member for every
      row, in split 'selection'; of pruned members those that were asked.
    base_score: mean reward of the unperturbed model.
    scores: float32 [N], mean reward of each member; NaN if it was pruned.
    members: the K selected, best first.
    ensemble: maps a batch to the outputs of the K members, [K, ...], best
      first; see `scoring.mean` and `scoring.vote`.
    outputs: maps (member ids, batch) to their outputs; -1 is the base.
    weights: maps a member's id to its parameters, a tree like the base's.
    population: gives every member its sigma.
    saved: share of rewards that pruning did not need.
  """

  ledger: Ledger
  base_score: float
  scores: np.ndarray
  members: tuple[Member, ...]
  ensemble: Callable[[Tree], Tree]
  outputs: Callable[[Sequence[int], Tree], Tree]
  weights: Callable[[int], Tree]
  population: Population
  saved: float

  @property
  def rewards(self) -> np.ndarray:
    """float32 [N, B], NaN where pruning asked no more."""
    return self._rewards()[1:]

  @property
  def base_rewards(self) -> np.ndarray:
    """float32 [B]."""
    return self._rewards()[0]

  def _rewards(self) -> np.ndarray:
    block = self.ledger.view('selection', [BASE, *self.population.ids()])
    return np.where(block.seen, block.reward, np.nan)[:, :, 0]


def search(
  apply: Apply,
  params: Tree,
  data: Tree,
  score: Callable[[Tree, Tree], jax.Array],
  *,
  key: jax.Array | int,
  num_members: int,
  top_k: int,
  sigma: float | Sequence[float],
  mesh: Mesh | None = None,
  family: str = 'gaussian',
  scale: str = 'absolute',
  antithetic: bool = False,
  only: str = '',
  skip: str = '',
  members_per_device: int = 16,
  prune_after: Sequence[int] = (),
  max_reward: float = 0.0,
  workdir: os.PathLike[str] | str | None = None,
  name: str = '',
) -> Result:
  """Scores N random perturbations of `params` and keeps the K best.

  Args:
    apply: (params, data) -> outputs, pure; `model.apply` of a Flax module.
    params: tree of float arrays.
    data: what `apply` and `score` take, the selection set as one batch.
    score: (outputs, data) -> rewards, [B] or a scalar; higher is better.
    key: a typed key of JAX's threefry (`jax.random.key(0)`), or the root seed
      as an integer in [0, 2**64).
    num_members: N.
    top_k: K, 1 <= K <= N.
    sigma: standard deviation of the noise; several are taken in turn.
    mesh: where to run; by default all devices.
    family: of the noise: gaussian, rademacher or low_rank:R, see `families`.
    scale: what sigma is a multiple of: absolute, relative or modular, see
      `scales`.
    antithetic: members come in mirrored pairs, w + sigma n and w - sigma n.
    only: perturb only parameters whose path matches this regular expression.
    skip: and not those that match this one.
    members_per_device: members in memory at a time, on each device.
    prune_after: numbers of rows after which members that can no longer reach
      the top K are dropped: the K are the same, and those dropped have no
      score. Needs arrays [B, ...] in `data`, and a reward for each row that
      depends on that row alone (products of other shapes round differently).
    max_reward: for pruning, what no row's reward is above.
    workdir: folder, or gs:// or s3:// URL, in which rewards are kept as they
      are found, so that the same call goes on where it was stopped, and one
      with more members adds to it. By default they are in memory only.
    name: of `apply` and `score`, which cannot be told apart by the folder.

  Returns:
    The scores of all members, and the selected ones as an ensemble. Member i
    does not depend on `num_members`, on the mesh or on the chunk.

  Raises:
    ValueError: a setting is out of range; the message names it.
    LedgerError: the folder cannot be used, or belongs to another search.
  """
  if not 1 <= top_k <= num_members:
    raise ValueError(f'top_k = {top_k} is outside [1, {num_members}] members')
  if math.isnan(max_reward):
    raise ValueError('max_reward is NaN; give what no reward is above')
  prune_after = tuple(sorted({int(x) for x in np.atleast_1d(prune_after)}))
  seed = prng.seed_of(key)
  sigmas = tuple(np.atleast_1d(np.asarray(sigma, np.float64)).tolist())
  population = Population(seed, num_members, sigmas, antithetic)
  if not jax.tree.leaves(params):
    raise ValueError('params holds no array')
  mesh = sharding.make_mesh() if mesh is None else mesh
  spec = trees.default_spec(params)
  recipe = {'seed': seed, 'sigmas': list(sigmas)}
  if workdir is None:
    ledger = Ledger.in_memory(recipe)
  else:
    recipe |= {
      'name': name,
      'thicket': __version__,
      'prng': f'{prng.NAME} {prng.VERSION}',
      'arithmetic': prng.arithmetic(),
      'noise': {'family': family, 'scale': scale, 'antithetic': antithetic},
      'mask': {'only': only, 'skip': skip},
      'params': trees.content_hash(params),
      'data': trees.content_hash(data),
      'prune_after': list(prune_after),
    }
    ledger = Ledger.open(as_path(workdir) / 'ledger', recipe)
  perturber = perturb.Perturber(
    sharding.replicate(mesh, params),
    spec,
    seed=population.seed,
    mesh=mesh,
    family=family,
    scale=scale,
    mask=trees.trainable(spec, only=only, skip=skip),
  )
  loop = _Loop(perturber, population, mesh, members_per_device)
  data = sharding.replicate(mesh, data)
  scorer = _Scorer(loop, apply, score, data, ledger, prune_after)
  base, _ = scorer.scores([BASE], 1, math.inf)
  scores, saved = scorer.scores(population.ids(), top_k, max_reward)
  if np.isnan(base[0]) and np.isnan(scores).all():
    raise ValueError(
      'no score is a number, not even of the base: check the outputs, and that '
      'labels lie in 0..C-1'
    )
  best = [int(i) for i in selection.top_k(scores, top_k)]
  outputs = loop.outputs_of(apply)
  return Result(
    ledger=ledger,
    base_score=float(base[0]),
    scores=scores,
    members=tuple(
      Member(i, float(population.sigma([i])[0]), float(scores[i])) for i in best
    ),
    ensemble=functools.partial(outputs, best),
    outputs=outputs,
    weights=loop.weights,
    population=population,
    saved=saved,
  )


class _Loop:
  """Chunks of members through compiled functions of (weights, batch)."""

  def __init__(self, perturber, population, mesh, per_device):
    self.mesh, self.in_axes = mesh, perturber.in_axes
    self._make = functools.partial(Members, perturber, population, mesh)
    self._per_device = per_device
    self._held: tuple[int, Members] | None = None
    self._weights = self.outputs_of(lambda params, _: params)

  def run(self, ids, step, per_device: int | None = None):
    """As `Members.gather`; the memory of one size of chunk is kept."""
    per_device = per_device or self._per_device
    if self._held is None or self._held[0] != per_device:
      self._held = per_device, self._make(per_device)
    return self._held[1].gather(ids, step)

  def weights(self, member: int) -> Tree:
    """The parameters of one member, on the host."""
    return jax.tree.map(lambda array: array[0], self._weights([member], ()))

  def outputs_of(self, apply: Apply) -> Callable[[Sequence[int], Tree], Tree]:
    """(ids, batch) -> outputs [len(ids), ...] on the host."""

    def outputs(weights, batch):
      with user_rules():
        return apply(weights, batch)

    compiled = _over_members(outputs, mesh=self.mesh, in_axes=self.in_axes)

    def of_members(ids: Sequence[int], batch: Tree) -> Tree:
      batch = sharding.replicate(self.mesh, batch)
      step = lambda weights, *_: compiled(weights, batch)
      # No more at a time than there are: nothing is kept of these.
      enough = -(-len(ids) // sharding.num_devices(self.mesh))
      chunks = self.run(ids, step, min(self._per_device, enough))
      return jax.tree.map(
        lambda *parts: np.concatenate(parts), *[found for _, found in chunks]
      )

    return of_members


class _Scorer:
  """Scores members on the rows that the ledger does not hold yet."""

  def __init__(self, loop, apply, score, data, ledger, prune_after):
    self._loop = loop
    self._data, self._ledger = data, ledger
    self._ends = _ends(prune_after, data)
    rewards = functools.partial(scoring.rewards, apply, score)
    self._step = _over_members(rewards, mesh=loop.mesh, in_axes=loop.in_axes)

  def scores(
    self, ids: Sequence[int], k: int, max_reward: float
  ) -> tuple[np.ndarray, float]:
    """float32 [len(ids)], NaN where pruned, and the share of work saved."""
    ids = np.asarray(ids, np.int32)
    if self._ends is None:  # the number of rewards is the score's own affair
      self._fill(ids[~self._seen(ids)], slice(None), self._data)
      block = self._ledger.view('selection', ids)
      return pruning.mean_scores(block.reward[:, :, 0]), 0.0
    rows = np.arange(self._ends[-1])
    block = self._ledger.view('selection', ids, rows, [0])
    rewards, seen = block.reward[:, :, 0].copy(), block.seen[:, :, 0].copy()

    def check(found: np.ndarray) -> None:
      if (found > max_reward).any():
        raise ValueError(
          f'a reward is {found.max()}, above max_reward = {max_reward}: '
          'pruning would not be exact'
        )

    def ask(places: np.ndarray, part: slice) -> None:
      data = jax.tree.map(lambda x: x[part], self._data)
      found = self._fill(ids[places], part, data)
      check(found)
      rewards[places, part], seen[places, part] = found, True

    check(rewards[seen])  # those that an earlier call has kept
    saved = pruning.run(
      ask, rewards, seen, ends=self._ends, k=k, max_reward=max_reward
    )
    scores = np.full(len(ids), np.nan, np.float32)
    is_whole = seen.all(axis=1)
    scores[is_whole] = pruning.mean_scores(rewards[is_whole])
    return scores, saved

  def _seen(self, ids: np.ndarray) -> np.ndarray:
    if 'selection' not in self._ledger.splits:
      return np.zeros(len(ids), bool)
    return self._ledger.view('selection', ids).seen.all(axis=(1, 2))

  def _fill(self, ids: np.ndarray, rows: slice, data: Tree) -> np.ndarray:
    """Rewards [n, rows] of members, kept as they are found."""
    found: list[np.ndarray] = []
    kept = 0

    def keep() -> None:
      nonlocal kept
      if len(found) > kept:
        new = np.concatenate(found[kept:])
        names = ids[sum(map(len, found[:kept])) :][: len(new)]
        self._ledger.append(
          'selection', from_rewards(names, new, rows.start or 0)
        )
        kept = len(found)

    try:
      # In chunks of one size, whoever and however many are asked: others round
      # differently, and a larger N must not change what is there.
      for _, rewards in self._loop.run(ids, lambda w, *_: self._step(w, data)):
        if rows.stop and rewards.shape[1] != rows.stop - (rows.start or 0):
          raise ValueError(
            f'prune_after needs a reward for each row; the score gives '
            f'{rewards.shape[1]} for {rows.stop - (rows.start or 0)} rows'
          )
        found.append(rewards)
        if sum(map(len, found[kept:])) >= _MEMBERS_PER_RANGE:
          keep()
    except BaseException:
      if processes.count() == 1:  # the others are not interrupted here
        keep()
      raise
    keep()
    return np.concatenate(found) if found else np.zeros((0, 0), np.float32)


def _ends(prune_after: tuple[int, ...], data: Tree) -> tuple[int, ...] | None:
  """Ends of blocks of rows; None where nothing is to be pruned."""
  if not prune_after:
    return None
  lengths = {np.shape(x)[0] if np.ndim(x) else 0 for x in jax.tree.leaves(data)}
  if len(lengths) != 1:
    raise ValueError(
      f'prune_after = {prune_after} needs data of arrays with as many rows '
      f'each; there are {sorted(lengths)}'
    )
  (rows,) = lengths
  ends = tuple(sorted({*prune_after, rows}))
  if ends[0] < 1 or ends[-1] > rows:
    raise ValueError(f'prune_after = {prune_after}: there are {rows} rows')
  return ends


def _over_members(fn, *, mesh: Mesh, in_axes: Tree):
  """Compiles fn(weights, batch) for members spread over the mesh."""

  @jax.jit
  def run(weights, batch):
    return jax.shard_map(
      jax.vmap(fn, in_axes=(in_axes, None)),
      mesh=mesh,
      in_specs=(sharding.weight_specs(in_axes), PartitionSpec()),
      out_specs=PartitionSpec(sharding.MEMBERS),
      check_vma=False,
    )(weights, batch)

  return run
