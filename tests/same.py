# SPDX-License-Identifier: Apache-2.0
"""Equality of blocks to the byte."""

import dataclasses

import numpy as np

from thicket.blocks import Block


def assert_same(a, b):
  """Equal types, shapes, bytes and strings."""
  for field in dataclasses.fields(Block):
    one, other = getattr(a, field.name), getattr(b, field.name)
    if isinstance(one, np.ndarray):
      assert one.dtype == other.dtype, field.name
      assert one.shape == other.shape, field.name
      assert one.tobytes() == other.tobytes(), field.name
    else:
      assert one == other, field.name
