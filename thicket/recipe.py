# SPDX-License-Identifier: Apache-2.0
"""The recipe: everything that the rows of a ledger depend on.

A recipe is a nested dict of JSON values. Two runs may share rows exactly when
their recipes are equal, so a recipe is hashed to name a folder, and compared
field by field to say why two runs differ. Number types count: 1 is not 1.0.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

Recipe = dict[str, Any]

_HASH_DIGITS = 12  # 48 bits: no two recipes of one folder will collide
_SHOWN_FIELDS = 3  # of those that differ, in a line
_SHOWN_CHARS = 80  # of a value in a message, which has to stay one line
_NOTHING = object()


def check_recipe(recipe: Recipe) -> Recipe:
  """A copy of the recipe as JSON keeps it (tuples become lists).

  Raises ValueError, naming the field, for keys that are not strings, values
  JSON does not have, and numbers that are not finite.
  """
  if not isinstance(recipe, dict):
    raise ValueError(f'recipe: {recipe!r} is not a dict; pass named fields')
  return _plain(recipe, ())


def recipe_hash(recipe: Recipe) -> str:
  """The first 12 hex digits of the SHA-256 of the recipe's canonical JSON.

  Raises ValueError as `check_recipe` does.
  """
  data = _canonical(check_recipe(recipe)).encode('ascii')
  return hashlib.sha256(data).hexdigest()[:_HASH_DIGITS]


def differences(stored: Recipe, asked: Recipe) -> list[str]:
  """One line for each differing field, by name, empty for equal recipes.

  A line reads `population.sigma: stored [0.001], asked [0.002]`; a field that
  one recipe lacks reads `nothing` on that side. Raises ValueError as
  `check_recipe` does.
  """
  old = dict(_fields(check_recipe(stored), ()))
  new = dict(_fields(check_recipe(asked), ()))
  lines = []
  for path in sorted(old.keys() | new.keys()):
    was, now = old.get(path, _NOTHING), new.get(path, _NOTHING)
    # Through JSON, because Python holds 1 == 1.0 == True.
    if _NOTHING in (was, now) or _canonical(was) != _canonical(now):
      lines.append(f'{_dotted(path)}: stored {_show(was)}, asked {_show(now)}')
  return lines


def brief(lines: Sequence[str]) -> str:
  """What `differences` found, in one line: the first few, and how many more."""
  more = len(lines) - _SHOWN_FIELDS
  shown = '; '.join(lines[:_SHOWN_FIELDS])
  return shown + (f'; and {more} more' if more > 0 else '')


def _plain(value: Any, path: tuple[str, ...]) -> Any:
  name = _dotted(path)
  if isinstance(value, dict):
    for key in value:
      if not isinstance(key, str):
        raise ValueError(f'{name}: key {key!r} is not a string; name the field')
    return {key: _plain(item, (*path, key)) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return [_plain(item, path) for item in value]
  # By exact type: numpy's float64 is a float, and prints as none.
  if type(value) not in (str, int, float, bool, type(None)):
    raise ValueError(
      f'{name}: {value!r} is a {type(value).__name__}; a recipe holds str, '
      'int, float, bool, None, lists and dicts'
    )
  if isinstance(value, float) and not math.isfinite(value):
    raise ValueError(f'{name}: {value} is not finite; give a finite number')
  return value


def _fields(
  value: Any, path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], Any]]:
  if isinstance(value, dict) and (value or not path):
    for key, item in value.items():
      yield from _fields(item, (*path, key))
  else:
    yield path, value


def _canonical(value: Any) -> str:
  return json.dumps(
    value, sort_keys=True, separators=(',', ':'), allow_nan=False
  )


def _dotted(path: tuple[str, ...]) -> str:
  return '.'.join(path) or 'recipe'


def _show(value: Any) -> str:
  text = 'nothing' if value is _NOTHING else repr(value)
  return text if len(text) <= _SHOWN_CHARS else text[: _SHOWN_CHARS - 3] + '...'
