# SPDX-License-Identifier: Apache-2.0
"""Whether this process is one of several, and how they find each other.

JAX itself knows SLURM, Open MPI and TPU pods, where it needs no addresses.
What it does not say is whether there is more than one process: this module
asks the same places, so that a run on one machine never waits for others.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import signal
import urllib.error
import urllib.request
from collections.abc import Mapping

import jax

from thicket import processes

MODES = ('auto', 'on', 'off')

# What JAX needs before it takes SLURM's word; a batch script outside of srun
# has some of them, but is one process whatever it says of tasks.
_SLURM = (
  'SLURM_JOB_ID',
  'SLURM_STEP_NODELIST',
  'SLURM_NTASKS',
  'SLURM_PROCID',
  'SLURM_LOCALID',
)
_METADATA_TIMEOUT_S = 2.0  # it answers in milliseconds where there is one


class ClusterError(ValueError):
  """Processes that cannot meet; the message says what to set."""


@dataclasses.dataclass(frozen=True)
class Place:
  """How processes find each other; None is left to JAX to find out.

  Attributes:
    coordinator: host and port of process 0.
    num_processes: how many there are.
    process_id: which of them this is, from 0.
  """

  coordinator: str | None = None
  num_processes: int | None = None
  process_id: int | None = None


def find(
  mode: str, asked: Place, environ: Mapping[str, str] = os.environ
) -> Place | None:
  """Where the other processes are; None where this is the only one.

  Args:
    mode: 'on', 'off', or 'auto', which is on where `asked` says something or
      a cluster of several processes is detected.
    asked: what the command line says.
    environ: `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and
      `JAX_PROCESS_ID` stand in for what it does not say.

  Raises:
    ClusterError: what is asked for is incomplete or contradicts itself.
  """
  if mode not in MODES:
    raise ClusterError(f'--distributed={mode}; known: {", ".join(MODES)}')
  if mode == 'off':
    if asked != Place():
      raise ClusterError('--distributed=off does not go with a place')
    return None
  place = Place(
    asked.coordinator or environ.get('JAX_COORDINATOR_ADDRESS'),
    _first(asked.num_processes, environ, 'JAX_NUM_PROCESSES'),
    _first(asked.process_id, environ, 'JAX_PROCESS_ID'),
  )
  if None not in dataclasses.astuple(place):
    _check(place)
    return place
  cluster = detect(environ)
  if cluster is not None:
    return place
  if mode == 'on' or place != Place():
    missing = [
      f'--{name}'
      for name, value in dataclasses.asdict(place).items()
      if value is None
    ]
    raise ClusterError(
      f'several processes, but no cluster found: give {", ".join(missing)}, '
      'or --distributed=off for one process'
    )
  return None


def detect(environ: Mapping[str, str] = os.environ) -> str | None:
  """The kind of cluster that has more than one process for us, if any."""
  number = lambda name: int(environ.get(name) or 1)
  if all(name in environ for name in _SLURM) and number('SLURM_NTASKS') > 1:
    return 'SLURM'
  if 'OMPI_MCA_orte_hnp_uri' in environ and number('OMPI_COMM_WORLD_SIZE') > 1:
    return 'Open MPI'
  if importlib.util.find_spec('libtpu') is None:
    return None
  hosts = (
    environ.get('TPU_PROCESS_ADDRESSES')
    or environ.get('TPU_WORKER_HOSTNAMES')
    or _tpu_workers(environ)
  )
  several = len(hosts.split(',')) > 1 or number('MEGASCALE_NUM_SLICES') > 1
  return 'TPU' if several else None


def join(place: Place, *, patience_s: int, meeting_s: int = 300) -> None:
  """Meets the other processes; nothing of JAX may have been used before.

  JAX ends the process, with a page of addresses, if they do not all come.

  Args:
    place: where they are.
    patience_s: after this much silence our own watch holds a process to be
      gone. JAX's comes after it, as that too ends with a page of addresses.
    meeting_s: how long to wait for the others.

  Raises:
    ClusterError: the place cannot be used.
  """
  advice = 'start ALL processes, with one coordinator that they can reach'
  words = processes.LastWords(
    f'the processes did not meet within {meeting_s} s; {advice}'
  )
  # JAX waits where Python hears no Ctrl-C.
  usual = signal.signal(signal.SIGINT, signal.SIG_DFL)
  try:
    jax.distributed.initialize(
      place.coordinator,
      place.num_processes,
      place.process_id,
      initialization_timeout=meeting_s,
      # Half of it goes by between two heartbeats.
      heartbeat_timeout_seconds=2 * patience_s + 10,
    )
  except (ValueError, RuntimeError) as error:
    first, *_ = str(error).splitlines() or [type(error).__name__]
    raise ClusterError(
      f'the processes did not meet ({first}); {advice}'
    ) from error
  finally:
    signal.signal(signal.SIGINT, usual)
    words.take_back()


def _first(
  asked: int | None, environ: Mapping[str, str], name: str
) -> int | None:
  if asked is not None or name not in environ:
    return asked
  try:
    return int(environ[name])
  except ValueError:
    raise ClusterError(f'{name}={environ[name]!r} is no number') from None


def _check(place: Place) -> None:
  host, colon, port = place.coordinator.rpartition(':')
  if not (host and colon and port.isdecimal()):
    raise ClusterError(
      f'coordinator {place.coordinator!r} is not HOST:PORT, such as '
      '10.0.0.1:8476, of process 0'
    )
  if not 0 <= place.process_id < place.num_processes:
    raise ClusterError(
      f'process {place.process_id} of {place.num_processes}: ids go from 0 to '
      'the number of processes less 1'
    )


def _tpu_workers(environ: Mapping[str, str]) -> str:
  """The workers of a TPU VM's slice, with commas; '' elsewhere."""
  if 'TPU_SKIP_MDS_QUERY' in environ:
    return ''
  host = environ.get('GCE_METADATA_IP', 'metadata.google.internal')
  request = urllib.request.Request(
    f'http://{host}/computeMetadata/v1/instance/attributes/'
    'worker-network-endpoints',
    headers={'Metadata-Flavor': 'Google'},
  )
  try:
    with urllib.request.urlopen(request, timeout=_METADATA_TIMEOUT_S) as answer:
      return answer.read().decode()
  except (urllib.error.URLError, OSError):
    return ''
