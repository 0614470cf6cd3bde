# SPDX-License-Identifier: Apache-2.0
"""reasoning-gym's rows and scores, and what of its code is kept out."""

import ast
import pathlib
import pickle
import subprocess
import sys

import pytest

from thicket import data, tasks
from thicket.tasks import base
from thicket.tasks import reasoning_gym as adapter
from thicket.tasks.base import canonical

package = pytest.importorskip('reasoning_gym')


def _gym(name='chain_sum', **settings):
  return tasks.make(f'reasoning_gym:{name}', **{'size': 40, **settings})


def test_rows_depend_on_the_settings_and_nothing_else():
  task = _gym()
  rows = list(task.examples())
  assert rows == list(task.examples()) == list(_gym().examples())
  assert [row.row_id for row in rows] == sorted({row.row_id for row in rows})
  # More rows begin with the same ones; another seed makes others.
  assert list(_gym(size=60).examples())[: len(rows)] == rows
  assert list(_gym(seed=1000).examples()) != rows
  options = '{"min_terms": 2, "max_terms": 2}'
  assert all(
    row.question.count('+') + row.question.count(' - ') == 1
    for row in _gym(options=options).examples()
  )


def test_no_question_comes_twice():
  # One digit and two terms leave few questions.
  options = '{"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}'
  rows = list(_gym(size=400, options=options).examples())
  assert 50 < len({canonical(row.question) for row in rows}) == len(rows) < 400


def test_rows_are_cut_into_splits():
  splits = data.load(
    _gym(size=80), num_selection=20, num_validation=10, num_test=20, seed=3
  )
  again = data.examples_from_json(data.examples_to_json(splits))
  assert again == splits
  verdict = base.judge(
    _gym(size=80), f'<answer>{again.test[0].gold}</answer>', again.test[0]
  )
  assert verdict.is_correct


@pytest.mark.parametrize(
  ('response', 'strict', 'lenient'),
  [
    ('<answer>7</answer>', '7', '7'),
    ('<answer>\n 7 \n</answer> Bye.', '7', '7'),
    ('<answer>6</answer> no: <answer>7</answer>', '7', '7'),
    ('So <answer>a\nb</answer>', 'a\nb', 'a\nb'),
    ('<answer>7', None, '7'),
    ('<answer>8</answer> or <answer>7', '8', '8'),
    ('It is 7.\n7', None, '7'),
    ('7</answer>', None, '7</answer>'),
    ('<answer></answer>', None, '</answer>'),
    ('</answer><answer>', None, None),
    ('<ANSWER>7</ANSWER>', None, '<ANSWER>7</ANSWER>'),
    ('', None, None),
    (' \n ', None, None),
  ],
)
def test_extraction(response, strict, lenient):
  task = _gym()
  assert task.extract(response) == strict
  assert task.extract_lenient(response) == lenient


@pytest.mark.parametrize('template', adapter.ReasoningGym.prompt_templates)
def test_prompt_asks_for_what_the_extractor_reads(template):
  task = _gym(prompt_template=template)
  prompt = task.prompt(next(task.examples()))
  assert '<answer> and </answer>' in prompt
  assert not base.judge(task, prompt, next(task.examples())).is_correct


def test_only_the_full_score_counts():
  task = _gym()
  row = next(x for x in task.examples() if len(x.gold) > 2)
  scored = lambda text: base.judge(task, f'<answer>{text}</answer>', row)
  assert scored(row.gold).reward == 1.0
  for text in (
    row.gold + '1',
    '0',
    f'It is {row.gold}',
    f'{row.gold} or 3',
    'x' * adapter.MAX_CHARS + row.gold,
    '１２',  # noqa: RUF001
  ):
    verdict = scored(text)
    assert (verdict.reward, verdict.is_correct) == (0.0, False), text
  # The package itself gives a share for these.
  dataset = package.create_dataset('chain_sum', size=40, seed=0)
  entry = dataset[row.row_id]
  assert 0 < dataset.score_answer(f'It is {row.gold}', entry) < 1


@pytest.mark.parametrize(
  'name',
  ['chain_sum', 'countdown', 'puzzle24', 'gcd', 'word_sorting',
   'spell_backward', 'leg_counting', 'number_sorting', 'simple_equations'],
)  # fmt: skip
def test_golds_are_worth_everything(name):
  task = _gym(name, size=12)
  for row in task.examples():
    verdict = base.judge(task, f'Hm.\n<answer>{row.gold}</answer>', row)
    assert (verdict.reward, verdict.is_correct) == (1.0, True), row


def test_another_sum_with_the_value_is_right():
  task = _gym('countdown', size=12)
  row = next(x for x in task.examples() if ' + ' in x.gold)
  judged = lambda text: base.judge(task, f'<answer>{text}</answer>', row)
  assert judged(f'({row.gold})').is_correct
  assert not judged(f'{row.gold} + 1').is_correct
  assert not judged(row.gold + ' = 1').is_correct


@pytest.mark.parametrize('name', sorted(adapter.ARITHMETIC))
@pytest.mark.parametrize(
  'text',
  [
    '__import__("os").system("touch {file}")',
    'open("{file}", "w")',
    'exit()',
    '9**9**9**9',
    '9*\n*9*\t*9',
    '9' * 10,
    '2' + '+2' * 500,
    '(' * 150,
    '1e9',
    'x',
    '\u0661+\u0662',
    '',
  ],
)
def test_nothing_but_a_sum_reaches_the_evaluation(
  name, text, tmp_path, monkeypatch
):
  task = _gym(name, size=4)
  row = next(task.examples())
  reached = []
  adapter._is_right.cache_clear()
  kind = type(adapter._dataset(task._gym()))
  whole = kind.score_answer
  monkeypatch.setattr(
    kind, 'score_answer', lambda *x: reached.append(x[1]) or whole(*x)
  )
  text = text.format(file=tmp_path / 'made')
  assert not task.is_correct(text, row)
  assert not (tmp_path / 'made').exists()
  assert reached == ([text] if text.startswith('((') else [])
  assert task.is_correct(row.gold, row)  # the spy does see what passes
  assert row.gold in reached


def test_the_tables_name_every_scorer_that_evaluates():
  from reasoning_gym.factory import DATASETS

  # What these evaluate are rows and code of the package's own.
  harmless = {
    'basic_arithmetic',
    'bitwise_arithmetic',
    'codeio',
    'number_sorting',
    'propositional_logic',
  }
  found = set()
  for name, (kind, *_) in DATASETS.items():
    source = pathlib.Path(sys.modules[kind.__module__].__file__)
    for node in ast.walk(ast.parse(source.read_text(encoding='utf-8'))):
      if isinstance(node, ast.Call):
        said = ast.unparse(node.func).removeprefix('sympy.')
        said = said.removeprefix('sp.')
        if said in ('eval', 'exec', 'parse_expr', 'sympify', 'lambdify'):
          found.add(name)
  expected = adapter.EVALUATED | adapter.ARITHMETIC
  assert found - harmless == expected - {'composite'}


@pytest.mark.parametrize(
  ('name', 'settings', 'message'),
  [
    ('chain_sums', {}, "no 'chain_sums'; did you mean chain_sum"),
    ('', {}, "no ''; all of them: ab, acre"),
    ('spiral_matrix', {}, 'would evaluate what a model writes'),
    ('composite', {}, 'would evaluate what a model writes'),
    ('countdown', {'options': '{"max_target": 50}'}, 'max_target must be >='),
    ('countdown', {'options': '{"targets": 1}'}, "keyword argument 'targets'"),
    ('countdown', {'options': 'min_target=1'}, 'JSONDecodeError'),
    ('countdown', {'options': '[1]'}, 'give JSON of its settings'),
    ('gcd', {'size': 0}, 'reasoning_gym:gcd: size=0 is below 1'),
    ('gcd', {'seed': -1}, 'seed=-1 is below 0'),
    ('gcd', {'sizes': 3}, "unknown setting of reasoning_gym:gcd 'sizes'"),
    ('gcd', {'dataset': 'ab'}, "unknown setting of reasoning_gym:gcd 'data"),
    ('gcd', {'prompt_template': 'Q'}, "prompt_template='Q'"),
  ],
)
def test_what_cannot_be_made_is_explained(name, settings, message):
  with pytest.raises(base.TaskError, match=message):
    _gym(name, **settings)


def test_rows_that_cannot_be_made_are_explained():
  options = '{"min_target": 1, "max_target": 1, "min_value": 90}'
  with pytest.raises(base.TaskError, match='no rows can be made: ValueError'):
    list(_gym('countdown', options=options).examples())


def test_smaller_targets_need_the_lower_bound_too():
  options = '{"min_target": 10, "max_target": 50}'
  rows = list(_gym('countdown', size=8, options=options).examples())
  assert len(rows) == 8


@pytest.mark.parametrize('name', ['reasoning_gym', 'reasoning-gym:gcd', 'x:y'])
def test_other_names_are_refused(name):
  with pytest.raises(base.TaskError, match=r'unknown task .*_gym:NAME'):
    tasks.make(name)


def test_another_version_is_refused(monkeypatch):
  monkeypatch.setattr(adapter.importlib.metadata, 'version', lambda _: '9.9')
  adapter._dataset.cache_clear()
  with pytest.raises(base.TaskError, match=r'reasoning-gym 9\.9 is installed'):
    _gym('gcd')


def test_without_the_package_the_extra_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, 'reasoning_gym', None)
  adapter._dataset.cache_clear()
  with pytest.raises(base.TaskError, match=r"install -e '\.\[reasoning_gym\]'"):
    _gym('gcd')


def test_the_package_is_imported_only_when_used():
  code = (
    'import sys, thicket.tasks\n'
    "sys.exit('reasoning_gym' in sys.modules or 'sympy' in sys.modules)"
  )
  done = subprocess.run([sys.executable, '-c', code], check=False)
  assert done.returncode == 0


def test_a_task_can_be_sent_to_a_process():
  task = _gym(options='{"max_terms": 3}')
  assert pickle.loads(pickle.dumps(task)) == task
  assert {task: 1}[_gym(options='{"max_terms": 3}')] == 1


@pytest.mark.parametrize(
  'unit', ['<answer>', '</answer>', '<', '\n', '9', 'a ']
)
def test_a_megabyte_takes_linear_time(unit):
  task = _gym('countdown', size=2)
  text = unit * (1_000_000 // len(unit))
  for response in (text, f'<answer>{text}</answer>', f'{text}</answer>'):
    assert not base.judge(task, response, next(task.examples())).is_correct
