# SPDX-License-Identifier: Apache-2.0
"""Members' weights, written into donated buffers.

A member's weights are w + c * n: w a base weight, n the member's own unit noise
for that element (see `families`), c = sigma times the tensor's scale (see
`scales`). The sum is taken in float32 and rounded once to the weight's dtype.
The base is never modified, so there is no restore step and nothing drifts
(RandOpt, arXiv 2603.12228, section 4; its released code shares one noise stream
among all tensors, which this project exists to avoid).

Members of a low-rank family can also be left factored: the base stays as it
is, shared by all of them, and thin factors of c * n stand beside it in the
collection `noise`, for models that know it (`models.layers`).

Axes: M members, S tensors one under the other in an array.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from thicket import families, prng, sharding, trees
from thicket.scales import tensor_scales

Tree = Any


def _member_array(base, keys, coefficients, *, family, leaf):
  """One member's array, of the shape and dtype of `base`."""
  weights = base.reshape(sum(leaf.rows), leaf.num_columns)
  noise = families.matrix(family, keys, leaf)
  scale = families.across_rows(coefficients, leaf.rows)
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
  one = functools.partial(_member_array, family=family, leaf=leaf)
  members = PartitionSpec(sharding.MEMBERS)
  written = jax.shard_map(
    jax.vmap(one, in_axes=(None, 0, 0)),
    mesh=mesh,
    in_specs=(PartitionSpec(), members, members),
    out_specs=members,
    axis_names=sharding.manual_axes(mesh),
  )(base, keys, coefficients)
  placed = NamedSharding(mesh, sharding.of_member_leaf(mesh, leaf))
  return jax.lax.with_sharding_constraint(written, placed)


@functools.partial(jax.jit, static_argnames=('rank', 'leaf', 'mesh'))
def _factor(keys, coefficients, *, rank, leaf, mesh):
  """Members' factors [M, ...], a list of n, of n arrays of one shape.

  From keys uint32 [M, n, S, 2] and coefficients float32 [M, n, S].
  """
  members = PartitionSpec(sharding.MEMBERS)

  def one(keys, coefficients):
    thin = families.factors(keys, leaf, rank)
    scaled = coefficients * np.float32(rank**-0.5)
    outward = thin.outward * families.across_rows(scaled, leaf.rows)
    return dataclasses.replace(thin, outward=outward)

  def local(keys, coefficients):
    many = jax.vmap(jax.vmap(one))(keys, coefficients)
    return [
      jax.tree.map(lambda x, i=i: x[:, i], many) for i in range(keys.shape[1])
    ]

  return jax.shard_map(
    local,
    mesh=mesh,
    in_specs=(members, members),
    out_specs=members,
    # Thin enough to be drawn whole by each device that shares a model.
  )(keys, coefficients)


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
    factored: bool = False,
  ):
    """Prepares the noise of one population.

    Args:
      base: base weights, placed on `mesh`; float arrays.
      spec: tree of `trees.Leaf` of the same structure.
      seed: root seed of the population, 0 <= seed < 2**64.
      mesh: the mesh; its axis `members` splits M.
      family: see `families`.
      scale: one of `scales.SCALES`.
      mask: tree of tuples of bool by `trees.trainable`; None moves all.
      factored: leave the matrices of a low-rank family factored. The base is
        then a dict with the collection `params`, and members' weights have
        the collection `noise` beside it, which the model must know.

    Raises:
      ValueError: unknown family or scale, a seed out of range, a spec that
        does not fit, or two tensor names with one hash.
    """
    rank = families.rank_of(family)
    if factored and not rank:
      raise ValueError(f'noise family {family!r} has no factors to keep')
    trees.check_spec(base, spec)
    for path, array in jax.tree_util.tree_leaves_with_path(base):
      if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(
          f'{trees.path_name(path)} is {array.dtype}: only float arrays can be '
          'perturbed; keep others out of the parameters'
        )
    prng.check_seed(seed)
    mask = trees.trainable(spec) if mask is None else mask
    scales = tensor_scales(base, spec, scale, family)
    paths, self._structure = jax.tree_util.tree_flatten_with_path(base)
    self._paths, self._base = zip(*paths, strict=True)
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
    self._thin: dict[trees.Leaf, list[int]] = {}  # arrays left factored
    self._dense: list[int] = []  # arrays written
    for i, leaf in enumerate(self._shapes):
      if not self._scales[i].any():
        continue
      if factored and len(leaf.shape) > 1:
        self._thin.setdefault(leaf, []).append(i)
      else:
        self._dense.append(i)
    self._rank, self._factored = rank, factored

  @property
  def in_axes(self) -> Tree:
    """0 where an array carries the members axis, None where it is the base."""
    axes: list[int | None] = [None] * len(self._base)
    for i in self._dense:
      axes[i] = 0
    return self._tree(
      axes,
      {
        i: families.Factors(0, 0, leaf.rows)
        for leaf, group in self._thin.items()
        for i in group
      },
    )

  def shapes(self, num_members: int) -> Tree:
    """Shapes, types and shardings of what `write` gives for so many members."""
    shape = jax.ShapeDtypeStruct
    arrays = [
      shape(x.shape, x.dtype, sharding=getattr(x, 'sharding', None))
      for x in self._base
    ]
    for i in self._dense:
      placed = sharding.of_member_leaf(self._mesh, self._shapes[i])
      arrays[i] = shape(
        (num_members, *self._base[i].shape),
        self._base[i].dtype,
        sharding=NamedSharding(self._mesh, placed),
      )
    thin = lambda *sizes: shape(
      (num_members, *sizes),
      np.float32,
      sharding=sharding.over_members(self._mesh),
    )
    noise = {}
    for leaf, group in self._thin.items():
      factors = families.Factors(
        thin(sum(leaf.rows), self._rank),
        thin(len(leaf.rows) * self._rank, leaf.num_columns),
        leaf.rows,
      )
      noise |= dict.fromkeys(group, factors)
    return self._tree(arrays, noise)

  def buffers(self, num_members: int) -> Tree:
    """Memory for `num_members` members' weights, to be donated to `write`.

    Factors are not among it: they are thin, and made anew.
    """
    arrays = list(self._base)
    shapes = self._structure.flatten_up_to(
      self._base_part(self.shapes(num_members))
    )
    for i in self._dense:
      arrays[i] = jnp.zeros_like(shapes[i], device=shapes[i].sharding)
    return self._tree(arrays, {})

  def part(self, index: int) -> Perturber:
    """Writes one array of the base alone, dense, in a list of its own.

    For whoever has no room for all weights of a member at once; `index` is the
    array's place among the base's leaves.
    """
    stop = int(np.append(self._edges, len(self._names))[index])
    own = slice(stop - len(self._shapes[index].segments), stop)
    part = copy.copy(self)
    part._structure = jax.tree.structure([0])
    part._base, part._shapes, part._scales = (
      [found[index]] for found in (self._base, self._shapes, self._scales)
    )
    part._names, part._layers = self._names[own], self._layers[own]
    part._edges = self._edges[:0]
    part._dense = [0] if self._scales[index].any() else []
    part._thin, part._factored = {}, False
    return part

  def write(
    self,
    member_ids: Sequence[int] | np.ndarray,
    sigmas: Sequence[float] | np.ndarray,
    buffers: Tree,
  ) -> Tree:
    """The weights of the given members.

    Args:
      member_ids: [M] ids >= 0, or -1 for the base itself.
      sigmas: [M] multiples of each tensor's scale, below 0 for the mirror
        image of a member; 0 gives the base.
      buffers: weights of an earlier chunk of M members, or `buffers(M)`.
        They are donated: do not use them again.

    Returns:
      The base's tree with [M, ...] arrays sharded over members; factored, it
      has the collection `noise` too.

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
    keys = np.split(keys, self._edges, axis=1)
    coefficients = [
      (sigmas[:, None] * scales[None]).astype(np.float32)
      for scales in self._scales
    ]
    spread = functools.partial(sharding.spread, self._mesh)
    memory = self._structure.flatten_up_to(self._base_part(buffers))
    arrays = list(self._base)
    for i in self._dense:
      arrays[i] = _materialise(
        memory[i],
        self._base[i],
        spread(keys[i]),
        spread(coefficients[i]),
        family=self._family,
        leaf=self._shapes[i],
        mesh=self._mesh,
      )
    noise = {}
    for leaf, group in self._thin.items():
      thin = _factor(
        spread(np.stack([keys[i] for i in group], axis=1)),
        spread(np.stack([coefficients[i] for i in group], axis=1)),
        rank=self._rank,
        leaf=leaf,
        mesh=self._mesh,
      )
      noise |= dict(zip(group, thin, strict=True))
    return self._tree(arrays, noise)

  def _tree(self, arrays: Sequence[Any], noise: dict[int, Any]) -> Tree:
    """The base's tree of arrays, and the collection of factors by array."""
    tree = jax.tree.unflatten(self._structure, arrays)
    if not self._factored:
      return tree
    nested: dict[str, Any] = {}
    for i, factors in noise.items():
      place = nested
      *scopes, name = [entry.key for entry in self._paths[i][1:]]
      for scope in scopes:
        place = place.setdefault(scope, {})
      place[name] = factors
    return tree | {'noise': nested}

  def _base_part(self, weights: Tree) -> Tree:
    return {'params': weights['params']} if self._factored else weights


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
