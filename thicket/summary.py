# SPDX-License-Identifier: Apache-2.0
"""Every number of a report, as one tree of plain values.

Rates carry Wilson intervals. Differences are paired, since all systems
answered the same questions, and carry bootstrap intervals over questions and
an exact McNemar p, corrected by Holm over all differences of the table.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from thicket import conclusions, estimates, metrics, race
from thicket.analysis import curves
from thicket.analysis.repairs import repairs
from thicket.blocks import Block
from thicket.comparison import Comparison, System
from thicket.data import overlap
from thicket.estimates import (
  accuracy,
  balanced_accuracy,
  difference,
  rate,
)
from thicket.panel import of_members
from thicket.plan import Plan
from thicket.ranking import Answers, Cost, Ranking, scores_by_id

Summary = dict[str, Any]
Facts = Callable[[], dict[str, Any]]


def build(answers: Answers, plan: Plan, compared: Comparison) -> Summary:
  """The summary of a comparison, without what only a run knows."""
  found = compared.found
  systems = _systems(plan, compared)
  tested = _tested(answers, plan, compared)
  (vote,) = compared.ensemble.votes([plan.sizes[-1]])
  summary = {
    'run': {
      'task': plan.task.name,
      **plan.labels,
      'N': plan.population.size,
      'K': plan.sizes[-1],
      'sizes': list(plan.sizes),
      'sigmas': list(plan.population.sigmas),
      'antithetic': plan.population.antithetic,
      'seed': plan.population.seed,
      'prompt': plan.task.prompt_template,
    },
    'selection': selection_summary(plan, found),
    'selected': [x for i in found.ranked for x in tested if x['member'] == i],
    'tested': tested,
    'choices': _choices(plan, compared),
    'test': {'rows': len(plan.splits.test), 'systems': systems},
    'curves': _curves(plan, compared),
    'quality': conclusions.trust(plan, compared),
    'repairs': repairs(
      plan.splits.test, compared.base, compared.ensemble, vote
    ),
    'near_duplicates': overlap.summary(plan.splits),
    'missing': compared.missing + _not_released(compared),
  }
  summary['verdict'] = conclusions.verdict(plan, compared, summary)
  return summary


def selection_summary(plan: Plan, found: Ranking) -> Summary:
  """What the selection split says of base and members.

  Mirrored pairs count as one trial in the interval of the share above base.
  """
  block, population = found.scored, plan.population
  base_score, ids = found.base_score, population.ids()[: len(found.scores)]
  index = population.sigma_index(ids)
  finished = ~np.isnan(found.scores)
  per_sigma = []
  for i, sigma in enumerate(population.sigmas):
    these = found.scores[(index == i) & finished]
    if these.size:
      per_sigma.append(
        {
          'sigma': sigma,
          'members': int(these.size),
          'mean_score': float(these.mean()),
          'best_score': float(these.max()),
          'above_base': rate(these > np.float32(base_score), population.alike),
        }
      )
  return {
    'rows': len(block.rows),
    'base': {
      'score': base_score,
      **answered(block, 0),  # it stands first
    },
    'members': {
      'count': len(ids),
      'mean_score': float(found.scores[finished].mean()),
      'best_score': float(found.scores[finished].max()),
      'mean_accuracy': float(block.correct[1:][finished].mean()),
      'mean_lenient_accuracy': float(
        block.lenient_correct[1:][finished].mean()
      ),
      'mean_released_accuracy': _released(block.released[1:][finished]),
      'per_sigma': per_sigma,
      'each': [
        {
          'member': int(i),
          'sigma': float(population.sigma([i])[0]),
          'score': _number(found.scores[i]),
          'rows': int(found.asked[i]),
        }
        for i in ids
      ],
    },
    'cost': _cost(found.cost),
    'race': _race(plan, found),
  }


def answered(block: Block, place: int) -> Summary:
  """What the answers of the member in this place come to, by each rule."""
  return {
    'accuracy': rate(block.correct[place]),
    'lenient_accuracy': float(block.lenient_correct[place].mean()),
    'released_accuracy': _released(block.released[place]),
    'abstention_rate': float((block.answer[place] < 0).mean()),
    'truncation_rate': float(block.truncated[place].mean()),
    'mean_tokens': float(block.num_tokens[place].mean()),
  }


def _released(values: np.ndarray | None) -> float | None:
  """Their mean; None if one is not known, so that no two parts are mixed."""
  if values is None:
    return None
  return _number(values.mean(dtype=np.float64))


def _not_released(compared: Comparison) -> list[str]:
  """Says so if some answers are older than what the released rule says."""
  kept = [x.released for x in compared.systems if x.released is not None]
  is_lacking = np.isnan(kept)  # [systems, questions]
  if is_lacking.all() or not is_lacking.any():
    return []
  return [
    'accuracy by the released rule, of systems some of whose answers were '
    'judged by a version that did not keep it'
  ]


def _number(value: float) -> float | None:
  return None if np.isnan(value) else float(value)


def _cost(spent: Cost) -> Summary:
  return {'answers': int(spent.answers), 'tokens': int(spent.tokens)}


def _race(plan: Plan, found: Ranking) -> Summary:
  """What the race saved, or would have; recall where all rows are known."""
  rule, block = plan.selection, found.scored
  total = len(block.rows) * len(found.asked)
  result = {
    'used': bool(rule.race),
    'z': rule.race_z,
    'rows': list(rule.race_rows),
    'saved': 1 - float(found.asked.sum()) / total,
    'recall': None,
  }
  if block.seen.all():
    replayed = race.replay(
      block.reward[1:, :, 0],
      plan.sizes[-1],
      rule.race_rows,
      z=rule.race_z,
      bounds=plan.task.reward_range,
    )
    result |= {'saved': replayed.saved, 'recall': replayed.recall}
  return result


def _systems(plan: Plan, compared: Comparison) -> list[Summary]:
  """Rows of the table; p-values are corrected over all of them."""
  base, rows = compared.systems[0], []
  golds = [x.gold for x in plan.splits.test]
  pairs = []
  for system in compared.systems:
    row = {
      'id': system.id,
      'name': system.name,
      'kind': system.kind,
      'passes': system.passes,
      'tokens_per_question': system.tokens,
      'selection': _cost(system.selection),
      'accuracy': accuracy(system.correct),
      'balanced_accuracy': (
        balanced_accuracy(system.correct, golds)
        if plan.task.is_classification
        else None
      ),
      'lenient_accuracy': float(system.lenient_correct.mean()),
      'released_accuracy': _released(system.released),
      'abstention_rate': system.abstention_rate,
      'without_vote': system.without_vote,
      'against_base': None,
      'against_samples': None,
    }
    for column, other in (
      ('against_base', base),
      ('against_samples', _equal_passes(compared, system)),
    ):
      if other not in (None, system) and system.kind != 'bound':
        pairs.append((row, column, system.correct, other.correct))
    rows.append(row)
  estimates.attach(pairs)
  return rows


def _equal_passes(compared: Comparison, system: System) -> System | None:
  """Self-consistency with as many answers to each question."""
  if system.kind not in ('ensemble', 'control') or system.id == 'prompt':
    return None
  return compared.system(f'self-consistency-{system.passes}')


def _tested(
  answers: Answers, plan: Plan, compared: Comparison
) -> list[Summary]:
  """Every member that has answered all test questions, with its scores."""
  found = compared.found
  ids = plan.population.ids()
  block = answers.held(plan.greedy, 'test', ids)
  whole = block.seen.all(axis=(1, 2))
  fresh = compared.validated
  again = {} if fresh is None else scores_by_id(fresh)
  return [
    {
      'member': int(i),
      'sigma': float(plan.population.sigma([i])[0]),
      'score': _number(found.scores[i]),
      'validation_score': float(again[i]) if i in again else None,
      'test_accuracy': float(block.correct[i].mean()),
      'selected': int(i) in found.ranked,
    }
    for i in ids[whole]
  ]


def _choices(plan: Plan, compared: Comparison) -> Summary:
  prompts, own = plan.controls.prompts, plan.task.prompt_template
  choices: Summary = {'temperature': None, 'prompt': None}
  if own in compared.temperature:
    choices['temperature'] = {
      'chosen': compared.temperature[own],
      'scores': {
        f'{temperature:g}': found
        for temperature, found in compared.temperature_scores[own].items()
      },
    }
  if len(compared.prompt_scores) == len(prompts) > 1:
    choices['prompt'] = {
      'chosen': compared.prompt,
      'number': prompts.index(compared.prompt) + 1,
      'candidates': [
        {'template': template, 'score': compared.prompt_scores[template]}
        for template in prompts
      ],
    }
  return choices


def _curves(plan: Plan, compared: Comparison) -> Summary:
  base = compared.base.correct[0]

  def points(right: np.ndarray) -> list[Summary]:
    against = metrics.paired_difference(right, base)
    return [
      {
        'k': k,
        'accuracy': rate(correct),
        'against_base': {
          'difference': float(against.estimate[k - 1]),
          'interval': [float(against.low[k - 1]), float(against.high[k - 1])],
        },
      }
      for k, correct in enumerate(right, 1)
    ]

  temperature = compared.temperature.get(plan.task.prompt_template)
  samples = compared.samples.get(temperature)
  return {
    'size': {
      'ensemble': points(curves.against_size(compared.ensemble)),
      'self_consistency': (
        points(curves.against_size(samples)) if samples else []
      ),
      'temperature': temperature,
    },
    'population': _population_curve(plan, compared),
  }


def _population_curve(plan: Plan, compared: Comparison) -> list[Summary]:
  if len(compared.populations) < 2:
    return []  # a point is no curve
  base, k = compared.base.correct[0], plan.sizes[-1]
  block, found = compared.found.scored, compared.found
  everyone = None
  if block.seen.all():
    everyone = of_members(
      plan.task, plan.splits.selection, block, range(len(found.scores))
    )
  tested = set(found.ranked)  # paid for by the search itself
  points = []
  for size, (ranking, voters) in sorted(compared.populations.items()):
    (vote,) = voters.votes([k])
    new = set(ranking.ranked) - tested
    tested |= new
    split = None
    if everyone is not None:
      mean, low, high = curves.resampled_populations(
        found.scores, everyone, size, k
      )
      split = {'rate': mean, 'interval': [low, high]}
    points.append(
      {
        'n': size,
        'k': k,
        'accuracy': rate(vote.correct),
        'against_base': difference(vote.correct, base),
        'new_test_answers': len(new) * len(plan.splits.test),
        'selection_split': split,
      }
    )
  return points
