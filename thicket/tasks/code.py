# SPDX-License-Identifier: Apache-2.0
"""What tasks share whose answers are programs.

An answer is the text of a program. It is right if all tests of its row pass,
and it votes by what it does: programs that answer alike to the calls of the
tests are one class, right or wrong, as no assertion is looked at. Equal values
are those that `==` calls equal, and floats alike in ten digits. A program that
answers to no call (it does not compile, raises, is too slow each time)
abstains. All of them run in `thicket.sandbox` and nowhere else.
"""

from __future__ import annotations

import abc
import re
from collections.abc import Iterator, Sequence

from thicket import sandbox
from thicket.tasks import base, tags

_PYTHON = ('python', 'python3', 'py')
_FENCE = re.compile(r'( *)(`{3,}|~{3,})[ \t]*([^\s`]*)[^`]*')
_STARTS = re.compile(r'(?:async def|def|class|import|from)\s|@\w')


class Coded(base.Task):
  """A task whose answers are programs; a subclass says how they are tested."""

  def __post_init__(self):
    base.check_settings(self)

  @abc.abstractmethod
  def job(self, answer: str, example: base.Example) -> sandbox.Job:
    """The program that an answer makes, with the tests of its row."""

  def extract(self, response: str) -> str | None:
    """The program in the last '<answer>', else in the last Python block.

    A block is fenced and closed, and says 'python'. Inside of the tags a block
    of any language counts, and without one all of the text. None abstains.
    """
    _, is_open, rest = response.rpartition(tags.OPEN)
    inner, is_closed, _ = rest.partition(tags.CLOSE)
    if is_open and is_closed:
      blocks = [code for _, code, done in _blocks(inner) if done]
      return tidy(blocks[-1] if blocks else inner)
    blocks = [
      code for kind, code, done in _blocks(response) if done and kind in _PYTHON
    ]
    return tidy(blocks[-1]) if blocks else None

  def extract_lenient(self, response: str) -> str | None:
    """The strict answer, or else a block, or else what looks like code.

    The last block of any language, closed or not; without one the text from
    the first line that starts a definition or an import.
    """
    strict = self.extract(response)
    if strict is not None:
      return strict
    blocks = [code for _, code, _ in _blocks(response)]
    if blocks:
      return tidy(blocks[-1])
    lines = _lines(response)
    for i, line in enumerate(lines):
      if _STARTS.match(line):
        return tidy('\n'.join(lines[i:]))
    return None

  def is_correct(self, answer: str | None, example: base.Example) -> bool:
    """Whether every test passes.

    Raises:
      TaskError: programs cannot be confined on this machine.
    """
    return answer is not None and self._outcome(answer, example).passed

  def group(self, answers: Sequence[str], example: base.Example) -> list[int]:
    """Class ids by behaviour, from 0 in order of appearance; -1 abstains.

    Without the calls of a row's tests there is no behaviour, and programs are
    compared as texts.

    Raises:
      TaskError: programs cannot be confined on this machine.
    """
    if not example.meta:
      return super().group(answers, example)
    ids: dict[str, int] = {}
    found = []
    for answer in answers:
      behaviour = self._outcome(answer, example).behaviour
      found.append(ids.setdefault(behaviour, len(ids)) if behaviour else -1)
    return found

  def _outcome(self, answer: str, example: base.Example) -> sandbox.Outcome:
    try:
      return sandbox.run(self.job(answer, example))
    except sandbox.SandboxError as error:
      raise base.TaskError(
        f'{self.name}, row {example.row_id}: {error}'
      ) from error


def _lines(text: str) -> list[str]:
  # Not splitlines: strings of a program may hold its other separators.
  return text.replace('\r\n', '\n').split('\n')


def _blocks(text: str) -> Iterator[tuple[str, str, bool]]:
  """Fenced blocks: language in lower case, code, and whether it is closed."""
  fence, kind, indent, held = '', '', 0, []
  for line in _lines(text):
    if not fence:
      if opening := _FENCE.fullmatch(line):
        indent, fence, kind = len(opening[1]), opening[2], opening[3].lower()
        held = []
    elif _closes(line.strip(), fence):
      yield kind, '\n'.join(held), True
      fence = ''
    else:
      # A block inside of a list is indented as a whole.
      held.append(line[min(indent, len(line) - len(line.lstrip(' '))) :])
  if fence:
    yield kind, '\n'.join(held), False


def _closes(line: str, fence: str) -> bool:
  return len(line) >= len(fence) and line == fence[0] * len(line)


def tidy(code: str) -> str | None:
  """Without empty lines around it; None if nothing is left."""
  lines = [line.rstrip() if line.isspace() else line for line in _lines(code)]
  code = '\n'.join(lines).strip('\n').rstrip()
  return code or None
