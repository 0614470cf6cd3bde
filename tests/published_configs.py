# SPDX-License-Identifier: Apache-2.0
"""What the config.json of published models say, and what that means.

Keys as their files have them, those left out that say nothing of the model;
configs are written out by hand and share no line with the package's reading.
"""

import math

from thicket.models.decoder_config import DecoderConfig, Rope


def llama3_divisors(factor, base=500000.0, head_dim=128):
  """Llama 3.1's, one frequency at a time, as its reference code has it."""
  divisors = []
  for i in range(head_dim // 2):
    frequency = base ** (-2 * i / head_dim)
    wavelength = 2 * math.pi / frequency
    if wavelength < 8192 / 4:
      divisors.append(1.0)
    elif wavelength > 8192 / 1:
      divisors.append(factor)
    else:
      smooth = (8192 / wavelength - 1) / (4 - 1)
      scaled = (1 - smooth) * frequency / factor + smooth * frequency
      divisors.append(frequency / scaled)
  return tuple(divisors)


def yarn_divisors(factor, original, base, head_dim):
  """YaRN's for 32 and 1 turns, one frequency at a time."""

  def index(turns):
    # Of the frequency that turns as often in the original context.
    return head_dim * math.log(original / turns / 2 / math.pi, base) / 2

  low, high = math.floor(index(32)), math.ceil(index(1))
  divisors = []
  for i in range(head_dim // 2):
    share = min(max((i - low) / (high - low), 0.0), 1.0)
    divisors.append(1 / (share / factor + (1 - share)))
  return tuple(divisors)


def _sizes(V, L, D, F, N, K, H, context):
  return {
    'vocab_size': V,
    'num_layers': L,
    'd_model': D,
    'd_ff': F,
    'num_heads': N,
    'num_kv_heads': K,
    'head_dim': H,
    'context_length': context,
  }


_GEMMA = {
  'tie_head': True,
  'activation': 'gelu_tanh',
  'norm_after': True,
  'norm_offset': 1.0,
  'norm_eps': 1e-6,
}
_OLMO = {
  'tie_head': False,
  'norm_eps': 1e-6,
  'norm_before': False,
  'norm_after': True,
  'head_norm': 'whole',
}


def _periodic(count, period, local, full):
  return tuple(
    full if i % period == period - 1 else local for i in range(count)
  )


# Name -> (config.json, what it means).
PUBLISHED = {
  'Llama-2-7b': (
    {
      'architectures': ['LlamaForCausalLM'],
      'bos_token_id': 1,
      'eos_token_id': 2,
      'hidden_act': 'silu',
      'hidden_size': 4096,
      'initializer_range': 0.02,
      'intermediate_size': 11008,
      'max_position_embeddings': 4096,
      'model_type': 'llama',
      'num_attention_heads': 32,
      'num_hidden_layers': 32,
      'num_key_value_heads': 32,
      'pretraining_tp': 1,
      'rms_norm_eps': 1e-05,
      'rope_scaling': None,
      'tie_word_embeddings': False,
      'torch_dtype': 'float16',
      'transformers_version': '4.31.0.dev0',
      'use_cache': True,
      'vocab_size': 32000,
    },
    DecoderConfig(
      **_sizes(32000, 32, 4096, 11008, 32, 32, 128, 4096),
      ropes=(Rope(10000.0),) * 32,
      norm_eps=1e-5,
      tie_head=False,
    ),
  ),
  'Llama-3.1-8B': (
    {
      'attention_bias': False,
      'attention_dropout': 0.0,
      'bos_token_id': 128000,
      'eos_token_id': 128001,
      'hidden_act': 'silu',
      'hidden_size': 4096,
      'intermediate_size': 14336,
      'max_position_embeddings': 131072,
      'mlp_bias': False,
      'model_type': 'llama',
      'num_attention_heads': 32,
      'num_hidden_layers': 32,
      'num_key_value_heads': 8,
      'rms_norm_eps': 1e-05,
      'rope_scaling': {
        'factor': 8.0,
        'low_freq_factor': 1.0,
        'high_freq_factor': 4.0,
        'original_max_position_embeddings': 8192,
        'rope_type': 'llama3',
      },
      'rope_theta': 500000.0,
      'tie_word_embeddings': False,
      'vocab_size': 128256,
    },
    DecoderConfig(
      **_sizes(128256, 32, 4096, 14336, 32, 8, 128, 131072),
      ropes=(Rope(500000.0, llama3_divisors(8.0)),) * 32,
      norm_eps=1e-5,
      tie_head=False,
    ),
  ),
  'Llama-3.2-1B': (
    {
      'attention_bias': False,
      'head_dim': 64,
      'hidden_act': 'silu',
      'hidden_size': 2048,
      'intermediate_size': 8192,
      'max_position_embeddings': 131072,
      'mlp_bias': False,
      'model_type': 'llama',
      'num_attention_heads': 32,
      'num_hidden_layers': 16,
      'num_key_value_heads': 8,
      'rms_norm_eps': 1e-05,
      'rope_scaling': {
        'factor': 32.0,
        'high_freq_factor': 4.0,
        'low_freq_factor': 1.0,
        'original_max_position_embeddings': 8192,
        'rope_type': 'llama3',
      },
      'rope_theta': 500000.0,
      'tie_word_embeddings': True,
      'vocab_size': 128256,
    },
    DecoderConfig(
      **_sizes(128256, 16, 2048, 8192, 32, 8, 64, 131072),
      ropes=(Rope(500000.0, llama3_divisors(32.0, head_dim=64)),) * 16,
      norm_eps=1e-5,
      tie_head=True,
    ),
  ),
  'SmolLM2-135M': (
    {
      'hidden_act': 'silu',
      'hidden_size': 576,
      'intermediate_size': 1536,
      'is_llama_config': True,
      'max_position_embeddings': 8192,
      'model_type': 'llama',
      'num_attention_heads': 9,
      'num_hidden_layers': 30,
      'num_key_value_heads': 3,
      'rms_norm_eps': 1e-05,
      'rope_interleaved': False,
      'rope_scaling': None,
      'rope_theta': 100000,
      'tie_word_embeddings': True,
      'transformers.js_config': {'kv_cache_dtype': {'q4f16': 'float16'}},
      'vocab_size': 49152,
    },
    DecoderConfig(
      **_sizes(49152, 30, 576, 1536, 9, 3, 64, 8192),
      ropes=(Rope(100000.0),) * 30,
      norm_eps=1e-5,
      tie_head=True,
    ),
  ),
  'Mistral-7B-v0.1': (
    {
      'hidden_act': 'silu',
      'hidden_size': 4096,
      'intermediate_size': 14336,
      'max_position_embeddings': 32768,
      'model_type': 'mistral',
      'num_attention_heads': 32,
      'num_hidden_layers': 32,
      'num_key_value_heads': 8,
      'rms_norm_eps': 1e-05,
      'rope_theta': 10000.0,
      'sliding_window': 4096,
      'tie_word_embeddings': False,
      'vocab_size': 32000,
    },
    DecoderConfig(
      **_sizes(32000, 32, 4096, 14336, 32, 8, 128, 32768),
      ropes=(Rope(10000.0),) * 32,
      windows=(4096,) * 32,
      norm_eps=1e-5,
      tie_head=False,
    ),
  ),
  'Mistral-7B-v0.3': (
    {
      'hidden_act': 'silu',
      'hidden_size': 4096,
      'intermediate_size': 14336,
      'max_position_embeddings': 32768,
      'model_type': 'mistral',
      'num_attention_heads': 32,
      'num_hidden_layers': 32,
      'num_key_value_heads': 8,
      'rms_norm_eps': 1e-05,
      'rope_theta': 1000000.0,
      'sliding_window': None,
      'tie_word_embeddings': False,
      'vocab_size': 32768,
    },
    DecoderConfig(
      **_sizes(32768, 32, 4096, 14336, 32, 8, 128, 32768),
      ropes=(Rope(1e6),) * 32,
      norm_eps=1e-5,
      tie_head=False,
    ),
  ),
  'Qwen2.5-3B': (
    {
      'attention_dropout': 0.0,
      'hidden_act': 'silu',
      'hidden_size': 2048,
      'intermediate_size': 11008,
      'max_position_embeddings': 32768,
      'max_window_layers': 36,
      'model_type': 'qwen2',
      'num_attention_heads': 16,
      'num_hidden_layers': 36,
      'num_key_value_heads': 2,
      'rms_norm_eps': 1e-06,
      'rope_theta': 1000000.0,
      'sliding_window': 32768,
      'tie_word_embeddings': True,
      'use_mrope': False,
      'use_sliding_window': False,
      'vocab_size': 151936,
    },
    DecoderConfig(
      **_sizes(151936, 36, 2048, 11008, 16, 2, 128, 32768),
      ropes=(Rope(1e6),) * 36,
      norm_eps=1e-6,
      tie_head=True,
      qkv_bias=True,
    ),
  ),
  'Qwen3-0.6B': (
    {
      'attention_bias': False,
      'head_dim': 128,
      'hidden_act': 'silu',
      'hidden_size': 1024,
      'intermediate_size': 3072,
      'max_position_embeddings': 40960,
      'max_window_layers': 28,
      'model_type': 'qwen3',
      'num_attention_heads': 16,
      'num_hidden_layers': 28,
      'num_key_value_heads': 8,
      'rms_norm_eps': 1e-06,
      'rope_scaling': None,
      'rope_theta': 1000000,
      'sliding_window': None,
      'tie_word_embeddings': True,
      'use_sliding_window': False,
      'vocab_size': 151936,
    },
    DecoderConfig(
      **_sizes(151936, 28, 1024, 3072, 16, 8, 128, 40960),
      ropes=(Rope(1e6),) * 28,
      norm_eps=1e-6,
      tie_head=True,
      head_norm='head',
    ),
  ),
  'Qwen3-4B': (
    {
      'attention_bias': False,
      'head_dim': 128,
      'hidden_act': 'silu',
      'hidden_size': 2560,
      'intermediate_size': 9728,
      'max_position_embeddings': 40960,
      'max_window_layers': 36,
      'model_type': 'qwen3',
      'num_attention_heads': 32,
      'num_hidden_layers': 36,
      'num_key_value_heads': 8,
      'rms_norm_eps': 1e-06,
      'rope_scaling': None,
      'rope_theta': 1000000,
      'sliding_window': None,
      'tie_word_embeddings': True,
      'use_sliding_window': False,
      'vocab_size': 151936,
    },
    DecoderConfig(
      **_sizes(151936, 36, 2560, 9728, 32, 8, 128, 40960),
      ropes=(Rope(1e6),) * 36,
      norm_eps=1e-6,
      tie_head=True,
      head_norm='head',
    ),
  ),
  'gemma-2-2b': (
    {
      'attention_bias': False,
      'attn_logit_softcapping': 50.0,
      'bos_token_id': 2,
      'cache_implementation': 'hybrid',
      'eos_token_id': 1,
      'final_logit_softcapping': 30.0,
      'head_dim': 256,
      'hidden_act': 'gelu_pytorch_tanh',
      'hidden_activation': 'gelu_pytorch_tanh',
      'hidden_size': 2304,
      'intermediate_size': 9216,
      'max_position_embeddings': 8192,
      'model_type': 'gemma2',
      'num_attention_heads': 8,
      'num_hidden_layers': 26,
      'num_key_value_heads': 4,
      'query_pre_attn_scalar': 256,
      'rms_norm_eps': 1e-06,
      'rope_theta': 10000.0,
      'sliding_window': 4096,
      'vocab_size': 256000,
    },
    DecoderConfig(
      **_sizes(256000, 26, 2304, 9216, 8, 4, 256, 8192),
      **_GEMMA,
      ropes=(Rope(10000.0),) * 26,
      windows=_periodic(26, 2, 4096, None),
      embed_scale=48.0,
      attention_cap=50.0,
      logit_cap=30.0,
    ),
  ),
  'gemma-3-1b': (
    {
      'attention_bias': False,
      'attn_logit_softcapping': None,
      'cache_implementation': 'hybrid',
      'eos_token_id': [1, 106],
      'final_logit_softcapping': None,
      'head_dim': 256,
      'hidden_activation': 'gelu_pytorch_tanh',
      'hidden_size': 1152,
      'intermediate_size': 6912,
      'max_position_embeddings': 32768,
      'model_type': 'gemma3_text',
      'num_attention_heads': 4,
      'num_hidden_layers': 26,
      'num_key_value_heads': 1,
      'query_pre_attn_scalar': 256,
      'rms_norm_eps': 1e-06,
      'rope_local_base_freq': 10000,
      'rope_scaling': None,
      'rope_theta': 1000000,
      'sliding_window': 512,
      'sliding_window_pattern': 6,
      'vocab_size': 262144,
    },
    DecoderConfig(
      **_sizes(262144, 26, 1152, 6912, 4, 1, 256, 32768),
      **_GEMMA,
      ropes=_periodic(26, 6, Rope(1e4), Rope(1e6)),
      windows=_periodic(26, 6, 512, None),
      embed_scale=math.sqrt(1152),
      head_norm='head',
    ),
  ),
  'gemma-3-4b': (
    {
      'architectures': ['Gemma3ForConditionalGeneration'],
      'boi_token_index': 255999,
      'eoi_token_index': 256000,
      'eos_token_id': [1, 106],
      'image_token_index': 262144,
      'initializer_range': 0.02,
      'mm_tokens_per_image': 256,
      'model_type': 'gemma3',
      'text_config': {
        'hidden_size': 2560,
        'intermediate_size': 10240,
        'model_type': 'gemma3_text',
        'num_hidden_layers': 34,
        'rope_scaling': {'factor': 8.0, 'rope_type': 'linear'},
        'sliding_window': 1024,
      },
      'torch_dtype': 'bfloat16',
      'vision_config': {
        'hidden_size': 1152,
        'model_type': 'siglip_vision_model',
        'vision_use_head': False,
      },
    },
    DecoderConfig(
      **_sizes(262208, 34, 2560, 10240, 8, 4, 256, 131072),
      **_GEMMA,
      ropes=_periodic(34, 6, Rope(1e4), Rope(1e6, (8.0,) * 128)),
      windows=_periodic(34, 6, 1024, None),
      embed_scale=math.sqrt(2560),
      head_norm='head',
    ),
  ),
  'OLMo-2-0425-1B': (
    {
      'attention_bias': False,
      'attention_dropout': 0.0,
      'eos_token_id': 100257,
      'hidden_act': 'silu',
      'hidden_size': 2048,
      'intermediate_size': 8192,
      'max_position_embeddings': 4096,
      'model_type': 'olmo2',
      'num_attention_heads': 16,
      'num_hidden_layers': 16,
      'num_key_value_heads': 16,
      'pad_token_id': 100277,
      'rms_norm_eps': 1e-06,
      'rope_scaling': None,
      'rope_theta': 500000,
      'tie_word_embeddings': False,
      'vocab_size': 100352,
    },
    DecoderConfig(
      **_sizes(100352, 16, 2048, 8192, 16, 16, 128, 4096),
      **_OLMO,
      ropes=(Rope(500000.0),) * 16,
    ),
  ),
  'Olmo-3-7B': (
    {
      'attention_bias': False,
      'hidden_act': 'silu',
      'hidden_size': 4096,
      'intermediate_size': 11008,
      'layer_types': [
        *(['sliding_attention'] * 3 + ['full_attention']) * 8,
      ],
      'max_position_embeddings': 65536,
      'model_type': 'olmo3',
      'num_attention_heads': 32,
      'num_hidden_layers': 32,
      'num_key_value_heads': 32,
      'rms_norm_eps': 1e-06,
      'rope_scaling': {
        'attention_factor': 1.2079441541679836,
        'beta_fast': 32.0,
        'beta_slow': 1.0,
        'factor': 8.0,
        'original_max_position_embeddings': 8192,
        'rope_type': 'yarn',
      },
      'rope_theta': 500000,
      'sliding_window': 4096,
      'tie_word_embeddings': False,
      'vocab_size': 100278,
    },
    DecoderConfig(
      **_sizes(100278, 32, 4096, 11008, 32, 32, 128, 65536),
      **_OLMO,
      ropes=_periodic(
        32,
        4,
        Rope(500000.0),
        Rope(
          500000.0,
          yarn_divisors(8.0, 8192, 500000.0, 128),
          1.2079441541679836,
        ),
      ),
      windows=_periodic(32, 4, 4096, None),
    ),
  ),
}
