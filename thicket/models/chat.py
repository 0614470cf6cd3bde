# SPDX-License-Identifier: Apache-2.0
"""Chat templates: programs from a file that is not trusted.

They are rendered by a process of their own, see `renderer`, which is started
when first needed and shared by all templates of this one.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from typing import Any

from thicket.models import renderer
from thicket.models.tokenizer_parts import TokenizerError, bad, line

_WALL_S = 120  # for a process that does not get to run; see `renderer.CPU_S`
_BOOT = """
import json, socket, sys
sys.path[:] = json.loads(sys.argv[1])
from thicket.models import renderer
with socket.socket(fileno=0) as end:
  renderer.serve(end)
"""


class ChatTemplate:
  """A template that puts a chat's turns into one text.

  Attributes:
    source: the template.
  """

  def __init__(self, source: str, tokens: Mapping[str, str]):
    """Compiles it.

    Args:
      source: Jinja.
      tokens: texts of special tokens by the names that templates use.

    Raises:
      TokenizerError: it is no template.
    """
    self.source = source
    self._tokens = dict(tokens)
    if not isinstance(source, str):
      raise bad('chat template', f'{source!r} is not a text')
    try:
      _ask(source, None)
    except _Failed as error:
      raise bad('chat template', line(error)) from error

  def render(self, **turns: str | None) -> str:
    """Fills the template with texts by role; None leaves a role out.

    Without an assistant's turn the text ends where the answer starts.

    Raises:
      TokenizerError: the template refuses, fails, takes too long or too much
        memory, or leaves out a system text.
    """
    messages = [
      {'role': role, 'content': text}
      for role, text in turns.items()
      if text is not None
    ]
    values = {
      'messages': messages,
      'add_generation_prompt': 'assistant' not in turns,
      'tools': None,
      'documents': None,
      **self._tokens,
    }
    try:
      text = _ask(self.source, values)
      if (turns.get('system') or '').strip() not in text:
        raise _Failed('it leaves the system text out')
    except _Failed as error:
      raise TokenizerError(
        f'chat template: {line(error)}; change the prompt or the system text'
      ) from error
    return text


class _Failed(Exception):
  """What a template, or its process, said."""


class _Renderer:
  """The process, and this end of a socket to it."""

  def __init__(self):
    self._end, theirs = socket.socketpair()
    self._end.settimeout(_WALL_S)
    # As ours, whatever hooks have found us; it starts without them.
    root = pathlib.Path(__file__).parents[2]
    folders = [str(root), *map(os.path.abspath, sys.path)]
    with theirs:
      # Neither the caller's variables, which may hold secrets, nor its Ctrl-C.
      self._process = subprocess.Popen(
        [sys.executable, '-sSPB', '-c', _BOOT, json.dumps(folders)],
        stdin=theirs,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd='/',
        env={'PYTHONHASHSEED': '0'},
        start_new_session=True,
      )
    atexit.register(self.close)

  def ask(self, request: Mapping[str, Any]) -> dict[str, str]:
    data = renderer.pack(request)
    # A character takes six bytes at most, as \u001f.
    most = 6 * (renderer.MORE_CHARS + renderer.TIMES * len(data)) + 1000
    answer = b''
    with contextlib.suppress(OSError):
      renderer.send(self._end, data)
      answer = renderer.receive(self._end, most)
    if answer:
      return renderer.unpack(answer)
    self.close()
    code = self._process.returncode
    if code == -signal.SIGXCPU:
      raise _Failed(f'it takes more than {renderer.CPU_S} s')
    raise _Failed(f'the process that renders it ended, with code {code}')

  def close(self) -> None:
    atexit.unregister(self.close)
    self._end.close()
    # It may be dead by its own fault, whose code is to be seen, or busy.
    try:
      self._process.wait(1)
    except subprocess.TimeoutExpired:
      self._process.kill()
      self._process.wait()


_lock = threading.Lock()
_own: dict[str, Any] = {}


def _ask(source: str, values: Mapping[str, Any] | None) -> str:
  """The template's text.

  Raises:
    _Failed: there is none.
  """
  with _lock:
    # A process that was forked must not talk to its parent's.
    if _own.get('pid') != os.getpid():
      _own.update(pid=os.getpid(), renderer=_Renderer())
    try:
      answer = _own['renderer'].ask({'source': source, 'values': values})
    except BaseException:
      # What it would answer next belongs to this request.
      _own.pop('pid')
      _own['renderer'].close()
      raise
  if 'error' in answer:
    raise _Failed(answer['error'])
  return answer['text']
