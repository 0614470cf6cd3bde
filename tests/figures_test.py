# SPDX-License-Identifier: Apache-2.0
"""Figures show the numbers of a summary, and only those it has."""

import copy
import hashlib
import os
import subprocess
import sys
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
import summaries

from thicket import figures
from thicket.plots import style

NAMES = ['table', 'size', 'population', 'scores', 'transfer']
SVG = '{http://www.w3.org/2000/svg}'


@pytest.fixture(scope='module')
def full():
  return summaries.full()


@pytest.fixture(scope='module')
def drawn(full):
  return figures.draw(full)


def _only(full, **parts):
  """A summary of these parts alone, to draw one figure."""
  base = [x for x in full['test']['systems'] if x['kind'] == 'base']
  return {'test': {'rows': 256, 'systems': base}} | copy.deepcopy(parts)


def _markers(svg, start):
  """[m, 2] pixel positions of the markers of artists so named, in order."""
  return np.array(
    [
      (float(use.get('x')), float(use.get('y')))
      for group in ElementTree.fromstring(svg).iter(f'{SVG}g')
      if group.get('id', '').startswith(start)
      for use in group.iter(f'{SVG}use')
    ]
  ).reshape(-1, 2)


def _ids(svg, start):
  ids = [x.get('id', '') for x in ElementTree.fromstring(svg).iter()]
  return [x for x in ids if x.startswith(start)]


def _is_affine(pixels, values):
  fit = np.polyval(np.polyfit(values, pixels, 1), values)
  return np.ptp(pixels) > 10 and np.abs(fit - pixels).max() < 0.01


def test_a_full_summary_has_all_figures_and_they_are_svg(drawn):
  assert list(drawn) == NAMES
  for svg in drawn.values():
    root = ElementTree.fromstring(svg.encode())
    assert root.tag == f'{SVG}svg'
    assert len(list(root.iter(f'{SVG}path'))) > 10
    assert not list(root.iter(f'{SVG}text'))  # no font is needed
    assert float(root.get('width').removesuffix('pt')) == 6 * 72


def test_the_bytes_depend_on_the_summary_alone(full, drawn):
  before = dict(matplotlib.rcParams)
  with matplotlib.rc_context({'font.size': 31, 'svg.hashsalt': 'other'}):
    assert figures.draw(full) == drawn
  assert dict(matplotlib.rcParams) == before
  program = (
    'import hashlib, sys, summaries\n'
    'from thicket import figures\n'
    'text = "".join(figures.draw(summaries.full()).values())\n'
    'assert "matplotlib.pyplot" not in sys.modules\n'
    'print(hashlib.sha256(text.encode()).hexdigest())\n'
  )
  environment = os.environ | {
    'PYTHONHASHSEED': '7',
    'PYTHONPATH': os.pathsep.join(sys.path),
  }
  got = subprocess.run(
    [sys.executable, '-c', program],
    env=environment,
    capture_output=True,
    text=True,
    check=True,
  )
  want = hashlib.sha256(''.join(drawn.values()).encode()).hexdigest()
  assert got.stdout.strip() == want


@pytest.mark.parametrize(
  ('path', 'gone'),
  [
    (['test', 'systems'], ['table']),
    (['curves'], ['size', 'population']),
    (['curves', 'size', 'ensemble'], ['size']),
    (['curves', 'population'], ['population']),
    (['selection', 'members', 'each'], ['scores']),
    (['selection'], ['scores']),
    (['tested'], ['transfer']),
    (['selected'], []),
    (['run'], []),
  ],
)
def test_what_has_no_data_is_not_drawn(full, path, gone, monkeypatch):
  monkeypatch.setattr(style, 'svg', lambda figure: 'drawn')
  summary = copy.deepcopy(full)
  part = summary
  for name in path[:-1]:
    part = part[name]
  part[path[-1]] = None
  want = [x for x in NAMES if x not in gone]
  assert list(figures.draw(summary)) == want
  del part[path[-1]]
  assert list(figures.draw(summary)) == want


def test_nothing_is_drawn_of_nothing(full):
  assert figures.draw({}) == {}
  point = full['curves']['population'][:1]
  assert figures.draw(_only(full, curves={'population': point})) == {}


def test_the_forest_plot_fills_what_holm_leaves_significant(full, drawn):
  want = []
  for system in full['test']['systems']:
    if system['kind'] not in ('base', 'bound'):
      p = system['against_base']['p_holm']
      look = 'filled' if p is not None and p < 0.05 else 'open'
      want.append(f'table-{system["id"]}-{look}')
  assert _ids(drawn['table'], 'table-') == want
  assert [x.endswith('filled') for x in want].count(True) == 3


def test_the_forest_plot_puts_differences_on_one_scale(full, drawn):
  shown = [x for x in full['test']['systems'] if x['against_base']]
  want = [x['against_base']['difference'] for x in shown]
  got = _markers(drawn['table'], 'table-')
  assert _is_affine(got[:, 0], np.array(want))
  assert np.all(np.diff(got[:, 1]) > 0)  # rows in the order of the table


@pytest.mark.parametrize(('k', 'every'), [(10, 1), (30, 3)])
def test_accuracy_against_k(k, every):
  full = summaries.full(k=k)
  size = full['curves']['size']
  svg = figures.draw(_only(full, curves={'size': size}))['size']
  pixels, values = [], []
  for name in ('ensemble', 'self_consistency'):
    got = _markers(svg, f'size-{name}')
    rates = [x['accuracy']['rate'] for x in size[name]][::every]
    assert len(got) == len(rates)
    pixels += got[:, 1].tolist()
    values += rates
  assert _is_affine(np.array(pixels), np.array(values))


def test_one_k_and_one_curve_are_enough(full):
  size = {'ensemble': full['curves']['size']['ensemble'][:1]}
  svg = figures.draw(_only(full, curves={'size': size}))['size']
  assert len(_markers(svg, 'size-ensemble')) == 1
  assert not _ids(svg, 'size-self')


def test_accuracy_against_n_is_logarithmic_and_apart_from_selection(
  full, drawn
):
  curve = copy.deepcopy(full['curves']['population'])
  test = _markers(drawn['population'], 'population-test')
  assert _is_affine(test[:, 0], np.log([x['n'] for x in curve]))
  split = _markers(drawn['population'], 'population-selection')
  both = np.concatenate([test[:, 1], split[:, 1]])
  rates = [x['accuracy']['rate'] for x in curve]
  rates += [x['selection_split']['rate'] for x in curve]
  assert _is_affine(both, np.array(rates))

  curve[0]['selection_split'] = None  # dropped by the race
  svg = figures.draw(_only(full, curves={'population': curve}))['population']
  assert len(_markers(svg, 'population-test')) == 3
  assert len(_markers(svg, 'population-selection')) == 2
  for point in curve:
    del point['selection_split']
  svg = figures.draw(_only(full, curves={'population': curve}))['population']
  assert not _ids(svg, 'population-selection')


def test_scores_mark_every_selected_member_once(full, drawn):
  marks = _markers(drawn['scores'], 'scores-selected-')
  assert len(marks) == len(full['selected']) == 10
  assert len(np.unique(marks, axis=0)) == 10
  score = sorted(x['score'] for x in full['selected'])
  assert _is_affine(np.sort(marks[:, 0]), np.array(score))


def test_scores_show_one_row_for_each_sigma_with_scores(full):
  summary = _only(full, selection=full['selection'], selected=full['selected'])
  for member in summary['selection']['members']['each']:
    if member['sigma'] == summaries.SIGMAS[0]:
      member['score'] = None  # all dropped by the race
  svg = figures.draw(summary)['scores']
  assert len(_ids(svg, 'scores-selected-')) == 3


def test_equal_scores_are_drawn(full):
  summary = _only(
    full,
    selection=full['selection'],
    selected=full['selected'],
    tested=full['tested'],
  )
  for member in summary['selection']['members']['each']:
    member['score'] = 0.0
  for member in summary['tested']:
    member |= {'score': 0.0, 'test_accuracy': 0.0}
  drawn = figures.draw(summary)
  assert len(_markers(drawn['scores'], 'scores-selected-')) == 10
  marks = np.concatenate(
    [_markers(drawn['transfer'], f'transfer-{x}') for x in ('others', 'sel')]
  )
  assert len(np.unique(marks, axis=0)) == len(summary['tested'])


def test_bins_hold_equally_many_possible_scores():
  score = np.arange(400) / 400
  centre, width = figures._bins(score)
  values, count = np.unique(centre.round(9), return_counts=True)
  assert len(values) <= 60
  assert set(count[:-1]) == {7}
  assert width == pytest.approx(7 / 400)
  assert np.abs(score - centre).max() < width / 2
  few, width = figures._bins(np.array([0.25, 0.75, 0.5, 0.25]))
  assert few.tolist() == [0.25, 0.75, 0.5, 0.25]
  assert width == 0.25


def test_transfer_shows_tested_members_where_they_are(full, drawn):
  pixels, members = [], []
  for name, is_selected in (('others', False), ('selected', True)):
    these = [
      x
      for x in full['tested']
      if x['selected'] == is_selected and x['score'] is not None
    ]
    got = _markers(drawn['transfer'], f'transfer-{name}')
    assert len(got) == len(these)
    pixels += got.tolist()
    members += [(x['score'], x['test_accuracy']) for x in these]
  pixels, members = np.array(pixels), np.array(members)
  _, first = np.unique(members, axis=0, return_index=True)  # the rest is moved
  assert _is_affine(pixels[first, 0], members[first, 0])
  assert _is_affine(pixels[first, 1], members[first, 1])


def test_a_gain_kept_in_full_needs_scores_that_are_accuracies(full, drawn):
  assert _ids(drawn['transfer'], 'transfer-kept')
  base = full['selection']['base'] | {'score': 0.45}  # a reward of parts
  summary = _only(full, selection={'base': base}, tested=full['tested'])
  assert not _ids(figures.draw(summary)['transfer'], 'transfer-kept')


def test_a_name_is_text_whatever_it_says(full):
  summary = _only(full, test=full['test'])
  name = '$\\frac{1}$ <b>--> \ud800\x00 \u202e \u5b57'
  summary['test']['systems'][4] |= {'name': name, 'id': 'a"&<' + name}
  svg = figures.draw(summary)['table']
  ElementTree.fromstring(svg.encode())
  assert len(_ids(svg, 'table-')) == 13
