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
  'num_layers': (3, True),
  'd_model': (22, True),
  'd_ff': (25, True),
  'num_heads': (6, True),
  'num_kv_heads': (1, True),
  'head_dim': (8, True),
  'ropes': ((Rope(200.0),) * 2, False),
  'norm_eps': (1e-2, False),
  'tie_head': (False, True),
}
# What the architecture does not depend on; see the last test.
LIMITS = {'context_length'}


def _shapes(config):
  tokens = np.zeros((1, 3), np.int32)
  return jax.eval_shape(
    decoder.Decoder(config).init,
    jax.random.key(0),
    tokens,
    tokens,
    np.ones((1, 3), bool),
  )


def test_all_fields_are_covered_here():
  names = {field.name for field in dataclasses.fields(tiny.CONFIG)}
  assert names == OTHERS.keys() | LIMITS


@pytest.mark.parametrize('field', OTHERS)
def test_every_field_changes_the_tree_or_the_logits(field):
  value, changes_tree = OTHERS[field]
  other = dataclasses.replace(tiny.CONFIG, **{field: value})
  shapes = _shapes(other)
  trees.check_spec(shapes, decoder.canonical_spec(other))
  if changes_tree:
    with pytest.raises(ValueError, match=r'spec'):
      trees.check_spec(shapes, decoder.canonical_spec(tiny.CONFIG))
    return
  weights = tiny.params()
  tokens = np.arange(8, dtype=np.int32)[None]
  logits = [
    jax.jit(decoder.Decoder(config).apply)(
      weights, tokens, tokens, np.ones((1, 8), bool)
    )[0]
    for config in (tiny.CONFIG, other)
  ]
  assert np.abs(logits[0] - logits[1]).max() > 1e-3


@pytest.mark.parametrize('field', sorted(LIMITS))
def test_every_limit_is_read_somewhere(field):
  package = pathlib.Path(thicket.__file__).parent
  readers = [
    path.name
    for path in sorted(package.rglob('*.py'))
    if f'.{field}' in path.read_text(encoding='utf-8')
  ]
  assert readers


@pytest.mark.parametrize('value', [0, -2, float('nan')])
@pytest.mark.parametrize('field', sorted(OTHERS.keys() - {'tie_head'} | LIMITS))
def test_numbers_have_to_be_positive(field, value):
  with pytest.raises(ValueError, match=rf'{field} = {value} is not > 0'):
    dataclasses.replace(tiny.CONFIG, **{field: value})


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
