# SPDX-License-Identifier: Apache-2.0
"""A language model that answers whatever a comparison asks for.

What is asked for is generated where it is missing, judged and saved, in ranges
as they finish; what is stored already is only read. So a killed run, a larger
population or one more control costs what is new.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from etils import epath
from rich.console import Console

from thicket import (
  data,
  evaluation,
  fit,
  job_array,
  machine,
  perturb,
  processes,
  ranking,
  reading,
  report,
  sampling,
  sharding,
  tables,
  tasks,
)
from thicket.answering import FIRST, Desk, Work
from thicket.blocks import BASE, Block
from thicket.job_array import Shard
from thicket.ledger import Ledger, LedgerError
from thicket.models import hub
from thicket.plan import Condition, ConfigError, agree, make_plan, make_recipe
from thicket.population import OutOfMemory, PopulationError
from thicket.recipe import recipe_hash
from thicket.storage import as_path
from thicket.stored import save_plan
from thicket.summary import Summary


class Run:
  """The pieces of a run, made once; `finish` tells the story."""

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    workdir: str | None = None,
    console: Console | None = None,
    shard: Shard | None = None,
    *,
    fit_members: bool = False,
  ):
    """Loads the model, prepares prompts and opens the ledger.

    Args:
      config: as `configs/llm.py` makes it.
      workdir: folder of the run; by default named by task, model and recipe,
        so that the same recipe resumes and no other one collides.
      console: where progress and tables go.
      shard: the slice of the population to score and nothing else, into a
        folder of its own.
      fit_members: take as many members at a time as fit, rather than
        `config.run.members_per_device`.

    Raises:
      Any of the project's errors, before anything is computed.
    """
    if workdir is not None:
      as_path(workdir)  # what is wrong with it is said before anything loads
    self.console = console or Console()
    self.config = config
    agree(config, workdir, shard=shard, fit_members=fit_members)
    self.plan = make_plan(config)
    self._shard = shard
    if shard is not None:
      shard.check(self.plan)
    base = machine.load_base(config)
    model, self._mesh = base.model, base.mesh
    self._model = model
    recipe = make_recipe(config, self.plan, model, self.plan.greedy)
    processes.agree('recipe', recipe_hash(recipe))
    if workdir is None:
      task = self.plan.task.name.replace(':', '-')
      name = f'{task}-{model.name}-{recipe_hash(recipe)}'
      workdir = os.path.join('runs', name)
    self.workdir = as_path(workdir)
    self._own = self.workdir
    if shard is not None:
      self._own = self.workdir / job_array.FOLDER / shard.folder
    self._prompts: dict[str, tuple] = {}  # by template, see `_prepared`
    self._desks: dict[Condition, Desk] = {}
    self._desk(self.plan.greedy)
    save_plan(self.workdir, config, self.plan)
    self._machine = machine.Machine(
      base, config.population, seed=self.plan.population.seed
    )
    self._members = self._machine.members(
      self.plan.population, self._members_per_device(fit_members)
    )
    self._ours: set[tuple[Condition, str, int, int]] = set()
    self._work = Work(
      self._machine.engine,
      self._members,
      reading.judge(
        self.plan.task, model.tokenizer, config.run.judge_processes
      ),
      self.plan.population,
      metrics=self._own / 'metrics.jsonl',
      members_per_range=config.run.members_per_range,
      keep_texts=config.run.keep_texts,
      console=self.console,
    )

  def finish(self) -> Summary:
    """Searches, compares and reports; the files land in the work folder.

    Whatever interrupts it, judged answers are saved first. A slice of the
    population is only scored; what it took is returned.
    """
    try:
      if self._shard is not None:
        return self._score(self._shard)
      return report.tell(
        self, self.plan, self.workdir, self.console, self._facts
      )
    finally:
      self._work.close()

  def _score(self, shard: Shard) -> dict[str, Any]:
    """The slice's members on all questions that the search may choose by."""
    for split in job_array.splits(self.plan):
      units = np.array(shard.units(self.plan.population.size))
      rows = job_array.row_ids(self.plan, split)
      is_merged = self._merged.seen(split, units, rows).all(axis=(1, 2))
      # The base answers once more: by its lengths others are batched.
      is_merged[units == BASE] = is_merged.all()
      label = f'slice {shard}, {len(units)} members on {split}'
      if is_merged.any():
        self.console.print(
          f'{label}: {is_merged.sum()} of {len(units)} merged already'
        )
      self.get(self.plan.greedy, split, units[~is_merged], label=label)
    work = self._spent()
    self.console.print(tables.work_line(work))
    return {'work': work}

  def results(self) -> dict[str, epath.Path]:
    """Where things lie, by what they are."""
    if self._shard is not None:
      return {'slice': self._own}
    return {
      'report': self.workdir / report.PAGE,
      'summary': self.workdir / report.SUMMARY,
      'ledger': self.workdir / 'ledger',
    }

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
    """The answers of members to a split's questions, made where missing.

    Args:
      condition: under which they answer.
      split: selection, validation or test.
      members: ids; `BASE` for the base.
      draws: which of several answers to each question.
      rows: how many questions, the first; by default all.
      label: says in the progress what this is for.

    Returns:
      The block [m, r, d], members sorted; LedgerError where one is missing.
    """
    desk = self._desk(condition)
    row_ids = desk.questions[split].row_ids[:rows]
    seen = desk.ledger.seen(split, members, row_ids, draws)  # [m, r, d]
    is_done = seen.all(axis=1)
    label = label or f'{len(members)} members on {split}'
    unit = lambda i, j: (condition, split, int(members[i]), int(draws[j]))
    # What this run generated itself is no news.
    known = sum(unit(i, j) not in self._ours for i, j in np.argwhere(is_done))
    if known:
      self.console.print(f'{label}: {known} of {is_done.size} stored')
    todo: dict[bytes, list[tuple[int, int]]] = {}
    for i, j in np.argwhere(~is_done):
      missing = ~seen[i, :, j]
      todo.setdefault(missing.tobytes(), []).append((members[i], draws[j]))
      self._ours.add(unit(i, j))
    # The base first: others are batched by its answers.
    for missing, units in sorted(
      todo.items(), key=lambda item: FIRST not in item[1]
    ):
      which = np.flatnonzero(np.frombuffer(missing, bool))
      self._work.answer(desk, split, which, units, label)
    block = desk.ledger.view(split, members, row_ids, draws)
    if missing := int((~block.seen).sum()):  # each would count as reward 0
      raise LedgerError(
        f'{label}: {missing} of {block.seen.size} answers were not made; the '
        'same command makes them'
      )
    return block

  def held(
    self, condition: Condition, split: str, members: Sequence[int]
  ) -> Block:
    """What is stored of the first draws of members, nothing generated."""
    desk = self._desk(condition)
    return desk.ledger.view(split, members, desk.questions[split].row_ids, (0,))

  def _members_per_device(self, is_free: bool) -> int:
    """As configured or, if we are free to choose, as memory and work allow."""
    plan, mesh = self.plan, self._mesh
    # Whatever the comparison may ask, under each of its prompts.
    templates = {plan.task.prompt_template, *plan.controls.prompts}
    prompts = [self._prepared(template) for template in templates]
    splits = [split for _, some in prompts for split in some.values()]
    found = self._machine.needs(
      rows=self.config.decode.rows,
      buckets=[size for split in splits for size in split.buckets],
      prefix=max(len(prefix) for prefix, _ in prompts),
      max_new_tokens=plan.max_new_tokens,
    )
    chosen = fit.choose(
      found,
      processes.least(fit.free_bytes(mesh.local_devices)),
      asked=None if is_free else self.config.run.members_per_device,
      units=max(plan.population.size, plan.sizes[-1]),
      devices=sharding.num_devices(mesh),
      platform=mesh.devices.flat[0].platform,
    )
    processes.agree('members a step', str(chosen))
    return chosen

  def _prepared(
    self, template: str
  ) -> tuple[list[int], dict[str, evaluation.Questions]]:
    """The prompts of all splits, their shared prefix first."""
    plan, model = self.plan, self._model
    if template not in self._prompts:
      self._prompts[template] = evaluation.prepare(
        dataclasses.replace(plan.task, prompt_template=template),
        model.tokenizer,
        {split: getattr(plan.splits, split) for split in data.SPLITS},
        rows=self.config.decode.rows,
        max_new_tokens=plan.max_new_tokens,
        context_length=model.decoder.config.context_length,
      )
    return self._prompts[template]

  def _desk(self, condition: Condition) -> Desk:
    if condition in self._desks:
      return self._desks[condition]
    plan, model = self.plan, self._model
    task = dataclasses.replace(plan.task, prompt_template=condition.template)
    # First, as it checks that all prompts fit.
    prefix, questions = self._prepared(condition.template)
    recipe = make_recipe(self.config, plan, model, condition)
    self._desks[condition] = Desk(
      condition,
      self._open(condition.folder, recipe),
      questions,
      prefix,
      reading.decoding(
        task,
        model.tokenizer,
        vocab_size=model.decoder.config.vocab_size,
        max_new_tokens=plan.max_new_tokens,
        choose=sampling.sampler(
          plan.population.seed,
          condition.temperature,
          condition.top_k,
          condition.top_p,
        ),
      ),
    )
    return self._desks[condition]

  def _open(self, name: str, recipe: dict[str, Any]) -> Ledger:
    ledger = self.workdir / 'ledger' / name
    if self._shard is None:
      return Ledger.open(ledger, recipe)
    # Before the slice's own, to refuse another recipe than other slices have.
    self._merged = Ledger.claim(ledger, recipe)
    return Ledger.open(self._own / name, recipe)

  def _facts(self) -> dict[str, Any]:
    """What only the model or this process can say; ends up in the summary."""
    return {
      'recipe': self._desk(self.plan.greedy).ledger.recipe,
      'effective_sigmas': self._effective_sigmas(),
      'work': self._spent(),
    }

  def _spent(self) -> dict[str, Any]:
    spent = ranking.Cost()
    for desk in self._desks.values():
      for split in desk.ledger.splits:
        spent += ranking.cost(desk.ledger.view(split))
    return {
      'stored': dataclasses.asdict(spent),
      'this_run': self._work.facts(),
      'devices': f'{jax.device_count()} x {jax.devices()[0].device_kind}',
    }

  def _effective_sigmas(self) -> list[dict[str, Any]]:
    """How far each tensor really moves, for the first member of each sigma.

    Of factored members that is what is written all the same: the vectors.
    """
    model, population = self._model, self.plan.population
    if self.config.model.dtype == 'float32':
      return []  # rounding is far below any sigma in use
    rms = jax.jit(
      lambda base, members: perturb.effective_sigmas(base, members, model.spec)
    )
    found = []
    _, first = np.unique(
      population.sigma_index(population.ids()), return_index=True
    )
    written = lambda weights: {name: weights[name] for name in model.params}
    for ids, moved in self._members.gather(
      first, lambda weights, *_: rms(model.params, written(weights))
    ):
      for i, sigma in enumerate(population.sigma(ids)):
        tensors = {name: float(values[i]) for name, values in moved.items()}
        found.append({'sigma': float(sigma), 'tensors': tensors})
    return found


USER_ERRORS = (
  ConfigError,
  fit.FitError,
  OutOfMemory,
  PopulationError,
  LedgerError,
  tasks.TaskError,
  hub.HubError,
)
