# SPDX-License-Identifier: Apache-2.0
"""Who may import whom, and other rules that can be read off the source."""

import ast
import graphlib
import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / 'thicket'
MAX_LINES = 400

# A file imports from its own level and from lower ones, without cycles. A new
# file gets the lowest level that its imports allow.
LEVELS = {
  'version': 0,
  'trees': 0,
  'prng': 0,
  'metrics': 0,
  'estimates': 0,
  'race': 0,
  'figures': 0,
  'plots': 0,
  'plots.style': 0,
  'plots.planes': 0,
  'plots.spectra': 0,
  'plots.signals': 0,
  'plots.thickets': 0,
  'page': 0,
  'tables': 0,
  'progress': 0,
  'interrupts': 0,
  'answer_file': 0,
  'arguments': 0,
  'clusters': 0,
  'processes': 0,
  'analysis': 0,
  'analysis.quality': 0,
  'analysis.discordance': 0,
  'analysis.density': 0,
  'tasks': 0,
  'tasks.base': 0,
  'tasks.numbers': 0,
  'tasks.arithmetic': 0,
  'tasks.gsm8k': 0,
  'tasks.expressions': 0,
  'tasks.tags': 0,
  'tasks.smiles': 0,
  'tasks.countdown': 0,
  'tasks.rocstories': 0,
  'tasks.uspto50k': 0,
  'tasks.gqa': 0,
  'tasks.latex': 0,
  'tasks.sympy_worker': 0,
  'tasks.equivalence': 0,
  'tasks.released_maths': 0,
  'tasks.maths': 0,
  'tasks.math500': 0,
  'tasks.olympiadbench': 0,
  'tasks.code': 0,
  'tasks.humaneval': 0,
  'tasks.mbpp': 0,
  'sandbox': 0,
  'sandbox.confinement': 0,
  'sandbox.inside': 0,
  'sandbox.values': 0,
  'sandbox.zygote': 0,
  'tasks.own': 0,
  'tasks.reasoning_gym': 0,
  'tasks.classify': 0,
  'judging': 0,
  'sampling': 1,
  'sharding': 1,
  'signals': 0,
  'user_rules': 0,
  'families': 1,
  'scales': 1,
  'perturb': 1,
  'models': 2,
  'models.layers': 2,
  'models.decoder_config': 2,
  'models.attention': 2,
  'models.checked': 3,
  'models.rotary': 3,
  'models.model_types': 3,
  'models.architectures': 3,
  'models.gguf_architectures': 3,
  'models.checkpoint_names': 3,
  'models.decoder': 3,
  'models.hub': 3,
  'models.files': 3,
  'models.gguf': 3,
  'models.safetensors': 3,
  'models.remote': 3,
  'models.weights': 3,
  'models.checkpoints': 3,
  'models.tokenizer_parts': 2,
  'models.stops': 2,
  'models.renderer': 2,
  'models.chat': 2,
  'models.spelling': 2,
  'models.gguf_tokenizer': 2,
  'models.folder_tokenizer': 2,
  'models.tokenizer': 3,
  'models.load': 3,
  'models.mlp': 3,
  'models.shards': 3,
  'models.adapters': 3,
  'models.classifiers': 3,
  'digits': 3,
  'pretrain': 0,
  'data': 3,
  'data.rows': 3,
  'data.sources': 3,
  'data.published': 3,
  'data.fetching': 3,
  'data.overlap': 3,
  'data.__main__': 3,
  'decode': 4,
  'batching': 4,
  'labels': 4,
  'population': 5,
  'fit': 5,
  'selection': 5,
  'pruning': 5,
  'voting': 5,
  'scoring': 5,
  'recipe': 5,
  'blocks': 5,
  'storage': 5,
  'ledger.staging': 5,
  'ledger': 5,
  'ledger.merge': 8,
  'ledger.__main__': 8,
  'job_array': 7,
  'engine': 5,
  'evaluation': 6,
  'reading': 7,
  'panel': 6,
  'analysis.curves': 6,
  'analysis.repairs': 6,
  'analysis.displacement': 6,
  'analysis.landscape': 6,
  'randopt': 7,
  '': 7,  # thicket/__init__.py hands out `randopt.search`
  'contest': 7,
  'problems': 7,
  'plan': 7,
  'machine': 7,
  'stored': 8,
  'ranking': 8,
  'comparison': 8,
  'conclusions': 8,
  'summary': 8,
  'report': 8,
  'voters': 8,
  'predict': 8,
  'watch': 0,
  'answering': 8,
  'merging': 8,
  'model_card': 8,
  'export': 8,
  'run': 9,
  'array_run': 9,
  'main': 9,
}


def _name(path):
  """The module's name inside the package; '' for the package itself."""
  parts = path.relative_to(PACKAGE).with_suffix('').parts
  return '.'.join(part for part in parts if part != '__init__')


FILES = {_name(path): path for path in sorted(PACKAGE.rglob('*.py'))}
SOURCES = sorted(
  [
    ROOT / 'setup.py',
    *(
      path
      for folder in ('thicket', 'tests', 'configs', 'experiments')
      for path in (ROOT / folder).rglob('*.py')
    ),
  ]
)


def _modules(path):
  """Full names of what a file imports, at its top or inside functions."""
  found = set()
  for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
    if isinstance(node, ast.Import):
      found.update(alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{path}: relative import in line {node.lineno}'
      for alias in node.names:
        inner = f'{node.module}.{alias.name}'
        is_module = inner.removeprefix('thicket.') in FILES
        found.add(inner if is_module else node.module)
  return found


def _ours(path):
  """The modules of the package that a file imports, by their short names."""
  return {
    module.removeprefix('thicket').removeprefix('.')
    for module in _modules(path)
    if module.split('.')[0] == 'thicket'
  }


def _roots(path):
  return {module.split('.')[0] for module in _modules(path)}


def test_every_file_has_a_level():
  assert sorted(FILES) == sorted(LEVELS)


@pytest.mark.parametrize('name', FILES)
def test_imports_go_down_or_stay_on_their_level(name):
  for module in _ours(FILES[name]):
    assert module in FILES, f'{name} imports thicket.{module}: no such file'
    assert LEVELS[module] <= LEVELS[name], (
      f'{name} (level {LEVELS[name]}) imports {module} (level {LEVELS[module]})'
    )


def test_there_are_no_cycles():
  graph = {name: _ours(path) - {name} for name, path in FILES.items()}
  order = list(graphlib.TopologicalSorter(graph).static_order())
  assert sorted(order) == sorted(FILES)
  # The parser does see imports: a run stands on nearly everything.
  assert {'machine', 'ledger', 'tasks'} <= graph['run']
  assert {'models.load', 'engine', 'trees'} <= graph['machine']
  assert order.index('trees') < order.index('perturb') < order.index('run')


def test_tests_and_experiments_are_imported_by_nobody():
  theirs = {path.stem for path in (ROOT / 'tests').glob('*.py')}
  theirs |= {'tests', 'experiments', 'configs'}
  for name, path in FILES.items():
    assert not _roots(path) & theirs, name


@pytest.mark.parametrize(
  ('names', 'allowed'),
  [
    # Extras, imported where they are asked for.
    ('tasks', {'math_verify', 'sympy', 'reasoning_gym'}),
    ('sandbox', set()),  # so that programs start with nothing else
    ('judging', {'absl'}),  # workers import it
    ('metrics', {'numpy', 'scipy'}),
    ('recipe', set()),
    ('race', {'numpy'}),
    ('analysis.quality', {'numpy', 'scipy'}),
    ('figures', {'numpy', 'matplotlib'}),
    ('models.gguf', {'numpy', 'gguf'}),
    ('models.renderer', {'jinja2'}),
  ],
)
def test_what_needs_no_jax_stays_without_it(names, allowed):
  for name in FILES:
    if name == names or name.startswith(f'{names}.'):
      foreign = _roots(FILES[name]) - set(sys.stdlib_module_names)
      assert foreign <= allowed | {'thicket'}, name


@pytest.mark.parametrize('name', FILES)
def test_files_are_of_a_readable_size(name):
  lines = FILES[name].read_text(encoding='utf-8').splitlines()
  assert len(lines) <= MAX_LINES


def test_every_source_names_its_licence_first():
  line = '# SPDX-License-Identifier: Apache-2.0'
  without = [
    str(path.relative_to(ROOT))
    for path in SOURCES
    if path.read_text(encoding='utf-8').partition('\n')[0] != line
  ]
  assert len(SOURCES) > len(FILES) > 30
  assert without == []


def test_every_file_says_what_it_is():
  for name, path in FILES.items():
    tree = ast.parse(path.read_text(encoding='utf-8'))
    if tree.body:  # an empty __init__.py needs no words
      assert ast.get_docstring(tree), name


def test_nothing_is_evaluated_from_text_out_of_confinement():
  users = set()
  for name, path in FILES.items():
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
      if isinstance(node, ast.Name) and node.id in (
        'eval',
        'exec',
        '__import__',
      ):
        users.add(name)
  assert users == {'sandbox.inside'}


def test_what_executes_text_is_imported_by_the_confined_process_alone():
  users = {name for name in FILES if 'sandbox.inside' in _ours(FILES[name])}
  assert users == {'sandbox.zygote'}
  assert not any('sandbox.zygote' in _ours(path) for path in FILES.values())


def test_only_the_command_line_configures_jax():
  users = set()
  for name, path in FILES.items():
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
      if isinstance(node, ast.Attribute) and node.attr == 'config':
        owner = node.value
        if isinstance(owner, ast.Name) and owner.id == 'jax':
          users.add(name)
  assert users == {'main'}


PROBE = """
import json, sys
import jax
before = dict(jax.config.values)
import thicket
for name in sys.argv[1:]:
  __import__(name)
from jax._src import xla_bridge
after = dict(jax.config.values)
print(json.dumps({
  'backends': sorted(xla_bridge._backends),
  'changed': sorted(key for key in before if before[key] != after[key]),
  'exported': sorted(thicket.__all__),
}))
jax.devices()
print(len(xla_bridge._backends))
"""


def test_importing_does_no_work():
  names = [f'thicket.{name}' for name in FILES if name]
  done = subprocess.run(
    [sys.executable, '-c', PROBE, *names],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  found, started = done.stdout.splitlines()
  assert json.loads(found) == {
    'backends': [],
    'changed': [],
    'exported': ['Member', 'Result', 'search'],
  }
  assert int(started) > 0  # a backend that is up would have been seen


def test_importing_prints_nothing():
  done = subprocess.run(
    [sys.executable, '-W', 'error::DeprecationWarning:thicket', '-c',
     'import thicket'],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  )  # fmt: skip
  assert (done.stdout, done.stderr) == ('', '')
