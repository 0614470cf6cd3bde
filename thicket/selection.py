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
