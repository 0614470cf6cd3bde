# SPDX-License-Identifier: Apache-2.0
"""The README.md of an exported model, from what its run has stored.

Its first lines are what Hugging Face reads; the rest says what the model is,
how it was found and what is known of it. A member was chosen for its selection
score, so that score stands beside a warning, and a merge has no scores.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from thicket import data, estimates, ranking, tables
from thicket.blocks import BASE
from thicket.merging import Mix
from thicket.ranking import Ranking
from thicket.stored import Stored

PAPER = '[arXiv 2603.12228](https://arxiv.org/abs/2603.12228)'


def render(
  stored: Stored,
  found: Ranking,
  mix: Mix,
  base: str,
  dtype: str,
  command: Sequence[str],
  notes: Iterable[str] = (),
) -> str:
  """The card's text.

  Args:
    stored: of the run.
    found: its ranking.
    mix: what is exported.
    base: the base model's name.
    dtype: of the exported weights.
    command: what was called, by its parts.
    notes: sentences on how this copy came about.
  """
  ids = ', '.join(map(str, mix.members))
  what = f'member {ids}' if mix.is_member else f'a merge of members {ids}'
  if not mix.is_member and len(mix.members) == 1:
    what = f'member {ids}, weighted'
  title = f'{base}, {what}'
  parts = [
    _front_matter(base),
    f'# {title}',
    f'A random perturbation of the weights of {base}, found by RandOpt '
    f'({PAPER}): of {stored.plan.population.size} members, drawn around the '
    'base without any gradient, each was scored on a small selection set. '
    + _formula(mix, dtype),
    *notes,
    '## Recipe\n\n' + _recipe(stored, dtype),
    '## Members\n\n' + _members(stored, found, mix),
    '## Scores\n\n' + _scores(stored, mix),
    '## Made by\n\n```\n' + shlex.join(command) + '\n```',
  ]
  return '\n\n'.join(parts) + '\n'


def _front_matter(base: str) -> str:
  # A string of JSON is one of YAML too.
  return '\n'.join(
    [
      '---',
      f'base_model: {json.dumps(base)}',
      'library_name: transformers',
      'pipeline_tag: text-generation',
      'tags:',
      '- thicket',
      '- randopt',
      '---',
    ]
  )


def _formula(mix: Mix, dtype: str) -> str:
  if mix.is_member:
    return (
      'This is one member: `w + c n` for each base weight `w`, with the unit '
      'noise `n` and the step `c` that the recipe gives. Its weights are those '
      'that were evaluated, but for what is noted below.'
    )
  return (
    'This is a merge: `w + sum_i a_i (w_i - w)` in float32, rounded once to '
    f'{dtype}, for each base weight `w`, with the weights `w_i` and the factor '
    '`a_i` of each member below.'
  )


def _recipe(stored: Stored, dtype: str) -> str:
  model, noise = stored.recipe['model'], stored.recipe['noise']
  rows = {
    'base model': model['name'],
    'SHA-256 of its files': model['sha256'],
    **({'commit': model['revision']} if model.get('revision') else {}),
    'evaluated with weights in': model['dtype'],
    'exported with weights in': dtype,
    'noise family': noise['family'],
    'sigma scale': noise['scale'],
    'sigmas of the population': _list(noise['sigmas']),
    'mirrored pairs': 'yes' if noise['antithetic'] else 'no',
    'perturbed tensors': _moved(noise['only'], noise['skip']),
    'seed': noise['seed'],
    'random numbers': f'{noise["prng"]}, version {noise["version"]}',
    'evaluated on': noise['arithmetic'],
    'thicket': stored.recipe['thicket'],
  }
  return _table(['setting', 'value'], rows.items())


def _moved(only: str, skip: str) -> str:
  text = f'those that match `{only}`' if only else 'all'
  return f'{text} but those that match `{skip}`' if skip else text


def _members(stored: Stored, found: Ranking, mix: Mix) -> str:
  population = stored.plan.population
  ranks = {member: i for i, member in enumerate(found.ranked, 1)}
  # Below 0 for the mirror image.
  steps = population.amplitude(mix.members)
  return _table(
    ['member', 'rank of selection', 'sigma', 'weight'],
    (
      (member, ranks.get(member, 'not selected'), f'{step:g}', f'{weight:g}')
      for member, step, weight in zip(
        mix.members, steps, mix.weights, strict=True
      )
    ),
  )


def _scores(stored: Stored, mix: Mix) -> str:
  plan = stored.plan
  rows = []
  for split in data.SPLITS:
    rows += _scores_of(stored, mix, split)
  whose = 'the member' if mix.is_member else 'each member alone'
  prompt = json.dumps(plan.task.prompt_template, ensure_ascii=False)
  how = f'greedy decoding of at most {plan.max_new_tokens} tokens'
  if plan.task.output_kind == 'label':
    how = 'the likeliest label'
  paragraphs = [
    f'Task `{plan.task.name}`, prompt `{prompt}`, {how}. The score is the '
    f'mean reward, accuracy is in percent; both are of {whose}, by the run '
    'itself. Brackets are 95% intervals: Wilson for an accuracy, a paired '
    'bootstrap over questions for the difference from the base.',
    _table(
      ['split', 'questions', 'model', 'score', 'accuracy', 'against the base'],
      rows,
    ),
  ]
  if not mix.is_member:
    paragraphs.append(
      '**The merge has not been evaluated.** What its members score alone does '
      'not say what it scores.'
    )
  paragraphs.append(
    '**Selection scores of selected members are too high.** Members are '
    f'selected for them, and the best of {plan.population.size} noisy scores '
    'is partly luck: on new questions it regresses to the mean. The test '
    'split, by which nothing was selected, estimates what to expect there.'
  )
  return '\n\n'.join(paragraphs)


def _scores_of(stored: Stored, mix: Mix, split: str) -> list[tuple]:
  """Rows of the base and of members, a gap where not all was answered."""
  questions = len(getattr(stored.plan.splits, split))
  if not questions:
    return []
  ids = [BASE, *mix.members]
  block = stored.held(stored.plan.greedy, split, ids)
  place = {int(member): i for i, member in enumerate(block.members)}
  whole = block.seen.all(axis=(1, 2))
  scores = ranking.scores(block)
  correct = block.correct[:, :, 0].astype(np.float64)
  rows = []
  for member in ids:
    at = place[member]
    name = 'base' if member == BASE else f'member {member}'
    cells = ('not evaluated', '', '')
    if whole[at]:
      right = estimates.rate(correct[at])
      against = ''
      if member != BASE and whole[place[BASE]]:
        gain = estimates.difference(correct[at], correct[place[BASE]])
        against = tables.percent(gain['difference'], gain['interval'], '+')
      cells = (
        f'{scores[at]:.4g}',
        tables.percent(right['rate'], right['interval']),
        against,
      )
    rows.append((split, questions, name, *cells))
  return rows


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
  line = lambda cells: (
    '| ' + ' | '.join(str(x).replace('|', r'\|') for x in cells) + ' |'
  )
  return '\n'.join([line(head), '|---' * len(head) + '|', *map(line, rows)])


def _list(values: Iterable[float]) -> str:
  return ', '.join(f'{value:g}' for value in values)
