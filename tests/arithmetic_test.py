# SPDX-License-Identifier: Apache-2.0
"""Arithmetic: the space of questions, and what counts as an answer."""

import operator

import pytest

from thicket import tasks
from thicket.tasks import arithmetic, base

APPLY = {'+': operator.add, '-': operator.sub, '*': operator.mul}


@pytest.fixture(scope='module')
def rows():
  return list(tasks.make('arithmetic').examples())


def test_every_question_is_one_step_and_its_gold_is_right(rows):
  assert len(rows) == 2_861
  for row in rows:
    a, sign, b = row.question.split()
    assert APPLY[sign](int(a), int(b)) == int(row.gold) > 0
    assert 2 <= int(a) <= 50
    assert 2 <= int(b) <= 50
    assert sign != '*' or min(int(a), int(b)) <= 12
    # So that an echo of the question never earns a reward.
    assert row.gold not in (a, b)


def test_no_fact_is_asked_twice(rows):
  facts = set()
  for row in rows:
    a, sign, b = row.question.split()
    facts.add((sign, frozenset((a, b))))
  assert len(facts) == len({row.row_id for row in rows}) == len(rows)


def test_both_orders_of_operands_occur(rows):
  sums = [r.question.split() for r in rows if '+' in r.question]
  share = sum(int(a) < int(b) for a, _, b in sums) / len(sums)
  assert 0.4 < share < 0.6


def test_row_ids_are_stable_and_do_not_depend_on_the_operators(rows):
  ids = {row.question: row.row_id for row in rows}
  assert ids['16 + 24'] == 1624
  assert ids['50 - 8'] == 15008
  assert ids['7 * 13'] == 20713
  for row in tasks.make('arithmetic', operators='*').examples():
    assert ids[row.question] == row.row_id
    assert '*' in row.question


def test_prompt_is_the_one_the_model_was_measured_with():
  task = arithmetic.Arithmetic()
  row = base.Example(0, '17 + 25', '42')
  assert task.prompt(row) == 'What is 17 + 25? Answer with a number.'


@pytest.mark.parametrize(
  ('response', 'strict', 'lenient'),
  [
    # The model's own ways to answer.
    ('17 + 25 is equal to 42\n', '42', '42'),
    ('17 + 25 is equal to 42.', '42', '42'),
    ('17 + 25 = 42', '42', '42'),
    ('17 + 25 equals 42', '42', '42'),
    ('The sum of 17 and 25 is 42.', '42', '42'),
    ('The answer is: **42**', '42', '42'),
    ('The answer to 17 + 25 is the number 42.', '42', '42'),
    ('42', '42', '42'),
    ('42\n\nTo see why, add 7 and 5.', '42', '42'),
    ('42 is the answer', '42', '42'),
    ('Answer: 42', '42', '42'),
    ('17 + 25 = 32 + 10 = 42', '42', '42'),
    ('12 * 97 = 1,164', '1164', '1164'),
    ('5 - 13 = -8', '-8', '-8'),
    ('17 + 25 = 42.0', '42', '42'),
    # A wrong answer is an answer.
    ('17 + 25 is equal to 32', '32', '32'),
    ('17', '17', '17'),
    # Echoes and unfinished or unclear claims abstain.
    ('17 + 25', None, '25'),
    ('17-25', None, '25'),
    ('17 + 25 =', None, '25'),
    ('What is 17 + 25?', None, '25'),
    ('The answer is 17 + 25', None, '25'),
    ('17 + 25 is', None, '25'),
    ('17 + 25 = 32 + 10', None, '10'),
    ('17 + 25 is 42, not 43', None, '43'),
    ('17 plus 25 gives 42', None, '42'),
    ('42 = 17 + 25', None, '25'),
    ('7x13', None, None),
    ('17 + 25 = 1e999', None, None),
    ('\n42', None, '42'),
    ('', None, None),
    ('forty-two', None, None),
    ('This basis equalsign', None, None),
    ('17 basis 25', None, '25'),
  ],
)
def test_extraction(response, strict, lenient):
  task = arithmetic.Arithmetic()
  assert task.extract(response) == strict
  assert task.extract_lenient(response) == lenient


def test_no_echo_of_a_question_is_ever_rewarded(rows):
  task = arithmetic.Arithmetic()
  for row in rows[::50]:
    a, sign, b = row.question.split()
    prompts = [
      tasks.make('arithmetic', prompt_template=template).prompt(row)
      for template in task.prompt_templates
    ]
    for echo in (row.question, *prompts, a, b, f'{a}{sign}{b} ='):
      verdict = base.judge(task, echo, row)
      assert verdict.reward == verdict.lenient_reward == 0
    good = base.judge(task, f'{row.question} = {row.gold}', row)
    assert good == base.Judgement(1.0, 1.0, True, row.gold, row.gold, True)


@pytest.mark.parametrize('operators', ['', '++', '+/', 'plus'])
def test_unknown_operators_are_refused(operators):
  with pytest.raises(base.TaskError, match='operators='):
    tasks.make('arithmetic', operators=operators)
