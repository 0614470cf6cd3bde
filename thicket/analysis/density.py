# SPDX-License-Identifier: Apache-2.0
"""Solution density: how often a random member beats the base by a margin.

delta(m) = P[s(theta + eps) >= s(theta) + m], eps ~ N(0, sigma^2 I), of "Neural
Thickets" (arXiv 2603.12228, section 2). s is a mean over all items of a kind,
but only r of them were asked. The share of members whose score on the r items
reaches the margin is therefore too large where few members do: of members that
are all exactly as good as the base, about half score above it, and some by
much. The corrected density takes the noise of the items out.

Axes: N members, r items, m margins. NumPy and SciPy only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy import special

from thicket import metrics

_CELLS = 100  # of the range of scores; an effect is located within one
_STEPS = 40  # of expectation-maximisation: fewer leave noise in, more overfit
_ROUNDING = 1e-9  # of the rewards' size: a difference below it is none


@dataclasses.dataclass(frozen=True)
class Density:
  """Solution densities of one sigma, float64 [m], with their intervals.

  Attributes:
    group: index of the sigma.
    margins: [m] in the unit of the rewards.
    estimate: share of members whose score on these items reaches the margin.
    low: Wilson's bound, for other members on the same items.
    high: its upper bound.
    corrected: share of members whose expected reward reaches the margin; NaN,
      with its bounds, for fewer than 3 members or 2 items.
    corrected_low: bound, for other members and other items.
    corrected_high: its upper bound.
    members: number of members.
    items: number of items.
  """

  group: int
  margins: np.ndarray
  estimate: np.ndarray
  low: np.ndarray
  high: np.ndarray
  corrected: np.ndarray
  corrected_low: np.ndarray
  corrected_high: np.ndarray
  members: int
  items: int


def solution_density(
  rewards: npt.ArrayLike,
  base_rewards: npt.ArrayLike,
  groups: npt.ArrayLike,
  margins: npt.ArrayLike,
  *,
  alike: int = 1,
  confidence: float = 0.95,
  num_resamples: int = 200,
  seed: int = 0,
) -> list[Density]:
  """Solution densities of each sigma, plain and corrected for item noise.

  A member's gain on item j is its true effect d_i, plus what item j does to
  all members alike, plus luck of its own. The luck's variance is that of the
  member-by-item residual, member by member: `corrected` is the distribution of
  d by nonparametric maximum likelihood (Kiefer and Wolfowitz, 1956) under
  normal luck, a histogram fitted by a fixed number of steps of
  expectation-maximisation, within the range of the scores. Stopped early it is
  smooth, but blurs the effects by about a sixth of a score's standard error. If
  scores spread no more than luck does, all members have the group's mean.

  It assumes that items are a random sample, that luck is independent between
  members and about normal once averaged over the items, that its size is known
  from the member's own residuals, and says nothing of the effect. Few items on
  which anything changes (less than ten a member, say) break the middle two.
  Members are taken as independent, too: mirrored pairs count once in Wilson's
  interval, if `alike` says so, but not in the bootstrap: it may be too narrow.

  What the items do to all members alike, the base's own luck on them included,
  moves all scores together. No estimate can take that out; `corrected_low`
  and `corrected_high` count it, by a bootstrap over items for the common move
  and over members for the rest. They are never narrower than Wilson's interval
  for as many members of known effect. The correction pays at margins that few
  members reach; near the middle of the scores it is the noisier of the two.

  Args:
    rewards: [N, r] of all members that answered every item.
    base_rewards: [r] of the base, on the same items in the same order.
    groups: [N] the index of each member's sigma.
    margins: [m] in the unit of the rewards, of any sign and order.
    alike: members that may be one and the same observation, 2 if they come in
      mirrored pairs; see `estimates.rate`.
    confidence: in (0, 1), of both intervals, for each margin by itself.
    num_resamples: of the bootstrap, at least 1; a sigma of 1,000 members takes
      2 ms each or so.
    seed: of the resampling; the same seed gives the same result.

  Returns:
    One density a group, by ascending group.

  Raises:
    ValueError: a shape, a value or a setting is out of range.
  """
  rewards = np.asarray(rewards, np.float64, order='C')
  base = np.asarray(base_rewards, np.float64)
  groups = np.asarray(groups)
  margins = np.asarray(margins, np.float64)
  _check(rewards, base, groups, margins)
  if not 0 < confidence < 1:
    raise ValueError(f'confidence={confidence}: must lie between 0 and 1')
  if num_resamples < 1:
    raise ValueError(f'num_resamples={num_resamples}: must be at least 1')
  size = max(np.abs(rewards).max(), np.abs(base).max())
  gains = rewards - base
  z = float(special.ndtri(0.5 + confidence / 2))
  found = []
  for group in np.unique(groups):
    part = gains[groups == group]
    count = len(part)
    # 3 of 10 items gained are a margin of 0.3, whatever rounding says.
    is_reached = part.mean(axis=1)[:, None] >= margins - _ROUNDING * size
    low, high = metrics.wilson(
      is_reached.sum(axis=0) / alike, count / alike, confidence
    )
    corrected = np.full((3, len(margins)), np.nan)
    if count >= 3 and part.shape[1] >= 2:
      corrected = _corrected(
        part, margins, z, alike, num_resamples, seed, _ROUNDING * size
      )
    found.append(
      Density(
        int(group),
        margins,
        is_reached.mean(axis=0),
        low,
        high,
        *corrected,
        members=count,
        items=part.shape[1],
      )
    )
  return found


def _corrected(
  gains: np.ndarray,
  margins: np.ndarray,
  z: float,
  alike: int,
  num_resamples: int,
  seed: int,
  tiny: float,
) -> np.ndarray:
  """[3, m]: the densities of gains [N, r], and their bounds."""
  n, r = gains.shape
  scores, common = gains.mean(axis=1), gains.mean(axis=0)
  residual = gains - scores[:, None] - common + common.mean()
  # Each row lost one degree of freedom; all share the r - 1 of the columns.
  variance = (residual**2).sum(axis=1) / (r - 1) * n / (n - 1)
  errors = np.sqrt(variance / r)
  likelihood, reach = _likelihood(scores, errors, tiny)

  def densities(counts: np.ndarray, margins: np.ndarray) -> np.ndarray:
    """[m], of members that are there `counts` [N] times."""
    mean = counts @ scores / n
    spread = counts @ (scores - mean) ** 2 / (n - 1)
    noise = counts @ errors**2 / n
    if spread <= noise + tiny**2:
      return (mean >= margins - tiny).astype(np.float64)
    return reach(_weights(likelihood, counts), margins)

  estimate = densities(np.ones(n), margins)
  rng = np.random.default_rng(seed)
  resampled = np.empty((num_resamples, len(margins)))
  for i in range(num_resamples):
    counts = np.bincount(rng.integers(0, n, n), minlength=n)
    # Luck of the members' own is in the likelihood; drawing the items again
    # for it too would count it twice. Only the common part moves.
    move = common[rng.integers(0, r, r)].mean() - common.mean()
    resampled[i] = densities(counts.astype(np.float64), margins - move)
  tail = special.ndtr(-z)
  low, high = np.quantile(resampled, [tail, 1 - tail], axis=0)
  least, most = metrics.wilson_bounds(estimate, n / alike, z)
  low = np.clip(np.minimum(low, least), 0, 1)
  high = np.clip(np.maximum(high, most), 0, 1)
  return np.stack([estimate, low, high])


def _likelihood(
  scores: np.ndarray, errors: np.ndarray, tiny: float
) -> tuple[np.ndarray, Callable[[np.ndarray, np.ndarray], np.ndarray]]:
  """Of scores [N] given each cell [c], [N, c]; and how cells sum to tails."""
  values = np.unique(scores)
  if np.sqrt((errors**2).mean()) <= tiny or np.ptp(scores) <= tiny:
    # Nothing to take out: every score is an effect, and counts whole.
    cells = np.searchsorted(values, scores)
    certain = (cells[:, None] == np.arange(len(values))).astype(np.float64)
    reach = lambda weights, m: (
      (values[:, None] >= m - tiny).T.astype(np.float64) @ weights
    )
    return certain, reach
  edges = np.linspace(values[0], values[-1], _CELLS + 1)
  # A member without luck is still known to within a cell only.
  errors = np.maximum(errors, tiny)[:, None]
  below = special.ndtr((edges - scores[:, None]) / errors)
  # Taken from the nearer side: a difference of two numbers near 1 is rounded.
  above = special.ndtr((scores[:, None] - edges) / errors)
  is_left = edges[1:] + edges[:-1] < 2 * scores[:, None]
  mass = np.where(is_left, np.diff(below), -np.diff(above))
  mass /= mass.max(axis=1, keepdims=True)

  def tails(weights: np.ndarray, margins: np.ndarray) -> np.ndarray:
    """Within a cell effects are spread evenly, so tails have no jumps."""
    cumulative = np.concatenate([[0.0], np.cumsum(weights)])
    return np.clip(1 - np.interp(margins, edges, cumulative), 0, 1)

  return mass, tails


def _weights(likelihood: np.ndarray, counts: np.ndarray) -> np.ndarray:
  """The cells' probabilities [c] given members drawn `counts` [N] times."""
  cells = likelihood.shape[1]
  weights = np.full(cells, 1 / cells)
  seen = counts > 0
  likelihood, shares = likelihood[seen], counts[seen] / counts.sum()
  for _ in range(_STEPS):
    weights = weights * ((shares / (likelihood @ weights)) @ likelihood)
  return weights


def _check(
  rewards: np.ndarray, base: np.ndarray, groups: np.ndarray, margins: np.ndarray
) -> None:
  if rewards.ndim != 2 or rewards.size == 0:
    raise ValueError(
      f'rewards has shape {rewards.shape}: needs [members, items], not empty'
    )
  if base.shape != rewards.shape[1:]:
    raise ValueError(
      f'base_rewards has shape {base.shape} for {rewards.shape[1]} items: '
      'needs [r], in the same order'
    )
  if groups.shape != rewards.shape[:1]:
    raise ValueError(
      f'groups has shape {groups.shape} for {len(rewards)} members: needs [N]'
    )
  if margins.ndim != 1 or margins.size == 0:
    raise ValueError(f'margins has shape {margins.shape}: needs [m], not empty')
  for name, values in (
    ('rewards', rewards),
    ('base_rewards', base),
    ('margins', margins),
  ):
    if not np.isfinite(values).all():
      raise ValueError(f'{name} holds a value that is not finite: leave it out')
