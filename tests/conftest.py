# SPDX-License-Identifier: Apache-2.0
"""Strict numerics and eight virtual CPU devices for every test."""

import os
import shutil
import sys
import tempfile

# Small programs that run once: a third of their time is spent on what LLVM does
# to make them fast. Real weights (marked slow) need that. Workers have what the
# process that starts them has set.
if 'slow' not in sys.argv and 'PYTEST_XDIST_WORKER' not in os.environ:
  os.environ.setdefault('XLA_FLAGS', '--xla_llvm_disable_expensive_passes=true')

# What one test compiles no other compiles again, in whichever worker or process
# of its own: a third of the time of all tests. Set before workers are started.
_OWN_CACHE = 'JAX_COMPILATION_CACHE_DIR' not in os.environ
if _OWN_CACHE:
  os.environ['JAX_COMPILATION_CACHE_DIR'] = tempfile.mkdtemp(prefix='thicket-')
  os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.1'

import jax  # noqa: E402
import pytest  # noqa: E402
import tiny_gguf  # noqa: E402

jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')
jax.config.update('jax_numpy_dtype_promotion', 'strict')


def pytest_unconfigure():
  """Removes the programs, once the process that made their folder ends."""
  if _OWN_CACHE:
    shutil.rmtree(os.environ['JAX_COMPILATION_CACHE_DIR'], ignore_errors=True)


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  """The path of a file with a tiny model whose answers are short."""
  path = tmp_path_factory.mktemp('model') / 'tiny.gguf'
  return str(tiny_gguf.write_answering(path))
