# SPDX-License-Identifier: Apache-2.0
"""How fast is a member? Ratios on SmolLM2-135M, measured in one process.

  python -m experiments.throughput [--repeats=5] [--output=results.json]

Every figure is a median of per-repeat ratios whose two sides were timed one
after the other, so that a machine that slows down slows both. GEMM peak is the
best of the 2048-cubed float32 products interleaved with each repeat; FLOPs are
2 x matmul parameters x rows, attention excluded. Needs no network beyond the
model; compares with transformers where torch and transformers are installed.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from thicket import (
  data,
  decode,
  engine,
  evaluation,
  families,
  perturb,
  sampling,
  sharding,
  tasks,
)
from thicket.models.load import LoadedModel, load

ROWS, NEW_TOKENS = 64, 32
GB = 1e9


def seconds(fn: Callable[[], Any]) -> float:
  """Wall time of one call, its results awaited."""
  start = time.perf_counter()
  jax.block_until_ready(fn())
  return time.perf_counter() - start


def gemm_peak() -> Callable[[], float]:
  """A function that measures GEMM peak in FLOP/s, best of three products."""
  size = 2048
  a = jnp.ones((size, size), jnp.float32)
  product = jax.jit(jnp.matmul)
  jax.block_until_ready(product(a, a))
  return lambda: max(
    2 * size**3 / seconds(lambda: product(a, a)) for _ in range(3)
  )


RULES = {
  'greedy': sampling.greedy,
  'sampling': sampling.sampler(0, 0.7),
  'top-p 0.9': sampling.sampler(0, 0.7, top_p=0.9),
}


def matmul_parameters(model: LoadedModel) -> tuple[int, int]:
  """Parameters of the layers' products, and of the output product."""
  c = model.decoder.config
  total = sum(x.size for x in jax.tree.leaves(model.params) if x.ndim > 1)
  head = c.vocab_size * c.d_model
  return total - head if c.tie_head else total - 2 * head, head


def noise_ratios(
  model: LoadedModel, family: str, repeats: int
) -> dict[str, list[float]]:
  """Speed of writing a member's weights, as a share of a plain `w + c`."""
  mesh = sharding.make_mesh(jax.devices()[:1])
  perturber = perturb.Perturber(
    model.params, model.spec, seed=0, mesh=mesh, family=family
  )
  plain = jax.jit(
    lambda old, base, c: base[None] + c, donate_argnums=0, keep_unused=True
  )
  members, sums = perturber.buffers(1), perturber.buffers(1)
  size = sum(x.size for x in jax.tree.leaves(model.params))
  ratios, rates = [], []
  for i in range(repeats + 1):
    jax.block_until_ready((members, sums))
    start = time.perf_counter()
    members = jax.block_until_ready(perturber.write([i], [1e-3], members))
    middle = time.perf_counter()
    sums = jax.block_until_ready(
      jax.tree.map(lambda old, w: plain(old, w, 1e-3), sums, model.params)
    )
    end = time.perf_counter()
    if i:  # the first compiles
      ratios.append((end - middle) / (middle - start))
      rates.append(size / (middle - start) / 1e6)
  return {'ratio': ratios, 'million_weights_per_s': rates}


class Bench:
  """Base and members through one engine that never stops early."""

  def __init__(self, model: LoadedModel, new_tokens: int):
    """Compiles generation of `new_tokens` for 64 real prompts."""
    task = tasks.make('arithmetic')
    splits = data.load(
      task, num_selection=ROWS, num_validation=0, num_test=1, seed=0
    )
    prefix, questions = evaluation.prepare(
      task,
      model.tokenizer,
      {'selection': splits.selection},
      rows=ROWS,
      max_new_tokens=new_tokens,
      context_length=model.decoder.config.context_length,
    )
    (self.batch,) = questions['selection'].batches()
    self.prefix = prefix
    vocab = model.decoder.config.vocab_size
    # State 0 never leads to the accepting state: no row stops before the limit.
    table = np.stack([np.zeros(vocab, np.int32), np.ones(vocab, np.int32)])
    mesh = sharding.make_mesh(jax.devices()[:1])
    self.perturber = perturb.Perturber(
      model.params, model.spec, seed=0, mesh=mesh
    )
    self.engine = engine.Engine(
      model.decoder,
      mesh=mesh,
      in_axes=self.perturber.in_axes,
      dtype=jnp.float32,
    )
    self.steps = {
      name: engine.answer_all(
        self.engine,
        decode.Decoding(new_tokens, table, model.tokenizer.pad_id, rule),
        prefix,
        [self.batch],
      )
      for name, rule in RULES.items()
    }
    self.weights = self.perturber.buffers(1)
    self.ids = jnp.zeros(1, jnp.int32)

  def write(self, member: int) -> None:
    """Writes a member's weights; -1 is the base."""
    self.weights = self.perturber.write([member], [1e-3], self.weights)

  def answer(self, rule: str = 'greedy') -> Any:
    """Answers the batch with the weights at hand."""
    step = self.steps[rule]
    return jax.block_until_ready(step(self.weights, self.ids, self.ids))


def transformers_generate(model: LoadedModel, bench: Bench) -> Callable | None:
  """The same weights, batch and stop rule in transformers, or None."""
  if not all(map(importlib.util.find_spec, ('torch', 'transformers'))):
    print('torch and transformers are not installed: comparison left out')
    return None
  import torch
  import transformers

  c = model.decoder.config
  config = transformers.LlamaConfig(
    vocab_size=c.vocab_size,
    hidden_size=c.d_model,
    intermediate_size=c.d_ff,
    num_hidden_layers=c.num_layers,
    num_attention_heads=c.num_heads,
    num_key_value_heads=c.num_kv_heads,
    head_dim=c.head_dim,
    rope_theta=c.rope_base,
    rms_norm_eps=c.norm_eps,
    max_position_embeddings=c.context_length,
    tie_word_embeddings=c.tie_head,
    attn_implementation='sdpa',
  )
  torch.set_num_threads(2)
  print(
    f'transformers {transformers.__version__}, torch {torch.__version__}: '
    f'2 threads, float32, sdpa, cache on, greedy, {ROWS} prompts, '
    f'{NEW_TOKENS} new tokens, no early stop'
  )
  theirs = transformers.LlamaForCausalLM(config).eval()
  state = {}
  for array, leaf in zip(
    jax.tree.leaves(model.params), jax.tree.leaves(model.spec), strict=True
  ):
    edges = np.cumsum([s.size for s in leaf.segments])[:-1]
    for s, part in zip(
      leaf.segments, np.split(np.asarray(array), edges), strict=True
    ):
      state[s.full_name] = torch.tensor(part)
  missing, extra = theirs.load_state_dict(state, strict=False)
  if extra or set(missing) - {'lm_head.weight'}:  # tied to the embedding
    raise RuntimeError(f'missing {missing}, not expected {extra}')
  theirs.tie_weights()
  theirs.generation_config.eos_token_id = None
  pad = model.tokenizer.pad_id
  shared = np.tile(bench.prefix, (ROWS, 1))
  suffix = bench.batch.tokens
  longest = int(bench.batch.length.max())
  tokens, mask = [], []
  for row in range(ROWS):
    length = int(bench.batch.length[row])
    fill = [pad] * (longest - length)
    own = suffix[row, suffix.shape[1] - length :]
    tokens.append([*fill, *shared[row], *own])
    mask.append([0] * len(fill) + [1] * (len(bench.prefix) + length))
  inputs = torch.tensor(tokens), torch.tensor(mask)

  def run():
    with torch.inference_mode():
      return theirs.generate(
        inputs[0],
        attention_mask=inputs[1],
        do_sample=False,
        use_cache=True,
        max_new_tokens=NEW_TOKENS,
        eos_token_id=None,  # no row stops early here either
        pad_token_id=pad,
      )[:, -NEW_TOKENS:].numpy()

  return run


def measure(repeats: int) -> dict[str, Any]:
  """All figures, each a list with one number a repeat."""
  model = load('smollm2-135m-instruct')
  found: dict[str, Any] = {}
  for family in families.FAMILIES:
    for name, values in noise_ratios(model, family, repeats + 2).items():
      found[f'{family} {name}'] = values
  one, many = Bench(model, 1), Bench(model, NEW_TOKENS)
  for bench in (one, many):
    bench.write(-1)
    bench.answer()
  found['compile seconds'] = [one.engine.compile_s, many.engine.compile_s]
  peak, (body, head) = gemm_peak(), matmul_parameters(model)
  rows, size = one.batch.tokens.shape
  prefill_flops = 2 * (body * (rows * size + len(one.prefix)) + head * rows)
  step_flops = 2 * (body + head) * rows
  for rule in RULES:
    many.answer(rule)
  keys = (
    *(f'{rule} of greedy' for rule in list(RULES)[1:]),
    'peak GFLOP/s',
    'prefill of peak',
    'decode of peak',
    'decode ms a step',
    'members of base',
    'base tokens/s',
    'members tokens/s',
  )
  found |= {key: [] for key in keys}
  for i in range(repeats):
    before = peak()
    one.write(-1)
    jax.block_until_ready(one.weights)
    prefill_s = seconds(one.answer)
    many.write(-1)
    jax.block_until_ready(many.weights)
    base_s = seconds(many.answer)
    start = time.perf_counter()
    many.write(i)
    many.answer()
    member_s = time.perf_counter() - start
    best = max(before, peak())
    step_s = (base_s - prefill_s) / (NEW_TOKENS - 1)
    found['peak GFLOP/s'].append(best / 1e9)
    found['prefill of peak'].append(prefill_flops / prefill_s / best)
    found['decode of peak'].append(step_flops / step_s / best)
    found['decode ms a step'].append(1e3 * step_s)
    found['members of base'].append(base_s / member_s)
    found['base tokens/s'].append(rows * NEW_TOKENS / base_s)
    found['members tokens/s'].append(rows * NEW_TOKENS / member_s)
    many.write(-1)
    jax.block_until_ready(many.weights)
    for rule in list(RULES)[1:]:
      rule_s = seconds(lambda rule=rule: many.answer(rule))
      found[f'{rule} of greedy'].append(seconds(many.answer) / rule_s)
  found['peak memory GB over budget'] = [memory_over_budget(model)]
  theirs = transformers_generate(model, many)
  if theirs is not None:
    many.write(-1)
    ours_tokens = np.asarray(many.answer()[0].tokens)[0]
    same = (theirs() == ours_tokens).mean()
    found['tokens equal to transformers'] = [float(same)]
    found['times faster than transformers'] = []
    for _ in range(max(3, repeats - 2)):
      ours_s = seconds(many.answer)
      start = time.perf_counter()
      theirs()
      found['times faster than transformers'].append(
        (time.perf_counter() - start) / ours_s
      )
  return found


def memory_over_budget(model: LoadedModel) -> float:
  """Peak resident memory of a run, beyond base + one member + caches, in GB."""
  with tempfile.TemporaryDirectory() as folder:
    child = subprocess.Popen(
      [
        sys.executable,
        '-m',
        'thicket.main',
        '--config=configs/llm.py',
        f'--workdir={folder}',
        '--config.population.size=2',
        '--config.ensemble.sizes=(1,)',
        f'--config.data.num_test={ROWS}',
        '--config.controls.temperatures=()',
        '--config.controls.prompts=False',
      ],
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
    )
    # Not getrusage: a child's maximum begins with its parent's memory.
    used = 0
    while child.poll() is None:
      used = max(used, _high_water_bytes(child.pid))
      time.sleep(0.1)
  if child.returncode:
    raise RuntimeError(f'the run to measure ended with {child.returncode}')
  weights = sum(x.nbytes for x in jax.tree.leaves(model.params))
  task = tasks.make('arithmetic')
  slots = decode.cache_slots(decode.bucket(24), task.max_new_tokens)
  caches = jax.eval_shape(
    lambda: decode.empty_caches(model.decoder, 1, ROWS, slots, jnp.float32)
  )
  cached = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(caches))
  return (used - 2 * weights - cached) / GB


def _high_water_bytes(pid: int) -> int:
  try:
    status = pathlib.Path(f'/proc/{pid}/status').read_text()
  except OSError:
    return 0
  found = re.search(r'VmHWM:\s+(\d+) kB', status)
  return 1024 * int(found[1]) if found else 0


TARGETS = {
  'gaussian ratio': ('>=', 0.10),
  'rademacher ratio': ('>=', 0.22),
  'members of base': ('>=', 0.90),
  'decode of peak': ('>=', 0.50),
  'prefill of peak': ('>=', 0.80),
  'times faster than transformers': ('>', 1.0),
  'compile seconds': ('<', 30.0),
  'peak memory GB over budget': ('<', 1.5),
}


def main() -> None:
  """Measures, prints a table, writes JSON if asked."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--repeats', type=int, default=5)
  parser.add_argument('--output', type=pathlib.Path)
  args = parser.parse_args()
  start = time.monotonic()
  found = measure(args.repeats)
  table = Table(
    title=f'SmolLM2-135M, float32, {ROWS} prompts, {NEW_TOKENS} new tokens, '
    f'{jax.devices()[0].device_kind}'
  )
  for name in ('figure', 'median', 'least', 'most', 'target'):
    table.add_column(name, justify='left' if name == 'figure' else 'right')
  for name, values in found.items():
    target = TARGETS.get(name)
    table.add_row(
      name,
      *(f'{f(values):.3g}' for f in (statistics.median, min, max)),
      f'{target[0]} {target[1]:g}' if target else '',
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
