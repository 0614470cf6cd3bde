# SPDX-License-Identifier: Apache-2.0
r"""The rule by which the paper's released code judges MATH and OlympiadBench.

Written from a description of that code (its commit fbb7744), to compare our
numbers with published ones; nothing else uses it. What is read is the last
`\boxed{...}`, or else what follows an 'answer is' in the last 500 characters;
the '####' that the released prompt asks for is not. Two answers are equal if
they are so as strings after a few substitutions of LaTeX, as numbers to 1e-6,
or, for tuples, element by element.

Where the description is silent we chose: the phrases, the substitutions and
1e-6. Numbers and fractions are read by `float`, not evaluated.
"""

from __future__ import annotations

import re

from thicket.tasks import latex

TAIL_CHARS = 500
TOLERANCE = 1e-6

_CLAIM = re.compile(
  r'(?:answer is|answer:|answer =)[ \t]*:?[ \t]*([^\n]+)', re.IGNORECASE
)
_FRACTION = re.compile(r'(-?)\\frac\{(-?[0-9.]+)\}\{(-?[0-9.]+)\}')
_SLASH = re.compile(r'(-?)([0-9.]+)/([0-9.]+)')
_TEXT = re.compile(r'\\(?:text|mbox|mathrm|textbf)\{([^{}]*)\}')


def accuracy(response: str, gold: str) -> float:
  """1 if the response is right by the released rule, else 0."""
  answer = _extracted(response)
  return float(answer is not None and _equal(answer, gold))


def _extracted(response: str) -> str | None:
  at, content = latex.last_boxed(response)
  if at >= 0 and content is not None:
    return content
  claims = _CLAIM.findall(response[-TAIL_CHARS:])
  return claims[-1].strip().rstrip('.') if claims else None


def _equal(left: str, right: str) -> bool:
  left, right = _plain(left), _plain(right)
  if left == right:
    return left != ''
  number, other = _number(left), _number(right)
  if number is not None and other is not None:
    return abs(number - other) <= TOLERANCE
  if left[:1] + right[:1] in ('((', '[[') and left[-1] == right[-1]:
    parts, others = left[1:-1].split(','), right[1:-1].split(',')
    return len(parts) == len(others) > 1 and all(
      _equal(a, b) for a, b in zip(parts, others, strict=True)
    )
  return False


def _plain(text: str) -> str:
  for old, new in (
    ('\\left', ''),
    ('\\right', ''),
    ('dfrac', 'frac'),
    ('tfrac', 'frac'),
    ('\\!', ''),
    ('\\,', ''),
    ('\\ ', ''),
    ('^{\\circ}', ''),
    ('^\\circ', ''),
    ('\\%', ''),
    ('%', ''),
    ('\\$', ''),
    ('$', ''),
  ):
    text = text.replace(old, new)
  text = _TEXT.sub(r'\1', text)
  text = re.sub(r'\s+', '', text).rstrip('.')
  text = re.sub(r'\\frac([0-9])([0-9])', r'\\frac{\1}{\2}', text)
  text = re.sub(r'\\sqrt([0-9])', r'\\sqrt{\1}', text)
  return re.sub(r'^[a-zA-Z]=', '', text)


def _number(text: str) -> float | None:
  match = _FRACTION.fullmatch(text) or _SLASH.fullmatch(text)
  try:
    if match:
      value = float(match[2]) / float(match[3])
      return -value if match[1] else value
    return float(text.replace(',', '')) if text.isascii() else None
  except (ValueError, ZeroDivisionError):
    return None
