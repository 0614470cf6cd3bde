# SPDX-License-Identifier: Apache-2.0
r"""What tasks share whose answer is a mathematical expression in a box.

The strict rule reads the last `\boxed{...}` of a response. The paper's prompt
asks for a last line '#### <answer>' instead (the extractor released with the
paper reads boxes all the same, and so gives nothing to who obeys): under a
template that names '####', that line counts too, and of a box and such a line
the later one is the answer. Under other templates '####' is a heading.

The answer that votes is the normal form of `latex`; answers that are
equivalent without being equal vote together, and the gold answer is compared
by the same relation (`equivalence`). A percent sign, a degree sign, a currency
and a unit are dropped from answers and golds alike: '50%' is '50', not '0.5'.
A decimal is exact: 0.333 is not 1/3.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from thicket.tasks import base, equivalence, latex, numbers, released_maths

MARK = '####'

_CLAIM = re.compile(r'\banswer(?: is|:|\s*=)', re.IGNORECASE)
_FORMULA = re.compile(r'\$([^$\n]{1,300})\$|\\\(([^\n]{1,300}?)\\\)')
_FORMULA_CHARS = 2000  # at the end of a response, where a last formula counts


class Maths(base.Task):
  """Extraction, equivalence and the released rule; see the tasks themselves.

  Raises:
    TaskError: math-verify is not installed, or the limit is not positive.
  """

  comparison_limit_s: float

  def __post_init__(self):
    base.check_settings(self)
    if not 0 < self.comparison_limit_s < float('inf'):
      raise base.TaskError(
        f'{self.name}: comparison_limit_s={self.comparison_limit_s} must be '
        'a positive number of seconds'
      )
    equivalence.check_installed(self.name)

  def extract(self, response: str) -> str | None:
    """The normalised answer by the strict rule; None abstains."""
    at, content = latex.last_boxed(response)
    if MARK in self.prompt_template:
      mark = response.rfind(MARK)
      if mark > at:
        content = response[mark + len(MARK) :].split('\n', 1)[0]
    return None if content is None else latex.normal(content)

  def extract_lenient(self, response: str) -> str | None:
    """The strict answer, or else a guess; None abstains.

    The guesses, in this order: what follows the last 'answer is', 'answer:' or
    'answer =' on its line (its first formula, or else its first sentence), the
    last formula ($...$) near the end, the last number.
    """
    strict = self.extract(response)
    if strict is not None:
      return strict
    claims = list(_CLAIM.finditer(response))
    if claims:
      line = response[claims[-1].end() :].lstrip(' \n*:')[: latex.MAX_CHARS]
      line = line.split('\n', 1)[0]
      formula = _FORMULA.search(line)
      claim = _content(formula) if formula else re.split(r'\.(?:\s|$)', line)[0]
      found = latex.normal(claim.replace('**', ''))
      if found is not None:
        return found
    formulas = list(_FORMULA.finditer(response[-_FORMULA_CHARS:]))
    if formulas:
      return latex.normal(_content(formulas[-1]))
    return numbers.last_number(response)

  def is_correct(self, answer: str | None, example: base.Example) -> bool:
    """Whether the answer is equivalent to the gold one."""
    return answer is not None and equivalence.same(
      answer, example.gold, self.comparison_limit_s
    )

  def group(self, answers: Sequence[str], example: base.Example) -> list[int]:
    """A class id for each answer, from 0 in order of appearance.

    Equivalent answers are of one class; see `equivalence.classes`.
    """
    return equivalence.classes(answers, self.comparison_limit_s)

  def released(self, response: str, example: base.Example) -> float:
    """Accuracy, 0 or 1, by the rule of the code released with the paper."""
    return released_maths.accuracy(response, example.meta['released_gold'])


def _content(formula: re.Match[str]) -> str:
  return formula[1] or formula[2]
