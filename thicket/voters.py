# SPDX-License-Identifier: Apache-2.0
"""An ensemble at work: rows in, votes out.

The members and the model of a run, set up as the run had them, answer rows of
which nobody knows the answer. Nothing is judged, and nothing is stored.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from thicket import (
  batching,
  decode,
  engine,
  evaluation,
  fit,
  machine,
  panel,
  reading,
  sharding,
)
from thicket.data import SPLITS
from thicket.ledger import Ledger, RecipeMismatch
from thicket.plan import make_recipe
from thicket.recipe import brief, differences
from thicket.stored import Stored
from thicket.tasks import base as tasks

Row = str | Mapping[str, Any]

# Of a recipe, what may differ where answers differ by roundings at most.
_ROUNDING = ('thicket:', 'noise.arithmetic:', 'decoding.batching:')

_SHOWN_CHARS = 150  # of what is wrong with a row


@dataclasses.dataclass(frozen=True)
class Said:
  """What one member said.

  Attributes:
    member: its id.
    answer: as the task reads it; None abstains.
    response: the text; of a task that scores labels, the label.
  """

  member: int
  answer: str | None
  response: str


@dataclasses.dataclass(frozen=True)
class Prediction:
  """The vote on one row.

  Attributes:
    answer: what won; None where all abstained, or there is an error.
    votes: the share of the members that gave it, in [0, 1].
    abstained: how many members gave no answer.
    members: what each said, best first; empty where there is an error.
    error: why the row was not answered, or None.
  """

  answer: str | None
  votes: float
  abstained: int
  members: tuple[Said, ...]
  error: str | None = None

  @classmethod
  def failed(cls, error: str) -> Prediction:
    """Of a row that cannot be answered."""
    return cls(None, 0.0, 0, (), error)

  def to_json(self, *, responses: bool) -> dict[str, Any]:
    """As a line of output has it, with or without what members wrote."""
    if self.error is not None:
      return {'error': self.error}
    found = dataclasses.asdict(self)
    del found['error']
    if not responses:
      for said in found['members']:
        del said['response']
    return found


class Asked(NamedTuple):
  """A row to be answered."""

  example: tasks.Example
  shared: int  # tokens of the run's prefix that it starts with: all or none
  suffix: tuple[int, ...]
  rows: int  # of a batch in which it may be
  size: int  # of such a batch, at least


class _Reads(tasks.Task):
  """A task's rules of reading. What is right nobody knows."""

  def __init__(self, task: tasks.Task):
    self._task = task
    self.name, self.stop_strings = task.name, task.stop_strings

  def extract(self, response: str) -> str | None:
    return self._task.extract(response)

  def extract_lenient(self, response: str) -> str | None:
    return self._task.extract_lenient(response)

  def is_correct(self, answer: str | None, example: tasks.Example) -> bool:
    return False

  def group(self, answers: Sequence[str], example: tasks.Example) -> list[int]:
    return self._task.group(answers, example)


class Voters:
  """Members with their model: rows in, votes out."""

  def __init__(
    self, stored: Stored, members: Sequence[int], per_step: int | str | None
  ):
    """Loads the model; raises RecipeMismatch if it is not that of the run."""
    config, plan = stored.pinned, stored.plan
    base = machine.load_base(config)
    now = make_recipe(config, plan, base.model, plan.greedy)
    found = differences(stored.recipe, now)
    grave = [line for line in found if not line.startswith(_ROUNDING)]
    if grave:
      raise RecipeMismatch(
        f'{stored.workdir}: answers of another recipe: {brief(grave)}; its '
        'members are those of its own model and settings'
      )
    if found:
      logging.warning(
        '%s: where two tokens are within a rounding, members may answer '
        'otherwise than in the run: %s', stored.workdir, brief(found),
      )  # fmt: skip
    self._task, self._members = plan.task, members
    self._tokenizer = base.model.tokenizer
    decoder = base.model.decoder.config
    self._limits = {
      'max_new_tokens': plan.max_new_tokens,
      'context_length': decoder.context_length,
    }
    self._prefix, splits = evaluation.prepare(
      plan.task,
      self._tokenizer,
      {split: getattr(plan.splits, split) for split in SPLITS},
      rows=config.decode.rows,
      **self._limits,
    )
    # The largest batches of the run, by how much of the prefix is shared.
    longest = max(len(x) for some in splits.values() for x in some.suffixes)
    self._rows = config.decode.rows
    self._sizes = {
      shared: decode.bucket(len(self._prefix) - shared + longest)
      for shared in (0, len(self._prefix))
    }
    self._decoding = reading.decoding(
      plan.task,
      self._tokenizer,
      vocab_size=decoder.vocab_size,
      max_new_tokens=plan.max_new_tokens,
    )
    is_label = plan.task.output_kind == 'label'
    self._reads = plan.task if is_label else _Reads(plan.task)
    self._judge = reading.judge(self._reads, self._tokenizer)
    # Of a prompt of one's own. Some label is to be named, and none counts.
    self._no_gold = plan.task.labels[0] if is_label else ''
    self._machine = machine.Machine(
      base, config.population, seed=plan.population.seed
    )
    self._free = fit.free_bytes(base.mesh.local_devices)
    devices = sharding.num_devices(base.mesh)
    useful = -(-len(members) // devices)
    if per_step is None:
      per_step = min(config.run.members_per_device, useful)
    self._per_device = fit.choose(
      self._needs(self._rows, [*self._sizes.values()]),
      self._free,
      asked=None if per_step == 'auto' else per_step,
      units=len(members),
      devices=devices,
      platform=base.mesh.devices.flat[0].platform,
    )
    self._fitting: dict[int, int] = {}  # rows of a batch by its prompts' size
    self._loop = self._machine.members(plan.population, self._per_device)

  def ask(self, row: Row, number: int) -> Asked:
    """Reads a row, the `number`th of a chunk.

    Raises:
      TaskError, TokenizerError, UnicodeError: it cannot be answered.
    """
    example, text = self._read(row)
    if '\0' in text:
      raise tasks.TaskError('the prompt holds a NUL character')
    text.encode()  # half of a surrogate pair has no bytes
    tokens = evaluation.encode(
      text, self._tokenizer, remedy='shorten the prompt', **self._limits
    )
    shared = len(self._prefix)
    if tokens[:shared] != self._prefix or len(tokens) == shared:
      shared = 0
    suffix = tuple(tokens[shared:])
    size = max(decode.bucket(len(suffix)), self._sizes[shared])
    return Asked(
      dataclasses.replace(example, row_id=number),
      shared,
      suffix,
      self._fitting_rows(shared, size),
      size,
    )

  def _read(self, row: Row) -> tuple[tasks.Example, str]:
    """The row as an example without an answer, and its prompt."""
    if isinstance(row, str):
      row = {'prompt': row}
    if not isinstance(row, Mapping):
      raise tasks.TaskError(f'a {type(row).__name__}, not an object')
    if row.keys() - {'id'} == {'prompt'}:
      (text,) = tasks.texts(row, ('prompt',))
      if not text.strip():
        raise tasks.TaskError('the prompt is empty')
      return tasks.Example(0, text, self._no_gold), text
    try:
      example = self._task.ask(row, 0)
    except tasks.TaskError as error:
      said = str(error).removeprefix('row 0: ')[:_SHOWN_CHARS]
      raise tasks.TaskError(
        f'no row of {self._task.name}: {said}; a prompt of your own is '
        '{"prompt": ...} without other fields but id'
      ) from error
    return example, self._task.prompt(example)

  def _fitting_rows(self, shared: int, size: int) -> int:
    """Rows of a batch of such prompts: as in the run, or as memory holds."""
    if size == self._sizes[shared] or self._free is None:
      return self._rows
    if size not in self._fitting:
      room = math.floor(self._free * (1 - fit.MARGIN))
      rows = self._rows
      while rows and self._needs(rows, [size]).total(self._per_device) > room:
        rows //= 2
      self._fitting[size] = rows
    if not self._fitting[size]:
      raise tasks.TaskError(
        f'memory does not hold a prompt of {size} tokens; shorten it'
      )
    return self._fitting[size]

  def _needs(self, rows: int, buckets: Sequence[int]) -> fit.Needs:
    return self._machine.needs(
      rows=rows,
      buckets=buckets,
      prefix=len(self._prefix),
      max_new_tokens=self._limits['max_new_tokens'],
    )

  def vote(self, asked: Sequence[Asked]) -> list[Prediction]:
    """What the members elect, row by row."""
    every = np.arange(len(asked))
    examples = tuple(one.example for one in asked)
    questions = evaluation.Questions(
      'prompts',
      examples,
      tuple(one.suffix for one in asked),
      self._rows,
      self._tokenizer.pad_id,
    )
    # Prompts longer than the run's are in batches of their own.
    alike: dict[tuple[int, int, int], list[int]] = {}
    for i, one in enumerate(asked):
      alike.setdefault((one.shared, one.size, one.rows), []).append(i)
    batches: list[decode.Prompts] = []
    steps = []
    for (shared, _, rows), which in sorted(alike.items()):
      some = batching.batches(
        questions.suffixes,
        questions.row_ids,
        rows,
        questions.pad_id,
        which,
      )
      steps.append(
        engine.answer_all(
          self._machine.engine, self._decoding, self._prefix[:shared], some
        )
      )
      batches += some

    def step(*of_members: Any) -> tuple:
      return tuple(itertools.chain(*(one(*of_members) for one in steps)))

    held = Ledger.in_memory({})
    for ids, draws, results in self._loop.run(self._members, step):
      for block in self._judge(
        questions, every, batches, results, ids, draws, keep_texts=True
      ):
        held.append('prompts', block)
    block = held.view('prompts', self._members, every, (0,))
    said = panel.of_members(self._reads, examples, block, self._members)
    (vote,) = said.votes([len(self._members)])
    return [
      _prediction(self._members, said, vote, row) for row in every.tolist()
    ]


def _prediction(
  members: Sequence[int], said: panel.Panel, vote: panel.Outcome, row: int
) -> Prediction:
  """One row of what members said, and of what they elected."""
  each = tuple(
    Said(
      member,
      # What its question shows to be no answer is none.
      said.answers[i][row] if said.classes[i, row] >= 0 else None,
      said.texts[i][row],
    )
    for i, member in enumerate(members)
  )
  speaker = int(vote.speaker[row])
  return Prediction(
    answer=each[speaker].answer if speaker >= 0 else None,
    votes=int(vote.count[row]) / vote.k,
    abstained=sum(one.answer is None for one in each),
    members=each,
  )
