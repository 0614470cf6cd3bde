# SPDX-License-Identifier: Apache-2.0
"""What members cost on one accelerator, beside what it could do at best.

  python -m experiments.accelerator [--model=smollm2|3b] [--output=FILE.json]

bfloat16, prompts of the arithmetic task, 128 steps, no row stops early.
`smollm2` is the real SmolLM2-135M; `3b` has the shape of Llama-3.2-3B and
random weights.
Floors are rooflines of `experiments.scale` with the peaks measured here.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console

from experiments import layout
from experiments.scale import count, hardware, predict
from experiments.throughput.generation import Setting, perturber
from experiments.throughput.timing import seconds
from thicket import families
from thicket.models.decoder import Decoder, canonical_spec
from thicket.models.decoder_config import DecoderConfig, Rope
from thicket.models.load import LoadedModel, load

SMOLLM2 = 'smollm2-135m-instruct'
LLAMA_3B = DecoderConfig(
  vocab_size=128256,
  num_layers=28,
  d_model=3072,
  d_ff=8192,
  num_heads=24,
  num_kv_heads=8,
  head_dim=128,
  ropes=(Rope(5e5),) * 28,
  norm_eps=1e-5,
  context_length=8192,
  tie_head=True,
)
# Members x rows, and who is measured there beside the base.
DENSE = 'gaussian', 'rademacher'
SHAPES = {
  'smollm2': {
    (1, 256): (*DENSE, 'low_rank'),
    (16, 64): ('gaussian', 'low_rank'),
    (64, 16): ('low_rank',),
  },
  '3b': {
    (1, 256): (*DENSE, 'low_rank'),
    (8, 32): ('gaussian', 'low_rank'),
  },
}
STEPS = 128
REPEATS = 5
SIGMA = 1e-3
Row = dict[str, Any]


def peaks() -> dict[str, float]:
  """Measured FLOP/s of bfloat16 products, and bytes a second of a copy."""
  size = 8192
  a = jax.random.normal(jax.random.key(0), (size, size), jnp.bfloat16)
  product = jax.jit(jnp.matmul)
  x = jax.random.normal(jax.random.key(1), (1 << 30,))
  add = jax.jit(lambda x: x + 1)
  best = lambda fn: min(seconds(fn) for _ in range(10))
  jax.block_until_ready((product(a, a), add(x)))
  return {
    'products': 2 * size**3 / best(lambda: product(a, a)),
    'bandwidth': 2 * x.nbytes / best(lambda: add(x)),
  }


def shaped(config: DecoderConfig, tokenizer: Any) -> LoadedModel:
  """A model of this shape with random weights, norms included."""
  spec = canonical_spec(config)
  zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.bfloat16), spec)
  model = LoadedModel(
    'shaped', '', Decoder(config), zeros, spec, tokenizer, 'llama'
  )
  writer = perturber(model, 'gaussian')
  written = writer.write([0], [0.02], writer.buffers(1))
  params = jax.tree.map(lambda x: x[0], written)
  return dataclasses.replace(model, params=params)


def floor_s(
  model: LoadedModel, device: hardware.Device, setting: Setting, family: str
) -> tuple[float, float]:
  """Least seconds of a prefill and of a mean step, by counted work."""
  members, rows = setting.members, setting.rows
  shared = len(setting.prompts.prefix)
  own = setting.prompts.batch.tokens.shape[1]
  whole = hardware.Shares(1.0, 1.0, 1.0, 1.0, 1.0)
  rank = families.rank_of(family) if family != count.BASE else 0

  def of(rows: int, tokens: int, slots: int) -> float:
    parts = count.forward(
      model.decoder.config,
      rows=members * rows,
      tokens=tokens,
      slots=slots,
      members=members,
      shared=family == count.BASE or bool(rank),
      rank=rank,
    )
    return sum(
      max(predict.roofline(work, device, 1.0, whole).values())
      for work in parts.values()
    )

  # The common prefix is read once by each member.
  # Attention reads every slot of the caches, filled or not.
  prefill = of(1, shared, 0) + of(rows, own, shared)
  return prefill, of(rows, 1, shared + own + STEPS)


def measure(model: LoadedModel, name: str, device: hardware.Device):
  """Rows of the table: one for the base or a family at M x B."""
  found: list[Row] = []
  dense = perturber(model, 'gaussian')
  base = dense.write([-1], [0.0], dense.buffers(1))

  def add(family, setting, weights, write):
    setting.answer(weights)
    setting.answer(weights, live=False)
    prefill, step = [], []
    for _ in range(REPEATS):
      timed = setting.time(weights)
      prefill.append(timed.prefill)
      step.append(timed.step)
    least = floor_s(model, device, setting, family)
    middle = statistics.median(prefill), statistics.median(step)
    whole = statistics.median(write) + middle[0] + STEPS * middle[1]
    found.append({
      'family': family, 'members': setting.members, 'rows': setting.rows,
      'prefill_s': prefill, 'step_s': step, 'write_s': write,
      'prefill_floor_s': least[0], 'step_floor_s': least[1],
      'tokens_per_s': setting.members * setting.rows * STEPS / whole,
      'compile_s': setting.engine.compile_s,
    })  # fmt: skip
    print(json.dumps(found[-1]), flush=True)

  of = lambda axes, m, b: Setting(model, axes, m, b, tokens=1 + STEPS)
  for (members, rows), names in SHAPES[name].items():
    shared = of(dense.in_axes, 1, members * rows)
    if not any(
      row['family'] == count.BASE and row['rows'] == shared.rows
      for row in found
    ):
      add(count.BASE, shared, base, [0.0])
    for family in names:
      writer = perturber(model, family)
      setting = shared
      if members > 1 or families.rank_of(family):
        setting = of(writer.in_axes, members, rows)
      weights, write = writer.buffers(members), []
      for repeat in range(REPEATS + 1):
        jax.block_until_ready(weights)
        ids = range(repeat * members, (repeat + 1) * members)
        start = time.perf_counter()
        weights = writer.write(ids, [SIGMA] * members, weights)
        jax.block_until_ready(weights)
        write.append(time.perf_counter() - start)
      add(family, setting, weights, write[1:])
      del weights, setting
    del shared
  return found


HEADER = [
  'family', 'M x B', 'writing, ms', 'prefill, ms', 'of floor', 'step, ms',
  'of floor', 'tokens/s', 'of base',
]  # fmt: skip


def rows(found: list[Row]) -> list[list[str]]:
  """The table, as text."""
  base = {
    row['rows']: row['tokens_per_s']
    for row in found
    if row['family'] == count.BASE
  }
  table = []
  for row in found:
    ms = {
      key: 1e3 * statistics.median(row[f'{key}_s'])
      for key in ('write', 'prefill', 'step')
    }
    of_floor = lambda key, ms=ms, row=row: (
      f'{1e3 * row[f"{key}_floor_s"] / ms[key]:.2f}'
    )
    of_base = row['tokens_per_s'] / base[row['members'] * row['rows']]
    table.append([
      row['family'], f'{row["members"]} x {row["rows"]}',
      f'{ms["write"]:.3g}', f'{ms["prefill"]:.3g}', of_floor('prefill'),
      f'{ms["step"]:.3g}', of_floor('step'), f'{row["tokens_per_s"]:,.0f}',
      f'{of_base:.2f}',
    ])  # fmt: skip
  return table


def markdown(found: list[Row]) -> str:
  """The table of the README."""
  return layout.markdown(HEADER, rows(found))


def main() -> None:
  """Measures, prints a table, writes JSON if asked."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--model', choices=SHAPES, default='smollm2')
  parser.add_argument(
    '--smollm2', default=SMOLLM2, help='name or path of SmolLM2'
  )
  parser.add_argument('--output', type=pathlib.Path)
  args = parser.parse_args()
  model = load(args.smollm2, 'bfloat16')
  if args.model == '3b':
    model = shaped(LLAMA_3B, model.tokenizer)
  peak = peaks()
  device = dataclasses.replace(hardware.H100, **peak)
  print({key: f'{value:.3g}' for key, value in peak.items()}, flush=True)
  found = measure(model, args.model, device)
  kind = jax.devices()[0].device_kind
  table = layout.printed(
    f'{args.model}, bfloat16, {STEPS} steps, {kind}',
    HEADER,
    rows(found),
  )
  Console(width=110).print(table)
  if args.output:
    result = {
      'model': args.model, 'device': kind, 'jax': jax.__version__,
      'peaks': peak, 'found': found,
    }  # fmt: skip
    args.output.write_text(json.dumps(result, indent=1) + '\n')


if __name__ == '__main__':
  main()
