# SPDX-License-Identifier: Apache-2.0
"""The tables of a terminal, 80 columns wide, from a summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

from thicket.estimates import SIGNIFICANT


def percent(found: float, interval: Sequence[float], sign: str = '') -> str:
  """A share or a difference of shares with its interval, in percent."""
  low, high = interval
  return (
    f'{100 * found:{sign}.1f} [{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]'
  )


def share(found: float | None) -> str:
  """A share in percent; nothing where there is none."""
  return '' if found is None else f'{100 * found:.1f}'


def against(found: Mapping[str, Any] | None) -> str:
  """A difference with its interval; a star where Holm's p is small."""
  if found is None:
    return ''
  p = found['p_holm']
  star = '*' if p is not None and p < SIGNIFICANT else ' '
  return percent(found['difference'], found['interval'], '+') + star


def _table(title: str, *columns: str) -> Table:
  table = Table(
    title=title,
    title_justify='left',
    box=box.SIMPLE_HEAD,
    show_edge=False,
    padding=(0, 1, 0, 0),  # the widest intervals just fit 80 columns
  )
  table.add_column(columns[0])  # gives way to wide numbers
  for name in columns[1:]:
    table.add_column(name, justify='right', no_wrap=True)
  return table


def selection(summary: Mapping[str, Any]) -> Table:
  """Members against the base on the selection split, by sigma."""
  table = _table(
    f'Selection: {summary["rows"]} questions, '
    f'the base scores {summary["base"]["score"]:.3f}',
    'sigma',
    'members',
    'mean score',
    'best score',
    'above base % [95%]',
  )
  for row in summary['members']['per_sigma']:
    above = row['above_base']
    table.add_row(
      f'{row["sigma"]:g}',
      str(row['members']),
      f'{row["mean_score"]:.3f}',
      f'{row["best_score"]:.3f}',
      percent(above['rate'], above['interval']),
    )
  base, members = summary['base'], summary['members']
  if base['released_accuracy'] is not None:
    rates = base['accuracy']['rate'], *_other_rules(base)
    means = members['mean_accuracy'], *_other_rules(members, 'mean_')
    table.caption = (
      'accuracy %, strict, lenient, released: base '
      f'{", ".join(map(share, rates))}; mean member '
      f'{", ".join(map(share, means))}'
    )
    table.caption_justify = 'left'
  return table


def _other_rules(
  found: Mapping[str, Any], mean: str = ''
) -> list[float | None]:
  return [found[f'{mean}{rule}_accuracy'] for rule in ('lenient', 'released')]


def accuracies(test: Mapping[str, Any]) -> Table:
  """All systems on the test split, against base and against sampling."""
  table = _table(
    f'Test: {test["rows"]} held-out questions, with 95% intervals',
    'system',
    'accuracy %',
    'against base',
    'against samples',
  )
  for row in test['systems']:
    found = row['accuracy']
    low, high = (100 * bound for bound in found['interval'])
    is_bound = row['kind'] == 'bound'
    table.add_row(
      row['name'],
      f'{share(found["rate"])} [{low:.0f}, {high:.0f}]',
      'upper bound' if is_bound else against(row['against_base']),
      against(row['against_samples']),
    )
  table.caption = (
    f'against samples: as many samples of the base; * Holm p < {SIGNIFICANT:g}'
  )
  table.caption_justify = 'left'
  return table


def costs(test: Mapping[str, Any]) -> Table:
  """What each system costs, and how its answers read.

  The mean over classes, and the rule of the code released with the paper, have
  a column where they are known.
  """
  others = [
    name
    for name in ('balanced', 'lenient', 'released')
    if any(row.get(f'{name}_accuracy') is not None for row in test['systems'])
  ]
  table = _table(
    'Cost, in answers (passes) / generated tokens',
    'system',
    'to choose it',
    'a question',
    *(f'{name} %' for name in others),
    'abstain %',
  )
  for row in test['systems']:
    spent = row['selection']
    chosen = f'{spent["answers"]:,} / {spent["tokens"]:,}'
    table.add_row(
      row['name'],
      chosen if spent['answers'] else '',
      f'{row["passes"]} / {row["tokens_per_question"]:.0f}',
      *(share(row[f'{name}_accuracy']) for name in others),
      share(row['abstention_rate']),
    )
  return table


_SHARES = {
  'finished_share': 'of row-steps for rows that had finished',
  'device_idle_share': 'of the time without work for the devices',
}


def work_line(work: Mapping[str, Any]) -> str:
  """What was generated, and how fast."""
  stored, ours = work['stored'], work['this_run']
  line = f'{stored["tokens"]:,} tokens in {stored["answers"]:,} answers kept'
  if ours['answers']:
    line += (
      f'; this run {ours["tokens"]:,} in {ours["seconds"]:.0f} s, '
      f'{ours["tokens_per_second"]:.0f} tokens/s, and '
      f'{ours["compile_seconds"]:.0f} s of compiling'
    )
    # A summary of before has no shares.
    for key, what in _SHARES.items():
      if ours.get(key) is not None:
        line += f'; {share(ours[key])}% {what}'
  return f'{line} ({work["devices"]}).'


def contest(told: Mapping[str, Any]) -> Table:
  """Systems of one problem of values or labels, against its base."""
  test = told['test']
  table = _table(
    f'{told["name"]}: {test["rows"]} test rows, {test["measure"]} [95%]',
    'system',
    'value',
    'against base',
  )
  for row in test['systems']:
    found = row['against_base']
    change = 'upper bound' if row['kind'] == 'bound' else ''
    if found is not None:
      star = '*' if found['claim'] != 'none' else ' '
      change = _estimate(found['difference'], found['interval'], '+') + star
    table.add_row(row['name'], _estimate(row['value'], row['interval']), change)
  table.caption = (
    '* the paired interval (and exact p, where there is one) says so'
  )
  table.caption_justify = 'left'
  return table


def _estimate(
  found: float | None, interval: Sequence[float] | None, sign: str = ''
) -> str:
  if found is None:
    return 'not finite'
  low, high = interval
  return f'{found:{sign}.3g} [{low:{sign}.2g}, {high:{sign}.2g}]'
