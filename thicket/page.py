# SPDX-License-Identifier: Apache-2.0
"""The report as one HTML file: no script, no request, nothing to install.

It tells what RandOpt (Neural Thickets, arXiv 2603.12228) found and how far
that can be trusted. What a model wrote is hostile by assumption: all text is
escaped by the template engine, and what would not be seen is spelled out.
"""

from __future__ import annotations

import base64
import functools
import importlib.resources
import json
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import markupsafe

from thicket import figures

Summary = Mapping[str, Any]

MAX_CHARS = 600  # of a question or of what a model wrote
MAX_ITEMS = 30  # of those fixed, and of those regressed
_MAX_RECIPE_CHARS = 50_000
# They reorder the text around them.
_BIDI = '\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069'
_UNSEEN = re.compile(f'[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff{_BIDI}]')


def render(summary: Summary) -> str:
  """The page that shows a summary.

  Args:
    summary: as in summary.json; any part may be missing or None, and a
      section without data is left out.

  Returns:
    HTML that encodes to UTF-8, the same for the same summary.
  """
  told = captions(summary)
  shown = {
    name: {'source': _inline(svg), 'caption': told[name]}
    for name, svg in figures.draw(summary).items()
  }
  recipe = json.dumps(
    summary.get('recipe'), indent=2, sort_keys=True, ensure_ascii=False
  )
  return (
    _environment()
    .get_template('page.html.j2')
    .render(
      {
        **summary,
        'figures': shown,
        'recipe_text': cut(recipe, _MAX_RECIPE_CHARS),
      }
    )
  )


def render_problems(
  summary: Summary, drawn: Mapping[str, tuple[str, str]]
) -> str:
  """The page of a run on values or labels.

  Args:
    summary: as `array_run` writes it.
    drawn: SVG and caption of each figure, by title.
  """
  shown = [
    {'title': title, 'source': _inline(svg), 'caption': caption}
    for title, (svg, caption) in drawn.items()
  ]
  config = json.dumps(summary['config'], indent=2, ensure_ascii=False)
  return (
    _environment()
    .get_template('problems.html.j2')
    .render({**summary, 'figures': shown, 'config_text': config})
  )


def _inline(svg: str) -> str:
  data = base64.b64encode(svg.encode()).decode()
  return f'data:image/svg+xml;base64,{data}'


def captions(summary: Summary) -> dict[str, str]:
  """What each figure shows, with its N, K, sigma and units."""
  part = lambda name: summary.get(name) or {}
  run, selection = part('run'), part('selection')
  n, k = run.get('N', '?'), run.get('K', '?')
  rows, asked = part('test').get('rows', '?'), selection.get('rows', '?')
  sigmas = ', '.join(f'{x:g}' for x in run.get('sigmas') or []) or '?'
  by = f'N = {n}, sigma = {sigmas}'
  by += ', in mirrored pairs' if run.get('antithetic') else ''
  each = (selection.get('members') or {}).get('each') or []
  dropped = sum(x.get('score') is None for x in each)
  size = part('curves').get('size') or {}
  at = ''
  if size.get('temperature') is not None:
    at = f' at T = {size["temperature"]:g}'
  return {
    'table': (
      f'Accuracy minus that of the greedy base on the same {rows} test '
      f'questions, in points, with 95% intervals; K = {k}, {by}. Filled: '
      f'p < {figures.SIGNIFICANT:g} after Holm; open: not.'
    ),
    'size': (
      f'Accuracy on {rows} test questions with 95% intervals. Ensemble: the '
      f'vote of the K best of {by}. Self-consistency: the vote of K samples '
      f'of the base{at}. Equal K is an equal number of passes.'
    ),
    'population': (
      f'Accuracy of the vote of the {k} best of N, sigma = {sigmas}. Test: '
      f'{rows} questions, 95% interval over questions. Selection split: the '
      f'{asked} questions that chose them, so optimistic; 95% interval over '
      f'resampled populations.'
    ),
    'scores': (
      f'Mean reward of each member on {asked} selection questions: the taller '
      f'a bar, the more members; {by}. Diamonds: the {k} selected. Dashed: '
      f'the base.'
      + (f' {dropped} dropped by the race are not shown.' if dropped else '')
    ),
    'transfer': (
      f'Members that answered both splits: {asked} selection and {rows} test '
      f'questions; {by}. Diamonds: the {k} selected; the cross: their mean. '
      f'Dashed: the base. Along a dotted line a gain over the base would be '
      f'kept in full: selected members fall below it as far as they were lucky.'
    ),
  }


def clean(text: str) -> str:
  r"""Characters that are not seen, or move others, as \x00 or \u202e."""
  text = text.replace('\r\n', '\n')
  return _UNSEEN.sub(
    lambda x: (
      f'\\x{ord(x[0]):02x}' if ord(x[0]) < 256 else f'\\u{ord(x[0]):04x}'
    ),
    text,
  )


def cut(text: Any, limit: int = MAX_CHARS) -> str:
  """The first `limit` characters, and how many more there were."""
  text = '' if text is None else str(text)
  if len(text) <= limit:
    return text
  end = limit
  while end > limit - 20 and unicodedata.combining(text[end]):
    end -= 1  # an accent stays with its letter
  return f'{text[:end]}\u2026 ({len(text) - end:,} more characters)'


def percent(share: float | None) -> str:
  """A share in percent."""
  return '' if _is_absent(share) else f'{100 * share:.1f}'


def points(share: float | None) -> str:
  """A difference of shares in points, with its sign."""
  return '' if _is_absent(share) else f'{100 * share:+.1f}'


def number(value: float | None, form: str = '') -> str:
  """A number; nothing where there is none."""
  return '' if _is_absent(value) else format(value, form)


def p_value(p: float | None) -> str:
  """To three decimals, never as 0."""
  if _is_absent(p):
    return ''
  return '<0.001' if p < 0.001 else f'{p:.3f}'


def interval(found: Sequence[float] | None, form: str = '.1f') -> str:
  """Bounds of shares, in percent or points."""
  if not found or any(map(_is_absent, found)):
    return ''
  low, high = (format(100 * x, form) for x in found)
  return f'[{low}, {high}]'


def _is_absent(value: Any) -> bool:
  if value is None or isinstance(value, jinja2.Undefined):
    return True
  return isinstance(value, float) and not math.isfinite(value)


def _finalize(value: Any) -> Any:
  """What the template prints, before it is escaped."""
  if value is None:
    return ''
  if isinstance(value, str) and not isinstance(value, markupsafe.Markup):
    return clean(value)
  return value


@functools.cache
def _environment() -> jinja2.Environment:
  environment = jinja2.Environment(
    autoescape=True,
    finalize=_finalize,
    undefined=jinja2.ChainableUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    loader=jinja2.FunctionLoader(_read),
  )
  for function in (cut, percent, points, number, p_value, interval):
    environment.filters[function.__name__] = function
  environment.globals |= {
    'MAX_ITEMS': MAX_ITEMS,
    'SIGNIFICANT': figures.SIGNIFICANT,
  }
  return environment


def _read(name: str) -> str:
  source = importlib.resources.files('thicket') / name
  return source.read_text(encoding='utf-8')
