# SPDX-License-Identifier: Apache-2.0
"""Names of tensors: fused or not, in any order, they are the checkpoint's."""

import hashlib

import numpy as np
import pytest

from thicket import trees

S = trees.Segment


def _attention(dtype=np.float32):
  """One layer's arrays, q, k and v fused, and their spec."""
  params = {
    'norm': np.zeros(6, dtype),
    'qkv': np.zeros((8, 6), dtype),
    'scale': np.zeros((), dtype),
  }
  spec = {
    'norm': trees.Leaf((6,), (S('layers.*.norm.weight', 12, 6),)),
    'qkv': trees.Leaf(
      (8, 6),
      (
        S('layers.*.q.weight', 12, 4),
        S('layers.*.k.weight', 12, 2),
        S('layers.*.v.weight', 12, 2),
      ),
    ),
    'scale': trees.Leaf((), (S('scale', 0, 1),)),
  }
  return params, spec


@pytest.mark.parametrize(
  ('shape', 'sizes', 'rows', 'columns'),
  [
    ((), [1], (1,), 1),
    ((7,), [7], (1,), 7),
    ((3, 5), [3], (3,), 5),
    ((6, 5), [3, 1, 2], (3, 1, 2), 5),
    ((4, 3, 5), [4], (12,), 5),
    ((4, 3, 5), [1, 3], (3, 9), 5),
    ((2, 3, 4, 5), [1, 1], (12, 12), 5),
    ((2, 1), [2], (2,), 1),
  ],
)
def test_an_array_seen_as_a_matrix(shape, sizes, rows, columns):
  leaf = trees.Leaf(shape, tuple(S(f't{i}', 0, n) for i, n in enumerate(sizes)))
  assert leaf.rows == rows
  assert leaf.num_columns == columns


@pytest.mark.parametrize(
  ('shape', 'sizes'),
  [((5, 3), [2, 2]), ((5, 3), [2, 4]), ((), [2]), ((4,), [3])],
)
def test_segments_fill_the_first_axis(shape, sizes):
  with pytest.raises(ValueError, match='tensor_a: segments have'):
    trees.Leaf(shape, tuple(S('tensor_a', i, n) for i, n in enumerate(sizes)))


def test_a_vector_is_one_row_and_cannot_be_fused():
  with pytest.raises(ValueError, match='tensor_a: a vector cannot be fused'):
    trees.Leaf((4,), (S('tensor_a', 0, 2), S('tensor_b', 0, 2)))


def test_the_layer_number_goes_where_the_star_is():
  assert S('layers.*.q.weight', 12, 4).full_name == 'layers.12.q.weight'
  assert S('embed.weight', 0, 4).full_name == 'embed.weight'


def test_default_spec_names_arrays_by_their_path():
  params = {
    'params': {'Dense_0': {'kernel': np.zeros((3, 5)), 'bias': np.zeros(5)}},
    'rest': [np.zeros(()), np.zeros((2, 3, 4))],
  }
  spec = trees.default_spec(params)
  kernel = trees.Leaf((3, 5), (S('params/Dense_0/kernel', 0, 3),))
  assert spec['params']['Dense_0']['kernel'] == kernel
  assert [(s.name, s.layer, s.size) for s in trees.segments(spec)] == [
    ('params/Dense_0/bias', 0, 5),
    ('params/Dense_0/kernel', 0, 3),
    ('rest/0', 0, 1),
    ('rest/1', 0, 2),
  ]
  trees.check_spec(params, spec)


def test_segments_follow_the_leaves():
  _, spec = _attention()
  assert [s.full_name for s in trees.segments(spec)] == [
    'layers.12.norm.weight',
    'layers.12.q.weight',
    'layers.12.k.weight',
    'layers.12.v.weight',
    'scale',
  ]


def test_check_spec_names_the_array_that_does_not_fit():
  params, spec = _attention()
  trees.check_spec(params, spec)
  params['qkv'] = np.zeros((8, 7))
  with pytest.raises(ValueError, match=r'^qkv: .*\(8, 7\).*\(8, 6\)'):
    trees.check_spec(params, spec)


def test_check_spec_compares_structure():
  params, spec = _attention()
  del params['norm']
  with pytest.raises(ValueError, match='different structure'):
    trees.check_spec(params, spec)


def test_a_tensor_is_named_once_but_a_name_may_have_many_layers():
  params = [np.zeros(3), np.zeros(3)]
  leaf = lambda layer: trees.Leaf((3,), (S('layers.*.norm', layer, 3),))
  trees.check_spec(params, [leaf(0), leaf(1)])
  with pytest.raises(ValueError, match=r"'layers\.\*\.norm', layer 1, .*twice"):
    trees.check_spec(params, [leaf(1), leaf(1)])


@pytest.mark.parametrize(
  ('only', 'skip', 'moves'),
  [
    ('', '', [(True,), (True, True, True), (True,)]),
    (r'\.q\.', '', [(False,), (True, False, False), (False,)]),
    ('', 'norm|scale', [(False,), (True, True, True), (False,)]),
    # The layer number is part of what a pattern sees, the star is not.
    (r'layers\.12\.', r'\.[kv]\.', [(True,), (True, False, False), (False,)]),
    (r'^scale$', '', [(False,), (False, False, False), (True,)]),
  ],
)
def test_masks(only, skip, moves):
  _, spec = _attention()
  mask = trees.trainable(spec, only=only, skip=skip)
  assert [mask['norm'], mask['qkv'], mask['scale']] == moves


@pytest.mark.parametrize(
  ('only', 'skip'),
  [('layers.13', ''), ('', '.'), ('norm', 'norm'), (r'\*', '')],
)
def test_a_mask_leaves_something_to_perturb(only, skip):
  _, spec = _attention()
  with pytest.raises(ValueError, match=r'leave no tensor.*layers\.12\.norm'):
    trees.trainable(spec, only=only, skip=skip)


@pytest.mark.parametrize('patterns', [{'only': '('}, {'skip': '*'}])
def test_a_mask_is_a_regular_expression(patterns):
  _, spec = _attention()
  with pytest.raises(ValueError, match=r'^mask '):
    trees.trainable(spec, **patterns)


def test_the_fingerprint_is_written_down():
  text = (
    '[["layers.*.k.weight",12,[2,6],"float32"],'
    '["layers.*.norm.weight",12,[6],"float32"],'
    '["layers.*.q.weight",12,[4,6],"float32"],'
    '["layers.*.v.weight",12,[2,6],"float32"],'
    '["scale",0,[],"float32"]]'
  )
  expected = hashlib.sha256(text.encode()).hexdigest()
  assert trees.fingerprint(*_attention()) == expected


def test_the_fingerprint_does_not_see_layout():
  params, spec = _attention()
  _, k, v = spec['qkv'].segments
  apart = [
    (params['scale'], spec['scale']),
    (params['qkv'][6:], trees.Leaf((2, 6), (v,))),
    (params['qkv'][:6], trees.Leaf((6, 6), (spec['qkv'].segments[0], k))),
    (params['norm'], spec['norm']),
  ]
  moved = trees.fingerprint([p for p, _ in apart], [s for _, s in apart])
  assert moved == trees.fingerprint(params, spec)


@pytest.mark.parametrize(
  'leaf',
  [
    trees.Leaf((6,), (S('layers.*.norm.bias', 12, 6),)),
    trees.Leaf((6,), (S('layers.*.norm.weight', 11, 6),)),
    trees.Leaf((6, 1), (S('layers.*.norm.weight', 12, 6),)),
  ],
)
def test_the_fingerprint_sees_names_layers_and_shapes(leaf):
  params, spec = _attention()
  before = trees.fingerprint(params, spec)
  params, spec = params | {'norm': np.zeros(leaf.shape, np.float32)}, dict(spec)
  spec['norm'] = leaf
  assert trees.fingerprint(params, spec) != before


def test_the_fingerprint_sees_dtypes():
  first, second = _attention(np.float32), _attention(np.float16)
  assert trees.fingerprint(*first) != trees.fingerprint(*second)
