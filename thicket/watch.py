# SPDX-License-Identifier: Apache-2.0
"""For how long the devices have work, seen from beside.

A thread waits for the results of each piece of dispatched work and notes when
they are there. It holds no lock while it waits, and the devices do not know.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Iterable
from typing import Any

import jax

Tree = Any


def covered(intervals: Iterable[tuple[float, float]]) -> float:
  """The length of a union of intervals (start, end)."""
  total, reached = 0.0, float('-inf')
  for start, end in sorted(intervals):
    total += max(0.0, end - max(start, reached))
    reached = max(reached, end)
  return total


class Watch:
  """Notes when dispatched work is pending, between enter and exit.

  Attributes:
    pending_s: seconds in which some was, known at a regular exit.
  """

  def __init__(self):
    """Prepares the thread; enter starts it."""
    self.pending_s = 0.0
    self._queue: queue.SimpleQueue = queue.SimpleQueue()
    self._intervals: list[tuple[float, float]] = []
    self._thread = threading.Thread(target=self._wait_for_results)

  def turn(self) -> None:
    """The host turns to the devices: what it dispatches next starts now."""
    self._start = time.monotonic()

  def dispatched(self, results: Tree, compile_s: float = 0.0) -> None:
    """Work is pending since `turn`, or `compile_s` later, until results are."""
    self._queue.put((self._start + compile_s, results))

  def __enter__(self) -> Watch:
    self.turn()
    self._thread.start()
    return self

  def __exit__(self, kind, error, trace) -> None:
    self._queue.put(None)
    if kind is None:  # or a device may be at work for long yet
      self._thread.join()
      self.pending_s = covered(self._intervals)

  def _wait_for_results(self) -> None:
    while (item := self._queue.get()) is not None:
      start, results = item
      # An error of the device reaches whoever reads the results, and may be
      # recovered from; until it is known, the devices were at work.
      with contextlib.suppress(Exception):
        jax.block_until_ready(results)
      self._intervals.append((start, time.monotonic()))
      del item, results  # memory is not to be held until the next
