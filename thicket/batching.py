# SPDX-License-Identifier: Apache-2.0
"""Which questions share a batch, and what waiting for each other costs them.

A batch runs until its last row has stopped, so its rows should be answered at
the same length. Members answer at much the same length as the base, whose
answers to the same questions under the same condition are in the ledger before
any member is asked (see `answering`). Rows are sorted by a class of that
length and, within it, by the length of their prompts, which are padded to the
longest of the batch. How coarse the classes are is chosen by what the base's
own answers would have cost, from one token wide to one class for all. Without
the base's answers there is one class.

Which rows share a batch has no part in what they are asked, but the bucket of
their padding is a shape of products, and so may decide a last bit. So a batch
is a function of what cannot change between a kill and the restart: the
questions of one request, their prompts, and the base's answers to them, which
are all saved before the first batch is formed by them. What a request leaves
unsaved is asked again in whole, never in part; so there is nothing gained by
forming batches of a whole split, of which a race would leave most rows empty.
`VERSION` is part of the recipe.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from thicket.decode import Generated, Prompts, bucket
from thicket.sampling import row_words

VERSION = 2  # 1 was by prompts alone

# What a token of a prompt costs, in steps of one row: 0.6 on CPU with 64 rows
# (experiments/throughput), less with fewer rows, and a few hundredths on
# accelerators, where a step is bound by reading weights. One number for all:
# which rows share a batch must not depend on the machine.
PROMPT_TOKEN = 0.3


@dataclasses.dataclass(frozen=True)
class RowSteps:
  """Rows of batches times the steps that were made for them.

  Attributes:
    total: all of them.
    finished: of rows that had stopped before.
    filler: of rows that only fill a batch.
  """

  total: int = 0
  finished: int = 0
  filler: int = 0

  def __add__(self, other: RowSteps) -> RowSteps:
    """Those of both."""
    return RowSteps(
      self.total + other.total,
      self.finished + other.finished,
      self.filler + other.filler,
    )

  @property
  def finished_share(self) -> float | None:
    """In [0, 1]; None where no step was made."""
    return self.finished / self.total if self.total else None

  @property
  def filler_share(self) -> float | None:
    """In [0, 1]; None where no step was made."""
    return self.filler / self.total if self.total else None


def row_steps(batch: Prompts, answers: Generated) -> RowSteps:
  """What some members' answers to a batch took; arrays [M, B, ...]."""
  steps, rows = np.asarray(answers.steps, np.int64), len(batch.live)
  live = int(batch.live.sum())
  made = int(steps.sum())
  return RowSteps(
    made * rows,
    made * live - int(np.asarray(answers.length)[:, batch.live].sum()),
    made * (rows - live),
  )


def predicted(
  groups: Sequence[np.ndarray], answers: np.ndarray, rows: int
) -> RowSteps:
  """What answers of known lengths take in batches of these groups.

  Args:
    groups: the questions of each batch, see `group`.
    answers: [n], tokens of each question's answer, 1 at least.
    rows: B.
  """
  found = RowSteps()
  for chosen in groups:
    steps = int(answers[chosen].max())
    live = len(chosen)
    found += RowSteps(
      steps * rows,
      steps * live - int(answers[chosen].sum()),
      steps * (rows - live),
    )
  return found


def group(
  prompts: Sequence[int] | np.ndarray,
  rows: int,
  answers: Sequence[int] | np.ndarray | None = None,
) -> list[np.ndarray]:
  """Groups n questions into batches of at most B, by their lengths alone.

  Args:
    prompts: [n], tokens of each prompt behind the shared prefix.
    rows: B.
    answers: [n], tokens of the base's answers; None where they are not known.

  Returns:
    Indices of the questions of each batch. All are full but for the last.
  """
  prompts = np.asarray(prompts, np.int64)
  lengths = np.ones_like(prompts) if answers is None else np.asarray(answers)
  longest = int(lengths.max(initial=1))
  best, least = [], np.inf
  width = 1 << (longest - 1).bit_length()  # one class: by prompts alone
  while width:
    groups = _in_classes(prompts, (lengths - 1) // width, rows)
    cost = sum(
      lengths[chosen].max() + PROMPT_TOKEN * bucket(int(prompts[chosen].max()))
      for chosen in groups
    )
    if cost < least:
      best, least = groups, cost
    width //= 2
  return best


def _in_classes(
  prompts: np.ndarray, classes: np.ndarray, rows: int
) -> list[np.ndarray]:
  # Prompts rise in one class and fall in the next, so that a batch of the end
  # of one and the start of another has prompts of one length too. The longest
  # answers come first: a batch that is not full had better be a short one.
  turned = np.where(classes % 2, -prompts, prompts)
  order = np.lexsort((np.arange(len(prompts)), turned, -classes))
  return [order[i : i + rows] for i in range(0, len(order), rows)]


def batches(
  suffixes: Sequence[Sequence[int]],
  row_ids: Sequence[int] | np.ndarray,
  rows: int,
  pad_id: int,
  prompts: Sequence[int] | np.ndarray | None = None,
  answers: np.ndarray | None = None,
) -> list[Prompts]:
  """Puts prompts into batches of one row count.

  Args:
    suffixes: tokens of each prompt behind the shared prefix, none empty.
    row_ids: what each prompt is known by.
    rows: B; the last batch is filled with rows that are not live.
    pad_id: the token on the left of short rows.
    prompts: indices of those to be answered; by default all.
    answers: for each of those, the tokens of the base's answer; None where
      they are not known.

  Returns:
    Batches of B rows, short prompts first; each prompt stands in exactly one
    of them, with its index in `suffixes` as its number. A function of the
    arguments alone, which does not depend on the order of `prompts`.
  """
  asked = np.arange(len(suffixes)) if prompts is None else np.asarray(prompts)
  asked = asked.astype(np.int64)
  order = np.argsort(asked)
  asked = asked[order]
  lengths = np.array([len(suffixes[i]) for i in asked], np.int64)
  known = None if answers is None else np.asarray(answers)[order]
  words = row_words(row_ids)
  result = [
    _batch(suffixes, asked[chosen], words, rows, pad_id)
    for chosen in group(lengths, rows, known)
  ]
  # Neighbours of one bucket share their caches.
  return sorted(result, key=lambda batch: batch.tokens.shape[1])


def _batch(
  suffixes: Sequence[Sequence[int]],
  chosen: np.ndarray,
  words: np.ndarray,
  rows: int,
  pad_id: int,
) -> Prompts:
  length = np.array([len(suffixes[i]) for i in chosen], np.int32)
  size = bucket(int(length.max()))
  tokens = np.full((rows, size), pad_id, np.int32)
  for row, i in enumerate(chosen):
    tokens[row, size - len(suffixes[i]) :] = suffixes[i]
  fill = rows - len(chosen)
  tokens[len(chosen) :] = tokens[0]
  numbers = np.append(chosen, np.full(fill, chosen[0])).astype(np.int32)
  return Prompts(
    tokens=tokens,
    length=np.append(length, np.full(fill, length[0], np.int32)),
    prompt=numbers,
    row=words[numbers],
    live=np.arange(rows) < len(chosen),
  )
