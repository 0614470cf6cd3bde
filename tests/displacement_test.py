# SPDX-License-Identifier: Apache-2.0
"""How far the function moves: closed forms, one set of members, matches."""

import math

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from scipy import special

from thicket import families, perturb, sharding, trees
from thicket.analysis import displacement

SEED = 2**35 + 3
# Low-rank members differ too much for means of a few hundred.
DENSE = pytest.mark.parametrize('family', ['gaussian', 'rademacher'])
EACH = pytest.mark.parametrize('family', families.FAMILIES)
ROWS = np.random.default_rng(0).normal(size=(6, 9)).astype(np.float32)


def linear(params, data):
  """[B, D] hidden states or logits."""
  return data @ params['w']


def _weights(columns=64, dtype=np.float32, rows=9):
  rng = np.random.default_rng(1)
  return {'w': rng.normal(size=(rows, columns)).astype(dtype)}


def _mover(outputs=linear, params=None, data=ROWS, devices=1, **more):
  settings = {
    'key': SEED,
    'num_members': 8,
    'measure': 'rms',
    'mesh': sharding.make_mesh(jax.devices()[:devices]),
  } | more
  params = _weights() if params is None else params
  return displacement.Mover(outputs, params, data, **settings)


def _exact_kl(base, member):
  """float64 [...], by definition."""
  base, member = (np.asarray(x, np.float64) for x in (base, member))
  p, q = special.log_softmax(base, -1), special.log_softmax(member, -1)
  return (np.exp(p) * (p - q)).sum(-1)


# The measures.


@pytest.mark.parametrize('move', [1e-4, 1e-2, 0.3, 1.0, 3.0, 9.0, 40.0])
@pytest.mark.parametrize('level', [0.0, 30.0])
def test_kl_is_exact_from_small_moves_to_large(move, level):
  rng = np.random.default_rng(0)
  base = (level + 3 * rng.normal(size=(5, 200))).astype(np.float32)
  member = (base + move * rng.normal(size=base.shape)).astype(np.float32)
  got = jax.jit(displacement.kl)(base, member)
  assert got.dtype == jnp.float32
  np.testing.assert_allclose(got, _exact_kl(base, member), rtol=2e-5)


def test_kl_of_two_classes_by_hand():
  base = jnp.log(jnp.array([[0.5, 0.5], [0.9, 0.1]]))
  member = jnp.log(jnp.array([[0.25, 0.75], [0.1, 0.9]]))
  want = [0.5 * math.log(4 / 3), 0.8 * math.log(9)]
  np.testing.assert_allclose(displacement.kl(base, member), want, rtol=1e-6)
  swapped = [0.75 * math.log(1.5) - 0.25 * math.log(2), 0.8 * math.log(9)]
  np.testing.assert_allclose(displacement.kl(member, base), swapped, rtol=1e-6)


def test_kl_does_not_see_what_softmax_does_not():
  base = np.random.default_rng(0).normal(size=(4, 3, 11)).astype(np.float32)
  member = base[:, :, ::-1].copy()
  moved = displacement.kl(base, member + np.float32(2.0))
  np.testing.assert_allclose(moved, _exact_kl(base, member).mean(1), rtol=1e-5)
  # A constant added is rounded away only as far as the logits are.
  assert displacement.kl(base, base + np.float32(2.0)).max() < 1e-13


def test_kl_of_equal_logits_is_zero_even_with_masked_classes():
  base = np.float32([[1e4, -3.3, 0.1, -np.inf], [7, 7, -np.inf, -np.inf]])
  np.testing.assert_array_equal(displacement.kl(base, base), [0, 0])
  member = base + np.float32([[0, 0, 0.5, 0], [0.5, 0, 0, 0]])
  got = displacement.kl(base, member)
  two = _exact_kl(base[1, :2], member[1, :2])
  np.testing.assert_allclose(got, [0, two], rtol=1e-6)


def test_kl_is_infinite_where_a_class_is_lost():
  base, member = np.float32([[0, 0]]), np.float32([[0, -np.inf]])
  assert displacement.kl(base, member) == np.inf
  got = displacement.kl(member, base)  # the other way it is log 2
  np.testing.assert_allclose(got, math.log(2), rtol=1e-6)


def test_rms_by_hand():
  base = np.float32([[[3, -3], [3, 3]], [[1, 1], [1, 1]]])
  member = base + np.float32([[[1, 1], [1, -1]], [[4, 0], [0, 0]]])
  np.testing.assert_allclose(displacement.rms(base, member), [1, 2])
  got = displacement.rms(base, member, relative=True)
  np.testing.assert_allclose(got, [1 / 3, 2])
  narrow = displacement.rms(base.astype(ml_dtypes.bfloat16), member)
  assert narrow.dtype == jnp.float32


# Closed forms for a linear model.


@DENSE
def test_mean_square_move_of_a_linear_model_is_sigma_squared_times_x(family):
  sigmas, members = [1e-3, 0.1], 200
  got = _mover(num_members=members, family=family)(sigmas)
  # E of the mean over outputs of (dW x)^2 is sigma^2 |x|^2, for any family.
  want = np.square(sigmas) * np.square(ROWS).sum(1).mean()
  np.testing.assert_array_less(
    abs(got.mean**2 - want), 4 * 2 * got.mean * got.error
  )
  assert (got.error < 0.02 * got.mean).all()
  assert got.values.shape == (2, members)
  assert (got.measure, got.family) == ('rms', family)


def test_signs_move_one_input_by_exactly_sigma():
  one = np.eye(9, dtype=np.float32)[:1]
  zero = {'w': np.zeros((9, 64), np.float32)}
  got = _mover(params=zero, data=one, family='rademacher')([0.25, 0.5])
  np.testing.assert_array_equal(got.values, [[0.25] * 8, [0.5] * 8])
  np.testing.assert_array_equal(got.mean, [0.25, 0.5])
  np.testing.assert_array_equal(got.error, [0, 0])


def test_relative_moves_are_divided_by_each_row_of_the_base():
  params = _weights()
  got = _mover(params=params, measure='relative', num_members=200)(0.01)
  base = np.square(ROWS @ params['w']).mean(1)
  want = 1e-4 * (np.square(ROWS).sum(1) / base).mean()
  assert abs(got.mean[0] ** 2 - want) < 8 * got.mean[0] * got.error[0]


@EACH
def test_small_divergence_is_half_the_variance_of_the_logits(family):
  sigma, params = 1e-3, _weights(5)
  got = _mover(params=params, measure='kl', num_members=400, family=family)(
    [sigma, 2 * sigma]
  )
  # Half the variance under p of dz = dW x; dz is independent over classes, so
  # its expectation is sigma^2 |x|^2 (1 - sum p^2) / 2.
  p = special.softmax((ROWS @ params['w']).astype(np.float64), -1)
  row = np.square(ROWS).sum(1) * (1 - np.square(p).sum(1)) / 2
  assert abs(got.mean[0] - sigma**2 * row.mean()) < 4 * got.error[0]
  assert got.error[0] < 0.1 * got.mean[0]
  assert got.mean[1] / got.mean[0] == pytest.approx(4, rel=1e-2)


def test_the_statistics_over_members():
  root = _mover(num_members=6)([0.1])
  squares = root.values.astype(np.float64)[0] ** 2
  assert root.mean[0] ** 2 == pytest.approx(squares.mean(), rel=1e-12)
  error = squares.std(ddof=1) / math.sqrt(6) / (2 * root.mean[0])
  assert root.error[0] == pytest.approx(error, rel=1e-12)
  found = _mover(measure='kl', num_members=6)([0.1])
  values = found.values.astype(np.float64)[0]
  assert found.mean[0] == pytest.approx(values.mean(), rel=1e-12)
  error = values.std(ddof=1) / math.sqrt(6)
  assert found.error[0] == pytest.approx(error, rel=1e-12)
  assert np.isnan(_mover(num_members=1)(0.1).error).all()


# Members.


def test_members_are_those_of_a_perturber():
  params, sigma = _weights(), 0.05
  got = _mover(params=params, num_members=5)(sigma)
  mesh = sharding.make_mesh(jax.devices()[:1])
  perturber = perturb.Perturber(
    params, trees.default_spec(params), seed=SEED, mesh=mesh
  )
  moved = perturber.write(range(5), [sigma] * 5, perturber.buffers(5))['w']
  difference = ROWS @ (np.asarray(moved, np.float64) - params['w'])
  want = np.sqrt(np.square(difference).mean(axis=(1, 2)))
  np.testing.assert_allclose(got.values[0], want, rtol=1e-4)


@pytest.mark.parametrize('measure', displacement.MEASURES)
def test_sigma_zero_gives_zero_exactly(measure):
  def deep(params, data):
    return jnp.tanh(linear(params, data)) @ params['w'].T

  got = _mover(deep, measure=measure)([0, 0.1, 0])
  assert (got.values[[0, 2]] == 0).all()
  assert (got.mean[[0, 2]] == 0).all()
  assert (got.error[[0, 2]] == 0).all()
  assert (got.values[1] > 1e-4).all()


@pytest.mark.parametrize('measure', ['kl', 'rms'])
def test_nested_members_on_any_mesh_and_beside_any_sigma(measure):
  want = _mover(measure=measure, num_members=20)([0.01, 0.1]).values
  few = _mover(measure=measure, num_members=3)(0.1).values
  np.testing.assert_array_equal(few[0], want[1, :3])
  for devices in (3, 8):
    got = _mover(measure=measure, num_members=20, devices=devices)([0.01, 0.1])
    np.testing.assert_array_equal(got.values, want)
  assert len(np.unique(want)) == 40


def test_masks_and_scales_are_those_of_a_search():
  params = _weights() | {'b': np.zeros(64, np.float32)}
  both = lambda params, data: linear(params, data) + params['b']
  full, only = (
    _mover(both, params, np.zeros_like(ROWS), family='rademacher', **options)
    for options in ({}, {'only': 'b'})
  )
  np.testing.assert_array_equal(full(0.5).values, only(0.5).values)
  none = _mover(both, params, np.zeros_like(ROWS), skip='b')(0.5)
  np.testing.assert_array_equal(none.values, np.zeros((1, 8)))
  size = np.sqrt(np.square(params['w'].astype(np.float64)).mean())
  relative = _mover(scale='relative')(0.1)
  np.testing.assert_allclose(
    relative.values, _mover()(0.1 * size).values, rtol=1e-5
  )


def test_bfloat16_moves_in_steps_of_its_last_place():
  one = np.eye(9, dtype=np.float32)[:1]
  ones = {'w': np.ones((9, 64), ml_dtypes.bfloat16)}
  wide = lambda params, data: linear(
    {'w': params['w'].astype(jnp.float32)}, data
  )
  step = 2.0**-7  # above 1; below 1 it is half of that
  got = _mover(wide, ones, one, family='rademacher')([step / 8, step])
  # An eighth of a step is rounded away, to either side.
  assert (got.values[0] == 0).all()
  np.testing.assert_array_equal(got.values[1], [step] * 8)


def test_the_outputs_are_traced_once():
  traced = 0

  def counted(params, data):
    nonlocal traced
    traced += 1
    return linear(params, data) + jnp.arange(64)  # by users' own rules

  mover = _mover(counted, num_members=20)
  mover([0.1, 0.2]), mover(0.3)
  assert traced == 1


def test_one_call_is_a_mover_called():
  settings = {
    'key': jax.random.key(4), 'num_members': 3, 'measure': 'kl',
    'members_at_a_time': 2,
  }  # fmt: skip
  got = displacement.displacement(linear, _weights(), ROWS, 0.1, **settings)
  want = _mover(**settings | {'key': 4}, devices=8)(0.1)
  np.testing.assert_array_equal(got.values, want.values)


# Matched sigmas.


def _power(slope, factor=1.0):
  """A curve in closed form, mean = factor * sigma**slope."""

  def curve(sigma):
    mean = np.array([factor * sigma**slope])
    return displacement.Displacement(
      'kl', 'made', np.array([sigma]), mean[:, None], mean, 0.1 * mean
    )

  return curve


@pytest.mark.parametrize('slope', [0.3, 1.0, 2.0])
def test_a_power_law_is_matched_by_one_secant(slope):
  want = 0.037
  got = displacement.matched_sigma(
    5 * want**slope, _power(slope, 5), bracket=(1e-5, 1), tolerance=1e-9
  )
  assert got.sigma == pytest.approx(want, rel=1e-8)
  assert got.mean == pytest.approx(5 * want**slope, rel=1e-9)
  assert got.error == pytest.approx(0.1 * got.mean)
  assert got.evaluations == 3


def test_a_curve_that_bends_is_matched_within_the_tolerance():
  # Nothing below 0.01, as with weights of few bits, then up to a plateau.
  def curve(sigma):
    return _power(1)(math.tanh(max(sigma - 0.01, 0) * 40) ** 2)

  for target in (1e-6, 0.01, 0.5, 0.999):
    got = displacement.matched_sigma(
      target, curve, bracket=(1e-4, 10), tolerance=1e-6
    )
    assert got.mean == pytest.approx(target, rel=2e-6)
    want = 0.01 + math.atanh(math.sqrt(target)) / 40
    assert got.sigma == pytest.approx(want, rel=1e-4)


def test_a_curve_that_explodes_does_not_hold_one_end():
  # Secants alone would creep up from the low end.
  curve = lambda sigma: _power(1)(math.exp(sigma**5))
  got = displacement.matched_sigma(
    math.e, curve, bracket=(0.01, 3), tolerance=1e-6, max_evaluations=25
  )
  assert got.sigma == pytest.approx(1, rel=1e-6)


def test_an_end_of_the_bracket_may_be_the_match():
  for sigma in (0.5, 2.0):
    got = displacement.matched_sigma(sigma, _power(1), bracket=(0.5, 2))
    assert (got.sigma, got.evaluations) == (pytest.approx(sigma), 2)


@pytest.mark.parametrize('measure', ['kl', 'rms'])
def test_families_of_one_variance_match_at_one_sigma(measure):
  sigma = 0.01
  settings = {'measure': measure, 'num_members': 128}
  first = _mover(family='gaussian', **settings)(sigma)
  other = _mover(family='rademacher', **settings)
  got = displacement.matched_sigma(first.mean[0], other, bracket=(1e-4, 1))
  assert abs(math.log(got.mean / first.mean[0])) <= 1e-3
  slope = 2 if measure == 'kl' else 1
  spread = math.hypot(first.error[0], got.error) / got.mean / slope
  assert abs(math.log(got.sigma / sigma)) < 4 * spread + 1e-3
  assert spread < 0.02
  assert got.evaluations <= 8
  again = displacement.matched_sigma(first.mean[0], other, bracket=(1e-4, 1))
  assert again == got


# At the door.


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'measure': 'js'}, "measure 'js'"),
    ({'num_members': 0}, 'num_members = 0'),
    ({'members_at_a_time': 0}, 'members_at_a_time = 0'),
    ({'family': 'cauchy'}, "'cauchy'"),
    ({'scale': 'log'}, "'log'"),
    ({'params': {}}, 'params'),
    ({'key': 1.5}, 'key is float'),
    ({'skip': 'w'}, "skip='w'"),
    ({'outputs': lambda params, data: params['w'].sum()}, r'shape \(\)'),
    (
      {'outputs': lambda params, data: params['w'][0], 'measure': 'kl'},
      r'shape \(64,\)',
    ),
  ],
)
def test_errors_name_the_setting(options, message):
  with pytest.raises(ValueError, match=message):
    _mover(**options)


@pytest.mark.parametrize('sigmas', [-0.1, [0.1, np.nan], np.inf, [[0.1]]])
def test_sigmas_are_checked(sigmas):
  with pytest.raises(ValueError, match='sigmas = '):
    _mover()(sigmas)


@pytest.mark.parametrize(
  ('target', 'options', 'message'),
  [
    (0.0, {}, 'target = 0'),
    (math.nan, {}, 'target = nan'),
    (1.0, {'bracket': (0.0, 1.0)}, 'bracket = '),
    (1.0, {'bracket': (2.0, 1.0)}, 'bracket = '),
    (1.0, {'tolerance': 0.0}, 'tolerance = 0'),
    (9.0, {}, r'\[0.01, 4\].*raise the second sigma'),
    (1e-9, {}, r'\[0.01, 4\].*lower the first sigma'),
    (0.3, {'tolerance': 1e-12, 'max_evaluations': 2}, 'after 2 tries'),
  ],
)
def test_matches_are_checked(target, options, message):
  settings = {'bracket': (0.1, 2.0)} | options
  with pytest.raises(ValueError, match=message):
    displacement.matched_sigma(target, _power(2), **settings)


def test_a_jump_has_no_match():
  def steps(sigma):
    return _power(1)(math.floor(sigma) + 1)

  with pytest.raises(ValueError, match=r'no sigma within .* after 40 tries'):
    displacement.matched_sigma(2.5, steps, bracket=(0.5, 9))


def test_a_blown_up_model_says_so():
  with pytest.raises(ValueError, match='sigma = 2 is inf'):
    displacement.matched_sigma(1.0, _power(2, math.inf), bracket=(2, 3))
