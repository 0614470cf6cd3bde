# SPDX-License-Identifier: Apache-2.0
"""Scaled rotary positions: which frequencies are divided, and by how much."""

import math

import numpy as np
import pytest
from published_configs import llama3_divisors, yarn_divisors

from thicket.models import rotary
from thicket.models.checked import Checked
from thicket.models.decoder_config import Rope


def from_table(head_dim=128, context=65536, base=500000.0, **table):
  return rotary.from_hf(Checked(table, 'file'), head_dim, context, base)


def test_linear_divides_all():
  assert rotary.linear(100.0, 6, 4.0) == Rope(100.0, (4.0, 4.0, 4.0))
  assert rotary.linear(100.0, 6, 1.0) == Rope(100.0)


@pytest.mark.parametrize('factor', [8.0, 32.0])
def test_llama_3_divides_slow_frequencies(factor):
  rope = rotary.llama3(500000.0, 128, factor, 8192)
  assert rope.divisors == pytest.approx(llama3_divisors(factor), rel=1e-12)
  assert rope.amplitude == 1
  # All three kinds are there: left alone, mixed, divided by the factor.
  assert rope.divisors[0] == 1
  assert rope.divisors[-1] == pytest.approx(factor)
  between = [x for x in rope.divisors if 1.001 < x < factor - 0.001]
  assert len(between) > 3
  assert np.all(np.diff(rope.divisors) >= 0)


def test_yarn_divides_what_turns_seldom():
  rope = rotary.yarn(500000.0, 128, 8.0, 8192)
  assert rope.divisors == pytest.approx(
    yarn_divisors(8.0, 8192, 500000.0, 128), rel=1e-12
  )
  assert rope.amplitude == pytest.approx(0.1 * math.log(8) + 1)
  untruncated = rotary.yarn(500000.0, 128, 8.0, 8192, truncate=False)
  assert untruncated.divisors != rope.divisors
  assert untruncated.divisors == pytest.approx(rope.divisors, rel=0.2)


def test_amplitudes_of_yarn():
  table = {'rope_type': 'yarn', 'factor': 40.0}
  assert from_table(**table).amplitude == pytest.approx(1.3688879454)
  assert from_table(**table, attention_factor=1.5).amplitude == 1.5
  # DeepSeek's two numbers; equal ones cancel.
  equal = from_table(**table, mscale=0.7, mscale_all_dim=0.7)
  assert equal.amplitude == 1
  apart = from_table(**table, mscale=1.0, mscale_all_dim=0.5)
  assert apart.amplitude == pytest.approx(1.3688879454 / 1.1844439727)
  alone = from_table(**table, mscale=0.7)
  assert alone == from_table(**table)
  assert from_table(**table, mscale=0, mscale_all_dim=1) == alone


def test_what_yarn_takes_from_the_context_length():
  table = {'rope_type': 'yarn', 'original_max_position_embeddings': 8192}
  assert from_table(**table) == from_table(**table, factor=8.0)
  table = {'rope_type': 'yarn', 'factor': 2.0}
  assert from_table(**table) == from_table(
    **table, original_max_position_embeddings=65536
  )


def test_a_factor_of_one_changes_nothing():
  for rope in (
    rotary.linear(500.0, 16, 1.0),
    rotary.llama3(500.0, 16, 1.0, 32),
    rotary.yarn(500.0, 16, 1.0, 32),
  ):
    assert rope == Rope(500.0)


@pytest.mark.parametrize(
  'table',
  [
    {'rope_type': 'linear', 'factor': 4.0},
    {
      'rope_type': 'llama3',
      'factor': 8.0,
      'low_freq_factor': 1.0,
      'high_freq_factor': 4.0,
      'original_max_position_embeddings': 8192,
    },
    {
      'rope_type': 'yarn',
      'factor': 8.0,
      'original_max_position_embeddings': 8192,
    },
    {
      'rope_type': 'yarn',
      'factor': 8.0,
      'original_max_position_embeddings': 8192,
      'beta_fast': 16,
      'beta_slow': 2,
      'mscale': 1.0,
      'mscale_all_dim': 0.5,
      'truncate': False,
    },
  ],
  ids=lambda table: table['rope_type'],
)
@pytest.mark.parametrize('head_dim', [64, 128])
def test_frequencies_are_those_of_transformers(table, head_dim):
  pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

  config = transformers.AutoConfig.for_model(
    'llama',
    hidden_size=4 * head_dim,
    num_attention_heads=4,
    max_position_embeddings=65536,
    rope_theta=500000.0,
    rope_scaling=dict(table),
  )
  wanted, amplitude = ROPE_INIT_FUNCTIONS[table['rope_type']](config, 'cpu')
  rope = from_table(head_dim, **table)
  plain = 500000.0 ** (-np.arange(0, head_dim, 2) / head_dim)
  found = plain / np.asarray(rope.divisors)
  np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-6)
  assert rope.amplitude == pytest.approx(amplitude)


def test_scalings_are_found_again_by_their_divisors():
  for table in (
    {},
    {'rope_type': 'linear', 'factor': 2.5},
    {'rope_type': 'yarn', 'factor': 4.0, 'attention_factor': 1.25},
    {
      'rope_type': 'llama3',
      'factor': 8.0,
      'low_freq_factor': 1.0,
      'high_freq_factor': 4.0,
      'original_max_position_embeddings': 32,
    },
  ):
    # A head so short that no frequency is divided by the whole factor.
    for head_dim in (6, 64):
      rope = from_table(head_dim, 64, 100.0, **table)
      found = rotary.to_hf(rope, head_dim, 64)
      assert from_table(head_dim, 64, 100.0, **found) == rope


def test_divisors_that_no_scaling_gives():
  rope = Rope(100.0, (2.0, 1.0, 2.0))
  with pytest.raises(ValueError, match=r'divisors from 1 to 2 and amplitude 1'):
    rotary.to_hf(rope, 6, 64)
  with pytest.raises(ValueError, match=r'amplitude 3 '):
    rotary.to_hf(Rope(100.0, (2.5,) * 3, 3.0), 6, 64)
