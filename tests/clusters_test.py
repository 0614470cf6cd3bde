# SPDX-License-Identifier: Apache-2.0
"""When a process is held to be one of several, and where the others are."""

import contextlib
import http.server
import importlib.util
import threading

import pytest

from thicket import clusters
from thicket.clusters import ClusterError, Place

NOWHERE = Place()
THERE = Place('10.0.0.1:8476', 4, 3)
SLURM = {
  'SLURM_JOB_ID': '77',
  'SLURM_STEP_NODELIST': 'node[1-2]',
  'SLURM_NTASKS': '2',
  'SLURM_PROCID': '1',
  'SLURM_LOCALID': '0',
}
JAX = {
  'JAX_COORDINATOR_ADDRESS': '10.0.0.1:8476',
  'JAX_NUM_PROCESSES': '4',
  'JAX_PROCESS_ID': '3',
}


@pytest.fixture
def libtpu(monkeypatch):
  """As where `pip install jax[tpu]` has been run."""
  find = importlib.util.find_spec
  monkeypatch.setattr(
    importlib.util, 'find_spec', lambda x: x == 'libtpu' or find(x)
  )


@contextlib.contextmanager
def _metadata(workers):
  """The address of a server that says so, as a TPU VM's does."""

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
      asked = '/computeMetadata/v1/instance/attributes/worker-network-endpoints'
      is_right = self.path == asked and self.headers['Metadata-Flavor']
      self.send_response(200 if is_right else 404)
      self.end_headers()
      self.wfile.write(workers.encode())

    def log_message(self, *_):
      pass

  server = http.server.HTTPServer(('127.0.0.1', 0), Handler)
  thread = threading.Thread(target=server.serve_forever)
  thread.start()
  try:
    yield f'127.0.0.1:{server.server_port}'
  finally:
    server.shutdown()
    thread.join()
    server.server_close()


def test_alone_where_nothing_says_otherwise():
  assert clusters.find('auto', NOWHERE, {}) is None
  assert clusters.find('off', NOWHERE, SLURM | JAX) is None


def test_a_place_on_the_command_line_is_enough():
  assert clusters.find('auto', THERE, {}) == THERE
  assert clusters.find('on', THERE, SLURM) == THERE


def test_the_environment_stands_in_for_the_command_line():
  assert clusters.find('auto', NOWHERE, JAX) == THERE
  asked = Place(process_id=0)
  assert clusters.find('auto', asked, JAX) == Place('10.0.0.1:8476', 4, 0)


@pytest.mark.parametrize(
  ('environ', 'kind'),
  [
    (SLURM, 'SLURM'),
    (SLURM | {'SLURM_NTASKS': '1'}, None),
    # A batch script outside of srun is one process.
    ({k: v for k, v in SLURM.items() if k != 'SLURM_STEP_NODELIST'}, None),
    (
      {'OMPI_MCA_orte_hnp_uri': '1.0;tcp://10.0.0.1:1',
       'OMPI_COMM_WORLD_SIZE': '2'},
      'Open MPI',
    ),
    # Names of TPU workers say nothing where there is no TPU.
    ({'TPU_WORKER_HOSTNAMES': 'a,b'}, None),
  ],
)  # fmt: skip
def test_clusters_are_detected(environ, kind):
  assert clusters.detect(environ) == kind
  # What JAX knows of it need not be said.
  found = clusters.find('auto', NOWHERE, environ)
  assert found == (NOWHERE if kind else None)


@pytest.mark.parametrize(
  ('environ', 'kind'),
  [
    ({'TPU_WORKER_HOSTNAMES': 'a,b'}, 'TPU'),
    ({'TPU_WORKER_HOSTNAMES': 'localhost'}, None),
    ({'TPU_PROCESS_ADDRESSES': 'a:1,b:1'}, 'TPU'),
    ({'TPU_SKIP_MDS_QUERY': '1'}, None),
    ({'TPU_WORKER_HOSTNAMES': 'a', 'MEGASCALE_NUM_SLICES': '2'}, 'TPU'),
  ],
)
def test_tpu_slices_are_detected(libtpu, environ, kind):
  assert clusters.detect(environ) == kind


@pytest.mark.parametrize(
  ('workers', 'kind'),
  [('w:0:10.0.0.1,w:1:10.0.0.2', 'TPU'), ('10.0.0.1', None)],
)
def test_a_tpu_vm_asks_for_its_workers(libtpu, workers, kind):
  with _metadata(workers) as address:
    assert clusters.detect({'GCE_METADATA_IP': address}) == kind
  assert clusters.detect({'GCE_METADATA_IP': address}) is None  # gone


@pytest.mark.parametrize(
  ('mode', 'asked', 'environ', 'message'),
  [
    ('on', NOWHERE, {}, '--coordinator, --num_processes, --process_id'),
    ('auto', Place('a:1'), {}, 'give --num_processes, --process_id'),
    ('off', THERE, {}, '--distributed=off does not go with a place'),
    ('yes', NOWHERE, {}, '--distributed=yes; known: auto, on, off'),
    ('auto', Place('a', 2, 0), {}, "coordinator 'a' is not HOST:PORT"),
    ('auto', Place('a:1', 2, 2), {}, 'process 2 of 2: ids go from 0'),
    (
      'auto',
      NOWHERE,
      JAX | {'JAX_PROCESS_ID': 'one'},
      "JAX_PROCESS_ID='one' is no number",
    ),
  ],
)
def test_what_does_not_go_together_is_explained(mode, asked, environ, message):
  with pytest.raises(ClusterError) as raised:
    clusters.find(mode, asked, environ)
  assert message in str(raised.value)
