# SPDX-License-Identifier: Apache-2.0
"""A run on values or labels: search, controls, tables, figures, one report.

The search is `thicket.search`, the table `contest.hold`; this module only
tells their story for each problem of a configuration, and keeps it in a
folder: `PROBLEM/ledger`, `summary.json` and `report.html`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from typing import Any

import jax
import ml_collections
import numpy as np
from absl import logging
from etils import epath
from jax.sharding import Mesh
from matplotlib.figure import Figure
from rich.console import Console

from thicket import (
  contest,
  page,
  prng,
  problems,
  processes,
  randopt,
  scoring,
  signals,
  tables,
)
from thicket.analysis import density
from thicket.contest import Contest
from thicket.estimates import rate
from thicket.ledger import LedgerError
from thicket.plan import ConfigError, agree, one_of
from thicket.plots import signals as signal_plots
from thicket.plots import style, thickets
from thicket.problems import Problem
from thicket.recipe import recipe_hash
from thicket.storage import as_path, make_folder, os_errors, write_atomically
from thicket.version import __version__

SUMMARY, PAGE = 'summary.json', 'report.html'


@dataclasses.dataclass(frozen=True, eq=False)
class Told:
  """What was found for one problem.

  Attributes:
    rewards: float64 [N, b], on the rows that all members saw.
    base_rewards: float32 [b].
    seen: bool [B], which of the selection rows these are.
  """

  problem: Problem
  result: randopt.Result
  contest: Contest
  seconds: dict[str, float]
  rewards: np.ndarray
  base_rewards: np.ndarray
  seen: np.ndarray


class ArrayRun:
  """The problems of a configuration; `finish` tells their story."""

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    workdir: str | None = None,
    console: Console | None = None,
    mesh: Mesh | None = None,
  ):
    """Checks the configuration and names the folder; computes nothing yet.

    Args:
      config: as `configs/signals.py` or `configs/vision.py` makes it.
      workdir: folder of the run; by default named by task and recipe, so that
        the same command resumes and another recipe never collides.
      console: where progress and tables go.
      mesh: where members are spread; by default over all devices.

    Raises:
      ConfigError: naming the setting.
    """
    agree(config, workdir)
    self.config, self.console = config, console or Console()
    self.sizes, self.mesh = _sizes(config), mesh
    if workdir is None:
      name = f'{config.task.name}-{recipe_hash(_recipe(config))}'
      workdir = os.path.join('runs', name)
    self.workdir = as_path(workdir)

  def finish(self) -> dict[str, Any]:
    """Searches and compares for each problem; returns the summary."""
    start, told, shown = time.monotonic(), [], []
    make = problems.make(self.config)
    while True:
      began = time.monotonic()
      problem = next(make, None)
      if problem is None:
        break
      seconds = {'pretraining': time.monotonic() - began}
      told.append(self._search(problem, seconds))
      shown.append(_tell(told[-1]))
      self.console.print('', tables.contest(shown[-1]), sep='\n')
    summary = {
      'config': json.loads(json.dumps(self.config.to_dict())),
      'problems': shown,
      'seconds': time.monotonic() - start,
      'devices': f'{jax.device_count()} x {jax.devices()[0].device_kind}',
    }
    drawn = _figures(self.config, told)  # by all: members answer once more
    if not processes.is_first():
      return summary
    try:
      folder = self.workdir / 'figures'
      make_folder(folder)
      for title, figure in drawn.items():
        name = title.lower().replace(' ', '-')
        with os_errors(folder):
          style.save(figure, folder / f'{name}.png')
      apart = {title: style.apart(figure) for title, figure in drawn.items()}
      for name, text in (
        (SUMMARY, json.dumps(summary, indent=2)),
        (PAGE, page.render_problems(summary, apart)),
      ):
        write_atomically(self.workdir / name, text)
    except OSError as error:
      raise LedgerError(
        f'{self.workdir}: cannot be written: {error.strerror}'
      ) from error
    return summary

  def results(self) -> dict[str, epath.Path]:
    """Where things lie, by what they are."""
    return {
      'report': self.workdir / PAGE,
      'figures': self.workdir / 'figures',
      'summary': self.workdir / SUMMARY,
      'ledgers': self.workdir,
    }

  def _search(self, problem: Problem, seconds: dict[str, float]) -> Told:
    config, population = self.config, self.config.population
    parameters = sum(x.size for x in jax.tree.leaves(problem.params))
    logging.info(
      '%s: %d parameters, pretrained in %.1f s; searching N = %d',
      problem.name,
      parameters,
      seconds['pretraining'],
      population.size,
    )
    rules, start = scoring.SCORINGS[problem.output], time.monotonic()
    try:
      result = randopt.search(
        problem.apply,
        problem.params,
        problem.selection,
        rules.reward,
        key=config.seed,
        num_members=population.size,
        top_k=self.sizes[-1],
        sigma=problem.sigmas,
        mesh=self.mesh,
        family=population.family,
        scale=population.scale,
        antithetic=population.antithetic,
        only=population.only,
        skip=population.skip,
        members_per_device=config.run.members_per_device,
        prune_after=config.run.prune_after,
        workdir=self.workdir / problem.name,
        name=f'{config.task.name}: {problem.output}',
      )
    except LedgerError:
      raise
    except ValueError as error:
      raise ConfigError(f'{problem.name}: {error}') from error
    seconds['search'] = time.monotonic() - start
    found = contest.hold(result, problem.test, rules, sizes=self.sizes)
    return Told(problem, result, found, seconds, *_common(result))


def _sizes(config: ml_collections.ConfigDict) -> tuple[int, ...]:
  one_of('task.name', config.task.name, problems.PROBLEMS)
  asked, n = tuple(config.ensemble.sizes), config.population.size
  for size in asked or (0,):
    if type(size) is not int or not 1 <= size <= n:
      raise ConfigError(
        f'ensemble.sizes = {asked}: each K is a whole number in 1..{n}, N of '
        'population.size'
      )
  return tuple(sorted(set(asked)))


def _recipe(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """What members and their rewards depend on."""
  recipe = config.to_dict()
  del recipe['population']['size'], recipe['ensemble']
  del recipe['run']['members_per_device']
  return recipe | {'thicket': __version__, 'arithmetic': prng.arithmetic()}


def _tell(told: Told) -> dict[str, Any]:
  """One problem of the summary, as plain values.

  Mirrored pairs count as one trial in the interval of the share above base.
  """
  problem, result = told.problem, told.result
  scores = result.scores
  finished = ~np.isnan(scores)
  sigma = result.population.sigma(result.population.ids())
  rows = [row['id'] for row in told.contest.rows]
  largest = [name for name in rows if name.startswith('ensemble-')]
  best = told.contest.row((largest or ['best-member'])[-1])
  return {
    'name': problem.name,
    'output': problem.output,
    'parameters': sum(x.size for x in jax.tree.leaves(problem.params)),
    'sigmas': [float(x) for x in problem.sigmas],
    'pretraining': {
      'steps': len(problem.losses),
      'last_loss': float(problem.losses[-1]) if problem.losses.size else None,
    },
    'selection': {
      'rows': len(problem.selection.targets),
      'base_score': _finite(result.base_score),
      'saved': result.saved,
      # Whoever was dropped is below the K-th best, but maybe not the base.
      'above_base': (
        rate(scores > np.float32(result.base_score), result.population.alike)
        if finished.all()
        else None
      ),
      'scores': [_finite(score) for score in scores],
      'member_sigmas': sigma.tolist(),
    },
    'selected': [dataclasses.asdict(member) for member in result.members],
    'test': {
      'rows': told.contest.num_rows,
      'measure': told.contest.measure,
      'systems': told.contest.rows,
    },
    'seconds': told.seconds,
    'verdict': _verdict(best, told.contest.row('base')),
  }


def _finite(value: float) -> float | None:
  return float(value) if np.isfinite(value) else None


def _verdict(best: dict[str, Any], base: dict[str, Any]) -> str:
  """What a reader may take home."""
  found = best['against_base']
  if found is None:
    return f'the {best["name"]} or the base gives numbers that are not finite'
  words = {
    'above': 'is above the base',
    'below': 'is below the base',
    'none': 'cannot be told from the base',
  }
  low, high = found['interval']
  return (
    f'the {best["name"]} {words[found["claim"]]} on fresh rows: '
    f'{base["value"]:.4g} to {best["value"]:.4g}, '
    f'{found["difference"]:+.3g} [{low:+.3g}, {high:+.3g}]'
  )


def _common(
  result: randopt.Result,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Rewards [N, b], the base's [b], and which rows [B] all members saw."""
  ids = result.population.ids()
  seen = result.ledger.view('selection', ids).seen.all(axis=(0, 2))
  rewards = result.rewards[:, seen].astype(np.float64)
  # A member that broke counts as the worst of those that did not.
  finite = rewards[np.isfinite(rewards)]
  worst = finite.min() if finite.size else np.nan
  rewards = np.where(np.isfinite(rewards), rewards, worst)
  return rewards, result.base_rewards[seen], seen


def _figures(
  config: ml_collections.ConfigDict, told: list[Told]
) -> dict[str, Figure]:
  """Captioned figures by title."""
  figures = {}
  if config.task.name == 'signals':
    panels = [_panel(x) for x in told]
    rows = [int(x.seen.sum()) for x in told]
    figures['Signals'] = signal_plots.regimes(
      panels,
      rows=rows,
      scale=config.population.scale,
      antithetic=config.population.antithetic,
    )
  for x in told:
    if not np.isfinite(x.base_rewards).all():
      continue  # nobody can be compared with a broken base
    figures[f'Density {x.problem.name}'] = _density(config, x)
  return figures


_REGIMES = {'none': 'nothing', 'mixed': 'all families'}


def _panel(told: Told) -> signal_plots.Panel:
  """The first test signal, and the errors of all members."""
  problem, found = told.problem, told.contest
  source, target = problem.name.split('-')
  context = np.asarray(problem.test.inputs[0])
  wanted = np.asarray(problem.test.targets[0])
  base_out, *members = found.outputs[:, 0]
  together = scoring.mean(told.result.ensemble(problem.selection))
  score = scoring.negative_mse(together, problem.selection)[told.seen].mean()
  steps = np.arange(len(context) + len(wanted), dtype=np.float32)
  return signal_plots.Panel(
    title=f'pretrained on {_REGIMES.get(source, source)}; target: {target}',
    x=signals.START + signals.STEP * steps,
    context=context,
    target=wanted,
    base=base_out,
    members=np.stack(members),
    ensemble=found.ensemble[0],
    errors=-told.rewards.mean(axis=1),
    base_error=-float(told.base_rewards.mean()),
    ensemble_error=-float(score),
    sigma=problem.sigmas,
  )


def _density(config: ml_collections.ConfigDict, told: Told) -> Figure:
  rewards, base = told.rewards, told.base_rewards
  population = told.result.population
  gains = np.sort(rewards.mean(axis=1) - base.mean())
  # From no gain to that of the best few.
  most = float(gains[-max(1, len(gains) // 50)])
  top = max(most, 0.1 * abs(float(base.mean())), 1e-6)
  curves = density.solution_density(
    rewards,
    base,
    population.sigma_index(population.ids()),
    np.linspace(0, top, 21),
    alike=population.alike,
  )
  unit = {'value': 'negative MSE', 'label': 'log-likelihood, nats'}
  return thickets.density(
    curves,
    [told.problem.sigmas[curve.group] for curve in curves],
    style.Facts(
      n=population.size,
      sigma=told.problem.sigmas,
      rows=rewards.shape[1],
      k=len(told.result.members),
      scale=config.population.scale,
      antithetic=config.population.antithetic,
    ),
    unit=unit[told.problem.output],
  )
