# SPDX-License-Identifier: Apache-2.0
"""Accuracy against K and against N.

Both are nested: the K + 1 best hold the K best, and the first N members are
the same in every larger population, so neighbouring points differ by what was
added and by nothing else.
"""

from __future__ import annotations

import numpy as np

from thicket.panel import Panel, speakers


def against_size(panel: Panel) -> np.ndarray:
  """Bool [K, r], whether the vote of the first 1, 2, ... K voters is right."""
  sizes = range(1, len(panel.classes) + 1)
  return np.stack([vote.correct for vote in panel.votes(sizes)])


def resampled_populations(
  scores: np.ndarray,
  panel: Panel,
  size: int,
  k: int,
  *,
  num_resamples: int = 200,
  confidence: float = 0.95,
  seed: int = 0,
) -> tuple[float, float, float]:
  """How the accuracy on the selection split varies with the population.

  N members are drawn with replacement from those there are, the K best of them
  vote on the very rows they were selected on: an optimistic accuracy, whose
  spread tells how much another population of that size would differ. A member
  drawn twice votes twice. Members are drawn as if independent, each by itself:
  of mirrored pairs the interval may be too narrow.

  Args:
    scores: [m], selection scores of the first draws of `panel`'s members.
    panel: these m members on the selection rows, by ascending id.
    size: N of the populations drawn.
    k: the ensemble's size, at most N.
    num_resamples: populations drawn.
    confidence: of the interval.
    seed: of the resampling.

  Returns:
    (mean accuracy, low, high), the bounds percentiles over populations.
  """
  rng = np.random.default_rng(seed)
  column = np.arange(panel.classes.shape[1])
  found = np.empty(num_resamples)
  for i in range(num_resamples):
    drawn = np.sort(rng.integers(0, len(scores), size))
    best = drawn[np.argsort(-scores[drawn], kind='stable')[:k]]
    (speaker,) = speakers(panel.classes[best], [k])
    right = panel.correct[best][speaker, column] & (speaker >= 0)
    found[i] = right.mean()
  tail = (1 - confidence) / 2
  low, high = np.quantile(found, [tail, 1 - tail])
  return float(found.mean()), float(low), float(high)
