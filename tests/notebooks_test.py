# SPDX-License-Identifier: Apache-2.0
"""Notebooks are clean, hold library calls only, and run from top to bottom."""

import ast
import json
import pathlib
import re
import resource

import pytest

FOLDER = pathlib.Path(__file__).parent.parent / 'colab'
NOTEBOOKS = sorted(FOLDER.glob('*.ipynb'))
FIRST = """try:
  import thicket
except ImportError:
  %pip install -q thicket[vision]"""
# What a Flax model needs; anything else is the library's.
_METHODS = {'__init__', '__call__', 'setup'}
_MAX_WORDS = 60  # in a cell of text
_MAX_SECONDS = 60  # on two cores with nothing beside it

each = pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)


def read(path: pathlib.Path) -> dict:
  return json.loads(path.read_text(encoding='utf-8'))


def sources(path: pathlib.Path, kind: str) -> list[str]:
  cells = read(path)['cells']
  return [''.join(x['source']) for x in cells if x['cell_type'] == kind]


def tree(path: pathlib.Path) -> ast.Module:
  """All code behind the first cell, without IPython's own lines."""
  code = '\n'.join(sources(path, 'code')[1:])
  return ast.parse(re.sub(r'^%.*$', '', code, flags=re.MULTILINE))


def test_there_are_three():
  assert [path.stem for path in NOTEBOOKS] == [
    'measure_a_thicket',
    'thicket_in_five_minutes',
    'your_own_model',
  ]


@each
def test_is_notebook_format_4_5_with_ids(path):
  notebook = read(path)
  assert (notebook['nbformat'], notebook['nbformat_minor']) == (4, 5)
  ids = [cell['id'] for cell in notebook['cells']]
  assert len(set(ids)) == len(ids)
  assert all(re.fullmatch(r'[a-zA-Z0-9_-]{1,64}', x) for x in ids)
  assert notebook['metadata']['kernelspec']['name'] == 'python3'


@each
def test_outputs_are_stripped(path):
  for cell in read(path)['cells']:
    assert cell['metadata'] == {}
    if cell['cell_type'] == 'code':
      assert cell['outputs'] == []
      assert cell['execution_count'] is None


@each
def test_the_first_cell_installs_only_what_is_missing(path):
  assert read(path)['cells'][0]['cell_type'] == 'code'
  first, *others = sources(path, 'code')
  assert first == FIRST
  assert not re.search(r'\bpip\b|^\s*!', '\n'.join(others), re.MULTILINE)


@each
def test_only_models_are_defined(path):
  for node in ast.walk(tree(path)):
    if isinstance(node, ast.ClassDef):
      (base,) = node.bases
      assert ast.unparse(base) in ('nn.Module', 'nnx.Module')
      defined = {x.name for x in node.body if isinstance(x, ast.FunctionDef)}
      assert defined <= _METHODS
  inside = {
    id(method)
    for node in ast.walk(tree(path))
    if isinstance(node, ast.ClassDef)
    for method in node.body
  }
  assert len(inside) == sum(
    isinstance(x, ast.FunctionDef | ast.AsyncFunctionDef)
    for x in ast.walk(tree(path))
  )


@each
def test_noise_and_selection_are_the_librarys(path):
  code = '\n'.join(sources(path, 'code'))
  assert 'thicket.' in code
  # Drawing noise or ranking members by hand would be another algorithm.
  forbidden = r'random\.(normal|bits|rademacher)|argsort|argmax|top_k\('
  assert not re.search(forbidden, code)
  assert not re.search(r'https?://|urllib|requests|\bopen\(', code)


@each
def test_few_words_stand_between_cells(path):
  for text in sources(path, 'markdown'):
    assert len(text.split()) <= _MAX_WORDS, text


@pytest.mark.slow
@pytest.mark.filterwarnings('default')  # of Jupyter's own clients
@each
def test_runs_from_top_to_bottom(path, tmp_path):
  import nbclient  # not skipped without it: CI would not notice
  import nbformat

  notebook = nbformat.read(path, as_version=4)
  nbformat.validate(notebook)
  before = resource.getrusage(resource.RUSAGE_CHILDREN)
  nbclient.NotebookClient(
    notebook,
    timeout=10 * _MAX_SECONDS,
    kernel_name='python3',
    resources={'metadata': {'path': str(tmp_path)}},
  ).execute()
  after = resource.getrusage(resource.RUSAGE_CHILDREN)
  # Of the processor, which other work on the machine does not change much.
  assert 1 < after.ru_utime - before.ru_utime < 2 * _MAX_SECONDS
  assert not list(tmp_path.iterdir())
  outputs = [x for cell in notebook.cells for x in cell.get('outputs', [])]
  figures = sum('image/png' in x.get('data', {}) for x in outputs)
  shown = {'thicket_in_five_minutes': 1, 'measure_a_thicket': 5}
  assert figures == shown.get(path.stem, 0)
  said = ''.join(x['text'] for x in outputs if x.get('name') == 'stderr')
  assert 'Warning' not in said, said
