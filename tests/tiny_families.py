# SPDX-License-Identifier: Apache-2.0
"""A tiny model of each family: its config.json, and weights made of names.

Everything that a family does is made to matter within a few tokens: windows
are shorter than sequences, which go past the lengths from which rotary
positions are scaled; caps bind; norms, biases and keys' biases are far from
what leaves a value alone. Weights come from a seed by name, so that the numbers
of golden/families.json stand for models that are stored nowhere.
"""

import functools
import json
import pathlib
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from thicket import batching, decode
from thicket.models import decoder
from thicket.models.architectures import config_from_hf

GOLDEN = pathlib.Path(__file__).parent / 'golden' / 'families.json'

FULL, SLIDING = 'full_attention', 'sliding_attention'
_SIZES = {
  'vocab_size': 64,
  'hidden_size': 24,
  'intermediate_size': 28,
  'num_hidden_layers': 2,
  'num_attention_heads': 4,
  'num_key_value_heads': 2,
  'max_position_embeddings': 64,
  'rms_norm_eps': 1e-3,
}
_GEMMA = {
  **_SIZES,
  'head_dim': 8,
  'query_pre_attn_scalar': 3,
  'sliding_window': 5,
  'tie_word_embeddings': True,
}

FAMILIES = {
  'llama': {
    **_SIZES,
    'model_type': 'llama',
    'head_dim': 8,
    'attention_bias': True,
    'mlp_bias': True,
    'rope_theta': 50.0,
    # Llama 3: of three frequencies of four, one is kept, one divided, and one
    # between.
    'rope_scaling': {
      'rope_type': 'llama3',
      'factor': 4.0,
      'low_freq_factor': 1.0,
      'high_freq_factor': 4.0,
      'original_max_position_embeddings': 32,
    },
  },
  'llama_linear': {
    **_SIZES,
    'model_type': 'llama',
    'tie_word_embeddings': True,
    'rope_theta': 50.0,
    'rope_scaling': {'rope_type': 'linear', 'factor': 3.0},
  },
  'mistral': {
    **_SIZES,
    'model_type': 'mistral',
    'head_dim': 10,
    'sliding_window': 4,
    'rope_theta': 100.0,
  },
  'qwen2': {
    **_SIZES,
    'model_type': 'qwen2',
    'use_sliding_window': True,
    'max_window_layers': 1,
    'sliding_window': 6,
    'tie_word_embeddings': True,
    'rope_theta': 100.0,
  },
  'qwen3': {
    **_SIZES,
    'model_type': 'qwen3',
    'head_dim': 8,
    'rope_theta': 100.0,
  },
  'gemma2': {
    **_GEMMA,
    'model_type': 'gemma2',
    'attn_logit_softcapping': 2.0,
    'final_logit_softcapping': 3.0,
    'rope_theta': 100.0,
  },
  'gemma3_text': {
    **_GEMMA,
    'model_type': 'gemma3_text',
    'num_hidden_layers': 3,
    'layer_types': [SLIDING, FULL, SLIDING],
    'rope_parameters': {
      FULL: {'rope_type': 'linear', 'factor': 2.0, 'rope_theta': 300.0},
      SLIDING: {'rope_type': 'default', 'rope_theta': 20.0},
    },
  },
  'olmo2': {**_SIZES, 'model_type': 'olmo2', 'rope_theta': 100.0},
  'olmo3': {
    **_SIZES,
    'model_type': 'olmo3',
    'head_dim': 8,
    'num_hidden_layers': 3,
    'layer_types': [SLIDING, SLIDING, FULL],
    'sliding_window': 5,
    'rope_parameters': {
      FULL: {
        'rope_type': 'yarn',
        'rope_theta': 50.0,
        'factor': 4.0,
        'beta_fast': 2.0,
        'beta_slow': 0.25,
        'original_max_position_embeddings': 16,
        'attention_factor': 1.3,
      },
      SLIDING: {'rope_type': 'default', 'rope_theta': 50.0},
    },
  },
}


@functools.cache
def config(family):
  """The decoder's config of a family's config.json."""
  return config_from_hf(FAMILIES[family], family)


def tensor(name, shape, norm_offset):
  """A weight of a canonical name, float32."""
  rng = np.random.default_rng(zlib.crc32(name.encode()))
  if 'norm' in name:
    return np.float32(rng.uniform(0.5, 1.5, shape) - norm_offset)
  if name.endswith('k_proj.bias'):  # Qwen2's are large
    return np.float32(rng.normal(0, 3, shape))
  if name.endswith('.bias'):
    return np.float32(rng.normal(0, 0.5, shape))
  return np.float32(rng.normal(0, 1.5 * shape[-1] ** -0.5, shape))


def params(config, fused=True, dtype=np.float32):
  """The decoder's weights."""

  def array(leaf):
    parts = [
      tensor(s.full_name, (s.size, *leaf.shape[1:]), config.norm_offset)
      for s in leaf.segments
    ]
    return np.concatenate(parts).astype(dtype)

  return jax.tree.map(array, decoder.canonical_spec(config, fused))


# Three rows, of different lengths, behind a prefix; answers of NEW tokens.
NEW, PAD, ROWS = 8, 63, 3
# A seed with which no answer has a token that two come within 1e-3 of being.
_RNG = np.random.default_rng(6)
PREFIX = _RNG.integers(0, 63, 5).astype(np.int32)
SUFFIXES = [_RNG.integers(0, 63, count).tolist() for count in (12, 1, 7)]


def padded(suffixes=SUFFIXES, prefix=PREFIX):
  """Whole prompts, left-padded: tokens, positions and mask, each [B, T]."""
  rows = [[*prefix, *suffix] for suffix in suffixes]
  T = max(map(len, rows))
  tokens = np.array([[PAD] * (T - len(x)) + x for x in rows], np.int32)
  places = np.arange(T)[None] - np.array([[T - len(x)] for x in rows])
  return tokens, np.maximum(places, 0).astype(np.int32), places >= 0


def continued(answers):
  """Suffixes with an answer behind each."""
  pairs = zip(SUFFIXES, np.asarray(answers).tolist(), strict=True)
  return [[*suffix, *answer] for suffix, answer in pairs]


@functools.cache
def _forward(config, fused):
  model = decoder.Decoder(config, fused)
  return jax.jit(functools.partial(model.apply, all_logits=True))


def forward(config, weights, tokens, positions, mask, fused=True):
  """All logits [B, T, V] of one pass."""
  return np.asarray(
    _forward(config, fused)(weights, tokens, positions, mask)[0]
  )


def answers(config, weights, prefix=PREFIX, dtype=jnp.float32):
  """Greedy answers by prefix, prefill and steps, as a run makes them.

  Returns:
    Tokens [B, NEW], and the logits [B, NEW, V] they were chosen by; B in the
    order of SUFFIXES.
  """
  model, seen = decoder.Decoder(config), {}
  rest = [[*PREFIX[len(prefix) :], *suffix] for suffix in SUFFIXES]
  (prompts,) = batching.batches(rest, range(ROWS), ROWS, PAD)

  def choose(logits, rows, step):
    keep = lambda step, logits: seen.update({int(step): np.asarray(logits)})
    jax.debug.callback(keep, step, logits)
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)

  never = np.zeros(config.vocab_size, np.int32)
  table = np.stack([never, never + 1])
  decoding = decode.Decoding(NEW, table, PAD, choose)
  slots = decode.cache_slots(prompts.tokens.shape[1], NEW)

  @jax.jit
  def run(weights):
    members = jax.tree.map(lambda x: x[None], weights)
    before = decode.prefill_prefix(model, members, 0, prefix)
    caches = decode.empty_caches(model, 1, ROWS, slots, dtype)
    ids = jnp.zeros(1, jnp.int32)
    return decode.generate(
      model, decoding, members, 0, ids, ids, before, prompts, caches
    )

  generated, caches = jax.block_until_ready(run(weights))
  jax.effects_barrier()
  assert {array.dtype for array in jax.tree.leaves(caches)} == {
    jnp.dtype(dtype)
  }
  logits = np.stack([seen[step] for step in range(NEW)], axis=1)
  order = np.argsort(prompts.prompt)
  return np.asarray(generated.tokens)[0, order], logits[order]


def golden():
  """What transformers says of these models; see tests/parity_test.py."""
  return json.loads(GOLDEN.read_text(encoding='utf-8'))
