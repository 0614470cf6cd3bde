# SPDX-License-Identifier: Apache-2.0
"""Curves against K and N: nested votes, and resampling in closed form."""

import numpy as np
import pytest

from thicket import panel
from thicket.analysis import curves


def _panel(classes, correct):
  classes = np.array(classes, np.int32)
  correct = np.array(correct, bool)
  return panel.Panel(
    classes=classes,
    lenient_classes=classes,
    correct=correct,
    lenient_correct=correct,
    released=np.zeros(classes.shape, np.float32),
    num_tokens=np.zeros(classes.shape, np.int32),
    texts=[[''] * classes.shape[1]] * len(classes),
    answers=[[None] * classes.shape[1]] * len(classes),
  )


def _spread(members=40, rows=60, seed=0):
  """Members of rising accuracy; class 0 is right; scores are accuracies."""
  rng = np.random.default_rng(seed)
  skill = np.linspace(0.1, 0.8, members)[:, None]
  is_right = rng.random((members, rows)) < skill
  wrong = rng.integers(1, 6, (members, rows))
  wrong[wrong == 5] = -1
  found = _panel(np.where(is_right, 0, wrong), is_right)
  return is_right.mean(1).astype(np.float32), found


def test_against_size_is_a_vote_for_each_size():
  _, voters = _spread(9, 20)
  got = curves.against_size(voters)
  assert got.dtype == bool
  assert got.shape == (9, 20)
  for k in range(1, 10):
    (vote,) = voters.votes([k])
    np.testing.assert_array_equal(got[k - 1], vote.correct)
  assert len(np.unique(got, axis=0)) > 3


def test_against_size_by_hand():
  voters = _panel(
    [[1, 0, -1], [0, 1, -1], [0, 1, 0]], [[0, 1, 0], [1, 0, 0], [1, 0, 1]]
  )
  want = [[0, 1, 0], [0, 1, 0], [1, 0, 1]]
  np.testing.assert_array_equal(curves.against_size(voters), want)


# Populations drawn again.


@pytest.mark.parametrize(('size', 'k'), [(1, 1), (5, 1), (5, 3), (5, 5)])
def test_members_all_alike_leave_nothing_to_chance(size, k):
  row = [0, 0, 3, -1]
  voters = _panel([row] * 6, [[1, 1, 0, 0]] * 6)
  got = curves.resampled_populations(np.full(6, 0.5), voters, size, k)
  assert got == (0.5, 0.5, 0.5)
  assert all(isinstance(value, float) for value in got)


def test_one_member_is_every_population():
  scores, voters = _spread(1, 30)
  want = voters.correct[0].mean()
  got = curves.resampled_populations(scores, voters, 7, 4)
  assert got == pytest.approx((want, want, want), abs=1e-12)


def _one_of(accuracies, rows=100):
  """Members that are right on their first rows, as many as are asked for."""
  correct = np.arange(rows) < rows * np.array(accuracies)[:, None]
  return _panel(np.where(correct, 0, 1), correct)


@pytest.mark.parametrize('scores', [[4, 3, 2, 1], [2, 2, 2, 2], [5, 5, 3, 3]])
def test_the_best_of_n_in_closed_form(scores):
  # Member i is the best of those drawn with probability
  # ((m - i)**n - (m - i - 1)**n) / m**n: by score, or by its id in a tie.
  m, n, num_resamples = 4, 3, 2000
  accuracies = np.array([0.2, 0.9, 0.4, 0.6])
  i = np.arange(m)
  chance = ((m - i) ** n - (m - i - 1) ** n) / m**n
  assert chance.sum() == 1
  mean, low, high = curves.resampled_populations(
    np.array(scores, np.float32),
    _one_of(accuracies),
    n,
    1,
    num_resamples=num_resamples,
    confidence=0.5,
  )
  want = chance @ accuracies
  spread = np.sqrt(chance @ (accuracies - want) ** 2 / num_resamples)
  assert abs(mean - want) < 4 * spread
  # 58% of populations have the first member, and 30% the second at best.
  assert (low, high) == (0.2, 0.9)


def test_scores_decide_and_not_the_order_of_members():
  accuracies = [0.1, 0.9, 0.3, 0.7]
  for best in range(4):
    scores = np.zeros(4)
    scores[best] = 1
    got = curves.resampled_populations(scores, _one_of(accuracies), 200, 1)
    assert got == pytest.approx([accuracies[best]] * 3)


def test_a_score_that_is_not_a_number_comes_last():
  scores = np.array([np.nan, 0.2, np.nan, -0.5])
  voters = _one_of([0.1, 0.9, 0.3, 0.7])
  got = curves.resampled_populations(scores, voters, 200, 1)
  assert got == pytest.approx((0.9, 0.9, 0.9))


def test_a_member_drawn_twice_votes_twice():
  # The worse of two members is right, and wins if it is drawn twice or more
  # of three times: in half of all populations. If it had one vote it would
  # lose each tie, and win only alone, in one of eight.
  voters = _panel([[1], [0]], [[0], [1]])
  mean, low, high = curves.resampled_populations(
    np.array([1.0, 0.5]), voters, 3, 3, num_resamples=2000
  )
  assert abs(mean - 0.5) < 4 * np.sqrt(0.25 / 2000)
  assert (low, high) == (0, 1)


def test_a_population_that_votes_as_a_whole_is_a_mean_of_draws():
  # Voters that agree on nothing: the best-ranked wins every row.
  rng = np.random.default_rng(2)
  correct = rng.random((5, 40)) < 0.5
  classes = np.broadcast_to(np.arange(5)[:, None], (5, 40))
  voters = _panel(classes, correct)
  got = curves.resampled_populations(np.arange(5.0), voters, 2, 2)
  alone = curves.resampled_populations(np.arange(5.0), voters, 2, 1)
  assert got == alone


def test_silence_is_not_right():
  voters = _panel([[-1, 0], [-1, 0]], [[1, 1], [1, 1]])
  got = curves.resampled_populations(np.zeros(2), voters, 4, 2)
  assert got == (0.5, 0.5, 0.5)


def test_the_seed_decides():
  scores, voters = _spread()
  run = lambda **options: curves.resampled_populations(
    scores, voters, 8, 3, num_resamples=50, **options
  )
  assert run() == run() == run(seed=0)
  assert run(seed=1) != run()


def test_larger_populations_look_better():
  scores, voters = _spread()
  found = [
    curves.resampled_populations(scores, voters, size, 3, num_resamples=100)
    for size in (3, 6, 12, 24)
  ]
  means = [mean for mean, _, _ in found]
  assert np.all(np.diff(means) > 0.005)
  for mean, low, high in found:
    assert 0 <= low < mean < high <= 1
  # The best are drawn ever more surely, so populations differ ever less.
  assert found[-1][2] - found[-1][1] < 0.5 * (found[0][2] - found[0][1])


def test_more_confidence_is_a_wider_interval_around_the_same_mean():
  scores, voters = _spread()
  mean, low, high = zip(
    *(
      curves.resampled_populations(scores, voters, 8, 3, confidence=confidence)
      for confidence in (0.5, 0.9, 0.99)
    ),
    strict=True,
  )
  assert len(set(mean)) == 1
  assert low[0] > low[1] > low[2]
  assert high[0] < high[1] < high[2]


def test_more_voters_than_members_are_refused():
  scores, voters = _spread(6)
  with pytest.raises(ValueError, match='k=4 of 3 members'):
    curves.resampled_populations(scores, voters, 3, 4)
