# SPDX-License-Identifier: Apache-2.0
"""One run on a language model, from the configuration to the summary.

RandOpt (arXiv 2603.12228, algorithm 1): score the base and N members on the
selection rows, keep the K best, let them vote on rows that nothing was chosen
on. Finished ranges of members are saved as they come and skipped by the next
run of the same recipe.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from absl import logging
from rich.console import Console

from thicket import (
  engine,
  evaluation,
  perturb,
  report,
  selection,
  sharding,
  tasks,
  trees,
)
from thicket.blocks import Block
from thicket.ledger import (
  Ledger,
  LedgerError,
  uninterrupted,
  write_atomically,
)
from thicket.models import hub
from thicket.models.load import load
from thicket.plan import ConfigError, make_plan, make_recipe
from thicket.population import BASE, Members, PopulationError
from thicket.progress import tally
from thicket.recipe import recipe_hash


class Run:
  """The pieces of a run, made once; `finish` tells the story."""

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    workdir: str | None = None,
    console: Console | None = None,
  ):
    """Loads the model, prepares prompts and opens the ledger.

    Args:
      config: as `configs/llm.py` makes it.
      workdir: folder of the run; by default named by task, model and recipe,
        so that the same recipe resumes and no other one collides.
      console: where progress and tables go.

    Raises:
      Any of the project's errors, before anything is computed.
    """
    if jax.process_count() > 1:
      raise ConfigError(
        f'{jax.process_count()} processes: a run is one process, over all the '
        'devices it sees'
      )
    self.console = console or Console()
    self.config = config
    self.plan = make_plan(config)
    start = time.monotonic()
    model = self._model = load(config.model.name, config.model.dtype)
    parameters = sum(x.size for x in jax.tree.leaves(model.params))
    logging.info(
      'loaded %s, %.1f M parameters, in %.1f s',
      model.name,
      parameters / 1e6,
      time.monotonic() - start,
    )
    try:
      mask = trees.trainable(
        model.spec,
        only=config.population.only,
        skip=config.population.skip,
      )
    except ValueError as error:
      raise ConfigError(f'population.only, population.skip: {error}') from error
    recipe = make_recipe(config, self.plan, model)
    if workdir is None:
      name = f'{self.plan.task.name}-{model.name}-{recipe_hash(recipe)}'
      workdir = os.path.join('runs', name)
    self.workdir = pathlib.Path(workdir)
    splits = self.plan.splits
    prefix, self._questions = evaluation.prepare(
      self.plan.task,
      model.tokenizer,
      {'selection': splits.selection, 'test': splits.test},
      rows=config.decode.rows,
      max_new_tokens=self.plan.max_new_tokens,
      context_length=model.decoder.config.context_length,
    )
    self._ledger = Ledger.open(self.workdir / 'ledger', recipe)
    mesh = sharding.make_mesh()
    perturber = perturb.Perturber(
      sharding.replicate(mesh, model.params),
      model.spec,
      seed=self.plan.population.seed,
      mesh=mesh,
      family=config.population.family,
      scale=config.population.scale,
      mask=mask,
    )
    self._engine = engine.Engine(
      model.decoder,
      evaluation.decoding(
        self.plan.task,
        model.tokenizer,
        vocab_size=model.decoder.config.vocab_size,
        max_new_tokens=self.plan.max_new_tokens,
      ),
      mesh=mesh,
      in_axes=perturber.in_axes,
      prefix=prefix,
      dtype=jax.tree.leaves(model.params)[0].dtype,
    )
    self._members = Members(
      perturber, self.plan.population, mesh, config.run.members_per_device
    )
    self._judge = evaluation.Judge(
      self.plan.task, model.tokenizer, keep_texts=config.run.keep_texts
    )
    self._work = {'members': 0, 'tokens': 0, 'seconds': 0.0}

  def finish(self) -> report.Summary:
    """Scores, selects, votes, prints the tables and writes summary.json.

    Whatever interrupts it, judged members are saved first.
    """
    population, sizes = self.plan.population, self.plan.sizes
    self._answer('selection', [BASE], 'base on selection')
    self._answer('selection', population.ids(), 'members on selection')
    scored = self._view('selection', [BASE, *population.ids()])
    chosen = report.selection_summary(scored, population)
    self.console.print('', report.selection_table(chosen), '', sep='\n')

    member_scores = report.scores(scored)[1:]  # the base stands first
    best = selection.top_k(member_scores, sizes[-1])
    ranked = [int(i) for i in best]
    self._answer('test', [BASE], 'base on test')
    self._answer('test', sorted(ranked), f'{len(ranked)} selected on test')
    tested = self._view('test', [BASE, *sorted(ranked)])
    test = report.test_summary(
      self.plan.task, self.plan.splits.test, tested, ranked, sizes
    )
    self.console.print('', report.test_table(test), '', sep='\n')

    summary = {
      'recipe': self._ledger.recipe,
      'effective_sigmas': self._effective_sigmas(),
      'selection': chosen,
      'selected': [
        {
          'member': i,
          'sigma': float(population.sigma([i])[0]),
          'score': float(member_scores[i]),
        }
        for i in ranked
      ],
      'test': test,
      'work': self._work_summary(scored, tested),
    }
    path = self.workdir / 'summary.json'
    with _disk_errors(path):
      write_atomically(path, json.dumps(summary, indent=2))
    self.console.print(_work_line(summary['work']))
    return summary

  def _view(self, split: str, ids: Sequence[int]) -> Block:
    return self._ledger.view(split, ids, self._questions[split].row_ids)

  def _answer(self, split: str, ids: Sequence[int], label: str) -> None:
    """Has the members answer the split's questions, unless they have before."""
    questions = self._questions[split]
    seen = self._ledger.seen(split, ids, questions.row_ids).all(axis=(1, 2))
    todo = np.asarray(ids, np.int32)[~seen]
    if seen.any():
      self.console.print(f'{label}: {seen.sum()} of {len(seen)} are stored')
    if not todo.size:
      return
    step = engine.answer_all(self._engine, questions.batches)
    size = self.config.run.members_per_range
    saver = _Saver(self._ledger, split, size, self._log)
    start, compiled = time.monotonic(), self._engine.compile_s
    with tally(self.console, label, len(todo)) as progress, saver:
      for chunk, generated in self._members.run(todo, step):
        block = self._judge(questions, chunk, generated)
        saver.add(block)
        progress.advance(len(chunk))
        self._work['members'] += len(chunk)
        self._work['tokens'] += int(block.num_tokens.sum())
    compiling = self._engine.compile_s - compiled
    self._work['seconds'] += time.monotonic() - start - compiling

  def _effective_sigmas(self) -> list[dict[str, Any]]:
    """How far each tensor really moves, for the first member of each sigma."""
    model, population = self._model, self.plan.population
    if self.config.model.dtype == 'float32':
      return []  # rounding is far below any sigma in use
    rms = jax.jit(
      lambda base, members: perturb.effective_sigmas(base, members, model.spec)
    )
    found = []
    first = range(min(len(population.sigmas), population.size))
    for ids, moved in self._members.run(
      first, lambda weights, _: rms(model.params, weights)
    ):
      for i, sigma in enumerate(population.sigma(ids)):
        tensors = {name: float(values[i]) for name, values in moved.items()}
        found.append({'sigma': float(sigma), 'tensors': tensors})
    return found

  def _log(self, split: str, block: Block) -> None:
    """Adds a line for each saved member to metrics.jsonl, to plot from."""
    lines = []
    for i, score in zip(block.members, report.scores(block), strict=True):
      one = report.member(block, i)
      line = {
        'split': split,
        'member': int(i),
        'sigma': float(self.plan.population.sigma([i])[0]),
        'score': float(score),
        'accuracy': float(one.correct.mean()),
        'tokens': int(one.num_tokens.sum()),
      }
      lines.append(json.dumps(line) + '\n')
    path = self.workdir / 'metrics.jsonl'
    with (
      _disk_errors(path),
      open(path, 'a', encoding='utf-8') as file,
    ):
      file.writelines(lines)

  def _work_summary(self, scored: Block, tested: Block) -> dict[str, Any]:
    work = self._work
    seconds = work['seconds']
    return {
      'generated_tokens': {
        'selection': int(scored.num_tokens.sum()),
        'test': int(tested.num_tokens.sum()),
      },
      'this_run': {
        **work,
        'compile_seconds': self._engine.compile_s,
        'tokens_per_second': work['tokens'] / seconds if seconds else None,
      },
      'devices': f'{jax.device_count()} x {jax.devices()[0].device_kind}',
    }


def _work_line(work: dict[str, Any]) -> str:
  stored, ours = work['generated_tokens'], work['this_run']
  line = f'Generated {sum(stored.values()):,} tokens in all'
  if ours['members']:
    line += (
      f'; this run {ours["tokens"]:,} in {ours["seconds"]:.0f} s, '
      f'{ours["tokens_per_second"]:.0f} tokens/s, and '
      f'{ours["compile_seconds"]:.0f} s of compiling'
    )
  return f'{line} ({work["devices"]}).'


class _Saver:
  """Saves judged members in ranges of a size that no chunk size changes.

  Left by an exception, Ctrl-C too, it saves the unfinished range first.
  """

  def __init__(
    self,
    ledger: Ledger,
    split: str,
    size: int,
    saved: Callable[[str, Block], None],
  ):
    self._ledger, self._split, self._size = ledger, split, size
    self._saved = saved
    self._start_over()

  def _start_over(self):
    # The ledger merges blocks already: one in memory is the pile.
    self._pile = Ledger.in_memory(self._ledger.recipe)
    self._ids: list[int] = []

  def add(self, block: Block) -> None:
    self._pile.append(self._split, block)
    self._ids += block.members.tolist()
    while len(self._ids) >= self._size:
      self._save(self._size)

  def _save(self, number: int) -> None:
    ids, rest = self._ids[:number], self._ids[number:]
    pile = self._pile
    block = pile.view(self._split, ids)
    with uninterrupted():  # the ledger, the metrics and the pile agree
      try:
        self._ledger.append(self._split, block)
      except LedgerError:
        self._start_over()  # not to be tried again on the way out
        raise
      self._start_over()
      if rest:
        self._pile.append(self._split, pile.view(self._split, rest))
        self._ids = rest
      self._saved(self._split, block)

  def __enter__(self) -> _Saver:
    return self

  def __exit__(self, kind, error, trace) -> None:
    if self._ids:
      self._save(len(self._ids))


@contextlib.contextmanager
def _disk_errors(path: pathlib.Path) -> Iterator[None]:
  try:
    yield
  except OSError as error:
    raise LedgerError(f'{path}: cannot be written: {error.strerror}') from error


USER_ERRORS = (
  ConfigError,
  PopulationError,
  LedgerError,
  tasks.TaskError,
  hub.HubError,
)
