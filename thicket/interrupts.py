# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C that waits for what must not be torn."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
  """Holds a first Ctrl-C back until what is inside is done.

  Orbax saves in threads of its own, which an exception in the main thread
  leaves running: a save torn by it can be neither trusted nor tried again. A
  second Ctrl-C is not held back, should the disk hang.
  """
  usual = signal.getsignal(signal.SIGINT)
  in_main = threading.current_thread() is threading.main_thread()
  if not (in_main and callable(usual)):
    yield  # nothing would raise here
    return
  held: list[tuple] = []

  def hold(*args):
    held.append(args)
    if len(held) > 1:
      usual(*args)

  signal.signal(signal.SIGINT, hold)
  try:
    yield
  finally:
    signal.signal(signal.SIGINT, usual)
  if held:
    usual(*held[0])
