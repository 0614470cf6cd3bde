# SPDX-License-Identifier: Apache-2.0
"""Two real processes: one result, one end, and nothing lost by a kill."""

import dataclasses
import json
import os
import pathlib
import re
import shlex
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import population_test
import pytest
import same
import tiny_folder
import tiny_gguf

from thicket import trees
from thicket.ledger import Ledger
from thicket.models.load import load

TESTS = pathlib.Path(__file__).parent
ROOT = TESTS.parent
SMALL = (
  f'--config={ROOT}/configs/llm.py:quick',
  '--config.task.prompt_template=Q {question}=',
  '--config.population.sigmas=(0.05,0.2)',
  '--config.population.size=22',
  '--config.decode.max_new_tokens=3',
  '--config.controls.temperatures=()',
  '--config.controls.prompts=False',
  '--config.controls.same_sigma=False',
  # A chunk of all four devices is no multiple of it.
  '--config.run.members_per_range=3',
  '--config.run.members_per_device=1',
  '--config.run.keep_texts=all',
)
SILENCE_S = 10  # a busy machine is silent for seconds


def _free_port():
  with socket.socket() as s:
    s.bind(('localhost', 0))
    return s.getsockname()[1]


def _environ(devices):
  return os.environ | {
    'PYTHONPATH': f'{ROOT}{os.pathsep}{TESTS}',
    'JAX_NUM_CPU_DEVICES': str(devices),
    'JAX_PLATFORMS': 'cpu',
  }


def _start(command, devices, cwd=ROOT):
  return subprocess.Popen(
    [sys.executable, *command],
    cwd=cwd,
    env=_environ(devices),
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def _ends(workers, timeout=150):
  """(exit code, stdout, stderr) of each; none is left running."""
  deadline = time.monotonic() + timeout
  try:
    outs = [
      worker.communicate(timeout=max(1, deadline - time.monotonic()))
      for worker in workers
    ]
  finally:
    for worker in workers:
      worker.kill()
  return [
    (worker.returncode, *out) for worker, out in zip(workers, outs, strict=True)
  ]


@dataclasses.dataclass(frozen=True)
class _Bench:
  """A model, and a folder for compiled programs."""

  folder: pathlib.Path

  def start(self, workdir, process=None, port=None, flags=(), cwd=ROOT):
    """A run, or one of two processes of it."""
    place = [
      f'--coordinator=localhost:{port}',
      '--num_processes=2',
      f'--process_id={process}',
    ]
    command = [
      '-m',
      'thicket.main',
      *SMALL,
      f'--config.model.name={self.folder / "tiny.gguf"}',
      f'--workdir={workdir}',
      f'--compilation_cache={self.folder / "programs"}',
      *(place if port else []),
      *flags,
    ]
    return _start(command, 2 if port else 4, cwd)

  def start_both(self, workdir, *flags):
    port = _free_port()
    return [self.start(workdir, i, port, flags) for i in range(2)]


@pytest.fixture(scope='module')
def bench(tmp_path_factory):
  folder = tmp_path_factory.mktemp('bench')
  tiny_gguf.write_answering(folder / 'tiny.gguf')
  return _Bench(folder)


@pytest.fixture(scope='module')
def together(bench):
  """The folder of an undisturbed run of two processes, and what they said."""
  workdir = bench.folder / 'together'
  return workdir, _ends(bench.start_both(workdir))


def _ranges(workdir):
  return sorted(
    str(path.relative_to(workdir))
    for path in workdir.glob('ledger/*/*/*')
    if 'orbax-checkpoint-tmp' not in path.name
  )


def _said(stderr):
  """Our own lines, without those of JAX and Gloo."""
  lines = stderr.splitlines()
  return [x for x in lines if x.startswith('thicket: ')]


def _without_gloo(text):
  return ''.join(x for x in text.splitlines(True) if not x.startswith('[Gloo]'))


def test_members_of_two_processes_are_those_of_one(tmp_path):
  port = _free_port()
  script = str(TESTS / 'multiprocess' / 'members.py')
  workers = [
    _start([script, str(port), str(i), str(tmp_path)], devices=2)
    for i in range(2)
  ]
  for code, _, errors in _ends(workers):
    assert code == 0, errors
  ids = np.array(population_test.ANY_IDS)
  alone = population_test._members(devices=4, per_device=2)
  _, (weights, _) = population_test._run(alone, ids)
  # Chunks are of 8, and each process has two devices with two members each.
  owner = np.arange(len(ids)) % 8 // 4
  for i in range(2):
    found = np.load(tmp_path / f'{i}.npz')
    np.testing.assert_array_equal(found['ids'], ids[owner == i])
    want = weights['weight'][owner == i]
    assert found['weight'].tobytes() == want.tobytes()
    np.testing.assert_array_equal(found['order'], ids)
    assert found['whole'].tobytes() == weights['weight'].tobytes()
    assert found['crossed'].tobytes() == weights['weight'].tobytes()
    assert found['block_ids'].tolist() == [0, 1]
    # What is shared keeps its bits, and the store does not fill up.
    assert found['empty'] == 0
    odd = np.float32([-0.0, np.nan, 1e-45])
    assert found['shared'].tobytes() == odd.tobytes()
    assert found['num_messages'] <= 4
    assert 'processes 0 and 1 differ in colour: of 0 and of 1' in str(
      found['complaint']
    )
  stored = Ledger.read(tmp_path / 'ledger').view('test')
  assert stored.members.tolist() == [0, 1]
  assert stored.reward[:, :, 0].tolist() == [[1.0] * 3, [0.0] * 3]


def test_a_checkpoint_of_two_processes_is_that_of_one(tmp_path):
  config = dataclasses.replace(tiny_gguf.CONFIG, num_kv_heads=4)
  tiny_folder.write(tmp_path / 'tiny', config)
  port = _free_port()
  script = str(TESTS / 'multiprocess' / 'checkpoints.py')
  workers = [
    _start([script, str(port), str(i), str(tmp_path)], devices=2)
    for i in range(2)
  ]
  for code, shown, errors in _ends(workers):
    assert code == 0, errors
    assert _without_gloo(shown) == 'done\n'
  want = load(str(tmp_path / 'tiny'))
  for name in ('saved-1', 'saved-4'):
    found = load(str(tmp_path / name))
    assert found.spec == want.spec
    assert trees.content_hash(found.params) == trees.content_hash(want.params)


def test_a_run_of_two_processes_is_that_of_one(bench, together):
  workdir, ((code, shown, errors), (other, silence, more)) = together
  assert (code, other) == (0, 0), errors + more
  assert 'vote of best 2' in shown
  assert str(workdir / 'report.html') in shown
  assert _without_gloo(silence) == ''
  assert _said(errors) == _said(more) == []
  assert 'progress.py' in errors
  assert 'progress.py' not in more
  alone = bench.folder / 'alone'
  ((code, _, errors),) = _ends([bench.start(alone)])
  assert code == 0, errors
  assert same.arrays(workdir) == same.arrays(alone)
  assert _ranges(workdir) == _ranges(alone)
  texts = [(x / 'metrics.jsonl').read_text() for x in (workdir, alone)]
  assert texts[0] == texts[1]
  ours, theirs = (
    json.loads((x / 'summary.json').read_text()) for x in (workdir, alone)
  )
  for name in ours:
    if name != 'work':  # seconds
      assert ours[name] == theirs[name], name
  assert ours['work']['devices'] == theirs['work']['devices'] == '4 x cpu'


@pytest.mark.slow
def test_the_command_of_the_guide_runs_word_for_word(bench, together, tmp_path):
  page = (ROOT / 'docs' / 'many-hosts.md').read_text(encoding='utf-8')
  block, *_ = re.findall(r'^```sh\n(.*?)^```$', page, re.DOTALL | re.MULTILINE)
  port = '8476'
  assert f'localhost:{port}' in block
  # The reader's python, on a model that is small and a port that is free.
  (tmp_path / 'configs').symlink_to(ROOT / 'configs')
  small = shlex.join(
    [*SMALL[1:], f'--config.model.name={bench.folder / "tiny.gguf"}']
  )
  python = tmp_path / 'python'
  python.write_text(
    f'#!/bin/sh\nexec {sys.executable} "$@" {small} '
    f'--compilation_cache={bench.folder / "programs"}\n',
    encoding='utf-8',
  )
  python.chmod(0o755)
  done = subprocess.run(
    ['sh', '-c', block.replace(port, str(_free_port()))],
    cwd=tmp_path,
    env=_environ(2) | {'PATH': f'{tmp_path}{os.pathsep}{os.environ["PATH"]}'},
    capture_output=True,
    text=True,
    timeout=150,
    check=False,
  )
  (workdir,) = (tmp_path / 'runs').iterdir()
  assert str(pathlib.Path('runs') / workdir.name) in done.stdout, done.stderr
  assert same.arrays(workdir) == same.arrays(together[0])


@pytest.mark.slow
@pytest.mark.parametrize('victim', [0, 1])
def test_a_kill_ends_both_and_loses_no_range(bench, together, victim):
  undisturbed, _ = together
  workdir = bench.folder / f'killed-{victim}'
  workers = bench.start_both(workdir, f'--heartbeat_timeout_s={SILENCE_S}')
  while len(_ranges(workdir)) < 3 and workers[victim].poll() is None:
    time.sleep(0.01)
  workers[victim].send_signal(signal.SIGKILL)
  ends = _ends(workers, timeout=60)
  code, _, errors = ends[1 - victim]
  assert code != 0
  assert 'Traceback' not in errors
  last = errors.splitlines()[-1]
  assert last.startswith('thicket: process ')
  assert 'finished ranges are kept: start ALL processes again' in last
  if victim:  # else JAX ends the other at once, without asking us
    assert last.startswith('thicket: process 1 is gone, not heard of for 10 s')
    assert code == 3
    assert _said(errors) == [last]
  finished = _ranges(workdir)
  assert 3 <= len(finished) < len(_ranges(undisturbed))
  for code, _, errors in _ends(bench.start_both(workdir)):
    assert code == 0, errors
  assert set(finished) <= set(_ranges(workdir))
  assert not list(workdir.glob('ledger/*/*/*.orbax-checkpoint-tmp*'))
  assert same.arrays(workdir) == same.arrays(undisturbed)


def test_one_that_waits_in_vain_says_so():
  wait = (
    'from thicket import clusters\n'
    f'place = clusters.Place("localhost:{_free_port()}", 2, 0)\n'
    'clusters.join(place, patience_s=10, meeting_s=2)'
  )
  ((code, _, errors),) = _ends([_start(['-c', wait], devices=1)], timeout=60)
  assert code != 0
  assert errors.splitlines()[-1] == (
    'thicket: the processes did not meet within 2 s; start ALL processes, with '
    'one coordinator that they can reach'
  )


def test_processes_with_different_commands_end(bench, tmp_path):
  port = _free_port()
  workers = [
    bench.start(tmp_path, i, port, (f'--config.population.size={8 + i}',))
    for i in range(2)
  ]
  for code, _, errors in _ends(workers):
    assert code in (2, 3), errors  # by its own word or by the other's
    (line,) = _said(errors)
    assert 'processes 0 and 1 differ in their settings' in line
    assert 'Traceback' not in errors
  assert not list(tmp_path.iterdir())


def test_slices_of_one_srun_are_told_to_be_alone(bench, tmp_path):
  port = _free_port()
  workers = [
    bench.start(tmp_path, i, port, (f'--shard={i}/2',)) for i in range(2)
  ]
  for code, _, errors in _ends(workers):
    assert code in (2, 3), errors
    (line,) = _said(errors)
    assert 'processes 0 and 1 differ in --shard: 0/2 and 1/2; ' in line
    assert 'give --distributed=off to each' in line
  assert not list(tmp_path.iterdir())


def test_the_error_of_one_ends_both(bench, tmp_path):
  port = _free_port()
  # As where each host has a disk of its own.
  workers = []
  for i, disk in enumerate((tmp_path / 'here', tmp_path / 'there')):
    (disk / 'work').mkdir(parents=True)
    workers.append(bench.start('work', i, port, cwd=disk))
  (code, _, errors), (other, _, more) = _ends(workers)
  assert other == 2
  (line,) = _said(more)
  assert line.startswith('thicket: process 1: ')
  assert 'which all processes have to see' in line
  assert code == 3
  assert _said(errors) == [f'thicket: process 1 has stopped: {line[20:]}']


@pytest.mark.slow
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_one_that_is_stopped_takes_the_other_along(bench, together, number):
  workdir = bench.folder / f'stopped-{number}'
  workers = bench.start_both(workdir)
  while len(_ranges(workdir)) < 2 and workers[1].poll() is None:
    time.sleep(0.01)
  workers[1].send_signal(number)
  # Sooner than its silence would be noticed, which takes 100 s.
  (code, _, errors), (other, _, more) = _ends(workers, timeout=60)
  assert code == 3, errors
  (line,) = _said(errors)
  assert 'Traceback' not in errors
  if other == 130:
    assert line == 'thicket: process 1 has stopped: interrupted'
    assert _said(more)[0] == 'thicket: process 1: stopped'
  else:  # JAX makes an error of its own of what interrupts a look-up
    assert other == 1
    assert line.startswith('thicket: process 1 has stopped: ')
    assert 'KeyboardInterrupt' in more
