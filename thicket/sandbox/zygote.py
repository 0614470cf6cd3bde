# SPDX-License-Identifier: Apache-2.0
"""The process that programs are forked from: Python, started and confined.

It is started by `thicket.sandbox` and never reads a program or a test: those
go to the forked processes by sockets of their own. It ends, and with it every
process below it, when the process that started it does.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable

from thicket.sandbox import confinement, inside

# Imported once, for all programs; also what needs libraries of the system,
# which are out of sight later.
_WARM = (
  'array base64 binascii bisect calendar cmath collections collections.abc '
  'contextlib copy csv ctypes dataclasses datetime decimal enum fractions '
  'functools hashlib heapq inspect itertools json keyword math numbers '
  'operator pprint queue random re secrets statistics string struct textwrap '
  'threading time traceback typing unicodedata uuid warnings zlib'
)
_FREE = 64  # no file of this process has this number or a higher one
_GRACE_S = 2.0  # for the tests to say what they saw, once the program is dead


def main() -> None:
  """Answers requests on standard input, a socket, until it is closed."""
  control = socket.socket(fileno=os.dup(0))
  null = os.open(os.devnull, os.O_RDWR)
  for fd in range(3):
    os.dup2(null, fd)
  os.close(null)
  for name in _WARM.split():
    with contextlib.suppress(ImportError):
      importlib.import_module(name)
  os.environ.clear()
  try:
    folders = [path for path in sys.path if os.path.isdir(path)]
    outer = [p for p in folders if not any(_is_in(p, q) for q in folders)]
    confinement.machine()
    confinement.enter(control, outer)
  except Exception as error:
    control.send(json.dumps({'error': f'{error}'}).encode())
    return
  first = os.fork()
  if first:
    control.close()
    os.waitpid(first, 0)
    return
  _serve(control)


def _is_in(path: str, folder: str) -> bool:
  return path.startswith(folder.rstrip('/') + '/')


def _serve(control: socket.socket) -> None:
  own = os.pidfd_open(os.getpid())
  gc.collect()
  gc.freeze()  # forked processes share these pages
  try:
    _try_once(own)
  except Exception as error:
    control.send(json.dumps({'error': f'{error}'}).encode())
    os._exit(1)
  control.send(json.dumps({'ready': True}).encode())
  while True:
    message, fds, *_ = socket.recv_fds(control, 1 << 12, 2)
    if not message:
      os._exit(0)
    report = _run(json.loads(message), fds, control, own)
    control.send(json.dumps(report).encode())


def _try_once(own: int) -> None:
  """Raises Denied where a process cannot be confined."""
  said, says = os.pipe()
  trial = _fork(own)
  if not trial:
    try:
      confinement.drop(1 << 29, 10)
    except Exception as error:
      os.write(says, f'{error}'.encode())
    os._exit(0)
  os.close(says)
  error = os.read(said, 1 << 12).decode()
  os.close(said)
  os.waitpid(trial, 0)
  if error:
    raise confinement.Denied(error)


def _fork(own: int) -> int:
  """As `os.fork`; the child is the first of a new pid namespace."""
  confinement.child_namespace(None)
  process = os.fork()
  if process:
    confinement.child_namespace(own)
  return process


def _run(
  limits: dict, fds: list[int], control: socket.socket, own: int
) -> dict[str, object]:
  """One program and its tests, to the end of both."""
  ends = [end.detach() for end in socket.socketpair()]
  drop = (limits['memory_bytes'], limits['cpu_s'])
  program = _fork(own)
  if not program:
    _child(_program, fds[0], ends[0], drop)
  tests = _fork(own)
  if not tests:
    _child(_tests, fds[1], ends[1], drop)
  for fd in (*fds, *ends):
    os.close(fd)
  is_late = not _wait(tests, control, limits['wall_s'])
  os.kill(program, signal.SIGKILL)
  if is_late and not _wait(tests, control, _GRACE_S):
    os.kill(tests, signal.SIGKILL)
  os.waitpid(tests, 0)
  _, status = os.waitpid(program, 0)
  code = os.waitstatus_to_exitcode(status)
  return {'is_late': is_late, 'program_exit': code}


def _child(
  role: Callable[[int, inside.Pipe], None],
  job: int,
  peer: int,
  drop: tuple[int, int],
) -> None:
  """Becomes a program or its tests; does not return."""
  try:
    job, peer = (fcntl.fcntl(fd, fcntl.F_DUPFD, _FREE) for fd in (job, peer))
    os.closerange(3, _FREE)
    os.closerange(peer + 1, 1 << 10)
    confinement.drop(*drop)
    role(job, inside.Pipe(peer))
  except BaseException:
    os._exit(1)
  os._exit(0)


def _program(job: int, pipe: inside.Pipe) -> None:
  pipe.send('here')  # confined, and nothing has run
  sources = inside.read_all(job)
  os.close(job)
  inside.serve(sources, pipe)


def _tests(job: int, pipe: inside.Pipe) -> None:
  os.write(job, b' ')  # as above; JSON does not mind
  verdict = inside.check(inside.read_all(job), pipe)
  data = json.dumps(verdict).encode()
  while data:
    data = data[os.write(job, data) :]


def _wait(process: int, control: socket.socket, seconds: float) -> bool:
  """Whether a child ended in time; ends this process with its parent."""
  end = os.pidfd_open(process)
  try:
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
      ready, _, _ = select.select([end, control], [], [], left)
      if control in ready:
        os._exit(1)  # nothing is asked before the answer: the parent is gone
      if ready:
        return True
    return False
  finally:
    os.close(end)
