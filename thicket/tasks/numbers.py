# SPDX-License-Identifier: Apache-2.0
"""Numbers in text, read exactly and written in one canonical way.

Votes count equal strings, so two spellings of a number must become one string
before they are counted, and nothing else may. Values are fractions throughout:
no float, and no evaluation of text. Anything unusual is refused, because a
refused answer abstains while a misread one votes.

A *numeral* is a maximal run of digits with the points, commas and slashes
inside it, its sign, and letters stuck to it. `18.`, `$1,234.50` and `1/2` are
numerals that can be read; `1,8`, `x2`, `1e999` and `12/05/2020` cannot, and
hide nothing behind them: `1e999` is not the number 999.
"""

from __future__ import annotations

import fractions
import itertools
import re

MAX_DIGITS = 40  # far above any honest answer; keeps exact arithmetic cheap

_CURRENCY = '$\u00a3\u20ac'  # dollar, pound, euro
_SIGNS = '-+\u2212'  # models also write the typographic minus

_NUMBER = re.compile(
  rf'(?P<sign>[{_SIGNS}]?)[{_CURRENCY}]?'
  r'(?P<whole>[1-9][0-9]{0,2}(?:,[0-9]{3})+|[0-9]*)'
  r'(?:\.(?P<decimals>[0-9]*))?'
  r'(?:/(?P<divisor>[0-9]+))?'
  r'%?\.?'
)

# \d is any script's digit: the run must swallow what it cannot read.
_RUN = re.compile(r'(?:(?<![\w.])\.)?\d[\d.,/]*(?:[eE][-+]?\d+)?')


def normalise_number(text: str) -> str | None:
  """The canonical form of the one number that `text` is, or None.

  Integers have no leading zeros and no plus sign; zero is '0'; a value with a
  finite decimal expansion is written as a decimal without trailing zeros, any
  other as a fraction in lowest terms ('2/6' gives '1/3'). Equal values give
  equal strings, and a canonical string is its own canonical form.

  Ignored: space around, one currency sign, one trailing percent sign (a unit,
  as in GSM8K: '50%' is '50'), one trailing period. Commas count as thousands
  separators only, every three digits. Refused: exponents, digits outside
  0-9, division by zero, values that need more than 40 digits.
  """
  match = _NUMBER.fullmatch(text.strip())
  if match is None:
    return None
  whole = match['whole'].replace(',', '')
  decimals = match['decimals'] or ''
  divisor = match['divisor']
  if not whole + decimals:
    return None
  if len(whole + decimals + (divisor or '')) > MAX_DIGITS:
    return None
  if divisor is not None and (match['decimals'] is not None or not whole):
    return None
  denominator = 10 ** len(decimals) if divisor is None else int(divisor)
  if denominator == 0:
    return None
  value = fractions.Fraction(int(whole + decimals), denominator)
  return _canonical(value if match['sign'] in ('', '+') else -value)


def numerals(text: str) -> list[str | None]:
  """The numerals of running text, in order; None for one that is unreadable.

  A minus is a sign only where it cannot be a subtraction: '-8', '= -8' and
  '3 * -8' hold -8, while '17-8', '17 -8' and '17 - 8' hold 17 and 8.
  """
  return [_read(text, match) for match in _RUN.finditer(text)]


def last_number(text: str) -> str | None:
  """The last numeral of `text`; None if there is none or it is unreadable.

  An unreadable one is not skipped: what stands before it was not the answer.
  """
  end = len(text)
  while end >= 0:
    # Line by line from the end: no numeral holds a line's end, and what stands
    # before the last is neither looked for nor read.
    start = text.rfind('\n', 0, end) + 1
    found = list(_RUN.finditer(text, start, end))
    if found:
      return _read(text, found[-1])
    end = start - 1
  return None


def only_number(text: str) -> str | None:
  """The numeral of a text that holds exactly one, unreadable ones included."""
  found = list(itertools.islice(_RUN.finditer(text), 2))
  return _read(text, found[0]) if len(found) == 1 else None


def _read(text: str, match: re.Match[str]) -> str | None:
  start, end = match.span()
  if _is_wordlike(text[start - 1 : start]) or text[end : end + 1] == '_':
    return None
  if text[start - 1 : start] in tuple(_CURRENCY):
    start -= 1
  sign = text[start - 1 : start]
  if sign not in tuple(_SIGNS) or _is_operator(text, start - 1):
    sign = ''
  return normalise_number(sign + match[0].rstrip('.,/'))


def _is_operator(text: str, at: int) -> bool:
  """Whether the sign at `at` has something to its left to be applied to."""
  if _is_wordlike(text[at - 1 : at]):
    return True
  # Eight spaces are enough; an unbounded strip would make this quadratic.
  left = text[max(0, at - 8) : at].rstrip()[-1:]
  return left.isdigit() or left == ')'


def _is_wordlike(char: str) -> bool:
  return char.isalnum() or char == '_'


def _canonical(value: fractions.Fraction) -> str | None:
  sign = '-' if value < 0 else ''
  top, bottom = abs(value.numerator), value.denominator
  places, rest = 0, bottom
  while rest % 10 == 0:
    rest, places = rest // 10, places + 1
  for factor in (2, 5):
    while rest % factor == 0:
      rest, places = rest // factor, places + 1
  if rest == 1:
    digits = str(top * 10**places // bottom).rjust(places + 1, '0')
    if len(digits) <= MAX_DIGITS:
      cut = len(digits) - places
      return sign + digits[:cut] + ('.' + digits[cut:] if places else '')
  if len(str(top) + str(bottom)) <= MAX_DIGITS:
    return f'{sign}{top}/{bottom}'
  return None
