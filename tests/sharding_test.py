# SPDX-License-Identifier: Apache-2.0
"""One axis over devices; the base whole on each, members split among them."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from thicket import sharding


@pytest.mark.parametrize('count', [1, 2, 8])
def test_the_mesh_is_one_auto_axis(count):
  devices = jax.devices()[:count]
  mesh = sharding.make_mesh(devices)
  assert mesh.axis_names == ('members',)
  assert mesh.axis_types == (AxisType.Auto,)
  assert dict(mesh.shape) == {'members': count}
  assert sharding.num_devices(mesh) == count
  assert set(mesh.devices.flat) == set(devices)


def test_by_default_the_mesh_has_every_device():
  mesh = sharding.make_mesh()
  assert set(mesh.devices.flat) == set(jax.devices())
  assert sharding.num_devices(mesh) == 8


def test_replicate_puts_the_whole_tree_on_every_device():
  mesh = sharding.make_mesh(jax.devices()[:4])
  tree = {'a': np.arange(6.0).reshape(2, 3), 'b': [np.float32(7)]}
  out = sharding.replicate(mesh, tree)
  assert jax.tree.structure(out) == jax.tree.structure(tree)
  for before, after in zip(
    jax.tree.leaves(tree), jax.tree.leaves(out), strict=True
  ):
    assert after.sharding == sharding.replicated(mesh)
    assert after.is_fully_replicated
    assert {shard.device for shard in after.addressable_shards} == set(
      jax.devices()[:4]
    )
    for shard in after.addressable_shards:
      np.testing.assert_array_equal(shard.data, before)


def test_members_are_split_in_order():
  mesh = sharding.make_mesh(jax.devices()[:4])
  values = np.arange(24, dtype=np.float32).reshape(8, 3)
  array = jax.device_put(values, sharding.over_members(mesh))
  shards = {shard.device: shard.data for shard in array.addressable_shards}
  for place, device in enumerate(mesh.devices.flat):
    np.testing.assert_array_equal(
      shards[device], values[2 * place : 2 * place + 2]
    )
