# SPDX-License-Identifier: Apache-2.0
"""Stored ensembles of tiny models, asked again and asked new things."""

import contextlib
import functools
import io
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import made
import numpy as np
import pytest
import tiny_gguf
from rich.console import Console

from thicket import engine, fit, panel, predict, run, tasks, voters
from thicket.arguments import load_config
from thicket.ledger import LedgerError, RecipeMismatch
from thicket.plan import ConfigError
from thicket.predict import Predictor
from thicket.stored import NotStored, Stored, save_command

ROOT = pathlib.Path(__file__).parents[1]
N, K, ROWS = 4, 3, 16
SIGMAS = (0.05, 0.2)


def _config(model, **changes):
  """A search without controls."""
  settings = {
    'model__name': model,
    'task__prompt_template': 'Q {question}=',
    'data__num_selection': ROWS,
    'data__num_test': ROWS,
    'population__size': N,
    'population__sigmas': SIGMAS,
    'ensemble__sizes': (1, K),
    'controls__temperatures': (),
    'controls__prompts': False,
    'controls__unselected': False,
    'controls__same_sigma': False,
    'decode__max_new_tokens': 3,
    'decode__rows': ROWS,
    'run__keep_texts': 'all',
  } | changes
  return made.config(**settings)


def _run(config, workdir, devices=1):
  with made.devices(devices):
    run.Run(config, str(workdir), Console(file=io.StringIO())).finish()
  return workdir


@pytest.fixture(scope='module')
def workdir(model, tmp_path_factory):
  """The folder of a finished run on one device."""
  return _run(_config(model), tmp_path_factory.mktemp('run') / 'work')


@pytest.fixture(scope='module')
def predictor(workdir):
  """It holds the model; to be asked with one device."""
  return Predictor(workdir)


def _ask(predictor, rows):
  with made.devices(1):
    return list(predictor(rows))


def _stored(workdir, sizes):
  """The panel of the test rows in the ledger, and its votes."""
  stored = Stored(workdir)
  examples = stored.plan.splits.test
  ranked = Predictor(workdir).members
  block = stored.get(stored.plan.greedy, 'test', ranked)
  said = panel.of_members(stored.plan.task, examples, block, ranked)
  return examples, ranked, said, said.votes(sizes)


def _assert_as_stored(found, workdir, top):
  """Every word and every vote is that of the run's own test."""
  examples, ranked, said, (vote,) = _stored(workdir, [top])
  assert len(found) == len(examples)
  for row, one in enumerate(found):
    assert one.error is None
    assert [x.member for x in one.members] == list(ranked[:top])
    assert [x.response for x in one.members] == [
      said.texts[i][row] for i in range(top)
    ]
    assert [x.answer for x in one.members] == [
      said.answers[i][row] for i in range(top)
    ]
    speaker = vote.speaker[row]
    won = said.answers[speaker][row] if speaker >= 0 else None
    assert one.answer == won
    assert one.votes == vote.count[row] / top
    assert one.abstained == (said.classes[:top, row] < 0).sum()


def _questions(workdir):
  return [
    {'question': example.question}
    for example in Stored(workdir).plan.splits.test
  ]


# The same members say the same.


def test_the_test_is_repeated_to_the_word(predictor, workdir):
  found = _ask(predictor, _questions(workdir))
  _assert_as_stored(found, workdir, K)
  # It is worth repeating: some agree, some do not, some abstain.
  assert len({one.votes for one in found}) > 1
  assert any(one.abstained for one in found)
  assert len({one.answer for one in found}) > 5


@pytest.mark.parametrize('top', [1, 2])
def test_fewer_may_vote(top, workdir):
  predictor = Predictor(workdir, top=top)
  _assert_as_stored(_ask(predictor, _questions(workdir)), workdir, top)


def test_a_part_is_answered_as_the_whole(predictor, workdir):
  rows = _questions(workdir)
  assert _ask(predictor, rows[3:8]) == _ask(predictor, rows)[3:8]


def test_all_members_may_answer_at_once(predictor, workdir):
  rows = _questions(workdir)
  other = Predictor(workdir, members_per_step='auto')
  found = _ask(other, rows)
  assert other._voters._loop.per_device['asked'] == K
  assert predictor._voters._loop.per_device['asked'] == 1
  # Products of another shape: two tokens within a rounding may change places.
  said = lambda some: [x.response for one in some for x in one.members]
  pairs = zip(said(found), said(_ask(predictor, rows)), strict=True)
  assert sum(a != b for a, b in pairs) <= 1


@pytest.mark.parametrize(
  ('changes', 'devices'),
  [
    ({'population__family': 'low_rank'}, 1),
    ({'population__antithetic': True, 'population__scale': 'relative'}, 1),
    ({'run__model_axis': 2}, 4),
    (
      {
        'model__dtype': 'bfloat16',
        'population__only': 'self_attn',
        'selection__race': True,
      },
      1,
    ),
  ],
  ids=lambda x: ','.join(x) if isinstance(x, dict) else str(x),
)
def test_members_of_every_kind_answer(changes, devices, model, tmp_path):
  workdir = _run(_config(model, **changes), tmp_path / 'work', devices)
  with made.devices(devices):
    found = list(Predictor(workdir)(_questions(workdir)))
  _assert_as_stored(found, workdir, K)


def test_labels_are_scored(model, tmp_path):
  rows = [
    {'text': f'{word} {i}', 'label': label}
    for i in range(40)
    for word, label in (('good', 'positive'), ('bad', 'negative'))
  ]
  path = tmp_path / 'rows.jsonl'
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  config = load_config(f'{ROOT / "configs" / "classify.py"}:quick')
  config.model.name, config.task.path = model, str(path)
  config.task.prompt_template = 'Q {text}='
  config.data.num_selection = config.data.num_test = ROWS
  config.decode.rows, config.run.keep_texts = ROWS, 'all'
  config.population.size, config.population.sigmas = N, SIGMAS
  config.ensemble.sizes = (1, K)
  config.controls.temperatures, config.controls.prompts = (), False
  workdir = _run(config, tmp_path / 'work')
  examples = Stored(workdir).plan.splits.test
  predictor = Predictor(workdir)
  found = _ask(predictor, [{'text': x.question} for x in examples])
  _assert_as_stored(found, workdir, K)
  # The label is nobody's business, and neither is the template.
  texts = [{'text': x.question, 'label': 'no such'} for x in examples]
  assert _ask(predictor, texts) == found
  assert _ask(predictor, [f'Q {x.question}=' for x in examples]) == found


def test_what_its_question_shows_to_be_no_answer_abstains():
  task = tasks.make('countdown')
  example = task.ask({'numbers': [44, 19, 35], 'target': 98}, 0)
  said = ['1+2', '44+19+35', None, '19+44+35', '1+2']
  classes = task.group([said[0], said[1], said[3]], example)
  assert classes == [-1, 0, 0]
  column = np.array([[-1], [0], [-1], [0], [-1]], np.int32)
  nothing = np.zeros((5, 1), bool)
  found = panel.Panel(
    column, column, nothing, nothing, nothing, column,
    [[f'text {i}'] for i in range(5)], [[x] for x in said],
  )  # fmt: skip
  (vote,) = found.votes([5])
  one = voters._prediction((7, 3, 5, 9, 2), found, vote, 0)
  assert one == voters.Prediction(
    answer='44+19+35',
    votes=0.4,
    abstained=3,
    members=(
      voters.Said(7, None, 'text 0'),
      voters.Said(3, '44+19+35', 'text 1'),
      voters.Said(5, None, 'text 2'),
      voters.Said(9, '19+44+35', 'text 3'),
      voters.Said(2, None, 'text 4'),
    ),
  )


# New prompts.


def test_a_prompt_is_the_whole_text_of_the_user(predictor, workdir):
  rows = _questions(workdir)
  asked = [f'Q {row["question"]}=' for row in rows]
  found = _ask(predictor, rows)
  assert _ask(predictor, asked) == found
  assert _ask(predictor, [{'prompt': x, 'id': 'a'} for x in asked]) == found


def test_prompts_that_begin_otherwise_are_answered_by_the_model(
  predictor, workdir
):
  # Without the run's prefix; what a batch of it says, the engine's tests say.
  short, long = '7+', 'ab 12 ' * 15
  one = _ask(predictor, [short]) + _ask(predictor, [long])
  assert all(len(x.members) == K and x.error is None for x in one)
  both = _ask(predictor, [long, short, long])
  assert both == [one[1], one[0], one[1]]


def test_long_prompts_leave_the_others_as_they_are(
  predictor, workdir, monkeypatch
):
  answer_all, batches = engine.answer_all, []

  def spied(*args):
    batches.extend(args[-1])
    return answer_all(*args)

  monkeypatch.setattr(engine, 'answer_all', spied)
  rows = _questions(workdir)
  found = _ask(predictor, [*['Q' + ' 1' * 40] * 3, *rows, *rows[:5]])
  _assert_as_stored(found[3:-5], workdir, K)
  assert found[-5:] == found[3:8]
  # Those of a second batch of short ones are not padded to the long ones.
  sizes = [(x.tokens.shape, int(x.live.sum())) for x in batches]
  assert all(shape[0] == ROWS for shape, _ in sizes)
  assert [live for _, live in sizes] == [ROWS, 5, 3]
  assert sizes[2][0][1] > 2 * max(shape[1] for shape, _ in sizes[:2])


def test_prompts_that_memory_does_not_hold_are_told(workdir, monkeypatch):
  predictor = Predictor(workdir)
  short, long = '7+', 'Q' + ' 1' * 45
  with made.devices(1):
    held = predictor._voters
  asked = held.ask(long, 0)
  assert asked.rows == ROWS
  some = held._needs(ROWS // 4, [asked.size]).total(1)
  less = held._needs(1, [asked.size]).total(1) - 1
  for room, rows in ((some, ROWS // 4), (less, None)):
    monkeypatch.setattr(held, '_free', room / (1 - fit.MARGIN) + 1)
    held._fitting.clear()
    assert held.ask(short, 0).rows == ROWS
    found = _ask(predictor, [long, short])
    assert found[1].error is None
    if rows:
      assert held.ask(long, 0).rows == rows
      assert found[0] == _ask(predictor, [long])[0]
      assert found[0].error is None
    else:
      assert found[0].error.startswith('memory does not hold a prompt of ')


def test_rows_are_read_chunk_by_chunk_and_compiled_once(workdir):
  predictor, taken = Predictor(workdir), []
  size = predictor.chunk_rows
  assert size == 4 * ROWS

  def rows():
    for i in range(2 * size + 3):
      taken.append(i)
      yield {'question': f'{10 + i % 80} + 11'}

  with made.devices(1):
    found = predictor(rows())
    assert taken == []
    next(found)
    assert len(taken) == size
    programs = set(predictor._voters._machine.engine._programs)
    assert sum(1 for _ in found) == 2 * size + 2
  assert set(predictor._voters._machine.engine._programs) == programs


@pytest.mark.parametrize(
  ('row', 'said'),
  [
    ('', 'the prompt is empty'),
    ({'prompt': ' \n'}, 'the prompt is empty'),
    ({'prompt': 3}, "field 'prompt' is 3, not text"),
    ({}, "no row of arithmetic: field 'question' is None, not text"),
    ({'id': 1}, 'a prompt of your own is {"prompt": ...} without other fields'),
    ({'prompt': 'a', 'source': 'b'}, 'no row of arithmetic: '),
    ({'question': ['a']}, "no row of arithmetic: field 'question' is ['a'], "),
    ({'question': ' '}, 'no row of arithmetic: the question is empty'),
    (['a'], 'a list, not an object'),
    (None, 'a NoneType, not an object'),
    ('a\0b', 'the prompt holds a NUL character'),
    ({'question': 'a\0b'}, 'the prompt holds a NUL character'),
    ('\ud800', "'utf-8' codec can't encode"),
    ('1' * 200, '3 new ones exceed the context of 128; shorten the prompt'),
    ('x' * 10_000_000, '3 new ones exceed the context of 128; shorten the p'),
    (' ' * 10_000_000 + 'x', 'shorten'),
    ({'question': {'x': 'y' * 9999}}, 'a prompt of your own is {"prompt"'),
    ({'question': functools.reduce(lambda x, _: [x], range(9**4), 0)}, 'recur'),
  ],
  ids=lambda x: x[:30] if isinstance(x, str) else 'row',
)
def test_a_row_that_cannot_be_answered_is_told(row, said, predictor):
  first, bad, last = _ask(predictor, ['7+', row, '7+'])
  assert first == last
  assert first.error is None
  assert said in bad.error
  assert '\n' not in bad.error
  assert len(bad.error) <= 300
  assert (bad.answer, bad.votes, bad.abstained, bad.members) == (
    None, 0.0, 0, (),
  )  # fmt: skip


# What is refused.


def test_a_search_that_is_not_finished_names_the_command(workdir, tmp_path):
  folder = pathlib.Path(shutil.copytree(workdir, tmp_path / 'early'))
  (ledger,) = (folder / 'ledger').iterdir()
  shutil.rmtree(ledger / 'selection')
  with pytest.raises(NotStored) as caught:
    Predictor(folder)
  assert str(caught.value).startswith(
    f'{folder}: its search is not finished: base on selection: '
  )
  save_command(folder, 'python -m thicket.main --config=a.py')
  with pytest.raises(
    NotStored, match=r'\n  python -m thicket\.main --config=a'
  ):
    Predictor(folder)
  shutil.rmtree(ledger)
  with pytest.raises(NotStored, match='nothing has been answered'):
    Predictor(folder)


def test_what_makes_no_sense_is_refused_before_a_model_loads(
  workdir, tmp_path, monkeypatch
):
  monkeypatch.setattr('thicket.machine.load', None)
  for top in (0, -1, K + 1):
    with pytest.raises(ConfigError, match=rf'top = {top}: .* ask for 1\.\.{K}'):
      Predictor(workdir, top=top)
  for number in ('0', '1.5', 'all', -1, 0):
    with pytest.raises(ConfigError, match='members_per_step'):
      Predictor(workdir, members_per_step=number)
  with pytest.raises(LedgerError, match='no run here'):
    Predictor(tmp_path)


def test_other_weights_are_refused(model, tmp_path):
  path = shutil.copy(model, tmp_path / 'tiny.gguf')
  workdir = _run(_config(str(path)), tmp_path / 'work')
  tiny_gguf.write_answering(path, seed=2)
  with pytest.raises(
    RecipeMismatch, match=r'another recipe: model\.sha256: st'
  ):
    _ask(Predictor(workdir), ['7+'])


def test_another_processor_is_told_and_answers(workdir, monkeypatch):
  monkeypatch.setattr('thicket.prng.arithmetic', lambda: 'tpu:v9')
  said = []
  warning = lambda *args: said.append(args[0] % args[1:])
  monkeypatch.setattr('thicket.voters.logging.warning', warning)
  _assert_as_stored(_ask(Predictor(workdir), _questions(workdir)), workdir, K)
  (text,) = said
  assert 'noise.arithmetic: stored ' in text


# The command.


def _main(*argv):
  """The exit status and what is said on stderr."""
  err = io.StringIO()
  with made.devices(1), contextlib.redirect_stderr(err):
    status = predict.main([str(x) for x in argv])
  return status, err.getvalue()


def _input(path, workdir, number=150):
  """A file of more than two chunks: rows, prompts, blank and bad lines."""
  lines = []
  for i in range(number):
    lines.append(json.dumps({'question': f'{i % 40} + {i % 7 + 2}', 'id': i}))
    if i % 10 == 3:
      lines.append('{"prompt": "Q 1')
    if i % 10 == 6:
      lines += ['', json.dumps({'prompt': f'ab {i} ' * (1 + i % 5)})]
  path.write_text('\n'.join(lines) + '\n')
  return path


@pytest.fixture(scope='module')
def whole(workdir, tmp_path_factory):
  """A file of rows, and its answers of one go."""
  folder = tmp_path_factory.mktemp('whole')
  rows = _input(folder / 'rows.jsonl', workdir)
  out = folder / 'answers.jsonl'
  status, said = _main(
    f'--workdir={workdir}', f'--input={rows}', f'--output={out}'
  )
  assert status == 1
  assert f'165 lines answered by {K} members' in said
  assert '15 lines failed' in said
  return rows, out


def _snapshot(folder):
  return {path: path.stat().st_mtime_ns for path in sorted(folder.rglob('*'))}


def test_lines_are_answered_in_order(whole, workdir, predictor):
  rows, out = whole
  asked = {}
  for number, text in enumerate(rows.read_text().split('\n'), start=1):
    with contextlib.suppress(ValueError):
      asked[number] = json.loads(text)
  answers = [json.loads(x) for x in out.read_text().splitlines()]
  assert len(answers) == 180
  numbers = [x['line'] for x in answers]
  assert numbers == sorted(set(numbers))
  good = [x for x in answers if 'error' not in x]
  assert [x['line'] for x in good] == list(asked)
  bad = [x for x in answers if 'error' in x]
  assert all(x['error'].startswith('not JSON: ') for x in bad)
  assert all(set(x) == {'line', 'error', 'input', 'ensemble'} for x in bad)
  said = [asked[x['line']].get('id') for x in good]
  assert [x.get('id') for x in good] == said
  assert {x['ensemble'] for x in answers} == {predictor.ensemble}
  # And as the library answers them.
  found = _ask(predictor, asked.values())
  for line, one in zip(good, found, strict=True):
    assert line['answer'] == one.answer
    assert line['votes'] == one.votes
    assert line['abstained'] == one.abstained
    assert line['members'] == [
      {'member': x.member, 'answer': x.answer} for x in one.members
    ]


def test_responses_are_added_on_demand(workdir, tmp_path):
  rows, out = tmp_path / 'rows', tmp_path / 'out'
  rows.write_text('{"question": "3 + 4"}\n')
  argv = [f'--workdir={workdir}', f'--input={rows}', f'--output={out}']
  assert _main(*argv, '--responses', '--top=2') == (
    0, 'thicket: 1 lines answered by 2 members\n',
  )  # fmt: skip
  (line,) = map(json.loads, out.read_text().splitlines())
  assert [set(x) for x in line['members']] == [
    {'member', 'answer', 'response'}
  ] * 2
  # Other answers are not added to these.
  for other, said in (
    (['--top=2'], 'was written with --responses'),
    (['--responses'], 'is of ensemble '),
  ):
    status, err = _main(*argv, *other)
    assert status == 2
    assert said in err
    assert err.startswith('thicket: ')
    assert err.count('\n') == 1


def test_nothing_else_is_written(whole, workdir, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  rows, _ = whole
  before = _snapshot(workdir), _snapshot(rows.parent)
  assert (
    _main(f'--workdir={workdir}', f'--input={rows}', '--output=out')[0] == 1
  )
  assert (_snapshot(workdir), _snapshot(rows.parent)) == before
  assert os.listdir(tmp_path) == ['out']
  assert (tmp_path / 'out').read_bytes() == whole[1].read_bytes()


def test_an_interrupted_file_is_gone_on_with(whole, workdir, tmp_path):
  rows, out = whole
  data = out.read_bytes()
  lines = data.splitlines(keepends=True)
  mine = tmp_path / 'out.jsonl'
  argv = [f'--workdir={workdir}', f'--input={rows}', f'--output={mine}']
  # At a chunk's end, inside of one, and in the middle of a line.
  for held, torn in ((64, 0), (70, 0), (100, 20), (0, 1), (179, 9)):
    mine.write_bytes(b''.join(lines[:held]) + lines[held][:torn])
    status, said = _main(*argv)
    assert status == 1
    assert '15 lines failed' in said
    assert mine.read_bytes() == data


def test_what_is_finished_needs_no_model(whole, workdir, monkeypatch):
  rows, out = whole
  before = out.read_bytes()
  monkeypatch.setattr('thicket.machine.load', None)
  status, said = _main(
    f'--workdir={workdir}', f'--input={rows}', f'--output={out}'
  )
  assert (status, said.count('lines')) == (1, 2)
  assert out.read_bytes() == before
  # The answers of another file are refused, and kept.
  rows = rows.parent / 'other.jsonl'
  rows.write_text('{"question": "1 + 1"}\n')
  status, said = _main(
    f'--workdir={workdir}', f'--input={rows}', f'--output={out}'
  )
  assert status == 2
  assert f'{out}: line 1 is of a line of input with hash ' in said
  assert out.read_bytes() == before


def test_an_empty_file_has_no_answers(workdir, tmp_path, monkeypatch):
  monkeypatch.setattr('thicket.machine.load', None)
  rows, out = tmp_path / 'rows', tmp_path / 'out'
  rows.write_bytes(b'')
  status, said = _main(
    f'--workdir={workdir}', f'--input={rows}', f'--output={out}'
  )
  assert (status, said) == (0, f'thicket: 0 lines answered by {K} members\n')
  assert out.read_bytes() == b''


def test_files_that_are_not_there_are_named(workdir, tmp_path):
  status, said = _main(f'--workdir={workdir}', f'--input={tmp_path / "none"}')
  assert status == 2
  assert 'none: cannot be read: No such file' in said
  status, said = _main(f'--workdir={tmp_path}', '--input=-')
  assert status == 2
  assert 'no run here' in said


def _command(workdir, *flags):
  return [
    sys.executable, '-m', 'thicket.predict', f'--workdir={workdir}', *flags,
  ]  # fmt: skip


# One device, as the run had.
_ENV = os.environ | {'PYTHONPATH': str(ROOT), 'JAX_NUM_CPU_DEVICES': '1'}


def test_stdin_is_answered_on_stdout(whole, workdir, tmp_path):
  rows, out = whole
  done = subprocess.run(
    _command(workdir, '--input=-'),
    cwd=tmp_path,
    env=_ENV,
    input=rows.read_bytes(),
    capture_output=True,
    check=False,
    timeout=300,
  )
  assert done.returncode == 1, done.stderr
  assert done.stdout == out.read_bytes()
  assert b'15 lines failed' in done.stderr
  assert os.listdir(tmp_path) == []


def test_a_killed_command_goes_on(whole, workdir, tmp_path):
  rows, out = whole
  mine = tmp_path / 'out.jsonl'
  data = rows.read_bytes().splitlines(keepends=True)
  flags = '--input=-', f'--output={mine}'
  process = subprocess.Popen(
    _command(workdir, *flags),
    cwd=tmp_path,
    env=_ENV,
    stdin=subprocess.PIPE,
    stderr=subprocess.PIPE,
  )
  # A chunk and a half, then nothing more until it is killed.
  process.stdin.write(b''.join(data[:110]))
  process.stdin.flush()
  while not (mine.exists() and mine.read_bytes().count(b'\n') >= 64):
    assert process.poll() is None, process.stderr.read()
    with contextlib.suppress(subprocess.TimeoutExpired):
      process.wait(0.05)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  assert process.returncode == -signal.SIGKILL
  first = mine.read_bytes()
  assert 64 <= first.count(b'\n') < 110
  assert out.read_bytes().startswith(first)
  with mine.open('ab') as torn:
    torn.write(out.read_bytes()[len(first) :][:10])  # of the next line
  done = subprocess.run(
    _command(workdir, f'--input={rows}', f'--output={mine}'),
    cwd=tmp_path,
    env=_ENV,
    capture_output=True,
    check=False,
    timeout=300,
  )
  assert done.returncode == 1, done.stderr
  assert mine.read_bytes() == out.read_bytes()


def test_a_reader_that_stops_is_no_error(whole, workdir, tmp_path):
  rows, _ = whole
  read, write = os.pipe()
  os.close(read)
  done = subprocess.run(
    _command(workdir, f'--input={rows}'),
    cwd=tmp_path,
    env=_ENV,
    stdout=write,
    stderr=subprocess.PIPE,
    check=False,
    timeout=300,
  )
  os.close(write)
  assert done.returncode == 130
  assert done.stderr == b''
