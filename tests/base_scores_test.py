# SPDX-License-Identifier: Apache-2.0
"""experiments/tasks: which rows it takes, and what it says of them."""

import dataclasses
import json
import pathlib
import re
import sys

import numpy as np
import pytest
import tiny_gguf

from thicket import estimates, tasks
from thicket.ledger import Ledger

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from experiments.tasks import __main__ as base_scores  # noqa: E402
from experiments.tasks import rows  # noqa: E402

FOLDER = ROOT / 'experiments' / 'tasks'
TASKS = 'arithmetic,gsm8k'


def _write(path, count, first=0):
  path.parent.mkdir(exist_ok=True, parents=True)
  path.write_text(
    ''.join(
      json.dumps({'question': f'What is {i}?', 'answer': f'#### {i}'}) + '\n'
      for i in range(first, first + count)
    )
  )
  return path


@pytest.mark.parametrize(
  ('files', 'want'),
  [
    (['gsm8k.jsonl'], 'gsm8k.jsonl'),
    (['gsm8k_test.jsonl'], 'gsm8k_test.jsonl'),
    (['gsm8k_train.jsonl', 'gsm8k_test.jsonl', 'gsm8k_test.txt.gz'], '.'),
    (['gsm8k/train.jsonl', 'gsm8k/test.jsonl', 'gsm8k.jsonl'], 'gsm8k'),
    (['gsm8k2.jsonl', 'gsm8k_dev.jsonl', 'math500.jsonl'], 'no rows'),
    (['gsm8k.jsonl', 'gsm8k_test.jsonl'], '2 files'),
  ],
)
def test_rows_are_found_by_the_name_of_their_task(tmp_path, files, want):
  for file in files:
    _write(tmp_path / file, 3)
  if ' ' not in want:
    assert rows.find('gsm8k', tmp_path) == tmp_path / want
  else:
    with pytest.raises(tasks.TaskError, match=f'^gsm8k: {want} in '):
      rows.find('gsm8k', tmp_path)


def test_a_task_that_makes_its_rows_needs_none(tmp_path):
  assert rows.find('arithmetic', tmp_path) is None


@pytest.mark.parametrize('most', [1, 5, 7, 8, 100])
def test_all_rows_are_taken_if_there_are_fewer_than_asked(tmp_path, most):
  _write(tmp_path / 'train.jsonl', 3)
  _write(tmp_path / 'test.jsonl', 7, first=3)
  task = tasks.make('gsm8k')
  found = rows.load(task, tmp_path, most)
  assert len(found) == min(most, 7)
  assert found == rows.load(task, tmp_path, 7)[:most]
  assert {x.gold for x in found} <= {str(i) for i in range(3, 10)}


def test_what_is_wrong_with_rows_is_said(tmp_path):
  path = _write(tmp_path / 'gsm8k.jsonl', 8)
  path.write_text(path.read_text() + '{"question": "What?"}\n')
  with pytest.raises(tasks.TaskError, match="line 9: field 'answer' is None"):
    rows.load(tasks.make('gsm8k'), path, 100)


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  """A folder with a model, rows of GSM8K, and a place for results."""
  folder = tmp_path_factory.mktemp('base')
  # GSM8K's prompt is about 150 bytes, and a byte is a token.
  config = dataclasses.replace(tiny_gguf.CONFIG, context_length=512)
  weights = tiny_gguf.stored(tiny_gguf.answering(1), config)
  tiny_gguf.write(folder / 'tiny.gguf', weights, tiny_gguf.metadata(config))
  _write(folder / 'data' / 'gsm8k_train.jsonl', 2)
  _write(folder / 'data' / 'gsm8k_test.jsonl', 5, first=2)
  return folder


def _main(place, *flags, names=TASKS):
  base_scores.main(
    [
      f'--data={place / "data"}',
      f'--model={place / "tiny.gguf"}',
      f'--workdir={place / "work"}',
      f'--output={place / "results.json"}',
      f'--tasks={names}',
      '--max_new_tokens=4',
      *flags,
    ]
  )
  return json.loads((place / 'results.json').read_text())


@pytest.fixture(scope='module')
def found(place):
  """The results of two tasks."""
  return _main(place, '--rows=8')


def test_scores_are_those_of_the_stored_answers(place, found):
  assert sorted(found['tasks']) == TASKS.split(',')
  for name, count in (('arithmetic', 8), ('gsm8k', 5)):
    (folder,) = (place / 'work' / name / 'ledger').iterdir()
    block = Ledger.read(folder).view('test')
    assert block.seen.shape == (1, count, 1)
    said = found['tasks'][name]
    assert said['accuracy']['count'] == block.correct.sum()
    assert said['accuracy']['of'] == count
    assert said['lenient_accuracy'] == block.lenient_correct.mean()
    assert said['abstention_rate'] == (block.answer < 0).mean()
    assert said['truncation_rate'] == block.truncated.mean()
    assert said['mean_tokens'] == block.num_tokens.mean()
  assert found['tasks']['arithmetic']['released_accuracy'] is None
  assert found['tasks']['gsm8k']['released_accuracy'] == block.released.mean()


def test_what_is_done_is_not_done_again(place, found, monkeypatch, capsys):
  before = (place / 'results.json').read_bytes()

  def refuse(*args):
    raise AssertionError('a model was loaded')

  with monkeypatch.context() as patch:
    patch.setattr(base_scores, 'Run', refuse)
    assert _main(place, '--rows=8') == found
  assert (place / 'results.json').read_bytes() == before
  # Without its results a task goes on from its answers.
  (place / 'results.json').unlink()
  capsys.readouterr()
  assert _main(place, '--rows=8') == found
  assert 'gsm8k: 1 of 1 stored' in capsys.readouterr().out


def test_a_task_without_rows_is_named_and_the_others_are_done(
  place, found, tmp_path, capsys
):
  other = tmp_path / 'other.json'
  _main(place, '--rows=8', f'--data={tmp_path}', f'--output={other}')
  told = json.loads(other.read_text())
  assert told['tasks'] == {'arithmetic': found['tasks']['arithmetic']}
  (reason,) = told['skipped'].values()
  assert reason.startswith('gsm8k: no rows in FOLDER;')
  shown = reason.replace('FOLDER', str(tmp_path))
  assert f'skipped: {shown}' in capsys.readouterr().out
  # The rows have come since.
  assert _main(place, '--rows=8', f'--output={other}')['skipped'] == {}
  assert json.loads(other.read_text()) == found


def test_shares_are_of_all_answers(place, found):
  (folder,) = (place / 'work' / 'gsm8k' / 'ledger').iterdir()
  block = Ledger.read(folder).view('test')
  column = lambda *values: np.array(values).reshape(1, 5, 1)
  block = dataclasses.replace(
    block,
    correct=column(True, False, False, False, True),
    lenient_correct=column(True, True, False, False, True),
    released=column(1, 1, 0.25, 0, 1).astype(np.float32),
    answer=column(0, 0, 0, -1, 0),
    truncated=column(False, True, True, False, True),
    num_tokens=column(1, 2, 3, 4, 5),
  )
  said = base_scores.summary.answered(block, 0)
  assert said.pop('accuracy') == estimates.rate(np.arange(5) < 2)
  assert said == {
    'lenient_accuracy': 0.6,
    'released_accuracy': 0.65,
    'abstention_rate': 0.2,
    'truncation_rate': 0.6,
    'mean_tokens': 3.0,
  }


def test_results_of_other_settings_are_refused(place, found):
  with pytest.raises(SystemExit, match='is of rows = 8, not 9; choose another'):
    _main(place, '--rows=9')


def test_the_table_has_a_line_for_each_task(found):
  text = base_scores.markdown(found)
  header, _, arithmetic, gsm8k = text.splitlines()
  assert header.count('|') == arithmetic.count('|') == gsm8k.count('|')
  share = found['tasks']['gsm8k']['released_accuracy']
  assert f'| {100 * share:.1f} |' in gsm8k
  assert '|  |' in arithmetic


def test_the_scores_are_those_of_the_experiment():
  text = (FOLDER / 'README.md').read_text('utf-8')
  results = sorted((FOLDER / 'results').glob('*.json'))
  told = re.findall(r'^\| task .*\n(?:\|.*\n?)+', text, re.MULTILINE)
  assert [x.strip() for x in told] == [
    base_scores.markdown(json.loads(x.read_text('utf-8'))) for x in results
  ]
