# SPDX-License-Identifier: Apache-2.0
"""What may be concluded: whether the selection can be trusted, and who won."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from thicket.analysis import quality
from thicket.blocks import BASE
from thicket.comparison import Comparison
from thicket.estimates import Estimate, difference
from thicket.plan import Plan
from thicket.ranking import scores_by_id


def trust(plan: Plan, compared: Comparison) -> Estimate:
  """Whether selection scores say something about fresh questions."""
  found, population = compared.found, plan.population
  ids = population.ids()
  is_whole = ~np.isnan(found.scores)
  rewards = found.scored.reward[1:, :, 0][is_whole].astype(np.float64)
  groups = population.sigma_index(ids)[is_whole]
  low, high = plan.task.reward_range
  base_score = found.base_score
  place = {int(i): at for at, i in enumerate(ids[is_whole])}
  chosen = [place[i] for i in found.ranked]
  expected_gain = None
  # Those that a race has left are lucky, and expect too much.
  if is_whole.all():
    expected = quality.shrinkage(rewards, groups, bounds=(low, high))
    expected_gain = float(expected[chosen].mean()) - base_score
  halves = quality.split_half(rewards, groups)
  agreement = []
  validation_gain = None
  validated = compared.validated
  if validated is not None:
    fresh = scores_by_id(validated)
    both = [i for i in place if i in fresh]
    agreement = quality.rank_agreement(
      found.scores[both],
      np.array([fresh[i] for i in both]),
      population.sigma_index(both),
    )
    validation_gain = float(
      np.mean([fresh[i] for i in found.ranked]) - fresh[BASE]
    )
  mean = compared.system('selected-mean')
  by_group = {x['group']: x for x in agreement}
  return {
    'per_sigma': [
      {
        'sigma': population.sigmas[x['group']],
        'members': x['members'],
        'split_half': x['reliability'],
        'spearman': by_group.get(x['group']),
      }
      for x in halves['groups']
    ],
    'split_half': halves['pooled']['reliability'],
    'observed_gain': float(rewards[chosen].mean()) - base_score,
    'expected_gain': expected_gain,
    'validation_gain': validation_gain,
    'test_gain': difference(mean.correct, compared.systems[0].correct),
  }


def verdict(
  plan: Plan, compared: Comparison, summary: Mapping[str, Any]
) -> list[str]:
  """What a reader may take home, claims only where they can be made."""
  k = plan.sizes[-1]
  rows = {row['id']: row for row in summary['test']['systems']}
  vote = rows.get(f'vote-{k}', rows['best-member'])
  name = f'the vote of the best {k}'
  says = [
    _sentence(
      summary['quality']['test_gain'],
      'the selected members, one by one,',
      'the base on fresh questions',
    ),
    _sentence(vote['against_base'], name, 'the greedy base'),
  ]
  if vote['against_samples']:
    temperature = compared.temperature[plan.task.prompt_template]
    says.append(
      _sentence(
        vote['against_samples'],
        name,
        f'as many samples of the base (T = {temperature:g}) at equal passes',
      )
    )
  unselected = compared.system('unselected')
  if unselected is not None:
    ours = compared.system(vote['id'])
    says.append(
      _sentence(
        difference(ours.correct, unselected.correct),
        name,
        f'a vote of {unselected.passes} members that nobody selected',
      )
    )
  if 'prompt' in rows:
    number = summary['choices']['prompt']['number']
    says.append(
      _sentence(
        rows['prompt']['against_base'],
        f'one greedy answer to prompt {number}',
        'one to the prompt of the run',
      )
    )
    searched = compared.system(f'prompt-vote-{k}')
    sampled = compared.system(f'prompt-self-consistency-{k}')
    if searched and sampled:
      says.append(
        _sentence(
          difference(searched.correct, sampled.correct),
          f'under prompt {number}, {name}',
          'as many samples of the base',
        )
      )
  elif summary['choices']['prompt']:
    count = len(plan.controls.prompts)
    says.append(f'no other of {count} prompts was better on selection')
  return [f'{text[0].upper()}{text[1:]}.' for text in says]


def _sentence(found: Estimate, what: str, against: str) -> str:
  interval = tuple(found['interval'])
  text = quality.verdict(
    found['difference'], interval, what, against, found['claim']
  )
  if found['claim'] == 'none' and not interval[0] <= 0 <= interval[1]:
    # Too few unequal questions for what the bootstrap says.
    text += f', exact p = {found["p"]:.2g}'
  return text
