# SPDX-License-Identifier: Apache-2.0
"""GGUF files: what is in them comes out, and damage is named, not suffered."""

import struct
import tracemalloc

import gguf as reference
import hypothesis
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from hypothesis import strategies as st

from thicket.models import gguf

ENTRIES = {
  'general.name': ('add_string', 'thicket \u00e9'),
  'u8': ('add_uint8', 200),
  'i8': ('add_int8', -3),
  'u16': ('add_uint16', 60_000),
  'i16': ('add_int16', -30_000),
  'u32': ('add_uint32', 4_000_000_000),
  'i32': ('add_int32', -2_000_000_000),
  'u64': ('add_uint64', 2**63 + 1),
  'i64': ('add_int64', -(2**62)),
  'f32': ('add_float32', 0.5),
  'f64': ('add_float64', 0.1),
  'flag': ('add_bool', True),
  'words': ('add_array', ['', 'a b', '\u4e2d']),
  'numbers': ('add_array', [3, -1, 7]),
  'scores': ('add_array', [0.5, -1.0]),
  'flags': ('add_array', [True, False]),
}
QUANTISED = (Kind.Q8_0, Kind.Q4_1, Kind.F16)


def tensors():
  values = np.random.default_rng(0).standard_normal((3, 64), np.float32)
  return {
    'plain': (values, None),
    'norm': (values[0, :5], None),
    **{kind.name: (values, kind) for kind in QUANTISED},
  }


@pytest.fixture(scope='module')
def sound(tmp_path_factory):
  """The bytes of a file with every kind of entry and a few of tensors."""
  path = tmp_path_factory.mktemp('gguf') / 'sound.gguf'
  writer = reference.GGUFWriter(path, 'llama')
  for key, (method, value) in ENTRIES.items():
    getattr(writer, method)(key, value)
  for name, (values, kind) in tensors().items():
    if kind is not None:
      values = reference.quants.quantize(values, kind)
    raw = kind if kind in (Kind.Q8_0, Kind.Q4_1) else None
    writer.add_tensor(name, values, raw_dtype=raw)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path.read_bytes()


@pytest.fixture
def write(tmp_path):
  """Writes bytes to a file; gives its path."""

  def to_file(data):
    path = tmp_path / 'model.gguf'
    path.write_bytes(data)
    return path

  return to_file


def text(value):
  data = value if isinstance(value, bytes) else value.encode()
  return struct.pack('<Q', len(data)) + data


def entry(key, kind, value):
  return text(key) + struct.pack('<I', kind) + value


def tensor(name, sizes, kind=0, offset=0):
  shape = struct.pack(f'<I{len(sizes)}Q', len(sizes), *sizes)
  return text(name) + shape + struct.pack('<IQ', kind, offset)


def file(entries=(), infos=(), data=b'', version=3, counts=None):
  """A file put together by hand, to be wrong in one place."""
  num_infos, num_entries = counts or (len(infos), len(entries))
  head = b'GGUF' + struct.pack('<IQQ', version, num_infos, num_entries)
  head += b''.join([*entries, *infos])
  return head + bytes(-len(head) % 32) + data


def test_metadata_comes_out_as_it_went_in(sound, write):
  metadata = gguf.open_gguf(write(sound)).metadata
  assert metadata['general.architecture'] == 'llama'
  for key, (_, value) in ENTRIES.items():
    found = metadata[key]
    assert type(found) is type(value) or isinstance(found, np.ndarray)
    assert np.asarray(found).tolist() == np.asarray(value).tolist(), key


def test_tensors_are_those_of_the_reference_decoder(sound, write):
  opened = gguf.open_gguf(write(sound))
  assert list(opened.tensors) == list(tensors())
  for name, (values, kind) in tensors().items():
    assert opened.tensors[name].shape == values.shape
    found = opened.read(name)
    if kind is not None:
      blocks = reference.quants.quantize(values, kind)
      values = reference.quants.dequantize(blocks, kind)
    assert found.dtype == np.float32
    assert found.flags.writeable
    np.testing.assert_array_equal(found, values)


def test_version_2_and_another_alignment(write):
  data = np.float32([1, 2]).tobytes() + bytes(56) + np.float32([3]).tobytes()
  alignment = entry('general.alignment', 4, struct.pack('<I', 64))
  infos = [tensor('a', [2]), tensor('b', [1], offset=64)]
  content = file([alignment], infos, version=2)
  content += bytes(-len(content) % 64) + data
  opened = gguf.open_gguf(write(content))
  assert opened.read('a').tolist() == [1, 2]
  assert opened.read('b').tolist() == [3]


FLOATS = np.arange(8, dtype=np.float32).tobytes() + bytes(32)
BROKEN = {
  'empty': (b'', 'not a GGUF file'),
  'magic': (b'PK\3\4' + bytes(40), 'not a GGUF file'),
  'short': (b'GGUF\3\0\0\0', 'ends inside its header'),
  'big-endian': (b'GGUF\0\0\0\3' + bytes(16), 'big-endian'),
  'version': (file(version=1), 'version 1,'),
  'entries': (file(counts=(0, 2**60)), f'metadata entries = {2**60}'),
  'tensors': (file(counts=(2**60, 0)), f'tensors = {2**60}'),
  'key': (file([text(b'\xff')]), 'not UTF-8'),
  'key length': (file([struct.pack('<QQ', 2**63, 0)]), f'needs {2**63} bytes'),
  'value type': (file([entry('k', 13, b'')]), "'k' has unknown value type 13"),
  'nested array': (
    file([entry('k', 9, struct.pack('<IQ', 9, 1))]),
    "'k' is an array of unknown type 9",
  ),
  'array length': (
    file([entry('k', 9, struct.pack('<IQ', 12, 2**61))]),
    f"length of 'k' = {2**61}",
  ),
  'strings': (
    file([entry('k', 9, struct.pack('<IQQ', 8, 2, 5))]),
    "'k'",
  ),
  'same key': (
    file([entry('k', 0, b'1'), entry('k', 0, b'1')]),
    "'k' occurs twice",
  ),
  'alignment': (
    file([entry('general.alignment', 4, struct.pack('<I', 24))]),
    'general.alignment = 24',
  ),
  'alignment type': (
    file([entry('general.alignment', 8, text('32'))]),
    "general.alignment = '32'",
  ),
  'same tensor': (
    file(infos=[tensor('a', [4]), tensor('a', [4], offset=32)], data=FLOATS),
    "'a' occurs twice",
  ),
  'rank 0': (file(infos=[tensor('a', [])], data=FLOATS), '0 axes'),
  'rank 9': (file(infos=[tensor('a', [1] * 9)], data=FLOATS), '9 axes'),
  'no size': (file(infos=[tensor('a', [4, 0])], data=FLOATS), r'\[4, 0\]'),
  'type': (file(infos=[tensor('a', [4], kind=99)], data=FLOATS), 'type 99'),
  'half a block': (file(infos=[tensor('a', [4], kind=8)], data=FLOATS), 'Q8_0'),
  'outside': (
    file(infos=[tensor('a', [4], offset=64)], data=FLOATS),
    'of a file of',
  ),
  'size': (
    file(infos=[tensor('a', [2**40, 2**40])], data=FLOATS),
    'of a file of',
  ),
  'overlap': (
    file(infos=[tensor('a', [9]), tensor('b', [4], offset=32)], data=FLOATS),
    "'b' at byte .* misplaced",
  ),
  'between alignments': (
    file(infos=[tensor('a', [4], offset=4)], data=FLOATS),
    "'a' at byte .* misplaced",
  ),
}


@pytest.mark.parametrize('name', BROKEN)
def test_damage_is_named_in_one_line(name, write):
  content, problem = BROKEN[name]
  path = write(content)
  tracemalloc.start()
  try:
    with pytest.raises(gguf.ModelFileError, match=problem) as caught:
      gguf.open_gguf(path)
    peak = tracemalloc.get_traced_memory()[1]
  finally:
    tracemalloc.stop()
  assert str(caught.value).startswith(f'{path}: ')
  assert '\n' not in str(caught.value)
  assert peak < 1 << 20  # whatever counts the file claims


def test_no_file_and_a_folder(tmp_path):
  for path in (tmp_path / 'none.gguf', tmp_path):
    with pytest.raises(gguf.ModelFileError, match='cannot be opened'):
      gguf.open_gguf(path)


def test_errors_of_reading(write):
  infos = [tensor('blk.0.a', [4]), tensor('byte', [8], kind=24, offset=32)]
  path = write(file(infos=infos, data=FLOATS))
  opened = gguf.open_gguf(path)
  with pytest.raises(gguf.ModelFileError, match=r'near names: blk\.0\.a'):
    opened.read('blk.1.a')
  with pytest.raises(gguf.ModelFileError, match='I8, which has no decoder'):
    opened.read('byte')
  path.write_bytes(path.read_bytes()[:-60])
  with pytest.raises(gguf.ModelFileError, match='cut short'):
    opened.read('blk.0.a')
  path.unlink()
  with pytest.raises(gguf.ModelFileError, match='cannot be read'):
    opened.read('blk.0.a')


def test_values_that_are_not_finite_are_refused(write):
  data = np.float32([0, np.nan, 1, np.inf]).tobytes()
  opened = gguf.open_gguf(write(file(infos=[tensor('a', [4])], data=data)))
  with pytest.raises(gguf.ModelFileError, match="'a' holds values"):
    opened.read('a')


def parse_all(path):
  """Opens and reads everything; gives whether that worked."""
  try:
    opened = gguf.open_gguf(path)
    for name, info in opened.tensors.items():
      assert opened.read(name).shape == info.shape
  except gguf.ModelFileError:
    return False
  return True


def test_any_truncation_is_an_error(sound, write):
  path = write(sound)
  last = list(gguf.open_gguf(path).tensors.values())[-1]
  end = last.offset + last.num_bytes  # what follows is padding
  for size in range(0, len(sound), 7):
    path.write_bytes(sound[:size])
    assert parse_all(path) == (size >= end), size


@hypothesis.settings(
  max_examples=400,
  derandomize=True,
  database=None,
  deadline=None,
  suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
@hypothesis.given(data=st.data())
def test_any_changed_bytes_are_an_error_or_parse(sound, write, data):
  content = bytearray(sound)
  for _ in range(data.draw(st.integers(1, 3))):
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] = data.draw(
      st.one_of(st.integers(0, 255), st.sampled_from([0, 1, 127, 128, 255]))
    )
  parse_all(write(content))
