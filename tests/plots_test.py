# SPDX-License-Identifier: Apache-2.0
"""Figures show what they are given, say what it rests on, and stay the same."""

import itertools
import os
import re
import subprocess
import sys
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from thicket import metrics
from thicket.plots import signals, style, thickets

FACTS = style.Facts(n=500, sigma=0.002, rows=200)
NAN = float('nan')
SVG = '{http://www.w3.org/2000/svg}'


def _density(shift=0.0, n=500):
  margins = np.linspace(-0.1, 0.2, 13)
  share = 1 / (1 + np.exp(40 * (margins - shift)))
  count = np.round(share * n)
  low, high = metrics.wilson(count, n)
  return thickets.Density(
    margins, count / n, low, high, share,
    np.maximum(share - 0.05, 0), np.minimum(share + 0.05, 1),
  )  # fmt: skip


def _panel(**parts):
  x = -2.5 + 0.1 * np.arange(40)
  target = -0.25 * x[10:]
  rng = np.random.default_rng(0)
  members = target + 0.05 * rng.standard_normal((5, 30))
  given = {
    'title': 'thicket: all families',
    'x': x,
    'context': -0.25 * x[:10],
    'target': target,
    'base': np.sin(x[10:]),
    'members': members,
    'ensemble': members.mean(0),
    'errors': np.exp(rng.standard_normal(300)),
    'base_error': 0.5,
    'ensemble_error': 0.01,
    'sigma': 0.002,
  }
  return signals.Panel(**(given | parts))


def _plane(n=9):
  x = np.linspace(-3, 3, n)
  return x, x, 0.4 - 0.01 * (x[None] ** 2 + x[:, None] ** 2) + 0.02 * x[None]


def _spread(members=60, tasks=5):
  ranks = np.random.default_rng(1).random((members, tasks))
  centred = ranks - ranks.mean(0)
  u, s, _ = np.linalg.svd(centred, full_matrices=False)
  return {
    'matrix': np.corrcoef(ranks.T),
    'names': [f'task {i}' for i in range(tasks)],
    'facts': FACTS,
    'value': 1.02,
    'interval': (0.97, 1.07),
    'coordinates': u * s,
    'explained': s**2 / (s**2).sum(),
    'labels': np.arange(members) % 3,
    'spectra': ranks,
  }


def _moved():
  sigmas = np.logspace(-4, -2, 5)
  return {
    'gaussian': thickets.Displacement(sigmas, 9 * sigmas**2, sigmas**2),
    'rademacher': thickets.Displacement(sigmas, 8 * sigmas**2, sigmas**2),
  }


def _grown():
  sizes = np.array([1e3, 1e4, 1e5])
  seeds = np.array([[0.1, 0.2, NAN], [0.2, 0.3, 0.4], [0.4, 0.5, 0.6]])
  middle = np.nanmean(seeds, 1)
  return thickets.Scaling(sizes, seeds, middle - 0.1, middle + 0.1, law=middle)


X, Y, Z = _plane()
# By name: how it is drawn, and words of its axes, with units.
FIGURES = {
  'density': (
    lambda: thickets.density(
      [_density(), _density(0.05)], [0.001, 0.002], FACTS, unit='accuracy'
    ),
    ['margin over the base (accuracy)', 'members at or above it, %'],
  ),
  'density-log': (
    lambda: thickets.density([_density()], [0.002], FACTS, log=True),
    ['margin over the base (mean reward)', 'members at or above it, %'],
  ),
  'discordance': (
    lambda: thickets.discordance(**_spread()),
    ['correlation', 'component 1', 'component 2', 'percentile rank'],
  ),
  'landscape': (
    lambda: thickets.landscape(X, Y, Z, 0.4, FACTS, members=[(1, 0), (0, 1)]),
    ['first direction (sigma)', 'second (sigma)', 'score (mean reward)'],
  ),
  'landscape-uneven': (
    lambda: thickets.landscape(X, Y, -np.exp(-30 * Z), NAN, FACTS, even=False),
    ['first direction (sigma)', 'second (sigma)', 'score (mean reward)'],
  ),
  'slices': (
    lambda: thickets.slices(X, Z, 0.4, FACTS),
    ['distance from the base (sigma)', 'score (mean reward)'],
  ),
  'displacement': (
    lambda: thickets.displacement(
      _moved(), FACTS, measure='KL divergence', unit='nats', slope=2
    ),
    ['sigma', 'KL divergence (nats)'],
  ),
  'scaling': (
    lambda: thickets.scaling({'sigma = 0.002': _grown()}, FACTS),
    ['parameters', 'solution density\n(share of members)'],
  ),
  'regimes': (
    lambda: signals.regimes([_panel(errors=np.ones(500)), _panel()], rows=200),
    ['x', 'value', 'members', 'mean squared error'],
  ),
  'score-histogram': (
    lambda: signals.score_histogram(_panel().errors, 0.5, 0.1, FACTS),
    ["mean squared error (the signal's unit squared)", 'members'],
  ),
}


@pytest.fixture(scope='module')
def drawn():
  return {name: make() for name, (make, _) in FIGURES.items()}


def _caption(figure):
  (text,) = [x for x in figure.texts if x.get_gid() == 'caption']
  return text


def _words(figure):
  return ' '.join(_caption(figure).get_text().split())


def _lines(figure, gid):
  """Lines so named, over all axes."""
  return [
    line
    for axes in figure.axes
    for line in axes.lines
    if re.fullmatch(gid, line.get_gid() or '')
  ]


@pytest.mark.parametrize('name', FIGURES)
def test_axes_name_what_they_show_and_its_unit(drawn, name):
  seen = []
  for axes in drawn[name].axes:
    seen += [axes.get_xlabel(), axes.get_ylabel()]
  for words in FIGURES[name][1]:
    assert any(x.startswith(words) for x in seen), (words, seen)


@pytest.mark.parametrize('name', FIGURES)
def test_captions_state_the_facts(drawn, name):
  words = _words(drawn[name])
  assert re.search(r'N = [\d, ]*500', words) or 'N = 500, 300' in words
  chosen = 'K = 5' if name == 'regimes' else 'none selected'
  assert chosen in words
  assert '200 rows' in words
  assert 'sigma = 0.002' in words
  assert words.endswith("in the weights' unit.")


@pytest.mark.parametrize('name', FIGURES)
def test_nothing_leaves_the_page_or_covers_the_caption(drawn, name):
  figure = drawn[name]
  assert figure.get_figwidth() == style.WIDTH
  renderer = FigureCanvasAgg(figure).get_renderer()
  page = figure.bbox
  text = _caption(figure).get_window_extent(renderer)
  assert 0 <= text.x0 < text.x1 <= page.x1
  assert text.y0 >= 0
  for axes in figure.axes:
    box = axes.get_tightbbox(renderer)
    assert box.y0 >= text.y1
    assert box.x0 >= page.x0 - 1
    assert box.x1 <= page.x1 + 1
    for legend in figure.legends:
      assert box.y1 <= legend.get_window_extent(renderer).y0 + 1


@pytest.mark.parametrize('name', FIGURES)
def test_letters_are_large_enough_and_apart(drawn, name):
  figure = drawn[name]
  renderer = FigureCanvasAgg(figure).get_renderer()
  for axes in figure.axes:
    for axis in (axes.xaxis, axes.yaxis):
      low, high = sorted(axis.get_view_interval())
      labels = [
        tick.label1
        for tick in axis.get_major_ticks()
        if tick.label1.get_text()
        and tick.label1.get_visible()
        and low <= tick.get_loc() <= high
        and not tick.label1.get_rotation() % 90
      ]
      assert all(label.get_fontsize() >= 8 for label in labels)
      boxes = [label.get_window_extent(renderer) for label in labels]
      for a, b in itertools.pairwise(boxes):
        assert not a.overlaps(b)
  for legend in figure.legends:
    assert all(text.get_fontsize() >= 8 for text in legend.get_texts())


@pytest.mark.parametrize('name', FIGURES)
def test_no_label_holds_unread_mathematics(drawn, name):
  for text in drawn[name].findobj(matplotlib.text.Text):
    assert '$' not in text.get_text()


@pytest.mark.parametrize('name', ['density', 'regimes'])
def test_bytes_are_the_same_whenever_written(drawn, name, tmp_path):
  kinds = ('png', 'svg', 'pdf')
  want = {kind: style.encode(drawn[name], kind) for kind in kinds}
  with matplotlib.rc_context({'font.size': 31, 'svg.hashsalt': 'other'}):
    again = FIGURES[name][0]()
    for kind in reversed(kinds):
      path = tmp_path / f'figure.{kind}'
      style.save(again, path)
      assert path.read_bytes() == want[kind]
      assert b'Date' not in want[kind]
      assert b'Matplotlib v' not in want[kind]


def test_bytes_are_the_same_in_another_process(drawn):
  program = (
    'import hashlib, plots_test, sys\n'
    'from thicket.plots import style\n'
    'assert "matplotlib.pyplot" not in sys.modules\n'
    'figure = plots_test.FIGURES["landscape"][0]()\n'
    'print([style.encode(figure, kind)[-200:] for kind in ("svg", "pdf")])\n'
  )
  environment = os.environ | {
    'PYTHONHASHSEED': '7',
    'PYTHONPATH': os.pathsep.join([os.path.dirname(__file__), *sys.path]),
  }
  got = subprocess.run(
    [sys.executable, '-c', program],
    env=environment,
    capture_output=True,
    text=True,
    check=True,
  )
  figure = drawn['landscape']
  want = [style.encode(figure, kind)[-200:] for kind in ('svg', 'pdf')]
  assert got.stdout.strip() == repr(want)


def test_a_png_has_300_dots_an_inch(drawn):
  data = style.encode(drawn['slices'], 'png')
  width = int.from_bytes(data[16:20])
  assert width == 300 * style.WIDTH


def test_other_formats_are_refused(drawn, tmp_path):
  with pytest.raises(ValueError, match=r"path='.*x.jpg': must end in .png"):
    style.save(drawn['slices'], tmp_path / 'x.jpg')
  with pytest.raises(ValueError, match="kind='eps'"):
    style.encode(drawn['slices'], 'eps')


def test_drawing_leaves_the_settings_alone():
  before = dict(matplotlib.rcParams)
  FIGURES['scaling'][0]()
  assert dict(matplotlib.rcParams) == before


def test_a_caption_is_wrapped_and_the_figure_grows_by_it():
  with style.context():
    figure = Figure((style.WIDTH, 2.0))
    figure.subplots()
  style.caption(figure, 'many words $x$ and N = 5 ' * 20)
  lines = _caption(figure).get_text().split('\n')
  assert ' '.join(lines) == ('many words $x$ and N = 5 ' * 20).strip()
  assert len(lines) > 3
  assert all(line[0] not in '=5' for line in lines)
  assert not any(line.endswith((' N', '=')) for line in lines)
  assert figure.get_figheight() > 2.0 + len(lines) * 8 / 72


def test_a_page_gets_the_figure_without_its_caption(drawn):
  figure = drawn['slices']
  before = style.encode(figure, 'svg')
  svg, words = style.apart(figure)
  assert words == _words(figure)
  height = float(ElementTree.fromstring(svg).get('height').removesuffix('pt'))
  lines = len(_caption(figure).get_text().split('\n'))
  assert height < 72 * figure.get_figheight() - 8 * lines
  assert 'id="caption"' not in svg
  assert style.encode(figure, 'svg') == before
  with pytest.raises(ValueError, match='no caption'):
    style.apart(Figure())


def test_facts_are_listed_once_and_shortened():
  text = style.Facts([9, 9, 8], [0.05, 0.002, 0.002], k=5).text()
  assert text == (
    "N = 9, 8 members, K = 5, sigma = 0.05, 0.002 in the weights' unit."
  )
  many = style.Facts(4, np.linspace(0.1, 0.8, 8), [3, 3], scale='relative')
  assert 'sigma = 0.1 to 0.8 (8 values) times each tensor' in many.text()
  assert '3 rows' in many.text()
  pairs = style.Facts(4, 0.1, scale='modular', antithetic=True).text()
  assert pairs == (
    'N = 4 members in mirrored pairs, none selected, '
    'sigma = 0.1 in the modular norm.'
  )
  with pytest.raises(ValueError, match="scale='other'"):
    style.Facts(1, 0.1, scale='other').text()


def test_looks_differ_without_colour():
  looks = [style.look(i) for i in range(28)]
  assert len({(x['marker'], x['linestyle']) for x in looks}) == 28


def test_density_bands_hold_their_lines(drawn):
  figure = drawn['density']
  left, right = figure.axes
  for axes, name in ((left, 'density'), (right, 'corrected')):
    lines = _lines(figure, f'{name}-.')
    assert len(lines) == len(axes.collections) == 2
    for at, (line, band) in enumerate(
      zip(lines, axes.collections, strict=True)
    ):
      curve = _density((0.0, 0.05)[at])
      want = curve.estimate if name == 'density' else curve.corrected
      x, y = line.get_data()
      np.testing.assert_allclose(y, 100 * want)
      corners = band.get_paths()[0].vertices
      for a, b in zip(x, y, strict=True):
        reach = corners[np.isclose(corners[:, 0], a), 1]
        assert reach.min() <= b + 1e-9
        assert b <= reach.max() + 1e-9
  assert left.get_ylim() == right.get_ylim()


def test_density_without_correction_has_one_panel():
  curve = _density()
  for missing in (None, np.full(13, NAN)):
    plain = curve._replace(
      corrected=missing, corrected_low=missing, corrected_high=missing
    )
    figure = thickets.density([plain], [0.1], FACTS)
    assert len(figure.axes) == 1
    assert 'deconvolution' not in _words(figure)


def test_discordance_shows_members_in_their_clusters(drawn):
  figure, spread = drawn['discordance'], _spread()
  for at, line in enumerate(_lines(figure, 'cluster-.')):
    want = spread['coordinates'][spread['labels'] == at, :2]
    np.testing.assert_array_equal(np.stack(line.get_data(), 1), want)
  for at, line in enumerate(_lines(figure, 'spectrum-.')):
    want = spread['spectra'][spread['labels'] == at].mean(0)
    np.testing.assert_allclose(line.get_ydata(), want)
  assert 'D = 1.020 (95%: 0.970 to 1.070), at most 1.250' in _words(figure)
  image = figure.axes[0].images[0]
  np.testing.assert_array_equal(image.get_array(), spread['matrix'])
  faint = thickets.discordance(0.1 * np.eye(2), 'ab', FACTS)
  assert faint.axes[0].images[0].get_clim() == (-1, 1)


def test_the_base_is_marked_where_it_is(drawn):
  (mark,) = _lines(drawn['landscape'], 'base')
  assert np.ravel(mark.get_data()).tolist() == [0, 0]
  (mark,) = _lines(drawn['slices'], 'base')
  assert np.ravel(mark.get_data()).tolist() == [0, 0.4]
  (marks,) = _lines(drawn['landscape'], 'members')
  assert np.stack(marks.get_data(), 1).tolist() == [[1, 0], [0, 1]]


def test_a_landscape_has_x_across():
  figure = thickets.landscape(
    [-1, 0, 1], [-5, 5], [[0, 0, 1], [0, 0, 1]], 0.0, FACTS
  )
  assert figure.axes[0].get_xlim() == (-1, 1)
  assert figure.axes[0].get_ylim() == (-5, 5)
  with pytest.raises(ValueError, match=r'scores \(3, 2\): must be \(2, 3\)'):
    thickets.landscape([-1, 0, 1], [-5, 5], np.zeros((3, 2)), 0.0, FACTS)


def test_many_slices_get_a_median():
  scores = np.random.default_rng(0).random((11, 4))
  figure = thickets.slices(np.arange(4), scores, 0.5, FACTS)
  (line,) = [x for x in figure.axes[0].lines if x.get_label() == 'median']
  np.testing.assert_allclose(line.get_ydata(), np.median(scores, axis=0))
  assert len(_lines(figure, r'slice-\d+')) == 11


def test_displacement_is_logarithmic_and_drops_zero():
  curve = thickets.Displacement([0, 0.1, 0.2], [0, 1.0, 4.0], [0, 9.0, 0.1])
  figure = thickets.displacement(
    {'gaussian': curve}, FACTS, measure='rms', unit='1'
  )
  (line,) = _lines(figure, 'displacement-0')
  assert line.get_xdata().tolist() == [0.1, 0.2]
  axes = figure.axes[0]
  assert axes.get_xscale() == axes.get_yscale() == 'log'
  (bars,) = axes.collections
  lowest = min(y for bar in bars.get_segments() for y in bar[:, 1])
  assert lowest > 0  # one that reaches 0 still has an end


def test_scaling_shows_seeds_and_their_mean(drawn):
  figure = drawn['scaling']
  (seeds,) = _lines(figure, 'seeds-0')
  np.testing.assert_array_equal(seeds.get_ydata(), np.ravel(_grown().densities))
  (line,) = _lines(figure, 'scaling-0')
  np.testing.assert_allclose(line.get_ydata(), [0.15, 0.3, 0.5])
  np.testing.assert_allclose(line.get_xdata(), _grown().sizes)
  (bars,) = figure.axes[0].collections
  for bar, y in zip(bars.get_segments(), line.get_ydata(), strict=True):
    assert bar[0, 1] < y < bar[1, 1]
  assert figure.axes[0].get_xscale() == 'log'
  assert 'fitted law' in _words(figure)


def test_regimes_show_rollouts_after_the_context(drawn):
  panel = _panel()
  left = drawn['regimes'].axes[2]
  for name in ('target', 'base', 'ensemble'):
    (line,) = [x for x in left.lines if x.get_gid() == name]
    np.testing.assert_array_equal(line.get_xdata(), panel.x[9:])
    want = np.append(panel.context[-1], getattr(panel, name))
    np.testing.assert_array_equal(line.get_ydata(), want)
  members = [x for x in left.lines if x.get_gid() == 'member']
  got = np.stack([x.get_ydata()[1:] for x in members])
  np.testing.assert_array_equal(got, panel.members)
  (shaded,) = left.patches
  assert shaded.get_x() == panel.x[0]
  assert shaded.get_x() + shaded.get_width() == pytest.approx(panel.x[9])


def test_regimes_count_every_finite_error_and_name_the_rest():
  errors = np.append(np.exp(np.arange(8.0)), [NAN, np.inf, 0.0])
  figure = signals.regimes([_panel(errors=errors)], ensemble_rows='9 test rows')
  right = figure.axes[1]
  assert sum(bar.get_height() for bar in right.patches) == 9
  words = _words(figure)
  assert '2 errors that are not finite are left out' in words
  assert 'ensemble, on 9 test rows instead.' in words
  assert 'N = 11 members, K = 5' in words
  for name, want in (('base-error', 0.5), ('ensemble-error', 0.01)):
    (mark,) = [x for x in right.lines if x.get_gid() == name]
    assert mark.get_xdata()[0] == pytest.approx(want)


def test_a_line_that_diverges_does_not_hide_the_target():
  figure = signals.regimes([_panel(base=np.full(30, 1e9))])
  low, high = figure.axes[0].get_ylim()
  assert -2 < low < high < 2


@pytest.mark.parametrize(
  ('parts', 'words'),
  [
    ({'base': np.zeros(29)}, r'base \(29,\) is not \(30,\)'),
    ({'members': np.zeros((5, 31))}, r'members \(31,\) is not \(30,\)'),
    ({'x': np.zeros(39)}, r'x \(39,\) must hold the positions of 10 context'),
  ],
)
def test_arrays_of_a_panel_that_do_not_fit_are_refused(parts, words):
  with pytest.raises(ValueError, match=words):
    signals.regimes([_panel(**parts)])


def test_what_does_not_fit_is_refused():
  with pytest.raises(ValueError, match='panels is empty'):
    signals.regimes([])
  with pytest.raises(ValueError, match=r'curves \(1\) and sigmas \(2\)'):
    thickets.density([_density()], [0.1, 0.2], FACTS)
  for part, words in (
    ({'names': ['a']}, r'matrix \(5, 5\): 1 names'),
    ({'labels': [0]}, r'labels \(1,\)'),
    ({'spectra': np.ones((60, 4))}, 'needs 5 tasks'),
    ({'coordinates': np.ones(60)}, 'must have 2 dimensions'),
  ):
    with pytest.raises(ValueError, match=words):
      thickets.discordance(**(_spread() | part))
  with pytest.raises(ValueError, match=r'scores \(9,\): must be'):
    thickets.slices(X, Z[0], 0.4, FACTS)


def _all_nan(shape):
  return np.full(shape, NAN)


@pytest.mark.parametrize(
  'make',
  [
    lambda log: thickets.density(
      [thickets.Density([0], [0.5], [0.2], [0.8], [NAN], [NAN], [NAN])],
      [0.1], FACTS, log=log,
    ),
    lambda log: thickets.density(
      [thickets.Density([0, 1], *[_all_nan(2)] * 3)], [0.1], FACTS, log=log
    ),
    lambda log: thickets.density(
      [thickets.Density([0, 1], [0, 0], [0, 0], [0.2, 0.2])],
      [0.1], FACTS, log=log,
    ),
    lambda log: thickets.landscape([0], [0], [[1.0]], 1.0, FACTS, even=log),
    lambda log: thickets.landscape(
      [0, 1], [0, 1], np.ones((2, 2)), 1.0, FACTS, even=log
    ),
    lambda log: thickets.landscape(
      [0, 1], [0, 1], _all_nan((2, 2)), NAN, FACTS, even=log
    ),
    lambda log: thickets.displacement(
      {'a': thickets.Displacement([0.1], [1.0 if log else NAN], [NAN])},
      FACTS, measure='KL', unit='nats', slope=2,
    ),
    lambda log: thickets.scaling(
      {'a': thickets.Scaling([10], [[0.0]], [0.0], [0.0])}, FACTS, log=log
    ),
    lambda log: thickets.scaling(
      {'a': thickets.Scaling([1, 2], _all_nan((2, 3)), *_all_nan((2, 2)))},
      FACTS, log=log,
    ),
    lambda log: signals.score_histogram([0.0] if log else [], NAN, None, FACTS),
  ],
)  # fmt: skip
@pytest.mark.parametrize('log', [False, True])
def test_single_points_and_nan_are_drawn_on_either_scale(make, log):
  assert _words(make(log))  # it is laid out; warnings are errors here


@pytest.mark.parametrize(
  'make',
  [
    lambda: thickets.discordance(
      [[1]], ['a'], FACTS, value=0.0, coordinates=[[0.0]], spectra=[[0.5]]
    ),
    lambda: thickets.discordance(
      _all_nan((2, 2)), 'ab', FACTS, coordinates=_all_nan((3, 2)),
      spectra=_all_nan((3, 2)),
    ),
    lambda: thickets.slices([0], [[1.0]], 1.0, FACTS),
    lambda: thickets.slices([0, 1], _all_nan((9, 2)), NAN, FACTS),
    lambda: signals.regimes(
      [
        signals.Panel(
          't', [0, 1], [0.0], [NAN], [1.0], [[1.0]], [1.0], [NAN],
          NAN, 0.0, 0.1,
        )
      ]
    ),
  ],
)  # fmt: skip
def test_single_points_and_nan_are_drawn(make):
  assert _words(make())
