# SPDX-License-Identifier: Apache-2.0
"""Slices of a population, each scored by a job that talks to no other.

Slice i of n is a contiguous range of member ids. It lies in a folder of its
own, `WORKDIR/shards/03-of-16/CONDITION`, until `thicket.ledger.merge` joins
all slices into the ledger of the run.
"""

from __future__ import annotations

import dataclasses
import re

from thicket.blocks import BASE
from thicket.plan import ConfigError, Plan

FOLDER = 'shards'
_DIGITS = 2  # of a folder's numbers, at least, so that folders sort


@dataclasses.dataclass(frozen=True)
class Shard:
  """Slice `index` of `count`, 0 <= index < count."""

  index: int
  count: int

  @classmethod
  def parse(cls, text: str) -> Shard:
    """The slice that 'i/n' or a folder's 'i-of-n' names; else ConfigError."""
    match = re.fullmatch(r'(\d{1,9})(?:/|-of-)(\d{1,9})', text, re.ASCII)
    index, count = map(int, match.groups()) if match else (0, 0)
    if not index < count:
      raise ConfigError(
        f'--shard={text}: give i/n with 0 <= i < n; the first of 16 slices is '
        '0/16, the last 15/16'
      )
    return cls(index, count)

  def __str__(self) -> str:
    return f'{self.index}/{self.count}'

  @property
  def folder(self) -> str:
    """Its name, such as 03-of-16."""
    digits = max(_DIGITS, len(str(self.count)))
    return f'{self.index:0{digits}}-of-{self.count:0{digits}}'

  def units(self, size: int) -> list[int]:
    """Ids of who answers, of N = `size` members, the base before them.

    Sizes of slices differ by one at most. The base answers in each: batches
    are formed by the length of its answers.
    """
    first, end = (i * size // self.count for i in (self.index, self.index + 1))
    return [BASE, *range(first, end)]

  def check(self, plan: Plan) -> None:
    """Raises ConfigError if a plan's search cannot be cut into such slices."""
    if plan.selection.race:
      raise ConfigError(
        f'selection.race = True: who stays in a race depends on all members, '
        f'which --shard={self} does not see; set selection.race=False'
      )
    if self.count > plan.population.size:
      raise ConfigError(
        f'--shard={self}: {self.count} slices of population.size = '
        f'{plan.population.size} members; give at most as many'
      )


def splits(plan: Plan) -> tuple[str, ...]:
  """The splits whose questions all members and the base answer."""
  more = ('validation',) if plan.controls.validation else ()
  return ('selection', *more)


def row_ids(plan: Plan, split: str) -> list[int]:
  """Ids of a split's questions, in their order."""
  return [example.row_id for example in getattr(plan.splits, split)]
