# SPDX-License-Identifier: Apache-2.0
"""GSM8K: grade-school word problems (Cobbe et al., arXiv 2110.14168).

Its solutions end with a line '#### <number>', and the prompt asks for the
same, so that prompt and extractor agree. Answers are compared and counted as
numbers: '18.', '$18' and '18.00' are one vote.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, ClassVar

from thicket.tasks import base, numbers

MARK = '####'

# What the code released with the paper reads, and where: see `released`.
_RELEASED_CHARS = 300
_RELEASED_STRICT = re.compile(r'####\s*(-?[0-9][0-9.,]*)')
_RELEASED_LOOSE = re.compile(r'-?[0-9][0-9.,]*')


@dataclasses.dataclass(frozen=True)
class Gsm8k(base.Task):
  """Word problems with one number as the answer.

  The strict rule reads what follows the last '####' on its line, which must
  hold exactly one number ('#### $1,080 in all' does, '#### 3 * 6 = 18' does
  not); everything else abstains. The lenient rule falls back on the last
  number of the response.
  """

  prompt_templates: ClassVar[tuple[str, ...]] = (
    '{question}\n\nReason step by step, then end with one last line of the '
    'form "#### <number>".',
    'Solve this problem and give the final answer as "#### <number>".\n\n'
    '{question}',
  )

  prompt_template: str = prompt_templates[0]
  max_new_tokens: int = 256

  name: ClassVar[str] = 'gsm8k'
  stand_ins: ClassVar[Mapping[str, Any]] = {'answer': f'{MARK} 0'}

  def __post_init__(self):
    base.check_settings(self)

  def parse(self, row: Mapping[str, Any], row_id: int) -> base.Example:
    """Reads the fields `question` and `answer` of one row.

    Raises:
      TaskError: a field is missing or no text, or the answer has no number
        after its last '####'.
    """
    question, answer = base.texts(row, ('question', 'answer'))
    gold = self.extract(answer)
    if gold is None:
      raise base.TaskError(
        f'answer {answer[-40:]!r} does not end with "{MARK} <number>"'
      )
    return base.Example(row_id, question, gold)

  def extract(self, response: str) -> str | None:
    """The normalised answer by the strict rule; None abstains."""
    _, mark, rest = response.rpartition(MARK)
    return numbers.only_number(rest.split('\n', 1)[0]) if mark else None

  def extract_lenient(self, response: str) -> str | None:
    """The strict answer, or else the last number of the response."""
    strict = self.extract(response)
    return strict if strict is not None else numbers.last_number(response)

  def released(self, response: str, example: base.Example) -> float:
    """1 or 0 by the rule of the code released with the paper.

    In its last 300 characters, the last '#### <number>' or else the last
    number, as a string: '18.', '1,080' and '18.00' are not '18' and '1080'.
    Behind '#### $' it sees no number, so it falls back on the last of all.
    Written from a description: which of several marks it takes is a guess.
    """
    tail = response[-_RELEASED_CHARS:]
    found = _RELEASED_STRICT.findall(tail) or _RELEASED_LOOSE.findall(tail)
    return float(found[-1:] == [example.gold])
