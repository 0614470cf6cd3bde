# SPDX-License-Identifier: Apache-2.0
"""What can be done with ledgers from a command line.

python -m thicket.ledger merge --workdir=runs/...    joins a job array's slices
python -m thicket.ledger list --workdir=runs/...     says what there is
"""

from __future__ import annotations

import argparse
import sys

from thicket.ledger import LedgerError
from thicket.ledger.merge import contents, merge
from thicket.plan import ConfigError
from thicket.tasks.base import TaskError


def main(argv: list[str]) -> int:
  """Runs a subcommand; returns the exit code."""
  parser = argparse.ArgumentParser(
    prog='python -m thicket.ledger', description='Joins and lists ledgers.'
  )
  commands = parser.add_subparsers(dest='command', required=True)
  for name, what in (
    ('merge', 'join the slices of a job array; 0 if none is missing, else 2'),
    ('list', 'say which rows there are'),
  ):
    command = commands.add_parser(name, help=what, description=what)
    command.add_argument('--workdir', required=True, help='what a run printed')
  asked = parser.parse_args(argv)
  try:
    if asked.command == 'list':
      for line in contents(asked.workdir):
        print(line)
      return 0
    merged = merge(asked.workdir)
  except (LedgerError, ConfigError, TaskError) as error:
    print(f'thicket: {error}', file=sys.stderr)
    return 2
  for line in merged.lines():
    print(line)
  return 2 if merged.gaps else 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
