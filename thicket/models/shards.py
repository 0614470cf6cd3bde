# SPDX-License-Identifier: Apache-2.0
"""Writes tensors as safetensors files, one tensor in memory at a time.

The package `safetensors` takes all tensors of a file at once, and copies them.
What it writes is a length, a header of JSON and the bytes of the tensors, so
whoever knows the shapes beforehand can write it as a stream. A model of more
than one file has an index beside them, as Hugging Face's loaders expect it.
"""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from thicket.models.safetensors import INDEX, WEIGHTS

SHARD_BYTES = 5_000_000_000  # as transformers has long cut models

_KINDS = {
  np.dtype(np.float32): 'F32',
  np.dtype(np.float16): 'F16',
  np.dtype(ml_dtypes.bfloat16): 'BF16',
}
_ALIGNMENT = 8  # bytes, of the first tensor: files are mapped into memory


def write(
  folder: pathlib.Path,
  shapes: Mapping[str, tuple[int, ...]],
  dtype: Any,
  tensors: Iterable[tuple[str, np.ndarray]],
  shard_bytes: int = SHARD_BYTES,
) -> None:
  """Writes a model's tensors into a folder: one file, or several and an index.

  Args:
    folder: where there is none of these files yet.
    shapes: of all tensors by name, in the order in which they come.
    dtype: of all tensors: float32, float16 or bfloat16.
    tensors: names and arrays; each is written before the next is asked for.
    shard_bytes: of a file at most, unless one tensor alone has more.

  Raises:
    ValueError: a type that cannot be written, or another tensor than was said.
    OSError: the files cannot be written.
  """
  dtype = np.dtype(dtype)
  if dtype not in _KINDS:
    raise ValueError(f'{dtype} is not one of {", ".join(map(str, _KINDS))}')
  sizes = {
    name: dtype.itemsize * math.prod(shape) for name, shape in shapes.items()
  }
  shards = _shards(sizes, shard_bytes)
  stream = iter(tensors)
  files: dict[str, str] = {}
  for number, names in enumerate(shards, 1):
    file = WEIGHTS
    if len(shards) > 1:
      file = f'model-{number:05d}-of-{len(shards):05d}.safetensors'
    with (folder / file).open('wb') as out:
      out.write(_header({name: shapes[name] for name in names}, dtype))
      for name in names:
        out.write(_bytes(next(stream, None), name, shapes[name], dtype))
    files |= dict.fromkeys(names, file)
  if (more := next(stream, None)) is not None:
    raise ValueError(f'{more[0]}: a tensor more than was said')
  if len(shards) > 1:
    total = {'total_size': sum(sizes.values())}
    text = json.dumps({'metadata': total, 'weight_map': files}, indent=2)
    (folder / INDEX).write_text(text + '\n', encoding='utf-8')


def _shards(sizes: Mapping[str, int], most: int) -> list[Sequence[str]]:
  """Names in their order, cut where a file would have more than `most`."""
  shards: list[list[str]] = []
  room = -1
  for name, size in sizes.items():
    if size > room:
      shards.append([])
      room = most
    shards[-1].append(name)
    room -= size
  return shards


def _header(shapes: Mapping[str, tuple[int, ...]], dtype: np.dtype) -> bytes:
  # transformers reads no file that does not say whose tensors these are.
  entries: dict[str, Any] = {'__metadata__': {'format': 'pt'}}
  end = 0
  for name, shape in shapes.items():
    start, end = end, end + dtype.itemsize * math.prod(shape)
    entries[name] = {
      'dtype': _KINDS[dtype],
      'shape': list(shape),
      'data_offsets': [start, end],
    }
  text = json.dumps(entries, separators=(',', ':')).encode()
  text += b' ' * (-len(text) % _ALIGNMENT)
  return len(text).to_bytes(8, 'little') + text


def _bytes(
  found: tuple[str, np.ndarray] | None,
  name: str,
  shape: tuple[int, ...],
  dtype: np.dtype,
) -> memoryview:
  if found is None or found[0] != name:
    came = 'nothing' if found is None else found[0]
    raise ValueError(f'{name}: {came} came in its place')
  array = found[1]
  if array.shape != shape or array.dtype != dtype:
    raise ValueError(
      f'{name}: {array.dtype} {array.shape} came instead of {dtype} {shape}'
    )
  # As bytes: the buffer protocol knows no bfloat16.
  return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
