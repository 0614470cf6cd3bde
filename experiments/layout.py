# SPDX-License-Identifier: Apache-2.0
"""Tables of experiments, as a README and as a terminal have them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.table import Table


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
  """A table of a README."""
  lines = [header, ['---'] * len(header), *rows]
  return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def printed(
  title: str, header: Sequence[str], rows: Iterable[Sequence[str]]
) -> Table:
  """A table of a terminal, names on the left and figures on the right."""
  table = Table(title=title)
  for i, name in enumerate(header):
    table.add_column(name, justify='right' if i else 'left')
  for row in rows:
    table.add_row(*row)
  return table
