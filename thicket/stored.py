# SPDX-License-Identifier: Apache-2.0
"""What a run left behind, read without its model or its data.

A folder holds `plan.json`, which is the configuration with every question and
gold answer, and a ledger of judged answers for each condition. That is all a
report needs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

import ml_collections

from thicket import data, processes
from thicket.blocks import Block
from thicket.ledger import Ledger, LedgerError
from thicket.plan import Condition, Plan, make_plan
from thicket.storage import as_path, os_errors, write_atomically

_FILE, _COMMAND_FILE = 'plan.json', 'command.txt'


class NotStored(LookupError):
  """Answers that a report needs have not been given; the message says which."""


def save_plan(
  workdir: os.PathLike[str], config: ml_collections.ConfigDict, plan: Plan
) -> None:
  """Writes down what `load_plan` needs; raises LedgerError if it cannot."""
  if not processes.is_first():
    return
  content = {
    'config': config.to_dict(),
    'examples': data.examples_to_json(plan.splits),
  }
  path = as_path(workdir) / _FILE
  try:
    write_atomically(path, json.dumps(content))
  except OSError as error:
    raise LedgerError(f'{path}: cannot be written: {error.strerror}') from error


def save_command(workdir: os.PathLike[str], command: str) -> None:
  """Writes down what goes on with a run; raises LedgerError if it cannot."""
  if not processes.is_first():
    return
  path = as_path(workdir) / _COMMAND_FILE
  try:
    write_atomically(path, command)
  except OSError as error:
    raise LedgerError(f'{path}: cannot be written: {error.strerror}') from error


def load_plan(workdir: os.PathLike[str]) -> Plan:
  """The plan of the last run in a folder; raises LedgerError without one."""
  return _load(workdir)[1]


def _load(
  workdir: os.PathLike[str],
) -> tuple[ml_collections.ConfigDict, Plan]:
  path = as_path(workdir) / _FILE
  try:
    with os_errors(path):
      text = path.read_text(encoding='utf-8')
    content = json.loads(text)
    splits = data.examples_from_json(content['examples'])
    config = ml_collections.ConfigDict(content['config'])
    return config, make_plan(config, splits)
  except FileNotFoundError:
    raise LedgerError(
      f'{workdir}: no run here ({_FILE} is missing); give the folder that a '
      'run printed'
    ) from None
  except (OSError, KeyError, AttributeError, TypeError, ValueError) as error:
    raise LedgerError(f'{path}: cannot be read: {error}') from error


class Stored:
  """Answers of a finished or unfinished run, none generated."""

  def __init__(self, workdir: os.PathLike[str]):
    """Reads the plan; ledgers are read as they are asked for."""
    self.workdir = as_path(workdir)
    self.config, self.plan = _load(workdir)
    self._ledgers: dict[Condition, Ledger] = {}

  @property
  def pinned(self) -> ml_collections.ConfigDict:
    """The configuration, with a model of the hub at the commit of the run.

    What a branch is now may be another. Raises LedgerError without a ledger.
    """
    config = self.config.copy_and_resolve_references()
    revision = self.recipe['model'].get('revision')
    if revision is not None:
      config.model.name = config.model.name.partition('@')[0]
      config.model.revision = revision
    return config

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
    """As `run.Run.get`; raises NotStored where an answer is missing."""
    block = self._view(condition, split, members, draws, rows)
    if not block.seen.all():
      what = label or f'{len(members)} members on {split}'
      raise NotStored(
        f'{what}: {int((~block.seen).sum())} of {block.seen.size} answers are '
        'missing; the command of the run makes them'
      )
    return block

  def held(
    self, condition: Condition, split: str, members: Sequence[int]
  ) -> Block:
    """As `run.Run.held`."""
    return self._view(condition, split, members, (0,), None)

  @property
  def command(self) -> str | None:
    """What goes on with the run; None of one that a program has made."""
    path = self.workdir / _COMMAND_FILE
    try:
      with os_errors(path):
        return path.read_text(encoding='utf-8').strip()
    except OSError:
      return None

  @property
  def recipe(self) -> dict[str, Any]:
    """Of the search's own ledger."""
    return self._ledger(self.plan.greedy).recipe

  def _ledger(self, condition: Condition) -> Ledger:
    if condition not in self._ledgers:
      folder = self.workdir / 'ledger' / condition.folder
      if not folder.exists():
        raise NotStored(f'{folder}: nothing has been answered under this')
      self._ledgers[condition] = Ledger.read(folder)
    return self._ledgers[condition]

  def _view(self, condition, split, members, draws, rows) -> Block:
    examples = getattr(self.plan.splits, split)[:rows]
    row_ids = [example.row_id for example in examples]
    return self._ledger(condition).view(split, members, row_ids, draws)
