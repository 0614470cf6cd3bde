# SPDX-License-Identifier: Apache-2.0
"""Spectral discordance: whether the same members are good at every task.

"Neural Thickets" (arXiv 2603.12228, section 2, proposition H.1). Each task's
scores become percentile ranks, C is their Pearson correlation, and

  D = 1 - (sum of C_jk over j != k) / (M (M - 1)).

D is 0 where every task ranks members alike and about 1 where the tasks are
unrelated. C is positive semi-definite, so the sum of all its entries, M plus
the off-diagonal sum, is at least 0: D is at most M / (M - 1). D is asked within
one sigma. Over several, members differ first of all in how far they were
moved, which harms all tasks alike and hides the discordance.

Axes: N members, M tasks, P principal components, K clusters. NumPy and SciPy
only.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
from scipy import stats

_ENTRIES = 1 << 21  # resampled scores held at once: 16 MiB
_ITERATIONS = 300  # of Lloyd's algorithm, which ends far earlier as a rule
_STARTS = 10  # of K-means; the best is kept


@dataclasses.dataclass(frozen=True)
class Discordance:
  """The discordance of one sigma's members.

  Attributes:
    group: index of the sigma, None where no groups were given.
    members: number of members.
    discordance: D, in [0, bound].
    low: bound of its bootstrap interval over members.
    high: its upper bound.
    bound: M / (M - 1), the most that M tasks can have.
    correlation: float64 [M, M], of the tasks' percentile ranks.
  """

  group: int | None
  members: int
  discordance: float
  low: float
  high: float
  bound: float
  correlation: np.ndarray


@dataclasses.dataclass(frozen=True)
class Components:
  """Principal components of percentile spectra, P = min(N, M).

  Attributes:
    coordinates: float64 [N, P] of members, about their mean.
    directions: float64 [P, M], orthonormal; the largest entry is positive.
    explained: float64 [P], shares of the variance, falling, of sum 1.
  """

  coordinates: np.ndarray
  directions: np.ndarray
  explained: np.ndarray


@dataclasses.dataclass(frozen=True)
class Clusters:
  """Clusters of members, in the order of their first members.

  Attributes:
    labels: int64 [N], from 0 to K - 1.
    centres: float64 [K, dimensions].
    inertia: sum of squared distances of members to their centres.
  """

  labels: np.ndarray
  centres: np.ndarray
  inertia: float


def percentile_ranks(scores: npt.ArrayLike) -> np.ndarray:
  """Scores as percentile ranks, task by task.

  (rank - 1) / (N - 1), ranks from 1 for the worst; members that tie share the
  mean of the ranks that they take.

  Args:
    scores: [N, M] of the members of one sigma, N at least 2; higher is better.

  Returns:
    float64 [N, M] in [0, 1], of mean 1/2 in each task.

  Raises:
    ValueError: the shape or a value is out of range.
  """
  scores = _check(scores, 'scores', 2)
  return (stats.rankdata(scores, axis=0) - 1) / (len(scores) - 1)


def discordance(
  scores: npt.ArrayLike,
  groups: npt.ArrayLike | None = None,
  *,
  confidence: float = 0.95,
  num_resamples: int = 1000,
  seed: int = 0,
) -> list[Discordance]:
  """The spectral discordance of each sigma; sigmas are never pooled.

  The interval is the bootstrap's percentile interval over members, ranked anew
  in each resample. Tasks and their items stay as they are. Noise of the scores
  lowers correlations: D of few items a task is nearer to 1 than that of many.

  Args:
    scores: [N, M] of members on tasks, M at least 2; higher is better.
    groups: [N] the index of each member's sigma; None says that all members
      have one and the same sigma.
    confidence: in (0, 1).
    num_resamples: of the members, at least 1.
    seed: of the resampling; the same seed gives the same interval.

  Returns:
    One result a group, by ascending group.

  Raises:
    ValueError: a shape, a value or a setting is out of range, a group has fewer
      than 3 members, or its scores in a task are all equal: such a task ranks
      nobody and has no correlation. Leave it out.
  """
  scores = _check(scores, 'scores', 2)
  if scores.shape[1] < 2:
    raise ValueError('scores has 1 task: discordance needs at least 2')
  if not 0 < confidence < 1:
    raise ValueError(f'confidence={confidence}: must lie between 0 and 1')
  if num_resamples < 1:
    raise ValueError(f'num_resamples={num_resamples}: must be at least 1')
  tail = (1 - confidence) / 2
  if groups is None:
    parts = [(None, scores)]
  else:
    groups = np.asarray(groups)
    if groups.shape != scores.shape[:1]:
      raise ValueError(
        f'groups has shape {groups.shape} for {len(scores)} members: needs [N]'
      )
    parts = [(int(g), scores[groups == g]) for g in np.unique(groups)]
  found = []
  for group, part in parts:
    name = 'scores' if group is None else f'group {group} of scores'
    n, m = part.shape
    if n < 3:
      raise ValueError(f'{name} has {n} members: needs at least 3')
    is_constant = np.ptp(part, axis=0) == 0
    if is_constant.any():
      at = int(np.argmax(is_constant))
      raise ValueError(
        f'{name} has column {at} constant at {part[0, at]:g}: a task that '
        'ranks nobody has no correlation; leave it out'
      )
    correlation = np.corrcoef(percentile_ranks(part), rowvar=False)
    np.fill_diagonal(correlation, 1)
    bound = m / (m - 1)
    d = min(max(1 - (correlation.sum() - m) / (m * (m - 1)), 0.0), bound)
    resampled = _resampled(part, num_resamples, seed)
    low, high = np.quantile(resampled, [tail, 1 - tail])
    found.append(
      Discordance(
        group,
        n,
        float(d),
        float(np.clip(low, 0, d)),
        float(np.clip(high, d, bound)),
        bound,
        correlation,
      )
    )
  return found


def principal_components(percentiles: npt.ArrayLike) -> Components:
  """Principal components of percentile spectra, by singular values.

  Args:
    percentiles: [N, M] of `percentile_ranks`, one spectrum a member.

  Returns:
    Coordinates, directions and shares of the variance.

  Raises:
    ValueError: the shape or a value is out of range, or all members have the
      same spectrum.
  """
  percentiles = _check(percentiles, 'percentiles', 2)
  if (np.ptp(percentiles, axis=0) == 0).all():
    raise ValueError('percentiles has the same spectrum for all members')
  centred = percentiles - percentiles.mean(axis=0)
  u, s, directions = np.linalg.svd(centred, full_matrices=False)
  # A direction's sign is free: fixed here, so that figures do not flip.
  largest = np.abs(directions).argmax(axis=1)
  signs = np.sign(directions[np.arange(len(directions)), largest])
  return Components(
    coordinates=u * s * signs,
    directions=directions * signs[:, None],
    explained=s**2 / (s**2).sum(),
  )


def clusters(points: npt.ArrayLike, k: int, *, seed: int = 0) -> Clusters:
  """K-means by Lloyd's algorithm, the best of ten k-means++ starts.

  Lloyd, "Least squares quantization in PCM" (1982); Arthur and Vassilvitskii,
  "k-means++" (2007).

  Args:
    points: [N, dimensions], percentile spectra or a few coordinates of them.
    k: number of clusters, from 1 to the number of different points.
    seed: of the starts; the same seed gives the same clusters.

  Returns:
    Labels, centres and inertia; no cluster is empty.

  Raises:
    ValueError: the shape, a value or k is out of range.
  """
  points = _check(points, 'points', 1)
  num_different = len(np.unique(points, axis=0))
  if not 1 <= k <= num_different:
    raise ValueError(
      f'k={k}: must lie between 1 and {num_different}, the different points'
    )
  rng = np.random.default_rng(seed)
  found = [_lloyd(points, _start(points, k, rng)) for _ in range(_STARTS)]
  labels, centres, inertia = min(found, key=lambda one: one[2])
  order = np.argsort(np.unique(labels, return_index=True)[1])
  return Clusters(np.argsort(order)[labels], centres[order], inertia)


def _resampled(scores: np.ndarray, num_resamples: int, seed: int) -> np.ndarray:
  """D of resamples of members; those in which a task is constant are left out.

  With 3 members a ninth is, with 10 hardly any.
  """
  n, m = scores.shape
  rng = np.random.default_rng(seed)
  found = []
  step = max(1, _ENTRIES // scores.size)
  for start in range(0, num_resamples, step):
    rows = min(step, num_resamples - start)
    ranks = stats.rankdata(scores[rng.integers(0, n, (rows, n))], axis=1)
    ranks -= (n + 1) / 2
    spread = np.sqrt((ranks**2).mean(axis=1))
    ranks = ranks[(spread > 0).all(axis=1)]
    ranks /= spread[(spread > 0).all(axis=1)][:, None]
    # The sum of all of C is the mean square of members' sums over tasks.
    total = (ranks.sum(axis=2) ** 2).mean(axis=1)
    found.append(1 - (total - m) / (m * (m - 1)))
  found = np.concatenate(found)
  if found.size == 0:
    raise ValueError(
      f'num_resamples={num_resamples}: in each a task is constant; ask for '
      'more, or leave tasks out that rank hardly any member'
    )
  return found


def _squares(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
  """Squared distances [N, K], by differences: no cancellation near 0."""
  return ((points[:, None] - centres) ** 2).sum(axis=2)


def _start(points: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
  """Centres [K, dimensions], each drawn by its squared distance to the last."""
  picks = [int(rng.integers(len(points)))]
  while len(picks) < k:
    nearest = _squares(points, points[picks]).min(axis=1)
    picks.append(int(rng.choice(len(points), p=nearest / nearest.sum())))
  return points[picks]


def _lloyd(
  points: np.ndarray, centres: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float]:
  """(labels, centres, inertia) where labels no longer change."""
  k = len(centres)
  labels = np.full(len(points), -1)
  for _ in range(_ITERATIONS):
    squares = _squares(points, centres)
    new = squares.argmin(axis=1)
    # An empty cluster takes the farthest point of a cluster that has another.
    for empty in np.setdiff1d(np.arange(k), new):
      is_alone = np.bincount(new, minlength=k)[new] == 1
      cost = np.where(is_alone, -1.0, squares[np.arange(len(points)), new])
      new[cost.argmax()] = empty
    if (new == labels).all():
      break
    labels = new
    centres = np.stack([points[labels == c].mean(axis=0) for c in range(k)])
  squares = _squares(points, centres)[np.arange(len(points)), labels]
  return labels, centres, float(squares.sum())


def _check(values: npt.ArrayLike, name: str, least: int) -> np.ndarray:
  values = np.asarray(values, np.float64)
  if values.ndim != 2 or values.shape[1] == 0 or len(values) < least:
    raise ValueError(
      f'{name} has shape {values.shape}: needs [members, columns], at least '
      f'{least} by 1'
    )
  is_bad = ~np.isfinite(values)
  if is_bad.any():
    at = np.argwhere(is_bad)[0].tolist()
    raise ValueError(f'{name}{at} is {values[tuple(at)]}: needs finite values')
  return values
