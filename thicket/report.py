# SPDX-License-Identifier: Apache-2.0
"""Tells what a run found: tables, summary.json and report.html.

  python -m thicket.report --workdir=runs/...

makes all of them again from the ledger: no model, no data, nothing generated.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Any

from rich.console import Console

from thicket import comparison, page, processes, ranking, summary, tables
from thicket.ledger import LedgerError
from thicket.plan import ConfigError, Plan
from thicket.storage import as_path, write_atomically
from thicket.stored import NotStored, Stored
from thicket.summary import Facts, Summary
from thicket.tasks.base import TaskError

SUMMARY, PAGE = 'summary.json', 'report.html'


def tell(
  answers: ranking.Answers,
  plan: Plan,
  workdir: os.PathLike[str],
  console: Console,
  facts: Facts,
) -> Summary:
  """Searches, compares, prints the tables and writes the two files.

  Args:
    answers: where judged answers come from, generated or stored.
    plan: what is asked for.
    workdir: where the files go.
    console: where the tables go.
    facts: what is known apart from the answers, asked for at the end.

  Returns:
    The summary, which is what summary.json holds.

  Raises:
    NotStored: the search itself or its test is not complete.
    LedgerError: the files cannot be written.
  """
  found = ranking.rank(answers, plan, plan.greedy, plan.population.size)
  show = lambda *lines: console.print('', *lines, sep='\n')
  show(tables.selection(summary.selection_summary(plan, found)), '')
  compared = comparison.compare(answers, plan, found)
  result = summary.build(answers, plan, compared) | facts()
  show(tables.accuracies(result['test']), '', tables.costs(result['test']), '')
  for sentence in result['verdict']:
    console.print(f'- {sentence}')
  for reason in result['missing']:
    console.print(f'- not run: {reason}')
  if 'work' in result:
    show(tables.work_line(result['work']))
  if not processes.is_first():
    return result
  folder = as_path(workdir)
  for name, text in (
    (SUMMARY, json.dumps(result, indent=2)),
    (PAGE, page.render(result)),
  ):
    try:
      write_atomically(folder / name, text)
    except OSError as error:
      raise LedgerError(
        f'{folder / name}: cannot be written: {error.strerror}'
      ) from error
  return result


def _facts_of_before(stored: Stored) -> dict[str, Any]:
  """What only the run itself knew, from the summary it wrote."""
  facts: dict[str, Any] = {'recipe': stored.recipe}
  try:
    text = (stored.workdir / SUMMARY).read_text(encoding='utf-8')
    before = json.loads(text)
    facts |= {key: before[key] for key in ('effective_sigmas', 'work')}
  except (OSError, ValueError, KeyError):
    pass  # the run was stopped before it could write one
  return facts


def main(argv: list[str]) -> int:
  """Makes the report again; returns the exit code."""
  parser = argparse.ArgumentParser(
    prog='python -m thicket.report', description=__doc__.partition('\n')[0]
  )
  parser.add_argument('--workdir', required=True, help='what a run printed')
  workdir = parser.parse_args(argv).workdir
  console = Console(highlight=False)
  try:
    stored = Stored(workdir)
    facts = lambda: _facts_of_before(stored)
    tell(stored, stored.plan, stored.workdir, console, facts)
  except (LedgerError, NotStored, ConfigError, TaskError) as error:
    print(f'thicket: {error}', file=sys.stderr)
    return 2
  print(f'\nsummary   {stored.workdir / SUMMARY}')
  print(f'report    {stored.workdir / PAGE}')
  return 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
