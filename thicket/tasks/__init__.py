# SPDX-License-Identifier: Apache-2.0
"""The table of tasks, and how one is made from a configuration."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

from thicket.tasks.arithmetic import Arithmetic
from thicket.tasks.base import Task, TaskError
from thicket.tasks.classify import Classify
from thicket.tasks.countdown import Countdown
from thicket.tasks.gqa import Gqa
from thicket.tasks.gsm8k import Gsm8k
from thicket.tasks.humaneval import HumanEval
from thicket.tasks.math500 import Math500
from thicket.tasks.mbpp import Mbpp
from thicket.tasks.olympiadbench import OlympiadBench
from thicket.tasks.own import own
from thicket.tasks.reasoning_gym import ReasoningGym
from thicket.tasks.rocstories import RocStories
from thicket.tasks.uspto50k import Uspto50k

TASKS: dict[str, Callable[..., Task]] = {
  'arithmetic': Arithmetic,
  'countdown': Countdown,
  'gqa': Gqa,
  'classify': Classify,
  'gsm8k': Gsm8k,
  'rocstories': RocStories,
  'uspto50k': Uspto50k,
  'math500': Math500,
  'olympiadbench': OlympiadBench,
  'humaneval': HumanEval,
  'mbpp': Mbpp,
  'jsonl': own,
}

# Of 'reasoning_gym:NAME' the name goes to the first of these as its first
# argument.
FAMILIES: dict[str, Callable[..., Task]] = {
  'reasoning_gym': ReasoningGym,
}


def make(name: str, /, **kwargs: Any) -> Task:
  """The task called `name`, with its settings changed by `kwargs`.

  Raises:
    TaskError: no such task or setting (the near names are given), or a
      setting that the task refuses.
  """
  task = _task(name)
  settings = inspect.signature(task).parameters
  for setting in kwargs:
    if setting not in settings:
      raise TaskError(_unknown(f'setting of {name}', setting, settings))
  return task(**kwargs)


def _task(name: str) -> Callable[..., Task]:
  family, colon, member = name.partition(':')
  if colon and family in FAMILIES:
    return functools.partial(FAMILIES[family], member)
  if name not in TASKS:
    families = [f'{family}:NAME' for family in FAMILIES]
    raise TaskError(_unknown('task', name, [*TASKS, *families]))
  return TASKS[name]


def _unknown(kind: str, name: str, known: Iterable[str]) -> str:
  near = difflib.get_close_matches(name, known, n=2, cutoff=0.5)
  hint = f'did you mean {" or ".join(map(repr, near))}? ' if near else ''
  return f'unknown {kind} {name!r}; {hint}known: {", ".join(sorted(known))}'
