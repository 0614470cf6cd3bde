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

  def __init__(self, label: str, total: int, log: bool):
    """Starts the clock; `total` is in members."""
    self._label, self._total, self._log = label, total, log
    self._start = self._last_log = time.monotonic()
    self.done = 0

  def advance(self, number: int) -> None:
    """Adds finished members; logs at most every ten seconds."""
    self.done += number
    now = time.monotonic()
    due = now - self._last_log >= _LOG_EVERY_S or self.done == self._total
    if self._log and due:
      self._last_log = now
      rate = self.done / (now - self._start)
      logging.info(
        '%s: %d of %d members, %.2f members/s, %.0f s left',
        self._label,
        self.done,
        self._total,
        rate,
        (self._total - self.done) / rate,
      )


@contextmanager
def tally(console: Console, label: str, total: int) -> Iterator[Tally]:
  """Shows the progress of `total` members on the console or in the log."""
  if not console.is_terminal:
    yield Tally(label, total, log=True)
    return
  columns = (
    progress.TextColumn('{task.description}'),
    progress.BarColumn(),
    progress.MofNCompleteColumn(),
    progress.TextColumn('{task.fields[rate]} members/s, left'),
    progress.TimeRemainingColumn(elapsed_when_finished=True),
  )
  with progress.Progress(*columns, console=console) as bars:
    bar = bars.add_task(label, total=total, rate='-')
    start = time.monotonic()

    class Bar(Tally):
      """Moves the bar too."""

      def advance(self, number: int) -> None:
        super().advance(number)
        rate = self.done / (time.monotonic() - start)
        bars.update(bar, advance=number, rate=f'{rate:.2f}')

    yield Bar(label, total, log=False)
