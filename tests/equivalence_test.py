# SPDX-License-Identifier: Apache-2.0
"""Equivalent answers, and the process that is asked about them."""

import importlib.util
import multiprocessing
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import threading
import time

import pytest

from thicket import judging, tasks
from thicket.tasks import base, equivalence, latex, sympy_worker

ROOT = pathlib.Path(__file__).parents[1]
SLOW = r'\int_0^1\sin(x^x)\cos(e^x)dx'  # sympy looks for this for minutes


@pytest.fixture(scope='module', autouse=True)
def _no_process_is_left():
  yield
  equivalence.close()


def same(one, other, limit_s=20.0):
  return equivalence.same(latex.normal(one), latex.normal(other), limit_s)


@pytest.mark.parametrize(
  ('one', 'other'),
  [
    (r'2\sqrt{3}', r'\sqrt{12}'),
    (r'\frac{1}{\sqrt{2}}', r'\frac{\sqrt{2}}{2}'),
    (r'\sqrt{2}+\sqrt{3}', r'\sqrt{5+2\sqrt{6}}'),
    (r'0.5\pi', r'\frac{\pi}{2}'),
    ('(a+5)(b+2)', 'ab+2a+5b+10'),
    ('6-5i', '-5i+6'),
    (r'\cot x', r'\frac{1}{\tan x}'),
    (r'\binom{2n}{n}', r'\frac{(2n)!}{(n!)^2}'),
    ('2^{1009}', r'2 \cdot 4^{504}'),
    ('f(x)=2x', '2x'),
    ('y=2x+3', '2x-y+3=0'),
    ('5x-7y+11z+4=0', '10x-14y+22z=-8'),
    ('x>5', r'(5,\infty)'),
    (r'1\pm\sqrt{19}', r'-\sqrt{19}+1, 1+\sqrt{19}'),
    (r'\left(\frac{\pi}{2}, 2\sqrt{3}\right)', r'(0.5\pi, \sqrt{12})'),
    (r'[-\sqrt{4}, 7]', '[-2, 7]'),
    (r'(2,\sqrt{9}) \cup (4,5)', r'(4,5) \cup (2,3)'),
    ('3R^2', '3r^2'),
    ('a=2,b=3', 'b=3,a=2'),
  ],
)
def test_equivalent_answers(one, other):
  assert same(one, other)
  assert same(other, one)


@pytest.mark.parametrize(
  ('one', 'other'),
  [
    (r'\sqrt{2}', '1.414214'),
    (r'\sqrt{2}', r'\sqrt{3}'),
    ('1/3', '0.333333'),
    (r'10^{-30}\pi', r'10^{-31}\pi'),
    (r'\pi+10^{-20}', r'\pi'),
    ('e^{-50}', 'e^{-60}'),
    ('6m', '6'),
    ('N-n', '0'),
    ('2x', '2y'),
    ('x^2', 'x^3'),
    (r'(3,\sqrt{16}]', '(3,4)'),
    (r'(\sqrt{4},1)', '(1,2)'),
    (r'\sqrt{2},\sqrt{3}', r'\sqrt{2}'),
    ('a=2,b=3', 'a=3,b=2'),
    ('52_8', '52'),
    (r'\text{even}', 'neve'),
    ('x>5', r'[5,\infty)'),
    (r'\frac{1}{0}', r'\frac{2}{0}'),
  ],
)
def test_different_answers(one, other):
  assert not same(one, other)
  assert not same(other, one)


def test_classes_are_closed_and_numbered_in_order():
  answers = [r'2\sqrt{3}', '5', r'\sqrt{12}', '7', r'\sqrt{3}+\sqrt{3}', '5']
  assert equivalence.classes(answers, 20.0) == [0, 1, 0, 2, 0, 1]
  assert equivalence.classes(answers[::-1], 20.0) == [0, 1, 2, 1, 0, 1]
  assert equivalence.classes([]) == []


def test_classes_are_the_closure_of_a_relation_with_gaps(monkeypatch):
  pairs = {frozenset('ac'), frozenset('bc'), frozenset('de')}
  monkeypatch.setattr(
    equivalence, 'same', lambda x, y, limit_s: frozenset((x, y)) in pairs
  )
  assert equivalence.classes('abdcef') == [0, 0, 1, 0, 1, 2]
  assert equivalence.classes('fecdba') == [0, 1, 2, 1, 2, 2]


def test_equal_strings_and_numbers_start_no_process():
  equivalence.close()
  assert same(r'\frac{x}{2}', r'\dfrac{x}{2}')
  assert not same('1/3', '0.33')
  assert not same('(1,2)', '1,2')
  assert equivalence.classes(['1', '2', '1']) == [0, 1, 0]
  assert equivalence._worker is None


def test_a_question_is_asked_once():
  assert same(r'\sqrt{8}', r'2\sqrt{2}')
  asked = equivalence.counts()['asked']
  assert same(r'2\sqrt{2}', r'\sqrt{8}')
  assert same(r'(1,\sqrt{8})', r'(1,2\sqrt{2})')
  assert equivalence.counts()['asked'] == asked


@pytest.mark.parametrize(
  'text',
  [
    *('9**9**9', '9^{9^{9}}', '10^{10^{10}}', '(2^{999})^{999}', '2^{99999}'),
    *('9999!', '3!!', '1' * 41 + 'x', 'x+' * 200 + 'x'),
    r'\sqrt{' * 13 + 'x' + '}' * 13,
    ','.join(f'x+{i}' for i in range(99)),
  ],
)
def test_texts_beyond_the_limits_are_not_parsed(text):
  before = equivalence.counts()
  assert not same(text, r'\sqrt{7}' if ',' not in text else r'\sqrt{7},x')
  after = equivalence.counts()
  assert after == before | {'refused': before['refused'] + 1}
  assert same(text, text)  # strings are strings


def test_a_text_that_takes_too_long_is_different_and_counted(caplog):
  before = equivalence.counts()
  assert same('x+x', '2x')
  first = equivalence._worker._process.pid
  assert not same(SLOW, r'\sqrt{2}', 0.2)
  assert not same(SLOW, r'\sqrt{2}', 0.2)  # remembered
  after = equivalence.counts()
  assert after['timed_out'] == before['timed_out'] + 1
  assert after['died'] == before['died']
  assert 'took over 0.2 s: not equivalent' in caplog.text
  assert not os.path.exists(f'/proc/{first}')
  assert same('x+x+x', '3x')  # by a new process
  assert equivalence._worker._process.pid != first


def test_one_timeout_ends_a_comparison_of_many_parts():
  before = equivalence.counts()['timed_out']
  many = ','.join(f'{SLOW}+{i}' for i in range(9))
  assert not same(f'({many})', many.replace('dx', 'dx+1').join('()'), 0.1)
  assert equivalence.counts()['timed_out'] == before + 1


def test_a_process_that_is_killed_is_replaced():
  assert same('y+y', '2y')
  equivalence._worker._process.kill()
  equivalence._worker._process.wait()
  before = equivalence.counts()['died']
  assert not same('y+y+y', '3y')
  assert equivalence.counts()['died'] == before + 1
  assert same('y+y+y+y', '4y')


@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
def test_memory_and_noise_of_the_process_are_limited():
  assert same('z+z', '2z')
  pid = equivalence._worker._process.pid
  limits = pathlib.Path(f'/proc/{pid}/limits').read_text()
  (line,) = (x for x in limits.splitlines() if 'address space' in x)
  assert line.split()[3:5] == [str(sympy_worker.MAX_BYTES)] * 2
  os.kill(pid, signal.SIGINT)  # Ctrl-C is for the parent
  assert same('z+z+z', '3z')


def test_nothing_is_evaluated(tmp_path):
  made = tmp_path / 'made'
  text = f'__import__("os").system("touch {made}")'
  assert not same(text, r'\sqrt{5}')
  assert not same(f'x.open("{made}","w")', r'\sqrt{5}')
  assert not made.exists()


def test_threads_share_the_process():
  found = []
  threads = [
    threading.Thread(
      target=lambda i=i: found.append(same(f'a+{i}a', f'{i + 1}a'))
    )
    for i in range(1, 9)
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert found == [True] * 8


def _ask_in_child(queue):
  queue.put((same('b+b+b', '3b'), equivalence._worker._process.pid))
  equivalence.close()


# A process with threads is forked on purpose: it has a lock and a worker.
@pytest.mark.filterwarnings('ignore:.*fork:DeprecationWarning')
@pytest.mark.filterwarnings('ignore:os.fork:RuntimeWarning')
@pytest.mark.parametrize('method', ['fork', 'spawn'])
def test_a_child_asks_a_process_of_its_own(method):
  assert same('b+b', '2b')
  ours = equivalence._worker._process.pid
  context = multiprocessing.get_context(method)
  queue = context.Queue()
  # Daemonic: multiprocessing allows it no children, which ours is not.
  child = context.Process(target=_ask_in_child, args=(queue,), daemon=True)
  child.start()
  is_same, theirs = queue.get(timeout=120)
  child.join()
  assert is_same
  assert theirs != ours
  assert equivalence._worker._process.pid == ours
  assert same('b+b+b+b', '4b')


def test_judges_in_processes_agree_with_this_one():
  task = tasks.make('math500', comparison_limit_s=20.0)
  assert pickle.loads(pickle.dumps(task)) == task
  row = base.Example(3, 'How long?', r'2\sqrt{3}', {'released_gold': ''})
  texts = [r'\boxed{\sqrt{12}}', r'\boxed{\sqrt{13}}', r'\boxed{2\sqrt3}', '']
  asked = [(row, text) for text in texts] * 3
  judges = judging.Judges(task, 2)
  found = judges(asked)
  judges.close()
  assert [x.is_correct for x in found] == [True, False, True, False] * 3
  assert found == judging.Judges(task)(asked)


PARENT = r"""
import os, signal, sys
from thicket.tasks import equivalence
assert equivalence.same('a+a', '2a', 60.0)
print(equivalence._worker._process.pid, flush=True)
how = sys.argv[1]
if how == 'killed':
  os.kill(os.getpid(), signal.SIGKILL)
if how == 'killed while it waits':
  signal.alarm(1)  # ends this process without a word
  equivalence.same(r'\int_0^1\sin(x^x)\cos(e^x)dx', '2a', 2.0)
"""


@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
@pytest.mark.parametrize('how', ['ends', 'killed', 'killed while it waits'])
def test_the_process_ends_with_its_parent(how):
  done = subprocess.run(
    [sys.executable, '-W', 'error', '-c', PARENT, how],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  # The pipes are read to their end: nobody holds them any more.
  code = {'ends': 0, 'killed': -signal.SIGKILL}.get(how, -signal.SIGALRM)
  assert (done.returncode, done.stderr) == (code, '')
  path = pathlib.Path(f'/proc/{done.stdout.strip()}')
  while path.exists() and ' Z ' not in (path / 'stat').read_text():
    time.sleep(0.01)  # pytest's own limit is the only one


def test_a_missing_library_is_named_with_its_extra(monkeypatch):
  find = importlib.util.find_spec
  monkeypatch.setattr(
    importlib.util,
    'find_spec',
    lambda name, *args: None if name == 'math_verify' else find(name, *args),
  )
  for name in ('math500', 'olympiadbench'):
    with pytest.raises(base.TaskError, match=rf"{name} .*'thicket\[math\]'"):
      tasks.make(name)


def test_a_process_that_does_not_start_is_explained(monkeypatch):
  equivalence.close()
  monkeypatch.setattr(sys, 'executable', '/bin/false')
  with pytest.raises(base.TaskError, match='does not start'):
    same('c+c', '2c')
  monkeypatch.undo()
  assert same('c+c', '2c')
