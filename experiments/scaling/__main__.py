# SPDX-License-Identifier: Apache-2.0
"""Asks whether solution density grows with model size and with pretraining.

  python -m experiments.scaling [--quick] [--domain=NAME] [--output=FOLDER]
  python -m experiments.scaling --show     tables of the README, and figures

Runs the ladders of `ladder.py`, prints tables, and writes results and figures.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from experiments import layout
from experiments.scaling.ladder import DOMAINS, Ladder, measure
from experiments.scaling.law import (
  LADDERS,
  PRIMARY,
  laws,
  logits,
  margin_names,
  primary,
  rungs,
  sigma_names,
)
from thicket.plots import style, thickets

RESULTS = pathlib.Path(__file__).parent / 'results'

FULL = {
  'signals': Ladder(
    domain='signals',
    widths=(8, 16, 32, 64, 128, 256),
    steps=1000,
    lengths=(0, 30, 100, 300, 1000, 3000),
    width=64,
    seeds=5,
    members=128,
    num_items=64,
    moves=(0.01, 0.03, 0.1),
    relatives=(0.02,),
    absolute=(0.0, 0.02),
    relative=(PRIMARY, 0.3),
    levels=(0.5,),
  ),
}
QUICK = {
  name: dataclasses.replace(
    ladder,
    widths=ladder.widths[:2],
    steps=100,
    lengths=(0, 30, 100),
    width=ladder.widths[1],
    seeds=2,
    members=32,
    num_items=16,
  )
  for name, ladder in FULL.items()
}


# Tables.


def slope(found: Mapping[str, float] | None) -> str:
  """A slope with its interval; a star if it survives Holm's correction."""
  if found is None:
    return 'none'
  star = '*' if found.get('holm', 1.0) < 0.05 else ''
  return (
    f'{found["slope"]:+.2f} [{found["low"]:+.2f}, {found["high"]:+.2f}]{star}'
  )


def density_cell(interval: list[float]) -> str:
  """A density in percent."""
  mean, low, high = (100 * value for value in interval)
  return f'{mean:.0f} [{low:.0f}, {high:.0f}]'


def density_table(
  result: Mapping[str, Any], kind: str
) -> tuple[list[str], list[list[str]]]:
  """Header and rows: density in percent at the primary margin, and its law."""
  rows = primary(laws(result, kind))
  header = ['target', 'noise', *(f'{at:,}' for at in rows[0]['at'])]
  header += [f'slope per {LADDERS[kind][1]}', 'bend']
  header += ['slope at equal error'] if kind == 'size' else []
  cells = []
  for row in rows:
    cells.append(
      [
        row['target'],
        row['sigma'],
        *map(density_cell, row['density']),
        slope(row['line']),
        slope(row['bend']),
        *([slope(row['equal'])] if kind == 'size' else []),
      ]
    )
  return header, cells


def margin_table(
  result: Mapping[str, Any], kind: str
) -> tuple[list[str], list[list[str]]]:
  """Header and rows: the slope at every margin."""
  names = margin_names(result['ladder'])
  rows = laws(result, kind)
  cells = []
  for start in range(0, len(rows), len(names)):
    part = rows[start : start + len(names)]
    first = part[0]
    cells.append([
      first['target'], first['sigma'], *(slope(row['line']) for row in part)
    ])  # fmt: skip
  return ['target', 'noise', *(f'margin {name}' for name in names)], cells


def model_table(
  result: Mapping[str, Any], kind: str
) -> tuple[list[str], list[list[str]]]:
  """Header and rows: the models, means over seeds with their range."""
  targets = list(result['models'][0]['targets'])
  moves = result['ladder']['moves']
  header = ['width', 'parameters', 'steps', 'pretraining loss']
  header += [f'error, {target}' for target in targets]
  header += [f'sigma of move {move:g}' for move in moves]
  cells = []
  for rung in rungs(result, kind):
    first = rung[0]

    def span(values):
      values = np.asarray(values)
      return f'{values.mean():.3g} ({values.min():.2g}-{values.max():.2g})'

    cells.append(
      [
        str(first['width']),
        f'{first["parameters"]:,}',
        f'{first["steps"]:,}',
        span([m['loss'] for m in rung]) if first['steps'] else '',
        *(span([m['targets'][t]['error'] for m in rung]) for t in targets),
        *(span([m['sigmas'][g] for m in rung]) for g in range(len(moves))),
      ]
    )
  return header, cells


def markdown(table: tuple[list[str], list[list[str]]]) -> str:
  """A table for the README."""
  header, rows = table
  return layout.markdown(header, rows)


TABLES = {
  'density': density_table,
  'margins': margin_table,
  'models': model_table,
}


def tables(result: Mapping[str, Any]) -> dict[tuple[str, str], str]:
  """All tables of a domain in Markdown, by ladder and name."""
  return {
    (kind, name): markdown(make(result, kind))
    for kind in LADDERS
    for name, make in TABLES.items()
  }


def verdicts(result: Mapping[str, Any], kind: str) -> str:
  """How many laws point where, in one line."""
  rows = primary(laws(result, kind))
  lines = [row['line'] for row in rows if row['line']]
  up = [line for line in lines if line['low'] > 0]
  down = [line for line in lines if line['high'] < 0]
  stars = [line for line in up + down if line['holm'] < 0.05]
  bent = [row for row in rows if row['bend'] and row['bend']['p'] < 0.05]
  text = (
    f'{result["ladder"]["domain"]}, {kind}: of {len(lines)} slopes '
    f'{len(up)} are above 0 and {len(down)} below, {len(stars)} of them after '
    f"Holm's correction; {len(bent)} lines bend"
  )
  if kind == 'size':
    equal = [row['equal'] for row in rows if row['equal']]
    above = sum(one['low'] > 0 for one in equal)
    below = sum(one['high'] < 0 for one in equal)
    text += f'; at equal error of the base {above} are above 0, {below} below'
  return text


def correlations(result: Mapping[str, Any], of: str) -> str:
  """Range over targets and sigmas of r with the log odds of density."""
  ladder = result['ladder']
  models = [model for rung in rungs(result, 'size') for model in rung]
  margin = margin_names(ladder).index(f'{PRIMARY:.0%} of error')
  found = []
  for target in models[0]['targets']:
    every = [model['targets'][target] for model in models]
    values = (
      [one['error'] for one in every]
      if of == 'error'
      else [model[of] for model in models]
    )
    for g in range(len(sigma_names(ladder))):
      y = logits([one['corrected'][g][margin] for one in every],
                 ladder['members'])  # fmt: skip
      found.append(np.corrcoef(np.log10(values), y)[0, 1])
  return f'{min(found):+.2f} to {max(found):+.2f}'


def facts(result: Mapping[str, Any]) -> str:
  """What stands behind the slopes, in one line."""
  every = [
    one
    for rung in rungs(result, 'size')
    for model in rung
    for one in model['targets'].values()
  ]
  worse = sum(one['error'] > one['silence'] for one in every)
  untrained = [m for m in result['models'] if not m['steps']]
  margin = margin_names(result['ladder']).index(f'{PRIMARY:.0%} of error')
  reached = [
    share[margin] * result['ladder']['members']
    for model in untrained
    for one in model['targets'].values()
    for share in one['naive']
  ]
  steepest = max(
    row['line']['high']
    for row in laws(result, 'size')
    if row['margin'] == '0' and row['line']
  )
  scored = len(reached) * result['ladder']['members']
  return (
    f'{worse} of {len(every)} pairs of a trained base and a target are worse '
    f'than predicting 0; log odds of density correlate with the log of the '
    f"base's error at {correlations(result, 'error')}, with that of "
    f'parameters at {correlations(result, "parameters")}; at margin 0 no '
    f'interval of a slope in size reaches above {steepest:+.2f}; around '
    f'untrained models {sum(reached):.0f} of {scored:,} scores reached '
    f'{PRIMARY:.0%} less error'
  )


def figure(result: Mapping[str, Any], kind: str, target: str):
  """Density against size or length, a line for each noise, of one target."""
  ladder, key = result['ladder'], LADDERS[kind][0]
  lines = {}
  for row in primary(laws(result, kind)):
    if row['target'] != target:
      continue
    kept = [i for i, at in enumerate(row['at']) if at > 0]  # the axis is a log
    seeds = np.array(row['seeds']).T
    middle, low, high = np.array([row['density'][i] for i in kept]).T
    lines[row['sigma']] = thickets.Scaling(
      [row['at'][i] for i in kept], seeds[kept], low, high, middle, row['fit']
    )
  sigmas = np.array(
    [model['sigmas'] for rung in rungs(result, kind) for model in rung
     if model[key]]
  )  # fmt: skip
  facts = style.Facts(
    ladder['members'],
    [float(f'{sigma:.2g}') for sigma in (sigmas.min(), sigmas.max())],
    rows=ladder['num_items'],
    scale='relative',
  )
  move = DOMAINS[ladder['domain']].move_unit
  return thickets.scaling(
    lines,
    facts,
    x=key if kind == 'size' else 'steps of pretraining',
    y=f'density of {PRIMARY:.0%} less error on the {target.replace("_", " ")}',
    interval=f'95% over seeds. A move is the {move}, met by a sigma between '
    'the two below',
  )


# The run.


def run(ladder: Ladder, path: pathlib.Path, console: Console) -> dict[str, Any]:
  """All models of a ladder, written to `path` whenever a seed is complete."""
  start = time.perf_counter()
  result = {'ladder': dataclasses.asdict(ladder), 'minutes': 0.0, 'models': []}
  models = result['models']
  total = ladder.seeds * len(ladder.models())
  with Progress(console=console, transient=True) as progress:
    bar = progress.add_task(ladder.domain, total=total)
    for seed in range(ladder.seeds):
      for width, steps in ladder.models():
        models.append(measure(ladder, width, steps, seed))
        progress.advance(bar)
        took = time.perf_counter() - start
        if not console.is_terminal:
          console.print(
            f'{ladder.domain}: {len(models)} of {total} models, {took:.0f} s'
          )
      result['minutes'] = round(took / 60, 1)
      path.write_text(json.dumps(result) + '\n', encoding='utf-8')
  return result


def short(cell: str) -> str:
  """A density without its interval; a slope as it is."""
  return cell if cell[0] in '+-n' else cell.partition(' ')[0]


def show(result: Mapping[str, Any], console: Console) -> None:
  """Prints the density of both ladders."""
  domain = result['ladder']['domain']
  for kind in LADDERS:
    header, rows = density_table(result, kind)
    end = len(rows[0]) - (3 if kind == 'size' else 2) + 1  # up to the slope
    table = Table(
      title=f'{domain}, {kind}: density in %, margin {PRIMARY:.0%} of error; '
      f'slope of log odds per {LADDERS[kind][1]} [95% over seeds]'
    )
    for i, name in enumerate([*header[: end - 1], 'slope']):
      table.add_column(
        name,
        justify='left' if i < 2 else 'right',
        no_wrap=i < 2 or name == 'slope',
      )
    for row in rows:
      table.add_row(*row[:2], *(short(cell) for cell in row[2:end]))
    console.print(table)
    console.print(verdicts(result, kind))


def main() -> None:
  """Runs the ladders, or shows what they gave."""
  parser = argparse.ArgumentParser()
  parser.add_argument('--quick', action='store_true')
  parser.add_argument('--show', action='store_true')
  parser.add_argument('--domain', choices=list(DOMAINS), action='append')
  parser.add_argument('--output', default=RESULTS, type=pathlib.Path)
  args = parser.parse_args()
  console = Console()
  if args.quick and args.output == RESULTS:
    args.output = pathlib.Path('runs') / 'scaling-quick'
  args.output.mkdir(parents=True, exist_ok=True)
  for name in args.domain or DOMAINS:
    path = args.output / f'{name}.json'
    if args.show:
      result = json.loads(path.read_text(encoding='utf-8'))
      for (kind, table), text in tables(result).items():
        print(f'\n{name}, {kind}, {table}:\n\n{text}')
      for kind in LADDERS:
        print(f'\n{verdicts(result, kind)}')
      print(f'\n{facts(result)}')
    else:
      result = run((QUICK if args.quick else FULL)[name], path, console)
      show(result, console)
    for kind in LADDERS:
      for target in DOMAINS[name].targets:
        drawn = figure(result, kind, target)
        style.save(drawn, args.output / f'{name}-{kind}-{target}.png')


if __name__ == '__main__':
  main()
