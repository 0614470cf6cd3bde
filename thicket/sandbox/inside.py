# SPDX-License-Identifier: Apache-2.0
"""What runs in confinement: a program, and in another process its tests.

The only file of this package that executes text. The process of the program
holds nothing of the tests but the arguments of their calls; the process of the
tests holds nothing of the program but values that are plain data.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import hashlib
import json
import os
import random
import sys
import types
from typing import Any

from thicket.sandbox import values

_MOST_BYTES = 1 << 24  # of one message; more ends the run
_SHOWN_CHARS = 200


class Ended(BaseException):
  """The program is gone; no test may catch this as its own."""


class Pipe:
  """Messages of JSON over a stream socket."""

  def __init__(self, fd: int):
    self._fd = fd

  def send(self, message: Any) -> None:
    """Raises Ended where nobody reads any more."""
    data = json.dumps(message).encode()
    data = len(data).to_bytes(8, 'little') + data
    try:
      while data:
        data = data[os.write(self._fd, data) :]
    except OSError as error:
      raise Ended('the program ended') from error

  def receive(self) -> Any:
    """Raises Ended at the end, and for what is not a message."""
    size = int.from_bytes(self._read(8), 'little')
    if size > _MOST_BYTES:
      raise Ended(f'a message of {size} bytes')
    try:
      return json.loads(self._read(size))
    except (ValueError, RecursionError) as error:
      raise Ended('no JSON') from error

  def _read(self, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
      try:
        piece = os.read(self._fd, min(size - len(data), 1 << 16))
      except OSError as error:
        raise Ended('the program ended') from error
      if not piece:
        raise Ended('the program ended')
      data += piece
    return bytes(data)


def read_all(fd: int) -> Any:
  """The one message that the parent sends, up to its end."""
  pieces = []
  while piece := os.read(fd, 1 << 16):
    pieces.append(piece)
  return json.loads(b''.join(pieces))


def _shown(error: BaseException) -> str:
  return f'{type(error).__name__}: {error}'[:_SHOWN_CHARS]


# The process of the program.


def serve(sources: list[str], pipe: Pipe) -> None:
  """Runs a program, then does what its tests ask until they end."""
  random.seed(0)
  # Named, and not '__main__': demonstrations at the end are not run.
  module = types.ModuleType('program')
  sys.modules['program'] = module
  failure: BaseException | None = None
  try:
    for source in sources:
      exec(
        compile(source, '<program>', 'exec', dont_inherit=True), vars(module)
      )
  except BaseException as error:
    failure = error
  held: list[Any] = []
  refer = lambda value: [_keep(held, value), type(value).__name__]
  resolve = lambda number, _: held[number]
  while True:
    try:
      operation, *arguments = pipe.receive()
    except Ended:
      return
    try:
      if failure is not None:
        raise failure
      given = values.decode(['list', arguments], resolve)
      value = _OPERATIONS[operation](vars(module), *given)
      answer = ['value', values.encode(value, refer)]
    except BaseException as error:
      answer = ['raise', type(error).__name__, _words(error)]
    pipe.send(answer)


def _words(error: BaseException) -> str:
  try:
    return f'{error}'[:_SHOWN_CHARS]
  except BaseException:  # a __str__ of the program's own
    return ''


def _keep(held: list[Any], value: Any) -> int:
  held.append(value)
  return len(held) - 1


_OPERATIONS = {
  'has': lambda names, name: name in names,
  'get': lambda names, name: names[name],
  'call': lambda _, function, args, kwargs: function(*args, **kwargs),
  'getattr': lambda _, value, name: getattr(value, name),
  'setattr': lambda _, value, name, new: setattr(value, name, new),
  'list': lambda _, value: list(value),
}


# The process of the tests.


class Remote:
  """An object of the program, that tests may call, iterate, and look into.

  It is equal to itself alone, whatever the program's own `__eq__` says.
  """

  def __init__(self, program: Program, number: int, kind: str):
    vars(self).update(_program=program, _number=number, _kind=kind)

  def __repr__(self) -> str:
    return f'<{self._kind} of the program>'

  def __call__(self, *args, **kwargs):
    return self._program.ask('call', self, args, kwargs)

  def __getattr__(self, name: str):
    return self._program.ask('getattr', self, name)

  def __setattr__(self, name: str, value: Any):
    self._program.ask('setattr', self, name, value)

  def __iter__(self):
    return iter(self._program.ask('list', self))


class Program:
  """The program, as its tests see it, and the record of all it answered."""

  def __init__(self, pipe: Pipe):
    self._pipe = pipe
    self._record = hashlib.sha256()
    self._has_answered = False  # a call, by a value
    self.is_gone = False

  def ask(self, operation: str, *arguments: Any) -> Any:
    """What the program answers.

    Raises:
      Ended: the program is gone, or does not speak as it should.
      Exception: what the program raised: a built-in one by its own type.
    """
    data = [values.encode(x, _number_of) for x in arguments]
    try:
      self._pipe.send([operation, *data])
      answer, *rest = self._pipe.receive()
      if answer == 'raise':
        kind, text = map(str, rest)
      else:
        (told,) = rest
        value = values.decode(told, lambda i, kind: Remote(self, i, kind))
        text = values.canonical(value)
    except Ended:
      self._end()
      raise
    except Exception as error:  # of decoding: the program wrote by itself
      self._end()
      raise Ended('the program wrote what is no value') from error
    if answer == 'raise':
      self._write(f'raise {kind}')
      raise _raised(kind, text)
    if operation in ('call', 'list'):
      self._has_answered = True
      self._write(f'value {text}')
    return value

  def behaviour(self) -> str:
    """A name for the answers so far; '' where there was no value among them."""
    return self._record.hexdigest() if self._has_answered else ''

  def _end(self) -> None:
    self.is_gone = True  # also where a test catches everything
    self._write('ended')

  def _write(self, line: str) -> None:
    line = line.encode('utf-8', 'surrogatepass')
    self._record.update(len(line).to_bytes(8, 'little') + line)


class ProgramError(Exception):
  """Something a program raised that is no built-in exception."""


def _raised(kind: str, text: str) -> Exception:
  made = getattr(builtins, kind, None)
  if isinstance(made, type) and issubclass(made, Exception):
    with contextlib.suppress(TypeError):  # some take more than a text
      return made(text)
  return ProgramError(f'{kind}: {text}')


def _number_of(value: Any) -> list:
  if isinstance(value, Remote):
    return [value._number, value._kind]
  raise TypeError(f'{type(value).__name__} of a test cannot go to a program')


def check(job: dict[str, Any], pipe: Pipe) -> dict[str, Any]:
  """Runs tests against a program; every assertion, also after one that fails.

  Args:
    job: `context`, source that runs first; `names`, of the program, to be
      bound; `tests`, source.
    pipe: to the program.

  Returns:
    `passed`, `behaviour`, `reason` as in `thicket.sandbox.Outcome`; or `error`
    alone, where there was no program to be tested.
  """
  try:
    pipe.receive()
  except Ended:
    return {'error': 'the process of a program did not get as far as running'}
  program = Program(pipe)
  reasons: list[str] = []
  names = {
    '__name__': 'tests',
    _CHECK: lambda is_true, text: is_true or reasons.append(f'not {text}'),
    _FAILED: lambda: reasons.append(_shown(sys.exc_info()[1])),
  }
  random.seed(0)
  try:
    exec(compile(job['context'], '<context>', 'exec'), names)
    for name in job['names']:
      if program.ask('has', name):
        names[name] = program.ask('get', name)
    tree = _KeepGoing().visit(ast.parse(job['tests']))
    ast.fix_missing_locations(tree)
    exec(compile(tree, '<tests>', 'exec'), names)
  except BaseException as error:
    reasons.append(_shown(error))
  return {
    'passed': not reasons and not program.is_gone,
    'behaviour': program.behaviour(),
    'reason': reasons[0][:_SHOWN_CHARS] if reasons else '',
  }


_CHECK, _FAILED = '_sandbox_check_', '_sandbox_failed_'


class _KeepGoing(ast.NodeTransformer):
  """Assertions that are counted and do not end their function."""

  def visit_Assert(self, node: ast.Assert) -> ast.AST:
    """By the statement it stands for."""
    (counted,) = ast.parse(
      f'try:\n  {_CHECK}(0, 0)\nexcept Exception:\n  {_FAILED}()'
    ).body
    shown = ast.unparse(node.test)[:_SHOWN_CHARS]
    counted.body[0].value.args = [node.test, ast.Constant(shown)]
    return ast.copy_location(counted, node)
