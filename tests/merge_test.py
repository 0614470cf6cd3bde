# SPDX-License-Identifier: Apache-2.0
"""Slices of a job array, scored apart, are one run once they are merged."""

import io
import itertools
import json
import pathlib
import shutil
import subprocess
import sys

import made
import pytest
import same
from rich.console import Console

from thicket import evaluation, run
from thicket.blocks import BASE
from thicket.job_array import Shard
from thicket.ledger import Ledger, RecipeMismatch, __main__
from thicket.plan import ConfigError

ROOT = pathlib.Path(__file__).parents[1]
N = 7  # is cut into 3, 4 and into 2, 2, 3


@pytest.fixture(autouse=True)
def _one_device():
  with made.devices(1):
    yield


def _config(model, **changes):
  settings = {
    'model__name': model,
    'task__prompt_template': 'Q {question}=',
    'data__num_selection': 32,
    'data__num_validation': 16,
    'data__num_test': 16,
    'population__size': N,
    'population__sigmas': (0.05, 0.2),
    'ensemble__sizes': (1, 2),
    'selection__rerank': 3,
    'controls__validation': True,
    'decode__max_new_tokens': 3,
    'decode__rows': 16,
    'run__members_per_range': 2,
    'run__keep_texts': 'all',
  } | changes
  return made.config(**settings)


def _run(config, workdir, shard=None):
  """A finished job, what it returned and what it printed."""
  out = io.StringIO()
  console = Console(file=out, width=80)
  shard = shard and Shard.parse(shard)
  job = run.Run(config, str(workdir), console, shard)
  return job, job.finish(), out.getvalue()


def _merge(workdir, capsys):
  """The exit code, the lines that were printed and the complaint."""
  capsys.readouterr()
  code = __main__.main(['merge', f'--workdir={workdir}'])
  said = capsys.readouterr()
  return code, said.out.splitlines(), said.err


def _ledger(workdir):
  """That of the search."""
  (folder,) = (workdir / 'ledger').glob('greedy-*')
  return Ledger.read(folder)


@pytest.fixture(scope='module')
def whole(model, tmp_path_factory):
  """The folder and the summary of a run that nobody cut."""
  folder = tmp_path_factory.mktemp('whole') / 'work'
  with made.devices(1):
    _, summary, _ = _run(_config(model), folder)
  return folder, summary


@pytest.fixture(scope='module')
def slices(model, tmp_path_factory):
  """A folder with both of two slices, and a third of three."""
  folder = tmp_path_factory.mktemp('slices') / 'work'
  with made.devices(1):
    for shard in ('1/2', '0/2', '1/3'):
      _run(_config(model), folder, shard)
  return folder


def _some(slices, to, *names):
  """A folder with the plan and some of the slices."""
  to.mkdir()
  shutil.copy(slices / 'plan.json', to)
  for name in names:
    shutil.copytree(slices / 'shards' / name, to / 'shards' / name)
  return to


# Slices.


@pytest.mark.parametrize(('size', 'count'), [(7, 3), (16, 16), (100, 7)])
def test_slices_cover_the_population_once(size, count):
  each = [Shard(i, count).units(size) for i in range(count)]
  assert {units.pop(0) for units in each} == {BASE}
  assert [*itertools.chain(*each)] == [*range(size)]
  assert max(map(len, each)) - min(map(len, each)) <= 1


def test_a_slice_is_named():
  assert Shard.parse('3/16') == Shard(3, 16)
  assert Shard(3, 16).folder == '03-of-16'
  assert Shard.parse('03-of-16') == Shard(3, 16)
  assert str(Shard(0, 1000)) == '0/1000'
  assert Shard(7, 1000).folder == '0007-of-1000'


@pytest.mark.parametrize(
  'text',
  ['16/16', '-1/16', '3', '3/', '0/0', 'a/b', '1/2/3', '\u0661/\u0662', '1 /2'],
)
def test_no_slice_is_one_line(text):
  with pytest.raises(ConfigError, match=r'give i/n with 0 <= i < n') as caught:
    Shard.parse(text)
  assert f'--shard={text}: ' in str(caught.value)


def test_a_race_cannot_be_sliced(model, tmp_path):
  config = _config(model, selection__race=True)
  with pytest.raises(ConfigError, match=r'selection\.race = True.*--shard=0/2'):
    run.Run(config, str(tmp_path / 'work'), shard=Shard(0, 2))
  assert not (tmp_path / 'work').exists()


def test_there_are_no_more_slices_than_members(model, tmp_path):
  with pytest.raises(ConfigError, match=r'8 slices of population.size = 7'):
    run.Run(_config(model), str(tmp_path / 'work'), shard=Shard(0, 8))


# Merging.


def test_two_slices_and_a_merge_are_one_run(
  model, whole, slices, tmp_path, capsys
):
  folder, expected = whole
  work = _some(slices, tmp_path / 'work', '00-of-02', '01-of-02')
  code, lines, _ = _merge(work, capsys)
  answers = (N + 1) * (32 + 16)
  assert (code, lines) == (
    0,
    [
      f'merged    2 slices, {answers} new answers',
      'complete  the command of the run, without --shard, goes on',
    ],
  )
  _, summary, text = _run(_config(model), work)
  assert f'{N} members on selection: {N} of {N} stored' in text
  assert f'{N} members on validation: {N + 1} of {N + 1} stored' in text
  total = expected['work']['this_run']['answers']
  assert summary['work']['this_run']['answers'] == total - answers
  assert summary['work']['stored'] == expected['work']['stored']
  for part in expected.keys() - {'work'}:
    assert summary[part] == expected[part], part
  ours, theirs = same.views(work), same.views(folder)
  assert ours.keys() == theirs.keys()
  for where, view in theirs.items():
    same.assert_same(ours[where], view)


def test_a_second_merge_adds_nothing(slices, tmp_path, capsys):
  work = _some(slices, tmp_path / 'work', '00-of-02', '01-of-02')
  _merge(work, capsys)
  before = sorted(work.rglob('*'))
  code, lines, _ = _merge(work, capsys)
  assert (code, lines[0]) == (0, 'merged    2 slices, 0 new answers')
  assert sorted(work.rglob('*')) == before


def test_what_is_missing_is_named_and_the_rest_is_merged(
  slices, tmp_path, capsys
):
  work = _some(slices, tmp_path / 'work', '01-of-03')
  code, lines, _ = _merge(work, capsys)
  assert code == 2
  assert lines == [
    'merged    1 slices, 144 new answers',
    'missing   selection: members 0-1, 64 of 64 answers; --shard=0/3 makes '
    'them',
    'missing   selection: members 4-6, 96 of 96 answers; --shard=2/3 makes '
    'them',
    'missing   validation: members 0-1, 32 of 32 answers; --shard=0/3 makes '
    'them',
    'missing   validation: members 4-6, 48 of 48 answers; --shard=2/3 makes '
    'them',
  ]
  assert _ledger(work).view('selection').members.tolist() == [BASE, 2, 3]


def test_a_part_of_the_rows_is_missing(model, slices, tmp_path, capsys):
  work = _some(slices, tmp_path / 'work', '00-of-02', '01-of-02')
  assert _merge(work, capsys)[0] == 0
  config = _config(model, data__num_selection=40)
  _, _, text = _run(config, work, '1/2')
  assert 'slice 1/2, 5 members on validation: 5 of 5 merged already' in text
  code, lines, _ = _merge(work, capsys)
  assert code == 2
  # Of the slice that has answered the others, too, nothing is left to do.
  assert lines == [
    f'merged    2 slices, {5 * 8} new answers',
    f'missing   selection: members 0-2, {3 * 8} of {3 * 40} answers; '
    '--shard=0/2 makes them',
  ]


def test_a_larger_population_scores_what_is_new(
  model, slices, tmp_path, capsys
):
  work = _some(slices, tmp_path / 'work', '00-of-02', '01-of-02')
  _merge(work, capsys)
  _, told, text = _run(_config(model, population__size=10), work, '1/2')
  assert 'slice 1/2, 6 members on selection: 2 of 6 merged already' in text
  assert told['work']['this_run']['answers'] == 3 * (32 + 16)
  assert _merge(work, capsys)[0] == 0


def test_a_slice_after_a_merge_is_batched_by_the_base(
  model, slices, tmp_path, capsys, monkeypatch
):
  work = _some(slices, tmp_path / 'work', '00-of-02', '01-of-02')
  _merge(work, capsys)
  batches, known = evaluation.Questions.batches, []

  def spied(self, which=None, answers=None):
    known.append(answers is not None)
    return batches(self, which, answers)

  monkeypatch.setattr(evaluation.Questions, 'batches', spied)
  larger = _config(model, population__size=10)
  _, told, text = _run(larger, work, '2/3')
  # Of each split the base, by nobody's answers, then three members by its own.
  assert known == [False, True] * 2
  assert 'slice 2/3, 5 members on selection: 1 of 5 merged already' in text
  assert told['work']['this_run']['answers'] == 4 * (32 + 16)
  code, lines, _ = _merge(work, capsys)
  assert (code, lines[0]) == (0, f'merged    3 slices, {3 * 48} new answers')
  _, told, text = _run(larger, work, '1/3')  # all of it
  assert 'slice 1/3, 4 members on selection: 4 of 4 merged already' in text
  assert told['work']['this_run']['answers'] == 0


def test_overlaps_are_named_and_kept_once(slices, tmp_path, capsys):
  work = _some(slices, tmp_path / 'work', '00-of-02', '01-of-02', '01-of-03')
  code, lines, _ = _merge(work, capsys)
  assert code == 0
  assert lines[0] == f'merged    3 slices, {(N + 1) * 48} new answers'
  assert lines[1:-1] == [
    f'overlap   {split}: members {member} in {name} and 01-of-03, with equal '
    'values, kept once'
    for split in ('selection', 'validation')
    for member, name in ((2, '00-of-02'), (3, '01-of-02'))
  ]


def _edited(work, name, member, row):
  """Puts another reward for one row of a slice; returns its row id."""
  (folder,) = (work / 'shards' / name).glob('greedy-*')
  ledger = Ledger.read(folder)
  view = ledger.view('selection')
  at = view.members.tolist().index(member), row, 0
  view.reward[at] += 1
  shutil.rmtree(folder / 'selection')
  Ledger.open(folder, ledger.recipe).append('selection', view)
  return view.rows[row]


def test_two_values_for_one_row_are_refused(slices, tmp_path, capsys):
  work = _some(slices, tmp_path / 'work', '00-of-02', '01-of-02', '01-of-03')
  row = _edited(work, '01-of-02', 3, 5)
  code, lines, said = _merge(work, capsys)
  assert (code, lines, said.count('\n')) == (2, [], 1)
  assert said.startswith(
    f'thicket: 01-of-02 and 01-of-03: split selection, member 3, row {row}, '
    'draw 0: reward is held as '
  )
  assert _ledger(work).splits == ()


@pytest.mark.parametrize('is_merged', [False, True])
def test_the_base_may_answer_otherwise_in_one_slice(
  is_merged, slices, tmp_path, capsys
):
  work = _some(slices, tmp_path / 'work', '00-of-02', '01-of-02')
  if is_merged:
    _merge(work, capsys)
  (folder,) = (work / 'shards' / '00-of-02').glob('greedy-*')
  want = Ledger.read(folder).view('selection', [BASE])
  # Of what is merged it is the first that differs, else the last.
  name = '00-of-02' if is_merged else '01-of-02'
  _edited(work, name, BASE, 5)
  code, lines, _ = _merge(work, capsys)
  assert (code, len(lines)) == (0, 3)
  assert lines[1].startswith(f'base      selection: other answers in {name}, ')
  merged = _ledger(work)
  same.assert_same(merged.view('selection', [BASE]), want)
  assert merged.view('selection').members.tolist() == [BASE, *range(N)]
  assert merged.view('selection').seen.all()
  again = _merge(work, capsys)
  assert again[1] == ['merged    2 slices, 0 new answers', *lines[1:]]


def test_a_value_other_than_the_merged_is_refused(slices, tmp_path, capsys):
  work = _some(slices, tmp_path / 'work', '00-of-02', '01-of-02')
  _merge(work, capsys)
  before = _ledger(work).view('selection')
  row = _edited(work, '00-of-02', 1, 0)
  code, _, said = _merge(work, capsys)
  assert code == 2
  assert (
    f'the ledger and 00-of-02: split selection, member 1, row {row}' in said
  )
  same.assert_same(_ledger(work).view('selection'), before)


@pytest.mark.parametrize(
  ('section', 'field', 'value', 'folder'),
  [
    ('noise', 'sigmas', [0.05, 0.1], 'greedy-0'),
    ('task', 'prompt_template', 'another', 'greedy-1'),
  ],
)
def test_another_recipe_is_refused_by_its_field(
  section, field, value, folder, slices, tmp_path, capsys
):
  work = _some(slices, tmp_path / 'work', '00-of-02', '01-of-02')
  (part,) = (work / 'shards' / '01-of-02').glob('greedy-*')
  recipe = json.loads((part / 'recipe.json').read_text(encoding='utf-8'))
  recipe[section][field] = value
  (part / 'recipe.json').write_text(json.dumps(recipe), encoding='utf-8')
  part.rename(part.with_name(folder))
  code, lines, said = _merge(work, capsys)
  assert (code, lines, said.count('\n')) == (2, [], 1)
  assert f'01-of-02/{folder}: another recipe than 00-of-02' in said
  assert f'{section}.{field}: stored ' in said
  assert f'asked {value!r}' in said
  assert not (work / 'ledger').exists()


def test_a_slice_of_another_recipe_does_not_start(
  model, slices, tmp_path, capsys
):
  work = _some(slices, tmp_path / 'work', '00-of-02')
  _merge(work, capsys)
  config = _config(model, population__sigmas=(0.1,))
  with pytest.raises(RecipeMismatch, match=r'noise\.sigmas'):
    run.Run(config, str(work), shard=Shard(1, 2))
  assert not (work / 'shards' / '01-of-02').exists()


def test_what_is_no_slice_is_named(slices, tmp_path, capsys):
  work = _some(slices, tmp_path / 'work')
  code, _, said = _merge(work, capsys)
  assert (code, said.count('\n')) == (2, 1)
  assert 'no slice here' in said
  work = _some(slices, tmp_path / 'more', '00-of-02')
  # A job killed before it has written a recipe is no slice yet.
  (work / 'shards' / '01-of-02' / 'greedy-0').mkdir(parents=True)
  assert _merge(work, capsys)[1][0].startswith('merged    1 slices')
  (work / 'shards' / 'backup').mkdir()
  code, _, said = _merge(work, capsys)
  assert code == 2
  assert 'backup: not the name of a slice' in said


def test_ledgers_are_listed(slices, tmp_path, capsys):
  work = _some(slices, tmp_path / 'work', '00-of-02')
  _merge(work, capsys)
  assert __main__.main(['list', f'--workdir={work}']) == 0
  name = _ledger(work).folder.name
  assert capsys.readouterr().out.splitlines() == [
    f'{where}/{name}  {split}: base, members 0-2; {rows} rows, 1 draws, '
    f'{4 * rows} answers'
    for where in ('ledger', 'shards/00-of-02')
    for split, rows in (('selection', 32), ('validation', 16))
  ]
  assert __main__.main(['list', f'--workdir={tmp_path}']) == 2
  assert 'no ledger here' in capsys.readouterr().err


# The command line.


def _command(model, workdir, *flags):
  return [
    sys.executable,
    '-m',
    'thicket.main',
    '--config=configs/llm.py:quick',
    f'--config.model.name={model}',
    '--config.task.prompt_template=Q {question}=',
    '--config.population.sigmas=(0.05,0.2)',
    f'--workdir={workdir}',
    *flags,
  ]


def test_jobs_start_at_once_and_say_how_to_merge(model, tmp_path):
  work = tmp_path / 'a folder'
  jobs = [
    subprocess.Popen(
      _command(model, work, f'--shard={i}/2'),
      cwd=ROOT,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for i in range(2)
  ]
  for i, job in enumerate(jobs):
    out, errors = job.communicate(timeout=300)
    assert job.returncode == 0, errors
    lines = dict(x.split(maxsplit=1) for x in out.splitlines() if ' ' in x)
    assert pathlib.Path(lines['slice']).name == f'0{i}-of-02'
    assert f'--shard={i}/2' in lines['resume']
    assert 'enlarge' not in lines
    assert 'report' not in lines
  merge = lines['merge'].replace('python', sys.executable, 1)
  done = subprocess.run(
    merge, cwd=ROOT, shell=True, capture_output=True, text=True, check=True
  )
  assert 'complete' in done.stdout
  assert not list(work.rglob('*.tmp'))
  assert not (work / 'summary.json').exists()
  json.loads((work / 'plan.json').read_text(encoding='utf-8'))


@pytest.mark.parametrize(
  ('flags', 'said'),
  [
    (['--shard=4/4'], '--shard=4/4: give i/n with 0 <= i < n'),
    (
      ['--config=configs/vision.py', '--shard=0/4'],
      '--shard=0/4: only runs on text are sliced',
    ),
  ],
)
def test_a_bad_slice_is_one_line(flags, said):
  config = [] if len(flags) > 1 else ['--config=configs/llm.py']
  done = subprocess.run(
    [sys.executable, '-m', 'thicket.main', *config, *flags],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 2
  assert f'thicket: {said}' in done.stderr
  assert 'Traceback' not in done.stderr
