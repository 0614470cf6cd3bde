# SPDX-License-Identifier: Apache-2.0
"""How K of N members are found: scored, maybe raced, maybe compared again.

RandOpt (Neural Thickets, arXiv 2603.12228) scores N members on the selection
rows and keeps the K best. Two refinements are built in: a race drops members
early that cannot reach the top K (see `race`), and the best M may be compared
again on fresh rows, because the best of many scores is partly luck.

Functions here ask for answers by what they are. Whoever holds them decides
whether to generate what is missing (`run.Run`) or only to read (`stored`), so
a run and a report made later are the same code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from thicket import race, selection
from thicket.blocks import BASE, Block
from thicket.plan import Condition, Plan


class Answers(Protocol):
  """Gives judged answers; see `run.Run.get` and `stored.Stored.get`."""

  def get(
    self,
    condition: Condition,
    split: str,
    members: Sequence[int],
    draws: Sequence[int] = (0,),
    *,
    rows: int | None = None,
    label: str = '',
  ) -> Block:
    """All the answers asked for."""
    ...

  def held(
    self, condition: Condition, split: str, members: Sequence[int]
  ) -> Block:
    """Those that there are, of first draws."""
    ...


@dataclasses.dataclass(frozen=True)
class Cost:
  """What was generated: answers, each a pass over one question, and tokens.

  A token is one forward pass of its row; the first comes with the prompt's.
  """

  answers: float = 0
  tokens: float = 0

  def __add__(self, other: Cost) -> Cost:
    """The cost of both."""
    return Cost(self.answers + other.answers, self.tokens + other.tokens)


def cost(block: Block) -> Cost:
  """Of all answers of a block."""
  return Cost(int(block.seen.sum()), int(block.num_tokens.sum()))


def scores(block: Block) -> np.ndarray:
  """float32 [m], each member's mean strict reward over rows and draws."""
  return block.reward.mean(axis=(1, 2), dtype=np.float64).astype(np.float32)


def scores_by_id(block: Block) -> dict[int, float]:
  """The scores of a block by member id."""
  return dict(zip(block.members.tolist(), scores(block), strict=True))


@dataclasses.dataclass(frozen=True, eq=False)
class Ranking:
  """What a search found.

  Attributes:
    condition: under which members answered.
    scored: the base and N members on the selection rows.
    scores: float32 [N]; NaN for members that the race dropped.
    asked: int [N], how many rows each member was asked.
    validated: the members compared on validation rows, or None.
    ranked: ids of the K selected, best first.
    cost: of finding them; the base's own answers do not count.
  """

  condition: Condition
  scored: Block
  scores: np.ndarray
  asked: np.ndarray
  validated: Block | None
  ranked: tuple[int, ...]
  cost: Cost

  @property
  def base_score(self) -> float:
    """Of the base on the selection rows; it stands first in `scored`."""
    return float(
      self.scored.reward[0].mean(dtype=np.float64).astype(np.float32)
    )


def rank(
  answers: Answers, plan: Plan, condition: Condition, size: int
) -> Ranking:
  """Finds the K best of the first N members under a condition.

  Args:
    answers: where judged answers come from.
    plan: how to select.
    condition: under which members answer.
    size: N, at least the largest K.
  """
  k, rule = plan.sizes[-1], plan.selection
  ids = np.arange(size)
  answers.get(condition, 'selection', [BASE], label='base on selection')
  asked = np.full(size, len(plan.splits.selection))
  racing = ids
  if rule.race:
    for rows in rule.race_rows[:-1]:
      block = answers.get(
        condition, 'selection', racing, rows=rows,
        label=f'{len(racing)} members on the first {rows} questions',
      )  # fmt: skip
      stays = race.survivors(
        block.reward[:, :, 0], k, z=rule.race_z, bounds=plan.task.reward_range
      )
      asked[racing[~stays]] = rows
      racing = racing[stays]
  block = answers.get(
    condition, 'selection', racing, label=f'{len(racing)} members on selection'
  )
  found = np.full(size, np.nan, np.float32)
  found[racing] = scores(block)
  scored = answers.held(condition, 'selection', [BASE, *ids])
  was_asked = np.arange(scored.seen.shape[1]) < asked[:, None]
  spent = Cost(
    int(asked.sum()), int((scored.num_tokens[1:, :, 0] * was_asked).sum())
  )
  best = [int(i) for i in selection.top_k(found, max(k, rule.rerank))]
  validated = None
  if rule.rerank:
    validated = answers.get(
      condition, 'validation', [BASE, *best],
      label=f'{len(best)} best members on validation',
    )  # fmt: skip
    again = scores_by_id(validated)
    # By descending validation score; sorting is stable, so that members who
    # are equal there keep their order of selection.
    best = sorted(best, key=lambda i: -again[i])
    tokens = validated.num_tokens[1:]  # without the base's
    spent += Cost(tokens.size, int(tokens.sum()))
  return Ranking(
    condition, scored, found, asked, validated, tuple(best[:k]), spent
  )
