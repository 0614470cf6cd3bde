# SPDX-License-Identifier: Apache-2.0
"""The search, and everything its ensemble is compared with on the same rows.

RandOpt (Neural Thickets, arXiv 2603.12228, algorithm 1): score N members on
the selection rows, keep the K best, let them vote. Whether that is worth its
cost is decided by its controls, above all by self-consistency of the base at
as many passes; they are answered by the same prompt, judged by the same
functions and voted by the same rule.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import field

import numpy as np

from thicket import panel
from thicket.blocks import BASE, Block
from thicket.panel import Panel
from thicket.plan import Condition, Plan
from thicket.ranking import Answers, Cost, Ranking, cost, rank, scores
from thicket.stored import NotStored

# In the order of the table.
_KINDS = ('base', 'ensemble', 'sampling', 'control', 'bound')


@dataclasses.dataclass(frozen=True, eq=False)
class System:
  """One row of the table: something that answered all test questions.

  Attributes:
    id: names the row in the summary, such as vote-5.
    name: names it in the table.
    kind: base, ensemble, sampling, control or bound. What was chosen on test
      is a bound: it is compared with nothing.
    passes: answers given to each test question.
    tokens: mean number generated for each test question.
    selection: what was generated to choose it.
    correct: float64 [r], 0 or 1, or a mean over members.
    lenient_correct: float64 [r], by the task's lenient rule.
    released: float64 [r], by the rule released with the paper, of an answer
      or a mean; that rule's vote is not kept, so None for votes and for any.
      NaN without such a rule.
    abstention_rate: share of answers that could not be read.
    without_vote: questions on which all voters abstained.
  """

  id: str
  name: str
  kind: str
  passes: int
  tokens: float
  selection: Cost
  correct: np.ndarray
  lenient_correct: np.ndarray
  released: np.ndarray | None
  abstention_rate: float | None = None
  without_vote: int = 0


@dataclasses.dataclass(eq=False)
class Comparison:
  """All systems, and what is needed to explain them; controls add to it.

  Attributes:
    found: the search.
    base: the base's greedy answers, a panel of one.
    ensemble: the K selected.
    prompt: the template chosen on selection.
    validated: the base and members on the validation rows, or None.
    systems: rows of the table, the base first.
    samples: K samples of the base at each temperature.
    temperature: the one chosen on selection, by prompt.
    temperature_scores: accuracy of the vote of K on selection, by prompt and
      temperature; empty where there was nothing to choose.
    prompt_scores: the base's score on selection, by template.
    populations: the search and its K on test, by N.
    missing: why some controls are not there.
  """

  found: Ranking
  base: Panel
  ensemble: Panel
  prompt: str
  validated: Block | None
  systems: list[System] = field(default_factory=list)
  samples: dict[float, Panel] = field(default_factory=dict)
  temperature: dict[str, float] = field(default_factory=dict)
  temperature_scores: dict[str, dict[float, float]] = field(
    default_factory=dict
  )
  prompt_scores: dict[str, float] = field(default_factory=dict)
  populations: dict[int, tuple[Ranking, Panel]] = field(default_factory=dict)
  missing: list[str] = field(default_factory=list)

  def system(self, name: str) -> System | None:
    """The system with that id, if it is there."""
    return next((x for x in self.systems if x.id == name), None)


def compare(answers: Answers, plan: Plan, found: Ranking) -> Comparison:
  """Has the selected members and all controls answer the test questions.

  Args:
    answers: where judged answers come from.
    plan: names the controls.
    found: the search under the plan's own prompt, of all N.
  """
  story = _Story(answers, plan, found)
  story.show_ensemble()
  for control in (
    story.show_self_consistency,
    story.show_unselected,
    story.show_same_sigma,
    story.show_majority,
    story.show_prompts,
    story.show_populations,
    story.show_validation,
  ):
    try:
      control()
    except NotStored as error:
      story.told.missing.append(str(error))
  story.told.systems.sort(key=lambda x: _KINDS.index(x.kind))
  return story.told


class _Story:
  """Adds one system after the other; each method is one control."""

  def __init__(self, answers: Answers, plan: Plan, found: Ranking):
    self.answers, self.plan, self.found = answers, plan, found
    self.k = plan.sizes[-1]
    self.told = Comparison(
      found,
      self._members(plan.greedy, [BASE], 'base on test'),
      self._members(
        found.condition, found.ranked, f'{self.k} selected on test'
      ),
      plan.task.prompt_template,
      found.validated,
    )

  def show_ensemble(self) -> None:
    """The base, the K selected one by one, their votes, and two bounds."""
    self._add_vote('base', 'base, greedy', 'base', self.told.base, Cost())
    chosen, spent = self.told.ensemble, self.found.cost
    self.told.systems.append(
      System(
        'selected-mean',
        f'mean of {self.k} selected',
        'ensemble',
        1,
        float(chosen.num_tokens.mean()),
        spent,
        chosen.correct.mean(axis=0),
        chosen.lenient_correct.mean(axis=0),
        chosen.released.mean(axis=0, dtype=np.float64),
        float((chosen.classes < 0).mean()),
      )
    )
    self._add_vote(
      'best-member', 'best on selection', 'ensemble', chosen, spent, k=1
    )
    for k in self.plan.sizes:
      if k > 1:
        self._add_vote(
          f'vote-{k}', f'vote of best {k}', 'ensemble', chosen, spent, k=k
        )
    accuracy = chosen.correct.mean(axis=1)
    self._add_bound(
      'best-on-test', 'best on test', chosen, int(accuracy.argmax())
    )
    self._add_bound('oracle', f'any of {self.k} selected', chosen)

  def show_self_consistency(self) -> None:
    """Votes of the base's samples, at the temperature chosen on selection."""
    template = self.plan.task.prompt_template
    if not self.plan.controls.temperatures:
      return
    best, spent = self._choose_temperature(template)
    for temperature in self.plan.controls.temperatures:
      samples = self._samples(template, temperature, 'test')
      self.told.samples[temperature] = samples
      is_best = temperature == best
      for k in self.plan.sizes if is_best else (self.k,):
        self._add_vote(
          f'self-consistency-{k}' if is_best else f'samples-{temperature:g}',
          f'{k} sample{"s" * (k > 1)} at T = {temperature:g}',
          'sampling' if is_best else 'control',
          samples,
          spent if is_best else Cost(),
          k=k,
        )
    self._add_bound(
      'oracle-samples',
      f'any of {self.k} samples',
      self.told.samples[best],
    )

  def show_unselected(self) -> None:
    """K random members vote: what noise and a vote do without selection."""
    if self.plan.controls.unselected:
      first = self.plan.population.unselected(self.k)
      self._add_random('unselected', 'unselected', first, Cost())

  def show_same_sigma(self) -> None:
    """K random members of the sigma that most of the selected have."""
    if not self.plan.controls.same_sigma:
      return
    population = self.plan.population
    same = population.of_likely_sigma(self.found.ranked, self.k)
    name = f'of sigma {population.sigma(same[:1])[0]:g}'
    # Which sigma wins is known only after the search.
    self._add_random('same-sigma', name, same, self.found.cost)

  def show_majority(self) -> None:
    """The commonest class on selection for every question, without a model."""
    task, splits = self.plan.task, self.plan.splits
    if task.output_kind != 'label':
      return
    known = [example.gold for example in splits.selection]
    label = max(task.labels, key=known.count)  # the first among equals
    hits = [task.is_correct(label, example) for example in splits.test]
    right = np.array(hits, np.float64)
    always = 'majority', f'always {label}', 'control', 0, 0.0, Cost()
    self.told.systems.append(System(*always, right, right, None))

  def show_prompts(self) -> None:
    """The prompt that is best on selection, without any search in weights."""
    prompts, own = self.plan.controls.prompts, self.plan.task.prompt_template
    if len(prompts) < 2:
      return
    spent = Cost()
    for number, template in enumerate(prompts, 1):
      block = self.answers.get(
        Condition(template), 'selection', [BASE],
        label=f'prompt {number} on selection',
      )  # fmt: skip
      self.told.prompt_scores[template] = float(scores(block)[0])
      spent += cost(block)
    # The first among equals.
    self.told.prompt = max(prompts, key=lambda x: self.told.prompt_scores[x])
    number = prompts.index(self.told.prompt) + 1
    if self.told.prompt == own:
      return  # the rows that are there already
    voters = self._members(
      Condition(self.told.prompt), [BASE], f'prompt {number} on test'
    )
    self._add_vote(
      'prompt', f'prompt {number}, greedy', 'control', voters, spent
    )
    if self.plan.controls.temperatures:
      best, more = self._choose_temperature(self.told.prompt)
      self._add_vote(
        f'prompt-self-consistency-{self.k}',
        f'prompt {number}, {self.k} samples',
        'control',
        self._samples(self.told.prompt, best, 'test'),
        spent + more,
      )
    if self.plan.controls.prompt_search:
      found = rank(
        self.answers,
        self.plan,
        Condition(self.told.prompt),
        self.plan.controls.prompt_search,
      )
      self._add_vote(
        f'prompt-vote-{self.k}',
        f'prompt {number}, vote of best {self.k}',
        'control',
        self._members(
          found.condition,
          found.ranked,
          f'{self.k} selected under prompt {number} on test',
        ),
        spent + found.cost,
      )

  def show_populations(self) -> None:
    """The same search in ever larger populations, each holding the last."""
    for size in self.plan.controls.population_sizes:
      found = rank(self.answers, self.plan, self.plan.greedy, size)
      voters = self._members(
        found.condition, found.ranked, f'best {self.k} of {size} on test'
      )
      self.told.populations[size] = found, voters
    self.told.populations[self.plan.population.size] = (
      self.found,
      self.told.ensemble,
    )

  def show_validation(self) -> None:
    """All members on fresh rows, to see what their selection scores mean."""
    if self.plan.controls.validation:
      ids = self.plan.population.ids()
      self.told.validated = self.answers.get(
        self.plan.greedy, 'validation', [BASE, *ids],
        label=f'{len(ids)} members on validation',
      )  # fmt: skip

  def _choose_temperature(self, template: str) -> tuple[float, Cost]:
    """The temperature whose vote is best on selection, the lowest of equals."""
    temperatures = self.plan.controls.temperatures
    spent, accuracy = Cost(), {}
    if len(temperatures) > 1:
      for temperature in temperatures:
        samples = self._samples(template, temperature, 'selection')
        (vote,) = samples.votes([self.k])
        accuracy[temperature] = float(vote.correct.mean())
        tokens = int(samples.num_tokens.sum())
        spent += Cost(samples.num_tokens.size, tokens)
    best = max(temperatures, key=lambda t: accuracy.get(t, 0.0))
    self.told.temperature[template] = best
    self.told.temperature_scores[template] = accuracy
    return best, spent

  def _members(
    self, condition: Condition, ranked: Sequence[int], label: str
  ) -> Panel:
    block = self.answers.get(condition, 'test', ranked, label=label)
    return panel.of_members(
      self.plan.task, self.plan.splits.test, block, ranked
    )

  def _samples(self, template: str, temperature: float, split: str) -> Panel:
    block = self.answers.get(
      self.plan.sampled(temperature, template), split, [BASE], range(self.k),
      label=f'{self.k} samples at T = {temperature:g} on {split}',
    )  # fmt: skip
    examples = getattr(self.plan.splits, split)
    return panel.of_draws(self.plan.task, examples, block)

  def _add_random(
    self, name: str, what: str, ids: Sequence[int], spent: Cost
  ) -> None:
    voters = self._members(
      self.plan.greedy, [int(i) for i in ids], f'{len(ids)} {what} on test'
    )
    k = len(ids)
    self._add_vote(name, f'vote of {k} {what}', 'control', voters, spent)

  def _add_vote(
    self,
    name: str,
    shown: str,
    kind: str,
    voters: Panel,
    spent: Cost,
    k: int | None = None,
  ) -> None:
    k = len(voters.classes) if k is None else k
    (vote,) = voters.votes([k])
    self.told.systems.append(
      System(
        name,
        shown,
        kind,
        k,
        float(voters.num_tokens[:k].sum(axis=0).mean()),
        spent,
        vote.correct.astype(np.float64),
        vote.lenient_correct.astype(np.float64),
        voters.released[0].astype(np.float64) if k == 1 else None,
        vote.abstention_rate,
        int((vote.speaker < 0).sum()),
      )
    )

  def _add_bound(
    self, name: str, shown: str, voters: Panel, which: int | None = None
  ) -> None:
    """The voter `which`, or else a question counts if any voter is right."""
    pick = lambda x: x.any(axis=0) if which is None else x[which]
    tokens = voters.num_tokens.sum(axis=0)
    if which is not None:
      tokens = voters.num_tokens[which]
    self.told.systems.append(
      System(
        name,
        shown,
        'bound',
        len(voters.classes) if which is None else 1,
        float(tokens.mean()),
        Cost(),
        pick(voters.correct).astype(np.float64),
        pick(voters.lenient_correct).astype(np.float64),
        None if which is None else voters.released[which].astype(np.float64),
      )
    )
