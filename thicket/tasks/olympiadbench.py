# SPDX-License-Identifier: Apache-2.0
r"""OlympiadBench: mathematics of olympiads (He et al., arXiv 2402.14008).

The open-ended, text-only, English competition problems of mathematics; data:
Hothan/OlympiadBench, config OE_TO_maths_en_COMP, 674 rows of one split (675 in
the JSONL files that go about), Apache-2.0 licence by its card. The paper takes
the first 200 rows to select on and the other 474 to test on.

A row has the fields
  id                  integer
  subfield            Algebra, Combinatorics, Geometry or Number Theory
  context             text to be read before the question, or null
  question            text, with LaTeX
  solution            list of texts, usually one; none has a box
  final_answer        list of one text: LaTeX, often between dollars
  is_multiple_answer  whether that text lists several answers, by commas
  unit                LaTeX or words that the question asks for, or null
  answer_type         Numerical, Expression, Tuple or Interval
  error               tolerance of a numerical answer, such as '1e-1', or null
of which `question`, `context`, `final_answer` and `error` are read. Several
answers are a set: order and repetition do not matter, even where a row asks
for several things ('16,3,1,1'). Whether there are several is seen from the
commas, so is_multiple_answer and answer_type say nothing that the answer does
not.
"""

from __future__ import annotations

import dataclasses
import fractions
import re
from collections.abc import Mapping
from typing import Any, ClassVar

from thicket.tasks import base, equivalence, latex, maths

_TOLERANCE = re.compile(r'[0-9]{1,9}(?:\.[0-9]{1,9})?(?:[eE]-?[0-9]{1,2})?')


@dataclasses.dataclass(frozen=True)
class OlympiadBench(maths.Maths):
  """Problems with one answer or a set of them; rules in `maths`.

  Where a row allows an error, a number is right within it, exactly; equal
  votes are equal numbers all the same. The second template asks for what the
  paper's prompt asks for, in our own words: its text is not known to us.

  Raises:
    TaskError: math-verify is not installed, or a setting makes no sense.
  """

  prompt_templates: ClassVar[tuple[str, ...]] = (
    '{question}\n\nReason step by step, and put your final answer inside '
    '\\boxed{}. If there are several answers, separate them by a comma '
    'and a space, in one box.',
    '{question}\n\nReason step by step, then end with one last line of the '
    'form "#### <answer>".',
    'Solve this problem of an olympiad. The last line of your reply must be '
    '"Answer: \\boxed{}" with all answers in the box, separated by a comma '
    'and a space, without units.\n\n{question}',
  )

  prompt_template: str = prompt_templates[0]
  max_new_tokens: int = 2048  # as released
  comparison_limit_s: float = equivalence.LIMIT_S

  name: ClassVar[str] = 'olympiadbench'
  stand_ins: ClassVar[Mapping[str, Any]] = {
    'final_answer': ['0'],
    'error': None,
  }

  def parse(self, row: Mapping[str, Any], row_id: int) -> base.Example:
    """Reads `question`, `context`, `final_answer` and `error` of one row.

    Raises:
      TaskError: a field is missing or not of its type, or an answer or a
        tolerance cannot be read.
    """
    (question,) = base.texts(row, ('question',))
    answers = row.get('final_answer')
    context, error = row.get('context'), row.get('error')
    is_list = isinstance(answers, list) and answers
    if not is_list or not all(isinstance(x, str) for x in answers):
      raise base.TaskError(
        f"field 'final_answer' is {answers!r}, not a list of texts; "
        f'the row has {sorted(map(str, row))}'
      )
    for field, value in (('context', context), ('error', error)):
      if not isinstance(value, str | None):
        raise base.TaskError(f'field {field!r} is {value!r}, not text or null')
    golds = [latex.normal(x) for x in answers]
    gold = None if None in golds else latex.normal(', '.join(golds))
    if gold is None:
      raise base.TaskError(f'final_answer {answers!r} cannot be read')
    meta = {'released_gold': ','.join(answers).replace('$', '')}
    if error:
      if not (_TOLERANCE.fullmatch(error) and latex.is_number(gold)):
        raise base.TaskError(
          f'error {error!r} is no tolerance for the answer {gold!r}'
        )
      meta['error'] = error
    asked = f'{context}\n\n{question}' if context else question
    return base.Example(row_id, asked, gold, meta)

  def is_correct(self, answer: str | None, example: base.Example) -> bool:
    """Whether the answer is equivalent to the gold one, or near enough."""
    error = example.meta.get('error')
    if error and answer is not None and latex.is_number(answer):
      apart = fractions.Fraction(answer) - fractions.Fraction(example.gold)
      return abs(apart) <= fractions.Fraction(error)
    return super().is_correct(answer, example)
