# SPDX-License-Identifier: Apache-2.0
"""Folders of safetensors files: which tensors there are, and each one mapped.

The format is specified in github.com/huggingface/safetensors: the length of a
header, a JSON header, then the tensors back to back. A reader of our own
rather than the package's: its numpy side copies each tensor and does not say
which files, shards or entries of an index disagree; what is left after all
those checks is one `np.memmap` for each tensor. As GGUF files, these are not
trusted: lengths, offsets, shapes and names are held against the bytes and the
folder before anything is read.
"""

from __future__ import annotations

import dataclasses
import math
import os
import struct
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from thicket.models.files import (
  ModelFileError,
  check_name,
  file_error,
  inside,
  listed,
  parse_object,
  read_object,
  shown,
)

WEIGHTS = 'model.safetensors'
INDEX = 'model.safetensors.index.json'

_LENGTH = struct.Struct('<Q')
_MAX_HEADER_BYTES = 100_000_000  # of the format's own library
_MAX_RANK = 8
_TOO_MUCH = 1 << 63  # elements of an axis, bytes of an offset
_ENTRY = ('dtype', 'shape', 'data_offsets')

# Types that are read, and bytes of an element of others: their tensors may
# stand in a file beside the weights, as tables of positions do.
_DTYPES = {
  'F32': np.dtype('<f4'),
  'F16': np.dtype('<f2'),
  'BF16': np.dtype(jnp.bfloat16),
}
_ITEM_BYTES = (
  {name: dtype.itemsize for name, dtype in _DTYPES.items()}
  | dict.fromkeys(('BOOL', 'U8', 'I8', 'F8_E4M3', 'F8_E5M2', 'F8_E8M0'), 1)
  | {'I16': 2, 'U16': 2, 'I32': 4, 'U32': 4}
  | dict.fromkeys(('F64', 'I64', 'U64', 'C64'), 8)
)


@dataclasses.dataclass(frozen=True)
class StoredTensor:
  """Where a tensor lies.

  Attributes:
    path: the file.
    shape: numpy's order, slowest axis first: (out, in) for a matrix.
    type: the format's name of its dtype, such as 'BF16'.
    offset: bytes from the start of the file.
    num_bytes: size in the file.
  """

  path: Path
  shape: tuple[int, ...]
  type: str
  offset: int
  num_bytes: int


@dataclasses.dataclass(frozen=True, eq=False)
class SafetensorsFolder:
  """What `open_folder` found.

  Attributes:
    path: the folder.
    tensors: where each is, by name.
  """

  path: Path
  tensors: dict[str, StoredTensor]

  def is_readable(self, name: str) -> bool:
    """Whether the tensor has a type that `read` can read."""
    return self.tensors[name].type in _DTYPES

  def read(self, name: str) -> np.ndarray:
    """A tensor as it is in its file, which stays mapped as long as the array.

    Raises ModelFileError where its type cannot be read or its bytes are gone.
    """
    info = self.tensors[name]
    dtype = _DTYPES.get(info.type)
    if dtype is None:
      raise file_error(
        info.path,
        f'tensor {shown(name)} has type {shown(info.type)}',
        f'only {", ".join(_DTYPES)} are read, take a copy in one of them',
      )
    if not info.num_bytes:
      return np.empty(info.shape, dtype)
    try:
      return np.memmap(info.path, dtype, 'r', info.offset, info.shape)
    except (OSError, ValueError) as error:
      raise file_error(
        info.path, f'tensor {shown(name)} cannot be mapped: {error}'
      ) from error


def open_folder(folder: str | Path) -> SafetensorsFolder:
  """Reads the headers of all files with weights in a folder, no tensor.

  The file is `model.safetensors`; without it, `model.safetensors.index.json`
  names the files and which tensor is in which.

  Raises ModelFileError, naming the file, for anything that is not a sound file
  of safetensors, a file outside the folder, and, all in one error, files that
  are missing and tensors that the index and the files do not agree on.
  """
  folder = Path(folder)
  tensors: dict[str, StoredTensor] = {}
  problems: dict[str, list[str]] = {
    'files missing': [],
    'tensors missing': [],
    'tensors not in the index': [],
    'tensors in several files': [],
  }
  missing, absent, unknown, twice = problems.values()
  for name, indexed in weight_files(folder).items():
    if indexed and not os.path.exists(folder / name):
      missing.append(name)
      continue
    found = _header(folder, name)
    twice += sorted(tensors.keys() & found.keys())
    tensors |= found
    if indexed is not None:
      absent += sorted(indexed - found.keys())
      unknown += sorted(found.keys() - indexed)
  if any(problems.values()):
    raise file_error(
      folder / INDEX,
      '; '.join(f'{kind}: {listed(x)}' for kind, x in problems.items() if x),
    )
  return SafetensorsFolder(folder, tensors)


def weight_files(folder: Path) -> dict[str, set[str] | None]:
  """Names of the files with weights in a folder, and their tensors.

  The tensors are those that the index says a file holds; None without index.

  Raises ModelFileError for an index that is none, or that leaves the folder.
  """
  if os.path.exists(folder / WEIGHTS):
    return {WEIGHTS: None}
  path = folder / INDEX
  entries = read_object(folder, INDEX).get('weight_map')
  if not isinstance(entries, dict) or not entries:
    raise file_error(path, f'weight_map is {shown(entries)}, no table')
  files: dict[str, set[str] | None] = {}
  for tensor, name in entries.items():
    if not isinstance(name, str) or not name.endswith('.safetensors'):
      raise file_error(
        path,
        f'tensor {shown(tensor)} is in {shown(name)}, which is no name of '
        'a safetensors file',
      )
    check_name(path, name)
    files.setdefault(name, set()).add(tensor)
  return files


def _header(folder: Path, name: str) -> dict[str, StoredTensor]:
  """What a file says of its tensors, held against its size."""
  path = folder / name
  try:
    with inside(folder, name).open('rb') as file:
      size = os.fstat(file.fileno()).st_size
      start = file.read(_LENGTH.size)
      if len(start) < _LENGTH.size:
        raise file_error(
          path, f'has {size} bytes, no safetensors file is so short'
        )
      (length,) = _LENGTH.unpack(start)
      if length > min(_MAX_HEADER_BYTES, size - _LENGTH.size):
        raise file_error(
          path,
          f'the header would take {length} bytes of a file of {size}, and may '
          f'take {_MAX_HEADER_BYTES} at most',
        )
      data = file.read(length)
  except OSError as error:
    raise file_error(
      path, f'cannot be read: {error.strerror}', 'check the path'
    ) from error
  entries = parse_object(data, path, 'its header is')
  entries.pop('__metadata__', None)
  start = _LENGTH.size + length
  tensors = {
    name: _tensor(path, name, entry, start) for name, entry in entries.items()
  }
  end = start
  by_place = lambda item: (item[1].offset, item[1].num_bytes)
  for name, tensor in sorted(tensors.items(), key=by_place):
    # Back to back, as the format's own library demands.
    if tensor.offset != end:
      kind = 'overlaps another' if tensor.offset < end else 'leaves a gap'
      raise file_error(path, f'tensor {shown(name)} {kind} at byte {end}')
    end += tensor.num_bytes
  if end != size:
    raise file_error(path, f'has {size} bytes, its tensors end at byte {end}')
  return tensors


def _tensor(path: Path, name: str, entry: Any, start: int) -> StoredTensor:
  """One entry of a header, with `start` the first byte behind the header."""

  def fail(problem: str) -> ModelFileError:
    return file_error(path, f'tensor {shown(name)} {problem}')

  if not isinstance(entry, dict) or entry.keys() != {*_ENTRY}:
    raise fail(f'has no entry of {", ".join(_ENTRY)}')
  kind, shape, offsets = (entry[key] for key in _ENTRY)
  if not isinstance(kind, str):
    raise fail(f'has dtype {shown(kind)}')
  if not _are_counts(shape) or len(shape) > _MAX_RANK:
    raise fail(f'has shape {shown(shape)}')
  if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
    raise fail(f'has offsets {shown(offsets)}')
  num_bytes = offsets[1] - offsets[0]
  item_bytes = _ITEM_BYTES.get(kind)
  if item_bytes and math.prod(shape) * item_bytes != num_bytes:
    raise fail(
      f'of type {kind} and shape {shape} cannot have {num_bytes} bytes'
    )
  return StoredTensor(path, tuple(shape), kind, start + offsets[0], num_bytes)


def _are_counts(values: Any) -> bool:
  return isinstance(values, list) and all(
    type(value) is int and 0 <= value < _TOO_MUCH for value in values
  )
