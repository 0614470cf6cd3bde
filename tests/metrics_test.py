# SPDX-License-Identifier: Apache-2.0
"""Intervals and tests against SciPy, brute force, and what they promise."""

import itertools

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from scipy import stats

from thicket import metrics


@hypothesis.given(
  st.integers(1, 2000).flatmap(
    lambda n: st.tuples(st.integers(0, n), st.just(n))
  ),
  st.sampled_from([0.5, 0.9, 0.95, 0.99]),
)
def test_wilson_is_scipys(counts, confidence):
  want = stats.binomtest(*counts).proportion_ci(confidence, method='wilson')
  got = metrics.wilson(*counts, confidence)
  np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-14)


def test_wilson_broadcasts_and_is_exact_at_the_edges():
  low, high = metrics.wilson([[0], [5]], [5, 10])
  assert low.shape == high.shape == (2, 2)
  assert low[0].tolist() == [0, 0]
  assert high[1, 0] == 1
  assert low[1, 1] == metrics.wilson(5, 10)[0]
  assert np.all(low <= high)


def test_wilson_of_no_trials_knows_nothing():
  low, high = metrics.wilson([0, 3], [0, 6])
  assert (low[0], high[0]) == (0, 1)
  assert 0 < low[1] < 0.5 < high[1] < 1


@pytest.mark.parametrize(
  ('args', 'message'),
  [
    ((5, 4), 'successes=5 of trials=4'),
    ((-1, 4), 'successes=-1'),
    (([1, np.nan], 4), 'successes=nan'),
    ((1, 4, 95), 'confidence=95'),
  ],
)
def test_wilson_refuses_impossible_counts(args, message):
  with pytest.raises(ValueError, match=message):
    metrics.wilson(*args)


def test_wilson_covers_the_truth_as_often_as_it_says():
  n = 50
  count = np.arange(n + 1)
  low, high = metrics.wilson(count, n)
  truth = np.linspace(0.05, 0.95, 181)[:, None]
  chance = stats.binom.pmf(count, n, truth)
  coverage = (chance * ((low <= truth) & (truth <= high))).sum(axis=1)
  assert 0.945 < coverage.mean() < 0.96
  assert coverage.min() > 0.92


def test_wilson_of_rewards_between_0_and_1_is_wide_enough():
  # Their variance is at most that of 0 and 1 with the same mean.
  rewards = np.random.default_rng(0).beta(0.6, 1.4, (2000, 40))
  low, high = metrics.wilson(rewards.sum(axis=1), 40)
  assert np.mean((low <= 0.3) & (high >= 0.3)) > 0.97
  fine = np.array(metrics.wilson(np.linspace(0, 8, 81), 8))
  assert np.all(np.diff(fine) > 0)
  np.testing.assert_array_equal(fine[:, ::10], metrics.wilson(range(9), 8))


def _some_differences():
  """Rewards of 0 and 1, with ties, with a long tail, and with one event."""
  rng = np.random.default_rng(3)
  b = rng.random(40) < 0.5
  return np.stack(
    [
      rng.random(40) < 0.7,
      rng.integers(0, 5, 40) / 4,
      rng.exponential(size=40),
      b ^ (np.arange(40) == 7),
    ]
  ), b.astype(float)


@pytest.mark.parametrize('method', metrics.METHODS)
def test_paired_bootstrap_is_scipys_with_the_same_draws(method):
  systems, b = _some_differences()
  got = metrics.paired_bootstrap(
    systems, b, method=method, num_resamples=999, confidence=0.9, seed=11
  )
  for i, a in enumerate(systems):
    want = stats.bootstrap(
      (a, b),
      lambda x, y, axis: np.mean(x - y, axis=axis),
      paired=True,
      n_resamples=999,
      confidence_level=0.9,
      method=method,
      rng=np.random.default_rng(11),
    ).confidence_interval
    assert got.estimate[i] == np.mean(a - b)
    np.testing.assert_allclose([got.low[i], got.high[i]], want, rtol=1e-10)


def test_bootstrap_of_two_items_in_closed_form():
  # Means 0, 1/2 and 1 are drawn with chances 1/4, 1/2 and 1/4.
  for confidence, low, high in ((0.95, 0, 1), (0.6, 0, 1), (0.4, 0.5, 0.5)):
    got = metrics.paired_bootstrap([0, 1], [0, 0], confidence=confidence)
    assert got == (0.5, low, high)
    # Symmetric: nothing to correct.
    assert got == metrics.paired_bootstrap(
      [0, 1], [0, 0], confidence=confidence, method='bca'
    )


@pytest.mark.parametrize('method', metrics.METHODS)
@pytest.mark.parametrize(('draws', 'sums'), [(33 * 7, 1000), (1, 1)])
def test_paired_bootstrap_does_not_depend_on_the_chunks(
  method, draws, sums, monkeypatch
):
  rng = np.random.default_rng(4)
  a, b = rng.random((5, 33)), rng.random(33)
  interval = lambda: metrics.paired_bootstrap(
    a, b, method=method, num_resamples=500
  )
  whole = interval()
  monkeypatch.setattr(metrics, '_CHUNK', draws)
  monkeypatch.setattr(metrics, '_SUMS', sums)
  np.testing.assert_array_equal(interval(), whole)


@pytest.mark.parametrize('method', metrics.METHODS)
@pytest.mark.parametrize(
  'function', [metrics.paired_bootstrap, metrics.paired_difference]
)
def test_systems_together_are_systems_alone(function, method):
  rng = np.random.default_rng(5)
  a, b = rng.random((2, 3, 21)), rng.random((3, 21))
  a[1, 2] = b[2]
  interval = lambda a, b: function(a, b, method=method, num_resamples=300)
  got = interval(a, b)
  assert got.low.shape == got.high.shape == got.estimate.shape == (2, 3)
  for i, j in np.ndindex(2, 3):
    alone = interval(a[i, j], b[j])
    assert all(type(value) is float for value in alone)
    assert alone == tuple(values[i, j] for values in got)
  assert interval(a[:0], b).low.shape == (0, 3)


def test_seeds_decide_the_resamples():
  rng = np.random.default_rng(6)
  a, b = rng.random((2, 50))
  first = metrics.paired_bootstrap(a, b)
  assert metrics.paired_bootstrap(a, b) == first
  other = metrics.paired_bootstrap(a, b, seed=1)
  assert other.estimate == first.estimate
  assert other.low != first.low
  assert other == pytest.approx(first, abs=0.005)


@pytest.mark.parametrize('method', metrics.METHODS)
def test_bounds_turn_and_stretch_with_the_rewards(method):
  a, b = _some_differences()
  interval = lambda a, b: metrics.paired_bootstrap(
    a, b, method=method, num_resamples=800
  )
  got = interval(a, b)
  back = interval(b, a)
  np.testing.assert_allclose(back.low, -got.high, rtol=1e-12, atol=1e-15)
  np.testing.assert_allclose(back.high, -got.low, rtol=1e-12, atol=1e-15)
  # SciPy takes sums that differ by rounding for unequal, and moves with them.
  for factor in (2.0**-1040, 1e-30, 0.3, 1 / 3, 1e12):
    np.testing.assert_allclose(
      interval(a * factor, b * factor),
      np.array(got) * factor,
      rtol=1e-9,
      atol=1e-14 * factor,
    )


def test_bca_follows_a_long_tail():
  tail = np.random.default_rng(8).exponential(size=(30, 60))
  plain = metrics.paired_bootstrap(tail, np.zeros(60))
  moved = metrics.paired_bootstrap(tail, np.zeros(60), method='bca')
  assert np.all(moved.low > plain.low)
  assert np.all(moved.high > plain.high)


def test_bca_keeps_its_direction_far_out():
  # Its levels have a pole, which one event in many and near certainty reach.
  one = np.arange(60) == 3
  low, high = metrics.paired_bootstrap(
    one, 0 * one, method='bca', confidence=1 - 1e-12
  )[1:]
  assert low == 0
  assert high > metrics.paired_bootstrap(one, 0 * one, method='bca').high


@pytest.mark.parametrize('method', metrics.METHODS)
def test_no_spread_is_no_accident(method):
  interval = lambda a, b, **options: metrics.paired_bootstrap(
    a, b, method=method, **options
  )
  for value in (0.0, 1.0, -0.1, 1 / 3):
    got = interval(np.full(30, value), np.zeros(30))
    assert got == pytest.approx((value,) * 3, rel=1e-12)
    assert interval([value], [0]) == pytest.approx((value,) * 3, rel=1e-12)
  rounded = interval(np.linspace(0, 1, 200) + 0.1, np.linspace(0, 1, 200))
  assert rounded == pytest.approx((0.1,) * 3, rel=1e-9)
  low, high = interval([0, 1, 1], [0, 0, 0], num_resamples=1)[1:]
  assert 0 <= low == high <= 1


def test_pairing_removes_what_both_systems_share():
  hard = np.linspace(0, 1, 200)
  got = metrics.paired_bootstrap(hard + 0.25, hard)
  assert got == pytest.approx((0.25, 0.25, 0.25))
  back = metrics.paired_bootstrap(hard, hard + 0.25)
  assert back == pytest.approx((-0.25, -0.25, -0.25))


@pytest.mark.parametrize('method', metrics.METHODS)
def test_bootstraps_cover_the_truth_as_often_as_they_say(method):
  rng = np.random.default_rng(0)
  a, b = rng.random((2, 2000, 100)) < np.array([0.6, 0.5])[:, None, None]
  _, low, high = metrics.paired_bootstrap(
    a, b, method=method, num_resamples=2000
  )
  covered = np.mean((low <= 0.1 + 1e-12) & (high >= 0.1 - 1e-12))
  # Four standard errors of a share of 0.95 are 0.02; bootstraps lack a little.
  assert 0.925 < covered < 0.97


def test_bca_divides_its_misses_more_evenly():
  rng = np.random.default_rng(1)
  a = rng.exponential(size=(2000, 60))
  missed = {}
  for method in metrics.METHODS:
    _, low, high = metrics.paired_bootstrap(
      a, np.zeros(60), method=method, num_resamples=2000
    )
    missed[method] = np.mean(high < 1), np.mean(low > 1)
    assert sum(missed[method]) < 0.09
  ratio = {method: short / over for method, (short, over) in missed.items()}
  assert 1 < ratio['bca'] < ratio['percentile'] / 1.5


@pytest.mark.parametrize(
  ('a', 'b', 'options', 'message'),
  [
    ([1, 2], [1], {}, 'a has 2 items, b has 1'),
    ([[1, 2]], [[1]], {}, 'a has 2 items, b has 1'),
    ([], [], {}, r'a has shape \(0,\)'),
    (1, 1, {}, r'a has shape \(\): needs \[..., B\]'),
    ([1, 2], [1, np.inf], {}, r'b\[1\] is inf'),
    ([[1, 2], [3, np.nan]], [1, 2], {}, r'a\[1, 1\] is nan'),
    ([[1]] * 2, [[1]] * 3, {}, r'\(2,1\) \(3,1\)'),
    ([1], [1], {'num_resamples': 0}, 'num_resamples=0'),
    ([1], [1], {'confidence': 1.0}, 'confidence=1.0'),
    ([1], [1], {'method': 'BCa'}, "method='BCa': must be one of"),
  ],
)
@pytest.mark.parametrize(
  'function', [metrics.paired_bootstrap, metrics.paired_difference]
)
def test_paired_intervals_refuse(function, a, b, options, message):
  with pytest.raises(ValueError, match=message):
    function(a, b, **options)


def test_paired_difference_is_the_bootstrap_where_pairs_differ():
  a, b = _some_differences()
  options = {'num_resamples': 700, 'confidence': 0.9, 'seed': 2}
  got = metrics.paired_difference(a, b, bounds=(-9, 9), **options)
  want = metrics.paired_bootstrap(a, b, method='percentile', **options)
  np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize('confidence', [0.9, 0.95])
@pytest.mark.parametrize('method', metrics.METHODS)
def test_paired_difference_is_not_sure_of_what_it_never_saw(method, confidence):
  right = np.random.default_rng(9).random(70) < 0.4
  options = {'method': method, 'confidence': confidence}
  for n in (1, 2, 70):
    unseen = (
      stats.binomtest(0, n).proportion_ci(confidence, method='exact').high
    )
    same = metrics.paired_difference(right[:n], right[:n], **options)
    assert same == pytest.approx((0, -unseen, unseen), rel=1e-12)
    # A share that was not seen may be lost instead of won: 2 apart.
    won = metrics.paired_difference(np.ones(n), np.zeros(n), **options)
    assert won == pytest.approx((1, 1 - 2 * unseen, 1), rel=1e-12)
    lost = metrics.paired_difference(np.zeros(n), np.ones(n), **options)
    assert lost == pytest.approx((-1, -1, 2 * unseen - 1), rel=1e-12)
  wide = metrics.paired_difference(right, right, bounds=(-3, 2), **options)
  assert wide == pytest.approx((0, -3 * unseen, 2 * unseen), rel=1e-12)
  hard = np.linspace(0, 0.7, 70)
  # Adding these is not exact; the second rounds to either side of a grid point.
  for shift in (0.1, (round(0.1 * 2**48) + 0.5) / 2**48):
    shifted = metrics.paired_difference(hard + shift, hard, **options)
    want = shift - unseen * (shift + 1), shift + unseen * (1 - shift)
    assert shifted == pytest.approx((shift, *want), rel=1e-9)


def test_paired_difference_keeps_to_its_bounds():
  with pytest.raises(ValueError, match=r'a - b has -2, outside bounds=\(-1'):
    metrics.paired_difference([0, 1], [2, 1])


def _pairs(n, most):
  """All items of n that only one has right, at most `most` on each side."""
  up, down = np.indices((most + 1, most + 1)).reshape(2, -1)
  up, down = up[up + down <= n], down[up + down <= n]
  item = np.arange(n)
  a = item < up[:, None]
  return up, down, a, ~a & (item < (up + down)[:, None])


def test_the_default_seldom_finds_a_gain_that_is_not_there():
  n = 64
  up, down, a, b = _pairs(n, 22)
  counts = np.stack([up, down, n - up - down], axis=1)
  claims = {
    method: metrics.paired_difference(a, b, method=method).low > 1e-12
    for method in metrics.METHODS
  }
  claims['default'] = metrics.paired_difference(a, b).low > 1e-12
  claims['both'] = claims['default'] & (metrics.mcnemar(a, b) < 0.05)
  worst = dict.fromkeys(claims, 0.0)
  for unequal in np.geomspace(0.01, 0.3, 24):
    shares = [unequal / 2, unequal / 2, 1 - unequal]
    chance = stats.multinomial.pmf(counts, n, shares)
    assert chance.sum() > 0.998
    for name, claim in claims.items():
      worst[name] = max(worst[name], chance[claim].sum())
  assert worst['default'] == worst['percentile'] < 0.026
  assert worst['bca'] > 0.045
  assert worst['both'] < 0.016


def test_mcnemar_is_the_binomial_of_what_differs():
  up, down, a, b = _pairs(40, 13)
  got = metrics.mcnemar(a, b)
  want = [
    stats.binomtest(int(x), int(x + y)).pvalue if x + y else 1.0
    for x, y in zip(up, down, strict=True)
  ]
  np.testing.assert_allclose(got, want, rtol=1e-12)
  np.testing.assert_array_equal(metrics.mcnemar(b, a), got)
  # Items that both have right or both wrong say nothing.
  more = np.tile([True, False], (len(a), 30))
  pad = lambda x: np.concatenate([more, x], axis=1)
  np.testing.assert_array_equal(metrics.mcnemar(pad(a), pad(b)), got)
  wide = np.arange(1319) < 700
  many = stats.binomtest(700, 1319).pvalue
  assert metrics.mcnemar(wide, ~wide) == pytest.approx(many, rel=1e-10)
  assert metrics.mcnemar([True] * 6, [False] * 6) == 2 / 64
  assert metrics.mcnemar([True], [True]) == 1


def test_mcnemar_is_the_permutation_test():
  rng = np.random.default_rng(10)
  a, b = rng.random((2, 12)) < np.array([[0.7], [0.4]])
  swaps = np.array(list(itertools.product([False, True], repeat=12)))
  swapped = np.where(swaps, b, a), np.where(swaps, a, b)
  gain = np.abs(swapped[0].sum(axis=1) - swapped[1].sum(axis=1))
  seen = abs(int(a.sum()) - int(b.sum()))
  assert seen > 0
  assert metrics.mcnemar(a, b) == pytest.approx(
    np.mean(gain >= seen), rel=1e-12
  )
  # Under the null hypothesis it is never too small too often.
  p = metrics.mcnemar(*swapped)
  for alpha in np.unique(p):
    assert np.mean(p <= alpha) <= alpha + 1e-12


def test_mcnemar_broadcasts():
  rng = np.random.default_rng(12)
  a, b = rng.random((2, 3, 20)) < 0.6, rng.random((3, 20)) < 0.4
  got = metrics.mcnemar(a, b)
  assert got.shape == (2, 3)
  for i, j in np.ndindex(2, 3):
    assert got[i, j] == metrics.mcnemar(a[i, j], b[j])


@pytest.mark.parametrize(
  ('a', 'b', 'message'),
  [
    ([True], [1], 'b is int64: needs bool'),
    ([0.5], [True], 'a is float64: needs bool'),
    ([True, True], [True], 'a has 2 items, b has 1'),
  ],
)
def test_mcnemar_refuses(a, b, message):
  with pytest.raises(ValueError, match=message):
    metrics.mcnemar(a, b)


@pytest.mark.parametrize(
  ('p', 'want'),
  [
    ([], []),
    ([0.2], [0.2]),
    # 4 x .005; 3 x .01; 2 x .03; then .04, but not below the one before.
    ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
    ([0.5, 0.01, 0.5], [1, 0.03, 1]),
    ([0.02, 0.02], [0.04, 0.04]),
    ([1, 0], [1, 0]),
  ],
)
def test_holm_by_hand(p, want):
  np.testing.assert_allclose(metrics.holm(p), want, rtol=1e-12, atol=0)


@hypothesis.given(
  st.lists(
    st.floats(0, 1) | st.sampled_from([0.0, 0.01, 0.5, 1.0]),
    min_size=1,
    max_size=6,
  )
)
def test_holm_is_bonferroni_on_every_subset(p):
  # Closed testing: a hypothesis falls with all the sets that it belongs to.
  places = range(len(p))
  subsets = [
    subset
    for size in range(1, len(p) + 1)
    for subset in itertools.combinations(places, size)
  ]
  bonferroni = lambda subset: min(1, len(subset) * min(p[i] for i in subset))
  want = [max(bonferroni(s) for s in subsets if i in s) for i in places]
  np.testing.assert_allclose(metrics.holm(p), want, rtol=1e-12)


@pytest.mark.parametrize(
  ('p', 'message'),
  [
    ([0.1, np.nan], r'p\[1\] is nan'),
    ([1.5], r'p\[0\] is 1.5: must lie in \[0, 1\]'),
    ([[0.1]], r'p has shape \(1, 1\)'),
  ],
)
def test_holm_refuses(p, message):
  with pytest.raises(ValueError, match=message):
    metrics.holm(p)


@hypothesis.given(
  st.lists(st.floats(-5, 5, width=32), min_size=2, max_size=50).filter(
    lambda values: np.std(values) > 1e-3
  )
)
def test_mean_interval_is_students(values):
  got = metrics.mean_interval(values, confidence=0.9)
  want = stats.ttest_1samp(values, 0).confidence_interval(0.9)
  np.testing.assert_allclose(got[1:], want, rtol=1e-6, atol=1e-9)
  assert got.estimate == np.mean(values)


def test_mean_interval_keeps_to_the_reward_range():
  assert metrics.mean_interval([0.4], bounds=(0, 1)) == (0.4, 0, 1)
  assert metrics.mean_interval([0, 1], bounds=(0, 1)) == (0.5, 0, 1)
  assert metrics.mean_interval([0.25, 0.25]) == (0.25, 0.25, 0.25)
  with pytest.raises(ValueError, match='outside bounds'):
    metrics.mean_interval([0.5, 1.5], bounds=(0, 1))
  with pytest.raises(ValueError, match='needs finite values'):
    metrics.mean_interval([0.5, np.nan])


def test_mean_interval_covers_the_truth_as_often_as_it_says():
  rewards = np.random.default_rng(2).random((2000, 12))
  found = [metrics.mean_interval(x, bounds=(0, 1)) for x in rewards]
  covered = np.mean([low <= 0.5 <= high for _, low, high in found])
  # Four standard errors of a share of 0.95 are 0.02.
  assert 0.93 < covered < 0.97


def test_mean_interval_takes_one_system():
  with pytest.raises(ValueError, match=r'values has shape \(1, 2\)'):
    metrics.mean_interval([[0.5, 0.5]])
