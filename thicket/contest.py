# SPDX-License-Identifier: Apache-2.0
"""An ensemble of values or labels against its controls, on the same rows.

What `comparison` is for texts, without what only texts have (prompts,
sampling): the base, the selected members, their ensembles, and ensembles of
members that nobody selected, which tell what noise and averaging do without
any search. Differences are paired over rows (see `estimates`).

Axes: K members, B rows.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from thicket import estimates, metrics
from thicket.population import BASE
from thicket.randopt import Result
from thicket.scoring import Batch, Scoring

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Contest:
  """The table of a test.

  Attributes:
    measure: what `value` is, with its unit.
    num_rows: B.
    rows: one for each system, the base first: `id`, `name`, `kind` (base,
      ensemble, control or bound), `passes` (outputs for each row), `value`
      with `interval`, and `against_base` as in `estimates.differences`; None
      where outputs are not finite.
    outputs: of the base and the K selected, [1 + K, B, ...].
    ensemble: outputs of the ensemble of all K, [B, ...].
  """

  measure: str
  num_rows: int
  rows: list[Row]
  outputs: np.ndarray
  ensemble: np.ndarray

  def row(self, name: str) -> Row:
    """The system with that id; KeyError without it."""
    return {row['id']: row for row in self.rows}[name]


def hold(
  result: Result,
  test: Batch,
  scoring: Scoring,
  *,
  sizes: Sequence[int] | None = None,
) -> Contest:
  """Measures what a search found, and its controls, on fresh rows.

  Args:
    result: of `thicket.search`.
    test: rows that selection has not seen.
    scoring: how outputs are combined and measured.
    sizes: K of ensembles, each at most that of the search; default that.

  Raises:
    ValueError: a size is out of range.
  """
  k = len(result.members)
  sizes = sorted(set(sizes or (k,)))
  if not 1 <= sizes[0] <= sizes[-1] <= k:
    raise ValueError(f'sizes = {sizes}: each must lie in 1..{k}')
  ranked = [member.id for member in result.members]
  first = result.population.unselected(k).tolist()
  same = result.population.of_likely_sigma(ranked, k).tolist()
  asked = list(dict.fromkeys([BASE, *ranked, *first, *same]))
  place = {member: at for at, member in enumerate(asked)}
  found = np.asarray(result.outputs(asked, test))
  pick = lambda ids: found[[place[int(i)] for i in ids]]
  measure = jax.jit(scoring.measure)
  counted = np.asarray(jax.vmap(measure, (0, None))(jnp.asarray(found), test))
  counted = counted.astype(np.float64)
  own = counted[[place[i] for i in ranked]]
  table = [
    (_row('base', 'base', 'base', 1), counted[place[BASE]]),
    (
      _row('selected-mean', f'mean of {k} selected', 'ensemble', 1),
      own.mean(0),
    ),
    (_row('best-member', 'best on selection', 'ensemble', 1), own[0]),
  ]

  def add(name, shown, kind, ids, combine):
    together = combine(jnp.asarray(pick(ids)))
    values = np.asarray(measure(together, test), np.float64)
    table.append((_row(name, shown, kind, len(ids)), values))

  for size in sizes:
    for number, (rule, combine) in enumerate(scoring.combine.items()):
      if size > 1:
        name = f'ensemble-{size}' if number == 0 else f'{rule}-{size}'
        add(name, f'{rule} of best {size}', 'ensemble', ranked[:size], combine)
  rule, combine = next(iter(scoring.combine.items()))
  add('unselected', f'{rule} of {k} unselected', 'control', first, combine)
  if same != first:
    sigma = result.population.sigma(same[:1])[0]
    shown = f'{rule} of {len(same)} of sigma {sigma:g}'
    add('same-sigma', shown, 'control', same, combine)
  means = own.mean(axis=1)
  best = own[int(np.where(np.isnan(means), -np.inf, means).argmax())]
  table.append((_row('best-on-test', 'best on test', 'bound', 1), best))
  return Contest(
    measure=scoring.measure_name,
    num_rows=counted.shape[1],
    rows=_finished(table),
    outputs=pick([BASE, *ranked]),
    ensemble=np.asarray(combine(jnp.asarray(pick(ranked)))),
  )


def _row(name: str, shown: str, kind: str, passes: int) -> Row:
  return {'id': name, 'name': shown, 'kind': kind, 'passes': passes}


def _finished(table: Sequence[tuple[Row, np.ndarray]]) -> list[Row]:
  """The rows with their values, intervals and differences."""
  _, base = table[0]
  for row, values in table:
    row |= {'value': None, 'interval': None, 'against_base': None}
    if not np.isfinite(values).all():
      continue  # members that broke must not cost what is known of others
    if np.isin(values, (0, 1)).all():
      found = metrics.wilson(int(values.sum()), values.size)
      middle = values.mean()
    else:
      middle, *found = metrics.mean_interval(values)
    row['value'], row['interval'] = float(middle), [float(x) for x in found]
  estimates.attach(
    [
      (row, 'against_base', values, base)
      for row, values in table[1:]
      if row['kind'] != 'bound'
      and None not in (row['value'], table[0][0]['value'])
    ],
    bounds=(-math.inf, math.inf),
  )
  return [row for row, _ in table]
