# SPDX-License-Identifier: Apache-2.0
"""Intervals against SciPy's, and what they must hold at the edges."""

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


def test_paired_bootstrap_is_scipys_with_the_same_draws():
  rng = np.random.default_rng(3)
  a, b = rng.random(40), rng.random(40)
  got = metrics.paired_bootstrap(
    a, b, num_resamples=999, confidence=0.9, seed=11
  )
  want = stats.bootstrap(
    (a, b),
    lambda x, y, axis: np.mean(x - y, axis=axis),
    paired=True,
    n_resamples=999,
    confidence_level=0.9,
    method='percentile',
    rng=np.random.default_rng(11),
  ).confidence_interval
  assert got.estimate == np.mean(a - b)
  np.testing.assert_allclose(got[1:], want, rtol=1e-12)


def test_paired_bootstrap_does_not_depend_on_the_chunks(monkeypatch):
  rng = np.random.default_rng(4)
  a, b = rng.random(33), rng.random(33)
  whole = metrics.paired_bootstrap(a, b, num_resamples=500)
  monkeypatch.setattr(metrics, '_CHUNK', 33 * 7)
  assert metrics.paired_bootstrap(a, b, num_resamples=500) == whole
  monkeypatch.setattr(metrics, '_CHUNK', 1)
  assert metrics.paired_bootstrap(a, b, num_resamples=500) == whole


def test_pairing_removes_what_both_systems_share():
  hard = np.linspace(0, 1, 200)
  got = metrics.paired_bootstrap(hard + 0.25, hard)
  assert got == pytest.approx((0.25, 0.25, 0.25))
  back = metrics.paired_bootstrap(hard, hard + 0.25)
  assert back == pytest.approx((-0.25, -0.25, -0.25))


def test_paired_bootstrap_covers_the_truth_as_often_as_it_says():
  rng = np.random.default_rng(0)
  num_covered = 0
  for trial in range(200):
    a, b = rng.random((2, 100)) < np.array([[0.6], [0.5]])
    low, high = metrics.paired_bootstrap(a, b, num_resamples=400, seed=trial)[
      1:
    ]
    num_covered += low <= 0.1 <= high
  # 95% of 200 is 190; 4.5 standard deviations below is 176.
  assert 176 <= num_covered < 200


@pytest.mark.parametrize(
  ('a', 'b', 'options', 'message'),
  [
    ([1, 2], [1], {}, 'a has 2 items, b has 1'),
    ([], [], {}, r'a has shape \(0,\)'),
    ([1, 2], [1, np.inf], {}, r'b\[1\] is inf'),
    ([[1]], [[1]], {}, r'a has shape \(1, 1\)'),
    ([1], [1], {'num_resamples': 0}, 'num_resamples=0'),
    ([1], [1], {'confidence': 1.0}, 'confidence=1.0'),
  ],
)
def test_paired_bootstrap_refuses(a, b, options, message):
  with pytest.raises(ValueError, match=message):
    metrics.paired_bootstrap(a, b, **options)


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
