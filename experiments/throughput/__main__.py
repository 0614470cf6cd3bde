# SPDX-License-Identifier: Apache-2.0
"""How fast is a member? Ratios on SmolLM2-135M, measured in one process.

  python -m experiments.throughput [--repeats=3] [--output=results.json]

Every figure is a ratio whose two sides were timed one after the other, so that
a machine that slows down slows both; least, median and most over repeats. GEMM
peak is the best of the 2048-cubed float32 products around each repeat; FLOPs
are 2 x matmul parameters x rows, attention excluded. Needs no network beyond
the model; compares with transformers where it and torch are installed.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import platform
import statistics
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from rich.console import Console

from experiments import layout
from experiments.throughput import theirs, whole, writing
from experiments.throughput.generation import (
  STEPS,
  Setting,
  Timed,
  perturber,
)
from experiments.throughput.timing import (
  gemm_peak,
  matmul_parameters,
  seconds,
)
from thicket import families
from thicket.models.load import LoadedModel, load

SHAPES = (1, 64), (1, 128), (4, 64), (4, 128)  # members x rows
MANY = 16, 16  # low rank alone
ANSWER = 32  # tokens of the answers that a member's rate is counted for
SIGMA = 1e-3
Found = dict[str, list[float]]


class Families:
  """Members of every family, and the base, at one M x B."""

  def __init__(
    self,
    model: LoadedModel,
    members: int,
    rows: int,
    names: Sequence[str],
    bases: dict[int, Setting],
  ):
    """Prepares the programs, the base's by rows in `bases`; compiles them."""
    self.shape, self.names = f'{members} x {rows}', names
    self._members, self._rows = members, rows
    self._writers = {name: perturber(model, name) for name in names}
    dense = perturber(model, 'gaussian')
    self._base = dense.write([-1], [0.0], dense.buffers(1))
    axes = {name: writer.in_axes for name, writer in self._writers.items()} | {
      'base': dense.in_axes
    }
    of = lambda name, m, b: Setting(model, axes[name], m, b)
    for count in {rows, members * rows} - bases.keys():
      bases[count] = of('base', 1, count)
    self._apart, self._together = bases[rows], bases[members * rows]
    # All dense families run one program, the base's too.
    is_dense = [name for name in names if not families.rank_of(name)]
    self._settings = {}
    if is_dense:
      shared = self._apart if members == 1 else of(is_dense[0], members, rows)
      self._settings = dict.fromkeys(is_dense, shared)
    for name in set(names) - set(is_dense):
      self._settings[name] = of(name, members, rows)
    for setting in {self._apart, self._together}:
      setting.time(self._base)
    for name in names:
      weights, _ = self._write(name, 0)
      self._settings[name].time(weights)

  def _write(self, name: str, first: int) -> tuple[Any, float]:
    """Weights of M members from `first` on, and the seconds to write them."""
    writer = self._writers[name]
    buffers = jax.block_until_ready(writer.buffers(self._members))
    ids = range(first, first + self._members)
    start = time.perf_counter()
    weights = writer.write(ids, [SIGMA] * self._members, buffers)
    jax.block_until_ready(weights)
    return weights, time.perf_counter() - start

  def base(self) -> tuple[Timed, Timed]:
    """The base at B rows, and at M x B of them."""
    apart = self._apart.time(self._base)
    if self._together is self._apart:
      return apart, apart
    return apart, self._together.time(self._base)

  def measure(self, repeat: int) -> Found:
    """One repeat of every family, the base before and after them."""
    before, found = self.base(), {}
    members: dict[str, tuple[float, Timed]] = {}
    for name in self.names:
      weights, write_s = self._write(name, repeat * self._members)
      members[name] = write_s, self._settings[name].time(weights)
      del weights
    apart, together = (
      Timed((a.prefill + b.prefill) / 2, (a.step + b.step) / 2)
      for a, b in zip(before, self.base(), strict=True)
    )
    for name, (write_s, timed) in members.items():
      member_s = write_s + timed.answers(ANSWER)
      # Tokens a second, as shares of the base's own.
      ratios = {
        'of base at all rows': together.answers(ANSWER) / member_s,
        'of base at B rows': self._members * apart.answers(ANSWER) / member_s,
        'prefill of base at all rows': together.prefill / timed.prefill,
        'step of base at all rows': together.step / timed.step,
        'writing, share of time': write_s / member_s,
        'tokens/s': self._members * self._rows * ANSWER / member_s,
      }
      for what, value in ratios.items():
        found[f'{name} {self.shape}: {what}'] = [value]
    return found

  def of_peak(self, model: LoadedModel, peak: float) -> Found:
    """Prefill and steps of the base at B rows, as shares of GEMM peak."""
    body, head = matmul_parameters(model)
    timed, _ = self.base()
    tokens = self._apart.prefill_tokens()
    prefill = 2 * (body * tokens + head * self._rows)
    step = 2 * (body + head) * self._rows
    return {
      f'base {self._rows} rows: prefill of peak': [
        prefill / timed.prefill / peak
      ],
      f'base {self._rows} rows: step of peak': [step / timed.step / peak],
      f'base {self._rows} rows: ms a step': [1e3 * timed.step],
    }


def _add(found: Found, more: Found) -> None:
  for name, values in more.items():
    found.setdefault(name, []).extend(values)


def members(model: LoadedModel, repeats: int) -> Found:
  """Members of all families against the base, shape by shape."""
  found: Found = {}
  bases: dict[int, Setting] = {}
  peak = gemm_peak()
  names = families.FAMILIES
  for shape in (*SHAPES, MANY):
    some = names if shape != MANY else ('low_rank',)
    setting = Families(model, *shape, some, bases)
    for repeat in range(repeats):
      if shape[0] == 1:
        before = peak()
        more = setting.of_peak(model, 1.0)
        best = max(before, peak())
        more = {
          name: [x / best for x in values] if 'peak' in name else values
          for name, values in more.items()
        }
        _add(found, more | {'GEMM peak, GFLOP/s': [best / 1e9]})
      _add(found, setting.measure(repeat))
    del setting
    jax.clear_caches()
  return found


def against_theirs(model: LoadedModel, repeats: int) -> Found:
  """A member here and in transformers, 64 rows of 32 tokens."""
  writer = perturber(model, 'gaussian')
  setting = Setting(
    model, writer.in_axes, 1, 64, ('greedy', 'sampling', 'top-p 0.9'), ANSWER
  )
  weights = writer.write([-1], [0.0], writer.buffers(1))
  for rule in ('greedy', 'sampling', 'top-p 0.9'):
    setting.answer(weights, rule)
  found: Found = {}
  for _ in range(repeats):
    for rule in ('sampling', 'top-p 0.9'):
      rule_s = seconds(lambda rule=rule: setting.answer(weights, rule))
      greedy_s = seconds(lambda: setting.answer(weights))
      _add(found, {f'{rule} of greedy': [greedy_s / rule_s]})
  found['compile seconds'] = [setting.engine.compile_s / 3]
  if not theirs.is_installed():
    print('torch and transformers are not installed: comparison left out')
    return found
  other = theirs.Theirs(model, setting.prompts, ANSWER)
  print(other.settings)
  ours = np.asarray(setting.answer(weights)[0].tokens)[0]
  found['tokens equal to transformers'] = [
    float((other.generate() == ours).mean())
  ]
  held = [weights]

  def member(i: int) -> Any:
    sigma = 0.0 if i < 0 else SIGMA
    held[0] = writer.write([i], [sigma], held[0])
    return setting.answer(held[0])

  for repeat in range(repeats):
    member(-1)
    base_s = seconds(lambda: setting.answer(held[0]))
    start = time.perf_counter()
    other.generate()
    middle = time.perf_counter()
    other.member(repeat, SIGMA)
    end = time.perf_counter()
    member_s = seconds(lambda repeat=repeat: member(repeat))
    ratios = {
      'base, times transformers': (middle - start) / base_s,
      'member, times transformers': (end - middle) / member_s,
      'their writing, share of time': 1 - (middle - start) / (end - middle),
    }
    _add(found, {name: [value] for name, value in ratios.items()})
  return found


def measure(repeats: int) -> Found:
  """All figures, each a list with one number a repeat."""
  found: Found = {}
  first, second = whole.warm_start_s()
  found['first step, s after start, cold'] = [first]
  found['first step, s after start, warm'] = [second]
  model = load('smollm2-135m-instruct')
  found['peak memory over budget, GB'] = [whole.memory_over_budget(model, 64)]
  found['cost of a member, N = 2048 to 1024'] = whole.marginal_costs(repeats)
  for family in families.FAMILIES:
    for name, values in writing.ratios(model, family, repeats + 2).items():
      found[f'{family} written, {name}'] = values
  _add(found, members(model, repeats))
  _add(found, against_theirs(model, repeats))
  return found


def target(name: str) -> tuple[str, float] | None:
  """What a figure should reach."""
  for prefix, least in (
    ('low_rank', 0.97), ('rademacher', 0.97), ('gaussian', 0.93)
  ):  # fmt: skip
    if name.startswith(prefix) and name.endswith(': of base at all rows'):
      return '>=', least
  return {
    'gaussian written, of a copy': ('>=', 0.10),
    'rademacher written, of a copy': ('>=', 0.22),
    'base 128 rows: step of peak': ('>=', 0.65),
    'member, times transformers': ('>=', 1.5),
    'first step, s after start, warm': ('<', 15.0),
    'peak memory over budget, GB': ('<', 1.5),
    'compile seconds': ('<', 30.0),
  }.get(name)


def rows(found: Found) -> list[list[str]]:
  """The table: figure, least, median, most, target."""
  table = []
  for name, values in found.items():
    aim = target(name)
    three = (f'{f(values):.3g}' for f in (min, statistics.median, max))
    table.append([name, *three, f'{aim[0]} {aim[1]:g}' if aim else ''])
  return table


HEADER = ['figure', 'least', 'median', 'most', 'target']


def markdown(found: Found) -> str:
  """The table of the README."""
  return layout.markdown(HEADER, rows(found))


def main() -> None:
  """Measures, prints a table, writes JSON if asked."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--repeats', type=int, default=3)
  parser.add_argument('--output', type=pathlib.Path)
  args = parser.parse_args()
  start = time.monotonic()
  found = measure(args.repeats)
  table = layout.printed(
    f'SmolLM2-135M, float32, M x B rows, {STEPS} steps timed, '
    f'{jax.devices()[0].device_kind}',
    HEADER,
    rows(found),
  )
  Console(width=100).print(table)
  print(f'{time.monotonic() - start:.0f} s in all')
  if args.output:
    versions = {
      name: importlib.metadata.version(name)
      for name in ('jax', 'jaxlib', 'torch', 'transformers')
      if importlib.util.find_spec(name)
    }
    versions['python'] = platform.python_version()
    cores = len(os.sched_getaffinity(0))
    result = {'found': found, 'versions': versions, 'cores': cores}
    args.output.write_text(json.dumps(result, indent=1) + '\n')


if __name__ == '__main__':
  main()
