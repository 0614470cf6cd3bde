# SPDX-License-Identifier: Apache-2.0
"""The command line: flags, devices, one call.

python -m thicket.main --config=configs/llm.py --config.population.size=64
"""

from __future__ import annotations

import difflib
import logging as stdlib_logging
import os
import re
import shlex
import sys

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from thicket import run
from thicket.models.gguf import ModelFileError
from thicket.models.tokenizer import TokenizerError

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'A file with get_config(arg); FILE.py:arg passes arg.'
)
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Folder of the run; runs/TASK-MODEL-RECIPE if not given.'
)
_CACHE = flags.DEFINE_string(
  'compilation_cache', None, 'Folder in which JAX keeps compiled programs.'
)

ERRORS = (*run.USER_ERRORS, ModelFileError, TokenizerError)
EXIT_BAD_INPUT, EXIT_INTERRUPTED = 2, 130


def command(*extra: str) -> str:
  """The command line of this run with some flags put in the place of theirs."""
  replaced = tuple(flag.split('=', 1)[0] for flag in extra)
  kept = [arg for arg in sys.argv[1:] if arg.split('=', 1)[0] not in replaced]
  return shlex.join(['python', '-m', 'thicket.main', *kept, *extra])


def main(argv: list[str]) -> int:
  """Runs the configuration; returns the exit code."""
  if len(argv) > 1:
    raise run.ConfigError(f'{argv[1]!r} is no flag; flags begin with --')
  if _CONFIG.value is None:
    raise run.ConfigError('no --config; try --config=configs/llm.py')
  if _CACHE.value:
    jax.config.update('jax_compilation_cache_dir', _CACHE.value)
  job = run.Run(_CONFIG.value, _WORKDIR.value)
  try:
    job.finish()
  except (KeyboardInterrupt, run.LedgerError) as error:
    say = 'stopped' if isinstance(error, KeyboardInterrupt) else str(error)
    print(f'thicket: {say}\nfinished members are saved in {job.workdir}; '
          f'resume with\n  {command()}', file=sys.stderr)  # fmt: skip
    interrupted = isinstance(error, KeyboardInterrupt)
    return EXIT_INTERRUPTED if interrupted else EXIT_BAD_INPUT
  larger = 4 * job.plan.population.size
  print(
    f'\nsummary   {job.workdir / "summary.json"}\n'
    f'ledger    {job.workdir / "ledger"}\n'
    f'resume    {command()}\n'
    f'enlarge   {command(f"--config.population.size={larger}")}'
  )
  return 0


def _guarded(argv: list[str]) -> int:
  try:
    return main(argv)
  except ERRORS as error:
    print(f'thicket: {error}', file=sys.stderr)
    return EXIT_BAD_INPUT
  except KeyboardInterrupt:
    print('thicket: stopped before anything was computed', file=sys.stderr)
    return EXIT_INTERRUPTED


def _parse(argv: list[str]) -> list[str]:
  """Parses flags; what is wrong with them is one line and exit code 2."""
  try:
    return flags.FLAGS(argv)
  except (flags.Error, AttributeError, KeyError, TypeError, ValueError,
          OSError, SyntaxError, ImportError) as error:  # fmt: skip
    print(f'thicket: {_explain(argv, error)}', file=sys.stderr)
    sys.exit(EXIT_BAD_INPUT)


def _explain(argv: list[str], error: Exception) -> str:
  """Says which flag is at fault, and which names are near it."""
  text = ' '.join(str(error).split()).strip('\'"')
  if isinstance(error, flags.UnrecognizedFlagError):
    return f'{text}; flags: --config, --config.NAME, --workdir'
  if not isinstance(error, (AttributeError, KeyError)):
    return text
  known = _config_keys(argv)
  for arg in argv[1:]:
    key = re.match(r'--?config\.([\w.]+)', arg)
    if known and key and key[1] not in known:
      near = difflib.get_close_matches(key[1], known, n=3, cutoff=0.5)
      hint = f'did you mean {", ".join(near)}?' if near else ''
      return f'unknown config key {key[1]!r}; {hint or ", ".join(known)}'
  return text


def _config_keys(argv: list[str]) -> list[str]:
  """Dotted names of the keys of the config file named in the arguments."""
  for arg in argv[1:]:
    if match := re.fullmatch(r'--?config=(.*)', arg):
      values = flags.FlagValues()
      config_flags.DEFINE_config_file('config', None, '', flag_values=values)
      config = values(['', f'--config={match[1]}']) and values['config'].value
      return [name for name, _ in _leaves(config)]
  return []


def _leaves(config, prefix=''):
  for key in config:
    value = config.get_ref(key).get() if key in config else None
    if hasattr(value, 'get_ref'):
      yield from _leaves(value, f'{prefix}{key}.')
    else:
      yield f'{prefix}{key}', value


def _is_ours(record: stdlib_logging.LogRecord) -> bool:
  """Keeps our own log lines and everybody's warnings (Orbax says a lot)."""
  ours = os.path.dirname(os.path.abspath(__file__))
  return record.levelno >= stdlib_logging.WARNING or record.pathname.startswith(
    ours
  )


if __name__ == '__main__':
  logging.set_verbosity(logging.INFO)
  logging.get_absl_handler().addFilter(_is_ours)
  app.run(_guarded, flags_parser=_parse)
