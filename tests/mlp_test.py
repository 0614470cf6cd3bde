# SPDX-License-Identifier: Apache-2.0
"""The MLP against float64, and rollouts step by step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from thicket import scoring
from thicket.models import mlp
from thicket.scoring import Batch

MODEL = mlp.MLP(width=16, depth=4)
CONTEXT = 10


def _params(model=MODEL, seed=0):
  return model.init(jax.random.key(seed), jnp.zeros((1, CONTEXT)))


def _batch(num=6, steps=12):
  key_inputs, key_targets = jax.random.split(jax.random.key(9))
  return Batch(
    jax.random.normal(key_inputs, (num, CONTEXT)),
    jax.random.normal(key_targets, (num, steps)),
  )


def _kernels(params):
  return [
    params['params'][f'Dense_{i}']['kernel']
    for i in range(len(params['params']))
  ]


def test_it_is_the_network_of_the_paper_by_default():
  params = _params(mlp.MLP())
  shapes = [kernel.shape for kernel in _kernels(params)]
  assert shapes == [(10, 128), (128, 128), (128, 128), (128, 128), (128, 1)]
  products = sum(2 * kernel.size for kernel in _kernels(params))
  assert mlp.flops(128, 5, CONTEXT) == products


@pytest.mark.parametrize(('width', 'depth'), [(8, 1), (8, 2), (32, 6)])
def test_flops_count_every_product(width, depth):
  kernels = _kernels(_params(mlp.MLP(width=width, depth=depth)))
  assert len(kernels) == depth
  assert mlp.flops(width, depth, CONTEXT) == sum(2 * k.size for k in kernels)


def test_outputs_are_those_of_float64():
  params = jax.tree.map(
    lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape),
    _params(),
  )
  inputs = _batch().inputs
  x = np.asarray(inputs, np.float64)
  layers = [params['params'][f'Dense_{i}'] for i in range(MODEL.depth)]
  for i, layer in enumerate(layers):
    x = x @ np.asarray(layer['kernel'], np.float64)
    x = x + np.asarray(layer['bias'], np.float64)
    x = np.maximum(x, 0) if i < MODEL.depth - 1 else x
  found = MODEL.apply(params, inputs)
  assert found.shape == (len(inputs),)
  np.testing.assert_allclose(found, x[:, 0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
  ('initializer', 'variance'),
  [('xavier', 1 / 128), ('kaiming', 2 / 128), ('orthogonal', 1 / 128)],
)
def test_initializers_have_their_variance(initializer, variance):
  params = _params(mlp.MLP(initializer=initializer))
  square = np.asarray(_kernels(params)[1])
  assert square.var() == pytest.approx(variance, rel=0.06)
  if initializer == 'orthogonal':
    np.testing.assert_allclose(square.T @ square, np.eye(128), atol=1e-5)
  for layer in params['params'].values():
    assert not layer['bias'].any()


def test_a_rollout_is_the_model_fed_with_its_own_predictions():
  params, context = _params(), _batch().inputs
  window = np.asarray(context)
  wanted = []
  for _ in range(7):
    value = np.asarray(MODEL.apply(params, window))
    wanted.append(value)
    window = np.concatenate([window[:, 1:], value[:, None]], axis=1)
  found = mlp.rollout(MODEL.apply, params, context, 7)
  np.testing.assert_allclose(found, np.stack(wanted, 1), rtol=1e-5, atol=1e-6)


def test_a_model_that_extends_lines_continues_them_for_ever():
  extend = lambda params, x: params * (2 * x[:, -1] - x[:, -2])
  slopes = np.array([-0.25, 0.0, 0.5], np.float32)  # exact in binary
  context = slopes[:, None] * np.arange(CONTEXT, dtype=np.float32)
  found = mlp.rollout(extend, jnp.float32(1), jnp.asarray(context), 60)
  wanted = slopes[:, None] * np.arange(CONTEXT, CONTEXT + 60)
  np.testing.assert_array_equal(found, wanted)


def test_a_shorter_rollout_is_the_beginning_of_a_longer_one():
  params, context = _params(), _batch().inputs
  whole = mlp.rollout(MODEL.apply, params, context, 12)
  first = mlp.rollout(MODEL.apply, params, context, 5)
  assert whole.shape == (6, 12)
  np.testing.assert_allclose(first, whole[:, :5], rtol=1e-5, atol=1e-6)


def test_a_rollout_is_scored_by_its_negative_mse():
  params, batch = _params(), _batch()
  outputs = mlp.rollout(MODEL.apply, params, batch.inputs, 12)
  wide = np.asarray(outputs, np.float64) - np.asarray(batch.targets, np.float64)
  found = scoring.negative_mse(outputs, batch)
  np.testing.assert_allclose(found, -(wide**2).mean(axis=1), rtol=1e-5)


def test_predictions_depend_on_the_whole_context_and_on_one_row_alone():
  params, context = _params(), _batch().inputs
  last = lambda x: mlp.rollout(MODEL.apply, params, x, 3)[2, -1]
  gradient = np.abs(np.asarray(jax.grad(last)(context)))
  assert (gradient[2] > 0).all()
  assert not np.delete(gradient, 2, axis=0).any()


def test_members_under_vmap_are_members_one_by_one():
  batch = _batch()
  trees = [_params(seed=seed) for seed in range(3)]
  stacked = jax.tree.map(lambda *x: jnp.stack(x), *trees)
  run = lambda params: mlp.rollout(MODEL.apply, params, batch.inputs, 12)
  together = jax.vmap(run)(stacked)
  for found, params in zip(together, trees, strict=True):
    np.testing.assert_allclose(found, run(params), rtol=1e-5, atol=1e-6)
