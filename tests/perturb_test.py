# SPDX-License-Identifier: Apache-2.0
"""Members: the same bits on every path, one rounding, the base untouched."""

import os
import pathlib
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from scipy import special

from thicket import families, perturb, prng, scales, sharding, trees

SEED = 2**40 + 17
IDS = [0, 5, 2, -1, 4999, 1, 7, 2**31 - 1]
SIGMAS = [0.01, 0.5, 0.03, 0.01, 1.0, 0.0, 2e-3, 0.1]

# Canonical tensors by (name, layer). No width but one is a multiple of 32, and
# the 3-D kernel, the vectors and the scalar are seen as matrices.
SHAPES = {
  ('layers.*.q.weight', 3): (16, 70),
  ('layers.*.k.weight', 3): (8, 70),
  ('layers.*.v.weight', 3): (8, 70),
  ('layers.*.norm.weight', 3): (40,),
  ('conv.weight', 0): (5, 3, 7),
  ('embed.weight', 0): (33, 64),
  ('gain', 0): (),
}
QKV = tuple(SHAPES)[:3]
EACH = pytest.mark.parametrize('family', families.FAMILIES)
DTYPES = pytest.mark.parametrize('dtype', [np.float32, ml_dtypes.bfloat16])


def _mesh(count=1):
  mesh = sharding.make_mesh(jax.devices()[:count])
  assert sharding.num_devices(mesh) == count
  return mesh


def _bits(array):
  array = np.asarray(array)
  return array.view({2: np.uint16, 4: np.uint32}[array.dtype.itemsize])


def _assert_bits(got, expected):
  assert got.dtype == expected.dtype
  np.testing.assert_array_equal(_bits(got), _bits(expected))


def _tensors(dtype=np.float32):
  """Weights of `SHAPES`, both zeros among them."""
  rng = np.random.default_rng(0)
  tensors = {}
  for key, shape in SHAPES.items():
    value = rng.normal(size=shape)
    if value.size > 2:
      value.flat[:2] = 0.0, -0.0
    tensors[key] = np.asarray(value).astype(dtype)
  return tensors


def _leaf(*keys):
  """The leaf of canonical tensors that lie one under the other."""
  sizes = [SHAPES[key][0] if SHAPES[key] else 1 for key in keys]
  shape = SHAPES[keys[0]]
  return trees.Leaf(
    (sum(sizes), *shape[1:]) if shape else (),
    tuple(
      trees.Segment(*key, size) for key, size in zip(keys, sizes, strict=True)
    ),
  )


def _apart(tensors, keys=None):
  """Each tensor an array of its own: base and spec."""
  keys = tensors if keys is None else keys
  base = {f'{name}@{layer}': tensors[name, layer] for name, layer in keys}
  spec = {f'{name}@{layer}': _leaf((name, layer)) for name, layer in keys}
  return base, spec


def _fused(tensors):
  """The layout of a model: q, k and v in one array."""
  base, spec = _apart(tensors, tuple(SHAPES)[3:])
  base['qkv'] = np.concatenate([tensors[key] for key in QKV])
  spec['qkv'] = _leaf(*QKV)
  return base, spec


def _small(dtype=np.float32):
  """A fused array and a vector, where each array more is a compilation."""
  base, spec = _fused(_tensors(dtype))
  names = 'qkv', 'layers.*.norm.weight@3'
  return {n: base[n] for n in names}, {n: spec[n] for n in names}


def _perturber(base, spec, *, mesh=None, **options):
  mesh = _mesh() if mesh is None else mesh
  options = {'seed': SEED} | options
  return perturb.Perturber(
    sharding.replicate(mesh, base), spec, mesh=mesh, **options
  )


def _write(perturber, ids=IDS, sigmas=SIGMAS):
  # To the host before anything is sliced: a slice of a sharded array is a sum
  # over devices, in which -0 becomes 0.
  members = perturber.write(ids, sigmas, perturber.buffers(len(ids)))
  return jax.tree.map(np.asarray, members)


def _keys(leaf, ids):
  """Keys [M, S, 2] of a leaf's tensors."""
  names = [segment.name for segment in leaf.segments]
  layers = [segment.layer for segment in leaf.segments]
  return prng.tensor_keys(SEED, ids, names, layers)


def _host_noise(family, key, shape):
  """Noise by the written contract, from JAX's own words; float64."""
  rows = int(np.prod(shape[:-1]))
  columns = shape[-1] if shape else 1
  drawn = -(-columns // 32) if family == 'rademacher' else columns
  wrapped = jax.random.wrap_key_data(jnp.asarray(key), impl='threefry2x32')
  if family == 'low_rank' and len(shape) > 1:
    thin = _host_normal(jax.random.bits(wrapped, (rows + columns,)))
    return np.outer(thin[:rows], thin[rows:]).reshape(shape)
  words = np.asarray(jax.random.bits(wrapped, (rows, drawn)))
  if family == 'rademacher':
    lanes = np.arange(columns)
    bits = words[:, lanes // 32] >> (lanes % 32).astype(np.uint32)
    return (1.0 - 2.0 * (bits & 1)).reshape(shape)
  return _host_normal(words).reshape(shape)


def _host_normal(words):
  u = np.asarray(words).view(np.int32).astype(np.float32) * np.float32(2**-31)
  last = 1 - 2.0**-24
  return np.sqrt(2) * special.erfinv(np.clip(u.astype(np.float64), -last, last))


def _device_noise(family, key, leaf):
  draw = jax.jit(families.draw, static_argnums=(0, 2))
  return np.asarray(draw(family, key, leaf))


@EACH
@pytest.mark.parametrize(
  'keys', [QKV, *((key,) for key in SHAPES if key not in QKV)]
)
def test_noise_is_the_written_contract(family, keys):
  leaf = _leaf(*keys)
  tensor_keys = _keys(leaf, [5])[0]
  got = _device_noise(family, tensor_keys, leaf)
  assert got.shape == leaf.shape
  assert got.dtype == np.float32
  expected = [
    np.atleast_1d(_host_noise(family, word, SHAPES[key]))
    for word, key in zip(tensor_keys, keys, strict=True)
  ]
  # The bound of erf_inv and the roundings of u, sqrt(2) and the product. Signs
  # are far apart: for them it is equality.
  # A low-rank element is a product of two deviates, rounded once more.
  rtol = 1.1e-6 if family == 'low_rank' else 5e-7
  np.testing.assert_allclose(
    got, np.concatenate(expected).reshape(leaf.shape), rtol=rtol
  )


@EACH
def test_around_a_base_of_zeros_members_are_the_noise(family):
  base, spec = _fused(jax.tree.map(np.zeros_like, _tensors()))
  members = _write(_perturber(base, spec, family=family), [7, 4], [1.0, 0.25])
  for name, leaf in spec.items():
    for i, (member, sigma) in enumerate([(7, 1.0), (4, 0.25)]):
      noise = _device_noise(family, _keys(leaf, [member])[0], leaf)
      np.testing.assert_array_equal(members[name][i], np.float32(sigma) * noise)


@EACH
@DTYPES
def test_weights_are_summed_in_float32_and_rounded_once(family, dtype):
  base, spec = _fused(_tensors(dtype))
  members = _write(_perturber(base, spec, family=family))
  moved = 0
  for name, leaf in spec.items():
    keys = _keys(leaf, IDS)
    for i, (member, sigma) in enumerate(zip(IDS, SIGMAS, strict=True)):
      if member < 0 or not sigma:
        continue
      noise = _device_noise(family, keys[i], leaf).astype(np.float64)
      step = np.float64(np.float32(sigma)) * noise
      exact = base[name].astype(np.float64) + step
      # The compiler may or may not round c * n before the sum, and rounds it
      # in another order: 2 roundings of it at most. The sum is rounded to
      # float32 and then once to the dtype; rounding keeps order.
      slack = np.abs(step) * 2.0**-23
      low, high = (
        bound.astype(np.float32).astype(dtype)
        for bound in (exact - slack, exact + slack)
      )
      got = members[name][i]
      assert got.dtype == dtype
      assert np.all((low <= got) & (got <= high))
      moved += np.count_nonzero(got != base[name])
  # Most weights of the 6 members; sigma 0.002 is small for bfloat16.
  assert moved > 0.75 * 6 * sum(array.size for array in base.values())


@EACH
@DTYPES
def test_every_path_gives_the_same_bits(family, dtype):
  base, spec = _fused(_tensors(dtype))
  del base['embed.weight@0'], spec['embed.weight@0']  # compiling takes time

  def population(devices, chunk):
    perturber = _perturber(base, spec, mesh=_mesh(devices), family=family)
    buffers = perturber.buffers(chunk)
    parts = []
    for start in range(0, len(IDS), chunk):
      part = slice(start, start + chunk)
      buffers = perturber.write(IDS[part], SIGMAS[part], buffers)
      parts.append(jax.tree.map(np.array, buffers))
    return {name: np.concatenate([p[name] for p in parts]) for name in base}

  looped = population(1, 1)
  for devices, chunk in [(1, 8), (2, 4), (8, 8)]:
    other = population(devices, chunk)
    for name in base:
      _assert_bits(other[name], looped[name])


@EACH
@DTYPES
def test_fused_tensors_have_their_own_bits(family, dtype):
  tensors = _tensors(dtype)
  tensors[QKV[1]] *= np.asarray(4, dtype)  # another root mean square than q
  options = {'family': family, 'scale': 'relative'}
  apart = _write(_perturber(*_apart(tensors, QKV), **options))
  base = {'qkv': np.concatenate([tensors[key] for key in QKV])}
  fused = _write(_perturber(base, {'qkv': _leaf(*QKV)}, **options))
  expected = [apart[f'{name}@{layer}'] for name, layer in QKV]
  _assert_bits(fused['qkv'], np.concatenate(expected, axis=1))


@EACH
@pytest.mark.parametrize('shape', [(5, 3, 7), (500, 1), (50, 7, 1, 1)])
def test_fused_kernels_of_any_shape_have_their_own_bits(family, shape):
  # Among them those with one column: there, nothing is spread over a row, and
  # the compiler orders the products differently if it may.
  first = shape[0] // 2
  parts = [
    trees.Segment('a', 0, first),
    trees.Segment('b', 0, shape[0] - first),
  ]
  weights = np.random.default_rng(1).normal(size=shape).astype(np.float32)
  fused = _perturber(
    [weights], [trees.Leaf(shape, tuple(parts))], family=family
  )
  apart = _perturber(
    [weights[:first], weights[first:]],
    [trees.Leaf((part.size, *shape[1:]), (part,)) for part in parts],
    family=family,
  )
  ids, sigmas = [0, 1, 2], [0.1, 0.3, 0.01]
  _assert_bits(
    _write(fused, ids, sigmas)[0],
    np.concatenate(_write(apart, ids, sigmas), axis=1),
  )


@pytest.mark.parametrize('scale', scales.SCALES)
@pytest.mark.parametrize('family', families.FAMILIES)
def test_one_array_alone_has_the_bits_of_the_whole(family, scale):
  base, spec = _fused(_tensors(ml_dtypes.bfloat16))
  mask = trees.trainable(spec, only='qkv|k|conv|norm|gain')
  whole = _perturber(base, spec, family=family, scale=scale, mask=mask)
  written = jax.tree.leaves(_write(whole))
  for index, expected in enumerate(written):
    (got,) = _write(whole.part(index))
    _assert_bits(got, expected)
  frozen = sorted(base).index('embed.weight@0')
  assert whole.part(frozen).in_axes == [None]
  assert written[frozen].shape == SHAPES['embed.weight', 0]


def test_a_part_of_factored_members_is_dense():
  base, spec = _small()
  options = {'family': 'low_rank:2', 'seed': SEED}
  place = lambda tree: {'params': tree}
  factored = _perturber(place(base), place(spec), factored=True, **options)
  dense = _write(_perturber(base, spec, **options))
  for index, expected in enumerate(jax.tree.leaves(dense)):
    part = factored.part(index)
    assert part.in_axes == [0]
    (got,) = _write(part)
    _assert_bits(got, expected)


@pytest.mark.parametrize('devices', [1, 8])
def test_members_are_written_into_the_donated_buffer(devices):
  perturber = _perturber(*_fused(_tensors()), mesh=_mesh(devices))

  def places(array):
    return [s.data.unsafe_buffer_pointer() for s in array.addressable_shards]

  buffers = perturber.buffers(8)
  before = jax.tree.map(places, buffers)
  for ids in ([*range(8)], [*range(8, 16)]):
    members = perturber.write(ids, [0.1] * 8, buffers)
    jax.block_until_ready(members)
    assert all(array.is_deleted() for array in jax.tree.leaves(buffers))
    assert jax.tree.map(places, members) == before
    for array in jax.tree.leaves(members):
      assert array.sharding == sharding.over_members(perturber._mesh)
    buffers = members


@EACH
@DTYPES
def test_the_base_is_never_modified(family, dtype):
  base, spec = _small(dtype)
  device_base = sharding.replicate(_mesh(2), base)
  perturber = perturb.Perturber(
    device_base, spec, seed=SEED, mesh=_mesh(2), family=family
  )
  buffers = perturber.buffers(2)
  for first in range(0, 20, 2):
    buffers = perturber.write([first, first + 1], [1.0, 1.0], buffers)
  # Nothing drifts either: the base is still member -1, and sigma 0.
  members = jax.tree.map(
    np.asarray, perturber.write([-1, 3], [1.0, 0.0], buffers)
  )
  for name, array in base.items():
    # Without a minus zero the sum w + 0 * n would pass as well.
    assert np.any(np.signbit(array) & (array == 0))
    assert not device_base[name].is_deleted()
    _assert_bits(device_base[name], array)
    _assert_bits(members[name][0], array)
    _assert_bits(members[name][1], array)


def test_frozen_arrays_are_the_base_itself():
  base, spec = _fused(_tensors())
  device_base = sharding.replicate(_mesh(), base)
  mask = trees.trainable(spec, skip='norm|embed|gain')
  perturber = perturb.Perturber(
    device_base, spec, seed=SEED, mesh=_mesh(), mask=mask
  )
  frozen = {'layers.*.norm.weight@3', 'embed.weight@0', 'gain@0'}
  assert perturber.in_axes == {
    name: None if name in frozen else 0 for name in base
  }
  buffers = perturber.buffers(3)
  members = perturber.write([0, 1, 2], [0.1] * 3, buffers)
  for name in base:
    if name in frozen:
      assert buffers[name] is device_base[name]
      assert members[name] is device_base[name]
      assert not device_base[name].is_deleted()
    else:
      assert members[name].shape == (3, *base[name].shape)
  # in_axes is what a vmapped model takes.
  sums = jax.vmap(
    lambda tree: jax.tree.map(jnp.sum, tree), in_axes=(perturber.in_axes,)
  )(members)
  assert all(array.shape == (3,) for array in jax.tree.leaves(sums))


@EACH
@DTYPES
def test_a_mask_holds_tensors_and_moves_no_other(family, dtype):
  base, spec = _fused(_tensors(dtype))
  free = _write(_perturber(base, spec, family=family))
  mask = trees.trainable(spec, skip=r'layers\.3\.k')
  held = _write(_perturber(base, spec, family=family, mask=mask))
  for name in base:
    expected = np.array(free[name])
    if name == 'qkv':
      expected[:, 16:24] = base['qkv'][16:24]
    _assert_bits(held[name], expected)
  assert np.any(_bits(free['qkv'][0, 16:24]) != _bits(base['qkv'][16:24]))


@EACH
def test_the_rest_of_a_tree_does_not_matter(family):
  tensors = _tensors()
  base, spec = _apart(tensors)
  before = _write(_perturber(base, spec, family=family))

  # Another name for a sibling, a new tensor, and a tree of other kind, names
  # of arrays and order.
  old, new = 'conv.weight@0', trees.Segment('conv_renamed.weight', 0, 5)
  order = sorted(base, reverse=True)
  base_after = [np.ones((4, 70), np.float32), *(base[name] for name in order)]
  spec_after = [
    trees.Leaf((4, 70), (trees.Segment('new.weight', 3, 4),)),
    *(
      trees.Leaf((5, 3, 7), (new,)) if name == old else spec[name]
      for name in order
    ),
  ]
  perturber = _perturber(base_after, spec_after, family=family)
  after = dict(zip(order, _write(perturber)[1:], strict=True))
  for name in base:
    if name == old:
      assert np.any(_bits(after[name][0]) != _bits(before[name][0]))
    else:
      _assert_bits(after[name], before[name])


@EACH
def test_tensors_members_and_seeds_differ(family):
  zeros = np.zeros((16, 70), np.float32)
  leaf = lambda name, layer: trees.Leaf(
    (16, 70), (trees.Segment(name, layer, 16),)
  )
  spec = [leaf('a.*', 0), leaf('a.*', 1), leaf('b.*', 0), leaf('b.*', 1)]
  draws = [
    _write(
      _perturber([zeros] * 4, spec, seed=seed, family=family), [0, 1], [1.0] * 2
    )
    for seed in (0, 1, 2**32)
  ]
  draws = np.reshape(draws, (24, -1))
  # A shared stream has 1 here; independent draws of 1120 values 0.15 at most.
  assert np.abs(np.corrcoef(draws) - np.eye(24)).max() < 0.15


def test_populations_are_nested():
  base, spec = _small()
  perturber = _perturber(base, spec)
  large = _write(perturber, range(12), [0.04] * 12)
  small = _write(perturber, [11, 3, 3], [0.04, 0.04, 0.2])
  for name in large:
    _assert_bits(small[name][0], large[name][11])
    _assert_bits(small[name][1], large[name][3])
    # Another sigma moves the member further in the same direction.
    near, far = small[name][1:] - base[name]
    np.testing.assert_allclose(far, 5 * near, rtol=0, atol=2e-6)


@DTYPES
def test_relative_sigma_is_in_units_of_the_root_mean_square(dtype):
  tensors = _tensors(dtype)
  for power, key in enumerate(SHAPES):
    tensors[key] = (tensors[key].astype(np.float32) * 4**power).astype(dtype)
  base, spec = _fused(tensors)
  found = scales.tensor_scales(base, spec, 'relative')
  alone = scales.tensor_scales(*_apart(tensors), 'relative')
  for name, leaf in spec.items():
    assert found[name].dtype == np.float64
    for segment, scale in zip(leaf.segments, found[name], strict=True):
      weights = tensors[segment.name, segment.layer].astype(np.float64)
      np.testing.assert_allclose(
        scale, np.sqrt(np.mean(weights**2)), rtol=1e-14
      )
      # Not nearly: a last bit of sigma would move weights.
      assert [scale] == alone[f'{segment.name}@{segment.layer}']
  assert found['qkv'][2] > 10 * found['qkv'][0]


def test_relative_members_are_absolute_members_of_scaled_sigma():
  tensors = _tensors()
  base, spec = _fused(tensors)
  relative = _write(_perturber(base, spec, scale='relative'), [4, 6], [0.1] * 2)
  found = scales.tensor_scales(base, spec, 'relative')
  for name, leaf in spec.items():
    first = 0
    for segment, scale in zip(leaf.segments, found[name], strict=True):
      key = segment.name, segment.layer
      absolute = _write(
        _perturber([tensors[key]], [_leaf(key)]), [4, 6], [0.1 * scale] * 2
      )[0]
      rows = slice(first, first + segment.size) if leaf.shape else ...
      _assert_bits(relative[name][:, rows], absolute)
      first += segment.size


def test_the_mean_square_does_not_overflow_the_dtype():
  base = [np.full((2, 3), 3e38, np.float32), np.full(5, 1e-30, np.float32)]
  spec = trees.default_spec(base)
  found = scales.tensor_scales(base, spec, 'relative')
  np.testing.assert_allclose(np.ravel(found), [3e38, 1e-30], rtol=1e-6)
  ones = scales.tensor_scales(base, spec, 'absolute')
  np.testing.assert_array_equal(np.ravel(ones), [1, 1])


def test_what_is_refused(monkeypatch):
  base, spec = _fused(_tensors())
  with pytest.raises(ValueError, match="noise family 'cauchy'; known"):
    _perturber(base, spec, family='cauchy')
  with pytest.raises(ValueError, match="sigma scale 'cubic'"):
    _perturber(base, spec, scale='cubic')
  with pytest.raises(ValueError, match='seed -1 is outside'):
    _perturber(base, spec, seed=-1)
  with pytest.raises(ValueError, match=r'^embed\.weight@0: the array has'):
    _perturber(base, spec | {'embed.weight@0': spec['qkv']})
  with pytest.raises(ValueError, match='different structure'):
    _perturber(base, {name: spec[name] for name in list(spec)[1:]})
  with pytest.raises(ValueError, match=r"'gain', layer 0, is named twice"):
    _perturber(base | {'z': np.ones(())}, spec | {'z': spec['gain@0']})
  monkeypatch.setattr(prng, 'name_words', lambda name: (len(name), 0))
  with pytest.raises(ValueError, match='hash to the same 64 bits'):
    _perturber(base, spec)


def test_effective_sigmas():
  spec = [trees.Leaf((400, 500), (trees.Segment('a', 0, 400),))]

  def effective(weight, dtype, sigma):
    base = np.full((400, 500), weight, dtype)
    members = _write(_perturber([base], spec), [0], [sigma])
    (found,) = perturb.effective_sigmas([base], members, spec)['a']
    return found

  bound = 5 / np.sqrt(2 * 400 * 500)  # of a standard deviation, relative
  for dtype in (np.float32, ml_dtypes.bfloat16):
    assert abs(effective(0, dtype, 1e-3) / 1e-3 - 1) < bound
  assert abs(effective(1, np.float32, 1e-3) / 1e-3 - 1) < bound
  # Around 1, bfloat16 moves in steps of 2**-7 up and 2**-8 down: 2 sigma and
  # more are needed to reach the next. Around 4, hardly any weight moves.
  assert 0.1e-3 < effective(1, ml_dtypes.bfloat16, 1e-3) < 0.9e-3
  assert effective(16, ml_dtypes.bfloat16, 1e-3) == 0


def test_effective_sigmas_are_of_tensors_not_of_arrays():
  segments = trees.Segment('q.*', 3, 1), trees.Segment('k.*', 3, 2)
  spec = [trees.Leaf((3, 2), segments)]
  moved = np.array([[[3, -4], [0, 0], [0, 2]]], np.float32)
  found = perturb.effective_sigmas(
    [np.zeros((3, 2), np.float32)], [moved], spec
  )
  assert found['q.3'] == np.sqrt(np.float32(12.5))
  assert found['k.3'] == 1


@EACH
def test_arrays_of_one_shape_share_one_compiled_program(family):
  def leaf(name, layer):
    parts = ((f'{name}.q', 9), (f'{name}.k', 4))
    return trees.Leaf(
      (13, 11), tuple(trees.Segment(part, layer, n) for part, n in parts)
    )

  count = 5
  base = [np.ones((13, 11), np.float32)] * count
  perturber = _perturber(
    base, [leaf('layers.*', layer) for layer in range(count)], family=family
  )
  compiled = perturb._materialise._cache_size
  before = compiled()
  members = perturber.write([0, 1], [0.1, 0.2], perturber.buffers(2))
  assert compiled() == before + 1
  # Nor does another chunk, another name or another seed need a new one.
  perturber.write([7, -1], [0.3, 0.0], members)
  other = [leaf(f'other_{i}', 0) for i in range(count)]
  _write(_perturber(base, other, family=family, seed=3), [5, 6], [1.0, 0.1])
  assert compiled() == before + 1


WORKER = """
import sys
import jax
jax.config.update('jax_platforms', 'cpu')
jax.config.update('jax_num_cpu_devices', 1)
jax.config.update('jax_cpu_collectives_implementation', 'gloo')
port, process, folder, family = sys.argv[1:]
jax.distributed.initialize(f'localhost:{port}', 2, int(process))

import numpy as np
import perturb_test
from thicket import sharding

assert jax.process_count() == 2 and len(jax.devices()) == 2
mesh = sharding.make_mesh()
base, spec = perturb_test._fused(perturb_test._tensors())
perturber = perturb_test._perturber(
  base, spec, mesh=mesh, family=family, scale='relative'
)
members = perturber.buffers(len(perturb_test.IDS))
for _ in range(2):
  members = perturber.write(perturb_test.IDS, perturb_test.SIGMAS, members)
arrays = {}
for name, array in members.items():
  [shard] = array.addressable_shards
  arrays[name] = np.asarray(shard.data)
  arrays[name + ' start'] = shard.index[0].start or 0
np.savez(f'{folder}/{process}.npz', **arrays)
jax.distributed.shutdown()
"""


def _free_port():
  with socket.socket() as s:
    s.bind(('localhost', 0))
    return s.getsockname()[1]


@pytest.mark.slow
@EACH
def test_two_processes_write_the_bits_of_one(family, tmp_path):
  tests = pathlib.Path(__file__).parent
  env = os.environ | {'PYTHONPATH': f'{tests}{os.pathsep}{tests.parent}'}
  port = str(_free_port())
  workers = [
    subprocess.Popen(
      [sys.executable, '-c', WORKER, port, str(i), str(tmp_path), family],
      env=env,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for i in range(2)
  ]
  try:
    outputs = [worker.communicate(timeout=300)[0] for worker in workers]
  finally:
    for worker in workers:
      worker.kill()
  for worker, output in zip(workers, outputs, strict=True):
    assert worker.returncode == 0, output

  base, spec = _fused(_tensors())
  expected = _write(_perturber(base, spec, family=family, scale='relative'))
  starts = set()
  for i in range(2):
    with np.load(tmp_path / f'{i}.npz') as arrays:
      for name in base:
        start = int(arrays[f'{name} start'])
        starts.add(start)
        assert len(arrays[name]) == 4
        _assert_bits(arrays[name], expected[name][start : start + 4])
  assert starts == {0, 4}
