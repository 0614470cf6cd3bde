# SPDX-License-Identifier: Apache-2.0
"""Populations are nested; the loop over them keeps order, bits and memory."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from thicket import blocks, perturb, population, sharding, trees
from thicket.population import BASE, Members, Population, PopulationError

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


def test_sigmas_are_taken_in_turn():
  drawn = Population(0, 8, SIGMAS)
  assert drawn.sigma_index(drawn.ids()).tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
  assert drawn.sigma([7, 0, 2]).tolist() == [0.5, 0.25, 1.0]
  assert drawn.sigma([7]).dtype == np.float64


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


def test_the_base_id_is_that_of_the_ledger():
  assert population.BASE == blocks.BASE == -1
