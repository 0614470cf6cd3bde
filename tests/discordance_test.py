# SPDX-License-Identifier: Apache-2.0
"""Spectral discordance against closed forms, and clusters that were planted."""

import itertools

import numpy as np
import pytest
from scipy import stats

from thicket.analysis import discordance


def _one(scores, **options):
  (found,) = discordance.discordance(scores, **options)
  return found


def _normal(rng, n, m, correlation=0.0):
  """Scores [n, m] of tasks correlated alike."""
  own = rng.standard_normal((n, m))
  shared = rng.standard_normal((n, 1))
  return np.sqrt(1 - correlation) * own + np.sqrt(correlation) * shared


def test_percentile_ranks_by_hand():
  scores = [[0.1, 5], [0.7, 5], [0.3, 2], [0.3, 5], [0.9, 9]]
  want = np.array([[0, 2], [3, 2], [1.5, 0], [1.5, 2], [4, 4]]) / 4
  np.testing.assert_array_equal(discordance.percentile_ranks(scores), want)
  np.testing.assert_array_equal(
    discordance.percentile_ranks([[1, 7], [2, 7]]), [[0, 0.5], [1, 0.5]]
  )


def test_identical_columns_do_not_disagree():
  column = np.random.default_rng(0).standard_normal(40)
  found = _one(np.stack([column] * 4, axis=1))
  assert found.discordance == pytest.approx(0, abs=1e-12)
  np.testing.assert_allclose(found.correlation, 1, atol=1e-12)
  assert 0 <= found.low <= found.discordance <= found.high < 1e-12


@pytest.mark.parametrize('m', [2, 3, 7])
def test_the_bound_is_reached_where_centred_ranks_sum_to_zero(m):
  # Row i of a cyclic Latin square holds every rank once.
  square = (np.arange(m)[:, None] + np.arange(m)) % m
  scores = np.concatenate([square, square])  # each member twice: ties too
  found = _one(scores.astype(np.float64))
  assert found.bound == m / (m - 1)
  assert found.discordance == pytest.approx(found.bound, abs=1e-12)
  assert found.discordance <= found.bound
  assert found.low <= found.discordance <= found.high <= found.bound


def test_reversed_columns_have_the_largest_discordance_there_is():
  column = np.random.default_rng(1).standard_normal(25)
  found = _one(np.stack([column, -column], axis=1))
  assert found.discordance == pytest.approx(2)
  assert (found.bound, found.members, found.group) == (2, 25, None)


def test_no_permutations_pass_the_bound():
  orders = list(itertools.permutations(range(4)))
  largest = 0
  for pair in itertools.product(orders, repeat=2):
    scores = np.stack([np.arange(4), *pair], axis=1)
    largest = max(largest, _one(scores, num_resamples=5).discordance)
  assert 1.4 < largest <= 1.5


def test_the_formula_by_hand_and_by_spearman():
  # Spearman 1 - 6 * sum of d^2 / (n (n^2 - 1)): 0.5, -0.5 and -1.
  found = _one([[1, 1, 2], [2, 3, 1], [3, 2, 3]])
  want = {(0, 1): 0.5, (0, 2): 0.5, (1, 2): -0.5}
  for pair, value in want.items():
    assert found.correlation[pair] == pytest.approx(value)
  assert found.discordance == pytest.approx(1 - 0.5 / 3)
  # With ties, and M = 4.
  scores = np.random.default_rng(2).integers(0, 6, (50, 4))
  found = _one(scores)
  rho = stats.spearmanr(scores).statistic
  np.testing.assert_allclose(found.correlation, rho, atol=1e-12)
  off = rho[~np.eye(4, dtype=bool)]
  assert found.discordance == pytest.approx(1 - off.mean())


def test_independent_columns_are_about_1():
  n, m = 500, 7
  rng = np.random.default_rng(3)
  found = [_one(_normal(rng, n, m), num_resamples=1) for _ in range(20)]
  # Each of 21 correlations has variance 1 / (n - 1), and they do not
  # correlate: D has a standard deviation of 0.0098.
  error = 1 / np.sqrt(21 * (n - 1))
  values = np.array([one.discordance for one in found])
  assert np.all(np.abs(values - 1) < 4 * error)
  assert abs(values.mean() - 1) < 4 * error / np.sqrt(20)
  assert 0.6 * error < values.std() < 1.5 * error


def test_monotone_transforms_change_nothing():
  rng = np.random.default_rng(4)
  scores = _normal(rng, 60, 3, 0.4)
  moved = np.stack(
    [np.exp(scores[:, 0]), scores[:, 1] ** 3, 7 + 2 * scores[:, 2]], axis=1
  )
  found, other = _one(scores), _one(moved)
  for name in ('discordance', 'low', 'high'):
    assert getattr(found, name) == getattr(other, name)
  np.testing.assert_array_equal(found.correlation, other.correlation)
  # Turning one task round is not monotone.
  assert _one(scores * [1, 1, -1]).discordance > found.discordance + 0.3


def test_the_interval_covers():
  rng = np.random.default_rng(5)
  rho, m, n, repeats = 0.5, 3, 80, 200
  truth = 1 - 6 / np.pi * np.arcsin(rho / 2)  # of normal columns
  num_covered = 0
  for _ in range(repeats):
    found = _one(_normal(rng, n, m, rho), num_resamples=200)
    assert found.low <= found.discordance <= found.high
    num_covered += found.low <= truth <= found.high
  # 95% of 200 is 190; 4 standard deviations are 12.
  assert 178 <= num_covered < repeats


def test_more_confidence_is_a_wider_interval_and_the_seed_decides():
  scores = _normal(np.random.default_rng(6), 50, 4, 0.3)
  wide, narrow = (_one(scores, confidence=c) for c in (0.99, 0.5))
  assert wide.low < narrow.low < narrow.high < wide.high
  assert wide.discordance == narrow.discordance
  run = lambda seed: _one(scores, seed=seed)
  assert (run(1).low, run(1).high) == (run(1).low, run(1).high)
  assert (run(1).low, run(1).high) != (run(2).low, run(2).high)


def test_chunks_of_resamples_are_resamples_all_the_same(monkeypatch):
  scores = _normal(np.random.default_rng(7), 30, 3)
  whole = _one(scores, num_resamples=50)
  monkeypatch.setattr(discordance, '_ENTRIES', 7 * scores.size)
  chunked = _one(scores, num_resamples=50)
  assert (whole.low, whole.high) == (chunked.low, chunked.high)


def test_sigmas_are_never_pooled():
  rng = np.random.default_rng(8)
  groups = rng.permutation(np.repeat([5, 2], 100))
  scores = _normal(rng, 200, 4)
  # A large sigma harms all tasks, which makes members look alike.
  scores[groups == 5] -= 6
  pooled = _one(scores)
  found = discordance.discordance(scores, groups)
  assert [one.group for one in found] == [2, 5]
  assert pooled.discordance < 0.4
  for one in found:
    alone = _one(scores[groups == one.group])
    assert one.members == 100
    assert one.discordance == alone.discordance
    assert (one.low, one.high) == (alone.low, alone.high)
    assert abs(one.discordance - 1) < 0.15


def test_resamples_in_which_a_task_is_constant_are_left_out():
  # Three members, of which one alone scores in the second task.
  scores = np.array([[1, 0], [2, 0], [3, 1.0]])
  found = _one(scores)
  assert found.discordance == pytest.approx(1 - np.sqrt(0.75))
  assert 0 <= found.low <= found.high <= 2
  # Seed 4 draws a constant task in its only resample.
  assert np.isfinite(_one(scores, num_resamples=1, seed=0).low)
  with pytest.raises(ValueError, match='in each a task is constant'):
    _one(scores, num_resamples=1, seed=4)


# Components and clusters.


def _planted(rng, n=30, m=7, noise=0.05):
  """Three kinds of members, each good at other tasks; labels too."""
  centres = np.zeros((3, m))
  for kind in range(3):
    centres[kind, kind::3] = 1
  labels = rng.permutation(np.repeat(np.arange(3), n))
  return centres[labels] + noise * rng.standard_normal((3 * n, m)), labels


def test_components_are_a_rotation_that_explains_all():
  percentiles = discordance.percentile_ranks(
    _normal(np.random.default_rng(9), 40, 5, 0.5)
  )
  found = discordance.principal_components(percentiles)
  assert found.coordinates.shape == (40, 5)
  eye = np.eye(5)
  np.testing.assert_allclose(
    found.directions @ found.directions.T, eye, atol=1e-12
  )
  back = found.coordinates @ found.directions + percentiles.mean(axis=0)
  np.testing.assert_allclose(back, percentiles, atol=1e-12)
  variances = found.coordinates.var(axis=0)
  np.testing.assert_allclose(
    found.explained, variances / percentiles.var(axis=0).sum(), atol=1e-12
  )
  assert np.all(np.diff(found.explained) <= 0)
  assert found.explained.sum() == pytest.approx(1)
  assert np.all(found.directions.max(axis=1) >= -found.directions.min(axis=1))


def test_components_of_one_direction_and_of_few_members():
  line = np.linspace(0, 1, 9)[:, None] * np.array([[0.6, 0.0, -0.8]])
  found = discordance.principal_components(line)
  np.testing.assert_allclose(found.explained, [1, 0, 0], atol=1e-12)
  np.testing.assert_allclose(found.directions[0], [-0.6, 0, 0.8], atol=1e-12)
  few = discordance.principal_components(np.eye(2, 6))
  assert few.coordinates.shape == (2, 2)
  assert few.directions.shape == (2, 6)


@pytest.mark.parametrize('seed', range(4))
def test_planted_clusters_are_recovered(seed):
  rng = np.random.default_rng(10 + seed)
  scores, labels = _planted(rng)
  percentiles = discordance.percentile_ranks(scores)
  found = discordance.clusters(percentiles, 3, seed=seed)
  # Named by their first members, so equality is equality.
  names = {}
  want = [names.setdefault(label, len(names)) for label in labels]
  np.testing.assert_array_equal(found.labels, want)
  for label in range(3):
    np.testing.assert_allclose(
      found.centres[label], percentiles[found.labels == label].mean(axis=0)
    )
  gaps = percentiles - found.centres[found.labels]
  assert found.inertia == pytest.approx((gaps**2).sum())
  # The first two components are enough to tell the kinds apart.
  flat = discordance.principal_components(percentiles).coordinates[:, :2]
  np.testing.assert_array_equal(discordance.clusters(flat, 3).labels, want)


def test_clusters_are_deterministic_and_better_with_more():
  points = np.random.default_rng(14).random((60, 3))
  inertias = []
  for k in (1, 2, 4, 8, 60):
    found = discordance.clusters(points, k)
    again = discordance.clusters(points, k)
    np.testing.assert_array_equal(found.labels, again.labels)
    np.testing.assert_array_equal(found.centres, again.centres)
    assert np.bincount(found.labels).size == k
    assert np.bincount(found.labels).min() > 0
    squares = ((points[:, None] - found.centres) ** 2).sum(axis=2)
    np.testing.assert_array_equal(squares.argmin(axis=1), found.labels)
    inertias.append(found.inertia)
  assert np.all(np.diff(inertias) < 0)
  assert inertias[0] == pytest.approx(60 * points.var(axis=0).sum())
  assert inertias[-1] == 0


def test_an_empty_cluster_takes_a_point():
  points = np.array([[0.0], [1.0], [10.0]])
  centres = np.array([[0.5], [10.0], [99.0]])
  labels, found, inertia = discordance._lloyd(points, centres)
  assert sorted(labels) == [0, 1, 2]
  assert inertia == 0
  np.testing.assert_array_equal(found[labels], points)


def test_points_that_coincide_are_one():
  points = np.repeat([[0.0, 1.0], [1.0, 0.0]], 5, axis=0)
  found = discordance.clusters(points, 2)
  np.testing.assert_array_equal(found.labels, np.repeat([0, 1], 5))
  with pytest.raises(ValueError, match='k=3: must lie between 1 and 2'):
    discordance.clusters(points, 3)


@pytest.mark.parametrize(
  ('call', 'message'),
  [
    (lambda: discordance.percentile_ranks([1, 2]), r'scores has shape \(2,\)'),
    (lambda: discordance.percentile_ranks([[1, 2]]), r'shape \(1, 2\)'),
    (lambda: discordance.discordance([[1], [2], [3]]), '1 task'),
    (lambda: discordance.discordance([[1, 2], [2, 1]]), '2 members'),
    (
      lambda: discordance.discordance([[1, 2], [2, np.nan], [3, 1]]),
      r'scores\[1, 1\] is nan',
    ),
    (
      lambda: discordance.discordance([[1, 0.5], [2, 0.5], [3, 0.5]]),
      'scores has column 1 constant at 0.5',
    ),
    (
      lambda: discordance.discordance(
        [[1, 2], [2, 3], [3, 1], [1, 1], [1, 2], [1, 3]], [0, 0, 0, 7, 7, 7]
      ),
      'group 7 of scores has column 0 constant at 1',
    ),
    (
      lambda: discordance.discordance([[1, 2], [2, 1], [3, 3]], [0, 0]),
      r'groups has shape \(2,\) for 3 members',
    ),
    (
      lambda: discordance.discordance(np.eye(3), confidence=0),
      'confidence=0',
    ),
    (
      lambda: discordance.discordance(np.eye(3), num_resamples=0),
      'num_resamples=0',
    ),
    (
      lambda: discordance.principal_components(np.ones((3, 2))),
      'same spectrum',
    ),
    (lambda: discordance.clusters(np.eye(3), 0), 'k=0'),
    (lambda: discordance.clusters([1.0], 1), r'points has shape \(1,\)'),
  ],
)
def test_discordance_refuses(call, message):
  with pytest.raises(ValueError, match=message):
    call()
