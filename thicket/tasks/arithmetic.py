# SPDX-License-Identifier: Apache-2.0
"""One-step arithmetic: a real, finite task that a 135 M model partly knows.

SmolLM2-135M-Instruct answers 'What is 17 + 25? Answer with a number.' with
'17 + 25 = 42' or 'The answer is 42.', and is right in one question of six:
weak, but with headroom, and 24 tokens a row are enough.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import ClassVar

from thicket.tasks import base, numbers

# Operands are 2..50; a product has one factor in 2..12 (a times table's).
# 0 and 1 are left out because then an operand may be the answer.
LEAST, MOST, MOST_FACTOR = 2, 50, 12
OPERATORS = '+-*'

_CLAIM = re.compile(r'=|\bequals\b|\bequal to\b|\bis\b', re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Arithmetic(base.Task):
  """Sums, differences and products of two integers, 2,861 in all.

  Differences are positive. Of '17 + 25' and '25 + 17' only one is asked, so
  no fact is both selected and tested on. No operand is ever the answer, so
  echoing the question cannot earn a reward.

  The strict rule reads the first line of the response. If it holds exactly
  one number, that is the answer; if it holds more, the answer is the one
  number after the last '=', 'equals', 'equal to' or 'is'. Everything else
  abstains: no number, several numbers there ('is 17 + 25'), or none.
  The lenient rule falls back on the last number of the whole response.

  Raises:
    TaskError: operators is empty, repeats one or holds an unknown one.
  """

  prompt_templates: ClassVar[tuple[str, ...]] = (
    'What is {question}? Answer with a number.',
    '{question} =',
    'Calculate {question}. Reply with the result only.',
  )

  operators: str = OPERATORS
  prompt_template: str = prompt_templates[0]
  max_new_tokens: int = 24

  name: ClassVar[str] = 'arithmetic'
  stop_strings: ClassVar[tuple[str, ...]] = ('\n',)

  def __post_init__(self):
    base.check_settings(self)
    is_known = all(operator in OPERATORS for operator in self.operators)
    is_once = len(set(self.operators)) == len(self.operators) > 0
    if not (is_known and is_once):
      raise base.TaskError(
        f'arithmetic: operators={self.operators!r} must name some of '
        f'{OPERATORS!r}, each once'
      )

  def examples(self) -> Iterator[base.Example]:
    """Every question, one by one; row ids do not depend on `operators`."""
    for operator in OPERATORS:
      if operator in self.operators:
        yield from _questions(operator)

  def extract(self, response: str) -> str | None:
    """The normalised answer by the strict rule; None abstains."""
    line = response.split('\n', 1)[0]
    if len(numbers.numerals(line)) > 1:
      claims = list(_CLAIM.finditer(line))
      line = line[claims[-1].end() :] if claims else ''
    return numbers.only_number(line)

  def extract_lenient(self, response: str) -> str | None:
    """The strict answer, or else the last number of the response."""
    strict = self.extract(response)
    return strict if strict is not None else numbers.last_number(response)


def _questions(operator: str) -> Iterator[base.Example]:
  for low in range(LEAST, MOST + 1):
    for high in range(low, MOST + 1):
      if operator == '-':
        # high == 2 * low would have an operand as its answer.
        if high == low or high == 2 * low:
          continue
        a, b, result = high, low, high - low
      else:
        if operator == '*' and low > MOST_FACTOR:
          continue
        # The parity decides which order is asked, so that both occur.
        a, b = (high, low) if (low + high) % 2 else (low, high)
        result = low + high if operator == '+' else low * high
      row_id = OPERATORS.index(operator) * 10_000 + a * 100 + b
      yield base.Example(row_id, f'{a} {operator} {b}', str(result))
