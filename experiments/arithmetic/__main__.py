# SPDX-License-Identifier: Apache-2.0
"""Prints the README's results table from the committed summaries.

python -m experiments.arithmetic [summary.json ...]
"""

from __future__ import annotations

import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from thicket import report

RESULTS = pathlib.Path(__file__).parent / 'results'


def cell(found: dict[str, Any], key: str = 'rate', sign: str = '') -> str:
  """A share or a difference in percent, with its interval."""
  return report.percent(found[key], found['interval'], sign)


def rows(summary: dict[str, Any]) -> list[tuple[str, str, str, str]]:
  """Name, accuracy, difference to the base and abstentions of each model."""
  test = summary['test']
  members = test['members']
  found = [
    (
      'base, greedy',
      cell(test['base']['accuracy']),
      '',
      f'{100 * test["base"]["abstention_rate"]:.1f}',
    ),
    (
      f'mean of the {members["count"]} selected',
      cell(members['mean']),
      cell(members['mean']['against_base'], 'difference', '+'),
      f'{100 * members["abstention_rate"]:.1f}',
    ),
  ]
  for vote in test['votes']:
    found.append(
      (
        f'vote of the best {vote["k"]}',
        cell(vote['accuracy']),
        cell(vote['against_base'], 'difference', '+'),
        f'{100 * vote["abstention_rate"]:.1f}',
      )
    )
  return found


def table(paths: Sequence[pathlib.Path]) -> str:
  """The Markdown table of some summaries, a block of rows each."""
  lines = [
    '| seed | model | accuracy % [95%] | against base [95%] | abstain % |',
    '|---|---|---|---|---|',
  ]
  for path in paths:
    summary = json.loads(path.read_text(encoding='utf-8'))
    seed = summary['recipe']['noise']['seed']
    for i, row in enumerate(rows(summary)):
      lines.append(f'| {"" if i else seed} | ' + ' | '.join(row) + ' |')
  return '\n'.join(lines)


def main() -> None:
  """Prints the table of the given summaries, else of the committed ones."""
  given = [pathlib.Path(arg) for arg in sys.argv[1:]]
  print(table(given or sorted(RESULTS.glob('seed-*.json'))))


if __name__ == '__main__':
  main()
