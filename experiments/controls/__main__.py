# SPDX-License-Identifier: Apache-2.0
"""Prints the README's results table from a committed summary.

python -m experiments.controls [summary.json]

With --keep=WORKDIR it first copies a run's summary and its rewards on the
selection rows into results/, from which tests replay the race.
"""

from __future__ import annotations

import argparse
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from thicket.population import BASE
from thicket.stored import Stored
from thicket.tables import percent, share

RESULTS = pathlib.Path(__file__).parent / 'results'
SUMMARY, REWARDS = RESULTS / 'seed-0.json', RESULTS / 'seed-0-rewards.json'


def keep(workdir: str) -> None:
  """Copies what is committed of a run."""
  stored = Stored(workdir)
  summary = json.loads((stored.workdir / 'summary.json').read_text())
  summary['repairs'].pop('items')  # texts stay in the report
  RESULTS.mkdir(exist_ok=True)
  SUMMARY.write_text(json.dumps(summary, indent=1) + '\n')
  block = stored.get(
    stored.plan.greedy, 'selection', [BASE, *stored.plan.population.ids()]
  )
  bits = np.packbits(block.correct[:, :, 0], axis=1)
  content = {
    'rows': len(block.rows),
    'rewards': {
      str(member): row.tobytes().hex()
      for member, row in zip(block.members, bits, strict=True)
    },
  }
  REWARDS.write_text(json.dumps(content, indent=1) + '\n')


def rewards() -> np.ndarray:
  """Float64 [1 + N, rows], the committed rewards; the base stands first."""
  content = json.loads(REWARDS.read_text())
  bits = [
    np.frombuffer(bytes.fromhex(text), np.uint8)
    for text in content['rewards'].values()
  ]
  return np.unpackbits(bits, axis=1, count=content['rows']).astype(np.float64)


def against(found: Mapping[str, Any] | None) -> str:
  """A difference with its interval."""
  if found is None:
    return ''
  return percent(found['difference'], found['interval'], '+')


def table(summary: Mapping[str, Any]) -> str:
  """All systems as a Markdown table."""
  lines = [
    '| system | accuracy % [95%] | against base | against as many samples | '
    'answers to choose it | answers a question |',
    '|---|---|---|---|---|---|',
  ]
  for row in summary['test']['systems']:
    bound = ' (upper bound)' if row['kind'] == 'bound' else ''
    chosen = row['selection']['answers']
    cells = (
      row['name'] + bound,
      percent(row['accuracy']['rate'], row['accuracy']['interval']),
      against(row['against_base']),
      against(row['against_samples']),
      f'{chosen:,}' if chosen else '',
      str(row['passes']),
    )
    lines.append('| ' + ' | '.join(cells) + ' |')
  return '\n'.join(lines)


def facts(summary: Mapping[str, Any]) -> str:
  """What became of the selection's gain, in one line."""
  quality = summary['quality']
  names = ('observed_gain', 'expected_gain', 'validation_gain')
  seen, expected, fresh = (share(quality[name]) for name in names)
  race = summary['selection']['race']
  return (
    f'gain of the selected over the base, points: {seen} on selection, '
    f'{expected} expected by shrinkage, {fresh} on validation, '
    f'{share(quality["test_gain"]["difference"])} on test; a race would have '
    f'saved {share(race["saved"])}% of the answers and found '
    f'{share(race["recall"])}% of the top K'
  )


def main() -> None:
  """Prints the table of a summary, by default of the committed one."""
  parser = argparse.ArgumentParser()
  parser.add_argument('summary', nargs='?', default=SUMMARY, type=pathlib.Path)
  parser.add_argument('--keep', metavar='WORKDIR')
  args = parser.parse_args()
  if args.keep:
    keep(args.keep)
  summary = json.loads(args.summary.read_text(encoding='utf-8'))
  print(table(summary))
  print(f'\n{facts(summary)}')


if __name__ == '__main__':
  main()
