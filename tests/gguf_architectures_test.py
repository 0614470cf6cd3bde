# SPDX-License-Identifier: Apache-2.0
"""GGUF files of all architectures: the same weights, the same logits.

What converters do to names and tensors is in `tiny_gguf`, apart from the
package's reading of it.
"""

import dataclasses
import math
import pathlib

import jax
import numpy as np
import pytest
import tiny
import tiny_gguf
from published_configs import PUBLISHED

from thicket.models import decoder, rotary
from thicket.models.decoder_config import Rope
from thicket.models.gguf import GgufFile, ModelFileError, TensorInfo
from thicket.models.gguf_architectures import (
  config_from_gguf,
  gguf_architecture,
)
from thicket.models.load import load

TOKENS = np.array([[3, 200, 17, 17, 260, 5, 301]], np.int32)
PLAIN = Rope(100.0)


def of(num_layers, **changes):
  changes = {'ropes': (PLAIN,) * num_layers, **changes}
  return dataclasses.replace(tiny_gguf.CONFIG, num_layers=num_layers, **changes)


GEMMA = {
  'tie_head': True,
  'activation': 'gelu_tanh',
  'norm_after': True,
  'norm_offset': 1.0,
  'embed_scale': math.sqrt(20),
}
OLMO = {'norm_before': False, 'norm_after': True, 'head_norm': 'whole'}
YARN = rotary.yarn(100.0, 6, 4.0, 32)

# Architecture in Hugging Face's words -> the one in the file, the config, and
# metadata and tensors besides the usual.
CASES = {
  'llama': (
    'llama',
    of(
      2,
      ropes=(Rope(100.0, (1.0, 1.5, 8.0)),) * 2,
      qkv_bias=True,
      out_bias=True,
      mlp_bias=True,
    ),
    {},
    {'rope_freqs.weight': np.float32([1, 1.5, 8])},
  ),
  'qwen2': (
    'qwen2',
    of(2, ropes=(Rope(100.0, (4.0,) * 3),) * 2, qkv_bias=True, tie_head=True),
    {'rope.scaling.type': 'linear', 'rope.scaling.factor': 4.0},
    {},
  ),
  'qwen3': (
    'qwen3',
    of(2, ropes=(YARN,) * 2, head_norm='head'),
    {
      'rope.scaling.type': 'yarn',
      'rope.scaling.factor': 4.0,
      'rope.scaling.original_context_length': 32,
    },
    {},
  ),
  'gemma2': (
    'gemma2',
    of(
      4,
      **GEMMA,
      windows=(3, None) * 2,
      query_scale=None,
      attention_cap=2.0,
      logit_cap=3.0,
    ),
    {
      'attention.sliding_window': 3,
      'attn_logit_softcapping': 2.0,
      'final_logit_softcapping': 3.0,
    },
    {},
  ),
  'gemma3_text': (
    'gemma3',
    of(
      7,
      **GEMMA,
      ropes=(*[Rope(10000.0)] * 5, Rope(100.0, (8.0,) * 3), Rope(10000.0)),
      windows=(3, 3, 3, 3, 3, None, 3),
      head_norm='head',
    ),
    {
      'attention.sliding_window': 3,
      'rope.freq_base': 100.0,
      'rope.scaling.type': 'linear',
      'rope.scaling.factor': 8.0,
    },
    {},
  ),
  'olmo2': ('olmo2', of(2, **OLMO), {}, {}),
  'olmo3': (
    'olmo2',
    of(
      5, **OLMO, ropes=(*[PLAIN] * 3, YARN, PLAIN), windows=(3, 3, 3, None, 3)
    ),
    {
      'attention.sliding_window': 3,
      'attention.sliding_window_pattern': [True, True, True, False, True],
      'rope.scaling.type': 'yarn',
      'rope.scaling.factor': 4.0,
      'rope.scaling.original_context_length': 32,
      # Its converter writes the amplitude itself.
      'rope.scaling.attn_factor': YARN.amplitude,
    },
    {},
  ),
}


def weights(config):
  """Vectors are of few bits, so that adding 1 to a norm loses none."""
  return jax.tree.map(
    lambda x: np.round(x * 256) / 256 if x.ndim == 1 else x,
    tiny.params(config),
  )


def write(folder, name):
  architecture, config, entries, extra = CASES[name]
  named = {
    key: array.astype(np.float32)
    for key, array in tiny.tensors(weights(config), config).items()
  }
  entries = {f'{architecture}.{key}': value for key, value in entries.items()}
  return str(
    tiny_gguf.write(
      folder / f'{name}.gguf',
      tiny_gguf.stored(named, config, architecture) | extra,
      tiny_gguf.metadata(config, architecture) | entries,
      architecture,
    )
  )


@pytest.mark.parametrize('name', CASES)
def test_weights_and_logits_are_those_put_in(name, tmp_path):
  config, params = CASES[name][1], weights(CASES[name][1])
  model = load(write(tmp_path, name))
  assert model.decoder.config == config
  found = jax.tree.map(np.asarray, model.params)
  jax.tree.map(np.testing.assert_array_equal, found, params)

  def logits(params):
    places = np.arange(TOKENS.size, dtype=np.int32)[None]
    apply = decoder.Decoder(config).apply
    mask = np.ones(TOKENS.shape, bool)
    return np.asarray(apply(params, TOKENS, places, mask)[0])

  np.testing.assert_array_equal(logits(model.params), logits(params))


def opened(architecture, tensors=(), vocab_size=64, **entries):
  """What `open_gguf` gives of a file that holds few tensors."""
  metadata = {
    'general.architecture': architecture,
    f'{architecture}.block_count': 6,
    f'{architecture}.context_length': 1024,
    f'{architecture}.embedding_length': 32,
    f'{architecture}.feed_forward_length': 48,
    f'{architecture}.attention.head_count': 4,
    f'{architecture}.attention.layer_norm_rms_epsilon': 1e-6,
  }
  for key, value in entries.items():
    metadata[f'{architecture}.{key.replace("__", ".")}'] = value
  shapes = {'token_embd.weight': (vocab_size, 32), **dict(tensors)}
  infos = {
    name: TensorInfo(name, shape, 'F32', 0, 4 * math.prod(shape))
    for name, shape in shapes.items()
  }
  return GgufFile(pathlib.Path('model.gguf'), metadata, infos)


def read(architecture, *args, **entries):
  return config_from_gguf(opened(architecture, *args, **entries))


def refused(architecture, **entries):
  with pytest.raises(ModelFileError) as caught:
    read(architecture, **entries)
  message = str(caught.value)
  assert message.startswith('model.gguf: ')
  assert '\n' not in message
  return message.removeprefix('model.gguf: ')


@pytest.mark.parametrize('name', ['gemma-2-2b', 'gemma-3-1b', 'OLMo-2-0425-1B'])
def test_a_converted_file_says_what_its_config_json_says(name):
  values, config = PUBLISHED[name]
  architecture = values['model_type'].removesuffix('_text')
  entries = {
    'block_count': config.num_layers,
    'context_length': config.context_length,
    'embedding_length': config.d_model,
    'feed_forward_length': config.d_ff,
    'attention__head_count': config.num_heads,
    'attention__head_count_kv': config.num_kv_heads,
    'attention__key_length': config.head_dim,
    'attention__value_length': config.head_dim,
    'attention__layer_norm_rms_epsilon': config.norm_eps,
    'rope__freq_base': float(values['rope_theta']),
  }
  if 'sliding_window' in values:
    entries['attention__sliding_window'] = values['sliding_window']
  head = {} if config.tie_head else {'output.weight': (64, 32)}
  found = read(architecture, head, config.vocab_size, **entries)
  assert found == config


def test_architectures_by_hugging_faces_names():
  for name, (architecture, *_) in CASES.items():
    window = {'attention__sliding_window': 4} if name == 'olmo3' else {}
    assert gguf_architecture(opened(architecture, **window)) == name


def test_the_scale_of_scores_of_the_largest_gemmas():
  sizes = {'embedding_length': 32, 'attention__key_length': 16}
  for architecture, num_layers in (('gemma2', 46), ('gemma3', 62)):
    config = read(architecture, block_count=num_layers, **sizes)
    assert config.query_scale == 8**-0.5
    config = read(architecture, block_count=num_layers - 1, **sizes)
    assert config.query_scale is None


def test_what_a_file_of_gemma_leaves_out():
  config = read('gemma2')
  assert config.windows == (4096, None) * 3
  assert (config.attention_cap, config.logit_cap) == (50.0, 30.0)
  config = read('gemma3', attention__sliding_window=8, rope__freq_base=1e6)
  assert config.windows == (8,) * 5 + (None,)
  assert config.ropes == (Rope(1e4),) * 5 + (Rope(1e6),)
  assert (config.attention_cap, config.logit_cap) == (None, None)
  assert config.tie_head
  assert not read('gemma3', {'output.weight': (64, 32)}).tie_head
  # Without a window, all layers see all and turn alike.
  config = read('gemma3', rope__freq_base=1e6)
  assert config.windows == ()
  assert config.ropes == (Rope(1e6),) * 6
  config = read(
    'gemma3', attention__sliding_window=8, rope__freq_base_swa=500.0
  )
  assert config.ropes[0] == Rope(500.0)


def test_scalings_of_rotary_positions():
  linear = (Rope(10000.0, (2.0,) * 4),) * 6
  assert read('llama', rope__scale_linear=2.0).ropes == linear
  assert read('llama', rope__scaling__factor=2.0).ropes == linear
  plain = (Rope(10000.0),) * 6
  scaling = {'rope__scaling__type': 'none', 'rope__scaling__factor': 2.0}
  assert read('llama', **scaling).ropes == plain
  assert read('llama', rope__scaling__factor=0.0).ropes == plain
  yarn = {
    'rope__scaling__type': 'yarn',
    'rope__scaling__factor': 4.0,
    'rope__scaling__original_context_length': 256,
  }
  wanted = rotary.yarn(10000.0, 8, 4.0, 256)
  assert read('qwen2', **yarn).ropes[0] == wanted
  for factor in (1.0, np.float32(wanted.amplitude).item()):
    changed = {**yarn, 'rope__scaling__attn_factor': factor}
    assert read('qwen2', **changed).ropes[0] == wanted
  message = refused('qwen2', **yarn, rope__scaling__attn_factor=1.5)
  assert message.startswith('qwen2.rope.scaling.attn_factor is 1.5, 1 or 1.13')
  message = refused('llama', rope__scaling__type='longrope')
  assert message.startswith("llama.rope.scaling.type is 'longrope', one of ")
  assert 'factor is 0.5, a number from 1' in refused(
    'llama', rope__scaling__factor=0.5
  )


def test_divisors_in_a_tensor_are_the_only_scaling(tmp_path):
  _, config, _, extra = CASES['llama']
  stored = tiny_gguf.stored(tiny_gguf.named(config), config)
  for entries, tensor in (
    ({}, np.ones(4, np.float32)),
    ({'llama.rope.scaling.factor': 2.0}, extra['rope_freqs.weight']),
  ):
    path = tiny_gguf.write(
      tmp_path / 'model.gguf',
      stored | {'rope_freqs.weight': tensor},
      tiny_gguf.metadata(config) | entries,
    )
    with pytest.raises(ModelFileError, match=r'rope_freqs\.weight \([34],\) '):
      load(str(path))


@pytest.mark.parametrize(
  ('architecture', 'entries', 'problem'),
  [
    ('llama', {'expert_count': 8}, 'llama.expert_count = 8 is not understood'),
    ('llama', {'attention__sliding_window': 8}, 'sliding_window = 8 is not'),
    ('qwen2', {'attention__causal': False}, 'attention.causal is False, tru'),
    ('llama', {'rope__dimension_count': 4}, 'rope.dimension_count is 4, 8, '),
    ('llama', {'attention__value_length': 4}, 'value_length is 4, 8, the'),
    ('llama', {'block_count': 2**40}, 'block_count is 1099511627776, at most'),
    ('llama', {'attention__key_length': 2**20}, 'key_length is 1048576, at'),
    ('llama', {'rope__freq_base': 1.0}, 'rope.freq_base is 1.0, a number abo'),
    ('llama', {'rope__freq_base': float('nan')}, 'rope.freq_base is nan, a f'),
    (
      'llama',
      {'attention__head_count_kv': np.array([4, 2])},
      'head_count_kv is array([4, 2]), a number is needed',
    ),
    (
      'olmo2',
      {
        'attention__sliding_window': 8,
        'attention__sliding_window_pattern': np.array([True]),
      },
      'sliding_window_pattern is array([ True]), one of 6 is needed',
    ),
    (
      'gemma2',
      {'attention__sliding_window': np.array([1, 2])},
      'attention.sliding_window is array([1, 2]), a number is needed',
    ),
    ('olmo2', {'attention__sliding_window': 'all'}, "is 'all', a number is"),
    ('gemma2', {'attn_logit_softcapping': -1.0}, 'softcapping is -1.0, a num'),
  ],
)
def test_metadata_that_is_refused(architecture, entries, problem):
  assert problem in refused(architecture, **entries)


def test_keys_that_say_nothing():
  off = {
    'expert_count': 0,
    'vocab_size': 64,
    'rope__scaling__finetuned': True,
    'attention__causal': True,
    'nextn_predict_layers': 0,
  }
  assert read('llama', **off) == read('llama')
