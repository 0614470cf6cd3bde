# SPDX-License-Identifier: Apache-2.0
"""Populations are nested; the loop over them keeps order, bits and memory."""

import functools
import gc
import pathlib
import subprocess
import sys
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from thicket import blocks, perturb, population, processes, sharding, trees
from thicket.population import (
  BASE,
  Members,
  OutOfMemory,
  Population,
  PopulationError,
)

ROOT = pathlib.Path(__file__).parents[1]
SIGMAS = (0.25, 0.5, 1.0)
SEED = 11
ANY_IDS = (4, 0, -1, *range(5, 17), 40, 2)
PARAMS = {
  'bias': np.arange(4, dtype=np.float32),
  'weight': np.linspace(-1, 1, 20, dtype=np.float32).reshape(5, 4),
}


def _mesh(devices):
  return sharding.make_mesh(jax.devices()[:devices])


def _perturber(mesh):
  spec = trees.default_spec(PARAMS)
  base = sharding.replicate(mesh, PARAMS)
  return perturb.Perturber(base, spec, seed=SEED, mesh=mesh)


def _members(devices=1, per_device=2, size=100):
  mesh = _mesh(devices)
  drawn = Population(SEED, size, SIGMAS)
  return Members(_perturber(mesh), drawn, mesh, per_device)


@jax.jit
def _weights_and_ids(weights, ids, draws):
  # A copy: what a step gives back must not be the memory it was lent.
  del draws
  return jax.tree.map(lambda x: x + np.float32(0), weights), ids + 0


@jax.jit
def _outputs(weights, ids, draws):
  """A product whose shape is the number of members in memory."""
  del ids, draws
  x = np.linspace(-3, 3, 15, dtype=np.float32).reshape(3, 5)
  apply = lambda w: jnp.tanh(x @ w['weight'] + w['bias'][None])
  return jax.vmap(apply)(weights)


def _run(members, ids, step=_weights_and_ids):
  """All ids and results of a run, chunks put together."""
  chunks = [(ids, found) for ids, _, found in members.run(ids, step)]
  together = lambda *parts: np.concatenate(parts)
  return jax.tree.map(together, *chunks)


# The population.


@pytest.mark.parametrize('sigmas', [(0.1,), SIGMAS, (0.0, 2.0)])
def test_a_smaller_population_is_the_front_of_a_larger_one(sigmas):
  small, large = (Population(3, size, sigmas) for size in (10, 500))
  assert small.ids().tolist() == list(range(10))
  assert small.ids().dtype == np.int32
  np.testing.assert_array_equal(small.ids(), large.ids()[:10])
  np.testing.assert_array_equal(
    small.sigma(small.ids()), large.sigma(large.ids())[:10]
  )


def test_mirror_images_share_noise_and_sigma():
  drawn = Population(0, 7, SIGMAS, antithetic=True)
  ids = [BASE, 0, 1, 2, 3, 5, 6]
  assert drawn.noise_ids(ids).tolist() == [-1, 0, 0, 1, 1, 2, 3]
  assert drawn.sigma(ids).tolist() == [0, 0.25, 0.25, 0.5, 0.5, 1, 0.25]
  assert drawn.amplitude(ids).tolist() == [0, 0.25, -0.25, 0.5, -0.5, -1, 0.25]
  apart = Population(0, 7, SIGMAS)
  assert apart.noise_ids(ids).tolist() == ids
  np.testing.assert_array_equal(apart.amplitude(ids), apart.sigma(ids))


def test_mirror_images_mean_the_base():
  mesh = _mesh(1)
  drawn = Population(SEED, 100, SIGMAS, antithetic=True)
  members = Members(_perturber(mesh), drawn, mesh, 3)
  _, (weights, _) = _run(members, range(6))
  _, (straight, _) = _run(_members(), range(3))
  for name, base in PARAMS.items():
    pairs = weights[name].reshape(3, 2, *base.shape)
    np.testing.assert_array_equal(pairs[:, 0], straight[name])
    assert np.abs(pairs[:, 0] - pairs[:, 1]).max() > 0.5
    np.testing.assert_allclose(
      pairs.mean(axis=1), np.stack([base] * 3), atol=1e-6
    )


def test_unselected_members_are_of_different_pairs():
  pairs = Population(0, 12, SIGMAS, antithetic=True)
  assert pairs.unselected(4).tolist() == [0, 2, 4, 6]
  assert pairs.unselected(8).tolist() == [0, 2, 4, 6, 8, 10, 1, 3]
  # Of the second sigma there are 2, 3 and 8, 9.
  assert pairs.of_likely_sigma([9, 0, 3], 2).tolist() == [2, 8]
  assert pairs.of_likely_sigma([9, 0, 3], 9).tolist() == [2, 8, 3, 9]
  apart = Population(0, 12, SIGMAS)
  assert apart.unselected(4).tolist() == [0, 1, 2, 3]
  assert apart.of_likely_sigma([1, 0, 4], 3).tolist() == [1, 4, 7]


def test_sigmas_are_taken_in_turn():
  drawn = Population(0, 8, SIGMAS)
  assert drawn.sigma_index(drawn.ids()).tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
  assert drawn.sigma([7, 0, 2]).tolist() == [0.5, 0.25, 1.0]
  assert drawn.sigma([7]).dtype == np.float64


def test_sigmas_that_no_member_has_are_warned_of(caplog):
  for size, antithetic in ((3, False), (5, True)):
    Population(0, size, SIGMAS, antithetic)
  assert caplog.records == []
  Population(0, 4, SIGMAS, antithetic=True)
  Population(0, 1, SIGMAS)
  assert [x.getMessage() for x in caplog.records] == [
    'population size N = 4 in mirrored pairs: no member has sigma = 1; the '
    'sigmas are tried alike from N = 6',
    'population size N = 1: no member has sigma = 0.5, 1; the sigmas are tried '
    'alike from N = 3',
  ]


def test_the_base_has_sigma_zero_wherever_it_stands():
  drawn = Population(0, 2, SIGMAS)
  assert drawn.sigma([BASE, 0, BASE, 1]).tolist() == [0.0, 0.25, 0.0, 0.5]


@pytest.mark.parametrize(
  ('seed', 'size', 'sigmas', 'message'),
  [
    (-1, 4, SIGMAS, 'seed = -1 is outside [0, 2**64)'),
    (2**64, 4, SIGMAS, f'seed = {2**64} is outside [0, 2**64)'),
    (0, 0, SIGMAS, 'population size N = 0 is outside [1, 2**31)'),
    (0, 2**31, SIGMAS, f'population size N = {2**31} is outside [1, 2**31)'),
    (0, 4, (), 'no sigma: give at least one, such as 0.001'),
    (0, 4, (0.1, -0.5), 'sigma = -0.5 is not a finite number >= 0'),
    (0, 4, (float('nan'),), 'sigma = nan is not a finite number >= 0'),
    (0, 4, (0.1, float('inf')), 'sigma = inf is not a finite number >= 0'),
  ],
)
def test_bad_populations_are_named_with_their_value(
  seed, size, sigmas, message
):
  with pytest.raises(PopulationError) as caught:
    Population(seed, size, sigmas)
  assert str(caught.value) == message


def test_the_limits_themselves_are_allowed():
  assert Population(2**64 - 1, 1, (0.0,)).ids().tolist() == [0]
  assert Population(0, 2**31 - 1, (1.0,)).size == 2**31 - 1


def test_a_chunk_without_members_is_refused():
  with pytest.raises(PopulationError) as caught:
    _members(per_device=0)
  assert str(caught.value) == 'members per device = 0 is below 1'


# The loop.


def test_members_get_the_weights_of_their_id_and_sigma():
  ids = [4, 0, BASE, 17, 2]
  found, (weights, seen_ids) = _run(_members(per_device=2), ids)
  assert found.tolist() == seen_ids.tolist() == ids
  perturber = _perturber(_mesh(1))
  for i, member in enumerate(ids):
    sigma = 0.0 if member == BASE else SIGMAS[member % 3]
    want = perturber.write([member], [sigma], perturber.buffers(1))
    got = jax.tree.map(lambda array, i=i: array[i], weights)
    chex.assert_trees_all_equal(
      got, jax.tree.map(lambda array: np.asarray(array[0]), want)
    )
    is_base = np.array_equal(got['weight'], PARAMS['weight'])
    assert is_base == (member == BASE)


@functools.cache
def _alone():
  """Members one by one on one device."""
  return _run(_members(1, 1), [*range(17), BASE])


@pytest.mark.parametrize(
  ('devices', 'per_device'), [(1, 2), (1, 3), (2, 1), (2, 3), (8, 1), (8, 2)]
)
def test_results_do_not_depend_on_mesh_or_chunk(devices, per_device):
  got = _run(_members(devices, per_device), [*range(17), BASE])
  chex.assert_trees_all_equal(got, _alone())


def test_products_of_one_shape_have_one_result_on_every_mesh():
  # Manual over members, as in use: each device's product has its own rows.
  def step(mesh):
    members = jax.sharding.PartitionSpec(sharding.MEMBERS)
    return jax.jit(
      jax.shard_map(
        _outputs, mesh=mesh, in_specs=(members,) * 3, out_specs=members
      )
    )

  want, *others = (
    _run(_members(devices, 3), range(13), step(_mesh(devices)))
    for devices in (1, 2, 8)
  )
  for got in others:
    chex.assert_trees_all_equal(got, want)
  assert len(np.unique(want[1][:, 0, 0])) == 13


def test_the_last_chunk_is_filled_with_the_base_and_cut_again():
  dispatched = []

  def step(weights, ids, draws):
    dispatched.append((np.asarray(ids).tolist(), weights['weight'].shape))
    return _weights_and_ids(weights, ids, draws)

  chunks = list(_members(devices=2, per_device=2).run(range(6), step))
  assert dispatched == [
    ([0, 1, 2, 3], (4, 5, 4)),
    ([4, 5, BASE, BASE], (4, 5, 4)),
  ]
  assert [ids.tolist() for ids, *_ in chunks] == [[0, 1, 2, 3], [4, 5]]
  for ids, _, results in chunks:
    for array in jax.tree.leaves(results):
      assert isinstance(array, np.ndarray)
      assert len(array) == len(ids)


def test_fewer_members_than_a_chunk_and_none_at_all():
  members = _members(devices=8, per_device=3)
  assert [ids.tolist() for ids, *_ in members.run([5], _outputs)] == [[5]]
  assert list(members.run([], _outputs)) == []


def test_ragged_chunks_are_traced_once():
  step = jax.jit(
    chex.assert_max_traces(lambda w, *_: w['bias'].sum(axis=1), n=1)
  )
  members = _members(per_device=3)
  for ids in (range(8), [BASE], range(4)):
    assert len(_run(members, ids, step)[0]) == len(ids)


def test_the_host_works_on_a_chunk_while_the_next_one_runs():
  events = []

  def step(weights, ids, draws):
    events.append(f'dispatch {int(ids[0])}')
    return _outputs(weights, ids, draws)

  for ids, *_ in _members(per_device=2).run(range(7), step):
    events.append(f'host {ids[0]}')
  assert events == [
    'dispatch 0',
    'dispatch 2',
    'host 0',
    'dispatch 4',
    'host 2',
    'dispatch 6',
    'host 4',
    'host 6',
  ]


def test_nothing_is_dispatched_before_it_is_asked_for():
  events = []
  step = lambda *args: events.append(0) or _outputs(*args)
  chunks = _members(per_device=1).run(range(9), step)
  assert events == []
  next(chunks)
  assert len(events) == 2


def test_weights_live_in_the_memory_of_the_chunk_before():
  lent = []

  def step(weights, ids, draws):
    lent.append(weights)
    return _outputs(weights, ids, draws)

  members = _members(per_device=2)
  _run(members, range(6), step)
  _run(members, range(2), step)  # the next run too
  *before, last = lent
  assert len(before) == 3
  for weights in before:
    assert all(array.is_deleted() for array in jax.tree.leaves(weights))
  assert not any(array.is_deleted() for array in jax.tree.leaves(last))


@pytest.mark.parametrize('error', [ValueError('broken'), KeyboardInterrupt()])
def test_a_step_that_raises_leaves_the_members_usable(error):
  members, calls = _members(per_device=2), []

  def step(weights, ids, draws):
    calls.append(ids)
    if len(calls) == 3:
      raise error
    return _weights_and_ids(weights, ids, draws)

  chunks = members.run(range(9), step)
  assert next(chunks)[0].tolist() == [0, 1]
  with pytest.raises(type(error)):
    next(chunks)  # the chunk in flight, 2 and 3, is lost
  want = _run(_members(per_device=2), range(9))
  chex.assert_trees_all_equal(_run(members, range(9)), want)


def test_a_run_left_half_way_leaves_the_members_usable():
  members = _members(per_device=1)
  for ids, *_ in members.run(range(9), _weights_and_ids):
    if ids[0] == 2:
      break
  want = _run(_members(per_device=1), range(4, 9))
  chex.assert_trees_all_equal(_run(members, range(4, 9)), want)


def test_draws_go_with_their_members():
  def step(weights, ids, draws):
    del weights
    return ids * 100 + draws

  ids, numbers = [3, BASE, BASE, 3, 7], [0, 1, 2, 5, 4]
  chunks = list(_members(2, 1).run(ids, step, numbers))
  assert [x.tolist() for x, *_ in chunks] == [[3, BASE], [BASE, 3], [7]]
  assert [x.tolist() for _, x, _ in chunks] == [[0, 1], [2, 5], [4]]
  found = np.concatenate([x for *_, x in chunks])
  np.testing.assert_array_equal(found, 100 * np.array(ids) + numbers)


def test_many_draws_of_the_same_members_write_them_once(monkeypatch):
  written = []
  write = perturb.Perturber.write

  def counted(self, ids, *args):
    written.append(np.asarray(ids).tolist())
    return write(self, ids, *args)

  monkeypatch.setattr(perturb.Perturber, 'write', counted)
  members = _members(per_device=1)
  chunks = list(members.run([BASE] * 4, _weights_and_ids, range(4)))
  assert written == [[BASE]]
  for _, _, found in chunks:
    chex.assert_trees_all_equal(found, chunks[0][2])
  _run(members, [2, BASE])
  assert written == [[BASE], [2], [BASE]]


def test_a_step_that_raises_has_its_members_written_again():
  members = _members(per_device=1)
  want = _run(_members(per_device=1), [4])

  def broken(weights, ids, draws):
    raise ValueError('broken')

  with pytest.raises(ValueError, match='broken'):
    list(members.run([4], broken))
  chex.assert_trees_all_equal(_run(members, [4]), want)


def test_a_write_that_is_interrupted_leaves_the_members_usable(monkeypatch):
  members = _members(per_device=1)
  want = _run(members, [4])
  write = perturb.Perturber.write

  def interrupted(self, *args):
    write(self, *args)  # what it was given is gone
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(perturb.Perturber, 'write', interrupted)
    with pytest.raises(KeyboardInterrupt):
      list(members.run([5], _weights_and_ids))
  chex.assert_trees_all_equal(_run(members, [4]), want)


# Several processes; more of them in multiprocess_test.py.


def test_rows_that_a_process_does_not_hold_are_not_made_up():
  rows = np.arange(24, dtype=np.float32).reshape(8, 3)
  array = sharding.spread(_mesh(8), rows)
  held = types.SimpleNamespace(
    is_fully_addressable=False, addressable_shards=array.addressable_shards[:4]
  )
  np.testing.assert_array_equal(
    population._rows(held, np.array([3, 1])), rows[[3, 1]]
  )
  with pytest.raises(RuntimeError, match=r'rows \[5\] lie on no device'):
    population._rows(held, np.array([1, 5]))


def test_devices_of_a_process_that_has_not_joined_are_refused(monkeypatch):
  perturber, mesh = _perturber(_mesh(2)), _mesh(2)
  monkeypatch.setattr(processes, 'count', lambda: 0)
  with pytest.raises(PopulationError, match='devices of process 0, but 0 '):
    Members(perturber, Population(0, 1, (1.0,)), mesh, 1)


# Memory that runs out.


def _exhausted():
  """The runtime's own error, from asking for more than there is."""
  with (
    jax.ensure_compile_time_eval(),
    pytest.raises(jax.errors.JaxRuntimeError) as caught,
  ):
    jnp.zeros((2**25, 2**25), jnp.uint8).block_until_ready()
  return caught.value


class _Late:
  """Results whose arrays fail when they are fetched."""

  is_fully_addressable = True

  def __init__(self, error):
    self._error = error

  def __array__(self, *_):
    raise self._error


def _does_not_compile(weights):
  del weights
  raise _exhausted()


class _Scarce:
  """A step for which memory holds `room` members, and fails at one of three.

  With `after`, that many chunks have room whatever they hold.
  """

  def __init__(self, point, room, after=0, step=_weights_and_ids):
    self._point, self._room, self._after = point, room, after
    self._step = step
    self.tried = []

  def __call__(self, weights, ids, draws):
    self.tried.append(np.asarray(ids).tolist())
    if len(ids) <= self._room or len(self.tried) <= self._after:
      return self._step(weights, ids, draws)
    if self._point == 'compile':
      jax.jit(_does_not_compile)(weights)
    if self._point == 'dispatch':
      raise _exhausted()
    return _Late(_exhausted())


POINTS = ('compile', 'dispatch', 'fetch')


def test_the_error_of_the_tests_is_that_of_the_runtime():
  error = _exhausted()
  assert type(error) is jax.errors.JaxRuntimeError
  assert str(error).startswith('RESOURCE_EXHAUSTED: ')


@pytest.mark.parametrize('point', POINTS)
@pytest.mark.parametrize('after', [0, 2])
@pytest.mark.parametrize(
  ('devices', 'per_device', 'room'), [(1, 4, 3), (1, 5, 1), (2, 4, 2)]
)
def test_chunks_are_halved_until_they_fit(
  point, after, devices, per_device, room, caplog
):
  step = _Scarce(point, room, after)
  ids = [*range(17), BASE]
  got = _run(_members(devices, per_device), ids, step)
  # Each member once, in order, with the bits of an undisturbed run.
  chex.assert_trees_all_equal(got, _alone())
  said = [x.getMessage() for x in caplog.records if 'memory' in x.getMessage()]
  sizes = [per_device]
  while sizes[-1] * devices > room:
    sizes.append(sizes[-1] // 2)
  assert len(said) == len(sizes) - 1
  for line, before, now in zip(said, sizes, sizes[1:], strict=False):
    assert f'with {before} members on each device (RESOURCE_EXHAUSTED' in line
    assert f'going on with {now};' in line
    assert '\n' not in line


def test_only_what_was_lost_is_done_again():
  step = _Scarce('dispatch', 1, after=2)
  chunks = _members(per_device=2).run(range(7), step)
  assert [ids.tolist() for ids, *_ in chunks] == [
    [0, 1], [2], [3], [4], [5], [6],
  ]  # fmt: skip
  assert step.tried == [
    [0, 1], [2, 3], [4, 5], [2], [3], [4], [5], [6],
  ]  # fmt: skip


def test_a_chunk_stays_small_once_it_was_too_large():
  members = _members(per_device=4)
  step = _Scarce('fetch', 2)
  _run(members, range(6), step)
  tried = len(step.tried)
  _run(members, range(6), step)
  assert [len(ids) for ids in step.tried[tried:]] == [2, 2, 2]


@pytest.mark.parametrize('point', POINTS)
def test_nothing_of_the_larger_chunk_is_kept(point):
  def arrays(rows):
    return [x for x in jax.live_arrays() if x.shape == (rows, 5, 4)]

  held = []

  def step(weights, ids, draws):
    if len(ids) == 2:
      held.append(len(arrays(4)))
    copies = _weights_and_ids(weights, ids, draws)
    found = scarce(weights, ids, draws)
    del copies
    return found

  scarce = _Scarce(point, 2)
  gc.collect()
  others = len(arrays(4))
  _run(_members(per_device=4), range(6), step)
  assert held == [others] * 3


@pytest.mark.parametrize('point', POINTS)
def test_a_single_member_that_does_not_fit_is_an_error(point):
  members = _members(per_device=3)
  with pytest.raises(OutOfMemory) as caught:
    _run(members, range(5), _Scarce(point, 0))
  message = str(caught.value)
  assert message.startswith(
    'out of memory with a single member on each device (RESOURCE_EXHAUSTED: '
  )
  assert 'decode.rows' in message
  assert type(caught.value.__cause__) is jax.errors.JaxRuntimeError
  # They are as usable as before, where there is room.
  chex.assert_trees_all_equal(_run(members, [*range(17), BASE]), _alone())


def test_results_handed_out_before_memory_ran_out_are_not_lost():
  step = _Scarce('fetch', 0, after=2)
  chunks = _members(per_device=1).run(range(5), step)
  assert [next(chunks)[0].tolist() for _ in range(2)] == [[0], [1]]
  with pytest.raises(OutOfMemory):
    next(chunks)


def test_one_of_many_processes_does_not_change_its_chunk_alone(monkeypatch):
  members = _members(per_device=4)
  with monkeypatch.context() as patch:
    patch.setattr(processes, 'count', lambda: 2)
    with pytest.raises(OutOfMemory, match='give all processes fewer'):
      _run(members, range(8), _Scarce('dispatch', 2))


def test_other_errors_of_the_runtime_pass_through():
  error = jax.errors.JaxRuntimeError('INTERNAL: broken')

  def step(*_):
    raise error

  with pytest.raises(jax.errors.JaxRuntimeError) as caught:
    _run(_members(per_device=4), range(8), step)
  assert caught.value is error


REAL = """
import resource, sys
import jax
import jax.numpy as jnp
import numpy as np
from thicket import perturb, population, sharding, trees

mesh = sharding.make_mesh()
params = {'w': np.zeros((512, 512), np.float32)}
perturber = perturb.Perturber(
  sharding.replicate(mesh, params),
  trees.default_spec(params),
  seed=1,
  mesh=mesh,
)
members = population.Members(
  perturber, population.Population(1, 64, (1.0,)), mesh, 8
)

@jax.jit
def step(weights, ids, draws):
  # 64 MB of scratch a member, 512 MB for eight of them.
  x = weights['w'][:, :, :, None] * jnp.arange(64.0)
  return jnp.sort(x, axis=1)[:, 0].sum(axis=(1, 2)), ids + draws

list(members.run([0], lambda w, i, d: i + d))
with open('/proc/self/statm') as file:
  now = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + 400 * 2**20,) * 2)
found = [(len(ids), ids.tolist()) for ids, *_ in members.run(range(16), step)]
assert sum((ids for _, ids in found), []) == list(range(16)), found
assert 1 <= found[0][0] < 8, found
"""


@pytest.mark.slow
def test_memory_that_really_runs_out():
  done = subprocess.run(
    [sys.executable, '-c', REAL],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  assert 'out of memory with 8 members on each device' in done.stderr


def test_the_base_id_is_that_of_the_ledger():
  assert population.BASE == blocks.BASE == -1
