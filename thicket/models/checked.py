# SPDX-License-Identifier: Apache-2.0
"""Entries of a checkpoint's config, each checked as it is read.

A config comes from elsewhere and is not trusted: it may hold a string for a
number, NaN, or more layers than memory has room for.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Collection, Mapping
from typing import Any, NoReturn

from thicket.models.files import ModelFileError

MAX_COUNT = 2**31 - 1
_GET_AGAIN = 'take another copy of the file'
_QUANTISED = ('quantization_config', 'quantization')
# What says no, none or nothing, of JSON and of GGUF.
_OFF_TYPES = (type(None), bool, int, float, str, list, dict)


class Checked:
  """A mapping from elsewhere, read through checks.

  Attributes:
    entries: the mapping.
    where: the file, which starts every message.
    prefix: written before a key in a message: `rope_scaling.`.
  """

  def __init__(
    self,
    entries: Any,
    where: str,
    prefix: str = '',
    defaults: Mapping[str, Any] | None = None,
  ):
    """Takes `defaults` for keys that are missing; others are required."""
    self.where = where
    self.prefix = prefix
    if not isinstance(entries, Mapping):
      self._refuse(prefix.rstrip('.') or 'the config', entries, 'a table')
    self.entries = entries
    self._defaults = defaults or {}

  def __contains__(self, key: str) -> bool:
    """Whether the key is there, and not null."""
    return self.entries.get(key) is not None

  def get(self, key: str) -> Any:
    """The value as it is, or the default, or None."""
    return self.entries.get(key, self._defaults.get(key))

  def fail(self, problem: str, remedy: str = _GET_AGAIN) -> NoReturn:
    """Raises a ModelFileError that names the file."""
    raise ModelFileError(f'{self.where}: {problem}; {remedy}')

  def refuse(self, key: str, needed: str, remedy: str = _GET_AGAIN) -> NoReturn:
    """Raises a ModelFileError that names key, value and what is needed."""
    is_missing = key not in self.entries and key not in self._defaults
    shown = 'missing' if is_missing else _shown(self.get(key))
    self.fail(f'{self.prefix}{key} is {shown}, {needed} is needed', remedy)

  def _refuse(self, name: str, value: Any, needed: str) -> NoReturn:
    self.fail(f'{name} is {_shown(value)}, {needed} is needed')

  def number(self, key: str) -> float:
    """A finite number."""
    value = self.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
      self.refuse(key, 'a number')
    try:
      value = float(value)
    except OverflowError:
      value = math.inf
    if not math.isfinite(value):
      self.refuse(key, 'a finite number')
    return value

  def positive(self, key: str) -> float:
    """A finite number above 0."""
    value = self.number(key)
    if value <= 0:
      self.refuse(key, 'a number above 0')
    return value

  def count(self, key: str, most: int = MAX_COUNT) -> int:
    """A whole number in 1 ... `most`."""
    value = self.number(key)
    if value != int(value) or value < 1:
      self.refuse(key, 'a whole number above 0')
    if value > most:
      self.refuse(key, f'at most {most}')
    return int(value)

  def flag(self, key: str) -> bool:
    """True or false."""
    value = self.get(key)
    if value is None and self._defaults.get(key) is False:
      return False
    if not isinstance(value, bool):
      self.refuse(key, 'true or false')
    return value

  def choice(self, key: str, choices: Mapping[str, Any]) -> Any:
    """What `choices` has for a string."""
    value = self.get(key)
    if not isinstance(value, str) or value not in choices:
      self.refuse(
        key, f'one of {", ".join(sorted(choices))}', 'others are not supported'
      )
    return choices[value]

  def section(self, key: str) -> Checked | None:
    """A table inside; None where there is none, or nothing in it."""
    value = self.get(key)
    if value is None or value == {}:
      return None
    return Checked(value, self.where, f'{self.prefix}{key}.')

  def with_defaults(self, defaults: Mapping[str, Any]) -> Checked:
    """The same entries; null counts as missing."""
    entries = {k: v for k, v in self.entries.items() if v is not None}
    return Checked(entries, self.where, self.prefix, defaults)

  def check_keys(
    self, read: Collection[str], ignored: Collection[str] = ()
  ) -> None:
    """Refuses a key that is neither read nor ignored nor switched off."""
    for key, value in self.entries.items():
      if not isinstance(key, str):
        self._refuse('a key', key, 'a string')
      if key in read or key in ignored or key.startswith('_'):
        continue
      if not isinstance(value, _OFF_TYPES) or value:
        if key in _QUANTISED:
          self.fail(
            f'{self.prefix}{key} says that the weights are quantised',
            'take the model without it, or a GGUF file',
          )
        self.fail(
          f'{self.prefix}{_text(key)} = {_shown(value)} is not understood',
          'take the key out of the file if it changes no result of the model',
        )


def _shown(value: Any) -> str:
  """Short, on one line."""
  return ' '.join(reprlib.repr(value).split())


def _text(key: str) -> str:
  return key if len(key) <= 60 and key.isprintable() else _shown(key)
