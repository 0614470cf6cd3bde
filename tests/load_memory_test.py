# SPDX-License-Identifier: Apache-2.0
"""What loading takes of a host's memory: the weights and one array."""

import json
import math
import pathlib
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
import tiny_folder

from thicket.models import decoder
from thicket.models.decoder_config import DecoderConfig, Rope

ROOT = pathlib.Path(__file__).parents[1]
CONFIG = DecoderConfig(
  vocab_size=20_000,
  num_layers=9,
  d_model=512,
  d_ff=2048,
  num_heads=8,
  num_kv_heads=8,
  head_dim=64,
  ropes=(Rope(1e4),) * 9,
  norm_eps=1e-5,
  context_length=64,
  tie_head=True,
)
# Of a process: threads that copy to devices, pieces of the allocator, headers.
SLACK_BYTES = 16 << 20

# Loads a small model first, so that what is there once is not counted.
PROGRAM = """
import json, sys
import jax
jax.config.update('jax_num_cpu_devices', int(sys.argv[1]))
from thicket import sharding
from thicket.models.load import load

def said(key):
  with open('/proc/self/status') as file:
    [line] = [line for line in file if line.startswith(key)]
  return 1024 * int(line.split()[1])

mesh = sharding.make_mesh(model=int(sys.argv[1]))
load(sys.argv[2], mesh=mesh)
with open('/proc/self/clear_refs', 'w') as file:
  file.write('5')  # the peak begins anew
before = said('VmRSS')
model = load(sys.argv[3], mesh=mesh)
shards = [
  (shard.data.nbytes, shard.device.id)
  for array in jax.tree.leaves(model.params)
  for shard in array.addressable_shards
]
print(json.dumps({
  'peak': said('VmHWM') - before,
  'weights': sum(size for size, _ in shards),
  'devices': len({device for _, device in shards}),
}))
"""


def weights(dtype):
  """Random tensors by name, of some 50 million elements."""
  values = np.random.default_rng(0).standard_normal(1 << 20, np.float32)
  tensors = {}
  for leaf in jax.tree.leaves(decoder.canonical_spec(CONFIG, fused=False)):
    [segment] = leaf.segments
    array = np.resize(values, math.prod(leaf.shape)).reshape(leaf.shape)
    tensors[segment.full_name] = array.astype(dtype)
  return tensors


@pytest.mark.skipif(
  not pathlib.Path('/proc/self/clear_refs').exists(), reason='Linux only'
)
@pytest.mark.parametrize(
  ('num_devices', 'stored'), [(1, np.float32), (8, ml_dtypes.bfloat16)]
)
def test_the_peak_is_the_weights_and_one_array(num_devices, stored, tmp_path):
  small = tiny_folder.write(tmp_path / 'small')
  large = tiny_folder.write(tmp_path / 'a', CONFIG, weights(stored), shards=2)
  done = subprocess.run(
    [sys.executable, '-c', PROGRAM, str(num_devices), small, large],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout)
  leaves = jax.tree.leaves(decoder.canonical_spec(CONFIG))
  sizes = [4 * math.prod(leaf.shape) for leaf in leaves]
  assert found['devices'] == num_devices
  # Split among devices, all but the norms are there once.
  assert sum(sizes) <= found['weights'] < 1.01 * sum(sizes)
  assert sum(sizes) > 10 * SLACK_BYTES
  assert found['peak'] >= found['weights']
  assert found['peak'] < found['weights'] + max(sizes) + SLACK_BYTES
