# SPDX-License-Identifier: Apache-2.0
"""Responses as models write them, to any task, drawn from a seed.

Reasoning with numbers, then an answer: the right one, a wrong one that occurs
once, or none that the strict rule can read; one in fifty rambles for pages.
"""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Sequence

from thicket.tasks.base import Example, Task

Asked = tuple[Example, str]

RIGHT, WRONG, CUT = 0.4, 0.4, 0.05  # shares; the rest has no answer at all
LONG = 0.02
SENTENCES, LONG_SENTENCES = (2, 14), (150, 400)
REMEMBERED = 50_000  # responses that may come again

# How tasks want answers to be written; the first that one reads is taken.
FORMS = (
  '#### {}', '\\boxed{{}}', '<answer>{}</answer>', 'Order: {}',
  '```python\n{}\n```', 'Answer: {}', '{}',
)  # fmt: skip

_STEPS = (
  'There are {a} boxes with {b} pens each, so {a} * {b} = {c} pens.',
  'That leaves {c} - {a} = {b} of them.',
  'First, note that \\(x + {a} = {b}\\), hence $x = {c}$.',
  'Half of ${a}.50 is ${b}.25, or {c}% of the price.',
  'Let me check: ({a} + {b}) / 2 is not {c}, so try again.',
  'Then we add them up and compare with what was asked.',
  '- **Step {a}**: take {b} from {c}.\n',
  'A line\nends here, and {a},{b} follow.',
)


@dataclasses.dataclass(frozen=True)
class Spelling:
  """How a right answer to one question is written."""

  form: str
  answer: str


def spelling(
  task: Task, example: Example, forms: Sequence[str] = FORMS
) -> Spelling | None:
  """What the strict rule takes for right; None if that cannot be found.

  The answer is the gold one or, where golds are targets, a text in `meta`.
  """
  texts = [example.gold, *(x for x in example.meta.values() if type(x) is str)]
  for form in forms:
    for text in texts:
      found = task.extract(form.replace('{}', text))
      if found is not None and task.is_correct(found, example):
        return Spelling(form, text)
  return None


class Responses:
  """An endless list of (example, response), the same for the same seed."""

  def __init__(
    self,
    task: Task,
    examples: Sequence[Example],
    repeats: float = 0.0,
    seed: int = 0,
  ):
    """Finds out how answers are written.

    Args:
      task: whose strict rule is to read the right ones.
      examples: the questions, those whose answer cannot be written left out.
      repeats: share of responses that have been there before, word by word.
      seed: of all draws.

    Raises:
      ValueError: no answer to any of the questions can be written.
    """
    self._rng = random.Random(seed)
    self._repeats = repeats
    # A task that stops at line ends never sees reasoning above its answer.
    self._is_short = bool(task.stop_strings)
    spelled = [(x, spelling(task, x)) for x in examples]
    self._asked = [(x, how) for x, how in spelled if how is not None]
    if not self._asked:
      raise ValueError(f'{task.name}: no way to write an answer is known')
    draw = lambda: (
      dict.fromkeys('abc', 0)
      | {
        name: self._rng.randrange(1, 10 ** self._rng.randrange(1, 5))
        for name in 'abc'
      }
    )
    self._sentences = [
      self._rng.choice(_STEPS).format(**draw()) for _ in range(2000)
    ]
    self._before: list[Asked] = []

  def take(self, count: int) -> list[Asked]:
    """The next `count`."""
    return [self._next() for _ in range(count)]

  def _next(self) -> Asked:
    rng, before = self._rng, self._before
    if before and rng.random() < self._repeats:
      return rng.choice(before)
    new = self._new()
    if self._repeats:
      if len(before) < REMEMBERED:
        before.append(new)
      else:
        before[rng.randrange(REMEMBERED)] = new
    return new

  def _new(self) -> Asked:
    rng = self._rng
    example, how = rng.choice(self._asked)
    kind = rng.random()
    if kind < RIGHT:
      end = how.form.replace('{}', how.answer)
    elif kind < RIGHT + WRONG:
      _, other = rng.choice(self._asked)
      wrong = re.sub(r'[0-9]', lambda _: rng.choice('123456789'), other.answer)
      end = how.form.replace('{}', wrong)
    elif kind < RIGHT + WRONG + CUT:
      end = how.form.partition('{}')[0]
    else:
      end = ''
    if self._is_short:
      return example, end
    few = LONG_SENTENCES if rng.random() < LONG else SENTENCES
    told = rng.choices(self._sentences, k=rng.randint(*few))
    return example, ' '.join(told) + '\n' + end
