# SPDX-License-Identifier: Apache-2.0
"""Whole runs in processes of their own: memory, cost of N, a warm start."""

from __future__ import annotations

import contextlib
import pathlib
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

import thicket
from thicket import batching, decode, tasks
from thicket.models.load import LoadedModel

GB = 1e9
ROOT = pathlib.Path(__file__).parents[2]
FIRST_STEP = 'first step dispatched'  # as `thicket.answering` logs it


@contextlib.contextmanager
def _run(
  flags: Sequence[str], log: int = subprocess.DEVNULL
) -> Iterator[subprocess.Popen]:
  """A run in a process of its own, ended at exit; `log` takes its log lines."""
  child = subprocess.Popen(
    [sys.executable, '-m', 'thicket.main', *flags],
    cwd=ROOT,
    stdout=subprocess.DEVNULL,
    stderr=log,
    text=True,
  )
  try:
    yield child
  finally:
    child.kill()
    child.communicate()


def memory_over_budget(model: LoadedModel, rows: int) -> float:
  """Peak resident memory of a run, beyond base + one member + caches, in GB."""
  with tempfile.TemporaryDirectory() as folder:
    flags = [
      '--config=configs/llm.py',
      f'--workdir={folder}',
      '--config.population.size=2',
      '--config.ensemble.sizes=(1,)',
      f'--config.data.num_test={rows}',
      '--config.controls.temperatures=()',
      '--config.controls.prompts=False',
    ]
    with _run(flags) as child:
      # Not getrusage: a child's maximum begins with its parent's memory.
      used = 0
      while child.poll() is None:
        used = max(used, _high_water_bytes(child.pid))
        time.sleep(0.1)
      if child.returncode:
        raise RuntimeError(f'the run to measure ended with {child.returncode}')
  weights = sum(x.nbytes for x in jax.tree.leaves(model.params))
  task = tasks.make('arithmetic')
  slots = decode.cache_slots(batching.bucket(24), task.max_new_tokens)
  caches = jax.eval_shape(
    lambda: decode.empty_caches(model.decoder, 1, rows, slots, jnp.float32)
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


def warm_start_s() -> list[float]:
  """Seconds from the start of a process to its first step on the device.

  Of a first run, and of a second one that finds its programs in the cache of
  compilations.
  """
  found = []
  with tempfile.TemporaryDirectory() as folder:
    for number in range(2):
      flags = [
        '--config=configs/llm.py',
        f'--workdir={folder}/{number}',
        f'--compilation_cache={folder}/programs',
      ]
      start = time.monotonic()
      with _run(flags, log=subprocess.PIPE) as child:
        for line in child.stderr:
          if FIRST_STEP in line:
            found.append(time.monotonic() - start)
            break
        else:
          raise RuntimeError(f'run {number} ended before its first step')
        if number == 0:
          # All programs are in the cache once members have answered.
          for line in child.stderr:
            if 'on selection: ' in line and 'left' in line:
              break
  return found


def marginal_costs(
  repeats: int, sizes: tuple[int, int, int] = (512, 1024, 2048)
) -> list[float]:
  """What a member costs between N = 1024 and 2048, as a ratio to 512 to 1024.

  1 where cost is linear in N. Of searches with a small MLP, so that what is not
  the model's own work shows, every reward saved to a folder; compiling and
  loading cost the same at every N and drop out. One number a repeat.
  """
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(256, 16)), jnp.float32)
  params = {
    'w': jnp.asarray(rng.normal(size=(16, 256)) / 4, jnp.float32),
    'v': jnp.asarray(rng.normal(size=(256, 8)) / 16, jnp.float32),
  }

  def apply(params, x):
    return jnp.tanh(x @ params['w']) @ params['v']

  def score(outputs, x):
    return -jnp.square(outputs - jnp.sin(x[:, :8])).mean(axis=1)

  def cost(size):
    with tempfile.TemporaryDirectory() as folder:
      start = time.perf_counter()
      thicket.search(
        apply, params, x, score, key=0, num_members=size, top_k=5,
        sigma=0.1, members_per_device=16, workdir=folder,
      )  # fmt: skip
      return time.perf_counter() - start

  cost(sizes[0])  # what is made once a process
  small, middle, large = sizes
  ratios = []
  for _ in range(repeats):
    a, b, c = map(cost, sizes)
    ratios.append((c - b) / (large - middle) * (middle - small) / (b - a))
  return ratios
