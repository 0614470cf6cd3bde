# SPDX-License-Identifier: Apache-2.0
"""The device mesh and where arrays live on it.

Members are data-parallel: each device holds its own members' weights, caches
and rows, and only scores leave it. A model too large for one device is split
over the axis `model`: the devices of one row of the mesh share each of their
members. What is split is read off the names of an array's axes (`RULES`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from thicket import trees

MEMBERS, MODEL = 'members', 'model'

# Logical axis -> mesh axis. A new family of models names its axes so.
RULES = {'vocab': MODEL, 'heads': MODEL, 'hidden': MODEL}

Tree = Any


def make_mesh(
  devices: Sequence[jax.Device] | None = None, model: int = 1
) -> Mesh:
  """A mesh (members, model) over `devices`, by default all of them.

  Args:
    devices: neighbours share a model, so that its traffic stays between them.
    model: devices that share one model.

  Raises:
    ValueError: `model` does not divide the number of devices.
  """
  devices = jax.devices() if devices is None else list(devices)
  if model < 1 or len(devices) % model:
    raise ValueError(
      f'model axis = {model} does not divide {len(devices)} devices; choose a '
      'divisor, 1 to give each device members of its own'
    )
  # Auto, said aloud: the default of make_mesh has changed between versions,
  # and under Explicit axes top_k over sharded scores is an error.
  return jax.make_mesh(
    (len(devices) // model, model),
    (MEMBERS, MODEL),
    axis_types=(AxisType.Auto, AxisType.Auto),
    devices=devices,
  )


def replicated(mesh: Mesh) -> NamedSharding:
  """The sharding of what every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


def over_members(mesh: Mesh) -> NamedSharding:
  """The sharding of arrays whose first axis is M, members."""
  return NamedSharding(mesh, PartitionSpec(MEMBERS))


def num_devices(mesh: Mesh) -> int:
  """Devices, or groups that share a model, along the members axis."""
  return mesh.shape[MEMBERS]


def is_split(mesh: Mesh) -> bool:
  """Whether a model is split over several devices."""
  return mesh.shape[MODEL] > 1


def manual_axes(mesh: Mesh) -> frozenset[str]:
  """The axes over which a `shard_map` of ours is manual.

  Members are: each device loops until its own rows are done. The model axis
  is left to the compiler, which splits products by the weights' shardings.
  """
  return frozenset({MEMBERS} if is_split(mesh) else {MEMBERS, MODEL})


def split(mesh: Mesh, axis: trees.Axis | None) -> str | None:
  """The mesh axis over which an axis of an array is split, or None."""
  name = None if axis is None else RULES[axis.name]
  if name is None or mesh.shape[name] == 1 or axis.units % mesh.shape[name]:
    return None
  return name


def of_leaf(mesh: Mesh, leaf: trees.Leaf) -> PartitionSpec:
  """How one array of a model lies on the mesh."""
  return PartitionSpec(*(split(mesh, axis) for axis in leaf.axes))


def of_member_leaf(mesh: Mesh, leaf: trees.Leaf) -> PartitionSpec:
  """How members' arrays [M, ...] lie on the mesh."""
  return PartitionSpec(MEMBERS, *of_leaf(mesh, leaf))


def weight_specs(in_axes: Tree) -> Tree:
  """Partition specs over members of weights, from `Perturber.in_axes`."""
  return jax.tree.map(
    lambda axis: PartitionSpec() if axis is None else PartitionSpec(MEMBERS),
    in_axes,
    is_leaf=lambda axis: axis is None,
  )


def spread(mesh: Mesh, array: np.ndarray) -> jax.Array:
  """Puts a host array [M, ...], known to every process, over the members.

  Each process hands in its own part; `device_put` would first compare the
  array among all processes, at every call.
  """
  return jax.make_array_from_callback(
    array.shape, over_members(mesh), lambda index: array[index]
  )


def replicate(mesh: Mesh, tree: Tree) -> Tree:
  """Puts a tree whole on every device of the mesh."""
  return jax.device_put(tree, replicated(mesh))


def place(mesh: Mesh, params: Tree, spec: Tree) -> Tree:
  """Puts a model's weights on the mesh, each array where its axes say.

  Arrays are the host's, and known to every process.
  """

  def put(array: np.ndarray, leaf: trees.Leaf) -> jax.Array:
    where = NamedSharding(mesh, of_leaf(mesh, leaf))
    # As `spread`: every process has the array, none has to compare it.
    return jax.make_array_from_callback(
      np.shape(array), where, lambda index: array[index]
    )

  return jax.tree.map(put, params, spec)
