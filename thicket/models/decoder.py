# SPDX-License-Identifier: Apache-2.0
"""A decoder-only transformer of any family that `DecoderConfig` describes.

It starts from llama (arXiv 2302.13971); Qwen2 and 3 (2407.10671, 2505.09388),
Gemma 2 and 3 (2408.00118, 2503.19786), OLMo 2 and 3 (2501.00656, 2512.13961)
and Mistral (2310.06825) are other values of the same fields.

The module never writes a cache. It attends to up to three stretches of keys
and values (a prefix that all rows share, the rows' own earlier tokens, the
tokens at hand) and hands the new keys and values back; `decode` owns where
they are kept. One forward function thus serves a whole sequence, the prefill
behind a shared prefix and a single decoding step.

Layers are unrolled and each has arrays of its own: scanned or sliced from a
stack, XLA copies a layer's weights at every step. What differs from layer to
layer, windows and rotary positions, is therefore a tuple of values that is
read as layers are laid out, not an array that a scan would carry: layers
without a window have no trace of one. q, k, v and gate, up are fused in one
matrix, unless the model is split over devices, which wants the parts of each
head on one device; `canonical_spec` keeps their names apart, so that noise is
the same either way. Their biases are arrays of their own in both cases.
Features come first in activations, as `layers` explains.

Axes: B batch, T query time, D model, F hidden, N heads, K kv heads, H head
dim, V vocabulary, C tokens asked about.
"""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from thicket import trees
from thicket.models.attention import (
  Attention,
  Context,
  KeyValue,
  make_masks,
  rope_angles,
  soft_cap,
)
from thicket.models.decoder_config import DecoderConfig
from thicket.models.layers import Embed, Linear, RMSNorm, products

_ACTIVATE = {
  'silu': nn.silu,
  'gelu_tanh': functools.partial(nn.gelu, approximate=True),
}


class MLP(nn.Module):
  """A gated MLP: SwiGLU or GeGLU (arXiv 2002.05202)."""

  config: DecoderConfig
  fused: bool

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [D, B, T] to [D, B, T]."""
    c = self.config
    gate, up = products(
      x,
      'gate_up',
      {'gate': c.d_ff, 'up': c.d_ff},
      fused=self.fused,
      bias=c.mlp_bias,
    )
    biases = (('bias', c.d_model),) if c.mlp_bias else ()
    down = Linear(c.d_model, biases=biases, name='down')
    return down(_ACTIVATE[c.activation](gate) * up)


class Layer(nn.Module):
  """Attention and MLP, each between norms and beside a residual."""

  config: DecoderConfig
  fused: bool

  @nn.compact
  def __call__(self, x, *attention_args):
    """Maps [D, B, T] to ([D, B, T], the tokens' own `KeyValue`)."""
    c = self.config

    def norm(is_there, name, x):
      return RMSNorm(c.norm_eps, c.norm_offset, name=name)(x) if is_there else x

    mixed, fresh = Attention(c, self.fused, name='attention')(
      norm(c.norm_before, 'attention_norm', x), *attention_args
    )
    x = x + norm(c.norm_after, 'attention_after_norm', mixed)
    mixed = MLP(c, self.fused, name='mlp')(norm(c.norm_before, 'mlp_norm', x))
    return x + norm(c.norm_after, 'mlp_after_norm', mixed), fresh


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
    if c.embed_scale != 1:
      x = x * x.dtype.type(c.embed_scale)  # rounded to it, as Gemma's own code
    sees = np.tril(np.ones((T, T), bool)) if sees is None else sees
    angles = {
      rope: rope_angles(positions, c.head_dim, rope)
      for rope in dict.fromkeys(c.ropes)
    }
    windows = [c.window(i) for i in range(c.num_layers)]
    masks = make_masks(positions, mask, sees, context, windows)
    fresh = []
    for i in range(c.num_layers):
      x, kv = Layer(c, self.fused, name=f'layer_{i}')(
        x,
        angles[c.ropes[i]],
        masks[i],
        context.prefix[i] if context.prefix is not None else None,
        context.cache[i] if context.cache is not None else None,
      )
      fresh.append(kv)
    x = x if all_logits else x[:, :, -1]
    x = RMSNorm(c.norm_eps, c.norm_offset, name='final_norm')(x)
    if c.tie_head:
      logits = embed.logits(x, vocabulary)
    else:
      logits = Linear(c.vocab_size, jnp.float32, name='head')(x, vocabulary)
    return jnp.moveaxis(soft_cap(logits, c.logit_cap), 0, -1), fresh


# Norms of a layer by their names in the tree. Checkpoints call the second one
# of a layer after what it follows, whichever it is, or the MLP's own before it.
_BEFORE = {
  'attention_norm': 'input_layernorm',
  'mlp_norm': 'post_attention_layernorm',
}
_AFTER = {
  'attention_after_norm': 'post_attention_layernorm',
  'mlp_after_norm': 'post_feedforward_layernorm',
}
_BOTH = _BEFORE | _AFTER | {'mlp_norm': 'pre_feedforward_layernorm'}


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

  def leaf(layer, axes, columns, rows, kind='weight'):
    """Of rows (size by name) under each other; () columns make vectors."""
    stem = 'model.layers.*.' if layer is not None else ''
    segments = tuple(
      trees.Segment(f'{stem}{name}.{kind}', layer or 0, size)
      for name, size in rows.items()
    )
    # Cut into parts, a fused array would not have those of one head together.
    axes = axes if len(segments) == 1 else (None,) * len(axes)
    return trees.Leaf((sum(rows.values()), *columns), segments, axes)

  def norms(layer, names):
    """Of names in the checkpoint and sizes by their names in the tree."""
    return {
      name: {'scale': leaf(layer, (axis,), (), {stored: size})}
      for name, (stored, size, axis) in names.items()
    }

  def linear(i, axes, columns, name, size, bias):
    found = {'kernel': leaf(i, axes, (columns,), {name: size})}
    if bias:
      found['bias'] = leaf(i, axes[:1], (), {name: size}, 'bias')
    return found

  def linears(i, whole, axis, bias, parts):
    """Of parts (name in the checkpoint, size) by their names in the tree."""
    if not fused:
      return {
        name: linear(i, (axis, None), D, *part, bias)
        for name, part in parts.items()
      }
    found = {'kernel': leaf(i, (axis, None), (D,), dict(parts.values()))}
    if bias:
      for name, part in parts.items():
        found[f'{name}_bias'] = leaf(i, (axis,), (), dict([part]), 'bias')
    return {whole: found}

  def head_norms(i):
    sizes = {
      None: {},
      'head': {'q': (c.head_dim, None), 'k': (c.head_dim, None)},
      'whole': {'q': (NH, heads), 'k': (KH, heads)},
    }[c.head_norm]
    return norms(
      i,
      {
        f'{name}_norm': (f'self_attn.{name}_norm', *size)
        for name, size in sizes.items()
      },
    )

  def layer(i):
    names = {
      (True, False): _BEFORE,
      (False, True): _AFTER,
      (True, True): _BOTH,
      (False, False): {},
    }[c.norm_before, c.norm_after]
    qkv = {
      'q': ('self_attn.q_proj', NH),
      'k': ('self_attn.k_proj', KH),
      'v': ('self_attn.v_proj', KH),
    }
    gate_up = {'gate': ('mlp.gate_proj', F), 'up': ('mlp.up_proj', F)}
    out = linear(i, (None, heads), NH, 'self_attn.o_proj', D, c.out_bias)
    down = linear(i, (None, hidden), F, 'mlp.down_proj', D, c.mlp_bias)
    return {
      'attention': {
        **linears(i, 'qkv', heads, c.qkv_bias, qkv),
        **head_norms(i),
        'out': out,
      },
      'mlp': {
        **linears(i, 'gate_up', hidden, c.mlp_bias, gate_up),
        'down': down,
      },
      **norms(i, {name: (stored, D, None) for name, stored in names.items()}),
    }

  rows, table = (vocab, None), {'model.embed_tokens': V}
  params = {
    'embed': {'embedding': leaf(None, rows, (D,), table)},
    **norms(None, {'final_norm': ('model.norm', D, None)}),
    **{f'layer_{i}': layer(i) for i in range(c.num_layers)},
  }
  if not c.tie_head:
    params['head'] = {'kernel': leaf(None, rows, (D,), {'lm_head': V})}
  return {'params': params}
