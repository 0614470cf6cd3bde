# SPDX-License-Identifier: Apache-2.0
"""The page says what the summary says, whatever a model wrote."""

import base64
import copy
import functools
import html
import html.parser
import operator
import re
import shutil
import subprocess
from xml.etree import ElementTree

import pytest
import summaries
from matplotlib import image

from thicket import figures, page

VOID = {'meta', 'img', 'br'}
HOSTILE = (
  '</div><script>alert(1)</script> <img src=x onerror=alert(1)> ]]> "\' & '
  '{{ 7 * 7 }} \x00\x1b[31m\ud800\udfff \u202egnp.exe\u2066 \u05d0\u0301\r!'
)
LONG = 'x' * 100_000
BROWSER = next(
  filter(
    None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))
  ),
  None,
)


class Parsed(html.parser.HTMLParser):
  """Elements in order, rows of tables, and whether all tags are closed."""

  def __init__(self, text):
    super().__init__()
    self.open, self.elements, self.rows, self.text = [], [], [], ''
    self.feed(text)
    self.close()
    assert self.open == []

  def handle_starttag(self, tag, attrs):
    assert len(dict(attrs)) == len(attrs), f'{tag}: an attribute twice'
    self.elements.append((tag, dict(attrs)))
    if tag not in VOID:
      self.open.append(tag)
    if tag == 'tr':
      self.rows.append([])
    if tag in ('td', 'th'):
      self.rows[-1].append('')

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if 'style' not in self.open:
      self.text += data
    if 'td' in self.open or 'th' in self.open:
      self.rows[-1][-1] += data.replace('\xa0', ' ').strip('\n')

  def row(self, first):
    (found,) = [x for x in self.rows if x[0] == first]
    return found

  def all(self, tag):
    return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope='module')
def full():
  return summaries.full()


@pytest.fixture(scope='module')
def text(full):
  return page.render(full)


@pytest.fixture(scope='module')
def parsed(text):
  return Parsed(text)


@pytest.fixture
def undrawn(monkeypatch):
  """Pages without figures, which take most of the time."""
  monkeypatch.setattr(figures, 'draw', lambda summary: {})


def _hostile(full):
  summary = copy.deepcopy(full)
  for item in summary['repairs']['items']:
    item |= {'question': HOSTILE + LONG, 'gold': HOSTILE}
    item['base'] |= {'answer': HOSTILE + LONG, 'text': LONG + HOSTILE}
    item['vote'] |= {'answer': HOSTILE, 'text': HOSTILE + '\n' * 700}
  summary['run'] |= {'task': HOSTILE, 'model': HOSTILE + LONG}
  summary['run']['prompt'] = HOSTILE + LONG
  summary['choices']['prompt']['candidates'][0]['template'] = HOSTILE + LONG
  summary['verdict'][0] = summary['missing'][0] = HOSTILE
  summary['recipe'][HOSTILE] = {HOSTILE: [LONG]}
  summary['test']['systems'][3]['name'] = HOSTILE
  summary['work']['devices'] = HOSTILE
  return summary


def test_the_page_is_well_formed_and_self_contained(parsed, text):
  assert text.startswith('<!DOCTYPE html>\n<html lang="en">')
  assert text.encode('utf-8')
  names = {name for name, _ in parsed.elements}
  assert not names & {'script', 'link', 'iframe', 'object', 'a', 'form'}
  for _, attributes in parsed.elements:
    assert not set(attributes) & {'href', 'srcset', 'onload', 'style'}
    assert attributes.get('src', 'data:').startswith('data:')
  (css,) = re.findall('<style>(.*?)</style>', text, re.DOTALL)
  assert 'url(' not in css
  assert '@import' not in css
  assert {
    'name': 'viewport',
    'content': 'width=device-width, initial-scale=1',
  } in (parsed.all('meta'))
  assert parsed.all('h1') == [{}]
  assert all('scope' in x for x in parsed.all('th'))


def test_mirrored_pairs_are_said(full, undrawn):
  words = 'in mirrored pairs'
  assert words not in page.render(full)
  summary = full | {'run': full['run'] | {'antithetic': True}}
  assert f'<dd>{words}</dd>' in page.render(summary)
  told = page.captions(summary)
  assert all(words in told[name] for name in set(told) - {'population'})


def test_every_figure_is_embedded_with_its_caption(parsed, full, text):
  images = parsed.all('img')
  told = page.captions(full)
  assert len(images) == 5 == text.count('<figcaption>')
  for name, svg in figures.draw(full).items():
    (found,) = [x for x in images if told[name] in x['alt']]
    kind, _, data = found['src'].partition(',')
    assert kind == 'data:image/svg+xml;base64'
    assert base64.b64decode(data, validate=True).decode() == svg
    ElementTree.fromstring(svg)
    assert told[name] in parsed.text
    assert 'N' in told[name]
    assert '10' in told[name] or 'K best' in told[name]
    assert '0.0005, 0.001, 0.002, 0.004' in told[name]


def test_the_same_summary_gives_the_same_page(full, text):
  assert page.render(copy.deepcopy(full)) == text


def test_the_table_has_every_system_with_its_numbers(parsed, full):
  for system in full['test']['systems']:
    row = parsed.row(system['name'])
    low, high = (100 * x for x in system['accuracy']['interval'])
    rate = 100 * system['accuracy']['rate']
    assert row[1] == f'{rate:.1f} [{low:.1f}, {high:.1f}]'
    assert row[6] == f'{100 * system["lenient_accuracy"]:.1f}'
    released = system['released_accuracy']
    assert row[7] == ('' if released is None else f'{100 * released:.1f}')
    assert row[10] == str(system['passes'])
  assert parsed.row('vote of best 10') == [
    'vote of best 10', '38.3 [32.5, 44.4]', '+8.2 [+4.7, +11.0]', '0.004',
    '+2.0 [-1.0, +4.4]', '0.840', '44.3', '', '2.7', '2', '10', '1,184',
    '12,800', '1,536,000',
  ]  # fmt: skip
  assert parsed.row('base, greedy')[2:6] == [''] * 4
  assert parsed.row('mean of 10 selected')[3] == ''  # not 0 or 1: no p


def test_the_released_rule_is_there_if_the_task_has_it(full, text, undrawn):
  words = 'Released</strong> accuracy follows'
  assert words in text
  said = 'base 30.0, 35.0, 31.0; mean of the members 29.0, 34.0, 30.5.'
  assert said in text
  summary = copy.deepcopy(full)
  summary['selection']['base']['released_accuracy'] = None
  for system in summary['test']['systems']:
    system['released_accuracy'] = None
  other = page.render(summary)
  assert 'eleased' not in re.sub('<style>.*</style>', '', other, flags=re.S)
  assert len(Parsed(other).row('vote of best 10')) == 13
  assert len(Parsed(text).row('vote of best 10')) == 14


def test_balanced_accuracy_is_there_if_the_task_has_classes(full, text):
  words = 'Balanced</strong> accuracy is'
  assert words not in text
  summary = copy.deepcopy(full)
  for system in summary['test']['systems']:
    system['balanced_accuracy'] = 0.123
  other = page.render(summary)
  assert words in other
  row = Parsed(other).row('vote of best 10')
  assert len(row) == 15
  assert row[6:8] == ['44.3', '12.3']
  assert 'colspan="15"' in other


def test_near_duplicates_are_told(full, text):
  assert 'none of 384 validation and test questions nearly repeats' in text
  pair = {
    'split': 'test', 'row_id': 17, 'other_split': 'selection',
    'other_row_id': 4, 'share': 0.875,
  }  # fmt: skip
  near = {'count': 1, 'rows': 384, 'examples': [pair]}
  told = Parsed(page.render(full | {'near_duplicates': near})).text
  assert (
    'Of 384 validation and test questions, 1 nearly repeat one of an earlier '
    'split, such as test 17 (87.5% of its words in selection 4).'
  ) in told


def test_bounds_say_so_and_are_compared_with_nothing(parsed, full, text):
  bounds = [x for x in full['test']['systems'] if x['kind'] == 'bound']
  assert len(bounds) == 3
  for system in bounds:
    assert parsed.row(system['name'])[2:6] == ['upper bound', '', '', '']
  assert text.count('<tr class="bound">') == 3


def test_only_what_holm_leaves_significant_is_bold(parsed, full, text):
  sure = re.findall('<td class="sure">(.*?)</td>', text)
  assert sure == ['0.004'] * 3


def test_selection_is_told_with_its_regression_to_the_mean(parsed):
  gains = {row[0]: row[1] for row in parsed.rows if len(row) == 2}
  assert '+5.2' in gains.values()
  assert gains['fresh questions, as selection scores let expect'] == '+1.8'
  assert gains['validation questions'] == '+2.1'
  assert gains['test questions'] == '+1.6 [-0.4, +3.2]'
  assert 'a reliability of 0.47' in parsed.text
  assert parsed.row('0.001')[5:] == ['0.45', '0.38 [-0.14, 0.74]']
  assert parsed.row('0.0005')[5:] == ['', '']


def test_selected_members_have_a_validation_score_if_there_is_one(
  full, parsed, undrawn
):
  best = full['selected'][0]
  want = [
    f'{best["member"]}',
    f'{best["sigma"]:g}',
    f'{best["score"]:.3f}',
    f'{best["validation_score"]:.3f}',
    f'{100 * best["test_accuracy"]:.1f}',
  ]
  assert parsed.row(want[0]) == want
  summary = copy.deepcopy(full)
  for member in summary['selected']:
    member['validation_score'] = None
  assert Parsed(page.render(summary)).row(want[0]) == want[:3] + want[4:]


def test_sections_are_there_exactly_if_their_data_is(full, undrawn):
  sections = {
    'Everything compared': ['test'],
    'Can the selection be trusted?': ['quality', 'selection'],
    'What the vote repaired': ['repairs'],
    'Race': ['selection'],
    'What was chosen, and on what': ['choices', 'selection'],
    'Not run': ['missing'],
    'How this was made': ['recipe', 'work'],
  }
  for title, parts in sections.items():
    heading = f'<h2>{title}</h2>'
    assert heading in page.render(full)
    without = {k: v for k, v in full.items() if k not in parts}
    assert heading not in page.render(without)
  nothing = Parsed(page.render({}))
  assert 'How to read this' in nothing.text
  assert 'Not run' not in nothing.text


def test_any_part_may_be_missing_or_none(full, undrawn):
  paths = [x for x in summaries.paths(full) if x[0] != 'recipe']
  assert len(paths) > 150
  for *path, key in paths:
    summary = copy.deepcopy(full)
    part = functools.reduce(operator.getitem, path, summary)
    part[key] = None
    Parsed(page.render(summary))
    del part[key]
    Parsed(page.render(summary))


def test_what_a_model_wrote_is_only_text(full, undrawn):
  text = page.render(_hostile(full))
  found = Parsed(text)
  assert text.encode('utf-8').decode('utf-8') == text
  assert {name for name, _ in found.elements}.isdisjoint({'script', 'img'})
  assert not any('onerror' in attributes for _, attributes in found.elements)
  assert '<script>alert(1)</script>' in found.text
  assert '{{ 7 * 7 }}' in found.text
  assert '\\x00\\x1b[31m\\ud800\\udfff \\u202egnp.exe\\u2066 ' in found.text
  assert not re.search('[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]', text)
  (recipe,) = re.findall('x{601,}', text)
  assert len(recipe) < 50_000
  assert f'{100_000 + len(HOSTILE) - 600:,} more characters' in found.text


def test_at_most_thirty_changed_questions_are_shown(parsed, text):
  assert text.count('<article>') == 30 + 10
  assert 'Fixed (36)' in parsed.text
  assert 'Regressed (10)' in parsed.text
  assert '6 more are not shown here.' in parsed.text
  assert parsed.text.count('not shown here') == 1
  assert parsed.row('fixed: the base was wrong')[1:] == ['27', '9']
  assert parsed.row('regressed: the base was right')[1:] == ['6', '4']


def test_the_race_tells_what_it_saved_or_would_have(full, undrawn):
  told = Parsed(page.render(full)).text
  assert 'In rounds of 50, 100, 200 questions' in told
  assert 'This saved 27.4% of the answers.' in told
  summary = copy.deepcopy(full)
  summary['selection']['race'] |= {'used': False, 'recall': 0.9}
  told = Parsed(page.render(summary)).text
  assert 'would have saved 27.4% of the answers.' in told
  assert 'Of the 10 best by all questions, 90.0% are' in told


def test_choices_are_told(parsed):
  assert 'T = 0.7: the best vote on the selection questions' in parsed.text
  assert '(0.3: 33.5%, 0.7: 35.0%, 1: 28.0%)' in parsed.text
  assert parsed.row('2. {question} =')[1] == '0.340'


@pytest.mark.parametrize(
  ('found', 'want'),
  [
    (page.percent(0.12345), '12.3'),
    (page.percent(None), ''),
    (page.percent(float('nan')), ''),
    (page.points(0.012), '+1.2'),
    (page.points(-0.012), '-1.2'),
    (page.points(None), ''),
    (page.p_value(0.0004), '<0.001'),
    (page.p_value(0.049), '0.049'),
    (page.p_value(None), ''),
    (page.interval([-0.012, 0.1], '+.1f'), '[-1.2, +10.0]'),
    (page.interval(None), ''),
    (page.interval([None, 0.1]), ''),
    (page.number(1234567, ','), '1,234,567'),
    (page.cut('abc', 3), 'abc'),
    (page.cut('abcd', 3), 'abc\u2026 (1 more characters)'),
    (page.cut('abe\u0301d', 3), 'ab\u2026 (3 more characters)'),
    (page.cut(None), ''),
    (page.cut('\u0301' * 700)[580:], '\u2026 (120 more characters)'),
    (page.clean('a\r\nb\tc'), 'a\nb\tc'),
    (page.clean('\r\x7f\x85\u200f'), '\\x0d\\x7f\\x85\\u200f'),
  ],
)
def test_values_as_they_are_shown(found, want):
  assert found == want


def _browse(tmp_path, *options):
  return subprocess.run(
    [
      BROWSER, '--headless', '--no-sandbox', '--disable-gpu',
      '--hide-scrollbars', f'--user-data-dir={tmp_path / "profile"}', *options,
      (tmp_path / 'page.html').as_uri(),
    ],
    capture_output=True,
    text=True,
    check=True,
    timeout=120,
  ).stdout  # fmt: skip


@pytest.mark.browser
@pytest.mark.skipif(BROWSER is None, reason='needs chromium on PATH')
@pytest.mark.parametrize('width', [360, 1200])
def test_a_browser_shows_it_without_anything_sticking_out(
  full, text, width, tmp_path
):
  (tmp_path / 'page.html').write_text(text, encoding='utf-8')
  shot = tmp_path / 'page.png'
  _browse(tmp_path, f'--screenshot={shot}', f'--window-size={width},1600')
  pixels = image.imread(shot)[..., :3]
  assert pixels.shape == (1600, width, 3)
  assert 0.02 < (pixels.min(axis=-1) < 0.5).mean() < 0.5  # ink on paper

  inner = page.render(_hostile(full)).replace('<details', '<details open')
  # In a frame, because no window is as narrow as a phone.
  (tmp_path / 'page.html').write_text(
    f'<iframe style="width: {width}px; border: 0" onload="'
    'const d = this.contentDocument;'
    'document.title = [d.scrollingElement.scrollWidth, d.images.length,'
    ' [...d.images].every(x => x.naturalWidth > 0)]"'
    f' srcdoc="{html.escape(inner)}"></iframe>',
    encoding='utf-8',
  )
  seen = _browse(tmp_path, '--dump-dom', '--window-size=1400,1600')
  (found,) = re.findall('<title>(.*)</title></head><body><iframe', seen)
  assert found == f'{width},5,true'
