# SPDX-License-Identifier: Apache-2.0
"""Safetensors: what is in a folder comes out, and damage is named."""

import json
import os
import struct
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from tiny_folder import content, file, write_sharded

from thicket.models.files import ModelFileError
from thicket.models.safetensors import INDEX, WEIGHTS, open_folder


def tensors():
  values = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)
  return {
    'wide.weight': values,
    'half.weight': values.astype(np.float16),
    'brain.weight': values.astype(ml_dtypes.bfloat16),
    'norm.weight': values[0],
  }


def check_all(folder, arrays):
  found = open_folder(folder)
  assert found.path == folder
  assert found.tensors.keys() == arrays.keys()
  for name, array in arrays.items():
    value = found.read(name)
    assert value.dtype == array.dtype
    assert found.tensors[name].shape == array.shape
    np.testing.assert_array_equal(value, array)


def refused(folder):
  with pytest.raises(ModelFileError) as caught:
    open_folder(folder)
  message = str(caught.value)
  assert '\n' not in message
  assert len(message) < 700
  return message


def test_one_file_and_shards_hold_what_was_written(tmp_path):
  arrays = tensors()
  one, many = tmp_path / 'one', tmp_path / 'many'
  for folder in (one, many):
    folder.mkdir()
  (one / WEIGHTS).write_bytes(content(arrays))
  check_all(one, arrays)
  parts = [dict(list(arrays.items())[i : i + 2]) for i in (0, 2)]
  write_sharded(many, {'a.safetensors': parts[0], 'b.safetensors': parts[1]})
  check_all(many, arrays)


def test_files_of_the_package_are_read(tmp_path):
  package = pytest.importorskip('safetensors.numpy')
  arrays = tensors()
  package.save_file(arrays, tmp_path / WEIGHTS, {'format': 'pt'})
  check_all(tmp_path, arrays)


def test_tensors_are_mapped_and_cannot_be_written_to(tmp_path):
  values = np.arange(2**20, dtype=np.float32)
  (tmp_path / WEIGHTS).write_bytes(content({'a': values}))
  found = open_folder(tmp_path)
  tracemalloc.start()
  value = found.read('a')
  assert tracemalloc.get_traced_memory()[1] < values.nbytes / 50
  tracemalloc.stop()
  assert not value.flags.writeable
  np.testing.assert_array_equal(value, values)


def test_empty_tensors_and_scalars(tmp_path):
  arrays = {
    'none': np.zeros((0, 3), np.float32),
    'one': np.float32(2.5).reshape(()),
    'empty': np.zeros(0, np.float16),
  }
  (tmp_path / WEIGHTS).write_bytes(content(arrays))
  check_all(tmp_path, arrays)


def test_one_file_goes_before_an_index(tmp_path):
  arrays = tensors()
  write_sharded(tmp_path, {'a.safetensors': {'x': np.ones(3, np.float32)}})
  (tmp_path / WEIGHTS).write_bytes(content(arrays))
  check_all(tmp_path, arrays)


def test_types_that_are_not_read(tmp_path):
  header = {
    'ids': {'dtype': 'I64', 'shape': [1], 'data_offsets': [0, 8]},
    'eight': {'dtype': 'F8_E4M3', 'shape': [4], 'data_offsets': [8, 12]},
    'new': {'dtype': 'F3_X', 'shape': [8], 'data_offsets': [12, 15]},
  }
  (tmp_path / WEIGHTS).write_bytes(file(header, bytes(15)))
  # Where they are not needed, they may be there.
  found = open_folder(tmp_path)
  assert [found.is_readable(name) for name in header] == [False] * 3
  for name, kind in (('ids', 'I64'), ('eight', 'F8_E4M3'), ('new', 'F3_X')):
    with pytest.raises(ModelFileError) as caught:
      found.read(name)
    assert str(caught.value) == (
      f"{tmp_path / WEIGHTS}: tensor '{name}' has type '{kind}'; only F32, "
      'F16, BF16 are read, take a copy in one of them'
    )


def _entry(dtype='F32', shape=(2,), offsets=(0, 8), **more):
  entry = {'dtype': dtype, 'shape': shape, 'data_offsets': offsets}
  return {'a': entry | more}


TWO = {**_entry(), 'b': _entry(offsets=(8, 16))['a']}
BROKEN = {
  'empty': (b'', 'has 0 bytes, no safetensors file is so short'),
  'seven bytes': (bytes(7), 'has 7 bytes'),
  'length beyond the file': (
    file({}, length=3),
    'the header would take 3 bytes of a file of 10',
  ),
  'length beyond all': (
    file({}, length=2**64 - 1),
    f'the header would take {2**64 - 1} bytes',
  ),
  'no JSON': (file(b'{"a": '), 'its header is no JSON: Expecting value'),
  'not UTF-8': (file(b'{"\xff": 1}'), "its header is no JSON: 'utf-8' codec"),
  'NUL bytes': (file(bytes(20)), 'its header is no JSON'),
  'deep': (file(b'[' * 10**5), 'its header is JSON nested too deeply'),
  'many digits': (file(b'{"a": ' + b'9' * 5000 + b'}'), 'no JSON: Exceeds'),
  'a list': (file([]), 'its header is a JSON list, not an object'),
  'keys twice': (
    file(b'{"a": 1, "b": 2, "a": 3}'),
    "its header is no JSON: key 'a' occurs twice",
  ),
  'keys of an entry twice': (
    file(b'{"a": {"dtype": "F32", "dtype": "F16"}}'),
    "key 'dtype' occurs twice",
  ),
  'no entry': (file({'a': 3}), "tensor 'a' has no entry of dtype, shape"),
  'more in an entry': (file(_entry(more=1), bytes(8)), 'has no entry of'),
  'dtype': (file(_entry(dtype=['F32']), bytes(8)), "has dtype ['F32']"),
  'shape': (file(_entry(shape='2'), bytes(8)), "has shape '2'"),
  'float shape': (file(_entry(shape=[2.0]), bytes(8)), 'has shape [2.0]'),
  'bool shape': (file(_entry(shape=[True]), bytes(8)), 'has shape [True]'),
  'minus': (file(_entry(shape=[-1, -2]), bytes(8)), 'has shape [-1, -2]'),
  'rank': (file(_entry(shape=[1] * 9), bytes(4)), 'has shape [1, 1, 1'),
  'offsets': (file(_entry(offsets=[0]), bytes(8)), 'has offsets [0]'),
  'backwards': (file(_entry(offsets=[8, 0]), bytes(8)), 'has offsets [8, 0]'),
  'negative': (file(_entry(offsets=[-8, 0]), bytes(8)), 'has offsets [-8, 0]'),
  'huge': (
    file(_entry(shape=[2**62, 2**62]), bytes(8)),
    'of type F32 and shape [4611686018427387904, 4611686018427387904] cannot',
  ),
  'shape and bytes': (
    file(_entry(shape=[3]), bytes(8)),
    'of type F32 and shape [3] cannot have 8 bytes',
  ),
  'cut short': (
    file(_entry(), bytes(7)),
    'tensors end at byte',
  ),
  'more behind': (file(_entry(), bytes(9)), 'tensors end at byte'),
  'beyond the file': (
    file(_entry(shape=[2**40], offsets=[0, 2**42]), bytes(8)),
    'tensors end at byte 43980465111',
  ),
  'overlap': (
    file({**TWO, 'b': _entry(offsets=(4, 12))['a']}, bytes(12)),
    "tensor 'b' overlaps another",
  ),
  'same place': (
    file({**TWO, 'b': _entry()['a']}, bytes(8)),
    "tensor 'b' overlaps another",
  ),
  'gap': (
    file({**TWO, 'b': _entry(offsets=(12, 20))['a']}, bytes(20)),
    "tensor 'b' leaves a gap",
  ),
}


@pytest.mark.parametrize('name', BROKEN)
def test_damage_is_named_in_one_line(name, tmp_path):
  data, problem = BROKEN[name]
  (tmp_path / WEIGHTS).write_bytes(data)
  message = refused(tmp_path)
  assert message.startswith(f'{tmp_path / WEIGHTS}: ')
  assert problem in message


def test_two_tensors_back_to_back_are_no_damage(tmp_path):
  # What the broken ones above were made of.
  (tmp_path / WEIGHTS).write_bytes(file(TWO, bytes(16)))
  assert open_folder(tmp_path).tensors.keys() == {'a', 'b'}


def test_a_header_that_is_too_long(tmp_path):
  path = tmp_path / WEIGHTS
  with path.open('wb') as sparse:
    sparse.write(struct.pack('<Q', 100_000_001))
    sparse.truncate(200_000_000)
  tracemalloc.start()
  assert 'the header would take 100000001 bytes' in refused(tmp_path)
  assert tracemalloc.get_traced_memory()[1] < 10**6
  tracemalloc.stop()


def test_hostile_names_stay_in_one_line(tmp_path):
  name = 'a\nb' + 'x' * 5000
  (tmp_path / WEIGHTS).write_bytes(file({name: _entry(shape=[3])['a']}))
  assert r"tensor 'a\nbxxx" in refused(tmp_path)


def test_a_file_that_shrinks_after_it_was_opened(tmp_path):
  path = tmp_path / WEIGHTS
  path.write_bytes(content({'a': np.ones(10**5, np.float32)}))
  found = open_folder(tmp_path)
  os.truncate(path, 1000)
  with pytest.raises(ModelFileError, match="'a' cannot be mapped"):
    found.read('a')
  path.unlink()
  with pytest.raises(ModelFileError, match="'a' cannot be mapped"):
    found.read('a')


# The index.

ONE, OTHER = 'one.safetensors', 'other.safetensors'


@pytest.fixture
def sharded(tmp_path):
  """A folder of two shards; gives it and its index."""
  x = np.ones(3, np.float32)
  index = write_sharded(tmp_path, {ONE: {'a': x, 'b': x}, OTHER: {'c': x}})
  return tmp_path, index


def _rewrite(folder, index, **places):
  index['weight_map'] |= places
  (folder / INDEX).write_text(json.dumps(index))


def test_all_that_index_and_files_disagree_on_is_one_error(sharded):
  folder, index = sharded
  x = np.ones(3, np.float32)
  (folder / OTHER).write_bytes(content({'a': x, 'more': x}))
  _rewrite(folder, index, d='third.safetensors', e='fourth.safetensors')
  assert refused(folder) == (
    f'{folder / INDEX}: '
    'files missing: third.safetensors, fourth.safetensors; '
    'tensors missing: c; tensors not in the index: a, more; '
    'tensors in several files: a; '
    'the file is damaged or incomplete, get it again'
  )


def test_a_shard_that_is_damaged_is_named(sharded):
  folder, _ = sharded
  os.truncate(folder / OTHER, 30)
  assert refused(folder).startswith(f'{folder / OTHER}: ')


@pytest.mark.parametrize(
  ('text', 'problem'),
  [
    ('', 'is no JSON'),
    ('[]', 'is a JSON list, not an object'),
    ('{}', 'weight_map is None, no table'),
    ('{"weight_map": []}', 'weight_map is [], no table'),
    ('{"weight_map": {}}', 'weight_map is {}, no table'),
    ('{"weight_map": {"a": 3}}', "tensor 'a' is in 3, which is no name"),
    ('{"weight_map": {"a": "b.bin"}}', "is in 'b.bin', which is no name"),
    ('{"weight_map": {"a": "x", "a": "y"}}', "key 'a' occurs twice"),
  ],
)
def test_an_index_that_is_none(text, problem, sharded):
  folder, _ = sharded
  (folder / INDEX).write_text(text)
  message = refused(folder)
  assert message.startswith(f'{folder / INDEX}: ')
  assert problem in message


def test_no_weights_at_all(tmp_path):
  assert f"there is no file '{INDEX}' in it" in refused(tmp_path)


@pytest.mark.parametrize(
  'name',
  [
    '/etc/one.safetensors',
    '../outside/one.safetensors',
    'x/../../outside/one.safetensors',
    '..\\one.safetensors',
    'one\0.safetensors',
  ],
)
def test_an_index_that_leaves_the_folder(name, sharded):
  folder, index = sharded
  outside = folder.parent / 'outside'
  outside.mkdir(exist_ok=True)
  (outside / ONE).write_bytes((folder / ONE).read_bytes())
  index['weight_map'] = dict.fromkeys('ab', name)
  _rewrite(folder, index)
  message = refused(folder)
  assert message.startswith(f'{folder / INDEX}: names the file ')
  assert 'which is not inside the folder; do not use it' in message


def test_a_name_that_no_file_can_have(sharded):
  folder, index = sharded
  _rewrite(folder, index, z='x' * 5000 + '.safetensors')
  assert 'files missing: ' in refused(folder)


def test_links(tmp_path):
  x = {'a': np.ones(3, np.float32)}
  folder, outside = tmp_path / 'folder', tmp_path / 'outside'
  folder.mkdir()
  outside.write_bytes(content(x))
  path = folder / WEIGHTS
  path.symlink_to(outside)
  message = refused(folder)
  assert message.startswith(f'{path}: is a link to {outside}, outside the')
  path.unlink()
  (folder / 'real').write_bytes(content(x))
  path.symlink_to('real')
  check_all(folder, x)
  # The folder itself may be reached by a link.
  (tmp_path / 'alias').symlink_to(folder)
  check_all(tmp_path / 'alias', x)
  path.unlink()
  (folder / 'up').symlink_to(tmp_path)
  places = {'weight_map': {'a': 'up/outside.safetensors'}}
  (folder / INDEX).write_text(json.dumps(places))
  outside.rename(tmp_path / 'outside.safetensors')
  assert 'outside the folder' in refused(folder)


def test_a_ring_of_links_and_a_broken_one(tmp_path):
  path = tmp_path / WEIGHTS
  places = {'weight_map': {'a': 'a.safetensors', 'b': 'b.safetensors'}}
  (tmp_path / INDEX).write_text(json.dumps(places))
  path.symlink_to('model.safetensors')
  (tmp_path / 'a.safetensors').symlink_to('a.safetensors')
  (tmp_path / 'b.safetensors').symlink_to('nowhere')
  assert 'files missing: a.safetensors, b.safetensors' in refused(tmp_path)


@pytest.mark.parametrize('blobs', ['repository/blobs', 'blobs/ab'])
def test_a_cache_of_the_hub_is_links_into_its_blobs(blobs, tmp_path):
  x = {'a': np.ones(3, np.float32)}
  folder = tmp_path / 'repository' / 'snapshots' / ('0' * 40)
  folder.mkdir(parents=True)
  blob = tmp_path / blobs / 'f00d'
  blob.parent.mkdir(parents=True)
  blob.write_bytes(content(x))
  (folder / WEIGHTS).symlink_to(os.path.relpath(blob, folder))
  check_all(folder, x)
  other = tmp_path / 'other' / 'f00d'
  other.parent.mkdir()
  blob.rename(other)
  (folder / WEIGHTS).unlink()
  (folder / WEIGHTS).symlink_to(other)
  assert 'outside the folder' in refused(folder)


def test_a_pipe_is_no_file(tmp_path):
  os.mkfifo(tmp_path / WEIGHTS)  # opened, it would wait for ever
  assert refused(tmp_path).startswith(f'{tmp_path / WEIGHTS}: is not a file')
