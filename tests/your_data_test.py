# SPDX-License-Identifier: Apache-2.0
"""docs/your-own-data.md, followed word for word with a tiny model."""

import dataclasses
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest
import tiny_gguf

ROOT = pathlib.Path(__file__).parents[1]
PAGE = (ROOT / 'docs' / 'your-own-data.md').read_text(encoding='utf-8')
# What a tiny model needs to be done in seconds; all else is as the page says.
SMALL = (
  '--config.model.name=tiny.gguf',
  '--config.population.size=4',
  '--config.population.sigmas=(0.05,0.2)',
  '--config.ensemble.sizes=(1,2)',
  '--config.decode.rows=12',
)


def _commands():
  lines = re.findall(
    r'^    (python -m .*)$', PAGE.replace('\\\n', ' '), re.MULTILINE
  )
  return [shlex.split(line)[1:] for line in lines]


@pytest.fixture(scope='module')
def followed(tmp_path_factory):
  """A folder in which everything up to the commands has been done."""
  folder = tmp_path_factory.mktemp('own')
  (folder / 'configs').symlink_to(ROOT / 'configs')
  config = dataclasses.replace(tiny_gguf.CONFIG, context_length=512)
  tiny_gguf.write(
    folder / 'tiny.gguf',
    tiny_gguf.stored(tiny_gguf.answering(1)),
    tiny_gguf.metadata(config),
  )
  rows, rewards = re.findall(r'^```python\n(.*?)^```$', PAGE, re.S | re.M)
  name = re.match(r'# (\w+\.py)\n', rewards)[1]
  (folder / name).write_text(rewards)
  subprocess.run([sys.executable, '-c', rows], cwd=folder, check=True)
  return folder


def _run(command, folder, *more):
  done = subprocess.run(
    [sys.executable, *command, *more],
    cwd=folder,
    env=os.environ | {'PYTHONPATH': str(ROOT), 'THICKET_CACHE': str(folder)},
    capture_output=True,
    text=True,
    check=False,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr
  return done.stdout


def test_the_file_is_as_the_page_says(followed):
  lines = (followed / 'capitals.jsonl').read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  assert f'Here are {len(rows)} rows' in PAGE
  assert rows[0] == {
    'question': 'What is the capital of Argentina?',
    'answer': 'Buenos Aires',
    'country': 'Argentina',
  }
  assert len({row['question'] for row in rows}) == len(rows)


@pytest.mark.parametrize('reward', ['exact', 'my_rewards:close'])
def test_the_runs_run(followed, reward):
  (command,) = (x for x in _commands() if f'--config.task.reward={reward}' in x)
  workdir = followed / reward.replace(':', '-')
  _run(command, followed, *SMALL, f'--workdir={workdir}')
  summary = json.loads((workdir / 'summary.json').read_text())
  assert summary['run']['task'] == 'jsonl'
  assert summary['test']['rows'] == 12
  assert summary['near_duplicates'] == {'count': 0, 'rows': 12, 'examples': []}
  settings = summary['recipe']['task']['settings']
  assert settings['rule'] == reward
  assert bool(settings['code']) == (':' in reward)
  stops = summary['recipe']['task']['stop_strings']
  assert stops == (['\n'] if reward == 'exact' else [])
  # The report is made again without the model or the rows.
  again = ['-m', 'thicket.report', f'--workdir={workdir}']
  assert 'summary' in _run(again, followed)


def test_the_list_names_what_can_be_fetched(followed):
  (command,) = (x for x in _commands() if x[-1] == 'list')
  assert 'gsm8k' in _run(command, followed)
  names = [
    x[-1] for x in _commands() if x[:3] == ['-m', 'thicket.data', 'fetch']
  ]
  assert names == ['gsm8k']
