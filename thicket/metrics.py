# SPDX-License-Identifier: Apache-2.0
"""Intervals: for a proportion, for a mean, for a paired difference.

Wilson, "Probable inference, the law of succession, and statistical inference"
(1927); Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), the
percentile interval of chapter 13. NumPy and SciPy only: a report can be made
where there is no JAX.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import special

_CHUNK = 1 << 20  # indices drawn at once: 8 MiB, whatever the number of items


class Interval(NamedTuple):
  """An estimate and the bounds of its confidence interval."""

  estimate: float
  low: float
  high: float


def wilson(
  successes: npt.ArrayLike, trials: npt.ArrayLike, confidence: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
  """Wilson's score interval for proportions, without continuity correction.

  Args:
    successes: [...] counts, 0 <= successes <= trials.
    trials: [...] counts that broadcast against them; 0 gives (0, 1).
    confidence: in (0, 1).

  Returns:
    (low, high), float64 [...] in [0, 1]; exactly 0 at no success and exactly
    1 at no failure.

  Raises:
    ValueError: a count or the confidence is out of range.
  """
  _check_confidence(confidence)
  s, n = np.broadcast_arrays(
    np.asarray(successes, np.float64), np.asarray(trials, np.float64)
  )
  is_bad = ~((s >= 0) & (s <= n) & np.isfinite(n))
  if is_bad.any():
    raise ValueError(
      f'successes={s[is_bad][0]:g} of trials={n[is_bad][0]:g}: needs '
      f'0 <= successes <= trials'
    )
  z2 = special.ndtri(0.5 + confidence / 2) ** 2
  centre = (s + z2 / 2) / (n + z2)
  variance = s * (n - s) / np.maximum(n, 1) + z2 / 4
  reach = np.sqrt(z2 * variance) / (n + z2)
  low = np.where(s == 0, 0.0, centre - reach)
  high = np.where(s == n, 1.0, centre + reach)
  return low, high


def paired_bootstrap(
  a: npt.ArrayLike,
  b: npt.ArrayLike,
  *,
  num_resamples: int = 10_000,
  confidence: float = 0.95,
  seed: int = 0,
) -> Interval:
  """The mean of `a - b`, with a percentile bootstrap over items.

  Args:
    a: [B] what one system earned on each item.
    b: [B] what the other earned on the same items, in the same order.
    num_resamples: resamples of the B items, at least 1.
    confidence: in (0, 1).
    seed: of the resampling; the same seed gives the same interval.

  Returns:
    The mean difference and its bounds, in the unit of the rewards.

  Raises:
    ValueError: lengths differ, are 0, a value is not finite, or a setting is
      out of range.
  """
  _check_confidence(confidence)
  if num_resamples < 1:
    raise ValueError(f'num_resamples={num_resamples}: must be at least 1')
  a, b = _check_values('a', a), _check_values('b', b)
  if a.size != b.size:
    raise ValueError(f'a has {a.size} items, b has {b.size}: pair them first')
  difference = a - b
  rng = np.random.default_rng(seed)
  means = np.empty(num_resamples)
  step = max(1, _CHUNK // difference.size)
  for start in range(0, num_resamples, step):
    rows = min(step, num_resamples - start)
    picks = rng.integers(0, difference.size, (rows, difference.size))
    means[start : start + rows] = difference[picks].mean(axis=1)
  tail = (1 - confidence) / 2
  low, high = np.quantile(means, [tail, 1 - tail])
  return Interval(float(difference.mean()), float(low), float(high))


def mean_interval(
  values: npt.ArrayLike,
  *,
  confidence: float = 0.95,
  bounds: tuple[float, float] = (-math.inf, math.inf),
) -> Interval:
  """Student's t interval for the mean of rewards that are not 0 or 1.

  Args:
    values: [B] one reward an item; for 0 or 1, `wilson` is right.
    confidence: in (0, 1).
    bounds: the task's reward range, to which the interval is clipped. One
      value says nothing about the spread: it gives the bounds themselves.

  Returns:
    The mean and its bounds.

  Raises:
    ValueError: there is no value, one is not finite or outside the bounds, or
      the confidence is out of range.
  """
  _check_confidence(confidence)
  values = _check_values('values', values)
  if values.min() < bounds[0] or values.max() > bounds[1]:
    raise ValueError(
      f'values reach from {values.min():g} to {values.max():g}, outside '
      f'bounds={bounds}'
    )
  mean = float(values.mean())
  if values.size == 1:
    return Interval(mean, *map(float, bounds))
  t = special.stdtrit(values.size - 1, 0.5 + confidence / 2)
  reach = float(t * values.std(ddof=1) / math.sqrt(values.size))
  low, high = max(bounds[0], mean - reach), min(bounds[1], mean + reach)
  return Interval(mean, low, high)


def _check_confidence(confidence: float) -> None:
  if not 0 < confidence < 1:
    raise ValueError(f'confidence={confidence}: must lie between 0 and 1')


def _check_values(name: str, values: npt.ArrayLike) -> np.ndarray:
  values = np.asarray(values, np.float64)
  if values.ndim != 1 or values.size == 0:
    raise ValueError(f'{name} has shape {values.shape}: needs [B], B > 0')
  is_bad = ~np.isfinite(values)
  if is_bad.any():
    at = int(np.argmax(is_bad))
    raise ValueError(f'{name}[{at}] is {values[at]}: needs finite values')
  return values
