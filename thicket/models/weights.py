# SPDX-License-Identifier: Apache-2.0
"""From stored tensors to arrays on a mesh, one array in memory at a time.

A model may take up most of a host. So an array (of one tensor, or of the few
that a model fuses) is made on the host in its final type, put on the devices
and forgotten before the next one: the peak is that of the weights on devices
of the host, and of the largest array.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from thicket import sharding, trees
from thicket.models.files import ModelFileError, listed, shown

Tree = Any
Shapes = Mapping[str, tuple[int, ...]]

_CHUNK = 1 << 20  # elements that are converted and checked at a time


def shapes(spec: Tree, name: Callable[[trees.Segment], str]) -> Shapes:
  """Shapes of the canonical tensors of a tree, by what `name` calls them."""
  return {
    name(segment): (segment.size, *leaf.shape[1:])
    for leaf in jax.tree.leaves(spec)
    for segment in leaf.segments
  }


def check_tensors(
  path: Path,
  wanted: Shapes,
  found: Shapes,
  more: Mapping[str, Iterable[str]] | None = None,
) -> None:
  """Compares the tensors a model has with those that a file holds.

  Args:
    path: of the file.
    wanted: shapes by name.
    found: shapes by name, of all that are not to be ignored.
    more: what else is wrong, by kind.

  Raises:
    ModelFileError: names every missing, extra and misshapen tensor.
  """
  problems = {
    'missing': sorted(wanted.keys() - found.keys()),
    'not expected': sorted(found.keys() - wanted.keys()),
    **(more or {}),
  }
  said = [f'{kind}: {listed(x)}' for kind, x in problems.items() if x]
  misshapen = [
    f'{name} {tuple(found[name])} instead of {shape}'
    for name, shape in wanted.items()
    if name in found and tuple(found[name]) != shape
  ]
  if misshapen:
    said.append(f'misshapen: {", ".join(misshapen)}')
  if said:
    raise ModelFileError(f'{path}: tensors {"; ".join(said)}')


def place(
  path: Path,
  spec: Tree,
  read: Callable[[trees.Segment], np.ndarray],
  dtype: Any,
  mesh: Mesh,
) -> Tree:
  """Puts weights on a mesh, each array where its axes say.

  Args:
    path: of the file, for messages.
    spec: `trees.Leaf` of each array.
    read: gives a canonical tensor; it is done with before the next is read.
    dtype: of the arrays; values are rounded to it once.
    mesh: see `sharding.place`.

  Raises:
    ModelFileError: a tensor holds values that are not finite, or too large
      for `dtype`.
  """

  def array(leaf: trees.Leaf) -> jax.Array:
    whole = np.empty(leaf.shape, dtype)
    start = 0
    for segment in leaf.segments:
      if not _fill(whole[start : start + segment.size], read(segment)):
        raise ModelFileError(
          f'{path}: tensor {shown(segment.full_name)} holds values that are '
          f'not finite as {whole.dtype}; the model is broken, take another'
        )
      start += segment.size
    # Waits: a device that copies later would keep more than one array here.
    return jax.block_until_ready(sharding.place(mesh, whole, leaf))

  return jax.tree.map(array, spec)


def _fill(out: np.ndarray, values: np.ndarray) -> bool:
  """Copies values, a tensor of the same shape; whether all are finite."""
  step = max(1, _CHUNK * len(out) // max(1, out.size))
  for start in range(0, len(out), step):
    part = out[start : start + step]
    with np.errstate(over='ignore'):
      np.copyto(part, values[start : start + step], casting='unsafe')
    if not np.isfinite(part).all():
      return False
  return True
