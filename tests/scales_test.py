# SPDX-License-Identifier: Apache-2.0
"""Modular scales: masses add up, and noise is as long as they say."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny

from thicket import families, prng, scales, trees
from thicket.models import decoder


def _draws(family, shape, count=8):
  keys = prng.tensor_keys(0, range(count), ['w'], [0])
  leaf = trees.Leaf(shape, (trees.Segment('w', 0, shape[0]),))
  draw = jax.jit(jax.vmap(lambda own: families.draw(family, own, leaf)))
  return np.asarray(draw(keys), np.float64)


@pytest.mark.parametrize(
  ('name', 'ndim', 'role'),
  [
    ('model.embed_tokens.weight', 2, 'embedding'),
    ('lm_head.weight', 2, 'head'),
    ('model.layers.*.self_attn.q_proj.weight', 2, 'attention'),
    ('model.layers.*.mlp.down_proj.weight', 2, 'mlp'),
    ('model.layers.*.input_layernorm.weight', 1, 'norm'),
    ('params/Dense_0/kernel', 2, 'mlp'),
    ('params/Embed_0/embedding', 2, 'embedding'),
    ('params/PatchEmbed_0/kernel', 4, 'other'),
    ('params/MultiHeadDotProductAttention_0/query/kernel', 3, 'attention'),
    ('params/Dense_0/bias', 1, 'other'),
    ('params/Conv_0/kernel', 4, 'other'),
  ],
)
def test_a_tensor_is_known_by_its_name(name, ndim, role):
  assert scales.role(name, ndim) == role


@pytest.mark.parametrize(
  'family', ['gaussian', 'rademacher', 'low_rank', 'low_rank:4']
)
@pytest.mark.parametrize(
  ('role', 'shape', 'norm', 'tolerance'),
  [
    ('attention', (320, 200), lambda x: np.linalg.norm(x, 2), 0.06),
    ('other', (200, 330), lambda x: np.linalg.norm(x, 2), 0.06),
    ('embedding', (900, 64), lambda x: np.linalg.norm(x, axis=1).max(), 0.08),
    ('norm', (600,), lambda x: np.abs(x).max(), 0.12),
  ],
)
def test_norms_are_those_of_draws(family, role, shape, norm, tolerance):
  found = np.mean([norm(x) for x in _draws(family, shape)])
  rows, columns = (1, *shape)[-2:]
  expected = scales.expected_norm(role, family, rows, columns)
  assert abs(found / expected - 1) < tolerance


@pytest.mark.parametrize('tie_head', [True, False])
def test_lengths_over_all_tensors_are_the_masses(tie_head):
  config = dataclasses.replace(tiny.CONFIG, tie_head=tie_head)
  spec = decoder.canonical_spec(config)
  found = scales.tensor_scales(tiny.params(config), spec, 'modular')
  total = {}
  for leaf, factors in zip(
    jax.tree.leaves(spec), jax.tree.leaves(found), strict=True
  ):
    for segment, rows, factor in zip(
      leaf.segments, leaf.rows, factors, strict=True
    ):
      role = scales.role(segment.name, len(leaf.shape))
      length = factor * scales.expected_norm(
        role, 'gaussian', rows, leaf.num_columns
      )
      total.setdefault(role, []).append(length)
  masses = {'embedding': 1, 'attention': 0.5, 'mlp': 0.5, 'norm': 0.1}
  masses |= {} if tie_head else {'head': 1}
  assert total.keys() == masses.keys()
  for role, lengths in total.items():
    # Each of its tensors alike, and all of them its share of radius 1.
    np.testing.assert_allclose(lengths, lengths[0], rtol=1e-12)
    share = masses[role] / sum(masses.values())
    np.testing.assert_allclose(sum(lengths), share, rtol=1e-12)
  assert len(total['attention']) == 4 * config.num_layers


def test_fusing_does_not_change_a_scale():
  spec = [decoder.canonical_spec(tiny.CONFIG, fused) for fused in (True, False)]
  by_name = []
  for one in spec:
    found = scales.tensor_scales(None, one, 'modular', 'low_rank:2')
    by_name.append(
      {
        segment.full_name: factor
        for leaf, factors in zip(
          jax.tree.leaves(one), jax.tree.leaves(found), strict=True
        )
        for segment, factor in zip(leaf.segments, factors, strict=True)
      }
    )
  assert by_name[0] == by_name[1]


def test_vectors_of_one_element_and_unknown_families():
  assert scales.expected_norm('norm', 'gaussian', 1, 1) == pytest.approx(
    np.sqrt(2 / np.pi)
  )
  with pytest.raises(ValueError, match="noise family 'cauchy'"):
    scales.tensor_scales(None, [], 'modular', 'cauchy')
