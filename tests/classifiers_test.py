# SPDX-License-Identifier: Apache-2.0
"""Small classifiers: sizes in closed form, one net twice, sensible starts."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from thicket import trees
from thicket.models import classifiers

IMAGES = np.random.default_rng(0).random((6, 8, 8, 1), np.float32)


def _count(params):
  return sum(math.prod(array.shape) for array in jax.tree.leaves(params))


@functools.partial(jax.jit, static_argnums=0)
def _init(module, seed=0):
  with jax.numpy_dtype_promotion('standard'):
    return module.init(jax.random.key(seed), IMAGES)


@functools.partial(jax.jit, static_argnums=0)
def _apply(module, variables, images=IMAGES):
  with jax.numpy_dtype_promotion('standard'):
    return module.apply(variables, images)


def _shapes(module):
  return jax.eval_shape(lambda: _init(module))


def _nnx_shapes(width):
  make = lambda: classifiers.ConvNetNNX(width, rngs=nnx.Rngs(0))
  return nnx.to_pure_dict(nnx.state(nnx.eval_shape(make), nnx.Param))


LINEN = [
  classifiers.ConvNet(width=4),
  classifiers.MLPClassifier(width=8),
  classifiers.VisionTransformer(width=4, depth=1),
]


@pytest.mark.parametrize('module', LINEN, ids=lambda m: type(m).__name__)
def test_logits_are_of_one_image_each(module):
  variables = _init(module)
  assert list(variables) == ['params']
  logits = np.asarray(_apply(module, variables))
  assert (logits.shape, logits.dtype) == ((6, 10), jnp.float32)
  changed = IMAGES.copy()
  changed[2] = 1 - changed[2]
  moved = _apply(module, variables, changed) != logits
  assert moved.any(axis=1).tolist() == [i == 2 for i in range(6)]


@pytest.mark.parametrize('module', LINEN, ids=lambda m: type(m).__name__)
def test_every_pixel_and_every_weight_matters(module):
  variables = _init(module)

  def loss(variables, images):
    return jnp.square(_apply(module, variables, images)).sum()

  gradient = jax.jit(jax.grad(loss, argnums=(0, 1)))
  by_weight, by_pixel = gradient(variables, IMAGES)
  assert (by_pixel != 0).any(axis=0).all()
  for path, gradient in jax.tree_util.tree_leaves_with_path(by_weight):
    name = trees.path_name(path)
    # Softmax does not see what is added to all scores of a query.
    if not name.endswith('key/bias'):
      assert (gradient != 0).any(), name


@pytest.mark.parametrize('module', LINEN, ids=lambda m: type(m).__name__)
def test_the_number_of_classes_is_an_argument(module):
  other = module.clone(num_classes=3)
  logits = jax.eval_shape(lambda: _apply(other, _init(other)))
  assert logits.shape == (6, 3)


@pytest.mark.parametrize('width', [1, 4, 16])
def test_sizes_in_closed_form(width):
  conv = (9 + 1) * width + (9 * width + 1) * 2 * width + (8 * width + 1) * 10
  assert _count(_shapes(classifiers.ConvNet(width))) == conv
  assert _count(_nnx_shapes(width)) == conv
  mlp = (64 + 1) * width + (width + 1) * 10
  assert _count(_shapes(classifiers.MLPClassifier(width))) == mlp


def _transformer_size(width, depth):
  block = 12 * width**2 + (4 + 5 + 4) * width  # products, biases, two norms
  return depth * block + (4 + 1 + 16 + 2) * width + (width + 1) * 10


def test_the_ladder_spans_more_than_a_factor_of_fifty():
  sizes = []
  for width, depth in classifiers.LADDER:
    module = classifiers.VisionTransformer(width, depth)
    sizes.append(_count(_shapes(module)))
    assert sizes[-1] == _transformer_size(width, depth)
  assert (sizes[0], sizes[-1]) == (1146, 314010)  # as the comment there says
  assert sizes[-1] > 50 * sizes[0]
  for small, large in itertools.pairwise(sizes):
    assert 2 < large / small < 5


def test_the_net_in_nnx_has_linen_s_names_and_shapes():
  linen = jax.tree.map(jnp.shape, _shapes(classifiers.ConvNet(4))['params'])
  assert jax.tree.map(jnp.shape, _nnx_shapes(4)) == linen


def test_the_transformer_tells_places_of_patches_apart():
  module = classifiers.VisionTransformer(4, 1)
  variables = _init(module)
  turned = np.roll(IMAGES, 2, axis=1)  # the same patches in other places
  assert (_apply(module, variables) != _apply(module, variables, turned)).all()
  variables['params']['positions'] *= 0
  np.testing.assert_allclose(
    _apply(module, variables), _apply(module, variables, turned), atol=1e-5
  )


@pytest.mark.parametrize('module', LINEN, ids=lambda m: type(m).__name__)
def test_first_logits_are_neither_dead_nor_wild(module):
  # Over seeds: within a factor of five of the unit scale of a softmax.
  seeds = range(8)
  spread = [_apply(module, _init(module, seed)).std() for seed in seeds]
  assert 0.2 < np.mean(spread) < 5
