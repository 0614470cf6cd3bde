# SPDX-License-Identifier: Apache-2.0
"""What is predicted from shapes is what compiled programs take."""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from thicket import decode, engine, fit, perturb, sampling, sharding, trees
from thicket.models import decoder

# SmolLM2's shapes, but for few layers and tokens: compiled in a second.
MID = tiny.with_layers(tiny.SMOLLM2_135M, 3, vocab_size=4096)
WIDE = tiny.with_layers(tiny.SMOLLM2_135M, 1)
# What families other than llama add.
RICH = dataclasses.replace(
  MID,
  windows=(16, None, 16),
  qkv_bias=True,
  mlp_bias=True,
  norm_after=True,
  head_norm='head',
  attention_cap=50.0,
  logit_cap=30.0,
)
MB = 10**6


@dataclasses.dataclass(frozen=True)
class _Shapes:
  """What is generated: a model and the sizes of its programs."""

  config: decoder.DecoderConfig
  members: int  # on a device
  rows: int
  bucket: int
  prefix: int
  new_tokens: int
  dtype: str = 'float32'
  skip: str = ''
  devices: int = 1
  choose: sampling.Choose = sampling.greedy

  @functools.cached_property
  def mesh(self):
    return sharding.make_mesh(jax.devices()[: self.devices])

  @functools.cached_property
  def weights(self):
    """Shapes of base and members' weights, and their axes."""
    spec = decoder.canonical_spec(self.config)
    mask = trees.trainable(spec, skip=self.skip)
    moves = jax.tree.map(lambda _, flags: any(flags), spec, mask)
    base = jax.tree.map(lambda leaf: self._shape(leaf.shape, self.dtype), spec)
    members = jax.tree.map(
      lambda x, is_moved: self._of_members(x.shape, x.dtype) if is_moved else x,
      base,
      moves,
    )
    return base, members, jax.tree.map(lambda x: 0 if x else None, moves)

  def _shape(self, shape, dtype):
    placed = sharding.replicated(self.mesh)
    return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=placed)

  def _of_members(self, shape, dtype):
    shape = (self.members * self.devices, *shape)
    placed = sharding.over_members(self.mesh)
    return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=placed)

  def predicted(self, **changes):
    base, members, axes = self.weights
    return fit.needs(
      self.config,
      base,
      members,
      axes,
      **{
        'members': self.members,
        'rows': self.rows,
        'buckets': [self.bucket],
        'prefix': self.prefix,
        'max_new_tokens': self.new_tokens,
        'dtype': self.dtype,
        'platform': 'cpu',
      }
      | changes,
    )

  def compiled(self, monkeypatch):
    """`memory_analysis()` of the engine's own programs, by their names."""
    found = {}

    def compiles(self, name, rule, sizes, fn, donated, *args):
      """As `Engine._call`, up to the call."""
      del self, rule, sizes
      lowered = jax.jit(fn, donate_argnums=donated, keep_unused=True).lower(
        *args
      )
      program = lowered.compile()
      found[name] = program.memory_analysis()
      return jax.tree.map(
        lambda x, placed: jax.ShapeDtypeStruct(
          x.shape, x.dtype, sharding=placed
        ),
        jax.eval_shape(fn, *args),
        program.output_shardings,
      )

    empty = decode.empty_caches

    def shapes(*args):
      *args, placed = args
      return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed),
        jax.eval_shape(lambda: empty(*args)),
      )

    monkeypatch.setattr(engine.Engine, '_call', compiles)
    monkeypatch.setattr(decode, 'empty_caches', shapes)
    _, members, axes = self.weights
    made = engine.Engine(
      decoder.Decoder(self.config),
      mesh=self.mesh,
      in_axes=axes,
      dtype=jnp.dtype(self.dtype),
    )
    table = np.zeros((2, self.config.vocab_size), np.int32)
    decoding = decode.Decoding(self.new_tokens, table, 0, self.choose)
    ids = self._of_members((), np.int32)
    B = self.rows
    prompts = decode.Prompts(
      tokens=self._shape((B, self.bucket), np.int32),
      length=self._shape((B,), np.int32),
      prompt=self._shape((B,), np.int32),
      row=self._shape((B, 2), np.uint32),
      live=self._shape((B,), bool),
    )
    prefix = made.prefill(members, [0] * self.prefix) if self.prefix else None
    made.generate(decoding, members, ids, ids, prefix, prompts)
    return found


def _taken(memory):
  """Bytes on a device while a program runs."""
  return (
    memory.argument_size_in_bytes
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes
    + memory.temp_size_in_bytes
  )


def _assert_close(shapes, monkeypatch):
  base, members, axes = shapes.weights
  flat = zip(
    jax.tree.leaves(base),
    jax.tree.leaves(axes, is_leaf=lambda axis: axis is None),
    strict=True,
  )
  frozen = sum(x.size * x.dtype.itemsize for x, axis in flat if axis is None)
  found, predicted = shapes.compiled(monkeypatch), shapes.predicted()
  del members
  # Frozen arrays are the base's own, and arguments of the programs.
  said = predicted.total(shapes.members) + frozen
  whole = max(map(_taken, found.values()))
  assert whole <= said <= 1.5 * whole, (predicted, found)
  # Weights hide how well the rest is known.
  scratch = max(x.temp_size_in_bytes for x in found.values())
  copies = predicted.shared
  if shapes.dtype == 'bfloat16':  # 4 of 6 bytes are copies
    copies += shapes.members * predicted.weights * 2 // 3
  said = copies + shapes.members * predicted.scratch
  assert scratch <= said <= 1.5 * scratch, (predicted, found)


@pytest.mark.parametrize('members', [1, 4])
@pytest.mark.parametrize(
  ('rows', 'bucket', 'prefix', 'new_tokens'),
  [(8, 32, 8, 8), (64, 8, 0, 32), (4, 128, 30, 8)],
)
def test_a_tiny_model(members, rows, bucket, prefix, new_tokens, monkeypatch):
  shapes = _Shapes(tiny.CONFIG, members, rows, bucket, prefix, new_tokens)
  _assert_close(shapes, monkeypatch)


@pytest.mark.parametrize(
  'shapes',
  [
    _Shapes(MID, 1, 64, 64, 26, 64),  # the hidden layer of prefill
    _Shapes(MID, 2, 4, 512, 26, 8),  # scores of long prompts
    _Shapes(MID, 1, 2, 256, 600, 8),  # a long prefix
    _Shapes(WIDE, 2, 64, 8, 26, 8),  # logits
    _Shapes(WIDE, 1, 64, 8, 0, 8, choose=sampling.sampler(0, 1.0, top_p=0.9)),
    _Shapes(WIDE, 2, 64, 8, 26, 8, 'bfloat16', skip='embed'),
    _Shapes(MID, 4, 16, 64, 26, 64, 'bfloat16'),
    _Shapes(MID, 1, 16, 64, 0, 128, skip='mlp', devices=4),
    _Shapes(RICH, 2, 4, 512, 26, 8),
    _Shapes(RICH, 1, 2, 256, 600, 8),
  ],
  ids=(
    'hidden',
    'scores',
    'prefix',
    'logits',
    'top-p',
    'shared',
    'bfloat16',
    'mesh',
    'rich-scores',
    'rich-prefix',
  ),
)
def test_whatever_is_largest(shapes, monkeypatch):
  _assert_close(shapes, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize('members', [1, 4])
@pytest.mark.parametrize(('rows', 'bucket'), [(64, 24), (16, 128)])
def test_smollm2(members, rows, bucket, monkeypatch):
  shapes = _Shapes(tiny.SMOLLM2_135M, members, rows, bucket, 26, 32)
  assert shapes.predicted().base == 134_515_008 * 4
  _assert_close(shapes, monkeypatch)


def test_writing_members_takes_no_scratch():
  mesh = sharding.make_mesh(jax.devices()[:1])
  shape, members = (4096, 576), 4
  leaf = trees.anonymous(
    trees.Leaf(shape, (trees.Segment('model.embed', 0, shape[0]),))
  )
  struct = jax.ShapeDtypeStruct
  placed = sharding.over_members(mesh)
  memory = (
    perturb._materialise.lower(
      struct((members, *shape), jnp.bfloat16, sharding=placed),
      struct(shape, jnp.bfloat16, sharding=sharding.replicated(mesh)),
      struct((members, 1, 2), jnp.uint32, sharding=placed),
      struct((members, 1), jnp.float32, sharding=placed),
      family='gaussian',
      leaf=leaf,
      mesh=mesh,
    )
    .compile()
    .memory_analysis()
  )
  assert memory.alias_size_in_bytes == memory.output_size_in_bytes
  assert memory.temp_size_in_bytes < 1e-3 * memory.output_size_in_bytes


# Terms, one by one.


SHAPES = _Shapes(tiny.CONFIG, 2, 8, 16, 5, 10)


def _num_weights(config=tiny.CONFIG):
  leaves = jax.tree.leaves(decoder.canonical_spec(config))
  return sum(np.prod(leaf.shape) for leaf in leaves)


def test_weights_and_caches_are_exact():
  found = SHAPES.predicted()
  assert found.base == found.weights == 4 * _num_weights()
  assert found.shared == 0
  c = tiny.CONFIG
  slots = decode.cache_slots(16, 10)
  caches = decode.empty_caches(decoder.Decoder(c), 1, 8, slots, np.float32)
  size = sum(x.nbytes for x in jax.tree.leaves(caches))
  assert found.caches == size + 5 * size // (8 * slots)


def test_frozen_weights_are_nobody_s_own():
  frozen = dataclasses.replace(SHAPES, skip='mlp').predicted()
  mlp = tiny.CONFIG.num_layers * 3 * tiny.CONFIG.d_ff * tiny.CONFIG.d_model
  assert frozen.weights == SHAPES.predicted().weights - 4 * mlp
  assert frozen.base == SHAPES.predicted().base


def test_thin_factors_are_counted_instead_of_what_they_move():
  base, members, axes = SHAPES.weights
  thin = jax.ShapeDtypeStruct((2, 3, 7), jnp.float32)
  found = fit.needs(
    tiny.CONFIG,
    base,
    {'params': base, 'noise': {'a': thin}},
    {'params': jax.tree.map(lambda _: None, axes), 'noise': {'a': 0}},
    members=2,
    rows=8,
    buckets=[16],
    prefix=5,
    max_new_tokens=10,
    dtype='float32',
    platform='cpu',
  )
  del members
  assert found.weights == 4 * 3 * 7
  assert found.base == 4 * _num_weights()


def test_narrow_weights_are_copied_on_cpu_alone():
  narrow = dataclasses.replace(SHAPES, dtype='bfloat16')
  on_cpu, on_gpu = narrow.predicted(), narrow.predicted(platform='gpu')
  assert on_gpu.weights == 2 * _num_weights()
  assert on_cpu.weights == (2 + 4) * _num_weights()
  assert on_cpu.shared == on_gpu.shared == 0
  assert on_gpu.scratch < on_cpu.scratch
  some = dataclasses.replace(narrow, skip='mlp').predicted()
  mlp = tiny.CONFIG.num_layers * 3 * tiny.CONFIG.d_ff * tiny.CONFIG.d_model
  assert some.shared == 4 * mlp


@pytest.mark.parametrize(
  ('buckets', 'platform', 'sets'),
  [([16, 16], 'cpu', 1), ([8, 16, 16], 'cpu', 2), ([8, 16], 'gpu', 1)],
)
def test_caches_of_several_shapes_leave_holes_on_cpu(buckets, platform, sets):
  one = SHAPES.predicted(buckets=[16], prefix=0)
  found = SHAPES.predicted(buckets=buckets, prefix=0, platform=platform)
  assert found.caches == sets * one.caches


# The choice.


NEEDS = fit.Needs(
  base=100 * MB,
  shared=10 * MB,
  weights=60 * MB,
  caches=30 * MB,
  scratch=9 * MB,
  tokens=1 * MB,
)


def _choose(free, asked=None, units=1000, devices=1, platform='gpu'):
  return fit.choose(
    NEEDS,
    free,
    asked=asked,
    units=units,
    devices=devices,
    platform=platform,
  )


def _free_for(members):
  """Free memory of which just so many members may be had."""
  return int((10 * MB + members * 100 * MB) / (1 - fit.MARGIN)) + 2


@pytest.mark.parametrize('platform', ['cpu', 'gpu'])
@pytest.mark.parametrize('members', [1, 2, 7])
def test_all_that_fit_are_taken_and_a_margin_left(members, platform):
  assert _choose(_free_for(members), platform=platform) == members
  assert _choose(_free_for(members + 1) - 9, platform=platform) == members


def test_no_more_are_taken_than_there_is_work_for():
  plenty = _free_for(1000)
  assert _choose(plenty, units=5) == 5
  assert _choose(plenty, units=17, devices=8) == 3
  assert _choose(plenty, units=10**6) == fit.MOST
  # 16 are two steps of 8, not one of 12 and one of 4.
  assert _choose(_free_for(12), units=16) == 8


def test_the_choice_and_its_terms_are_logged(caplog):
  caplog.set_level('INFO')
  assert _choose(1000 * MB, units=8) == 8
  assert [x.getMessage() for x in caplog.records] == [
    '8 members a step on each device: base 100 MB and 10 MB of copies, a '
    'member 60 MB of weights + 30 MB of caches + 10 MB of scratch; 810 MB of '
    '1.0 GB free'
  ]


def test_a_number_is_taken_if_it_fits(caplog):
  caplog.set_level('INFO')
  assert _choose(_free_for(4), asked=3, units=1) == 3
  assert [x.levelname for x in caplog.records] == ['INFO']


@pytest.mark.parametrize('asked', [None, 1, 5])
def test_on_cpu_what_does_not_fit_is_refused(asked):
  number = asked or 1
  need = f'{number} member{"s" * (number > 1)} a step, on each device'
  with pytest.raises(fit.FitError) as caught:
    _choose(_free_for(number) - 9, asked=asked, platform='cpu')
  message = str(caught.value)
  assert message.startswith(f'{need}, would take {10 + number * 100} MB of ')
  assert '10% is kept' in message
  assert '60 MB of weights' in message
  for remedy in ('decode.rows', 'decode.max_new_tokens'):
    assert remedy in message
  assert ('ask for 4 at most' in message) == (asked == 5)


@pytest.mark.parametrize(('asked', 'chosen'), [(None, 1), (1, 1), (5, 5)])
def test_on_an_accelerator_it_is_tried_with_a_warning(asked, chosen, caplog):
  assert _choose(_free_for(chosen) - 9, asked=asked) == chosen
  (warned,) = [x for x in caplog.records if x.levelname == 'WARNING']
  assert 'would take' in warned.getMessage()
  assert 'model.dtype=bfloat16' in warned.getMessage()


@pytest.mark.parametrize(('asked', 'chosen'), [(None, 1), (6, 6)])
def test_unknown_memory_is_said(asked, chosen, caplog):
  caplog.set_level('INFO')
  assert _choose(None, asked=asked, platform='cpu') == chosen
  (said,) = [x.getMessage() for x in caplog.records]
  assert said.startswith('free memory of cpu is unknown: ')


# Free memory.


class _Device:
  platform = 'gpu'

  def __init__(self, stats):
    self.memory_stats = lambda: stats


def test_an_accelerator_says_what_is_free_on_the_fullest():
  devices = [
    _Device({'bytes_limit': 100, 'bytes_in_use': used, 'other': 1})
    for used in (10, 40, 20)
  ]
  assert fit.free_bytes(devices) == 60
  assert fit.free_bytes([*devices, _Device(None)]) is None
  assert fit.free_bytes([_Device({'bytes_in_use': 3})]) is None


def test_devices_of_a_host_share_what_is_free(monkeypatch):
  monkeypatch.setattr(fit, 'host_free_bytes', lambda: 1001)
  assert fit.free_bytes(jax.devices()[:4]) == 250
  monkeypatch.setattr(fit, 'host_free_bytes', lambda: None)
  assert fit.free_bytes(jax.devices()[:4]) is None


def _root(folder, files):
  for name, text in files.items():
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding='utf-8')
  return str(folder)


MEMINFO = {'proc/meminfo': 'MemTotal: 9 kB\nMemAvailable:  2000 kB\nX: 1 kB\n'}
AVAILABLE = 2000 * 1024


def _v2(path, limit, used, cached=0):
  group = f'sys/fs/cgroup/{path}'
  return {
    f'{group}/memory.max': f'{limit}\n',
    f'{group}/memory.current': f'{used}\n',
    f'{group}/memory.stat': f'anon 5\ninactive_file {cached}\nslab 1\n',
  }


def _v1(path, limit, used, cached=0):
  group = f'sys/fs/cgroup/memory/{path}'
  return {
    f'{group}/memory.limit_in_bytes': f'{limit}\n',
    f'{group}/memory.usage_in_bytes': f'{used}\n',
    f'{group}/memory.stat': f'cache 7\ntotal_inactive_file {cached}\n',
  }


V1 = {'proc/self/cgroup': '3:cpu,cpuacct:/a\n4:memory:/a/b\n0::/\n'}
V2 = {'proc/self/cgroup': '0::/a/b\n'}


@pytest.mark.parametrize(
  ('files', 'free'),
  [
    ({}, AVAILABLE),
    (V2, AVAILABLE),
    (V2 | _v2('a/b', 'max', 100), AVAILABLE),
    (V2 | _v2('a/b', 1000, 300), 700),
    (V2 | _v2('a/b', 1000, 300, cached=200), 900),
    (V2 | _v2('a/b', 10**9, 300), AVAILABLE),
    (V2 | _v2('a/b', 1000, 300) | _v2('a', 500, 400), 100),
    (V2 | _v2('a/b', 'max', 300) | _v2('a', 500, 400), 100),
    (V2 | _v2('a/c', 10, 5), AVAILABLE),  # somebody else's
    (V2 | _v2('a/b', 300, 400), 0),
    (V1 | _v1('a/b', 1000, 300), 700),
    (V1 | _v1('a/b', 1000, 300, cached=200), 900),
    (V1 | _v1('a/b', 2**63 - 4096, 300), AVAILABLE),
    # A container sees its own group at the mount.
    (V1 | _v1('', 800, 300), 500),
    (V2 | _v2('', 800, 300), 500),
    (V1 | {'sys/fs/cgroup/memory/a/b/memory.limit_in_bytes': '?'}, AVAILABLE),
  ],
)
def test_a_host_counts_every_limit_on_the_process(files, free, tmp_path):
  assert fit.host_free_bytes(_root(tmp_path, MEMINFO | files)) == free


def test_a_host_that_is_not_linux_is_unknown(tmp_path):
  assert fit.host_free_bytes(_root(tmp_path, V2 | _v2('a/b', 9, 3))) is None


@pytest.mark.skipif(
  not pathlib.Path('/proc/meminfo').exists(), reason='Linux only'
)
def test_this_host_has_memory():
  assert 10**6 < fit.host_free_bytes() < 10**15
