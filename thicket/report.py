# SPDX-License-Identifier: Apache-2.0
"""What a run says: numbers with intervals, from the ledger and the task alone.

No model is needed: a ledger holds every judged row, so a report can be made
again, later or elsewhere. Rates carry Wilson intervals. A difference to the
base is paired: both answered the same questions, which are resampled together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from thicket import blocks, metrics, voting
from thicket.blocks import Block
from thicket.population import BASE, Population
from thicket.tasks import base as tasks

Summary = dict[str, Any]


def rate(correct: np.ndarray) -> Summary:
  """A share of questions, with its 95% Wilson interval."""
  count, total = int(np.sum(correct)), int(np.size(correct))
  low, high = metrics.wilson(count, total)
  return {
    'rate': count / total,
    'interval': [float(low), float(high)],
    'count': count,
    'of': total,
  }


def difference(ours: np.ndarray, base: np.ndarray) -> Summary:
  """Mean difference over questions, with a 95% paired interval."""
  ours, base = np.asarray(ours, np.float64), np.asarray(base, np.float64)
  found = metrics.paired_bootstrap(ours, base)
  if (ours == base).all():
    # Resampling zeros gives [0, 0] and would claim certainty. The exact bound
    # on how often answers differ, having differed in none of n, does not.
    most = 1 - 0.025 ** (1 / ours.size)
    found = metrics.Interval(0.0, -most, most)
  return {
    'difference': float(found.estimate),
    'interval': [float(found.low), float(found.high)],
  }


def scores(block: Block) -> np.ndarray:
  """float32 [m], each member's mean strict reward over rows and draws."""
  return block.reward.mean(axis=(1, 2), dtype=np.float64).astype(np.float32)


def _answer_facts(block: Block) -> Summary:
  return {
    'lenient_reward': float(block.lenient.mean()),
    'abstention_rate': float((block.answer < 0).mean()),
    'truncation_rate': float(block.truncated.mean()),
    'mean_tokens': float(block.num_tokens.mean()),
  }


def member(block: Block, member_id: int) -> Block:
  """The rows of one member of a block, which keeps its axis."""
  at = np.flatnonzero(block.members == member_id)
  names = {'members', 'seen', *blocks.COLUMNS} - {'text'}
  by_member = {name: getattr(block, name)[at] for name in names}
  return dataclasses.replace(block, texts=None, **by_member)


def selection_summary(block: Block, population: Population) -> Summary:
  """What the selection split says of base and members.

  Args:
    block: the base and all N members on the selection rows.
    population: gives members their sigmas.

  Returns:
    Base score, and how the members' scores lie around it for each sigma.
  """
  base_score = float(scores(member(block, BASE))[0])
  is_member = block.members != BASE
  ids, all_scores = block.members[is_member], scores(block)[is_member]
  index = population.sigma_index(ids)
  per_sigma = []
  for i, sigma in enumerate(population.sigmas):
    these = all_scores[index == i]
    if not these.size:
      continue
    per_sigma.append(
      {
        'sigma': sigma,
        'members': int(these.size),
        'mean_score': float(these.mean()),
        'best_score': float(these.max()),
        'above_base': rate(these > np.float32(base_score)),
      }
    )
  return {
    'rows': len(block.rows),
    'base': {
      'score': base_score,
      'accuracy': rate(member(block, BASE).correct),
      **_answer_facts(member(block, BASE)),
    },
    'members': {
      'count': len(ids),
      'mean_score': float(all_scores.mean()),
      'best_score': float(all_scores.max()),
      'per_sigma': per_sigma,
    },
  }


def votes(
  task: tasks.Task,
  examples: Sequence[tasks.Example],
  block: Block,
  ranked: Sequence[int],
  sizes: Sequence[int],
) -> list[Summary]:
  """The votes of the best K members, each answering once, for several K.

  Args:
    task: groups answers into classes and judges the winners.
    examples: the rows of `block`, in its order.
    block: holds the members.
    ranked: member ids, best first.
    sizes: K of each vote, at most `len(ranked)`.

  Returns:
    For each K a `correct` array [r], the share of abstentions among the
    members' answers, and the number of rows without any answer to vote on.
  """
  order = [int(np.flatnonzero(block.members == i)[0]) for i in ranked]
  answers = block.answer[order, :, 0]
  groups = np.append(task.group(block.answers), -1).astype(np.int32)
  classes = groups[answers]  # index -1, an abstention, stays -1
  found = []
  for k, winner in zip(
    sizes, np.asarray(voting.vote_curve(classes, sizes)), strict=True
  ):
    correct = np.zeros(len(examples), bool)
    for row, example in enumerate(examples):
      answer = None
      if winner[row] >= 0:
        # The class speaks through its best-ranked member.
        first = int(np.argmax(classes[:, row] == winner[row]))
        answer = block.answers[answers[first, row]]
      correct[row] = tasks.judge_answer(task, answer, example).is_correct
    found.append(
      {
        'k': k,
        'correct': correct,
        'abstained_votes': float((classes[:k] < 0).mean()),
        'rows_without_vote': int((winner < 0).sum()),
      }
    )
  return found


def test_summary(
  task: tasks.Task,
  examples: Sequence[tasks.Example],
  block: Block,
  ranked: Sequence[int],
  sizes: Sequence[int],
) -> Summary:
  """What the test split says: base, selected members, votes.

  Args:
    task: judges the votes.
    examples: the test rows, in the block's order.
    block: the base and the selected members on the test rows.
    ranked: selected member ids, best selection score first.
    sizes: K of each vote, at most `len(ranked)`.
  """
  base = member(block, BASE)
  base_correct = base.correct[0, :, 0]
  order = [int(np.flatnonzero(block.members == i)[0]) for i in ranked]
  correct = block.correct[order, :, 0]  # [K, r]
  accuracy = correct.mean(axis=1)
  of_k = [
    {
      'k': found['k'],
      'accuracy': rate(found['correct']),
      'against_base': difference(found['correct'], base_correct),
      'abstention_rate': found['abstained_votes'],
      'rows_without_vote': found['rows_without_vote'],
    }
    for found in votes(task, examples, block, ranked, sizes)
  ]
  mean = metrics.mean_interval(correct.mean(axis=0), bounds=(0.0, 1.0))
  if correct.all() or not correct.any():
    # Rows that all agree have no spread, which is no proof of certainty.
    low, high = metrics.wilson(int(correct[0].sum()), correct.shape[1])
    mean = metrics.Interval(mean.estimate, float(low), float(high))
  return {
    'rows': len(examples),
    'base': {'accuracy': rate(base_correct), **_answer_facts(base)},
    'members': {
      'count': len(ranked),
      'mean': {
        'rate': float(mean.estimate),
        'interval': [float(mean.low), float(mean.high)],
        'against_base': difference(correct.mean(axis=0), base_correct),
      },
      'best_by_selection': {
        'member': int(ranked[0]),
        'accuracy': rate(correct[0]),
        'against_base': difference(correct[0], base_correct),
      },
      'best_on_test': {
        'member': int(ranked[int(accuracy.argmax())]),
        'accuracy': rate(correct[accuracy.argmax()]),
      },
      'lenient_reward': float(block.lenient[order].mean()),
      'abstention_rate': float((block.answer[order] < 0).mean()),
      'truncation_rate': float(block.truncated[order].mean()),
    },
    'votes': of_k,
  }


def percent(found: float, interval: Sequence[float], sign: str = '') -> str:
  """A share or a difference of shares with its interval, in percent."""
  low, high = interval
  return (
    f'{100 * found:{sign}.1f} [{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]'
  )


def _table(title: str, *columns: str) -> Table:
  table = Table(
    title=title,
    title_justify='left',
    box=box.SIMPLE_HEAD,
    show_edge=False,
    padding=(0, 1, 0, 0),  # the widest intervals just fit 80 columns
  )
  table.add_column(columns[0], no_wrap=True)
  for name in columns[1:]:
    table.add_column(name, justify='right', no_wrap=True)
  return table


def selection_table(summary: Mapping[str, Any]) -> Table:
  """Members against the base on the selection split, by sigma."""
  table = _table(
    f'Selection: {summary["rows"]} questions, '
    f'the base scores {summary["base"]["score"]:.3f}',
    'sigma',
    'members',
    'mean score',
    'best score',
    'above base % [95%]',
  )
  for row in summary['members']['per_sigma']:
    above = row['above_base']
    table.add_row(
      f'{row["sigma"]:g}',
      str(row['members']),
      f'{row["mean_score"]:.3f}',
      f'{row["best_score"]:.3f}',
      percent(above['rate'], above['interval']),
    )
  return table


def test_table(summary: Mapping[str, Any]) -> Table:
  """Base, selected members and votes on the test split."""
  table = _table(
    f'Test: {summary["rows"]} held-out questions',
    'model',
    'accuracy % [95%]',
    'against base [95%]',
    'abstain %',
  )

  def add(name, found, against=None, abstention=None):
    table.add_row(
      name,
      percent(found['rate'], found['interval']),
      percent(against['difference'], against['interval'], '+')
      if against
      else '',
      '' if abstention is None else f'{100 * abstention:.1f}',
    )

  base, members = summary['base'], summary['members']
  best, lucky = members['best_by_selection'], members['best_on_test']
  add('base, greedy', base['accuracy'], None, base['abstention_rate'])
  add(
    f'mean of {members["count"]} selected',
    members['mean'],
    members['mean']['against_base'],
    members['abstention_rate'],
  )
  add('first in selection', best['accuracy'], best['against_base'])
  # Chosen on test, so an upper bound: it gets no difference to boast with.
  add('best on test (bound)', lucky['accuracy'])
  for row in summary['votes']:
    add(
      f'vote of best {row["k"]}',
      row['accuracy'],
      row['against_base'],
      row['abstention_rate'],
    )
  return table
