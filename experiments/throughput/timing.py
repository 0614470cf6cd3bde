# SPDX-License-Identifier: Apache-2.0
"""Clocks, peaks and counts that all figures are made of."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from thicket.models.load import LoadedModel


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


def matmul_parameters(model: LoadedModel) -> tuple[int, int]:
  """Parameters of the layers' products, and of the output product."""
  c = model.decoder.config
  total = sum(x.size for x in jax.tree.leaves(model.params) if x.ndim > 1)
  head = c.vocab_size * c.d_model
  return total - head if c.tie_head else total - 2 * head, head
