# SPDX-License-Identifier: Apache-2.0
"""Judging in processes: the same judgements, named failures, no orphans."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from thicket import judging, tasks
from thicket.tasks.base import Example, TaskError

ROOT = pathlib.Path(__file__).parents[1]


@dataclasses.dataclass(frozen=True)
class Moody(tasks.Arithmetic):
  """Does what a response says; workers find this module by its path."""

  def extract(self, response):
    if response.startswith('raise'):
      raise KeyError('no such mood')
    if response.startswith('die'):
      os._exit(3)
    if response.startswith('once'):  # dies the first time only
      path = pathlib.Path(response.removeprefix('once '))
      if not path.exists():
        path.touch()
        os._exit(3)
      return '7'
    if response == 'modules':
      return ' '.join(sorted({name.split('.')[0] for name in sys.modules}))
    if response == 'pid':
      return str(os.getpid())
    if response.startswith('hang'):
      pathlib.Path(response.removeprefix('hang ')).write_text(str(os.getpid()))
      time.sleep(600)
    return super().extract(response)


TASK = Moody()
ROWS = [Example(i, f'{i} + 1', str(i + 1)) for i in range(2, 40)]


def _ends(pid):
  """Waits until a process is gone; pytest's own limit is the only one."""
  path = pathlib.Path(f'/proc/{pid}')
  while path.exists() and ' Z ' not in (path / 'stat').read_text():
    time.sleep(0.01)
  return True


@pytest.fixture
def workers():
  """Two processes that judge."""
  made = judging.Judges(TASK, 2)
  yield made
  made.close()


def test_processes_judge_as_this_one_does(workers):
  asked = [(row, f'{row.row_id + 1 + row.row_id % 2} x') for row in ROWS]
  for part in (asked, asked[:1], []):  # more than the pieces, one, none
    found = workers(part)
    assert found == judging.Judges(TASK)(part)
    assert [x.is_correct for x in found] == [
      row.row_id % 2 == 0 for row, _ in part
    ]


def test_processes_are_started_once_and_know_no_jax(workers):
  first = {x.answer for x in workers([(row, 'pid') for row in ROWS])}
  again = {x.answer for x in workers([(row, 'pid') for row in ROWS])}
  assert str(os.getpid()) not in first
  assert len(first | again) <= 2
  (found,) = workers([(ROWS[0], 'modules')])
  modules = found.answer.split()
  assert 'thicket' in modules
  assert not {'jax', 'jaxlib', 'orbax', 'flax', 'rich'} & set(modules)


@pytest.mark.parametrize('processes', [0, 2])
def test_a_task_that_raises_is_named_with_row_and_text(processes):
  judges = judging.Judges(TASK, processes)
  asked = [(row, '7') for row in ROWS]
  asked[5] = ROWS[5], 'raise ' + 'x' * 500
  with pytest.raises(TaskError) as caught:
    judges(asked)
  shown = "'raise " + 'x' * 110 + '...'
  assert str(caught.value) == (
    f"arithmetic, row 7: judging {shown} failed: KeyError: 'no such mood'"
  )
  assert [x.answer for x in judges(asked[:2])] == ['7', '7']  # still there
  judges.close()


def test_a_text_that_kills_its_process_is_named(workers):
  asked = [(row, '7') for row in ROWS]
  asked[9] = ROWS[9], 'die\nhere'
  with pytest.raises(TaskError) as caught:
    workers(asked)
  assert str(caught.value) == (
    "arithmetic, row 11: judging 'die\\nhere' ends its process, twice; a "
    'reward must return a number or raise'
  )
  assert [x.answer for x in workers(asked[:2])] == ['7', '7']  # new ones


def test_a_death_that_does_not_come_again_costs_nothing(workers, tmp_path):
  asked = [(row, '7') for row in ROWS]
  asked[9] = ROWS[9], f'once {tmp_path / "7"}'
  assert [x.answer for x in workers(asked)] == ['7'] * len(ROWS)


def test_closing_ends_processes_whatever_they_are_at(workers, tmp_path):
  (found,) = workers([(ROWS[0], 'pid')])
  path = tmp_path / 'pid'
  workers._pool.submit(judging._work, [(ROWS[0], f'hang {path}')])
  while not (path.exists() and path.read_text()):
    time.sleep(0.01)
  workers.close()
  assert _ends(path.read_text())
  assert _ends(found.answer)
  workers.close()  # nothing to end


# What a script that is stopped leaves behind.

SCRIPT = """
import pathlib, sys, threading
sys.path.insert(0, 'tests')
import judging_test
from thicket import judging

if __name__ == '__main__':
  judges = judging.Judges(judging_test.TASK, 2)
  try:
    judges([(row, f'hang {sys.argv[1]}') for row in judging_test.ROWS[:1]])
  finally:
    judges.close()
"""


@pytest.mark.parametrize('how', [signal.SIGINT, signal.SIGKILL])
def test_a_parent_that_is_stopped_leaves_no_orphan(how, tmp_path):
  path = tmp_path / 'pid'
  script = tmp_path / 'script.py'
  script.write_text(SCRIPT)
  parent = subprocess.Popen(
    [sys.executable, str(script), str(path)],
    cwd=ROOT,
    env=os.environ | {'PYTHONPATH': str(ROOT)},
    stderr=subprocess.PIPE,
    start_new_session=True,
    text=True,
  )
  while not (path.exists() and path.read_text()):
    assert parent.poll() is None, parent.stderr.read()
    time.sleep(0.01)
  # As a terminal does: Ctrl-C reaches the workers too.
  if how == signal.SIGINT:
    os.killpg(parent.pid, how)
  else:
    parent.send_signal(how)
  # Returns when no process holds the pipe.
  _, errors = parent.communicate(timeout=60)
  assert parent.returncode == -how
  assert errors.count('KeyboardInterrupt') == (how == signal.SIGINT)
  assert _ends(path.read_text())


MAIN = """
import colorsys  # stands for JAX: what only the main module imports
import sys
sys.path.insert(0, 'tests')
import judging_test
from thicket import judging

class Own(judging_test.Moody):
  pass

if __name__ == '__main__':
  for task in (judging_test.TASK, Own()):
    judges = judging.Judges(task, 1)
    (found,) = judges([(judging_test.ROWS[0], 'modules')])
    print('colorsys' in found.answer.split())
    judges.close()
"""


def test_the_main_module_is_imported_only_where_the_task_is_in_it(tmp_path):
  script = tmp_path / 'script.py'
  script.write_text(MAIN)
  done = subprocess.run(
    [sys.executable, str(script)],
    cwd=ROOT,
    env=os.environ | {'PYTHONPATH': str(ROOT)},
    capture_output=True,
    text=True,
    check=True,
  )
  assert done.stdout.split() == ['False', 'True']


def test_a_task_that_cannot_be_sent_is_refused():
  class Local(tasks.Arithmetic):
    pass

  assert judging.Judges(Local())([(ROWS[0], '3')])[0].is_correct
  with pytest.raises(TaskError) as caught:
    judging.Judges(Local(), 1)
  message = str(caught.value)
  assert message.startswith('arithmetic: cannot be sent to processes')
  assert message.endswith('set config.run.judge_processes=0')


class Unwelcome(tasks.Arithmetic):
  """Is pickled, and cannot be unpickled."""

  def __reduce__(self):
    return int, ('no number',)


def test_processes_that_do_not_start_are_no_text_s_fault(capfd):
  judges = judging.Judges(Unwelcome(), 1)
  with pytest.raises(TaskError) as caught:
    judges([(ROWS[0], '3')])
  assert 'processes that judge do not start' in str(caught.value)
  assert 'no number' in capfd.readouterr().err


def test_a_number_below_zero_is_refused():
  with pytest.raises(TaskError, match='= -1 is below 0'):
    judging.Judges(TASK, -1)


def test_tasks_and_judging_import_no_jax():
  code = (
    'import sys, json, thicket.tasks, thicket.judging; '
    'print(json.dumps(sorted({x.split(".")[0] for x in sys.modules})))'
  )
  done = subprocess.run(
    [sys.executable, '-c', code],
    cwd=ROOT, capture_output=True, text=True, check=True,
  )  # fmt: skip
  assert not {'jax', 'jaxlib', 'numpy'} & set(json.loads(done.stdout))
