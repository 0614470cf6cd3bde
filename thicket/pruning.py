# SPDX-License-Identifier: Apache-2.0
"""Scores members in stages and drops those that can no longer be selected.

The bound is exact, not statistical as in a race: a stage never adds to a
score (see `scoring.Staged`), so a member whose partial score is below the
K-th best finished one cannot enter the top K. Rounding keeps that order: a
float32 sum never rises by adding a number <= 0, and a mean over rows is
monotone in each of them. So the top K are those of the full search, ties
included (compare the race of `thicket.race`, which may lose one).

Axes: N members, B rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from thicket import selection

Tree = Any
# (places [n] among the members, stage) -> (carry, rewards [n, B]) on the host.
Advance = Callable[[np.ndarray, int, Tree], tuple[Tree, np.ndarray]]


@dataclasses.dataclass(frozen=True, eq=False)
class Pruned:
  """What is known of N members after pruning.

  Attributes:
    rewards: float32 [N, B], sums over the stages that were run.
    stages: int [N], how many of them were run; all for the top K.
    saved: share of all (member, stage) pairs that were not run.
  """

  rewards: np.ndarray
  stages: np.ndarray
  saved: float


def mean_scores(rewards: np.ndarray) -> np.ndarray:
  """float32 [N], the mean over rows of rewards [N, B]."""
  return rewards.mean(axis=1, dtype=np.float64).astype(np.float32)


def run(
  advance: Advance,
  num_members: int,
  num_stages: int,
  k: int,
  *,
  known: Sequence[float] = (),
  prune: bool = True,
) -> Pruned:
  """Takes members through the stages, as few as decide the top K.

  Args:
    advance: runs one stage for the members at some places, given their carry
      (None before the first stage).
    num_members: N.
    num_stages: of a full score.
    k: how many will be selected.
    known: finished scores of other members of the same population.
    prune: False runs every stage of every member, with the same bits.
  """
  stages = np.zeros(num_members, np.int64)
  if not num_members:
    return Pruned(np.zeros((0, 0), np.float32), stages, 0.0)
  carry, rewards = advance(np.arange(num_members), 0, None)
  rewards = np.array(rewards, np.float32)
  carry = jax.tree.map(np.array, carry)
  stages[:] = 1

  def go_on(places: np.ndarray, stage: int) -> None:
    """The next stage of some members, into their places."""
    if not places.size:
      return
    now = jax.tree.map(lambda x: x[places], carry)
    after, found = advance(places, stage, now)

    def put(old, new):
      old[places] = new

    jax.tree.map(put, carry, after)
    rewards[places] += found
    stages[places] += 1

  if prune:
    # Those who lead now are likely to lead in the end; they set the bound.
    partial = mean_scores(rewards)
    leaders = np.asarray(selection.top_k(partial, min(k, num_members)))
    for stage in range(1, num_stages):
      go_on(np.sort(leaders), stage)
  for stage in range(1, num_stages):
    partial = mean_scores(rewards)
    stays = stages == stage
    if prune:
      whole = np.append(partial[stages == num_stages], np.float32(known))
      stays &= partial >= _kth_best(whole, k)
    go_on(np.flatnonzero(stays), stage)
  total = num_members * num_stages
  return Pruned(rewards, stages, 1 - float(stages.sum()) / total)


def _kth_best(scores: np.ndarray, k: int) -> float:
  """What a score must reach to be in the top K; -inf if nothing is certain."""
  scores = scores[~np.isnan(scores)]
  return float(np.sort(scores)[-k]) if scores.size >= k else -np.inf
