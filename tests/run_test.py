# SPDX-License-Identifier: Apache-2.0
"""Whole runs on a tiny model: resumed, enlarged, interrupted, refused."""

import dataclasses
import io
import json
import math
import pathlib
import re
import shutil

import jax
import jax.numpy as jnp
import made
import numpy as np
import pytest
import same
import tiny_gguf
from rich.console import Console

from thicket import (
  answering,
  engine,
  evaluation,
  fit,
  plan,
  processes,
  ranking,
  report,
  run,
  tasks,
)
from thicket.arguments import ArgumentError, load_config
from thicket.job_array import Shard
from thicket.ledger import Ledger, LedgerError, RecipeMismatch
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


def _config(model, **changes):
  """A config of `configs/llm.py` in a size for tests; a__b sets a.b."""
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
    'run__keep_texts': 'all',
  } | changes
  return made.config(**settings)


def _run(config, workdir, devices=1):
  """A finished run and its summary."""
  console = Console(file=io.StringIO(), width=80)
  with made.devices(devices):
    job = run.Run(config, str(workdir), console)
    return job, job.finish()


def _printed(job):
  return re.sub(' +', ' ', job.console.file.getvalue())


def _folders(workdir):
  """Names of the conditions under which something was answered."""
  return sorted(x.name for x in (pathlib.Path(workdir) / 'ledger').iterdir())


def _ledger(workdir, folder=None):
  """The ledger of a condition, by default that of the search."""
  if folder is None:
    folder = made.plan(task__prompt_template='Q {question}=').greedy.folder
  return Ledger.read(pathlib.Path(workdir) / 'ledger' / folder)


def _view(workdir, split='selection'):
  return _ledger(workdir).view(split)


def _assert_same_rows(ours, theirs):
  """All ledgers of two runs hold the same rows, byte for byte, and texts."""
  assert _folders(ours) == _folders(theirs)
  for folder in _folders(theirs):
    one, other = _ledger(ours, folder), _ledger(theirs, folder)
    assert one.splits == other.splits
    for split in other.splits:
      same.assert_same(one.view(split), other.view(split))


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
  assert len(set(ranking.scores(view))) > 2
  assert _view(finished.folder, 'test').correct.any()


def test_the_summary_is_json_with_everything_in_it(finished):
  def refuse(constant):
    raise AssertionError(f'{constant} is not JSON')

  text = (finished.folder / 'summary.json').read_text(encoding='utf-8')
  stored = json.loads(text, parse_constant=refuse)
  assert stored == json.loads(json.dumps(finished.summary))
  assert set(stored) == {
    'recipe', 'effective_sigmas', 'work',
    'run', 'selection', 'selected', 'tested', 'choices', 'test', 'curves',
    'quality', 'repairs', 'verdict', 'missing', 'near_duplicates',
  }  # fmt: skip
  assert set(stored['work']) == {'stored', 'this_run', 'devices'}
  assert set(stored['work']['this_run']) == {
    'answers',
    'tokens',
    'seconds',
    'compile_seconds',
    'tokens_per_second',
    'finished_share',
    'filler_share',
    'memo_hits',
    'members_per_device',
    'device_idle_share',
  }
  assert stored['selection']['rows'] == 64
  assert stored['test']['rows'] == 32
  assert stored['recipe'] == _ledger(finished.folder).recipe


def test_the_best_are_selected_and_tested(finished):
  view = _view(finished.folder)
  assert view.members.tolist() == [BASE, *range(N)]
  scores = view.reward.mean(axis=(1, 2))[1:]
  ranked = sorted(range(N), key=lambda i: (-scores[i], i))[:K]
  selected = finished.summary['selected']
  assert [(x['member'], x['sigma'], x['score']) for x in selected] == [
    (i, SIGMAS[i % 2], float(scores[i])) for i in ranked
  ]
  tested = _view(finished.folder, 'test')
  assert set(tested.members.tolist()) >= {BASE, *ranked}
  for found in selected:
    (at,) = np.flatnonzero(tested.members == found['member'])
    assert found['test_accuracy'] == tested.correct[at].mean()


def test_all_controls_are_in_the_same_run(finished):
  systems = {x['id']: x for x in finished.summary['test']['systems']}
  assert {
    'base', 'selected-mean', 'best-member', f'vote-{K}',
    'self-consistency-1', f'self-consistency-{K}', 'unselected', 'same-sigma',
    'best-on-test', 'oracle', 'oracle-samples',
  } <= set(systems)  # fmt: skip
  assert finished.summary['missing'] == []
  assert systems[f'vote-{K}']['selection']['answers'] == N * 64
  assert len(finished.summary['verdict']) >= 3
  # The tasks' own prompts were tried beside the run's.
  assert len(finished.summary['choices']['prompt']['candidates']) == 4


def test_a_report_needs_neither_model_nor_data(finished, tmp_path, capsys):
  folder = finished.copy(tmp_path / 'moved')
  before = (folder / 'summary.json').read_text(encoding='utf-8')
  page = (folder / 'report.html').read_text(encoding='utf-8')
  (folder / 'report.html').unlink()
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr('thicket.machine.load', None)
    patch.setattr('thicket.data.load', None)
    assert report.main(['--workdir', str(folder)]) == 0
  assert (folder / 'summary.json').read_text(encoding='utf-8') == before
  assert (folder / 'report.html').read_text(encoding='utf-8') == page
  assert 'Test: 32 held-out questions' in capsys.readouterr().out


def test_a_report_of_a_stopped_run_says_what_is_missing(
  finished, tmp_path, capsys
):
  folder = finished.copy(tmp_path / 'stopped')
  sampled = [x for x in _folders(folder) if x.startswith('sample')]
  for name in sampled:
    shutil.rmtree(folder / 'ledger' / name)
  (folder / 'summary.json').unlink()
  assert report.main(['--workdir', str(folder)]) == 0
  summary = json.loads((folder / 'summary.json').read_text(encoding='utf-8'))
  assert len(summary['missing']) >= 1
  assert '- not run: ' in capsys.readouterr().out
  ids = {x['id'] for x in summary['test']['systems']}
  assert f'vote-{K}' in ids
  assert not any(x.startswith('self-consistency') for x in ids)


def test_a_report_without_a_search_is_one_line(finished, tmp_path, capsys):
  folder = finished.copy(tmp_path / 'early')
  shutil.rmtree(folder / 'ledger' / _ledger(folder).folder.name / 'selection')
  assert report.main(['--workdir', str(folder)]) == 2
  said = capsys.readouterr().err
  assert said.startswith('thicket: ')
  assert said.count('\n') == 1
  assert 'answers are missing' in said


def _everything(workdir):
  return [
    _ledger(workdir, folder).view(split)
    for folder in _folders(workdir)
    for split in _ledger(workdir, folder).splits
  ]


def test_work_is_counted(finished):
  blocks = _everything(finished.folder)
  answers = sum(int(block.seen.sum()) for block in blocks)
  tokens = sum(int(block.num_tokens.sum()) for block in blocks)
  work = finished.summary['work']
  assert work['stored'] == {'answers': answers, 'tokens': tokens}
  assert work['this_run']['tokens'] == tokens
  assert work['this_run']['answers'] == answers
  assert work['this_run']['seconds'] > 0
  assert work['this_run']['compile_seconds'] > 0


def test_every_answer_set_has_a_line_of_metrics(finished):
  text = (finished.folder / 'metrics.jsonl').read_text(encoding='utf-8')
  lines = [json.loads(line) for line in text.splitlines()]
  keys = ('condition', 'split', 'member', 'draw')
  found = {tuple(line[key] for key in keys): line for line in lines}
  assert len(found) == len(lines)
  count = 0
  for folder in _folders(finished.folder):
    for split in _ledger(finished.folder, folder).splits:
      view = _ledger(finished.folder, folder).view(split)
      for i, j in np.argwhere(view.seen.all(axis=1)):
        member, draw = int(view.members[i]), int(view.draws[j])
        count += 1
        assert found[folder, split, member, draw] == {
          'condition': folder,
          'split': split,
          'member': member,
          'sigma': 0.0 if member == BASE else SIGMAS[member % 2],
          'draw': draw,
          'rows': len(view.rows),
          'score': pytest.approx(view.reward[i, :, j].mean()),
          'accuracy': view.correct[i, :, j].mean(),
          'tokens': view.num_tokens[i, :, j].sum(),
        }
  assert count == len(lines)


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
    {'run__keep_texts': 'none'},
    {'controls__temperatures': ()},
    {'controls__prompts': False},
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
  config = _config(model, **changes)
  number = config.run.members_per_device
  job, summary = _run(config, folder, devices)
  assert summary['work']['this_run'] == {
    'answers': 0,
    'tokens': 0,
    'seconds': 0.0,
    'compile_seconds': 0.0,
    'tokens_per_second': None,
    'finished_share': None,
    'filler_share': None,
    'memo_hits': 0,
    'members_per_device': {'asked': number, 'last': number},
    'device_idle_share': None,
  }
  assert summary['recipe'] == finished.summary['recipe']
  for part in ('rows', 'base', 'members'):
    assert summary['selection'][part] == finished.summary['selection'][part]
  best = _selected(summary)
  assert best == _selected(finished.summary)[: len(best)]
  _assert_same_rows(folder, finished.folder)
  text = _printed(job)
  assert f'members on selection: {N} of {N} stored' in text
  assert 'base on test: 1 of 1 stored' in text


def test_a_smaller_population_is_a_part_of_what_is_stored(
  model, finished, tmp_path
):
  folder = finished.copy(tmp_path / 'work')
  _, summary = _run(_config(model, population__size=N - 1), folder)
  known = set(_view(finished.folder, 'test').members.tolist())
  fresh = set(_view(folder, 'test').members.tolist()) - known
  assert summary['work']['this_run']['answers'] == 32 * len(fresh)
  assert summary['selection']['members']['count'] == N - 1


def test_a_larger_population_reuses_its_members(model, finished, tmp_path):
  folder = finished.copy(tmp_path / 'work')
  job, summary = _run(_config(model, population__size=N + 3), folder)
  known = set(_view(finished.folder, 'test').members.tolist())
  fresh = set(_view(folder, 'test').members.tolist()) - known
  answers = 3 * 64 + 32 * len(fresh)
  assert summary['work']['this_run']['answers'] == answers
  assert f'members on selection: {N} of {N + 3} stored' in _printed(job)
  assert summary['recipe'] == finished.summary['recipe']
  assert summary['selection']['members']['count'] == N + 3
  before, after = _view(finished.folder), _view(folder)
  assert after.members.tolist() == [BASE, *range(N + 3)]
  np.testing.assert_array_equal(after.reward[: 1 + N], before.reward)
  np.testing.assert_array_equal(after.num_tokens[: 1 + N], before.num_tokens)


def test_more_questions_reuse_the_answers_there_are(model, finished, tmp_path):
  folder = finished.copy(tmp_path / 'work')
  config = _config(model, data__num_selection=72, data__num_test=32)
  _, summary = _run(config, folder)
  assert summary['recipe'] == finished.summary['recipe']
  before, after = _view(finished.folder), _view(folder)
  assert after.rows.size == 72
  place = [int(np.flatnonzero(after.rows == row)[0]) for row in before.rows]
  np.testing.assert_array_equal(after.reward[:, place], before.reward)
  # Members, base, prompts and no more answer the eight new ones.
  lines = (folder / 'metrics.jsonl').read_text(encoding='utf-8').splitlines()
  new = [json.loads(line) for line in lines][-40:]
  new = [x for x in new if x['split'] == 'selection' and x['rows'] == 8]
  assert len(new) == 1 + N + 3


def test_more_draws_leave_those_there_are(model, finished, tmp_path):
  folder = finished.copy(tmp_path / 'work')
  _run(_config(model, ensemble__sizes=(1, K, K + 1)), folder)
  sampled = [x for x in _folders(folder) if x.startswith('sample')]
  assert sampled
  for name in sampled:
    before, after = (
      _ledger(where, name).view('test') for where in (finished.folder, folder)
    )
    assert after.draws.tolist() == list(range(K + 1))
    np.testing.assert_array_equal(after.correct[..., :K], before.correct)
    np.testing.assert_array_equal(after.num_tokens[..., :K], before.num_tokens)


def test_a_race_is_run_and_resumed(model, finished, tmp_path):
  config = _config(
    model,
    selection__race=True,
    selection__race_z=0.01,
    selection__race_rows=(16, 48),
    controls__temperatures=(),
    controls__prompts=False,
  )
  _, summary = _run(config, tmp_path)
  race = summary['selection']['race']
  assert race['used']
  assert 0 < race['saved'] < 1
  assert race['recall'] is None
  asked = [x['rows'] for x in summary['selection']['members']['each']]
  view = _view(tmp_path)
  assert view.seen[1:, :, 0].sum(axis=1).tolist() == asked
  assert set(asked) == {48, 64}
  _, again = _run(config, tmp_path)
  assert again['work']['this_run']['answers'] == 0
  assert again['selection'] == summary['selection']


def test_a_second_finish_has_nothing_left_to_do(model, finished, tmp_path):
  job, first = _run(_config(model), finished.copy(tmp_path / 'work'))
  assert job.finish() == first


def test_the_default_folder_is_that_of_the_recipe(model, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  folder = lambda **changes: run.Run(_config(model, **changes)).workdir
  with made.devices(1):
    first = folder()
    assert re.fullmatch(r'runs/arithmetic-tiny-[0-9a-f]{12}', str(first))
    (recipe,) = (tmp_path / first / 'ledger').glob('*/recipe.json')
    assert recipe.is_file()
    for changes in (
      {'population__size': 50},
      {'ensemble__sizes': (3,)},
      {'run__members_per_device': 2},
      {'run__members_per_range': 7},
      {'run__keep_texts': 'none'},
      {'data__num_selection': 63},
      {'data__num_test': 31},
      {'controls__temperatures': (0.1, 0.2)},
    ):
      assert folder(**changes) == first
  with made.devices(8):
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
        {'decode__rows': 16},
        {'decode__max_new_tokens': 4},
      )
    }
  assert len(others) == 11
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
  ],
)
def test_another_recipe_in_the_same_folder_is_refused(
  changes, said, model, finished, tmp_path
):
  folder = finished.copy(tmp_path / 'work')
  with pytest.raises(RecipeMismatch) as caught, made.devices(1):
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


def test_a_race_may_have_no_end_of_patience(model, tmp_path):
  # A setting that JSON does not have, and no recipe holds.
  config = _config(model, selection__race=True, selection__race_z=math.inf)
  _, summary = _run(config, tmp_path)
  assert summary['selection']['members']['count'] == N


def test_an_answer_that_was_not_made_is_not_a_reward_of_zero(
  model, tmp_path, monkeypatch
):
  answer = answering.Work.answer

  def forgetful(self, desk, split, which, units, label):
    answer(self, desk, split, which, units[:-1] or units, label)

  monkeypatch.setattr(answering.Work, 'answer', forgetful)
  message = rf'^{N} members on selection: 64 of 256 answers were not made'
  with pytest.raises(LedgerError, match=message):
    _run(_config(model), tmp_path)


# Several processes; they run in multiprocess_test.py.


def test_what_several_processes_cannot_measure_is_refused(model, monkeypatch):
  config = _config(model, population__scale='relative', run__model_axis=2)
  plan.agree(config, None)
  monkeypatch.setattr(processes, 'count', lambda: 2)
  monkeypatch.setattr(processes, 'share', lambda data: [data, data])
  with pytest.raises(ConfigError, match=r'run\.model_axis = 2 no process'):
    plan.agree(config, None)


@pytest.mark.parametrize(
  ('what', 'mine', 'theirs'),
  [
    ('their settings', {}, {'fit_members': True}),
    (
      '--shard: 0/2 and 1/2; .* alone: give --distributed=off',
      {'shard': Shard(0, 2)},
      {'shard': Shard(1, 2)},
    ),
    ('--workdir: None and there', {}, {'workdir': 'there'}),
  ],
)
def test_processes_with_different_commands_say_in_what(
  what, mine, theirs, model, monkeypatch
):
  config, sent = _config(model), []
  ask = lambda how: plan.agree(config, **{'workdir': None} | how)
  monkeypatch.setattr(
    processes, 'share', lambda data: sent.append(data) or [data]
  )
  ask(theirs)
  others = iter(sent[:])
  monkeypatch.setattr(processes, 'share', lambda data: [data, next(others)])
  with pytest.raises(processes.ProcessError, match=f'differ in {what}'):
    ask(mine)


# Interruptions.


def _stop_judging(monkeypatch, after, error):
  """Raises from the judge once it has judged so many chunks."""
  judge, calls = evaluation.Judge.__call__, []

  def judging(self, *args, **kwargs):
    if len(calls) == after:
      raise error
    calls.append(args)
    return judge(self, *args, **kwargs)

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
  ledger = _ledger(tmp_path)
  found = {split: len(ledger.view(split).members) for split in ledger.splits}
  assert found == stored
  before = sum(int(block.seen.sum()) for block in _everything(tmp_path))
  _, summary = _run(config, tmp_path)
  work = summary['work']
  assert work['this_run']['answers'] == work['stored']['answers'] - before
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


@pytest.mark.parametrize(
  'devices', [pytest.param(1, marks=pytest.mark.slow), 8]
)
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


def test_of_mirrored_pairs_each_sigma_says_how_far_it_moves(model, tmp_path):
  config = _config(
    model,
    model__dtype='bfloat16',
    population__antithetic=True,
    controls__temperatures=(),
    controls__prompts=False,
  )
  _, summary = _run(config, tmp_path)
  assert [x['sigma'] for x in summary['effective_sigmas']] == list(SIGMAS)


def test_factored_members_say_how_far_their_vectors_move(model, tmp_path):
  config = _config(
    model,
    model__dtype='bfloat16',
    population__family='low_rank',
    controls__temperatures=(),
    controls__prompts=False,
  )
  job, summary = _run(config, tmp_path)
  vectors = {
    segment.full_name
    for leaf in jax.tree.leaves(job._model.spec)
    if len(leaf.shape) == 1
    for segment in leaf.segments
  }
  assert 'model.norm.weight' in vectors
  assert [x['sigma'] for x in summary['effective_sigmas']] == list(SIGMAS)
  for found in summary['effective_sigmas']:
    assert set(found['tensors']) == vectors
    for name, moved in found['tensors'].items():
      assert moved == pytest.approx(found['sigma'], rel=0.5), name


def test_float32_weights_move_as_far_as_they_are_told(finished):
  assert finished.summary['effective_sigmas'] == []


# How work is cut leaves no trace.


@pytest.mark.parametrize(
  ('devices', 'changes'),
  [
    (1, {'run__members_per_device': 3, 'run__members_per_range': 1}),
    pytest.param(8, {'run__members_per_range': 2}, marks=pytest.mark.slow),
  ],
)
def test_chunks_ranges_and_meshes_do_not_change_the_ledger(
  devices, changes, model, finished, tmp_path
):
  _, summary = _run(_config(model, **changes), tmp_path, devices)
  _assert_same_rows(tmp_path, finished.folder)
  for part in ('recipe', 'selection', 'selected', 'test'):
    assert summary[part] == finished.summary[part]
  ranges = len(list((_ledger(tmp_path).folder / 'selection').iterdir()))
  per_range = changes['run__members_per_range']
  assert ranges == 1 + -(-N // per_range)  # the base has its own


# Memory.


@pytest.mark.parametrize('after', [1, 3, 8])
def test_memory_that_runs_out_leaves_no_trace(
  after, model, finished, tmp_path, monkeypatch, caplog
):
  generate, sizes = engine.Engine.generate, []

  def scarce(self, decoding, weights, member_ids, *args):
    sizes.append(len(member_ids))
    if len(sizes) > after and len(member_ids) > 1:
      jnp.zeros((2**25, 2**25), jnp.uint8).block_until_ready()  # 2**50 bytes
    return generate(self, decoding, weights, member_ids, *args)

  monkeypatch.setattr(engine.Engine, 'generate', scarce)
  _, summary = _run(_config(model, run__members_per_device=3), tmp_path)
  assert sizes[after + 1] == 1
  assert 'out of memory with 3 members on each device' in caplog.text
  halved = summary['work']['this_run']['members_per_device']
  assert halved == {'asked': 3, 'last': 1}
  _assert_same_rows(tmp_path, finished.folder)
  for part in ('recipe', 'selection', 'selected', 'test'):
    assert summary[part] == finished.summary[part]
  # Nothing was judged or told twice.
  for count in ('answers', 'tokens'):
    want = finished.summary['work']['this_run'][count]
    assert summary['work']['this_run'][count] == want
  told, lines = (
    (folder / 'metrics.jsonl').read_text(encoding='utf-8').splitlines()
    for folder in (tmp_path, finished.folder)
  )
  assert sorted(told) == sorted(lines)


def test_as_many_members_as_fit(model, finished, tmp_path, caplog):
  caplog.set_level('INFO')
  console = Console(file=io.StringIO(), width=80)
  with made.devices(1):
    run.Run(_config(model), str(tmp_path), console, fit_members=True).finish()
  (said,) = [x for x in caplog.messages if 'a step on each device' in x]
  assert said.startswith(f'{N} members a step on each device: base 0 MB, ')
  assert f'generation for {N} members x 32 prompts' in caplog.text
  _assert_same_rows(tmp_path, finished.folder)


@pytest.mark.parametrize('fit_members', [False, True])
def test_what_memory_does_not_hold_is_refused_before_it_runs(
  fit_members, model, tmp_path, monkeypatch
):
  monkeypatch.setattr(fit, 'host_free_bytes', lambda: 10**5)
  config = _config(model, run__members_per_device=2)
  with pytest.raises(fit.FitError, match=r'decode\.rows') as caught:
    run.Run(config, str(tmp_path / 'work'), fit_members=fit_members)
  assert isinstance(caught.value, run.USER_ERRORS)
  assert '\n' not in str(caught.value)


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
      "population.family: noise family 'gausian'; did you mean 'gaussian'? "
      'known: gaussian, rademacher, low_rank',
    ),
    (
      ConfigError,
      {'population__scale': 'relativ'},
      "population.scale = 'relativ'; did you mean 'relative'? known: "
      'absolute, relative, modular',
    ),
    (
      ConfigError,
      {'population__family': '?'},
      "population.family: noise family '?'; known: gaussian, rademacher, "
      'low_rank',
    ),
    (
      ConfigError,
      {'ensemble__sizes': (1, 1.5)},
      'ensemble.sizes = (1, 1.5): K is at least 1, and whole',
    ),
    (
      ConfigError,
      {'selection__rerank': 1, 'data__num_validation': 8},
      'selection.rerank = 1: the members compared again are at least K = 2 and '
      'at most N = 4; 0 for none',
    ),
    (
      ConfigError,
      {'selection__rerank': 3},
      'selection.rerank = 3 needs rows to validate on: set data.num_validation',
    ),
    (
      ConfigError,
      {'controls__validation': True},
      'controls.validation = True needs rows to validate on: set '
      'data.num_validation',
    ),
    (
      ConfigError,
      {'selection__race_z': 0.0},
      'selection.race_z = 0.0 is not above 0',
    ),
    (
      ConfigError,
      {'selection__race_rows': (16, 65)},
      'selection.race_rows = (16, 65): 65 is not a whole number in 1..64',
    ),
    (
      ConfigError,
      {'controls__temperatures': (0.5, -1.0)},
      'controls: temperature = -1.0 is not a finite number >= 0',
    ),
    (
      ConfigError,
      {'controls__temperatures': (0.0,)},
      'controls.temperatures: at 0 all samples are the greedy answer; give '
      'temperatures above 0',
    ),
    (
      ConfigError,
      {'controls__top_p': 0.0},
      'controls: top_p = 0.0 is outside (0, 1]',
    ),
    (
      ConfigError,
      {'controls__population_sizes': (8, 0)},
      'controls.population_sizes = (8, 0): 0 is not a whole number in '
      '1..2147483648',
    ),
    (
      ConfigError,
      {'controls__prompt_search': 1},
      'controls.prompt_search = 1: N is at least K = 2; 0 for no search',
    ),
    (
      ConfigError,
      {'run__judge_processes': -1},
      'run.judge_processes = -1 is below 0, which is for none',
    ),
    (
      ConfigError,
      {'run__keep_texts': 'some'},
      "run.keep_texts = 'some'; did you mean 'none'? known: none, test, all",
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
      r"unknown task 'arithmetics'; did you mean 'arithmetic'\? known: .*",
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


def test_populations_of_the_curve_lie_between_k_and_n(model):
  plan = make_plan(_config(model, controls__population_sizes=(9, 3, 2, 1, 4)))
  assert plan.controls.population_sizes == (2, 3)


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
  config = load_config(f'{ROOT / "configs" / "llm.py"}:{arg}')
  config.model.name = model
  plan = make_plan(config)
  assert plan.sizes[-1] <= plan.population.size
  assert plan.task.name == 'arithmetic'


def test_a_variant_that_does_not_exist_is_named():
  with pytest.raises(ArgumentError, match=r'configs/llm\.py:fast'):
    load_config(f'{ROOT / "configs" / "llm.py"}:fast')


# Low rank, mirror images, and a model on several devices.


def test_low_rank_members_answer_alike_on_any_number_of_devices(
  model, tmp_path
):
  config = _config(
    model,
    population__family='low_rank:2',
    population__antithetic=True,
    run__members_per_device=2,
    controls__temperatures=(),
    controls__prompts=False,
  )
  one, summary = _run(config, tmp_path / 'one')
  assert one._members._perturber.in_axes['params']['embed']['embedding'] is None
  assert summary['recipe']['noise']['family'] == 'low_rank:2'
  assert summary['recipe']['noise']['antithetic'] is True
  _run(config, tmp_path / 'eight', devices=8)
  _assert_same_rows(tmp_path / 'eight', tmp_path / 'one')
  lines = [
    json.loads(line)
    for line in (tmp_path / 'one' / 'metrics.jsonl').read_text().splitlines()
  ]
  sigmas = {line['member']: line['sigma'] for line in lines}
  assert sigmas == {BASE: 0, 0: 0.05, 1: 0.05, 2: 0.2, 3: 0.2}
  rewards = _view(tmp_path / 'one').reward[:, :, 0]
  assert len({row.tobytes() for row in rewards}) > 2


@pytest.mark.parametrize(
  'family', ['gaussian', pytest.param('low_rank', marks=pytest.mark.slow)]
)
def test_devices_that_share_a_model_go_on_with_the_same_ledger(
  model, tmp_path, family
):
  settings = {
    'population__family': family,
    'controls__temperatures': (),
    'controls__prompts': False,
  }
  _run(_config(model, **settings), tmp_path / 'one')
  shared = _config(model, run__model_axis=2, **settings)
  job, _ = _run(shared, tmp_path / 'shared', devices=8)
  assert dict(job._members._mesh.shape) == {'members': 4, 'model': 2}
  one, other = (_view(tmp_path / x) for x in ('one', 'shared'))
  np.testing.assert_array_equal(one.members, other.members)
  # Answers are of a digit or three tokens; those of near ties may differ.
  assert (one.num_tokens == other.num_tokens).mean() > 0.98
  assert (one.reward == other.reward).mean() > 0.98
  # The mesh is not in the recipe: another one goes on where this one was.
  job, _ = _run(shared, tmp_path / 'one', devices=2)
  assert job._work.facts()['answers'] == 0


def test_a_model_axis_that_does_not_fit_the_devices(model, tmp_path):
  for count, message in ((3, 'model axis = 3 does not divide 8'), (0, '= 0')):
    with pytest.raises(ConfigError, match=f'run.model_axis.*{message}'):
      _run(_config(model, run__model_axis=count), tmp_path, devices=8)
