# SPDX-License-Identifier: Apache-2.0
"""Texts judged by a task's rules, here or in worker processes.

Workers are for rewards that are slow. They know the task and nothing else: no
model, no JAX, no main module of the program. They end with the process that
started them, however that ends.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import types
from collections.abc import Sequence
from concurrent import futures
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection, context

from absl import logging

from thicket.tasks.base import Example, Judgement, Task, TaskError, judge

Asked = tuple[Example, str]  # a question, and a text that answers it

_PIECES = 4  # for each worker, so that one slow text does not hold up the rest
_SHOWN_CHARS = 120  # of a text in a message, which has to stay one line


class Judges:
  """Judges texts in order, the same whoever does it."""

  def __init__(self, task: Task, processes: int = 0):
    """Takes the rules; no process is started yet.

    Args:
      task: its reward and answers; with processes it is pickled.
      processes: how many workers; 0 judges in this process.

    Raises:
      TaskError: a task that cannot be sent to processes, or a number below 0.
    """
    if processes < 0:
      raise TaskError(f'processes that judge = {processes} is below 0')
    self._task, self._processes = task, processes
    self._pool: futures.ProcessPoolExecutor | None = None
    self._started: list[multiprocessing.Process] = []
    self._warm: list[futures.Future] = []
    if processes:
      try:
        self._pickled = pickle.dumps(task)
      except Exception as error:  # whatever a field's own pickling raises
        raise TaskError(
          f'{task.name}: cannot be sent to processes that judge ({error}); '
          'set config.run.judge_processes=0'
        ) from error

  def start(self) -> None:
    """Starts the workers, if there are to be any, and does not wait."""
    if self._processes and self._pool is None:
      # A task of a script's own can be found nowhere else.
      needs_main = type(self._task).__module__ == '__main__'
      self._pool = futures.ProcessPoolExecutor(
        self._processes,
        mp_context=_Spawn(self._started, needs_main),
        initializer=_begin,
        initargs=(self._pickled,),
      )
      self._warm = []
      with contextlib.suppress(BrokenProcessPool):  # the first will tell
        for _ in range(self._processes):
          self._warm.append(self._pool.submit(os.getpid))

  def close(self) -> None:
    """Ends the workers, whatever they are at; `start` makes new ones."""
    pool, self._pool = self._pool, None
    if pool is not None:
      for process in self._started:
        process.kill()
      self._started.clear()
      pool.shutdown(cancel_futures=True)

  def __call__(self, asked: Sequence[Asked]) -> list[Judgement]:
    """Judges each text.

    Raises:
      TaskError: naming the row and the text at which the task failed, or at
        which it took its process down, twice.
    """
    if not self._processes:
      return _judge_all(self._task, asked)
    self._wait_until_warm()
    size = max(1, -(-len(asked) // (_PIECES * self._processes)))
    pieces = [asked[i : i + size] for i in range(0, len(asked), size)]
    jobs: list[futures.Future] = []
    try:
      for piece in pieces:
        jobs.append(self._pool.submit(_work, piece))
      return [found for job in jobs for found in job.result()]
    except BrokenProcessPool:
      logging.warning('a process that judged died; its texts one by one now')
      return self._after_a_death(pieces, jobs)
    finally:
      for job in jobs:
        job.cancel()

  def _wait_until_warm(self) -> None:
    self.start()
    try:
      while self._warm:
        self._warm.pop().result()
    except BrokenProcessPool as error:
      self.close()
      raise TaskError(
        f'{self._task.name}: processes that judge do not start; their own '
        'words are above; config.run.judge_processes=0 does without them'
      ) from error

  def _after_a_death(
    self, pieces: Sequence[Sequence[Asked]], jobs: Sequence[futures.Future]
  ) -> list[Judgement]:
    """Finds the text that kills; a death for other reasons is passed over."""
    self.close()
    found = []
    for piece, job in itertools.zip_longest(pieces, jobs):
      is_done = job is not None and job.done() and not job.cancelled()
      if is_done and job.exception() is None:
        found += job.result()
        continue
      for example, text in piece:
        self._wait_until_warm()
        try:
          found += self._pool.submit(_work, [(example, text)]).result()
        except BrokenProcessPool as error:
          self.close()
          raise TaskError(
            f'{self._task.name}, row {example.row_id}: judging {_shown(text)} '
            'ends its process, twice; a reward must return a number or raise'
          ) from error
    return found


def _judge_all(task: Task, asked: Sequence[Asked]) -> list[Judgement]:
  found = []
  for example, text in asked:
    try:
      found.append(judge(task, text, example))
    except TaskError:
      raise  # it names the row
    except Exception as error:  # of rules that a user wrote
      raise TaskError(
        f'{task.name}, row {example.row_id}: judging {_shown(text)} failed: '
        f'{type(error).__name__}: {error}'
      ) from error
  return found


def _shown(text: str) -> str:
  shown = repr(text)
  if len(shown) > _SHOWN_CHARS:
    shown = shown[: _SHOWN_CHARS - 3] + '...'
  return shown


# In a worker.

_own: dict[str, Task] = {}


def _begin(pickled: bytes) -> None:
  """Prepares a worker."""
  # Ctrl-C reaches every process of a terminal; the parent decides.
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  threading.Thread(target=_end_with_parent, daemon=True).start()
  _own['task'] = pickle.loads(pickled)


def _end_with_parent() -> None:
  """A parent that is killed cannot end its workers, which wait for ever."""
  connection.wait([multiprocessing.parent_process().sentinel])
  os._exit(1)


def _work(asked: Sequence[Asked]) -> list[Judgement]:
  return _judge_all(_own['task'], asked)


class _Process(context.SpawnProcess):
  """A process that does not import the main module of the program.

  That is `thicket.main`, and with it JAX, in every worker.
  """

  def start(self) -> None:
    main = sys.modules['__main__']
    sys.modules['__main__'] = types.ModuleType('__main__')
    try:
      super().start()
    finally:
      sys.modules['__main__'] = main


class _Spawn(context.SpawnContext):
  """Starts processes and keeps them, to be ended."""

  def __init__(self, started: list[multiprocessing.Process], needs_main: bool):
    super().__init__()
    self._started = started
    self._kind = context.SpawnProcess if needs_main else _Process

  def Process(self, *args, **kwargs) -> multiprocessing.Process:
    """As the pool calls it."""
    self._started.append(self._kind(*args, **kwargs))
    return self._started[-1]
