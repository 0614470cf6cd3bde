# SPDX-License-Identifier: Apache-2.0
"""Joins the slices that a job array has scored into the ledger of its run.

Slices are only read, so they may still be written to; a second merge adds
what has come since. Nothing is written if two of them contradict each other.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Iterator, Sequence

import numpy as np
from etils import epath

from thicket import blocks, job_array
from thicket.blocks import BASE
from thicket.job_array import Shard
from thicket.ledger import RECIPE_FILE, Ledger, LedgerError, RecipeMismatch
from thicket.plan import ConfigError, Plan
from thicket.recipe import brief, differences
from thicket.storage import as_path, subfolders
from thicket.stored import load_plan


@dataclasses.dataclass(frozen=True)
class Overlap:
  """Members whose answers lie in two slices, with the same values."""

  split: str
  members: tuple[int, ...]  # ids, ascending
  slices: tuple[str, str]


@dataclasses.dataclass(frozen=True)
class Gap:
  """Missing answers, and the slice that makes them."""

  split: str
  members: tuple[int, ...]  # ids, ascending, who lack an answer
  missing: int  # answers
  asked: int  # answers that these members have when none is missing
  shard: Shard


@dataclasses.dataclass(frozen=True)
class Merged:
  """What a merge found and did; nothing is missing if there are no gaps."""

  num_slices: int
  added: int  # answers that are new in the ledger of the run
  overlaps: tuple[Overlap, ...]
  bases: tuple[tuple[str, str], ...]  # (split, slice), see `lines`
  gaps: tuple[Gap, ...]

  def lines(self) -> Iterator[str]:
    """The story, for a terminal."""
    yield f'merged    {self.num_slices} slices, {self.added} new answers'
    for found in self.overlaps:
      yield (
        f'overlap   {found.split}: {_named(found.members)} in '
        f'{" and ".join(found.slices)}, with equal values, kept once'
      )
    for split, name in self.bases:
      yield (
        f'base      {split}: other answers in {name}, near ties under another '
        'number of members a step maybe; those found first are kept'
      )
    for gap in self.gaps:
      yield (
        f'missing   {gap.split}: {_named(gap.members)}, {gap.missing} of '
        f'{gap.asked} answers; --shard={gap.shard} makes them'
      )
    if not self.gaps:
      yield 'complete  the command of the run, without --shard, goes on'


def merge(workdir: os.PathLike[str] | str) -> Merged:
  """Joins all slices in a work folder into its ledger.

  Raises:
    RecipeMismatch: two slices, or the ledger, have different recipes.
    LedgerError: there is no slice, or no plan, or two slices, or a slice and
      the ledger, hold different values for one row of a member. Of the base,
      which is in all, the values found first are kept.
  """
  workdir = as_path(workdir)
  plan = load_plan(workdir)
  slices = _slices(workdir)
  if not slices:
    raise LedgerError(
      f'{workdir / job_array.FOLDER}: no slice here; the command of the run '
      'with --shard=i/n makes one'
    )
  _check_recipes(slices)
  some = slices[0][1]
  ledger = Ledger.open(workdir / 'ledger' / some.folder.name, some.recipe)
  overlaps = _compare(dict(slices), ledger)
  bases = _other_bases(slices, ledger)
  before = _num_answers(ledger)
  for name, part in slices:
    for split in part.splits:
      view = part.view(split)
      if (split, name) in bases:
        view.seen[view.members == BASE] &= ~ledger.seen(
          split, [BASE], view.rows, view.draws
        )
      ledger.append(split, view)
  most = max(Shard.parse(name).count for name, _ in slices)
  count = min(most, plan.population.size)
  return Merged(
    len(slices),
    _num_answers(ledger) - before,
    tuple(overlaps),
    tuple(bases),
    tuple(_gaps(plan, ledger, count)),
  )


def contents(workdir: os.PathLike[str] | str) -> Iterator[str]:
  """One line for each split of each ledger in a work folder, slices too."""
  workdir = as_path(workdir)
  folders = subfolders(workdir / 'ledger')
  for part in subfolders(workdir / job_array.FOLDER):
    folders += subfolders(part)
  if not folders:
    raise LedgerError(f'{workdir}: no ledger here; check the path')
  for folder in folders:
    ledger = Ledger.read(folder)
    for split in ledger.splits:
      block = ledger.view(split)
      yield (
        f'{folder.relative_to(workdir)}  {split}: {_named(block.members)}; '
        f'{len(block.rows)} rows, {len(block.draws)} draws, '
        f'{int(block.seen.sum())} answers'
      )


def _slices(workdir: epath.Path) -> list[tuple[str, Ledger]]:
  """The ledgers of all slices with the names of their folders, in order."""
  found = []
  for part in subfolders(workdir / job_array.FOLDER):
    try:
      Shard.parse(part.name)
    except ConfigError:
      raise LedgerError(
        f'{part}: not the name of a slice, such as 03-of-16; move it elsewhere'
      ) from None
    for folder in subfolders(part):
      # A job killed at its very start has left an empty folder.
      if (folder / RECIPE_FILE).exists() or subfolders(folder):
        found.append((part.name, Ledger.read(folder)))
  return found


def _check_recipes(slices: list[tuple[str, Ledger]]) -> None:
  first, one = slices[0]
  for _, other in slices[1:]:
    lines = differences(one.recipe, other.recipe)
    if lines:
      raise RecipeMismatch(
        f'{other.folder}: another recipe than {first}, here called stored: '
        f'{brief(lines)}; move one of them elsewhere'
      )


def _compare(slices: dict[str, Ledger], ledger: Ledger) -> list[Overlap]:
  """Refuses two values for a member's row; says which rows are there twice."""
  found = []
  for split in sorted({x for part in slices.values() for x in part.splits}):
    views = {name: _members(part, split) for name, part in slices.items()}
    views = {name: view for name, view in views.items() if view.seen.any()}
    for one, other in itertools.combinations(views, 2):
      a, b = views[one], views[other]
      if not np.intersect1d(a.members, b.members).size:
        continue
      twice = slices[one].seen(split, b.members, b.rows, b.draws) & b.seen
      if twice.any():
        _check(f'{one} and {other}: split {split}', a, b)
        members = b.members[twice.any(axis=(1, 2))].tolist()
        found.append(Overlap(split, tuple(members), (one, other)))
    for name, view in views.items():
      held = ledger.view(split, view.members, view.rows, view.draws)
      _check(f'the ledger and {name}: split {split}', held, view)
  return found


def _members(ledger: Ledger, split: str) -> blocks.Block:
  """What a ledger holds, without the base."""
  ids = ledger.view(split).members
  return ledger.view(split, ids[ids != BASE])


def _other_bases(
  slices: Sequence[tuple[str, Ledger]], ledger: Ledger
) -> list[tuple[str, str]]:
  """(split, slice) where the base answers otherwise than it did before.

  First in the ledger, then in the slices in their order.
  """
  found = []
  for split in sorted({x for _, part in slices for x in part.splits}):
    kept = Ledger.in_memory(ledger.recipe)
    for name, part in [('', ledger), *slices]:
      try:
        kept.append(split, part.view(split, [BASE]))
      except LedgerError:  # nothing of it is taken
        found.append((split, name))
  return found


def _check(say: str, one: blocks.Block, other: blocks.Block) -> None:
  parts = [blocks.from_block(one), blocks.from_block(other)]
  blocks.merge(parts, parts[1].keys, say)


def _num_answers(ledger: Ledger) -> int:
  return sum(int(ledger.view(split).seen.sum()) for split in ledger.splits)


def _gaps(plan: Plan, ledger: Ledger, count: int) -> Iterator[Gap]:
  """What is missing of all members and of the base, slice by slice."""
  for split in job_array.splits(plan):
    rows = job_array.row_ids(plan, split)
    for shard in (Shard(index, count) for index in range(count)):
      ids = np.array(shard.units(plan.population.size))
      missing = (~ledger.seen(split, ids, rows)).sum(axis=(1, 2))
      lack = missing > 0
      if lack.any():
        yield Gap(
          split,
          tuple(ids[lack].tolist()),
          int(missing.sum()),
          int(lack.sum()) * len(rows),
          shard,
        )


def _named(ids: Sequence[int]) -> str:
  """Ids as text, such as 'base, members 0-63, 128-191'; ascending."""
  runs: list[list[int]] = []
  for i in ids:
    if i == BASE:
      continue
    if runs and runs[-1][1] == i - 1:
      runs[-1][1] = i
    else:
      runs.append([i, i])
  said = ['base'] if BASE in ids else []
  said += [
    ('members ' if n == 0 else '') + (f'{a}-{b}' if a < b else f'{a}')
    for n, (a, b) in enumerate(runs)
  ]
  return ', '.join(said)
