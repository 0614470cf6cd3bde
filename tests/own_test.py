# SPDX-License-Identifier: Apache-2.0
"""Rows of a user's own: each reward on good and bad responses."""

import dataclasses
import hashlib
import pickle
import sys

import pytest

from thicket import judging, tasks
from thicket.tasks import base


def _own(**settings):
  return tasks.make('jsonl', **settings)


def _row(task, answer, **more):
  return task.parse({'question': 'What is it?', 'answer': answer, **more}, 7)


@pytest.mark.parametrize(
  ('response', 'answer', 'lenient'),
  [
    ('Buenos Aires', 'buenos aires', 'buenos aires'),
    ('  buenos\u00a0 AIRES.  ', 'buenos aires', 'buenos aires'),
    ('**Buenos Aires**', 'buenos aires', 'buenos aires'),
    ('"Buenos Aires!"', 'buenos aires', 'buenos aires'),
    ('\uff22uenos Aires', 'buenos aires', 'buenos aires'),
    ('I think.\n\nBuenos Aires\n', 'buenos aires', 'buenos aires'),
    ('Answer: Buenos Aires', 'answer: buenos aires', 'buenos aires'),
    ('The answer is Buenos Aires.', 'the answer is buenos aires',
     'buenos aires'),
    ('The answer is: Buenos Aires', 'the answer is: buenos aires',
     ': buenos aires'),
    ('Buenos Aires\nis the capital', 'is the capital', 'is the capital'),
    ('Not Buenos Aires', 'not buenos aires', 'not buenos aires'),
    ('The answer is', 'the answer is', 'the answer is'),
    ('...', '...', '...'),
    ('-.5', '-.5', '-.5'),
    ('.5', '.5', '.5'),
    ('', None, None),
    (' \n\t', None, None),
  ],
)  # fmt: skip
def test_exact_reads_the_last_line(response, answer, lenient):
  task = _own()
  assert task.extract(response) == answer
  assert task.extract_lenient(response) == lenient


@pytest.mark.parametrize(
  ('response', 'answer', 'lenient'),
  [
    ('1080', '1080', '1080'),
    ('$1,080.00.', '1080', '1080'),
    ('12 * 90 makes\n1,080 jars', '1080', '1080'),
    ('12 * 90 = 1080', None, '1080'),
    ('1080\nIs that all?', None, '1080'),
    ('-5', '-5', '-5'),
    ('1/3', '1/3', '1/3'),
    ('50%', '50', '50'),
    ('1,8', None, None),
    ('1e999', None, None),
    ('\u0967\u0966\u096e\u0966', None, None),
    ('\uff11\uff10\uff18\uff10', None, None),
    ('x2', None, None),
    ('none', None, None),
    ('', None, None),
  ],
)
def test_numeric_reads_the_one_number_of_the_last_line(
  response, answer, lenient
):
  task = _own(reward='numeric')
  assert task.extract(response) == answer
  assert task.extract_lenient(response) == lenient


@pytest.mark.parametrize(
  ('response', 'is_right'),
  [
    ('Rome', True),
    ('It is Rome, I think.\nAnything else?', True),
    ('(rome)', True),
    ('In Rome\n\n', True),
    ('New\n Rome', True),
    ('Romeo', False),
    ('Jerome', False),
    ('Rome2', False),
    ('R o m e', False),
    ('Romeo and Rome', True),
    ('', False),
  ],
)
def test_contains_looks_for_whole_words(response, is_right):
  task = _own(reward='contains')
  verdict = base.judge(task, response, _row(task, 'Rome'))
  assert verdict.reward == verdict.lenient_reward == float(is_right)
  assert verdict.is_correct == is_right


def test_contains_takes_signs_as_they_are():
  task = _own(reward='contains')
  row = _row(task, 'C++')
  assert task.reward('I use C++ daily', row) == 1
  assert task.reward('I use C+', row) == 0
  assert task.reward('a-5', _row(task, '-5')) == 1
  assert task.reward('-55', _row(task, '-5')) == 0


def test_a_vote_does_not_know_the_gold_answer():
  task = _own(reward='contains')
  row = _row(task, 'Rome')
  said = ['It is Rome', 'Hm.\nROME.', 'rome', 'Paris', 'Not Rome:\nparis']
  assert task.group(said, row) == [0, 1, 1, 2, 2]
  # What the winner of a vote is worth is what its response is worth.
  assert base.judge_answer(task, said[1], row).is_correct


@pytest.mark.parametrize('reward', ['exact', 'numeric', 'contains'])
@pytest.mark.parametrize('answer', [42, 42.0, '42', ' 42 '])
def test_golds_are_worth_everything(reward, answer):
  task = _own(reward=reward)
  row = _row(task, answer, unit='m')
  verdict = base.judge(task, str(answer), row)
  assert verdict.reward == verdict.lenient_reward == 1
  assert verdict.is_correct
  assert row.meta == {'unit': 'm'}


@pytest.mark.parametrize(
  ('reward', 'change', 'message'),
  [
    ('exact', {'question': None}, "field 'question' is None"),
    ('exact', {'question': ' '}, 'question is empty'),
    ('exact', {'answer': None}, "field 'answer' is None, neither text nor"),
    ('exact', {'answer': True}, "field 'answer' is True, neither"),
    ('exact', {'answer': ['a']}, "field 'answer' is"),
    ('exact', {'answer': ' '}, "field 'answer' is empty"),
    ('numeric', {'answer': 'two'}, "field 'answer' is 'two', not one number"),
    ('numeric', {'answer': '#### 2'}, 'not one number'),
    ('contains', {'answer': ''}, "field 'answer' is empty"),
  ],
)
def test_bad_rows_are_named_by_their_field(reward, change, message):
  row = {'question': 'What?', 'answer': '2'} | change
  with pytest.raises(base.TaskError, match=message):
    _own(reward=reward).parse(row, 0)


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'reward': 'exactly'}, "reward='exactly' must be one of exact, numeric"),
    ({'reward': 'no_such_module:f'}, "module 'no_such_module' cannot be"),
    ({'reward': 'json:f'}, "module 'json' has no function 'f'"),
    ({'reward': 'json:__doc__'}, 'has no function'),
    ({'reward': 'time:time'}, "module 'time' has no file"),
    ({'reward': ':f'}, 'cannot be imported'),
    ({'stop': '\n'}, "stop='.n' must be texts"),
    ({'stop': ('',)}, 'must be texts'),
    ({'prompt_template': 'Q'}, "prompt_template='Q'"),
    ({'max_new_tokens': 0}, 'max_new_tokens=0'),
    ({'rewards': 'exact'}, "did you mean 'reward'"),
  ],
)
def test_settings_are_checked(settings, message):
  with pytest.raises(base.TaskError, match=message):
    _own(**settings)


def test_settings_reach_the_task():
  task = _own(stop=['\n', 'Q:'], max_new_tokens=3, reward='numeric')
  assert task.stop_strings == ('\n', 'Q:')
  assert task.max_new_tokens == 3
  assert dataclasses.replace(task, prompt_template='{question}').rule == (
    'numeric'
  )
  assert {task: 1}[
    _own(stop=['\n', 'Q:'], max_new_tokens=3, reward='numeric')
  ] == 1  # fmt: skip


CODE = """
calls = []

def fn(response, row):
  calls.append(response)
  row['tags'].append('changed')
  if response == 'raise':
    raise KeyError('oops')
  return {'one': 1, 'true': True, 'half': 0.5, 'big': 1.5, 'small': -0.1,
          'nan': float('nan'), 'none': None, 'text': '1'}.get(response, 0)

def uses(response, row):
  return float(response == row['answer'][0] == row['note'])
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
  """Writes a module of the user's; its name is new each time."""
  names = []

  def write(code):
    names.append(f'own_rewards_{tmp_path.name}_{len(names)}')
    (tmp_path / f'{names[-1]}.py').write_text(code)
    return names[-1]

  monkeypatch.syspath_prepend(str(tmp_path))
  yield write
  for name in names:
    sys.modules.pop(name, None)


def _user_row(task):
  return _row(task, ['x', 2], note='x', tags=[])


@pytest.mark.parametrize(
  ('response', 'reward'),
  [('one', 1.0), ('true', 1.0), ('half', 0.5), ('zero', 0.0), ('', 0.0)],
)
def test_a_function_of_the_users(module, response, reward):
  task = _own(reward=f'{module(CODE)}:fn')
  row = _user_row(task)
  verdict = base.judge(task, response, row)
  assert verdict.reward == verdict.lenient_reward == reward
  assert verdict.is_correct == verdict.is_lenient_correct == (reward == 1)
  # It cannot change the row, and is asked once.
  assert row.meta == {'answer': ['x', 2], 'note': 'x', 'tags': []}
  name = task.rule.partition(':')[0]
  assert sys.modules[name].calls == ([response] if response else [])


def test_a_function_sees_the_whole_row(module):
  task = _own(reward=f'{module(CODE)}:uses')
  assert task.reward('x', _user_row(task)) == 1
  assert task.reward('y', _user_row(task)) == 0
  # Without an answer too.
  row = task.parse({'question': 'What?', 'note': 'x'}, 0)
  with pytest.raises(base.TaskError, match="uses failed on 'x': KeyError"):
    task.reward('x', row)


@pytest.mark.parametrize(
  ('response', 'message'),
  [
    ('big', r'fn, row 7: returned 1\.5; a reward is a number from 0 to 1'),
    ('small', 'fn, row 7: returned -0.1'),
    ('nan', 'fn, row 7: returned nan'),
    ('none', 'fn, row 7: returned None'),
    ('text', "fn, row 7: returned '1'"),
    ('raise', "own_rewards.*:fn failed on 'raise': KeyError: 'oops'"),
  ],
)
def test_what_is_no_reward_is_refused(module, response, message):
  task = _own(reward=f'{module(CODE)}:fn')
  with pytest.raises(base.TaskError, match=message):
    base.judge(task, response, _user_row(task))


def test_a_function_may_say_what_votes(module):
  code = (
    CODE
    + """
def answer(response):
  return None if 'pass' in response else response[:1]
"""
  )
  plain, own = (_own(reward=f'{module(c)}:fn') for c in (CODE, code))
  row = _user_row(plain)
  said = ['Yes\nB.', 'b', 'one', 'only']
  assert plain.group(said, row) == [0, 0, 1, 2]
  assert own.group(said, row) == [0, 1, 2, 2]
  assert plain.extract('I pass') == 'I pass'
  assert own.extract('I pass') is None
  assert own.reward(None, row) == 0


def test_votes_that_are_no_text_are_refused(module):
  name = module(CODE + 'answer = lambda response: 3\n')
  with pytest.raises(base.TaskError, match=f'{name}:answer returned 3'):
    _own(reward=f'{name}:fn').extract('x')


def test_a_changed_function_is_another_recipe(module):
  one, other = module(CODE), module(CODE + '# changed\n')
  task = _own(reward=f'{one}:fn')
  assert task.code == hashlib.sha256(CODE.encode()).hexdigest()
  assert _own(reward=f'{other}:fn').code != task.code
  assert _own().code == ''
  assert {x.name for x in dataclasses.fields(task)} >= {'code', 'rule', 'stop'}


def test_a_process_can_judge_by_a_function_of_the_users(module):
  task = _own(reward=f'{module(CODE)}:fn')
  assert pickle.loads(pickle.dumps(task)) == task
  row = _user_row(task)
  judges = judging.Judges(task, processes=1)
  try:
    found = judges([(row, 'half'), (row, 'one')])
  finally:
    judges.close()
  assert found == [base.judge(task, text, row) for text in ('half', 'one')]


@pytest.mark.parametrize('reward', ['exact', 'numeric', 'contains'])
@pytest.mark.parametrize(
  'unit', ['a ', '1,', 'answer: ', '\n', '**', ' ', '12.', 'a a\n', '#']
)
def test_a_megabyte_takes_linear_time(reward, unit):
  # Each of these would take hours if anything were quadratic.
  task = _own(reward=reward)
  row = _row(task, 1 if reward == 'numeric' else 'a ' * 500 + 'b')
  text = unit * (1_000_000 // len(unit))
  for response in (text, text + 'x', 'x' + text):
    assert not base.judge(task, response, row).is_correct
