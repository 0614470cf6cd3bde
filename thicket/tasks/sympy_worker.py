# SPDX-License-Identifier: Apache-2.0
"""The process in which math-verify reads and compares untrusted text.

It is run as a script by `equivalence` and imports nothing of ours. For each
line that comes in, the JSON of two texts and of the CPU seconds that they may
take, one byte goes out. The limits are the kernel's, because a product of
large integers answers to no Python: a text that takes too long ends the
process by SIGPROF, one that takes too much memory gets none. It ends by itself
when the process that started it is gone.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import select
import signal
import sys
import warnings
from collections.abc import Callable

READY, EQUAL, DIFFERENT = b'+', b'1', b'0'
MAX_BYTES = 1 << 30  # of address space; at rest it holds a tenth of that
_POLL_S = 2.0
_DIGITS, _NEAR = 50, 1e-25  # verify calls all below 1e-15 nothing


def main() -> None:
  """Answers until nobody asks any more."""
  answers = os.dup(1)
  os.dup2(2, 1)  # nothing that a library prints may look like an answer
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
  signal.signal(signal.SIGPROF, signal.SIG_DFL)
  logging.disable(logging.CRITICAL)
  warnings.simplefilter('ignore')
  are_equal = _comparison()
  are_equal('\\frac{x^2}{2}-\\sqrt{3}', '\\frac{x\\cdot x}{2}-3^{1/2}')  # warm
  if sys.platform == 'linux':  # others do not keep it
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (MAX_BYTES, MAX_BYTES))
  parent, waiting = os.getppid(), b''
  os.write(answers, READY)
  while os.getppid() == parent:
    if not select.select([0], [], [], _POLL_S)[0]:
      continue
    read = os.read(0, 1 << 16)
    if not read:
      return
    waiting += read
    while b'\n' in waiting:
      line, _, waiting = waiting.partition(b'\n')
      left, right, limit_s = json.loads(line)
      signal.setitimer(signal.ITIMER_PROF, limit_s)
      found = are_equal(left, right)
      signal.setitimer(signal.ITIMER_PROF, 0)
      os.write(answers, EQUAL if found else DIFFERENT)


def _comparison() -> Callable[[str, str], bool]:
  import math_verify
  import sympy
  from sympy.core import random

  # Its default drops 'units', among them the variables c, d, m and t.
  reading = math_verify.LatexExtractionConfig(
    boxed_match_priority=-1,
    normalization_config=math_verify.LatexNormalizationConfig(
      basic_latex=True,
      units=False,
      malformed_operators=True,
      nits=False,
      boxed='none',
    ),
  )

  @functools.lru_cache(256)
  def read(text: str):
    # Only the reader of LaTeX: the one of expressions evaluates Python.
    found = math_verify.parse(
      f'${text}$', [reading], 'no_fallback', parsing_timeout=None
    )
    return found[0] if found else None

  def agree(left, right) -> bool:
    return math_verify.verify(
      left, right, timeout_seconds=None, allow_set_relation_comp=True
    )

  def are_far(left, right) -> bool:
    """Whether numbers, which verify takes for absolutely near, are not."""
    if not all(
      isinstance(x, sympy.Expr) and x.is_number for x in (left, right)
    ):
      return False
    apart = sympy.Abs(left - right).evalf(_DIGITS)
    return bool(apart > _NEAR * sympy.Abs(left).evalf(_DIGITS))

  def are_equal(left: str, right: str) -> bool:
    random.seed(0)  # sympy tries values at random
    try:
      a, b = read(left), read(right)
      if a is None or b is None:
        return False
      return not are_far(a, b) and (agree(a, b) or agree(b, a))
    except Exception:  # whatever a text does to a parser, or to memory
      return False

  return are_equal


if __name__ == '__main__':
  main()
