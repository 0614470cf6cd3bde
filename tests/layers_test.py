# SPDX-License-Identifier: Apache-2.0
"""Products, norms and the embedding: their axes, dtypes and roundings."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from thicket import families
from thicket.models import layers

F32, BF16 = jnp.float32, jnp.bfloat16


@pytest.mark.parametrize('weight', [F32, BF16])
@pytest.mark.parametrize('x', [F32, BF16])
@pytest.mark.parametrize('dtype', [None, F32, BF16])
def test_a_product_has_the_dtype_asked_for_or_that_of_x(weight, x, dtype):
  got = layers.product(jnp.ones((3, 5), weight), jnp.ones((5, 2, 4), x), dtype)
  chex.assert_shape(got, (3, 2, 4))
  chex.assert_type(got, dtype or x)
  np.testing.assert_array_equal(got.astype(F32), 5)


def test_a_product_contracts_the_first_axis():
  rng = np.random.default_rng(0)
  weight = rng.integers(-4, 5, (3, 5)).astype(np.float32)
  x = rng.integers(-4, 5, (5, 2, 4)).astype(np.float32)
  want = np.einsum('ed,dbt->ebt', weight, x)  # small integers, so exact
  np.testing.assert_array_equal(layers.product(weight, x), want)
  np.testing.assert_array_equal(
    layers.product(weight, x[:, 0, 0]), want[:, 0, 0]
  )


def test_a_product_rounds_the_weight_to_x_and_the_sum_to_the_dtype():
  # 1 + 2^-10 needs more than the 8 bits of bfloat16, and so does 257.
  fine = jnp.full((1, 1), 1 + 2**-10, F32)
  assert layers.product(fine, jnp.ones((1,), F32))[0] == 1 + 2**-10
  assert layers.product(fine, jnp.ones((1,), BF16), F32)[0] == 1
  long = jnp.ones((1, 257), BF16), jnp.ones((257,), BF16)
  assert layers.product(*long, F32)[0] == 257
  assert layers.product(*long)[0] == 256


def test_linear_is_one_kernel_out_in():
  x = np.arange(6, dtype=np.float32).reshape(3, 2, 1)
  linear = layers.Linear(4)
  variables = linear.init(jax.random.key(0), x)
  assert jax.tree.map(jnp.shape, variables) == {'params': {'kernel': (4, 3)}}
  kernel = np.arange(12, dtype=np.float32).reshape(4, 3)
  got = linear.apply({'params': {'kernel': kernel}}, x)
  np.testing.assert_array_equal(got[:, :, 0], kernel @ x[:, :, 0])


def test_linear_adds_biases_to_the_parts_of_its_result():
  x = np.arange(6, dtype=np.float32).reshape(3, 2, 1)
  linear = layers.Linear(5, biases=(('first', 2), ('second', 3)))
  shapes = jax.tree.map(jnp.shape, linear.init(jax.random.key(0), x))
  assert shapes == {'params': {'kernel': (5, 3), 'first': (2,), 'second': (3,)}}
  kernel = np.arange(15, dtype=np.float32).reshape(5, 3)
  first, second = np.array([1, -2], np.float32), np.array([3, 5, 7], np.float32)
  weights = {'kernel': kernel, 'first': first, 'second': second}
  got = linear.apply({'params': weights}, x)
  want = kernel @ x[:, :, 0] + np.concatenate([first, second])[:, None]
  np.testing.assert_array_equal(got[:, :, 0], want)


def test_a_bias_is_added_before_the_sum_is_rounded():
  # 256 + 1 is no bfloat16, 256 + 1 + 1 is.
  weights = {'kernel': np.ones((1, 257)), 'bias': np.ones(1)}
  weights = jax.tree.map(lambda x: jnp.asarray(x, BF16), weights)
  linear = layers.Linear(1, biases=(('bias', 1),))
  got = linear.apply({'params': weights}, jnp.ones((257, 1), BF16))
  chex.assert_type(got, BF16)
  np.testing.assert_array_equal(got.astype(F32), 258)


def test_rms_norm_adds_its_offset_in_float32():
  # 1 + 2^-10 is no bfloat16.
  x = np.array([[3.0], [4.0]], np.float32)
  scale = jnp.array([2**-10, 1], BF16)
  norm = layers.RMSNorm(1e-6, 1.0)
  got = norm.apply({'params': {'scale': scale}}, x)
  want = _rms_norm(x, np.array([1 + 2**-10, 2]), 1e-6)
  np.testing.assert_allclose(got, want, rtol=1e-6)
  # A fresh one leaves what is normed alone.
  fresh = norm.init(jax.random.key(0), x)
  np.testing.assert_array_equal(fresh['params']['scale'], 0)


def _rms_norm(x, scale, eps):
  x = x.astype(np.float64)
  scale = scale.astype(np.float64).reshape(-1, *[1] * (x.ndim - 1))
  return x / np.sqrt(np.mean(x**2, 0, keepdims=True) + eps) * scale


@pytest.mark.parametrize('shape', [(7,), (7, 3), (7, 3, 2)])
@pytest.mark.parametrize('eps', [1e-6, 0.5])
def test_rms_norm_is_that_of_numpy(shape, eps):
  rng = np.random.default_rng(0)
  x = rng.normal(3, 1, shape).astype(np.float32)  # it does not subtract means
  scale = rng.uniform(-2, 2, 7).astype(np.float32)
  got = layers.RMSNorm(eps).apply({'params': {'scale': scale}}, x)
  chex.assert_type(got, F32)
  np.testing.assert_allclose(got, _rms_norm(x, scale, eps), rtol=1e-6)


@pytest.mark.parametrize('dtype', [BF16, jnp.float16])
def test_rms_norm_rounds_once(dtype):
  # 1000 squared is beyond float16, and bfloat16 sums would be far off.
  x = 1000 * jax.random.normal(jax.random.key(0), (512, 3))
  scale = jnp.linspace(0.5, 2, 512)
  x, scale = x.astype(dtype), scale.astype(dtype)
  norm = layers.RMSNorm(1e-5)
  got = norm.apply({'params': {'scale': scale}}, x)
  chex.assert_type(got, dtype)
  wide = norm.apply({'params': {'scale': scale.astype(F32)}}, x.astype(F32))
  np.testing.assert_array_equal(got, wide.astype(dtype))
  np.testing.assert_allclose(
    wide, _rms_norm(np.asarray(x), np.asarray(scale), 1e-5), rtol=1e-5
  )


def test_rms_norm_of_zeros_is_zero():
  got = layers.RMSNorm(1e-5).apply(
    {'params': {'scale': np.ones(4)}}, np.zeros(4, np.float32)
  )
  np.testing.assert_array_equal(got, 0)


def test_embed_reads_rows_in_and_multiplies_out():
  table = np.arange(15, dtype=np.float32).reshape(5, 3)
  embed = layers.Embed(5, 3)
  variables = {'params': {'embedding': table}}
  tokens = np.array([[4, 0], [1, 1], [2, 3], [0, 4]], np.int32)
  x = embed.apply(variables, tokens)
  chex.assert_shape(x, (3, 4, 2))
  np.testing.assert_array_equal(x, np.moveaxis(table[tokens], -1, 0))
  logits = embed.apply(variables, x, method='logits')
  np.testing.assert_array_equal(logits, np.einsum('vd,dbt->vbt', table, x))
  last = embed.apply(variables, x[:, :, -1], method='logits')
  np.testing.assert_array_equal(last, logits[:, :, -1])


def test_embed_is_loud_about_tokens_outside_the_table():
  variables = {'params': {'embedding': np.ones((5, 3), np.float32)}}
  x = layers.Embed(5, 3).apply(variables, np.array([[4, 5]], np.int32))
  np.testing.assert_array_equal(np.isnan(x[:, 0]), [[False, True]] * 3)


def test_logits_of_a_bfloat16_table_are_not_rounded_to_it():
  variables = {'params': {'embedding': jnp.ones((2, 257), BF16)}}
  embed = layers.Embed(2, 257)
  x = embed.apply(variables, np.zeros((1, 1), np.int32))
  chex.assert_type(x, BF16)
  logits = embed.apply(variables, x, method='logits')
  chex.assert_type(logits, F32)
  np.testing.assert_array_equal(logits, 257)


@pytest.mark.parametrize('members', [2, 9])  # one product for all, or not
@pytest.mark.parametrize('rank', [1, 2])
def test_moved_products_of_members_are_those_of_each(members, rank):
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
  rows, D, B = (160, 96, 128), 12, 5
  E, S = sum(rows), len(rows)
  weight, x = draw(E, D), draw(members, D, B)
  noise = families.Factors(
    draw(members, E, rank), draw(members, S * rank, D), rows
  )
  of = jax.jit(jax.vmap(layers.product, in_axes=(None, 0, None, 0)))
  got = np.asarray(of(weight, x, None, noise))
  for i in range(members):
    inward = np.repeat(
      noise.inward[i].reshape(S, rank, D), rows, axis=0
    )  # of each row's tensor, [E, rank, D]
    moved = weight + np.einsum('er,erd->ed', noise.outward[i], inward)
    np.testing.assert_allclose(got[i], moved @ x[i], rtol=1e-4, atol=1e-4)
  # A member that is broken stays alone with it.
  x[0], noise.inward[1][:] = np.nan, np.inf
  broken = np.asarray(of(weight, x, None, noise))
  assert not np.isfinite(broken[:2]).any()
  np.testing.assert_array_equal(broken[2:], got[2:])
