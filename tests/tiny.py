# SPDX-License-Identifier: Apache-2.0
"""A decoder of a few thousand weights, and the same model in plain numpy.

The numpy one follows the checkpoint's own layout: unfused weights by their
canonical names, one sequence at a time, tokens first, float64. It shares no
line with the package but the spec that says which tensor is where.
"""

import dataclasses

import jax
import numpy as np

from thicket import trees
from thicket.models import decoder
from thicket.models.decoder_config import DecoderConfig, Rope

# Every two sizes differ, so that a swapped axis cannot pass unseen; a small
# base makes all wavelengths matter within a few tokens.
CONFIG = DecoderConfig(
  vocab_size=64,
  num_layers=2,
  d_model=20,
  d_ff=24,
  num_heads=4,
  num_kv_heads=2,
  head_dim=6,
  ropes=(Rope(100.0),) * 2,
  norm_eps=1e-5,
  context_length=128,
  tie_head=True,
)

# The real one, for its shapes alone.
SMOLLM2_135M = DecoderConfig(
  vocab_size=49152,
  num_layers=30,
  d_model=576,
  d_ff=1536,
  num_heads=9,
  num_kv_heads=3,
  head_dim=64,
  ropes=(Rope(100000.0),) * 30,
  norm_eps=1e-5,
  context_length=8192,
  tie_head=True,
)


def with_layers(config, count, **changes):
  """The config with so many layers, all like its first."""
  ropes = config.ropes[:1] * count
  return dataclasses.replace(config, num_layers=count, ropes=ropes, **changes)


def params(config=CONFIG, seed=0, dtype=np.float32):
  """Random weights, large enough for attention to be far from uniform."""
  rng = np.random.default_rng(seed)

  def draw(leaf):
    if len(leaf.shape) == 1:
      return rng.uniform(0.5, 1.5, leaf.shape).astype(dtype)
    scale = 1.5 * leaf.shape[-1] ** -0.5
    return (scale * rng.standard_normal(leaf.shape)).astype(dtype)

  return jax.tree.map(draw, decoder.canonical_spec(config))


def members(count, config=CONFIG, dtype=np.float32):
  """Weights of unrelated models, stacked on a members axis."""
  each = [params(config, seed, dtype) for seed in range(count)]
  return jax.tree.map(lambda *arrays: np.stack(arrays), *each)


def member(stacked, index):
  """One member's weights, without the members axis."""
  return jax.tree.map(lambda array: array[index], stacked)


def tensors(weights, config=CONFIG):
  """Canonical tensors in float64 by full name, cut out of fused arrays."""
  arrays = jax.tree.leaves(weights)
  leaves = jax.tree.leaves(decoder.canonical_spec(config))
  named = {}
  for array, leaf in zip(arrays, leaves, strict=True):
    cuts = np.cumsum([segment.size for segment in leaf.segments])[:-1]
    pieces = np.split(np.asarray(array, np.float64), cuts)
    for segment, piece in zip(leaf.segments, pieces, strict=True):
      named[segment.full_name] = piece
  assert len(named) == len(list(trees.segments(leaves)))
  return named


def reference(config, named, tokens):
  """Logits [T, V] in float64 of one sequence [T]; llama, as published."""
  T, H = len(tokens), config.head_dim

  def norm(x, name):
    root = np.sqrt(np.mean(x**2, -1, keepdims=True) + config.norm_eps)
    return x / root * named[name]

  def heads(x, name, count):
    return (x @ named[name].T).reshape(T, count, H)

  wavelengths = config.ropes[0].base ** (np.arange(0, H, 2) / H)
  angles = np.arange(T)[:, None] / wavelengths
  cos = np.cos(np.concatenate([angles, angles], -1))[:, None]
  sin = np.sin(np.concatenate([angles, angles], -1))[:, None]

  def rotated(x):
    half = np.concatenate([-x[..., H // 2 :], x[..., : H // 2]], -1)
    return x * cos + half * sin

  x = named['model.embed_tokens.weight'][tokens]
  for i in range(config.num_layers):
    layer = f'model.layers.{i}'
    attention = f'{layer}.self_attn'
    y = norm(x, f'{layer}.input_layernorm.weight')
    query = rotated(heads(y, f'{attention}.q_proj.weight', config.num_heads))
    key = rotated(heads(y, f'{attention}.k_proj.weight', config.num_kv_heads))
    value = heads(y, f'{attention}.v_proj.weight', config.num_kv_heads)
    shared = config.num_heads // config.num_kv_heads
    mixed = np.zeros_like(query)
    for n in range(config.num_heads):
      for t in range(T):
        scores = key[: t + 1, n // shared] @ query[t, n] / np.sqrt(H)
        weights = np.exp(scores - scores.max())
        weights /= weights.sum()
        mixed[t, n] = weights @ value[: t + 1, n // shared]
    x = x + mixed.reshape(T, -1) @ named[f'{attention}.o_proj.weight'].T
    y = norm(x, f'{layer}.post_attention_layernorm.weight')
    gate = y @ named[f'{layer}.mlp.gate_proj.weight'].T
    up = y @ named[f'{layer}.mlp.up_proj.weight'].T
    hidden = gate / (1 + np.exp(-gate)) * up
    x = x + hidden @ named[f'{layer}.mlp.down_proj.weight'].T
  head = 'model.embed_tokens' if config.tie_head else 'lm_head'
  return norm(x, 'model.norm.weight') @ named[f'{head}.weight'].T
