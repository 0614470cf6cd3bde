# SPDX-License-Identifier: Apache-2.0
"""The race: whom it may drop, and what it saves where the truth is known."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import special

from thicket import metrics, race

REWARDS = hnp.arrays(
  np.float64,
  st.tuples(st.integers(1, 12), st.integers(1, 30)),
  elements=st.sampled_from([0.0, 0.0, 0.5, 1.0, 1.0]),
)


@st.composite
def _races(draw):
  rewards = draw(REWARDS)
  k = draw(st.integers(1, len(rewards)))
  return rewards, k, draw(st.sampled_from([0.1, 1.0, 1.64, 5.0]))


def _population(rng, effects, num_items):
  """0 or 1 [N, r]: members of different skill on items of shared difficulty."""
  ease = 0.5 + 1.5 * rng.standard_normal(num_items)
  own = 0.6 * rng.standard_normal((len(effects), num_items))
  return (ease + effects[:, None] + own > 0).astype(np.float32)


def _mix(rng, size):
  """Effects of members of three sigmas, the largest mostly harmful."""
  sigma = np.arange(size) % 3
  spread = np.array([0.1, 0.4, 1.2])[sigma]
  return spread * rng.standard_normal(size) - np.array([0, 0.3, 2])[sigma]


@pytest.mark.parametrize(
  ('num_items', 'first', 'want'),
  [
    (200, 16, (16, 32, 64, 128, 200)),
    (64, 16, (16, 32, 64)),
    (65, 64, (64, 65)),
    (7, 7, (7,)),
    (1, 1, (1,)),
  ],
)
def test_stages_double_up_to_all_items(num_items, first, want):
  assert race.stages(num_items, first) == want


def test_a_small_race_by_hand():
  rewards = np.zeros((4, 16))
  for member, hits in enumerate([2, 12, 7, 14]):
    rewards[member, :hits] = 1
  low, high = metrics.wilson([2, 12, 7, 14], 16, 0.8)
  z = 1.2815515655446004  # of an interval of 80%
  # For k = 1 the bar is the low bound of 14 hits, for k = 2 that of 12.
  assert high[1] > low[3] > high[2]
  assert race.survivors(rewards, 1, z=z).tolist() == [False, True, False, True]
  assert high[2] > low[1] > high[0]
  assert race.survivors(rewards, 2, z=z).tolist() == [False, True, True, True]
  assert race.survivors(rewards, 3, z=z).tolist() == [False, True, True, True]
  assert race.survivors(rewards, 4, z=z).all()


@pytest.mark.parametrize('n', [1, 7, 40, 200])
@pytest.mark.parametrize('z', [0.3, 1.0, 1.64, 3.0])
def test_the_bounds_are_wilsons(n, z):
  hits = np.arange(n + 1)
  rewards = (np.arange(n) < hits[:, None]).astype(np.float64)
  low, high = metrics.wilson(hits, n, 2 * special.ndtr(z) - 1)
  num_dropped = 0
  for k in hits + 1:
    stays = race.survivors(rewards, k, z=z)
    bar = low[-k]
    is_clear = np.abs(high - bar) > 1e-12
    np.testing.assert_array_equal(stays[is_clear], (high >= bar)[is_clear])
    num_dropped += (~stays).sum()
  assert (num_dropped > 0) == (n > z * z)


@hypothesis.given(_races())
def test_at_least_k_survive_and_nobody_outlives_a_better_one(case):
  rewards, k, z = case
  stays = race.survivors(rewards, k, z=z)
  assert stays.sum() >= k
  score = rewards.sum(axis=1)
  if not stays.all():
    assert score[stays].min() > score[~stays].max()


@hypothesis.given(_races())
def test_wider_intervals_and_larger_k_drop_fewer(case):
  rewards, k, z = case
  stays = race.survivors(rewards, k, z=z)
  assert np.all(stays <= race.survivors(rewards, k, z=2 * z))
  assert np.all(stays <= race.survivors(rewards, min(k + 1, len(rewards)), z=z))
  assert race.survivors(rewards, k, z=np.inf).all()


@hypothesis.given(_races(), st.randoms(use_true_random=False))
def test_members_may_come_in_any_order_and_items_too(case, random):
  rewards, k, z = case
  members, items = (random.sample(range(n), n) for n in rewards.shape)
  want = race.survivors(rewards, k, z=z)
  mixed = rewards[members][:, items]
  np.testing.assert_array_equal(race.survivors(mixed, k, z=z), want[members])


@hypothesis.given(_races())
def test_the_scale_of_rewards_does_not_matter(case):
  rewards, k, z = case
  want = race.survivors(rewards, k, z=z)
  got = race.survivors(8 * rewards - 4, k, z=z, bounds=(-4, 4))
  np.testing.assert_array_equal(got, want)


def test_an_item_that_all_get_right_spares_nobody_new():
  rng = np.random.default_rng(2)
  rewards = _population(rng, _mix(rng, 60), 40)
  wider = np.concatenate([rewards, np.ones((60, 1))], axis=1)
  stays, more = (race.survivors(x, 6) for x in (rewards, wider))
  assert 6 <= stays.sum() < 60
  # The order of the members is the same, so one set holds the other.
  assert np.all(stays <= more) or np.all(more <= stays)
  assert abs(int(stays.sum()) - int(more.sum())) <= 6


def test_a_member_with_nan_stays_only_where_it_is_needed():
  rewards = np.ones((4, 8))
  rewards[1, 3] = np.nan
  rewards[2] = 0
  got = race.survivors(rewards, 1)
  assert got.tolist() == [True, False, False, True]
  assert race.survivors(rewards, 3, z=np.inf).tolist() == [1, 0, 1, 1]
  assert race.survivors(rewards, 4).all()
  replayed = race.replay(rewards, 4, (2, 8))
  assert replayed.top.tolist() == [0, 3, 2, 1]
  assert replayed.seen.tolist() == [8, 8, 8, 8]


def test_float32_rewards_may_lie_at_their_bounds():
  rewards = np.full((3, 5), 1.1, np.float32)
  assert float(rewards[0, 0]) > 1.1
  assert race.survivors(rewards, 1, z=1e-6, bounds=(0, 1.1)).all()


def test_sums_that_differ_by_rounding_only_are_equal():
  rewards = np.array([[0.3, 0.2, 0.1], [0.1, 0.2, 0.3]])
  assert rewards[0].mean() < rewards[1].mean()
  assert race.replay(rewards, 1, (3,)).top.tolist() == [0]


def test_a_small_replay_by_hand():
  rewards = np.zeros((4, 20))
  rewards[0] = 1
  rewards[1, :10] = 1
  rewards[2, 10:] = 1  # as good as member 1, but too late
  rewards[3, 9:] = 1  # better than both, but too late
  got = race.replay(rewards, 2, (10, 20), z=1)
  assert got.seen.tolist() == [20, 20, 10, 10]
  assert got.top.tolist() == [0, 1]
  assert got.saved == 0.25
  assert got.recall == 0.5
  patient = race.replay(rewards, 3, (20,))
  assert patient.seen.tolist() == [20] * 4
  assert patient.top.tolist() == [0, 3, 1]
  assert (patient.saved, patient.recall) == (0, 1)


@hypothesis.given(_races(), st.integers(1, 30))
def test_a_replay_is_the_race_stage_by_stage(case, first):
  rewards, k, z = case
  total = rewards.shape[1]
  rows = race.stages(total, min(first, total))
  got = race.replay(rewards, k, rows, z=z)
  racing = np.arange(len(rewards))
  for n in rows[:-1]:
    stays = race.survivors(rewards[racing, :n], k, z=z)
    assert np.all(got.seen[racing[~stays]] == n)
    racing = racing[stays]
  assert np.all(got.seen[racing] == total)
  assert set(got.top) <= set(racing)
  keys = [(-rewards[i].mean(), i) for i in got.top]
  assert keys == sorted(keys)
  rest = set(racing) - set(got.top)
  assert all((-rewards[i].mean(), i) > keys[-1] for i in rest)
  assert got.saved == pytest.approx(1 - got.seen.sum() / rewards.size)
  endless = race.replay(rewards, k, rows, z=np.inf)
  assert (endless.saved, endless.recall) == (0, 1)


@pytest.mark.parametrize(
  ('z', 'k', 'recall', 'saved'),
  [(1.0, 10, 0.95, 0.6), (1.64, 10, 0.99, 0.35), (1.64, 50, 0.99, 0.25)],
)
def test_a_race_of_500_members_saves_much_and_loses_little(z, k, recall, saved):
  rng = np.random.default_rng(0)
  found = []
  for _ in range(8):
    rewards = _population(rng, _mix(rng, 500), 200)
    found.append(race.replay(rewards, k, race.stages(200, 16), z=z))
  assert np.mean([x.recall for x in found]) >= recall
  assert np.mean([x.saved for x in found]) >= saved


def test_equal_members_are_not_raced_apart():
  rng = np.random.default_rng(1)
  rewards = _population(rng, np.zeros(500), 200)
  got = race.replay(rewards, 10, race.stages(200, 16))
  assert got.saved < 0.02
  assert got.recall == 1


@pytest.mark.parametrize(
  ('call', 'message'),
  [
    (lambda: race.stages(10, 11), 'first=11 of num_items=10'),
    (lambda: race.stages(0, 0), 'first=0'),
    (lambda: race.survivors(np.ones(3), 1), r'shape \(3,\)'),
    (lambda: race.survivors(np.ones((3, 0)), 1), r'shape \(3, 0\)'),
    (lambda: race.survivors(np.ones((3, 2)), 4), 'k=4 of 3 members'),
    (lambda: race.survivors(np.ones((3, 2)), 0), 'k=0'),
    (lambda: race.survivors(np.ones((3, 2)), 1, z=0), 'z=0'),
    (lambda: race.survivors(np.ones((3, 2)), 1, z=np.nan), 'z=nan'),
    (lambda: race.survivors(2 * np.ones((3, 2)), 1), 'a reward is 2, outside'),
    (
      lambda: race.survivors(np.ones((3, 2)), 1, bounds=(1, 1)),
      r'bounds=\(1, 1\)',
    ),
    (
      lambda: race.survivors(np.ones((3, 2)), 1, bounds=(0, np.inf)),
      'both finite',
    ),
    (lambda: race.replay(np.ones((3, 2)), 1, (1,)), r'stages=\(1,\)'),
    (lambda: race.replay(np.ones((3, 2)), 1, ()), r'stages=\(\)'),
    (lambda: race.replay(np.ones((3, 2)), 1, (2, 1, 2)), 'must ascend'),
    (lambda: race.replay(np.ones((3, 2)), 1, (0, 2)), 'must ascend'),
    (lambda: race.replay(np.ones((3, 2)), 4, (2,)), 'k=4 of 3 members'),
  ],
)
def test_race_refuses(call, message):
  with pytest.raises(ValueError, match=message):
    call()
