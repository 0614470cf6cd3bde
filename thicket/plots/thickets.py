# SPDX-License-Identifier: Apache-2.0
"""Figures of the shape of a thicket: density, diversity, landscape, distance.

What Neural Thickets (arXiv 2603.12228, section 2, figures 2 to 4 and 12) plots,
with intervals, never over several sigmas at once. Plain arrays in; the results
of `thicket.analysis` have the same names and can be given as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from thicket.plots import style
from thicket.plots.planes import landscape, slices
from thicket.plots.spectra import discordance

__all__ = [
  'Density',
  'Displacement',
  'Scaling',
  'density',
  'discordance',
  'displacement',
  'landscape',
  'scaling',
  'slices',
]


class Density(NamedTuple):
  """Shares of members at or above margins; `analysis.density.Density` fits.

  Attributes:
    margins: [m] gains over the base.
    estimate, low, high: [m] shares on these rows, with their interval.
    corrected, corrected_low, corrected_high: [m] shares freed of the noise of
      finitely many rows, or None.
  """

  margins: npt.ArrayLike
  estimate: npt.ArrayLike
  low: npt.ArrayLike
  high: npt.ArrayLike
  corrected: npt.ArrayLike | None = None
  corrected_low: npt.ArrayLike | None = None
  corrected_high: npt.ArrayLike | None = None


class Displacement(NamedTuple):
  """How far members move; `analysis.displacement.Displacement` fits.

  Attributes:
    sigmas: [s].
    mean: [s] over members.
    error: [s] standard error of `mean`.
  """

  sigmas: npt.ArrayLike
  mean: npt.ArrayLike
  error: npt.ArrayLike


class Scaling(NamedTuple):
  """One line of a scaling figure.

  Attributes:
    sizes: [s], above 0.
    densities: [s, r], one for each training seed; NaN where there is none.
    low, high: [s] interval that holds the spread of seeds.
    middle: [s] estimate, the mean over seeds unless given.
    law: [s] values of a fitted law at the sizes, or None.
  """

  sizes: npt.ArrayLike
  densities: npt.ArrayLike
  low: npt.ArrayLike
  high: npt.ArrayLike
  middle: npt.ArrayLike | None = None
  law: npt.ArrayLike | None = None


def density(
  curves: Sequence[Any],
  sigmas: Sequence[float],
  facts: style.Facts,
  *,
  unit: str = 'mean reward',
  interval: str = '95%',
  log: bool = False,
) -> Figure:
  """Solution density delta(m) against the margin, a line for each sigma.

  Args:
    curves: `Density` of each sigma. Corrected ones get axes of their own.
    sigmas: of the curves.
    facts: what the numbers rest on.
    unit: of the margins.
    interval: what the bands hold.
    log: whether shares are on a logarithmic scale; 0 is then not shown.

  Returns:
    A captioned figure, 6 inches wide.

  Raises:
    ValueError: there are no curves, or not as many sigmas.
  """
  if not curves or len(curves) != len(sigmas):
    raise ValueError(
      f'curves ({len(curves)}) and sigmas ({len(sigmas)}) must be as many, '
      f'at least one'
    )
  is_corrected = any(
    curve.corrected is not None and np.isfinite(curve.corrected).any()
    for curve in curves
  )
  floor = _lowest(curves) if log else 0.0
  with style.context():
    figure = Figure((style.WIDTH, 2.9))
    grid = figure.subplots(1, 1 + is_corrected, squeeze=False, sharey=True)[0]
    for at, (curve, sigma) in enumerate(zip(curves, sigmas, strict=True)):
      label = f'sigma = {sigma:g}'
      _band(
        grid[0], curve.margins, curve.estimate, curve.low, curve.high,
        floor, **style.look(at), label=label, gid=f'density-{at}',
      )  # fmt: skip
      if is_corrected and curve.corrected is not None:
        _band(
          grid[1], curve.margins, curve.corrected, curve.corrected_low,
          curve.corrected_high, floor, **style.look(at), gid=f'corrected-{at}',
        )  # fmt: skip
    for axes in grid:
      axes.set_xlabel(f'margin over the base ({unit})')
      axes.axvline(0, color='black', linewidth=0.8, linestyle=':')
      axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    grid[0].set_ylabel('members at or above it, %')
    if is_corrected:
      grid[0].set_title('as scored on these rows', loc='left')
      grid[1].set_title('corrected for finitely many rows', loc='left')
    if log:
      grid[0].set_ylim(floor, 130)
      style.logarithmic(grid[0], 'y')
    else:
      top = max(axes.get_ylim()[1] for axes in grid)
      grid[0].set_ylim(0, min(102.0, max(top, 1.0)))
    style.legend(figure, grid[0])
    text = (
      f'Solution density: the share of members whose score is at least the '
      f"base's plus the margin, in {unit}, with {interval} bands: Wilson's, "
      f'for other members on the same rows'
      + (
        '; on the right after deconvolution of the noise of the rows, for '
        'other members and other rows.'
        if is_corrected
        else '.'
      )
    )
    return style.finish(figure, text, facts)


def _band(
  axes: Axes,
  x: npt.ArrayLike,
  middle: npt.ArrayLike,
  low: npt.ArrayLike,
  high: npt.ArrayLike,
  floor: float,
  **look: Any,
) -> None:
  """A line in percent with its band; a single point gets a bar."""
  x = np.asarray(x, float)
  middle, low, high = (100 * np.asarray(v, float) for v in (middle, low, high))
  low = np.maximum(low, floor)
  if len(x) == 1:
    axes.vlines(x, low, high, color=look['color'], linewidth=1.2)
  else:
    axes.fill_between(
      x, low, high, color=look['color'], alpha=0.16, linewidth=0
    )
  axes.plot(x, middle, markevery=max(1, len(x) // 8), **look)


def _lowest(curves: Sequence[Any]) -> float:
  """Half of the lowest share above 0 that was counted, in percent."""
  known = np.concatenate([np.ravel(curve.estimate) for curve in curves])
  known = known[known > 0]
  return 50 * float(known.min()) if known.size else 0.1


def displacement(
  curves: Mapping[str, Any],
  facts: style.Facts,
  *,
  measure: str,
  unit: str,
  slope: float | None = None,
) -> Figure:
  """How far members move the function against sigma, on logarithmic scales.

  Args:
    curves: `Displacement` by noise family; values of 0 are not shown.
    facts: what the numbers rest on.
    measure: as 'KL divergence'.
    unit: of the measure, as 'nats'.
    slope: of a guide through the first point, 1 for an rms, 2 for a KL.

  Returns:
    A captioned figure, 6 inches wide.
  """
  with style.context():
    figure = Figure((style.WIDTH, 3.2))
    axes = figure.subplots()
    for at, (name, curve) in enumerate(curves.items()):
      x, mean, error = (
        np.asarray(v, float) for v in (curve.sigmas, curve.mean, curve.error)
      )
      shown = (x > 0) & (mean > 0)
      x, mean, reach = x[shown], mean[shown], 1.96 * np.nan_to_num(error[shown])
      below = np.minimum(reach, 0.9 * mean)  # a bar to 0 has no end here
      axes.errorbar(
        x * 1.02**at, mean, [below, reach], capsize=3, **style.look(at),
        label=name,
        markerfacecolor='white' if at % 2 else None,
      ).lines[0].set_gid(f'displacement-{at}')  # fmt: skip
      if slope is not None and len(x) > 1 and at == 0:
        axes.plot(
          x, mean[0] * (x / x[0]) ** slope, color=style.GREY, linewidth=0.9,
          linestyle=(0, (1, 2)), label=f'slope {slope:g}', zorder=1,
        )  # fmt: skip
    style.logarithmic(axes, 'x')
    style.logarithmic(axes, 'y')
    axes.set(xlabel='sigma', ylabel=f'{measure} ({unit})')
    style.legend(figure, axes)
    text = (
      f'{measure} between base and member, in {unit}, mean over members; bars '
      f'are 1.96 standard errors, cut where they reach 0.'
    )
    return style.finish(figure, text, facts)


def scaling(
  lines: Mapping[str, Scaling],
  facts: style.Facts,
  *,
  x: str = 'parameters',
  y: str = 'solution density',
  unit: str = 'share of members',
  interval: str = '95% over seeds',
  log: bool = False,
) -> Figure:
  """A density against size or training length, with every seed.

  Args:
    lines: `Scaling` by name, as 'sigma = 0.01'.
    facts: what the numbers rest on.
    x: what grows, with its unit.
    y: what is measured.
    unit: of it.
    interval: what the bars hold.
    log: whether y is logarithmic; values of 0 are then not shown.

  Returns:
    A captioned figure, 6 inches wide.
  """
  with style.context():
    figure = Figure((style.WIDTH, 3.2))
    axes = figure.subplots()
    for at, (name, line) in enumerate(lines.items()):
      _scaling(axes, at, len(lines), name, line)
    style.logarithmic(axes, 'x')
    if log:
      style.logarithmic(axes, 'y')
    axes.set(xlabel=x, ylabel=f'{y}\n({unit})')
    style.legend(figure, axes)
    law = any(line.law is not None for line in lines.values())
    text = (
      f'{y[:1].upper()}{y[1:]} ({unit}) against {x}. Small points: training '
      f'seeds; large: their estimate, with bars of {interval}.'
      + (' Thin dotted: the fitted law.' if law else '')
    )
    return style.finish(figure, text, facts)


def _scaling(axes: Axes, at: int, count: int, name: str, line: Scaling) -> None:
  sizes = np.asarray(line.sizes, float)
  seeds = np.asarray(line.densities, float).reshape(len(sizes), -1)
  low, high = np.asarray(line.low, float), np.asarray(line.high, float)
  middle = line.middle
  if middle is None:
    middle = np.ma.masked_invalid(seeds).mean(1).filled(np.nan)
  middle = np.asarray(middle, float)
  step = max(np.ptp(np.log(sizes)), 1.0) / 80  # bars beside each other
  x = sizes * np.exp(step * (at - (count - 1) / 2))
  look = style.look(at)
  axes.plot(
    np.repeat(x * np.exp(-0.4 * step), seeds.shape[1]), seeds.ravel(),
    marker=look['marker'], linestyle='',
    color=look['color'], markerfacecolor='none', markersize=3, alpha=0.8,
    markeredgewidth=0.7, gid=f'seeds-{at}',
  )  # fmt: skip
  axes.vlines(x, low, high, color=look['color'], linewidth=1.3)
  axes.plot(x, middle, **look, label=name, gid=f'scaling-{at}')
  if line.law is not None:
    axes.plot(
      sizes, line.law, color=look['color'], linewidth=0.9, linestyle=(0, (1, 2))
    )
