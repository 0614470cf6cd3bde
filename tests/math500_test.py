# SPDX-License-Identifier: Apache-2.0
"""MATH-500: parsing of rows, what is read from a response, and its worth."""

import pytest

from thicket import tasks
from thicket.tasks import base, equivalence, math500

ROW = {
  'problem': 'The legs of a right triangle are 2 and $2\\sqrt{2}$. How long '
  'is the hypotenuse?',
  'solution': 'By Pythagoras, $\\sqrt{4+8} = \\sqrt{12} = '
  '\\boxed{2\\sqrt{3}}.$',
  'answer': '2\\sqrt{3}',
  'subject': 'Geometry',
  'level': 2,
  'unique_id': 'test/geometry/1.json',
}
TEMPLATES = math500.Math500.prompt_templates


@pytest.fixture(scope='module', autouse=True)
def _no_process_is_left():
  yield
  equivalence.close()


@pytest.fixture
def task():
  return tasks.make('math500', comparison_limit_s=20.0)


@pytest.fixture
def marked():
  """The task with the paper's prompt."""
  return tasks.make(
    'math500', prompt_template=TEMPLATES[1], comparison_limit_s=20.0
  )


def test_parse_normalises_the_gold(task):
  row = task.parse(ROW | {'answer': r'\left( 3, \frac{1}{2} \right)'}, 5)
  assert (row.row_id, row.question, row.gold) == (5, ROW['problem'], '(3,0.5)')


def test_a_gold_solution_is_worth_everything(task):
  row = task.parse(ROW, 0)
  answer = r'2\sqrt{3}'
  assert base.judge(task, ROW['solution'], row) == base.Judgement(
    1.0, 1.0, True, answer, answer, True, 1.0
  )
  assert task.released(ROW['solution'], row) == 1.0


@pytest.mark.parametrize('template', TEMPLATES)
def test_prompt_asks_for_what_the_extractor_reads(template):
  task = tasks.make('math500', prompt_template=template)
  prompt = task.prompt(task.parse(ROW, 0))
  assert ROW['problem'] in prompt
  assert '{question}' not in prompt
  assert ('####' in prompt) != (r'\boxed{}' in prompt)
  # The prompt itself, repeated, is no answer.
  assert task.extract(prompt) is None
  obeyed = '#### 7' if '####' in prompt else r'\boxed{7}'
  assert task.extract(obeyed) == '7'


@pytest.mark.parametrize(
  ('response', 'strict', 'lenient'),
  [
    (r'so it is $\boxed{7}$.', '7', '7'),
    (r'\boxed{7} apples', '7', '7'),
    (r'\boxed{7 \text{ apples}}', '7', '7'),
    (r'\[ \boxed{\dfrac{7}{2}} \]', '3.5', '3.5'),
    (r'\boxed{5}? No: \boxed{7}', '7', '7'),
    (r'\boxed{x = 7}', '7', '7'),
    (r'\boxed{\text{(C)}}', 'C', 'C'),
    (r'\boxed{(1, 2\sqrt{3})}', r'(1,2\sqrt{3})', r'(1,2\sqrt{3})'),
    ('\\boxed{\n7\n}', '7', '7'),
    (r'\boxed{7}' + '\n\n#### Check\n8 is too much', '7', '7'),
    (r'$\boxed{7}$ is the answer: 8', '7', '7'),
    ('The answer is 7.', None, '7'),
    ('The final answer is: **7**', None, '7'),
    ('Answer: 7 cm', None, '7'),
    (r'The answer is $x = \frac{7}{2}$, as 4 - 0.5 is.', None, '3.5'),
    ('The answer is 5. No, the answer is 7.', None, '7'),
    ('**Answer:**\n\n$7$', None, '7'),
    (r'the answer is $\sqrt{7}$ because $2 < 3$', None, r'\sqrt{7}'),
    (r'We get $x = 5$ and so $y = 7$. Done!', None, '7'),
    (r'We get \(x = 7\)', None, '7'),
    ('That makes 7', None, '7'),
    ('#### 7', None, '7'),  # a heading, under this prompt
    (r'the answer is 7, \boxed{8', None, '8'),
    (r'\boxed{}', None, None),
    (r'\boxed{<answer>}', None, None),
    ('\\boxed{\u0667}', None, None),
    (r'\boxed 7', None, '7'),
    ('boxed{7}', None, '7'),
    ('no idea', None, None),
    ('', None, None),
  ],
)
def test_extraction(task, response, strict, lenient):
  assert task.extract(response) == strict
  assert task.extract_lenient(response) == lenient


@pytest.mark.parametrize(
  ('response', 'strict'),
  [
    ('so 7.\n#### 7', '7'),
    ('#### $7$ apples\nAny questions? 8', '7'),
    (r'#### \frac{7}{2}', '3.5'),
    (r'#### \boxed{7}', '7'),
    (r'\boxed{7}', '7'),
    ('\\boxed{5}\n#### 7', '7'),
    ('#### Step 1: 5\n\\boxed{7}', '7'),
    ('#### 5\n#### 7', '7'),
    ('#### 5\n####', None),
    ('7\n#### <answer>', None),
    ('The answer is 7', None),
  ],
)
def test_the_papers_prompt_is_answered_as_it_asks(marked, response, strict):
  assert marked.extract(response) == strict


@pytest.mark.parametrize(
  ('gold', 'answer', 'is_correct'),
  [
    (r'2\sqrt{3}', r'\sqrt{12}', True),
    (r'2\sqrt{3}', r'\sqrt{13}', False),
    (r'2\sqrt{3}', '3.4641016', False),
    (r'90^\circ', '90', True),
    (r'\frac{14}{3}', r'4\frac{2}{3}', True),
    (r'\frac{14}{3}', '4.6667', False),
    (r'\text{Evelyn}', 'Evelyn', True),
    (r'\text{(B)}', 'B', True),
    (r'\text{(B)}', 'C', False),
    ('1,-2', r'-2 \text{ and } 1', True),
    ('1,-2', '1', False),
    ('1,-2', '(1,-2)', False),
    ('x=5', '5', True),
    (r'1 \pm \sqrt{19}', r'1+\sqrt{19}, 1-\sqrt{19}', True),
    (r'\$32,\!348', '32348', True),
    (r'5.4 \text{ cents}', '5.4', True),
    ('(3,4]', '[3,4)', False),
    (r'x \in [-2,7]', '[-2,7]', True),
    ('(2,12) \\cup (12,102)', '(12,102) \\cup (2,12)', True),
    ('52_8', '52', False),
    ('(a+5)(b+2)', '(b+2)(a+5)', True),
    ('58,500', '58500', True),
  ],
)
def test_answers_are_compared_as_mathematics(task, gold, answer, is_correct):
  row = task.parse(ROW | {'answer': gold}, 0)
  verdict = base.judge(task, rf'so \boxed{{{answer}}}', row)
  assert verdict.is_correct == is_correct
  assert verdict.reward == float(is_correct)


def test_equivalent_answers_vote_together(task):
  row = task.parse(ROW, 0)
  said = [r'\sqrt{12}', '12', r'2 \sqrt 3', r'\frac{6}{\sqrt{3}}', '12.0']
  answers = [task.extract(rf'\boxed{{{x}}}') for x in said]
  assert task.group(answers, row) == [0, 1, 0, 0, 1]


def test_strict_and_lenient_rewards_are_told_apart(task):
  row = task.parse(ROW, 0)
  verdict = base.judge(task, r'The answer is $\sqrt{12}$.', row)
  assert verdict == base.Judgement(
    0.0, 1.0, False, None, r'\sqrt{12}', True, 0.0
  )


@pytest.mark.parametrize(
  ('gold', 'response', 'worth'),
  [
    ('7', r'\boxed{7}', 1.0),
    ('7', r'\boxed{7} \boxed{8}', 0.0),
    ('7', '#### 7', 0.0),  # what the released prompt asks for
    ('7', 'The answer is 7.', 1.0),
    ('7', 'The answer is 7.' + ' ' * 500, 0.0),  # too far from the end
    ('7', 'The answer is 7 apples', 0.0),
    ('7', r'\boxed{7 \text{ apples}}', 0.0),
    ('x=7', r'\boxed{7}', 1.0),
    (r'\frac{1}{2}', r'\boxed{0.5}', 1.0),
    (r'\frac{1}{3}', r'\boxed{0.3333335}', 1.0),  # near enough
    (r'\frac{1}{3}', r'\boxed{0.333}', 0.0),
    (r'(1,\frac12)', r'\boxed{\left(1, 0.5\right)}', 1.0),
    (r'(1,2)', r'\boxed{(2,1)}', 0.0),
    ('1,-2', r'\boxed{-2, 1}', 0.0),  # as a string
    (r'2\sqrt{3}', r'\boxed{\sqrt{12}}', 0.0),
    (r'2\sqrt{3}', r'\boxed{2 \sqrt3}', 1.0),
    ('7', r'\boxed{}', 0.0),
    ('7', '', 0.0),
    ('7', r'\boxed{nan}', 0.0),
    ('7', r'\boxed{1/0}', 0.0),
  ],
)
def test_the_released_rule_keeps_its_defects(task, gold, response, worth):
  row = task.parse(ROW | {'answer': gold}, 0)
  assert task.released(response, row) == worth


@pytest.mark.parametrize(
  'text',
  [
    *(r'\boxed{', r'\boxed{1} ', '{', '}', '$', r'\(', 'answer is ', '####'),
    *('answer' + ' ' * 99, '7', ' ', '\n', '\\', r'\boxed', '(', '$x'),
  ],
)
def test_a_megabyte_does_not_hang(task, marked, text):
  row = task.parse(ROW | {'answer': '7'}, 0)
  long = text * (1_000_000 // len(text))
  for judge in (task, marked):
    base.judge(judge, long, row)
  task.released(long, row)
  assert task.extract(long + r'\boxed{7}') == '7'


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'answer': ''}, "answer '' cannot be read"),
    ({'answer': '{'}, "answer '{' cannot be read"),
    ({'answer': 7}, "field 'answer' is 7, not text"),
    ({'problem': None}, "field 'problem' is None"),
    ({'problem': '  '}, 'question is empty'),
  ],
)
def test_bad_rows_are_named_by_their_field(task, change, message):
  with pytest.raises(base.TaskError, match=message):
    task.parse(ROW | change, 0)


@pytest.mark.parametrize('limit', [0, -1.0, float('nan'), float('inf')])
def test_the_limit_is_a_positive_time(limit):
  with pytest.raises(base.TaskError, match='math500: comparison_limit_s='):
    tasks.make('math500', comparison_limit_s=limit)
