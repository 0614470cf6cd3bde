# SPDX-License-Identifier: Apache-2.0
"""Attention over stretches, in types whose products differ by device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from thicket.models.attention import KeyValue, Masks, attend

N, K, H, B, T, P, S = 6, 3, 8, 4, 2, 7, 5


def _attend(dtype, members=()):
  """Over a prefix, a cache and the tokens at hand, of members at a time."""
  rng = np.random.default_rng(0)

  def array(*shape):
    values = rng.standard_normal((*members, *shape)).astype(np.float32)
    return jnp.asarray(values, jnp.bfloat16).astype(dtype)

  query = array(N, H, B, T)
  fresh = KeyValue(array(B, K, H, T), array(B, K, T, H))
  prefix = KeyValue(array(K, H, P), array(K, P, H))
  cache = KeyValue(array(B, K, H, S), array(B, K, S, H))
  fresh_mask = np.broadcast_to(np.tril(np.ones((T, T), bool)), (B, T, T))
  masks = Masks(fresh_mask, rng.random((B, 1, S)) < 0.7, None)

  def one(query, fresh, prefix, cache):
    return attend(query, fresh, prefix, cache, masks, None)

  one = jax.vmap(one) if members else one
  return np.asarray(jax.jit(one)(query, fresh, prefix, cache), np.float32)


# XLA's CPU backend has no product of bfloat16 with rows beside heads.
@pytest.mark.parametrize('members', [(), (2,)])
def test_bfloat16_attends_to_a_shared_prefix(members):
  whole = _attend(jnp.float32, members)
  rounded = _attend(jnp.bfloat16, members)
  assert whole.shape == (*members, N * H, B, T)
  np.testing.assert_allclose(rounded, whole, rtol=0, atol=0.02)
  assert np.abs(rounded - whole).max() > 0
