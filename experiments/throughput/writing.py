# SPDX-License-Identifier: Apache-2.0
"""How fast members' weights are written, against a plain `w + c`."""

from __future__ import annotations

import time

import jax

from experiments.throughput import generation
from thicket.models.load import LoadedModel


def ratios(
  model: LoadedModel, family: str, repeats: int
) -> dict[str, list[float]]:
  """Speed of writing a member, as a share of a donated plain copy `w + c`.

  For low rank it is the speed of drawing the factors, in members' weights: the
  member is never written.
  """
  perturber = generation.perturber(model, family)
  plain = jax.jit(
    lambda old, base, c: base[None] + c, donate_argnums=0, keep_unused=True
  )
  members = perturber.buffers(1)
  sums = generation.perturber(model, 'gaussian').buffers(1)
  size = sum(x.size for x in jax.tree.leaves(model.params))
  found: dict[str, list[float]] = {'of a copy': [], 'million weights/s': []}
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
      found['of a copy'].append((end - middle) / (middle - start))
      found['million weights/s'].append(size / (middle - start) / 1e6)
  return found
