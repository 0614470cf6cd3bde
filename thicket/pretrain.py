# SPDX-License-Identifier: Apache-2.0
"""Pretraining of small models, the whole loop in one program on the device.

A thicket needs a pretrained model to grow around (Neural Thickets, arXiv
2603.12228). This makes small ones from scratch, by Adam (Kingma and Ba, arXiv
1412.6980), on data that is drawn on the device at each step.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import optax

from thicket.user_rules import user_rules

Tree = Any


def pretrain(
  loss: Callable[[Tree, Tree], jax.Array],
  params: Tree,
  sample: Callable[[jax.Array], Tree],
  *,
  key: jax.Array,
  num_steps: int,
  learning_rate: float | optax.Schedule = 1e-3,
) -> tuple[Tree, jax.Array]:
  """Minimises a loss by Adam.

  Args:
    loss: (params, batch) -> scalar.
    params: where to start; not modified.
    sample: key -> batch, pure; called once in each step with a key of its own.
    key: a typed key; step t takes fold_in(key, t), so that a longer
      pretraining begins as a shorter one.
    num_steps: of Adam; 0 returns the parameters as they are.
    learning_rate: constant, or a schedule.

  Returns:
    The trained parameters, and the losses before each step, float32 [steps].

  Raises:
    ValueError: num_steps is negative, or a loss is not finite.
  """
  if num_steps < 0:
    raise ValueError(f'num_steps = {num_steps} is below 0')
  with user_rules():
    params, losses = _train(loss, sample, num_steps, learning_rate, params, key)
  bad = ~jax.numpy.isfinite(losses)
  if bad.any():
    raise ValueError(
      f'pretraining: the loss is {losses[bad][0]} at step '
      f'{int(bad.argmax())}; a lower learning_rate may help'
    )
  return params, losses


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _train(loss, sample, num_steps, learning_rate, params, key):
  optimizer = optax.adam(learning_rate)

  def step(carry, index):
    params, state = carry
    batch = sample(jax.random.fold_in(key, index))
    value, gradient = jax.value_and_grad(loss)(params, batch)
    updates, state = optimizer.update(gradient, state, params)
    return (optax.apply_updates(params, updates), state), value

  carry = params, optimizer.init(params)
  (params, _), losses = jax.lax.scan(step, carry, jax.numpy.arange(num_steps))
  return params, losses
