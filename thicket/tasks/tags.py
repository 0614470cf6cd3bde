# SPDX-License-Identifier: Apache-2.0
"""Answers that a prompt wants between <answer> and </answer>."""

from __future__ import annotations

OPEN, CLOSE = '<answer>', '</answer>'


def tagged(response: str) -> str | None:
  """What stands in the last pair of tags; None where no pair is complete."""
  end = response.rfind(CLOSE)
  start = response.rfind(OPEN, 0, max(end, 0))
  return None if start < 0 else response[start + len(OPEN) : end]
