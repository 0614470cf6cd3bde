# SPDX-License-Identifier: Apache-2.0
"""The quick run on the real model, killed twenty times, loses nothing."""

import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest
import same

ROOT = pathlib.Path(__file__).parent.parent
NUM_KILLS, NUM_IN_SAVE = 20, 4


def _start(workdir, cache):
  return subprocess.Popen(
    [
      sys.executable,
      '-m',
      'thicket.main',
      '--config=configs/llm.py:quick',
      # A range for each answer set: many saves a run to be killed in.
      '--config.run.members_per_range=1',
      f'--workdir={workdir}',
      f'--compilation_cache={cache}',
    ],
    cwd=ROOT,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
  )


def _finish(workdir, cache):
  process = _start(workdir, cache)
  _, errors = process.communicate(timeout=600)
  assert process.returncode == 0, errors


def _ranges(workdir):
  """Finished ranges by name; what is half-written has Orbax's suffix."""
  return {
    path.relative_to(workdir)
    for path in workdir.glob('ledger/*/*/*')
    if path.is_dir() and 'orbax-checkpoint-tmp' not in path.name
  }


def _saving(workdir):
  return any(workdir.glob('ledger/*/*/*.orbax-checkpoint-tmp*'))


def _kill(process, workdir, in_save, delay):
  """Kills the process; returns whether it was inside a save."""
  deadline = time.monotonic() + delay
  while process.poll() is None:
    if in_save and _saving(workdir):
      break
    if not in_save and time.monotonic() > deadline:
      break
    time.sleep(0.0005)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  return process.returncode == -signal.SIGKILL and _saving(workdir)


@pytest.mark.slow
def test_twenty_kills_lose_no_finished_range(tmp_path):
  cache = tmp_path / 'programs'
  undisturbed = tmp_path / 'undisturbed'
  start = time.monotonic()
  _finish(undisturbed, cache)
  expected = same.arrays(undisturbed)
  # Under several conditions, and seen: else none of them could be lost.
  saved = {(condition, split) for condition, split, _ in expected}
  folders = {path.parent.parts[1:] for path in _ranges(undisturbed)}
  assert folders == saved
  assert len({condition for condition, _ in saved}) > 1
  whole_s = time.monotonic() - start

  draw = random.Random(0)
  kills = in_save = attempt = 0
  while kills < NUM_KILLS or in_save < NUM_IN_SAVE:
    workdir = tmp_path / f'run{attempt}'
    attempt += 1
    assert attempt < 15, 'runs end before they are killed'
    finished = set()
    for _ in range(8):
      process = _start(workdir, cache)
      aim = draw.random() < 0.4
      was_in_save = _kill(process, workdir, aim, draw.uniform(1, whole_s))
      if process.returncode == 0:
        break
      assert process.returncode == -signal.SIGKILL
      kills += 1
      in_save += was_in_save
      now = _ranges(workdir)
      assert finished <= now, f'lost {finished - now}'
      finished = now
    _finish(workdir, cache)
    assert finished <= _ranges(workdir)
    assert not _saving(workdir), 'rubbish of a kill was left'
    assert same.arrays(workdir) == expected
  assert kills >= NUM_KILLS
  assert in_save >= 3
