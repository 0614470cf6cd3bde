# SPDX-License-Identifier: Apache-2.0
"""Progress with rate and time left: a bar on a terminal, else log lines."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from absl import logging
from rich import progress
from rich.console import Console

_LOG_EVERY_S = 10.0


class Tally:
  """Counts finished work and says how long the rest will take."""

  def __init__(self, label: str, total: int, log: bool, unit: str = 'members'):
    """Begins at 0 of `total`; a unit is a member, or a sample of the base."""
    self._label, self._total, self._log = label, total, log
    self._unit = unit
    self._last_log = time.monotonic()
    self._first: tuple[float, int] | None = None
    self.done = 0

  def advance(self, number: int) -> None:
    """Adds finished units; logs at most every ten seconds."""
    self.done += number
    now = time.monotonic()
    if self._first is None:
      self._first = now, self.done
    due = now - self._last_log >= _LOG_EVERY_S or self.done == self._total
    if self._log and due:
      self._last_log = now
      so_far = f'{self.done} of {self._total} {self._unit}'
      parts = [so_far, *filter(None, [self.outlook()])]
      logging.info('%s: %s', self._label, ', '.join(parts))

  def rate(self) -> float | None:
    """Members a second since the first chunk, whose time is compilation."""
    if self._first is None or self.done == self._first[1]:
      return None
    start, before = self._first
    return (self.done - before) / max(time.monotonic() - start, 1e-9)

  def outlook(self) -> str:
    """Rate and time left as text; empty while they are not known."""
    rate = self.rate()
    if rate is None:
      return ''
    left = (self._total - self.done) / rate
    return f'{rate:.2f} {self._unit}/s, {left:.0f} s left'


@contextmanager
def tally(
  console: Console, label: str, total: int, unit: str = 'members'
) -> Iterator[Tally]:
  """Shows the progress of `total` units on the console or in the log."""
  if not console.is_terminal:
    yield Tally(label, total, True, unit)
    return
  columns = (
    progress.TextColumn('{task.description}'),
    progress.BarColumn(),
    progress.TextColumn('{task.completed} of {task.total} ' + unit),
    progress.TextColumn('{task.fields[outlook]}'),
  )
  with progress.Progress(*columns, console=console) as bars:
    bar = bars.add_task(label, total=total, outlook='')

    class Bar(Tally):
      """Moves the bar too."""

      def advance(self, number: int) -> None:
        super().advance(number)
        bars.update(bar, advance=number, outlook=self.outlook())

    yield Bar(label, total, False, unit)
