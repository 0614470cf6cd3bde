# SPDX-License-Identifier: Apache-2.0
"""config.json: what published ones mean, what is refused, and the way back."""

import copy
import dataclasses
import json

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from published_configs import PUBLISHED

from thicket.models import rotary
from thicket.models.architectures import (
  architecture_of,
  config_from_hf,
  hf_config,
)
from thicket.models.decoder_config import Rope
from thicket.models.gguf import ModelFileError
from thicket.models.model_types import ARCHITECTURES

WHERE = 'model/config.json'
SIZES = {
  'vocab_size': 64,
  'num_hidden_layers': 6,
  'hidden_size': 256,
  'intermediate_size': 48,
  'num_attention_heads': 32,
}


def read(architecture='llama', **changes):
  values = {'model_type': architecture, **SIZES, **changes}
  return config_from_hf(values, WHERE)


def refused(architecture='llama', **changes):
  with pytest.raises(ModelFileError) as caught:
    read(architecture, **changes)
  message = str(caught.value)
  assert '\n' not in message
  assert len(message) < 500
  assert message.startswith(f'{WHERE}: '), message
  return message.removeprefix(f'{WHERE}: ')


def equal(one, other):
  """Ropes to 12 digits, all else exactly."""
  assert len(one.ropes) == len(other.ropes)
  for found, wanted in zip(one.ropes, other.ropes, strict=True):
    assert (found.base, found.amplitude) == pytest.approx(
      (wanted.base, wanted.amplitude), rel=1e-12
    )
    assert found.divisors == pytest.approx(wanted.divisors, rel=1e-12)
  assert dataclasses.replace(one, ropes=other.ropes) == other


@pytest.mark.parametrize('name', PUBLISHED)
def test_published_models_are_what_they_are(name):
  values, config = PUBLISHED[name]
  equal(config_from_hf(values, WHERE), config)


@pytest.mark.parametrize('name', PUBLISHED)
def test_a_config_is_written_as_it_was_read(name):
  values, config = PUBLISHED[name]
  architecture = architecture_of(values, WHERE)
  written = hf_config(config_from_hf(values, WHERE), architecture)
  assert written['model_type'] == architecture
  assert written == json.loads(json.dumps(written, allow_nan=False))
  equal(config_from_hf(written, WHERE), config)


def test_all_architectures_are_among_the_published():
  found = {architecture_of(values, WHERE) for values, _ in PUBLISHED.values()}
  assert found == ARCHITECTURES.keys()


@pytest.mark.parametrize('name', PUBLISHED)
def test_transformers_reads_what_is_written(name):
  transformers = pytest.importorskip('transformers')
  values, config = PUBLISHED[name]
  architecture = architecture_of(values, WHERE)
  theirs = transformers.AutoConfig.for_model(**copy.deepcopy(values))
  theirs = theirs.get_text_config()
  written = hf_config(config, architecture)
  again = transformers.AutoConfig.for_model(**written)
  assert type(again) is type(theirs)
  # What each says when it is asked for all it holds, defaults included.
  for held in (theirs, again):
    equal(config_from_hf(held.to_dict(), WHERE), config)


# Defaults, where a file leaves a key out.


def test_the_defaults_of_llama():
  config = read()
  assert config.num_kv_heads == 32
  assert config.head_dim == 8
  assert config.context_length == 2048
  assert config.norm_eps == 1e-6
  assert config.ropes == (Rope(10000.0),) * 6
  assert config.windows == ()
  assert not config.tie_head
  assert not any([config.qkv_bias, config.out_bias, config.mlp_bias])


def test_the_defaults_of_others():
  assert read('mistral').num_kv_heads == 8
  assert read('mistral').windows == (4096,) * 6
  assert read('qwen3').head_dim == 128
  assert read('gemma2').windows == (4096, None) * 3
  assert read('gemma3_text').windows == (4096,) * 5 + (None,)
  assert read('olmo2').norm_eps == 1e-5
  config = read('olmo3')
  assert config.windows == (4096,) * 3 + (None,) + (4096,) * 2
  assert config.ropes == (Rope(500000.0),) * 6


@pytest.mark.parametrize('architecture', ARCHITECTURES)
def test_the_defaults_are_those_of_transformers(architecture):
  transformers = pytest.importorskip('transformers')
  values = {'model_type': architecture, **SIZES}
  theirs = transformers.AutoConfig.for_model(**values).to_dict()
  equal(config_from_hf(values, WHERE), config_from_hf(theirs, WHERE))


def test_biases_where_a_file_asks_for_them():
  config = read(attention_bias=True)
  assert config.qkv_bias
  assert config.out_bias
  assert not config.mlp_bias
  assert read(mlp_bias=True).mlp_bias
  assert read('qwen2').qkv_bias
  assert not read('qwen2').out_bias


def test_windows_of_qwen():
  kept = {'sliding_window': 16, 'max_window_layers': 4}
  assert read('qwen2', **kept).windows == ()
  windows = (None,) * 4 + (16,) * 2
  assert read('qwen2', use_sliding_window=True, **kept).windows == windows
  types = ['sliding_attention'] + ['full_attention'] * 5
  config = read('qwen3', use_sliding_window=True, layer_types=types, **kept)
  assert config.windows == (16,) + (None,) * 5
  assert 'use_sliding_window is False' in refused(
    'qwen3', use_sliding_window=False, layer_types=types
  )
  assert refused(
    'qwen3', use_sliding_window=True, layer_types=types, sliding_window=None
  ).startswith('sliding_window is None, a number is needed')


def test_the_pattern_of_gemma_3():
  config = read('gemma3_text', sliding_window=8, sliding_window_pattern=3)
  assert config.windows == (8, 8, None) * 2
  # A list of types has the last word.
  types = ['full_attention', *['sliding_attention'] * 5]
  config = read('gemma3_text', sliding_window_pattern=3, layer_types=types)
  assert config.windows == (None, *[4096] * 5)
  assert config.ropes == (Rope(1e6), *[Rope(1e4)] * 5)


def test_the_scale_of_gemmas_scores():
  # 27B's models divide by another number than the root of the head.
  assert read('gemma2').query_scale is None  # 256, as long as a head
  assert read('gemma2', head_dim=128).query_scale == 1 / 16
  config = read('gemma3_text', head_dim=128, query_pre_attn_scalar=168)
  assert config.query_scale == 168**-0.5
  assert hf_config(config, 'gemma3_text')['query_pre_attn_scalar'] == 168


def test_both_spellings_of_rotary_positions():
  scaling = {'factor': 4.0}
  wanted = (Rope(500.0, (4.0,) * 4),) * 6
  for changes in (
    {'rope_theta': 500, 'rope_scaling': {'type': 'linear', **scaling}},
    {'rope_theta': 500, 'rope_scaling': {'rope_type': 'linear', **scaling}},
    {
      'rope_parameters': {
        'rope_type': 'linear',
        'rope_theta': 500.0,
        **scaling,
      },
      # The table has the last word.
      'rope_theta': 10000.0,
    },
  ):
    assert read(**changes).ropes == wanted


def test_positions_of_sliding_layers_apart():
  tables = {
    'full_attention': {'rope_type': 'linear', 'factor': 2, 'rope_theta': 300},
    'sliding_attention': {'rope_theta': 200},
  }
  local, full = Rope(200.0), Rope(300.0, (2.0,) * 4)
  config = read('olmo3', rope_parameters=tables)
  assert config.ropes == (local, local, local, full, local, local)
  # Only the table of each type can say so, not the older spelling.
  written = hf_config(config, 'olmo3')
  assert 'rope_theta' not in written
  assert config_from_hf(written, WHERE) == config
  # Scaling in the older spelling is of full layers only.
  config = read(
    'olmo3', rope_theta=400, rope_scaling={'type': 'linear', 'factor': 2}
  )
  assert config.ropes[3] == Rope(400.0, (2.0,) * 4)
  assert config.ropes[0] == Rope(400.0)


def test_activations_by_their_spellings():
  assert read(hidden_act='gelu_new').activation == 'gelu_tanh'
  assert read(hidden_act='swish').activation == 'silu'
  # The exact gelu is another function.
  assert refused(hidden_act='gelu').startswith("hidden_act is 'gelu', one of ")
  # transformers' Gemma reads the other key only.
  assert read('gemma2', hidden_act='gelu').activation == 'gelu_tanh'


# What is refused. Each message is one line that begins with the file.


def test_another_model_type():
  message = refused('phi3')
  assert message.startswith("model_type is 'phi3', one of gemma2, gemma3, ")
  assert all(name in message for name in ARCHITECTURES)
  with pytest.raises(ModelFileError, match='model_type is missing'):
    config_from_hf({}, WHERE)
  with pytest.raises(ModelFileError, match=r'the config is \[\], a table'):
    config_from_hf([], WHERE)


@pytest.mark.parametrize('key', SIZES)
def test_sizes_that_are_missing(key):
  values = {'model_type': 'llama', **SIZES}
  del values[key]
  with pytest.raises(ModelFileError, match=f'{key} is missing, a number is'):
    config_from_hf(values, WHERE)


@pytest.mark.parametrize(
  ('changes', 'problem'),
  [
    ({'num_hidden_layers': 10**12}, 'num_hidden_layers is 1000000000000, at'),
    ({'hidden_size': 10**400}, 'hidden_size is 1000'),
    ({'hidden_size': float('nan')}, 'hidden_size is nan, a finite number'),
    ({'vocab_size': float('inf')}, 'vocab_size is inf, a finite number'),
    ({'vocab_size': True}, 'vocab_size is True, a number is needed'),
    ({'vocab_size': '64'}, "vocab_size is '64', a number is needed"),
    ({'vocab_size': -1}, 'vocab_size is -1, a whole number above 0'),
    ({'vocab_size': 1.5}, 'vocab_size is 1.5, a whole number above 0'),
    ({'vocab_size': [64]}, 'vocab_size is [64], a number is needed'),
    ({'head_dim': 10**6}, 'head_dim is 1000000, at most'),
    ({'head_dim': 7}, 'head_dim = 7 is odd'),
    ({'num_key_value_heads': 3}, 'num_heads = 32 is no multiple of'),
    ({'rms_norm_eps': 0}, 'rms_norm_eps is 0, a number above 0'),
    ({'rope_theta': -1.0}, 'rope_theta is -1.0, a number above 0'),
    ({'rope_theta': 1}, 'rope_theta is 1.0, a number above 1'),
    ({'tie_word_embeddings': 'no'}, "tie_word_embeddings is 'no', true or"),
    ({'hidden_act': None}, 'hidden_act is None, one of'),
    ({'rope_scaling': 'linear'}, "rope_scaling is 'linear', a table"),
    ({'hidden_act': 'x' * 10**6}, "hidden_act is 'xxx"),
    ({'hidden_act': {'silu': 1}}, "hidden_act is {'silu': 1}, one of"),
  ],
)
def test_values_that_no_decoder_can_have(changes, problem):
  assert problem in refused(**changes)


def test_numbers_as_json_has_them():
  text = json.dumps({'model_type': 'llama', **SIZES})
  text = text.replace('48', '1e400')
  with pytest.raises(ModelFileError, match='intermediate_size is inf'):
    config_from_hf(json.loads(text), WHERE)


@pytest.mark.parametrize(
  ('changes', 'problem'),
  [
    ({'num_local_experts': 8}, 'num_local_experts = 8 is not understood'),
    ({'rope_interleaved': True}, 'rope_interleaved = True is not understood'),
    ({'quantization_config': {'bits': 4}}, 'quantization_config says that'),
    ({'partial_rotary_factor': 0.5}, 'partial_rotary_factor is 0.5, 1 is'),
    ({'is_causal': False}, 'is_causal is False, True is needed'),
    ({'x\ny': 1}, r"'x\ny' = 1 is not understood"),
    ({'k' * 10**5: 1}, ' = 1 is not understood'),
    ({'mla': float('nan')}, 'mla = nan is not understood'),
  ],
)
def test_what_is_not_understood_is_not_passed_over(changes, problem):
  assert problem in refused(**changes)


def test_what_is_switched_off_does_no_harm():
  plain = read()
  off = {'num_local_experts': 0, 'rope_interleaved': False, 'sharing': None}
  assert read(**off) == plain
  assert read(partial_rotary_factor=1.0, is_causal=True, _attn='x') == plain


@pytest.mark.parametrize(
  ('architecture', 'changes', 'problem'),
  [
    ('qwen2', {'attention_bias': True}, 'attention_bias = True is not'),
    ('mistral', {'layer_types': ['full_attention'] * 6}, 'layer_types is ['),
    ('gemma2', {'use_bidirectional_attention': True}, 'use_bidirectional_'),
    ('gemma2', {'sliding_window': None}, 'sliding_window is None, a number'),
    ('gemma2', {'layer_types': 'full'}, "layer_types is 'full', a list of 6"),
    ('gemma2', {'layer_types': [[]] * 6}, 'layer_types is [[], [], '),
    ('olmo3', {'layer_types': ['full_attention']}, 'a list of 6, one for'),
    ('gemma2', {'attn_logit_softcapping': 0}, 'attn_logit_softcapping is 0'),
    ('gemma3_text', {'sliding_window_pattern': 0}, 'sliding_window_pattern'),
    ('gemma2', {'query_pre_attn_scalar': -4}, 'query_pre_attn_scalar is -4'),
  ],
)
def test_what_one_architecture_refuses(architecture, changes, problem):
  assert problem in refused(architecture, **changes)


@pytest.mark.parametrize(
  ('scaling', 'problem'),
  [
    ({'type': 'dynamic', 'factor': 2.0}, "rope_type is 'dynamic', one of def"),
    ({'rope_type': 'longrope'}, "rope_type is 'longrope', one of default"),
    ({'type': 'linear'}, 'rope_scaling.factor is missing, a number'),
    ({'type': 'linear', 'factor': 0.5}, 'rope_scaling.factor is 0.5, a number'),
    ({'type': 'linear', 'factor': 2, 'beta': 1}, 'rope_scaling.beta = 1 is'),
    ({'rope_type': 'llama3', 'factor': 8}, 'rope_scaling.low_freq_factor is'),
    (
      {
        'rope_type': 'llama3',
        'factor': 8,
        'low_freq_factor': 4,
        'high_freq_factor': 4,
      },
      'high_freq_factor is 4, a number above 4.0',
    ),
    (
      {'type': 'yarn', 'factor': 4, 'beta_fast': 1, 'beta_slow': 2},
      'rope_scaling.beta_fast is 1, a number from beta_slow = 2.0 on',
    ),
    (
      {
        'type': 'yarn',
        'factor': 9e99,
        'mscale': 9e306,
        'mscale_all_dim': 9e306,
      },
      'nan is not above 0',
    ),
    ({'type': ['linear']}, "rope_type is ['linear'], one of"),
    ({'type': 'linear', 'factor': 2, 'partial_rotary_factor': 0.5}, 'partial'),
  ],
)
def test_scalings_that_are_refused(scaling, problem):
  assert problem in refused(rope_scaling=scaling)


def test_two_scalings_at_once():
  table = {'rope_type': 'linear', 'factor': 2.0}
  assert 'one of it and rope_parameters is needed' in refused(
    rope_scaling=table, rope_parameters=table
  )


@pytest.mark.parametrize(
  'extremes',
  [
    {'type': 'yarn', 'factor': 1e308, 'beta_fast': 1e308},
    {'type': 'yarn', 'factor': 1.0, 'beta_fast': 1e-300, 'beta_slow': 1e-300},
    {
      'type': 'llama3',
      'factor': 1e300,
      'low_freq_factor': 5e-324,
      'high_freq_factor': 1e-323,
    },
  ],
)
def test_extreme_scalings_give_finite_numbers(extremes):
  rope = read(rope_scaling=extremes).ropes[0]
  assert np.isfinite([rope.amplitude, *rope.divisors]).all()


def test_the_text_half_of_gemma_3():
  values = json.loads(json.dumps(PUBLISHED['gemma-3-4b'][0]))
  text = values['text_config']

  def message():
    with pytest.raises(ModelFileError) as caught:
      config_from_hf(values, WHERE)
    return str(caught.value)

  text['hidden_size'] = 'wide'
  assert "text_config.hidden_size is 'wide'" in message()
  text['hidden_size'] = 2560
  text['rope_scaling'] = {'rope_type': 'linear', 'factor': None}
  assert 'text_config.rope_scaling.factor is' in message()
  text['rope_scaling'] = None
  values['tie_word_embeddings'], text['tie_word_embeddings'] = False, True
  assert 'text_config.tie_word_embeddings is True, False' in message()
  text['tie_word_embeddings'] = False
  assert not config_from_hf(values, WHERE).tie_head
  text['model_type'] = 'gemma3n_text'
  assert "text_config.model_type is 'gemma3n_text'" in message()
  del values['text_config']
  assert 'text_config is missing, a table' in message()


# The way back.


@pytest.mark.parametrize(
  ('architecture', 'changes', 'named'),
  [
    ('llama', {'windows': (8,) * 6}, 'windows = (8, 8, 8, 8, 8, 8)'),
    ('llama', {'head_norm': 'head'}, "head_norm = 'head'"),
    ('llama', {'norm_offset': 1.0}, 'norm_offset = 1.0'),
    ('llama', {'qkv_bias': True}, 'qkv_bias = True'),
    ('llama', {'query_scale': 0.1}, 'query_scale = 0.1'),
    ('qwen2', {'logit_cap': 30.0}, 'logit_cap = 30.0'),
    ('llama', {'embed_scale': 2.0}, 'embed_scale = 2.0'),
    ('llama', {'ropes': (Rope(5.0),) * 5 + (Rope(6.0),)}, 'ropes = '),
  ],
)
def test_what_an_architecture_cannot_say(architecture, changes, named):
  config = dataclasses.replace(read(architecture), **changes)
  with pytest.raises(ModelFileError) as caught:
    hf_config(config, architecture)
  assert f'a config.json of {architecture} cannot say {named}' in str(
    caught.value
  )


def test_divisors_of_no_known_scaling():
  ropes = (Rope(500.0, (1.0, 2.0, 1.0, 3.0)),) * 6
  config = dataclasses.replace(read(), ropes=ropes)
  with pytest.raises(
    ModelFileError, match=r'divisors from 1 to 3 .*no scaling'
  ):
    hf_config(config, 'llama')


def test_divisors_in_float32_are_known_again():
  # As a GGUF file has them.
  _, config = PUBLISHED['Llama-3.2-1B']
  rope = config.ropes[0]
  divisors = tuple(map(float, np.asarray(rope.divisors, np.float32)))
  assert divisors != rope.divisors
  rounded = dataclasses.replace(rope, divisors=divisors)
  written = hf_config(
    dataclasses.replace(config, ropes=(rounded,) * 16), 'llama'
  )
  assert written['rope_scaling'] == PUBLISHED['Llama-3.2-1B'][0]['rope_scaling']


@st.composite
def scalings(draw):
  kind = draw(st.sampled_from(['default', 'linear', 'llama3', 'yarn']))
  table = {'rope_type': kind}
  if kind != 'default':
    table['factor'] = float(draw(st.sampled_from([2, 4, 8, 32])))
  if kind in ('llama3', 'yarn'):
    original = 2 ** draw(st.integers(5, 15))
    table['original_max_position_embeddings'] = original
  if kind == 'llama3':
    table |= {'low_freq_factor': 1.0, 'high_freq_factor': 4.0}
  if kind == 'yarn' and draw(st.booleans()):
    table['attention_factor'] = draw(st.floats(0.5, 2.0))
  return table


@st.composite
def configs(draw):
  """A config.json of any architecture, with all that it can say."""
  architecture = draw(st.sampled_from(sorted(ARCHITECTURES)))
  read = ARCHITECTURES[architecture].defaults
  num_layers = draw(st.integers(1, 9))
  kv_heads = draw(st.integers(1, 4))
  values = {
    'model_type': architecture,
    'vocab_size': draw(st.integers(1, 10**6)),
    'num_hidden_layers': num_layers,
    'hidden_size': draw(st.integers(1, 10**4)),
    'intermediate_size': draw(st.integers(1, 10**5)),
    'num_attention_heads': kv_heads * draw(st.integers(1, 4)),
    'num_key_value_heads': kv_heads,
    'head_dim': 2 * draw(st.integers(1, 64)),
    'max_position_embeddings': draw(st.integers(1, 10**6)),
    'rms_norm_eps': draw(st.floats(1e-8, 1e-2)),
    'tie_word_embeddings': draw(st.booleans()),
    'rope_theta': draw(st.floats(2.0, 1e7)),
  }
  window = draw(st.none() | st.integers(1, 10**5))
  slides = draw(
    st.lists(st.booleans(), min_size=num_layers, max_size=num_layers)
  )
  if window is None:
    slides = [False] * num_layers
  types = ['sliding_attention' if x else 'full_attention' for x in slides]
  flags = st.booleans()
  numbers = st.floats(0.5, 100.0)
  optional = {
    'sliding_window': st.just(window),
    'use_sliding_window': st.just(window is not None),
    'layer_types': st.just(types),
    'attention_bias': flags,
    'mlp_bias': flags,
    'query_pre_attn_scalar': st.integers(1, 10**4),
    'attn_logit_softcapping': st.none() | numbers,
    'final_logit_softcapping': st.none() | numbers,
    'hidden_act': st.sampled_from(['silu', 'gelu_pytorch_tanh']),
    'hidden_activation': st.sampled_from(['silu', 'gelu_pytorch_tanh']),
  }
  for key, strategy in optional.items():
    if key in read:
      values[key] = draw(strategy)
  if ARCHITECTURES[architecture].local_rope is None:
    values['rope_scaling'] = draw(scalings())
  else:
    values['rope_parameters'] = {
      kind: {'rope_theta': draw(st.floats(2.0, 1e7)), **draw(scalings())}
      for kind in ('full_attention', 'sliding_attention')
    }
  return values


@hypothesis.settings(max_examples=300, deadline=None, derandomize=True)
@hypothesis.given(values=configs())
def test_any_config_survives_being_written(values):
  config = config_from_hf(values, WHERE)
  written = hf_config(config, values['model_type'])
  again = config_from_hf(json.loads(json.dumps(written)), WHERE)
  assert all(map(rotary.is_close, again.ropes, config.ropes))
  assert dataclasses.replace(again, ropes=config.ropes) == config


@hypothesis.settings(max_examples=100, deadline=None, derandomize=True)
@hypothesis.given(values=configs())
def test_transformers_agrees_on_any_config(values):
  transformers = pytest.importorskip('transformers')
  # It wants whole heads, even where their length is given.
  values['hidden_size'] *= values['num_attention_heads']
  config = config_from_hf(values, WHERE)
  written = hf_config(config, values['model_type'])
  held = transformers.AutoConfig.for_model(**written).to_dict()
  again = config_from_hf(held, WHERE)
  assert all(map(rotary.is_close, again.ropes, config.ropes))
  assert dataclasses.replace(again, ropes=config.ropes) == config


JSON = st.recursive(
  st.none()
  | st.booleans()
  | st.integers(-(10**20), 10**20)
  | st.floats()
  | st.text(max_size=5),
  lambda inner: (
    st.lists(inner, max_size=3)
    | st.dictionaries(st.text(max_size=5), inner, max_size=3)
  ),
  max_leaves=5,
)


@hypothesis.settings(max_examples=300, deadline=None, derandomize=True)
@hypothesis.given(values=configs(), data=st.data())
def test_a_hostile_value_is_an_error_or_a_config(values, data):
  table = values
  if data.draw(st.booleans()):
    inner = [v for v in values.values() if isinstance(v, dict)]
    table = data.draw(st.sampled_from(inner))
  table[data.draw(st.sampled_from(sorted(table)))] = data.draw(JSON)
  message = f'{WHERE}: one line'
  try:
    config_from_hf(values, WHERE)
  except ModelFileError as error:
    message = str(error)
  assert message.startswith(f'{WHERE}: ')
  assert message.isprintable()


@pytest.mark.parametrize(
  ('architecture', 'changes'),
  [
    ('llama', {'layer_types': ['full_attention'] * 6}),
    ('llama', {'sliding_window': 4096, 'tie_word_embeddings': None}),
    ('qwen2', {'dual_chunk_attention_config': {'chunk_size': 262144}}),
    ('qwen3', {'use_sliding_window': None, 'attention_bias': None}),
    ('mistral', {'layer_types': ['sliding_attention'] * 6}),
  ],
)
def test_what_published_files_say_without_meaning(architecture, changes):
  assert read(architecture, **changes) == read(architecture)


def test_what_scalings_say_without_meaning():
  scaling = {'rope_type': 'yarn', 'factor': 4.0}
  more = scaling | {'attn_factor': 0.878, 'finetuned': True}
  assert read(rope_scaling=more) == read(rope_scaling=scaling)
  scaling = {'type': 'linear', 'factor': 4}
  more = scaling | {'original_max_position_embeddings': 4096}
  assert read(rope_scaling=more) == read(rope_scaling=scaling)


def test_one_scaling_for_two_kinds_of_layers_is_told_where_to_go():
  said = refused('olmo3', rope_parameters={'rope_type': 'yarn', 'factor': 8})
  assert 'a table under full_attention' in said
