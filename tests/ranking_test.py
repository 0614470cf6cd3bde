# SPDX-License-Identifier: Apache-2.0
"""How K of N are found: by score, by a race, and again on fresh rows."""

import numpy as np
import pytest
from made import Made, gold, plan

from thicket.blocks import BASE
from thicket.ranking import Cost, cost, rank, scores

N, K, ROWS = 8, 2, 32


def _plan(**changes):
  return plan(
    **{
      'population__size': N,
      'ensemble__sizes': (1, K),
      'data__num_selection': ROWS,
      'data__num_validation': 16,
      'decode__rows': 8,
    }
    | changes
  )


def _right(plan, count):
  """Members that are right on the first `count(split, member)` questions."""

  def say(condition, split, member, draw):
    answers = gold(plan, split)
    n = count(split, member)
    return answers[:n] + ['wrong'] * (len(answers) - n)

  return say


def _score(split, member):
  return {BASE: 4, 0: 3, 1: 20, 2: 9, 3: 20, 4: 31, 5: 0, 6: 9, 7: 21}[member]


def test_the_best_scores_are_kept_and_ties_go_to_the_lower_id():
  asked = _plan(ensemble__sizes=(4,))
  source = Made(asked, _right(asked, _score))
  found = rank(source, asked, asked.greedy, N)
  assert found.ranked == (4, 7, 1, 3)
  assert found.validated is None
  np.testing.assert_array_equal(
    found.scores, np.float32([_score('', i) / ROWS for i in range(N)])
  )
  assert found.scored.members.tolist() == [BASE, *range(N)]
  # The base's own answers are no part of what a search costs.
  assert found.cost == Cost(N * ROWS, ROWS * sum(10 + i for i in range(N)))
  assert {split for _, split, *_ in source.asked} == {'selection'}


def test_a_prefix_of_the_population_is_searched_alone():
  asked = _plan()
  source = Made(asked, _right(asked, _score))
  found = rank(source, asked, asked.greedy, 4)
  assert found.ranked == (1, 3)
  assert len(found.scores) == 4
  assert found.cost.answers == 4 * ROWS


def test_the_best_are_compared_again_on_validation_rows():
  asked = _plan(selection__rerank=4)
  # On fresh rows 3 is best, 1 and 7 are equal, 4 was lucky.
  again = {BASE: 2, 4: 1, 7: 5, 1: 5, 3: 9}

  def count(split, member):
    return again[member] if split == 'validation' else _score(split, member)

  source = Made(asked, _right(asked, count))
  found = rank(source, asked, asked.greedy, N)
  assert found.ranked == (3, 7)  # 7 before 1, as in selection
  assert found.validated.members.tolist() == [BASE, 1, 3, 4, 7]
  validation = Cost(4 * 16, 16 * sum(10 + i for i in (1, 3, 4, 7)))
  selection = Cost(N * ROWS, ROWS * sum(10 + i for i in range(N)))
  assert found.cost == selection + validation


@pytest.mark.parametrize('is_known', [False, True])
def test_a_race_asks_the_hopeless_less(is_known):
  asked = _plan(selection__race=True, selection__race_rows=(8, 16))

  def count(split, member):
    return ROWS if member in (2, 5) else 0

  source = Made(asked, _right(asked, count))
  if is_known:  # from an earlier run without a race
    source.get(asked.greedy, 'selection', range(N))
  found = rank(source, asked, asked.greedy, N)
  assert found.ranked == (2, 5)
  assert found.asked.tolist() == [8, 8, 32, 8, 8, 32, 8, 8]
  assert np.isnan(found.scores).tolist() == [i not in (2, 5) for i in range(N)]
  # What was known does not change what the race is said to have cost.
  spent = 8 * sum(10 + i for i in range(N)) + 24 * (12 + 15)
  assert found.cost == Cost(6 * 8 + 2 * 32, spent)
  raced = [rows for _, _, members, rows in source.asked if 2 in members]
  assert raced[-3:] == [8, 16, None]


def test_a_race_that_drops_nobody_is_a_search():
  fast, slow = _plan(selection__race=True), _plan()
  source = Made(fast, _right(fast, lambda split, member: 16 + member % 2))
  raced = rank(source, fast, fast.greedy, N)
  full = rank(source, slow, slow.greedy, N)
  assert raced.ranked == full.ranked == (1, 3)
  assert raced.cost == full.cost
  np.testing.assert_array_equal(raced.scores, full.scores)


def test_race_rows_double_from_the_batch_by_default():
  assert _plan().selection.race_rows == (8, 16, 32)
  assert _plan(selection__race_rows=(20,)).selection.race_rows == (20, 32)
  # Less than two batches: quarters, or a race would have one stage.
  assert _plan(decode__rows=32).selection.race_rows == (8, 16, 32)


def test_scores_are_means_rounded_once():
  asked = _plan()
  block = Made(asked, _right(asked, _score)).get(
    asked.greedy, 'selection', [3, BASE]
  )
  assert scores(block).dtype == np.float32
  assert scores(block).tolist() == [4 / 32, 20 / 32]
  assert cost(block) == Cost(64, 32 * (9 + 13))
