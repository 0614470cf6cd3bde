# SPDX-License-Identifier: Apache-2.0
"""A GGUF file of a few thousand weights, written as converters write one.

The tokenizer knows all bytes, a few merges and, as one token each, numbers
with a line end behind them: a model with random weights can then give short
answers to arithmetic that stop in the middle of a token.
"""

import dataclasses

import gguf
import numpy as np
import tiny
from gguf import GGMLQuantizationType as Kind
from tokenizers import pre_tokenizers

LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())  # 256 tokens of a byte
MERGES = ('1 2', '12 3', 'a b')
NUMBERS = tuple(f'{number}Ċ' for number in range(1, 60))  # Ċ is a line end
SPECIAL = ('<s>', '<end>')
TOKENS = (
  *LETTERS,
  *(merge.replace(' ', '') for merge in MERGES),
  *NUMBERS,
  *SPECIAL,
)
BOS, EOS = len(TOKENS) - 2, len(TOKENS) - 1
CHAT = (
  "{% for message in messages %}<s>{{ message['content'] }}"
  '{% if add_generation_prompt %}>{% else %}<end>{% endif %}{% endfor %}'
)

# Files hold numbers as float32, which has this epsilon exactly.
CONFIG = dataclasses.replace(
  tiny.CONFIG,
  vocab_size=len(TOKENS),
  num_layers=1,
  ropes=tiny.CONFIG.ropes[:1],
  norm_eps=2.0**-17,
  tie_head=False,
)

_NAMES = {
  'model.embed_tokens': 'token_embd',
  'model.norm': 'output_norm',
  'lm_head': 'output',
  'input_layernorm': 'attn_norm',
  'self_attn.q_proj': 'attn_q',
  'self_attn.k_proj': 'attn_k',
  'self_attn.v_proj': 'attn_v',
  'self_attn.o_proj': 'attn_output',
  'post_attention_layernorm': 'ffn_norm',
  'mlp.gate_proj': 'ffn_gate',
  'mlp.up_proj': 'ffn_up',
  'mlp.down_proj': 'ffn_down',
  'self_attn.q_norm': 'attn_q_norm',
  'self_attn.k_norm': 'attn_k_norm',
}
# Of architectures that norm what attention and MLP give.
_NORMED_NAMES = _NAMES | {
  'post_attention_layernorm': 'post_attention_norm',
  'pre_feedforward_layernorm': 'ffn_norm',
  'post_feedforward_layernorm': 'post_ffw_norm',
}


def token(text):
  """The id of the token that spells `text`."""
  return TOKENS.index(text.replace('\n', 'Ċ').replace(' ', 'Ġ'))


def named(config=CONFIG, seed=0):
  """Random weights by canonical name, float32, shapes (out, in)."""
  arrays = tiny.tensors(tiny.params(config, seed), config)
  return {name: array.astype(np.float32) for name, array in arrays.items()}


def answering(seed):
  """Weights of a model that says numbers, line ends and a few letters."""
  weights = named(CONFIG, seed)
  said = [*map(token, NUMBERS), *map(token, '123456789xy \n')]
  head = np.zeros_like(weights['lm_head.weight'])
  head[said] = weights['lm_head.weight'][said]
  return weights | {'lm_head.weight': head}


def stored(weights, config=CONFIG, architecture='llama'):
  """Names and arrays as the file has them.

  Of llama, rows of q and k are reordered from halves to neighbours, head by
  head; norms of Gemma have 1 added.
  """
  names = _NORMED_NAMES if config.norm_after else _NAMES
  result = {}
  for name, array in weights.items():
    stem, kind = name.rsplit('.', 1)
    prefix = ''
    if stem.startswith('model.layers.'):
      layer, stem = stem.removeprefix('model.layers.').split('.', 1)
      prefix = f'blk.{layer}.'
    heads = {
      'self_attn.q_proj': config.num_heads,
      'self_attn.k_proj': config.num_kv_heads,
    }
    if architecture == 'llama' and stem in heads:
      halves = array.reshape(heads[stem], 2, config.head_dim // 2, -1)
      array = halves.swapaxes(1, 2).reshape(array.shape)
    if architecture.startswith('gemma') and stem.endswith('norm'):
      array = array + np.float32(1)
    result[f'{prefix}{names[stem]}.{kind}'] = array
  return result


def metadata(config=CONFIG, architecture='llama'):
  """The file's metadata, by key."""
  plain = len(TOKENS) - len(SPECIAL)
  model = {
    'block_count': config.num_layers,
    'context_length': config.context_length,
    'embedding_length': config.d_model,
    'feed_forward_length': config.d_ff,
    'attention.head_count': config.num_heads,
    'attention.head_count_kv': config.num_kv_heads,
    'attention.key_length': config.head_dim,
    'attention.value_length': config.head_dim,
    'attention.layer_norm_rms_epsilon': config.norm_eps,
    'rope.freq_base': config.ropes[0].base,
    'rope.dimension_count': config.head_dim,
  }
  return {f'{architecture}.{key}': value for key, value in model.items()} | {
    'tokenizer.ggml.model': 'gpt2',
    'tokenizer.ggml.pre': 'gpt-2',
    'tokenizer.ggml.tokens': list(TOKENS),
    'tokenizer.ggml.token_type': [1] * plain + [3] * len(SPECIAL),
    'tokenizer.ggml.merges': list(MERGES),
    'tokenizer.ggml.bos_token_id': BOS,
    'tokenizer.ggml.eos_token_id': EOS,
    'tokenizer.chat_template': CHAT,
  }


def write(path, tensors, entries, architecture='llama', kind=None):
  """Writes a file; `kind` is the type of the matrices, None for float32."""
  writer = gguf.GGUFWriter(path, architecture)
  methods = {
    bool: writer.add_bool,
    int: writer.add_uint32,
    float: writer.add_float32,
    str: writer.add_string,
    list: writer.add_array,
  }
  for key, value in entries.items():
    methods[type(value)](key, value)
  for name, array in tensors.items():
    if kind is not None and array.ndim == 2:
      raw = None if kind == Kind.F16 else kind
      writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=raw)
    else:
      writer.add_tensor(name, array)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


def write_answering(path, seed=1):
  """The file of a model that answers arithmetic now and then."""
  return write(path, stored(answering(seed)), metadata())
