# SPDX-License-Identifier: Apache-2.0
"""One of two processes: takes members through a step, writes what it got.

Called with a port, the process id and a folder; needs `tests` on the path.
"""

import sys

import jax
import numpy as np
from jax.experimental import multihost_utils

from thicket import clusters, processes


def main(port, process, folder):
  jax.config.update('jax_num_cpu_devices', 2)
  place = clusters.Place(f'localhost:{port}', 2, int(process))
  clusters.join(place, patience_s=30)
  processes.watch(30)
  import population_test as ours

  from thicket import answering, blocks, population, sharding
  from thicket.ledger import Ledger

  members = ours._members(devices=4, per_device=2)
  ids, (weights, _) = ours._run(members, ours.ANY_IDS)
  chunks = [*members.gather(ours.ANY_IDS, ours._weights_and_ids)]
  whole = np.concatenate([found['weight'] for _, (found, _) in chunks])
  order = np.concatenate([names for names, _ in chunks])

  # As on a TPU, whose mesh follows the wires: neighbours of two hosts.
  devices = [jax.devices()[i] for i in (0, 2, 1, 3)]
  mesh = sharding.make_mesh(devices)
  assert [x.process_index for x in mesh.devices.flat] == [0, 1, 0, 1]
  drawn = population.Population(ours.SEED, 100, ours.SIGMAS)
  mixed = population.Members(ours._perturber(mesh), drawn, mesh, 2)
  crossed = [*mixed.gather(ours.ANY_IDS, ours._weights_and_ids)]
  crossed = np.concatenate([found['weight'] for _, (found, _) in crossed])

  # Blocks come in the order of what was asked, not of the processes; and they
  # are saved without a collective, which would wait for generation.
  def refuse(name):
    raise AssertionError(f'{name} waits for the devices')

  multihost_utils.sync_global_devices = refuse
  reward = np.full((1, 3), process, np.float32)
  block = blocks.from_rewards(np.array([1 - int(process)]), reward, 0)
  shared = answering._everyone([block], {(0, 0): 0, (1, 0): 1})
  ledger = Ledger.open(f'{folder}/ledger', {'of': 'both'})
  for block in shared:
    ledger.append('test', block)

  number = 7 + int(process)
  assert processes.least(number) == 7
  assert processes.least(number if process == '1' else None) is None

  mine = {'a/b': np.float32([-0.0, np.nan, 1e-45])} if process == '1' else {}
  theirs = processes.share_arrays(mine)
  for _ in range(3):
    processes.meet()
  messages = processes._client().key_value_dir_get_bytes('thicket/round/')
  complaint = ''
  try:
    processes.agree('colour', f'of {process}')
  except processes.ProcessError as error:
    complaint = str(error)
  np.savez(
    f'{folder}/{process}.npz',
    ids=ids,
    weight=weights['weight'],
    order=order,
    whole=whole,
    crossed=crossed,
    block_ids=[int(block.members[0]) for block in shared],
    empty=len(theirs[0]),
    shared=theirs[1]['a/b'],
    num_messages=len(messages),
    complaint=complaint,
  )
  processes.finish()


if __name__ == '__main__':
  main(*sys.argv[1:])
