# SPDX-License-Identifier: Apache-2.0
"""RandOpt on any pure function or Flax model, as one library call.

The same population, noise, selection and ledger as a run on a language model
(Neural Thickets, arXiv 2603.12228, algorithm 1); here the score is computed
on the device, in the same program as the model.

Axes: N members, K of them selected, M at a time, B rows.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh, PartitionSpec

from thicket import perturb, prng, pruning, selection, sharding, trees
from thicket.blocks import Block
from thicket.ledger import Ledger
from thicket.population import BASE, Members, Population
from thicket.scoring import Staged

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
      row, in split 'selection'; none of members that were pruned.
    base_score: mean reward of the unperturbed model.
    scores: float32 [N], mean reward of each member; NaN if it was pruned.
    members: the K selected, best first.
    ensemble: maps a batch to the outputs of the K members, [K, ...], best
      first; see `scoring.mean` and `scoring.vote`.
    outputs: maps (member ids, batch) to their outputs; -1 is the base.
    population: gives every member its sigma.
    saved: share of the work that pruning saved.
  """

  ledger: Ledger
  base_score: float
  scores: np.ndarray
  members: tuple[Member, ...]
  ensemble: Callable[[Tree], Tree]
  outputs: Callable[[Sequence[int], Tree], Tree]
  population: Population
  saved: float

  @property
  def rewards(self) -> np.ndarray:
    """float32 [N, B], NaN where pruned."""
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
  score: Callable[[Tree, Tree], jax.Array] | Staged,
  *,
  key: jax.Array | int,
  num_members: int,
  top_k: int,
  sigma: float | Sequence[float],
  mesh: Mesh | None = None,
  family: str = 'gaussian',
  scale: str = 'absolute',
  only: str = '',
  skip: str = '',
  members_per_device: int = 16,
  prune: bool = True,
  workdir: os.PathLike[str] | str | None = None,
  name: str = '',
) -> Result:
  """Scores N random perturbations of `params` and keeps the K best.

  Args:
    apply: (params, data) -> outputs, pure; `model.apply` of a Flax module.
    params: tree of float arrays.
    data: what `apply` and `score` take, the selection set as one batch.
    score: (outputs, data) -> rewards, [B] or a scalar; higher is better. Or
      a score in stages (`scoring.Staged`), which can be pruned.
    key: a typed key of JAX's threefry (`jax.random.key(0)`), or the root seed
      as an integer in [0, 2**64).
    num_members: N.
    top_k: K, 1 <= K <= N.
    sigma: standard deviation of the noise; several are taken in turn.
    mesh: where to run; by default all devices.
    family: 'gaussian' or 'rademacher'.
    scale: 'absolute', or 'relative' to each tensor's root mean square.
    only: perturb only parameters whose path matches this regular expression.
    skip: and not those that match this one.
    members_per_device: members in memory at a time, on each device.
    prune: with a score in stages, stop members that cannot reach the top K;
      the K are the same, the others have no score.
    workdir: folder in which rewards are kept as they are found, so that the
      same call goes on where it was stopped, and one with more members adds
      to it. By default they are in memory only.
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
  seed = _seed(key)
  sigmas = tuple(np.atleast_1d(np.asarray(sigma, np.float64)).tolist())
  population = Population(seed, num_members, sigmas)
  if not jax.tree.leaves(params):
    raise ValueError('params holds no array')
  mesh = sharding.make_mesh() if mesh is None else mesh
  spec = trees.default_spec(params)
  recipe = {'seed': seed, 'sigmas': list(map(float, sigmas))}
  if workdir is None:
    ledger = Ledger.in_memory(recipe)
  else:
    recipe |= {
      'name': name,
      'prng': f'{prng.NAME} {prng.VERSION}',
      'noise': {'family': family, 'scale': scale, 'only': only, 'skip': skip},
      'params': trees.content_hash(params),
      'data': trees.content_hash(data),
    }
    ledger = Ledger.open(epath.Path(workdir) / 'ledger', recipe)
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
  scorer = _Scorer(loop, apply, score, data, ledger)
  scorer.score([BASE])
  saved = scorer.score(population.ids(), top_k if prune else None)
  scores = scorer.scores(population.ids())
  best = [int(i) for i in selection.top_k(scores, top_k)]
  outputs = loop.outputs_of(apply)
  return Result(
    ledger=ledger,
    base_score=float(scorer.scores([BASE])[0]),
    scores=scores,
    members=tuple(
      Member(i, float(population.sigma([i])[0]), float(scores[i])) for i in best
    ),
    ensemble=functools.partial(outputs, best),
    outputs=outputs,
    population=population,
    saved=saved,
  )


class _Loop:
  """Chunks of members through compiled functions of (weights, batch)."""

  def __init__(self, perturber, population, mesh, per_device):
    self.mesh, self.in_axes = mesh, perturber.in_axes
    self._make = functools.partial(Members, perturber, population, mesh)
    self._per_device = per_device
    self._members: dict[int, Members] = {}

  def run(self, ids, step):
    """As `Members.run`, in chunks of no more members than there are."""
    enough = -(-len(ids) // sharding.num_devices(self.mesh))
    per_device = min(self._per_device, enough)
    if per_device not in self._members:
      self._members[per_device] = self._make(per_device)
    return self._members[per_device].run(ids, step)

  def outputs_of(self, apply: Apply) -> Callable[[Sequence[int], Tree], Tree]:
    """(ids, batch) -> outputs [len(ids), ...] on the host."""

    def outputs(weights, batch):
      with _users_own_rules():
        return apply(weights, batch)

    compiled = _over_members(outputs, mesh=self.mesh, in_axes=self.in_axes)

    def of_members(ids: Sequence[int], batch: Tree) -> Tree:
      batch = sharding.replicate(self.mesh, batch)
      chunks = self.run(ids, lambda weights, *_: compiled(weights, batch))
      return jax.tree.map(
        lambda *parts: np.concatenate(parts), *[found for *_, found in chunks]
      )

    return of_members


class _Scorer:
  """Scores members that the ledger does not hold yet."""

  def __init__(self, loop, apply, score, data, ledger):
    self._loop, self._data, self._ledger = loop, data, ledger
    self._staged = None if callable(score) else score
    if self._staged is None:
      rewards = functools.partial(_rewards, apply, score)
      self._step = _over_members(rewards, mesh=loop.mesh, in_axes=loop.in_axes)
    else:
      self._step = _stage_over_members(self._staged, loop)

  def score(self, ids: Sequence[int], k: int | None = None) -> float:
    """Adds what is missing; returns the share of work that pruning saved."""
    held = self._held(ids)
    todo = np.asarray([i for i in ids if i not in held], np.int32)
    if not todo.size:
      return 0.0
    if self._staged is None:
      step = lambda weights, *_: self._step(weights, self._data)
      for chunk, _, found in self._loop.run(todo, step):
        self._ledger.append('selection', _block(chunk, found))
      return 0.0
    stages = self._staged.num_stages
    found = pruning.run(
      functools.partial(self._advance, todo),
      len(todo),
      stages,
      k or 1,
      known=list(held.values()),
      prune=k is not None,
    )
    whole = found.stages == stages
    block = _block(todo[whole], found.rewards[whole])
    self._ledger.append('selection', block)
    return found.saved

  def scores(self, ids: Sequence[int]) -> np.ndarray:
    """float32 [len(ids)], NaN where pruned."""
    held = self._held(ids)
    return np.array([held.get(int(i), np.nan) for i in ids], np.float32)

  def _held(self, ids: Sequence[int]) -> dict[int, float]:
    if 'selection' not in self._ledger.splits:
      return {}
    block = self._ledger.view('selection', ids)
    is_whole = block.seen.all(axis=(1, 2))
    scores = pruning.mean_scores(block.reward[is_whole, :, 0])
    return dict(zip(block.members[is_whole].tolist(), scores, strict=True))

  def _advance(self, ids, places, stage, carry):
    """One stage of some members; see `pruning.Advance`."""
    start = 0

    def step(weights, chunk_ids, _):
      nonlocal start
      count = len(chunk_ids)
      if carry is None:
        now = jax.tree.map(
          lambda x: jnp.broadcast_to(x, (count, *np.shape(x))),
          self._staged.init(self._data),
        )
      else:
        part = np.arange(start, start + count) % len(places)  # any will fill
        now = jax.tree.map(
          lambda x: sharding.spread(self._loop.mesh, x[part]), carry
        )
      start += count
      return self._step(weights, self._data, now, np.int32(stage))

    parts = [found for *_, found in self._loop.run(ids[places], step)]
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


def _rewards(apply, score, weights, batch):
  with _users_own_rules():
    found = jnp.asarray(score(apply(weights, batch), batch), jnp.float32)
  if found.ndim > 1:
    raise ValueError(f'score gives shape {found.shape}; [B] or () is needed')
  return jnp.atleast_1d(found)


def _stage_over_members(staged: Staged, loop: _Loop):
  """Compiles a stage for members spread over the mesh."""
  members, whole = PartitionSpec(sharding.MEMBERS), PartitionSpec()

  def step(weights, batch, carry, stage):
    with _users_own_rules():
      return staged.step(weights, batch, carry, stage)

  @jax.jit
  def run(weights, batch, carry, stage):
    return jax.shard_map(
      jax.vmap(step, in_axes=(loop.in_axes, None, 0, None)),
      mesh=loop.mesh,
      in_specs=(sharding.weight_specs(loop.in_axes), whole, members, whole),
      out_specs=members,
      check_vma=False,
    )(weights, batch, carry, stage)

  return run


def _over_members(fn, *, mesh: Mesh, in_axes: Tree):
  """Compiles fn(weights, batch) for members spread over the mesh."""
  members = PartitionSpec(sharding.MEMBERS)

  @jax.jit
  def run(weights, batch):
    return jax.shard_map(
      jax.vmap(fn, in_axes=(in_axes, None)),
      mesh=mesh,
      in_specs=(sharding.weight_specs(in_axes), PartitionSpec()),
      out_specs=members,
      check_vma=False,
    )(weights, batch)

  return run


def _users_own_rules():
  """Traces users' models under JAX's defaults, not under strict rules."""
  stack = contextlib.ExitStack()
  stack.enter_context(jax.numpy_dtype_promotion('standard'))
  stack.enter_context(jax.numpy_rank_promotion('allow'))
  return stack


def _seed(key: jax.Array | int) -> int:
  if isinstance(key, (int, np.integer)):
    return int(key)
  dtype = getattr(key, 'dtype', type(key).__name__)
  is_key = hasattr(key, 'dtype') and jax.dtypes.issubdtype(
    dtype, jax.dtypes.prng_key
  )
  if not is_key:
    raise ValueError(f'key is {dtype}; make it with jax.random.key(seed)')
  words = np.asarray(jax.random.key_data(key))
  if words.shape != (2,):
    raise ValueError(
      f'key holds words of shape {words.shape}; one threefry key is needed'
    )
  return int(words[0]) << 32 | int(words[1])


def _block(member_ids: np.ndarray, rewards: np.ndarray) -> Block:
  """Rewards [m, r] as rows of the ledger; there are no texts or answers."""
  shape = (*rewards.shape, 1)
  return Block(
    members=member_ids,
    rows=np.arange(shape[1], dtype=np.int64),
    draws=np.zeros(1, np.int32),
    seen=np.ones(shape, bool),
    reward=rewards[..., None],
    lenient=rewards[..., None],
    correct=np.zeros(shape, bool),
    lenient_correct=np.zeros(shape, bool),
    answer=np.full(shape, -1, np.int32),
    lenient_answer=np.full(shape, -1, np.int32),
    num_tokens=np.zeros(shape, np.int32),
    truncated=np.zeros(shape, bool),
    answers=(),
  )
