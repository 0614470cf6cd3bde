# SPDX-License-Identifier: Apache-2.0
"""The figures of a report, as SVG, from a summary.

Accuracy against K and N, and how selection scores carry over to fresh
questions: what Neural Thickets (arXiv 2603.12228) plots, with intervals.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter, NullLocator

from thicket.estimates import SIGNIFICANT
from thicket.plots import style

Summary = Mapping[str, Any]

# By kind: the heading of its rows, its colour and its marker.
_KINDS = {
  'ensemble': ('Ensemble', style.BLUE, 'o'),
  'sampling': ('Self-consistency', style.ORANGE, 's'),
  'control': ('Controls', style.GREEN, '^'),
}
_MAX_BARS = 12  # more intervals side by side are shown as a band
_MAX_BINS = 60
_MAX_NAME = 44  # characters


def draw(summary: Summary) -> dict[str, str]:
  """All figures whose data is there.

  Args:
    summary: as in summary.json; any part may be missing or None.

  Returns:
    SVG documents by name, the same bytes for the same summary: `table`,
    `size`, `population`, `scores` and `transfer`.
  """
  with style.context(style.SCREEN):
    figures = {
      'table': _table(summary),
      'size': _size(summary),
      'population': _population(summary),
      'scores': _scores(summary),
      'transfer': _transfer(summary),
    }
    return {
      name: style.svg(figure) for name, figure in figures.items() if figure
    }


def _part(summary: Any, *names: str) -> Mapping[str, Any]:
  """A nested dict; empty where there is none."""
  for name in names:
    summary = (summary or {}).get(name)
  return summary or {}


def _systems(summary: Summary) -> Sequence[Mapping[str, Any]]:
  return _part(summary, 'test').get('systems') or []


def _base_accuracy(summary: Summary) -> float | None:
  """The base's accuracy on test, greedy, as a share."""
  for system in _systems(summary):
    if system.get('kind') == 'base':
      return _part(system, 'accuracy').get('rate')
  return None


def _axes(x: str, y: str, height: float = 3.7) -> tuple[Figure, Axes]:
  """Axes with these labels; sizes are in inches."""
  figure = Figure((6, height))
  axes = figure.add_subplot(xlabel=x, ylabel=y)
  axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
  axes.yaxis.set_major_locator(MaxNLocator(nbins=6))
  return figure, axes


def _legend(figure: Figure) -> None:
  figure.legend(loc='outside upper center', ncols=3)


def _bounds(
  points: Sequence[Mapping[str, Any]],
) -> tuple[np.ndarray, np.ndarray]:
  """Estimates [m] and bounds [2, m] of rates or differences, in percent."""
  middle = [x.get('rate', x.get('difference')) for x in points]
  ends = [x['interval'] for x in points]
  return 100 * np.array(middle), 100 * np.array(ends, float).T


def _bars(
  axes: Axes, x: np.ndarray, points: Sequence[Any], gid: str, **look: Any
) -> None:
  """A line through estimates with their intervals as bars."""
  middle, ends = _bounds(points)
  reach = np.abs(ends - middle)
  bars = axes.errorbar(x, middle, reach, capsize=3, elinewidth=1.3, **look)
  bars.lines[0].set_gid(gid)  # not the caps


def _size(summary: Summary) -> Figure | None:
  curve = _part(summary, 'curves', 'size')
  lines = [
    ('ensemble', 'ensemble', style.BLUE, 'o', '-', -1),
    ('self_consistency', 'self-consistency', style.ORANGE, 's', '--', 1),
  ]
  if not curve.get('ensemble'):
    return None
  figure, axes = _axes('K (passes per question)', 'test accuracy, %')
  for name, label, color, marker, line, side in lines:
    points = curve.get(name) or []
    if not points:
      continue
    k = np.array([x['k'] for x in points], float)
    found = [x['accuracy'] for x in points]
    look = {
      'label': label,
      'color': color,
      'marker': marker,
      'linestyle': line,
      'markersize': 6,
      'gid': f'size-{name}',
    }
    if len(points) <= _MAX_BARS:
      shift = 0.01 * side * (k[-1] - k[0])  # so that bars do not hide bars
      _bars(axes, k + shift, found, **look)
    else:
      middle, ends = _bounds(found)
      axes.fill_between(k, *ends, color=color, alpha=0.15, linewidth=0)
      for end in ends:
        axes.plot(k, end, color=color, linestyle=line, linewidth=0.7)
      axes.plot(k, middle, markevery=max(1, len(k) // 10), **look)
  _base_line(axes, _base_accuracy(summary))
  axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
  _legend(figure)
  return figure


def _base_line(axes: Axes, share: float | None) -> None:
  if share is not None:
    axes.axhline(
      100 * share, color='black', linestyle=':', linewidth=1.8, label='base'
    )


def _population(summary: Summary) -> Figure | None:
  points = _part(summary, 'curves').get('population') or []
  if len(points) < 2:
    return None
  figure, axes = _axes('N (members scored)', 'accuracy, %')
  n = np.array([x['n'] for x in points], float)
  step = (n[-1] / n[0]) ** 0.008
  look = {'markersize': 7}
  _bars(
    axes,
    n / step,
    [x['accuracy'] for x in points],
    label='test',
    color=style.BLUE,
    marker='o',
    gid='population-test',
    **look,
  )
  split = [x.get('selection_split') for x in points]
  known = np.array([x is not None for x in split])
  if known.any():
    _bars(
      axes,
      (n * step)[known],
      [x for x in split if x is not None],
      label='selection split (optimistic)',
      color=style.ORANGE,
      marker='s',
      markerfacecolor='white',
      linestyle='--',
      gid='population-selection',
      **look,
    )
  _base_line(axes, _base_accuracy(summary))
  axes.set_xscale('log')
  every = -(-len(n) // 7)  # labels of more would run into each other
  ticks = n[::-1][::every]
  axes.set_xticks(ticks, [f'{x:.0f}' for x in ticks])
  axes.xaxis.set_minor_locator(NullLocator())
  axes.xaxis.set_minor_formatter(NullFormatter())
  _legend(figure)
  return figure


def _scores(summary: Summary) -> Figure | None:
  each = _part(summary, 'selection', 'members').get('each') or []
  each = [x for x in each if x.get('score') is not None]
  if not each:
    return None
  score = np.array([x['score'] for x in each])
  sigma = np.array([x['sigma'] for x in each])
  chosen = {x['member'] for x in summary.get('selected') or []}
  is_chosen = np.array([x['member'] in chosen for x in each])
  centre, width = _bins(score)
  sigmas = np.unique(sigma)
  figure, axes = _axes('selection score', 'sigma', 1.7 + 0.62 * len(sigmas))
  piles = [np.unique(centre[sigma == s], return_counts=True) for s in sigmas]
  most = max(count.max() for _, count in piles)
  first = True
  for at, (s, (x, count)) in enumerate(zip(sigmas, piles, strict=True)):
    # One member among thousands should still be seen.
    height = np.maximum(0.8 * count / most, 0.06)
    axes.bar(
      x, height, 0.85 * width, at - height / 2, color=style.SKY,
      label='members' if first else None,
    )  # fmt: skip
    x, count = np.unique(centre[(sigma == s) & is_chosen], return_counts=True)
    offset = [min(0.2, 0.8 / c) * (np.arange(c) - (c - 1) / 2) for c in count]
    axes.plot(
      np.repeat(x, count),
      at + np.concatenate([*offset, []]),
      'D',
      color='black',
      markerfacecolor=style.ORANGE,
      markersize=6,
      label='selected' if first else None,
      gid=f'scores-selected-{at}',
    )
    first = False
  base = _part(summary, 'selection', 'base').get('score')
  if base is not None:
    axes.axvline(
      base, color='black', linestyle='--', linewidth=1.5, label='base'
    )
  axes.set_yticks(range(len(sigmas)), [f'{s:g}' for s in sigmas])
  axes.set_ylim(-0.6, len(sigmas) - 0.4)
  axes.grid(axis='y', visible=False)
  _legend(figure)
  return figure


def _bins(score: np.ndarray) -> tuple[np.ndarray, float]:
  """Each score moved to the middle of its bin, and the bins' width."""
  values = np.unique(score)
  low, high = float(values[0]), float(values[-1])
  if low == high:
    return score, max(0.002, 0.01 * abs(low))
  # Scores are multiples of a question's share. Every bin holds as many of
  # them, or bars would stand out that mean nothing.
  step = float(np.diff(values).min())
  many = max(1, math.ceil((high - low) / step / _MAX_BINS))
  index = np.round((score - low) / step) // many
  return low + step * (many * index + (many - 1) / 2), many * step


def _transfer(summary: Summary) -> Figure | None:
  tested = [
    x for x in summary.get('tested') or [] if x.get('score') is not None
  ]
  if not tested:
    return None
  selection = _part(summary, 'selection', 'base')
  score, accuracy = selection.get('score'), _base_accuracy(summary)
  x = np.array([m['score'] for m in tested], float)
  y = 100 * np.array([m['test_accuracy'] for m in tested], float)
  is_chosen = np.array([bool(m.get('selected')) for m in tested])
  figure, axes = _axes('selection score', 'test accuracy, %', 4.0)
  shown_x, shown_y = _apart(x, y)
  for these, label, marker, edge, face, name in (
    (~is_chosen, 'others', 'o', style.BLUE, 'white', 'others'),
    (is_chosen, 'selected', 'D', 'black', style.ORANGE, 'selected'),
  ):
    if these.any():
      axes.plot(
        shown_x[these], shown_y[these], marker, label=label, color=edge,
        markerfacecolor=face, markersize=7, gid=f'transfer-{name}',
      )  # fmt: skip
  if is_chosen.any():
    axes.plot(
      x[is_chosen].mean(), y[is_chosen].mean(), 'P', color='white',
      markerfacecolor='black', markersize=14, markeredgewidth=1.5,
      label='their mean',
    )  # fmt: skip
  axes.margins(0.06)
  axes.autoscale_view()
  axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())
  if score is not None:
    axes.axvline(score, color=style.GREY, linestyle='--', linewidth=1.3)
  if accuracy is not None:
    axes.axhline(
      100 * accuracy, color=style.GREY, linestyle='--', linewidth=1.3
    )
  graded = _part(selection, 'accuracy').get('rate')
  # Only where a score is an accuracy do the two axes share a unit.
  if None not in (score, accuracy, graded) and abs(score - graded) < 1e-6:
    axes.axline(
      (score, 100 * accuracy), slope=100, color='black', linestyle=':',
      linewidth=1.5, gid='transfer-kept',
    )  # fmt: skip
  _legend(figure)
  return figure


def _apart(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Points that fall on each other, moved around where they are."""
  seen: dict[tuple[float, float], int] = {}
  turn = []
  for point in zip(x.tolist(), y.tolist(), strict=True):
    turn.append(seen.get(point, 0))
    seen[point] = turn[-1] + 1
  angle = 2.4 * np.array(turn)  # radians; the golden angle never repeats
  reach = 0.013 * np.sqrt(turn)
  return (
    x + reach * (np.ptp(x) or 0.01) * np.cos(angle),
    y + 1.6 * reach * (np.ptp(y) or 1.0) * np.sin(angle),
  )


def _table(summary: Summary) -> Figure | None:
  groups = {
    kind: [
      x
      for x in _systems(summary)
      if x.get('kind') == kind and x.get('against_base')
    ]
    for kind in _KINDS
  }
  groups = {kind: rows for kind, rows in groups.items() if rows}
  if not groups:
    return None
  lines = sum(0.6 + len(rows) for rows in groups.values())
  label = 'difference against the base, points'
  figure, axes = _axes(label, '', 0.8 + 0.47 * lines)
  beside = axes.get_yaxis_transform()  # x from 0 to 1 across the axes
  at = 0.0
  for kind, rows in groups.items():
    heading, color, marker = _KINDS[kind]
    axes.text(
      0, at + 0.35, heading, transform=beside, weight='bold', color=color,
      va='center',
    )  # fmt: skip
    at += 0.6
    for row in rows:
      found = row['against_base']
      middle, ends = _bounds([found])
      p = found.get('p_holm')
      is_sure = p is not None and p < SIGNIFICANT
      axes.text(
        0, at + 0.3, _plain(row['name']), transform=beside, va='center',
        bbox={'color': 'white', 'pad': 1},
      )  # fmt: skip
      # No line at 0 from top to bottom: it would cross the names.
      axes.plot([0, 0], [at + 0.5, at + 0.94], color='black', linewidth=1.5)
      axes.plot(ends[:, 0], [at + 0.72] * 2, color=color, linewidth=2)
      axes.plot(
        middle, at + 0.72, marker, color=color, markersize=8,
        markeredgewidth=1.8, markerfacecolor=color if is_sure else 'white',
        gid=f'table-{_plain(row["id"])}-{"filled" if is_sure else "open"}',
      )  # fmt: skip
      at += 1
  axes.set_ylim(at + 0.1, 0)
  axes.set_yticks([])
  axes.spines['left'].set_visible(False)
  axes.xaxis.set_major_formatter(lambda x, _: f'{x:+g}' if x else '0')
  return figure


def _plain(text: str) -> str:
  """ASCII, which the font surely has, no longer than the figure is wide."""
  return re.sub('[^ -~]', '?', str(text)[:_MAX_NAME])
