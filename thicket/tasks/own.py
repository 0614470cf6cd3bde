# SPDX-License-Identifier: Apache-2.0
"""Your own questions and answers, from one file, with a reward of your choice.

Rows hold `question` and `answer`; other fields are kept. By `reward`:

- exact: the last line is the answer, up to case, spacing and the punctuation
  around it. It votes.
- numeric: the last line holds one number, and that is the answer, however
  either is written. It votes.
- contains: the answer stands somewhere in the response, as whole words. The
  last line votes: not the answer if it is found, for a vote that knows the
  gold answer is better than any that a user of the ensemble can hold.
- MODULE:FUNCTION: what `function(response, row)` returns, from 0 to 1, where 1
  is right. The last line votes, or what `answer(response)` of the same module
  returns, if it has one; None abstains and is worth nothing.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
import importlib
import math
import pathlib
import re
import types
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from thicket.tasks import base, numbers

RULES = ('exact', 'numeric', 'contains')
ANSWER = 'answer'  # of a row, and of a module with a reward

_BEFORE = ' *_`"\'\u2018\u2019\u201c\u201d'
_BEHIND = _BEFORE + '.,;:!'  # a point in front may belong to a number
_CLAIM = re.compile(r'\banswer(?: is\b|:|\s=) ?')


@dataclasses.dataclass(frozen=True)
class Own(base.Task):
  """Questions of a user's file, judged by one of the rules above.

  The lenient rule of exact also takes what follows 'answer is' or 'answer:'
  in the last line, that of numeric the last number of the response. The other
  rules have no lenient form.

  Attributes:
    rule: 'exact', 'numeric', 'contains' or 'MODULE:FUNCTION'.
    stop: a response ends before the first of these.
    code: SHA-256 of the module's file, so that a changed reward is another
      recipe; empty for a rule without one. What the module imports is not
      followed.

  Raises:
    TaskError: no such rule; or the module cannot be imported, has no such
      function or no file.
  """

  prompt_templates: ClassVar[tuple[str, ...]] = (
    '{question}\n\nReply with the answer only.',
    'Question: {question}\nAnswer:',
  )

  prompt_template: str = prompt_templates[0]
  max_new_tokens: int = 256
  rule: str = 'exact'
  stop: tuple[str, ...] = ()
  code: str = dataclasses.field(init=False, default='')

  name: ClassVar[str] = 'jsonl'
  stand_ins: ClassVar[Mapping[str, Any]] = {ANSWER: '0'}

  def __post_init__(self):
    base.check_settings(self)
    if isinstance(self.stop, str) or not all(
      isinstance(text, str) and text for text in self.stop
    ):
      raise base.TaskError(
        f"jsonl: stop={self.stop!r} must be texts, such as ('\\n',)"
      )
    if ':' in self.rule:
      module, _ = _user_code(self.rule)
      data = pathlib.Path(module.__file__).read_bytes()
      object.__setattr__(self, 'code', hashlib.sha256(data).hexdigest())
    elif self.rule not in RULES:
      raise base.TaskError(
        f'jsonl: reward={self.rule!r} must be one of {", ".join(RULES)}, or '
        'MODULE:FUNCTION'
      )

  @property
  def stop_strings(self) -> tuple[str, ...]:
    """As set by the user; by default a response ends by itself."""
    return self.stop

  def parse(self, row: Mapping[str, Any], row_id: int) -> base.Example:
    """Reads `question` and `answer`, text or a number, of one row.

    A rule of the user's own is given the whole row, and may do without an
    answer or have one of any type.

    Raises:
      TaskError: naming the field at fault.
    """
    (question,) = base.texts(row, ('question',))
    given = row.get(ANSWER)
    is_plain = isinstance(given, str | int | float)
    # Parquet has all columns in each row, JSONL leaves out what is not there.
    meta = {
      key: value
      for key, value in row.items()
      if key != 'question' and value is not None
    }
    if ':' in self.rule:
      gold = str(given) if is_plain else ''
      return base.Example(row_id, question, gold, meta)
    meta.pop(ANSWER, None)
    if not is_plain or isinstance(given, bool):
      raise base.TaskError(
        f"field 'answer' is {given!r}, neither text nor a number; "
        f'the row has {sorted(map(str, row))}'
      )
    if self.rule == 'numeric':
      gold = numbers.normalise_number(str(given))
      if gold is None:
        raise base.TaskError(f"field 'answer' is {given!r}, not one number")
    else:
      gold = _normalised(str(given))
      if not gold:
        raise base.TaskError("field 'answer' is empty")
    return base.Example(row_id, question, gold, meta)

  def extract(self, response: str) -> str | None:
    """The answer by the strict rule; None abstains.

    Of contains and of a rule of the user's own, that is the whole response.
    """
    if not response.strip():
      return None
    if self.rule == 'exact':
      return _normalised(_last_line(response)) or None
    if self.rule == 'numeric':
      return numbers.only_number(_last_line(response))
    if self.rule == 'contains':
      return response.strip()
    return response if self._voted(response) is not None else None

  def extract_lenient(self, response: str) -> str | None:
    """The answer by the lenient rule; None abstains."""
    strict = self.extract(response)
    if self.rule == 'exact' and strict is not None:
      *_, claimed = _CLAIM.split(strict)
      return _bare(claimed) or strict
    if self.rule == 'numeric' and strict is None:
      return numbers.last_number(response)
    return strict

  def reward(self, answer: str | None, example: base.Example) -> float:
    """From 0 to 1; TaskError where the user's function fails or is outside."""
    if answer is None:
      return 0.0
    if self.rule == 'contains':
      return float(_holds(_normalised(answer), example.gold))
    if ':' not in self.rule:
      return float(answer == example.gold)
    return _score(self.rule, answer, example)

  def is_correct(self, answer: str | None, example: base.Example) -> bool:
    """Whether the reward is 1."""
    return self.reward(answer, example) == 1.0

  def group(self, answers: Sequence[str], example: base.Example) -> list[int]:
    """Equal answers vote together; of whole responses, see the module."""
    if self.rule in ('exact', 'numeric'):
      return super().group(answers, example)
    return super().group([str(self._voted(x)) for x in answers], example)

  def _voted(self, response: str) -> str | None:
    if self.rule != 'contains':
      module, _ = _user_code(self.rule)
      if answer := getattr(module, ANSWER, None):
        found = _call(answer, response)
        if not (found is None or isinstance(found, str)):
          raise base.TaskError(
            f'{module.__name__}:{ANSWER} returned {found!r}; it is text, or '
            'None to abstain'
          )
        return found
    return _normalised(_last_line(response))


def own(
  *,
  reward: str = 'exact',
  stop: Sequence[str] = (),
  prompt_template: str = Own.prompt_template,
  max_new_tokens: int = Own.max_new_tokens,
) -> Own:
  """The task with the settings by which users know them, see `Own`."""
  stop = stop if isinstance(stop, str) else tuple(stop)
  return Own(prompt_template, max_new_tokens, reward, stop)


@functools.cache
def _user_code(rule: str) -> tuple[types.ModuleType, Callable[..., Any]]:
  """The module and the function of 'MODULE:FUNCTION'."""
  name, _, function = rule.partition(':')
  try:
    module = importlib.import_module(name)
  except Exception as error:  # whatever a user's code raises
    raise base.TaskError(
      f'jsonl: reward={rule!r}: module {name!r} cannot be imported: '
      f'{type(error).__name__}: {error}; it is looked for in the folder where '
      'the command runs'
    ) from error
  found = getattr(module, function, None)
  if not callable(found):
    raise base.TaskError(
      f'jsonl: reward={rule!r}: module {name!r} has no function {function!r}'
    )
  if not getattr(module, '__file__', None):
    raise base.TaskError(
      f'jsonl: reward={rule!r}: module {name!r} has no file of its own'
    )
  return module, found


# Judging asks for reward and for correctness, by both rules.
@functools.lru_cache(maxsize=64)
def _score(rule: str, answer: str, example: base.Example) -> float:
  _, function = _user_code(rule)
  row = {'question': example.question, **copy.deepcopy(dict(example.meta))}
  found = _call(function, answer, row)
  try:
    value = math.nan if isinstance(found, str) else float(found)
  except (TypeError, ValueError):
    value = math.nan
  if not 0.0 <= value <= 1.0:
    raise base.TaskError(
      f'{rule}, row {example.row_id}: returned {found!r}; a reward is a number '
      'from 0 to 1'
    )
  return value


def _call(function: Callable[..., Any], *given: Any) -> Any:
  try:
    return function(*given)
  except Exception as error:  # whatever a user's code raises
    raise base.TaskError(
      f'{function.__module__}:{function.__name__} failed on '
      f'{given[0][:60]!r}: {type(error).__name__}: {error}'
    ) from error


def _last_line(response: str) -> str:
  lines = response.strip().splitlines()
  return lines[-1] if lines else ''


def _normalised(text: str) -> str:
  """Text without case, spacing and punctuation around it."""
  text = unicodedata.normalize('NFKC', text).casefold()
  return _bare(' '.join(text.split()))


def _bare(text: str) -> str:
  return text.lstrip(_BEFORE).rstrip(_BEHIND) or text.strip()


def _holds(text: str, part: str) -> bool:
  """Whether `part` stands in `text` as whole words."""
  start = text.find(part)
  while start >= 0:
    end = start + len(part)
    is_cut = _joins(text[start - 1 : start], part[0]) or _joins(
      part[-1], text[end : end + 1]
    )
    if not is_cut:
      return True
    start = text.find(part, start + 1)
  return False


def _joins(left: str, right: str) -> bool:
  """Whether two characters belong to one word."""
  return left.isalnum() and right.isalnum()
