# SPDX-License-Identifier: Apache-2.0
"""Estimates with their intervals, as plain values of a summary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from thicket import metrics

Estimate = dict[str, Any]

SIGNIFICANT = 0.05  # p below it, Holm's in a table, is called a difference


def rate(correct: np.ndarray, alike: int = 1) -> Estimate:
  """A share of questions or members, with its 95% Wilson interval.

  Args:
    correct: bool [n].
    alike: how many of them may be one and the same observation, 2 for members
      in mirrored pairs: the interval is that of n / alike, never too narrow.
  """
  count, total = int(np.sum(correct)), int(np.size(correct))
  low, high = metrics.wilson(count / alike, total / alike)
  return {
    'rate': count / total,
    'interval': [float(low), float(high)],
    'count': count,
    'of': total,
  }


def accuracy(correct: np.ndarray) -> Estimate:
  """The rate of one system, or the mean over members with a t interval."""
  if np.isin(correct, (0, 1)).all():
    return rate(correct)
  found = metrics.mean_interval(correct, bounds=(0.0, 1.0))
  return {
    'rate': float(found.estimate),
    'interval': [float(found.low), float(found.high)],
  }


def balanced_accuracy(correct: np.ndarray, golds: Sequence[str]) -> float:
  """The mean over classes of how right their rows are, 0..1.

  Args:
    correct: [r], of each row, 0 to 1.
    golds: its class; those that do not occur do not count.

  Raises:
    ValueError: there are no rows, or not as many golds.
  """
  if len(correct) != len(golds) or not len(golds):
    raise ValueError(
      f'balanced_accuracy: {len(correct)} answers to {len(golds)} rows; needs '
      'as many, and at least 1'
    )
  _, of = np.unique(np.asarray(golds), return_inverse=True)
  return float(np.mean(np.bincount(of, correct) / np.bincount(of)))


def difference(ours: np.ndarray, theirs: np.ndarray) -> Estimate:
  """One of `differences`, of [r] against [r]."""
  (found,) = differences(ours[None], theirs[None])
  return found


def differences(
  ours: np.ndarray,
  theirs: np.ndarray,
  bounds: tuple[float, float] = (-1.0, 1.0),
) -> list[Estimate]:
  """Mean differences over questions, with paired 95% intervals, and claims.

  A claim is 'above' or 'below' only if the percentile interval excludes zero
  and, where both systems are right or wrong, the exact test agrees: with few
  unequal questions a bootstrap alone is too sure.

  Args:
    ours: [n, r] of n systems on r questions.
    theirs: [n, r] of what each is compared with.
    bounds: least and greatest difference that there can be.
  """
  found, bca = (
    metrics.paired_difference(ours, theirs, method=method, bounds=bounds)
    for method in metrics.METHODS
  )
  is_binary = [np.isin(x, (0, 1)).all(axis=-1) for x in (ours, theirs)]
  p_values = metrics.mcnemar(ours == 1, theirs == 1)
  results = []
  for i, has_p in enumerate(is_binary[0] & is_binary[1]):
    low, high = float(found.low[i]), float(found.high[i])
    p = float(p_values[i]) if has_p else None
    claim = 'none'
    if not low <= 0 <= high and (p is None or p < SIGNIFICANT):
      claim = 'above' if low > 0 else 'below'
    results.append(
      {
        'difference': float(found.estimate[i]),
        'interval': [low, high],
        'bca': [float(bca.low[i]), float(bca.high[i])],
        'p': p,
        'claim': claim,
      }
    )
  return results


def attach(
  pairs: Sequence[tuple[dict[str, Any], str, np.ndarray, np.ndarray]],
  bounds: tuple[float, float] = (-1.0, 1.0),
) -> None:
  """Writes differences into the rows of a table, p corrected over all.

  Args:
    pairs: (row, column, ours [r], theirs [r]); row[column] becomes one of
      `differences`, with `p_holm` (Holm 1979) over all pairs that have a p.
    bounds: least and greatest difference that there can be.
  """
  if not pairs:
    return
  tests = differences(
    np.stack([ours for *_, ours, _ in pairs]),
    np.stack([theirs for *_, theirs in pairs]),
    bounds,
  )
  for (row, column, *_), test in zip(pairs, tests, strict=True):
    row[column] = test
  with_p = [test for test in tests if test['p'] is not None]
  adjusted = metrics.holm([test['p'] for test in with_p]) if with_p else []
  for test in tests:
    test['p_holm'] = None
  for test, p in zip(with_p, adjusted, strict=True):
    test['p_holm'] = float(p)
