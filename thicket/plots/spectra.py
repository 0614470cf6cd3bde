# SPDX-License-Identifier: Apache-2.0
"""A figure of diversity: whether the same members are good at every task.

What Neural Thickets (arXiv 2603.12228, section 2, figure 4) plots, within one
sigma: percentile spectra, how tasks agree, and clusters of members. Plain
arrays in. It is `discordance` of `thicket.plots.thickets`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from thicket.plots import style

_MAX_NUMBERS = 8  # tasks whose correlations can be written out
_MAX_SPECTRA = 150
_GREY = '#dddddd'


def discordance(
  matrix: npt.ArrayLike,
  names: Sequence[str],
  facts: style.Facts,
  *,
  value: float | None = None,
  interval: tuple[float, float] | None = None,
  coordinates: npt.ArrayLike | None = None,
  explained: npt.ArrayLike | None = None,
  labels: npt.ArrayLike | None = None,
  spectra: npt.ArrayLike | None = None,
) -> Figure:
  """How far tasks agree about members, and members in their components.

  Args:
    matrix: [M, M] correlation of the tasks' percentile ranks; NaN is grey.
    names: of the M tasks.
    facts: of one sigma.
    value: the discordance D, between 0 and M / (M - 1).
    interval: of D, 95%.
    coordinates: [N, P] principal components of the members; a member's
      first two are shown, or its only one against 0.
    explained: [P] shares of the variance.
    labels: [N] cluster of each member.
    spectra: [N, M] percentile ranks in [0, 1]; the lines below.

  Returns:
    A captioned figure, 6 inches wide.

  Raises:
    ValueError: shapes do not fit.
  """
  matrix = np.asarray(matrix, float)
  if matrix.shape != (len(names), len(names)) or not len(names):
    raise ValueError(f'matrix {matrix.shape}: {len(names)} names do not fit')
  for name, part in (('coordinates', coordinates), ('spectra', spectra)):
    if part is not None and np.ndim(part) != 2:
      raise ValueError(f'{name} {np.shape(part)}: must have 2 dimensions')
  if spectra is not None and np.shape(spectra)[1] != len(names):
    raise ValueError(f'spectra {np.shape(spectra)}: needs {len(names)} tasks')
  text = 'Correlation, without unit, of percentile ranks of members by task.'
  if value is not None:
    ends = (
      '' if interval is None else ' (95%: {:.3f} to {:.3f})'.format(*interval)
    )
    most = len(names) / max(1, len(names) - 1)
    text += f' Spectral discordance D = {value:.3f}{ends}, at most {most:.3f}.'
  with style.context():
    figure = Figure((style.WIDTH, 3.0 if spectra is None else 4.9))
    top = ['C', 'C' if coordinates is None else 'P']
    axes = figure.subplot_mosaic(
      [top] if spectra is None else [top, ['S', 'S']],
      height_ratios=[3] if spectra is None else [3, 1.9],
    )
    _heatmap(figure, axes['C'], matrix, names)
    if coordinates is not None:
      text += (
        ' Principal components of the percentile spectra, in units of '
        'percentile ranks.'
      )
      found = np.asarray(coordinates, float)
      _components(axes['P'], found, explained, _clusters(labels, len(found)))
    if spectra is not None:
      text += ' Thin lines: members; thick: the mean of their cluster.'
      found = np.asarray(spectra, float)
      _spectra(axes['S'], found, names, _clusters(labels, len(found)))
    shown = axes['P'] if coordinates is not None else axes.get('S')
    if labels is not None and shown is not None:
      style.legend(figure, shown)
    return style.finish(figure, text, facts)


def _clusters(labels: npt.ArrayLike | None, count: int) -> list[np.ndarray]:
  """Bool [count] for each cluster; one of all without labels."""
  if labels is None:
    return [np.ones(count, bool)]
  labels = np.asarray(labels)
  if labels.shape != (count,):
    raise ValueError(f'labels {labels.shape}: needs one for each of {count}')
  return [labels == label for label in np.unique(labels)]


def _heatmap(
  figure: Figure, axes: Axes, matrix: np.ndarray, names: Sequence[str]
) -> None:
  count = len(names)
  axes.set_facecolor(_GREY)
  image = axes.imshow(matrix, cmap='PuOr', vmin=-1, vmax=1, aspect='auto')
  if count <= _MAX_NUMBERS:
    for (row, column), found in np.ndenumerate(matrix):
      if np.isfinite(found):
        axes.text(
          column, row, f'{found:.1f}'.replace('-0.0', '0.0'), fontsize=8,
          ha='center', va='center',
          color='white' if abs(found) > 0.7 else 'black',
        )  # fmt: skip
  turn = 40 if count <= _MAX_NUMBERS else 90
  axes.set_xticks(
    range(count), names, rotation=turn, ha='right', rotation_mode='anchor',
    va='center' if turn == 90 else 'top',
  )  # fmt: skip
  axes.set_yticks(range(count), names)
  axes.grid(visible=False)
  figure.colorbar(
    image, ax=axes, label='correlation', ticks=np.arange(-1, 1.1, 0.5)
  )


def _components(
  axes: Axes,
  coordinates: np.ndarray,
  explained: npt.ArrayLike | None,
  groups: Sequence[np.ndarray],
) -> None:
  x = coordinates[:, 0]
  y = coordinates[:, 1] if coordinates.shape[1] > 1 else np.zeros_like(x)
  for at, group in enumerate(groups):
    look = style.look(at) | {'linestyle': ''}
    axes.plot(
      x[group], y[group], **look, markeredgecolor='white', markersize=5.5,
      markeredgewidth=0.4, label=f'cluster {at + 1} ({group.sum()})',
      gid=f'cluster-{at}',
    )  # fmt: skip
  shares = [] if explained is None else np.ravel(explained)[:2].tolist()
  shown = [f' ({share:.0%})' for share in shares] + ['', '']
  axes.set_xlabel(f'component 1{shown[0]}')
  axes.set_ylabel(f'component 2{shown[1]}')
  for axis in (axes.xaxis, axes.yaxis):
    axis.set_major_locator(MaxNLocator(nbins=5))


def _spectra(
  axes: Axes,
  spectra: np.ndarray,
  names: Sequence[str],
  groups: Sequence[np.ndarray],
) -> None:
  at = np.arange(len(names))
  every = -(-len(spectra) // _MAX_SPECTRA)
  axes.plot(at, spectra[::every].T, color='#bbbbbb', linewidth=0.35, zorder=1)
  for number, group in enumerate(groups):
    axes.plot(
      at, spectra[group].mean(0), **style.look(number), linewidth=2.2,
      markersize=6, label=f'cluster {number + 1} ({group.sum()})',
      gid=f'spectrum-{number}',
    )  # fmt: skip
  axes.set_xticks(at, names)
  axes.set(ylabel='percentile rank', ylim=(-0.03, 1.03))
