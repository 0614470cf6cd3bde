# SPDX-License-Identifier: Apache-2.0
"""Safetensors written as a stream: what the format's own package reads."""

import json

import ml_dtypes
import numpy as np
import pytest
import safetensors

from thicket.models import shards

SHAPES = {'b.weight': (3, 5), 'a.weight': (7,), 'b.bias': (2, 2, 2)}
DTYPES = pytest.mark.parametrize(
  'dtype', [np.float32, np.float16, ml_dtypes.bfloat16]
)


def _tensors(dtype=np.float32, shapes=SHAPES):
  rng = np.random.default_rng(0)
  return [
    (name, rng.normal(size=shape).astype(dtype))
    for name, shape in shapes.items()
  ]


def _read(path):
  """By the package; bfloat16 it knows once ml_dtypes is imported."""
  with safetensors.safe_open(path, framework='np') as file:
    assert file.metadata() == {'format': 'pt'}
    return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _assert_same(got, expected):
  assert sorted(got) == sorted(expected)
  for name, array in expected.items():
    assert (got[name].dtype, got[name].shape) == (array.dtype, array.shape)
    assert got[name].tobytes() == array.tobytes(), name


@DTYPES
def test_one_file_is_what_the_package_reads(dtype, tmp_path):
  tensors = _tensors(dtype)
  shards.write(tmp_path, SHAPES, dtype, tensors)
  assert [path.name for path in tmp_path.iterdir()] == ['model.safetensors']
  _assert_same(_read(tmp_path / 'model.safetensors'), dict(tensors))


def test_the_first_tensor_is_aligned(tmp_path):
  for length in range(1, 9):
    name = 'x' * length
    folder = tmp_path / name
    folder.mkdir()
    shards.write(folder, {name: (1,)}, np.float32, [(name, np.float32([2]))])
    data = (folder / 'model.safetensors').read_bytes()
    assert int.from_bytes(data[:8], 'little') % 8 == 0
    assert len(data) % 8 == 4


@pytest.mark.parametrize(
  ('most', 'files'),
  [
    # Bytes are 60, 28 and 32.
    (120, [['b.weight', 'a.weight', 'b.bias']]),
    (119, [['b.weight', 'a.weight'], ['b.bias']]),
    (60, [['b.weight'], ['a.weight', 'b.bias']]),
    (59, [['b.weight'], ['a.weight'], ['b.bias']]),
    (1, [['b.weight'], ['a.weight'], ['b.bias']]),
  ],
)
def test_files_are_cut_at_the_limit(most, files, tmp_path):
  tensors = _tensors()
  shards.write(tmp_path, SHAPES, np.float32, tensors, most)
  index = tmp_path / 'model.safetensors.index.json'
  assert index.exists() == (len(files) > 1)
  if len(files) == 1:
    return
  n = len(files)
  where = {
    name: f'model-{i:05d}-of-{n:05d}.safetensors'
    for i, names in enumerate(files, 1)
    for name in names
  }
  assert json.loads(index.read_text(encoding='utf-8')) == {
    'metadata': {'total_size': 120},
    'weight_map': where,
  }
  found = {}
  for file in {*where.values()}:
    part = _read(tmp_path / file)
    assert {where[name] for name in part} == {file}
    found |= part
  _assert_same(found, dict(tensors))


def test_each_tensor_is_written_before_the_next_is_asked_for(tmp_path):
  shapes = {f'{i}': (1 << 16,) for i in range(4)}
  path = tmp_path / 'model.safetensors'
  sizes = []

  def stream():
    for name, shape in shapes.items():
      sizes.append(path.stat().st_size)
      yield name, np.zeros(shape, np.float32)

  shards.write(tmp_path, shapes, np.float32, stream())
  # The header may still be in a buffer when the first is asked for.
  assert [size // (4 << 16) for size in sizes] == [0, 1, 2, 3]


def test_a_view_that_is_not_contiguous_is_written_in_its_order(tmp_path):
  array = np.arange(12, dtype=np.float32).reshape(3, 4).T[1:]
  shards.write(tmp_path, {'x': (3, 3)}, np.float32, [('x', array)])
  (got,) = _read(tmp_path / 'model.safetensors').values()
  np.testing.assert_array_equal(got, array)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda x: x[:-1], r'b\.bias: nothing came'),
    (lambda x: [x[1], x[0], x[2]], r'b\.weight: a\.weight came'),
    (lambda x: [*x, ('c', x[1][1])], 'c: a tensor more'),
    (lambda x: [(x[0][0], x[0][1].T), *x[1:]], r'float32 \(5, 3\) came'),
    (lambda x: [(x[0][0], x[0][1] > 0), *x[1:]], r'bool \(3, 5\) came'),
  ],
)
def test_what_was_not_said_is_refused(change, message, tmp_path):
  with pytest.raises(ValueError, match=message):
    shards.write(tmp_path, SHAPES, np.float32, change(_tensors()))


def test_only_floats_that_models_have_are_written(tmp_path):
  with pytest.raises(ValueError, match='float64 is not one of float32'):
    shards.write(tmp_path, SHAPES, np.float64, _tensors(np.float64))
