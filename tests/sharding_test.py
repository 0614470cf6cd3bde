# SPDX-License-Identifier: Apache-2.0
"""Two axes over devices: members apart, the parts of a model side by side."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from thicket import sharding, trees


@pytest.mark.parametrize('count', [1, 2, 8])
@pytest.mark.parametrize('model', [1, 2, 8])
def test_the_mesh_has_two_auto_axes(count, model):
  devices = jax.devices()[:count]
  if model > count:
    with pytest.raises(ValueError, match=f'model axis = {model} does not'):
      sharding.make_mesh(devices, model)
    return
  mesh = sharding.make_mesh(devices, model)
  assert mesh.axis_names == ('members', 'model')
  assert mesh.axis_types == (AxisType.Auto, AxisType.Auto)
  assert dict(mesh.shape) == {'members': count // model, 'model': model}
  assert sharding.num_devices(mesh) == count // model
  # Neighbours share a model.
  assert mesh.devices.tolist() == np.reshape(devices, (-1, model)).tolist()


def test_a_mesh_of_no_model_devices_is_refused():
  with pytest.raises(ValueError, match='model axis = 0'):
    sharding.make_mesh(model=0)


def test_axes_are_split_where_their_units_allow_it():
  mesh = sharding.make_mesh(model=4)
  axis = lambda units: trees.Axis('heads', units)
  assert sharding.split(mesh, axis(8)) == 'model'
  assert sharding.split(mesh, axis(6)) is None
  assert sharding.split(mesh, None) is None
  assert sharding.split(sharding.make_mesh(), axis(8)) is None
  leaf = trees.Leaf((6, 24), (trees.Segment('w', 0, 6),), (None, axis(8)))
  assert sharding.of_leaf(mesh, leaf) == PartitionSpec(None, 'model')
  placed = sharding.place(mesh, [np.arange(144.0).reshape(6, 24)], [leaf])[0]
  assert {shard.data.shape for shard in placed.addressable_shards} == {(6, 6)}
  with pytest.raises(KeyError, match='window'):
    sharding.split(mesh, trees.Axis('window', 8))


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
