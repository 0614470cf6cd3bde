# SPDX-License-Identifier: Apache-2.0
"""Generation: exact answers, whoever shares the batch, and a lean loop.

Axes as in the module: M members, B rows, P prefix tokens, S prompt bucket,
C cache slots, G new tokens, V vocabulary, Q stop states.
"""

import collections
import dataclasses
import functools
import math
import re

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from hypothesis import strategies as st
from jax.sharding import PartitionSpec

from thicket import batching, decode, perturb, sampling, sharding
from thicket.models import decoder
from thicket.models.decoder_config import Rope

V, G, PAD = tiny.CONFIG.vocab_size, 6, 63
# For tests of the loop rather than of answers; it compiles in half the time.
SMALL = tiny.with_layers(tiny.CONFIG, 1)
# The gap between the best two logits below which a rounding may decide.
CLOSE = 1e-3


def _stops_at(*ids):
  """The stop table of tokens that end an answer by themselves."""
  table = np.zeros((2, V), np.int32)
  table[0, list(ids)] = 1
  table[1] = 1
  return table


# With these ids some of the answers below stop early and some do not.
STOP_IDS = (1, 5, 9, 12, 20, 33)
GREEDY = decode.Decoding(G, _stops_at(*STOP_IDS), PAD, sampling.greedy)
PREFIX = np.array([7, 3, 44, 21, 9, 9, 2, 35], np.int32)
NO_PREFIX = PREFIX[:0]
SUFFIXES = [[2], [8, 30, 4], [50, 6, 17, 40, 22], [8, 30, 4, 8, 30, 4, 11, 60]]
(PROMPTS,) = batching.batches(SUFFIXES, range(4), 4, PAD)


def _answer(
  weights,
  ids,
  prefix,
  prompts,
  caches,
  *,
  config=tiny.CONFIG,
  decoding=GREEDY,
  in_axes=0,
  draws=None,
):
  """Prefills the prefix and answers; arguments as `generate` has them."""
  model = decoder.Decoder(config)
  kv = decode.prefill_prefix(model, weights, in_axes, prefix)
  draws = jnp.zeros_like(ids) if draws is None else draws
  return decode.generate(
    model, decoding, weights, in_axes, ids, draws, kv, prompts, caches
  )


def _caches(M, prompts, new_tokens=G, config=tiny.CONFIG, dtype=jnp.float32):
  B, S = prompts.tokens.shape
  slots = decode.cache_slots(S, new_tokens)
  return decode.empty_caches(decoder.Decoder(config), M, B, slots, dtype)


# Caches are overwritten, not read, and `jit` would drop and so not donate them.
_compiled = jax.jit(_answer, donate_argnums=4, keep_unused=True)


def _greedy(weights, prefix=PREFIX, prompts=PROMPTS, caches=None):
  """Answers and caches of members 0 to M - 1."""
  M = len(jax.tree.leaves(weights)[0])
  ids = np.arange(M, dtype=np.int32)
  caches = _caches(M, prompts) if caches is None else caches
  return _compiled(weights, ids, prefix, prompts, caches)


@functools.cache
def _members(count, config=tiny.CONFIG):
  return tiny.members(count, config)


def _assert_same(got, want):
  for field in got._fields:
    np.testing.assert_array_equal(
      getattr(got, field), getattr(want, field), err_msg=field
    )


# Answers of the model.


def _by_numpy(named, tokens):
  """One greedy answer by whole float64 passes; also the smallest top-two gap.

  There is neither cache nor batch nor padding here.
  """
  tokens, answer, gap = list(tokens), [], np.inf
  while len(answer) < G and (not answer or answer[-1] not in STOP_IDS):
    logits = tiny.reference(tiny.CONFIG, named, tokens)[-1]
    second, best = np.sort(logits)[-2:]
    gap = min(gap, best - second)
    answer.append(int(np.argmax(logits)))
    tokens.append(answer[-1])
  return answer, gap


def test_greedy_answers_are_those_of_plain_numpy():
  generated, _ = _greedy(_members(3))
  chex.assert_shape(generated.tokens, (3, 4, G))
  chex.assert_type(list(generated), [np.int32, np.int32, np.bool_, np.int32])
  want = np.full((3, 4, G), PAD)
  length, stopped = np.zeros((3, 4), int), np.zeros((3, 4), bool)
  for m in range(3):
    named = tiny.tensors(tiny.member(_members(3), m))
    for b, i in enumerate(PROMPTS.prompt):
      answer, gap = _by_numpy(named, [*PREFIX, *SUFFIXES[i]])
      assert gap > CLOSE  # or the test means nothing: choose another seed
      want[m, b, : len(answer)] = answer
      length[m, b] = len(answer)
      stopped[m, b] = answer[-1] in STOP_IDS
  np.testing.assert_array_equal(generated.tokens, want)
  np.testing.assert_array_equal(generated.length, length)
  np.testing.assert_array_equal(generated.stopped, stopped)
  np.testing.assert_array_equal(generated.steps, [length.max()] * 3)
  # The cases that matter are among these answers.
  assert len(set(length.flat)) > 2
  assert (stopped & (length < G)).any()
  assert (~stopped).any()


def test_members_together_answer_as_each_alone():
  weights = _members(3)
  together, _ = _greedy(weights)
  assert len({x.tobytes() for x in np.asarray(together.tokens)}) == 3
  for m in range(3):
    one = jax.tree.map(lambda x, m=m: x[m : m + 1], weights)
    alone, _ = _greedy(one)
    np.testing.assert_array_equal(together.tokens[m], alone.tokens[0])
    np.testing.assert_array_equal(together.length[m], alone.length[0])
    np.testing.assert_array_equal(together.stopped[m], alone.stopped[0])


def test_frozen_arrays_need_no_members_axis():
  stacked, base = _members(3), tiny.params(seed=5)
  frozen = ('embed', 'final_norm', 'layer_0')
  names = stacked['params'].keys()
  in_axes = {'params': {n: None if n in frozen else 0 for n in names}}
  mixed, copied = dict(stacked['params']), dict(stacked['params'])
  for name in frozen:
    mixed[name] = base['params'][name]
    copied[name] = jax.tree.map(
      lambda x: np.broadcast_to(x, (3, *x.shape)), mixed[name]
    )
  ids = np.arange(3, dtype=np.int32)
  run = jax.jit(functools.partial(_answer, in_axes=in_axes))
  got, _ = run({'params': mixed}, ids, PREFIX, PROMPTS, _caches(3, PROMPTS))
  want, _ = _greedy({'params': copied})
  _assert_same(got, want)
  assert len({x.tobytes() for x in np.asarray(got.tokens)}) == 3


def test_who_shares_the_batch_does_not_matter():
  weights = _members(3)
  together, _ = _greedy(weights)
  named = [tiny.tensors(tiny.member(weights, m)) for m in range(3)]
  for b, i in enumerate(PROMPTS.prompt):
    # No neighbours, no shared prefix and another bucket.
    (alone,) = batching.batches([[*PREFIX, *SUFFIXES[i]]], [i], 1, PAD)
    answers, _ = _greedy(weights, NO_PREFIX, alone)
    for m in range(3):
      one, two = answers.tokens[m, 0], together.tokens[m, b]
      differ = np.flatnonzero(one != two)
      if differ.size:  # only ever by a rounding between equals
        shared = [*PREFIX, *SUFFIXES[i], *one[: differ[0]]]
        logits = tiny.reference(tiny.CONFIG, named[m], shared)[-1]
        assert np.diff(np.sort(logits)[-2:])[0] < CLOSE


def test_caches_are_given_back_and_their_content_is_no_matter():
  weights = _members(3)
  want, caches = _greedy(weights)
  chex.assert_trees_all_equal_shapes_and_dtypes(caches, _caches(3, PROMPTS))
  (others,) = batching.batches([x[::-1] for x in SUFFIXES], range(4), 4, PAD)
  _, caches = _greedy(weights, PREFIX, others, caches=caches)
  again, _ = _greedy(weights, caches=caches)
  _assert_same(again, want)
  stale = jax.tree.map(lambda x: jnp.full_like(x, np.nan), caches)
  again, caches = _greedy(weights, caches=stale)
  _assert_same(again, want)
  chex.assert_tree_all_finite(caches)


def test_donated_caches_are_used_up():
  caches = _caches(3, PROMPTS)
  _greedy(_members(3), caches=caches)
  assert all(array.is_deleted() for array in jax.tree.leaves(caches))


def test_a_broken_member_answers_the_last_token_and_harms_no_other():
  # A comparison with NaN is false for each token, and the last one is left.
  weights = _members(3)
  want, _ = _greedy(weights)
  broken = jax.tree.map(np.copy, weights)
  broken['params']['layer_1']['mlp']['down']['kernel'][1] = np.nan
  got, _ = _greedy(broken)
  np.testing.assert_array_equal(got.tokens[1], np.full((4, G), V - 1))
  np.testing.assert_array_equal(got.tokens[::2], want.tokens[::2])


def test_bfloat16_members():
  weights = tiny.members(1, SMALL, jnp.bfloat16)
  empty = _caches(1, PROMPTS, config=SMALL, dtype=jnp.bfloat16)
  run = jax.jit(functools.partial(_answer, config=SMALL))
  got, caches = run(weights, np.zeros(1, np.int32), PREFIX, PROMPTS, empty)
  chex.assert_trees_all_equal_shapes_and_dtypes(caches, empty)
  chex.assert_tree_all_finite(caches)
  named = tiny.tensors(tiny.member(weights, 0), SMALL)
  for b, i in enumerate(PROMPTS.prompt):
    tokens = [*PREFIX, *SUFFIXES[i]]
    for token in np.asarray(got.tokens[0, b, : int(got.length[0, b])]):
      logits = tiny.reference(SMALL, named, tokens)[-1]
      # The best token up to what 8 bits can tell apart.
      assert logits[token] > logits.max() - 0.03 * np.ptp(logits)
      tokens.append(token)


# Vocabularies of one block, of few and of many.
@pytest.mark.parametrize(
  'shape', [(V,), (4, V), (8, 128), (2, 8, 384), (8, 300), (64, 129)]
)
def test_greedy_takes_the_lowest_id_among_equals(shape):
  # Few values, so that the largest is there several times.
  logits = np.random.default_rng(0).integers(0, 4, shape).astype(np.float32)
  token = sampling.greedy(logits, None, None)
  chex.assert_type(token, np.int32)
  np.testing.assert_array_equal(token, np.argmax(logits, -1))


def test_greedy_stays_in_the_vocabulary_whatever_the_logits():
  inf, nan = np.inf, np.nan
  logits = np.array(
    [[nan] * 3, [9, nan, 1], [-inf] * 3, [inf, 1, inf], [nan, inf, 1]],
    np.float32,
  )
  got = sampling.greedy(logits, None, None)
  np.testing.assert_array_equal(got, [2, 2, 0, 0, 2])


# What the loop makes of tokens, whatever the model says.


def _low(rows):
  """Row ids, which are small here, as int32."""
  return rows.row[:, 1].astype(jnp.int32)


@jax.jit
def _play(weights, script, table, live):
  """Members 0 and 1 say what `script` [2, B, G] has for them."""
  decoding = decode.Decoding(
    G, table, PAD, lambda _, rows, step: script[rows.member, _low(rows), step]
  )
  return _answer(
    weights,
    jnp.arange(2),
    NO_PREFIX,
    PROMPTS._replace(row=sampling.row_words(range(4)), live=live),
    _caches(2, PROMPTS, config=SMALL),
    config=SMALL,
    decoding=decoding,
  )[0]


def _played(script, table, live=(True,) * 4):
  script = np.asarray(script, np.int32)
  return _play(_members(2, SMALL), script, table, np.asarray(live))


@pytest.fixture
def script():
  """Tokens from 40 on, which stop nothing here, int32 [2, 4, G]."""
  return 40 + np.arange(2 * 4 * G, dtype=np.int32).reshape(2, 4, G) % 20


def test_rows_stop_at_stop_ids_and_stay_pad(script):
  script[0, 0, 0] = 9
  script[0, 1, 2] = 10
  script[1, 2, G - 1] = 9
  got = _played(script, _stops_at(9, 10))
  want = script.copy()
  want[0, 0, 1:] = PAD
  want[0, 1, 3:] = PAD
  np.testing.assert_array_equal(got.tokens, want)
  np.testing.assert_array_equal(got.length, [[1, 3, G, G], [G] * 4])
  np.testing.assert_array_equal(got.stopped, [[1, 1, 0, 0], [0, 0, 1, 0]])
  np.testing.assert_array_equal(got.steps, [G, G])


def test_the_loop_ends_with_the_last_live_row(script):
  script[:, :, 1] = 9
  script[1, 2, 1:4] = [41, 42, 9]
  got = _played(script, _stops_at(9))
  np.testing.assert_array_equal(got.length, [[2] * 4, [2, 2, 4, 2]])
  np.testing.assert_array_equal(got.steps, [4, 4])
  assert np.all(got.stopped)
  assert np.all(np.asarray(got.tokens)[:, :, 4:] == PAD)
  # The row that was longest no longer counts.
  got = _played(script, _stops_at(9), [True, True, False, True])
  np.testing.assert_array_equal(got.length, [[2, 2, 0, 2]] * 2)
  np.testing.assert_array_equal(got.steps, [2, 2])
  assert np.all(np.asarray(got.tokens)[:, 2] == PAD)


def test_one_pass_where_every_row_stops_at_once_or_none_is_live(script):
  got = _played(script, _stops_at(*range(V)))
  np.testing.assert_array_equal(got.steps, [1, 1])
  np.testing.assert_array_equal(got.tokens[:, :, 0], script[:, :, 0])
  got = _played(script, _stops_at(), [False] * 4)
  np.testing.assert_array_equal(got.steps, [1, 1])
  np.testing.assert_array_equal(got.length, np.zeros((2, 4)))
  np.testing.assert_array_equal(got.tokens, np.full((2, 4, G), PAD))


def test_stop_states_span_tokens(script):
  # Stops after 7, 8 and, by itself, after 9.
  table = np.zeros((3, V), np.int32)
  table[:, 7] = 1
  table[1, 8] = table[:, 9] = table[2] = 2
  script[0, 0, :3] = [7, 8, 50]
  script[0, 1, :5] = [8, 7, 7, 8, 50]
  script[0, 2, :6] = [7, 50, 8, 8, 7, 50]
  script[0, 3, :3] = [7, 9, 7]
  got = _played(script, table)
  np.testing.assert_array_equal(got.length, [[2, 4, 6, 2], [6] * 4])
  np.testing.assert_array_equal(got.stopped, [[1, 1, 0, 1], [0] * 4])


def test_the_stop_table_is_followed_exactly():
  rng = np.random.default_rng(0)
  lengths = collections.Counter()
  for _ in range(50):
    table = rng.choice(3, (3, V), p=[0.5, 0.35, 0.15]).astype(np.int32)
    table[2] = 2
    script = rng.integers(0, V, (2, 4, G))
    live = rng.random(4) < 0.8
    got = _played(script, table, live)
    want = np.full((2, 4, G), PAD)
    length, stopped = np.zeros((2, 4), int), np.zeros((2, 4), bool)
    for m, b in np.ndindex(2, 4):
      state = 0 if live[b] else 2
      for t, token in enumerate(script[m, b]):
        if state == 2:
          break
        want[m, b, t] = token
        length[m, b] += 1
        state = table[state, token]
      stopped[m, b] = state == 2
    np.testing.assert_array_equal(got.tokens, want)
    np.testing.assert_array_equal(got.length, length)
    np.testing.assert_array_equal(got.stopped, stopped)
    np.testing.assert_array_equal(got.steps, [max(1, length.max())] * 2)
    lengths.update(length.flat)
  assert set(lengths) == set(range(G + 1))


def test_the_token_rule_is_told_who_and_when():
  row_ids = np.array([4, 11, 11 + (3 << 32), 0])
  high, low = row_ids >> 32, row_ids & 0xFFFFFFFF
  draws = np.array([0, 1, 6], np.int32)
  ids = np.array([5, 2, 40], np.int32)

  def choose(logits, rows, step):
    chex.assert_shape(logits, (4, V))
    chex.assert_type(logits, jnp.float32)
    chex.assert_shape(list(rows), [(), (), (4, 2)])
    chex.assert_type([*rows, step], [np.int32, np.int32, np.uint32, np.int32])
    chex.assert_shape(step, ())
    words = rows.row.astype(jnp.int32)
    place = words[:, 1] * 7 + words[:, 0] * 5
    return (rows.member * 31 + place + rows.draw * 3 + step) % 61

  decoding = decode.Decoding(G, _stops_at(), PAD, choose)
  run = jax.jit(functools.partial(_answer, config=SMALL, decoding=decoding))
  got, _ = run(
    _members(3, SMALL),
    ids,
    NO_PREFIX,
    PROMPTS._replace(row=sampling.row_words(row_ids)),
    _caches(3, PROMPTS, config=SMALL),
    draws=draws,
  )
  member, row, step = np.ogrid[:3, :4, :G]
  np.testing.assert_array_equal(
    got.tokens,
    (ids[member] * 31 + low[row] * 7 + high[row] * 5 + draws[member] * 3 + step)
    % 61,
  )


def test_one_new_token():
  decoding = decode.Decoding(
    1, _stops_at(9), PAD, lambda _, rows, step: _low(rows) + step
  )
  run = jax.jit(functools.partial(_answer, config=SMALL, decoding=decoding))
  empty = _caches(1, PROMPTS, new_tokens=1, config=SMALL)
  got, caches = run(
    _members(1, SMALL),
    np.zeros(1, np.int32),
    NO_PREFIX,
    PROMPTS._replace(row=sampling.row_words([3, 9, 0, 8])),
    empty,
  )
  np.testing.assert_array_equal(got.tokens, [[[3], [9], [0], [8]]])
  np.testing.assert_array_equal(got.stopped, [[False, True, False, False]])
  np.testing.assert_array_equal(got.steps, [1])
  chex.assert_trees_all_equal_shapes_and_dtypes(caches, empty)


@pytest.mark.parametrize('limit', [0, -1])
def test_at_least_one_new_token(limit):
  with pytest.raises(ValueError, match=f'max_new_tokens = {limit} is below 1'):
    decode.Decoding(limit, _stops_at(9), PAD, sampling.greedy)


# How prompts become batches.


def test_buckets():
  sizes = [8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384]
  assert sorted({decode.bucket(n) for n in range(1, 385)}) == sizes
  for n in range(1, 385):
    assert decode.bucket(n) == min(size for size in sizes if size >= n)


SOME_PROMPTS = st.lists(
  st.lists(st.integers(0, 2), min_size=1, max_size=20), max_size=9
)


@hypothesis.given(SOME_PROMPTS.filter(len))
def test_shared_prefix_is_the_longest_that_leaves_a_token(prompts):
  def shared(n):
    return len({tuple(x[:n]) for x in prompts}) == 1

  shortest = min(map(len, prompts))
  want = max(n for n in range(shortest) if shared(n))
  assert decode.shared_prefix(prompts) == want


@pytest.mark.parametrize(
  ('prompts', 'want'),
  [
    ([], 0),
    ([[5]], 0),
    ([[5, 6, 7]], 2),
    ([[5, 6, 7], [5, 6, 7]], 2),
    ([[5, 6, 7], [5, 6]], 1),
    ([[5, 6, 7], [5, 8, 7]], 1),
    ([[4, 6, 7], [5, 6, 7]], 0),
  ],
)
def test_shared_prefix_of_few_prompts(prompts, want):
  assert decode.shared_prefix(prompts) == want


def test_one_trace_serves_all_batches():
  @functools.partial(jax.jit, donate_argnums=4)
  @chex.assert_max_traces(n=1)
  def run(*args):
    return _answer(*args, config=SMALL)

  batches = batching.batches(
    [[i] * (1 + i % 5) for i in range(10)], range(10), 4, PAD
  )
  assert [int(batch.live.sum()) for batch in batches] == [4, 4, 2]
  weights, ids = _members(1, SMALL), np.zeros(1, np.int32)
  caches = _caches(1, batches[0], config=SMALL)
  for batch in batches:
    generated, caches = run(weights, ids, NO_PREFIX, batch, caches)
    assert np.all((np.asarray(generated.length[0]) > 0) == batch.live)


# Devices.

COLLECTIVE = re.compile(
  r' (?:all-|reduce-scatter|collective-|send|recv)[\w-]*\('
)


def _sharded(devices, **settings):
  """A mesh, and `_answer` with members spread over it."""
  mesh = sharding.make_mesh(jax.devices('cpu')[:devices])
  each, whole = PartitionSpec(sharding.MEMBERS), PartitionSpec()
  return mesh, jax.shard_map(
    functools.partial(_answer, **settings),
    mesh=mesh,
    in_specs=(each, each, whole, whole, each),
    out_specs=each,
    check_vma=False,
  )


@pytest.mark.parametrize('devices', [2, 8])
def test_devices_answer_as_one_device_and_never_wait(devices):
  M = 3 * devices
  weights, ids = _members(M), np.arange(M, dtype=np.int32)
  mesh, function = _sharded(devices)
  weights_, ids_, caches = jax.device_put(
    (weights, ids, _caches(M, PROMPTS)), sharding.over_members(mesh)
  )
  args = weights_, ids_, *sharding.replicate(mesh, (PREFIX, PROMPTS)), caches
  compiled = jax.jit(function).lower(*args).compile()
  assert not COLLECTIVE.search(compiled.as_text())
  got, _ = compiled(*args)
  for start in range(0, M, 3):
    part = lambda tree, at=start: jax.tree.map(lambda x: x[at : at + 3], tree)
    want, _ = _greedy(part(weights))
    _assert_same(part(got), want)


def test_a_device_stops_on_its_own():
  decoding = decode.Decoding(
    G, _stops_at(9), PAD, lambda _, rows, step: _low(rows) * 0 + rows.member
  )
  _, function = _sharded(2, config=SMALL, decoding=decoding)
  got, _ = jax.jit(function)(
    _members(2, SMALL),
    np.array([8, 9], np.int32),
    NO_PREFIX,
    PROMPTS,
    _caches(2, PROMPTS, config=SMALL),
  )
  np.testing.assert_array_equal(got.steps, [G, 1])
  np.testing.assert_array_equal(got.tokens[0], np.full((4, G), 8))
  np.testing.assert_array_equal(got.length, [[G] * 4, [1] * 4])


def test_the_search_for_collectives_finds_one():
  mesh, _ = _sharded(2)
  done = jax.device_put(np.ones(2, bool), sharding.over_members(mesh))
  assert COLLECTIVE.search(jax.jit(jnp.all).lower(done).compile().as_text())


# The compiled loop, at the shapes of SmolLM2-135M. Nothing is run.

SHAPES = {'M': 2, 'B': 8, 'S': 16, 'G': 8, 'P': 5}
CACHE_SIZE = 2 * 8 * 3 * 64 * (16 + 8 - 1)  # elements of a layer's keys
WEIGHT_SIZE = 576 * 576  # elements of the smallest matrix

COMPUTATION = re.compile(
  r'^(?:ENTRY )?%?([\w.-]+) \(.*?\) -> .*? \{\n(.*?)^\}', re.M | re.S
)
INSTRUCTION = re.compile(
  r'^ *(?:ROOT )?%?[\w.-]+ = (.*?) ([a-z][\w-]*)\((.*)$', re.M
)
CALLED = re.compile(
  r'(?:calls|to_apply|body|condition|\w+_computations)=\{?([^{}=]*)'
)


class Instruction(collections.namedtuple('Instruction', 'shape opcode rest')):
  """An instruction of optimised HLO, as text."""

  @property
  def sizes(self):
    """Elements of the result, or of each array of a tuple."""
    return [
      math.prod(map(int, filter(None, dims.split(','))))
      for dims in re.findall(r'\w\[([\d,]*)\]', self.shape)
    ]


def _reachable(computations, name, found=None):
  """The instructions of a computation and of all that it calls."""
  found = {} if found is None else found
  if name in found:
    return found
  found[name] = computations[name]
  for instruction in computations[name]:
    for group in CALLED.findall(instruction.rest):
      for callee in re.findall(r'[\w.-]+', group):
        if callee in computations:
          _reachable(computations, callee, found)
  return found


class Loop:
  """The compiled `generate` and what its decoding loop does in a step."""

  def __init__(self, family, config=tiny.SMOLLM2_135M):
    """Compiles it for abstract arguments."""
    M, B, S, G, P = SHAPES.values()
    model = decoder.Decoder(config)
    table = np.zeros((2, config.vocab_size), np.int32)
    decoding = decode.Decoding(G, table, 0, sampling.greedy)
    ints = lambda *shape: jax.ShapeDtypeStruct(shape, np.int32)
    prompts = decode.Prompts(
      *(ints(B, S), ints(B), ints(B)),
      jax.ShapeDtypeStruct((B, 2), np.uint32),
      jax.ShapeDtypeStruct((B,), bool),
    )
    spec = decoder.canonical_spec(config)
    mesh = sharding.make_mesh(jax.devices('cpu')[:1])
    perturber = perturb.Perturber(
      jax.tree.map(lambda x: np.broadcast_to(np.float32(0), x.shape), spec),
      spec,
      seed=0,
      mesh=mesh,
      family=family,
      factored=family == 'low_rank',
    )
    axes = perturber.in_axes
    weights = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), perturber.shapes(M)
    )
    self.caches = jax.eval_shape(
      lambda: decode.empty_caches(
        model, M, B, decode.cache_slots(S, G), np.float32
      )
    )
    prefix = jax.eval_shape(
      lambda weights: decode.prefill_prefix(
        model, weights, axes, np.zeros(P, np.int32)
      ),
      weights,
    )

    def run(weights, ids, draws, prefix, prompts, caches):
      return decode.generate(
        model, decoding, weights, axes, ids, draws, prefix, prompts, caches
      )

    each, whole = PartitionSpec(sharding.MEMBERS), PartitionSpec()
    sharded = jax.shard_map(
      run,
      mesh=mesh,
      in_specs=(sharding.weight_specs(axes), *[each] * 3, whole, each),
      out_specs=each,
      check_vma=False,
    )
    self.compiled = (
      jax.jit(sharded, donate_argnums=5, keep_unused=True)
      .lower(weights, ints(M), ints(M), prefix, prompts, self.caches)
      .compile()
    )
    computations = {
      name: [Instruction(*found) for found in INSTRUCTION.findall(body)]
      for name, body in COMPUTATION.findall(self.compiled.as_text())
    }
    every = [x for body in computations.values() for x in body]
    self.whiles = [
      x for x in every if x.opcode == 'while' and CACHE_SIZE in x.sizes
    ]
    body = re.search(r'body=%?([\w.-]+)', self.whiles[0].rest)[1]
    self.step = [
      x for body in _reachable(computations, body).values() for x in body
    ]


@pytest.fixture(scope='module', params=['gaussian', 'low_rank'])
def loop(request):
  """Compiled once for all tests below."""
  return Loop(request.param)


def test_there_is_one_loop_and_it_carries_all_caches(loop):
  (only,) = loop.whiles
  assert only.sizes.count(CACHE_SIZE) == 2 * tiny.SMOLLM2_135M.num_layers
  # All products of a step are where the reader of the text looks for them: 4
  # of a layer's weights, 2 each of its own, earlier and prefix tokens; head.
  dots = sum(x.opcode == 'dot' for x in loop.step)
  assert dots >= (4 + 4) * tiny.SMOLLM2_135M.num_layers + 1


def test_a_step_scatters_nothing(loop):
  assert 'scatter' not in {x.opcode for x in loop.step}


def test_a_step_writes_each_cache_in_place_and_does_no_more_to_it(loop):
  passes_on = {'parameter', 'get-tuple-element', 'bitcast', 'fusion', 'tuple'}
  # Operations by themselves and inside fusions: a cache that is copied,
  # selected, transposed or converted is the result of one.
  made = collections.Counter(
    x.opcode
    for x in loop.step
    if CACHE_SIZE in x.sizes and x.opcode not in passes_on
  )
  assert made == {'dynamic-update-slice': 2 * tiny.SMOLLM2_135M.num_layers}


def test_a_step_moves_no_weights(loop):
  moves = {'copy', 'transpose', 'convert', 'slice', 'concatenate', 'pad'}
  sizes = {max(x.sizes) for x in loop.step if x.opcode in moves}
  assert sizes  # activations are
  # Logits to which low-rank members have added their own lie by rows then.
  logits = SHAPES['M'] * SHAPES['B'] * tiny.SMOLLM2_135M.vocab_size
  assert max(sizes - {logits}) < WEIGHT_SIZE


def test_donated_caches_become_the_result(loop):
  size = 4 * 2 * tiny.SMOLLM2_135M.num_layers * CACHE_SIZE
  assert size == sum(
    math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(loop.caches)
  )
  assert loop.compiled.memory_analysis().alias_size_in_bytes >= size


@pytest.mark.parametrize('family', ['gaussian', 'low_rank'])
def test_a_step_is_as_lean_with_all_that_other_families_have(family):
  config = dataclasses.replace(
    tiny.with_layers(tiny.SMOLLM2_135M, 2),
    ropes=(Rope(100.0), Rope(1e4, amplitude=1.2)),
    windows=(7, None),
    qkv_bias=True,
    out_bias=True,
    mlp_bias=True,
    norm_after=True,
    head_norm='head',
    embed_scale=2.0,
    attention_cap=5.0,
    logit_cap=5.0,
  )
  loop = Loop(family, config)
  (only,) = loop.whiles
  assert only.sizes.count(CACHE_SIZE) == 4
  assert 'scatter' not in {x.opcode for x in loop.step}
  passes_on = {'parameter', 'get-tuple-element', 'bitcast', 'fusion', 'tuple'}
  made = collections.Counter(
    x.opcode
    for x in loop.step
    if CACHE_SIZE in x.sizes and x.opcode not in passes_on
  )
  assert made == {'dynamic-update-slice': 4}
  moves = {'copy', 'transpose', 'convert', 'slice', 'concatenate', 'pad'}
  sizes = {max(x.sizes) for x in loop.step if x.opcode in moves}
  logits = SHAPES['M'] * SHAPES['B'] * config.vocab_size
  assert max(sizes - {logits}) < WEIGHT_SIZE
