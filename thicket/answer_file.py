# SPDX-License-Identifier: Apache-2.0
"""Rows in and answers out, a JSON object a line, in files that can be resumed.

Each line of answers names the line that it answers, by number and by hash, and
the ensemble that answered. So a file needs no header and nothing beside it: an
interrupted one says by itself what is done, and can be told from another's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import io
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

MAX_LINE_BYTES = 8 << 20  # of a line of input; longer ones are not kept
MAX_ID_CHARS = 1000
SHOWN_CHARS = 300  # of what is wrong with a line

_START = b'{"line": %d,'  # how each line of answers begins


class AnswerFileError(ValueError):
  """A file cannot be read or written, or holds the answers of others."""


@dataclasses.dataclass(frozen=True)
class Line:
  """A line of input that is not empty.

  Attributes:
    number: from 1.
    digest: of its bytes, without space around them, in hex.
    row: the object on it; None where there is none.
    error: what is wrong with it, or None.
  """

  number: int
  digest: str
  row: Mapping[str, Any] | None
  error: str | None


def read(stream: BinaryIO) -> Iterator[Line]:
  """The lines of a stream, one by one, those that are empty left out."""
  number = 0
  while piece := stream.readline(MAX_LINE_BYTES):
    number += 1
    data = piece.strip()
    hashed = hashlib.blake2b(data, digest_size=8)
    is_long = False
    while not piece.endswith(b'\n'):
      piece = stream.readline(MAX_LINE_BYTES)
      if not piece:
        break
      is_long = True
      hashed.update(piece)
    if not data and not is_long:
      continue
    row = error = None
    try:
      if is_long:
        raise ValueError(f'longer than {MAX_LINE_BYTES >> 20} MB')
      row = _object(data)
    except (ValueError, RecursionError) as found:
      error = shown(found)
    yield Line(number, hashed.hexdigest(), row, error)


def shown(error: object) -> str:
  """A message as one line of limited length."""
  text = ' '.join(str(error).split())
  return text if len(text) <= SHOWN_CHARS else text[: SHOWN_CHARS - 3] + '...'


def _object(data: bytes) -> dict[str, Any]:
  """The object that a line holds; raises ValueError or RecursionError."""
  try:
    row = json.loads(data.decode('utf-8'), parse_constant=_refuse)
  except UnicodeDecodeError as error:
    raise ValueError(f'not UTF-8: {error}') from error
  except (ValueError, RecursionError) as error:
    raise ValueError(f'not JSON: {error}') from error
  if not isinstance(row, dict):
    raise ValueError(f'a {type(row).__name__}, not an object')
  name = row.get('id')
  # JSON has numbers, such as 1e999, that are infinite in Python.
  is_name = isinstance(name, str) or type(name) is int
  is_name |= type(name) is float and math.isfinite(name)
  if 'id' in row and not (is_name and len(str(name)) <= MAX_ID_CHARS):
    raise ValueError(
      f'id is {name!r}: text of up to {MAX_ID_CHARS} characters, or a number'
    )
  return row


def _refuse(constant: str) -> None:
  raise ValueError(f'{constant} is no JSON')


class Answers:
  """The lines of answers, in the order of the input.

  First `holds` is asked of each line of input in turn, as long as it says yes;
  then lines are added.

  Attributes:
    answered, failed: lines by now, those that were held included.
  """

  def __init__(self, path: str | None, ensemble: str, *, responses: bool):
    """Opens a file, which is made if it is not there; None is stdout.

    Args:
      path: of a local file.
      ensemble: who answers.
      responses: whether members' responses are among the answers.

    Raises:
      AnswerFileError: it cannot be opened.
    """
    self.answered = self.failed = 0
    self._last = 0  # number of the line of input that was asked for
    self._ensemble, self._responses = ensemble, responses
    self._held: BinaryIO | None = None
    self._name = path or 'stdout'
    self._path = path and os.path.expanduser(path)
    self._files = contextlib.ExitStack()
    if path is None:
      self._out: BinaryIO = sys.stdout.buffer
      return
    if '://' in path:
      raise AnswerFileError(
        f'{path}: nothing can be added to a file there; give a local one'
      )
    try:
      # Unbuffered: nothing is left to be written when it is closed.
      self._out = self._files.enter_context(io.FileIO(self._path, 'a'))
      if os.path.isfile(self._path):  # not a pipe, nor /dev/stdout
        fcntl.flock(self._out, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._held = self._files.enter_context(
          io.BufferedReader(io.FileIO(self._path, 'r'))
        )
    except BlockingIOError as error:
      self._files.close()
      raise AnswerFileError(
        f'{path}: another process is answering into it; wait for it, or name '
        'another --output'
      ) from error
    except OSError as error:
      self._files.close()
      raise AnswerFileError(
        f'{path}: cannot be opened: {error.strerror}'
      ) from error

  def __enter__(self) -> Answers:
    return self

  def __exit__(self, *_: object) -> None:
    self._files.close()

  def holds(self, line: Line) -> bool:
    """Whether the file has the answer of this line, which is checked.

    Where it ends, a line that was torn by a kill is cut off.

    Raises:
      AnswerFileError: it holds something else.
    """
    found = self._next(line.number)
    if found is None:
      return False
    number = self.answered + self.failed
    said = f'{self._name}: line {number} '
    other = 'name another --output, or remove it'
    for field, ours, what in (
      ('line', line.number, 'line {} of the input'),
      ('input', line.digest, 'a line of input with hash {}'),
      ('ensemble', self._ensemble, 'ensemble {}'),
    ):
      theirs = found.get(field)
      if theirs != ours:
        raise AnswerFileError(
          f'{said}is of {what.format(shown(theirs))}, not {shown(ours)}; '
          f'{other}'
        )
    members = found.get('members', [])
    if not isinstance(members, list) or not all(
      isinstance(x, dict) for x in members
    ):
      raise AnswerFileError(f'{said}is no answer; {other}')
    if any(('response' in x) != self._responses for x in members):
      without = 'without' if self._responses else 'with'
      raise AnswerFileError(f'{said}was written {without} --responses; {other}')
    return True

  def add(self, line: Line, found: Mapping[str, Any]) -> None:
    """Writes the answer of a line, or its error; raises AnswerFileError."""
    name = (
      {} if not line.row or 'id' not in line.row else {'id': line.row['id']}
    )
    text = json.dumps(
      {
        'line': line.number,
        **name,
        **found,
        'input': line.digest,
        'ensemble': self._ensemble,
      },
      ensure_ascii=False,
      allow_nan=False,
    )
    self._count(found)
    # Half of a surrogate pair, in an id, becomes what JSON writes for it.
    data = text.encode('utf-8', 'backslashreplace') + b'\n'
    try:
      while data:  # a file that is not buffered may take a part
        data = data[self._out.write(data) :]
      self._out.flush()
    except BrokenPipeError:
      raise
    except OSError as error:
      raise AnswerFileError(
        f'{self._name}: cannot be written: {error.strerror}; what is written '
        'is kept, and the same command goes on'
      ) from error

  def finish(self) -> None:
    """Says that the input has ended.

    Raises:
      AnswerFileError: the file holds answers to more lines.
    """
    if self._next(self._last + 1) is not None:
      raise AnswerFileError(
        f'{self._name}: holds more answers than the input has lines; '
        'name another --output, or remove it'
      )

  def _count(self, found: Mapping[str, Any]) -> None:
    if 'error' in found:
      self.failed += 1
    else:
      self.answered += 1

  def _next(self, number: int) -> dict[str, Any] | None:
    """What is held for a line of input; None where nothing is left."""
    self._last = number
    if self._held is None:
      return None
    start = self._held.tell()
    data = self._held.readline()
    where = f'{self._name}: line {self.answered + self.failed + 1}'
    try:
      found = json.loads(data)
    except (ValueError, RecursionError):
      found = None
    is_whole = data.endswith(b'\n')
    if is_whole and isinstance(found, dict) and 'line' in found:
      self._count(found)
      return found
    # What is torn is cut off, so it had better be ours: there may be less of it
    # than the start of our line, or all but the end of the line.
    ours = _START % number
    is_ours = ours.startswith(data[: len(ours)]) and (
      found is None or found.get('ensemble') == self._ensemble
    )
    if is_whole or not is_ours:
      raise AnswerFileError(
        f'{where} is no answer: {shown(data[:80])}; name another --output'
      )
    self._held = None
    if data:
      os.truncate(self._path, start)
    return None
