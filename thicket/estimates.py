# SPDX-License-Identifier: Apache-2.0
"""Estimates with their intervals, as plain values of a summary."""

from __future__ import annotations

from typing import Any

import numpy as np

from thicket import metrics

Estimate = dict[str, Any]

_LEVEL = 0.05


def rate(correct: np.ndarray) -> Estimate:
  """A share of questions, with its 95% Wilson interval."""
  count, total = int(np.sum(correct)), int(np.size(correct))
  low, high = metrics.wilson(count, total)
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


def difference(ours: np.ndarray, theirs: np.ndarray) -> Estimate:
  """Mean difference over questions, with paired 95% intervals, and a claim.

  The claim is 'above' or 'below' only if the percentile interval excludes zero
  and, where both systems are right or wrong, the exact test agrees: with few
  unequal questions a bootstrap alone is too sure.
  """
  found = metrics.paired_difference(ours, theirs)
  bca = metrics.paired_difference(ours, theirs, method='bca')
  is_binary = np.isin(ours, (0, 1)).all() and np.isin(theirs, (0, 1)).all()
  p = None
  if is_binary:
    p = float(metrics.mcnemar(ours.astype(bool), theirs.astype(bool)))
  claim = 'none'
  if not found.low <= 0 <= found.high and (p is None or p < _LEVEL):
    claim = 'above' if found.low > 0 else 'below'
  return {
    'difference': float(found.estimate),
    'interval': [float(found.low), float(found.high)],
    'bca': [float(bca.low), float(bca.high)],
    'p': p,
    'claim': claim,
  }
