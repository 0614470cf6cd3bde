# SPDX-License-Identifier: Apache-2.0
"""Members at work: questions in, judged rows in the ledger.

Generation is dispatched chunk by chunk, and while the devices run one chunk
the host judges the one before and saves it. Ranges are saved as they fill;
whatever interrupts the work, what has been judged is saved first. With several
processes each judges what its own devices hold, and all save the rows of all.

The base's own first answers are given before all others to the same questions
under the same condition: their lengths say who shares a batch (see
`batching`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging
from rich.console import Console

from thicket import batching, decode, engine, evaluation, processes
from thicket.blocks import BASE, Block, from_block, pack, to_block, unpack
from thicket.interrupts import uninterrupted
from thicket.ledger import Ledger, LedgerError
from thicket.plan import Condition
from thicket.population import Members, Population
from thicket.progress import tally
from thicket.storage import Lines, as_path
from thicket.watch import Watch

FIRST = (BASE, 0)  # the unit by whose answers all others are batched


@dataclasses.dataclass(frozen=True, eq=False)
class Desk:
  """What answering under one condition needs."""

  condition: Condition
  ledger: Ledger
  questions: dict[str, evaluation.Questions]
  prefix: list[int]
  decoding: decode.Decoding


class Work:
  """Has members answer what is asked, and counts what it took."""

  def __init__(
    self,
    the_engine: engine.Engine,
    members: Members,
    judge: evaluation.Judge,
    population: Population,
    *,
    metrics: os.PathLike[str],
    members_per_range: int,
    keep_texts: str,
    console: Console,
  ):
    """Takes the pieces.

    Args:
      the_engine: generates.
      members: brings members' weights, chunk by chunk.
      judge: turns tokens into rows.
      population: says members' sigmas.
      metrics: file to which a line is added for each answer set saved.
      members_per_range: saved together.
      keep_texts: the split whose texts are kept, or 'all', or 'none'.
      console: where progress goes.
    """
    self._engine, self._members, self._judge = the_engine, members, judge
    self._population, self._metrics = population, Lines(as_path(metrics))
    self._range, self._keep_texts = members_per_range, keep_texts
    self._console = console
    self._counts = {'answers': 0, 'tokens': 0, 'seconds': 0.0}
    self._row_steps, self._pending_s = batching.RowSteps(), 0.0
    self._has_begun = False

  def answer(
    self,
    desk: Desk,
    split: str,
    which: np.ndarray,
    units: Sequence[tuple[int, int]],
    label: str,
  ) -> None:
    """Has (member, draw) units answer the questions with these indices."""
    units = [(int(member), int(draw)) for member, draw in units]
    if FIRST in units and len(units) > 1:
      self._answer(desk, split, which, [FIRST], f'{label}: the base first')
      units.remove(FIRST)
    self._answer(desk, split, which, units, label)

  def _answer(
    self,
    desk: Desk,
    split: str,
    which: np.ndarray,
    units: Sequence[tuple[int, int]],
    label: str,
  ) -> None:
    questions = desk.questions[split]
    # Each works out by itself what is missing: one that sees another folder
    # would wait for the others for ever, or mix its rows with theirs.
    asked = repr((desk.condition.folder, split, which.tolist(), [*units]))
    processes.agree(
      'what is missing', hashlib.sha256(asked.encode()).hexdigest()
    )
    batches = questions.batches(which, _lengths(desk, split, which))
    step = engine.answer_all(self._engine, desk.decoding, desk.prefix, batches)
    keep_texts = self._keep_texts in (split, 'all')
    saver = _Saver(
      desk.ledger,
      split,
      self._range,
      lambda blocks: self._log(desk.condition, split, blocks),
    )
    self._judge.start()  # processes warm up while programs compile
    start, compiled = time.monotonic(), self._engine.compile_s
    members, draws = zip(*units, strict=True)
    order = {unit: i for i, unit in enumerate(units)}
    unit = 'samples' if desk.condition.temperature else 'members'
    watch = Watch()

    def watched(*args: Any) -> Any:
      before = self._engine.compile_s
      results = step(*args)
      watch.dispatched(results, self._engine.compile_s - before)
      if not self._has_begun:
        self._has_begun = True
        logging.info('first step dispatched')
      return results

    with (
      tally(self._console, label, len(units), unit) as progress,
      saver,
      watch,
    ):
      for ids, numbers, generated in self._members.run(members, watched, draws):
        blocks = self._judge(
          questions, which, batches, generated, ids, numbers,
          keep_texts=keep_texts,
        )  # fmt: skip
        blocks = _everyone(blocks, order)
        saver.add(blocks)
        progress.advance(len(blocks))
        self._counts['answers'] += len(blocks) * len(which)
        self._counts['tokens'] += sum(int(b.num_tokens.sum()) for b in blocks)
        for batch, answers in zip(batches, generated, strict=True):
          self._row_steps += batching.row_steps(batch, answers)
        watch.turn()
    compiling = self._engine.compile_s - compiled
    self._counts['seconds'] += time.monotonic() - start - compiling
    self._pending_s += watch.pending_s

  def close(self) -> None:
    """Ends the processes that judge, if there are any."""
    self._judge.close()

  def facts(self) -> dict[str, Any]:
    """What was generated here, in how many seconds without compilation.

    Shares are in [0, 1], and None where nothing was generated: of row-steps
    (see `batching.RowSteps`) that finished rows and fillers took, and of the
    seconds in which no dispatched work was pending. Where the last members
    per device are fewer than those asked for, memory ran out.
    """
    tokens, seconds = self._counts['tokens'], self._counts['seconds']
    idle = 1 - self._pending_s / seconds if seconds else None
    return {
      **self._counts,
      'compile_seconds': self._engine.compile_s,
      'tokens_per_second': tokens / seconds if seconds else None,
      'finished_share': self._row_steps.finished_share,
      'filler_share': self._row_steps.filler_share,
      'memo_hits': self._judge.memo_hits,
      'members_per_device': self._members.per_device,
      # Clocks are read one after the other.
      'device_idle_share': idle and min(1.0, max(0.0, idle)),
    }

  def _log(
    self, condition: Condition, split: str, blocks: Sequence[Block]
  ) -> None:
    """Adds a line for each saved answer set to metrics.jsonl, to plot from."""
    if not processes.is_first():
      return
    lines = []
    for block in blocks:
      member = int(block.members[0])
      line = {
        'condition': condition.folder,
        'split': split,
        'member': member,
        'sigma': float(self._population.sigma([member])[0]),
        'draw': int(block.draws[0]),
        'rows': block.reward.size,
        'score': float(block.reward.mean(dtype=np.float64)),
        'accuracy': float(block.correct.mean()),
        'tokens': int(block.num_tokens.sum()),
      }
      lines.append(json.dumps(line) + '\n')
    try:
      self._metrics.add(lines)
    except OSError as error:
      raise LedgerError(
        f'{self._metrics.path}: cannot be written: {error.strerror}'
      ) from error


def _lengths(desk: Desk, split: str, which: np.ndarray) -> np.ndarray | None:
  """Tokens of the base's first answers to these questions, if all are held.

  What the limit cut counts as it is: members are cut there too.
  """
  row_ids = desk.questions[split].row_ids[which]
  base = desk.ledger.view(split, [BASE], row_ids, (0,))
  return base.num_tokens[0, :, 0] if base.seen.all() else None


def _everyone(
  blocks: Sequence[Block], order: Mapping[tuple[int, int], int]
) -> list[Block]:
  """The blocks of all processes, each of one unit, in the order of units."""
  if processes.count() == 1:
    return list(blocks)
  own = {
    f'{i}/{name}': array
    for i, block in enumerate(blocks)
    for name, array in pack(from_block(block)).items()
  }
  found = []
  for arrays in processes.share_arrays(own):
    trees: dict[str, dict[str, np.ndarray]] = {}
    for key, array in arrays.items():
      number, _, name = key.partition('/')
      trees.setdefault(number, {})[name] = array
    found += [to_block(unpack(tree)) for tree in trees.values()]
  return sorted(found, key=lambda x: order[int(x.members[0]), int(x.draws[0])])


class _Saver:
  """Saves judged answers in ranges of a size that no chunk size changes.

  Left by an exception, Ctrl-C too, it saves the unfinished range first; not
  with several processes, which would have to be interrupted at one place.
  """

  def __init__(
    self,
    ledger: Ledger,
    split: str,
    size: int,
    saved: Callable[[Sequence[Block]], None],
  ):
    self._ledger, self._split, self._size = ledger, split, size
    self._saved = saved
    self._pile: list[Block] = []

  def add(self, blocks: Sequence[Block]) -> None:
    self._pile += blocks
    while len(self._pile) >= self._size:
      self._save(self._size)

  def _save(self, number: int) -> None:
    with uninterrupted():  # the ledger, the metrics and the pile agree
      blocks = self._pile[:number]
      whole = Ledger.in_memory(self._ledger.recipe)
      for block in blocks:
        whole.append(self._split, block)
      try:
        self._ledger.append(self._split, whole.view(self._split))
      except LedgerError:
        self._pile = []  # not to be tried again on the way out
        raise
      del self._pile[:number]
      self._saved(blocks)

  def __enter__(self) -> _Saver:
    return self

  def __exit__(self, kind, error, trace) -> None:
    if self._pile and (kind is None or processes.count() == 1):
      self._save(len(self._pile))
