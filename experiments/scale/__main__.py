# SPDX-License-Identifier: Apache-2.0
"""Predicts a search with 7B and 70B models on 8 and on 256 accelerators.

  python -m experiments.scale [--output=FOLDER]   half a minute of compiling
  python -m experiments.scale --show              what results/ hold

Prints the tables of the README, and writes results and a figure.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table

from experiments import layout
from experiments.scale import study
from thicket.plots import style

RESULTS = pathlib.Path(__file__).parent / 'results'
PARTS = (
  'noise',
  'prefill',
  'decode: weights',
  'decode: attention',
  'decode: head',
  'network',
  'host',
)
Rows = tuple[list[str], list[list[str]]]


def number(x: float) -> str:
  """Three digits, without an exponent."""
  return f'{x:,.0f}' if x >= 100 else f'{x:#.3g}'


def where(case: Mapping[str, Any]) -> list[str]:
  """The first cells of a case."""
  place = f'{case["devices"]} {case["device"]}'
  return [case['model'], place, case['family']]


def fitting(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
  """The cases that fit on some mesh."""
  return [case for case in result['cases'] if case['fastest']]


def mesh_table(result: Mapping[str, Any]) -> Rows:
  """Where it fits, and how fast it is there."""
  header = ['model', 'devices', 'noise', 'hours by model axis']
  header += ['fastest: axis', 'members x rows', 'GB of them', 'hours']
  header += ['tokens/s', 'members/s', 'times gaussian']
  rows = []
  for case in result['cases']:
    got = case['fastest']
    if got is None:
      rows.append([*where(case), 'does not fit', *[''] * 7])
      continue
    if case['family'] == 'gaussian':
      dense = got['hours']
    tried = ', '.join(
      f'{m}: {number(one["hours"])}' for m, one in case['meshes'].items()
    )
    rows.append([
      *where(case), tried, str(got['model_axis']),
      f'{got["members"]} x {got["rows"]}',
      number(sum(got['memory'].values()) / 1e9), number(got['hours']),
      number(got['tokens_per_s']), number(got['members_per_s']),
      f'{dense / got["hours"]:.2f}',
    ])  # fmt: skip
  return header, rows


def part_table(result: Mapping[str, Any]) -> Rows:
  """Seconds of each part, and the resource that binds it."""
  header = ['model', 'devices', 'noise', *PARTS[:-1], 'judging beside it']
  header += ['next', 'its share']
  rows = []
  for case in fitting(result):
    got = case['fastest']
    cells = [
      f'{number(got["parts"][part])} {got["binds"][part]}'
      if got['parts'][part] >= 0.5
      else '-'
      for part in PARTS[:-1]
    ]
    waited = got['parts']['host']
    judging = number(got['judging']) + (
      f', {number(waited)} waited for' if waited else ''
    )
    rows.append([*where(case), *cells, judging, got['next'],
                 f'{got["next_share"]:.0%}'])  # fmt: skip
  return header, rows


def shape_table(result: Mapping[str, Any]) -> Rows:
  """Where low rank is ahead, and where the noise costs."""
  header = ['where', 'examples', 'new tokens', 'gaussian hours']
  header += ['of it noise', 'low-rank hours', 'times faster']
  rows = [
    [
      one['place'], str(one['examples']), str(one['new_tokens']),
      number(one['gaussian']), f'{one["noise"]:.0%}', number(one['low_rank']),
      f'{one["gaussian"] / one["low_rank"]:.2f}',
    ]
    for one in result['shapes']
  ]  # fmt: skip
  return header, rows


def sensitivity_table(result: Mapping[str, Any]) -> Rows:
  """Hours, gaussian / low rank, under each assumption."""
  places = list(dict.fromkeys(one['place'] for one in result['sensitivity']))
  names = list(dict.fromkeys(one['assumed'] for one in result['sensitivity']))
  cells = {
    (one['assumed'], one['place']): (
      f'{number(one["gaussian"])} / {number(one["low_rank"])}'
    )
    for one in result['sensitivity']
  }
  rows = [[name, *(cells[name, place] for place in places)] for name in names]
  return ['assumed', *places], rows


def attention_table(result: Mapping[str, Any]) -> Rows:
  """What the largest change to the code would bring."""
  header = ['where', 'noise', 'hours', 'of it attention', 'hours then']
  rows = [
    [
      one['place'], one['family'], number(one['now']), f'{one["share"]:.0%}',
      number(one['then']),
    ]
    for one in result['attention']
  ]  # fmt: skip
  return [*header, 'times faster'], [
    [*row, f'{one["now"] / one["then"]:.2f}']
    for row, one in zip(rows, result['attention'], strict=True)
  ]


def published_table(result: Mapping[str, Any]) -> Rows:
  """Predictions beside measurements."""
  header = ['model', 'H100', 'tokens in + out', 'measured tokens/s']
  header += ['predicted', 'ratio', 'with our attention']
  rows = [
    [
      one['model'], str(one['axis']),
      f'{one["prompt"]} + {one["new_tokens"]}', number(one['measured']),
      number(one['served']), f'{one["served"] / one["measured"]:.2f}',
      number(one['ours']),
    ]
    for one in result['published']
  ]  # fmt: skip
  return header, rows


def xla_table(result: Mapping[str, Any]) -> Rows:
  """XLA's counts over ours."""
  header = ['program', 'our GFLOP', 'XLA/ours', 'our GB', 'XLA/ours']
  header += ['scratch KB a row', 'XLA/ours']
  rows = []
  for one in result['xla']:
    row = [one['program'], number(one['flops'] / 1e9)]
    row += [f'{one["xla_flops"] / one["flops"]:.3f}']
    row += [number(one['bytes'] / 1e9)]
    row += [f'{one["xla_bytes"] / one["bytes"]:.2f}']
    if 'scratch' in one:
      row += [number(one['scratch'] / 1e3)]
      row += [f'{one["xla_scratch"] / one["scratch"]:.2f}']
    else:
      row += ['', '']
    rows.append(row)
  return header, rows


HARDWARE = {
  'products': ('TFLOP/s bf16 products', 1e12),
  'integer': ('T integer operations/s', 1e12),
  'vector': ('T float32 operations/s', 1e12),
  'bandwidth': ('TB/s memory', 1e12),
  'memory': ('GB', 1e9),
  'link': ('GB/s a link, one way', 1e9),
  'ring_links': ('links of a ring', 1),
  'hop_s': ('us a hop', 1e-6),
  'max_model_axis': ('largest model axis', 1),
  'host_bandwidth': ('GB/s to the host', 1e9),
  'devices_per_host': ('devices a host', 1),
}


def hardware_table(result: Mapping[str, Any]) -> Rows:
  """The constants; `hardware.py` says where each comes from."""
  devices = result['hardware']
  rows = [
    [label, *(f'{device[key] / unit:,.4g}' for device in devices)]
    for key, (label, unit) in HARDWARE.items()
  ]
  # The rows of a member at which reading its weights takes as long as using
  # them: FLOPs a byte, two FLOPs and two bytes a weight.
  shares = result['shares']
  ridge = [
    device['products'] * shares['decode']
    / (device['bandwidth'] * shares['memory'])
    for device in devices
  ]  # fmt: skip
  rows.append(['rows that hide a weight', *(f'{x:.0f}' for x in ridge)])
  return ['', *(device['name'] for device in devices)], rows


TABLES = {
  'Meshes': mesh_table,
  'Seconds by part, and what binds it': part_table,
  'Fewer examples, shorter answers': shape_table,
  'Attention over filled slots, scores on chip': attention_table,
  'Assumptions made worse: hours, gaussian / low rank': sensitivity_table,
  'Published measurements': published_table,
  'Our counts and those of XLA': xla_table,
  'Hardware': hardware_table,
}


def markdown(rows: Rows) -> str:
  """A table as the README has it."""
  header, body = rows
  return layout.markdown(header, body)


def show(result: Mapping[str, Any], console: Console) -> None:
  """Prints all tables."""
  for title, make in TABLES.items():
    header, rows = make(result)
    table = Table(title=title, box=box.SIMPLE)
    for i, column in enumerate(header):
      table.add_column(column, justify='left' if i < 1 else 'right')
    for row in rows:
      table.add_row(*row)
    console.print(table)
  console.print(facts(result))


def facts(result: Mapping[str, Any]) -> str:
  """What the findings rest on, in one line."""
  ahead: dict[str, list[float]] = {}
  noise: dict[str, list[float]] = {}
  for case in fitting(result):
    got, place = case['fastest'], (case['model'], case['device'])
    if case['family'] == 'gaussian':
      dense = got
    if case['family'] == 'low_rank':
      ahead.setdefault(', '.join(place), []).append(
        dense['hours'] / got['hours']
      )
    share = got['parts']['noise'] / 3600 / got['hours']
    noise.setdefault(case['family'], []).append(share)
  times = '; '.join(
    f'{place} {min(x):.2f} to {max(x):.2f}' for place, x in ahead.items()
  )
  shares = ', '.join(f'{key} {max(x):.1%}' for key, x in noise.items())
  ratios = [one['served'] / one['measured'] for one in result['published']]
  brings = [one['now'] / one['then'] for one in result['attention']]
  return (
    f'low rank is ahead by {times}; noise takes at most {shares} of a search; '
    f'predictions are {min(ratios):.2f} to {max(ratios):.2f} of what was '
    f'published, {statistics.median(ratios):.2f} in the median; attention '
    f'over filled slots would be {min(brings):.2f} to {max(brings):.2f} times '
    'as fast'
  )


# Told apart in grey by their hatches.
_LOOKS = {
  'noise': (style.PURPLE, ''),
  'prefill': (style.AMBER, '//'),
  'decode: weights': (style.BLUE, ''),
  'decode: attention': (style.SKY, '..'),
  'decode: head': (style.GREEN, 'xx'),
  'network': (style.ORANGE, '\\\\'),
}


def figure(result: Mapping[str, Any]) -> Figure:
  """Shares of the time by part, for each place and family."""
  wanted = [study.name(place) for place in study.PLACES]
  place = lambda case: f'{case["model"]}, {case["devices"]} {case["device"]}'
  chosen = [case for case in fitting(result) if place(case) in wanted]
  chosen.sort(key=lambda case: wanted.index(place(case)))
  with style.context():
    drawn = Figure((style.WIDTH, 4.4))
    axes = drawn.subplots()
    ticks, labels = [], []
    for i, case in enumerate(chosen):
      group, row = divmod(i, 3)
      y = 4.1 * group + row
      got, left = case['fastest'], 0.0
      total = sum(got['parts'].values())
      for part, (color, hatch) in _LOOKS.items():
        width = 100 * got['parts'][part] / total
        axes.barh(
          y, width, 0.86, left, color=color, hatch=hatch, edgecolor='white',
          linewidth=0.4, label=part if i == 0 else None,
        )  # fmt: skip
        left += width
      axes.text(101, y, f'{number(got["hours"])} h', va='center', fontsize=7.5)
      if row == 0:
        axes.text(0, y - 0.68, place(case), va='bottom', fontsize=8)
      ticks.append(y)
      labels.append(case['family'])
    axes.set_yticks(ticks, labels)
    axes.tick_params(axis='y', length=0, labelsize=7.5)
    axes.set(xlim=(0, 109), ylim=(y + 0.7, -1.6), xlabel='% of the time')
    axes.set_xticks(range(0, 101, 20))
    axes.grid(axis='y', visible=False)
    axes.spines['left'].set_visible(False)
    style.legend(drawn, axes, ncols=3)
    search = result['search']
    style.caption(
      drawn,
      'Predicted, not measured: hours of a search of '
      f'N = {search["members"]:,} members on the fastest mesh and where they '
      f'go; {search["examples"]} examples, {search["prompt"]} tokens in, '
      f'{search["new_tokens"]} out, bfloat16, low rank of '
      f'R = {search["rank"]}.',
    )
  return drawn


def main() -> None:
  """Predicts, or shows what was predicted."""
  parser = argparse.ArgumentParser()
  parser.add_argument('--show', action='store_true')
  parser.add_argument('--output', default=RESULTS, type=pathlib.Path)
  args = parser.parse_args()
  path = args.output / 'scale.json'
  if args.show:
    result = json.loads(path.read_text(encoding='utf-8'))
  else:
    result = study.predictions() | {'xla': study.xla()}
    args.output.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + '\n', encoding='utf-8')
    style.save(figure(result), args.output / 'shares.png')
  console = Console()
  # Off a terminal, wide enough for every table.
  console.width = console.width if console.is_terminal else 200
  show(result, console)


if __name__ == '__main__':
  main()
