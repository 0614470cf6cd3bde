# SPDX-License-Identifier: Apache-2.0
"""Scores of families of noise at one element, one norm, one move.

  python -m experiments.families [--members=24]

Each group of members of SmolLM2-135M answers the same 64 arithmetic questions.
How far a group moves the model is the mean KL divergence, in nats, of the next
token after those prompts from the base's; sigmas are matched on it where the
group's name says so. About 20 minutes on two cores.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import time
from typing import Any

import jax
import numpy as np
from rich.console import Console

from experiments import layout
from experiments.throughput.generation import Prompts
from thicket import arguments, run, sharding
from thicket.analysis.displacement import Mover, matched_sigma
from thicket.blocks import BASE
from thicket.models.load import load

ROOT = pathlib.Path(__file__).parents[2]
RESULTS = pathlib.Path(__file__).parent / 'results' / 'families.json'
MODEL = 'smollm2-135m-instruct'
SIGMA, ROWS, MOVED = 2e-3, 64, 4


@dataclasses.dataclass(frozen=True)
class Group:
  """Members of one family and scale.

  Attributes:
    name: for tables.
    sigma: a number, 'matched' to the move of the first group, or the name of
      the group whose sigma it takes.
    bracket: of the search for a matched sigma.
  """

  name: str
  family: str
  scale: str
  sigma: float | str
  bracket: tuple[float, float] = (0.0, 0.0)


GROUPS = (
  Group('Gaussian', 'gaussian', 'absolute', SIGMA),
  Group('Rademacher, same element', 'rademacher', 'absolute', SIGMA),
  Group('low rank, same element', 'low_rank', 'absolute', SIGMA),
  Group('low rank, same move', 'low_rank', 'absolute', 'matched', (1e-4, 4e-3)),
  Group(
    'Gaussian modular, same move', 'gaussian', 'modular', 'matched', (0.1, 40.0)
  ),
  Group(
    'low rank modular, same norms',
    'low_rank',
    'modular',
    'Gaussian modular, same move',
  ),
  Group(
    'low rank modular, same move', 'low_rank', 'modular', 'matched', (0.1, 80.0)
  ),
)


def movers() -> dict[str, Mover]:
  """How far each group moves the next token's distribution."""
  model = load(MODEL)
  tokens, mask = Prompts(model, ROWS, 1).whole(model.tokenizer.pad_id)
  positions = np.maximum(mask.cumsum(axis=1, dtype=np.int32) - 1, 0)

  def outputs(params, tokens):
    return model.decoder.apply(params, tokens, positions, mask)[0]

  made: dict[tuple[str, str], Mover] = {}
  for group in GROUPS:
    kind = group.family, group.scale
    if kind not in made:
      made[kind] = Mover(
        outputs,
        model.params,
        tokens,
        key=0,
        num_members=MOVED,
        family=group.family,
        scale=group.scale,
        spec=model.spec,
        mesh=sharding.make_mesh(jax.devices()[:1]),
        members_at_a_time=1,
      )
  return {group.name: made[group.family, group.scale] for group in GROUPS}


def moves(console: Console) -> dict[str, dict[str, float]]:
  """The sigma of each group, and how far it moves the model."""
  found: dict[str, dict[str, float]] = {}
  of, target = movers(), None
  for group in GROUPS:
    if group.sigma == 'matched':
      sigma = matched_sigma(
        target, of[group.name], bracket=group.bracket, tolerance=0.02
      ).sigma
    elif isinstance(group.sigma, str):
      sigma = found[group.sigma]['sigma']
    else:
      sigma = group.sigma
    moved = of[group.name](sigma)
    target = float(moved.mean[0]) if target is None else target
    found[group.name] = {
      'sigma': sigma,
      'kl': float(moved.mean[0]),
      'kl_error': float(moved.error[0]),
    }
    console.print(f'{group.name}: {found[group.name]}')
  return found


def scores(group: Group, sigma: float, members: int, folder: str) -> np.ndarray:
  """Rewards [1 + N, rows] of the base and of N members, greedy answers."""
  config = arguments.load_config(str(ROOT / 'configs' / 'llm.py'))
  config.population.family, config.population.scale = group.family, group.scale
  config.population.size = members
  config.population.sigmas = (sigma,)
  config.ensemble.sizes = (1,)
  config.data.num_selection = ROWS
  config.run.members_per_device = 4 if group.family == 'low_rank' else 1
  job = run.Run(config, f'{folder}/{group.name.replace(" ", "-")}')
  block = job.get(
    job.plan.greedy, 'selection', [BASE, *range(members)], label=group.name
  )
  return block.reward[:, :, 0]


def summary(rewards: np.ndarray) -> dict[str, Any]:
  """What a table needs of rewards [1 + N, rows]."""
  each = rewards[1:].mean(axis=1, dtype=np.float64)
  base = float(rewards[0].mean(dtype=np.float64))
  return {
    'base': base,
    'scores': each.tolist(),
    'mean': float(each.mean()),
    'error': float(each.std(ddof=1) / np.sqrt(len(each))),
    'deviation': float(each.std(ddof=1)),
    'best': float(each.max()),
    'above_base': float((each > base).mean()),
  }


HEADER = (
  'members', 'sigma', 'KL, nats', 'mean score % ± se', 'sd', 'best',
  'share above base',
)  # fmt: skip


def rows(found: dict[str, Any]) -> list[list[str]]:
  """The table, group by group."""
  table = []
  for name, x in found['groups'].items():
    table.append(
      [
        name,
        f'{x["sigma"]:.3g}',
        f'{x["kl"]:.3f} ± {x["kl_error"]:.3f}',
        *_scored(x),
      ]
    )
  return table


def _scored(x: dict[str, Any]) -> list[str]:
  """The cells of a group's scores, empty where only its move was measured."""
  if 'mean' not in x:
    return [''] * 4
  return [
    f'{100 * x["mean"]:.1f} ± {100 * x["error"]:.1f}',
    f'{100 * x["deviation"]:.1f}',
    f'{100 * x["best"]:.1f}',
    f'{100 * x["above_base"]:.0f}%',
  ]


def markdown(found: dict[str, Any]) -> str:
  """The table of the README."""
  return layout.markdown(HEADER, rows(found))


def main() -> None:
  """Measures, prints the table, writes the results."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument(
    '--members', type=int, default=24, help='0: only how far groups move'
  )
  parser.add_argument('--workdir', default='runs/families')
  args = parser.parse_args()
  console, start = Console(width=110, highlight=False), time.monotonic()
  found: dict[str, Any] = {'members': args.members, 'rows': ROWS}
  found['groups'] = moves(console)
  for group in GROUPS if args.members else ():
    moved = found['groups'][group.name]
    rewards = scores(group, moved['sigma'], args.members, args.workdir)
    moved |= summary(rewards)
  table = layout.printed(
    f'SmolLM2-135M, N = {args.members}, {ROWS} questions',
    HEADER,
    rows(found),
  )
  console.print(table)
  found['seconds'] = time.monotonic() - start
  RESULTS.write_text(json.dumps(found, indent=1) + '\n')


if __name__ == '__main__':
  main()
