# SPDX-License-Identifier: Apache-2.0
"""Arithmetic written by a model, read exactly and never evaluated as code.

The grammar is the whole language: integers, + - * /, round brackets, and a
minus as a sign. No power, no integer division, no decimals, no names. Values
are fractions, so (1/3)*3 is 1, and a division by zero is no value. Length,
depth and size are bounded, so that no text costs more than a short one.
"""

from __future__ import annotations

import fractions
import functools
import re
from typing import Any, NamedTuple

MAX_CHARS = 200
MAX_DEPTH = 20  # brackets and signs inside each other
MAX_NUMBERS = 16  # with six digits each, a value has less than 100
MAX_DIGITS = 6

_ALLOWED = re.compile(r'[-0-9+*/() \t\n]+')
_TOKEN = re.compile(r'[0-9]+|[-+*/()]')
_END = ''  # stands behind the last token

_NUMBER, _SUM, _PRODUCT = range(3)


class Expression(NamedTuple):
  """One expression, read.

  Fields:
    text: its canonical form: no spaces, no brackets that change nothing, terms
      and factors in a fixed order ('3+(2-1)' and '2 - 1 + 3' are '2+3-1').
      Nothing is computed or expanded: '2*(3+4)' is not '2*3+2*4', nor '1+1'
      another way to write '2'.
    value: exact.
    numbers: the integers in it, smallest first.
  """

  text: str
  value: fractions.Fraction
  numbers: tuple[int, ...]


@functools.lru_cache(maxsize=4096)
def read(text: str) -> Expression | None:
  """The expression that `text` is, or None if it is none within the bounds."""
  if len(text) > MAX_CHARS or not _ALLOWED.fullmatch(text):
    return None
  tokens = _TOKEN.findall(text)
  numbers = [token for token in tokens if token[0] not in '-+*/()']
  if len(numbers) > MAX_NUMBERS:
    return None
  # Six digits at most; '007' is an error in most languages, so it is here.
  if any(len(n) > MAX_DIGITS or (n[0] == '0' and n != '0') for n in numbers):
    return None
  tokens.append(_END)
  try:
    node, end = _sum(tokens, 0, 0)
    if tokens[end] != _END:
      return None
    value = fractions.Fraction(node.top, node.bottom)
  except _Refused:
    return None
  canonical = _write(node)
  # A minus more than there was; what is read must be readable again.
  if len(canonical) > MAX_CHARS:
    return None
  return Expression(canonical, value, tuple(sorted(map(int, numbers))))


class _Refused(Exception):
  """The tokens are no expression, or one without a value."""


class _Node(NamedTuple):
  """A number, a sum of signed nodes, or a product of nodes and reciprocals.

  Fields:
    top, bottom: the value, not in lowest terms; the bottom may be negative,
      and is never 0.
    parts: digits of a number; of a sum (is subtracted, node), none a sum; of a
      product (is divided by, node), none a product.
  """

  kind: int
  top: int
  bottom: int
  parts: Any


def _sum(tokens: list[str], at: int, depth: int) -> tuple[_Node, int]:
  node, at = _product(tokens, at, depth)
  if tokens[at] not in ('+', '-'):
    return node, at
  top, bottom, terms = node.top, node.bottom, list(_terms(node))
  while (sign := tokens[at]) in ('+', '-'):
    node, at = _product(tokens, at + 1, depth)
    term = -node.top if sign == '-' else node.top
    top, bottom = top * node.bottom + term * bottom, bottom * node.bottom
    terms += _terms(_negative(node) if sign == '-' else node)
  return _Node(_SUM, top, bottom, terms), at


def _product(tokens: list[str], at: int, depth: int) -> tuple[_Node, int]:
  node, at = _atom(tokens, at, depth)
  if tokens[at] not in ('*', '/'):
    return node, at
  top, bottom = node.top, node.bottom
  is_negative, factors = _factors(node)
  factors = list(factors)
  while (sign := tokens[at]) in ('*', '/'):
    node, at = _atom(tokens, at + 1, depth)
    flips, more = _factors(node)
    is_negative ^= flips
    if sign == '*':
      top, bottom = top * node.top, bottom * node.bottom
      factors += more
    else:
      if node.top == 0:
        raise _Refused
      top, bottom = top * node.bottom, bottom * node.top
      factors += [(not is_divided, factor) for is_divided, factor in more]
  if not is_negative:
    return _Node(_PRODUCT, top, bottom, factors), at
  return _negative(_Node(_PRODUCT, -top, bottom, factors)), at


def _atom(tokens: list[str], at: int, depth: int) -> tuple[_Node, int]:
  token = tokens[at]
  if token.isdigit():
    return _Node(_NUMBER, int(token), 1, token), at + 1
  if depth == MAX_DEPTH or token not in ('(', '-'):
    raise _Refused
  if token == '-':
    node, at = _atom(tokens, at + 1, depth + 1)
    return _negative(node), at
  node, at = _sum(tokens, at + 1, depth + 1)
  if tokens[at] != ')':
    raise _Refused
  return node, at + 1


def _negative(node: _Node) -> _Node:
  terms = [
    (not is_minus and not _is_own_negative(term), term)
    for is_minus, term in _terms(node)
  ]
  if len(terms) == 1 and not terms[0][0]:
    return terms[0][1]
  return _Node(_SUM, -node.top, node.bottom, terms)


def _terms(node: _Node) -> list[tuple[bool, _Node]]:
  return node.parts if node.kind == _SUM else [(False, node)]


def _factors(node: _Node) -> tuple[bool, list[tuple[bool, _Node]]]:
  """Whether a minus stands before the factors, and the factors.

  A sum is turned so that it is positive: '(3-5)*2' is '-(5-3)*2'.
  """
  is_negative = node.kind == _SUM and _is_turned(node)
  if is_negative:
    node = _negative(node)
  is_product = node.kind == _PRODUCT
  return is_negative, node.parts if is_product else [(False, node)]


def _is_turned(node: _Node) -> bool:
  if node.top:
    return (node.top < 0) != (node.bottom < 0)
  return _signed(_negative(node)) < _signed(node)  # zero either way


def _is_own_negative(node: _Node) -> bool:
  """Whether order alone makes it so: '2-2', and with it '(2-2)*3'."""
  if node.top or node.kind == _NUMBER:
    return False
  if node.kind == _SUM:
    return _signed(_negative(node)) == _signed(node)
  return any(_is_own_negative(factor) for _, factor in node.parts)


def _signed(node: _Node) -> list[tuple[bool, str]]:
  return sorted((is_minus, _write(term)) for is_minus, term in _terms(node))


def _write(node: _Node) -> str:
  if node.kind == _NUMBER:
    return node.parts
  if node.kind == _SUM:
    text = ''.join('+-'[is_minus] + term for is_minus, term in _signed(node))
    return text.removeprefix('+')
  factors = sorted(
    (is_divided, f'({_write(factor)})' if factor.kind == _SUM else
     _write(factor))
    for is_divided, factor in node.parts
  )  # fmt: skip
  text = ''.join('*/'[is_divided] + factor for is_divided, factor in factors)
  return text.removeprefix('*')
