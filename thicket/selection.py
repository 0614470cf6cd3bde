# SPDX-License-Identifier: Apache-2.0
"""Which members are kept, by a rule that leaves nothing to chance.

RandOpt keeps the K best of N scores (Neural Thickets, arXiv 2603.12228). With
200 questions many scores are equal, so the order of ties decides who is kept:
here the lower member id, and a score that is not a number comes last.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np


def top_k(scores: jax.Array, k: int) -> jax.Array:
  """The k best members, best first.

  Args:
    scores: float32 [N], one for each member in order of member id.
    k: how many, 1 <= k <= N.

  Returns:
    int32 [k] indices into scores, by descending score, then ascending index;
    NaN after everything else, -inf included; 0.0 and -0.0 are equal.

  Raises:
    ValueError: scores is not float32 [N], or k is outside 1..N.
  """
  scores = _check_scores(scores)
  if not 1 <= k <= scores.size:
    raise ValueError(
      f'top_k: k={k} of {scores.size} members: must lie in 1..{scores.size}'
    )
  return _top_k(scores, k)


@functools.partial(jax.jit, static_argnames='k')
def _top_k(scores: jax.Array, k: int) -> jax.Array:
  return jnp.argsort(_rank_key(scores), stable=True)[:k].astype(jnp.int32)


def above_base(
  scores: jax.Array, base: float, group_ids: jax.Array, num_groups: int
) -> jax.Array:
  """Counts the members that beat the base model, for each sigma.

  Args:
    scores: float32 [N].
    base: the base model's score, not NaN; it is rounded to float32 as the
      scores were, so that a member that only equals it is not counted.
    group_ids: int32 [N], which sigma a member has, in 0..num_groups-1.
    num_groups: number of sigmas.

  Returns:
    int32 [num_groups], members strictly above the base; NaN never is.

  Raises:
    ValueError: shapes differ, the base is NaN, or an id is outside
      0..num_groups-1.
  """
  scores, ids = _check_scores(scores), np.asarray(group_ids)
  if np.isnan(base):
    raise ValueError(f'base={base}: needs a score to compare with')
  if scores.shape != ids.shape:
    raise ValueError(
      f'scores {scores.shape} and group_ids {ids.shape}: need [N] and [N]'
    )
  # Checked on the host: on the device an id out of range counts for nothing.
  is_bad = (ids < 0) | (ids >= num_groups)
  if is_bad.any():
    at = int(np.argmax(is_bad))
    raise ValueError(
      f'group_ids[{at}]={ids[at]}: must lie in 0..{num_groups - 1}'
    )
  return _above_base(
    scores, jnp.asarray(base, jnp.float32), jnp.asarray(ids), num_groups
  )


@functools.partial(jax.jit, static_argnames='num_groups')
def _above_base(scores, base, group_ids, num_groups):
  groups = jnp.arange(num_groups, dtype=group_ids.dtype)
  is_member = group_ids[:, None] == groups[None, :]
  is_above = (_rank_key(scores) < _rank_key(base))[:, None]
  return jnp.sum(is_member & is_above, axis=0, dtype=jnp.int32)


def _rank_key(scores: jax.Array) -> jax.Array:
  """int32 keys that rise as scores fall; the greatest is NaN's."""
  # On integers, because CPUs flush subnormal floats to 0 and GPUs do not.
  bits = jax.lax.bitcast_convert_type(scores, jnp.int32)
  size = bits & jnp.int32(0x7FFFFFFF)
  key = jnp.where(bits < 0, size, -size)
  is_nan = size > jnp.int32(0x7F800000)
  return jnp.where(is_nan, jnp.int32(0x7FFFFFFF), key)


def _check_scores(scores: jax.Array) -> jax.Array:
  scores = jnp.asarray(scores)
  if scores.ndim != 1 or scores.dtype != jnp.float32:
    raise ValueError(
      f'scores is {scores.dtype} {scores.shape}: needs float32 [N]'
    )
  return scores
