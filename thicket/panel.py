# SPDX-License-Identifier: Apache-2.0
"""Voters in rank order: members by their scores, or samples by their number.

An ensemble and self-consistency (Wang et al., arXiv 2203.11171) are the same
vote over different voters, so they are the same code here: nothing but who
answers tells them apart.

Axes: K voters, r questions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from thicket import voting
from thicket.blocks import Block
from thicket.tasks.base import Example, Task


@dataclasses.dataclass(frozen=True, eq=False)
class Outcome:
  """The vote of the first k voters of a panel.

  Attributes:
    k: how many voted.
    speaker: int [r], the first voter for the answer that won; -1 where all
      abstained.
    count: int [r], votes for it.
    correct: bool [r]; without an answer it is false.
    lenient_correct: bool [r], of the vote over lenient answers.
    abstention_rate: share of strict answers that could not be read.
  """

  k: int
  speaker: np.ndarray
  count: np.ndarray
  correct: np.ndarray
  lenient_correct: np.ndarray
  abstention_rate: float


@dataclasses.dataclass(frozen=True, eq=False)
class Panel:
  """What K voters, best first, answered to the same r questions.

  Attributes:
    classes, lenient_classes: int32 [K, r], answers to one question that are
      equal to the task have equal numbers; -1 abstains.
    correct, lenient_correct: bool [K, r].
    released: float32 [K, r], accuracy by the released rule; NaN without it.
    num_tokens: int32 [K, r].
    texts: [K][r], what was written; empty where it was not kept.
    answers: [K][r], strict answers; None abstains.
  """

  classes: np.ndarray
  lenient_classes: np.ndarray
  correct: np.ndarray
  lenient_correct: np.ndarray
  released: np.ndarray
  num_tokens: np.ndarray
  texts: list[list[str]]
  answers: list[list[str | None]]

  def votes(self, sizes: Sequence[int]) -> list[Outcome]:
    """The votes of the first k voters, for each k of `sizes`."""
    strict = speakers(self.classes, sizes)
    lenient = speakers(self.lenient_classes, sizes)
    column = np.arange(self.classes.shape[1])
    found = []
    for k, speaker, other in zip(sizes, strict, lenient, strict=True):
      won = self.classes[speaker, column]
      voted = self.classes[:k] == won
      found.append(
        Outcome(
          k=k,
          speaker=speaker,
          count=np.where(speaker >= 0, voted.sum(axis=0), 0),
          correct=self.correct[speaker, column] & (speaker >= 0),
          lenient_correct=self.lenient_correct[other, column] & (other >= 0),
          abstention_rate=float((self.classes[:k] < 0).mean()),
        )
      )
    return found


def speakers(classes: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
  """The first voter for what the first k voters elect, for several k.

  Args:
    classes: int32 [K, r]; negative classes abstain.
    sizes: k of each vote, each in 1..K.

  Returns:
    int [len(sizes), r], indices of voters; -1 where all k abstained.
  """
  winners = np.asarray(voting.vote_curve(np.asarray(classes), sizes))
  first = (classes[None] == winners[:, None]).argmax(axis=1)
  return np.where(winners < 0, -1, first)


def of_members(
  task: Task,
  examples: Sequence[Example],
  block: Block,
  ranked: Sequence[int],
) -> Panel:
  """The first draws of some members of a block, in the order given.

  `examples` hold the block's rows, and maybe others.
  """
  at = [int(np.flatnonzero(block.members == i)[0]) for i in ranked]
  return _panel(task, examples, block, [(i, 0) for i in at])


def of_draws(task: Task, examples: Sequence[Example], block: Block) -> Panel:
  """All draws of a block's only member, in their order."""
  at = [(0, j) for j in range(len(block.draws))]
  return _panel(task, examples, block, at)


def _classes(
  task: Task,
  examples: Sequence[Example],
  block: Block,
  columns: Sequence[np.ndarray],
) -> list[np.ndarray]:
  """Class ids in place of the answers of `columns`, each [voters, r]."""
  by_id = {example.row_id: example for example in examples}
  found = [np.empty(column.shape, np.int32) for column in columns]
  numbers = np.full(len(block.answers) + 1, -1, np.int32)  # -1 stays -1
  for row, row_id in enumerate(block.rows.tolist()):
    said = np.concatenate([column[:, row] for column in columns])
    given = [i for i in dict.fromkeys(said.tolist()) if i >= 0]
    words = [block.answers[i] for i in given]
    numbers[given] = task.group(words, by_id[row_id])
    for classes, column in zip(found, columns, strict=True):
      classes[:, row] = numbers[column[:, row]]
  return found


def _panel(
  task: Task,
  examples: Sequence[Example],
  block: Block,
  at: Sequence[tuple[int, int]],
) -> Panel:
  pick = lambda column: np.stack([column[i, :, j] for i, j in at])
  answer = pick(block.answer)
  classes, lenient_classes = _classes(
    task, examples, block, [answer, pick(block.lenient_answer)]
  )
  index = np.arange(block.seen.size).reshape(block.seen.shape)
  words = (*block.answers, None)
  texts = block.texts
  return Panel(
    classes=classes,
    lenient_classes=lenient_classes,
    correct=pick(block.correct),
    lenient_correct=pick(block.lenient_correct),
    released=pick(block.released),
    num_tokens=pick(block.num_tokens),
    texts=[[texts[i] if texts else '' for i in row] for row in pick(index)],
    answers=[[words[i] for i in row] for row in answer],
  )
