# SPDX-License-Identifier: Apache-2.0
"""How many responses a second are judged? Task by task, on two processes.

  python -m experiments.judging --data=FOLDER [--tasks=gsm8k,countdown]

Two worker processes judge, as in a run with `run.judge_processes = 2`, and
nothing of the run's own memo of texts helps them: every response is judged by
the strict, the lenient and the released rule. Once with responses that are
all different, and once with 90% that have been there before, which is what a
task's own memory of comparisons is for.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import platform
import sys
import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from experiments import layout
from experiments.judging.responses import Responses
from experiments.tasks import rows as found_rows
from thicket import judging, tables, tasks
from thicket.storage import as_path, write_atomically
from thicket.tasks.base import Example, Task

RESULTS = pathlib.Path(__file__).parent / 'results' / 'cpu.json'
REPEATS = 0.0, 0.9
EXAMPLES = 200  # questions that are answered
# Responses judged in one call: the more, the less the processes wait for the
# last of them; so many that a call takes a second, if they are quick.
CHUNKS = 500, 32_000
MILLION = 1_000_000
TARGETS_S = {'gsm8k': 60, 'countdown': 60}  # for a million different ones
Found = dict[str, Any]


def measure(
  task: Task,
  examples: Sequence[Example],
  *,
  repeats: float,
  count: int,
  limit_s: float,
  processes: int,
) -> Found:
  """Judges `count` responses, or as many as are begun within the limit.

  Making responses and starting processes is not counted.
  """
  responses = Responses(task, examples, repeats)
  judges = judging.Judges(task, processes)
  judged = right = abstained = chars = 0
  spent, (size, most) = 0.0, CHUNKS
  try:
    judges(responses.take(2 * max(1, processes)))  # not the first ones: warm
    while judged < count and spent < limit_s:
      chunk = responses.take(min(size, count - judged))
      start = time.perf_counter()
      found = judges(chunk)
      took = time.perf_counter() - start
      spent += took
      size = min(2 * size, most) if took < 0.5 else size
      judged += len(found)
      right += sum(x.is_correct for x in found)
      abstained += sum(x.answer is None for x in found)
      chars += sum(len(text) for _, text in chunk)
  finally:
    judges.close()
  return {
    'responses': judged,
    'seconds': spent,
    'right': right / judged,
    'abstained': abstained / judged,
    'mean_chars': chars / judged,
  }


HEADER = (
  'task', 'characters', 'right %', 'abstain %', 'judged', 'a second',
  's for a million', 'target', 'a second, 90% repeats',
)  # fmt: skip


def table_rows(found: Found) -> list[list[str]]:
  """The table, task by task."""
  table = []
  for name, (new, again) in sorted(found['tasks'].items()):
    rate, faster = (x['responses'] / x['seconds'] for x in (new, again))
    target = TARGETS_S.get(name)
    table.append(
      [
        name,
        f'{new["mean_chars"]:.0f}',
        tables.share(new['right']),
        tables.share(new['abstained']),
        f'{new["responses"]:,}',
        f'{rate:,.0f}',
        f'{MILLION / rate:,.0f}',
        '' if target is None else f'< {target}',
        f'{faster:,.0f}',
      ]
    )
  return table


def markdown(found: Found) -> str:
  """The table of the README."""
  return layout.markdown(HEADER, table_rows(found))


def main(argv: Sequence[str]) -> None:
  """Measures, prints the table, writes JSON if asked."""
  parser = argparse.ArgumentParser(
    prog='python -m experiments.judging', description=__doc__.split('\n')[0]
  )
  parser.add_argument('--data', type=pathlib.Path, required=True)
  parser.add_argument('--tasks', type=lambda x: x.split(','), default=[])
  parser.add_argument('--number', type=int, default=MILLION)
  parser.add_argument('--seconds', type=float, default=60.0)
  parser.add_argument('--processes', type=int, default=2)
  parser.add_argument('--output', type=pathlib.Path)
  args = parser.parse_args(argv)
  found: Found = {
    'python': platform.python_version(),
    'cores': len(os.sched_getaffinity(0)),
    'processes': args.processes,
    'tasks': {},
    'skipped': {},
  }
  for name in args.tasks or sorted(tasks.TASKS):
    try:
      task = tasks.make(name)
      if task.output_kind != 'text':
        continue
      path = found_rows.find(name, args.data)
      examples = found_rows.load(task, path, EXAMPLES)
      found['tasks'][name] = [
        measure(
          task,
          examples,
          repeats=repeats,
          count=args.number,
          limit_s=args.seconds,
          processes=args.processes,
        )
        for repeats in REPEATS
      ]
    except (tasks.TaskError, ValueError) as error:
      # Results are for all to read, whatever the folder is called here.
      reason = str(error).replace(str(args.data), 'FOLDER')
      found['skipped'][name] = reason
      print(f'skipped: {error}')
  table = layout.printed(
    f'{args.processes} processes on {found["cores"]} cores',
    HEADER,
    table_rows(found),
  )
  Console(width=120, highlight=False).print(table)
  if args.output:
    args.output.parent.mkdir(exist_ok=True, parents=True)
    write_atomically(as_path(args.output), json.dumps(found, indent=1))


if __name__ == '__main__':
  main(sys.argv[1:])
