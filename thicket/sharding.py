# SPDX-License-Identifier: Apache-2.0
"""The device mesh and where arrays live on it.

Members are data-parallel: each device holds its own members' weights, caches
and rows, and only scores leave it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

MEMBERS = 'members'


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
  """A one-dimensional mesh over `devices`, by default all of them."""
  devices = jax.devices() if devices is None else list(devices)
  # Auto, said aloud: the default of make_mesh has changed between versions,
  # and under Explicit axes top_k over sharded scores is an error.
  return jax.make_mesh(
    (len(devices),), (MEMBERS,), axis_types=(AxisType.Auto,), devices=devices
  )


def replicated(mesh: Mesh) -> NamedSharding:
  """The sharding of what every device holds whole, such as base weights."""
  return NamedSharding(mesh, PartitionSpec())


def over_members(mesh: Mesh) -> NamedSharding:
  """The sharding of arrays whose first axis is M, members."""
  return NamedSharding(mesh, PartitionSpec(MEMBERS))


def num_devices(mesh: Mesh) -> int:
  """Devices along the members axis."""
  return mesh.shape[MEMBERS]


def weight_specs(in_axes: Any) -> Any:
  """Partition specs of members' weights from `Perturber.in_axes`."""
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


def replicate(mesh: Mesh, tree: Any) -> Any:
  """Puts a tree whole on every device of the mesh."""
  return jax.device_put(tree, replicated(mesh))
