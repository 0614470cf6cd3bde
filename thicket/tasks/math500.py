# SPDX-License-Identifier: Apache-2.0
r"""MATH-500: competition mathematics (Hendrycks et al., arXiv 2103.03874).

The 500 test problems of MATH that Lightman et al. (arXiv 2305.20050) kept for
testing; data: HuggingFaceH4/MATH-500, one split 'test' of 500 rows, MIT
licence, as the whole of MATH. The paper takes the first 200 rows of that file
to select on and the other 300 to test on.

A row has the fields `problem`, `solution` (ends in `\boxed{...}`), `answer`
(what that box holds, in LaTeX: 401 rational numbers, and expressions, tuples,
intervals, matrices, lists and words), `subject`, `level` (1-5), `unique_id`;
`problem` and `answer` are read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from thicket.tasks import base, equivalence, latex, maths


@dataclasses.dataclass(frozen=True)
class Math500(maths.Maths):
  """Problems with one answer, an expression; rules in `maths`.

  The second template asks for what the paper's prompt asks for, in our own
  words: its text is not known to us.

  Raises:
    TaskError: math-verify is not installed, or a setting makes no sense.
  """

  prompt_templates: ClassVar[tuple[str, ...]] = (
    '{question}\n\nReason step by step, and put your final answer inside '
    '\\boxed{}.',
    '{question}\n\nReason step by step, then end with one last line of the '
    'form "#### <answer>".',
    'Solve this problem. The last line of your reply must be '
    '"Answer: \\boxed{}" with the final answer in the box, without units.\n\n'
    '{question}',
  )

  prompt_template: str = prompt_templates[0]
  max_new_tokens: int = 1024  # the paper's table; its code allows 2048
  comparison_limit_s: float = equivalence.LIMIT_S

  name: ClassVar[str] = 'math500'
  stand_ins: ClassVar[Mapping[str, Any]] = {'answer': '0'}

  def parse(self, row: Mapping[str, Any], row_id: int) -> base.Example:
    """Reads the fields `problem` and `answer` of one row.

    Raises:
      TaskError: a field is missing or no text, or the answer cannot be read.
    """
    problem, answer = base.texts(row, ('problem', 'answer'))
    gold = latex.normal(answer)
    if gold is None:
      raise base.TaskError(f'answer {answer!r} cannot be read')
    meta = {'released_gold': answer}
    return base.Example(row_id, problem, gold, meta)
