# SPDX-License-Identifier: Apache-2.0
"""One of two processes: a model split among all devices, saved and read.

Called with a port, the process id and a folder; needs `tests` on the path.
"""

import pathlib
import sys

import jax
import numpy as np

from thicket import clusters, processes, sharding
from thicket.models.load import load, save_checkpoint


def main(port, process, folder):
  jax.config.update('jax_num_cpu_devices', 2)
  place = clusters.Place(f'localhost:{port}', 2, int(process))
  clusters.join(place, patience_s=30)
  processes.watch(30)
  folder = pathlib.Path(folder)
  for model_axis in (1, 4):
    mesh = sharding.make_mesh(model=model_axis)
    assert mesh.size == 4
    model = load(str(folder / 'tiny'), mesh=mesh)
    saved = folder / f'saved-{model_axis}'
    save_checkpoint(model, saved)
    found = load(str(saved), mesh=mesh)
    for one, other in zip(
      jax.tree.leaves(model.params),
      jax.tree.leaves(found.params),
      strict=True,
    ):
      assert one.sharding.is_equivalent_to(other.sharding, one.ndim)
      for ours, theirs in zip(
        one.addressable_shards, other.addressable_shards, strict=True
      ):
        assert ours.index == theirs.index
        np.testing.assert_array_equal(ours.data, theirs.data)
    kernel = found.params['params']['layer_0']['mlp']['down']['kernel']
    assert kernel.is_fully_replicated == (model_axis == 1)
    assert not kernel.is_fully_addressable
  print('done')
  processes.finish()


if __name__ == '__main__':
  main(*sys.argv[1:])
