# SPDX-License-Identifier: Apache-2.0
"""ROCStories: shuffles, orders, and how much of an order is right."""

import collections
import itertools
import json

import pytest

from thicket import data, tasks
from thicket.tasks import base, rocstories

# The columns of the corpus; the story is made up.
ROW = {
  'storyid': '0',
  'storytitle': 'Soup',
  'sentence1': 'Mia wanted to cook soup.',
  'sentence2': 'She had no carrots  left.',
  'sentence3': 'Her neighbour lent her three.',
  'sentence4': 'The soup turned out well.',
  'sentence5': 'Mia brought a bowl next door.',
}
STORY = [' '.join(ROW[f'sentence{i}'].split()) for i in range(1, 6)]
ORDERS = [''.join(order) for order in itertools.permutations('ABCDE')]
PLAIN = base.Example(
  0, 'A. One.\nB. Two.\nC. Three.\nD. Four.\nE. Five.', 'ABCDE'
)


@pytest.fixture(scope='module')
def task():
  return tasks.make('rocstories')


def _labelled(example):
  return dict(line.split('. ', 1) for line in example.question.split('\n'))


def test_the_gold_order_tells_the_story(task):
  example = task.parse(ROW, 7)
  told = [_labelled(example)[label] for label in example.gold]
  assert told == STORY
  assert (example.row_id, example.meta) == (7, {})
  verdict = base.judge(task, f'Order: {example.gold}', example)
  assert verdict == base.Judgement(
    1.0, 1.0, True, example.gold, example.gold, True, 1.0
  )


def test_shuffles_depend_on_the_text_alone(task):
  example = task.parse(ROW, 7)
  renamed = task.parse(ROW | {'storyid': '1', 'storytitle': 'Stew'}, 8)
  assert renamed.question == example.question
  assert example.gold == 'EADCB'


def test_all_orders_are_as_likely(task):
  golds = collections.Counter(
    task.parse(ROW | {'sentence3': f'{i} carrots came.'}, 0).gold
    for i in range(6_000)
  )
  assert set(golds) == set(ORDERS)
  assert 20 < min(golds.values()) <= max(golds.values()) < 90  # 50 expected


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'sentence3': None}, "'sentence3' is None"),
    ({'sentence1': ' '}, "'sentence1' is ' '"),
    ({'sentence5': 5}, "'sentence5' is 5"),
  ],
)
def test_bad_rows_are_named_by_their_field(task, change, message):
  with pytest.raises(base.TaskError, match=message):
    task.parse(ROW | change, 0)


@pytest.mark.parametrize('template', rocstories.RocStories.prompt_templates)
def test_prompt_asks_for_what_the_extractor_reads(template):
  task = tasks.make('rocstories', prompt_template=template)
  prompt = task.prompt(PLAIN)
  assert PLAIN.question in prompt
  assert rocstories.MARK in prompt
  # The prompt itself, repeated, is no answer.
  assert task.extract(prompt) is None


@pytest.mark.parametrize(
  ('response', 'strict', 'lenient'),
  [
    ('Order: BDAEC', 'BDAEC', 'BDAEC'),
    ('Order: B D A E C', 'BDAEC', 'BDAEC'),
    ('Order: B, D, A, E, C.', 'BDAEC', 'BDAEC'),
    ('Order: B -> D -> A -> E -> C', 'BDAEC', 'BDAEC'),
    ('Order: B\u2192D\u2192A\u2192E\u2192C', 'BDAEC', 'BDAEC'),
    ('**Order: B-D-A-E-C**', 'BDAEC', 'BDAEC'),
    ('Order: "BDAEC"', 'BDAEC', 'BDAEC'),
    ('I think so.\nOrder: BDAEC\nDone. ABCDE', 'BDAEC', 'BDAEC'),
    ('Order: ABCDE\nOrder: BDAEC', 'BDAEC', 'BDAEC'),
    # Not exactly the five letters.
    ('Order: BDAE', None, None),
    ('Order: BDAEE', None, None),
    ('Order: BDAECA', None, None),
    ('Order: BDAEF', None, None),
    ('Order: bdaec', None, None),
    ('Order: B D A E C or A B C D E', None, 'ABCDE'),
    ('Order: <five letters>', None, None),
    ('Order:\nBDAEC', None, 'BDAEC'),
    ('Order: B' + ' ' * 90 + 'DAEC', None, None),
    ('Order: \uff22DAEC', None, None),
    # Without the mark.
    ('BDAEC', None, 'BDAEC'),
    ('The order is B, D, A, E, and C.', None, 'BDAEC'),
    ('(B) (D) (A) (E) (C)', None, 'BDAEC'),
    ('ABCDE, no: BDAEC', None, 'BDAEC'),
    ('ABCDE, no: BDAEE', None, 'ABCDE'),
    ('XBDAEC', None, None),
    ('BDAECK', None, None),
    ('B. Two.\nD. Four.\nA. One.\nE. Five.\nC. Three.', None, 'BDAEC'),
    ('**B.** Two.\n**D.** Four.\n**A.** One.', None, None),
    ('A cat and a dog', None, None),
    ('', None, None),
  ],
)
def test_extraction(task, response, strict, lenient):
  assert task.extract(response) == strict
  assert task.extract_lenient(response) == lenient


@pytest.mark.parametrize(
  ('answer', 'reward'),
  [
    ('ABCDE', 1.0),
    ('BACDE', 0.6 * 3 / 5 + 0.4 * 2 / 4),  # CD, DE
    ('BCDEA', 0.4 * 3 / 4),  # BC, CD, DE, none in its place
    ('EDCBA', 0.6 * 1 / 5),  # C in its place
    ('EABDC', 0.6 * 1 / 5 + 0.4 * 1 / 4),
    ('CADBE', 0.6 * 1 / 5),
    ('BDAEC', 0.0),
    (None, 0.0),
  ],
)
def test_the_reward_counts_places_and_neighbours(task, answer, reward):
  assert task.reward(answer, PLAIN) == pytest.approx(reward, abs=1e-12)
  assert task.is_correct(answer, PLAIN) == (answer == 'ABCDE')


def test_chance_is_far_above_under_the_released_rule(task):
  released = [task.released(f'Order: {order}', PLAIN) for order in ORDERS]
  rewards = [task.reward(order, PLAIN) for order in ORDERS]
  assert released == [float(reward > 0) for reward in rewards]
  assert sum(released) == 106
  assert sum(task.is_correct(order, PLAIN) for order in ORDERS) == 1
  assert sum(rewards) / 120 == pytest.approx(0.2)
  assert task.released('no order', PLAIN) == 0


def test_a_sentence_that_occurs_twice_has_no_place_of_its_own(task):
  example = task.parse(ROW | {'sentence4': ROW['sentence1']}, 0)
  assert len(example.meta['twins']) == 1
  one, other = example.meta['twins'][0]
  swapped = example.gold.translate(str.maketrans(one + other, other + one))
  assert swapped != example.gold
  for answer in (example.gold, swapped):
    assert task.is_correct(answer, example)
    assert task.reward(answer, example) == 1
  wrong = example.gold[::-1]
  answers = [swapped, wrong, example.gold]
  assert task.group(answers, example) == [0, 1, 0]
  # It goes through storage as it is.
  assert json.loads(json.dumps(dict(example.meta))) == example.meta


def test_rows_are_read_from_a_file(task, tmp_path):
  path = tmp_path / 'stories.jsonl'
  with path.open('w') as lines:
    for i in range(40):
      print(
        json.dumps(ROW | {'sentence2': f'She had {i} carrots.'}), file=lines
      )
  splits = data.load(
    task, num_selection=8, num_validation=4, num_test=8, seed=0, path=path
  )
  assert len({row.gold for row in splits.selection + splits.test}) > 5


@pytest.mark.parametrize(
  'piece', ['A', 'A ', 'AB', ' ', 'and ', 'Order:', 'A.\n', '(', 'A, B, C, D, ']
)
def test_a_megabyte_is_judged(task, piece):
  response = piece * (10**6 // len(piece))
  assert not base.judge(task, 'Order:' + response, PLAIN).is_lenient_correct
