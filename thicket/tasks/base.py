# SPDX-License-Identifier: Apache-2.0
"""What a task is: prompts, answers and rewards, as functions of strings.

Base, members and votes are judged by the same two functions here, so that
their numbers can be compared. Strict and lenient rewards are kept apart: on
GSM8K one base model scores 60 under the lenient rule and 8 under the strict
one. Source of the setting: Neural Thickets, arXiv 2603.12228.
"""

from __future__ import annotations

import dataclasses
import math
import types
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

PLACEHOLDER = '{question}'
MAX_ROW_ID = 2**63  # the ledger stores row ids as int64


class TaskError(ValueError):
  """A task, a row or a setting that cannot be used; the message says why."""


@dataclasses.dataclass(frozen=True)
class Example:
  """One question with its gold answer.

  Fields:
    row_id: unique in a dataset, the same in every run, 0 <= row_id < 2**63.
    question: the text that replaces `{question}` in the task's template.
    gold: the answer, normalised as the task's `extract` does.
    meta: whatever else a task needs in order to judge.

  Raises:
    TaskError: row_id is out of range, or the question is empty.
  """

  row_id: int
  question: str
  gold: str
  meta: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)

  def __post_init__(self):
    if not 0 <= self.row_id < MAX_ROW_ID:
      raise TaskError(f'row_id={self.row_id}: must lie in [0, 2**63)')
    if not self.question.strip():
      raise TaskError(f'row {self.row_id}: the question is empty')


@dataclasses.dataclass(frozen=True)
class Splits:
  """Three disjoint lists of rows: to select, to validate and to test on.

  Fields:
    source: SHA-256 in hex over all rows that these were taken from.
  """

  selection: tuple[Example, ...]
  validation: tuple[Example, ...]
  test: tuple[Example, ...]
  source: str = ''


class Task(Protocol):
  """Turns examples into prompts, and responses into answers and rewards.

  Attributes:
    name: the key of the table in `thicket.tasks`.
    output_kind: 'text', the default, 'label' or 'value'.
    reward_range: least and greatest reward, by default 0 and 1.
    max_new_tokens: tokens after which a response is cut.
    stop_strings: a response ends before the first of these; by default none.
    is_classification: gold answers are classes that many rows share, so that
      accuracy is also reported as the mean over classes.
    prompt_template: holds `{question}`; its hash is part of the recipe.
    prompt_templates: templates to choose from; the first is the default of
      prompt_template, and none means that there is only prompt_template.
    stand_ins: of a row that nobody knows the answer to, the fields that would
      hold it, and what `parse` reads there instead; see `ask`.
  """

  name: str
  output_kind: str = 'text'
  reward_range: tuple[float, float] = (0.0, 1.0)
  max_new_tokens: int
  stop_strings: tuple[str, ...] = ()
  is_classification: bool = False
  prompt_template: str
  prompt_templates: tuple[str, ...] = ()
  stand_ins: Mapping[str, Any] = types.MappingProxyType({})

  def prompt(self, example: Example) -> str:
    """The user's text; a chat template is put around it elsewhere."""
    # Not str.format: questions and templates may hold braces of their own.
    return self.prompt_template.replace(PLACEHOLDER, example.question)

  def identity(self, example: Example) -> str:
    """What names the row: rows of equal identity are one row.

    By default the question, without what a reader would not notice.
    """
    return canonical(example.question)

  def ask(self, row: Mapping[str, Any], row_id: int) -> Example:
    """Reads a row that is only to be answered: its gold means nothing.

    By default what `parse` needs but for the answer, or, of a task that makes
    its own rows, the field `question`.

    Raises:
      TaskError: naming the field at fault.
    """
    if isinstance(self, Parsed):
      return self.parse({**row, **self.stand_ins}, row_id)
    (question,) = texts(row, ('question',))
    return Example(row_id, question, '')

  def extract(self, response: str) -> str | None:
    """The normalised answer by the strict rule; None abstains."""
    ...

  def extract_lenient(self, response: str) -> str | None:
    """The strict answer, or else a guess at what was meant; None abstains."""
    ...

  def reward(self, answer: str | None, example: Example) -> float:
    """What selection maximises, in `reward_range`; default 1 if correct."""
    return float(self.is_correct(answer, example))

  def is_correct(self, answer: str | None, example: Example) -> bool:
    """What accuracy counts; default equality with the gold answer."""
    return answer is not None and answer == example.gold

  def released(self, response: str, example: Example) -> float | None:
    """Accuracy in [0, 1] by the rule of the code released with the paper.

    For comparison with published numbers, so with its defects. None, the
    default: there is no such rule, or it is the strict one.
    """
    return None

  def group(self, answers: Sequence[str], example: Example) -> list[int]:
    """A class id for each answer to a question, from 0 in order of appearance.

    Answers of one class vote together; by default, equal strings. -1 is for
    an answer that the question shows to be none: it abstains. An example
    without the meta of the task's rows is a prompt of which nothing else is
    known.
    """
    ids: dict[str, int] = {}
    return [ids.setdefault(answer, len(ids)) for answer in answers]


@runtime_checkable
class Generated(Protocol):
  """A task that makes its own rows."""

  def examples(self) -> Iterator[Example]:
    """Every row there is, one by one, in a fixed order."""
    ...


@runtime_checkable
class Parsed(Protocol):
  """A task whose rows come from a file or a dataset."""

  def parse(self, row: Mapping[str, Any], row_id: int) -> Example:
    """Reads one row; raises TaskError naming the field at fault."""
    ...


@dataclasses.dataclass(frozen=True)
class Judgement:
  """What one response is worth; an answer of None abstains.

  Fields without `lenient` in their names follow the strict rule. `released`
  is the accuracy by `Task.released`, if the task has it.
  """

  reward: float
  lenient_reward: float
  is_correct: bool
  answer: str | None
  lenient_answer: str | None
  is_lenient_correct: bool
  released: float | None = None


def judge(task: Task, response: str, example: Example) -> Judgement:
  """Judges a response: of the base model, or of a member.

  Raises:
    TaskError: the task gave a reward outside its own range, or a released
      accuracy outside [0, 1].
  """
  released = task.released(response, example)
  if released is not None and not 0 <= released <= 1:  # refuses NaN, too
    raise TaskError(
      f'{task.name}, row {example.row_id}: released accuracy {released} is '
      'outside [0, 1]'
    )
  lenient = judge_answer(task, task.extract_lenient(response), example)
  strict = judge_answer(task, task.extract(response), example)
  return dataclasses.replace(
    strict,
    lenient_reward=lenient.reward,
    lenient_answer=lenient.answer,
    is_lenient_correct=lenient.is_correct,
    released=None if released is None else float(released),
  )


def judge_answer(task: Task, answer: str | None, example: Example) -> Judgement:
  """Judges an answer that is already normalised, such as a vote's.

  There is no response to be lenient about: what is strict and what is lenient
  are equal, and the released rule, which reads responses, says nothing.

  Raises:
    TaskError: the task gave a reward outside its own range.
  """
  reward = float(task.reward(answer, example))
  low, high = task.reward_range
  if not (math.isfinite(reward) and low <= reward <= high):
    raise TaskError(
      f'{task.name}, row {example.row_id}: reward {reward} for answer '
      f'{answer!r} is outside reward_range [{low}, {high}]'
    )
  is_correct = bool(task.is_correct(answer, example))
  return Judgement(
    reward=reward,
    lenient_reward=reward,
    is_correct=is_correct,
    answer=answer,
    lenient_answer=answer,
    is_lenient_correct=is_correct,
  )


def canonical(question: str) -> str:
  """The question without what a reader would not notice; it names a row."""
  text = unicodedata.normalize('NFKC', question).casefold()
  return ' '.join(text.split())


def texts(
  row: Mapping[str, Any], required: Sequence[str], optional: Sequence[str] = ()
) -> list[str]:
  """Fields of a row that hold text, in the order asked for.

  An optional one that is not there is empty.

  Raises:
    TaskError: naming a field that is missing or no text.
  """
  found = []
  for field in (*required, *optional):
    value = row.get(field, '' if field in optional else None)
    if not isinstance(value, str):
      raise TaskError(
        f'field {field!r} is {value!r}, not text; '
        f'the row has {sorted(map(str, row))}'
      )
    found.append(value)
  return found


def check_settings(task: Task, placeholder: str = PLACEHOLDER) -> None:
  """Raises TaskError where a setting that users may change makes no sense."""
  templates = {'prompt_template': task.prompt_template}
  for i, template in enumerate(task.prompt_templates):
    templates[f'prompt_templates[{i}]'] = template
  for name, template in templates.items():
    if template.count(placeholder) != 1:
      raise TaskError(
        f'{task.name}: {name}={template!r} must hold {placeholder} once'
      )
  if task.max_new_tokens < 1:
    raise TaskError(
      f'{task.name}: max_new_tokens={task.max_new_tokens} must be at least 1'
    )
