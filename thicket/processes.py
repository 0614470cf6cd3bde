# SPDX-License-Identifier: Apache-2.0
"""Several processes, one run: how they speak, and how they end together.

All of them run the same program on one mesh. What hosts make, such as judged
rows, goes through the store of JAX's coordination service, over the network of
the hosts: a collective of the devices would wait behind the generation of the
next chunk. Nobody waits for a process that has stopped: it says so, or its
heartbeat stops, and then all the others end too.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

EXIT_OTHER = 3  # another process has stopped or is gone

_AGAIN = (
  'finished ranges are kept: start ALL processes again with the same command'
)
_SAME = (
  'all need the same command, code, model and data, and one --workdir that all '
  'of them see'
)
_POLL_S = 1.0  # of a wait, so that Ctrl-C is heard
_FAREWELL_S = 5.0  # process 0 holds the store: it leaves last

_rounds = itertools.count()
_watch: _Watch | None = None


class ProcessError(RuntimeError):
  """Processes that do not go together; the message says which, and what."""


def count() -> int:
  """The number of processes."""
  return jax.process_count() if jax.distributed.is_initialized() else 1


def index() -> int:
  """Which of them this is, from 0."""
  return jax.process_index() if jax.distributed.is_initialized() else 0


def is_first() -> bool:
  """Whether this process writes the text files and prints."""
  return index() == 0


def share(data: bytes) -> list[bytes]:
  """What each process hands in, by process; all of them call this.

  Raises ProcessError if the store of process 0 cannot be reached.
  """
  if count() == 1:
    return [data]
  number, client = next(_rounds), _client()
  key = lambda number, process: f'thicket/round/{number}/{process}'
  try:
    client.key_value_set_bytes(key(number, index()), data)
    found = [
      data if i == index() else _await(client, key(number, i))
      for i in range(count())
    ]
    # Whoever has sent this round has read the one before.
    if number:
      client.key_value_delete(key(number - 1, index()))
  except jax.errors.JaxRuntimeError as error:
    raise _unreachable(error) from error
  return found


def share_arrays(
  arrays: Mapping[str, np.ndarray],
) -> list[dict[str, np.ndarray]]:
  """As `share`, of named arrays, bit for bit; no array of objects."""
  if count() == 1:
    return [dict(arrays)]
  file = io.BytesIO()
  np.savez(file, **arrays)
  found = []
  for data in share(file.getvalue()):
    with np.load(io.BytesIO(data), allow_pickle=False) as stored:
      found.append(dict(stored))
  return found


def least(number: int | None) -> int | None:
  """The least of all processes' numbers; None where one has none."""
  numbers = [json.loads(data) for data in share(json.dumps(number).encode())]
  return None if None in numbers else min(numbers)


def meet() -> None:
  """Returns when all processes have come here."""
  share(b'')


def agree(what: str, value: str, advice: str = _SAME) -> None:
  """Raises ProcessError in all processes if they do not hold one value."""
  texts = [data.decode() for data in share(value.encode())]
  for i, text in enumerate(texts):
    if text != texts[0]:
      raise ProcessError(
        f'processes 0 and {i} differ in {what}: {texts[0]} and {text}; {advice}'
      )


def watch(patience_s: float) -> None:
  """From now on the end of one process is the end of all.

  Args:
    patience_s: after this much silence a process is held to be gone.
  """
  global _watch
  _watch = _Watch(patience_s)
  _watch.start()


def finish() -> None:
  """Ends the watch when all processes have come here."""
  global _watch
  if _watch is None:
    return
  meet()
  _watch.stop()
  _watch = None
  jax.distributed.shutdown()


def leave(code: int, why: str) -> None:
  """Ends this process and, by telling them why, all others.

  Does nothing where there is one process. What others would wait for in JAX's
  own farewell does not come, hence no `sys.exit`.
  """
  if _watch is not None:
    _watch.leave(code, why)


def outlast(error: BaseException | None) -> None:
  """Waits where an error may tell of another's end, until the watch knows.

  The error of a collective or a barrier comes at once, and says little; the
  watch ends this process if it finds that another is gone.
  """
  while error is not None and _watch is not None:
    of_jax = isinstance(error, jax.errors.JaxRuntimeError)
    if of_jax and 'RESOURCE_EXHAUSTED' not in str(error):
      time.sleep(_watch.patience_s + 2 * _watch.beat_s)
      return
    error = error.__cause__


class LastWords:
  """A line on stderr, should this process end before it is taken back.

  JAX's client aborts the process when process 0 is gone or never comes, and
  the kernel when memory is: a child outlives both, and says what to do.
  """

  def __init__(self, line: str):
    self._child = subprocess.Popen(
      ['sh', '-c', 'read -r _ || echo "$0" >&2', f'thicket: {line}'],
      stdin=subprocess.PIPE,
      start_new_session=True,  # Ctrl-C is not for the child
    )

  def take_back(self) -> None:
    """Nothing is said."""
    self._child.communicate(b'\n')


class _Watch(threading.Thread):
  """Sends heartbeats, and ends the process when others stop."""

  def __init__(self, patience_s: float):
    super().__init__(name='thicket-watch', daemon=True)
    self.patience_s, self.beat_s = patience_s, min(1.0, patience_s / 10)
    self._client, self._stopped = _client(), threading.Event()
    self._leaving, self._expected = threading.Lock(), count()
    self._last_words = LastWords(
      f'process {index()} of {count()} was ended, by a signal or because '
      f'process 0 is gone; {_AGAIN}'
    )

  def run(self) -> None:
    now = time.monotonic()
    heard = {i: ('', now) for i in range(count())}
    for beat in itertools.count():
      try:
        self._client.key_value_set(
          f'thicket/alive/{index()}', str(beat), allow_overwrite=True
        )
        alive, left = self._read('alive'), self._read('left')
      except jax.errors.JaxRuntimeError as error:
        if not self._stopped.is_set():
          self._end(EXIT_OTHER, f'{_unreachable(error)}; {_AGAIN}')
        return
      now = time.monotonic()
      reasons = {i: why for i, why in left.items() if why and i != index()}
      if reasons:
        time.sleep(self.beat_s)  # one error often comes to all: ours first
        i, why = min(reasons.items())
        if not self._leaving.locked():
          self._end(EXIT_OTHER, f'process {i} has stopped: {why}')
      for i, value in alive.items():
        if heard[i][0] != value:
          heard[i] = value, now
      silent = [
        i for i, (_, when) in heard.items() if now - when > self.patience_s
      ]
      if silent and not self._stopped.is_set():
        self._expected -= len(silent)
        who = ', '.join(map(str, silent))
        self._end(
          EXIT_OTHER,
          f'process {who} is gone, not heard of for {self.patience_s:.0f} s; '
          f'{_AGAIN}',
        )
      if self._stopped.wait(self.beat_s):
        return

  def stop(self) -> None:
    """Ends the watch, not the process."""
    self._stopped.set()
    self.join()
    self._last_words.take_back()

  def leave(self, code: int, why: str) -> None:
    """Ends the process when the others have heard why."""
    # Held for ever: of two threads that leave, the first gives the reason.
    self._leaving.acquire()
    try:
      self._client.key_value_set(f'thicket/left/{index()}', why)
      deadline = time.monotonic() + _FAREWELL_S + 2 * self.beat_s
      while (
        len(self._read('left')) < self._expected and time.monotonic() < deadline
      ):
        if index() and not why:
          break
        time.sleep(self.beat_s / 2)
      if not index():
        time.sleep(self.beat_s + 0.5)  # until they have seen it and are out
    except jax.errors.JaxRuntimeError:
      pass  # process 0 is gone: nobody is left to be told
    sys.stdout.flush()
    sys.stderr.flush()
    self._last_words.take_back()
    os._exit(code)

  def _end(self, code: int, line: str) -> None:
    # Not by print: whatever the main thread holds, this line gets out.
    os.write(2, f'thicket: {line}\n'.encode())
    self.leave(code, '')

  def _read(self, folder: str) -> dict[int, str]:
    found = self._client.key_value_dir_get(f'thicket/{folder}/')
    return {int(key.rpartition('/')[2]): value for key, value in found}


def _await(client: Any, key: str) -> bytes:
  """The value of a key, when it comes; a dead sender is the watch's affair."""
  while True:
    try:
      return client.blocking_key_value_get_bytes(key, int(1000 * _POLL_S))
    except jax.errors.JaxRuntimeError as error:
      if not str(error).startswith('DEADLINE_EXCEEDED'):
        raise


def _client() -> Any:
  # JAX has no public name for it; Orbax reaches it the same way.
  from jax._src import distributed

  return distributed.global_state.client


def _unreachable(error: Exception) -> ProcessError:
  first, *_ = str(error).splitlines() or ['no reason given']
  return ProcessError(f'process 0 cannot be reached ({first})')
