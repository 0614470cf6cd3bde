# SPDX-License-Identifier: Apache-2.0
"""Exact pruning: the same top K as all the work, for less of it."""

import hypothesis
import numpy as np
from hypothesis import strategies as st

from thicket import pruning, selection

INF = np.inf


def _run(truth, ends, k, *, max_reward=0.0, seen=None, log=None):
  """Prunes over rewards [N, B] that are known here and asked for there."""
  seen = np.zeros(truth.shape, bool) if seen is None else seen.copy()
  rewards = np.where(seen, truth, np.nan).astype(np.float32)

  def ask(places, rows):
    assert not seen[places, rows].any(axis=1).all() or not places.size
    if log is not None:
      log.append((len(places), rows.stop - rows.start))
    rewards[places, rows] = truth[places, rows]
    seen[places, rows] = True

  saved = pruning.run(ask, rewards, seen, ends=ends, k=k, max_reward=max_reward)
  assert saved == 1 - seen.mean()
  scores = np.full(len(truth), np.nan, np.float32)
  whole = seen.all(axis=1)
  scores[whole] = pruning.mean_scores(rewards[whole])
  return selection.top_k(scores, k).tolist(), scores, saved, seen


def _losses(n=60, rows=24, seed=0, spread=1.0):
  rng = np.random.default_rng(seed)
  scale = np.exp(spread * rng.standard_normal((n, 1)))
  return (-scale * rng.chisquare(2, (n, rows))).astype(np.float32)


@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(
  seed=st.integers(0, 10**6),
  n=st.integers(1, 40),
  ends=st.lists(st.integers(1, 12), max_size=4),
  k=st.integers(1, 8),
  ties=st.booleans(),
)
def test_the_top_k_and_their_scores_are_those_of_the_full_search(
  seed, n, ends, k, ties
):
  truth = _losses(n, 12, seed)
  if ties:
    truth = np.round(truth)
  k, ends = min(k, n), sorted({*ends, 12})
  full, scores, saved, _ = _run(truth, ends, k, max_reward=INF)
  assert saved == 0
  found, part, _, _ = _run(truth, ends, k)
  assert found == full
  np.testing.assert_array_equal(part[found], scores[full])
  whole = ~np.isnan(part)
  assert (part[whole] <= scores[whole]).all()
  # Whoever was dropped is below the K-th best.
  assert (scores[~whole] < scores[full[-1]]).all()


def test_work_is_saved_where_members_differ():
  log = []
  *_, saved, seen = _run(_losses(200), [4, 12, 24], 5, log=log)
  assert saved > 0.5
  assert sum(n * rows for n, rows in log) == seen.sum()
  assert seen[:, :4].all()


def test_nothing_is_saved_where_all_are_equal():
  *_, saved, _ = _run(np.full((9, 8), -1, np.float32), [2, 8], 3)
  assert saved == 0


def test_a_bound_above_zero_is_respected():
  truth = np.zeros((3, 10), np.float32)
  truth[1, 5:] = 1  # behind at first, and the only one who can catch up
  truth[2, 9] = 1
  found, *_ = _run(truth, [5, 10], 1, max_reward=1.0)
  assert found == [1]


def test_rewards_that_are_not_numbers_come_last_and_cost_little():
  truth = _losses(20, 12)
  truth[3, 1] = np.nan
  truth[5, 11] = np.nan
  full, *_ = _run(truth, [4, 12], 4, max_reward=INF)
  found, _, _, seen = _run(truth, [4, 12], 4)
  assert found == full
  assert not seen[3, 4:].any()


def test_with_fewer_numbers_than_k_nobody_is_dropped():
  truth = np.full((5, 6), np.nan, np.float32)
  truth[2] = -1
  found, _, saved, _ = _run(truth, [2, 6], 3)
  assert (found[0], saved) == (2, 0)


def test_what_is_known_is_not_asked_again_and_sets_the_bar():
  truth = np.full((6, 8), -1, np.float32)
  truth[4] = -0.01
  seen = np.zeros(truth.shape, bool)
  seen[4] = True
  log = []
  found, *_ = _run(truth, [2, 8], 1, seen=seen, log=log)
  assert found == [4]
  assert log == [(5, 2)]
