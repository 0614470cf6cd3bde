# SPDX-License-Identifier: Apache-2.0
"""Trust in selection scores, where the true scores are known."""

import json

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from thicket.analysis import quality

FRESH = 2000

REWARDS = hnp.arrays(
  np.float64,
  st.tuples(st.integers(1, 9), st.integers(1, 12)),
  elements=st.sampled_from([0.0, 0.25, 1.0, 1.0]),
)


def _collapse(rng, m):
  """Effects of members of which a tenth forgot most of what they knew."""
  harm = np.where(rng.random(m) < 0.1, -rng.uniform(0, 4, m), 0)
  return harm + 0.05 * rng.standard_normal(m)


EFFECTS = {
  'none': lambda rng, m: np.zeros(m),
  'small': lambda rng, m: 0.05 * rng.standard_normal(m),
  'large': lambda rng, m: 0.2 * rng.standard_normal(m),
  'collapse': _collapse,
}


def _answers(rng, effects, num_items, ease=0.5):
  """Bool [m, r] of members of some skill on items of shared difficulty.

  Right where the logit and what is peculiar to member and item exceed 0, as a
  greedy answer is: most items are right for all members, or wrong for all.
  """
  ease = ease + 1.5 * rng.standard_normal(num_items)
  peculiar = 0.6 * rng.standard_normal((len(effects), num_items))
  return ease + effects[:, None] + peculiar > 0


def _known(rng, effects, num_items=200, **options):
  """Rewards [m, r] on selection items, and scores [m] on 2000 fresh ones."""
  answers = _answers(rng, effects, num_items + FRESH, **options)
  rewards = answers[:, :num_items].astype(np.float64)
  return rewards, answers[:, num_items:].mean(axis=1)


def _best(scores, k):
  return np.argsort(-scores, kind='stable')[:k]


def _errors(rng, effects, num_items, **options):
  """By how much the gain of the best ten of 200 is overestimated, 20 times.

  From raw scores, and from expected ones. Gains are over all members: how hard
  the items are is the same for all.
  """
  raw, shrunk = [], []
  for _ in range(20):
    rewards, true = _known(rng, effects(rng, 200), num_items, **options)
    scores = rewards.mean(axis=1)
    expected = quality.shrinkage(rewards, np.zeros(200, int))
    top = _best(scores, 10)
    gain = true[top].mean() - true.mean()
    raw.append(scores[top].mean() - scores.mean() - gain)
    shrunk.append(expected[top].mean() - scores.mean() - gain)
  return raw, shrunk


@pytest.mark.parametrize('kind', list(EFFECTS))
@pytest.mark.parametrize('num_items', [64, 200])
def test_shrinkage_tells_what_the_selected_earn(kind, num_items):
  rng = np.random.default_rng(5)
  raw, shrunk = _errors(rng, EFFECTS[kind], num_items)
  assert np.mean(raw) > 0.01
  # A gain is estimated to within half a point or so by 20 populations.
  assert abs(np.mean(shrunk)) < 0.007
  assert abs(np.mean(shrunk)) < np.mean(raw) / 3


@pytest.mark.parametrize('ease', [-3, 3])
def test_shrinkage_holds_where_nearly_all_is_wrong_or_right(ease):
  rng = np.random.default_rng(6)
  raw, shrunk = _errors(rng, _collapse, 100, ease=ease)
  assert np.mean(raw) > 0.008
  assert abs(np.mean(shrunk)) < 0.003


def test_shrinkage_is_right_on_average_in_absolute_terms():
  rng = np.random.default_rng(7)
  errors = []
  for _ in range(40):
    rewards, true = _known(rng, 0.2 * rng.standard_normal(100))
    expected = quality.shrinkage(rewards, np.zeros(100, int))
    top = _best(rewards.mean(axis=1), 5)
    errors.append(expected[top].mean() - true[top].mean())
  # 200 items differ from fresh ones by 3 points or so; so 40 times, by 0.5.
  assert abs(np.mean(errors)) < 0.015
  assert np.std(errors) < 0.06


@pytest.mark.parametrize('kind', ['large', 'collapse'])
def test_shrinkage_is_calibrated_in_each_decile(kind):
  rng = np.random.default_rng(8)
  scores, expected, true = [], [], []
  for _ in range(20):
    rewards, fresh = _known(rng, EFFECTS[kind](rng, 200))
    score = rewards.mean(axis=1)
    scores.append(score - score.mean())
    expected.append(
      quality.shrinkage(rewards, np.zeros(200, int)) - score.mean()
    )
    true.append(fresh - fresh.mean())
  scores, expected, true = (np.concatenate(x) for x in (scores, expected, true))
  off = [
    expected[part].mean() - true[part].mean()
    for part in np.array_split(np.argsort(expected), 10)
  ]
  assert np.abs(off).max() < 0.01
  raw = _best(scores, 400)
  assert scores[raw].mean() - true[raw].mean() > 0.012
  assert np.mean((expected - true) ** 2) < np.mean((scores - true) ** 2)


def test_independent_items_count_as_trials_one_for_one():
  rng = np.random.default_rng(9)
  alpha, beta, r = 12.0, 8.0, 50
  rates = rng.beta(alpha, beta, 1500)
  rewards = (rng.random((1500, r)) < rates[:, None]).astype(np.float64)
  got = quality.shrinkage(rewards, np.zeros(1500, int))
  want = (alpha + rewards.sum(axis=1)) / (alpha + beta + r)
  assert np.sqrt(np.mean((got - want) ** 2)) < 0.012
  # Neither no shrinkage nor to the mean would be as near.
  for other in (rewards.mean(axis=1), np.full(1500, rewards.mean())):
    assert np.sqrt(np.mean((other - want) ** 2)) > 0.03


def test_shared_items_are_worth_more_trials_than_their_number():
  rng = np.random.default_rng(10)
  slopes = []
  for _ in range(10):
    rewards, true = _known(rng, 0.1 * rng.standard_normal(300), 100)
    scores = rewards.mean(axis=1)
    # As 100 independent trials these scores would show no difference at all.
    p = scores.mean()
    assert scores.var(ddof=1) < p * (1 - p) / 100
    expected = quality.shrinkage(rewards, np.zeros(300, int))
    slopes.append([np.polyfit(x, true, 1)[0] for x in (expected, scores)])
  shrunk, raw = np.mean(slopes, axis=0)
  assert 0.8 < shrunk < 1.2
  assert raw < 0.6


def test_no_more_spread_than_noise_gives_the_mean_to_all():
  # Scores of 7/8 or 6/8, of which luck alone makes as much as there is.
  rewards = np.ones((4, 8))
  rewards[0, 0] = rewards[1, 1] = rewards[2, 2] = 0
  rewards[3, 3:5] = 0
  got = quality.shrinkage(rewards, np.zeros(4, int))
  np.testing.assert_allclose(got, 27 / 32, rtol=1e-14)
  # A single wrong answer may be luck: spread and noise are exactly the same.
  single = np.ones((5, 11))
  single[2, 0] = 0
  got = quality.shrinkage(single, np.zeros(5, int))
  np.testing.assert_allclose(got, 54 / 55, rtol=1e-14)
  # The same scores without luck: a member is right where a worse one is.
  ladder = np.tril(np.ones((6, 6)))
  got = quality.shrinkage(ladder, np.zeros(6, int))
  assert got[-1] - got[0] > 0.6


def test_a_difference_without_any_luck_is_not_shrunk():
  rewards = np.linspace(0.2, 0.8, 5)[:, None] + np.array([-0.1, 0, 0.1])
  got = quality.shrinkage(rewards, np.zeros(5, int))
  np.testing.assert_allclose(got, rewards.mean(axis=1), rtol=1e-12)


def test_groups_of_one_or_two_expect_their_mean():
  rewards = np.array([[1, 1, 1, 0], [1, 1, 1, 1], [0, 0, 0, 1]], float)
  got = quality.shrinkage(rewards, [7, 3, 3])
  assert got.tolist() == [0.75, 0.625, 0.625]
  one_item = quality.shrinkage([[1], [0], [1], [1]], [0, 0, 0, 0])
  assert one_item.tolist() == [0.75] * 4


@pytest.mark.parametrize('value', [0.0, 1.0])
def test_all_wrong_and_all_right_stay_so(value):
  got = quality.shrinkage(np.full((5, 6), value), np.zeros(5, int))
  assert got.tolist() == [value] * 5
  # One member that always fails, among members that always succeed.
  rewards = np.ones((5, 6))
  rewards[2] = 0
  got = quality.shrinkage(rewards, np.zeros(5, int))
  assert np.all((got >= 0) & (got <= 1))
  assert got[2] < got[0]


@hypothesis.settings(max_examples=50, deadline=None)
@hypothesis.given(REWARDS, st.randoms(use_true_random=False))
def test_shrinkage_keeps_order_range_and_symmetry(rewards, random):
  m = len(rewards)
  groups = np.array([random.randrange(2) for _ in range(m)])
  got = quality.shrinkage(rewards, groups)
  scores = rewards.mean(axis=1)
  for group in np.unique(groups):
    these = np.flatnonzero(groups == group)
    order = these[np.argsort(scores[these], kind='stable')]
    assert np.all(np.diff(got[order]) > -1e-9)
    assert np.all(got[these] >= scores[these].min() - 1e-9)
    assert np.all(got[these] <= scores[these].max() + 1e-9)
    alone = quality.shrinkage(rewards[these], np.zeros(len(these), int))
    np.testing.assert_allclose(got[these], alone, rtol=1e-12, atol=1e-12)
  mixed = random.sample(range(m), m)
  again = quality.shrinkage(rewards[mixed], groups[mixed])
  np.testing.assert_allclose(again, got[mixed], rtol=1e-9, atol=1e-9)
  scaled = quality.shrinkage(8 * rewards - 4, groups, bounds=(-4, 4))
  np.testing.assert_allclose(scaled, 8 * got - 4, rtol=1e-9, atol=1e-9)


def test_split_half_predicts_the_correlation_with_as_many_fresh_items():
  rng = np.random.default_rng(11)
  for size in (0.1, 0.3):
    answers = _answers(rng, size * rng.standard_normal(400), 200)
    rewards = answers.astype(np.float64)
    found = quality.split_half(rewards[:, :100], np.zeros(400, int))
    want = np.corrcoef(rewards[:, :100].mean(1), rewards[:, 100:].mean(1))
    assert found['pooled']['reliability'] == pytest.approx(want[0, 1], abs=0.08)
    # The analysis of variance says the same.
    part = rewards[:, :100]
    score = part.mean(axis=1)
    rest = part - score[:, None] - part.mean(axis=0) + part.mean()
    noise = (rest**2).sum() / (399 * 99) / 100
    assert found['pooled']['reliability'] == pytest.approx(
      1 - noise / score.var(ddof=1), abs=0.03
    )


def test_split_half_of_chance_is_near_zero_and_of_certainty_is_one():
  rng = np.random.default_rng(12)
  answers = _answers(rng, np.zeros(500), 100).astype(np.float64)
  found = quality.split_half(answers, np.zeros(500, int))['pooled']
  assert abs(found['correlation']) < 0.1
  sure = np.linspace(0, 0.5, 6)[:, None] + np.linspace(0, 0.5, 9)
  found = quality.split_half(sure, np.zeros(6, int), num_splits=5)
  assert found['pooled']['correlation'] == pytest.approx(1)
  assert found['groups'][0]['reliability'] == pytest.approx(1)


def test_split_half_asks_within_groups():
  rng = np.random.default_rng(13)
  groups = np.arange(300) % 3
  # Nothing but the group decides how good a member is.
  answers = _answers(rng, np.array([0.5, 0, -1.5])[groups], 100)
  rewards = answers.astype(np.float64)
  found = quality.split_half(rewards, groups)
  as_one = quality.split_half(rewards, np.zeros(300, int))
  assert as_one['pooled']['correlation'] > 0.8
  assert abs(found['pooled']['correlation']) < 0.15
  assert [x['group'] for x in found['groups']] == [0, 1, 2]
  assert [x['members'] for x in found['groups']] == [100] * 3
  only = quality.split_half(rewards[groups == 1], np.ones(100, int))
  assert only['groups'] == [found['groups'][1]]
  shifted = rewards + 10 * groups[:, None]
  moved = quality.split_half(shifted, groups)
  assert moved['pooled']['correlation'] == pytest.approx(
    found['pooled']['correlation'], abs=1e-9
  )


@pytest.mark.parametrize('r', [2, 3, 7, 8])
def test_reliability_is_the_correlation_stepped_up_from_a_half(r):
  rng = np.random.default_rng(14)
  rewards = _answers(rng, 2 * rng.standard_normal(40), r).astype(np.float64)
  (found,) = quality.split_half(rewards, np.zeros(40, int))['groups']
  c, more = found['correlation'], r / (r // 2)
  assert 0 < c < found['reliability'] < 1
  assert found['reliability'] == pytest.approx(more * c / (1 + (more - 1) * c))


def test_halves_that_contradict_each_other_have_no_reliability():
  # Three of a kind: all good at something else, the first a little better.
  rewards = np.repeat(np.eye(4), 2, axis=1)[:, :7] + 0.01 * np.eye(4)[:, :1]
  (found,) = quality.split_half(rewards, np.zeros(4, int))['groups']
  assert -1 < found['correlation'] < 0
  assert found['reliability'] == 0


def test_split_half_without_spread_or_members_is_none():
  rewards = np.ones((9, 6))
  rewards[4:6, :3] = 0
  rewards[6, :5] = 0
  groups = [0, 0, 0, 0, 1, 1, 2, 2, 2]
  found = quality.split_half(rewards, groups)
  kinds = [x['correlation'] is None for x in found['groups']]
  assert kinds == [True, True, False]
  assert found['groups'][0] == {
    'group': 0,
    'members': 4,
    'correlation': None,
    'reliability': None,
  }
  assert found['pooled']['members'] == 7
  assert found['pooled']['correlation'] is not None
  for none in (
    quality.split_half(rewards[:6], groups[:6])['pooled'],
    quality.split_half(rewards[4:6], [0, 1])['pooled'],
    quality.split_half([[1], [0], [1]], [0, 0, 0])['pooled'],
    quality.split_half(np.full((5, 7), 0.1), [0] * 5)['pooled'],
  ):
    assert none['correlation'] is none['reliability'] is None
  # Equal scores are no spread, even if the halves are not equal.
  equal = quality.split_half(np.eye(4), np.zeros(4, int))
  assert equal['pooled']['correlation'] is None


def test_split_half_depends_on_its_seed_only():
  rng = np.random.default_rng(15)
  rewards = _answers(rng, rng.standard_normal(20), 15).astype(np.float64)
  groups = np.arange(20) % 2
  one = quality.split_half(rewards, groups, num_splits=9, seed=1)
  assert one == quality.split_half(rewards, groups, num_splits=9, seed=1)
  assert one != quality.split_half(rewards, groups, num_splits=9, seed=2)


def test_rank_agreement_is_spearmans_within_each_group():
  rng = np.random.default_rng(16)
  groups = np.array([2, 2, 2, 2, 2, 5, 5, 5, 5, 5, 5, 9])
  a = rng.integers(0, 5, 12) / 4 + groups
  b = rng.integers(0, 5, 12) / 4 - groups
  found = quality.rank_agreement(a, b, groups)
  assert [(x['group'], x['members']) for x in found] == [(2, 5), (5, 6), (9, 1)]
  for row in found[:2]:
    these = groups == row['group']
    want = stats.spearmanr(a[these], b[these]).statistic
    assert row['spearman'] == pytest.approx(want)
    low, high = row['interval']
    assert -1 < low < want < high < 1
  assert found[2]['spearman'] is found[2]['interval'] is None


def test_rank_agreements_interval_by_hand_and_by_coverage():
  a, b = [1, 2, 3, 4, 5], [2, 1, 4, 3, 5]
  (found,) = quality.rank_agreement(a, b, [0] * 5, confidence=0.9)
  assert found['spearman'] == pytest.approx(0.8)
  reach = stats.norm.ppf(0.95) * np.sqrt(1.32 / 2)
  want = np.tanh([np.arctanh(0.8) - reach, np.arctanh(0.8) + reach])
  assert found['interval'] == pytest.approx(want)
  rng = np.random.default_rng(17)
  truth = 6 / np.pi * np.arcsin(0.6 / 2)  # of normal pairs correlated by 0.6
  num_covered = 0
  for _ in range(300):
    x = rng.standard_normal(30)
    y = 0.6 * x + 0.8 * rng.standard_normal(30)
    ((low, high),) = (
      row['interval'] for row in quality.rank_agreement(x, y, [0] * 30)
    )
    num_covered += low <= truth <= high
  # 95% of 300 is 285; 4 standard deviations are 15.
  assert 270 <= num_covered < 300


@pytest.mark.parametrize(
  ('a', 'b', 'spearman'),
  [
    ([1, 2, 3, 4, 5], [2, 4, 6, 8, 9], 1),
    ([1, 2, 3, 4, 5], [5, 4, 3, 2, 1], -1),
    ([1, 2, 3], [1, 3, 2], 0.5),
    ([1, 1, 1, 1, 1], [1, 3, 2, 4, 5], None),
    ([1, 2, 3, 4, 5], [2, 2, 2, 2, 2], None),
    ([1, 2], [1, 2], None),
  ],
)
def test_rank_agreement_without_interval(a, b, spearman):
  (found,) = quality.rank_agreement(a, b, [0] * len(a))
  assert found['spearman'] == pytest.approx(spearman)
  assert found['interval'] is None


def test_results_are_plain_json():
  rng = np.random.default_rng(18)
  rewards = rng.integers(0, 2, (8, 10)).astype(np.float32)
  groups = (np.arange(8) % 3).astype(np.int8)
  found = {
    'halves': quality.split_half(rewards, groups),
    'agreement': quality.rank_agreement(
      rewards.mean(axis=1), rewards[:, 0], groups
    ),
    'expected': quality.shrinkage(rewards, groups).tolist(),
  }
  assert json.loads(json.dumps(found, allow_nan=False)) == found
  assert quality.rank_agreement([], [], []) == []


@pytest.mark.parametrize(
  ('difference', 'interval', 'want'),
  [
    (
      0.008,
      (-0.004, 0.021),
      'the members cannot be distinguished from the base on fresh questions '
      '(+0.8 points [-0.4, +2.1])',
    ),
    (
      0.05,
      (0.0301, 0.07),
      'the members scored above the base on fresh questions '
      '(+5.0 points [+3.0, +7.0])',
    ),
    (
      -0.02,
      (-0.03, -0.01),
      'the members scored below the base on fresh questions '
      '(-2.0 points [-3.0, -1.0])',
    ),
    (
      -0.0001,
      (-0.0004, 0.0),
      'the members cannot be distinguished from the base on fresh questions '
      '(+0.0 points [+0.0, +0.0])',
    ),
  ],
)
def test_verdict_claims_what_the_interval_allows(difference, interval, want):
  got = quality.verdict(
    difference, interval, 'the members', 'the base on fresh questions'
  )
  assert got == want


@pytest.mark.parametrize(
  ('call', 'message'),
  [
    (lambda: quality.shrinkage([1, 0], [0, 0]), r'rewards has shape \(2,\)'),
    (lambda: quality.shrinkage([[], []], [0, 0]), r'shape \(2, 0\)'),
    (lambda: quality.shrinkage([[1], [0]], [0]), r'groups has shape \(1,\)'),
    (lambda: quality.shrinkage([[np.nan]], [0]), 'not finite'),
    (lambda: quality.shrinkage([[2]], [0]), 'outside bounds'),
    (
      lambda: quality.shrinkage([[1]], [0], bounds=(1, 0)),
      r'bounds=\(1, 0\)',
    ),
    (lambda: quality.split_half([[1]], [0], num_splits=0), 'num_splits=0'),
    (lambda: quality.split_half([[np.inf]], [0]), 'not finite'),
    (lambda: quality.rank_agreement([1, 2], [1], [0, 0]), 'same members'),
    (lambda: quality.rank_agreement([[1]], [[1]], [0]), 'same members'),
    (lambda: quality.rank_agreement([1], [np.nan], [0]), 'not finite'),
    (
      lambda: quality.rank_agreement([1], [1], [0], confidence=1.0),
      'confidence=1.0',
    ),
    (lambda: quality.verdict(0, (1, 0), 'a', 'b'), r'interval=\(1, 0\)'),
    (lambda: quality.verdict(0, (0, np.nan), 'a', 'b'), 'interval=.*nan'),
  ],
)
def test_quality_refuses(call, message):
  with pytest.raises(ValueError, match=message):
    call()
