# SPDX-License-Identifier: Apache-2.0
"""Every place where a weight meets an activation.

A noise family that never materialises a member's weights (thin factors) only
has to change this file: the rest of the model does not know how a product
with a weight is made.

Activations have their features first, [D, B, T], and weights are (out, in) as
checkpoints store them, so that a product is weight @ activations. On CPU this
order reaches 0.85 of GEMM peak with 64 columns where activations @ weight.T
reaches 0.65 (XLA swaps the factors of a transposed product, so the order has
to hold for the model as a whole); on accelerators the compiler chooses layouts.

Axes: B batch, T query time, D in, E out, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


def product(weight: jax.Array, x: jax.Array, dtype=None) -> jax.Array:
  """Weight [E, D] @ x [D, ...] -> [E, ...], in `dtype` or the dtype of x."""
  return jax.lax.dot_general(
    weight.astype(x.dtype),
    x,
    (((1,), (0,)), ((), ())),
    preferred_element_type=dtype or x.dtype,
  )


class Linear(nn.Module):
  """A product with a kernel (out, in), without a bias."""

  features: int  # E
  dtype: Any = None  # of the result; None takes that of the input

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [D, ...] to [E, ...]."""
    init = nn.initializers.lecun_normal(in_axis=1, out_axis=0)
    kernel = self.param('kernel', init, (self.features, x.shape[0]))
    return product(kernel, x, self.dtype)


class Embed(nn.Module):
  """A table of vectors, read by token on the way in and as a matrix out."""

  vocab_size: int  # V
  features: int  # D

  def setup(self):
    """Declares the table."""
    self.embedding = self.param(
      'embedding',
      nn.initializers.normal(0.02),
      (self.vocab_size, self.features),
    )

  def __call__(self, tokens: jax.Array) -> jax.Array:
    """Maps int32 [B, T] to [D, B, T]."""
    return jnp.moveaxis(jnp.take(self.embedding, tokens, axis=0), -1, 0)

  def logits(self, x: jax.Array) -> jax.Array:
    """Maps [D, ...] to float32 [V, ...]."""
    return product(self.embedding, x, jnp.float32)


class RMSNorm(nn.Module):
  """Root mean square normalisation (arXiv 1910.07467), in float32."""

  eps: float

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Normalises [D, ...] over its first axis."""
    scale = self.param('scale', nn.initializers.ones, (x.shape[0],))
    wide = x.astype(jnp.float32)
    mean_square = jnp.mean(jnp.square(wide), axis=0, keepdims=True)
    normed = wide * jax.lax.rsqrt(mean_square + jnp.float32(self.eps))
    scale = jnp.expand_dims(scale, range(1, x.ndim))
    return (normed * scale.astype(jnp.float32)).astype(x.dtype)
