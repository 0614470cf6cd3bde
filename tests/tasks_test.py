# SPDX-License-Identifier: Apache-2.0
"""The table of tasks, and the one way in which all answers are judged."""

import dataclasses
import subprocess
import sys

import pytest

from thicket import tasks
from thicket.tasks import base


@pytest.mark.parametrize('name', sorted(tasks.TASKS))
def test_each_task_keeps_the_protocol(name):
  task = tasks.make(name)
  assert task.name == name
  assert task.output_kind == ('label' if name == 'classify' else 'text')
  low, high = task.reward_range
  assert low < high
  assert all(task.stop_strings)
  assert isinstance(task, (base.Generated, base.Parsed))
  # Configuration only: equal settings make equal, hashable tasks.
  assert {task: 1}[tasks.make(name)] == 1


@pytest.mark.parametrize(
  ('name', 'kwargs', 'message'),
  [
    ('gms8k', {}, r"unknown task 'gms8k'; did you mean 'gsm8k'\?"),
    ('chess', {}, "unknown task 'chess'; known: arithmetic, classify, "),
    ('gsm8k', {'max_tokens': 1}, "did you mean 'max_new_tokens'"),
    ('gsm8k', {'name': 'x'}, "unknown setting of gsm8k 'name'"),
    ('gsm8k', {'max_new_tokens': 0}, 'max_new_tokens=0'),
    ('gsm8k', {'prompt_template': 'Q:'}, "prompt_template='Q:'"),
  ],
)
def test_what_cannot_be_made_is_explained(name, kwargs, message):
  with pytest.raises(base.TaskError, match=message):
    tasks.make(name, **kwargs)


def test_settings_reach_the_task():
  task = tasks.make(
    'gsm8k', max_new_tokens=7, prompt_template='{x} {question}!'
  )
  row = base.Example(0, 'a {question} of {braces}', '1')
  assert task.max_new_tokens == 7
  assert task.prompt(row) == '{x} a {question} of {braces}!'


def test_group_numbers_equal_answers_in_order_of_appearance():
  task = tasks.make('gsm8k')
  row = base.Example(0, 'How many?', '7')
  assert task.group(['7', '3', '7', '9', '3'], row) == [0, 1, 0, 2, 1]
  assert task.group([], row) == []


def test_a_vote_is_judged_as_a_response_is():
  task = tasks.make('gsm8k')
  row = base.Example(1, 'How many?', '18')
  for response in ('#### 18', '#### 19', 'nothing'):
    vote = base.judge_answer(task, task.extract(response), row)
    # The released rule reads responses, and a vote is none.
    assert vote.released is None
    verdict = base.judge(task, response, row)
    assert dataclasses.replace(verdict, released=None) == vote
  # A vote is what it is, whichever rule its answers were read by.
  assert base.judge_answer(task, '18', row) == base.Judgement(
    reward=1.0,
    lenient_reward=1.0,
    is_correct=True,
    answer='18',
    lenient_answer='18',
    is_lenient_correct=True,
  )


@pytest.mark.parametrize(
  ('response', 'answer', 'lenient_answer', 'released'),
  [
    ('#### 18', '18', '18', 1.0),
    ('#### 18.', '18', '18', 0.0),
    ('#### 19', '19', '19', 0.0),
    ('It is 18 eggs.', None, '18', 1.0),
    ('It is 19.', None, '19', 0.0),
    ('nothing', None, None, 0.0),
  ],
)
def test_a_response_is_judged_by_all_rules(
  response, answer, lenient_answer, released
):
  verdict = base.judge(
    tasks.make('gsm8k'), response, base.Example(1, 'How many?', '18')
  )
  assert verdict == base.Judgement(
    reward=float(answer == '18'),
    lenient_reward=float(lenient_answer == '18'),
    is_correct=answer == '18',
    answer=answer,
    lenient_answer=lenient_answer,
    is_lenient_correct=lenient_answer == '18',
    released=released,
  )


def test_a_task_need_not_have_a_released_rule():
  task = tasks.make('arithmetic')
  row = next(task.examples())
  assert base.judge(task, row.gold, row).released is None


@pytest.mark.parametrize('says', [-0.1, 1.5, float('nan'), float('inf')])
def test_a_released_accuracy_is_a_share(says):
  class Odd(type(tasks.make('gsm8k'))):
    def released(self, response, example):
      return says

  with pytest.raises(base.TaskError, match='gsm8k, row 1: released accuracy'):
    base.judge(Odd(), '#### 3', base.Example(1, 'How many?', '3'))


@pytest.mark.parametrize('name', sorted(tasks.TASKS))
def test_the_first_template_is_the_default(name):
  task = tasks.make(name)
  templates = task.prompt_templates
  assert task.prompt_template == templates[0]
  assert len(set(templates)) == len(templates) > 1
  other = tasks.make(name, prompt_template=templates[1])
  assert other.prompt_templates == templates


def test_a_task_need_not_list_templates():
  class Echo(base.Task):
    name, prompt_template, max_new_tokens = 'echo', 'Say {question}', 1

  base.check_settings(Echo())
  assert Echo().prompt_templates == ()


@pytest.mark.parametrize('template', ['Q:', '{question} {question}'])
def test_each_listed_template_holds_the_question_once(template):
  class Listed(type(tasks.make('gsm8k'))):
    prompt_templates = ('{question}', template)

  with pytest.raises(base.TaskError) as error:
    Listed()
  assert f'gsm8k: prompt_templates[1]={template!r} must' in str(error.value)


def test_a_reward_outside_its_range_is_refused():
  class Generous(type(tasks.make('gsm8k'))):
    def reward(self, answer, example):
      return {'1': 1.5, '2': float('nan'), '3': 0.25}[answer]

  task, row = Generous(), base.Example(1, 'How many?', '3')
  verdict = base.judge(task, '#### 3', row)
  assert verdict == base.Judgement(0.25, 0.25, True, '3', '3', True, 1.0)
  for response in ('#### 1', '#### 2'):
    with pytest.raises(base.TaskError, match='gsm8k, row 1: reward'):
      base.judge(task, response, row)


@pytest.mark.parametrize('row_id', [-1, 2**63])
def test_row_ids_fit_the_ledger(row_id):
  with pytest.raises(base.TaskError, match=f'row_id={row_id}'):
    base.Example(row_id, 'How many?', '1')
  assert base.Example(2**63 - 1, 'How many?', '1').row_id == 2**63 - 1


def test_tasks_and_metrics_do_not_need_jax():
  code = (
    'import sys, thicket.tasks, thicket.metrics\n'
    "found = {'jax', 'flax'} & set(sys.modules)\n"
    'sys.exit(str(found) if found else 0)'
  )
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stderr


# Rows that are only to be answered, without what says their answer.
ASKED = {
  'arithmetic': {'question': '17 + 25'},
  'classify': {'text': 'A joy.'},
  'countdown': {'numbers': [44, 19, 35], 'target': '98'},
  'gqa': {'question': 'What is it?'},
  'gsm8k': {'question': 'How many?'},
  'humaneval': {
    'prompt': 'def f(x):\n  """Adds 1."""\n',
    'entry_point': 'f',
    'test': 'def check(f):\n  assert f(1) == 2\n',
  },
  'jsonl': {'question': 'Who?', 'from': 'me'},
  'math500': {'problem': 'What is $1+1$?'},
  'mbpp': {
    'text': 'Add 1.',
    'code': 'import math\ndef f(x):\n  return x + 1',
    'test_list': ['assert f(1) == 2'],
  },
  'olympiadbench': {'context': 'Let x.', 'question': 'What?', 'error': '?'},
  'rocstories': {f'sentence{i}': f'Part {i}.' for i in range(1, 6)},
  'uspto50k': {'rxn_smiles': 'CC>>CO'},
}


def _make(name):
  if name in ('math500', 'olympiadbench'):
    pytest.importorskip('math_verify')
  return tasks.make(name)


@pytest.mark.parametrize('name', sorted(tasks.TASKS))
def test_a_row_is_asked_without_its_answer(name):
  task, row = _make(name), ASKED[name]
  asked = task.ask(row, 7)
  assert asked.row_id == 7
  assert task.prompt(asked).strip()
  # Whatever stands where the answer would be is not looked at.
  for field in task.stand_ins:
    assert field not in row or name == 'olympiadbench'
    assert task.ask({**row, field: 'nonsense {'}, 7) == asked


@pytest.mark.parametrize('name', sorted(set(tasks.TASKS) - {'arithmetic'}))
def test_the_question_asked_is_that_of_the_whole_row(name):
  task = _make(name)
  answers = {
    'classify': {'label': 'negative'},
    'countdown': {'solution': '44+19+35'},
    'gqa': {'answer': 'sofa'},
    'gsm8k': {'answer': '#### 7'},
    'humaneval': {'canonical_solution': '  return x + 1'},
    'jsonl': {'answer': 'you'},
    'math500': {'answer': '2'},
    'olympiadbench': {'final_answer': ['2'], 'error': '1e-1'},
    'uspto50k': {'class': 3},
  }
  row = {**ASKED[name], **answers.get(name, {})}
  whole, asked = task.parse(row, 7), task.ask(ASKED[name], 7)
  assert task.prompt(asked) == task.prompt(whole)
  read = lambda meta: {k: meta.get(k) for k in ('numbers', 'test', 'tests')}
  assert read(asked.meta) == read(whole.meta)


@pytest.mark.parametrize('name', sorted(tasks.TASKS))
def test_a_row_without_its_question_is_told(name):
  if name not in ('countdown', 'rocstories', 'humaneval', 'mbpp', 'uspto50k'):
    message = "field '(question|text|problem)' is None"
  else:
    message = "field '?[a-z_0-9]+'? is "
  with pytest.raises(base.TaskError, match=message):
    _make(name).ask({'other': 1}, 0)


@pytest.mark.parametrize('name', sorted(tasks.TASKS))
def test_answers_to_a_prompt_of_one_s_own_are_grouped(name):
  task = _make(name)
  said = {
    'countdown': ('<answer>2*(1+3)</answer>', '<answer>1+3</answer>'),
    'classify': ('positive', 'negative'),
    'gqa': ('sofa', 'tv'),
    'humaneval': ('<answer>x=1</answer>', '<answer>x=2</answer>'),
    'mbpp': ('<answer>x=1</answer>', '<answer>x=2</answer>'),
    'rocstories': ('Order: ABCDE', 'Order: EDCBA'),
    'uspto50k': ('<answer>1</answer>', '<answer>2</answer>'),
    'math500': (r'\boxed{\frac12}', r'\boxed{3}'),
    'olympiadbench': (r'\boxed{0.5}', r'\boxed{3}'),
    'gsm8k': ('#### 1', '#### 2'),
  }.get(name, ('1', '2'))
  one, other = (task.extract(text) for text in said)
  assert None not in (one, other)
  example = base.Example(0, 'Anything at all', '')
  assert task.group([one, other, one], example) == [0, 1, 0]
