# SPDX-License-Identifier: Apache-2.0
"""Plain data between the process of a program and the process of its tests.

A value crosses as a copy made of built-in types, told by JSON that names them.
A subclass of one crosses as the built-in, so that no method of a program, its
`__eq__` above all, is ever called by a test. Every other object stays where it
is, and a reference crosses.
"""

from __future__ import annotations

import builtins
import collections
import datetime
import decimal
import fractions
import math
from collections.abc import Callable
from typing import Any

Refer = Callable[[Any], list]  # an object to the rest of its message
Resolve = Callable[..., Any]  # and back

_LISTS = {
  list: 'list',
  tuple: 'tuple',
  set: 'set',
  frozenset: 'frozenset',
  collections.deque: 'deque',
}
_MADE: dict[type, Callable[[Any], list]] = {  # to arguments of the type
  complex: lambda x: [x.real, x.imag],
  range: lambda x: [x.start, x.stop, x.step],
  decimal.Decimal: lambda x: [str(x)],
  fractions.Fraction: lambda x: [x.numerator, x.denominator],
  datetime.datetime: lambda x: [*x.timetuple()[:6], x.microsecond],
  datetime.date: lambda x: [x.year, x.month, x.day],
  datetime.time: lambda x: [x.hour, x.minute, x.second, x.microsecond],
  datetime.timedelta: lambda x: [x.days, x.seconds, x.microseconds],
}
_BY_NAME = {name: kind for kind, name in _LISTS.items()}
_BY_NAME |= {kind.__name__: kind for kind in _MADE}
_TYPES = {x for x in vars(builtins).values() if isinstance(x, type)}
_TYPES -= {type(None)}


def encode(value: Any, refer: Refer) -> Any:
  """What `json` can write, and `decode` turns into an equal value.

  Raises:
    RecursionError: the value holds itself.
  """
  if value is None or value is True or value is False:
    return value
  if isinstance(value, type) and value in _TYPES:
    return ['type', value.__name__]
  for kind in type(value).__mro__:
    if kind is str:
      return str.__str__(value)
    if kind is int:
      return ['int', int.__format__(value, 'x')]  # of any length
    if kind is float:
      return ['float', float.hex(value)]
    if kind in (bytes, bytearray):
      return [kind.__name__, bytes(value).hex()]
    if kind is dict:
      pairs = dict.items(value)
      return ['dict', [[encode(x, refer) for x in pair] for pair in pairs]]
    if kind in _LISTS:
      return [_LISTS[kind], [encode(x, refer) for x in kind.__iter__(value)]]
    if kind in _MADE:
      return [kind.__name__, [encode(x, refer) for x in _MADE[kind](value)]]
  return ['object', *refer(value)]


def decode(data: Any, resolve: Resolve) -> Any:
  """The value that `encode` was given; references go to `resolve`.

  Raises:
    ValueError: data is not of `encode`; so may TypeError and KeyError be.
  """
  if data is None or isinstance(data, bool | str):
    return data
  kind, *rest = data
  if kind == 'object':
    return resolve(*rest)
  (held,) = rest
  if kind == 'int':
    return int(held, 16)
  if kind == 'float':
    return float.fromhex(held)
  if kind in ('bytes', 'bytearray'):
    return getattr(builtins, kind)(bytes.fromhex(held))
  if kind == 'type':
    return next(x for x in _TYPES if x.__name__ == held)
  inner = (decode(x, resolve) for x in held)
  if kind == 'dict':
    pairs = ([decode(x, resolve) for x in pair] for pair in held)
    return {key: value for key, value in pairs}
  if kind in _LISTS.values():
    return _BY_NAME[kind](inner)
  return _BY_NAME[kind](*inner)


def canonical(value: Any) -> str:
  """A text that is the same for values that `==` calls equal.

  Floats are the same where ten digits of theirs are, so that programs which
  add in another order are not told apart. References count by `repr`.
  """
  if isinstance(value, float) and not math.isfinite(value):
    return str(value)
  if isinstance(value, float) and not value.is_integer():
    value = float(f'{value:.10g}')
    if not value.is_integer():
      return repr(value)
  if isinstance(value, bool | int | float):
    return f'{int(value):x}'
  if isinstance(value, set | frozenset):
    return f'{{{",".join(sorted(map(canonical, value)))}}}'
  if isinstance(value, dict):
    pairs = sorted(
      f'{canonical(key)}:{canonical(held)}' for key, held in value.items()
    )
    return f'{{:{",".join(pairs)}}}'
  if isinstance(value, list | tuple | collections.deque):
    inner = ','.join(map(canonical, value))
    return f'{type(value).__name__}({inner})'
  return repr(value)
