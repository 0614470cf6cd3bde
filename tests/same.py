# SPDX-License-Identifier: Apache-2.0
"""What lies in ledgers, and its equality to the byte."""

import dataclasses

import numpy as np

from thicket.blocks import Block
from thicket.ledger import Ledger


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


def views(workdir):
  """All rows of a run by condition and split."""
  found = {}
  for folder in sorted((workdir / 'ledger').iterdir()):
    ledger = Ledger.read(folder)
    for split in ledger.splits:
      found[folder.name, split] = ledger.view(split)
  return found


def arrays(workdir):
  """Everything that a reader of the ledgers gets, as bytes."""
  found = {}
  for place, block in views(workdir).items():
    for field in dataclasses.fields(block):
      value = getattr(block, field.name)
      found[*place, field.name] = (
        value.tobytes() if isinstance(value, np.ndarray) else value
      )
  return found
