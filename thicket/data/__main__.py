# SPDX-License-Identifier: Apache-2.0
"""Fetches data sets by name.

python -m thicket.data list            names, rows, licences, and what is there
python -m thicket.data fetch gsm8k     after this, task.name=gsm8k finds it
"""

from __future__ import annotations

import argparse
import sys

from thicket.data import fetching
from thicket.tasks.base import TaskError


def main(argv: list[str]) -> int:
  """Runs a subcommand; returns the exit code."""
  parser = argparse.ArgumentParser(
    prog='python -m thicket.data', description='Fetches data sets by name.'
  )
  commands = parser.add_subparsers(dest='command', required=True)
  what = 'say which data sets there are'
  commands.add_parser('list', help=what, description=what)
  what = 'download and prepare a data set, once'
  command = commands.add_parser('fetch', help=what, description=what)
  command.add_argument('name')
  command.add_argument(
    '--from', dest='folder', help='a folder that has its files: no download'
  )
  command.add_argument(
    '--any-version',
    action='store_true',
    help='take files with another hash than was published',
  )
  for command in commands.choices.values():
    command.add_argument(
      '--data_dir', help='where it is kept; by default the cache'
    )
  asked = parser.parse_args(argv)
  try:
    if asked.command == 'list':
      for line in fetching.listed(asked.data_dir):
        print(line)
      return 0
    fetching.fetch(
      asked.name,
      asked.data_dir,
      folder=asked.folder,
      any_version=asked.any_version,
    )
  except TaskError as error:
    print(f'thicket: {error}', file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print('thicket: stopped; the same command goes on', file=sys.stderr)
    return 130
  return 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
