# SPDX-License-Identifier: Apache-2.0
"""Figures of scores around the base: on a plane, and along lines.

What Neural Thickets (arXiv 2603.12228, section 2, figure 2) plots. Plain arrays
in. They are `landscape` and `slices` of `thicket.plots.thickets`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from thicket.plots import style

_MAX_SLICES = 8  # more lines are one thin bundle
_LEVELS = 16
_GREY = '#dddddd'


def landscape(
  x: npt.ArrayLike,
  y: npt.ArrayLike,
  scores: npt.ArrayLike,
  base: float,
  facts: style.Facts,
  *,
  unit: str = 'mean reward',
  members: npt.ArrayLike | None = None,
  even: bool = True,
) -> Figure:
  """Scores on a plane through the base; the dashed line is the base's level.

  Args:
    x: [n] in units of sigma.
    y: [m] in units of sigma.
    scores: [m, n], `scores[i, j]` at `(x[j], y[i])`; NaN is grey.
    base: score of the base, which is at (0, 0).
    facts: what the numbers rest on.
    unit: of the scores.
    members: [p, 2] points to mark, in units of sigma.
    even: whether bands of colour are equally high; otherwise they hold equal
      shares of the plane, which shows the shape of scores with long tails.

  Returns:
    A captioned figure, 6 inches wide.

  Raises:
    ValueError: the shape of the scores does not fit.
  """
  x, y, scores = (np.asarray(v, float) for v in (x, y, scores))
  if scores.shape != (len(y), len(x)):
    raise ValueError(f'scores {scores.shape}: must be ({len(y)}, {len(x)})')
  scores = np.ma.masked_invalid(scores)
  known = np.append(scores.compressed(), base if np.isfinite(base) else [])
  low, high = (known.min(), known.max()) if known.size else (0.0, 1.0)
  if low == high:
    low, high = low - 0.5, high + 0.5
  with style.context():
    figure = Figure((style.WIDTH, 3.9))
    axes = figure.subplots()
    axes.set_facecolor(_GREY)
    if min(scores.shape) > 1:
      levels = MaxNLocator(_LEVELS).tick_values(low, high)
      if not even and scores.count():
        shares = np.linspace(0, 1, _LEVELS + 1)
        levels = np.unique(np.quantile(scores.compressed(), shares))
        levels = levels if len(levels) > 1 else [low, high]
      filled = axes.contourf(
        x, y, scores, levels, cmap='viridis', norm=_norm(levels)
      )
      if scores.count() and scores.min() < base < scores.max():
        for color, dash, width in (('white', '-', 2.8), ('black', '--', 1.3)):
          axes.contour(
            x, y, scores, [base], colors=color, linestyles=dash,
            linewidths=width,
          )  # fmt: skip
    else:  # no surface
      grid = np.broadcast_arrays(x, y[:, None])
      filled = axes.scatter(*grid, c=scores.filled(np.nan), vmin=low, vmax=high)
    bar = figure.colorbar(
      filled, ax=axes, label=f'score ({unit})', format=lambda x, _: f'{x:.4g}'
    )
    if members is not None:
      axes.plot(
        *np.asarray(members, float).reshape(-1, 2).T, 'o', color='white',
        markeredgecolor='black', markersize=5, label='members', gid='members',
      )  # fmt: skip
    axes.plot(
      0, 0, '*', color=style.ORANGE, markeredgecolor='white', markersize=15,
      label='base', gid='base',
    )  # fmt: skip
    if np.isfinite(base):
      bar.ax.axhline(base, color='white', linewidth=2.8)
      bar.ax.axhline(base, color='black', linestyle='--', linewidth=1.3)
    axes.set(xlabel='first direction (sigma)', ylabel='second (sigma)')
    axes.set_aspect('equal' if min(scores.shape) > 1 else 'auto')
    axes.grid(visible=False)
    style.legend(figure, axes)
    text = (
      f'Score ({unit}) on a plane of two random directions, in units of sigma. '
      f'Dashed: the level of the base, {base:.4g}.'
      + ('' if even else ' Bands of colour hold equal shares of the plane.')
    )
    return style.finish(figure, text, facts)


def _norm(levels: npt.ArrayLike) -> BoundaryNorm:
  """As many colours as bands, whatever their heights."""
  return BoundaryNorm(levels, 256)


def slices(
  x: npt.ArrayLike,
  scores: npt.ArrayLike,
  base: float,
  facts: style.Facts,
  *,
  unit: str = 'mean reward',
  directions: Sequence[int] | None = None,
) -> Figure:
  """Scores along random lines through the base.

  Args:
    x: [n] in units of sigma.
    scores: [d, n], a line each; more than 8 are drawn alike, with their median.
    base: score of the base, which is at 0.
    facts: what the numbers rest on.
    unit: of the scores.
    directions: ids of the members that the lines lead to.

  Returns:
    A captioned figure, 6 inches wide.
  """
  x, scores = np.asarray(x, float), np.asarray(scores, float)
  if scores.ndim != 2 or scores.shape[1] != len(x):
    raise ValueError(f'scores {scores.shape}: must be (lines, {len(x)})')
  ids = range(len(scores)) if directions is None else directions
  text = f'Score ({unit}) along random directions, in units of sigma.'
  with style.context():
    figure = Figure((style.WIDTH, 2.9))
    axes = figure.subplots()
    few = len(scores) <= _MAX_SLICES
    for at, (line, name) in enumerate(zip(scores, ids, strict=True)):
      if few:
        look = style.look(at) | {'label': f'member {name}'}
      else:
        look = {'color': style.SKY, 'linewidth': 0.6}
      axes.plot(
        x, line, markevery=max(1, len(x) // 8), gid=f'slice-{at}', **look
      )
    if not few:
      middle = np.ma.median(np.ma.masked_invalid(scores), axis=0).filled(np.nan)
      axes.plot(x, middle, color=style.BLUE, linewidth=2.4, label='median')
    axes.axhline(base, color='black', linestyle=':', linewidth=1, label='base')
    axes.plot(0, base, '*', color='black', markersize=11, gid='base')
    axes.set(xlabel='distance from the base (sigma)', ylabel=f'score ({unit})')
    style.legend(figure, axes)
    return style.finish(figure, text, facts)
