# SPDX-License-Identifier: Apache-2.0
"""Every place where a weight meets an activation.

A member of a low-rank family is not materialised: the collection `noise` holds
the thin factors of what is added to a weight (`families.Factors`, under the
weight's own name), and only this file looks at it. The base product is then
one for all members, since only the factors carry their axis.

Activations have their features first, [D, B, T], and weights are (out, in) as
checkpoints store them, so that a product is weight @ activations. On CPU this
order reaches 0.85 of GEMM peak with 64 columns where activations @ weight.T
reaches 0.65 (XLA swaps the factors of a transposed product, so the order has
to hold for the model as a whole); on accelerators the compiler chooses layouts.

Axes: B batch, T query time, D in, E out, V vocabulary,
R rank.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from thicket.families import Factors


def product(
  weight: jax.Array,
  x: jax.Array,
  dtype: Any = None,
  noise: Factors | None = None,
) -> jax.Array:
  """The product of a weight and activations, a member's noise included.

  Args:
    weight: [E, D].
    x: [D, ...].
    dtype: of the result; None takes that of `x`.
    noise: what a member adds to the weight, or None.

  Returns:
    [E, ...]; sums are float32 where there is noise to be added.
  """
  dtype = dtype or x.dtype
  if noise is None:
    return _dot(weight.astype(x.dtype), x, dtype)
  return _moved_product(weight, x, noise).astype(dtype)


def precision(x: jax.Array) -> jax.lax.Precision | None:
  """Of a product with `x`: what is float32 is multiplied as float32.

  By default GPUs would round it to TF32 first and TPUs to bfloat16; the
  logits of SmolLM2 then differ by 0.03 on an H200.
  """
  is_whole = x.dtype == jnp.float32
  return jax.lax.Precision.HIGHEST if is_whole else None


def _dot(weight: jax.Array, x: jax.Array, dtype: Any) -> jax.Array:
  return jax.lax.dot_general(
    weight,
    x,
    (((1,), (0,)), ((), ())),
    precision=precision(x),
    preferred_element_type=dtype,
  )


# The product that meets all columns is at most a 16th of the base's.
_SHARE = 16


def _plain_product(
  weight: jax.Array, x: jax.Array, noise: Factors
) -> jax.Array:
  """(weight + noise) @ x, float32 [E, ...]."""
  base = _dot(weight.astype(x.dtype), x, jnp.float32)
  met = _dot(noise.inward.astype(x.dtype), x, jnp.float32)
  return base + _move(noise, met)


def _move(noise: Factors, met: jax.Array) -> jax.Array:
  """What noise adds, [E, ...], from what it has met, inward @ x.

  Term by term and with selected rows, rather than as products of matrices, one
  under the other: all of it then joins the loop of the sum.
  """
  column = lambda values: jnp.expand_dims(values, range(1, met.ndim))
  row = column(np.arange(sum(noise.rows)))
  rank = noise.outward.shape[-1]
  terms = []
  for r in range(rank):
    own = met[r][None]
    for tensor, edge in enumerate(np.cumsum(noise.rows)[:-1], start=1):
      own = jnp.where(row < edge, own, met[tensor * rank + r][None])
    terms.append(column(noise.outward[:, r]) * own)
  return functools.reduce(operator.add, terms)


_moved_product = jax.custom_batching.custom_vmap(_plain_product)


@_moved_product.def_vmap
def _of_members(
  axis_size: int, is_mapped: Any, weight: jax.Array, x: jax.Array, noise: Any
) -> tuple[jax.Array, bool]:
  """Of M members at a time, their columns side by side in one product.

  Their thin products are one product too, in which each member meets all
  columns and its own are kept: while that is little beside the base, it spares
  a second layout of all activations. By itself, `vmap` would lay them out by
  members for it.
  """
  M, E = axis_size, weight.shape[-2]
  is_plain = is_mapped[1] and all(jax.tree.leaves(is_mapped[2]))
  if is_mapped[0] or not is_plain or _SHARE * M * noise.inward.shape[1] > E:
    axes = jax.tree.map(lambda mapped: 0 if mapped else None, is_mapped)
    return jax.vmap(_plain_product, in_axes=tuple(axes))(weight, x, noise), True
  columns = jnp.moveaxis(x, 0, 1)  # [D, M, ...]
  base = _dot(weight.astype(x.dtype), columns, jnp.float32)
  inward = jnp.moveaxis(noise.inward, 0, 1)  # [S R, M, D]
  all_met = _dot(
    inward.reshape(-1, inward.shape[-1]).astype(x.dtype), columns, jnp.float32
  )
  all_met = all_met.reshape(-1, M, *columns.shape[1:])
  own = np.eye(M, dtype=bool).reshape(1, M, M, *[1] * (x.ndim - 2))
  # Selected, not multiplied by 0: a broken member stays alone with its NaN.
  met = jnp.sum(jnp.where(own, all_met, jnp.float32(0)), axis=2)  # [S R, M, ..]
  move = jax.vmap(_move, in_axes=(0, 1), out_axes=1)(noise, met)
  return jnp.moveaxis(base + move, 1, 0), True


def _at(
  rows: np.ndarray | None, weight: jax.Array, noise: Factors | None
) -> tuple[jax.Array, Factors | None]:
  """Some rows of a weight of one tensor and of its noise; None is all."""
  if rows is None:
    return weight, noise
  if noise is not None:
    outward = jnp.take(noise.outward, rows, axis=0)
    noise = Factors(outward, noise.inward, (len(rows),))
  return jnp.take(weight, rows, axis=0), noise


class Linear(nn.Module):
  """A product with a kernel (out, in), and what biases add to it."""

  features: int  # E
  dtype: Any = None  # of the result; None takes that of the input
  biases: tuple[tuple[str, int], ...] = ()  # names and sizes, in order of E

  @nn.compact
  def __call__(self, x: jax.Array, rows: np.ndarray | None = None) -> jax.Array:
    """Maps [D, ...] to [E, ...], or without biases to some rows of it."""
    init = nn.initializers.lecun_normal(in_axis=1, out_axis=0)
    kernel = self.param('kernel', init, (self.features, x.shape[0]))
    noise = self.get_variable('noise', 'kernel', None)
    kernel, noise = _at(rows, kernel, noise)
    if not self.biases:
      return product(kernel, x, self.dtype, noise)
    # Apart, though the kernel may be one: noise is drawn by rows, and a vector
    # is one row.
    parts = [
      self.param(name, nn.initializers.zeros, (size,))
      for name, size in self.biases
    ]
    bias = jnp.concatenate(parts) if len(parts) > 1 else parts[0]
    bias = jnp.expand_dims(bias.astype(jnp.float32), range(1, x.ndim))
    # Rounded once, with the bias.
    biased = product(kernel, x, jnp.float32, noise) + bias
    return biased.astype(self.dtype or x.dtype)


def products(
  x: jax.Array,
  whole: str,
  parts: Mapping[str, int],
  *,
  fused: bool,
  bias: bool,
  dtype: Any = None,
  unit: int | None = None,
) -> list[jax.Array]:
  """Several products of one x, of one kernel or of a kernel each.

  Called inside a module, whose children they become.

  Args:
    x: [D, ...].
    whole: the name of what is fused.
    parts: E by name of each part.
    fused: whether there is one kernel.
    bias: whether each part has one.
    dtype: of the results; None takes that of `x`.
    unit: rows that belong together, as those of a head do, or None.

  Returns:
    Of each part [E, ...], or [E / unit, unit, ...].
  """
  shaped = lambda y: y.reshape(-1, unit, *y.shape[1:]) if unit else y
  if not fused:
    return [
      shaped(
        Linear(size, dtype, (('bias', size),) if bias else (), name=name)(x)
      )
      for name, size in parts.items()
    ]
  biases = tuple((f'{name}_bias', size) for name, size in parts.items())
  sizes = [*parts.values()]
  linear = Linear(sum(sizes), dtype, biases if bias else (), name=whole)
  return jnp.split(shaped(linear(x)), np.cumsum(sizes)[:-1] // (unit or 1))


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
    read = jnp.take(self.embedding, tokens, axis=0)
    noise = self.get_variable('noise', 'embedding', None)
    if noise is not None:
      rows = jnp.take(noise.outward, tokens, axis=0)
      move = jnp.einsum(
        'btr,rd->btd',
        rows,
        noise.inward,
        precision=precision(rows),
        preferred_element_type=jnp.float32,
      )
      read = (read.astype(jnp.float32) + move).astype(read.dtype)
    return jnp.moveaxis(read, -1, 0)

  def logits(self, x: jax.Array, rows: np.ndarray | None = None) -> jax.Array:
    """Maps [D, ...] to float32 [V, ...], or to some rows of it."""
    noise = self.get_variable('noise', 'embedding', None)
    table, noise = _at(rows, self.embedding, noise)
    return product(table, x, jnp.float32, noise)


class RMSNorm(nn.Module):
  """Root mean square normalisation (arXiv 1910.07467), in float32."""

  eps: float
  offset: float = 0.0  # added to the stored scale

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Normalises [D, ...] over its first axis."""
    init = nn.initializers.constant(1 - self.offset)
    scale = self.param('scale', init, (x.shape[0],))
    wide = x.astype(jnp.float32)
    mean_square = jnp.mean(jnp.square(wide), axis=0, keepdims=True)
    normed = wide * jax.lax.rsqrt(mean_square + jnp.float32(self.eps))
    scale = jnp.expand_dims(scale, range(1, x.ndim)).astype(jnp.float32)
    if self.offset:
      scale = scale + jnp.float32(self.offset)
    return (normed * scale).astype(x.dtype)
