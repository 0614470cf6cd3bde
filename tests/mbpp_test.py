# SPDX-License-Identifier: Apache-2.0
"""MBPP: rows, extraction, verdicts and votes; programs run in confinement."""

import json
import pickle

import confined
import pytest

from thicket import judging, sandbox, tasks
from thicket.tasks import base

ROW = {
  'task_id': 7,
  'text': 'Write a function to add the numbers of a list.',
  'code': 'import math\r\ndef add_all(xs):\r\n\treturn sum(xs)',
  'test_list': [
    'assert add_all([1, 2, 3]) == 6',
    'assert add_all([]) == 0 ',
    'assert math.isclose(add_all([0.1, 0.2]), 0.3)',
  ],
  'test_setup_code': '',
  'challenge_test_list': ['assert add_all([-1]) == -1'],
}
SANITIZED = {
  'prompt': 'Write a function to find the sum of two numbers.',
  'code': 'def sum(a, b):\n  return a + b',
  'test_imports': ['from math import floor'],
  'test_list': [
    'assert floor(sum(1, 2)) == 3',
    'assert set([sum(4, 5)]) == {9}',
  ],
}
TREE = {
  'text': 'Write a function to find the height of a binary tree.',
  'code': (
    'class Node:\n  def __init__(self, x):\n'
    '    self.x, self.left, self.right = x, None, None\n'
    'def height(n):\n  return 0 if n is None else 1 + max('
    'height(n.left), height(n.right))'
  ),
  'test_list': ['assert (height(root)) == 3', 'assert height(None) == 0'],
  'test_setup_code': (
    'root = Node(1)\nroot.left = Node(2)\nroot.left.right = Node(3)'
  ),
}
GOOD = 'def add_all(xs):\n  return sum(xs)'


@pytest.fixture(scope='module')
def task():
  return confined.task('mbpp')


def fenced(code):
  return f'```python\n{code}\n```'


def test_parse_keeps_what_judges_and_shows_the_tests():
  example = tasks.make('mbpp').parse(ROW, 5)
  assert example == base.Example(
    5,
    f'{ROW["text"]}\nYour code has to pass these tests:\n\n'
    'assert add_all([1, 2, 3]) == 6\nassert add_all([]) == 0\n'
    'assert math.isclose(add_all([0.1, 0.2]), 0.3)',
    'import math\ndef add_all(xs):\n\treturn sum(xs)',
    {
      'tests': '\n' + '\n'.join(ROW['test_list']) + '\n',
      'context': 'import math',
      'names': ['add_all'],
    },
  )
  assert json.loads(json.dumps(example.meta)) == example.meta


def test_names_of_a_program_are_those_the_tests_need():
  parse = tasks.make('mbpp').parse
  # `sum` is a builtin, but the solution's own; `set` and `floor` are not.
  assert parse(SANITIZED, 0).meta['names'] == ['sum']
  assert parse(TREE, 0).meta['names'] == ['Node', 'height']


@pytest.mark.parametrize('row', [ROW, SANITIZED, TREE])
def test_a_gold_solution_is_worth_everything(task, row):
  example = task.parse(row, 0)
  verdict = base.judge(task, fenced(row['code']), example)
  assert verdict == base.Judgement(
    1.0, 1.0, True, example.gold, example.gold, True
  )
  assert task.is_correct(example.gold, example)


@pytest.mark.parametrize('number', [0, 1])
def test_prompt_asks_for_what_the_extractor_reads(number):
  template = tasks.make('mbpp').prompt_templates[number]
  task = tasks.make('mbpp', prompt_template=template)
  prompt = task.prompt(task.parse(ROW, 0))
  assert ROW['text'] in prompt
  assert ROW['test_list'][2] in prompt
  assert 'challenge' not in prompt
  assert '-1' not in prompt  # of the tests that are kept back
  assert ('```python' in prompt, '<answer>' in prompt) == (
    (True, False),
    (False, True),
  )[number]
  # The prompt itself, repeated, is no answer.
  assert task.extract(prompt) is None


@pytest.mark.parametrize(
  ('response', 'strict', 'lenient'),
  [
    ('```python\nx = 1\n```', 'x = 1', 'x = 1'),
    ('Sure!\n```python\nx = 1\n```\nDone.', 'x = 1', 'x = 1'),
    ('```Python3 \r\nx = 1\r\ny = 2\r\n```\r\n', 'x = 1\ny = 2',
     'x = 1\ny = 2'),
    ('~~~py\nx = 1\n~~~', 'x = 1', 'x = 1'),
    ('````python\ns = """\n```\n"""\n````', 's = """\n```\n"""',
     's = """\n```\n"""'),
    ('```python\nx = 1\n```\nno:\n```python\nx = 2\n```', 'x = 2', 'x = 2'),
    ('```python\nx = 1\n```\n```text\n5\n```', 'x = 1', 'x = 1'),
    ('```python\nx = 1\n```\n```python\nx =', 'x = 1', 'x = 1'),
    ('1. Do\n   ```python\n   if x:\n     y\n   ```', 'if x:\n  y',
     'if x:\n  y'),
    ('```python\n  x = 1\n\n\n```', '  x = 1', '  x = 1'),
    ('<answer>x = 1</answer>', 'x = 1', 'x = 1'),
    ('<answer>\nx = 1\n</answer>', 'x = 1', 'x = 1'),
    ('<answer>\n```\nx = 1\n```\n</answer>', 'x = 1', 'x = 1'),
    ('<answer>x = 1</answer> or <answer>x = 2</answer>', 'x = 2', 'x = 2'),
    ('```python\nx = 3\n```\n<answer>x = 1</answer>', 'x = 1', 'x = 1'),
    ('```\nx = 1\n```', None, 'x = 1'),
    ('```c\nx = 1;\n```', None, 'x = 1;'),
    ('```python\nx = 1', None, 'x = 1'),
    ('use ```python and ```', None, None),
    ('<answer>x = 1', None, None),
    ('Here:\ndef f():\n  return 1\n', None, 'def f():\n  return 1'),
    ('from a import b\nb()', None, 'from a import b\nb()'),
    ('a def f(): is\nimportant', None, None),
    ('@cache\ndef f(): pass', None, '@cache\ndef f(): pass'),
    ('```python\n\n```', None, None),
    ('<answer> </answer>', None, None),
    ('x = 1', None, None),
    ('', None, None),
  ],
)  # fmt: skip
def test_extraction(response, strict, lenient):
  task = tasks.make('mbpp')
  assert task.extract(response) == strict
  assert task.extract_lenient(response) == lenient


@pytest.mark.parametrize(
  'piece',
  ['```python\n', '```', '<answer>', '</answer>', ' ', '\n', '`', 'def ', '~',
   '```python\nx\n```\n', '<answer>x</answer>', '   ```\n', '\r'],
)  # fmt: skip
def test_extraction_takes_linear_time(piece):
  # A quadratic rule would take hours for these.
  task = tasks.make('mbpp')
  text = piece * (1_000_000 // len(piece))
  assert task.extract(text) is None or len(task.extract(text)) < len(text)
  task.extract_lenient(text)


@pytest.mark.parametrize(
  ('code', 'is_right'),
  [
    (GOOD, True),
    ('add_all = sum', True),
    ('def add_all(xs):\n  total = 0\n  for x in xs: total += x\n  return total',
     True),
    # Demonstrations do no harm; what they print is no answer.
    (f'{GOOD}\nprint(add_all([1, 2]))', True),
    (f'{GOOD}\nif __name__ == "__main__":\n  1 / 0', True),
    ('def add_all(xs):\n  print(sum(xs))', False),
    ('def add_all(xs):\n  return 6', False),
    ('def add_all(xs):\n  return sum(xs[1:], xs[0])', False),
    ('def add(xs):\n  return sum(xs)', False),
    ('def add_all(xs)\n  return sum(xs)', False),
    ('def add_all(xs):\n  return str(sum(xs))', False),
    ('def add_all(xs):\n  while True: pass', False),
    ('import os\nos._exit(0)', False),
    ('class Yes:\n  __eq__ = __lt__ = lambda *a: True\n'
     'def add_all(xs):\n  return Yes()', False),
    ('import math\nmath.isclose = lambda *a: True\n'
     'def add_all(xs):\n  return sum(map(int, xs))', False),
    (f'{GOOD}\nassert add_all([1]) == 2', False),
    ('```', False),
    ('x' * 100_000, False),
  ],
)  # fmt: skip
def test_programs_are_judged_by_their_tests(task, code, is_right):
  example = task.parse(ROW, 1)
  verdict = base.judge(task, f'<answer>{code}</answer>', example)
  assert verdict.is_correct is verdict.is_lenient_correct is is_right
  assert verdict.reward == float(is_right)
  assert verdict == base.judge_answer(task, verdict.answer, example)


def test_the_tools_of_the_tests_are_their_own(task):
  example = task.parse(SANITIZED, 0)
  cheat = 'sum = lambda a, b: 0\nset = floor = lambda x: {9} if x else 3'
  assert not task.is_correct(cheat, example)
  assert not task.is_correct(cheat + '\nclass sum(int): pass', example)


def test_programs_vote_by_what_they_do(task):
  example = task.parse(ROW, 1)
  answers = [
    GOOD,
    'add_all = sum',
    'def add_all(xs):\n  return 6',
    'def add_all(ys):\n  # always\n  return 2 * 3',
    'def add_all(xs):\n  return xs[0] + sum(xs[1:])',
    'this is no program',
    'import os\nos._exit(0)',
    'def add_all(xs): raise ValueError',
    f'{GOOD}\n',
  ]
  # The fifth fails for an empty list alone; those that never answer abstain.
  assert task.group(answers, example) == [0, 0, 1, 1, 2, -1, -1, -1, 0]
  assert task.group([], example) == []


def test_votes_do_not_look_at_what_is_expected(task):
  other = ROW | {
    'test_list': [x.replace('== 6', '== 5') for x in ROW['test_list']]
  }
  answers = [GOOD, 'add_all = sum', 'def add_all(xs):\n  return 6']
  wrong = task.parse(other, 2)
  assert not any(task.is_correct(x, wrong) for x in answers)
  assert task.group(answers, wrong) == [0, 0, 1]


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'code': None}, "field 'code' is None"),
    ({'text': 3}, "field 'text' is 3"),
    ({'test_list': []}, "field 'test_list' is empty"),
    (
      {'test_list': 'assert f()'},
      "'test_list' is 'assert f\\(\\)', not a list",
    ),
    ({'test_list': [1]}, 'not a list of texts'),
    ({'test_list': ['assert (']}, "field 'test_list' is no Python"),
    ({'code': 'def'}, "field 'code' is no Python"),
    ({'test_imports': ['import']}, "field 'test_imports' is no Python"),
    ({'test_setup_code': 4}, "field 'test_setup_code' is 4"),
  ],
)
def test_bad_rows_are_named_by_their_field(change, message):
  with pytest.raises(base.TaskError, match=message):
    tasks.make('mbpp').parse(ROW | change, 0)


def test_without_confinement_the_row_is_named(monkeypatch):
  def refuse(job):
    raise sandbox.SandboxError('no namespaces; allow them')

  monkeypatch.setattr(sandbox, 'run', refuse)
  task = tasks.make('mbpp')
  with pytest.raises(base.TaskError, match='mbpp, row 3: no namespaces; allow'):
    base.judge(task, fenced(GOOD), task.parse(ROW, 3))


def test_workers_judge_as_this_process_does(task):
  example = task.parse(ROW, 1)
  assert pickle.loads(pickle.dumps(task)) == task
  asked = [
    (example, fenced(code))
    for code in (GOOD, 'add_all = sum', 'def add_all(xs):\n  return 6', 'x')
  ]
  judges = judging.Judges(task, processes=1)
  try:
    found = judges(asked)
  finally:
    judges.close()
  assert found == judging.Judges(task)(asked)
  assert [x.is_correct for x in found] == [True, True, False, False]
