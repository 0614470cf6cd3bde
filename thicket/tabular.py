# SPDX-License-Identifier: Apache-2.0
"""Tab-separated rows (IANA text/tab-separated-values): no quotes, no escapes.

The first line names the columns; every other line has a cell for each.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

from thicket.tasks.base import TaskError


def rows(path: pathlib.Path) -> Iterator[tuple[str, dict[str, str]]]:
  """Where each row stands, for messages, and its cells by column.

  Raises:
    TaskError: the file cannot be read, a column is named twice, or a line is
      not UTF-8 or has another number of cells; lines are named by number.
  """
  try:
    lines = path.open('rb')
  except OSError as error:
    raise TaskError(f'{path}: cannot be read: {error.strerror}') from error
  columns: list[str] | None = None
  with lines:
    # Bytes: text mode would also end a line inside a cell, at a lone \r.
    for number, line in enumerate(lines, start=1):
      where = f'{path}, line {number}'
      if not line.strip():
        continue
      try:
        cells = line.decode('utf-8').rstrip('\r\n').split('\t')
      except UnicodeDecodeError as error:
        raise TaskError(f'{where}: not UTF-8: {error}') from error
      if columns is None:
        columns = cells
        if len(set(columns)) < len(columns):
          raise TaskError(f'{where}: columns={columns}: one is named twice')
        continue
      if len(cells) != len(columns):
        raise TaskError(
          f'{where}: {len(cells)} cells for the columns {columns}'
        )
      yield where, dict(zip(columns, cells, strict=True))
