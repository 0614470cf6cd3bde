# SPDX-License-Identifier: Apache-2.0
"""experiments/judging: responses of every kind, and honest counts of them."""

import json
import pathlib
import re
import sys

import pytest

from thicket import tasks
from thicket.tasks import base
from thicket.tasks.base import judge

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from experiments.judging import __main__ as judging  # noqa: E402
from experiments.judging import responses  # noqa: E402

FOLDER = ROOT / 'experiments' / 'judging'
EXAMPLES = tuple(
  base.Example(i, f'What is {i} + {i}?', str(2 * i)) for i in range(7, 400)
)


@pytest.fixture
def task():
  return tasks.make('gsm8k')


def test_responses_are_of_every_kind_and_judged_as_they_are_meant(task):
  asked = responses.Responses(task, EXAMPLES).take(2000)
  assert len(set(asked)) == 2000
  verdicts = [judge(task, text, example) for example, text in asked]
  right = sum(x.is_correct for x in verdicts)
  abstained = sum(x.answer is None for x in verdicts)
  # Four standard deviations of a draw; a wrong answer may be right by luck.
  assert abs(right - 800) < 4 * 22 + 20
  assert abs(abstained - 400) < 4 * 18
  assert sum(x.answer is None and x.is_lenient_correct for x in verdicts) < 50
  lengths = [len(text) for _, text in asked]
  assert sum(x > 5000 for x in lengths) > 10
  assert sum(lengths) / 2000 < 1500
  assert any(text.endswith('\n#### ') for _, text in asked)


def test_a_seed_says_which_responses(task):
  take = lambda seed, *counts: [
    x
    for made in [responses.Responses(task, EXAMPLES, 0.5, seed)]
    for count in counts
    for x in made.take(count)
  ]
  assert take(3, 50) == take(3, 20, 30)
  assert take(3, 50) != take(4, 50)


@pytest.mark.parametrize('repeats', [0.5, 0.9])
def test_repeats_are_word_by_word(task, repeats):
  asked = responses.Responses(task, EXAMPLES, repeats).take(2000)
  different = len(set(asked))
  assert abs(different - 2000 * (1 - repeats)) < 100


def test_a_task_says_itself_how_answers_are_written(task):
  example = EXAMPLES[0]
  found = responses.spelling(task, example)
  assert found == responses.Spelling('#### {}', '14')
  assert responses.spelling(task, example, ('\\boxed{{}}',)) is None
  arithmetic = tasks.make('arithmetic')
  row = next(arithmetic.examples())
  found = responses.spelling(arithmetic, row)
  assert arithmetic.extract(found.form.replace('{}', found.answer)) == row.gold

  class Boxed(type(task)):
    def extract(self, response):
      match = re.fullmatch(r'\\boxed\{(.*)\}', response)
      return match and match[1]

    def is_correct(self, answer, example):
      return answer == example.meta['solution']

  row = base.Example(1, 'What?', '24', {'numbers': [4, 6], 'solution': '4 * 6'})
  found = responses.spelling(Boxed(), row)
  assert found == responses.Spelling('\\boxed{{}}', '4 * 6')


def test_a_task_that_no_answer_is_known_of_is_refused(task):
  rows = [base.Example(1, 'What?', 'seven')]
  with pytest.raises(ValueError, match='gsm8k: no way to write an answer'):
    responses.Responses(task, rows)


@pytest.mark.parametrize('processes', [0, 1])
def test_counts_are_those_of_the_responses(task, processes):
  found = judging.measure(
    task, EXAMPLES, repeats=0.0, count=700, limit_s=600, processes=processes
  )
  made = responses.Responses(task, EXAMPLES)
  made.take(2)  # which warm up, and are not counted
  asked = made.take(700)
  verdicts = [judge(task, text, example) for example, text in asked]
  assert found.pop('seconds') > 0
  assert found == {
    'responses': 700,
    'right': sum(x.is_correct for x in verdicts) / 700,
    'abstained': sum(x.answer is None for x in verdicts) / 700,
    'mean_chars': sum(len(text) for _, text in asked) / 700,
  }


def test_it_stops_at_the_limit(task):
  found = judging.measure(
    task, EXAMPLES, repeats=0.0, count=10**9, limit_s=1e-9, processes=0
  )
  assert found['responses'] == judging.CHUNKS[0]


def test_the_command_measures_what_has_rows(tmp_path, capsys):
  text = ''.join(
    json.dumps({'question': x.question, 'answer': f'#### {x.gold}'}) + '\n'
    for x in EXAMPLES
  )
  (tmp_path / 'gsm8k.jsonl').write_text(text)
  output = tmp_path / 'made' / 'cpu.json'
  judging.main(
    [
      f'--data={tmp_path}',
      '--tasks=arithmetic,gsm8k,math_of_nowhere',
      '--number=300',
      '--processes=0',
      f'--output={output}',
    ]
  )
  found = json.loads(output.read_text())
  assert sorted(found['tasks']) == ['arithmetic', 'gsm8k']
  assert list(found['skipped']) == ['math_of_nowhere']
  assert 'skipped: unknown task' in capsys.readouterr().out
  header, _, *lines = judging.markdown(found).splitlines()
  assert [x.split(' | ')[0] for x in lines] == ['| arithmetic', '| gsm8k']
  assert {x.count('|') for x in (header, *lines)} == {len(judging.HEADER) + 1}
  assert '| < 60 |' in lines[1]


def test_the_rates_are_those_of_the_experiment():
  text = (FOLDER / 'README.md').read_text('utf-8')
  results = sorted((FOLDER / 'results').glob('*.json'))
  told = re.findall(r'^\| task .*\n(?:\|.*\n?)+', text, re.MULTILINE)
  assert [x.strip() for x in told] == [
    judging.markdown(json.loads(x.read_text('utf-8'))) for x in results
  ]
