# SPDX-License-Identifier: Apache-2.0
"""Files that were damaged in every way: an error that says so, or a reading.

Of a fixed budget, and always the same examples, so that a failure is one for
everybody. Memory is held against the size of the file: a number in a header
must not be believed before there are bytes behind it.
"""

import contextlib
import json
import struct
import tracemalloc

import hypothesis
import numpy as np
import pytest
import tiny_folder
import tiny_gguf
from gguf import GGMLQuantizationType as Kind
from hypothesis import strategies as st

from thicket.models.files import ModelFileError
from thicket.models.gguf import open_gguf
from thicket.models.load import load
from thicket.models.safetensors import INDEX, open_folder
from thicket.models.tokenizer import TokenizerError

BUDGET = hypothesis.settings(
  max_examples=300,
  derandomize=True,
  deadline=None,
  database=None,
  suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
# Numbers that are wrong in one way or another: signs, sizes of types, limits.
NUMBERS = (0, 1, 2, 7, 255, 2**16, 2**31 - 1, 2**32, 2**40, 2**63, 2**64 - 1)


@contextlib.contextmanager
def bounded(num_bytes):
  """Refuses what takes many times the memory of a file."""
  tracemalloc.start()
  try:
    yield
    assert tracemalloc.get_traced_memory()[1] < 50 * num_bytes + 2**20
  finally:
    tracemalloc.stop()


def check(opened, path, num_bytes):
  """Opens a file and reads all of it; whether that went well.

  Every other outcome than one line that names the file is a failure.
  """
  with bounded(num_bytes):
    try:
      found = opened(path)
      for name, info in found.tensors.items():
        values = found.read(name)
        assert values.shape == tuple(info.shape)
        assert values.nbytes <= 16 * num_bytes
        np.asarray(values).sum(dtype=np.float64)  # touches every byte
    except ModelFileError as error:
      message = str(error)
      assert message.startswith(str(path))
      assert '\n' not in message
      return False
  return True


@st.composite
def damaged(draw, data):
  """Bytes of a file, flipped, cut, moved, put in, or numbers replaced."""
  data = bytearray(data)
  ways = ['flip', 'cut', 'insert', 'drop', 'copy', 'number']
  for _ in range(draw(st.integers(1, 4))):
    at = draw(st.integers(0, len(data) - 1))
    match draw(st.sampled_from(ways)):
      case 'flip':
        data[at] ^= 1 << draw(st.integers(0, 7))
      case 'cut':
        del data[max(at, 1) :]
      case 'insert':
        data[at:at] = draw(st.binary(min_size=1, max_size=16))
      case 'drop':
        del data[at : at + draw(st.integers(1, 16))]
        data += b'' if data else b'x'
      case 'copy':
        other = draw(st.integers(0, len(data) - 1))
        size = draw(st.integers(1, 64))
        data[at : at + size] = data[other : other + size]
      case 'number':
        value = draw(st.sampled_from(NUMBERS))
        size = draw(st.sampled_from((4, 8)))
        data[at : at + size] = struct.pack('<Q', value)[:size]
  return bytes(data)


# GGUF.


@pytest.fixture(scope='module')
def gguf_bytes(tmp_path_factory):
  """A small model file: metadata of all kinds, tensors of three types."""
  rng = np.random.default_rng(0)
  path = tmp_path_factory.mktemp('gguf') / 'sound.gguf'
  tensors = {
    f'{kind}.{i}': rng.standard_normal(shape).astype(np.float32)
    for kind, shape in (('norm', (64,)), ('matrix', (3, 64)))
    for i in range(2)
  }
  entries = tiny_gguf.metadata() | {
    'tokenizer.ggml.tokens': ['a', 'b', '中'],
    'tokenizer.ggml.token_type': [1, 1, 3],
    'flag': True,
  }
  tiny_gguf.write(path, tensors, entries, kind=Kind.Q4_1)
  return path.read_bytes()


def test_a_sound_gguf_file_is_read(gguf_bytes, tmp_path):
  # Or the tests below would pass whatever happens.
  path = tmp_path / 'model.gguf'
  path.write_bytes(gguf_bytes)
  assert check(open_gguf, path, len(gguf_bytes))


@BUDGET
@hypothesis.given(data=st.data())
def test_damaged_gguf_files(gguf_bytes, tmp_path, data):
  path = tmp_path / 'model.gguf'
  path.write_bytes(data.draw(damaged(gguf_bytes)))
  check(open_gguf, path, len(gguf_bytes))


@BUDGET
@hypothesis.given(
  counts=st.tuples(st.sampled_from(NUMBERS), st.sampled_from(NUMBERS)),
  sizes=st.lists(st.sampled_from(NUMBERS), max_size=5),
  kind=st.integers(0, 45),
  offset=st.sampled_from((0, 32, *NUMBERS)),
  rank=st.none() | st.sampled_from(NUMBERS[:7]),
  alignment=st.none() | st.sampled_from(NUMBERS[:8]),
)
def test_gguf_headers_of_numbers_that_make_no_sense(
  tmp_path, counts, sizes, kind, offset, rank, alignment
):
  text = lambda value: struct.pack('<Q', len(value)) + value
  entry = b''
  if alignment is not None:
    entry = text(b'general.alignment')
    entry += struct.pack('<II', 4, alignment & (2**32 - 1))
  rank = len(sizes) if rank is None else rank
  info = text(b'x') + struct.pack('<I', rank & (2**32 - 1))
  info += b''.join(struct.pack('<Q', size) for size in sizes)
  info += struct.pack('<IQ', kind, offset)
  # One time in two, the counts are right and the rest is looked at.
  num_tensors, num_entries = (1, len(entry) > 0) if kind % 2 else counts
  start = b'GGUF' + struct.pack('<IQQ', 3, num_tensors, num_entries)
  data = start + entry + info + bytes(4096)
  path = tmp_path / 'model.gguf'
  path.write_bytes(data)
  check(open_gguf, path, len(data))


# Safetensors.


@pytest.fixture(scope='module')
def tensors():
  """Tensors of the types that are read, by name."""
  values = np.random.default_rng(0).standard_normal((3, 64))
  return {
    f'{name}.weight': values.astype(dtype)
    for name, dtype in tiny_folder.TYPES.items()
  } | {'norm.weight': values[0].astype(np.float32)}


def check_folder(path, num_bytes):
  return check(open_folder, path, num_bytes)


def test_a_sound_folder_is_read(tensors, tmp_path):
  data = tiny_folder.content(tensors)
  (tmp_path / tiny_folder.WEIGHTS).write_bytes(data)
  assert check_folder(tmp_path, len(data))


@BUDGET
@hypothesis.given(data=st.data())
def test_damaged_safetensors_files(tensors, tmp_path, data):
  sound = tiny_folder.content(tensors)
  broken = data.draw(damaged(sound))
  (tmp_path / tiny_folder.WEIGHTS).write_bytes(broken)
  check_folder(tmp_path, len(sound))


JSON = st.recursive(
  st.none()
  | st.booleans()
  | st.sampled_from(NUMBERS)
  | st.sampled_from([-x for x in NUMBERS])
  | st.floats()
  | st.sampled_from(
    ['F32', 'BF16', 'F4', 'I64', '', 'x' * 100, '\n', '\ud800']
  ),
  lambda inner: (
    st.lists(inner, max_size=9)
    | st.dictionaries(st.sampled_from(['dtype', 'shape', 'a', '\0']), inner)
  ),
  max_leaves=12,
)


@BUDGET
@hypothesis.given(data=st.data())
def test_safetensors_headers_of_values_that_make_no_sense(
  tensors, tmp_path, data
):
  header = tiny_folder.entries(tensors)
  for _ in range(data.draw(st.integers(1, 3))):
    name = data.draw(st.sampled_from([*header, '__metadata__', 'new']))
    entry = header.get(name)
    if isinstance(entry, dict) and data.draw(st.integers(0, 3)):
      keys = ['dtype', 'shape', 'data_offsets', 'more']
      key = data.draw(st.sampled_from(keys))
      value = data.draw(JSON | st.lists(st.sampled_from(NUMBERS), max_size=3))
      header[name] = entry | {key: value}
    else:
      header[name] = data.draw(JSON)
  length = data.draw(st.none() | st.sampled_from(NUMBERS))
  content = b''.join(array.tobytes() for array in tensors.values())
  made = tiny_folder.file(header, content, length)
  (tmp_path / tiny_folder.WEIGHTS).write_bytes(made)
  check_folder(tmp_path, len(made))


@BUDGET
@hypothesis.given(data=st.data())
def test_damaged_indices(tensors, tmp_path, data):
  one, other = 'one.safetensors', 'other.safetensors'
  names = list(tensors)
  halves = {
    file: {name: tensors[name] for name in half}
    for file, half in ((one, names[:2]), (other, names[2:]))
  }
  index = tiny_folder.write_sharded(tmp_path, halves)
  size = sum(path.stat().st_size for path in tmp_path.iterdir())
  text = json.dumps(index).encode()
  if data.draw(st.booleans()):
    text = data.draw(damaged(text))
  else:
    places = index['weight_map']
    key = data.draw(st.sampled_from([*places, 'new']))
    places[key] = data.draw(
      JSON | st.sampled_from([one, other, f'../{one}', f'/{one}', f'./{one}'])
    )
    text = json.dumps(index).encode()
  (tmp_path / INDEX).write_bytes(text)
  check_folder(tmp_path, size)


# Whole models: what the files say of themselves is as little trusted.


@hypothesis.settings(BUDGET, max_examples=100)
@hypothesis.given(data=st.data())
def test_configs_of_values_that_make_no_sense(model_folder, data):
  folder, sound = model_folder
  values = dict(sound)
  for _ in range(data.draw(st.integers(1, 2))):
    key = data.draw(st.sampled_from([*values, 'rope_scaling', 'layer_types']))
    values[key] = data.draw(JSON)
  (folder / 'config.json').write_text(json.dumps(values))
  with contextlib.suppress(ModelFileError, TokenizerError):
    load(str(folder))


@pytest.fixture(scope='module')
def model_folder(tmp_path_factory):
  """A folder that `load` reads, and what its config.json says."""
  folder = tiny_folder.write(tmp_path_factory.mktemp('models') / 'tiny')
  load(str(folder))
  return folder, json.loads((folder / 'config.json').read_text())


@hypothesis.settings(BUDGET, max_examples=100)
@hypothesis.given(data=st.data())
def test_gguf_metadata_of_values_that_make_no_sense(tmp_path, data):
  entries = tiny_gguf.metadata()
  for _ in range(data.draw(st.integers(1, 2))):
    key = data.draw(st.sampled_from(list(entries)))
    entries[key] = data.draw(
      st.integers(0, 2**32 - 1)
      | st.floats(width=32)
      | st.booleans()
      | st.text(max_size=9)
      | st.lists(st.integers(-9, 2**31 - 1), min_size=1, max_size=5)
      | st.lists(st.text(max_size=3), min_size=1, max_size=5)
    )
  path = tmp_path / 'model.gguf'
  stored = tiny_gguf.stored(tiny_gguf.named())
  tiny_gguf.write(path, stored, entries)
  with contextlib.suppress(ModelFileError, TokenizerError):
    load(str(path))
