# SPDX-License-Identifier: Apache-2.0
"""The guide is true: its code runs, its keys and links exist."""

import json
import pathlib
import re
import shlex
import sys

import jax
import ml_collections
import pytest
from absl import flags
from ml_collections import config_flags

from thicket.arguments import load_config

ROOT = pathlib.Path(__file__).parent.parent
PAGES = sorted((ROOT / 'docs').glob('*.md'))
NAMES = [page.name for page in PAGES]
CONTROLS = ROOT / 'experiments' / 'controls' / 'results' / 'seed-0.json'


def text_of(name: str) -> str:
  return (ROOT / 'docs' / name).read_text(encoding='utf-8')


def blocks(text: str) -> list[tuple[int, str]]:
  """Each block of Python with the line it begins on."""
  found = re.finditer(r'^```python\n(.*?)^```$', text, re.DOTALL | re.MULTILINE)
  return [(text[: x.start(1)].count('\n'), x[1]) for x in found]


def keys(config: ml_collections.ConfigDict, prefix: str = '') -> set[str]:
  found = set()
  for name, value in config.items():
    if isinstance(value, ml_collections.ConfigDict):
      found |= keys(value, f'{prefix}{name}.')
    else:
      found.add(f'{prefix}{name}')
  return found


def headings(text: str) -> set[str]:
  """The anchors that a page's headings make."""
  titles = re.findall(r'^#+ (.*)$', text, re.MULTILINE)
  return {re.sub(r'[^\w -]', '', x).lower().replace(' ', '-') for x in titles}


@pytest.mark.parametrize('name', [n for n in NAMES if blocks(text_of(n))])
def test_code_runs_from_top_to_bottom(name, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr('tempfile.mkdtemp', lambda: str(tmp_path / 'made'))
  scope = {}
  # A reader's own lines follow JAX's defaults.
  with jax.numpy_dtype_promotion('standard'), jax.numpy_rank_promotion('allow'):
    for line, code in blocks(text_of(name)):
      # Empty lines in front, so that an error names the line of the page.
      exec(compile('\n' * line + code, name, 'exec'), scope)


def test_some_pages_hold_code():
  assert sum(len(blocks(text_of(name))) for name in NAMES) >= 8


def test_every_key_exists():
  known = set()
  for config in (ROOT / 'configs').glob('*.py'):
    known |= keys(load_config(str(config)))
  used = set()
  for name in NAMES:
    used |= set(re.findall(r'--config\.([a-z_.]*[a-z_])', text_of(name)))
  assert len(used) >= 10
  assert not used - known


def commands(text: str) -> list[list[str]]:
  joined = text.replace('\\\n', ' ')
  lines = re.findall(
    r'^    (python -m thicket\.main .*)$', joined, re.MULTILINE
  )
  return [shlex.split(line) for line in lines]


@pytest.mark.parametrize('name', [n for n in NAMES if commands(text_of(n))])
def test_commands_parse(name, monkeypatch):
  monkeypatch.chdir(ROOT)
  for command in commands(text_of(name)):
    values = flags.FlagValues()
    monkeypatch.setattr(sys, 'argv', command[2:])  # read for its overrides
    config = config_flags.DEFINE_config_file('config', flag_values=values)
    for name in ('workdir', 'shard'):
      flags.DEFINE_string(name, None, '', flag_values=values)
    values(command[2:])
    for key in re.findall(r'--config\.([\w.]+)=', ' '.join(command)):
      assert key in keys(config.value), key


def test_the_file_and_function_names_exist():
  for name in NAMES:
    for path in re.findall(
      r'`((?:thicket|configs)/[\w/]+\.py)`', text_of(name)
    ):
      assert (ROOT / path).is_file(), f'{name}: {path}'


@pytest.mark.parametrize('name', NAMES)
def test_links_are_relative_and_resolve(name):
  page = ROOT / 'docs' / name
  for target in re.findall(r'\]\(([^)\s]+)\)', text_of(name)):
    if target.startswith('https://arxiv.org/'):
      continue
    assert '://' not in target, target
    path, _, anchor = target.partition('#')
    file = (page.parent / path).resolve() if path else page
    assert file.is_file(), target
    assert file.is_relative_to(ROOT), target
    if anchor:
      assert anchor in headings(file.read_text(encoding='utf-8')), target


def test_the_index_names_every_page_and_notebook():
  index = text_of('README.md')
  for name in set(NAMES) - {'README.md'}:
    assert f']({name})' in index, name
  for notebook in (ROOT / 'colab').glob('*.ipynb'):
    assert f'](../colab/{notebook.name})' in index, notebook.name


def test_our_own_numbers_are_those_of_the_experiment():
  summary = json.loads(CONTROLS.read_text(encoding='utf-8'))
  chosen = [member['sigma'] for member in summary['selected']]
  trust = {x['sigma']: x for x in summary['quality']['per_sigma']}
  text = text_of('choosing.md')
  for row in summary['selection']['members']['per_sigma']:
    low, high = (100 * x for x in row['above_base']['interval'])
    cells = [
      f'{row["sigma"]:g}',
      f'{row["members"]}',
      f'{row["mean_score"]:.3f}',
      f'{row["best_score"]:.3f}',
      f'{100 * row["above_base"]["rate"]:.1f} [{low:.1f}, {high:.1f}]',
      f'{trust[row["sigma"]]["split_half"]:.2f}',
      f'{chosen.count(row["sigma"])}',
    ]
    assert f'| {" | ".join(cells)} |' in text
  points = [
    f'{100 * x["accuracy"]["rate"]:.1f}'
    for x in summary['curves']['population']
  ]
  first, second, third = points
  assert f'was {first}, {second} and {third}%' in ' '.join(text.split())
  report = text_of('reading-the-report.md')
  quality = summary['quality']
  for gain in ('observed_gain', 'expected_gain', 'validation_gain'):
    assert f'| {100 * quality[gain]:+.1f} |' in report
  assert f'| {100 * quality["test_gain"]["difference"]:+.1f} [' in report
