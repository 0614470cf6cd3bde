# SPDX-License-Identifier: Apache-2.0
"""Low-rank noise: its contract, its moments, and factored members."""

import dataclasses
import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from thicket import families, perturb, prng, sharding, trees
from thicket.models import decoder

GOLDEN = json.loads(
  (pathlib.Path(__file__).parent / 'golden' / 'noise.json').read_text()
)


def _leaf(shape, *names, axes=()):
  rows = shape[0] // max(len(names), 1)
  names = names or ('w',)
  return trees.Leaf(
    shape, tuple(trees.Segment(name, 0, rows) for name in names), axes
  )


def _keys(*names, member=0, seed=0):
  return prng.tensor_keys(seed, [member], names, [0] * len(names))[0]


@pytest.mark.parametrize(
  ('family', 'rank'),
  [
    ('gaussian', 0),
    ('rademacher', 0),
    ('low_rank', 1),
    ('low_rank:1', 1),
    ('low_rank:64', 64),
  ],
)
def test_a_family_has_a_rank(family, rank):
  assert families.rank_of(family) == rank


@pytest.mark.parametrize(
  ('family', 'message'),
  [
    ('gausian', "'gausian'; did you mean 'gaussian'"),
    ('lowrank', "'lowrank'; did you mean 'low_rank'"),
    ('', "''; known: gaussian, rademacher, low_rank"),
    ('gaussian:2', "'gaussian:2': only low_rank has a rank"),
    ('low_rank:', "'low_rank:': the rank is a whole number"),
    ('low_rank:-1', "'low_rank:-1': the rank is a whole number"),
    ('low_rank:٢', 'the rank is a whole number'),
    ('low_rank:0', 'the rank is outside 1..64'),
    ('low_rank:65', 'the rank is outside 1..64'),
  ],
)
def test_families_that_are_refused(family, message):
  with pytest.raises(ValueError, match=message):
    families.rank_of(family)


@pytest.mark.parametrize('case', GOLDEN['draws'])
def test_factors_are_the_golden_words_one_after_the_other(case):
  # A is above B in one matrix, so a 3 x 5 tensor of rank 1 takes 8 words.
  key = prng.tensor_keys(
    int(case['seed']), [case['member']], [case['name']], [case['layer']]
  )[0]
  thin = jax.jit(families.factors, static_argnums=(1, 2))(key, _leaf((3, 5)), 1)
  assert thin.outward.shape == (3, 1)
  assert thin.inward.shape == (1, 5)
  got = np.concatenate([np.ravel(thin.outward), np.ravel(thin.inward)])
  golden = np.array([int(text, 16) for text in case['gaussian']], np.uint32)
  np.testing.assert_allclose(got, golden.view(np.float32), rtol=5e-7)


@pytest.mark.parametrize('rank', [1, 2, 7])
def test_noise_is_the_product_of_its_factors(rank):
  leaf = _leaf((12, 5), 'q', 'k', 'v')
  keys = _keys('q', 'k', 'v')
  thin = families.factors(keys, leaf, rank)
  assert thin.outward.shape == (12, rank)
  assert thin.rows == (4, 4, 4)
  assert thin.inward.shape == (3 * rank, 5)
  inward = np.asarray(thin.inward, np.float64).reshape(3, rank, 5)
  expected = [
    np.asarray(part, np.float64) @ own / np.sqrt(rank)
    for part, own in zip(np.split(thin.outward, 3), inward, strict=True)
  ]
  got = families.draw(f'low_rank:{rank}', keys, leaf)
  np.testing.assert_allclose(got, np.concatenate(expected), rtol=0, atol=2e-6)
  for part in np.split(np.asarray(got, np.float64), 3):
    assert np.linalg.matrix_rank(part, 1e-5) == min(rank, 4)


def test_vectors_are_gaussian():
  leaf, keys = _leaf((50,)), _keys('w')
  np.testing.assert_array_equal(
    families.draw('low_rank:3', keys, leaf),
    families.draw('gaussian', keys, leaf),
  )


@pytest.mark.parametrize('rank', [1, 4])
def test_elements_have_mean_0_and_deviation_1_over_members(rank):
  leaf = _leaf((40, 30))
  keys = np.stack([_keys('w', member=i) for i in range(4000)])
  draw = jax.vmap(lambda own: families.draw(f'low_rank:{rank}', own, leaf))
  noise = np.asarray(draw(keys), np.float64)
  # The mean over a matrix of a_i b_j has variance 1 / (E D); its mean square
  # ||a||^2 ||b||^2 / (E D) has one of about 2 / E + 2 / D at rank 1.
  assert abs(noise.mean()) < 5 / np.sqrt(noise.size)
  spread = np.sqrt((2 / 40 + 2 / 30) / len(keys))
  assert abs(np.mean(noise**2) - 1) < 5 * spread
  # Two elements of a row share a factor and are uncorrelated all the same.
  product = (noise[:, :, 1:] * noise[:, :, :-1]).mean(axis=(1, 2))
  assert abs(product.mean()) < 5 * product.std() / np.sqrt(len(keys))


def test_members_and_tensors_share_no_factor():
  leaf = _leaf((400, 300))
  draws = [
    np.ravel(families.draw('low_rank', _keys(name, member=member), leaf))
    for name in ('q', 'k')
    for member in (0, 1)
  ]
  correlation = np.corrcoef(draws)
  np.fill_diagonal(correlation, 0)
  # (a.a' / E)(b.b' / D): a product of two small numbers, with heavy tails.
  assert np.abs(correlation).max() < 10 / np.sqrt(400 * 300)


# Factored members.


def _perturber(config, family, factored, mesh=None, **options):
  mesh = sharding.make_mesh(jax.devices()[:1]) if mesh is None else mesh
  spec = decoder.canonical_spec(config)
  options = {'seed': 3} | options
  return perturb.Perturber(
    sharding.place(mesh, tiny.params(config), spec),
    spec,
    mesh=mesh,
    family=family,
    factored=factored,
    **options,
  )


def _logits(config, perturber, ids, sigmas, dtype=np.float32):
  weights = perturber.write(ids, sigmas, perturber.buffers(len(ids)))
  weights = jax.tree.map(
    lambda x: x.astype(dtype) if x.dtype == jnp.float32 else x, weights
  )
  tokens = np.random.default_rng(0).integers(0, 64, (2, 9)).astype(np.int32)
  positions = np.broadcast_to(np.arange(9), (2, 9))
  model = decoder.Decoder(config)

  @jax.jit
  def run(weights):
    one = lambda weights: model.apply(
      weights, tokens, positions, np.ones((2, 9), bool), all_logits=True
    )[0]
    return jax.vmap(one, in_axes=(perturber.in_axes,))(weights)

  return np.asarray(run(weights))


@pytest.mark.parametrize(
  ('scale', 'rank', 'tie_head'),
  [
    ('absolute', 1, True),
    ('modular', 1, False),
    pytest.param('relative', 3, False, marks=pytest.mark.slow),
  ],
)
def test_factored_members_answer_as_materialised_ones(scale, rank, tie_head):
  config = dataclasses.replace(tiny.CONFIG, tie_head=tie_head)
  sigma = {'absolute': 0.1, 'relative': 0.5, 'modular': 5.0}[scale]
  ids, sigmas = [0, 5, -1, 7], [sigma, -sigma, sigma, 0.0]
  of = lambda factored: _logits(
    config,
    _perturber(config, f'low_rank:{rank}', factored, scale=scale),
    ids,
    sigmas,
  )
  whole, thin = of(False), of(True)
  # Logits are of size 6, and rounded about 40 times on the way: 1e-5 relative
  # to the largest is the tolerance that we state.
  bound = 1e-5 * np.abs(whole).max()
  np.testing.assert_allclose(thin, whole, rtol=0, atol=bound)
  assert np.abs(whole[0] - whole[2]).max() > 1e4 * bound
  assert np.abs(whole[0] - whole[1]).max() > 1e4 * bound
  np.testing.assert_allclose(thin[3], thin[2], rtol=0, atol=bound)


BIASED = dataclasses.replace(
  tiny.CONFIG,
  windows=(4, None),
  qkv_bias=True,
  out_bias=True,
  mlp_bias=True,
  norm_after=True,
  head_norm='head',
  embed_scale=2.0,
)


def test_factored_members_with_biases_answer_as_materialised_ones():
  ids, sigmas = [0, 5, -1], [0.1, -0.1, 0.1]
  whole, thin = (
    _logits(BIASED, _perturber(BIASED, 'low_rank:2', factored), ids, sigmas)
    for factored in (False, True)
  )
  bound = 1e-5 * np.abs(whole).max()
  np.testing.assert_allclose(thin, whole, rtol=0, atol=bound)
  assert np.abs(whole[0] - whole[2]).max() > 1e4 * bound


@pytest.mark.parametrize(
  ('family', 'factored'),
  [('gaussian', False), ('rademacher', False), ('low_rank', True)],
)
@pytest.mark.parametrize('only', ['bias', r'k_proj\.bias', r'[qk]_norm'])
def test_biases_and_head_norms_move_alone_where_masked(family, factored, only):
  spec = decoder.canonical_spec(BIASED)
  mask = trees.trainable(spec, only=only)
  perturber = _perturber(BIASED, family, factored, mask=mask)
  weights = perturber.write([4], [0.1], perturber.buffers(1))['params']
  moved = {}
  for leaf, array, axis, base in zip(
    jax.tree.leaves(spec['params']),
    jax.tree.leaves(weights),
    jax.tree.leaves(
      perturber.in_axes.get('params'), is_leaf=lambda x: x is None
    ),
    jax.tree.leaves(tiny.params(BIASED)),
    strict=True,
  ):
    own = array if axis is None else array[0]
    if not np.array_equal(own, base):
      moved[leaf.segments[0].full_name] = np.asarray(own - base) / 0.1
  wanted = [s.full_name for s in trees.segments(spec)]
  assert moved.keys() == {name for name in wanted if re.search(only, name)}
  unit = np.concatenate([*moved.values()])
  assert 0.5 < np.sqrt(np.mean(unit**2)) < 1.5
  # Each has a draw of its own.
  assert len({x.tobytes() for x in moved.values()}) == len(moved)


def test_factored_weights_carry_members_only_where_they_are_thin():
  perturber = _perturber(tiny.CONFIG, 'low_rank:2', True)
  weights = perturber.write([0, 1, 2], [0.1] * 3, perturber.buffers(3))
  assert jax.tree.structure(weights) == jax.tree.structure(
    perturber.in_axes, is_leaf=lambda axis: axis is None
  )
  spec = decoder.canonical_spec(tiny.CONFIG)
  base = tiny.params()
  for leaf, array, axis, whole in zip(
    jax.tree.leaves(spec),
    jax.tree.leaves(weights['params']),
    jax.tree.leaves(perturber.in_axes['params'], is_leaf=lambda x: x is None),
    jax.tree.leaves(base),
    strict=True,
  ):
    if len(leaf.shape) == 1:
      assert (axis, array.shape) == (0, (3, *leaf.shape))
    else:
      assert axis is None
      np.testing.assert_array_equal(array, whole)
  thin = weights['noise']['layer_1']['attention']['qkv']['kernel']
  c = tiny.CONFIG
  heads = [n * c.head_dim for n in (c.num_heads, c.num_kv_heads)]
  assert thin.rows == (heads[0], heads[1], heads[1])
  assert thin.outward.shape == (3, sum(thin.rows), 2)
  assert thin.inward.shape == (3, 6, c.d_model)


def test_a_frozen_matrix_has_no_factors():
  spec = decoder.canonical_spec(tiny.CONFIG)
  mask = trees.trainable(spec, only='mlp')
  perturber = _perturber(tiny.CONFIG, 'low_rank', True, mask=mask)
  weights = perturber.write([4], [0.1], perturber.buffers(1))
  assert set(weights['noise']) == {'layer_0', 'layer_1'}
  assert set(weights['noise']['layer_0']) == {'mlp'}
  ids, sigmas = [4, -1], [0.5, 0.5]
  frozen = _logits(tiny.CONFIG, perturber, ids, sigmas)
  whole = _logits(
    tiny.CONFIG,
    _perturber(tiny.CONFIG, 'low_rank', False, mask=mask),
    ids,
    sigmas,
  )
  np.testing.assert_allclose(frozen, whole, atol=1e-5 * np.abs(whole).max())


def test_dense_families_have_nothing_to_be_factored():
  with pytest.raises(ValueError, match="'gaussian' has no factors to keep"):
    _perturber(tiny.CONFIG, 'gaussian', True)


@pytest.mark.parametrize('family', families.FAMILIES)
def test_mirror_images_are_as_far_on_the_other_side(family):
  mesh = sharding.make_mesh(jax.devices()[:1])
  base = [np.zeros((6, 40), np.float32), np.zeros(33, np.float32)]
  perturber = perturb.Perturber(
    sharding.replicate(mesh, base),
    trees.default_spec(base),
    seed=1,
    mesh=mesh,
    family=family,
  )
  members = perturber.write([9, 9], [0.3, -0.3], perturber.buffers(2))
  for array in members:
    assert np.any(array)
    np.testing.assert_array_equal(array[0], -array[1])


@pytest.mark.parametrize('family', families.FAMILIES)
@pytest.mark.parametrize('model', [2, 4, 8])
def test_noise_is_drawn_in_place_on_each_part_of_a_model(family, model):
  mesh = sharding.make_mesh(model=model)
  one = sharding.make_mesh(jax.devices()[:1])
  shape = (24, 512)
  weights = np.random.default_rng(0).normal(size=shape).astype(np.float32)
  for axes in (
    (trees.Axis('hidden', 24), None),
    (None, trees.Axis('hidden', 512)),
  ):
    leaf = _leaf(shape, axes=axes)

    def write(mesh, leaf=leaf):
      perturber = perturb.Perturber(
        sharding.place(mesh, [weights], [leaf]),
        [leaf],
        seed=2,
        mesh=mesh,
        family=family,
      )
      # As many members as there are groups of devices, at the least.
      ids = [*range(8)]
      return perturber.write(ids, [0.1] * 8, perturber.buffers(8))[0]

    split = write(mesh)
    parts = {shard.data.shape for shard in split.addressable_shards}
    part = [8 * model // 8, 24, 512]
    part[1 + axes.index(next(filter(None, axes)))] //= model
    assert parts == {tuple(part)}
    np.testing.assert_array_equal(
      np.asarray(split).view(np.uint32), np.asarray(write(one)).view(np.uint32)
    )
    text = perturb._materialise.lower(
      split,
      sharding.place(mesh, [weights], [leaf])[0],
      sharding.spread(mesh, np.zeros((8, 1, 2), np.uint32)),
      sharding.spread(mesh, np.zeros((8, 1), np.float32)),
      family=family,
      leaf=trees.anonymous(leaf),
      mesh=mesh,
    ).compile()
    for collective in ('all-', 'collective-permute', 'reduce-scatter'):
      assert collective not in text.as_text()


@pytest.mark.parametrize('family', ['gaussian', 'low_rank:2'])
def test_shapes_are_those_of_written_members(family):
  mesh = sharding.make_mesh(model=2)
  perturber = _perturber(tiny.CONFIG, family, family != 'gaussian', mesh)
  weights = perturber.write(range(4), [0.1] * 4, perturber.buffers(4))
  expected = perturber.shapes(4)
  assert jax.tree.structure(weights) == jax.tree.structure(expected)
  for array, shape in zip(
    jax.tree.leaves(weights), jax.tree.leaves(expected), strict=True
  ):
    assert (array.shape, array.dtype) == (shape.shape, shape.dtype)
    assert array.sharding.is_equivalent_to(shape.sharding, array.ndim)
