# SPDX-License-Identifier: Apache-2.0
"""The process that renders chat templates, which are programs of strangers.

Jinja's sandbox keeps a template from Python's insides. It does not bound what
loops, products of strings, powers or filters may cost: the kernel does, by
limits of memory and of CPU time on this process, which does nothing else and
imports nothing but Jinja.
"""

from __future__ import annotations

import datetime
import functools
import json
import math
import resource
import socket
import struct
import time
from typing import Any

import jinja2
import jinja2.ext
import jinja2.sandbox

MEMORY_BYTES = 1 << 29  # address space, some 40 MB of it Python's
CPU_S = 3  # a real template takes a ten-thousandth of a second
# What a template may add to its texts, and how often it may repeat them.
MORE_CHARS, TIMES = 1 << 20, 8
# In front of each message: its bytes.
HEADER = struct.Struct('<Q')


class _Generation(jinja2.ext.Extension):
  """`{% generation %}`, which marks answers for training, and prints them."""

  tags = frozenset({'generation'})

  def parse(self, parser: Any) -> Any:
    next(parser.stream)
    return parser.parse_statements(('name:endgeneration',), drop_needle=True)


def serve(end: socket.socket) -> None:
  """Answers requests until the other end is closed.

  A request is a JSON object of a template's `source` and the `values` that it
  sees, None for whether it is a template at all; the answer holds its `text`,
  or an `error`.
  """
  resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
  for kind in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE):
    resource.setrlimit(kind, (0, 0))
  while request := receive(end):
    # Nothing can be caught of this: the kernel ends the process.
    until = math.ceil(time.process_time()) + CPU_S
    resource.setrlimit(resource.RLIMIT_CPU, (until, resource.RLIM_INFINITY))
    try:
      answer = {'text': _render(**unpack(request))}
    except Exception as error:  # a foreign program may raise anything
      if isinstance(error, MemoryError):
        _compile.cache_clear()  # compiled templates may hold large constants
      answer = {'error': str(error) or type(error).__name__}
    send(end, pack(answer))


def pack(message: Any) -> bytes:
  """The bytes of a message; texts may hold lone surrogates."""
  text = json.dumps(message, ensure_ascii=False)
  return text.encode('utf-8', 'surrogatepass')


def unpack(data: bytes) -> Any:
  """The message of some bytes."""
  return json.loads(data.decode('utf-8', 'surrogatepass'))


def send(end: socket.socket, message: bytes) -> None:
  """Sends one message."""
  end.sendall(HEADER.pack(len(message)) + message)


def receive(end: socket.socket, most: int = 1 << 40) -> bytes:
  """One message of at most `most` bytes; b'' at the end of all."""
  header = end.recv(HEADER.size, socket.MSG_WAITALL)
  if len(header) < HEADER.size:
    return b''
  (size,) = HEADER.unpack(header)
  if size > most:
    return b''
  pieces = []
  while size and (piece := end.recv(min(size, 1 << 20))):
    pieces.append(piece)
    size -= len(piece)
  return b''.join(pieces)


def _render(source: str, values: dict[str, Any] | None) -> str:
  template = _compile(source)
  if values is None:
    return ''
  texts = [message['content'] for message in values['messages']]
  left = MORE_CHARS + TIMES * sum(map(len, texts))
  pieces = []
  for piece in template.generate(values):
    left -= len(piece)
    if left < 0:
      raise ValueError('it writes without end')
    pieces.append(piece)
  return ''.join(pieces)


_DATE = datetime.date(2024, 7, 26)


@functools.lru_cache(maxsize=8)
def _compile(source: str) -> jinja2.Template:
  """The template in a sandbox, set up as `transformers` does.

  Templates that would put today's date into the prompt have a fixed one, so
  that a run stays the same tomorrow: their own where they ask whether there is
  a `strftime_now`, and else that of Llama 3's.
  """

  def raise_exception(message):
    raise jinja2.TemplateError(message)

  def tojson(value, ensure_ascii=False, **more):
    return json.dumps(value, ensure_ascii=ensure_ascii, **more)

  environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True,
    lstrip_blocks=True,
    extensions=['jinja2.ext.loopcontrols', _Generation],
  )
  environment.globals['raise_exception'] = raise_exception
  if 'strftime_now is' not in source:
    environment.globals['strftime_now'] = _DATE.strftime
  environment.filters['tojson'] = tojson  # Jinja's own is for HTML
  return environment.from_string(source)
