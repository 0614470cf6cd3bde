# SPDX-License-Identifier: Apache-2.0
"""An MLP that continues a signal, one value after the other.

The network of Neural Thickets, section 3 (arXiv 2603.12228): the last ten
values in, the next one out, five linear layers of width 128 with ReLU between.

Axes: B signals, C context, T steps.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

Tree = Any

INITIALIZERS = {
  'xavier': nn.initializers.xavier_normal,
  'kaiming': nn.initializers.kaiming_normal,
  'orthogonal': nn.initializers.orthogonal,
}


class MLP(nn.Module):
  """`depth` linear layers, ReLU between them, one output.

  Attributes:
    width: of hidden layers.
    depth: number of linear layers, at least 1.
    initializer: a key of `INITIALIZERS`; biases begin at 0.
  """

  width: int = 128
  depth: int = 5
  initializer: str = 'xavier'

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """The next value of each signal: [B, C] -> [B]."""
    init = INITIALIZERS[self.initializer]()
    for _ in range(self.depth - 1):
      x = nn.relu(nn.Dense(self.width, kernel_init=init)(x))
    return nn.Dense(1, kernel_init=init)(x)[:, 0]


def flops(width: int, depth: int, context: int) -> int:
  """Floating-point operations of one prediction, products alone."""
  sizes = [context, *[width] * (depth - 1), 1]
  return 2 * sum(a * b for a, b in itertools.pairwise(sizes))


def rollout(
  apply: Callable[[Tree, jax.Array], jax.Array],
  params: Tree,
  context: jax.Array,
  num_steps: int,
) -> jax.Array:
  """Continues signals from their context by the model's own predictions.

  Args:
    apply: (params, [B, C]) -> [B].
    params: of the model.
    context: [B, C], the newest value last.
    num_steps: T.

  Returns:
    The predictions, [B, T].
  """

  def step(window, _):
    value = apply(params, window)
    return jnp.concatenate([window[:, 1:], value[:, None]], axis=1), value

  _, values = jax.lax.scan(step, context, None, length=num_steps)
  return values.T
