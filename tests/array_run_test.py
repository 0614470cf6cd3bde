# SPDX-License-Identifier: Apache-2.0
"""Runs on values and labels, from a configuration to files."""

import json
import pathlib

import jax
import numpy as np
import pytest
from rich.console import Console

from thicket import array_run, prng, sharding
from thicket.arguments import load_config
from thicket.estimates import rate
from thicket.ledger import LedgerError
from thicket.plan import ConfigError

CONFIGS = pathlib.Path(__file__).parents[1] / 'configs'


def _signals(**more):
  config = load_config(f'{CONFIGS / "signals.py"}:quick')
  config.model.width = 16
  config.pretraining.on = ('none', 'line')
  config.pretraining.steps = 20
  config.data.num_selection, config.data.num_test = 24, 12
  config.task.steps = 10
  config.population.size = 16
  config.ensemble.sizes = (1, 3)
  config.run.members_per_device = 2
  config.run.prune_after = ()
  for name, value in more.items():
    section, key = name.split('__')
    config[section][key] = value
  return config


def _run(config, folder, devices=8):
  mesh = sharding.make_mesh(jax.devices()[:devices])
  run = array_run.ArrayRun(config, folder, Console(quiet=True), mesh)
  return run, run.finish()


def _numbers(tree):
  """All numbers of a summary but those of the clock."""
  if isinstance(tree, dict):
    return {k: _numbers(v) for k, v in tree.items() if 'seconds' not in k}
  if isinstance(tree, list):
    return [_numbers(value) for value in tree]
  return tree


@pytest.fixture(scope='module')
def signals_run(tmp_path_factory):
  folder = tmp_path_factory.mktemp('signals')
  return _run(_signals(), folder)


def test_every_regime_has_its_table_and_its_members(signals_run):
  _, summary = signals_run
  names = [problem['name'] for problem in summary['problems']]
  assert names == ['none-fixed_line', 'line-fixed_line']
  for problem in summary['problems']:
    scores = np.array(problem['selection']['scores'])
    best = [member['id'] for member in problem['selected']]
    assert best == np.argsort(-scores, kind='stable')[:3].tolist()
    systems = {row['id']: row for row in problem['test']['systems']}
    assert {'base', 'ensemble-3', 'unselected'} <= set(systems)
    assert problem['test']['rows'] == 12
    above = (scores > problem['selection']['base_score']).sum()
    assert problem['selection']['above_base']['count'] == above
  first, *others = summary['problems']
  assert first['pretraining'] == {'steps': 0, 'last_loss': None}
  assert all(x['pretraining']['steps'] == 20 for x in others)
  assert first['sigmas'] == [0.05]
  assert all(x['sigmas'] == [0.002] for x in others)


def test_files_hold_what_was_returned(signals_run):
  run, summary = signals_run
  results = run.results()
  stored = json.loads(results['summary'].read_text(encoding='utf-8'))
  assert stored == summary
  drawn = sorted(path.name for path in results['figures'].iterdir())
  names = [problem['name'] for problem in summary['problems']]
  assert drawn == sorted(['signals.png', *(f'density-{x}.png' for x in names)])
  html = results['report'].read_text(encoding='utf-8')
  for problem in summary['problems']:
    assert problem['name'] in html
  assert html.count('<figure>') == 3  # the regimes, and a density for each
  assert 'N = 16' in html
  assert '<script' not in html


def test_the_same_command_scores_nothing_again(signals_run, monkeypatch):
  run, summary = signals_run

  def refuse(*_):
    raise AssertionError('a member was scored again')

  with monkeypatch.context() as patch:
    patch.setattr('thicket.ledger.Ledger.append', refuse)
    again = array_run.ArrayRun(_signals(), run.workdir, Console(quiet=True))
    assert _numbers(again.finish()) == _numbers(summary)


def test_devices_change_nothing(signals_run, tmp_path):
  _, summary = signals_run
  _, alone = _run(_signals(), tmp_path, devices=1)
  assert _numbers(alone['problems']) == _numbers(summary['problems'])


def test_another_recipe_is_refused(signals_run):
  run, _ = signals_run
  with pytest.raises(LedgerError, match='sigmas'):
    _run(_signals(population__sigmas_untrained=(0.1,)), run.workdir)


def test_another_arithmetic_is_refused(signals_run, monkeypatch):
  run, _ = signals_run
  monkeypatch.setattr(prng, 'arithmetic', lambda: 'abacus')
  with pytest.raises(
    LedgerError, match=r'arithmetic: stored .*, asked .abacus'
  ):
    _run(_signals(), run.workdir)


def test_default_folders_are_named_by_what_members_depend_on():
  folder = lambda **more: array_run.ArrayRun(_signals(**more)).workdir
  assert folder() == folder(population__size=64)
  assert folder() == folder(ensemble__sizes=(2,))
  assert folder() != folder(population__sigmas=(0.1,))
  assert folder() != folder(pretraining__steps=7)
  assert folder() != folder(run__prune_after=(8,))
  assert folder() == folder(run__members_per_device=4)


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'task__target': 'fixed_lime'}, "did you mean 'fixed_line'"),
    ({'pretraining__on': ('mixd',)}, "did you mean 'mixed'"),
    ({'model__initializer': 'zeros'}, 'model.initializer'),
    ({'ensemble__sizes': (17,)}, r'1\.\.16'),
    ({'ensemble__sizes': ()}, 'ensemble.sizes'),
    ({'run__prune_after': (99,)}, 'prune_after'),
    ({'population__sigmas_untrained': (-1.0,)}, 'sigma = -1'),
    ({'task__name': 'signal'}, "did you mean 'signals'"),
    ({'data__num_selection': 0}, 'data.num_selection = 0 is below 1'),
    ({'pretraining__steps': -1}, 'pretraining.steps = -1'),
    ({'task__steps': 0}, 'task.steps = 0'),
    ({'run__members_per_device': 0}, 'run.members_per_device = 0'),
    ({'pretraining__on': ()}, 'name some'),
    ({'pretraining__learning_rate': 1e30}, 'learning_rate'),
    ({'population__family': 'gauss'}, 'gauss'),
  ],
)
def test_bad_settings_are_named(settings, message, tmp_path):
  with pytest.raises(ConfigError, match=message):
    _run(_signals(**settings), tmp_path)


def test_members_that_break_are_the_worst_and_break_nothing(tmp_path):
  wild = _signals(population__sigmas_untrained=(1e3, 0.01))
  wild.pretraining.on = ('none',)
  wild.task.steps = 40
  _, summary = _run(wild, tmp_path)
  (problem,) = summary['problems']
  scores = problem['selection']['scores']
  assert any(score is None for score in scores)
  assert all(member['sigma'] == 0.01 for member in problem['selected'])


def test_mirrored_pairs_and_their_scale_are_said(tmp_path):
  config = _signals(population__antithetic=True, population__scale='modular')
  config.pretraining.on = ('none',)
  run, summary = _run(config, tmp_path)
  (problem,) = summary['problems']
  above = np.arange(16) < problem['selection']['above_base']['count']
  assert problem['selection']['above_base'] == rate(above, 2)
  html = run.results()['report'].read_text(encoding='utf-8')
  facts = (
    'N = 16 members in mirrored pairs, K = 3, 24 rows, sigma = 0.05 in the'
  )
  # Of the regimes and of the density, each in its text and in its image's.
  assert html.count(f'{facts} modular norm.') == 4


@pytest.mark.parametrize(
  'kind', [pytest.param('linen', marks=pytest.mark.slow), 'nnx']
)
def test_digits_are_classified_by_either_kind_of_module(kind, tmp_path):
  config = load_config(f'{CONFIGS / "vision.py"}:quick,{kind}')
  config.model.width = 4
  config.pretraining.steps = 40
  config.data.num_pretrain, config.data.num_selection = 128, 32
  config.data.num_test = 48
  config.population.size = 8
  config.ensemble.sizes = (1, 4)
  config.run.members_per_device = 1
  _, summary = _run(config, tmp_path)
  (problem,) = summary['problems']
  assert problem['output'] == 'label'
  systems = {row['id']: row for row in problem['test']['systems']}
  assert {'ensemble-4', 'vote-4'} <= set(systems)
  assert systems['base']['value'] * 48 == pytest.approx(
    round(systems['base']['value'] * 48)
  )
  assert systems['ensemble-4']['against_base']['p'] is not None
