# SPDX-License-Identifier: Apache-2.0
"""Planes and lines: closed forms, the members of a search, the same bits."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import thicket
from thicket import families, prng, sharding, trees
from thicket.analysis import landscape

SEED, SIGMA = 2**35 + 3, 0.25
SIZES = {'a': (7, 5), 'b': (40,), 'c': ()}
X = np.linspace(-2, 2, 24, dtype=np.float32).reshape(12, 2)


def _params(dtype=np.float32):
  rng = np.random.default_rng(0)
  return {
    name: np.asarray(rng.normal(size=shape)).astype(dtype)
    for name, shape in SIZES.items()
  }


def _noise(member, family='gaussian'):
  """float64 by name, from the contract's own parts."""
  spec = trees.default_spec(_params())
  keys = prng.tensor_keys(SEED, [member], list(spec), [0] * len(spec))[0]

  @jax.jit
  def draw(keys):
    return {
      name: families.draw(family, keys[i : i + 1], leaf)
      for i, (name, leaf) in enumerate(spec.items())
    }

  return {n: np.asarray(x, np.float64) for n, x in draw(keys).items()}


def _flat(tree):
  return np.concatenate([np.ravel(np.asarray(x, np.float64)) for x in tree])


def _all(params, data):
  """Every weight is an output, on two rows."""
  flat = jnp.concatenate([jnp.ravel(x) for x in jax.tree.leaves(params)])
  return jnp.stack([flat, 2 * flat]).astype(jnp.float32) - data


def quadratic(outputs, data):
  return -jnp.square(outputs).sum(axis=-1)


def mlp(params, data):
  hidden = jnp.tanh(data @ params['in'] + params['bias'])
  return hidden @ params['out']


def margin(outputs, data):
  return jnp.tanh(outputs[:, 0] - outputs[:, 1])


def _mlp_params(dtype=np.float32):
  rng = np.random.default_rng(1)
  shapes = {'in': (2, 33), 'bias': (33,), 'out': (33, 3)}
  return {n: rng.normal(size=s).astype(dtype) for n, s in shapes.items()}


def _plane(apply=mlp, params=None, data=X, score=margin, devices=1, **more):
  settings = {
    'key': SEED,
    'sigma': SIGMA,
    'radius': 2.0,
    'resolution': 5,
    'mesh': sharding.make_mesh(jax.devices()[:devices]),
    'points_at_a_time': 4,
  } | more
  kind = settings.pop('kind', landscape.landscape)
  params = _mlp_params() if params is None else params
  return kind(apply, params, data, score, **settings)


def _lines(**more):
  return _plane(kind=landscape.slices, **more)


# Closed forms.


@pytest.mark.parametrize('family', families.FAMILIES)
def test_a_quadratic_score_has_its_closed_form(family):
  offset = np.float32(0.1)
  got = _plane(
    _all, _params(), offset, quadratic, directions=(3, 8), family=family
  )
  np.testing.assert_array_equal(got.x, [-2, -1, 0, 1, 2])
  np.testing.assert_array_equal(got.y, got.x)
  base = _flat(_params().values())
  first, second = (_flat(_noise(m, family).values()) for m in (3, 8))
  for i, y in enumerate(got.y):
    for j, x in enumerate(got.x):
      moved = base + SIGMA * (x * first + y * second)
      rows = [
        -((moved - offset) ** 2).sum(),
        -((2 * moved - offset) ** 2).sum(),
      ]
      assert got.scores[i, j] == pytest.approx(np.mean(rows), rel=2e-6)
  # A wrong axis order or sign would be seen.
  assert abs(got.scores - got.scores.T).max() > 1
  assert abs(got.scores - got.scores[::-1, ::-1]).max() > 1


def test_a_line_of_a_quadratic_score_is_a_parabola():
  got = _lines(
    apply=_all, params=_params(), data=np.float32(0), score=quadratic,
    directions=(5, 0), resolution=9,
  )  # fmt: skip
  assert got.scores.shape == (2, 9)
  base = _flat(_params().values())
  for member, line in zip((5, 0), got.scores, strict=True):
    noise = _flat(_noise(member).values())
    norms = base @ base, 2 * SIGMA * base @ noise, SIGMA**2 * noise @ noise
    want = -2.5 * (norms[0] + norms[1] * got.x + norms[2] * got.x**2)
    np.testing.assert_allclose(line, want, rtol=2e-6)


def test_a_scalar_score_is_taken_as_it_is():
  total = lambda outputs, data: quadratic(outputs, data).mean()
  more = {'apply': _all, 'params': _params(), 'data': np.float32(0)}
  by_rows, whole = (_plane(score=s, **more) for s in (quadratic, total))
  np.testing.assert_allclose(by_rows.scores, whole.scores, rtol=1e-6)


# Base and members.


@pytest.mark.parametrize(
  ('dtype', 'devices'), [(np.float32, 1), (ml_dtypes.bfloat16, 8)]
)
def test_the_centre_is_the_base_bit_for_bit(dtype, devices):
  params = _mlp_params(dtype)
  found = _plane(params=params, devices=devices)
  assert found.scores[2, 2] == np.float32(found.base_score)
  lines = _lines(params=params, devices=devices)
  assert (lines.scores[:, 2] == np.float32(lines.base_score)).all()
  assert found.base_score == pytest.approx(lines.base_score, rel=1e-6)
  assert len(np.unique(found.scores)) > 20  # the others have moved


@pytest.mark.parametrize(
  'options',
  [
    {},
    {'family': 'rademacher'},
    {'scale': 'relative'},
    {'scale': 'modular'},
    {'skip': 'out'},
  ],
  ids=str,
)
def test_one_unit_away_stand_the_members_of_a_search(options):
  mesh = sharding.make_mesh(jax.devices()[:1])
  searched = thicket.search(
    mlp, _mlp_params(), X, margin, key=SEED, num_members=4, top_k=1,
    sigma=SIGMA, mesh=mesh, **options,
  )  # fmt: skip
  plane = _plane(directions=(1, 3), **options)
  assert plane.base_score == pytest.approx(searched.base_score, abs=1e-6)
  assert plane.scores[2, 3] == pytest.approx(searched.scores[1], abs=1e-6)
  assert plane.scores[3, 2] == pytest.approx(searched.scores[3], abs=1e-6)
  lines = _lines(directions=range(4), **options)
  np.testing.assert_allclose(lines.scores[:, 3], searched.scores, atol=1e-6)
  assert np.ptp(searched.scores) > 0.05


def test_lines_of_noise_hold_mirrored_pairs_on_either_side():
  mesh = sharding.make_mesh(jax.devices()[:1])
  searched = thicket.search(
    mlp, _mlp_params(), X, margin, key=SEED, num_members=8, top_k=1,
    sigma=SIGMA, mesh=mesh, antithetic=True,
  )  # fmt: skip
  lines = _lines(directions=range(4))
  pairs = searched.scores.reshape(4, 2)  # at 1 and at -1
  np.testing.assert_allclose(lines.scores[:, [3, 1]], pairs, atol=1e-6)


def test_relative_sigma_and_masks_change_the_plane():
  plain = _plane().scores
  for options in ({'scale': 'relative'}, {'skip': 'out'}):
    assert abs(_plane(**options).scores - plain).max() > 0.01


def test_a_typed_key_is_its_seed():
  by_seed = _plane(key=(5 << 32) + 6)
  key = jax.random.wrap_key_data(np.array([5, 6], np.uint32))
  np.testing.assert_array_equal(_plane(key=key).scores, by_seed.scores)


def test_bfloat16_weights_are_rounded_once():
  params = _params(ml_dtypes.bfloat16)
  got = _plane(_all, params, np.float32(0), quadratic, radius=1, resolution=3)
  first, second = _noise(0), _noise(1)
  moved = [
    np.float32(params[n])
    + np.float32(SIGMA) * (np.float32(first[n]) - np.float32(second[n]))
    for n in params
  ]
  flat = _flat([m.astype(ml_dtypes.bfloat16) for m in moved])
  # 2 in the second row is exact, so only the sums are rounded.
  assert got.scores[0, 2] == pytest.approx(-2.5 * (flat @ flat), rel=1e-5)


def test_weights_that_stay_keep_their_sign_of_zero():
  params = {'w': np.float32([-0.0, 1.0]), 'u': np.float32([-0.0])}
  sign = lambda params, data: 1 / params['u']
  found = _plane(sign, params, X, lambda outputs, data: outputs, skip='u')
  assert (found.scores == -np.inf).all()
  found = _plane(sign, params, X, lambda outputs, data: outputs)
  assert found.base_score == found.scores[2, 2] == -np.inf
  assert np.isfinite(found.scores).sum() == 24


# One program, any mesh.


@pytest.mark.parametrize('dtype', [np.float32, ml_dtypes.bfloat16])
def test_every_mesh_gives_the_same_bits(dtype):
  # 26 points, 4 at a time: seven rounds on one device, one on eight.
  want = [_plane(params=_mlp_params(dtype)), _lines(params=_mlp_params(dtype))]
  for devices in (3, 8):
    for one, kind in zip(want, (_plane, _lines), strict=True):
      got = kind(params=_mlp_params(dtype), devices=devices)
      np.testing.assert_array_equal(got.scores, one.scores)
      assert got.base_score == one.base_score


def test_a_point_does_not_depend_on_the_others():
  few = _plane(resolution=3)  # x = -2, 0, 2
  np.testing.assert_array_equal(_plane().scores[::2, ::2], few.scores)
  lines = _lines(directions=(0, 1, 2))
  np.testing.assert_array_equal(
    _lines(directions=(2,)).scores, lines.scores[2:]
  )


def test_a_grid_is_traced_once():
  traced = 0

  def counted(params, data):
    nonlocal traced
    traced += 1
    return mlp(params, data)

  _lines(apply=counted, directions=range(5))
  assert traced == 1


def test_users_functions_are_traced_under_their_own_rules():
  def loose(params, data):  # float32 + int32, [12, 3] + [3]
    return mlp(params, data) + jnp.arange(3)

  assert np.isfinite(_plane(loose).scores).all()


def test_tensors_in_one_array_move_as_they_do_apart():
  rng = np.random.default_rng(4)
  parts = {n: rng.normal(size=(s, 6)).astype(np.float32) for n, s in
           (('q', 4), ('k', 2))}  # fmt: skip
  fused = {'qk': np.concatenate([parts['q'], parts['k']])}
  segments = trees.Segment('q', 0, 4), trees.Segment('k', 0, 2)
  spec = {'qk': trees.Leaf((6, 6), segments)}
  squares = lambda params, data: jnp.square(
    params['qk'] if 'qk' in params else
    jnp.concatenate([params['q'], params['k']])
  )  # fmt: skip
  score = lambda outputs, data: outputs.mean(axis=1)
  for options in ({}, {'scale': 'relative'}, {'skip': 'k'}):
    apart = _plane(squares, parts, X, score, **options)
    whole = _plane(squares, fused, X, score, spec=spec, **options)
    np.testing.assert_allclose(whole.scores, apart.scores, rtol=1e-6)


# At the door.


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'sigma': 0.0}, 'sigma = 0.0'),
    ({'sigma': float('nan')}, 'sigma = nan'),
    ({'radius': -1.0}, 'radius = -1.0'),
    ({'resolution': 1}, 'resolution = 1'),
    ({'directions': (0, 0)}, r'directions = \(0, 0\)'),
    ({'directions': (0, -1)}, r'directions = \(0, -1\)'),
    ({'directions': (0, 1, 2)}, r'directions = \(0, 1, 2\)'),
    ({'points_at_a_time': 0}, 'points_at_a_time = 0'),
    ({'family': 'cauchy'}, "'cauchy'"),
    ({'scale': 'log'}, "'log'"),
    ({'only': 'nothing'}, 'nothing'),
    ({'key': -1}, 'seed -1'),
    ({'key': 'seven'}, 'key is str'),
    ({'key': jax.random.PRNGKey(0)}, 'key is uint32'),
    ({'key': jax.random.split(jax.random.key(0))}, r'shape \(2, 2\)'),
    ({'params': {}}, 'params'),
    ({'params': {'n': np.arange(3)}}, 'n is int64'),
    ({'score': lambda outputs, data: outputs}, r'\(12, 3\)'),
  ],
)
def test_errors_name_the_setting(options, message):
  with pytest.raises(ValueError, match=message):
    _plane(**options)


def test_a_line_needs_a_direction():
  with pytest.raises(ValueError, match=r'directions = \[\]'):
    _lines(directions=[])
