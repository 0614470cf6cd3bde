# SPDX-License-Identifier: Apache-2.0
"""Countdown: make a target out of three or four numbers, each used once.

Rows are generated here, or read from the public file of 2,200 that the code of
Neural Thickets (arXiv 2603.12228) shares with ES at Scale (arXiv 2509.24372):
countdown.json, a list of {"id": 0, "context": "...", "numbers": [44, 19, 35],
"target": "98", "solution": "((44 + 19) + 35)"}; they select on the first 200
and test on the other 2,000. Neither publishes it under an open licence, so
none of it is here. `context` is a prompt and is not read: ours are below.

**What votes.** An answer is an expression in canonical form, and expressions
vote together where these are equal: '35 + (44+19)' and '44 + 19 + 35' do. One
that does not use the numbers as asked abstains, as anything unreadable does:
the question alone shows that it is no answer. The released code lets the
*values* of expressions vote. There, all right solutions pool their votes at
the target, which the prompt names, while wrong ones scatter, so its vote is
close to "did any two members solve it": members that check each other's work
against the question, which is another method, and one that a single sample
repeated can use as well. Here a majority has to write the same solution.

Whether an expression is right is decided by its exact value, either way.
"""

from __future__ import annotations

import dataclasses
import fractions
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from thicket.tasks import base, expressions, tags

MAX_ROWS = 1_000_000
MAX_NUMBER = 99
LEAST_TARGET, MOST_TARGET = 10, 99  # as in the public file
MAX_SIDES = 8  # of an equation: '(3+4)*5 = 7*5 = 35' has three

_TAIL = 2_000  # characters at the end in which the lenient rule looks
_TRIES = 16  # candidates that it reads there, from the last one
_RUN = re.compile(r'[-+*/(0-9][-0-9+*/()=. \t]*')
_TEX = re.compile(r'\\(?:times|cdot|div|left|right|[()\[\]])')
_TYPED = {r'\times': '*', r'\cdot': '*', r'\div': '/'}  # the others vanish
# The letter first: what a pattern starts with decides how fast it is.
_TIMES = re.compile(r'[xX](?<=[0-9)] [xX])(?= [0-9(])')
_SIGNS = str.maketrans('\u00d7\u00b7\u22c5\u00f7\u2212\u2013', '***/--')
_RELEASED = re.compile(r'[-0-9+*/() =]+')
_RELEASED_TOLERANCE = fractions.Fraction(1, 100_000)
_RELEASED_MOST = 1000


@dataclasses.dataclass(frozen=True)
class Countdown(base.Task):
  """Expressions over given numbers that must equal a target.

  The strict rule reads the last <answer>...</answer>: an expression (see
  `expressions`), or an equation, of which the sides that are more than one
  number are kept. `is_correct` wants a side that uses the given numbers, each
  once, and has the target's value; two such sides of different values are two
  answers, hence none. The lenient rule also reads signs as they are typeset,
  tags that are not closed, and else the last expression in the text.

  The reward is 1 for a right answer, else 0. (Released: that plus 0.1 for
  tags. Format is worth nothing here: without it, no answer is read.)

  Attributes:
    size: how many rows `examples` makes; more rows begin with the same.
    seed: which rows, at least 0.

  Raises:
    TaskError: size or seed is out of range.
  """

  # The first asks for what the paper's prompt asks for, in our words.
  prompt_templates: ClassVar[tuple[str, ...]] = (
    '{question}\n\nWrite an expression that equals the target. Use every '
    'number exactly once, with +, -, *, / and brackets only. First think step '
    'by step inside <think> </think>, then give the expression inside <answer> '
    '</answer>.',
    '{question}\n\nCombine all of the numbers, each exactly once, with +, -, '
    '*, / and brackets to make the target. Reply with the expression alone '
    'inside <answer> </answer>.',
  )

  size: int = 10_000
  seed: int = 0
  prompt_template: str = prompt_templates[0]
  max_new_tokens: int = 1024

  name: ClassVar[str] = 'countdown'

  def __post_init__(self):
    base.check_settings(self)
    if not 1 <= self.size <= MAX_ROWS:
      raise base.TaskError(
        f'countdown: size={self.size} must lie in 1..{MAX_ROWS}'
      )
    if self.seed < 0:
      raise base.TaskError(f'countdown: seed={self.seed} must be at least 0')

  def examples(self) -> Iterator[base.Example]:
    """The rows of `seed`, each solvable, no two of the same puzzle."""
    seen = set()
    attempt = 0
    while len(seen) < self.size:
      made = _attempt(self.seed, attempt)
      if made is not None:
        numbers, target, solution = made
        # Another order of the numbers is no other puzzle.
        puzzle = (*sorted(numbers), target)
        if puzzle not in seen:
          seen.add(puzzle)
          yield _example(attempt, numbers, target, solution)
      attempt += 1

  def parse(self, row: Mapping[str, Any], row_id: int) -> base.Example:
    """Reads the fields `numbers`, `target` and `solution` of one row.

    Raises:
      TaskError: a field is missing or of another kind, or the solution does
        not make the target out of the numbers.
    """
    numbers, target = _puzzle(row)
    solution = row.get('solution')
    answer = _equation(solution) if isinstance(solution, str) else None
    example = _example(row_id, numbers, target, answer or '')
    if not self.is_correct(answer, example):
      raise base.TaskError(
        f"field 'solution' is {solution!r}, which does not make {target} "
        f'out of {list(numbers)}'
      )
    return example

  def ask(self, row: Mapping[str, Any], row_id: int) -> base.Example:
    """Reads the fields `numbers` and `target` of a row to be answered.

    Raises:
      TaskError: a field is missing or of another kind.
    """
    return _example(row_id, *_puzzle(row), '')

  def extract(self, response: str) -> str | None:
    """The normalised answer by the strict rule; None abstains."""
    content = tags.tagged(response)
    return None if content is None else _equation(content)

  def extract_lenient(self, response: str) -> str | None:
    """The strict answer, or else the last expression near the end."""
    strict = self.extract(response)
    return strict if strict is not None else _last_equation(response[-_TAIL:])

  def is_correct(self, answer: str | None, example: base.Example) -> bool:
    """Whether the answer uses the numbers, each once, and has the value."""
    side = None if answer is None else solution_of(answer, example)
    return side is not None and side.value == example.meta['target']

  def group(self, answers: Sequence[str], example: base.Example) -> list[int]:
    """Classes by canonical form; -1 where the numbers are not used as asked.

    Which numbers a prompt of one's own asks for, nobody says.
    """
    if 'numbers' not in example.meta:
      return super().group(answers, example)
    ids: dict[str, int] = {}
    found = []
    for answer in answers:
      side = solution_of(answer, example)
      new = len(ids)
      found.append(-1 if side is None else ids.setdefault(side.text, new))
    return found

  def released(self, response: str, example: base.Example) -> float:
    """Accuracy, 0 or 1, by the rule of the code released with the paper.

    It wants a closed pair of tags, numbers up to 1000 and a value within 1e-5
    of the target; of 'lhs = rhs' it takes the side that uses the numbers. It
    evaluates text as Python; here nothing but the four operations is read.
    """
    content = (tags.tagged(response) or '').strip()
    sides = content.split('=')
    if not _RELEASED.fullmatch(content) or len(sides) > 2:
      return 0.0
    for side in map(expressions.read, sides):
      if side is not None and side.numbers == tuple(example.meta['numbers']):
        is_near = abs(side.value - example.meta['target']) < _RELEASED_TOLERANCE
        return float(is_near and side.numbers[-1] <= _RELEASED_MOST)
    return 0.0


def solution_of(
  answer: str, example: base.Example
) -> expressions.Expression | None:
  """The side of an extracted answer that uses the example's numbers.

  None if there is none, or if several such sides differ in value.
  """
  numbers = tuple(example.meta['numbers'])
  sides = map(expressions.read, answer.split('='))
  found = [side for side in sides if side and side.numbers == numbers]
  is_one = len({side.value for side in found}) == 1
  return found[0] if is_one else None


def _puzzle(row: Mapping[str, Any]) -> tuple[Sequence[int], int]:
  """The numbers and the target of a row; raises TaskError."""
  numbers = row.get('numbers')
  if (
    not isinstance(numbers, Sequence)
    or not numbers
    or not all(type(n) is int and n >= 0 for n in numbers)
  ):
    raise base.TaskError(
      f"field 'numbers' is {numbers!r}, not a list of integers from 0"
    )
  text = str(row.get('target'))
  if not re.fullmatch(r'[0-9]{1,6}', text):
    raise base.TaskError(f"field 'target' is {text!r}, not an integer from 0")
  return numbers, int(text)


def _example(row_id, numbers, target, solution) -> base.Example:
  return base.Example(
    row_id,
    f'Numbers: {", ".join(map(str, numbers))}\nTarget: {target}',
    solution,
    {'numbers': sorted(numbers), 'target': target},
  )


def _equation(text: str) -> str | None:
  """The canonical sides of an equation, joined again; None if unreadable.

  A side of one number is the result of another and is dropped, unless there
  is nothing else.
  """
  if len(text) > MAX_SIDES * expressions.MAX_CHARS:
    return None
  sides = text.split('=')
  if len(sides) > MAX_SIDES:
    return None
  read = [expressions.read(side) for side in sides]
  if None in read:
    return None
  kept = [side.text for side in read if len(side.numbers) > 1]
  return '='.join(dict.fromkeys(kept or [read[0].text]))


def _last_equation(tail: str) -> str | None:
  _, tag, opened = tail.rpartition(tags.OPEN)
  tail = _typed(opened if tag else tail)
  for match in reversed(list(_RUN.finditer(tail))[-_TRIES:]):
    start, end = match.span()
    # What touches letters, points or other scripts' digits is part of a word
    # or of a number that cannot be read.
    before, after = tail[start - 1 : start], tail[end : end + 1]
    if before.isalnum() or before in ('.', ',', '_'):
      continue
    if match[0][-1] not in ' \t' and (after.isalnum() or after == '_'):
      continue
    text = match[0].rstrip(' \t.=')
    if before in ('', '\n'):  # maybe an item of a list
      text = text.rpartition('. ')[2]
      text = text[2:] if text[:2] in ('- ', '* ') else text
    # Only '**' is emphasis: a single one is half of a product.
    answer = _equation(text.removeprefix('**').removesuffix('**'))
    if answer is not None and any(sign in answer[1:] for sign in '+-*/'):
      return answer
  return None


def _typed(text: str) -> str:
  """The signs of typesetting as those of a keyboard."""
  if not text.isascii():
    text = text.translate(_SIGNS)
  if '\\' in text:
    text = _TEX.sub(lambda match: _TYPED.get(match[0], ' '), text)
  return _TIMES.sub('*', text)


def _attempt(seed: int, attempt: int) -> tuple[list[int], int, str] | None:
  """Numbers, target and solution; None where the draw makes no good puzzle.

  Hashed, not drawn from a generator with a state: a row depends on nothing
  before it, and on no version of Python.
  """
  draws = hashlib.blake2b(
    f'{seed}:{attempt}'.encode(), digest_size=32, person=b'countdown'
  ).digest()
  take = iter(int.from_bytes(draws[i : i + 2]) for i in range(0, 32, 2))
  numbers = [1 + next(take) % MAX_NUMBER for _ in range(3 + next(take) % 2)]
  pool = [(number, str(number)) for number in numbers]
  while len(pool) > 1:
    left, left_text = pool.pop(next(take) % len(pool))
    right, right_text = pool.pop(next(take) % len(pool))
    sign = '+-*/'[next(take) % 4]
    if sign == '/' and (right == 0 or left % right):
      return None  # only what divides evenly, as people play it
    value = {
      '+': left + right,
      '-': left - right,
      '*': left * right,
      '/': left // right if right else 0,
    }[sign]
    pool.append((value, f'({left_text} {sign} {right_text})'))
  target, text = pool[0]
  if not LEAST_TARGET <= target <= MOST_TARGET:
    return None
  return numbers, target, expressions.read(text).text
