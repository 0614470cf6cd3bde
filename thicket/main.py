# SPDX-License-Identifier: Apache-2.0
"""The command line: flags, devices, one call.

python -m thicket.main --config=configs/llm.py --config.population.size=64
"""

from __future__ import annotations

import faulthandler
import logging as stdlib_logging
import os
import shlex
import signal
import sys
import traceback

import jax
import ml_collections
from absl import app, flags, logging
from ml_collections import config_flags
from rich.console import Console
from rich.logging import RichHandler

from thicket import arguments, array_run, clusters, processes, run, stored
from thicket.job_array import Shard
from thicket.ledger import RecipeMismatch
from thicket.models.files import ModelFileError
from thicket.models.tokenizer_parts import TokenizerError

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'A file with get_config(arg); FILE.py:arg passes arg.'
)
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Folder of the run; runs/TASK-MODEL-RECIPE if not given.'
)
_MEMBERS = flags.DEFINE_string(
  'members_per_step',
  None,
  'Members on a device at a time, in place of config.run.members_per_device; '
  'auto: as many as memory holds.',
)
_SHARD = flags.DEFINE_string(
  'shard',
  None,
  'i/n: only score slice i of n of the population, 0 <= i < n, for '
  '`python -m thicket.ledger merge` to join.',
)
_CACHE = flags.DEFINE_string(
  'compilation_cache', None, 'Folder in which JAX keeps compiled programs.'
)

_DISTRIBUTED = flags.DEFINE_enum(
  'distributed', 'auto', clusters.MODES, 'Whether there are more processes.'
)
_COORDINATOR = flags.DEFINE_string(
  'coordinator', None, 'HOST:PORT of process 0, where no cluster tells it.'
)
_NUM_PROCESSES = flags.DEFINE_integer(
  'num_processes', None, 'How many processes there are.', lower_bound=1
)
_PROCESS_ID = flags.DEFINE_integer(
  'process_id', None, 'Which of them this is, from 0.', lower_bound=0
)
_HEARTBEAT = flags.DEFINE_integer(
  'heartbeat_timeout_s',
  100,
  'Silence of a process after which all end.',
  lower_bound=2,
)

USER_ERRORS = (
  *run.USER_ERRORS,
  ModelFileError,
  TokenizerError,
  arguments.ArgumentError,
  clusters.ClusterError,
  processes.ProcessError,
)
EXIT_BUG, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 1, 2, 130


def main(argv: list[str]) -> int:
  """Runs the configuration; returns the exit code."""
  if len(argv) > 1:
    raise arguments.ArgumentError(f'{argv[1]!r} is no flag: they begin with --')
  if _CONFIG.value is None:
    raise arguments.ArgumentError('no --config; try --config=configs/llm.py')
  _join()
  if _CACHE.value:
    jax.config.update('jax_compilation_cache_dir', _CACHE.value)
  console = Console(highlight=False, quiet=not processes.is_first())
  if console.is_terminal:
    _log_above_bars(console)
  config = _CONFIG.value
  job = _job(config, _MEMBERS.value, _SHARD.value, console)
  resume = arguments.command(sys.argv)
  try:
    # Of text runs, which others go on from; a slice finishes nothing.
    if isinstance(job, run.Run) and not _SHARD.value:
      stored.save_command(job.workdir, resume)
    job.finish()
  except (KeyboardInterrupt, run.LedgerError, run.OutOfMemory) as error:
    processes.outlast(error)
    interrupted = isinstance(error, KeyboardInterrupt)
    _say('stopped' if interrupted else error)
    if not isinstance(error, RecipeMismatch):
      _say(
        f'finished members are kept in {job.workdir}; resume with\n  {resume}'
        + ('\nin all processes' if processes.count() > 1 else '')
      )
    return _ended(EXIT_INTERRUPTED if interrupted else EXIT_BAD_INPUT, error)
  is_first = processes.is_first()
  processes.finish()
  if not is_first:
    return 0
  size = f'--config.population.size={4 * config.population.size}'
  print()
  for what, path in job.results().items():
    print(f'{what:9} {path}')
  print(f'resume    {resume}')
  if _SHARD.value:
    merge = ['python', '-m', 'thicket.ledger', 'merge']
    print(f'merge     {shlex.join([*merge, f"--workdir={job.workdir}"])}')
  else:
    print(f'enlarge   {arguments.command(sys.argv, size)}')
  return 0


def _job(
  config: ml_collections.ConfigDict,
  members: str | None,
  shard: str | None,
  console: Console,
) -> run.Run | array_run.ArrayRun:
  """The run of a configuration: so many members at a time, of a slice."""
  is_text, is_auto = 'decode' in config, members == 'auto'
  if members is not None and not is_auto:
    if not (members.isdecimal() and int(members) > 0):
      raise arguments.ArgumentError(
        f'--members_per_step={members}: auto, or a number of at least 1'
      )
    config.run.members_per_device = int(members)
  if is_text:
    return run.Run(
      config,
      _WORKDIR.value,
      console,
      shard=Shard.parse(shard) if shard else None,
      fit_members=is_auto,
    )
  if is_auto:
    raise arguments.ArgumentError(
      '--members_per_step=auto: what fits is known of text runs only; give a '
      'number'
    )
  if shard:
    raise arguments.ArgumentError(
      f'--shard={shard}: only runs on text are sliced; leave it out'
    )
  return array_run.ArrayRun(config, _WORKDIR.value, console)


def _join() -> None:
  """Meets the other processes, where there are any."""
  asked = clusters.Place(
    _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value
  )
  place = clusters.find(_DISTRIBUTED.value, asked)
  if place is None:
    # JAX may span hosts by itself, as on a TPU pod; alone, each would take the
    # rows of all for its own.
    if jax.process_count() > 1:
      raise clusters.ClusterError(
        f'JAX spans {jax.process_count()} processes, but this one has joined '
        'none: leave out --distributed=off, or say --distributed=on with '
        '--coordinator, --num_processes and --process_id'
      )
    return
  # This service takes SIGTERM for itself and only notes it, so that a scheduler
  # could not end a process.
  jax.config.update('jax_enable_preemption_service', False)
  clusters.join(place, patience_s=_HEARTBEAT.value)
  processes.watch(_HEARTBEAT.value)
  # JAX aborts a process when process 0 is gone: no fault of ours, and what
  # absl would print of it is a page.
  faulthandler.disable()
  # A scheduler's wish to end one: said to the others, as Ctrl-C is.
  signal.signal(signal.SIGTERM, signal.default_int_handler)
  if not processes.is_first():
    logging.set_verbosity(logging.WARNING)
  logging.info(
    '%d processes, %d devices', processes.count(), jax.device_count()
  )


def _ended(code: int, error: BaseException) -> int:
  """The exit code; of several processes all others end with this one."""
  kind = type(error).__name__
  said = str(error) if isinstance(error, USER_ERRORS) else f'{kind}: {error}'
  if isinstance(error, KeyboardInterrupt):
    said = 'interrupted'
  first, *_ = said.splitlines() or [kind]
  processes.leave(code, first)
  return code


def _say(what: object) -> None:
  several = processes.count() > 1
  who = f'process {processes.index()}: ' if several else ''
  print(f'thicket: {who}{what}', file=sys.stderr)


def _guarded(argv: list[str]) -> int:
  """Turns the user's errors into one line; the rest keeps its traceback."""
  try:
    return main(argv)
  except USER_ERRORS as error:
    processes.outlast(error)
    _say(error)
    return _ended(EXIT_BAD_INPUT, error)
  except KeyboardInterrupt as error:
    _say('stopped; nothing stored is lost, the same command goes on')
    return _ended(EXIT_INTERRUPTED, error)
  except Exception as error:
    if processes.count() == 1:
      raise
    processes.outlast(error)
    traceback.print_exc()  # now: the end of several processes is abrupt
    return _ended(EXIT_BUG, error)


def _parse(argv: list[str]) -> list[str]:
  try:
    return arguments.parse(argv)
  except arguments.ArgumentError as error:
    _say(error)
    sys.exit(EXIT_BAD_INPUT)


def _is_ours(record: stdlib_logging.LogRecord) -> bool:
  """Keeps our own log lines and everybody's warnings (Orbax says a lot)."""
  ours = os.path.dirname(os.path.abspath(__file__))
  is_warning = record.levelno >= stdlib_logging.WARNING
  return is_warning or record.pathname.startswith(ours)


def _log_above_bars(console: Console) -> None:
  """Lets log lines of a terminal go through the console that draws bars."""
  handler = RichHandler(
    console=console, show_time=False, show_level=False, show_path=False
  )
  handler.addFilter(_is_ours)
  stdlib_logging.getLogger().handlers = [handler]


if __name__ == '__main__':
  logging.set_verbosity(logging.INFO)
  logging.get_absl_handler().addFilter(_is_ours)
  app.run(_guarded, flags_parser=_parse)
