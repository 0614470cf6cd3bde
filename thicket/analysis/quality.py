# SPDX-License-Identifier: Apache-2.0
"""How far selection scores can be trusted.

RandOpt (Neural Thickets, arXiv 2603.12228) keeps the K best of N scores, and
the best of many noisy scores are partly lucky. Three questions: do two halves
of the items agree on who is good (`split_half`), what will the best earn on
fresh questions (`shrinkage`), and do fresh questions rank members as the
selection did (`rank_agreement`). Each is asked within one sigma, because over
several sigmas all would mostly measure that a large sigma does harm.

Axes: m members, r items. NumPy and SciPy only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import special, stats

_GRID = 201  # true scores considered
_STEPS = 200  # of expectation-maximisation; the scores hardly move after 100
_ROUNDING = 1e-9  # of the rewards' size: a spread below it is none


def split_half(
  rewards: npt.ArrayLike,
  groups: npt.ArrayLike,
  *,
  num_splits: int = 200,
  seed: int = 0,
) -> dict[str, Any]:
  """How well members' scores on one half of the items predict the other half.

  Args:
    rewards: [m, r].
    groups: [m] the index of each member's sigma.
    num_splits: random splits averaged over, at least 1.
    seed: of the splits; the same seed gives the same result.

  Returns:
    `groups`, for each group `group`, `members`, `correlation` (between scores
    on two halves) and `reliability` (of scores on all r items, by Spearman's
    and Brown's formula of 1910; 0 where halves do not agree), and `pooled`, the
    same over deviations from the group's mean. Both are None where a group has
    fewer than 3 members, or its scores no spread, or items cannot be halved.

  Raises:
    ValueError: a shape, a value or num_splits is out of range.
  """
  rewards, groups = _check(rewards, groups)
  if num_splits < 1:
    raise ValueError(f'num_splits={num_splits}: must be at least 1')
  r = rewards.shape[1]
  half = r // 2
  rng = np.random.default_rng(seed)
  order = np.argsort(rng.random((num_splits, r)), axis=1)
  splits = np.arange(num_splits)[:, None]
  masks = np.zeros((2, num_splits, r))
  masks[0, splits, order[:, :half]] = 1
  masks[1, splits, order[:, half : 2 * half]] = 1
  tiny = (_ROUNDING * np.abs(rewards).max()) ** 2
  more = r / max(1, half)
  rows, deviations, least = [], [np.zeros((2, 0, num_splits))], math.inf
  for group, these in _each(groups):
    part = rewards[these]
    is_many = len(part) >= 3
    is_spread = is_many and part.mean(axis=1).var() > tiny
    halves = part @ masks.transpose(0, 2, 1) / max(1, half)
    halves -= halves.mean(axis=1, keepdims=True)
    found = _reliability(halves, more, tiny if is_spread else math.inf)
    rows.append({'group': group, **found})
    if is_many:
      deviations.append(halves)
      least = tiny if is_spread else least
  pooled = _reliability(np.concatenate(deviations, axis=1), more, least)
  return {'groups': rows, 'pooled': pooled}


def shrinkage(
  rewards: npt.ArrayLike,
  groups: npt.ArrayLike,
  *,
  bounds: tuple[float, float] = (0.0, 1.0),
) -> np.ndarray:
  """What each member would earn on fresh questions of the same kind.

  Scores are binomial around true scores, by empirical Bayes in each group. The
  trials are not the r items: members answer the same ones and mostly alike, so
  what a score owes to luck, relative to the others, is the residual of a
  member-by-item table without its row and column means. Trials are as many as
  give that variance. The true scores' distribution is free (Kiefer and
  Wolfowitz, 1956) and not a beta, since a few members that collapse would make
  any beta too wide to shrink the best. If scores spread no more than luck does,
  or a group has fewer than 3 members, all expect their group's mean.

  What the items have in common stays in: they may be easier than fresh ones.
  Compare expected scores with the base's on the same items.

  Args:
    rewards: [m, r], of all members that answered every item: among a few best
      alone, luck does not show.
    groups: [m] the index of each member's sigma.
    bounds: the task's reward range.

  Returns:
    float64 [m], in the unit of the rewards. In a group it rises with the score.

  Raises:
    ValueError: a shape or a value is out of range.
  """
  rewards, groups = _check(rewards, groups)
  low, high = bounds
  if not low < high:
    raise ValueError(f'bounds={bounds}: needs low < high')
  slack = 1e-6 * (high - low)
  if rewards.min() < low - slack or rewards.max() > high + slack:
    raise ValueError(
      f'rewards reach from {rewards.min():g} to {rewards.max():g}, outside '
      f'bounds={bounds}'
    )
  rewards = np.clip((rewards - low) / (high - low), 0, 1)
  expected = np.empty(len(rewards))
  for _, these in _each(groups):
    expected[these] = _expected(rewards[these])
  return low + (high - low) * expected


def rank_agreement(
  selection_scores: npt.ArrayLike,
  validation_scores: npt.ArrayLike,
  groups: npt.ArrayLike,
  *,
  confidence: float = 0.95,
) -> list[dict[str, Any]]:
  """Whether fresh questions rank members as the selection did.

  Members are taken as independent: of mirrored pairs the interval may be too
  narrow.

  Args:
    selection_scores: [m]; of the best only, agreement is less than of all.
    validation_scores: [m], of the same members on other questions.
    groups: [m] the index of each member's sigma.
    confidence: in (0, 1).

  Returns:
    For each group `group`, `members`, `spearman` (None for fewer than 3 members
    or scores that are all equal) and `interval`, [low, high] by Fisher's z with
    the variance of Bonett and Wright (2000) (None for fewer than 4 members or a
    correlation of 1 or -1, of which it says nothing).

  Raises:
    ValueError: lengths differ, a score is not finite, or the confidence is out
      of range.
  """
  if not 0 < confidence < 1:
    raise ValueError(f'confidence={confidence}: must lie between 0 and 1')
  a = np.asarray(selection_scores, np.float64)
  b = np.asarray(validation_scores, np.float64)
  if a.shape != b.shape or a.ndim != 1:
    raise ValueError(
      f'selection_scores has shape {a.shape}, validation_scores {b.shape}: '
      'needs [m] both, of the same members'
    )
  if a.size == 0:
    return []
  scores, groups = _check(np.stack([a, b], axis=1), groups)
  rows = []
  for group, these in _each(groups):
    m = len(these)
    row = {'group': group, 'members': m, 'spearman': None, 'interval': None}
    rows.append(row)
    ranks = stats.rankdata(scores[these], axis=0)
    if m < 3 or (np.ptp(ranks, axis=0) == 0).any():
      continue
    rho = float(np.corrcoef(ranks.T)[0, 1])
    row['spearman'] = rho
    if m > 3 and abs(rho) < 1 - _ROUNDING:
      z = float(special.ndtri(0.5 + confidence / 2))
      reach = z * math.sqrt((1 + rho * rho / 2) / (m - 3))
      centre = math.atanh(rho)
      row['interval'] = [math.tanh(centre - reach), math.tanh(centre + reach)]
  return rows


def verdict(
  difference: float,
  interval: tuple[float, float],
  what: str,
  against: str,
  claim: str | None = None,
) -> str:
  """A sentence that claims what the interval of a difference allows.

  Args:
    difference: of mean rewards, `what` less `against`, in rewards; a hundredth
      is a point.
    interval: (low, high) of it.
    what: a noun phrase, singular or plural.
    against: a noun phrase.
    claim: 'above', 'below' or 'none', where more than the interval decides.

  Raises:
    ValueError: the interval's bounds are not low <= high.
  """
  low, high = interval
  if not low <= high:
    raise ValueError(f'interval={interval}: needs low <= high')
  if claim is None:
    claim = 'none' if low <= 0 <= high else 'above' if low > 0 else 'below'
  relation = 'cannot be distinguished from'
  if claim != 'none':
    relation = f'scored {claim}'
  return (
    f'{what} {relation} {against} ({_points(difference)} points '
    f'[{_points(low)}, {_points(high)}])'
  )


def _reliability(
  halves: np.ndarray, more: float, tiny: float
) -> dict[str, Any]:
  """Of deviations [2, m, splits] on two halves; `more` of one make the whole.

  A variance up to `tiny` counts as none.
  """
  a, b = halves
  found = {'members': len(a), 'correlation': None, 'reliability': None}
  if not len(a):
    return found
  product = (a * a).mean(axis=0) * (b * b).mean(axis=0)
  is_spread = product > tiny * tiny
  if not is_spread.any():
    return found
  covariance = (a * b).mean(axis=0)[is_spread]
  c = float(np.mean(covariance / np.sqrt(product[is_spread])))
  reliability = more * c / (1 + (more - 1) * c) if c > 0 else 0.0
  return found | {'correlation': c, 'reliability': reliability}


def _expected(rates: np.ndarray) -> np.ndarray:
  """Expected true scores of one group; rates are rewards from 0 to 1."""
  m, r = rates.shape
  scores = rates.mean(axis=1)
  mean = scores.mean()
  alike = np.full(m, mean)
  if m < 3 or r < 2:
    return alike
  residual = rates - scores[:, None] - rates.mean(axis=0) + mean
  noise = (residual**2).sum() / ((m - 1) * (r - 1)) / r
  spread = scores.var(ddof=1)
  if spread <= noise * (1 + _ROUNDING) + _ROUNDING**2:
    return alike
  if noise <= _ROUNDING**2:
    return scores
  # Both terms together: p(1 - p) of the true scores, averaged over members.
  trials = ((scores * (1 - scores)).mean() + noise) / noise
  values, inverse, counts = np.unique(
    scores, return_inverse=True, return_counts=True
  )
  true = np.linspace(values[0], values[-1], _GRID)
  likelihood = special.xlogy(values[:, None], true)
  likelihood += special.xlog1py(1 - values[:, None], -true)
  likelihood = np.exp(
    trials * (likelihood - likelihood.max(axis=1, keepdims=True))
  )
  weights = np.full(_GRID, 1 / _GRID)
  for _ in range(_STEPS):
    weights *= (counts / (likelihood @ weights)) @ likelihood / m
  expected = (likelihood @ (weights * true)) / (likelihood @ weights)
  return expected[inverse]


def _points(reward: float) -> str:
  return f'{round(100 * reward, 1) + 0.0:+.1f}'  # + 0.0 for no minus zero


def _each(groups: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
  """(group, indices of its members), by ascending group."""
  for group in np.unique(groups):
    yield int(group), np.flatnonzero(groups == group)


def _check(
  values: npt.ArrayLike, groups: npt.ArrayLike
) -> tuple[np.ndarray, np.ndarray]:
  # In one memory layout, so that equal rewards have equal sums.
  values = np.asarray(values, np.float64, order='C')
  groups = np.asarray(groups)
  if values.ndim != 2 or values.size == 0:
    raise ValueError(
      f'rewards has shape {values.shape}: needs [members, items], not empty'
    )
  if groups.shape != values.shape[:1]:
    raise ValueError(
      f'groups has shape {groups.shape} for {len(values)} members: needs [m]'
    )
  if not np.isfinite(values).all():
    raise ValueError('a reward or score is not finite: leave such members out')
  return values, groups
