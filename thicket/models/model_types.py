# SPDX-License-Identifier: Apache-2.0
"""The architectures that are read, each as one record of values.

A record says which keys its config.json has, what they are where the file
leaves them out (as transformers has it), and what all its models share. Names
are Hugging Face's `model_type`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

# More would take memory before any tensor is looked at.
MAX_LAYERS = 4096
MAX_HEAD_DIM = 4096

FULL, SLIDING = 'full_attention', 'sliding_attention'

# Spellings of a gate's activation, all of the same function.
ACTIVATIONS = {
  'silu': 'silu',
  'swish': 'silu',
  'gelu_pytorch_tanh': 'gelu_tanh',
  'gelu_python_tanh': 'gelu_tanh',
  'gelu_new': 'gelu_tanh',
  'gelu_fast': 'gelu_tanh',
}
SPELT = {'silu': 'silu', 'gelu_tanh': 'gelu_pytorch_tanh'}

# Sizes by their key; a file without one of those is refused, except where the
# architecture has a default.
SIZES = {
  'vocab_size': 'vocab_size',
  'num_hidden_layers': 'num_layers',
  'hidden_size': 'd_model',
  'intermediate_size': 'd_ff',
  'num_attention_heads': 'num_heads',
  'num_key_value_heads': 'num_kv_heads',
  'head_dim': 'head_dim',
  'max_position_embeddings': 'context_length',
}

CAPS = {
  'attn_logit_softcapping': 'attention_cap',
  'final_logit_softcapping': 'logit_cap',
}


@dataclasses.dataclass(frozen=True)
class Architecture:
  """What sets the models of one `model_type` apart.

  Attributes:
    class_name: transformers' class of its models with a head.
    defaults: of the keys that are read besides `SIZES` and those of rotary
      positions, and of sizes that a file may leave out. What is no key here
      is not read.
    fixed: fields of the config that no key says.
    rope_base: `rope_theta` where the file has none.
    local_rope: the key and the default of the base in sliding layers, where
      their positions are apart from those of full layers and never scaled by
      `rope_scaling`.
    slides: which layers see a window only, where the file does not list them:
      'all', 'last' (from `max_window_layers` on), a number n (all but every
      n-th) or None.
    embed_scaled: embedded tokens are multiplied by sqrt(D).
    ignored: keys that only its files have, and that say nothing.
  """

  class_name: str
  defaults: Mapping[str, Any]
  fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  rope_base: float = 10000.0
  local_rope: tuple[str, float] | None = None
  slides: str | int | None = None
  embed_scaled: bool = False
  ignored: tuple[str, ...] = ()

  @property
  def activation_key(self) -> str:
    """What its files call the activation; Gemma's may have both keys."""
    keys = ('hidden_activation', 'hidden_act')
    return next(key for key in keys if key in self.defaults)


_SHARED = {
  'hidden_act': 'silu',
  'rms_norm_eps': 1e-6,
  'max_position_embeddings': 32768,
  'num_key_value_heads': None,  # as many as heads
  'head_dim': None,  # D / N
  'tie_word_embeddings': False,
}
_QWEN = {
  **_SHARED,
  'num_key_value_heads': 32,
  'use_sliding_window': False,
  'sliding_window': 4096,
  'max_window_layers': 28,
  'layer_types': None,
}
# For texts of more than 256 K tokens, by other software than transformers.
_LONG_QWEN = ('dual_chunk_attention_config',)
_GEMMA = {
  'hidden_activation': 'gelu_pytorch_tanh',
  'rms_norm_eps': 1e-6,
  'max_position_embeddings': 8192,
  'num_key_value_heads': 4,
  'head_dim': 256,
  'tie_word_embeddings': True,
  'attention_bias': False,
  'query_pre_attn_scalar': 256,
  'sliding_window': 4096,
  'layer_types': None,
}
_GEMMA_FIXED = {'norm_after': True, 'norm_offset': 1.0}
_OLMO = {
  **_SHARED,
  'rms_norm_eps': 1e-5,
  'max_position_embeddings': 2048,
  'attention_bias': False,
}
_OLMO_FIXED = {'norm_before': False, 'norm_after': True, 'head_norm': 'whole'}

ARCHITECTURES = {
  'llama': Architecture(
    'LlamaForCausalLM',
    {
      **_SHARED,
      'max_position_embeddings': 2048,
      'attention_bias': False,
      'mlp_bias': False,
    },
    ignored=('sliding_window',),
  ),
  'mistral': Architecture(
    'MistralForCausalLM',
    {
      **_SHARED,
      'max_position_embeddings': 4096 * 32,
      'num_key_value_heads': 8,
      'sliding_window': 4096,
    },
    slides='all',
  ),
  'qwen2': Architecture(
    'Qwen2ForCausalLM',
    _QWEN,
    {'qkv_bias': True},
    slides='last',
    ignored=_LONG_QWEN,
  ),
  'qwen3': Architecture(
    'Qwen3ForCausalLM',
    {**_QWEN, 'head_dim': 128, 'attention_bias': False},
    {'head_norm': 'head'},
    slides='last',
    ignored=_LONG_QWEN,
  ),
  'gemma2': Architecture(
    'Gemma2ForCausalLM',
    {
      **_GEMMA,
      'attn_logit_softcapping': 50.0,
      'final_logit_softcapping': 30.0,
    },
    _GEMMA_FIXED,
    slides=2,
    embed_scaled=True,
    ignored=('hidden_act', 'sliding_window_size'),
  ),
  'gemma3_text': Architecture(
    'Gemma3ForCausalLM',
    {
      **_GEMMA,
      # Published files of the larger models leave sizes out.
      'vocab_size': 262208,
      'num_hidden_layers': 26,
      'hidden_size': 2304,
      'intermediate_size': 9216,
      'num_attention_heads': 8,
      'max_position_embeddings': 131072,
      'attn_logit_softcapping': None,
      'final_logit_softcapping': None,
      'sliding_window_pattern': 6,
    },
    {**_GEMMA_FIXED, 'head_norm': 'head'},
    rope_base=1e6,
    local_rope=('rope_local_base_freq', 1e4),
    slides=6,
    embed_scaled=True,
    ignored=('hidden_act',),
  ),
  'olmo2': Architecture(
    'Olmo2ForCausalLM', _OLMO, _OLMO_FIXED, ignored=('sliding_window',)
  ),
  'olmo3': Architecture(
    'Olmo3ForCausalLM',
    {**_OLMO, 'sliding_window': 4096, 'layer_types': None},
    _OLMO_FIXED,
    rope_base=5e5,
    local_rope=('rope_theta', 5e5),
    slides=4,
  ),
}

# Keys that change nothing of what a model computes of tokens. Those of
# generation are read elsewhere, if at all; dropout is for training.
IGNORED = frozenset(
  """
  architectures model_type auto_map transformers_version transformers.js_config
  torch_dtype dtype name_or_path use_cache cache_implementation
  initializer_range initializer_factor attention_dropout attn_dropout
  hidden_dropout resid_pdrop embd_pdrop dropout pretraining_tp
  bos_token_id eos_token_id pad_token_id sep_token_id unk_token_id
  decoder_start_token_id begin_suppress_tokens suppress_tokens
  forced_bos_token_id forced_eos_token_id tokenizer_class prefix
  finetuning_task task_specific_params problem_type id2label label2id
  num_labels return_dict output_attentions output_hidden_states
  output_router_logits attn_implementation is_decoder
  is_llama_config default_theta torchscript use_bfloat16
  unsloth_version unsloth_fixed model_name
  max_sequence_length model_max_length
  max_length max_new_tokens min_length do_sample early_stopping num_beams
  num_beam_groups diversity_penalty temperature top_k top_p typical_p
  repetition_penalty length_penalty no_repeat_ngram_size
  encoder_no_repeat_ngram_size bad_words_ids num_return_sequences
  output_scores return_dict_in_generate remove_invalid_values
  exponential_decay_length_penalty
  """.split()  # noqa: SIM905 (a list would be a word a line)
)
# What a key has to be where it is there at all.
FIXED = {
  'is_causal': True,
  'causal': True,
  'partial_rotary_factor': 1,
}
# Of the picture half of a Gemma 3, beside its `text_config`.
WRAPPER_IGNORED = (
  'text_config',
  'vision_config',
  'mm_tokens_per_image',
  'boi_token_index',
  'eoi_token_index',
  'image_token_index',
  'boi_token_id',
  'eoi_token_id',
  'image_token_id',
  'tie_word_embeddings',
)
