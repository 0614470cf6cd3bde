# SPDX-License-Identifier: Apache-2.0
"""OlympiadBench: parsing of rows, several answers, tolerances."""

import pytest

from thicket import tasks
from thicket.tasks import base, equivalence, olympiadbench

ROW = {
  'id': 1,
  'subfield': 'Algebra',
  'context': None,
  'question': 'Find all real numbers $x$ with $x^{2}=12$.',
  'solution': ['Clearly, $x=2 \\sqrt{3}$ and $x=-2 \\sqrt{3}$.'],
  'final_answer': ['$2 \\sqrt{3}$,$-2 \\sqrt{3}$'],
  'is_multiple_answer': True,
  'unit': None,
  'answer_type': 'Numerical',
  'error': None,
}
SPLIT = 'A cake is cut 3 times.'


@pytest.fixture(scope='module', autouse=True)
def _no_process_is_left():
  yield
  equivalence.close()


@pytest.fixture
def task():
  return tasks.make('olympiadbench', comparison_limit_s=20.0)


def test_parse_reads_all_answers(task):
  row = task.parse(ROW, 5)
  assert (row.row_id, row.question) == (5, ROW['question'])
  assert row.gold == r'-2\sqrt{3}, 2\sqrt{3}'
  one_by_one = {'final_answer': [r'$-2\sqrt{3}$', r'2\sqrt{3}']}
  assert task.parse(ROW | one_by_one, 5).gold == row.gold


def test_the_context_is_asked_before_the_question(task):
  row = task.parse(ROW | {'context': SPLIT}, 5)
  assert row.question == f'{SPLIT}\n\n{ROW["question"]}'


@pytest.mark.parametrize(
  'template', olympiadbench.OlympiadBench.prompt_templates
)
def test_prompt_asks_for_what_the_extractor_reads(template):
  task = tasks.make('olympiadbench', prompt_template=template)
  prompt = task.prompt(task.parse(ROW, 0))
  assert ROW['question'] in prompt
  assert task.extract(prompt) is None
  obeyed = '#### 3, 1' if '####' in prompt else r'\boxed{3, 1}'
  assert task.extract(obeyed) == '1, 3'


@pytest.mark.parametrize(
  ('gold', 'answer', 'is_correct'),
  [
    ('$2 \\sqrt{3}$,$-2 \\sqrt{3}$', r'\pm\sqrt{12}', True),
    ('$2 \\sqrt{3}$,$-2 \\sqrt{3}$', r'-\sqrt{12}, \sqrt{12}', True),
    ('$2 \\sqrt{3}$,$-2 \\sqrt{3}$', r'2\sqrt{3}', False),
    ('$221,$8$', '8, 221', True),  # dollars as in the data
    ('$810, 221$', '221, 810', True),
    ('$k=1$', '1', True),
    ('-2,-2', '-2', True),  # a set
    ('$f(x)=2 x$', '2x', True),
    ('$f(x)=2 x$', 'f(x) = x + x', True),
    ('$f(n)=n$, $g(n)=1$', 'f(n)=n, g(n)=1', True),
    ('$f(n)=n$, $g(n)=1$', 'f(n)=1, g(n)=n', False),
    ('$f(x)=-1$,$f(x)=x+1$', 'f(x)=1+x, f(x)=-1', True),
    ('$(1,8,19), (2,7,13)$', '(2,7,13), (1,8,19)', True),
    ('$(1,8,19), (2,7,13)$', '(2,7,13), (8,1,19)', False),
    ('$\\quad(2+\\sqrt{2}, 1+\\sqrt{2})$', r'(2+\sqrt2, \sqrt2+1)', True),
    ('$(-\\infty, 0) \\cup\\{1\\}$.', r'(-\infty,0) \cup \{1\}', True),
    ('$t(0,4]$', 't \\in (0,4]', True),
    ('$k \\geqslant 2$', r'[2, \infty)', True),
    ('$k \\geqslant 2$', r'(2, \infty)', False),
    ('62.5%', '62.5', True),
    ('62.5%', r'62.5\%', True),
    ('62.5%', '0.625', False),
    ('$18.8^{\\circ}$', r'18.8^\circ', True),
    ('$2^{1009}$', r'2^{1008} \cdot 2', True),
    ('$2^{1009}$', r'2^{1008}', False),
    ('$m n-\\lfloor m / 2\\rfloor$', r'mn - \lfloor \frac{m}{2} \rfloor', True),
    ('$m_{\\max }=n^{2}-n-1$', 'n(n-1)-1', True),
    ('$-(n-1) / 2$', r'\frac{1-n}{2}', True),
    ('$\\binom{2n}{n}$', r'\frac{(2n)!}{n! \cdot n!}', True),
  ],
)
def test_golds_as_they_are_written_there(task, gold, answer, is_correct):
  row = task.parse(ROW | {'final_answer': [gold]}, 0)
  verdict = base.judge(task, rf'\boxed{{{answer}}}', row)
  assert verdict.is_correct == is_correct


@pytest.mark.parametrize(
  ('answer', 'is_correct'),
  [
    ('4.2', True),
    (r'4.2\%', True),
    ('4.1', True),
    ('4.3', True),  # within, exactly: 4.3 - 4.2 > 0.1 in floats
    (r'\frac{17}{4}', True),
    ('4.31', False),
    ('4', False),
    ('-4.2', False),
    ('4.2,4.2', True),
    ('4.1,4.2', False),
    (r'\sqrt{17.64}', True),
    (r'\sqrt{17.6}', False),  # a tolerance is for numbers
    ('', False),
  ],
)
def test_a_tolerance_is_kept(task, answer, is_correct):
  change = {'final_answer': ['$4.2$'], 'error': '1e-1', 'unit': '%'}
  row = task.parse(ROW | change, 0)
  verdict = base.judge(task, rf'\boxed{{{answer}}}', row)
  assert verdict.is_correct == is_correct


def test_near_numbers_do_not_vote_together(task):
  row = task.parse(ROW | {'final_answer': ['4.2'], 'error': '1e-1'}, 0)
  assert task.group(['4.2', '4.1', '4.2'], row) == [0, 1, 0]


def test_without_a_tolerance_numbers_are_exact(task):
  row = task.parse(ROW | {'final_answer': ['4.2']}, 0)
  assert task.is_correct('4.2', row)
  assert not task.is_correct('4.2001', row)


@pytest.mark.parametrize(
  ('gold', 'response', 'worth'),
  [
    ('$3$', r'\boxed{3}', 1.0),
    ('$3$', '#### 3', 0.0),
    ('$69$,$84$', r'\boxed{69,84}', 1.0),
    ('$69$,$84$', r'\boxed{84,69}', 0.0),
    ('$\\frac{1}{2}$', 'So the answer is $1/2$', 1.0),
    ('$2 n$', r'\boxed{n+n}', 0.0),
    ('62.5%', r'\boxed{62.5\%}', 1.0),
  ],
)
def test_the_released_rule_strips_dollars(task, gold, response, worth):
  row = task.parse(ROW | {'final_answer': [gold]}, 0)
  assert task.released(response, row) == worth


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'question': 3}, "field 'question' is 3"),
    ({'question': ' '}, 'question is empty'),
    ({'final_answer': '3'}, "field 'final_answer' is '3', not a list"),
    ({'final_answer': []}, r"field 'final_answer' is \[\]"),
    ({'final_answer': [3]}, r"field 'final_answer' is \[3\]"),
    ({'final_answer': ['$$']}, r"final_answer \['\$\$'\] cannot be read"),
    ({'context': 3}, "field 'context' is 3"),
    ({'error': 0.1}, "field 'error' is 0.1"),
    ({'error': '1e-1'}, "error '1e-1' is no tolerance"),  # of two answers
    ({'error': 'some', 'final_answer': ['3']}, "error 'some'"),
  ],
)
def test_bad_rows_are_named_by_their_field(task, change, message):
  with pytest.raises(base.TaskError, match=message):
    task.parse(ROW | change, 0)
