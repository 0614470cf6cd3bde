# SPDX-License-Identifier: Apache-2.0
"""What a vote repaired and broke: each of the four cells by hand."""

import json

import numpy as np
import pytest

from thicket import panel
from thicket.analysis.repairs import repairs
from thicket.tasks import base

# A question for each way in which base and vote can be right (R) or wrong (W),
# and for the lenient rule's opinion of the one that is wrong.
QUESTIONS = (
  'both right',
  'both wrong',
  'fixed, the base knew',
  'fixed, the base did not know',
  'regressed, the vote knows',
  'regressed, the vote does not know',
  'regressed, nobody answered',
)
EXAMPLES = tuple(
  base.Example(row_id=2**40 + 10 * i, question=question, gold='7')
  for i, question in enumerate(QUESTIONS)
)


def _panel(answers, lenient, classes, who):
  """Class 0, the answer '7', is right; lenient answers are given as such."""
  answers = [list(row) for row in answers]
  lenient = np.array(lenient, bool)
  return panel.Panel(
    classes=np.array(classes, np.int32),
    lenient_classes=np.where(lenient, 0, 1).astype(np.int32),
    correct=np.array([[a == '7' for a in row] for row in answers]),
    lenient_correct=lenient,
    released=np.zeros(lenient.shape, np.float32),
    num_tokens=np.ones(lenient.shape, np.int32),
    texts=[
      [f'{who} {i} on {j}' for j in range(len(row))]
      for i, row in enumerate(answers)
    ],
    answers=answers,
  )


@pytest.fixture
def base_panel():
  """The base's answer to each of the questions."""
  answers = [['7', '3', None, '4', '7', '7', '7']]
  return _panel(
    answers, [[1, 1, 1, 0, 1, 1, 1]], [[0, 1, -1, 2, 0, 0, 0]], 'base'
  )


@pytest.fixture
def ensemble():
  """Three voters; the last question finds all of them silent."""
  answers = [
    ['7', '3', '5', '7', '7', '9', None],
    ['7', '7', '7', None, '8', '9', None],
    ['7', '3', '7', '7', '8', '7', None],
  ]
  lenient = [
    [1, 0, 0, 1, 1, 0, 0],
    [1, 1, 1, 0, 1, 0, 0],
    [1, 0, 1, 1, 1, 1, 0],
  ]
  classes = [
    [0, 1, 2, 0, 0, 4, -1],
    [0, 0, 0, -1, 3, 4, -1],
    [0, 1, 0, 0, 3, 0, -1],
  ]
  return _panel(answers, lenient, classes, 'voter')


@pytest.fixture
def found(base_panel, ensemble):
  """The table and its items."""
  (vote,) = ensemble.votes([3])
  return repairs(EXAMPLES, base_panel, ensemble, vote)


def test_each_cell_is_counted(found):
  assert found['fixed'] == {'format': 1, 'reasoning': 1}
  assert found['regressed'] == {'format': 1, 'reasoning': 2}
  assert set(found) == {'fixed', 'regressed', 'items'}


def test_each_item_tells_who_said_what(found):
  say = lambda who, i, j: f'{who} {i} on {j}'
  want = [
    # question, change, kind, base's answer, vote's answer, speaker, votes
    (2, 'fixed', 'format', None, '7', 1, 2),
    (3, 'fixed', 'reasoning', '4', '7', 0, 2),
    (4, 'regressed', 'format', '7', '8', 1, 2),
    (5, 'regressed', 'reasoning', '7', '9', 0, 2),
    # Nobody speaks: the text of the best-ranked voter shows why.
    (6, 'regressed', 'reasoning', '7', None, 0, 0),
  ]
  assert found['items'] == [
    {
      'row': 2**40 + 10 * j,
      'question': QUESTIONS[j],
      'gold': '7',
      'change': change,
      'kind': kind,
      'base': {'answer': was, 'text': say('base', 0, j)},
      'vote': {
        'answer': now,
        'text': say('voter', speaker, j),
        'count': count,
        'of': 3,
      },
    }
    for j, change, kind, was, now, speaker, count in want
  ]


def test_items_are_as_many_as_the_counts_say(found):
  for change in ('fixed', 'regressed'):
    for kind, count in found[change].items():
      held = [
        item
        for item in found['items']
        if (item['change'], item['kind']) == (change, kind)
      ]
      assert len(held) == count


def test_it_can_be_written_to_json(found):
  assert json.loads(json.dumps(found)) == found


def test_a_smaller_vote_has_other_repairs(base_panel, ensemble):
  (vote,) = ensemble.votes([1])
  found = repairs(EXAMPLES, base_panel, ensemble, vote)
  assert found['fixed'] == {'format': 0, 'reasoning': 1}
  assert found['regressed'] == {'format': 0, 'reasoning': 2}
  assert [item['row'] - 2**40 for item in found['items']] == [30, 50, 60]
  assert {item['vote']['of'] for item in found['items']} == {1}


def test_the_lenient_vote_may_elect_another_than_the_speaker():
  # Strictly two say 8; leniently two mean 7, one of whom did not speak.
  answers = [['8'], ['8'], [None]]
  voters = _panel(answers, [[0], [1], [1]], [[1], [1], [-1]], 'voter')
  before = _panel([['7']], [[1]], [[0]], 'base')
  (vote,) = voters.votes([3])
  assert vote.speaker.tolist() == [0]
  found = repairs(EXAMPLES[:1], before, voters, vote)
  assert found['regressed'] == {'format': 1, 'reasoning': 0}
  assert found['items'][0]['vote']['answer'] == '8'
  assert found['items'][0]['vote']['text'] == 'voter 0 on 0'


def test_who_did_not_vote_is_not_quoted():
  voters = _panel(
    [[None], [None], ['7']], [[0], [0], [1]], [[-1], [-1], [0]], 'voter'
  )
  before = _panel([['7']], [[1]], [[0]], 'base')
  (vote,) = voters.votes([2])
  (item,) = repairs(EXAMPLES[:1], before, voters, vote)['items']
  assert item['vote'] == {
    'answer': None,
    'text': 'voter 0 on 0',
    'count': 0,
    'of': 2,
  }


def test_a_vote_that_agrees_with_the_base_has_none(base_panel):
  (vote,) = base_panel.votes([1])
  assert repairs(EXAMPLES, base_panel, base_panel, vote) == {
    'fixed': {'format': 0, 'reasoning': 0},
    'regressed': {'format': 0, 'reasoning': 0},
    'items': [],
  }
