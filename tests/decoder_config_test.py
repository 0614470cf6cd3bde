# SPDX-License-Identifier: Apache-2.0
"""Decoder configs: refused where no model could be built, never ignored."""

import dataclasses
import pathlib

import jax
import numpy as np
import pytest
import tiny

import thicket
from thicket import trees
from thicket.models import decoder
from thicket.models.decoder_config import Rope

# Another value of each field, and whether it makes another tree.
OTHERS = {
  'vocab_size': (65, True),
  'd_model': (22, True),
  'd_ff': (25, True),
  'num_heads': (6, True),
  'num_kv_heads': (1, True),
  'head_dim': (8, True),
  'ropes': ((Rope(100.0), Rope(200.0)), False),
  'norm_eps': (1e-2, False),
  'tie_head': (False, True),
  'windows': ((None, 5), False),
  'activation': ('gelu_tanh', False),
  'qkv_bias': (True, True),
  'out_bias': (True, True),
  'mlp_bias': (True, True),
  'norm_before': (False, True),
  'norm_after': (True, True),
  'head_norm': ('head', True),
  'norm_offset': (1.0, False),
  'embed_scale': (2.0, False),
  'query_scale': (0.5, False),
  'attention_cap': (2.0, False),
  'logit_cap': (2.0, False),
}
# Of one field, other values than that above, each a model of its own.
MORE = {
  'num_layers': tiny.with_layers(tiny.CONFIG, 3),
  'divisors': dataclasses.replace(
    tiny.CONFIG, ropes=(Rope(100.0, (1.0, 2.0, 4.0)), Rope(100.0))
  ),
  'amplitude': dataclasses.replace(
    tiny.CONFIG, ropes=(Rope(100.0), Rope(100.0, amplitude=1.5))
  ),
  'whole': dataclasses.replace(tiny.CONFIG, head_norm='whole'),
  'no_norms_but_after': dataclasses.replace(
    tiny.CONFIG, norm_before=False, norm_after=True
  ),
}
# What the architecture does not depend on; see the last test.
LIMITS = {'context_length'}


def _shapes(config, fused=True):
  tokens = np.zeros((1, 3), np.int32)
  return jax.eval_shape(
    decoder.Decoder(config, fused).init,
    jax.random.key(0),
    tokens,
    tokens,
    np.ones((1, 3), bool),
  )


def _tree(config, fused=True):
  """Names and shapes of all canonical tensors."""
  leaves = jax.tree.leaves(decoder.canonical_spec(config, fused))
  return {
    segment.full_name: (segment.size, *leaf.shape[1:])
    for leaf in leaves
    for segment in leaf.segments
  }


def _logits(config):
  weights = tiny.params()
  tokens = np.arange(8, dtype=np.int32)[None]
  return jax.jit(decoder.Decoder(config).apply)(
    weights, tokens, tokens, np.ones((1, 8), bool)
  )[0]


def test_all_fields_are_covered_here():
  names = {field.name for field in dataclasses.fields(tiny.CONFIG)}
  assert names == OTHERS.keys() | LIMITS | {'num_layers'}
  names = {field.name for field in dataclasses.fields(Rope)}
  assert names == {'base'} | MORE.keys() & {'divisors', 'amplitude'}


@pytest.mark.parametrize('fused', [True, False])
@pytest.mark.parametrize('name', [*OTHERS, *MORE])
def test_every_field_changes_the_tree_or_the_logits(name, fused):
  if name in MORE:
    other = MORE[name]
    changes_tree = name not in ('divisors', 'amplitude')
  else:
    value, changes_tree = OTHERS[name]
    other = dataclasses.replace(tiny.CONFIG, **{name: value})
  trees.check_spec(_shapes(other, fused), decoder.canonical_spec(other, fused))
  assert (_tree(other, fused) != _tree(tiny.CONFIG, fused)) == changes_tree
  if fused and not changes_tree:
    assert np.abs(_logits(other) - _logits(tiny.CONFIG)).max() > 1e-3


def test_tensors_are_named_as_in_checkpoints():
  """Vectors only; matrices are those of llama in all families."""

  def vectors(**changes):
    config = dataclasses.replace(tiny.with_layers(tiny.CONFIG, 1), **changes)
    return {
      name.removeprefix('model.layers.0.'): shape
      for name, shape in _tree(config).items()
      if len(shape) == 1
    }

  D, F, NH, KH, H = 20, 24, 24, 12, 6
  last = {'model.norm.weight': (D,)}
  llama = {
    'input_layernorm.weight': (D,),
    'post_attention_layernorm.weight': (D,),
    **last,
  }
  after = {
    'post_attention_layernorm.weight': (D,),
    'post_feedforward_layernorm.weight': (D,),
    **last,
  }
  assert vectors() == llama
  assert vectors(norm_before=False, norm_after=True) == after
  assert vectors(norm_after=True) == {
    **after,
    'input_layernorm.weight': (D,),
    'pre_feedforward_layernorm.weight': (D,),
  }
  assert vectors(qkv_bias=True) == {
    **llama,
    'self_attn.q_proj.bias': (NH,),
    'self_attn.k_proj.bias': (KH,),
    'self_attn.v_proj.bias': (KH,),
  }
  assert vectors(out_bias=True) == {**llama, 'self_attn.o_proj.bias': (D,)}
  assert vectors(mlp_bias=True) == {
    **llama,
    'mlp.gate_proj.bias': (F,),
    'mlp.up_proj.bias': (F,),
    'mlp.down_proj.bias': (D,),
  }
  assert vectors(head_norm='head') == {
    **llama,
    'self_attn.q_norm.weight': (H,),
    'self_attn.k_norm.weight': (H,),
  }
  assert vectors(head_norm='whole') == {
    **llama,
    'self_attn.q_norm.weight': (NH,),
    'self_attn.k_norm.weight': (KH,),
  }


@pytest.mark.parametrize('field', sorted(LIMITS))
def test_every_limit_is_read_somewhere(field):
  package = pathlib.Path(thicket.__file__).parent
  readers = [
    path.name
    for path in sorted(package.rglob('*.py'))
    if f'.{field}' in path.read_text(encoding='utf-8')
  ]
  assert readers


NUMBERS = (
  *('vocab_size', 'num_layers', 'd_model', 'd_ff', 'num_heads', 'num_kv_heads'),
  *('head_dim', 'norm_eps', 'context_length', 'embed_scale', 'query_scale'),
  *('attention_cap', 'logit_cap'),
)


@pytest.mark.parametrize('value', [0, -2, float('nan'), float('inf')])
@pytest.mark.parametrize('field', NUMBERS)
def test_numbers_have_to_be_positive(field, value):
  with pytest.raises(ValueError, match=rf'{field} = {value} is not > 0'):
    dataclasses.replace(tiny.CONFIG, **{field: value})


@pytest.mark.parametrize('value', [0, -2, float('nan'), float('inf')])
@pytest.mark.parametrize('field', ['base', 'amplitude', 'divisors'])
def test_rotary_numbers_have_to_be_positive(field, value):
  given = (1.0, value) if field == 'divisors' else value
  with pytest.raises(ValueError, match=rf'positions: {value} is not above 0'):
    dataclasses.replace(Rope(100.0), **{field: given})


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'num_layers': 3}, '2 ropes for num_layers = 3'),
    ({'ropes': ()}, '0 ropes for num_layers = 2'),
    ({'windows': (4,)}, '1 windows for num_layers = 2'),
    ({'windows': (4, 0)}, 'a window of 0 tokens'),
    (
      {'ropes': (Rope(9.0, (1.0, 2.0)),) * 2},
      '2 divisors of rotary frequencies for head_dim = 6',
    ),
    (
      {'activation': 'relu'},
      "activation = 'relu' is not one of 'silu', 'gelu_tanh'",
    ),
    (
      {'head_norm': 'all'},
      "head_norm = 'all' is not one of None, 'head', 'whole'",
    ),
  ],
)
def test_what_no_layer_could_do_is_refused(changes, message):
  with pytest.raises(ValueError, match=f'^decoder config: {message}$'):
    dataclasses.replace(tiny.CONFIG, **changes)


def test_a_layer_has_its_window():
  config = dataclasses.replace(tiny.CONFIG, windows=(None, 5))
  assert [config.window(i) for i in range(2)] == [None, 5]
  assert [tiny.CONFIG.window(i) for i in range(2)] == [None, None]


def test_query_heads_are_shared_out_evenly():
  with pytest.raises(ValueError, match=r'num_heads = 4 .* num_kv_heads = 3'):
    dataclasses.replace(tiny.CONFIG, num_kv_heads=3)


def test_head_dim_is_even():
  with pytest.raises(ValueError, match=r'head_dim = 7 is odd'):
    dataclasses.replace(tiny.CONFIG, head_dim=7)


def test_configs_are_values():
  same = dataclasses.replace(tiny.CONFIG)
  assert same == tiny.CONFIG
  assert hash(same) == hash(tiny.CONFIG)
  with pytest.raises(dataclasses.FrozenInstanceError):
    same.d_ff = 25
