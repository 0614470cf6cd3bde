# SPDX-License-Identifier: Apache-2.0
r"""Whether two answers are the same mathematics, and what they vote for.

Normal forms (`latex.normal`) are compared as strings first, then part by part:
sets in any order, tuples, intervals and matrices in theirs, rational numbers
exactly. Only what is left, such as `2\sqrt{3}` and `\sqrt{12}`, is asked of
the library math-verify (github.com/huggingface/Math-Verify), which stands on
sympy: in a process of its own (`sympy_worker`), because a short text can keep
sympy busy for ever. That process is started at the first such question, serves
all of them, is started anew after a text that took it down, and goes when this
process does, however that ends. A process that was forked starts its own.

What takes too long, or too much memory, is not equivalent; `counts` tells how
often. As math-verify does, `n` is taken for `N` where no text has both.
"""

from __future__ import annotations

import atexit
import collections
import functools
import importlib.util
import json
import logging
import os
import pathlib
import re
import select
import signal
import string
import subprocess
import sys
import threading
from collections.abc import Sequence

from thicket.tasks import latex, sympy_worker
from thicket.tasks.base import TaskError

LIMIT_S = 2.0  # of CPU a comparison; an honest one takes a tenth
MAX_ATOM_CHARS = 300
MAX_PARTS = 60  # the longest gold is a set of 16 triples
MAX_DEPTH = 12  # of brackets
MAX_NUMERAL_DIGITS = 40
MAX_POWER_DIGITS = 4  # 2^{1009} is a gold

_START_S = 120.0  # importing sympy takes one, on an idle machine
_SLACK = 10.0  # a machine may be this much busier than the process
_NUMERAL = re.compile(rf'[0-9]{{{MAX_NUMERAL_DIGITS + 1}}}')
_POWER = re.compile(rf'\^[({{]*-?[0-9]{{{MAX_POWER_DIGITS + 1}}}')
_FACTORIAL = re.compile(rf'[0-9]{{{MAX_POWER_DIGITS}}}[)}}]*!|![)}}]*!')
_TOWER = re.compile(r'(?=\^[({]*([0-9]+)([)}!]*)\^[({]*([0-9]+))')

_REMEMBERED = 1 << 16  # comparisons; some 20 MB

_LETTERS = string.ascii_uppercase

_log = logging.getLogger(__name__)
_counts: collections.Counter[str] = collections.Counter()


class _GivenUp(Exception):
  """A comparison came to an end without an answer."""


def check_installed(name: str) -> None:
  """Raises TaskError where the library that `name` needs is missing."""
  if importlib.util.find_spec('math_verify') is None:
    raise TaskError(
      f"{name} compares answers by math-verify: pip install 'thicket[math]'"
    )


def counts() -> dict[str, int]:
  """How often this process asked, and what came of it.

  'asked' counts distinct questions; 'timed_out' and 'died' those that took
  too long or took the process down; 'refused' those that were not asked
  because a text is beyond the limits. The last three are "not equivalent".
  """
  return {
    key: _counts[key] for key in ('asked', 'timed_out', 'died', 'refused')
  }


def same(left: str, right: str, limit_s: float = LIMIT_S) -> bool:
  """Whether two normal forms are equivalent; symmetric and deterministic.

  `limit_s` is CPU time, so that a busy machine changes no judgement.

  Raises:
    TaskError: the process that compares cannot be started.
  """
  return left == right or _settled(*sorted((left, right)), limit_s)


def classes(answers: Sequence[str], limit_s: float = LIMIT_S) -> list[int]:
  """A class id for each normal form, from 0 in order of appearance.

  Being equivalent is closed: where a equals b and b equals c, one class holds
  all three, even if a and c took too long to compare. Classes do not depend on
  the order of the answers, their numbers do.
  """
  distinct = list(dict.fromkeys(answers))
  root = list(range(len(distinct)))
  for i, answer in enumerate(distinct):
    for j in range(i):
      if root[i] != root[j] and same(answer, distinct[j], limit_s):
        kept, gone = sorted((root[i], root[j]))
        root = [kept if x == gone else x for x in root]
  ids: dict[int, int] = {}
  found = {x: ids.setdefault(root[i], len(ids)) for i, x in enumerate(distinct)}
  return [found[answer] for answer in answers]


def close() -> None:
  """Ends the process that compares; the next question starts another."""
  global _worker
  with _lock:
    worker, _worker = _worker, None
    if worker is not None:
      worker.end()


@functools.lru_cache(_REMEMBERED)
def _settled(left: str, right: str, limit_s: float) -> bool:
  try:
    return _same(left, right, limit_s)
  except _GivenUp:  # the other parts would only take more time
    return False


def _same(left: str, right: str, limit_s: float) -> bool:
  """As `same`, for sorted forms that differ as strings."""
  kind, parts = latex.parts(left)
  other_kind, others = latex.parts(right)
  if kind != other_kind:
    # 'x > 2' is the interval '(2, \infty)'; all else differs in kind.
    is_relation = re.search(r'[<>]|\\[lg]e(?![a-z])', left + right)
    return bool(is_relation) and _ask(left, right, limit_s)
  if kind == latex.ATOM:
    return _same_atoms(left, right, limit_s)
  if max(len(parts), len(others)) > MAX_PARTS:
    _counts['refused'] += 1
    return False
  if kind in (latex.SET, latex.UNION):
    return _covers(parts, others, limit_s) and _covers(others, parts, limit_s)
  return len(parts) == len(others) and all(
    a == b or _same(*sorted((a, b)), limit_s)
    for a, b in zip(parts, others, strict=True)
  )


def _covers(parts: list[str], others: list[str], limit_s: float) -> bool:
  """Whether each part is the same as one of the others."""
  rest = [x for x in parts if x not in others]
  return all(
    any(_same_named(x, other, limit_s) for other in others) for x in rest
  )


def _same_named(left: str, right: str, limit_s: float) -> bool:
  """As `same` for elements of a set, where names tell values apart."""
  names = latex.named(left)[0], latex.named(right)[0]
  if all(names) and names[0] != names[1]:
    return False
  return _same(*sorted((left, right)), limit_s)


def _same_atoms(left: str, right: str, limit_s: float) -> bool:
  """Atoms that differ as strings."""
  (name, value), (other_name, other) = latex.named(left), latex.named(right)
  if name or other_name:
    if value == other or same(value, other, limit_s):
      return True  # one answer to one question: what it is called is free
    # 'y = 2x + 3' is '2x - y + 3 = 0'.
    return '=' in left and '=' in right and _ask(left, right, limit_s)
  if latex.is_number(left) and latex.is_number(right):
    return False
  if latex.is_words(left) or latex.is_words(right):
    return False
  return _ask(left, right, limit_s)


def _ask(left: str, right: str, limit_s: float) -> bool:
  """What math-verify says; raises _GivenUp where it says nothing."""
  if not (_is_harmless(left) and _is_harmless(right)):
    _counts['refused'] += 1
    return False
  for letter in _LETTERS:  # math-verify would read N - n as 0
    if any(letter in x and letter.lower() in x for x in (left, right)):
      left, right = (_marked(x, letter) for x in (left, right))
  found = _asked(*sorted((_exact(left), _exact(right))), limit_s)
  if not isinstance(found, bool):
    raise _GivenUp
  return found


@functools.lru_cache(_REMEMBERED)
def _asked(left: str, right: str, limit_s: float) -> bool | str:
  global _worker
  with _lock:
    if _worker is None:
      _prepare()
      _worker = _Worker()
    _counts['asked'] += 1
    found = _worker.ask(left, right, limit_s)
    if isinstance(found, bool):
      return found
    _worker.end()
    _worker = None
    _counts[found] += 1
    is_first = _counts[found] == 1
  if is_first:
    _log.warning(
      'comparing %.80r with %.80r %s: not equivalent; more such are counted',
      left,
      right,
      f'took over {limit_s:g} s' if found == 'timed_out' else 'failed',
    )
  return found


@functools.cache
def _prepare() -> None:
  """What the first process asks of this one, once."""
  atexit.register(close)
  os.register_at_fork(after_in_child=_after_fork)


def _after_fork() -> None:
  """A forked process must not speak through the pipes of another's."""
  global _worker, _lock
  worker, _worker, _lock = _worker, None, threading.Lock()
  if worker is not None:
    worker.forget()


def _is_harmless(text: str) -> bool:
  """Bounds on what is parsed; the limits of the process are the second line."""
  if len(text) > MAX_ATOM_CHARS or '$' in text or '\n' in text:
    return False
  depth = deepest = 0
  for char in text:
    depth += (char in '([{') - (char in ')]}')
    deepest = max(deepest, depth)
  return (
    deepest <= MAX_DEPTH
    and not any(x.search(text) for x in (_NUMERAL, _POWER, _FACTORIAL))
    and not any(_is_high(*found) for found in _TOWER.findall(text))
  )


def _is_high(power: str, closed: str, upper: str) -> bool:
  """Whether 2^{power^{upper}}, or (2^power)^upper where closed, is long."""
  if '!' in closed:
    return True
  low, high = int(power), int(upper)  # of four digits each, by _POWER
  return (low * high if closed else low**high) >= 10**MAX_POWER_DIGITS


def _marked(text: str, letter: str) -> str:
  """The upper case letter, outside commands, as another variable."""
  return re.sub(
    rf'(\\[a-zA-Z]+)|{letter}',
    lambda x: x[1] or f'{{{letter.lower()}_{{99}}}}',
    text,
  )


def _exact(text: str) -> str:
  """Decimals as fractions: sympy compares floats to six places only."""
  return re.sub(
    r'([0-9]+)\.([0-9]+)',
    lambda x: f'{{\\frac{{{x[1]}{x[2]}}}{{1{"0" * len(x[2])}}}}}',
    text,
  )


class _Worker:
  """The process that compares, seen from the one that asks."""

  def __init__(self):
    """Starts it and waits until it is warm."""
    script = str(pathlib.Path(sympy_worker.__file__).resolve())
    self._process = subprocess.Popen(
      # -P: numbers.py, next to the script, is not the library's.
      [sys.executable, '-P', script],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      bufsize=0,
      # The order of sympy's terms hangs on hashes of strings.
      env={**os.environ, 'PYTHONHASHSEED': '0'},
    )
    if self._answer(_START_S) != sympy_worker.READY:
      self.end()
      raise TaskError(
        'the process that compares answers does not start '
        f'({sys.executable} {script}); its own words are above; is '
        "math-verify whole? pip install 'thicket[math]'"
      )

  def ask(self, left: str, right: str, limit_s: float) -> bool | str:
    """Its answer, or why there is none: 'timed_out' or 'died'."""
    asked = json.dumps([left, right, limit_s]).encode() + b'\n'
    try:
      self._process.stdin.write(asked)
    except BrokenPipeError:
      return 'died'
    answer = self._answer(_SLACK * limit_s + _START_S)
    if answer in (sympy_worker.EQUAL, sympy_worker.DIFFERENT):
      return answer == sympy_worker.EQUAL
    if answer is None or self._process.wait() == -signal.SIGPROF:
      return 'timed_out'
    return 'died'

  def end(self) -> None:
    """Kills it, whatever it is at."""
    self._process.kill()
    self._process.wait()
    self._close()

  def forget(self) -> None:
    """Lets go of a process that belongs to the process we were forked from."""
    self._close()
    self._process.returncode = 0  # not ours to wait for

  def _close(self) -> None:
    self._process.stdin.close()
    self._process.stdout.close()

  def _answer(self, seconds: float) -> bytes | None:
    """One byte, b'' from a process that is gone, None if none comes."""
    poll = select.poll()  # select.select knows the first 1024 files only
    poll.register(self._process.stdout, select.POLLIN)
    return self._process.stdout.read(1) if poll.poll(1000 * seconds) else None


_worker: _Worker | None = None
_lock = threading.Lock()
