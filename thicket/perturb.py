# SPDX-License-Identifier: Apache-2.0
"""The noise families, and members' weights written into donated buffers.

A member's weights are w + c * n: w a base weight, n the member's own noise for
that element (see `prng`), c = sigma, or sigma times the tensor's root mean
square under relative sigma. The sum is taken in float32 and rounded once to
the weight's dtype. The base is never modified, so there is no restore step and
nothing drifts (RandOpt, arXiv 2603.12228, section 4; its released code shares
one noise stream among all tensors, which this module exists to avoid).

Axes: M members, R rows and C columns of an array seen as a matrix, S tensors
one under the other in it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from thicket import prng, sharding, trees

FAMILIES = ('gaussian', 'rademacher')
SCALES = ('absolute', 'relative')

Tree = Any


def _across_rows(values: jax.Array, rows: tuple[int, ...]) -> jax.Array:
  """Spreads one value a tensor, [S], over the tensor's rows, [R or 1, 1]."""
  if len(rows) == 1:
    return values[:, None]
  spread = values[np.repeat(np.arange(len(rows)), rows)][:, None]
  # Kept out of the fusion: a short column that is read, not a gather each.
  return jax.lax.optimization_barrier(spread)


def _words(keys: jax.Array, rows: tuple[int, ...], columns: int) -> jax.Array:
  """The words [R, C] of tensors of the given rows, from their keys [S, 2]."""
  local = None if len(rows) == 1 else np.concatenate([*map(np.arange, rows)])
  key = _across_rows(keys[:, 0], rows), _across_rows(keys[:, 1], rows)
  return prng.words(key, prng.index_words(sum(rows), columns, local))


def _gaussian(
  keys: jax.Array, rows: tuple[int, ...], columns: int
) -> jax.Array:
  """Standard normal noise, float32 [R, C]; a word each."""
  return prng.gaussian(_words(keys, rows, columns))


def _rademacher(
  keys: jax.Array, rows: tuple[int, ...], columns: int
) -> jax.Array:
  """Signs +1 or -1, float32 [R, C].

  A word holds the signs of 32 neighbours of a row, lowest bit first (0 is +1),
  and each row starts a new word: the word of an element has the index
  `row * ceil(C / 32) + column // 32`.
  """
  packed = _words(keys, rows, -(-columns // 32))
  # Shift right, reshape, shift left: of several equal spellings the one that
  # XLA vectorises on CPU (5x); the others draw a word again for each bit.
  packed = jax.lax.optimization_barrier(packed)
  lanes = np.arange(32, dtype=np.uint32)[None, None]
  bits = (packed[:, :, None] >> lanes).reshape(sum(rows), -1)[:, :columns]
  one = np.float32(1).view(np.uint32)
  return jax.lax.bitcast_convert_type(
    (bits << np.uint32(31)) | one, jnp.float32
  )


_DRAW = {'gaussian': _gaussian, 'rademacher': _rademacher}


def draw(family: str, keys: jax.Array, leaf: trees.Leaf) -> jax.Array:
  """The noise of one member for one array.

  Args:
    family: one of `FAMILIES`; both have mean 0 and standard deviation 1.
    keys: uint32 [S, 2], the keys of the array's tensors.
    leaf: the array's shape and tensors.

  Returns:
    float32 array of the leaf's shape.
  """
  return _DRAW[family](keys, leaf.rows, leaf.num_columns).reshape(leaf.shape)


def _member_array(base, keys, coefficients, *, family, leaf):
  """One member's array, of the shape and dtype of `base`."""
  weights = base.reshape(sum(leaf.rows), leaf.num_columns)
  noise = _DRAW[family](keys, leaf.rows, leaf.num_columns)
  scale = _across_rows(coefficients, leaf.rows)
  moved = weights.astype(jnp.float32) + scale * noise
  # A frozen tensor, and the base itself as member -1, keep every bit: adding
  # 0 * n would turn -0 into +0.
  moved = jnp.where(scale == 0, weights, moved.astype(base.dtype))
  return moved.reshape(base.shape)


@functools.partial(
  jax.jit,
  static_argnames=('family', 'leaf', 'mesh'),
  donate_argnums=0,
  keep_unused=True,
)
def _materialise(buffer, base, keys, coefficients, *, family, leaf, mesh):
  """Members' arrays [M, ...] in the place of `buffer`, which is donated."""
  del buffer  # its memory becomes the result's
  members = PartitionSpec(sharding.MEMBERS)

  def local(base, keys, coefficients):
    one = functools.partial(_member_array, family=family, leaf=leaf)
    return jax.vmap(one, in_axes=(None, 0, 0))(base, keys, coefficients)

  return jax.shard_map(
    local,
    mesh=mesh,
    in_specs=(PartitionSpec(), members, members),
    out_specs=members,
  )(base, keys, coefficients)


def tensor_scales(params: Tree, spec: Tree, scale: str) -> Tree:
  """The factor by which sigma is multiplied, for each tensor of each leaf.

  Args:
    params: base weights.
    spec: their tree of `trees.Leaf`.
    scale: 'absolute' gives 1; 'relative' gives the tensor's root mean square
      over its elements, in float64 so that no layout changes it.

  Returns:
    The tree of float64 numpy arrays [S].

  Raises:
    ValueError: unknown `scale`.
  """
  if scale not in SCALES:
    raise ValueError(f'sigma scale {scale!r} is not one of {SCALES}')

  def of_leaf(array, leaf):
    if scale == 'absolute':
      return np.ones(len(leaf.segments))
    matrix = np.asarray(array).reshape(sum(leaf.rows), leaf.num_columns)
    squares = np.square(matrix.astype(np.float64)).mean(axis=1)
    parts = np.split(squares, np.cumsum(leaf.rows)[:-1])
    return np.sqrt([part.mean() for part in parts])

  return jax.tree.map(of_leaf, params, spec)


class Perturber:
  """Writes the weights of chunks of members, on every device of a mesh.

  Frozen arrays (no tensor of theirs may move) are not copied: the base array
  itself stands in the result, without the axis M; `in_axes` says which.
  """

  def __init__(
    self,
    base: Tree,
    spec: Tree,
    *,
    seed: int,
    mesh: Mesh,
    family: str = 'gaussian',
    scale: str = 'absolute',
    mask: Tree | None = None,
  ):
    """Prepares the noise of one population.

    Args:
      base: base weights, on every device of `mesh`; float arrays.
      spec: tree of `trees.Leaf` of the same structure.
      seed: root seed of the population, 0 <= seed < 2**64.
      mesh: the mesh; its axis `members` splits M.
      family: one of `FAMILIES`.
      scale: one of `SCALES`.
      mask: tree of tuples of bool by `trees.trainable`; None moves all.

    Raises:
      ValueError: unknown family or scale, a seed out of range, a spec that
        does not fit, or two tensor names with one hash.
    """
    if family not in FAMILIES:
      raise ValueError(f'noise family {family!r} is not one of {FAMILIES}')
    trees.check_spec(base, spec)
    for path, array in jax.tree_util.tree_leaves_with_path(base):
      if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(
          f'{trees.path_name(path)} is {array.dtype}: only float arrays can be '
          'perturbed; keep others out of the parameters'
        )
    prng.check_seed(seed)
    mask = trees.trainable(spec) if mask is None else mask
    scales = tensor_scales(base, spec, scale)
    self._base, self._structure = jax.tree.flatten(base)
    leaves = jax.tree.leaves(spec)
    # Names and layers go into the keys: without them in the static arguments,
    # arrays of one shape share one compiled program.
    self._shapes = [trees.anonymous(leaf) for leaf in leaves]
    tensors = list(trees.segments(spec))
    self._names = [segment.name for segment in tensors]
    self._layers = [segment.layer for segment in tensors]
    prng.check_names(self._names)
    self._edges = np.cumsum([len(leaf.segments) for leaf in leaves])[:-1]
    # The mask's leaves are the tuples of flags that stand at our arrays.
    flags = self._structure.flatten_up_to(mask)
    self._scales = [
      factors * _flags_of(leaf, moves)
      for factors, moves, leaf in zip(
        jax.tree.leaves(scales), flags, leaves, strict=True
      )
    ]
    self._seed, self._mesh, self._family = seed, mesh, family

  @property
  def in_axes(self) -> Tree:
    """0 where an array carries the members axis, None where it is the base."""
    axes = [0 if scales.any() else None for scales in self._scales]
    return jax.tree.unflatten(self._structure, axes)

  def buffers(self, num_members: int) -> Tree:
    """Memory for `num_members` members' weights, to be donated to `write`."""
    placed = sharding.over_members(self._mesh)
    arrays = [
      jnp.zeros((num_members, *array.shape), array.dtype, device=placed)
      if scales.any()
      else array
      for array, scales in zip(self._base, self._scales, strict=True)
    ]
    return jax.tree.unflatten(self._structure, arrays)

  def write(
    self,
    member_ids: Sequence[int] | np.ndarray,
    sigmas: Sequence[float] | np.ndarray,
    buffers: Tree,
  ) -> Tree:
    """The weights of the given members.

    Args:
      member_ids: [M] ids >= 0, or -1 for the base itself.
      sigmas: [M] standard deviations (of weights, or relative to each
        tensor's root mean square); 0 gives the base.
      buffers: weights of an earlier chunk of M members, or `buffers(M)`.
        They are donated: do not use them again.

    Returns:
      The base's tree with [M, ...] arrays sharded over members.

    Raises:
      ValueError: ids below -1, or sigmas that do not fit them.
    """
    ids = np.asarray(member_ids)
    sigmas = np.asarray(sigmas, np.float64)
    if ids.shape != sigmas.shape or not np.isfinite(sigmas).all():
      raise ValueError(
        f'sigmas {sigmas} do not give each member of {ids} a finite number'
      )
    if ids.min() < -1:
      raise ValueError(f'member id {ids.min()}: ids are -1, the base, or >= 0')
    sigmas = np.where(ids < 0, 0.0, sigmas)
    # All at once: array by array, the same keys take a tenth of a chunk's time.
    keys = prng.tensor_keys(self._seed, ids, self._names, self._layers)
    arrays = []
    for buffer, base, leaf, scales, own_keys in zip(
      jax.tree.leaves(buffers),
      self._base,
      self._shapes,
      self._scales,
      np.split(keys, self._edges, axis=1),
      strict=True,
    ):
      if not scales.any():
        arrays.append(base)
        continue
      coefficients = (sigmas[:, None] * scales[None]).astype(np.float32)
      arrays.append(
        _materialise(
          buffer,
          base,
          sharding.spread(self._mesh, own_keys),
          sharding.spread(self._mesh, coefficients),
          family=self._family,
          leaf=leaf,
          mesh=self._mesh,
        )
      )
    return jax.tree.unflatten(self._structure, arrays)


def _flags_of(leaf: trees.Leaf, moves: Sequence[bool]) -> np.ndarray:
  if len(moves) != len(leaf.segments):
    raise ValueError(
      f'{leaf.segments[0].name}: the mask has {len(moves)} flags for '
      f'{len(leaf.segments)} tensors'
    )
  return np.asarray(moves, np.float64)


def effective_sigmas(
  base: Tree, members: Tree, spec: Tree
) -> dict[str, jax.Array]:
  """Root mean square of what each tensor of each member really moved by.

  Under bfloat16 weights this differs from the nominal sigma: increments below
  half a unit in the last place vanish.

  Args:
    base: base weights.
    members: members' weights, [M, ...] arrays of a tree like `base`; frozen
      arrays, without M, are left out.
    spec: tree of `trees.Leaf`.

  Returns:
    float32 [M] by the full name of each canonical tensor.
  """
  found = {}
  for weights, moved, leaf in zip(
    jax.tree.leaves(base),
    jax.tree.leaves(members),
    jax.tree.leaves(spec),
    strict=True,
  ):
    if moved.ndim == weights.ndim:
      continue
    wide = weights.astype(jnp.float32)[None]
    square = jnp.square(moved.astype(jnp.float32) - wide)
    rows = square.reshape(len(moved), sum(leaf.rows), -1).mean(axis=2)
    edges = np.cumsum(leaf.rows)[:-1]
    for segment, part in zip(
      leaf.segments, jnp.split(rows, edges, axis=1), strict=True
    ):
      found[segment.full_name] = jnp.sqrt(part.mean(axis=1))
  return found
