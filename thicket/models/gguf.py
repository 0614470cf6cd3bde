# SPDX-License-Identifier: Apache-2.0
"""GGUF files: metadata, tensor infos and dequantised tensors.

The format is specified in docs/gguf.md of the ggml project; versions 2 and 3,
little-endian, are read. A model file comes from elsewhere and is not trusted:
every count, length and offset is held against the bytes that are there before
anything is allocated or read. The reader of the `gguf` package makes several
objects of each token of the vocabulary, which takes seconds; here an array of
strings is one loop, and `gguf` is needed for its block formats only.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import mmap
import struct
from pathlib import Path
from typing import Any

import numpy as np

from thicket.models.files import ModelFileError, file_error, shown

_MAGIC = b'GGUF'
_VERSIONS = (2, 3)
_HEADER_BYTES = 24  # magic, version, number of tensors, of metadata entries
_MIN_ENTRY_BYTES = 13  # length of the key, type, one byte of value
_MIN_TENSOR_BYTES = 32  # length of the name, rank, one size, type, offset
_MAX_RANK = 4
_ALIGNMENT = 32  # bytes, where the metadata does not say otherwise

# Codes of value types, and how `struct` spells them.
_SCALARS = dict(zip((*range(8), 10, 11, 12), 'BbHhIif?Qqd', strict=True))
_BOOL, _STRING, _ARRAY = 7, 8, 9

_LENGTH = struct.Struct('<Q')


@dataclasses.dataclass(frozen=True)
class TensorInfo:
  """Where a tensor lies in its file.

  Attributes:
    name: the name in the file.
    shape: numpy's order, slowest axis first: (out, in) for a matrix.
    type: the ggml type, such as 'Q4_1'.
    offset: bytes from the start of the file.
    num_bytes: size in the file.
  """

  name: str
  shape: tuple[int, ...]
  type: str
  offset: int
  num_bytes: int


@dataclasses.dataclass(frozen=True, eq=False)
class GgufFile:
  """What `open_gguf` found.

  Attributes:
    path: the file.
    metadata: values by key; arrays of strings are lists, other arrays numpy's.
    tensors: infos by name, in the order of the file.
  """

  path: Path
  metadata: dict[str, Any]
  tensors: dict[str, TensorInfo]

  def read(self, name: str) -> np.ndarray:
    """The tensor dequantised, float32 of its info's shape, writeable.

    Raises ModelFileError where there is no such tensor, its type has no
    decoder, its bytes are gone, or a value is not finite.
    """
    from gguf import GGMLQuantizationType, quants

    info = self.tensors.get(name)
    if info is None:
      near = difflib.get_close_matches(name, self.tensors, n=3)
      raise file_error(
        self.path,
        f'no tensor {shown(name)}',
        f'near names: {", ".join(near)}' if near else 'is it another model?',
      )
    try:
      data = np.fromfile(
        self.path, np.uint8, count=info.num_bytes, offset=info.offset
      )
    except OSError as error:
      raise file_error(
        self.path, f'cannot be read: {error.strerror}'
      ) from error
    if data.size != info.num_bytes:
      raise file_error(self.path, 'was cut short after it had been opened')
    try:
      with np.errstate(all='ignore'):
        values = quants.dequantize(
          data.reshape(math.prod(info.shape[:-1]), -1),
          GGMLQuantizationType[info.type],
        )
    except NotImplementedError as error:
      raise file_error(
        self.path,
        f'tensor {shown(name)} has type {info.type}, which has no decoder',
        'use a file of another quantisation, such as Q8_0',
      ) from error
    values = values.astype(np.float32, copy=False).reshape(info.shape)
    if not np.isfinite(values).all():
      raise file_error(
        self.path, f'tensor {shown(name)} holds values that are not finite'
      )
    return values


def open_gguf(path: str | Path) -> GgufFile:
  """Reads metadata and tensor infos, no tensor.

  Raises ModelFileError, naming the path, for anything that is not a sound
  GGUF file: no file, another magic or version, big-endian, cut short, counts,
  lengths or offsets that do not fit the file, names that occur twice, tensors
  that overlap, types that are not known.
  """
  path = Path(path)
  try:
    with path.open('rb') as file:
      start = file.read(_HEADER_BYTES)
      _check_start(path, start)
      with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as buffer:
        return _parse(_Cursor(path, buffer))
  except OSError as error:
    raise file_error(
      path, f'cannot be opened: {error.strerror}', 'check the path'
    ) from error


def _check_start(path: Path, start: bytes) -> None:
  if start[:4] != _MAGIC:
    raise file_error(
      path,
      f'is not a GGUF file, it starts with {start[:4]!r}',
      'only GGUF files are read by this version',
    )
  if len(start) < _HEADER_BYTES:
    raise file_error(path, f'ends inside its header of {_HEADER_BYTES} bytes')
  (version,) = struct.unpack_from('<I', start, 4)
  if version in _VERSIONS:
    return
  if version & 0xFFFF == 0:
    raise file_error(
      path, 'is big-endian', 'convert it to a little-endian file'
    )
  raise file_error(
    path,
    f'has GGUF version {version}, versions 2 and 3 are read',
    'convert the model again with a current converter',
  )


class _Cursor:
  """Reads one value after the other and never beyond the end."""

  def __init__(self, path: Path, buffer: mmap.mmap):
    self.path = path
    self.buffer = buffer
    self.at = 0

  def take(self, num_bytes: int, what: str) -> int:
    """Where the next bytes start, after making sure that they are there."""
    start = self.at
    if num_bytes > len(self.buffer) - start:
      raise file_error(
        self.path,
        f'{what} at byte {start} needs {num_bytes} bytes, '
        f'{len(self.buffer) - start} are left',
      )
    self.at = start + num_bytes
    return start

  def scalar(self, code: str, what: str) -> Any:
    start = self.take(struct.calcsize('<' + code), what)
    return struct.unpack_from('<' + code, self.buffer, start)[0]

  def count(self, min_bytes: int, what: str) -> int:
    """A number of items that take at least `min_bytes` each."""
    number = self.scalar('Q', what)
    if number * min_bytes > len(self.buffer) - self.at:
      raise file_error(
        self.path,
        f'{what} = {number} does not fit {len(self.buffer)} bytes',
      )
    return number

  def string(self, what: str) -> str:
    return self.strings(1, what)[0]

  def strings(self, number: int, what: str) -> list[str]:
    """Strings in a row; the one hot loop, a vocabulary holds 10^5 of them."""
    buffer, size, at = self.buffer, len(self.buffer), self.at
    result = []
    try:
      for _ in range(number):
        (length,) = _LENGTH.unpack_from(buffer, at)
        end = at + 8 + length
        if end > size:
          raise file_error(
            self.path,
            f'{what} at byte {at} needs {length} bytes, {size - at - 8} are '
            'left',
          )
        result.append(buffer[at + 8 : end].decode())
        at = end
    except struct.error as error:
      raise file_error(
        self.path, f'ends inside {what}, at byte {at}'
      ) from error
    except UnicodeDecodeError as error:
      raise file_error(
        self.path, f'{what} at byte {at} is not UTF-8'
      ) from error
    self.at = at
    return result

  def value(self, kind: int, what: str) -> Any:
    if kind in _SCALARS:
      return self.scalar(_SCALARS[kind], what)
    if kind == _STRING:
      return self.string(what)
    if kind == _ARRAY:
      return self.array(what)
    raise file_error(self.path, f'{what} has unknown value type {kind}')

  def array(self, what: str) -> list[str] | np.ndarray:
    kind = self.scalar('I', what)
    if kind == _STRING:
      return self.strings(self.count(8, f'length of {what}'), what)
    if kind not in _SCALARS:
      raise file_error(self.path, f'{what} is an array of unknown type {kind}')
    dtype = np.dtype('<u1' if kind == _BOOL else '<' + _SCALARS[kind])
    number = self.count(dtype.itemsize, f'length of {what}')
    start = self.take(number * dtype.itemsize, what)
    # From a copy of the bytes: the map is closed when parsing is over.
    data = self.buffer[start : self.at]
    values = np.frombuffer(data, dtype)
    return values.astype(bool) if kind == _BOOL else values


def _parse(cursor: _Cursor) -> GgufFile:
  cursor.take(8, 'the header')
  num_tensors = cursor.scalar('Q', 'number of tensors')
  num_entries = cursor.count(_MIN_ENTRY_BYTES, 'number of metadata entries')
  metadata: dict[str, Any] = {}
  for _ in range(num_entries):
    key = cursor.string('a metadata key')
    if key in metadata:
      raise file_error(cursor.path, f'metadata key {shown(key)} occurs twice')
    kind = cursor.scalar('I', f'type of {shown(key)}')
    metadata[key] = cursor.value(kind, shown(key))
  left = len(cursor.buffer) - cursor.at
  if num_tensors * _MIN_TENSOR_BYTES > left:
    raise file_error(
      cursor.path, f'number of tensors = {num_tensors}, {left} bytes are left'
    )
  alignment = metadata.get('general.alignment', _ALIGNMENT)
  if type(alignment) is not int or alignment < 1 or alignment.bit_count() > 1:
    raise file_error(
      cursor.path, f'general.alignment = {alignment!r} is no power of two'
    )
  infos = _tensor_infos(cursor, num_tensors, alignment)
  return GgufFile(cursor.path, metadata, infos)


def _tensor_infos(
  cursor: _Cursor, number: int, alignment: int
) -> dict[str, TensorInfo]:
  """Infos by name; the tensors lie inside the file and do not overlap."""
  from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

  def fail(name: str, problem: str) -> ModelFileError:
    return file_error(cursor.path, f'tensor {shown(name)} {problem}')

  found: dict[str, tuple] = {}
  for _ in range(number):
    name = cursor.string('a tensor name')
    if name in found:
      raise fail(name, 'occurs twice')
    rank = cursor.scalar('I', 'rank of a tensor')
    if not 1 <= rank <= _MAX_RANK:
      raise fail(name, f'has {rank} axes, 1 to {_MAX_RANK} are possible')
    sizes = [cursor.scalar('Q', 'size of a tensor') for _ in range(rank)]
    code = cursor.scalar('I', 'type of a tensor')
    try:
      kind = GGMLQuantizationType(code)
    except ValueError as error:
      raise fail(name, f'has unknown type {code}') from error
    block, block_bytes = GGML_QUANT_SIZES[kind]
    if min(sizes) < 1 or sizes[0] % block:
      raise fail(name, f'of type {kind.name} cannot have sizes {sizes}')
    num_bytes = math.prod(sizes) // block * block_bytes
    offset = cursor.scalar('Q', 'offset of a tensor')
    found[name] = (tuple(reversed(sizes)), kind.name, offset, num_bytes)
  start = -(-cursor.at // alignment) * alignment
  infos = {
    name: TensorInfo(name, shape, kind, start + offset, num_bytes)
    for name, (shape, kind, offset, num_bytes) in found.items()
  }
  size, end = len(cursor.buffer), start
  for name, info in sorted(infos.items(), key=lambda item: item[1].offset):
    if info.offset + info.num_bytes > size:
      raise fail(
        name,
        f'would take {info.num_bytes} bytes at {info.offset} of a file of '
        f'{size}',
      )
    if info.offset < end or info.offset % alignment:
      raise fail(name, f'at byte {info.offset} is misplaced')
    end = info.offset + info.num_bytes
  return infos
