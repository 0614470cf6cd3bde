# SPDX-License-Identifier: Apache-2.0
"""Namespaces, a root with nothing in it, limits, and a list of system calls.

Linux only. `enter` is for the process that forks programs, once; `drop` is for
each forked process, before it reads what it is to run. Nothing here is undone.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import operator
import os
import platform
import resource
import socket
import struct
from collections.abc import Sequence

NOBODY = 65534  # runs programs where we are root
MAX_THREADS = 16

CLONE_NEWPID = 0x20000000
_NAMESPACES = {
  'user': 0x10000000,
  'mount': 0x00020000,
  'pid': CLONE_NEWPID,
  'network': 0x40000000,
  'ipc': 0x08000000,
  'uts': 0x04000000,
}

_RDONLY, _NOSUID, _NODEV, _NOEXEC, _REMOUNT, _BIND, _REC, _PRIVATE = (
  *(1, 2, 4, 8, 32, 4096, 16384),
  1 << 18,
)
_DETACH = 2

# What a program may ask of the kernel: its memory, its clock, its threads, and
# to read files. Numbers on x86-64 and on aarch64; None where there is no such.
_CALLS = {
  'read': (0, 63), 'write': (1, 64), 'open': (2, None), 'close': (3, 57),
  'stat': (4, None), 'fstat': (5, 80), 'lstat': (6, None), 'poll': (7, None),
  'lseek': (8, 62), 'mmap': (9, 222), 'mprotect': (10, 226),
  'munmap': (11, 215), 'brk': (12, 214), 'rt_sigaction': (13, 134),
  'rt_sigprocmask': (14, 135), 'rt_sigreturn': (15, 139), 'pread64': (17, 67),
  'readv': (19, 65), 'writev': (20, 66), 'access': (21, None),
  'pipe': (22, None), 'select': (23, None), 'sched_yield': (24, 124),
  'mremap': (25, 216), 'madvise': (28, 233), 'dup': (32, 23),
  'dup2': (33, None), 'pause': (34, None), 'nanosleep': (35, 101),
  'getitimer': (36, 102), 'alarm': (37, None), 'setitimer': (38, 103),
  'getpid': (39, 172), 'exit': (60, 93), 'kill': (62, 129), 'uname': (63, 160),
  'getcwd': (79, 17), 'readlink': (89, None),
  'gettimeofday': (96, 169), 'getrlimit': (97, 163), 'getrusage': (98, 165),
  'sysinfo': (99, 179), 'times': (100, 153), 'getuid': (102, 174),
  'getgid': (104, 176), 'geteuid': (107, 175), 'getegid': (108, 177),
  'getppid': (110, 173), 'getpgrp': (111, None), 'sigaltstack': (131, 132),
  'gettid': (186, 178), 'time': (201, None), 'futex': (202, 98),
  'sched_getaffinity': (204, 123), 'getdents64': (217, 61),
  'set_tid_address': (218, 96), 'restart_syscall': (219, 128),
  'clock_gettime': (228, 113), 'clock_getres': (229, 114),
  'clock_nanosleep': (230, 115), 'exit_group': (231, 94), 'tgkill': (234, 131),
  'openat': (257, 56), 'newfstatat': (262, 79), 'readlinkat': (267, 78),
  'faccessat': (269, 48), 'pselect6': (270, 72), 'ppoll': (271, 73),
  'set_robust_list': (273, 99), 'dup3': (292, 24), 'pipe2': (293, 59),
  'prlimit64': (302, 261), 'getrandom': (318, 278), 'statx': (332, 291),
  'rseq': (334, 293), 'faccessat2': (439, 439),
}  # fmt: skip
_CLONE, _CLONE3, _PIVOT_ROOT = (56, 220), (435, 435), (155, 41)
_CLONE_THREAD = 0x00010000

_MACHINES = {'x86_64': (0, 0xC000003E), 'aarch64': (1, 0xC00000B7)}


class Denied(RuntimeError):
  """The kernel does not give what confines a program."""


def machine() -> tuple[int, int]:
  """The column of the table of calls, and the kernel's number of the machine.

  Raises:
    Denied: neither Linux on x86-64 nor on aarch64.
  """
  name = platform.machine()
  if platform.system() != 'Linux' or name not in _MACHINES:
    raise Denied(
      f'programs are confined on Linux on {" and ".join(_MACHINES)} only; '
      f'this is {platform.system()} on {name}'
    )
  return _MACHINES[name]


def grant(process: int) -> None:
  """Called by the parent of a process in `enter`: says which user it is.

  Raises:
    Denied: this process may not be mapped so.
  """
  uid, gid = _user()
  for name, text in {
    'setgroups': 'deny',
    'uid_map': f'{uid} {uid} 1',
    'gid_map': f'{gid} {gid} 1',
  }.items():
    try:
      with open(f'/proc/{process}/{name}', 'w', encoding='ascii') as file:
        file.write(text)
    except OSError as error:
      raise Denied(f'{name} of a new user namespace: {error}') from error


def enter(parent: socket.socket, folders: Sequence[str]) -> None:
  """Moves this process into namespaces of its own, with a new, empty root.

  Its next child is the first process of the pid namespace. The process keeps
  rights over these namespaces only.

  Args:
    parent: where to ask for `grant`, by one message each way.
    folders: absolute paths, shown under the same paths, not to be written.

  Raises:
    Denied: the kernel refused a step, which is named.
  """
  uid, gid = _user()
  if uid == NOBODY:
    try:
      os.setgroups([])
    except OSError as error:
      raise Denied(f'to leave the groups of root: {error}') from error
  flags = functools.reduce(operator.or_, _NAMESPACES.values())
  _call('unshare', flags, what=f'new namespaces ({", ".join(_NAMESPACES)})')
  # Opened while we are who we were: folders of root may be closed to nobody.
  shown = {path: os.open(path, os.O_PATH) for path in folders}
  parent.send(b'grant')
  if not parent.recv(1):
    os._exit(1)
  try:
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    _new_root(shown)
  except OSError as error:
    raise Denied(f'another user with a root of its own: {error}') from error
  for fd in shown.values():
    os.close(fd)
  socket.sethostname('sandbox')


def _user() -> tuple[int, int]:
  if os.geteuid() == 0:
    return NOBODY, NOBODY
  return os.geteuid(), os.getegid()


def _new_root(shown: dict[str, int]) -> None:
  fixed = _NOSUID | _NODEV
  _mount(None, '/', None, _REC | _PRIVATE)
  _mount('tmpfs', '/tmp', 'tmpfs', fixed, 'size=64k,nr_inodes=256,mode=755')
  os.chdir('/tmp')
  os.mkdir('old')
  _call('syscall', _PIVOT_ROOT[machine()[0]], b'.', b'old', what='pivot_root')
  os.chdir('/')
  for path, fd in shown.items():
    os.makedirs(path, exist_ok=True)
    # The magic link needs no rights on the folders above.
    _mount(f'/old/proc/self/fd/{fd}', path, None, _BIND | _REC)
    noexec = _NOEXEC if os.statvfs(path).f_flag & os.ST_NOEXEC else 0
    _mount(None, path, None, _REMOUNT | _BIND | _RDONLY | fixed | noexec)
    for name in ('site-packages', 'dist-packages'):
      inner = os.path.join(path, name)
      if os.path.isdir(inner):
        _mount('tmpfs', inner, 'tmpfs', _RDONLY | fixed, 'size=4k')
  _call('umount2', b'/old', _DETACH, what='umount of the old root')
  os.rmdir('/old')
  _mount(None, '/', None, _REMOUNT | _BIND | _RDONLY | fixed)


def drop(memory_bytes: int, cpu_s: int) -> None:
  """Gives up every right that a program must not have.

  After it the process has no capability and cannot gain one, starts no other
  process or program, opens no socket, and changes no file; threads, up to
  `MAX_THREADS`, are left to it. The kernel kills it after `cpu_s` seconds of
  CPU time.

  Raises:
    Denied: the kernel refused a step, which is named.
  """
  os.setsid()  # signals to a process group cross namespaces
  limits = {
    resource.RLIMIT_AS: memory_bytes,
    resource.RLIMIT_CPU: cpu_s,
    resource.RLIMIT_FSIZE: 0,
    resource.RLIMIT_CORE: 0,
    resource.RLIMIT_NOFILE: 128,
    resource.RLIMIT_NPROC: MAX_THREADS,
    resource.RLIMIT_MEMLOCK: 0,
    resource.RLIMIT_MSGQUEUE: 0,
  }
  for kind, most in limits.items():
    resource.setrlimit(kind, (most, most))
  _prctl(38, 1)  # PR_SET_NO_NEW_PRIVS
  _prctl(47, 4)  # PR_CAP_AMBIENT, clear all
  for capability in range(64):
    if _libc().prctl(24, capability, 0, 0, 0) < 0:  # PR_CAPBSET_DROP
      break  # past the last one that this kernel knows
  header = struct.pack('<Ii', 0x20080522, 0)
  _call('capset', header, bytes(24), what='to drop capabilities')
  _filter_calls()


def _filter_calls() -> None:
  """The kernel refuses, with EPERM, what is not in the table."""
  column, architecture = machine()
  allowed = [c[column] for c in _CALLS.values() if c[column] is not None]
  load, equal, any_bit, give = 0x20, 0x15, 0x45, 0x06
  errno_of = lambda number: 0x00050000 | number
  code: list[tuple[int, int, int, int]] = [
    (load, 0, 0, 4),
    (equal, 1, 0, architecture),
    (give, 0, 0, 0x80000000),  # kill: calls of another machine
    (load, 0, 0, 0),
  ]
  tail = [
    # clone3 hides its flags from us; without it the C library takes clone.
    (equal, 0, 1, _CLONE3[column]),
    (give, 0, 0, errno_of(errno.ENOSYS)),
    (equal, 0, 2, _CLONE[column]),
    (load, 0, 0, 16),  # the low half of the first argument
    (any_bit, 1, 0, _CLONE_THREAD),
    (give, 0, 0, errno_of(errno.EPERM)),
    (give, 0, 0, 0x7FFF0000),  # allow
  ]
  for i, number in enumerate(allowed):
    to_allow = len(allowed) - i - 1 + len(tail) - 1
    code.append((equal, to_allow, 0, number))
  code += tail
  packed = b''.join(struct.pack('<HBBI', *line) for line in code)
  lines = ctypes.create_string_buffer(packed, len(packed))
  program = struct.pack('<HxxxxxxQ', len(code), ctypes.addressof(lines))
  _prctl(22, 2, program)  # PR_SET_SECCOMP, by a filter


def _libc() -> ctypes.CDLL:
  return ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, *arguments: int | bytes) -> None:
  filled = (*arguments, 0, 0, 0, 0)[:4]
  wide = [ctypes.c_ulong(x) if isinstance(x, int) else x for x in filled]
  _call('prctl', option, *wide, what=f'prctl({option})')


def _call(name: str, *arguments, what: str) -> None:
  if getattr(_libc(), name)(*arguments) < 0:
    number = ctypes.get_errno()
    raise Denied(f'{what}: {os.strerror(number)}')


def _mount(
  source: str | None,
  target: str,
  kind: str | None,
  flags: int,
  options: str | None = None,
) -> None:
  texts = [None if x is None else x.encode() for x in (source, target, kind)]
  _call(
    'mount',
    *texts,
    ctypes.c_ulong(flags),
    None if options is None else options.encode(),
    what=f'mount on {target}',
  )


def child_namespace(fd: int | None) -> None:
  """Into which pid namespace the next child goes: a new one, or that of `fd`.

  Raises:
    Denied: the kernel refused.
  """
  if fd is None:
    _call('unshare', CLONE_NEWPID, what='a new pid namespace')
  else:
    _call('setns', fd, CLONE_NEWPID, what='the own pid namespace')
