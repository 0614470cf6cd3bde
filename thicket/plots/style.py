# SPDX-License-Identifier: Apache-2.0
"""How every figure of this project looks, is captioned and is written.

The colours are Okabe and Ito's; marker or line style tells the same apart in
grey. Letters of an SVG are drawn as paths, so no font is needed to see them.
What is written holds no date and no version: the same figure has the same
bytes.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path
from matplotlib.ticker import LogLocator, NullFormatter
from matplotlib.transforms import Bbox

BLUE, SKY, ORANGE, GREEN = '#0072B2', '#56B4E9', '#D55E00', '#009E73'
PURPLE, AMBER, GREY = '#CC79A7', '#E69F00', '#555555'
WIDTH = 6.0  # inches, of a page's text
DPI = 300

# For a page on a screen: still 9 px high where a phone shrinks 6 inches to
# 330 px.
SCREEN = {
  'font.family': 'DejaVu Sans',  # comes with matplotlib
  'font.size': 13,
  'axes.spines.top': False,
  'axes.spines.right': False,
  'axes.axisbelow': True,
  'axes.grid': True,
  'grid.color': '#dddddd',
  'legend.frameon': False,
  'legend.fontsize': 12,
  'legend.handlelength': 1.8,
  'legend.columnspacing': 1.2,
  'legend.handletextpad': 0.5,
  'figure.constrained_layout.use': True,
  'text.parse_math': False,
  'svg.fonttype': 'path',
  'svg.hashsalt': 'thicket',
}
# For paper, where 6 inches stay 6 inches.
PRINT = SCREEN | {
  'font.size': 9,
  'axes.labelsize': 9,
  'axes.titlesize': 9,
  'xtick.labelsize': 8,
  'ytick.labelsize': 8,
  'legend.fontsize': 8,
  'legend.handlelength': 2.6,  # a dash pattern is seen whole
  'lines.linewidth': 1.4,
  'lines.markersize': 4.5,
  'pdf.fonttype': 42,  # letters stay letters
  'savefig.dpi': DPI,
}
_COLORS = (BLUE, ORANGE, GREEN, PURPLE, SKY, AMBER, 'black')
_MARKERS = ('o', 's', '^', 'D', 'v', 'P', 'X')
_LINES = ('-', '--', '-.', ':')
_CAPTION = 8  # points
_MAX_LISTED = 6
_UNITS = {
  'absolute': "in the weights' unit",
  'relative': "times each tensor's root mean square",
  'modular': 'in the modular norm',
}
# What a format would say about when and by what it was made.
_METADATA = {
  'png': {'Software': None},
  'svg': {'Date': None, 'Creator': None},
  'pdf': {'CreationDate': None, 'Creator': None, 'Producer': None},
}


class Facts(NamedTuple):
  """What the numbers of a figure rest on; every caption says it.

  Attributes:
    n: members scored; a sequence where panels or lines differ.
    sigma: of the population, one or several.
    rows: examples that a score is a mean over; a sequence where they differ,
      None where there are none.
    k: members selected; None where a figure shows all alike.
    scale: unit of sigma, one of `scales.SCALES`.
    antithetic: whether members come in mirrored pairs.
  """

  n: int | Sequence[int]
  sigma: float | Sequence[float]
  rows: int | Sequence[int] | None = None
  k: int | Sequence[int] | None = None
  scale: str = 'absolute'
  antithetic: bool = False

  def text(self) -> str:
    """One sentence."""
    if self.scale not in _UNITS:
      raise ValueError(
        f'scale={self.scale!r}: choose one of {", ".join(_UNITS)}'
      )
    chosen = 'none selected' if self.k is None else f'K = {_listed(self.k)}'
    rows = '' if self.rows is None else f', {_listed(self.rows)} rows'
    pairs = ' in mirrored pairs' if self.antithetic else ''
    return (
      f'N = {_listed(self.n)} members{pairs}, {chosen}{rows}, '
      f'sigma = {_listed(self.sigma)} {_UNITS[self.scale]}.'
    )


def _listed(values: Any) -> str:
  """One number, or the different ones of several in their order."""
  values = np.ravel(values).tolist()
  shown = list(dict.fromkeys(_plain(x) for x in values))
  if len(shown) > _MAX_LISTED:
    ends = _plain(min(values)), _plain(max(values))
    return f'{ends[0]} to {ends[1]} ({len(shown)} values)'
  return ', '.join(shown)


def _plain(x: float) -> str:
  return str(x) if isinstance(x, int) else f'{x:.4g}'


def look(index: int) -> dict[str, Any]:
  """Colour, marker and line style of the line of this number.

  Args:
    index: 0 or more; 28 lines in a row differ from each other in grey.

  Returns:
    Keyword arguments of `Axes.plot`.
  """
  return {
    'color': _COLORS[index % len(_COLORS)],
    'marker': _MARKERS[index % len(_MARKERS)],
    'linestyle': _LINES[index % len(_LINES)],
  }


def legend(figure: Figure, axes: Axes, ncols: int = 4) -> None:
  """Puts the legend of some axes above all of them, to be read by rows."""
  handles, labels = axes.get_legend_handles_labels()
  if not handles:
    return
  rows = -(-len(handles) // ncols)
  ncols = -(-len(handles) // rows)
  # Legends are filled by columns, the first ones fuller.
  order = [i for c in range(ncols) for i in range(c, len(handles), ncols)]
  figure.legend(
    [handles[i] for i in order], [labels[i] for i in order],
    loc='outside upper center', ncols=ncols,
  )  # fmt: skip


def logarithmic(axes: Axes, which: str, num_ticks: int = 8) -> None:
  """Makes an axis logarithmic, with numbers that need no mathematics.

  Args:
    axes: with its limits set or its data drawn.
    which: 'x' or 'y'; what is not above 0 is not shown.
    num_ticks: at most about so many numbers.
  """
  axis = axes.xaxis if which == 'x' else axes.yaxis
  if not np.isfinite(axis.get_minpos()) and axis.get_view_interval()[0] <= 0:
    axes.set(**{f'{which}lim': (0.1, 1)})  # empty, but no warning
  set_scale = axes.set_xscale if which == 'x' else axes.set_yscale
  set_scale('log', nonpositive='mask')
  low, high = axis.get_view_interval()
  # Within two powers of ten these alone would leave a tick or none.
  subs = (1.0,) if high > 100 * low else (1.0, 2.0, 5.0)
  axis.set_major_locator(LogLocator(subs=subs, numticks=num_ticks))
  axis.set_major_formatter(lambda x, _: _power(x))
  axis.set_minor_formatter(NullFormatter())


def _power(x: float) -> str:
  return re.sub(r'e([+-])0*', lambda m: f'e{m[1].strip("+")}', f'{x:g}')


def context(
  settings: dict[str, Any] | None = None,
) -> contextlib.AbstractContextManager[None]:
  """The style, whatever a matplotlibrc says, while the context is open.

  Args:
    settings: `PRINT` unless given, or `SCREEN`.

  Returns:
    A context manager to draw in.
  """
  return style.context(['default', PRINT if settings is None else settings])


def caption(figure: Figure, text: str) -> None:
  """Puts text under the axes, wrapped to the width; the figure grows by it.

  Args:
    figure: with a constrained layout, and no label along its foot yet.
    text: words between spaces; nothing is read as mathematics.
  """
  # Points; on a screen's grid of pixels letters stand further apart.
  room = 0.95 * (72 * figure.get_figwidth() - 14)
  lines = ['']
  # A line never ends within 'N = 5'.
  whole = ' '.join(text.split()).replace(' = ', '\xa0=\xa0')
  for word in whole.split(' '):
    longer = f'{lines[-1]} {word}'.strip()
    if lines[-1] and _width(longer) > room:
      lines.append(word)
    else:
      lines[-1] = longer
  figure.set_figheight(figure.get_figheight() + _height(len(lines)))
  figure.supxlabel(
    '\n'.join(lines).replace('\xa0', ' '),
    x=7 / 72 / figure.get_figwidth(), ha='left', fontsize=_CAPTION,
    parse_math=False, color='#222222', gid='caption',
  )  # fmt: skip


def _height(num_lines: int) -> float:
  """Inches of a caption, with the space around it."""
  return (num_lines * 1.2 * _CAPTION + 8) / 72


def _width(text: str) -> float:
  """Points, as printed."""
  with context():
    font = FontProperties(size=_CAPTION)
    return text_to_path.get_text_width_height_descent(text, font, False)[0]


def finish(figure: Figure, text: str, facts: Facts) -> Figure:
  """Gives a figure its caption and fixes where everything stands.

  Args:
    figure: drawn within `context()`.
    text: what is seen, with units; the facts follow it.
    facts: what the numbers rest on.

  Returns:
    The same figure, of the same bytes however often and in whatever order of
    formats it is written.
  """
  caption(figure, f'{text} {facts.text()}')
  # How many ticks there are follows their size, also where a notebook draws a
  # figure out of the context.
  for axes in figure.axes:
    axes.tick_params(labelsize=PRINT['xtick.labelsize'])
  # A layout comes to rest in passes: ticks follow the size of the axes.
  for _ in range(3):
    figure.draw_without_rendering()
  figure.set_layout_engine('none')
  return figure


def encode(figure: Figure, kind: str) -> bytes:
  """A figure as the bytes of a file.

  Args:
    figure: of `thicket.plots`, or any drawn within `context()`.
    kind: 'png' (300 dots an inch), 'svg' or 'pdf'.

  Returns:
    The same bytes for the same figure.

  Raises:
    ValueError: of another kind.
  """
  if kind not in _METADATA:
    raise ValueError(f'kind={kind!r}: choose one of {", ".join(_METADATA)}')
  file = io.BytesIO()
  with context():
    figure.savefig(file, format=kind, dpi=DPI, metadata=_METADATA[kind])
  return file.getvalue()


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
  """Writes a figure at print resolution.

  Args:
    figure: as for `encode`.
    path: ends in .png, .svg or .pdf; its folder is there.

  Raises:
    ValueError: it ends in something else.
  """
  path = epath.Path(path)
  kind = path.suffix.lower().removeprefix('.')
  if kind not in _METADATA:
    raise ValueError(f'path={str(path)!r}: must end in .png, .svg or .pdf')
  path.write_bytes(encode(figure, kind))


def svg(figure: Figure) -> str:
  """A figure as an SVG document, in the style of the open context."""
  file = io.StringIO()
  figure.savefig(file, format='svg', metadata=_METADATA['svg'])
  return file.getvalue()


def apart(figure: Figure) -> tuple[str, str]:
  """A captioned figure for a page that sets captions itself.

  Args:
    figure: with a caption.

  Returns:
    (an SVG document without the caption, the caption).

  Raises:
    ValueError: it has none.
  """
  texts = [text for text in figure.texts if text.get_gid() == 'caption']
  if not texts:
    raise ValueError('figure has no caption: call style.caption first')
  lines = texts[0].get_text().split('\n')
  size = figure.get_figwidth(), figure.get_figheight()
  above = Bbox([(0, _height(len(lines))), size])
  texts[0].set_visible(False)
  try:
    with context():
      file = io.StringIO()
      figure.savefig(
        file, format='svg', metadata=_METADATA['svg'], bbox_inches=above
      )
  finally:
    texts[0].set_visible(True)
  return file.getvalue(), ' '.join(lines)
