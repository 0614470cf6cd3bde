# SPDX-License-Identifier: Apache-2.0
"""What the README shows is what happens."""

import json
import pathlib
import re
import sys

import ml_collections
import numpy as np

from thicket import race
from thicket.arguments import load_config

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from experiments.accelerator import __main__ as accelerator  # noqa: E402
from experiments.batching import __main__ as batching  # noqa: E402
from experiments.classify import __main__ as reviews  # noqa: E402
from experiments.controls import __main__ as controls  # noqa: E402
from experiments.families import __main__ as families  # noqa: E402
from experiments.signals import __main__ as signals  # noqa: E402
from experiments.throughput import __main__ as throughput  # noqa: E402

README = (ROOT / 'README.md').read_text(encoding='utf-8')


def test_the_two_lines_stand_at_the_top_and_ci_runs_them():
  lines = re.findall(r'^    (pip install -e .*)$', README, re.MULTILINE)
  assert lines == [
    'pip install -e . && python -m thicket.main --config=configs/llm.py',
    "pip install -e '.[test]' && pytest",
  ]
  assert README.index(lines[1]) < 200
  # CI reads the lines from the README itself rather than repeating them.
  ci = (ROOT / '.ci' / 'run').read_text(encoding='utf-8')
  assert r"sed -n 's/^    \(pip install -e .*\)$/\1/p' README.md" in ci


def test_the_ten_lines_run_and_improve_on_the_base(capsys):
  first, second = re.findall(r'```python\n(.*?)```', README, re.DOTALL)
  scope = {}
  exec(compile(first, 'README.md', 'exec'), scope)
  result = scope['result']
  assert result.members[0].score > 0.5 * result.base_score > -1
  assert scope['prediction'].shape == (64, 1)
  # What is printed is what the text says: base score, then the best member.
  assert ' -> Member(id=' in capsys.readouterr().out
  exec(compile(second, 'README.md', 'exec'), scope)
  table = capsys.readouterr().out
  assert 'logits of best 10' in table
  assert scope['contest'].hold(
    scope['found'], scope['test'], scope['rules']
  ).row('ensemble-10')['against_base']['claim'] == 'above'  # fmt: skip


def test_every_documented_key_exists_and_every_key_is_documented():
  config = load_config(str(ROOT / 'configs' / 'llm.py'))
  keys = {
    name
    if not isinstance(value, ml_collections.ConfigDict)
    else f'{name}.{key}'
    for name, value in config.items()
    for key in (value if isinstance(value, ml_collections.ConfigDict) else [''])
  }
  rows = re.findall(r'^\| (`[^|]*) \|', README, re.MULTILINE)
  documented = set(re.findall(r'`([a-z_.]+)`', ' '.join(rows)))
  assert documented == keys


def test_the_results_are_those_of_the_experiment():
  summary = json.loads(controls.SUMMARY.read_text(encoding='utf-8'))
  readme = ROOT / 'experiments' / 'controls' / 'README.md'
  for text in (README, readme.read_text(encoding='utf-8')):
    assert controls.table(summary) in text
  assert controls.facts(summary) in readme.read_text(encoding='utf-8')


def test_the_signals_are_those_of_the_experiment():
  text = (ROOT / 'experiments' / 'signals' / 'README.md').read_text('utf-8')
  pairs = json.loads((signals.FOLDER / 'pairs.json').read_text('utf-8'))
  speed = json.loads((signals.FOLDER / 'speed.json').read_text('utf-8'))
  assert [len(rows) for rows in pairs.values()] == [3, 20]
  for rows in pairs.values():
    assert signals.markdown(rows) in text
  assert signals.speed_facts(speed) in text


def test_the_families_are_those_of_the_experiment():
  text = (ROOT / 'experiments' / 'families' / 'README.md').read_text('utf-8')
  found = json.loads(families.RESULTS.read_text('utf-8'))
  assert families.markdown(found) in text
  for group in families.GROUPS:
    scores = found['groups'][group.name].get('scores', [])
    assert len(scores) == found['members']


def test_the_batches_are_those_of_the_experiment():
  folder = ROOT / 'experiments' / 'batching'
  found = json.loads((folder / 'results' / 'cpu.json').read_text('utf-8'))
  assert batching.markdown(found) in (folder / 'README.md').read_text('utf-8')


def test_the_speeds_are_those_of_the_experiment():
  folder = ROOT / 'experiments' / 'throughput'
  found = json.loads((folder / 'results' / 'cpu.json').read_text('utf-8'))
  assert throughput.markdown(found['found']) in (
    folder / 'README.md'
  ).read_text('utf-8')


def test_the_reviews_are_those_of_the_experiment():
  folder = ROOT / 'experiments' / 'classify'
  found = json.loads(reviews.RESULTS.read_text('utf-8'))
  assert found['plain']['run']['N'] == 256
  assert found['plain']['test']['rows'] == 1024
  assert reviews.markdown(found) in (folder / 'README.md').read_text('utf-8')


def test_the_costs_are_those_of_the_accelerator():
  folder = ROOT / 'experiments' / 'accelerator'
  text = (folder / 'README.md').read_text('utf-8')
  results = sorted((folder / 'results').glob('*.json'))
  assert len(results) == 2
  for path in results:
    found = json.loads(path.read_text('utf-8'))['found']
    assert accelerator.markdown(found) in text


def test_the_race_replays_on_the_rewards_of_the_experiment():
  summary = json.loads(controls.SUMMARY.read_text(encoding='utf-8'))
  rewards = controls.rewards()
  selection = summary['selection']
  assert rewards.shape == (129, 64)
  assert rewards[0].mean() == selection['base']['score']
  scores = [x['score'] for x in selection['members']['each']]
  np.testing.assert_allclose(rewards[1:].mean(axis=1), scores, rtol=1e-6)
  found = race.replay(rewards[1:], 10, selection['race']['rows'], z=1.64)
  assert found.recall == selection['race']['recall'] == 1.0
  assert found.saved == selection['race']['saved']
  selected = [x['member'] for x in summary['selected']]
  assert found.top.tolist() == selected


def test_no_text_waits_to_be_filled_in():
  for path in (ROOT / 'README.md', *ROOT.glob('experiments/*/README.md')):
    text = path.read_text(encoding='utf-8')
    assert not re.findall(r'\b[A-Z]{3,}_[A-Z]+\b|^TABLE$', text, re.MULTILINE)
