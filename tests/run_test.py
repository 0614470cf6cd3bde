# SPDX-License-Identifier: Apache-2.0
"""Whole runs on a tiny model: resumed, enlarged, interrupted, refused."""

import contextlib
import dataclasses
import functools
import importlib.util
import io
import json
import pathlib
import re
import shutil

import jax
import numpy as np
import pytest
import same
import tiny_gguf
from rich.console import Console

from thicket import evaluation, report, run, sharding, tasks
from thicket.ledger import Ledger, RecipeMismatch
from thicket.models.hub import HubError
from thicket.plan import ConfigError, make_plan
from thicket.population import BASE, PopulationError
from thicket.tasks import TaskError

ROOT = pathlib.Path(__file__).parents[1]
SPLITS = ('selection', 'test')
N, K = 4, 2
# Relative to weights of about 0.3: members differ from the base and from each
# other, in scores too.
SIGMAS = (0.05, 0.2)


@functools.cache
def _get_config():
  path = ROOT / 'configs' / 'llm.py'
  spec = importlib.util.spec_from_file_location('llm', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  """The path of a model file."""
  path = tmp_path_factory.mktemp('model') / 'tiny.gguf'
  return str(tiny_gguf.write_answering(path))


def _config(model, **changes):
  """A config of `configs/llm.py` in a size for tests; a__b sets a.b."""
  config = _get_config()('quick')
  settings = {
    'model__name': model,
    'task__prompt_template': 'Q {question}=',
    'data__num_selection': 64,
    'data__num_test': 32,
    'population__size': N,
    'population__sigmas': SIGMAS,
    'ensemble__sizes': (1, K),
    'decode__max_new_tokens': 3,
    'decode__rows': 32,
    'run__members_per_range': 3,
    'run__keep_texts': True,
  } | changes
  for name, value in settings.items():
    *path, last = name.split('__')
    node = config
    for key in path:
      node = node[key]
    assert last in node
    node[last] = value
  return config


@contextlib.contextmanager
def _devices(count):
  """Runs get a mesh of so many devices."""
  make = sharding.make_mesh
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sharding, 'make_mesh', lambda: make(jax.devices()[:count]))
    yield


def _run(config, workdir, devices=1):
  """A finished run and its summary."""
  console = Console(file=io.StringIO(), width=80)
  with _devices(devices):
    job = run.Run(config, str(workdir), console)
    return job, job.finish()


def _printed(job):
  return re.sub(' +', ' ', job.console.file.getvalue())


def _view(workdir, split='selection'):
  return Ledger.read(pathlib.Path(workdir) / 'ledger').view(split)


def _assert_same_rows(ours, theirs):
  """Two ledgers hold the same rows, byte for byte, and texts."""
  for split in SPLITS:
    same.assert_same(_view(ours, split), _view(theirs, split))


@dataclasses.dataclass(frozen=True)
class _Finished:
  folder: pathlib.Path
  summary: dict
  job: run.Run

  def copy(self, to):
    return pathlib.Path(shutil.copytree(self.folder, to))


@pytest.fixture(scope='module')
def finished(model, tmp_path_factory):
  """An undisturbed run on one device."""
  folder = tmp_path_factory.mktemp('run') / 'work'
  job, summary = _run(_config(model), folder)
  return _Finished(folder, summary, job)


def _selected(summary):
  return [member['member'] for member in summary['selected']]


# What a run leaves behind.


def test_the_model_is_worth_running_on(finished):
  # Right and wrong answers and none, cut and finished ones, short and long.
  view = _view(finished.folder)
  for column in (view.correct, view.answer < 0, view.truncated):
    assert 0 < column.sum() < column.size / 2
  assert len(set(view.num_tokens.flat)) > 2
  assert len(set(report.scores(view))) > 2
  assert _view(finished.folder, 'test').correct.any()


def test_the_summary_is_json_with_everything_in_it(finished):
  def refuse(constant):
    raise AssertionError(f'{constant} is not JSON')

  text = (finished.folder / 'summary.json').read_text(encoding='utf-8')
  stored = json.loads(text, parse_constant=refuse)
  assert stored == json.loads(json.dumps(finished.summary))
  assert set(stored) == {
    'recipe',
    'effective_sigmas',
    'selection',
    'selected',
    'test',
    'work',
  }
  assert set(stored['selection']) == {'rows', 'base', 'members'}
  assert set(stored['test']) == {'rows', 'base', 'members', 'votes'}
  assert set(stored['work']) == {'generated_tokens', 'this_run', 'devices'}
  assert set(stored['work']['this_run']) == {
    'members',
    'tokens',
    'seconds',
    'compile_seconds',
    'tokens_per_second',
  }
  assert stored['selection']['rows'] == 64
  assert stored['test']['rows'] == 32
  assert [vote['k'] for vote in stored['test']['votes']] == [1, K]
  ledger = Ledger.read(finished.folder / 'ledger')
  assert stored['recipe'] == ledger.recipe


def test_the_best_are_selected_and_tested(finished):
  view = _view(finished.folder)
  assert view.members.tolist() == [BASE, *range(N)]
  scores = view.reward.mean(axis=(1, 2))[1:]
  ranked = sorted(range(N), key=lambda i: (-scores[i], i))[:K]
  assert finished.summary['selected'] == [
    {'member': i, 'sigma': SIGMAS[i % 2], 'score': float(scores[i])}
    for i in ranked
  ]
  assert _view(finished.folder, 'test').members.tolist() == [
    BASE,
    *sorted(ranked),
  ]


def test_the_summary_can_be_made_again_without_a_model(finished):
  view = _view(finished.folder)
  plan = finished.job.plan
  assert finished.summary['selection'] == report.selection_summary(
    view, plan.population
  )
  rows = [example.row_id for example in plan.splits.test]
  tested = Ledger.read(finished.folder / 'ledger').view('test', rows=rows)
  ranked = _selected(finished.summary)
  assert finished.summary['test'] == report.test_summary(
    plan.task, plan.splits.test, tested, ranked, plan.sizes
  )


def test_work_is_counted(finished):
  tokens = {
    split: int(_view(finished.folder, split).num_tokens.sum())
    for split in SPLITS
  }
  work = finished.summary['work']
  assert work['generated_tokens'] == tokens
  assert work['this_run']['tokens'] == sum(tokens.values())
  assert work['this_run']['members'] == 1 + N + 1 + K
  assert work['this_run']['seconds'] > 0
  assert work['this_run']['compile_seconds'] > 0


def test_every_member_has_a_line_of_metrics(finished):
  text = (finished.folder / 'metrics.jsonl').read_text(encoding='utf-8')
  lines = [json.loads(line) for line in text.splitlines()]
  found = [(line['split'], line['member']) for line in lines]
  best = sorted(_selected(finished.summary))
  assert found == [
    *(('selection', i) for i in (BASE, *range(N))),
    *(('test', i) for i in (BASE, *best)),
  ]
  for line in lines:
    one = report.member(
      _view(finished.folder, line['split']), line.pop('member')
    )
    (i,) = one.members
    assert line == {
      'split': line['split'],
      'sigma': 0.0 if i == BASE else SIGMAS[i % 2],
      'score': float(report.scores(one)[0]),
      'accuracy': one.correct.mean(),
      'tokens': one.num_tokens.sum(),
    }


def test_texts_are_what_was_judged(finished):
  view = _view(finished.folder)
  rows = {row.row_id: row for row in finished.job.plan.splits.selection}
  assert len(view.texts) == view.seen.size
  assert all('\n' not in text for text in view.texts)
  texts = np.array(view.texts, object).reshape(view.seen.shape)
  for place in np.ndindex(*view.seen.shape):
    found = tasks.base.judge(
      finished.job.plan.task, texts[place], rows[view.rows[place[1]]]
    )
    assert found.reward == view.reward[place]
    assert found.lenient_reward == view.lenient[place]
    answer = view.answer[place]
    assert found.answer == (view.answers[answer] if answer >= 0 else None)


def test_the_tables_are_printed(finished):
  text = _printed(finished.job)
  assert 'Selection: 64 questions' in text
  assert 'Test: 32 held-out questions' in text
  assert f'vote of best {K}' in text
  assert 'stored' not in text
  assert 'tokens/s, and' in text


# What may change between two runs of one recipe, and what may not.


@pytest.mark.parametrize(
  'changes',
  [
    {},
    {'ensemble__sizes': (K,)},
    {'ensemble__sizes': (1,)},
    {'run__members_per_device': 3},
    {'run__members_per_range': 1},
    {'run__keep_texts': False},
    {'devices': 8},
  ],
  ids=lambda changes: ','.join(changes) or 'nothing',
)
def test_with_everything_stored_nothing_is_generated(
  changes, model, finished, tmp_path
):
  folder = finished.copy(tmp_path / 'elsewhere')  # the workdir may move
  changes = dict(changes)
  devices = changes.pop('devices', 1)
  job, summary = _run(_config(model, **changes), folder, devices)
  assert summary['work']['this_run'] == {
    'members': 0,
    'tokens': 0,
    'seconds': 0.0,
    'compile_seconds': 0.0,
    'tokens_per_second': None,
  }
  assert summary['recipe'] == finished.summary['recipe']
  assert summary['selection'] == finished.summary['selection']
  best = _selected(summary)
  assert best == _selected(finished.summary)[: len(best)]
  _assert_same_rows(folder, finished.folder)
  text = _printed(job)
  assert f'members on selection: {N} of {N} are stored' in text
  assert 'base on test: 1 of 1 are stored' in text


def test_a_smaller_population_is_a_part_of_what_is_stored(
  model, finished, tmp_path
):
  folder = finished.copy(tmp_path / 'work')
  _, summary = _run(_config(model, population__size=N - 1), folder)
  fresh = set(_selected(summary)) - set(_selected(finished.summary))
  assert summary['work']['this_run']['members'] == len(fresh)
  assert summary['selection']['members']['count'] == N - 1


def test_a_larger_population_reuses_its_members(model, finished, tmp_path):
  folder = finished.copy(tmp_path / 'work')
  job, summary = _run(_config(model, population__size=N + 3), folder)
  fresh = set(_selected(summary)) - set(_selected(finished.summary))
  assert summary['work']['this_run']['members'] == 3 + len(fresh)
  assert f'members on selection: {N} of {N + 3} are stored' in _printed(job)
  assert summary['recipe'] == finished.summary['recipe']
  assert summary['selection']['members']['count'] == N + 3
  before, after = _view(finished.folder), _view(folder)
  assert after.members.tolist() == [BASE, *range(N + 3)]
  np.testing.assert_array_equal(after.reward[: 1 + N], before.reward)
  np.testing.assert_array_equal(after.num_tokens[: 1 + N], before.num_tokens)


def test_a_second_finish_has_nothing_left_to_do(model, finished, tmp_path):
  job, first = _run(_config(model), finished.copy(tmp_path / 'work'))
  assert job.finish() == first


def test_the_default_folder_is_that_of_the_recipe(model, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  folder = lambda **changes: run.Run(_config(model, **changes)).workdir
  with _devices(1):
    first = folder()
    assert re.fullmatch(r'runs/arithmetic-tiny-[0-9a-f]{12}', str(first))
    assert (tmp_path / first / 'ledger' / 'recipe.json').is_file()
    for changes in (
      {'population__size': 50},
      {'ensemble__sizes': (3,)},
      {'run__members_per_device': 2},
      {'run__members_per_range': 7},
      {'run__keep_texts': False},
    ):
      assert folder(**changes) == first
  with _devices(8):
    assert folder() == first
    others = {
      folder(**changes)
      for changes in (
        {'population__sigmas': (0.05, 0.1)},
        {'population__sigmas': (0.2, 0.05)},
        {'population__family': 'rademacher'},
        {'population__scale': 'relative'},
        {'population__only': 'mlp'},
        {'population__skip': 'mlp'},
        {'seed': 1},
        {'model__dtype': 'bfloat16'},
        {'task__prompt_template': 'Q {question} ='},
        {'data__num_test': 31},
        {'decode__rows': 16},
        {'decode__max_new_tokens': 4},
      )
    }
  assert len(others) == 12
  assert first not in others


@pytest.mark.parametrize(
  ('changes', 'said'),
  [
    (
      {'population__sigmas': (0.05, 0.1)},
      'noise.sigmas: stored [0.05, 0.2], asked [0.05, 0.1]',
    ),
    (
      {'population__family': 'rademacher'},
      "noise.family: stored 'gaussian', asked 'rademacher'",
    ),
    (
      {'decode__max_new_tokens': 2},
      'decoding.max_new_tokens: stored 3, asked 2',
    ),
    ({'data__num_test': 31}, 'data.test: stored '),
  ],
)
def test_another_recipe_in_the_same_folder_is_refused(
  changes, said, model, finished, tmp_path
):
  folder = finished.copy(tmp_path / 'work')
  with pytest.raises(RecipeMismatch) as caught, _devices(1):
    run.Run(_config(model, **changes), str(folder))
  message = str(caught.value)
  assert said in message
  assert str(folder) in message
  assert '\n' not in message
  _assert_same_rows(folder, finished.folder)


def test_other_weights_under_the_same_name_are_refused(finished, tmp_path):
  other = str(tiny_gguf.write_answering(tmp_path / 'tiny.gguf', seed=2))
  folder = finished.copy(tmp_path / 'work')
  with pytest.raises(RecipeMismatch, match=r'model\.sha256: stored'):
    run.Run(_config(other), str(folder))


# Interruptions.


def _stop_judging(monkeypatch, after, error):
  """Raises from the judge once it has judged so many chunks."""
  judge, calls = evaluation.Judge.__call__, []

  def judging(self, *args):
    if len(calls) == after:
      raise error
    calls.append(args)
    return judge(self, *args)

  monkeypatch.setattr(evaluation.Judge, '__call__', judging)


@pytest.mark.parametrize(
  ('after', 'error', 'stored'),
  [
    (0, KeyboardInterrupt(), {}),
    (3, KeyboardInterrupt(), {'selection': 3}),  # within a range of 3
    (6, RuntimeError('broken'), {'selection': 5, 'test': 1}),
  ],
)
def test_an_interrupted_run_keeps_what_was_judged_and_resumes(
  after, error, stored, model, finished, tmp_path
):
  config = _config(model)
  with pytest.MonkeyPatch.context() as patch:
    _stop_judging(patch, after, error)
    with pytest.raises(type(error)):
      _run(config, tmp_path)
  assert not (tmp_path / 'summary.json').exists()
  ledger = Ledger.read(tmp_path / 'ledger')
  found = {split: len(ledger.view(split).members) for split in ledger.splits}
  assert found == stored
  _, summary = _run(config, tmp_path)
  assert summary['work']['this_run']['members'] == 1 + N + 1 + K - after
  _assert_same_rows(tmp_path, finished.folder)
  for part in ('selection', 'selected', 'test'):
    assert summary[part] == finished.summary[part]


def test_ctrl_c_inside_a_save_loses_no_judged_member(
  model, finished, tmp_path, monkeypatch
):
  append, calls = Ledger.append, []

  def interrupted_once(self, split, block):
    if self.folder is not None:
      calls.append(block.members.tolist())
      if len(calls) == 2:
        raise KeyboardInterrupt
    append(self, split, block)

  monkeypatch.setattr(Ledger, 'append', interrupted_once)
  with pytest.raises(KeyboardInterrupt):
    _run(_config(model), tmp_path)
  assert calls == [[BASE], [0, 1, 2], [0, 1, 2]]
  assert _view(tmp_path).members.tolist() == [BASE, 0, 1, 2]


@pytest.mark.parametrize('devices', [1, 8])
def test_bfloat16_weights_say_how_far_they_really_move(
  devices, model, tmp_path
):
  config = _config(model, model__dtype='bfloat16')
  _, summary = _run(config, tmp_path, devices)
  assert [x['sigma'] for x in summary['effective_sigmas']] == list(SIGMAS)
  for found in summary['effective_sigmas']:
    tensors = found['tensors']
    assert len(tensors) == 12  # one layer, and embedding, norm and head
    assert 'model.layers.0.self_attn.k_proj.weight' in tensors
    for name, moved in tensors.items():
      # Tens to hundreds of weights a tensor, rounded to 8 bits.
      assert moved == pytest.approx(found['sigma'], rel=0.5), name


def test_float32_weights_move_as_far_as_they_are_told(finished):
  assert finished.summary['effective_sigmas'] == []


# How work is cut leaves no trace.


@pytest.mark.parametrize(
  ('devices', 'changes'),
  [
    (1, {'run__members_per_device': 3, 'run__members_per_range': 1}),
    (8, {'run__members_per_range': 2}),
  ],
)
def test_chunks_ranges_and_meshes_do_not_change_the_ledger(
  devices, changes, model, finished, tmp_path
):
  _, summary = _run(_config(model, **changes), tmp_path, devices)
  _assert_same_rows(tmp_path, finished.folder)
  for part in ('recipe', 'selection', 'selected', 'test'):
    assert summary[part] == finished.summary[part]
  ranges = len(list((tmp_path / 'ledger' / 'selection').iterdir()))
  per_range = changes['run__members_per_range']
  assert ranges == 1 + -(-N // per_range)  # the base has its own


# Configurations that make no sense.


@pytest.mark.parametrize(
  ('kind', 'changes', 'message'),
  [
    (
      ConfigError,
      {'ensemble__sizes': (1, N + 1)},
      f'ensemble.sizes asks for K = {N + 1} of N = {N} members; lower K or '
      'raise population.size',
    ),
    (
      ConfigError,
      {'ensemble__sizes': (2, 0)},
      'ensemble.sizes = (2, 0): K is at least 1, and whole',
    ),
    (
      ConfigError,
      {'ensemble__sizes': ()},
      'ensemble.sizes = (): K is at least 1, and whole',
    ),
    (
      ConfigError,
      {'population__family': 'gausian'},
      "population.family = 'gausian'; did you mean 'gaussian'? known: "
      'gaussian, rademacher',
    ),
    (
      ConfigError,
      {'population__scale': 'relativ'},
      "population.scale = 'relativ'; did you mean 'relative'? known: "
      'absolute, relative',
    ),
    (
      ConfigError,
      {'population__family': '?'},
      "population.family = '?'; known: gaussian, rademacher",
    ),
    (
      ConfigError,
      {'ensemble__sizes': (1, 1.5)},
      'ensemble.sizes = (1, 1.5): K is at least 1, and whole',
    ),
    (
      ConfigError,
      {'model__dtype': 'float16'},
      "model.dtype = 'float16'; did you mean 'bfloat16'? known: float32, "
      'bfloat16',
    ),
    (
      ConfigError,
      {'run__members_per_device': 0},
      'run.members_per_device = 0 is below 1',
    ),
    (
      ConfigError,
      {'run__members_per_range': -1},
      'run.members_per_range = -1 is below 1',
    ),
    (
      ConfigError,
      {'decode__max_new_tokens': 0},
      'decode.max_new_tokens = 0 is below 1',
    ),
    (ConfigError, {'decode__rows': 0}, 'decode.rows = 0 is below 1'),
    (
      PopulationError,
      {'population__sigmas': ()},
      'no sigma: give at least one, such as 0.001',
    ),
    (
      PopulationError,
      {'population__sigmas': (0.1, -1.0)},
      'sigma = -1.0 is not a finite number >= 0',
    ),
    (
      PopulationError,
      {'population__size': 0},
      'population size N = 0 is outside [1, 2**31)',
    ),
    (PopulationError, {'seed': -3}, 'seed = -3 is outside [0, 2**64)'),
    (
      TaskError,
      {'data__num_test': 10**5},
      r'arithmetic: num_test=100000, but there are \d+ test rows; ask for '
      'fewer',
    ),
    (
      TaskError,
      {'data__num_selection': 10**5},
      r'arithmetic: num_selection=100000 and num_validation=0 need 100000 '
      r'rows, there are \d+; ask for fewer',
    ),
    (
      TaskError,
      {'data__num_selection': 0},
      'num_selection=0: must be at least 1',
    ),
    (
      TaskError,
      {'task__prompt_template': 'What is {quesion}?'},
      "arithmetic: prompt_template='What is {quesion}?' must hold {question} "
      'once',
    ),
    (
      TaskError,
      {'task__name': 'arithmetics'},
      "unknown task 'arithmetics'; did you mean 'arithmetic'? known: "
      'arithmetic, gsm8k',
    ),
    (HubError, {'model__name': 'smollm2'}, r"unknown model 'smollm2': .*"),
  ],
)
def test_a_plan_that_makes_no_sense_is_one_line(kind, changes, message, model):
  with pytest.raises(kind) as caught:
    make_plan(_config(model, **changes))
  found = str(caught.value)
  if r'\d' not in message and '.*' not in message:
    message = re.escape(message)
  assert re.fullmatch(message, found), found
  assert isinstance(caught.value, run.USER_ERRORS)


def test_a_plan_loads_no_model(tmp_path):
  (tmp_path / 'empty.gguf').write_bytes(b'')
  plan = make_plan(_config(str(tmp_path / 'empty.gguf')))
  assert plan.sizes == (1, K)
  assert plan.max_new_tokens == 3
  assert len(plan.splits.test) == 32


def test_what_is_not_set_is_the_task_s(model):
  config = _config(
    model, decode__max_new_tokens=None, task__prompt_template=None
  )
  plan = make_plan(config)
  assert plan.task == tasks.make('arithmetic')
  assert plan.max_new_tokens == 24


def test_sizes_are_sorted_and_told_once(model):
  plan = make_plan(_config(model, ensemble__sizes=(3, 1, 3)))
  assert plan.sizes == (1, 3)


def test_a_mask_that_leaves_nothing_names_its_settings(model, tmp_path):
  config = _config(model, population__only='nothing')
  with pytest.raises(ConfigError) as caught:
    run.Run(config, str(tmp_path / 'work'))
  message = str(caught.value)
  assert message.startswith('population.only, population.skip: ')
  assert "only='nothing'" in message
  assert '\n' not in message


def test_prompts_that_do_not_fit_are_refused(model, tmp_path):
  config = _config(model, decode__max_new_tokens=128)
  with pytest.raises(TaskError, match='exceed the context of 128'):
    run.Run(config, str(tmp_path / 'work'))
  # Nothing has been left behind for the next try to trip over.
  assert not (tmp_path / 'work').exists()


@pytest.mark.parametrize('arg', ['', 'quick'])
def test_the_committed_config_is_a_plan(arg, model):
  config = _get_config()(arg)
  config.model.name = model
  plan = make_plan(config)
  assert plan.sizes[-1] <= plan.population.size
  assert plan.task.name == 'arithmetic'


def test_a_variant_that_does_not_exist_is_named():
  with pytest.raises(ValueError, match=r'configs/llm\.py:fast'):
    _get_config()('fast')
