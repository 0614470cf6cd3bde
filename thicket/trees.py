# SPDX-License-Identifier: Apache-2.0
"""What each array of a parameter tree is called in the checkpoint.

A model may fuse the weights it multiplies by together (q, k and v are one
array). Noise must not notice, so every array of a tree carries a `Leaf`: the
canonical tensors it is made of, in order, along its first axis. Names are the
checkpoint's own, with the layer number taken out.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

Tree = Any


@dataclasses.dataclass(frozen=True)
class Segment:
  """One canonical tensor inside an array: `size` entries of the first axis.

  The tensor's canonical shape is the array's shape with `size` as first axis.
  """

  name: str
  layer: int
  size: int

  @property
  def full_name(self) -> str:
    """The name with the layer number put back, as the checkpoint has it."""
    return self.name.replace('*', str(self.layer))


class Axis(NamedTuple):
  """What an axis of an array is, for the rules that split models.

  Attributes:
    name: such as heads or vocab, a key of `sharding.RULES`.
    units: it can be cut into as many equal parts, or into divisors of them.
  """

  name: str
  units: int


@dataclasses.dataclass(frozen=True)
class Leaf:
  """The canonical tensors that one array holds, and the array's shape.

  Seen as a matrix, an array has its last axis as columns and all others as
  rows; a vector is one row. `axes` names those that may be split over devices,
  None for others; empty if none may.
  """

  shape: tuple[int, ...]
  segments: tuple[Segment, ...]
  axes: tuple[Axis | None, ...] = ()

  def __post_init__(self):
    if not self.segments:
      raise ValueError(f'an array of shape {self.shape} has no segment')
    first = self.shape[0] if self.shape else 1
    total = sum(segment.size for segment in self.segments)
    if total != first:
      raise ValueError(
        f'{self.segments[0].name}: segments have {total} entries, the first '
        f'axis of the array of shape {self.shape} has {first}'
      )
    if len(self.segments) > 1 and len(self.shape) < 2:
      # Rows are the unit in which noise is drawn, and a vector is one row.
      raise ValueError(f'{self.segments[0].name}: a vector cannot be fused')
    if len(self.axes) not in (0, len(self.shape)):
      raise ValueError(
        f'{self.segments[0].name}: {len(self.axes)} axes are named, the shape '
        f'is {self.shape}'
      )

  @property
  def num_columns(self) -> int:
    """Length of the last axis; 1 for a scalar."""
    return self.shape[-1] if self.shape else 1

  @property
  def rows(self) -> tuple[int, ...]:
    """Rows of each segment's matrix."""
    middle = math.prod(self.shape[1:-1])
    if len(self.shape) < 2:
      return (1,)
    return tuple(segment.size * middle for segment in self.segments)


def anonymous(leaf: Leaf) -> Leaf:
  """The leaf without names: arrays of one shape can share one program."""
  nameless = tuple(Segment('', 0, s.size) for s in leaf.segments)
  return dataclasses.replace(leaf, segments=nameless)


def path_name(path: Sequence[Any]) -> str:
  """The slash-joined name of a tree path, e.g. `params/Dense_0/kernel`."""
  return jax.tree_util.keystr(tuple(path), simple=True, separator='/')


def default_spec(params: Tree) -> Tree:
  """A `Leaf` for every array of `params`, each one tensor named by its path.

  This is the spec of a model that keeps its checkpoint's own layout.
  """

  def leaf(path, array):
    shape = tuple(np.shape(array))
    size = shape[0] if shape else 1
    return Leaf(shape, (Segment(path_name(path), 0, size),))

  return jax.tree_util.tree_map_with_path(leaf, params)


def segments(spec: Tree) -> Iterator[Segment]:
  """All canonical tensors of a spec tree, in the order of its leaves."""
  for leaf in jax.tree.leaves(spec):
    yield from leaf.segments


def check_spec(params: Tree, spec: Tree) -> None:
  """Raises ValueError where `spec` and `params` disagree, naming the leaf."""
  if jax.tree.structure(params) != jax.tree.structure(spec):
    raise ValueError('spec and params are trees of different structure')

  def check(path, array, leaf):
    if tuple(np.shape(array)) != leaf.shape:
      raise ValueError(
        f'{path_name(path)}: the array has shape {np.shape(array)}, '
        f'its spec {leaf.shape}'
      )

  jax.tree_util.tree_map_with_path(check, params, spec)
  names = [(s.name, s.layer) for s in segments(spec)]
  if len(set(names)) != len(names):
    twice = next(name for name in names if names.count(name) > 1)
    raise ValueError(f'tensor {twice[0]!r}, layer {twice[1]}, is named twice')


def trainable(spec: Tree, *, only: str = '', skip: str = '') -> Tree:
  """Marks the tensors that noise may touch, by regular expressions.

  Args:
    spec: tree of `Leaf`.
    only: a tensor moves only if this matches somewhere in its full name; the
      empty string matches all.
    skip: a tensor stays if this matches; the empty string matches none.

  Returns:
    The tree of tuples of bool, one for each segment of each leaf.

  Raises:
    ValueError: a pattern is no regular expression, or nothing is left to move.
  """
  try:
    want, avoid = re.compile(only), re.compile(skip)
  except re.error as error:
    raise ValueError(f'mask {only!r} / {skip!r}: {error}') from error

  def moves(segment: Segment) -> bool:
    name = segment.full_name
    return bool(want.search(name)) and not (skip and avoid.search(name))

  mask = jax.tree.map(lambda leaf: tuple(map(moves, leaf.segments)), spec)
  if not any(jax.tree.leaves(mask)):
    example = next(segments(spec)).full_name
    raise ValueError(
      f'only={only!r}, skip={skip!r} leave no tensor to perturb; '
      f'names look like {example!r}'
    )
  return mask


def fingerprint(params: Tree, spec: Tree) -> str:
  """SHA-256 over the canonical names, layers, shapes and dtypes of a tree.

  It does not depend on how tensors are fused or in which order they stand.
  """
  rows = []
  for array, leaf in zip(
    jax.tree.leaves(params), jax.tree.leaves(spec), strict=True
  ):
    for s in leaf.segments:
      shape = [s.size, *leaf.shape[1:]] if leaf.shape else []
      rows.append([s.name, s.layer, shape, str(array.dtype)])
  text = json.dumps(sorted(rows), separators=(',', ':'))
  return hashlib.sha256(text.encode()).hexdigest()


def content_hash(tree: Tree) -> str:
  """SHA-256 in hex over all arrays with their paths, types and shapes."""
  digest = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    array = np.asarray(leaf)
    head = f'{path_name(path)} {array.dtype} {array.shape};'
    digest.update(head.encode())
    digest.update(np.ascontiguousarray(array).tobytes())
  return digest.hexdigest()
