# SPDX-License-Identifier: Apache-2.0
"""Every number of a report, from blocks written by hand."""

import collections
import dataclasses
import re

import numpy as np
import pytest
import scipy.stats
from rich.console import Console

from thicket import metrics, report
from thicket.blocks import Block
from thicket.population import BASE, Population
from thicket.tasks import base as tasks

SIGMAS = (0.001, 0.002, 0.004)


@dataclasses.dataclass(frozen=True)
class Fractions(tasks.Task):
  """Answers that are written differently and mean the same."""

  name = 'fractions'
  reward_range = (0.0, 1.0)

  def group(self, answers):
    values = [_value(answer) for answer in answers]
    return [values.index(value) for value in values]

  def is_correct(self, answer, example):
    return answer is not None and _value(answer) == _value(example.gold)


def _value(text):
  above, _, below = text.partition('/')
  return float(above) / float(below or 1)


class Plain(tasks.Task):
  """Equal strings vote together."""

  name = 'plain'
  reward_range = (0.0, 1.0)


def _examples(*gold):
  return tuple(
    tasks.Example(10 + i, f'question {i}', answer)
    for i, answer in enumerate(gold)
  )


def _block(examples, said, task=None, **columns):
  """A block from {member: answers}, judged by the task; None abstains."""
  task = Plain() if task is None else task
  table = sorted({a for row in said.values() for a in row if a is not None})
  index = {None: -1} | {answer: i for i, answer in enumerate(table)}
  answer = np.array([[index[a] for a in row] for row in said.values()])
  correct = np.array(
    [
      [task.is_correct(a, x) for a, x in zip(row, examples, strict=True)]
      for row in said.values()
    ]
  )
  fields = {
    'reward': correct.astype(np.float32),
    'lenient': correct.astype(np.float32),
    'correct': correct,
    'lenient_correct': correct,
    'answer': answer.astype(np.int32),
    'lenient_answer': answer.astype(np.int32),
    'num_tokens': np.ones(correct.shape, np.int32),
    'truncated': np.zeros(correct.shape, bool),
  } | {name: np.asarray(value) for name, value in columns.items()}
  return Block(
    members=np.array(list(said), np.int32),
    rows=np.array([x.row_id for x in examples]),
    draws=np.zeros(1, np.int32),
    seen=np.ones((*correct.shape, 1), bool),
    answers=tuple(table),
    **{name: value[..., None] for name, value in fields.items()},
  )


def _scored(rewards, rows=4):
  """A block in which members, the base first, earn these mean rewards."""
  examples = _examples(*'abcdefgh'[:rows])
  said = {i - 1: [None] * rows for i in range(len(rewards))}
  reward = np.zeros((len(rewards), rows), np.float32)
  reward[:] = np.asarray(rewards, np.float32)[:, None]
  return _block(examples, said, reward=reward)


def _rate(count, of):
  low, high = metrics.wilson(count, of)
  return {
    'rate': count / of,
    'interval': [float(low), float(high)],
    'count': count,
    'of': of,
  }


# Pieces.


def test_a_rate_is_a_share_with_its_wilson_interval():
  assert report.rate(np.array([[1, 0], [1, 1]], bool)) == _rate(3, 4)
  assert report.rate(np.zeros(5, bool)) == _rate(0, 5)
  # Wilson, written out for 3 of 4.
  z2 = 1.959963984540054**2
  centre, reach = (3 + z2 / 2) / (4 + z2), np.sqrt(z2 * (0.75 + z2 / 4))
  np.testing.assert_allclose(
    report.rate(np.array([1, 1, 1, 0]))['interval'],
    [centre - reach / (4 + z2), centre + reach / (4 + z2)],
    rtol=1e-12,
  )


def test_a_difference_is_paired():
  base = np.array([1, 0, 0, 1, 0, 0, 0, 0], bool)
  better = base | np.array([0, 1, 1, 0, 0, 0, 0, 0], bool)
  found = metrics.paired_bootstrap(better.astype(float), base.astype(float))
  got = report.difference(better, base)
  assert got == {
    'difference': 0.25,
    'interval': [found.low, found.high],
  }
  # Never differing in 8 questions is no proof of never differing: a share of
  # 1 - 0.025 ** (1 / 8) goes unseen once in forty times (Clopper-Pearson).
  same = report.difference(base, base)
  high = scipy.stats.binomtest(0, 8).proportion_ci(method='exact').high
  assert same['difference'] == 0
  assert same['interval'] == pytest.approx([-high, high])
  assert report.difference(base, ~base)['difference'] == -0.5


def test_scores_are_means_of_strict_rewards():
  block = _block(
    _examples(*'abc'),
    {BASE: 'abx', 4: [None] * 3},
    lenient=np.ones((2, 3), np.float32),
  )
  scores = report.scores(block)
  assert scores.dtype == np.float32
  np.testing.assert_array_equal(scores, np.float32([2 / 3, 0]))


def test_scores_are_rounded_once():
  # Summed in float32 from left to right, these lose the small ones.
  reward = np.ones((1, 4), np.float32) * np.float32([2**24, 1, 1, 1])
  block = _block(_examples(*'abcd'), {0: 'abcd'}, reward=reward)
  assert report.scores(block)[0] == np.float32((2**24 + 3) / 4)


def test_one_member_of_a_block():
  block = _block(_examples(*'ab'), {BASE: 'aa', 7: 'bb', 3: 'ab'})
  one = report.member(block, 7)
  assert one.members.tolist() == [7]
  assert one.correct[..., 0].tolist() == [[False, True]]
  assert one.answer[..., 0].tolist() == [[1, 1]]
  assert one.rows.tolist() == block.rows.tolist()


# Selection.


def test_selection_summary_is_exact():
  examples = _examples(*'abcd')
  said = {
    BASE: ['a', 'x', None, 'd'],
    0: ['a', 'b', 'c', 'd'],
    1: ['a', 'x', 'x', 'd'],
    2: [None, None, None, None],
    3: ['a', 'b', 'x', 'd'],
    4: ['x', 'x', 'x', 'x'],
  }
  lenient = np.zeros((6, 4), np.float32)
  lenient[0] = 1, 1, 0, 1
  tokens = np.ones((6, 4), np.int32)
  tokens[0] = 4, 5, 9, 4
  truncated = np.zeros((6, 4), bool)
  truncated[0, 2] = True
  block = _block(
    examples, said, lenient=lenient, num_tokens=tokens, truncated=truncated
  )
  assert report.selection_summary(block, Population(0, 5, SIGMAS)) == {
    'rows': 4,
    'base': {
      'score': 0.5,
      'accuracy': _rate(2, 4),
      'lenient_reward': 0.75,
      'abstention_rate': 0.25,
      'truncation_rate': 0.25,
      'mean_tokens': 5.5,
    },
    'members': {
      'count': 5,
      'mean_score': float(np.float32([1, 0.5, 0, 0.75, 0]).mean()),
      'best_score': 1.0,
      # Five members on three sigmas: two, two and one.
      'per_sigma': [
        {
          'sigma': 0.001,
          'members': 2,
          'mean_score': 0.875,
          'best_score': 1.0,
          'above_base': _rate(2, 2),
        },
        {
          'sigma': 0.002,
          'members': 2,
          'mean_score': 0.25,
          'best_score': 0.5,
          'above_base': _rate(0, 2),  # equal to the base is not above it
        },
        {
          'sigma': 0.004,
          'members': 1,
          'mean_score': 0.0,
          'best_score': 0.0,
          'above_base': _rate(0, 1),
        },
      ],
    },
  }


@pytest.mark.parametrize('base', [0.1, 1 / 3, 0.7, np.nextafter(0.3, 1)])
def test_above_the_base_is_strict_after_rounding(base):
  # A score that is equal but for float32 rounding does not beat the base.
  near = np.float32(base)
  block = _scored([base, near, np.nextafter(near, np.float32(1)), 0])
  (only,) = report.selection_summary(block, Population(0, 3, (0.5,)))[
    'members'
  ]['per_sigma']
  assert only['above_base'] == _rate(1, 3)


def test_a_sigma_without_members_has_no_row():
  block = _scored([0.5, 0.25, 1])
  summary = report.selection_summary(block, Population(0, 2, SIGMAS))
  rows = summary['members']['per_sigma']
  assert [row['sigma'] for row in rows] == [0.001, 0.002]
  assert [row['members'] for row in rows] == [1, 1]
  assert summary['members']['count'] == 2


# Votes.


def _vote(said, gold, ranked, task=None):
  task = Plain() if task is None else task
  examples = _examples(*gold)
  block = _block(examples, said, task)
  (found,) = report.votes(task, examples, block, ranked, [len(ranked)])
  return found


def test_the_majority_is_judged():
  said = {BASE: 'xxx', 0: 'aab', 1: 'abb', 2: 'acc'}
  found = _vote(said, 'abb', [0, 1, 2])
  # Unanimous, a tie of three, two to one.
  assert found['correct'].tolist() == [True, False, True]
  assert found == {
    'k': 3,
    'correct': found['correct'],
    'abstained_votes': 0.0,
    'rows_without_vote': 0,
  }


@pytest.mark.parametrize(
  ('ranked', 'correct'),
  [([4, 9], True), ([9, 4], False), ([9, 4, 6], True), ([6, 9, 4], True)],
)
def test_a_tie_goes_to_the_better_rank_not_to_the_lower_id(ranked, correct):
  said = {4: ['a'], 6: ['a'], 9: ['b']}
  assert _vote(said, ['a'], ranked)['correct'].tolist() == [correct]


def test_abstentions_do_not_vote_and_are_counted():
  said = {0: [None, None, 'a'], 1: [None, 'a', 'b'], 2: [None, None, 'b']}
  found = _vote(said, 'aab', [0, 1, 2])
  assert found['correct'].tolist() == [False, True, True]
  assert found['abstained_votes'] == 5 / 9
  assert found['rows_without_vote'] == 1


def test_nobody_says_anything():
  found = _vote({0: [None, None], 1: [None, None]}, 'ab', [1, 0])
  assert found['correct'].tolist() == [False, False]
  assert found['abstained_votes'] == 1.0
  assert found['rows_without_vote'] == 2


def test_classes_vote_together():
  said = {0: ['3'], 1: ['1/2'], 2: ['2/4'], 3: ['3']}
  ranked = [0, 1, 2]
  assert _vote(said, ['0.5'], ranked, Fractions())['correct'].tolist() == [True]
  # As strings the three answers are a tie, which the first one wins.
  assert _vote(said, ['3'], ranked)['correct'].tolist() == [True]
  assert _vote(said, ['1/2'], ranked)['correct'].tolist() == [False]


def test_a_class_speaks_through_its_best_ranked_member():
  seen = []

  class Noting(Fractions):
    def is_correct(self, answer, example):
      seen.append(answer)
      return super().is_correct(answer, example)

  said = {0: ['3'], 1: ['1/2'], 2: ['2/4'], 3: ['0.5']}
  examples = _examples('1/2')
  block = _block(examples, said, Fractions())
  report.votes(Noting(), examples, block, [0, 3, 2, 1], [4])
  assert set(seen) == {'0.5'}


@pytest.mark.parametrize('seed', range(3))
def test_votes_are_those_of_a_counter(seed):
  rng = np.random.default_rng(seed)
  gold = rng.choice(['a', 'b', 'c'], 40)
  said = {
    int(i): [[*'abc', None][j] for j in rng.integers(0, 4, 40)]
    for i in rng.permutation(9)
  }
  ranked = [int(i) for i in rng.permutation(9)[:6]]
  found = _vote(said, gold, ranked)
  for row in range(40):
    cast = [said[i][row] for i in ranked if said[i][row] is not None]
    best = collections.Counter(cast).most_common(1)
    assert found['correct'][row] == (bool(best) and best[0][0] == gold[row])


# Test split.

GOLD = 'aaaaaaaa'
TESTED = {
  BASE: ['a', 'a', 'x', 'x', None, 'x', 'x', 'x'],
  2: ['a', 'x', 'a', 'x', 'x', 'x', None, 'x'],
  5: ['a', 'a', 'a', 'a', 'a', 'a', 'x', 'x'],
  7: ['a', 'x', 'x', 'x', 'x', 'x', None, None],
}
RANKED = [7, 2, 5]  # best in selection first


def _test_summary(sizes=(1, 3)):
  examples = _examples(*GOLD)
  lenient = np.zeros((4, 8), np.float32)
  lenient[1:, :2] = 1
  truncated = np.zeros((4, 8), bool)
  truncated[0], truncated[3, :6] = True, True
  block = _block(examples, TESTED, lenient=lenient, truncated=truncated)
  return report.test_summary(Plain(), examples, block, RANKED, sizes)


def test_test_summary_is_exact():
  correct = {
    i: np.array([a == 'a' for a in row], float) for i, row in TESTED.items()
  }
  base = correct[BASE]
  mean = np.mean([correct[i] for i in RANKED], axis=0)
  interval = metrics.mean_interval(mean, bounds=(0, 1))
  # 7 alone; then 7, 2 and 5 together, of whom 5 is often outvoted by x.
  votes = [correct[7], np.array([1, 0, 1, 0, 0, 0, 0, 0], float)]
  assert _test_summary() == {
    'rows': 8,
    'base': {
      'accuracy': _rate(2, 8),
      'lenient_reward': 0.0,
      'abstention_rate': 1 / 8,
      'truncation_rate': 1.0,
      'mean_tokens': 1.0,
    },
    'members': {
      'count': 3,
      'mean': {
        'rate': pytest.approx(9 / 24, rel=1e-12),
        'interval': [interval.low, interval.high],
        'against_base': report.difference(mean, base),
      },
      'best_by_selection': {
        'member': 7,
        'accuracy': _rate(1, 8),
        'against_base': report.difference(correct[7], base),
      },
      'best_on_test': {'member': 5, 'accuracy': _rate(6, 8)},
      'lenient_reward': 6 / 24,
      'abstention_rate': 3 / 24,
      'truncation_rate': 6 / 24,
    },
    'votes': [
      {
        'k': 1,
        'accuracy': _rate(1, 8),
        'against_base': report.difference(votes[0], base),
        'abstention_rate': 2 / 8,
        'rows_without_vote': 2,
      },
      {
        'k': 3,
        'accuracy': _rate(2, 8),
        'against_base': report.difference(votes[1], base),
        'abstention_rate': 3 / 24,
        'rows_without_vote': 0,
      },
    ],
  }


def test_the_order_of_members_in_the_block_does_not_matter():
  examples = _examples(*GOLD)
  said = {i: TESTED[i] for i in (7, 5, BASE, 2)}
  args = RANKED, (1, 2, 3)
  got = report.test_summary(Plain(), examples, _block(examples, said), *args)
  block = _block(examples, TESTED)
  assert got == report.test_summary(Plain(), examples, block, *args)


def test_equally_good_members_on_test_are_told_apart_by_rank():
  said = {BASE: 'xx', 1: 'ax', 6: 'xa'}
  examples = _examples(*'aa')
  block = _block(examples, {i: list(row) for i, row in said.items()})
  for ranked in ([1, 6], [6, 1]):
    found = report.test_summary(Plain(), examples, block, ranked, (1,))
    assert found['members']['best_on_test']['member'] == ranked[0]


# Tables.


def _printed(table):
  console = Console(record=True, width=80)
  console.print(table)
  text = console.export_text()
  assert max(map(len, text.splitlines())) <= 80
  assert '…' not in text
  return re.sub(' +', ' ', text)


def test_the_selection_table_holds_the_numbers():
  block = _scored([0.25, 0.5, 0.125, 0, 0.25, 0.75])
  text = _printed(
    report.selection_table(
      report.selection_summary(block, Population(0, 5, SIGMAS))
    )
  )
  low, high = (100 * x for x in metrics.wilson(1, 2))
  assert 'Selection: 4 questions, the base scores 0.250' in text
  assert f'0.001 2 0.375 0.500 50.0 [{low:.1f}, {high:.1f}]' in text
  assert f'0.002 2 0.438 0.750 50.0 [{low:.1f}, {high:.1f}]' in text
  assert '0.004 1 0.000 0.000 0.0 [0.0, 79.3]' in text


def test_the_test_table_holds_the_numbers():
  summary = _test_summary()
  text = _printed(report.test_table(summary))

  def shown(found, key, sign=''):
    low, high = (f'{100 * x:{sign}.1f}' for x in found['interval'])
    return f'{100 * found[key]:{sign}.1f} [{low}, {high}]'

  members, votes = summary['members'], summary['votes']
  rate = lambda found: shown(found, 'rate')
  against = lambda found: shown(found['against_base'], 'difference', '+')
  best = members['best_by_selection']
  lines = [
    'Test: 8 held-out questions',
    f'base, greedy {rate(summary["base"]["accuracy"])} 12.5',
    f'mean of 3 selected {rate(members["mean"])} {against(members["mean"])} '
    '12.5',
    f'first in selection {rate(best["accuracy"])} {against(best)}',
    f'best on test (bound) {rate(members["best_on_test"]["accuracy"])}',
    f'vote of best 1 {rate(votes[0]["accuracy"])} {against(votes[0])} 25.0',
    f'vote of best 3 {rate(votes[1]["accuracy"])} {against(votes[1])} 12.5',
  ]
  for line in lines:
    assert line in text
  # The best on test is a bound: it has no difference to boast with.
  bound = next(x for x in text.splitlines() if 'best on test' in x)
  assert bound.count('[') == 1


@pytest.mark.parametrize('right', ['', 'x'])
def test_the_widest_numbers_fit_the_line(right):
  # All or nothing against the opposite, with large N and K.
  examples = _examples(*['a'] * 3)
  said = {i: ['a' if right else 'x'] * 3 for i in range(1000)}
  said[BASE] = ['x' if right else 'a'] * 3
  block = _block(examples, said)
  ranked = list(range(1000))
  text = _printed(
    report.test_table(
      report.test_summary(Plain(), examples, block, ranked, (1, 1000))
    )
  )
  assert 'mean of 1000 selected' in text
  sign = '+' if right else '-'
  assert text.count(f'{sign}100.0 [{sign}100.0, {sign}100.0]') == 4
  summary = report.selection_summary(
    block, Population(0, 1000, (1.23456e-05, 5e-4))
  )
  text = _printed(report.selection_table(summary))
  assert '1.23456e-05 500 ' in text
