# SPDX-License-Identifier: Apache-2.0
"""Generated programs, run in confinement and judged from outside of it.

A program runs in a process of its own and its tests in another; both are
forked from one Python that is already started. The tests call the program by
messages, so they need no secret: what a program can reach, by patching,
`os._exit`, `__eq__` or frames, is only what it answers to a call. What it can
still do is to answer by heart, where it has seen the tests (MBPP's prompts show
them).

Each of the two processes has (tests/sandbox_test.py tries every one):

- user, mount, pid, network, ipc and uts namespaces, and no capability; where
  the caller is root it is another, powerless user;
- a root that holds the standard library of Python, and cannot be written;
- no system call but those to use memory, clocks and threads and to read files
  (seccomp): none to start a process or a program, to open a socket, to trace;
- limits of memory, CPU time, files and threads, and a limit of time;
- no environment, no file but the socket between the two, nothing to read or to
  print to, and no life after the tests end or the process that asked dies.

It does not protect from faults of the kernel. Linux on x86-64 and aarch64 (the
latter by the kernel's own table of calls, never tried); where the kernel denies
any of it, nothing is run.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping

from thicket.sandbox import confinement

_MEMO = 4096  # outcomes; a judging asks several times for each
_START_S = 60
_SLACK_S = 30  # for the other process to answer, beyond the limit of time
_MOST_BYTES = 1 << 16  # of a verdict
_GONE = 'Ended: the program ended'  # what the tests see of that

_BOOT = """
import sys
sys.path.insert(0, sys.argv[1])
from thicket.sandbox import zygote
del sys.path[0], sys.argv[1:]
zygote.main()
"""

_WHAT_TO_DO = (
  'generated programs are run in confinement or not at all; allow user '
  'namespaces (sysctl user.max_user_namespaces, kernel.unprivileged_userns_'
  'clone=1, kernel.apparmor_restrict_unprivileged_userns=0; in a container, '
  'a seccomp profile that allows unshare and mount), or use another machine'
)


class SandboxError(RuntimeError):
  """Programs cannot be confined here; the message says why and what to do."""


@dataclasses.dataclass(frozen=True)
class Job:
  """A program and its tests.

  Fields:
    sources: run in order in one namespace, for the program.
    tests: source with assertions, run apart from the program.
    names: what the tests use of the program's namespace.
    context: trusted source that runs before the tests, beside them: imports
      and helpers.
    cpu_s: CPU time of a program, over all its tests, in whole seconds.
    wall_s: limit of time, for one that sleeps.
    memory_bytes: address space, of which Python itself takes some 50 MB.
  """

  sources: tuple[str, ...]
  tests: str
  names: tuple[str, ...]
  context: str = ''
  cpu_s: int = 5
  wall_s: float = 30.0
  memory_bytes: int = 1 << 29


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What tests found.

  Fields:
    passed: all assertions held, and nothing was raised.
    behaviour: equal for programs that answered the same to the same calls,
      whether right or wrong; '' for one that never answered.
    reason: the first thing that went wrong, shortly; '' if passed.
  """

  passed: bool
  behaviour: str
  reason: str = ''


@functools.lru_cache(maxsize=_MEMO)
def run(job: Job) -> Outcome:
  """The outcome of a job, by this process's own sandbox; remembered.

  The outcome does not depend on earlier programs, nor on chance: `random` is
  seeded, and so is the order of sets. Near a limit of time it does depend on
  the machine.

  Raises:
    SandboxError: programs cannot be confined here.
  """
  with _lock:
    # A process that was forked must not talk to its parent's.
    if _own.get('pid') != os.getpid():
      _own.update(pid=os.getpid(), sandbox=Sandbox())
    return _own['sandbox'].run(job)


_lock = threading.Lock()
_own: dict = {}


class Sandbox:
  """One confined Python, which is started when first needed."""

  def __init__(self):
    """Starts nothing yet."""
    self._process: subprocess.Popen | None = None
    self._control: socket.socket | None = None

  def run(self, job: Job) -> Outcome:
    """The outcome of a job.

    Raises:
      SandboxError: programs cannot be confined here, or the sandbox died.
    """
    if self._process is None:
      self._start()
    try:
      return self._run(job)
    except (OSError, EOFError, ValueError) as error:
      self.close()
      raise SandboxError(
        f'the process that runs programs is gone ({error!r}); was it killed?'
      ) from error
    except BaseException:
      self.close()  # what it would answer next belongs to this job
      raise

  def close(self) -> None:
    """Ends all processes; `run` starts new ones."""
    process, self._process = self._process, None
    if process is not None:
      self._control.close()
      process.wait()

  def _start(self) -> None:
    atexit.register(self.close)
    self._control, theirs = socket.socketpair(
      socket.AF_UNIX, socket.SOCK_SEQPACKET
    )
    self._control.settimeout(_START_S)
    root = pathlib.Path(__file__).parents[2]
    with theirs:
      self._process = subprocess.Popen(
        [sys.executable, '-sSPB', '-c', _BOOT, str(root)],
        stdin=theirs,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd='/',
        env={'PYTHONHASHSEED': '0'},
        start_new_session=True,  # Ctrl-C of a terminal is not for programs
      )
    try:
      self._greet()
    except BaseException:
      self.close()
      raise

  def _greet(self) -> None:
    said = self._control.recv(1 << 12)
    if said == b'grant':
      try:
        confinement.grant(self._process.pid)
      except confinement.Denied as error:
        raise SandboxError(f'{error}; {_WHAT_TO_DO}') from error
      self._control.send(b'.')
      said = self._control.recv(1 << 12)
    if not said:
      raise SandboxError(f'{sys.executable} does not start in a clean room')
    error = json.loads(said).get('error')
    if error:
      raise SandboxError(f'{error}; {_WHAT_TO_DO}')

  def _run(self, job: Job) -> Outcome:
    limits = ('memory_bytes', 'cpu_s', 'wall_s')
    request = {name: getattr(job, name) for name in limits}
    with contextlib.ExitStack() as stack:
      pairs = [socket.socketpair() for _ in range(2)]
      ours, theirs = zip(*pairs, strict=True)
      for end in (*ours, *theirs):
        stack.enter_context(end)
      for end in (self._control, *ours):
        end.settimeout(job.wall_s + _SLACK_S)
      message = json.dumps(request).encode()
      socket.send_fds(self._control, [message], [x.fileno() for x in theirs])
      for end in theirs:
        end.close()
      _tell(ours[0], list(job.sources))
      _tell(
        ours[1],
        {'context': job.context, 'tests': job.tests, 'names': job.names},
      )
      said = b''
      with contextlib.suppress(ConnectionResetError):  # as above
        while piece := ours[1].recv(1 << 14):
          said = (said + piece)[:_MOST_BYTES]
    report = self._control.recv(1 << 12)
    if not report:
      raise EOFError
    return _outcome(job, said, json.loads(report))


def _tell(end: socket.socket, message: object) -> None:
  # A process that is dead already is seen by what it does not answer.
  with contextlib.suppress(BrokenPipeError, ConnectionResetError):
    end.sendall(json.dumps(message).encode())
    end.shutdown(socket.SHUT_WR)


def _outcome(job: Job, said: bytes, report: Mapping[str, float]) -> Outcome:
  if not said:
    raise SandboxError('the process of the tests did not get to run them')
  verdict = {'passed': False, 'behaviour': ''}
  if said.strip():
    verdict = json.loads(said)
  if 'error' in verdict:
    raise SandboxError(verdict['error'])
  reason = verdict.get('reason', 'its answers were too much for the tests')
  if verdict['passed']:
    reason = ''
  elif report['is_late']:
    reason = f'not done after {job.wall_s:g} s'
  elif reason == _GONE and report['program_exit'] == -signal.SIGKILL:
    # The CPU time told at the end is counted otherwise than the limit's.
    reason = f'killed by the kernel, as after {job.cpu_s} s of CPU time'
  return Outcome(verdict['passed'], verdict['behaviour'], reason)
