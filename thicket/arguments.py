# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a command line, said in one line before anything loads."""

from __future__ import annotations

import difflib
import importlib.util
import pathlib
import re
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

import ml_collections
from absl import flags


class ArgumentError(ValueError):
  """A flag that cannot be used; the message names it."""


def parse(argv: Sequence[str]) -> list[str]:
  """Parses absl's flags after checking the keys of `--config.a.b` overrides.

  Raises:
    ArgumentError: no such config file, an error in it, an unknown key (the
      near ones are given), a value of the wrong type, or an unknown flag.
  """
  file = _config_flag(argv)
  if file is not None:
    _check_keys(argv, sorted(_keys(load_config(file))))
  try:
    return flags.FLAGS(argv)
  except flags.UnrecognizedFlagError as error:
    raise ArgumentError(
      f'unknown flag --{error.flagname}; flags are --config, --config.KEY, '
      '--workdir, --shard, --compilation_cache and, for many processes, '
      '--distributed, --coordinator, --num_processes, --process_id and '
      '--heartbeat_timeout_s'
    ) from error
  except (
    flags.Error,
    TypeError,
    ValueError,
    IndexError,
    KeyError,
    AttributeError,
  ) as error:
    raise ArgumentError(_one_line(error)) from error


def load_config(file_and_arg: str) -> ml_collections.ConfigDict:
  """What `get_config(arg)` of a config file gives, from 'FILE' or 'FILE:arg'.

  Raises:
    ArgumentError: the file is missing, fails, or has no get_config.
  """
  name, colon, arg = file_and_arg.partition(':')
  path = pathlib.Path(name)
  if not path.is_file():
    near = difflib.get_close_matches(
      str(path), map(str, path.parent.glob('*.py')), n=3, cutoff=0.4
    )
    hint = f'; near: {", ".join(near)}' if near else ''
    raise ArgumentError(f'no config file {name!r}{hint}')
  spec = importlib.util.spec_from_file_location('_thicket_config', path)
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
    return module.get_config(*([arg] if colon else []))
  except Exception as error:
    raise ArgumentError(
      f'--config={file_and_arg}: {_one_line(error)}'
    ) from error


def command(argv: Sequence[str], *extra: str) -> str:
  """The command line of a run with some flags put in the place of theirs."""
  replaced = {flag.split('=', 1)[0].lstrip('-') for flag in extra}
  kept = []
  args = iter(argv[1:])
  for arg in args:
    name, equals, _ = arg.partition('=')
    if not (arg.startswith('-') and name.lstrip('-') in replaced):
      kept.append(arg)
    elif not equals:
      next(args, None)  # `--flag value`: the value goes with its flag
  return shlex.join(['python', '-m', 'thicket.main', *kept, *extra])


def _config_flag(argv: Sequence[str]) -> str | None:
  for i, arg in enumerate(argv[1:], 1):
    if match := re.fullmatch(r'--?config=(.*)', arg):
      return match[1]
    if arg in ('-config', '--config') and i + 1 < len(argv):
      return argv[i + 1]
  return None


def _check_keys(argv: Sequence[str], known: Sequence[str]) -> None:
  for arg in argv[1:]:
    match = re.match(r'--?(?:no)?config\.([^=\[]+)', arg)
    if match and match[1] not in known:
      near = difflib.get_close_matches(match[1], known, n=3, cutoff=0.5)
      hint = f'did you mean {" or ".join(near)}?' if near else ', '.join(known)
      raise ArgumentError(f'unknown config key {match[1]!r}; {hint}')


def _keys(config: Any, prefix: str = '') -> Iterator[str]:
  for key, value in config.items():
    if isinstance(value, ml_collections.ConfigDict):
      yield from _keys(value, f'{prefix}{key}.')
    else:
      yield prefix + key


def _one_line(error: Exception) -> str:
  text = ' '.join(str(error).split())
  return text or type(error).__name__
