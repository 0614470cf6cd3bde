# SPDX-License-Identifier: Apache-2.0
"""Every number of a summary, and that it claims a gain only where one is."""

import io
import json
import re

import made
import numpy as np
import pytest
import scipy.stats
from made import Thicket, gold, small_plan
from rich.console import Console

from thicket import metrics, summary, tables
from thicket.blocks import BASE
from thicket.estimates import accuracy, difference, rate

N, K, ROWS, TESTED = 12, 3, 32, 64


def _plan(**changes):
  return small_plan(
    **{
      'population__size': N,
      'data__num_selection': ROWS,
      'data__num_validation': 16,
      'data__num_test': TESTED,
      'decode__rows': 8,
    }
    | changes
  )


def _build(asked, say):
  source, compared = made.compared(asked, say)
  return compared, summary.build(source, asked, compared)


@pytest.fixture(scope='module')
def built():
  asked = _plan()
  return asked, *_build(asked, Thicket(asked, 3, skill=0.2, spread=0.3))


def _systems(found):
  return {row['id']: row for row in found['test']['systems']}


# Estimates.


def test_a_rate_is_a_share_with_its_wilson_interval():
  low, high = metrics.wilson(3, 4)
  assert rate(np.array([[1, 0], [1, 1]], bool)) == {
    'rate': 0.75,
    'interval': [float(low), float(high)],
    'count': 3,
    'of': 4,
  }


def test_a_share_of_mirrored_pairs_has_the_interval_of_half_as_many():
  low, high = metrics.wilson(1.5, 4)
  assert rate(np.array([1, 0, 1, 1, 0, 0, 0, 0], bool), 2) == {
    'rate': 0.375,
    'interval': [float(low), float(high)],
    'count': 3,
    'of': 8,
  }


def test_a_mean_over_members_is_no_proportion():
  values = np.array([0.0, 0.5, 1.0, 0.5])
  found = metrics.mean_interval(values, bounds=(0, 1))
  assert accuracy(values) == {
    'rate': 0.5,
    'interval': [found.low, found.high],
  }
  assert accuracy(np.array([0.0, 1.0])) == rate(np.array([0, 1]))


def test_a_difference_is_paired_and_tested():
  base = np.zeros(64)
  better = base.copy()
  better[:20] = 1
  found = difference(better, base)
  assert found['difference'] == 20 / 64
  assert found['p'] == pytest.approx(scipy.stats.binomtest(20, 20).pvalue)
  assert found['claim'] == 'above'
  assert difference(base, better)['claim'] == 'below'
  bootstrap = metrics.paired_bootstrap(better, base)
  assert found['interval'] == [bootstrap.low, bootstrap.high]
  bootstrap = metrics.paired_bootstrap(better, base, method='bca')
  assert found['bca'] == [bootstrap.low, bootstrap.high]


def test_a_few_lucky_questions_are_no_gain():
  # Five of five: the bootstrap is sure, the exact test is not.
  base, better = np.zeros(64), np.zeros(64)
  better[:5] = 1
  found = difference(better, base)
  assert found['interval'][0] > 0
  assert found['p'] == pytest.approx(2 / 2**5)
  assert found['claim'] == 'none'


def test_means_have_an_interval_and_no_exact_test():
  found = difference(np.full(16, 0.5), np.zeros(16))
  assert found['p'] is None
  assert found['claim'] == 'above'


# The whole.


def test_a_summary_is_json(built):
  _, _, found = built

  def refuse(constant):
    raise AssertionError(f'{constant} is not JSON')

  again = json.loads(json.dumps(found), parse_constant=refuse)
  assert again == json.loads(json.dumps(found))
  assert set(found) == {
    'run', 'selection', 'selected', 'tested', 'choices', 'test', 'curves',
    'quality', 'repairs', 'near_duplicates', 'verdict', 'missing',
  }  # fmt: skip


def test_p_values_are_corrected_over_the_whole_table(built):
  _, _, found = built
  tests = [
    row[column]
    for row in found['test']['systems']
    for column in ('against_base', 'against_samples')
    if row[column] is not None
  ]
  raw = [x['p'] for x in tests if x['p'] is not None]
  assert len(raw) > 8
  adjusted = [x['p_holm'] for x in tests if x['p'] is not None]
  np.testing.assert_array_equal(adjusted, metrics.holm(raw))
  assert all(x['p_holm'] is None for x in tests if x['p'] is None)


def test_comparisons_are_at_equal_passes(built):
  _, compared, found = built
  rows = _systems(found)
  for name, passes in (('vote-3', 3), ('best-member', 1), ('unselected', 3)):
    expected = difference(
      compared.system(name).correct,
      compared.system(f'self-consistency-{passes}').correct,
    )
    got = dict(rows[name]['against_samples'])
    got.pop('p_holm')
    assert got == expected
  for name in ('base', 'self-consistency-3', 'oracle', 'best-on-test'):
    assert rows[name]['against_samples'] is None
  for name in ('base', 'oracle', 'oracle-samples', 'best-on-test'):
    assert rows[name]['against_base'] is None  # a bound boasts with nothing


def test_selection_is_summarised_by_sigma(built):
  _, compared, found = built
  scores, base = compared.found.scores, found['selection']['base']['score']
  for i, row in enumerate(found['selection']['members']['per_sigma']):
    these = scores[i::3]
    assert row['members'] == 4
    assert row['mean_score'] == pytest.approx(these.mean())
    assert row['best_score'] == these.max()
    assert row['above_base']['count'] == (these > np.float32(base)).sum()
  each = found['selection']['members']['each']
  assert [x['member'] for x in each] == list(range(N))
  assert [x['score'] for x in each] == scores.tolist()
  assert {x['rows'] for x in each} == {ROWS}
  assert found['selection']['cost']['answers'] == N * ROWS


# The rule of the code released with the paper.


def _released(older=()):
  """What is found where that rule gives member i the share i / 16.

  The answers of the members `older` were judged before it was kept.
  """
  asked = _plan()
  thicket = Thicket(asked, 3, skill=0.2, spread=0.3)

  def say(condition, split, member, draw):
    answers = thicket(condition, split, member, draw)
    share = (member + 1) / 16
    more = () if member in older else (share,)
    return [(x, 'lenient', *more) for x in answers]

  compared, found = _build(asked, say)
  return compared.found.ranked, found


def test_the_released_rule_is_told_of_single_answers_and_means():
  ranked, found = _released()
  rows = _systems(found)
  share = lambda ids: pytest.approx(np.mean([(i + 1) / 16 for i in ids]))
  base = found['selection']['base']
  members = found['selection']['members']
  assert base['released_accuracy'] == share([BASE])
  assert members['mean_released_accuracy'] == share(range(N))
  assert members['mean_lenient_accuracy'] == 0
  scores = [x['score'] for x in members['each']]
  assert members['mean_accuracy'] == pytest.approx(np.mean(scores))
  assert rows['base']['released_accuracy'] == share([BASE])
  assert rows['self-consistency-1']['released_accuracy'] == share([BASE])
  assert rows['selected-mean']['released_accuracy'] == share(ranked)
  assert rows['best-member']['released_accuracy'] == share(ranked[:1])
  best = max(ranked, key=lambda i: [
    x['test_accuracy'] for x in found['tested'] if x['member'] == i
  ])  # fmt: skip
  assert rows['best-on-test']['released_accuracy'] == share([best])
  # What that code would have elected is not known.
  for name in ('vote-3', 'self-consistency-3', 'unselected', 'oracle'):
    assert rows[name]['released_accuracy'] is None
  assert found['missing'] == []
  # Nothing else moves by it.
  assert rows['base']['lenient_accuracy'] == 0
  _, other = _released(older=range(-1, N))
  without = lambda text: re.sub(
    r'"(mean_)?released_accuracy": [^,}]+', '', text
  )
  assert without(json.dumps(found)) == without(json.dumps(other))


def test_answers_of_before_are_not_mixed_with_those_of_now():
  ranked, found = _released(older=[BASE])
  rows = _systems(found)
  assert rows['base']['released_accuracy'] is None
  assert rows['best-member']['released_accuracy'] == (ranked[0] + 1) / 16
  assert len(found['missing']) == 1
  assert 'released rule' in found['missing'][0]
  _, found = _released(older=ranked[1:2])
  assert found['selection']['members']['mean_released_accuracy'] is None
  assert _systems(found)['selected-mean']['released_accuracy'] is None
  _, found = _released(older=range(-1, N))
  assert found['missing'] == []  # a task without such a rule


def _printed(table):
  console = Console(width=80, file=io.StringIO())
  console.print(table)
  return console.file.getvalue()


def test_tables_have_the_released_rule_where_it_is_known():
  _, found = _released()
  text = _printed(tables.costs(found['test']))
  assert 'released %' in text
  assert max(map(len, text.splitlines())) <= 80
  (line,) = [x for x in text.splitlines() if 'best on selection' in x]
  share = _systems(found)['best-member']['released_accuracy']
  assert f' {100 * share:.1f} ' in line
  text = _printed(tables.selection(found['selection']))
  members = found['selection']['members']
  assert 'strict, lenient, released: base' in text
  assert f', 0.0, {100 * members["mean_released_accuracy"]:.1f}' in text
  _, found = _released(older=range(-1, N))
  assert 'released' not in _printed(tables.costs(found['test']))
  assert 'released' not in _printed(tables.selection(found['selection']))


@pytest.mark.parametrize('antithetic', [False, True])
def test_mirrored_pairs_are_said_and_count_once(antithetic):
  asked = _plan(
    population__antithetic=antithetic,
    controls__temperatures=(),
    controls__prompts=False,
  )
  _, found = _build(asked, Thicket(asked, 3, skill=0.2, spread=0.3))
  assert found['run']['antithetic'] is antithetic
  for row in found['selection']['members']['per_sigma']:
    assert row['members'] == 4
    above = np.arange(4) < row['above_base']['count']
    assert row['above_base'] == rate(above, 1 + antithetic)


def test_a_race_that_was_not_run_is_replayed(built):
  _, _, found = built
  race = found['selection']['race']
  assert not race['used']
  assert race['rows'] == [8, 16, 32]
  assert 0 <= race['saved'] < 1
  assert 0 <= race['recall'] <= 1


def test_a_race_that_was_run_says_what_it_saved():
  asked = _plan(selection__race=True, selection__race_z=0.3)
  compared, found = _build(asked, Thicket(asked, 3, spread=1.0))
  race = found['selection']['race']
  spent = compared.found.asked.sum()
  assert race['used']
  assert race['saved'] == pytest.approx(1 - spent / (N * ROWS))
  assert race['saved'] > 0.1
  each = found['selection']['members']['each']
  dropped = [x for x in each if x['score'] is None]
  assert dropped
  assert all(x['rows'] < ROWS for x in dropped)
  # Populations resampled from half-known members would say nothing.
  assert all(
    x['selection_split'] is None for x in found['curves']['population']
  )


def test_tested_members_have_both_scores(built):
  _, compared, found = built
  tested = {x['member']: x for x in found['tested']}
  assert set(tested) >= {*compared.found.ranked, 0, 1, 2}
  for i, row in zip(
    compared.found.ranked, compared.ensemble.correct, strict=True
  ):
    assert tested[i]['test_accuracy'] == row.mean()
    assert tested[i]['score'] == compared.found.scores[i]
    assert tested[i]['selected']
  assert [x['member'] for x in found['selected']] == list(compared.found.ranked)


def test_curves_end_where_the_table_is(built):
  _, _, found = built
  rows, curves = _systems(found), found['curves']
  size = curves['size']
  assert [x['k'] for x in size['ensemble']] == [1, 2, 3]
  for name, points in (
    ('vote-3', size['ensemble']),
    ('self-consistency-3', size['self_consistency']),
  ):
    assert points[-1]['accuracy'] == rows[name]['accuracy']
    for key in ('difference', 'interval'):
      assert points[-1]['against_base'][key] == rows[name]['against_base'][key]
  assert [x['n'] for x in curves['population']] == [4, 6, N]
  assert curves['population'][-1]['accuracy'] == rows['vote-3']['accuracy']
  # The whole population's members were tested for the table anyway.
  assert curves['population'][-1]['new_test_answers'] == 0
  for point in curves['population']:
    low, high = point['selection_split']['interval']
    assert low <= point['selection_split']['rate'] <= high


def test_what_selection_saw_and_what_came_of_it(built):
  _, compared, found = built
  quality = found['quality']
  chosen = list(compared.found.ranked)
  base = found['selection']['base']['score']
  observed = compared.found.scores[chosen].mean() - base
  assert quality['observed_gain'] == pytest.approx(observed, abs=1e-6)
  # The winner's curse: less is to be expected than was seen.
  assert quality['expected_gain'] < quality['observed_gain']
  validated = compared.validated
  scores = validated.reward.mean(axis=(1, 2))
  expected = scores[[1 + i for i in chosen]].mean() - scores[0]
  assert quality['validation_gain'] == pytest.approx(expected)
  assert [x['sigma'] for x in quality['per_sigma']] == [0.1, 0.2, 0.4]


def test_the_verdict_is_in_words(built):
  _, _, found = built
  text = ' '.join(found['verdict'])
  for words in (
    'The selected members, one by one,',
    'the greedy base',
    'at equal passes',
    'that nobody selected',
  ):
    assert words in text


def test_a_run_without_controls_still_has_a_verdict():
  asked = _plan(
    controls__temperatures=(),
    controls__unselected=False,
    controls__same_sigma=False,
    controls__prompts=False,
    controls__population_sizes=(),
    controls__validation=False,
    ensemble__sizes=(1,),
  )
  _, found = _build(asked, Thicket(asked, 0))
  assert len(found['verdict']) == 2
  assert found['choices'] == {'temperature': None, 'prompt': None}
  assert found['curves']['population'] == []
  assert found['curves']['size']['self_consistency'] == []


# Honesty, on populations whose truth is known.


def _simulated(seed, skill, spread):
  """Vote of 5 out of 30 against the base, on 256 fresh questions."""
  asked = _HONEST
  say = Thicket(asked, seed, skill=skill, spread=spread)
  _, found = _build(asked, say)
  vote = _systems(found)['vote-5']
  return found, vote


_HONEST = made.plan(
  population__size=30,
  population__sigmas=(0.1,),
  ensemble__sizes=(5,),
  data__num_selection=64,
  data__num_test=256,
  controls__temperatures=(),
  controls__unselected=False,
  controls__same_sigma=False,
  controls__prompts=False,
  controls__population_sizes=(),
)


class _Equal(Thicket):
  """Voters that are each as good as the base, and so is their vote.

  Every member answers a question as the base does, or, where its own coin says
  so, as a question of another base drawn from the same abilities.
  """

  def __call__(self, condition, split, member, draw):
    right = gold(self.plan, split)
    n = len(right)
    where = ('selection', 'validation', 'test').index(split)
    rng = np.random.default_rng([self.seed, where])
    base, other = rng.random(n) < 0.2, rng.random(n) < 0.2
    own = np.random.default_rng([self.seed, where, member + 2]).random(n)
    # All members swap on the same contested questions, so that votes differ
    # from the base as often as members do.
    contested = rng.random(n) < 0.3
    swaps = contested & (own < 0.9) & (member != BASE)
    is_right = np.where(swaps, other, base)
    return [g if ok else 'wrong' for g, ok in zip(right, is_right, strict=True)]


# A quarter of them every time; the rates are held on all.
_SEEDS = [25, pytest.param(100, marks=pytest.mark.slow)]


@pytest.mark.parametrize('seeds', _SEEDS)
def test_a_population_equal_to_its_base_is_reported_as_no_gain(seeds):
  honest = votes = 0
  for seed in range(seeds):
    _, found = _build(_HONEST, _Equal(_HONEST, seed))
    vote = _systems(found)['vote-5']
    votes += vote['against_base']['difference'] != 0
    gains = [
      vote['against_base']['claim'], found['quality']['test_gain']['claim']
    ]  # fmt: skip
    said = ' '.join(found['verdict'])
    assert ('above' in said) == ('above' in gains)
    honest += 'above' not in gains
  assert votes > 0.7 * seeds  # there was something to be misled by
  assert honest >= 0.95 * seeds


@pytest.mark.parametrize('seeds', _SEEDS)
def test_a_planted_gain_of_ten_points_is_found(seeds):
  found = 0
  differences = []
  for seed in range(seeds):
    _, vote = _simulated(seed, skill=_TEN_POINTS, spread=0.0)
    differences.append(vote['against_base']['difference'])
    found += vote['against_base']['claim'] == 'above'
  slack = 0.1 / np.sqrt(seeds)
  assert np.mean(differences) == pytest.approx(0.10, abs=slack)
  assert found >= 0.8 * seeds


_TEN_POINTS = 0.045
