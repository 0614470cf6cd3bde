# SPDX-License-Identifier: Apache-2.0
r"""Answers new prompts with the ensemble that a run has stored.

python -m thicket.predict --workdir=runs/... --input=rows.jsonl \
    --output=answers.jsonl

A line of input is {"prompt": ...}, which the model is given in its chat
template and otherwise as it stands, or a row of the run's task, of which the
answer need not be known. A line of output has the vote, its share of the
members and the answer of each. The members, the model, the task and how
answers are decoded are those of the run; nothing is written into its folder.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from thicket import fit, ranking
from thicket.answer_file import AnswerFileError, Answers, Line, read, shown
from thicket.ledger import LedgerError
from thicket.models.files import ModelFileError
from thicket.models.hub import HubError
from thicket.models.tokenizer_parts import TokenizerError
from thicket.plan import ConfigError
from thicket.population import OutOfMemory, PopulationError
from thicket.recipe import recipe_hash
from thicket.storage import as_path, os_errors
from thicket.stored import NotStored, Stored
from thicket.tasks.base import TaskError
from thicket.voters import Asked, Prediction, Row, Voters

# Of one row. What is nested too deep cannot even be shown.
_ROW_ERRORS = (TaskError, TokenizerError, UnicodeError, RecursionError)

EXIT_FAILED_LINES, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 1, 2, 130

# Batches answered together: what writing members' weights takes is shared by
# their rows, and they are sorted by length. More would be answered later.
_BATCHES = 4


class Predictor:
  """The ensemble of a run, asked for new rows.

  predictor = Predictor('runs/...')
  for prediction in predictor(['What is 2 + 2?', {'question': '3 + 4'}]):
    print(prediction.answer, prediction.votes)

  Attributes:
    members: ids of those that vote, best first.
    ensemble: names them and all that their answers depend on, in hex.
    chunk_rows: rows that are answered together.
  """

  def __init__(
    self,
    workdir: str | os.PathLike[str],
    *,
    top: int | None = None,
    members_per_step: int | str | None = None,
  ):
    """Reads what the run found; its model is loaded when it is first needed.

    Args:
      workdir: of a finished run, a folder or a URL.
      top: how many members vote, the best; by default as many as were selected.
      members_per_step: members on a device at a time, 'auto' for as many as
        memory holds; by default as in the run.

    Raises:
      NotStored: the search has not been finished.
      LedgerError: there is no run, or it cannot be read.
      ConfigError: `top` or `members_per_step` is out of range.
    """
    self._stored = stored = Stored(workdir)
    plan = stored.plan
    if isinstance(members_per_step, str) and members_per_step != 'auto':
      is_number = members_per_step.isdecimal()
      members_per_step = int(members_per_step) if is_number else 0
    if isinstance(members_per_step, int) and members_per_step < 1:
      raise ConfigError('members_per_step: auto, or a number of at least 1')
    self._per_step = members_per_step
    try:
      found = ranking.rank(stored, plan, plan.greedy, plan.population.size)
    except NotStored as error:
      raise NotStored(
        f'{workdir}: its search is not finished: {error}{_how(stored)}'
      ) from error
    if top is not None and not 1 <= top <= len(found.ranked):
      raise ConfigError(
        f'top = {top}: the run selected {len(found.ranked)} members; ask for '
        f'1..{len(found.ranked)}, or run again with larger ensemble.sizes'
      )
    self.members = found.ranked[:top]
    self.ensemble = recipe_hash(
      {'recipe': stored.recipe, 'members': self.members}
    )
    self.chunk_rows = _BATCHES * stored.config.decode.rows

  def __call__(self, rows: Iterable[Row]) -> Iterator[Prediction]:
    """The votes on rows, in their order, chunk by chunk.

    Args:
      rows: texts, each a prompt; or mappings as lines of input are. No more
        than `chunk_rows` of them are read ahead.

    Raises:
      Any of `USER_ERRORS` where nothing can be answered; what is wrong with a
      row alone is said in its prediction.
    """
    for chunk in _chunks(rows, self.chunk_rows):
      failed: dict[int, str] = {}
      asked: list[Asked] = []
      for i, row in enumerate(chunk):
        try:
          asked.append(self._voters.ask(row, len(asked)))
        except _ROW_ERRORS as error:
          failed[i] = shown(error)
      found = iter(self._voters.vote(asked) if asked else ())
      for i in range(len(chunk)):
        yield Prediction.failed(failed[i]) if i in failed else next(found)

  @functools.cached_property
  def _voters(self) -> Voters:
    return Voters(self._stored, self.members, self._per_step)


def _how(stored: Stored) -> str:
  """The command that finishes a run, where it is known."""
  command = stored.command
  return '' if command is None else f'\n  {command}'


def _chunks(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
  rest = iter(items)
  while chunk := list(itertools.islice(rest, size)):
    yield chunk


# The command line.


def _lines(name: str) -> Iterator[Line]:
  """The lines of a file, or of stdin, that is called '-'."""
  if name == '-':
    yield from read(sys.stdin.buffer)
    return
  path = as_path(name)
  try:
    with os_errors(path), path.open('rb') as stream:
      yield from read(stream)
  except OSError as error:
    raise AnswerFileError(
      f'--input={name}: cannot be read: {error.strerror}'
    ) from error


def _answer(
  predictor: Predictor, lines: Iterable[Line], answers: Answers, responses: bool
) -> None:
  """Answers all lines that have no answer yet.

  Chunks begin where they would without those that have, and all of a chunk is
  answered again, so that batches, and with them roundings, are the same.
  """
  for chunk in _chunks(lines, predictor.chunk_rows):
    held = 0
    for line in chunk:
      if not answers.holds(line):
        break
      held += 1
    if held == len(chunk):
      continue
    found = predictor(line.row for line in chunk if line.row is not None)
    for i, line in enumerate(chunk):
      one = Prediction.failed(line.error) if line.error else next(found)
      if i >= held:
        answers.add(line, one.to_json(responses=responses))
  answers.finish()


USER_ERRORS = (
  AnswerFileError,
  ConfigError,
  HubError,
  LedgerError,
  ModelFileError,
  NotStored,
  OutOfMemory,
  PopulationError,
  TokenizerError,
  fit.FitError,
  TaskError,
)


def main(argv: list[str]) -> int:
  """Answers a file; returns the exit code, 1 where a line was not answered."""
  parser = argparse.ArgumentParser(
    prog='python -m thicket.predict',
    description=__doc__.partition('\n')[0],
    allow_abbrev=False,
  )
  add = parser.add_argument
  add('--workdir', required=True, help='what a run printed')
  add('--input', required=True, help='a JSONL file, - for stdin')
  add('--output', help='a file that is made or gone on with; default stdout')
  add('--top', type=int, help='how many vote; default all that were selected')
  add('--responses', action='store_true', help='add what each member wrote')
  add('--members_per_step', help='on a device at a time: a number, or auto')
  asked = parser.parse_args(argv)
  try:
    predictor = Predictor(
      asked.workdir, top=asked.top, members_per_step=asked.members_per_step
    )
    with Answers(
      asked.output, predictor.ensemble, responses=asked.responses
    ) as answers:
      _answer(predictor, _lines(asked.input), answers, asked.responses)
  except USER_ERRORS as error:
    print(f'thicket: {error}', file=sys.stderr)
    return EXIT_BAD_INPUT
  except KeyboardInterrupt:
    print('thicket: stopped; what is written is kept', file=sys.stderr)
    return EXIT_INTERRUPTED
  except BrokenPipeError:  # whoever reads stdout has seen enough
    # Python would complain when it flushes what is left.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return EXIT_INTERRUPTED
  by = f'by {len(predictor.members)} members'
  print(f'thicket: {answers.answered} lines answered {by}', file=sys.stderr)
  if answers.failed:
    print(f'thicket: {answers.failed} lines failed', file=sys.stderr)
  return EXIT_FAILED_LINES if answers.failed else 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
