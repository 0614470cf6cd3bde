# SPDX-License-Identifier: Apache-2.0
"""RandOpt on any pure function or Flax model, as one library call.

The same population, noise and ledger as a run on a language model; here the
score is computed on the device, in the same program as the model.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from thicket import perturb, selection, sharding, trees
from thicket.blocks import Block
from thicket.ledger import Ledger
from thicket.population import BASE, Members, Population

Tree = Any


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
      row, in split 'selection'.
    base_score: mean reward of the unperturbed model.
    scores: float32 [N], mean reward of each member.
    members: the K selected, best first.
    ensemble: maps a batch to the outputs of the K members, [K, ...]; average
      them, or vote with `thicket.voting.majority`.
  """

  ledger: Ledger
  base_score: float
  scores: np.ndarray
  members: tuple[Member, ...]
  ensemble: Callable[[Tree], Tree]


def search(
  apply: Callable[[Tree, Tree], Tree],
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
  only: str = '',
  skip: str = '',
  members_per_device: int = 16,
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
    family: 'gaussian' or 'rademacher'.
    scale: 'absolute', or 'relative' to each tensor's root mean square.
    only: perturb only parameters whose path matches this regular expression.
    skip: and not those that match this one.
    members_per_device: members in memory at a time, on each device.

  Returns:
    The scores of all members, and the selected ones as an ensemble. Member i
    does not depend on `num_members`, on the mesh or on the chunk.

  Raises:
    ValueError: a setting is out of range; the message names it.
  """
  if not 1 <= top_k <= num_members:
    raise ValueError(f'top_k = {top_k} is outside [1, {num_members}] members')
  seed = _seed(key)
  sigmas = tuple(np.atleast_1d(np.asarray(sigma, np.float64)).tolist())
  population = Population(seed, num_members, sigmas)
  if not jax.tree.leaves(params):
    raise ValueError('params holds no array')
  mesh = sharding.make_mesh() if mesh is None else mesh
  data = sharding.replicate(mesh, data)
  spec = trees.default_spec(params)
  perturber = perturb.Perturber(
    sharding.replicate(mesh, params),
    spec,
    seed=population.seed,
    mesh=mesh,
    family=family,
    scale=scale,
    mask=trees.trainable(spec, only=only, skip=skip),
  )
  in_axes = perturber.in_axes

  def chunks_of(number: int) -> Members:
    """A loop whose chunk holds no more members than there are."""
    enough = -(-number // sharding.num_devices(mesh))
    per_device = min(members_per_device, enough)
    return Members(perturber, population, mesh, per_device)

  members, selected = chunks_of(num_members), chunks_of(top_k)

  def rewards(weights, batch):
    with _users_own_rules():
      found = jnp.asarray(score(apply(weights, batch), batch), jnp.float32)
    if found.ndim > 1:
      raise ValueError(f'score gives shape {found.shape}; [B] or () is needed')
    return jnp.atleast_1d(found)

  def outputs(weights, batch):
    with _users_own_rules():
      return apply(weights, batch)

  step = functools.partial(_over_members, mesh=mesh, in_axes=in_axes)
  ledger = Ledger.in_memory({'seed': seed, 'sigmas': list(map(float, sigmas))})
  score_step = step(rewards)
  for ids in ([BASE], population.ids()):
    for chunk, _, found in members.run(
      ids, lambda weights, *_: score_step(weights, data)
    ):
      ledger.append('selection', _block(chunk, found))
  rows = ledger.view('selection').reward[:, :, 0]
  scores = rows.mean(axis=1, dtype=np.float64).astype(np.float32)
  best = [int(i) for i in selection.top_k(scores[1:], top_k)]
  output_step = step(outputs)

  def ensemble(batch: Tree) -> Tree:
    chunks = selected.run(best, lambda weights, *_: output_step(weights, batch))
    return jax.tree.map(
      lambda *parts: np.concatenate(parts), *[found for *_, found in chunks]
    )

  return Result(
    ledger=ledger,
    base_score=float(scores[0]),
    scores=scores[1:],
    members=tuple(
      Member(i, float(population.sigma([i])[0]), float(scores[1 + i]))
      for i in best
    ),
    ensemble=ensemble,
  )


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
