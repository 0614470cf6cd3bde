# SPDX-License-Identifier: Apache-2.0
"""A decoder-only transformer of the llama family (arXiv 2302.13971).

The module never writes a cache. It attends to up to three stretches of keys
and values (a prefix that all rows share, the rows' own earlier tokens, the
tokens at hand) and hands the new keys and values back; `decode` owns where
they are kept. One forward function thus serves a whole sequence, the prefill
behind a shared prefix and a single decoding step.

Layers are unrolled and each has arrays of its own: scanned or sliced from a
stack, XLA copies a layer's weights at every step. q, k, v and gate, up are
fused in one matrix, unless the model is split over devices, which wants the
parts of each head on one device; `canonical_spec` keeps their names apart, so
that noise is the same either way.
Features come first in activations, as `layers` explains.

Axes: B batch, T query time, P prefix time, S earlier time, D model, F hidden,
N heads, K kv heads, G = N / K heads that share a kv head, H head dim,
V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from thicket import trees
from thicket.models.decoder_config import DecoderConfig
from thicket.models.layers import Embed, Linear, RMSNorm, precision


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
    prefix: a pair for each layer, without B, which every row and query sees
      whole; or None.
    cache: a pair for each layer, the rows' earlier tokens; or None.
    cache_mask: bool [B, S], true where the cache holds a token of the row.
  """

  prefix: Sequence[KeyValue] | None = None
  cache: Sequence[KeyValue] | None = None
  cache_mask: jax.Array | None = None


def rope_angles(
  positions: jax.Array, head_dim: int, base: float
) -> tuple[jax.Array, jax.Array]:
  """Cosines and sines of rotary positions (arXiv 2104.09864).

  Args:
    positions: int32 [B, T].
    head_dim: H.
    base: the base of the geometric sequence of wavelengths.

  Returns:
    Two float32 arrays [1, H / 2, B, T].
  """
  exponents = np.arange(0, head_dim, 2, dtype=np.float64) / head_dim
  frequencies = np.asarray(base**-exponents, np.float32)
  angles = positions.astype(jnp.float32)[None] * frequencies[:, None, None]
  angles = angles[None]
  return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, angles: tuple[jax.Array, jax.Array]) -> jax.Array:
  """Rotates the two halves of H in [heads, H, B, T], in float32."""
  cos, sin = angles
  low, high = jnp.split(x.astype(jnp.float32), 2, axis=1)
  turned = jnp.concatenate(
    [low * cos - high * sin, high * cos + low * sin], axis=1
  )
  return turned.astype(x.dtype)


def attend(
  query: jax.Array,
  fresh: KeyValue,
  fresh_mask: jax.Array,
  prefix: KeyValue | None,
  cache: KeyValue | None,
  cache_mask: jax.Array | None,
) -> jax.Array:
  """Softmax attention over prefix, cache and fresh tokens together.

  Args:
    query: [N, H, B, T], rotated.
    fresh: keys and values of the query's own T tokens.
    fresh_mask: bool [B, T, T], true where a query may see a fresh token.
    prefix: without B, all of it visible; or None.
    cache: S earlier tokens; or None.
    cache_mask: bool [B, S], or None.

  Returns:
    [N * H, B, T] in the dtype of the query. Scores, softmax and sums are
    float32; its weights are rounded to the query's dtype for the product.
  """
  N, H, B, T = query.shape
  K = fresh.key.shape[1]
  # Rows and kv heads lead, as in the caches: products are then batched over
  # the caches' own leading axes and no cache is ever transposed.
  query = query.reshape(K, N // K, H, B, T) * query.dtype.type(H**-0.5)
  query = jnp.transpose(query, (3, 0, 1, 4, 2)).reshape(B, K, -1, H)

  def scores(keys, mask):
    x = jnp.einsum(
      'bkqh,khp->bkqp' if keys.ndim == 3 else 'bkqh,bkhp->bkqp',
      query,
      keys,
      precision=precision(query),
      preferred_element_type=jnp.float32,
    )
    if mask is None:
      return x
    x = x.reshape(B, K, N // K, T, -1)
    x = jnp.where(mask[:, None, None], x, jnp.float32(-jnp.inf))
    return x.reshape(B, K, -1, x.shape[-1])

  stretches = [(fresh, fresh_mask)]
  if cache is not None:
    stretches.append((cache, cache_mask[:, None, :]))
  if prefix is not None:
    stretches.append((prefix, None))
  parts = [scores(stretch.key, mask) for stretch, mask in stretches]
  peak = functools.reduce(
    jnp.maximum, [jnp.max(part, -1, keepdims=True) for part in parts]
  )
  parts = [jnp.exp(part - peak) for part in parts]
  total = sum(jnp.sum(part, -1, keepdims=True) for part in parts)
  mixed = sum(
    jnp.einsum(
      'bkqp,kph->bkqh' if stretch.value.ndim == 3 else 'bkqp,bkph->bkqh',
      part.astype(query.dtype),
      stretch.value,
      precision=precision(query),
      preferred_element_type=jnp.float32,
    )
    for part, (stretch, _) in zip(parts, stretches, strict=True)
  )
  mixed = (mixed / total).astype(query.dtype).reshape(B, K, N // K, T, H)
  return jnp.transpose(mixed, (1, 2, 4, 0, 3)).reshape(N * H, B, T)


class Attention(nn.Module):
  """Grouped-query attention (arXiv 2305.13245) with rotary positions."""

  config: DecoderConfig
  fused: bool

  @nn.compact
  def __call__(self, x, angles, fresh_mask, prefix, cache, cache_mask):
    """Maps [D, B, T] to ([D, B, T], the tokens' own `KeyValue`)."""
    c = self.config
    N, K, H = c.num_heads, c.num_kv_heads, c.head_dim
    if self.fused:
      heads = Linear((N + 2 * K) * H, name='qkv')(x)
      heads = heads.reshape(N + 2 * K, H, *x.shape[1:])
      query, key, value = jnp.split(heads, (N, N + K))
    else:
      query, key, value = (
        Linear(count * H, name=name)(x).reshape(count, H, *x.shape[1:])
        for name, count in (('q', N), ('k', K), ('v', K))
      )
    fresh = KeyValue(
      jnp.transpose(rotate(key, angles), (2, 0, 1, 3)),
      jnp.transpose(value, (2, 0, 3, 1)),
    )
    mixed = attend(
      rotate(query, angles), fresh, fresh_mask, prefix, cache, cache_mask
    )
    return Linear(c.d_model, name='out')(mixed), fresh


class MLP(nn.Module):
  """SwiGLU (arXiv 2002.05202)."""

  config: DecoderConfig
  fused: bool

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [D, B, T] to [D, B, T]."""
    F = self.config.d_ff
    if self.fused:
      gate, up = jnp.split(Linear(2 * F, name='gate_up')(x), 2)
    else:
      gate, up = (Linear(F, name=name)(x) for name in ('gate', 'up'))
    return Linear(self.config.d_model, name='down')(nn.silu(gate) * up)


class Layer(nn.Module):
  """Attention and MLP, each behind a norm and beside a residual."""

  config: DecoderConfig
  fused: bool

  @nn.compact
  def __call__(self, x, *attention_args):
    """Maps [D, B, T] to ([D, B, T], the tokens' own `KeyValue`)."""
    norm = lambda name: RMSNorm(self.config.norm_eps, name=name)
    mixed, fresh = Attention(self.config, self.fused, name='attention')(
      norm('attention_norm')(x), *attention_args
    )
    x = x + mixed
    mlp = MLP(self.config, self.fused, name='mlp')
    return x + mlp(norm('mlp_norm')(x)), fresh


class Decoder(nn.Module):
  """Tokens to logits of the last position, and to new keys and values."""

  config: DecoderConfig
  fused: bool = True  # q, k, v and gate, up are one matrix each

  @nn.compact
  def __call__(
    self,
    tokens: jax.Array,
    positions: jax.Array,
    mask: jax.Array,
    context: Context = Context(),  # noqa: B008 (an immutable tuple of None)
    *,
    all_logits: bool = False,
    sees: np.ndarray | None = None,
    vocabulary: np.ndarray | None = None,
  ) -> tuple[jax.Array, list[KeyValue]]:
    """One forward pass.

    Args:
      tokens: int32 [B, T].
      positions: int32 [B, T], each token's place in its sequence; any value
        where `mask` is false.
      mask: bool [B, T], false where a token is padding on the left.
      context: earlier tokens; see `Context`.
      all_logits: logits of all T positions rather than of the last.
      sees: bool [T, T], which of the tokens at hand each sees; by default
        itself and those before it.
      vocabulary: int [C], the tokens to compute logits of; by default all V.

    Returns:
      float32 logits [B, V], or [B, T, V]; and a `KeyValue` for each layer.
      What stands at padding is finite and means nothing.
    """
    c = self.config
    T = tokens.shape[1]
    embed = Embed(c.vocab_size, c.d_model, name='embed')
    x = embed(tokens)
    angles = rope_angles(positions, c.head_dim, c.ropes[0].base)
    sees = np.tril(np.ones((T, T), bool)) if sees is None else sees
    # A padded query sees itself, so that its row of weights is not 0 / 0.
    fresh_mask = sees[None] & (mask[:, None, :] | np.eye(T, dtype=bool)[None])
    fresh = []
    for i in range(c.num_layers):
      x, kv = Layer(c, self.fused, name=f'layer_{i}')(
        x,
        angles,
        fresh_mask,
        context.prefix[i] if context.prefix is not None else None,
        context.cache[i] if context.cache is not None else None,
        context.cache_mask,
      )
      fresh.append(kv)
    x = x if all_logits else x[:, :, -1]
    x = RMSNorm(c.norm_eps, name='final_norm')(x)
    if c.tie_head:
      logits = embed.logits(x, vocabulary)
    else:
      logits = Linear(c.vocab_size, jnp.float32, name='head')(x, vocabulary)
    return jnp.moveaxis(logits, 0, -1), fresh


def canonical_spec(config: DecoderConfig, fused: bool = True) -> trees.Tree:
  """The canonical tensors of the tree of `Decoder(config, fused)`.

  Names are those of Hugging Face checkpoints, with `*` for the layer number;
  shapes are (out, in), as checkpoints have them. Of the axes, those are named
  that a model may be split along: heads go by kv heads, each with the queries
  that read it.
  """
  c = config
  D, F, V = c.d_model, c.d_ff, c.vocab_size
  NH, KH = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
  heads = trees.Axis('heads', c.num_kv_heads)
  hidden, vocab = trees.Axis('hidden', F), trees.Axis('vocab', V)

  def leaf(layer, axes, *columns, **rows):
    stem = 'model.layers.*.' if layer is not None else ''
    segments = tuple(
      trees.Segment(f'{stem}{name}.weight', layer or 0, size)
      for name, size in rows.items()
    )
    # Cut into parts, a fused array would not have those of one head together.
    axes = axes if len(segments) == 1 else (None,) * len(axes)
    return trees.Leaf((sum(rows.values()), *columns), segments, axes)

  def layer(i):
    def kernel(axes, columns, **rows):
      return {'kernel': leaf(i, axes, columns, **rows)}

    def kernels(whole, axis, **parts):
      """Of parts (name in the checkpoint, size) by their names in the tree."""
      if fused:
        return {whole: kernel((axis, None), D, **dict(parts.values()))}
      return {
        name: kernel((axis, None), D, **dict([part]))
        for name, part in parts.items()
      }

    qkv = kernels(
      'qkv',
      heads,
      q=('self_attn.q_proj', NH),
      k=('self_attn.k_proj', KH),
      v=('self_attn.v_proj', KH),
    )
    gate_up = kernels(
      'gate_up', hidden, gate=('mlp.gate_proj', F), up=('mlp.up_proj', F)
    )
    return {
      'attention_norm': {'scale': leaf(i, (None,), input_layernorm=D)},
      'attention': {
        **qkv,
        'out': kernel((None, heads), NH, **{'self_attn.o_proj': D}),
      },
      'mlp_norm': {'scale': leaf(i, (None,), post_attention_layernorm=D)},
      'mlp': {
        **gate_up,
        'down': kernel((None, hidden), F, **{'mlp.down_proj': D}),
      },
    }

  rows = (vocab, None)
  params = {
    'embed': {'embedding': leaf(None, rows, D, **{'model.embed_tokens': V})},
    'final_norm': {'scale': leaf(None, (None,), **{'model.norm': D})},
    **{f'layer_{i}': layer(i) for i in range(c.num_layers)},
  }
  if not c.tie_head:
    params['head'] = {'kernel': leaf(None, rows, D, lm_head=V)}
  return {'params': params}
