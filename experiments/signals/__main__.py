# SPDX-License-Identifier: Apache-2.0
"""All pairs of the paper's 1-D signals, and how fast they are searched.

  python -m experiments.signals                all pairs, about 15 minutes
  python -m experiments.signals --speed        the speed alone, a minute

Section 3 of Neural Thickets (arXiv 2603.12228): twenty pairs of what an MLP
was pretrained on and what is searched for (N = 1000, K = 10, seed 2), and the
three of its first figure (K = 5, seed 0).
"""

from __future__ import annotations

import argparse
import itertools
import json
import pathlib
import statistics
import sys
import time
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from configs import signals as configuration
from experiments import layout
from experiments.throughput.__main__ import gemm_peak
from thicket import problems, randopt, scoring, signals
from thicket.array_run import ArrayRun
from thicket.models import mlp

FOLDER = pathlib.Path(__file__).parent / 'results'
_REPEATS = 2


def config_of(pairs: list[signals.Pair], seed: int, k: int, quick: bool):
  """The configuration of pairs of one initialiser and one target."""
  config = configuration.get_config('quick' if quick else None)
  config.seed = seed
  config.model.initializer = pairs[0].initializer
  config.task.target = pairs[0].target
  config.pretraining.on = tuple(pair.source for pair in pairs)
  config.ensemble.sizes = (1, k)
  return config


def run_pairs(
  pairs: tuple[signals.Pair, ...], seed: int, k: int, workdir: pathlib.Path,
  quick: bool,
) -> list[dict[str, Any]]:  # fmt: skip
  """One row for each pair: base, members and ensemble on fresh signals."""
  rows = []
  shape = lambda pair: (pair.initializer, pair.target)
  for (initializer, target), group in itertools.groupby(
    sorted(pairs, key=shape), key=shape
  ):
    group = list(group)
    config = config_of(group, seed, k, quick)
    folder = workdir / f'{initializer}-{target}'
    found = ArrayRun(config, folder, Console(quiet=True)).finish()
    for pair, problem in zip(group, found['problems'], strict=True):
      systems = {row['id']: row for row in problem['test']['systems']}
      rows.append(
        {
          **pair._asdict(),
          'sigma': problem['sigmas'][0],
          'base': systems['base']['value'],
          'selected': systems['selected-mean']['value'],
          'ensemble': systems[f'ensemble-{k}']['value'],
          'gain': systems[f'ensemble-{k}']['against_base'],
          'unselected': systems['unselected']['value'],
          'saved': problem['selection']['saved'],
          'seconds': problem['seconds'],
        }
      )
      print(json.dumps(rows[-1]), flush=True)
  return rows


def speed(few: int = 64, many: int = 256) -> dict[str, Any]:
  """Full and pruned search and pretraining, against the peak of products.

  What compiling and setting up cost is taken out by searching `few` and `many`
  members. The peak is the best of interleaved products of 2048 x 2048 matrices
  in this process; operations are those of the network's products alone.
  """
  config = configuration.get_config()
  pretraining = []
  for _ in range(2):  # the second time without compiling Adam's programs
    start = time.monotonic()
    for problem in problems.make(config):
      if problem.losses.size:
        pretraining.append(time.monotonic() - start)
      start = time.monotonic()
  model = config.model
  per_member = (
    mlp.flops(model.width, model.depth, signals.CONTEXT)
    * config.data.num_selection
    * config.task.steps
  )
  shares, ratios, measure_peak = [], {}, gemm_peak()
  for problem in problems.make(config):
    ratios[problem.name] = []
    for _ in range(_REPEATS):
      peak = measure_peak()
      full = _seconds(problem, config, many) - _seconds(problem, config, few)
      peak = max(peak, measure_peak())
      shares.append((many - few) * per_member / full / peak)
      cut = config.run.prune_after
      pruned = _seconds(problem, config, many, cut) - _seconds(
        problem, config, few, cut
      )
      ratios[problem.name].append(full / pruned)
  return {
    'members': [few, many],
    'gflop_per_member': per_member / 1e9,
    'pretraining_seconds': min(pretraining),
    'pretraining_seconds_with_compiling': pretraining[0],
    'search_share_of_peak': _spread(shares),
    'full_over_pruned_seconds': {k: _spread(v) for k, v in ratios.items()},
    'devices': f'{jax.device_count()} x {jax.devices()[0].device_kind}',
  }


def _seconds(problem, config, num_members, prune_after=()) -> float:
  start = time.monotonic()
  randopt.search(
    problem.apply,
    problem.params,
    problem.selection,
    scoring.negative_mse,
    key=0,
    num_members=num_members,
    top_k=5,
    sigma=problem.sigmas,
    members_per_device=config.run.members_per_device,
    prune_after=prune_after,
  )
  return time.monotonic() - start


def _spread(values: list[float]) -> dict[str, float]:
  return {
    'min': min(values),
    'median': statistics.median(values),
    'max': max(values),
  }


COLUMNS = (
  'initialiser', 'pretrained on', 'target', 'sigma', 'base', 'mean of selected',
  'ensemble of unselected', 'ensemble of selected', 'saved',
)  # fmt: skip


def cells(row: dict[str, Any]) -> list[str]:
  """One pair as text: mean squared errors on fresh signals."""
  errors = ('base', 'selected', 'unselected', 'ensemble')
  return [
    row['initializer'],
    row['source'],
    row['target'],
    f'{row["sigma"]:g}',
    *(
      'broken' if row[name] is None else f'{-row[name]:.2g}' for name in errors
    ),
    f'{100 * row["saved"]:.0f}%',
  ]


def markdown(rows: list[dict[str, Any]]) -> str:
  """The table of a README."""
  return layout.markdown(COLUMNS, map(cells, rows))


def speed_facts(found: dict[str, Any]) -> str:
  """The speed as a list of a README."""

  def ratio(spread: dict[str, float], form: str) -> str:
    low, middle, high = (format(spread[x], form) for x in spread)
    return f'{middle} ({low} to {high})'

  cut = ', '.join(
    f'{name}: {ratio(spread, ".2f")}'
    for name, spread in found['full_over_pruned_seconds'].items()
  )
  return '\n'.join(
    [
      f'- One member: {found["gflop_per_member"]:.1f} GFLOP of products.',
      '- Full search, share of the peak of 2048-cubed products in the same '
      f'process: {ratio(found["search_share_of_peak"], ".2f")}.',
      f'- Full over pruned seconds: {cut}.',
      f'- Pretraining, 1000 steps: {found["pretraining_seconds"]:.2f} s, with '
      f'compiling {found["pretraining_seconds_with_compiling"]:.1f} s.',
    ]
  )


def table(rows: list[dict[str, Any]]) -> Table:
  """The table of a terminal."""
  shown = Table(title='mean squared error on 256 fresh signals')
  for name in COLUMNS:
    shown.add_column(name)
  for row in rows:
    shown.add_row(*cells(row))
  return shown


def main(argv: list[str]) -> int:
  """Runs the experiment; returns the exit code."""
  parser = argparse.ArgumentParser(prog='python -m experiments.signals')
  parser.add_argument('--workdir', default='runs/signals-pairs')
  parser.add_argument('--speed', action='store_true', help='the speed alone')
  parser.add_argument('--quick', action='store_true', help='smaller sizes')
  asked = parser.parse_args(argv)
  results = pathlib.Path(asked.workdir)
  results.mkdir(parents=True, exist_ok=True)
  if not asked.speed:
    found = {
      'approximation': run_pairs(
        signals.APPROXIMATION, 0, 5, results / 'approximation', asked.quick
      ),
      'generalisation': run_pairs(
        signals.PAIRS, 2, 10, results / 'generalisation', asked.quick
      ),
    }
    for rows in found.values():
      Console(width=120).print(table(rows))
    _write(results / 'pairs.json', found)
  _write(results / 'speed.json', speed())
  return 0


def _write(path: pathlib.Path, found: dict[str, Any]) -> None:
  text = json.dumps(found, indent=2)
  path.write_text(text + '\n', encoding='utf-8')
  print(f'written   {path}')


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
