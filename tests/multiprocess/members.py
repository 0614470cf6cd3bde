# SPDX-License-Identifier: Apache-2.0
"""One of two processes: takes members through a step, writes what it got.

Called with a port, the process id and a folder; needs `tests` on the path.
"""

import sys

import jax
import numpy as np

from thicket import clusters, processes


def main(port, process, folder):
  jax.config.update('jax_num_cpu_devices', 2)
  place = clusters.Place(f'localhost:{port}', 2, int(process))
  clusters.join(place, patience_s=30)
  processes.watch(30)
  import population_test as ours

  members = ours._members(devices=4, per_device=2)
  ids, (weights, _) = ours._run(members, ours.ANY_IDS)
  chunks = [*members.gather(ours.ANY_IDS, ours._weights_and_ids)]
  whole = np.concatenate([found['weight'] for _, (found, _) in chunks])
  order = np.concatenate([names for names, _ in chunks])

  mine = {'a/b': np.float32([-0.0, np.nan, 1e-45])} if process == '1' else {}
  theirs = processes.share_arrays(mine)
  for _ in range(3):
    processes.meet()
  messages = processes._client().key_value_dir_get('thicket/round/')
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
    empty=len(theirs[0]),
    shared=theirs[1]['a/b'],
    num_messages=len(messages),
    complaint=complaint,
  )
  processes.finish()


if __name__ == '__main__':
  main(*sys.argv[1:])
