# SPDX-License-Identifier: Apache-2.0
"""Blocks of all types that model files have, read to the values meant.

The simple types are written by the `gguf` package, from values that they hold
exactly. It cannot write the K types: their blocks are packed here, bit by
bit, as ggml-quants.h lays them out.
"""

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind

from thicket.models.gguf import open_gguf

ROWS = 3


def read(path, blocks, kind):
  """What is read of a tensor of rows of raw blocks."""
  writer = gguf.GGUFWriter(path, 'llama')
  writer.add_tensor('x', blocks, raw_dtype=kind)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  opened = open_gguf(path)
  assert opened.tensors['x'].type == kind.name
  return opened.read('x')


def whole(low, high):
  """Rows of 64 whole numbers, both ends in each block of 32."""
  values = np.random.default_rng(0).integers(low, high + 1, (ROWS, 64))
  values[:, 3::32], values[:, 9::32] = low, high
  return values.astype(np.float32)


@pytest.mark.parametrize(
  ('kind', 'values'),
  [
    (Kind.F32, whole(-(2**20), 2**20) / 7),
    (Kind.F16, whole(-1024, 1023) / 64),
    (Kind.BF16, whole(-128, 127) * 2.0**40),
    (Kind.Q8_0, whole(-127, 127) / 4),
    (Kind.Q4_0, whole(-8, 7) / 2),
    (Kind.Q4_1, whole(0, 15) / 8 - 5),
    (Kind.Q5_0, whole(-16, 15) / 2),
    (Kind.Q5_1, whole(0, 31) / 8 - 5),
  ],
  ids=lambda value: getattr(value, 'name', ''),
)
def test_simple_types_hold_their_values(kind, values, tmp_path):
  values = values.astype(np.float32)
  blocks = gguf.quants.quantize(values, kind)
  if kind == Kind.F16:  # the package gives numbers rather than bytes
    blocks = blocks.view(np.uint8)
  found = read(tmp_path / 'x.gguf', blocks, kind)
  assert found.dtype == np.float32
  np.testing.assert_array_equal(found, values)


def half(number):
  return np.float16(number).tobytes()


def packed_scales(scales, mins):
  """Eight scales and eight minima of 6 bits each, in 12 bytes."""
  packed = [0] * 12
  for i in range(4):
    packed[i] = scales[i] | scales[i + 4] >> 4 << 6
    packed[i + 4] = mins[i] | mins[i + 4] >> 4 << 6
    packed[i + 8] = scales[i + 4] & 15 | (mins[i + 4] & 15) << 4
  return bytes(packed)


def q4_k(rng):
  """A block of 256 and what it means: d s q - e m, groups of 32."""
  scales, mins = (rng.integers(0, 64, 8).tolist() for _ in range(2))
  codes = rng.integers(0, 16, (8, 32)).tolist()
  low_high = bytes(
    codes[2 * pair][i] | codes[2 * pair + 1][i] << 4
    for pair in range(4)
    for i in range(32)
  )
  block = half(0.5) + half(0.25) + packed_scales(scales, mins) + low_high
  return block, _groups(codes, scales, mins)


def q5_k(rng):
  """As `q4_k`, with a fifth bit of each code in 32 bytes of their own."""
  scales, mins = (rng.integers(0, 64, 8).tolist() for _ in range(2))
  codes = rng.integers(0, 32, (8, 32)).tolist()
  fifth = bytes(
    sum(codes[group][i] >> 4 << group for group in range(8)) for i in range(32)
  )
  low_high = bytes(
    codes[2 * pair][i] & 15 | (codes[2 * pair + 1][i] & 15) << 4
    for pair in range(4)
    for i in range(32)
  )
  head = half(0.5) + half(0.25) + packed_scales(scales, mins)
  return head + fifth + low_high, _groups(codes, scales, mins)


def _groups(codes, scales, mins):
  return [
    0.5 * scales[group] * codes[group][i] - 0.25 * mins[group]
    for group in range(8)
    for i in range(32)
  ]


def q6_k(rng):
  """A block of 256 and what it means: d s (q - 32), groups of 16."""
  codes = rng.integers(0, 64, 256).tolist()
  scales = rng.integers(-128, 128, 16).tolist()
  low, high = [], []
  for half_block in (codes[:128], codes[128:]):
    first, second, third, fourth = (
      half_block[32 * part : 32 * part + 32] for part in range(4)
    )
    low += [a & 15 | (c & 15) << 4 for a, c in zip(first, third, strict=True)]
    low += [b & 15 | (d & 15) << 4 for b, d in zip(second, fourth, strict=True)]
    high += [
      a >> 4 | b >> 4 << 2 | c >> 4 << 4 | d >> 4 << 6
      for a, b, c, d in zip(first, second, third, fourth, strict=True)
    ]
  signed = np.int8(scales).tobytes()
  block = bytes(low) + bytes(high) + signed + half(0.125)
  values = [
    0.125 * scales[i // 16] * (code - 32) for i, code in enumerate(codes)
  ]
  return block, values


@pytest.mark.parametrize(
  ('kind', 'make'),
  [(Kind.Q4_K, q4_k), (Kind.Q5_K, q5_k), (Kind.Q6_K, q6_k)],
  ids=['Q4_K', 'Q5_K', 'Q6_K'],
)
def test_k_types_hold_their_values(kind, make, tmp_path):
  rng = np.random.default_rng(0)
  made = [[make(rng) for _ in range(2)] for _ in range(ROWS)]
  blocks = np.stack(
    [np.frombuffer(b''.join(b for b, _ in row), np.uint8) for row in made]
  )
  assert blocks.shape[1] == 2 * gguf.GGML_QUANT_SIZES[kind][1]
  values = [[x for _, group in row for x in group] for row in made]
  found = read(tmp_path / 'x.gguf', blocks, kind)
  assert found.dtype == np.float32
  np.testing.assert_array_equal(found, np.float32(values))
