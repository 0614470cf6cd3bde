# SPDX-License-Identifier: Apache-2.0
"""Exact pruning: the same top K as all the work, for less of it."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from thicket import pruning, selection


def _advance(losses, log=None):
  """Stages that read rewards [N, S, B] and count themselves in the carry."""

  def advance(places, stage, carry):
    carry = np.zeros(len(places), np.int32) if carry is None else carry
    assert (carry == stage).all()  # each goes on from where it stopped
    if log is not None:
      log.append((stage, len(places)))
    return carry + 1, losses[places, stage]

  return advance


def _losses(n=60, stages=5, rows=7, seed=0, spread=1.0):
  rng = np.random.default_rng(seed)
  scale = np.exp(spread * rng.standard_normal((n, 1, 1)))
  rewards = -scale * rng.chisquare(2, (n, stages, rows))
  return rewards.astype(np.float32)


def _best(found, k):
  whole = found.stages == found.stages.max()
  scores = np.where(whole, pruning.mean_scores(found.rewards), np.nan)
  return selection.top_k(scores.astype(np.float32), k).tolist(), scores


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(
  seed=st.integers(0, 10**6),
  n=st.integers(1, 40),
  stages=st.integers(1, 6),
  k=st.integers(1, 8),
  ties=st.booleans(),
)
def test_the_top_k_and_their_scores_are_those_of_the_full_search(
  seed, n, stages, k, ties
):
  losses = _losses(n, stages, 3, seed)
  if ties:
    losses = np.round(losses)
  k = min(k, n)
  full = pruning.run(_advance(losses), n, stages, k, prune=False)
  pruned = pruning.run(_advance(losses), n, stages, k)
  assert full.saved == 0
  best, scores = _best(full, k)
  found, part = _best(pruned, k)
  assert found == best
  np.testing.assert_array_equal(part[found], scores[best])


def test_work_is_saved_where_members_differ():
  losses = _losses(200, 6, 16, spread=1.0)
  log = []
  found = pruning.run(_advance(losses, log), 200, 6, 5)
  assert found.saved > 0.5
  assert sum(count for _, count in log) == found.stages.sum()
  assert (found.stages >= 1).all()


def test_rewards_that_are_not_numbers_are_dropped():
  losses = _losses(20, 3, 4)
  losses[3, 0, 1] = np.nan
  losses[5, 2, 1] = np.nan
  full = pruning.run(_advance(losses), 20, 3, 4, prune=False)
  pruned = pruning.run(_advance(losses), 20, 3, 4)
  assert _best(pruned, 4)[0] == _best(full, 4)[0]
  assert pruned.stages[3] == 1


def test_with_fewer_numbers_than_k_nothing_is_dropped_wrongly():
  losses = np.full((5, 3, 2), np.nan, np.float32)
  losses[2] = -1
  pruned = pruning.run(_advance(losses), 5, 3, 3)
  assert _best(pruned, 1)[0] == [2]


def test_known_scores_bound_from_the_start():
  losses = np.full((6, 4, 2), -1, np.float32)
  found = pruning.run(_advance(losses), 6, 4, 1, known=[-0.5])
  # Only the leader, chosen before anything is known to be better, is finished.
  assert found.stages.tolist() == [4, 1, 1, 1, 1, 1]
  assert found.saved == pytest.approx(1 - 9 / 24)


def test_no_members_are_no_work():
  found = pruning.run(_advance(_losses(1)), 0, 5, 1)
  assert (found.saved, found.stages.size) == (0.0, 0)
