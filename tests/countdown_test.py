# SPDX-License-Identifier: Apache-2.0
"""Countdown: rows that can be solved, and what counts as a solution."""

import json

import pytest

from thicket import data, tasks
from thicket.tasks import base, countdown, expressions

# As in the public file, made up.
ROW = {
  'id': 0,
  'context': 'Using the numbers [12 7 5], create an equation that equals 95.',
  'numbers': [12, 7, 5],
  'target': '95',
  'solution': '((12 + 7) * 5)',
}
GOLD = '(12+7)*5'


@pytest.fixture(scope='module')
def task():
  return tasks.make('countdown')


@pytest.fixture(scope='module')
def row(task):
  return task.parse(ROW, 3)


@pytest.fixture(scope='module')
def rows():
  return list(tasks.make('countdown', size=2_000).examples())


def test_a_row_of_the_public_file(row):
  meta = {'numbers': [5, 7, 12], 'target': 95}
  assert row == base.Example(3, 'Numbers: 12, 7, 5\nTarget: 95', GOLD, meta)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'numbers': None}, "'numbers' is None"),
    ({'numbers': []}, "'numbers' is"),
    ({'numbers': '12 7 5'}, "'numbers' is '12 7 5'"),
    ({'numbers': [12, '7', 5]}, "'numbers' is"),
    ({'numbers': [12, 7.0, 5]}, "'numbers' is"),
    ({'numbers': [12, True, 5]}, "'numbers' is"),
    ({'numbers': [12, -7, 5]}, "'numbers' is"),
    ({'target': None}, "'target' is 'None'"),
    ({'target': '9.5'}, "'target' is '9.5'"),
    ({'target': '\u0669\u0665'}, "'target' is"),
    ({'target': '96'}, r'does not make 96 out of \[12, 7, 5\]'),
    ({'solution': '(12 + 7) * 5 * 1'}, 'does not make 95'),
    ({'solution': '19 * 5'}, 'does not make 95'),
    ({'solution': 95}, "'solution' is 95"),
    ({'solution': None}, "'solution' is None"),
  ],
)
def test_bad_rows_are_named_by_their_field(task, change, message):
  with pytest.raises(base.TaskError, match=message):
    task.parse(ROW | change, 0)


def test_generated_rows_are_solvable_and_different(task, rows):
  assert len({example.row_id for example in rows}) == len(rows) == 2_000
  puzzles = set()
  for example in rows:
    numbers, target = example.meta['numbers'], example.meta['target']
    assert len(numbers) in (3, 4)
    assert numbers == sorted(numbers)
    assert 1 <= numbers[0] <= numbers[-1] <= 99
    assert 10 <= target <= 99
    solution = expressions.read(example.gold)
    assert solution.numbers == tuple(numbers)
    assert solution.value == target
    assert task.is_correct(example.gold, example)
    asked = example.question.replace('Target: ', '').replace('Numbers: ', '')
    listed, _, wanted = asked.partition('\n')
    assert sorted(map(int, listed.split(', '))) == numbers
    assert int(wanted) == target
    puzzles.add((*numbers, target))
  assert len(puzzles) == len(rows)
  # Both sizes and all four operations occur, often.
  assert 0.2 < sum(len(e.meta['numbers']) == 4 for e in rows) / len(rows) < 0.8
  for sign in '+-*/':
    assert sum(sign in e.gold for e in rows) > 50


def test_more_rows_begin_with_the_same_and_seeds_differ(rows):
  few = list(tasks.make('countdown', size=30).examples())
  assert few == rows[:30]
  other = list(tasks.make('countdown', size=30, seed=1).examples())
  assert not {e.question for e in few} & {e.question for e in other}


def test_rows_do_not_depend_on_the_version_of_anything(rows):
  found = [(e.row_id, e.question, e.gold) for e in rows[:2]]
  assert found == [
    (20, 'Numbers: 4, 75, 55, 96\nTarget: 38', '4+55+75-96'),
    (37, 'Numbers: 16, 40, 8\nTarget: 16', '40-16-8'),
  ]


@pytest.mark.parametrize('kwargs', [{'size': 0}, {'size': 10**9}, {'seed': -1}])
def test_settings_out_of_range_are_refused(kwargs):
  ((name, value),) = kwargs.items()
  with pytest.raises(base.TaskError, match=f'{name}={value}'):
    tasks.make('countdown', **kwargs)


def test_rows_are_generated_without_a_path_and_read_with_one(tmp_path):
  task = tasks.make('countdown', size=200)
  sizes = {'num_selection': 4, 'num_validation': 0, 'num_test': 4, 'seed': 0}
  made = data.load(task, **sizes)
  questions = {example.question for example in task.examples()}
  assert {e.question for e in made.selection + made.test} < questions
  path = tmp_path / 'countdown.jsonl'
  with path.open('w') as lines:
    for i in range(20, 60):
      change = {'numbers': [i, 7, 5], 'solution': f'({i} + 7) - 5'}
      print(json.dumps(ROW | change | {'target': str(i + 2)}), file=lines)
  read = data.load(task, **sizes, path=path)
  for example in read.selection + read.test:
    assert example.meta['numbers'][:2] == [5, 7]
    assert task.is_correct(example.gold, example)
  with pytest.raises(base.TaskError, match='no path'):
    data.load(task, **sizes, path=path, source='generated')


@pytest.mark.parametrize('template', countdown.Countdown.prompt_templates)
def test_prompt_asks_for_what_the_extractor_reads(template, row):
  task = tasks.make('countdown', prompt_template=template)
  prompt = task.prompt(row)
  assert row.question in prompt
  assert '{question}' not in prompt
  assert '<answer> </answer>' in prompt
  # The prompt itself, repeated, is no answer.
  assert task.extract(prompt) is None
  assert base.judge(task, prompt, row).lenient_reward == 0


THINK = '<think>12 + 7 = 19, and 19 * 5 = 95.</think>\n'


@pytest.mark.parametrize(
  ('response', 'answer'),
  [
    (THINK + '<answer>(12 + 7) * 5</answer>', GOLD),
    (THINK + '<answer> 5*(7+12) </answer>', GOLD),
    ('<answer>\n(12+7)*5\n</answer> I am sure.', GOLD),
    # Equations: the result of a side is dropped, workings are kept.
    ('<answer>(12 + 7) * 5 = 95</answer>', GOLD),
    ('<answer>95 = (12 + 7) * 5</answer>', GOLD),
    ('<answer>(12+7)*5 = 19*5 = 95</answer>', f'{GOLD}=19*5'),
    ('<answer>(12+7)*5 = 5*(7+12)</answer>', GOLD),
    # The last complete pair counts.
    ('<answer>12+7</answer> no: <answer>(12+7)*5</answer>', GOLD),
    ('<answer>(12+7)*5</answer> or <answer>12*7+5</answer>', '12*7+5'),
    ('<answer>(12+7)*5</answer> or <answer>12*7', GOLD),
    ('<answer><answer>(12+7)*5</answer></answer>', None),
    # Wrong answers are answers; whether they may vote is another question.
    ('<answer>12*7+5</answer>', '12*7+5'),
    ('<answer>95</answer>', '95'),
    ('<answer>19*5</answer>', '19*5'),
    # Everything else abstains.
    ('(12 + 7) * 5', None),
    ('<answer>(12 + 7) * 5', None),
    ('(12 + 7) * 5</answer>', None),
    ('</answer>(12 + 7) * 5<answer>', None),
    ('<Answer>(12 + 7) * 5</Answer>', None),
    ('<answer></answer>', None),
    ('<answer>(12 + 7) * 5.</answer>', None),
    ('<answer>The answer is (12 + 7) * 5</answer>', None),
    ('<answer>(12 + 7) \u00d7 5</answer>', None),
    ('<answer>(12 + \u0667) * 5</answer>', None),
    ('<answer>(12 + 7) * 5 = ?</answer>', None),
    ('<answer>(12 + 7) * 5 =</answer>', None),
    ('<answer>(12 + 7) * 5 == 95</answer>', None),
    ('<answer>(12 + 7) ** 5</answer>', None),
    ('<answer>1/0</answer>', None),
    ('<answer>' + '=1' * 9 + '</answer>', None),
    ('<answer>__import__("os").getcwd()</answer>', None),
    ('<answer>9**9**9**9</answer>', None),
    ('', None),
  ],
)
def test_the_strict_rule(task, response, answer):
  assert task.extract(response) == answer


@pytest.mark.parametrize(
  ('response', 'answer'),
  [
    ('The answer is (12 + 7) * 5.', GOLD),
    ('So (12 + 7) * 5 = 95!', GOLD),
    ('**(12 + 7) * 5 = 95**', GOLD),
    ('- (12 + 7) * 5 = 95', GOLD),
    ('1. 12 + 7 = 19\n2. (12 + 7) * 5 = 95\nWe are done.', GOLD),
    ('We get \\((12 + 7) \\times 5 = 95\\).', GOLD),
    ('(12 + 7) \u00d7 5 = 95', GOLD),
    ('(12 + 7) x 5 = 95', GOLD),
    ('<answer>(12 + 7) * 5', GOLD),
    ('12 * 7 <answer>(12 + 7) * 5.</answer>', GOLD),
    ('(95 \u2212 5) \u00f7 9', '(95-5)/9'),
    ('-5 + 12 * 7', '12*7-5'),
    ('- 5 + 12', '12+5'),
    # An unreadable one is passed over, for what it is may not be the answer.
    ('(12 + 7) * 5, then 3 ** 4', GOLD),
    ('The answer is 95.', None),
    ('I need 12, 7 and 5 to make 95', None),
    ('12.5 + 7', None),
    ('1,012 + 7', None),
    ('x12 + 7', None),
    ('12 + 7y', None),
    ('\u0663+12*7', None),
    ('step-by-step', None),
    ('', None),
  ],
)
def test_the_lenient_rule_reads_on(task, response, answer):
  assert task.extract(response) is None
  assert task.extract_lenient(response) == answer


def test_the_lenient_rule_keeps_what_the_strict_one_read(task):
  response = '<answer>12*7+5</answer>, no, (12 + 7) * 5'
  assert task.extract_lenient(response) == task.extract(response) == '12*7+5'


@pytest.mark.parametrize(
  ('answer', 'is_correct'),
  [
    (GOLD, True),
    ('19*5=(12+7)*5', True),
    ('12*5+5*7', False),  # right in value, but 5 is used twice
    ('19*5', False),
    ('95', False),
    ('12*7+5', False),
    ('(12+7)*5+1-1', False),
    # Two answers are none: no hedging by an equation.
    ('12*7+5=(12+7)*5', False),
    (None, False),
  ],
)
def test_what_is_correct(task, row, answer, is_correct):
  assert task.is_correct(answer, row) == is_correct
  assert task.reward(answer, row) == float(is_correct)


def test_values_are_exact(task):
  numbers = {'numbers': [1, 3, 3, 49], 'target': 49}
  row = base.Example(0, 'Numbers: 1, 3, 3, 49\nTarget: 49', '', numbers)
  assert task.is_correct('1/3*3*49', row)  # not so in floating point: 49/49
  near = {'numbers': [999, 1000], 'target': 1}
  assert not task.is_correct('999/1000', base.Example(0, 'q', '', near))


def test_votes_are_by_canonical_form_and_invalid_ones_abstain(task):
  meta = {'numbers': [2, 3, 4], 'target': 24}
  row = base.Example(0, 'Numbers: 2, 3, 4\nTarget: 24', '2*3*4', meta)
  answers = ['2*3*4', '2+3+4', '24', '2*3*4=6*4', '6*4', '2*3+4=2+3+4', '2+3*4']
  assert task.group(answers, row) == [0, 1, -1, 0, -1, -1, 2]
  # The same value is not the same solution.
  other = base.Example(0, 'q', '', {'numbers': [1, 2, 3], 'target': 6})
  assert task.group(['1*2*3', '1+2+3', '2*3/1'], other) == [0, 1, 2]
  assert task.group([], row) == []


@pytest.mark.parametrize(
  ('response', 'released', 'strict'),
  [
    ('<answer>(12+7)*5</answer>', 1, 1),
    ('<answer>(12+7)*5 = 95</answer>', 1, 1),
    ('<answer>95 = (12+7)*5</answer>', 1, 1),
    ('<answer>(12+7)*5 = 96</answer>', 1, 1),
    ('<answer>(12+7)*5 = 19*5 = 95</answer>', 0, 1),
    ('<answer>12*7+5 = (12+7)*5</answer>', 0, 0),
    ('<answer>(12+7)*5 = 12*7+5</answer>', 1, 0),
    ('<answer>19*5</answer>', 0, 0),
    ('<answer>(12+7)**5</answer>', 0, 0),
    ('(12+7)*5', 0, 0),
    ('', 0, 0),
  ],
)
def test_the_released_rule(task, row, response, released, strict):
  assert task.released(response, row) == released
  assert task.is_correct(task.extract(response), row) == strict


def test_the_released_rule_takes_what_is_near_and_small(task):
  near = base.Example(0, 'q', '', {'numbers': [1, 999_999], 'target': 1})
  assert task.released('<answer>999999/1</answer>', near) == 0
  meta = {'numbers': [1, 997, 998, 999], 'target': 1}
  near = base.Example(0, 'q', '', meta)
  # 998 * 998 is one more than 997 * 999, but the numbers are used once each.
  assert task.released('<answer>1-997/998+999/998</answer>', near) == 0
  large = base.Example(0, 'q', '', {'numbers': [1, 1001], 'target': 1001})
  assert task.is_correct('1*1001', large)
  assert task.released('<answer>1*1001</answer>', large) == 0


@pytest.mark.parametrize(
  'piece',
  [
    *('<answer>', '</answer>', '<answer>1</answer>', '1+', '1 ', '(', '-', '='),
    *('12 + 7 = 19. ', 'x', ' x ', '* ', '\\times ', '\u00d7'),
  ],
)
def test_a_megabyte_is_judged(task, row, piece):
  response = piece * (10**6 // len(piece))
  for text in (response, '<answer>' + response + '</answer>'):
    assert not base.judge(task, text, row).is_correct
    assert task.released(text, row) == 0
