# SPDX-License-Identifier: Apache-2.0
"""The noise families: what a member's unit noise for one array is.

    gaussian      independent standard normal numbers
    rademacher    independent signs
    low_rank:R    A B^T / sqrt(R), A and B standard normal with R columns, R = 1
                  where none is named (EGGROLL, arXiv 2511.16652, section 4)

All have mean 0 and standard deviation 1 in each element. Low rank needs
vectors (norms, biases) to be Gaussian, and so they are. Its members can be run
from their factors, never materialised (`factors`), or as dense arrays like
any other's (`draw`). Both are the same member up to rounding: with bfloat16
weights a dense one is rounded to them, which swallows small steps, and the
factors of the other are not. A member's meaning is fixed by the family's name,
which belongs to the recipe.

A tensor is seen as a matrix (see `trees.Leaf`). Element (row, column) of a
Gaussian or of a low-rank vector has the word of its row-major index. The
factors of an E x D tensor are the two parts of one (E + D) x R matrix, A above
B, drawn in the same way.

Axes: R rows and C columns of an array seen as a matrix, S tensors one under
the other in it; ranks are spelled out.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np

from thicket import prng, trees

FAMILIES = ('gaussian', 'rademacher', 'low_rank')
_MAX_RANK = 64  # a sum over more would be slower than dense noise


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=('outward', 'inward'),
  meta_fields=('rows',),
)
@dataclasses.dataclass(frozen=True)
class Factors:
  """Thin factors of what is added to one array, coefficient included.

  Attributes:
    outward: float32 [R, rank], of the tensors one under the other.
    inward: float32 [S * rank, C], rank rows for each tensor.
    rows: of each tensor.
  """

  outward: jax.Array
  inward: jax.Array
  rows: tuple[int, ...]


def rank_of(family: str) -> int:
  """The rank of a low-rank family, 0 of the dense ones.

  Raises:
    ValueError: the family is not known.
  """
  name, colon, rank = family.partition(':')
  if name not in FAMILIES:
    near = difflib.get_close_matches(name, FAMILIES, n=1, cutoff=0.4)
    hint = f'did you mean {near[0]!r}? ' if near else ''
    raise ValueError(
      f'noise family {family!r}; {hint}known: {", ".join(FAMILIES)}'
    )
  if name != 'low_rank':
    if colon:
      raise ValueError(
        f'noise family {family!r}: only low_rank has a rank, as low_rank:2'
      )
    return 0
  if colon and not (rank.isascii() and rank.isdigit()):
    raise ValueError(
      f'noise family {family!r}: the rank is a whole number, as low_rank:2'
    )
  number = int(rank) if colon else 1
  if not 1 <= number <= _MAX_RANK:
    raise ValueError(
      f'noise family {family!r}: the rank is outside 1..{_MAX_RANK}'
    )
  return number


def across_rows(values: jax.Array, rows: tuple[int, ...]) -> jax.Array:
  """Spreads one value a tensor, [S], over the tensor's rows, [R or 1, 1]."""
  if len(rows) == 1:
    return values[:, None]
  spread = values[np.repeat(np.arange(len(rows)), rows)][:, None]
  # Kept out of the fusion: a short column that is read, not a gather each.
  return jax.lax.optimization_barrier(spread)


def _words(
  keys: jax.Array,
  rows: tuple[int, ...],
  columns: int,
  first: tuple[int, ...] | None = None,
) -> jax.Array:
  """Words [R, C] of tensors of the given rows, from their keys [S, 2].

  `first` is the number of each tensor's first row, 0 by default.
  """
  first = (0,) * len(rows) if first is None else first
  local = None
  if len(rows) > 1 or any(first):
    parts = [np.arange(n) + start for n, start in zip(rows, first, strict=True)]
    local = np.concatenate(parts)
  key = across_rows(keys[:, 0], rows), across_rows(keys[:, 1], rows)
  return prng.words(key, prng.index_words(sum(rows), columns, local))


def _gaussian(keys: jax.Array, leaf: trees.Leaf) -> jax.Array:
  """Standard normal noise, float32 [R, C]; a word each."""
  return prng.gaussian(_words(keys, leaf.rows, leaf.num_columns))


def _rademacher(keys: jax.Array, leaf: trees.Leaf) -> jax.Array:
  """Signs +1 or -1, float32 [R, C].

  A word holds the signs of 32 neighbours of a row, lowest bit first (0 is +1),
  and each row starts a new word: the word of an element has the index
  `row * ceil(C / 32) + column // 32`.
  """
  columns = leaf.num_columns
  packed = _words(keys, leaf.rows, -(-columns // 32))
  # Shift right, reshape, shift left: of several equal spellings the one that
  # XLA vectorises on CPU (5x); the others draw a word again for each bit.
  packed = jax.lax.optimization_barrier(packed)
  lanes = np.arange(32, dtype=np.uint32)[None, None]
  bits = (packed[:, :, None] >> lanes).reshape(sum(leaf.rows), -1)[:, :columns]
  one = np.float32(1).view(np.uint32)
  return jax.lax.bitcast_convert_type(
    (bits << np.uint32(31)) | one, jnp.float32
  )


def _low_rank(keys: jax.Array, leaf: trees.Leaf, rank: int) -> jax.Array:
  """A B^T / sqrt(rank), float32 [R, C]; Gaussian for a vector."""
  if len(leaf.shape) < 2:
    return _gaussian(keys, leaf)
  thin = factors(keys, leaf, rank)
  inward = thin.inward.reshape(len(leaf.rows), rank, 1, leaf.num_columns)
  # Term by term in order of rank, not as a product of matrices: the bits of
  # an element then depend on nothing but its factors.
  edges = np.cumsum(thin.rows)[:-1].tolist()
  tensors = [
    functools.reduce(
      operator.add, (outward[:, r : r + 1] * own[r] for r in range(rank))
    )
    for outward, own in zip(jnp.split(thin.outward, edges), inward, strict=True)
  ]
  noise = tensors[0] if len(tensors) == 1 else jnp.concatenate(tensors)
  return noise if rank == 1 else noise * np.float32(rank**-0.5)


def factors(keys: jax.Array, leaf: trees.Leaf, rank: int) -> Factors:
  """The factors of an array's tensors, without coefficient or 1 / sqrt(rank).

  Args:
    keys: uint32 [S, 2].
    leaf: of at least two axes.
    rank: columns of either factor.
  """
  rows, columns = leaf.rows, leaf.num_columns
  outward = prng.gaussian(_words(keys, rows, rank))
  inward = prng.gaussian(_words(keys, (columns,) * len(rows), rank, first=rows))
  inward = inward.reshape(len(rows), columns, rank).swapaxes(1, 2)
  return Factors(outward, inward.reshape(len(rows) * rank, columns), rows)


def matrix(family: str, keys: jax.Array, leaf: trees.Leaf) -> jax.Array:
  """As `draw`, seen as a matrix, float32 [R, C]."""
  rank = rank_of(family)
  if rank:
    return _low_rank(keys, leaf, rank)
  return {'gaussian': _gaussian, 'rademacher': _rademacher}[family](keys, leaf)


def draw(family: str, keys: jax.Array, leaf: trees.Leaf) -> jax.Array:
  """The noise of one member for one array.

  Args:
    family: a name of `FAMILIES`, low_rank maybe with its rank.
    keys: uint32 [S, 2], the keys of the array's tensors.
    leaf: the array's shape and tensors.

  Returns:
    float32 array of the leaf's shape.
  """
  return matrix(family, keys, leaf).reshape(leaf.shape)
