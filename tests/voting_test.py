# SPDX-License-Identifier: Apache-2.0
"""Votes: equal to a Counter filled in rank order, for every input."""

import collections

import chex
import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from thicket import voting

# Few ids, so that ties and repeats are the rule; few shapes, so few compiles.
ANSWERS = st.sampled_from([(1, 3), (2, 5), (7, 4), (16, 6)]).flatmap(
  lambda shape: hnp.arrays(
    np.int32, shape, elements=st.integers(-1, 4) | st.just(2**31 - 1)
  )
)


def _by_hand(column):
  cast = [int(a) for a in column if a >= 0]
  top = collections.Counter(cast).most_common(1) or [(-1, 0)]
  return (*top[0], len(column) - len(cast))


@hypothesis.given(ANSWERS)
@hypothesis.settings(deadline=None)
def test_majority_is_the_counters_most_common(answers):
  vote = voting.majority(answers)
  chex.assert_type(list(vote), np.int32)
  got = list(zip(*(np.asarray(part).tolist() for part in vote), strict=True))
  assert got == [_by_hand(column) for column in answers.T]


@hypothesis.given(ANSWERS)
@hypothesis.settings(deadline=None)
def test_vote_curve_is_nested(answers):
  ks = list(range(1, len(answers) + 1))
  curve = np.asarray(voting.vote_curve(answers, ks))
  assert curve.dtype == np.int32
  want = [[_by_hand(c[:k])[0] for c in answers.T] for k in ks]
  np.testing.assert_array_equal(curve, want)


def test_majority_at_full_size():
  rng = np.random.default_rng(0)
  answers = rng.integers(-1, 9, (64, 2000), dtype=np.int32)
  vote = voting.majority(answers)
  want = np.transpose([_by_hand(column) for column in answers.T])
  np.testing.assert_array_equal(vote, want)
  curve = voting.vote_curve(answers, [64, 1, 50])
  np.testing.assert_array_equal(curve[0], vote.answer)
  np.testing.assert_array_equal(curve[1], answers[0])
  np.testing.assert_array_equal(curve[2], voting.majority(answers[:50]).answer)


@pytest.mark.parametrize(
  ('column', 'want'),
  [
    ([3, 3, 3], (3, 3, 0)),
    ([5, 2, 2, 5], (5, 2, 0)),
    ([-1, 2, 5, 5, 2], (2, 2, 1)),
    ([-1, -1, -1, 4], (4, 1, 3)),
    ([-1, -1], (-1, 0, 2)),
    ([-7, -7, -3], (-1, 0, 3)),
    ([9], (9, 1, 0)),
  ],
)
def test_ties_and_abstentions(column, want):
  vote = voting.majority(np.array(column, np.int32)[:, None])
  assert tuple(int(part[0]) for part in vote) == want


def test_no_question_and_no_size_give_empty_votes():
  assert voting.majority(np.zeros((3, 0), np.int32)).answer.shape == (0,)
  assert voting.vote_curve(np.zeros((3, 2), np.int32), []).shape == (0, 2)


def test_one_trace_for_one_shape(monkeypatch):
  check, traces = voting._check, []
  monkeypatch.setattr(
    voting, '_check', lambda x: (traces.append(x.shape), check(x))
  )
  for fill in range(3):  # a shape that no other test has
    answers = np.full((11, 3), fill, np.int32)
    assert voting.majority(answers).answer.tolist() == [fill] * 3
  assert traces == [(11, 3)]


@pytest.mark.parametrize('k', [0, 4, -1])
def test_sizes_outside_the_ensemble_are_refused(k):
  with pytest.raises(ValueError, match=f'k={k} of 3 members'):
    voting.vote_curve(np.zeros((3, 2), np.int32), [1, k])


@pytest.mark.parametrize(
  'answers',
  [np.zeros((3, 2), np.float32), np.zeros(3, int), np.zeros((0, 2), int)],
)
def test_anything_but_ids_of_members_is_refused(answers):
  with pytest.raises(ValueError, match='needs integers'):
    voting.majority(answers)
  with pytest.raises(ValueError, match='needs integers'):
    voting.vote_curve(answers, [])
