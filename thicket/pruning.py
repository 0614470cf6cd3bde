# SPDX-License-Identifier: Apache-2.0
"""Scores members on ever more rows, and drops those that cannot be selected.

The bound is exact, not statistical as in `thicket.race`: where no row can
give more than some reward, what is still possible for a member is known, and
below the K-th best finished score it cannot enter the top K. Rounding keeps
that order, because a mean in floating point is monotone in each of its
numbers. So the top K are those of the full search, ties included.

Axes: N members, B rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from thicket import selection


def mean_scores(rewards: np.ndarray) -> np.ndarray:
  """float32 [N], the mean over rows of rewards [N, B]."""
  return rewards.mean(axis=1, dtype=np.float64).astype(np.float32)


def run(
  ask: Callable[[np.ndarray, slice], None],
  rewards: np.ndarray,
  seen: np.ndarray,
  *,
  ends: Sequence[int],
  k: int,
  max_reward: float,
) -> float:
  """Asks for as few rewards as decide the top K.

  Args:
    ask: fills `rewards` and `seen` for the members at some places [n], in
      some rows.
    rewards: float32 [N, B]; those known already count.
    seen: bool [N, B].
    ends: rows after which members may be dropped, ascending, the last B.
    k: how many will be selected.
    max_reward: no reward is above it; infinity drops nothing.

  Returns:
    The share of rewards that was not needed.
  """
  blocks = [
    slice(start, end) for start, end in zip((0, *ends[:-1]), ends, strict=True)
  ]

  def fill(places: np.ndarray, rows: slice) -> None:
    todo = places[~seen[places, rows].all(axis=1)]
    if todo.size:
      ask(todo, rows)

  def possible() -> np.ndarray:
    """The best score that each member can still have."""
    return mean_scores(np.where(seen, rewards, np.float32(max_reward)))

  everyone = np.arange(len(rewards))
  fill(everyone, blocks[0])
  if len(blocks) > 1:
    # Those who lead now are likely to lead in the end; they set the bar.
    leaders = np.asarray(selection.top_k(possible(), min(k, len(rewards))))
    for rows in blocks[1:]:
      fill(np.sort(leaders), rows)
  for rows in blocks[1:]:
    hopes = possible()
    is_whole = seen.all(axis=1)
    bar = _kth_best(hopes[is_whole], k)
    # A NaN is never selected before a number, so it is below every bar.
    stays = ~is_whole & ((hopes >= bar) | (bar == -np.inf))
    fill(np.flatnonzero(stays), rows)
  return 1 - float(seen.mean())


def _kth_best(scores: np.ndarray, k: int) -> float:
  """What a score must reach to be in the top K; -inf if nothing is certain."""
  scores = scores[~np.isnan(scores)]
  return float(np.sort(scores)[-k]) if scores.size >= k else -np.inf
