# SPDX-License-Identifier: Apache-2.0
"""HumanEval: functions from their docstrings (Chen et al., arXiv 2107.03374).

164 rows, a test set without a training part: to select and to validate take
some of them away from the test. Source: github.com/openai/human-eval
(HumanEval.jsonl.gz), MIT licence. `parse` reads its fields `prompt`,
`entry_point`, `canonical_solution` and `test`, all text; `task_id` is not used.
It is no task of the paper, so there is no released rule to compare with.

The row's own `check` is run, with a function in place of the candidate that
asks the confined program. Helpers that a prompt defines are those of the
prompt for the tests, whatever the program made of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from thicket import sandbox
from thicket.tasks import base, code


@dataclasses.dataclass(frozen=True)
class HumanEval(code.Coded):
  """One function to be written, given its head, docstring and examples.

  A program is the prompt and then the answer, which may be the whole function
  or, where it starts with an indented line, the rest of it.
  """

  prompt_templates: ClassVar[tuple[str, ...]] = (
    'Complete this Python function.\n\n{question}\n\nAnswer with the whole '
    'function, and the imports it needs, in one fenced block that starts with '
    '```python and ends with ```.',
    'Write the body of the following function so that it does what its '
    'docstring says. Put the code, and nothing else, in tags: </answer> ends '
    'what <answer> starts.\n\n{question}',
  )

  prompt_template: str = prompt_templates[0]
  max_new_tokens: int = 512

  name: ClassVar[str] = 'humaneval'
  stand_ins: ClassVar[Mapping[str, Any]] = {'canonical_solution': ''}

  def parse(self, row: Mapping[str, Any], row_id: int) -> base.Example:
    """Reads one row.

    Raises:
      TaskError: a field is missing or no text, or `entry_point` is no name.
    """
    prompt, entry_point, solution, test = base.texts(
      row, ('prompt', 'entry_point', 'canonical_solution', 'test')
    )
    if not entry_point.isidentifier():
      raise base.TaskError(f'field entry_point={entry_point!r} is no name')
    return base.Example(
      row_id,
      prompt.strip('\n'),
      (prompt + solution).strip(),
      {'prompt': prompt, 'entry_point': entry_point, 'test': test},
    )

  def extract_lenient(self, response: str) -> str | None:
    """As of all programs; and a response that goes on where a prompt ends."""
    found = super().extract_lenient(response)
    if found is None and response.lstrip('\n')[:1] in (' ', '\t'):
      return code.tidy(response)
    return found

  def job(self, answer: str, example: base.Example) -> sandbox.Job:
    """The prompt and the answer as a program, with the row's `check`."""
    prompt, name = example.meta['prompt'], example.meta['entry_point']
    goes_on = answer[:1].isspace()
    return sandbox.Job(
      sources=(prompt + answer,) if goes_on else (prompt, answer),
      tests=f'{example.meta["test"]}\ncheck({name})\n',
      names=(name,),
      context=prompt,
    )
