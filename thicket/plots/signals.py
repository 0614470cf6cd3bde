# SPDX-License-Identifier: Apache-2.0
"""Figures of 1-D signals: what members continue, and how they score.

Neural Thickets (arXiv 2603.12228, section 3) tells three regimes apart by what
was learnt before: nothing (a needle in a haystack), a mixture of signals (a
thicket), the target's own family (a plateau). Plain arrays in.

Axes: C context, T steps, K selected members, N members.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from thicket.plots import style

_MAX_BINS = 40
_ROOM = 0.45  # beyond the target, as a share of its range


class Panel(NamedTuple):
  """One regime: one signal continued, and the errors of all members.

  Attributes:
    title: of the row, as 'needle: pretrained on nothing'.
    x: [C + T] positions of the values given and of those that follow.
    context: [C] values given.
    target: [T] values to be found.
    base: [T] the base's rollout.
    members: [K, T] rollouts of the selected members.
    ensemble: [T] their mean.
    errors: [N] mean squared error of each member over the selection rows;
      those that are not finite are counted in words.
    base_error: the base's, over the same rows.
    ensemble_error: the ensemble's, over the same rows unless `regimes` is told
      otherwise.
    sigma: of the members.
  """

  title: str
  x: npt.ArrayLike
  context: npt.ArrayLike
  target: npt.ArrayLike
  base: npt.ArrayLike
  members: npt.ArrayLike
  ensemble: npt.ArrayLike
  errors: npt.ArrayLike
  base_error: float
  ensemble_error: float
  sigma: float | Sequence[float]


def regimes(
  panels: Sequence[Panel],
  *,
  rows: int | Sequence[int] | None = None,
  ensemble_rows: str = '',
  scale: str = 'absolute',
  antithetic: bool = False,
) -> Figure:
  """Rollouts beside the errors of all members, a row for each regime.

  N, K and sigma of the caption are those of the panels.

  Args:
    panels: one or more, from top to bottom.
    rows: signals that an error is a mean over, one number or one a panel.
    ensemble_rows: where the ensemble's error is not over these rows, the rows
      that it is over, as '256 test rows'; the caption then says so.
    scale: unit of sigma, as in `style.Facts`.
    antithetic: whether members come in mirrored pairs.

  Returns:
    A captioned figure, 6 inches wide.

  Raises:
    ValueError: there are no panels, or the arrays of one do not fit.
  """
  if not panels:
    raise ValueError('panels is empty: give one or more')
  for panel in panels:
    _check(panel)
  with style.context():
    figure = Figure((style.WIDTH, 0.5 + 1.75 * len(panels)))
    grid = figure.subplots(
      len(panels), 2, squeeze=False, sharex='col', width_ratios=(3, 2)
    )
    edges = _edges(panels)
    for at, ((left, right), panel) in enumerate(zip(grid, panels, strict=True)):
      _rollouts(left, panel)
      _histogram(
        right, panel.errors, panel.base_error, panel.ensemble_error, edges
      )
      left.set_title(f'{panel.title}, {_sigma(panel)}', loc='left')
      left.set_ylabel('value')
      right.set_ylabel('members')
      if at == 0:
        style.legend(figure, left, ncols=5)
    left.set_xlabel('x')
    right.set_xlabel('mean squared error')
    facts = style.Facts(
      n=[np.size(panel.errors) for panel in panels],
      k=[len(np.atleast_2d(panel.members)) for panel in panels],
      sigma=np.concatenate([np.ravel(panel.sigma) for panel in panels]),
      rows=rows,
      scale=scale,
      antithetic=antithetic,
    )
    text = (
      'Left: one signal, continued from the shaded values; thin lines are the '
      'selected members, and lines that leave the frame are cut. Right: mean '
      "squared error, in the signal's unit squared, of all members on the "
      'selection rows; dashed: base; solid with a diamond: ensemble'
      + (f', on {ensemble_rows} instead.' if ensemble_rows else '.')
      + _unlike([p.errors for p in panels])
    )
    return style.finish(figure, text, facts)


def score_histogram(
  errors: npt.ArrayLike,
  base: float,
  ensemble: float | None,
  facts: style.Facts,
  *,
  unit: str = "the signal's unit squared",
) -> Figure:
  """How the errors of all members spread, on a logarithmic scale.

  Args:
    errors: [N], 0 or more, lower is better; 0 is shown at the lowest other.
    base: the base's error on the same rows.
    ensemble: the ensemble's, if there is one.
    facts: what the numbers rest on.
    unit: of the errors.

  Returns:
    A captioned figure, 6 inches wide.
  """
  with style.context():
    figure = Figure((style.WIDTH, 2.6))
    axes = figure.subplots()
    marks = [base] if ensemble is None else [base, ensemble]
    _histogram(axes, errors, base, ensemble, _bins([errors], marks))
    axes.set(xlabel=f'mean squared error ({unit})', ylabel='members')
    style.legend(figure, axes)
    text = (
      f'Mean squared error of each member, in {unit}; lower is better.'
      + _unlike([errors])
    )
    return style.finish(figure, text, facts)


def _sigma(panel: Panel) -> str:
  return 'sigma = ' + ', '.join(f'{x:g}' for x in np.ravel(panel.sigma))


def _check(panel: Panel) -> None:
  given, steps = np.size(panel.context), np.size(panel.target)
  if given < 1 or steps < 1 or np.shape(panel.x) != (given + steps,):
    raise ValueError(
      f'panel {panel.title!r}: x {np.shape(panel.x)} must hold the positions '
      f'of {given} context and {steps} target values, at least one of each'
    )
  shapes = {
    'base': (np.shape(panel.base), (steps,)),
    'ensemble': (np.shape(panel.ensemble), (steps,)),
    'members': (np.shape(panel.members)[1:], (steps,)),
  }
  for name, (got, want) in shapes.items():
    if got != want:
      raise ValueError(f'panel {panel.title!r}: {name} {got} is not {want}')


def _rollouts(axes: Axes, panel: Panel) -> None:
  x = np.asarray(panel.x, float)
  given = np.asarray(panel.context, float)
  start = len(given) - 1
  # From the last value given on, so that no line begins in mid air.
  after = lambda values: np.concatenate([given[-1:], np.asarray(values, float)])
  axes.axvspan(x[0], x[start], color='#e4e4e4', linewidth=0, label='given')
  axes.plot(x[: start + 1], given, color='black', linewidth=1.6)
  for at, member in enumerate(np.asarray(panel.members, float)):
    axes.plot(
      x[start:], after(member), color=style.SKY, linewidth=0.7,
      label='selected' if at == 0 else None, gid='member',
    )  # fmt: skip
  axes.plot(
    x[start:], after(panel.base), color=style.ORANGE, linestyle='-.',
    label='base', gid='base',
  )  # fmt: skip
  axes.plot(
    x[start:], after(panel.ensemble), color=style.BLUE, linewidth=2.4,
    label='ensemble', gid='ensemble',
  )  # fmt: skip
  axes.plot(
    x[start:], after(panel.target), color='black', linestyle='--',
    linewidth=1.6, label='target', gid='target',
  )  # fmt: skip
  true = np.concatenate([given, np.asarray(panel.target, float)])
  true = true[np.isfinite(true)]
  if true.size:
    low, high = true.min(), true.max()
    room = _ROOM * ((high - low) or 1.0)
    axes.set_ylim(low - room, high + room)
  axes.set_xlim(x[0], x[-1])
  axes.yaxis.set_major_locator(MaxNLocator(nbins=4))


def _histogram(
  axes: Axes,
  errors: npt.ArrayLike,
  base: float,
  ensemble: float | None,
  edges: np.ndarray,
) -> None:
  errors = np.ravel(np.asarray(errors, float))
  found = np.clip(errors[np.isfinite(errors)], edges[0], edges[-1])
  axes.set_xlim(edges[0], edges[-1])
  style.logarithmic(axes, 'x', 4)
  axes.hist(
    found, edges, color='#b8dcf2', edgecolor=style.BLUE, linewidth=0.5,
    label='members',
  )  # fmt: skip
  top = max(1.0, axes.get_ylim()[1])
  axes.set_ylim(0, 1.18 * top)
  if np.isfinite(base):
    axes.axvline(
      np.clip(base, edges[0], edges[-1]), color=style.ORANGE, linestyle='--',
      linewidth=1.8, label='base', gid='base-error',
    )  # fmt: skip
  if ensemble is not None and np.isfinite(ensemble):
    at = np.clip(ensemble, edges[0], edges[-1])
    axes.plot(
      [at, at], [0, 1.08 * top], color='black', linewidth=1.5, marker='D',
      markevery=[1], markersize=5, label='ensemble', gid='ensemble-error',
    )  # fmt: skip
  axes.yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
  axes.grid(axis='x', visible=False)


def _edges(panels: Sequence[Panel]) -> np.ndarray:
  marks = [e for p in panels for e in (p.base_error, p.ensemble_error)]
  return _bins([panel.errors for panel in panels], marks)


def _bins(
  errors: Sequence[npt.ArrayLike], marks: Sequence[float]
) -> np.ndarray:
  """Edges of bins, equal in the logarithm, that hold all errors and marks."""
  known = np.concatenate([*[np.ravel(e) for e in errors], np.ravel(marks)])
  known = known[np.isfinite(known) & (known > 0)]
  if not known.size:
    known = np.ones(1)
  low, high = np.log10(known.min()), np.log10(known.max())
  room = max(0.04 * (high - low), 0.1)
  return np.logspace(low - room, high + room, _MAX_BINS + 1)


def _unlike(errors: Sequence[npt.ArrayLike]) -> str:
  """What the histograms leave out."""
  lost = sum(int((~np.isfinite(np.ravel(e))).sum()) for e in errors)
  return f' {lost} errors that are not finite are left out.' if lost else ''
