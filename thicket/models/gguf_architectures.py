# SPDX-License-Identifier: Apache-2.0
"""From the metadata of a GGUF file to a decoder config, and its tensor names.

A converter renames tensors, reorders some of them and leaves out what the
program that runs the file knows by the architecture. Facts of that kind are
from llama.cpp: what its converter (conversion/*.py) does to tensors, and what
its loader (src/llama-model.cpp) sets where the file says nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from thicket.models import rotary
from thicket.models.checked import Checked
from thicket.models.decoder_config import DecoderConfig, Rope
from thicket.models.files import ModelFileError
from thicket.models.gguf import GgufFile
from thicket.models.model_types import (
  ACTIVATIONS,
  ARCHITECTURES,
  CAPS,
  MAX_HEAD_DIM,
  MAX_LAYERS,
  Architecture,
)

# By `general.architecture`: the architecture in Hugging Face's words. Mistral
# is written as llama, its window is lost; OLMo 3 is an olmo2 with a window.
_OF = {
  'llama': 'llama',
  'qwen2': 'qwen2',
  'qwen3': 'qwen3',
  'gemma2': 'gemma2',
  'gemma3': 'gemma3_text',
  'olmo2': 'olmo2',
}

# Canonical name -> name in the file, both without `.weight` or `.bias`.
_NAMES = {
  'model.embed_tokens': 'token_embd',
  'model.norm': 'output_norm',
  'lm_head': 'output',
  'model.layers.*.input_layernorm': 'blk.*.attn_norm',
  'model.layers.*.self_attn.q_proj': 'blk.*.attn_q',
  'model.layers.*.self_attn.k_proj': 'blk.*.attn_k',
  'model.layers.*.self_attn.v_proj': 'blk.*.attn_v',
  'model.layers.*.self_attn.o_proj': 'blk.*.attn_output',
  'model.layers.*.self_attn.q_norm': 'blk.*.attn_q_norm',
  'model.layers.*.self_attn.k_norm': 'blk.*.attn_k_norm',
  'model.layers.*.post_attention_layernorm': 'blk.*.ffn_norm',
  'model.layers.*.mlp.gate_proj': 'blk.*.ffn_gate',
  'model.layers.*.mlp.up_proj': 'blk.*.ffn_up',
  'model.layers.*.mlp.down_proj': 'blk.*.ffn_down',
}
# Where attention's output has a norm of its own, that one has the name.
_NORMED_NAMES = _NAMES | {
  'model.layers.*.post_attention_layernorm': 'blk.*.post_attention_norm',
  'model.layers.*.pre_feedforward_layernorm': 'blk.*.ffn_norm',
  'model.layers.*.post_feedforward_layernorm': 'blk.*.post_ffw_norm',
}

# In the file, but no weight: divisors of rotary frequencies (Llama 3).
ROPE_FREQS = 'rope_freqs.weight'

# Of Gemma 2 and 3, the scale of scores is the file's to imply: of the models
# with as many layers it is (D / N) ** -0.5, of all others H ** -0.5.
_SCALED_BY_WIDTH = {'gemma2': 46, 'gemma3_text': 62}
_GEMMA2_WINDOW = 4096

_READ = (
  'context_length',
  'embedding_length',
  'block_count',
  'feed_forward_length',
  'attention.head_count',
  'attention.head_count_kv',
  'attention.key_length',
  'attention.value_length',
  'attention.layer_norm_rms_epsilon',
  'rope.dimension_count',
  'rope.freq_base',
  'rope.scale_linear',
  'rope.scaling.type',
  'rope.scaling.factor',
  'rope.scaling.original_context_length',
  'rope.scaling.attn_factor',
  'rope.scaling.yarn_attn_factor',
  'rope.scaling.yarn_ext_factor',
  'rope.scaling.yarn_beta_fast',
  'rope.scaling.yarn_beta_slow',
)
_WINDOW_KEYS = (
  'attention.sliding_window',
  'attention.sliding_window_pattern',
  'rope.freq_base_swa',
)
_IGNORED = (
  'attention.causal',
  'rope.scaling.finetuned',
  'tensor_data_layout',
  'vocab_size',
)


def gguf_name(name: str, layer: int, architecture: str) -> str:
  """What a canonical tensor is called in a GGUF file.

  Args:
    name: canonical, with `*` for the layer number.
    layer: the number; any where there is no `*`.
    architecture: a key of `ARCHITECTURES`.
  """
  is_normed = ARCHITECTURES[architecture].fixed.get('norm_after', False)
  stem, suffix = name.rsplit('.', 1)
  stored = (_NORMED_NAMES if is_normed else _NAMES)[stem]
  return f'{stored}.{suffix}'.replace('*', str(layer))


def from_gguf(
  name: str, array: np.ndarray, config: DecoderConfig, architecture: str
) -> np.ndarray:
  """A canonical tensor, from what a GGUF file has under its name.

  Args:
    name: canonical, with `*` for the layer number.
    array: float32, as read.
    config: of the model.
    architecture: a key of `ARCHITECTURES`.

  Returns:
    float32 of the same shape, in the order and the units of a Hugging Face
    checkpoint.
  """
  part = name.split('.')[-2]
  if architecture == 'llama' and part in ('q_proj', 'k_proj'):
    is_query = part == 'q_proj'
    return _half_split(
      array, config.num_heads if is_query else config.num_kv_heads
    )
  if config.norm_offset and part.endswith('norm'):
    return array - np.float32(config.norm_offset)
  return array


def _half_split(array: np.ndarray, num_heads: int) -> np.ndarray:
  """Undoes a row order that is for rotating neighbours, not halves."""
  pairs = array.reshape(num_heads, -1, 2, *array.shape[1:])
  return pairs.swapaxes(1, 2).reshape(array.shape)


def gguf_architecture(file: GgufFile) -> str:
  """The key of `ARCHITECTURES` of a GGUF file.

  Raises:
    ModelFileError: an architecture that is not supported.
  """
  name = _name(file)
  key = 'attention.sliding_window'
  if name == 'olmo2' and _checked(file, {key: 0}).number(key):
    return 'olmo3'
  return name


def config_from_gguf(file: GgufFile) -> DecoderConfig:
  """Reads the config of a GGUF file.

  Raises:
    ModelFileError: another architecture; a key that is missing, has no value
      that a decoder can have, or changes what is computed and is not
      understood.
  """
  try:
    return _config(file, gguf_architecture(file))
  except ModelFileError:
    raise
  except ValueError as error:
    raise ModelFileError(f'{file.path}: {error}') from error


def _name(file: GgufFile) -> str:
  found = file.metadata.get('general.architecture')
  if not isinstance(found, str) or found not in _OF:
    raise ModelFileError(
      f'{file.path}: architecture {found!r} is not supported; '
      f'this version reads {", ".join(_OF)}'
    )
  return _OF[found]


def _checked(
  file: GgufFile, defaults: Mapping[str, Any] | None = None
) -> Checked:
  prefix = f'{file.metadata["general.architecture"]}.'
  entries = {
    key.removeprefix(prefix): value
    for key, value in file.metadata.items()
    if key.startswith(prefix)
  }
  return Checked(entries, str(file.path), prefix, defaults)


def _config(file: GgufFile, name: str) -> DecoderConfig:
  architecture = ARCHITECTURES[name]
  c = _checked(file)
  num_heads = c.count('attention.head_count')
  d_model = c.count('embedding_length')
  head_dim = max(d_model // num_heads, 1)
  c = c.with_defaults(
    {
      'attention.head_count_kv': num_heads,
      'attention.key_length': head_dim,
      'rope.freq_base': 10000.0,
      'attention.sliding_window': _GEMMA2_WINDOW if name == 'gemma2' else 0,
      **{key: architecture.defaults.get(key) for key in CAPS},
    }
  )
  caps = [key for key in CAPS if key in architecture.defaults]
  windows = _WINDOW_KEYS if architecture.slides in (2, 4, 6) else ()
  c.check_keys((*_READ, *windows, *caps), _IGNORED)
  if 'attention.causal' in c and not c.flag('attention.causal'):
    c.refuse('attention.causal', 'true', 'encoders are not supported')
  embedding = file.tensors.get('token_embd.weight')
  if embedding is None or len(embedding.shape) != 2:
    raise ModelFileError(f'{file.path}: no matrix token_embd.weight')
  head_dim = c.count('attention.key_length', MAX_HEAD_DIM)
  for key in ('attention.value_length', 'rope.dimension_count'):
    if key in c and c.count(key) != head_dim:
      c.refuse(key, f'{head_dim}, the length of a key,')
  num_layers = c.count('block_count', MAX_LAYERS)
  slides = _sliding_layers(c, architecture, num_layers)
  window = c.count('attention.sliding_window') if any(slides) else None
  full, local = _ropes(file, c, architecture, head_dim)
  values: dict[str, Any] = {
    'vocab_size': embedding.shape[0],
    'num_layers': num_layers,
    'd_model': d_model,
    'd_ff': c.count('feed_forward_length'),
    'num_heads': num_heads,
    'num_kv_heads': c.count('attention.head_count_kv'),
    'head_dim': head_dim,
    'ropes': tuple(local if is_local else full for is_local in slides),
    'windows': tuple(window if is_local else None for is_local in slides)
    if any(slides)
    else (),
    'norm_eps': c.positive('attention.layer_norm_rms_epsilon'),
    'context_length': c.count('context_length'),
    'tie_head': 'output.weight' not in file.tensors,
    'activation': ACTIVATIONS[
      architecture.defaults[architecture.activation_key]
    ],
    'qkv_bias': 'blk.0.attn_q.bias' in file.tensors,
    'out_bias': 'blk.0.attn_output.bias' in file.tensors,
    'mlp_bias': 'blk.0.ffn_gate.bias' in file.tensors,
  }
  values |= architecture.fixed
  if architecture.embed_scaled:
    values['embed_scale'] = d_model**0.5
  if _SCALED_BY_WIDTH.get(name) == num_layers:
    values['query_scale'] = (d_model // num_heads) ** -0.5
  for key in caps:
    if c.get(key) is not None and c.number(key):
      values[CAPS[key]] = c.positive(key)
  return DecoderConfig(**values)


def _sliding_layers(
  c: Checked, architecture: Architecture, num_layers: int
) -> tuple[bool, ...]:
  """Of each layer, whether it sees a window only."""
  if not c.number('attention.sliding_window'):
    return (False,) * num_layers
  pattern = c.get('attention.sliding_window_pattern')
  if pattern is None:
    period = architecture.slides
  elif np.ndim(pattern):
    if len(pattern) != num_layers:
      c.refuse('attention.sliding_window_pattern', f'one of {num_layers}')
    return tuple(map(bool, pattern))
  else:
    period = c.count('attention.sliding_window_pattern')
  return tuple((layer + 1) % period != 0 for layer in range(num_layers))


def _ropes(
  file: GgufFile, c: Checked, architecture: Architecture, head_dim: int
) -> tuple[Rope, Rope]:
  """Rotary positions of full and of sliding layers."""
  base = c.positive('rope.freq_base')
  if base <= 1:
    c.refuse('rope.freq_base', 'a number above 1')
  full = _scaled(c, base, head_dim)
  if ROPE_FREQS in file.tensors:
    divisors = file.read(ROPE_FREQS)
    if full != Rope(base) or divisors.shape != (head_dim // 2,):
      c.fail(
        f'{ROPE_FREQS} {divisors.shape} is no scaling of {head_dim // 2} '
        'frequencies, or not the only one'
      )
    full = Rope(base, tuple(map(float, divisors)))
  if architecture.local_rope is None:
    return full, full
  key, local = architecture.local_rope
  if 'rope.freq_base_swa' in c:
    local = c.positive('rope.freq_base_swa')
  elif key == 'rope_theta':
    local = base
  return full, Rope(local)


def _scaled(c: Checked, base: float, head_dim: int) -> Rope:
  old = c.with_defaults({'rope.scale_linear': 1.0}).number('rope.scale_linear')
  c = c.with_defaults(
    {
      'rope.scaling.type': 'linear',
      'rope.scaling.factor': old,
      'rope.scaling.original_context_length': c.get('context_length'),
      'rope.scaling.yarn_beta_fast': rotary.BETA_FAST,
      'rope.scaling.yarn_beta_slow': rotary.BETA_SLOW,
    }
  )
  kind = c.choice(
    'rope.scaling.type', {kind: kind for kind in ('none', 'linear', 'yarn')}
  )
  factor = c.number('rope.scaling.factor')
  if kind == 'none' or factor == 0:
    return Rope(base)
  if factor < 1:
    c.refuse('rope.scaling.factor', 'a number from 1 on')
  if kind == 'linear':
    return rotary.linear(base, head_dim, factor)
  rope = rotary.yarn(
    base,
    head_dim,
    factor,
    c.count('rope.scaling.original_context_length'),
    c.positive('rope.scaling.yarn_beta_fast'),
    c.positive('rope.scaling.yarn_beta_slow'),
  )
  # A factor of the amplitude or, as the converter of OLMo 3 writes it, the
  # amplitude itself. What neither reading gives YaRN's own is not guessed at.
  for key in ('attn_factor', 'yarn_attn_factor', 'yarn_ext_factor'):
    key = f'rope.scaling.{key}'
    if key in c and not any(
      math.isclose(c.number(key), x, rel_tol=1e-5) for x in (1, rope.amplitude)
    ):
      c.refuse(key, f'1 or {rope.amplitude:g}', 'others are not supported')
  return rope
