# SPDX-License-Identifier: Apache-2.0
"""A race that stops asking members which cannot reach the top K.

RandOpt (Neural Thickets, arXiv 2603.12228) asks each of N members every item.
Here all members answer the first items, and after each stage those are dropped
whose Wilson interval (1927) lies below the K-th best. The interval is that of
a proportion. A reward between 0 and 1 varies by p(1 - p) at most, and members
that answer the same items differ by less chance than two proportions would, so
the race is cautious: it drops fewer members than it could.

Axes: N members, m of them racing, r items, n of them answered. No JAX.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from thicket import metrics

_ROUNDING = 1e-6  # of float32 rewards at their bounds


class Replay(NamedTuple):
  """What a race over known rewards would have done.

  Fields:
    seen: int [N], the items each member was asked before it was dropped.
    top: int [k], the members it selects, best first.
    saved: share of the N * r answers that it did not need, in [0, 1).
    recall: share of the k members best on all items that it selects too.
  """

  seen: np.ndarray
  top: np.ndarray
  saved: float
  recall: float


def stages(num_items: int, first: int) -> tuple[int, ...]:
  """Items answered after each stage: first, twice that, ... num_items.

  Args:
    num_items: r, at least 1.
    first: items of the first stage, 1 <= first <= r.

  Raises:
    ValueError: first is out of range.
  """
  if not 1 <= first <= num_items:
    raise ValueError(
      f'first={first} of num_items={num_items}: must lie in 1..{num_items}'
    )
  doubled = (first << i for i in itertools.count())
  return (*itertools.takewhile(lambda n: n < num_items, doubled), num_items)


def survivors(
  rewards: npt.ArrayLike,
  k: int,
  *,
  z: float = 1.64,
  bounds: tuple[float, float] = (0.0, 1.0),
) -> np.ndarray:
  """Which members stay in the race, at least k of them.

  A member is dropped if its upper Wilson bound is below the k-th best lower
  bound: it would need better luck than z allows to be among the k best.

  Args:
    rewards: [m, n], of the members still racing on the items they all
      answered. A member with a NaN is worse than any without, and stays only
      if fewer than k members have none.
    k: how many will be selected, 1 <= k <= m.
    z: standard deviations, above 0; infinity drops no member without a NaN.
    bounds: the task's reward range.

  Returns:
    bool [m].

  Raises:
    ValueError: a shape or setting is out of range, or a reward out of bounds.
  """
  rate = _check_rewards(rewards, bounds)
  _check_k(k, len(rate))
  if not z > 0:
    raise ValueError(f'z={z}: must be above 0')
  p = rate.mean(axis=1)
  bounds_of_p = metrics.wilson_bounds(p, rate.shape[1], z)
  low, high = np.where(np.isnan(p), -np.inf, bounds_of_p)
  return high >= np.sort(low)[-k]


def replay(
  rewards: npt.ArrayLike,
  k: int,
  stages: Sequence[int],
  *,
  z: float = 1.64,
  bounds: tuple[float, float] = (0.0, 1.0),
) -> Replay:
  """The race that would have been run on rewards which are all known.

  Args:
    rewards: [N, r], in the order in which items would have been asked.
    k: how many are selected, 1 <= k <= N: by descending mean reward, then
      ascending index, NaN last.
    stages: items answered after each stage, ascending, r at the end.
    z: see `survivors`.
    bounds: the task's reward range.

  Raises:
    ValueError: as in `survivors`, or the stages do not ascend to r.
  """
  rewards = np.asarray(rewards, np.float64)
  rate = _check_rewards(rewards, bounds)
  _check_k(k, len(rate))
  r = rate.shape[1]
  stages = tuple(stages)
  rises = all(a < b for a, b in itertools.pairwise((0, *stages)))
  if not rises or stages[-1:] != (r,):
    raise ValueError(f'stages={stages}: must ascend from above 0 to r={r}')
  racing = np.arange(len(rate))
  seen = np.full(len(rate), r)
  for n in stages[:-1]:
    stays = survivors(rewards[racing, :n], k, z=z, bounds=bounds)
    seen[racing[~stays]] = n
    racing = racing[stays]
  # Rounded as scores are before a selection, so that equal scores tie.
  scores = rate.mean(axis=1).astype(np.float32)
  top = racing[np.argsort(-scores[racing], kind='stable')[:k]]
  best = np.argsort(-scores, kind='stable')[:k]
  return Replay(
    seen,
    top,
    1 - float(seen.sum()) / rate.size,
    len(np.intersect1d(top, best)) / k,
  )


def _check_k(k: int, m: int) -> None:
  if not 1 <= k <= m:
    raise ValueError(f'k={k} of {m} members: must lie in 1..{m}')


def _check_rewards(
  rewards: npt.ArrayLike, bounds: tuple[float, float]
) -> np.ndarray:
  """The rewards on a scale from 0 to 1, float64."""
  # In one memory layout, so that equal rewards have equal sums.
  rewards = np.asarray(rewards, np.float64, order='C')
  if rewards.ndim != 2 or rewards.size == 0:
    raise ValueError(
      f'rewards has shape {rewards.shape}: needs [members, items], not empty'
    )
  low, high = bounds
  if not (low < high and math.isfinite(high - low)):
    raise ValueError(f'bounds={bounds}: needs low < high, both finite')
  rate = (rewards - low) / (high - low)
  is_outside = (rate < -_ROUNDING) | (rate > 1 + _ROUNDING)
  if is_outside.any():
    raise ValueError(
      f'a reward is {rewards[is_outside][0]:g}, outside bounds={bounds}'
    )
  return np.clip(rate, 0, 1)
