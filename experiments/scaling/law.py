# SPDX-License-Identifier: Apache-2.0
"""Laws of density against model size or pretraining, and how sure they are.

The log odds of a density are taken as a straight line in the logarithm of what
grows. Each seed has a line of its own; the interval is Student's over seeds, so
it holds whatever differs between two pretrained models. Three checks stand
beside it: Holm's correction over all targets and sigmas of a margin, the bend
(is it a line at all), and the slope among models of equal error.

Axes: S seeds, R rungs. NumPy and SciPy only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import special

from thicket import metrics

PRIMARY = 0.1  # share of the base's error: the margin of tables and figures
LADDERS = {
  'size': ('parameters', 'decade of parameters'),
  'length': ('steps', 'decade of steps'),
}


def logits(shares: np.ndarray, members: int) -> np.ndarray:
  """Log odds of densities, of half a member more on either side.

  So that densities of 0 and 1 are finite: the reach of N members.
  """
  counts = np.asarray(shares, np.float64) * members
  return np.log((counts + 0.5) / (members - counts + 0.5))


def shares(log_odds: np.ndarray | float, members: int) -> np.ndarray:
  """The inverse of `logits`, in [0, 1]."""
  found = special.expit(log_odds) * (members + 1) - 0.5
  return np.clip(found / members, 0, 1)


def is_reached(log_odds: np.ndarray, members: int) -> bool:
  """Whether some model has at least one member on either side of the margin.

  Where none has, equal densities are those of the limit, and show no law.
  """
  counts = shares(log_odds, members) * members
  return bool((counts >= 1).any() and (counts <= members - 1).any())


def rung_interval(log_odds: np.ndarray, members: int) -> list[float]:
  """Density [mean, low, high] of log odds [S], one of each seed.

  Student's interval over seeds, and never narrower than Wilson's for all their
  members, which still bounds where all seeds agree on 0.
  """
  mean, low, high = shares(np.array(metrics.mean_interval(log_odds)), members)
  total = len(log_odds) * members
  least, most = metrics.wilson(np.clip(mean, 0, 1) * total, total)
  low, high = max(0.0, min(low, least)), min(1.0, max(high, most))
  return [float(mean), float(low), float(high)]


def student(values: np.ndarray) -> dict[str, float] | None:
  """Mean of values [S] with Student's interval and p; None if all are equal.

  Equal values (no member reached the margin anywhere) bound nothing.
  """
  spread = values.std(ddof=1) / math.sqrt(len(values))
  if not spread > 1e-12:
    return None
  mean, low, high = metrics.mean_interval(values)
  p = 2 * special.stdtr(len(values) - 1, -abs(mean) / spread)
  return {'slope': mean, 'low': low, 'high': high, 'p': float(p)}


def law(x: np.ndarray, y: np.ndarray) -> dict[str, Any]:
  """A straight line for each seed, and what seeds say together.

  Args:
    x: [R] logarithms to base 10.
    y: [S, R] log odds, S >= 2.

  Returns:
    'line': slope of y in x with its interval and p; 'bend': the same of the
    quadratic term, where R allows one; 'fit': [R] the mean line.
  """
  slopes = np.polyfit(x, y.T, 1)[0]
  bends = np.polyfit(x, y.T, 2)[0] if len(x) > 3 else np.zeros(len(y))
  middle = y.mean() + slopes.mean() * (x - x.mean())
  return {'line': student(slopes), 'bend': student(bends), 'fit': middle}


def slope_at_equal_error(
  x: np.ndarray, errors: np.ndarray, y: np.ndarray
) -> dict[str, float] | None:
  """Slope of y [S, R] in x [R] beside that in the log of the base's error.

  Least squares over all models, which are independent in the size ladder; an
  interval of Student's with S * R - 3 degrees of freedom.
  """
  columns = [np.ones_like(y), np.broadcast_to(x, y.shape), np.log10(errors)]
  design = np.stack([column.ravel() for column in columns], axis=1)
  free = len(design) - 3
  if free < 1 or np.ptp(y) == 0:
    return None
  fit, *_ = np.linalg.lstsq(design, y.ravel(), rcond=None)
  variance = np.square(y.ravel() - design @ fit).sum() / free
  error = math.sqrt(variance * np.linalg.inv(design.T @ design)[1, 1])
  reach = float(special.stdtrit(free, 0.975)) * error
  slope = float(fit[1])
  p = 2 * special.stdtr(free, -abs(slope) / error)
  return {
    'slope': slope, 'low': slope - reach, 'high': slope + reach, 'p': float(p)
  }  # fmt: skip


def sigma_names(ladder: Mapping[str, Any]) -> list[str]:
  """What each group of members is called."""
  moves = [f'move {move:g}' for move in ladder['moves']]
  return moves + [f'sigma {sigma:g}' for sigma in ladder['relatives']]


def margin_names(ladder: Mapping[str, Any]) -> list[str]:
  """What each margin is called."""
  absolute = [f'{margin:g}' for margin in ladder['absolute']]
  relative = [f'{share:.0%} of error' for share in ladder['relative']]
  levels = [f'to {share:.0%} of silence' for share in ladder['levels']]
  return absolute + relative + levels


def rungs(result: Mapping[str, Any], kind: str) -> list[list[dict[str, Any]]]:
  """The models of a ladder, [R][S]."""
  ladder, key = result['ladder'], LADDERS[kind][0]
  found: dict[int, list[dict[str, Any]]] = {}
  for model in result['models']:
    in_ladder = (
      model['steps'] == ladder['steps']
      if kind == 'size'
      else model['width'] == ladder['width']
    )
    if in_ladder:
      found.setdefault(model[key], []).append(model)
  return [found[at] for at in sorted(found)]


def laws(result: Mapping[str, Any], kind: str) -> list[dict[str, Any]]:
  """Every target, sigma and margin of a ladder, with its law.

  Untrained models are shown and not fitted: log 0 is no place on a line.
  """
  ladder, key = result['ladder'], LADDERS[kind][0]
  models, members = rungs(result, kind), ladder['members']
  at = np.array([rung[0][key] for rung in models], np.float64)
  fitted = at > 0
  found = []
  for target in result['models'][0]['targets']:
    every = [[model['targets'][target] for model in rung] for rung in models]
    errors = np.array([[one['error'] for one in rung] for rung in every]).T
    corrected = np.array(
      [[one['corrected'] for one in rung] for rung in every]
    ).transpose(1, 0, 2, 3)  # [S, R, G, m]
    for g, sigma in enumerate(sigma_names(ladder)):
      for m, margin in enumerate(margin_names(ladder)):
        y = logits(corrected[:, :, g, m], members)
        intervals = [rung_interval(column, members) for column in y.T]
        x, line = np.log10(at[fitted]), y[:, fitted]
        row = {
          'target': target,
          'sigma': sigma,
          'margin': margin,
          'at': at.astype(int).tolist(),
          'seeds': corrected[:, :, g, m].tolist(),
          'density': intervals,
          'line': None,
          'bend': None,
          'equal': None,
          'fit': None,
        }
        if len(x) > 1 and is_reached(line, members):
          row |= law(x, line)
          row['fit'] = shares(row['fit'], members).tolist()
          if kind == 'size':
            row['equal'] = slope_at_equal_error(x, errors, line)
        found.append(row)
  for margin in margin_names(ladder):
    tested = [r for r in found if r['margin'] == margin and r['line']]
    adjusted = metrics.holm([row['line']['p'] for row in tested])
    for row, p in zip(tested, adjusted, strict=True):
      row['line']['holm'] = float(p)
  return found


def primary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
  """The rows of the margin that was chosen before the run."""
  return [row for row in rows if row['margin'] == f'{PRIMARY:.0%} of error']
