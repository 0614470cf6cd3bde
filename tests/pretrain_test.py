# SPDX-License-Identifier: Apache-2.0
"""Adam against float64 by hand; which keys a step sees; what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from thicket import pretrain, signals
from thicket.models import mlp

KEY = jax.random.key(11)
A = np.array([3.0, -1.0, 0.5], np.float32)


def _quadratic(params, batch):
  return (A * jnp.square(params - batch)).sum()


def _ones(key):
  del key
  return jnp.ones(3)


def test_steps_are_those_of_adam():
  start = np.array([0.0, 2.0, -4.0])
  found, losses = pretrain.pretrain(
    _quadratic,
    jnp.asarray(start, jnp.float32),
    _ones,
    key=KEY,
    num_steps=25,
    learning_rate=0.05,
  )
  x, m, v, wanted = start.copy(), np.zeros(3), np.zeros(3), []
  for t in range(1, 26):
    wanted.append((A * (x - 1) ** 2).sum())
    g = 2 * A * (x - 1)
    m = 0.9 * m + 0.1 * g
    v = 0.999 * v + 0.001 * g * g
    step = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    x = x - 0.05 * step
  np.testing.assert_allclose(found, x, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(losses, wanted, rtol=1e-4)


def test_each_step_draws_with_a_key_of_its_own():
  drawn = lambda key: jax.random.uniform(key)
  loss = lambda params, batch: 0.0 * params + batch
  _, losses = pretrain.pretrain(
    loss, jnp.float32(0), drawn, key=KEY, num_steps=9
  )
  wanted = [jax.random.uniform(jax.random.fold_in(KEY, t)) for t in range(9)]
  np.testing.assert_array_equal(losses, np.array(wanted))


def test_no_steps_change_nothing():
  params = {'w': jnp.arange(3.0)}
  loss = lambda params, batch: (params['w'] * batch).sum()
  found, losses = pretrain.pretrain(loss, params, _ones, key=KEY, num_steps=0)
  np.testing.assert_array_equal(found['w'], params['w'])
  assert losses.shape == (0,)


def test_a_schedule_sets_the_rate_of_each_step():
  rate = lambda count: jnp.where(count < 4, 0.0, 0.1)
  settings = {'key': KEY, 'learning_rate': rate}
  start = jnp.zeros(3)
  still, _ = pretrain.pretrain(
    _quadratic, start, _ones, num_steps=4, **settings
  )
  moved, _ = pretrain.pretrain(
    _quadratic, start, _ones, num_steps=5, **settings
  )
  np.testing.assert_array_equal(still, start)
  assert (np.asarray(moved) != 0).all()


def test_negative_steps_are_refused():
  with pytest.raises(ValueError, match='num_steps = -1'):
    pretrain.pretrain(_quadratic, jnp.zeros(3), _ones, key=KEY, num_steps=-1)


def test_a_loss_that_is_not_finite_names_its_step():
  # Adam moves by about 1 a step, so that the third loss is log of below 0.
  loss = lambda params, batch: jnp.log(params * batch.sum() / 3)
  with pytest.raises(ValueError, match=r'nan at step \d+.*learning_rate'):
    pretrain.pretrain(
      loss, jnp.float32(1.5), _ones, key=KEY, num_steps=6, learning_rate=1.0
    )


MODEL = mlp.MLP(width=32)
FAMILIES = signals.of_pretraining('mixed')


def _loss(params, batch):
  inputs, following = batch
  return jnp.square(MODEL.apply(params, inputs) - following).mean()


def _sample(key):
  return signals.windows(FAMILIES, key, 64, 40)


def _pretrained(num_steps):
  params = MODEL.init(jax.random.key(0), jnp.zeros((1, signals.CONTEXT)))
  before = jax.tree.map(np.array, params)
  found = pretrain.pretrain(
    _loss, params, _sample, key=KEY, num_steps=num_steps
  )
  jax.tree.map(np.testing.assert_array_equal, params, before)
  return found


def test_pretraining_learns_to_predict_fresh_signals():
  params, losses = _pretrained(150)
  assert losses[-20:].mean() < 0.25 * losses[:5].mean()
  fresh = _sample(jax.random.key(99))
  assert _loss(params, fresh) < 0.25 * losses[0]


def test_it_is_deterministic_and_a_longer_one_begins_as_a_shorter_one():
  params, losses = _pretrained(30)
  again, same = _pretrained(30)
  jax.tree.map(np.testing.assert_array_equal, params, again)
  np.testing.assert_array_equal(losses, same)
  _, longer = _pretrained(60)
  np.testing.assert_allclose(longer[:30], losses, rtol=1e-5)
