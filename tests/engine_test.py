# SPDX-License-Identifier: Apache-2.0
"""Answers through compiled programs that are kept: same bits, less memory."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.sharding import PartitionSpec

from thicket import batching, decode, perturb, sampling, sharding
from thicket.engine import Engine, answer_all
from thicket.models import decoder
from thicket.population import BASE, Members, Population

CONFIG = tiny.with_layers(tiny.CONFIG, 1)
MODEL = decoder.Decoder(CONFIG)
V, G, PAD = CONFIG.vocab_size, 6, 63
PREFIX = (7, 3, 44, 21)
STOP_IDS = (1, 5, 9, 12, 20, 33)
# Two buckets, 8 and 16, and a last batch that is not full.
SUFFIXES = [[2], [8, 30, 4], [50, 6], [40] * 9, [22, 4] * 5]
BATCHES = batching.batches(SUFFIXES, range(5), 2, PAD)
SIGMA = 0.1
COLLECTIVE = re.compile(
  'all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute'
)


def _decoding(choose=sampling.greedy):
  table = np.zeros((2, V), np.int32)
  table[0, list(STOP_IDS)] = 1
  table[1] = 1
  return decode.Decoding(G, table, PAD, choose)


DECODING = _decoding()
SAMPLED = _decoding(sampling.sampler(0, 1.0, top_k=20, top_p=0.9))


@functools.cache
def _params():
  return tiny.params(CONFIG)


def _mesh(devices):
  return sharding.make_mesh(jax.devices()[:devices])


def _perturber(mesh, skip=''):
  spec = decoder.canonical_spec(CONFIG)
  return perturb.Perturber(
    sharding.replicate(mesh, _params()),
    spec,
    seed=5,
    mesh=mesh,
    mask=perturb.trees.trainable(spec, skip=skip),
  )


def _engine(mesh, in_axes):
  return Engine(MODEL, mesh=mesh, in_axes=in_axes, dtype=np.float32)


class _Setting:
  """An engine and members on a mesh; compiling takes seconds, so few of them.

  Two members at a time on each device, so that a chunk is never one member.
  """

  def __init__(self, devices, skip=''):
    self.mesh = _mesh(devices)
    self.perturber = _perturber(self.mesh, skip)
    self.engine = _engine(self.mesh, self.perturber.in_axes)
    self.members = Members(
      self.perturber, Population(5, 100, (SIGMA,)), self.mesh, per_device=2
    )

  def answers(
    self, ids, batches=BATCHES, decoding=DECODING, prefix=PREFIX, draws=None
  ):
    """A `Generated` for each batch, all members together."""
    step = answer_all(self.engine, decoding, prefix, batches)
    chunks = list(self.members.run(ids, step, draws))
    return jax.tree.map(
      lambda *parts: np.concatenate(parts), *[found for *_, found in chunks]
    )

  def generate(self, weights, ids, prefix, batch, decoding=DECODING):
    """One batch, first draws."""
    draws = self.place(np.zeros(len(ids)))
    return self.engine.generate(decoding, weights, ids, draws, prefix, batch)

  def weights(self, ids):
    sigmas = [0.0 if i == BASE else SIGMA for i in ids]
    return self.perturber.write(ids, sigmas, self.perturber.buffers(len(ids)))

  def place(self, ids):
    ids = np.asarray(ids, np.int32)
    return jax.device_put(ids, sharding.over_members(self.mesh))


@functools.cache
def _setting(devices, skip=''):
  return _Setting(devices, skip)


@jax.jit
def _plain(weights, ids, prefix, prompts):
  """One batch without engine, mesh or donation."""
  B, S = prompts.tokens.shape
  caches = decode.empty_caches(
    MODEL, len(ids), B, decode.cache_slots(S, G), jnp.float32
  )
  kv = decode.prefill_prefix(MODEL, weights, 0, prefix)
  draws = jnp.zeros_like(ids)
  return decode.generate(
    MODEL, DECODING, weights, 0, ids, draws, kv, prompts, caches
  )[0]


def _expected(weights, ids, batches=BATCHES, prefix=PREFIX):
  prefix, ids = np.array(prefix, np.int32), np.array(ids, np.int32)
  return tuple(
    jax.device_get(_plain(weights, ids, prefix, batch)) for batch in batches
  )


def _assert_same_answers(got, want):
  """All but `steps`, which depends on who is in the same chunk."""
  for one, other in zip(got, want, strict=True):
    for field in ('tokens', 'length', 'stopped'):
      np.testing.assert_array_equal(getattr(one, field), getattr(other, field))


@pytest.fixture(scope='module')
def programs():
  """Every program of an engine that has run on 8 devices, by its key."""
  setting = _setting(8)
  setting.answers([0])
  return setting.engine._programs


def test_the_prompts_are_those_the_tests_mean():
  assert [batch.tokens.shape for batch in BATCHES] == [(2, 8), (2, 16), (2, 16)]
  assert [batch.live.tolist() for batch in BATCHES] == [
    [True, True],
    [True, True],
    [True, False],
  ]


@pytest.mark.parametrize('ids', [[4, 0], [BASE, 4]])
def test_answers_are_those_of_plain_generation(ids):
  setting = _setting(1)
  got = setting.answers(ids)
  chex.assert_trees_all_equal(got, _expected(setting.weights(ids), ids))
  # They are worth comparing: members differ, rows stop early and late.
  assert (got[0].tokens[0] != got[0].tokens[1]).any()
  assert len(set(np.concatenate([batch.length.ravel() for batch in got]))) > 2


def test_neighbours_and_a_filled_chunk_change_no_answer():
  setting = _setting(1)
  apart = setting.answers([5, 4, 0])
  want = _expected(setting.weights([4, 0]), [4, 0])
  _assert_same_answers(jax.tree.map(lambda x: x[1:], apart), want)


def test_rows_that_fill_a_batch_have_no_answer():
  *_, last = _setting(1).answers([0, 1])
  assert (last.length[:, 0] > 0).all()
  np.testing.assert_array_equal(last.length[:, 1], 0)
  np.testing.assert_array_equal(last.tokens[:, 1], PAD)


def test_the_mesh_changes_no_bit():
  ids = [*range(17), BASE, 30]
  want, got = _setting(1).answers(ids), _setting(8).answers(ids)
  # A device loops until its own rows are done, so `steps` is equal too.
  chex.assert_trees_all_equal(got, want)
  assert len(set(np.concatenate([batch.steps for batch in got]))) > 1


# Of the second, even what the first layer sees is the same for all members.
@pytest.mark.parametrize(
  'skip', ['embed_tokens', 'embed_tokens|attn|layernorm']
)
def test_frozen_arrays_are_shared_by_all_members(skip):
  setting, ids = _setting(1, skip), [3, 4]
  weights = setting.weights(ids)
  assert weights['params']['embed']['embedding'].shape == (V, CONFIG.d_model)
  got = setting.answers(ids, BATCHES[:1])
  own = jax.tree.map(
    lambda x, axis: jnp.broadcast_to(x, (2, *x.shape)) if axis is None else x,
    weights,
    setting.perturber.in_axes,
    is_leaf=lambda x: x is None,
  )
  _assert_same_answers(got, _expected(own, ids, BATCHES[:1]))


def test_without_a_shared_prefix():
  setting, ids = _setting(1), [0, 1]
  weights = setting.weights(ids)
  assert setting.engine.prefill(weights, ()) is None
  # What stood in the prefix stands in each prompt now.
  whole = [[*PREFIX, *suffix] for suffix in SUFFIXES[:2]]
  (batch,) = batching.batches(whole, range(2), 2, PAD)
  got = setting.generate(weights, setting.place(ids), None, batch)
  behind = batching.batches(SUFFIXES[:2], range(2), 2, PAD)
  _assert_same_answers([got], _expected(weights, ids, behind))


def test_the_token_rule_is_told_who_a_row_is():
  def choose(logits, rows, step):
    del logits
    low = rows.row[:, 1].astype(jnp.int32)
    return (rows.member * 10 + low + rows.draw * 3) % V + step * 0

  setting = _setting(8)
  engine = _engine(setting.mesh, setting.perturber.in_axes)
  ids = np.array([6, 0, 4, 3, 0, 2, 0, 5, 1, 1, 2, 3, 4, 5, 6, 0], np.int32)
  numbers = np.array([3, 2], np.int32)
  weights = setting.weights([0] * 16)
  draws = np.arange(16, dtype=np.int32)
  batch = BATCHES[0]._replace(row=sampling.row_words(numbers))
  step = answer_all(engine, _decoding(choose), PREFIX, [batch])
  (got,) = step(weights, setting.place(ids), setting.place(draws))
  np.testing.assert_array_equal(
    got.tokens[:, :, 0],
    (ids[:, None] * 10 + numbers[None] + draws[:, None] * 3) % V,
  )


def test_one_engine_serves_rules_and_prefixes_in_turn():
  setting = _Setting(1)
  other = (7, 3, 50)
  ids, batches = [1, 2], BATCHES[:1]
  settings = [(DECODING, PREFIX), (SAMPLED, PREFIX), (DECODING, other)]
  first = [setting.answers(ids, batches, *x) for x in settings]
  compiled = dict(setting.engine._programs)
  again = [setting.answers(ids, batches, *x) for x in settings]
  chex.assert_trees_all_equal(first, again)
  assert setting.engine._programs == compiled
  # Two prefixes, and generation for each setting.
  assert len(compiled) == 5
  weights = setting.weights(ids)
  for prefix, found in ((PREFIX, first[0]), (other, first[2])):
    want = _expected(weights, ids, batches, prefix)
    chex.assert_trees_all_equal(found, want)
  # An engine that has not seen the other prefix.
  alone = _setting(1).answers(ids, batches, SAMPLED, PREFIX)
  chex.assert_trees_all_equal(first[1], alone)
  assert (first[0][0].tokens != first[1][0].tokens).any()
  assert (first[0][0].tokens != first[2][0].tokens).any()


def test_a_sample_is_the_same_whatever_else_is_drawn():
  setting, ids = _setting(1), [1, 1, 1, 2, 1, 2]
  draws = [0, 1, 5, 5, 3, 0]
  got = setting.answers(ids, BATCHES[:1], SAMPLED, draws=draws)
  # In another order, with other neighbours and fewer of them.
  chosen = [5, 2, 0]
  some = setting.answers(
    [ids[i] for i in chosen],
    BATCHES[:1],
    SAMPLED,
    draws=[draws[i] for i in chosen],
  )
  _assert_same_answers(some, jax.tree.map(lambda x: x[chosen], got))
  for row in range(2):
    assert len({x.tobytes() for x in got[0].tokens[:, row]}) == len(ids)


# Programs and memory.


def test_each_bucket_has_one_program(programs):
  names = [key[0] for key in programs]
  # Prompts fall into two buckets; the prefix has a program of its own.
  assert sorted(names) == ['generation', 'generation', 'the prefix']


def test_a_warm_engine_compiles_nothing(programs, caplog):
  setting = _setting(8)
  before = dict(programs)
  seconds = setting.engine.compile_s
  assert seconds > 0
  compiled = lambda: [
    record.getMessage()
    for record in caplog.records
    if record.getMessage().startswith('Finished XLA compilation')
  ]
  with jax.log_compiles():
    jax.jit(lambda: jnp.zeros(3))()
    assert len(compiled()) == 1  # it would be seen
    setting.answers(range(40))
  assert programs == before
  assert setting.engine.compile_s == seconds
  assert len(compiled()) == 1, compiled()


def test_caches_are_donated_from_batch_to_batch():
  setting = _setting(8)
  weights, ids = setting.weights(range(16)), setting.place(range(16))
  prefix = setting.engine.prefill(weights, PREFIX)
  where = lambda arrays: [
    shard.data.unsafe_buffer_pointer()
    for array in arrays
    for shard in array.addressable_shards
  ]
  slots = decode.cache_slots(16, G)
  caches = lambda: [
    array
    for array in jax.tree.leaves(setting.engine._caches)
    if slots in np.shape(array)
  ]
  setting.generate(weights, ids, prefix, BATCHES[1])
  before, places = caches(), where(caches())
  setting.generate(weights, ids, prefix, BATCHES[2])
  assert len(before) == 2 * CONFIG.num_layers
  assert all(array.is_deleted() for array in before)
  assert where(caches()) == places


def test_caches_of_a_chunk_that_failed_do_not_fail_the_next():
  class Failed:
    def block_until_ready(self):
      raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: of another size')

  setting = _setting(8)
  weights, ids = setting.weights(range(16)), setting.place(range(16))
  prefix = setting.engine.prefill(weights, PREFIX)
  want = jax.device_get(setting.generate(weights, ids, prefix, BATCHES[1]))
  setting.engine._caches = (0, 0, 0), Failed()
  got = jax.device_get(setting.generate(weights, ids, prefix, BATCHES[1]))
  chex.assert_trees_all_equal(got, want)


def test_the_prefix_survives_the_batches():
  setting = _setting(8)
  weights, ids = setting.weights(range(16)), setting.place(range(16))
  prefix = setting.engine.prefill(weights, PREFIX)
  first, again = (
    jax.device_get(setting.generate(weights, ids, prefix, BATCHES[1]))
    for _ in range(2)
  )
  chex.assert_trees_all_equal(first, again)


def test_an_engine_recovers_from_a_call_that_fails():
  setting = _setting(1)
  want = setting.answers([0])
  weights = setting.weights([0, 1])
  prefix = setting.engine.prefill(weights, PREFIX)
  bad = BATCHES[0]._replace(length=np.zeros(3, np.int32))
  with pytest.raises(TypeError):
    setting.generate(weights, setting.place([0, 1]), prefix, bad)
  chex.assert_trees_all_equal(setting.answers([0]), want)


def test_no_device_waits_for_another(programs):
  for key, program in programs.items():
    text = program.as_text()
    assert 'num_partitions=8' in text, key
    assert not COLLECTIVE.search(text), key


def test_a_collective_would_be_noticed():
  sharded = jax.shard_map(
    lambda x: jax.lax.psum(x, sharding.MEMBERS),
    mesh=_mesh(8),
    in_specs=PartitionSpec(sharding.MEMBERS),
    out_specs=PartitionSpec(),
  )
  text = jax.jit(sharded).lower(jnp.zeros(8)).compile().as_text()
  assert COLLECTIVE.search(text)
