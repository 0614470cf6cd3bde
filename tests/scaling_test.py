# SPDX-License-Identifier: Apache-2.0
"""Scaling of density: the ladder's measurements, its laws, and its README."""

import dataclasses
import json
import math
import pathlib
import sys

import jax
import numpy as np
import pytest
from scipy import stats

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from experiments.scaling import __main__ as scaling  # noqa: E402
from experiments.scaling import ladder as ladders  # noqa: E402
from experiments.scaling import law as laws  # noqa: E402
from thicket import pretrain, sharding  # noqa: E402
from thicket.analysis import displacement  # noqa: E402

TINY = ladders.Ladder(
  domain='signals',
  widths=(4, 8),
  steps=5,
  lengths=(5,),
  width=4,
  seeds=2,
  members=8,
  num_items=4,
  moves=(0.01, 0.1),
  relatives=(0.05,),
  absolute=(0.0,),
  relative=(0.1,),
  levels=(0.5,),
)


# The ladder.


def test_a_model_of_both_ladders_is_measured_once():
  models = scaling.FULL['signals'].models()
  assert len(set(models)) == len(models) == 6 + 6 - 1
  assert (64, 1000) in models


def test_the_full_ladder_is_as_long_as_it_says():
  full = scaling.FULL['signals']
  small, large = (
    sum(
      math.prod(leaf.shape)
      for leaf in jax.tree.leaves(
        jax.eval_shape(ladders.signal_task(width, 4).init, jax.random.key(0))
      )
    )
    for width in (full.widths[0], full.widths[-1])
  )
  assert len(full.widths) >= 5
  assert large / small > 50
  assert len(full.lengths) >= 4
  assert full.seeds >= 3


def _displacement(sigmas, mean):
  mean = np.asarray(mean, np.float64)
  return displacement.Displacement(
    'rms', 'gaussian', np.asarray(sigmas), mean[:, None], mean, mean
  )


def test_matched_sigmas_are_exact_on_a_power_law():
  sigmas = np.geomspace(1e-3, 1, 5)
  found = _displacement(sigmas, 3 * sigmas**1.5)
  got = ladders.matched_sigmas((0.01, 0.1, 1.0), found)
  np.testing.assert_allclose(got, (np.array([0.01, 0.1, 1.0]) / 3) ** (2 / 3))


def test_a_move_that_was_not_reached_is_refused():
  found = _displacement([0.1, 1.0], [0.2, 2.0])
  for move in (0.1, 3.0):
    with pytest.raises(ValueError, match=f'moves has {move:g}'):
      ladders.matched_sigmas((move,), found)


def test_densities_count_members_by_hand():
  # Two sigmas in turn; each member gains the same on every item.
  base = np.full(6, -2.0)
  gains = np.array([0.1, -1.0, 0.3, 0.5, 1.0, -0.2])
  rewards = base + gains[:, None]
  asked = dataclasses.replace(
    TINY, absolute=(0.0, 0.25), relative=(0.1, 0.5), levels=(0.25, 0.75)
  )
  got = ladders.densities(rewards, base, np.arange(6) % 2, 0.0, 2.4, asked)
  assert got['error'] == 2
  # Relative margins of an error of 2 are 0.2 and 1; errors of 0.6 and 1.8 are
  # 1.4 and 0.2 away.
  want = [
    [1, 2 / 3, 2 / 3, 1 / 3, 0, 2 / 3],
    [1 / 3, 1 / 3, 1 / 3, 0, 0, 1 / 3],
  ]
  np.testing.assert_allclose(got['naive'], want)
  np.testing.assert_allclose(got['corrected'], want)  # no luck to take out


def test_luck_of_items_is_taken_out():
  # No member is better than the base; half score above it by luck.
  rng = np.random.default_rng(0)
  rewards = -1 + 0.5 * rng.normal(size=(200, 32))
  base = np.full(32, -1.0)
  groups = np.zeros(200, int)
  got = ladders.densities(rewards, base, groups, 0.0, 1.0, TINY)
  naive, corrected = got['naive'][0][1], got['corrected'][0][1]
  assert naive > 0.08
  assert corrected < naive / 2


def test_an_exploding_rollout_earns_the_least():
  task = ladders.signal_task(4, 2)
  batch = task.items(jax.random.key(0))
  outputs = np.array(batch.targets)
  outputs[0], outputs[1] = np.nan, 1e30
  got = np.asarray(task.score(outputs, batch))
  assert got.tolist() == [ladders.WORST] * 2 + [0.0] * 4


def test_items_are_the_targets_in_turn():
  inputs, targets = ladders.signal_task(4, 3).items(jax.random.key(1))
  whole = np.concatenate([inputs, targets], axis=1)
  assert whole.shape == (9, ladders.LENGTH)
  np.testing.assert_allclose(np.diff(whole[:3]), -0.025, atol=1e-5)
  for rows, peak in ((whole[3:6], 0.3), (whole[6:], 0.5)):
    np.testing.assert_allclose(np.abs(rows).max(axis=1), peak, rtol=0.01)


def test_every_item_has_a_rollout_of_its_own():
  task = ladders.signal_task(4, 2)
  params = task.init(jax.random.key(2))
  batch = task.items(jax.random.key(3))
  outputs = np.asarray(task.apply(params, batch))
  assert outputs.shape == batch.targets.shape
  for i in range(len(outputs)):
    alone = jax.tree.map(lambda x, i=i: x[i : i + 1], batch)
    np.testing.assert_allclose(
      outputs[i : i + 1], task.apply(params, alone), rtol=1e-4, atol=1e-6
    )


def _one_device():
  return sharding.make_mesh(jax.devices()[:1])  # compiles in half the time


@pytest.fixture(scope='module')
def tiny():
  return {
    'ladder': dataclasses.asdict(TINY),
    'minutes': 0.0,
    'models': [
      ladders.measure(TINY, width, steps, seed, _one_device())
      for seed in range(TINY.seeds)
      for width, steps in TINY.models()
    ],
  }


def test_measure_gives_plain_numbers_of_the_right_shape(tiny):
  assert json.loads(json.dumps(tiny))['models'] == tiny['models']
  for model in tiny['models']:
    assert list(model['targets']) == list(ladders.SIGNAL_TARGETS)
    assert len(model['sigmas']) == 3
    assert model['sigmas'][0] < model['sigmas'][1]
    assert model['sigmas'][2] == 0.05
    assert 0 < model['loss'] < 10
    for found in model['targets'].values():
      assert found['error'] > 0
      assert 0.01 < found['silence'] < 1
      for name in ('naive', 'corrected'):
        values = np.array(found[name])
        assert values.shape == (3, 3)
        assert np.all((values >= 0) & (values <= 1))


def test_measure_is_deterministic_and_seeds_and_sizes_differ(tiny):
  again = ladders.measure(TINY, 4, 5, 0, _one_device())
  assert again == tiny['models'][0]
  errors = [model['targets']['fixed_line']['error'] for model in tiny['models']]
  assert len(set(errors)) == len(errors) == 4


def test_members_move_as_far_as_they_are_matched_to(tiny):
  model = tiny['models'][0]
  task = ladders.signal_task(model['width'], TINY.num_items)
  own = jax.random.fold_in(jax.random.key(model['seed']), model['width'])
  params, _ = pretrain.pretrain(
    task.loss,
    task.init(jax.random.fold_in(own, 0)),
    task.sample,
    key=jax.random.fold_in(own, 1),
    num_steps=model['steps'],
  )
  found = displacement.displacement(
    task.outputs,
    params,
    task.probe(jax.random.key(99)),  # other probes and other members
    model['sigmas'][:2],
    key=98,
    num_members=64,
    measure='rms',
    scale='relative',
  )
  assert np.all(np.abs(np.log(found.mean / TINY.moves)) < 0.35)


def test_tables_figures_and_verdicts_of_a_run(tiny, tmp_path):
  for (kind, _), text in scaling.tables(tiny).items():
    lines = text.split('\n')
    assert len({line.count('|') for line in lines}) == 1, kind
  header, rows = scaling.density_table(tiny, 'size')
  assert header[2:4] == ['109', '313']
  assert len(rows) == 3 * 3
  # One trained length makes no line.
  assert 'of 0 slopes' in scaling.verdicts(tiny, 'length')
  scaling.style.save(
    scaling.figure(tiny, 'size', 'fixed_line'), tmp_path / 'size.png'
  )
  assert (tmp_path / 'size.png').stat().st_size > 1000


# Laws.


def test_log_odds_are_finite_and_return():
  got = laws.logits(np.array([0, 0.2, 0.5, 1]), 50)
  assert got[0] == pytest.approx(math.log(0.5 / 50.5))
  assert got[2] == 0
  assert got[0] == -got[3]
  np.testing.assert_allclose(laws.shares(got, 50), [0, 0.2, 0.5, 1], atol=1e-12)


def test_the_law_of_lines_is_their_mean_with_student_s_interval():
  x = np.array([1.0, 2.0, 3.0, 5.0])
  slopes = np.array([0.5, 1.0, 3.0])
  got = laws.law(x, slopes[:, None] * x + [[1], [2], [-4]])
  want = stats.ttest_1samp(slopes, 0)
  interval = want.confidence_interval()
  assert got['line']['slope'] == pytest.approx(1.5)
  assert got['line']['low'] == pytest.approx(interval.low)
  assert got['line']['high'] == pytest.approx(interval.high)
  assert got['line']['p'] == pytest.approx(want.pvalue)
  np.testing.assert_allclose(np.diff(got['fit']) / np.diff(x), 1.5)


def test_a_bend_is_seen_and_a_line_has_none():
  rng = np.random.default_rng(0)
  x, luck = np.arange(6.0), 0.01 * rng.normal(size=(5, 6))
  straight = laws.law(x, 2 * x + luck)['bend']
  assert straight['low'] < 0 < straight['high']
  bent = laws.law(x, 2 * x - 0.3 * x**2 + luck)['bend']
  assert bent['high'] < -0.25
  assert bent['slope'] == pytest.approx(-0.3, abs=0.01)


def test_the_interval_of_a_slope_covers_as_often_as_it_says():
  # Seeds differ in level and in slope, rungs by luck.
  rng = np.random.default_rng(1)
  x, runs, covered = np.arange(5.0), 1000, 0
  for _ in range(runs):
    y = (0.7 + 0.2 * rng.normal(size=(4, 1))) * x + rng.normal(size=(4, 1))
    found = laws.law(x, y + 0.3 * rng.normal(size=y.shape))['line']
    covered += found['low'] <= 0.7 <= found['high']
  assert abs(covered / runs - 0.95) < 4 * math.sqrt(0.95 * 0.05 / runs)


def test_a_slope_that_is_all_error_vanishes_at_equal_error():
  rng = np.random.default_rng(2)
  x = np.linspace(2.5, 5.3, 6)
  errors = 10 ** (0.5 * x + rng.normal(size=(5, 6)))
  y = 3 * np.log10(errors) + 0.1 * rng.normal(size=(5, 6))
  assert laws.law(x, y)['line']['slope'] > 1
  found = laws.slope_at_equal_error(x, errors, y)
  assert found['low'] < 0 < found['high']
  assert abs(found['slope']) < 0.1
  found = laws.slope_at_equal_error(x, errors, y + 0.8 * x)
  assert found['low'] < 0.8 < found['high']


def test_where_nobody_reaches_the_margin_zero_is_not_certain():
  got = laws.rung_interval(laws.logits(np.zeros(3), 50), 50)
  n, z = 150, stats.norm.ppf(0.975)
  assert got[:2] == [0, 0]
  assert got[2] == pytest.approx(z**2 / (n + z**2))
  assert not laws.is_reached(laws.logits(np.full((3, 4), 1e-4), 50), 50)
  assert laws.is_reached(laws.logits(np.array([0, 0.02]), 50), 50)
  assert laws.student(np.zeros(3)) is None


def test_seeds_that_differ_make_a_wider_interval():
  same = laws.rung_interval(laws.logits(np.full(3, 0.3), 200), 200)
  apart = laws.rung_interval(laws.logits(np.array([0.1, 0.3, 0.6]), 200), 200)
  assert same[0] == pytest.approx(0.3)
  assert same[1] < 0.3 < same[2] < 0.35
  assert apart[1] < 0.05
  assert apart[2] > 0.75


def _planted(slope, seeds=4, untrained=False):
  """A result whose log odds rise by `slope` a decade of size and of steps."""
  rng = np.random.default_rng(3)
  ladder = dataclasses.asdict(TINY) | {'members': 1000, 'seeds': seeds}
  at = [(10**i, 5) for i in range(1, 6)] + [(4, 5 * 10**i) for i in (0, 1, 2)]
  at += [(4, 0)] if untrained else []
  models = []
  for seed in range(seeds):
    level = rng.normal()
    for size, steps in at:
      odds = level + slope * (np.log10(size) - 3 + np.log10(max(steps, 1)))
      odds = odds + 0.1 * rng.normal(size=(3, 3))
      found = laws.shares(odds, 1000).tolist()
      models.append({
        'width': size, 'parameters': size, 'steps': steps, 'seed': seed,
        'sigmas': [0.1, 0.2, 0.05], 'loss': 0.1,
        'targets': {
          'line': {'error': rng.uniform(1, 2), 'naive': found,
                   'corrected': found}
        },
      })  # fmt: skip
  return {'ladder': ladder, 'models': models}


@pytest.mark.parametrize('kind', laws.LADDERS)
def test_a_planted_law_is_found(kind):
  rows = laws.laws(_planted(0.8), kind)
  assert len(rows) == 3 * 3
  for row in rows:
    assert row['line']['low'] > 0.5
    assert row['line']['high'] < 1.1
    assert row['line']['p'] <= row['line']['holm'] < 0.05
  assert scaling.slope(rows[0]['line']).endswith('*')
  verdict = scaling.verdicts(_planted(0.8), kind)
  assert 'of 3 slopes 3 are above 0 and 0 below, 3 of them after' in verdict


def test_no_law_is_found_where_there_is_none():
  rows = laws.laws(_planted(0.0), 'size')
  assert not any(row['line']['holm'] < 0.05 for row in rows)


def test_untrained_models_are_shown_and_not_fitted():
  with_them = laws.laws(_planted(0.8, untrained=True), 'length')
  assert with_them[0]['at'] == [0, 5, 50, 500]
  assert len(with_them[0]['density']) == 4
  assert len(with_them[0]['fit']) == 3


# What is committed.

NAMES = list(scaling.FULL)


@pytest.mark.parametrize('name', NAMES)
def test_the_readme_holds_the_tables_of_the_results(name):
  folder = scaling.RESULTS
  result = json.loads((folder / f'{name}.json').read_text(encoding='utf-8'))
  readme = (folder.parent / 'README.md').read_text(encoding='utf-8')
  for table in scaling.tables(result).values():
    assert table in readme
  text = ' '.join(readme.split())
  assert scaling.facts(result) in text
  for kind in laws.LADDERS:
    assert scaling.verdicts(result, kind) in text
  assert f'{result["minutes"]:.0f} minutes' in text


@pytest.mark.parametrize('name', NAMES)
def test_the_results_are_those_of_the_full_ladder(name):
  path = scaling.RESULTS / f'{name}.json'
  result = json.loads(path.read_text(encoding='utf-8'))
  full = scaling.FULL[name]
  assert result['ladder'] == json.loads(json.dumps(dataclasses.asdict(full)))
  assert [(m['width'], m['steps'], m['seed']) for m in result['models']] == [
    (width, steps, seed)
    for seed in range(full.seeds)
    for width, steps in full.models()
  ]
  for kind in laws.LADDERS:
    for target in ladders.DOMAINS[name].targets:
      assert (scaling.RESULTS / f'{name}-{kind}-{target}.png').exists()
