# SPDX-License-Identifier: Apache-2.0
"""What the base model scores on every text task, by each rule.

  python -m experiments.tasks --data=FOLDER [--rows=100] [--tasks=gsm8k,...]

The base alone, greedy, on held-out rows of every task whose rows are found in
FOLDER or that makes its own. A task that has been done is not done again, and
one that was stopped goes on where it was: the answers lie in --workdir.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console

from experiments import layout
from experiments.tasks import rows as found_rows
from thicket import arguments, summary, tables, tasks
from thicket.blocks import BASE, Block
from thicket.run import USER_ERRORS, Run
from thicket.storage import as_path, write_atomically

ROOT = pathlib.Path(__file__).parents[2]
RESULTS = pathlib.Path(__file__).parent / 'results'
MODEL = 'smollm2-135m-instruct'
Found = dict[str, Any]


def answer(
  name: str, path: pathlib.Path | None, count: int, args: argparse.Namespace
) -> Block:
  """The base's answers to `count` held-out rows of a task, made or stored."""
  config = arguments.load_config(str(ROOT / 'configs' / 'llm.py'))
  config.model.name = args.model
  config.task.name = name
  config.task.path = None if path is None else str(path)
  config.data.num_selection, config.data.num_test = 1, count
  # No member is asked.
  config.population.size, config.ensemble.sizes = 1, (1,)
  config.population.sigmas = config.population.sigmas[:1]
  config.controls.prompts = False
  config.decode.rows = min(args.batch, count)
  config.decode.max_new_tokens = args.max_new_tokens
  config.run.members_per_range = 1
  workdir = pathlib.Path(args.workdir) / name
  run = Run(config, str(workdir))
  return run.get(run.plan.greedy, 'test', [BASE], label=name)


def measure(
  found: Found, args: argparse.Namespace, save: Callable[[Found], None]
) -> Found:
  """Adds every task that is not in `found` yet, saving each as it is done."""
  found['skipped'] = {}  # what was missing may have come
  for name in args.tasks or sorted(tasks.TASKS):
    if name in found['tasks']:
      print(f'{name}: done before')
      continue
    try:
      task = tasks.make(name)
      if task.output_kind != 'text':
        continue
      path = found_rows.find(name, args.data)
      count = len(found_rows.load(task, path, args.rows))
      block = answer(name, path, count, args)
    except USER_ERRORS as error:
      # Results are for all to read, whatever the folder is called here.
      reason = str(error).replace(str(args.data), 'FOLDER')
      found['skipped'][name] = reason
      print(f'skipped: {error}')
    else:
      found['tasks'][name] = summary.answered(block, 0)
    save(found)
  return found


HEADER = (
  'task', 'rows', 'strict % [95%]', 'lenient %', 'released %', 'abstain %',
  'truncated %', 'tokens an answer',
)  # fmt: skip


def table_rows(found: Found) -> list[list[str]]:
  """The table, task by task."""
  return [
    [
      name,
      str(x['accuracy']['of']),
      tables.percent(x['accuracy']['rate'], x['accuracy']['interval']),
      tables.share(x['lenient_accuracy']),
      tables.share(x['released_accuracy']),
      tables.share(x['abstention_rate']),
      tables.share(x['truncation_rate']),
      f'{x["mean_tokens"]:.0f}',
    ]
    for name, x in sorted(found['tasks'].items())
  ]


def markdown(found: Found) -> str:
  """The table of the README."""
  return layout.markdown(HEADER, table_rows(found))


def _before(path: pathlib.Path, asked: Found) -> Found:
  """What a file holds so far; refuses one of other settings."""
  if not path.exists():
    return asked | {'tasks': {}, 'skipped': {}}
  found = json.loads(path.read_text(encoding='utf-8'))
  if other := [key for key in asked if found.get(key) != asked[key]]:
    key = other[0]
    raise SystemExit(
      f'{path}: is of {key} = {found.get(key)}, not {asked[key]}; choose '
      'another --output'
    )
  return found


def main(argv: Sequence[str]) -> None:
  """Measures, prints the table, writes JSON after each task."""
  parser = argparse.ArgumentParser(
    prog='python -m experiments.tasks', description=__doc__.split('\n')[0]
  )
  parser.add_argument('--data', type=pathlib.Path, required=True)
  parser.add_argument('--rows', type=int, default=100)
  parser.add_argument('--model', default=MODEL)
  parser.add_argument('--tasks', type=lambda x: x.split(','), default=[])
  parser.add_argument('--batch', type=int, default=32)
  parser.add_argument('--max_new_tokens', type=int, help="else the tasks' own")
  parser.add_argument('--workdir', default='runs/tasks')
  parser.add_argument('--output', type=pathlib.Path)
  args = parser.parse_args(argv)
  asked = {
    'model': pathlib.Path(args.model).name,
    'rows': args.rows,
    'max_new_tokens': args.max_new_tokens,
  }
  output = args.output or RESULTS / f'{asked["model"]}.json'
  output.parent.mkdir(exist_ok=True, parents=True)
  save = lambda found: write_atomically(
    as_path(output), json.dumps(found, indent=1)
  )
  found = measure(_before(output, asked), args, save)
  table = layout.printed(
    f'{asked["model"]}, greedy, at most {args.rows} rows',
    HEADER,
    table_rows(found),
  )
  Console(width=120, highlight=False).print(table)


if __name__ == '__main__':
  main(sys.argv[1:])
