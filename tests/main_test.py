# SPDX-License-Identifier: Apache-2.0
"""The command line as a user meets it, in processes of its own."""

import json
import pathlib
import signal
import subprocess
import sys
import time
import types

import pytest

from thicket import arguments
from thicket.ledger import Ledger
from thicket.stored import Stored

ROOT = pathlib.Path(__file__).parents[1]
SMALL = (
  '--config.task.prompt_template=Q {question}=',
  '--config.population.sigmas=(0.05,0.2)',
)


def _command(*flags, config='configs/llm.py:quick'):
  return [
    sys.executable,
    '-m',
    'thicket.main',
    f'--config={config}',
    *flags,
  ]


def _run(*flags, **options):
  return subprocess.run(
    _command(*flags),
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
    timeout=300,
    **options,
  )


def _complaint(done):
  """The one line that is said of bad input, without log lines around it."""
  assert done.returncode == 2, done.stderr
  assert 'Traceback' not in done.stderr
  lines = [x for x in done.stderr.splitlines() if x.startswith('thicket: ')]
  assert lines
  return lines[0].removeprefix('thicket: ')


@pytest.mark.parametrize(
  ('flag', 'message'),
  [
    (
      '--config.population.siz=3',
      "unknown config key 'population.siz'; did you mean population.size",
    ),
    ('--config.populaton.size=3', 'did you mean population.size'),
    ('--config.population.size=many', 'population.size'),
    ('--confg=3', 'unknown flag --confg'),
  ],
)
def test_bad_flags_are_explained(flag, message):
  argv = ['main', f'--config={ROOT}/configs/llm.py', flag]
  # config_flags registers on import of main; parsing must fail before use.
  from thicket import main  # noqa: F401

  with pytest.raises(arguments.ArgumentError) as raised:
    arguments.parse(argv)
  assert message in str(raised.value)
  assert '\n' not in str(raised.value)


@pytest.mark.parametrize(
  ('file', 'message'),
  [
    ('configs/llmm.py', "no config file 'configs/llmm.py'; near: "),
    ('configs/llm.py:fast', 'the only variant is quick'),
  ],
)
def test_bad_config_files_are_explained(file, message, monkeypatch):
  monkeypatch.chdir(ROOT)
  with pytest.raises(arguments.ArgumentError) as raised:
    arguments.parse(['main', f'--config={file}'])
  assert message in str(raised.value)


def test_a_command_line_keeps_its_flags_and_replaces_some():
  argv = [
    'main',
    '--config=a.py',
    '--config.population.size=4',
    '--workdir=w x',
  ]
  assert arguments.command(argv, '--config.population.size=16') == (
    "python -m thicket.main --config=a.py '--workdir=w x' "
    '--config.population.size=16'
  )
  # A value that stands apart from its flag goes with it.
  argv = ['main', '-config', 'a.py', '--config.population.size', '4']
  assert arguments.command(argv, '--config.population.size=16') == (
    'python -m thicket.main -config a.py --config.population.size=16'
  )


@pytest.mark.parametrize(
  ('flag', 'message'),
  [
    ('--config.task.name=arithmetics', "did you mean 'arithmetic'"),
    ('--config.model.name=smollm2-135m', 'did you mean smollm2-135m-instruct'),
    ('--config.population.sigmas=(float("nan"),)', 'sigma'),
  ],
)
def test_unknown_names_end_with_two_before_anything_loads(flag, message):
  done = _run(flag)
  assert message in _complaint(done)
  assert 'loaded' not in done.stderr


@pytest.mark.parametrize(
  ('file', 'members', 'message'),
  [
    ('llm', '0', '--members_per_step=0: auto, or a number of at least 1'),
    ('llm', '1.5', '--members_per_step=1.5: auto, or a number of at least 1'),
    ('signals', 'auto', 'known of text runs only; give a number'),
  ],
)
def test_members_per_step_is_auto_or_a_number(file, members, message):
  from thicket import main

  config = arguments.load_config(f'{ROOT}/configs/{file}.py:quick')
  with pytest.raises(arguments.ArgumentError) as raised:
    main._job(config, members, None, None)
  assert message in str(raised.value)


def test_what_jax_spans_is_joined(monkeypatch):
  from thicket import clusters, main

  for name in ('_COORDINATOR', '_NUM_PROCESSES', '_PROCESS_ID'):
    monkeypatch.setattr(main, name, types.SimpleNamespace(value=None))
  monkeypatch.setattr(main, '_DISTRIBUTED', types.SimpleNamespace(value='off'))
  main._join()
  # As on a TPU pod, where libtpu knows of the other hosts.
  monkeypatch.setattr(main.jax, 'process_count', lambda: 4)
  with pytest.raises(clusters.ClusterError, match='JAX spans 4 processes'):
    main._join()


@pytest.mark.parametrize('kind', ['run.Run', 'array_run.ArrayRun'])
def test_members_per_step_takes_the_place_of_the_config(kind, monkeypatch):
  from thicket import main

  file = 'llm' if kind == 'run.Run' else 'signals'
  config = arguments.load_config(f'{ROOT}/configs/{file}.py:quick')
  monkeypatch.setattr(main, '_WORKDIR', types.SimpleNamespace(value=None))
  seen = []
  monkeypatch.setattr(
    f'thicket.{kind}', lambda config, *_, **more: seen.append((config, more))
  )
  main._job(config, '7', None, None)
  main._job(config, None, None, None)
  more = {'shard': None, 'fit_members': False} if kind == 'run.Run' else {}
  assert seen == [(config, more)] * 2
  assert config.run.members_per_device == 7


def test_a_damaged_model_file_is_named(tmp_path, model):
  data = pathlib.Path(model).read_bytes()
  for name, content in (
    ('cut.gguf', data[: len(data) // 2]),
    ('other.gguf', b'PK' + data[2:]),
  ):
    path = tmp_path / name
    path.write_bytes(content)
    assert name in _complaint(_run(f'--config.model.name={path}'))


def test_a_run_says_where_it_is_and_how_to_go_on(tmp_path, model):
  workdir = tmp_path / 'run'
  flags = (*SMALL, f'--config.model.name={model}', f'--workdir={workdir}')
  done = _run(*flags, '--members_per_step=2')
  assert done.returncode == 0, done.stderr
  assert '2 members a step on each device: base ' in done.stderr
  summary = json.loads((workdir / 'summary.json').read_text())
  assert summary['selection']['members']['count'] == 4
  lines = dict(
    line.split(maxsplit=1)
    for line in done.stdout.splitlines()
    if line.startswith(('report', 'summary', 'ledger', 'resume', 'enlarge'))
  )
  assert pathlib.Path(lines['summary']) == workdir / 'summary.json'
  assert pathlib.Path(lines['report']).read_text().startswith('<!')
  assert lines['enlarge'].endswith('--config.population.size=16')
  assert Stored(workdir).command == lines['resume']
  assert 'members on selection: 4 of 4 members' in done.stderr
  assert 's left' in done.stderr
  # Orbax narrates every save at the same level; none of it is ours.
  assert 'orbax' not in done.stderr

  again = subprocess.run(
    lines['enlarge'].replace('python', sys.executable, 1),
    cwd=ROOT,
    shell=True,
    capture_output=True,
    text=True,
    check=True,
  )
  assert '16 members on selection: 4 of 16 stored' in again.stdout

  other = _run(*flags, '--config.population.sigmas=(0.3,)')
  complaint = _complaint(other)
  assert 'noise.sigmas' in complaint
  assert '0.3' in complaint


def test_a_full_disk_loses_nothing(tmp_path, model):
  workdir = tmp_path / 'run'
  flags = (*SMALL, f'--config.model.name={model}', f'--workdir={workdir}')

  flags = (*flags, '--config.data.num_selection=600')
  # By a shell, not by preexec_fn: forking a process that runs JAX is unsafe.
  done = subprocess.run(
    ['bash', '-c', 'ulimit -f 60; exec "$@"', 'bash', *_command(*flags)],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert str(workdir) in _complaint(done)
  assert 'resume with' in done.stderr
  whole = _run(*flags)
  assert whole.returncode == 0, whole.stderr


def test_ctrl_c_saves_and_says_how_to_resume(tmp_path, model):
  workdir = tmp_path / 'run'
  flags = (
    *SMALL,
    f'--config.model.name={model}',
    f'--workdir={workdir}',
    '--config.population.size=100000',
  )
  process = subprocess.Popen(
    _command(*flags), cwd=ROOT, stderr=subprocess.PIPE, text=True
  )
  metrics = workdir / 'metrics.jsonl'
  deadline = time.monotonic() + 120
  # Base and some members are through, the rest would take minutes.
  while not (metrics.exists() and metrics.read_text().count('\n') > 5):
    assert time.monotonic() < deadline
    assert process.poll() is None
    time.sleep(0.05)
  process.send_signal(signal.SIGINT)
  _, errors = process.communicate(timeout=60)
  assert process.returncode == 130, errors
  assert 'Traceback' not in errors
  assert 'resume with' in errors
  # Every member that has a line of metrics is in the ledger.
  told = [json.loads(line) for line in metrics.read_text().splitlines()]
  told = [line['member'] for line in told if line['split'] == 'selection']
  (folder,) = (workdir / 'ledger').iterdir()
  stored = Ledger.read(folder).view('selection')
  assert sorted(told) == stored.members.tolist()
