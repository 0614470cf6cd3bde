# SPDX-License-Identifier: Apache-2.0
"""Programs that try to get out, to stay, or to be called right; all real.

Most ask a program `f()` for what an attempt gave, so that a test sees the very
refusal, and not only that nothing happened.
"""

import contextlib
import errno
import functools
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from thicket import sandbox

ROOT = pathlib.Path(__file__).parents[1]
PLAIN = 'def f(x=1):\n  return x + 1'


def job(source, tests='assert f(1) == 2\nassert f(2) == 3', **settings):
  settings = {'names': ('f',)} | settings
  return sandbox.Job((textwrap.dedent(source),), tests, **settings)


@pytest.fixture(scope='module')
def box():
  found = sandbox.Sandbox()
  try:
    assert found.run(job(PLAIN)).passed
  except sandbox.SandboxError as error:
    pytest.skip(f'no confinement here: {error}')
  yield found
  found.close()


def gives(box, source, expected, **settings):
  outcome = box.run(job(source, f'assert f() == {expected!r}', **settings))
  assert outcome.passed, outcome.reason
  # The same comparison can fail.
  other = ('not', expected)
  assert not box.run(job(source, f'assert f() == {other!r}')).passed


def attempt(code, imports='import os'):
  """A program whose `f` returns the number of the error that code ends in."""
  body = textwrap.indent(textwrap.dedent(code), '    ')
  return (
    f'{imports}\ndef f():\n  try:\n{body}\n  except OSError as error:\n'
    '    return error.errno\n  return "it worked"'
  )


REFUSED = {
  'fork': (attempt('os.fork()'), errno.EPERM),
  'fork bomb': (attempt('while True:\n  os.fork()'), errno.EPERM),
  'exec': (attempt('os.execv("/bin/sh", ["sh"])'), errno.EPERM),
  'spawn': (
    attempt('os.posix_spawn("/bin/sh", ["sh"], {})'),
    errno.EPERM,
  ),
  'tcp': (attempt('socket.socket()', 'import socket'), errno.EPERM),
  'unix socket': (
    attempt('socket.socket(socket.AF_UNIX)', 'import socket'),
    errno.EPERM,
  ),
  'shadow': (attempt('open("/etc/shadow")'), errno.ENOENT),
  'passwd': (attempt('open("/etc/passwd")'), errno.ENOENT),
  'proc': (attempt('os.listdir("/proc")'), errno.ENOENT),
  'devices': (attempt('open("/dev/null")'), errno.ENOENT),
  'write': (attempt('open("/x", "w")'), errno.EROFS),
  'write in tmp': (attempt('open("/tmp/x", "w")'), errno.ENOENT),
  'mkdir': (attempt('os.mkdir("/x")'), errno.EPERM),
  'remove': (attempt('os.remove(os.__file__)'), errno.EPERM),
  'rename': (attempt('os.rename(os.__file__, "/x")'), errno.EPERM),
  'chmod': (attempt('os.chmod(os.__file__, 0o777)'), errno.EPERM),
  'chroot': (attempt('os.chroot("/")'), errno.EPERM),
  'become root': (attempt('os.setuid(0)'), errno.EPERM),
  'leave the session': (attempt('os.setsid()'), errno.EPERM),
  'more memory': (
    attempt(
      'top = (1 << 40, 1 << 40)\n'
      'try:\n  resource.setrlimit(resource.RLIMIT_AS, top)\n'
      'except ValueError:\n  return "refused"',
      'import resource',
    ),
    'refused',
  ),
  'signal to the parent': (
    attempt('os.kill(os.getppid() or 2, 9)'),
    errno.ESRCH,
  ),
  'signal to others': (attempt('os.kill(-1, 9)'), errno.ESRCH),
}


@pytest.mark.parametrize('name', REFUSED)
def test_the_kernel_refuses(box, name):
  gives(box, *REFUSED[name])


# By their numbers on x86-64: the C library would hide some of them.
CALLS = {
  'ptrace': (101, 0, 0, 0, 0),
  'mount': (165, 0, b'/', b'tmpfs', 0),
  'umount': (166, b'/', 0),
  'pivot_root': (155, b'.', b'.'),
  'unshare a user namespace': (272, 0x10000000),
  'clone into a namespace': (56, 0x10000000 | 17, 0, 0, 0),
  'vfork': (58,),
  'keyctl': (250, 0, -3, 1),
  'add_key': (248, b'user', b'a', b'b', 1, -3),
  'shared memory': (29, 1, 4096, 0o1777),
  'message queue': (68, 1, 0o1777),
  'memory file': (319, b'a', 0),
  'socketpair': (53, 1, 1, 0, bytes(8)),
  'bpf': (321, 0, 0, 0),
  'io_uring': (425, 1, bytes(120)),
  'perf': (298, bytes(112), 0, -1, -1, 0),
  'other memory': (310, 1, 0, 0, 0, 0, 0),
  'a new seccomp filter': (317, 1, 0, 0),
  'prctl': (157, 4, 1),
  'flags of /dev/null, which all share': (72, 0, 4, 2048),
  'the second table of calls': (0x40000000 | 57,),
  'a call that is not there yet': (1000,),
}


@pytest.mark.skipif(os.uname().machine != 'x86_64', reason='numbers of x86-64')
@pytest.mark.parametrize('name', CALLS)
def test_calls_that_are_not_listed_are_refused(box, name):
  source = f"""
    import ctypes
    def f():
      libc = ctypes.CDLL(None, use_errno=True)
      return libc.syscall(*{CALLS[name]!r}), ctypes.get_errno()
  """
  gives(box, source, (-1, errno.EPERM))


def test_libraries_cannot_be_written(box):
  source = attempt('open(os.__file__, "r+")')
  # As owner of the file the first, as another user the second.
  tests = f'assert f() in ({errno.EROFS}, {errno.EACCES})'
  assert box.run(job(source, tests)).passed


def test_a_program_has_no_rights_and_no_name(box):
  source = """
    import ctypes, os, socket
    def f():
      head = (ctypes.c_uint32 * 2)(0x20080522, 0)
      sets = (ctypes.c_uint32 * 6)()
      asked = ctypes.CDLL(None).capget(head, sets)
      ids = os.getpid(), os.getppid(), os.getuid() == 0
      return asked, ids, socket.gethostname()
  """
  gives(box, source, (-1, (1, 0, False), 'sandbox'))


DROP = """
from thicket.sandbox import confinement
confinement.drop(1 << 32, 60)
print(open('/proc/self/status').read())
"""


def test_no_capability_is_kept():
  done = subprocess.run(
    [sys.executable, '-c', DROP],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  told = dict(line.split(':\t', 1) for line in done.stdout.split('\n') if line)
  kinds = ['CapInh', 'CapPrm', 'CapEff', 'CapAmb']
  # Who is not root here is so only in the namespaces of the sandbox.
  kinds += ['CapBnd'] if os.geteuid() == 0 else []
  assert {int(told[kind], 16) for kind in kinds} == {0}
  assert (told['NoNewPrivs'], told['Seccomp']) == ('1', '2')


def test_there_is_nothing_to_see(box, monkeypatch):
  monkeypatch.setenv('SECRET_TOKEN', 'abc')
  fresh = sandbox.Sandbox()
  source = """
    import ctypes, os, sys
    def f():
      libc = ctypes.CDLL(None)
      libc.getenv.restype = ctypes.c_char_p
      return dict(os.environ), libc.getenv(b'SECRET_TOKEN'), sys.argv
  """
  gives(fresh, source, ({}, None, ['-c']))
  fresh.close()
  # Of the whole tree only the standard library is there, without packages.
  source = """
    import os
    def f():
      held = set()
      for folder, _, files in os.walk('/'):
        held |= {folder} if files else set()
      library = os.path.dirname(os.__file__)
      return [x for x in held if not x.startswith(library)], [
        x for x in held if 'site-packages' in x or 'dist-packages' in x
      ]
  """
  gives(box, source, ([], []))


def test_no_file_is_inherited(box, tmp_path):
  with (tmp_path / 'open').open('w') as file:
    os.set_inheritable(file.fileno(), True)
    fresh = sandbox.Sandbox()
    source = """
      import os
      def f():
        held = []
        for fd in range(4096):
          try:
            kind = os.fstat(fd).st_mode >> 12
          except OSError:
            continue
          held.append((kind, os.isatty(fd)))
        return held
    """
    character, a_socket = 0o2, 0o14
    # /dev/null three times, and the way to the tests.
    gives(fresh, source, [(character, False)] * 3 + [(a_socket, False)])
    fresh.close()


# What must end by itself, and how the outcome says so.

HUNGRY = {
  'an endless loop': ('def f(x):\n  while True: pass', 'killed by the kernel'),
  'one at the start': ('while True: pass', 'killed by the kernel'),
  'one that catches all': (
    'def f(x):\n  while True:\n    try:\n      while True: pass\n'
    '    except BaseException: pass',
    'killed by the kernel',
  ),
  'one that ignores signals': (
    'import signal\nfor i in range(1, 32):\n  try: signal.signal(i, 1)\n'
    '  except Exception: pass\ndef f(x):\n  while True: pass',
    'killed by the kernel',
  ),
  'one in C': (
    'def f(x):\n  return max(range(10 ** 12))',
    'killed by the kernel',
  ),
  'sleep': ('import time\ndef f(x):\n  time.sleep(99)', 'not done after 2 s'),
  'a lock': (
    'import threading\ndef f(x):\n  lock = threading.Lock()\n'
    '  lock.acquire()\n  lock.acquire()',
    'not done after 2 s',
  ),
  'memory': ('def f(x):\n  return "a" * (1 << 30)', 'MemoryError'),
  'memory, slowly': (
    'def f(x):\n  a = []\n  while True: a.append(bytearray(1 << 24))',
    'MemoryError',
  ),
  'too much to tell': (
    'def f(x):\n  return "a" * (1 << 25)',
    'Ended: a message of',
  ),
  'recursion': ('def f(x):\n  return f(x)', 'RecursionError'),
  'recursion without a limit': (
    'import sys\nsys.setrecursionlimit(1 << 30)\n'
    'def f(x):\n  return sorted([x], key=f)',
    'the program ended',
  ),
  'a list of itself': (
    'def f(x):\n  a = []\n  a.append(a)\n  return a',
    'RecursionError',
  ),
  'a range to be listed': ('def f(x):\n  return range(1 << 60)', 'not f(1)'),
  'input': ('def f(x):\n  return int(input())', 'EOFError'),
  'os._exit': ('import os\ndef f(x):\n  os._exit(0)', 'the program ended'),
  'os._exit at the start': ('import os\nos._exit(0)', 'the program ended'),
  'sys.exit': ('import sys\ndef f(x):\n  sys.exit(0)', 'SystemExit'),
  'abort': ('import os\ndef f(x):\n  os.abort()', ''),
  'a fault': (
    'import ctypes\ndef f(x):\n  ctypes.string_at(0)',
    'the program ended',
  ),
  'signals to its group': (
    'import os\ndef f(x):\n  os.kill(0, 9)\n  return "alive"',
    'not f(1)',
  ),
  'no program': ('What is f?', 'SyntaxError'),
  'no function': ('g = 1', 'NameError'),
  'a name for another thing': ('f = 2', 'TypeError'),
  'a null': ('def f(x):\n  return "\0"', 'null bytes'),
  'half a character': ('f = "\ud800"', 'UnicodeEncodeError'),
  'deep brackets': ('f = ' + '(' * 9999, 'SyntaxError'),
}


@pytest.mark.parametrize('name', HUNGRY)
def test_what_does_not_answer_fails_and_says_why(box, name):
  source, reason = HUNGRY[name]
  wall_s = 2.0 if 'not done' in reason else 60.0
  outcome = box.run(job(source, cpu_s=1, wall_s=wall_s, memory_bytes=1 << 27))
  assert not outcome.passed
  assert reason in outcome.reason, outcome.reason
  assert box.run(job(PLAIN)).passed  # and the next one is not the worse for it


@pytest.mark.parametrize(
  ('value', 'use'),
  [
    ('range(1 << 60)', 'list(f()) == [1]'),
    ('range(1 << 60)', 'sum(f()) == 1'),
    ('[[]] * 1_000_000', 'f() == 1'),
    ('1 << 10_000_000', 'str(f()) == "1"'),
    ('functools.reduce(lambda x, _: [x], range(900), 1)', 'f() == 1'),
  ],
)
def test_answers_that_are_too_much_are_wrong(box, value, use):
  source = f'import functools\ndef f():\n  return {value}'
  assert not box.run(job(source, f'assert {use}', cpu_s=1)).passed
  assert box.run(job(PLAIN)).passed


def test_output_is_nowhere(box, capfd):
  source = """
    import os, sys
    def f(x):
      for _ in range(100):
        print('x' * 100_000)
        sys.stderr.write('y' * 100_000)
        os.write(1, b'z' * 100_000)
      return x + 1
  """
  assert box.run(job(source)).passed
  assert capfd.readouterr() == ('', '')


def test_threads_are_few_and_end_with_the_tests(box):
  source = """
    import threading, time
    count = 0
    def run():
      while True: time.sleep(1)
    try:
      while True:
        threading.Thread(target=run).start()
        count += 1
    except RuntimeError: pass
    def f():
      return 0 < count < 20
  """
  # With room for the stacks of many.
  assert box.run(job(source, 'assert f()', memory_bytes=1 << 38)).passed
  assert _descendants(os.getpid(), depth=3) == set()


# What wants to be right without being right.

FORGERIES = {
  'equal to everything': """
    class Any:
      def __eq__(self, other): return True
      def __bool__(self): return True
      __req__ = __eq__
    def f(x): return Any()
  """,
  'an equal number': """
    class Any(int):
      def __eq__(self, other): return True
      def __ne__(self, other): return False
      __hash__ = int.__hash__
    def f(x): return Any(9)
  """,
  'an equal list': """
    class Any(list):
      def __eq__(self, other): return True
    def f(x): return Any()
  """,
  'no assertions': """
    import builtins, sys
    builtins.AssertionError = type('Never', (BaseException,), {})
    builtins.print = builtins.exit = builtins.all = lambda *a: True
    sys.flags = None
    def f(x): return 9
  """,
  'a patched process': """
    import json, os, sys
    from thicket.sandbox import inside, values, zygote
    passed = {'passed': True, 'behaviour': '', 'reason': ''}
    dumps, json.dumps = json.dumps, lambda *a, **k: dumps(passed)
    inside.check = lambda *a: passed
    values.encode = lambda *a: True
    zygote._run = lambda *a: {}
    def f(x): return 9
  """,
  'a verdict on every file': """
    import os
    verdict = b'{"passed": true, "behaviour": "a", "reason": ""}'
    for fd in range(3, 200):
      for data in (verdict, len(verdict).to_bytes(8, 'little') + verdict):
        try: os.write(fd, data)
        except OSError: pass
    os._exit(0)
  """,
  'a good end within a test': """
    import os
    def f(x): os._exit(0)
  """,
  'a good end': """
    import atexit, os, sys
    atexit.register(lambda: os._exit(0))
    sys.exitfunc = sys.excepthook = lambda *a: os._exit(0)
    sys.exit(0)
  """,
  'a thread that answers later': """
    import os, threading
    def say():
      while True:
        try: os.write(65, bytes(8))
        except OSError: return
    threading.Thread(target=say, daemon=True).start()
    def f(x): return 9
  """,
  'an exception for a value': """
    def f(x): raise AssertionError(x + 1)
  """,
  'its own tools for the tests': """
    def f(x): return 9
    abs = bool = all = len = lambda *a: 0
  """,
  'a value that cannot be': """
    import os
    from thicket.sandbox import inside
    inside.Pipe.send = lambda self, message: os.write(
      self._fd, (13).to_bytes(8, 'little') + b'["int", "zz"]')
    def f(x): return 9
  """,
}


@pytest.mark.parametrize('name', FORGERIES)
def test_nothing_but_the_answer_counts(box, name):
  assert not box.run(job(FORGERIES[name], cpu_s=1, wall_s=60.0)).passed
  # Also where the tests would swallow anything.
  tests = 'try:\n  assert f(1) == 2\nexcept:\n  pass'
  assert not box.run(job(FORGERIES[name], tests, cpu_s=1, wall_s=60.0)).passed


def test_the_process_of_a_program_holds_no_test(box):
  secret = 'the answer is 4711'
  letters = [ord(letter) for letter in secret]  # not to find itself
  source = f"""
    import gc, sys
    def held():
      frame = sys._getframe(1)
      while frame:
        yield from map(repr, frame.f_locals.values())
        frame = frame.f_back
      for value in gc.get_objects():
        if isinstance(value, (dict, list, tuple)):
          yield repr(value)
    def f():
      return any(''.join(map(chr, {letters})) in text for text in held())
  """
  assert box.run(job(source, f'assert f() == (not {secret!r})')).passed
  # It does find what is there.
  kept = f'{textwrap.dedent(source)}\nkept = [{secret!r}]'
  assert box.run(job(kept, 'assert f()')).passed


def test_nothing_is_left_for_the_next(box):
  first = """
    import builtins, math, os, random, sys, types
    builtins.sorted = lambda x: 9
    math.pi = 3
    os.left = sys.left = True
    random.seed(7)
    sys.modules['left'] = types.ModuleType('left')
    sys.setrecursionlimit(5000)
    def f(): return 1
  """
  second = """
    import math, os, sys
    def f():
      left = hasattr(os, 'left') or 'left' in sys.modules
      return sorted([]), math.pi > 3, left, sys.getrecursionlimit()
  """
  assert box.run(job(first, 'assert f() == 1')).passed
  gives(box, second, ([], True, False, 1000))


def test_chance_is_the_same_each_time(box):
  source = """
    import random
    def f():
      return random.random(), list({'a', 'b', 'c', 'd', 'e'}), hash('a')
  """
  tests = 'assert f()'
  fresh = sandbox.Sandbox()
  found = {x.run(job(source, tests)).behaviour for x in (box, box, fresh)}
  fresh.close()
  assert len(found) == 1
  assert '' not in found


# Values, in both directions.


@pytest.mark.parametrize(
  'value',
  [
    'None', 'True', '-7', '10 ** 5000', '0.1', '-0.0', '1e300 * 1e10',
    '"a\\x00\\u20ac\\ud800"', '[1, [2.5, (3, None)]]', '(1,)', '()', '{1, 2}',
    'frozenset({1})', '{1: {"a": [2]}, (1, 2): 3}', '1j', 'b"\\x00\\xff"',
    'bytearray(b"a")', 'range(2, 9, 3)', 'Decimal("1.10")', 'Fraction(1, 3)',
    'datetime(2020, 7, 15, 1, 2, 3, 4)', 'date(2020, 7, 15)', 'time(1, 2, 3)',
    'timedelta(1, 2, 3)', 'deque([1, 2])', 'int', '[str, float, dict]',
  ],
)  # fmt: skip
def test_values_cross_unchanged(box, value):
  imports = (
    'from collections import deque\nfrom datetime import *\n'
    'from decimal import Decimal\nfrom fractions import Fraction\n'
  )
  source = f'{imports}def f(x):\n  return x, x == {value}, {value}'
  tests = (
    f'x = {value}\nback, same, made = f(x)\n'
    'assert same is True and back == x and made == x\n'
    'assert type(back) is type(made) is type(x)'
  )
  outcome = box.run(job(source, tests, context=imports))
  assert outcome.passed, outcome.reason


@pytest.mark.parametrize(
  ('made', 'told'),
  [
    ('collections.Counter("aab")', "{'a': 2, 'b': 1}"),
    ('collections.OrderedDict(a=1)', "{'a': 1}"),
    ('collections.defaultdict(list, {1: [2]})', '{1: [2]}'),
    ('collections.namedtuple("P", "x y")(1, 2)', '(1, 2)'),
    ('enum.IntEnum("E", "A B").B', '2'),
    ('type("S", (str,), {})("a")', "'a'"),
  ],
)
def test_a_subclass_crosses_as_what_it_stands_on(box, made, told):
  source = f'import collections, enum\ndef f():\n  return {made}'
  outcome = box.run(job(source, f'x = f()\nassert x == {told}\n'
                                f'assert type(x) is type({told})'))  # fmt: skip
  assert outcome.passed, outcome.reason


def test_objects_stay_and_are_used_from_afar(box):
  source = """
    class Node:
      def __init__(self, value): self.value, self.left = value, None
      def double(self): return self.value * 2
    def total(node):
      return node.value + (total(node.left) if node.left else 0)
    def chain(nodes): return sum(map(total, nodes))
    def gen(n):
      yield from range(n)
    def grow(items): items.append(1)
  """
  tests = """if True:
    root = Node(1)
    root.left = Node(2)
    root.left.left = Node(3)
    assert total(root) == 6
    assert chain([root, Node(value=4)]) == 10
    assert root.left.value == 2 and root.double() == 2
    assert list(gen(3)) == [0, 1, 2] and tuple(gen(0)) == ()
    assert gen(1) != [0] and root != Node(1) and root == root
    assert repr(root) == '<Node of the program>'
    kept = []
    assert grow(kept) is None and kept == []
  """
  names = ('Node', 'total', 'chain', 'gen', 'grow')
  outcome = box.run(job(source, tests, names=names))
  assert outcome.passed, outcome.reason
  wrong = tests.replace('== 6', '== 7')
  assert box.run(job(source, wrong, names=names)).reason == (
    'not total(root) == 7'
  )


def test_what_a_program_raises_is_raised_in_its_tests(box):
  source = """
    class Mine(Exception): pass
    def f(x):
      if x == 0: raise ValueError('low')
      if x == 1: raise Mine('own')
      if x == 2: b'\\xff'.decode()
      raise KeyboardInterrupt
  """
  tests = """if True:
    found = []
    for x in range(4):
      try:
        f(x)
      except ValueError as error:
        found.append(str(error))
      except Exception as error:
        found.append((type(error).__name__, str(error)))
    assert found[0] == 'low'
    assert found[1] == ('ProgramError', 'Mine: own')
    kind, words = found[2]
    assert kind == 'ProgramError' and words.startswith('UnicodeDecodeError:')
    assert found[3] == ('ProgramError', 'KeyboardInterrupt: ')
  """
  outcome = box.run(job(source, tests))
  assert outcome.passed, outcome.reason


def test_a_function_of_the_tests_cannot_go_to_a_program(box):
  outcome = box.run(job(PLAIN, 'assert f(lambda: 1) == 2'))
  assert outcome.reason.startswith('TypeError: function of a test cannot go')


# Behaviour.


def behaviour(box, source, tests):
  return box.run(job(source, tests, cpu_s=1)).behaviour


def test_behaviour_is_what_is_answered_and_nothing_else(box):
  tests = 'for x in range(3):\n  assert f(x) == x'
  find = functools.partial(behaviour, box, tests=tests)
  wrong = find('def f(x):\n  return x + 1')
  assert find('one = 1\nf = lambda y: one + y') == wrong
  assert find('def f(x):\n  return float(x + 1)') == wrong
  assert find('def f(x):\n  return x + 1 + 1e-13') == wrong
  assert find('def f(x):\n  return x + 1.001') != wrong
  assert find('def f(x):\n  return str(x + 1)') != wrong
  # The third call counts, though the first assertion fails.
  assert find('def f(x):\n  return min(x + 1, 2)') != wrong
  # What is expected does not.
  assert behaviour(
    box,
    'def f(x):\n  return x + 1',
    'for x in range(3):\n  assert f(x) == x + 1',
  ) == wrong  # fmt: skip
  raises = 'def f(x):\n  if x: raise {}\n  return 1'
  assert find(raises.format('ValueError')) == find(raises.format('ValueError'))
  assert find(raises.format('ValueError')) != find(raises.format('KeyError'))
  assert find(raises.format('ValueError')) != wrong


@pytest.mark.parametrize(
  ('one', 'two', 'is_same'),
  [
    ('{1, 2, "a"}', '{"a", 2, 1}', True),
    ('{"a": 1, "b": 2}', '{"b": 2, "a": 1}', True),
    ('[1, 2]', '[2, 1]', False),
    ('[1]', '(1,)', False),
    ('True', '1', True),
    ('{1}', 'frozenset({1})', True),
    ('{}', 'set()', False),
    ('[["a", "b"]]', '[["a,b"]]', False),
    ('float("nan")', 'float("nan")', True),
    ('12345678901234', '12345678901235', False),
    ('0.1 + 0.2', '0.3', True),
    ('1', '"1"', False),
    ('None', '"None"', False),
  ],
)
def test_equal_values_are_one_behaviour(box, one, two, is_same):
  first, second = (
    behaviour(box, f'def f():\n  return {value}', 'assert f()')
    for value in (one, two)
  )
  assert (first == second) is is_same


@pytest.mark.parametrize(
  'source',
  ['', 'def', 'raise ValueError', 'f = 1', 'def f(x): raise ValueError',
   'def f(x):\n  while True: pass'],
)  # fmt: skip
def test_a_program_without_an_answer_has_no_behaviour(box, source):
  outcome = box.run(job(source, cpu_s=1))
  assert outcome.behaviour == ''
  assert not outcome.passed


# Where it lives.


def _parents():
  """Every process and its parent, zombies left out."""
  found = {}
  for entry in pathlib.Path('/proc').iterdir():
    if entry.name.isdigit():
      try:
        state, parent = (
          (entry / 'stat').read_text().rpartition(')')[2].split()[:2]
        )
      except (FileNotFoundError, ProcessLookupError):
        continue
      if state != 'Z':
        found[int(entry.name)] = int(parent)
  return found


def _descendants(process, depth=99):
  """Processes below one; those at `depth` steps or deeper if it is given."""
  parents, found, level = _parents(), set(), {process}
  for step in range(1, 9):
    level = {child for child, parent in parents.items() if parent in level}
    if depth == 99 or step >= depth:
      found |= level
  return found


DRIVER = """
import sys
from thicket import sandbox
print('ready', flush=True)
sandbox.run(sandbox.Job(('import time\\ndef f():\\n  time.sleep(999)',),
                        'assert f()', ('f',), wall_s=999.0))
"""


@contextlib.contextmanager
def asleep():
  """A process that runs a program which sleeps, and all that is below it."""
  with subprocess.Popen(
    [sys.executable, '-c', DRIVER], cwd=ROOT, stdout=subprocess.PIPE
  ) as driver:
    try:
      driver.stdout.readline()
      # Two of the sandbox, the program and its tests.
      while len(below := _descendants(driver.pid)) < 4:
        assert driver.poll() is None
        time.sleep(0.02)
      yield driver.pid, below
    finally:
      driver.kill()


@pytest.mark.skipif(os.geteuid() != 0, reason='looks into other processes')
def test_how_a_program_is_held_as_seen_from_outside(box):
  with asleep() as (driver, _):
    program, tests = sorted(_descendants(driver, depth=3))
    for process in (program, tests):
      folder = pathlib.Path('/proc', str(process))
      while 'Seccomp:\t2' not in (folder / 'status').read_text():
        time.sleep(0.02)  # it is about to confine itself
      for kind in ('user', 'mnt', 'pid', 'net', 'ipc', 'uts'):
        link = f'ns/{kind}'
        assert os.readlink(folder / link) != os.readlink(f'/proc/self/{link}')
      told = (folder / 'status').read_text()
      nobody = '\t'.join(['65534'] * 4)
      assert f'Uid:\t{nobody}\nGid:\t{nobody}\n' in told
      assert 'CapEff:\t0000000000000000' in told
      limits = (folder / 'limits').read_text().split('\n')
      most = {line[:26].strip(): line[26:].split()[:2] for line in limits}
      assert most['Max open files'] == ['128', '128']
      assert most['Max file size'] == ['0', '0']
      assert most['Max core file size'] == ['0', '0']
    assert os.readlink(f'/proc/{program}/ns/pid') != (
      os.readlink(f'/proc/{tests}/ns/pid')
    )


def test_all_ends_with_the_process_that_asked(box):
  with asleep() as (_, below):
    pass
  for _ in range(500):
    if not below & set(_parents()):
      break
    time.sleep(0.02)
  assert below & set(_parents()) == set()


def test_a_sandbox_that_is_killed_is_told_and_started_again(box):
  fresh = sandbox.Sandbox()
  assert fresh.run(job(PLAIN)).passed
  for process in _descendants(fresh._process.pid):
    os.kill(process, signal.SIGKILL)
  with pytest.raises(sandbox.SandboxError, match='was it killed'):
    fresh.run(job(PLAIN))
  assert fresh.run(job(PLAIN)).passed
  fresh.close()


def test_outcomes_are_remembered(box, monkeypatch):
  asked = []
  real = sandbox.Sandbox.run
  monkeypatch.setattr(
    sandbox.Sandbox, 'run', lambda *a: asked.append(a) or real(*a)
  )
  new = f'{PLAIN}\n# {time.time_ns()}'
  assert sandbox.run(job(new)) == sandbox.run(job(new))
  assert len(asked) == 1
  assert not sandbox.run(job(new, 'assert f(1) == 3')).passed
  assert len(asked) == 2


@pytest.fixture
def elsewhere(tmp_path_factory):
  """A copy that any user may read, and a Python that any user may run."""
  python = next(
    (
      path
      for path in ('/usr/bin/python3', '/usr/local/bin/python3')
      if os.path.exists(path) and _version(path) >= (3, 11)
    ),
    None,
  )
  if os.geteuid() or python is None or not shutil.which('setpriv'):
    pytest.skip('needs root, setpriv, and a system Python 3.11 or newer')
  folder = pathlib.Path(
    subprocess.check_output(['mktemp', '-d'], text=True).strip()
  )
  shutil.copytree(ROOT / 'thicket/sandbox', folder / 'thicket/sandbox')
  for name in ('__init__.py', 'version.py'):
    shutil.copy(ROOT / 'thicket' / name, folder / 'thicket')
  subprocess.run(['chmod', '-R', 'a+rX', folder], check=True)
  yield folder, python
  shutil.rmtree(folder)


def _version(python):
  told = subprocess.check_output(
    [python, '-c', 'import sys; print(*sys.version_info[:2])'], text=True
  )
  return tuple(map(int, told.split()))


ASK = """
from thicket import sandbox
try:
  print(sandbox.run(sandbox.Job(
    ('import os\\ndef f():\\n  return os.getuid(), os.listdir("/")',),
    'x, y = f()\\nassert x == 12345 and "etc" not in y', ('f',))))
except sandbox.SandboxError as error:
  print(error)
"""


def _as_user(elsewhere, *before):
  folder, python = elsewhere
  return subprocess.run(
    ['setpriv', '--reuid=12345', '--regid=12345', '--clear-groups', *before,
     python, '-c', ASK],
    cwd=folder,
    capture_output=True,
    text=True,
    check=True,
  ).stdout  # fmt: skip


def test_it_needs_no_root(box, elsewhere):
  assert 'Outcome(passed=True' in _as_user(elsewhere)


def test_without_namespaces_nothing_is_run(box, elsewhere):
  told = _as_user(
    elsewhere,
    *('unshare', '--user', '--map-current-user', '--keep-caps', 'sh', '-c'),
    'echo 0 > /proc/sys/user/max_user_namespaces; exec "$0" "$@"',
  )
  assert (
    'new namespaces (user, mount, pid, network, ipc, uts): No space' in told
  )
  assert 'kernel.unprivileged_userns_clone=1' in told


def test_without_a_user_to_become_nothing_is_run(box, elsewhere):
  told = _as_user(elsewhere, 'unshare', '--user', '--map-root-user')
  assert 'to leave the groups of root' in told
  assert 'in confinement or not at all' in told


def test_other_machines_are_refused(monkeypatch):
  monkeypatch.setattr('platform.machine', lambda: 'riscv64')
  with pytest.raises(
    sandbox.confinement.Denied, match='this is Linux on riscv64'
  ):
    sandbox.confinement.machine()
