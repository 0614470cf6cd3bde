# SPDX-License-Identifier: Apache-2.0
"""Attention with rotary positions, over stretches of keys and values.

A query attends to up to three stretches: a prefix that all rows share, the
row's own earlier tokens, and the tokens at hand. Layers differ in how their
positions turn (`Rope`) and in how far back they see (a window); both reach a
layer as arrays that are made once for all layers that have them in common:
angles and masks. A layer whose window is no shorter than all there is to see
gets the masks of one without.

Caches of windowed layers are as long as all others: a ring buffer would save
memory, but give each layer a shape and a place to write to of its own.

Axes: B batch, T query time, P prefix time, S earlier time, D model, N heads,
K kv heads, G = N / K heads that share a kv head, H head dim.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from thicket.models.decoder_config import DecoderConfig, Rope
from thicket.models.layers import Linear, RMSNorm, precision, products


class KeyValue(NamedTuple):
  """Keys and values of one layer, laid out as attention reads them.

  Attributes:
    key: [B, K, H, time], already rotated; time is last so that the product
      with a query reads it in order (6x faster on CPU than [.., time, H]).
    value: [B, K, time, H].
  """

  key: jax.Array
  value: jax.Array


class Context(NamedTuple):
  """What a forward pass may attend to besides its own tokens.

  Attributes:
    prefix: a pair for each layer, without B, of positions 0 to P - 1 of every
      row; or None.
    cache: a pair for each layer, the rows' earlier tokens; or None.
    cache_mask: bool [B, S], true where the cache holds a token of the row.
    cache_positions: int32 [B, S], places of these tokens in their sequences,
      any value where there is none; only windows need them.
  """

  prefix: Sequence[KeyValue] | None = None
  cache: Sequence[KeyValue] | None = None
  cache_mask: jax.Array | None = None
  cache_positions: jax.Array | None = None


class Masks(NamedTuple):
  """Which keys a layer's queries see, of each stretch.

  Attributes:
    fresh: bool [B, T, T].
    cache: bool [B, T or 1, S], or None without a cache.
    prefix: bool [B, T, P], or None where they see all of it.
  """

  fresh: jax.Array
  cache: jax.Array | None
  prefix: jax.Array | None


def make_masks(
  positions: jax.Array,
  mask: jax.Array,
  sees: np.ndarray,
  context: Context,
  windows: Sequence[int | None],
) -> list[Masks]:
  """The masks of each layer, the same arrays where they are the same.

  Args:
    positions: int32 [B, T], any value where `mask` is false.
    mask: bool [B, T], false where a token is padding.
    sees: bool [T, T], which of the tokens at hand each may see.
    context: what else there is.
    windows: w of each layer; a query at position p sees keys at p - w + 1 to
      p. None is all.

  Raises:
    ValueError: a window needs positions of the cache, and there are none.
  """
  T = positions.shape[1]
  # A padded query sees itself, so that its row of weights is not 0 / 0.
  fresh = sees[None] & (mask[:, None, :] | np.eye(T, dtype=bool)[None])
  P = context.prefix[0].value.shape[1] if context.prefix is not None else 0
  cache, S = None, 0
  if context.cache is not None:
    cache = context.cache_mask[:, None, :]
    S = context.cache_mask.shape[1]
  found = {None: Masks(fresh, cache, None)}

  def windowed(window):
    def near(places):
      return positions[:, :, None] - places[:, None, :] < window

    if cache is not None and context.cache_positions is None:
      raise ValueError(
        f'a window of {window} tokens needs cache_positions, which are None'
      )
    return Masks(
      fresh=fresh & near(positions),
      cache=None if cache is None else cache & near(context.cache_positions),
      prefix=near(np.arange(P)[None]) if P else None,
    )

  # Of so many tokens, none is out of reach of a window as long.
  total = P + S + T
  windows = [w if w is not None and w < total else None for w in windows]
  for window in windows:
    if window not in found:
      found[window] = windowed(window)
  return [found[window] for window in windows]


def rope_angles(
  positions: jax.Array, head_dim: int, rope: Rope
) -> tuple[jax.Array, jax.Array]:
  """Cosines and sines of rotary positions (arXiv 2104.09864).

  Args:
    positions: int32 [B, T].
    head_dim: H.
    rope: frequencies, and the amplitude of what is returned.

  Returns:
    Two float32 arrays [1, H / 2, B, T].
  """
  exponents = np.arange(0, head_dim, 2, dtype=np.float64) / head_dim
  frequencies = rope.base**-exponents / (rope.divisors or 1.0)
  frequencies = np.asarray(frequencies, np.float32)
  angles = positions.astype(jnp.float32)[None] * frequencies[:, None, None]
  cos, sin = jnp.cos(angles)[None], jnp.sin(angles)[None]
  if rope.amplitude != 1:
    amplitude = np.float32(rope.amplitude)
    cos, sin = cos * amplitude, sin * amplitude
  return cos, sin


def rotate(x: jax.Array, angles: tuple[jax.Array, jax.Array]) -> jax.Array:
  """Rotates the two halves of H in [heads, H, B, T]; float32."""
  cos, sin = angles
  low, high = jnp.split(x.astype(jnp.float32), 2, axis=1)
  return jnp.concatenate(
    [low * cos - high * sin, high * cos + low * sin], axis=1
  )


def soft_cap(x: jax.Array, cap: float | None) -> jax.Array:
  """Bounds float32 values smoothly to -cap..cap; None leaves them."""
  if cap is None:
    return x
  return jnp.tanh(x / jnp.float32(cap)) * jnp.float32(cap)


def attend(
  query: jax.Array,
  fresh: KeyValue,
  prefix: KeyValue | None,
  cache: KeyValue | None,
  masks: Masks,
  cap: float | None,
) -> jax.Array:
  """Softmax attention over prefix, cache and fresh tokens together.

  Args:
    query: [N, H, B, T], rotated and scaled.
    fresh: keys and values of the query's own T tokens.
    prefix: without B; or None.
    cache: S earlier tokens; or None.
    masks: what a query may see of them.
    cap: of scores, see `soft_cap`.

  Returns:
    [N * H, B, T] in the dtype of the query. Scores, softmax and sums are
    float32; its weights are rounded to the query's dtype for the product.
  """
  N, H, B, T = query.shape
  K = fresh.key.shape[1]
  # Rows and kv heads lead, as in the caches: products are then batched over
  # the caches' own leading axes and no cache is ever transposed.
  query = query.reshape(K, N // K, H, B, T)
  query = jnp.transpose(query, (3, 0, 1, 4, 2)).reshape(B, K, -1, H)

  def product(spec, x, y):
    """Over rows and kv heads, x [B, K, Q, ..]; a prefix has no rows."""
    is_shared = y.ndim == 3
    # Rows beside queries, and said so: as two axes XLA's CPU products do not
    # take them in bfloat16.
    x = jnp.swapaxes(x, 0, 1).reshape(K, -1, x.shape[-1]) if is_shared else x
    found = jnp.einsum(
      spec if is_shared else spec.replace('k', 'bk'),
      x,
      y,
      precision=precision(query),
      preferred_element_type=jnp.float32,
    )
    if is_shared:
      found = jnp.swapaxes(found.reshape(K, B, -1, found.shape[-1]), 0, 1)
    return found

  def scores(keys, mask):
    x = product('kqh,khp->kqp', query, keys)
    x = soft_cap(x, cap)
    if mask is None:
      return x
    x = x.reshape(B, K, N // K, T, -1)
    x = jnp.where(mask[:, None, None], x, jnp.float32(-jnp.inf))
    return x.reshape(B, K, -1, x.shape[-1])

  stretches = [(fresh, masks.fresh)]
  if cache is not None:
    stretches.append((cache, masks.cache))
  if prefix is not None:
    stretches.append((prefix, masks.prefix))
  parts = [scores(stretch.key, mask) for stretch, mask in stretches]
  peak = functools.reduce(
    jnp.maximum, [jnp.max(part, -1, keepdims=True) for part in parts]
  )
  parts = [jnp.exp(part - peak) for part in parts]
  total = sum(jnp.sum(part, -1, keepdims=True) for part in parts)
  mixed = sum(
    product('kqp,kph->kqh', part.astype(query.dtype), stretch.value)
    for part, (stretch, _) in zip(parts, stretches, strict=True)
  )
  mixed = (mixed / total).astype(query.dtype).reshape(B, K, N // K, T, H)
  return jnp.transpose(mixed, (1, 2, 4, 0, 3)).reshape(N * H, B, T)


class Attention(nn.Module):
  """Grouped-query attention (arXiv 2305.13245) with rotary positions."""

  config: DecoderConfig
  fused: bool

  @nn.compact
  def __call__(self, x, angles, masks, prefix, cache):
    """Maps [D, B, T] to ([D, B, T], the tokens' own `KeyValue`)."""
    c = self.config
    N, K, H = c.num_heads, c.num_kv_heads, c.head_dim
    query, key, value = products(
      x,
      'qkv',
      {'q': N * H, 'k': K * H, 'v': K * H},
      fused=self.fused,
      bias=c.qkv_bias,
      # What is normed is not rounded before.
      dtype=None if c.head_norm is None else jnp.float32,
      unit=H,
    )
    if c.head_norm is not None:
      query, key = (
        self._normed(name, heads)
        for name, heads in (('q_norm', query), ('k_norm', key))
      )
    scale = H**-0.5 if c.query_scale is None else c.query_scale
    query = rotate(query, angles) * jnp.float32(scale)
    fresh = KeyValue(
      jnp.transpose(rotate(key, angles).astype(x.dtype), (2, 0, 1, 3)),
      jnp.transpose(value.astype(x.dtype), (2, 0, 3, 1)),
    )
    mixed = attend(
      query.astype(x.dtype), fresh, prefix, cache, masks, c.attention_cap
    )
    biases = (('bias', c.d_model),) if c.out_bias else ()
    return Linear(c.d_model, biases=biases, name='out')(mixed), fresh

  def _normed(self, name: str, x: jax.Array) -> jax.Array:
    """Norms [heads, H, B, T], each head by itself or all of them together."""
    c = self.config
    norm = RMSNorm(c.norm_eps, c.norm_offset, name=name)
    if c.head_norm == 'whole':
      return norm(x.reshape(-1, *x.shape[2:])).reshape(x.shape)
    return jnp.swapaxes(norm(jnp.swapaxes(x, 0, 1)), 0, 1)
