# SPDX-License-Identifier: Apache-2.0
"""The decoder: equal to plain numpy, causal, and the same piece by piece.

Axes as in the module: B batch, T query time, V vocabulary, D model.
"""

import dataclasses
import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from thicket import trees
from thicket.models import attention, decoder
from thicket.models.attention import Context, KeyValue
from thicket.models.decoder_config import Rope

NO_CONTEXT = Context()
UNTIED = dataclasses.replace(tiny.CONFIG, tie_head=False)
CONFIGS = {
  'grouped': tiny.CONFIG,
  'untied': UNTIED,
  'one_kv_head': dataclasses.replace(tiny.CONFIG, num_kv_heads=1),
  'all_kv_heads': dataclasses.replace(tiny.CONFIG, num_kv_heads=4),
}


@functools.cache
def _apply(config, all_logits=True):
  model = decoder.Decoder(config)
  return jax.jit(functools.partial(model.apply, all_logits=all_logits))


def _forward(weights, tokens, config=tiny.CONFIG, pad=0, context=NO_CONTEXT):
  """All logits and keys and values of whole rows, `pad` on the left of each."""
  tokens = np.asarray(tokens, np.int32)
  pad = np.broadcast_to(pad, tokens.shape[:1])[:, None]
  places = np.arange(tokens.shape[1])[None] - pad
  return _apply(config)(
    weights, tokens, np.maximum(places, 0), places >= 0, context
  )


def _tokens(*shape, seed=0):
  # Most tests take one shape, so that they share what is compiled.
  shape = shape or (3, 9)
  return np.random.default_rng(seed).integers(0, 64, shape).astype(np.int32)


def _close(got, want, tolerance=1e-5):
  """Differences are small beside the largest of the values wanted."""
  want = np.asarray(want, np.float64)
  assert np.shape(got) == want.shape
  assert np.abs(np.asarray(got) - want).max() <= tolerance * np.abs(want).max()


@pytest.mark.parametrize('config', CONFIGS.values(), ids=CONFIGS)
def test_logits_are_those_of_plain_numpy(config):
  weights = tiny.params(config)
  named = tiny.tensors(weights, config)
  tokens, pad = _tokens(), [0, 4, 8]
  logits, _ = _forward(weights, tokens, config, pad)
  chex.assert_shape(logits, (3, 9, 64))
  chex.assert_type(logits, jnp.float32)
  for row in range(3):
    want = tiny.reference(config, named, tokens[row, pad[row] :])
    _close(logits[row, pad[row] :], want)


def test_logits_of_the_last_token_alone():
  weights, tokens = tiny.params(), _tokens()
  places = np.broadcast_to(np.arange(9), (3, 9))
  last, _ = _apply(tiny.CONFIG, all_logits=False)(
    weights, tokens, places, np.ones((3, 9), bool)
  )
  every, _ = _forward(weights, tokens)
  _close(last, every[:, -1], 1e-6)


def test_heads_of_a_group_share_their_kv_head():
  K, H = tiny.CONFIG.num_kv_heads, tiny.CONFIG.head_dim
  N = tiny.CONFIG.num_heads
  ungrouped = CONFIGS['all_kv_heads']

  def repeat(path, array):
    if 'qkv' not in jax.tree_util.keystr(path):
      return array
    heads = array.reshape(N + 2 * K, H, -1)
    query, key, value = np.split(heads, (N, N + K))
    key, value = (np.repeat(x, N // K, axis=0) for x in (key, value))
    return np.concatenate([query, key, value]).reshape(3 * N * H, -1)

  grouped = tiny.params()
  weights = jax.tree_util.tree_map_with_path(repeat, grouped)
  tokens = _tokens()
  got, fresh = _forward(grouped, tokens)
  want, wide = _forward(weights, tokens, ungrouped)
  _close(got, want)
  chex.assert_shape(fresh[0].key, (3, K, H, 9))
  chex.assert_shape(fresh[0].value, (3, K, 9, H))
  _close(np.repeat(fresh[1].key, N // K, axis=1), wide[1].key)


def _gradient(config, T, pad):
  """Of a logit at each of T places, by what is embedded at each [T, T, D].

  Untied, so that the table is only read on the way in, and no token twice, so
  that a row of its gradient belongs to one place. The first `pad` are padding.
  """
  weights = tiny.params(config)
  tokens = np.random.default_rng(1).permutation(64)[:T].astype(np.int32)
  places = np.arange(T)[None] - pad
  blend = np.random.default_rng(2).standard_normal(64).astype(np.float32)

  def blended(table):
    moved = {**weights['params'], 'embed': {'embedding': table}}
    logits, _ = decoder.Decoder(config).apply(
      {'params': moved},
      tokens[None],
      np.maximum(places, 0),
      places >= 0,
      all_logits=True,
    )
    return logits[0] @ blend

  table = weights['params']['embed']['embedding']
  return np.asarray(jax.jit(jax.jacrev(blended))(table))[:, tokens]


def test_no_logit_depends_on_later_tokens_or_padding():
  T, pad = 7, 2
  gradient = _gradient(UNTIED, T, pad)
  reaches = np.any(gradient != 0, axis=-1)  # [of t, with respect to s]
  assert np.isfinite(gradient).all()
  want = np.tril(np.ones((T, T), bool))
  want[:, :pad] = False
  np.testing.assert_array_equal(reaches[pad:], want[pad:])


def test_what_is_left_of_a_row_or_in_others_changes_no_bit():
  weights, tokens = tiny.params(), _tokens()
  other = _tokens(seed=1)
  other[1, 3:] = tokens[1, 3:]
  assert not np.array_equal(other, tokens)
  pad = np.array([0, 3, 5])
  logits, fresh = _forward(weights, tokens, pad=pad)
  again, afresh = _forward(weights, other, pad=pad)
  np.testing.assert_array_equal(again[1, 3:], logits[1, 3:])
  for one, two in zip(fresh, afresh, strict=True):
    np.testing.assert_array_equal(two.key[1, ..., 3:], one.key[1, ..., 3:])
    np.testing.assert_array_equal(two.value[1, :, 3:], one.value[1, :, 3:])
  chex.assert_tree_all_finite((logits, fresh))  # at padding too


def test_left_padding_does_not_matter():
  weights, tokens, pad = tiny.params(), _tokens(), 3
  got, _ = _forward(weights, tokens, pad=pad)
  # A causal model does not see what follows, here the tokens taken away.
  moved = np.concatenate([tokens[:, pad:], tokens[:, :pad]], 1)
  want, _ = _forward(weights, moved)
  _close(got[:, pad:], want[:, :-pad])


def test_position_in_the_batch_does_not_matter():
  weights, tokens = tiny.params(), _tokens()
  pad, order = np.array([0, 1, 8]), [2, 0, 1]
  logits, fresh = _forward(weights, tokens, pad=pad)
  moved, afresh = _forward(weights, tokens[order], pad=pad[order])
  for row, origin in enumerate(order):
    _close(moved[row, pad[origin] :], logits[origin, pad[origin] :])
    _close(afresh[1].key[row], fresh[1].key[origin])


def _place(cache, fresh, start):
  """The cache with new keys and values from slot `start` on."""
  stop = start + fresh.value.shape[2]
  cache.key[..., start:stop] = fresh.key
  cache.value[:, :, start:stop] = fresh.value


@pytest.mark.parametrize('prefix_length', [0, 3])
def test_prefill_and_single_steps_are_the_whole_forward_pass(prefix_length):
  config, weights = tiny.CONFIG, tiny.params()
  P, S, C, B = prefix_length, 5, 9, 3  # C slots in the end
  prefix_tokens, tokens = _tokens(P, seed=1), _tokens(B, C)
  pad = np.array([0, 2, 4])
  named = tiny.tensors(weights)
  wants = [
    tiny.reference(config, named, np.append(prefix_tokens, row[p:]))[P:]
    for row, p in zip(tokens, pad, strict=True)
  ]
  prefix = None
  if P:
    _, whole = _forward(weights, prefix_tokens[None])
    prefix = jax.tree.map(lambda x: x[0], whole)
  # Slots that the mask hides hold large junk.
  rng = np.random.default_rng(3)
  K, H = config.num_kv_heads, config.head_dim
  caches = [
    KeyValue(
      rng.normal(0, 1e3, (B, K, H, C)).astype(np.float32),
      rng.normal(0, 1e3, (B, K, C, H)).astype(np.float32),
    )
    for _ in range(config.num_layers)
  ]
  places = np.arange(C)[None] - pad[:, None]
  run = _apply(config)
  for start, stop in [(0, S), *((t, t + 1) for t in range(S, C))]:
    seen = (places >= 0) & (np.arange(C)[None] < start)
    logits, fresh = run(
      weights,
      tokens[:, start:stop],
      P + np.maximum(places[:, start:stop], 0),
      places[:, start:stop] >= 0,
      Context(prefix, caches, seen) if start else Context(prefix),
    )
    for cache, new in zip(caches, fresh, strict=True):
      _place(cache, new, start)
    for row, want in enumerate(wants):
      first = max(start, pad[row])
      _close(
        logits[row, first - start :], want[first - pad[row] : stop - pad[row]]
      )


@pytest.mark.parametrize('window', [1, 3, 6, 7, 9])
def test_a_window_reaches_so_many_tokens_back(window):
  # One layer, so that what is seen is what is reached; of 7 tokens, 2 padding.
  config = dataclasses.replace(tiny.with_layers(UNTIED, 1), windows=(window,))
  T, pad = 7, 2
  gradient = _gradient(config, T, pad)
  assert np.isfinite(gradient).all()
  reaches = np.any(gradient != 0, axis=-1)[pad:]
  back = np.arange(T)[pad:, None] - np.arange(T)[None]  # [of t, to s]
  want = (back >= 0) & (back < window) & (np.arange(T)[None] >= pad)
  np.testing.assert_array_equal(reaches, want)


@pytest.mark.parametrize('prefix_length', [0, 3])
def test_windows_reach_into_prefix_and_cache_by_position(prefix_length):
  # As whole rows have it, which are padded on the left.
  config = dataclasses.replace(tiny.CONFIG, windows=(2, 5))
  weights, P, C, B = tiny.params(), prefix_length, 9, 3
  prefix_tokens, tokens = _tokens(P, seed=1), _tokens(B, C)
  pad = np.array([0, 2, 4])
  whole = np.concatenate(
    [np.broadcast_to(prefix_tokens, (B, P)), tokens], axis=1
  )
  for row, count in enumerate(pad):
    whole[row, count : count + P] = prefix_tokens
  want, _ = _forward(weights, whole, config, pad)
  unbound, _ = _forward(weights, whole, tiny.CONFIG, pad)
  assert np.abs(want - unbound)[:, -1].max() > 0.1
  prefix = None
  if P:
    _, before = _forward(weights, prefix_tokens[None], config)
    prefix = jax.tree.map(lambda x: x[0], before)
  places = np.arange(C)[None] - pad[:, None]
  run = _apply(config)

  def step(start, stop, caches, cache_places):
    context = Context(prefix)
    if caches is not None:
      seen = (places >= 0) & (np.arange(C)[None] < start)
      context = Context(prefix, caches, seen, cache_places)
    return run(
      weights,
      tokens[:, start:stop],
      P + np.maximum(places[:, start:stop], 0),
      places[:, start:stop] >= 0,
      context,
    )

  logits, fresh = step(0, 5, None, None)
  _close(logits[:, -1], want[:, P + 4])
  caches = [
    KeyValue(np.full((B, 2, 6, C), 1e3, np.float32),
             np.full((B, 2, C, 6), 1e3, np.float32))
    for _ in fresh
  ]  # fmt: skip
  for start in range(5, C):
    for cache, new in zip(caches, fresh, strict=True):
      _place(cache, new, start - new.value.shape[2])
    # Where there is no token of the row, its place is no matter.
    seen = (places >= 0) & (np.arange(C)[None] < start)
    cache_places = np.where(seen, P + places, 10**6)
    logits, fresh = step(start, start + 1, caches, cache_places)
    _close(logits[:, 0], want[:, P + start])


def test_windows_need_places_of_the_cache():
  config = dataclasses.replace(tiny.CONFIG, windows=(2, None))
  _, fresh = _forward(tiny.params(), _tokens())
  places = np.full((3, 1), 9, np.int32)
  with pytest.raises(ValueError, match='a window of 2 tokens needs cache_pos'):
    decoder.Decoder(config).apply(
      tiny.params(),
      _tokens(3, 1),
      places,
      places > 0,
      Context(None, fresh, np.ones((3, 9), bool)),
    )


def test_windows_that_bind_nothing_cost_nothing():
  def text(windows):
    config = dataclasses.replace(tiny.CONFIG, windows=windows)
    model, tokens = decoder.Decoder(config), _tokens()
    return str(
      jax.make_jaxpr(model.apply)(tiny.params(), tokens, tokens, tokens > 0)
    )

  assert text((9, None)) == text((None, 10)) == text(())
  assert text((8, None)) != text(())


def test_angles_are_computed_once_for_layers_that_share_them():
  def count(*bases):
    config = dataclasses.replace(
      tiny.with_layers(tiny.CONFIG, 4), ropes=tuple(map(Rope, bases))
    )
    model, tokens = decoder.Decoder(config), _tokens()
    jaxpr = jax.make_jaxpr(model.apply)(
      tiny.params(config), tokens, tokens, tokens > 0
    )
    return str(jaxpr).count('= cos ')

  assert count(10.0, 10.0, 10.0, 10.0) == 1
  assert count(10.0, 20.0, 10.0, 20.0) == 2


def test_untied_head_is_a_matrix_of_its_own():
  weights, tokens = tiny.params(UNTIED), _tokens()
  before, _ = _forward(weights, tokens, UNTIED)
  head = {'kernel': 2 * weights['params']['head']['kernel']}
  doubled = {'params': {**weights['params'], 'head': head}}
  after, _ = _forward(doubled, tokens, UNTIED)
  np.testing.assert_array_equal(after, 2 * before)


@pytest.mark.parametrize(
  'config', [tiny.CONFIG, UNTIED], ids=['tied', 'untied']
)
def test_bfloat16_weights(config):
  # The same weights in float32, so that only the arithmetic differs.
  narrow = tiny.params(config, dtype=jnp.bfloat16)
  wide = jax.tree.map(lambda x: x.astype(np.float32), narrow)
  tokens = _tokens()
  logits, fresh = _forward(narrow, tokens, config, [0, 3, 7])
  chex.assert_type(logits, jnp.float32)
  chex.assert_type([*fresh[0]], jnp.bfloat16)
  chex.assert_tree_all_finite((logits, fresh))
  want, _ = _forward(wide, tokens, config, [0, 3, 7])
  _close(logits[:, 7:], want[:, 7:], 0.05)


@pytest.mark.parametrize(
  'config', [tiny.CONFIG, UNTIED], ids=['tied', 'untied']
)
def test_logits_of_bfloat16_weights_are_float32(config):
  # Rounded to bfloat16 the best tokens of a large vocabulary are often equal.
  logits, _ = _forward(
    tiny.params(config, dtype=jnp.bfloat16), _tokens(), config
  )
  rounded = logits.astype(jnp.bfloat16).astype(jnp.float32)
  assert np.mean(np.asarray(rounded == logits)) < 0.1


def test_rotation_turns_pairs_and_keeps_lengths():
  angles = attention.rope_angles(
    np.array([[0, 1, 5]], np.int32), 4, Rope(100.0)
  )
  chex.assert_shape(angles, (1, 2, 1, 3))
  x = np.array([1, 0, 0, 1], np.float32).reshape(1, 4, 1, 1)
  got = attention.rotate(jnp.broadcast_to(x, (1, 4, 1, 3)), angles)[0, :, 0]
  t = np.array([0.0, 1.0, 5.0])
  # Pairs are (0, 2) at rate 1 and (1, 3) at rate 1 / sqrt(100).
  want = [np.cos(t), -np.sin(t / 10), np.sin(t), np.cos(t / 10)]
  np.testing.assert_allclose(got, want, atol=1e-6)


def test_frequencies_are_divided_and_amplitudes_multiplied():
  t = np.array([[0, 1, 5]], np.int32)
  cos, sin = attention.rope_angles(t, 4, Rope(100.0, (2.0, 0.5), 1.25))
  angles = np.array([[1 / 2], [1 / 10 / 0.5]]) * t
  np.testing.assert_allclose(cos[0, :, 0], 1.25 * np.cos(angles), atol=1e-6)
  np.testing.assert_allclose(sin[0, :, 0], 1.25 * np.sin(angles), atol=1e-6)


def test_soft_caps_bound_and_keep_what_is_small():
  x = np.array([-1e4, -0.01, 0, 0.01, 2, 1e4], np.float32)
  want = 3 * np.tanh(x.astype(np.float64) / 3)
  np.testing.assert_allclose(attention.soft_cap(x, 3.0), want, rtol=1e-6)
  np.testing.assert_array_equal(attention.soft_cap(x, None), x)


@pytest.mark.parametrize('config', CONFIGS.values(), ids=CONFIGS)
def test_spec_describes_the_tree_of_init(config):
  tokens = np.zeros((1, 2), np.int32)
  variables = jax.eval_shape(
    decoder.Decoder(config).init,
    jax.random.key(0),
    tokens,
    tokens,
    np.ones((1, 2), bool),
  )
  spec = decoder.canonical_spec(config)
  trees.check_spec(variables, spec)
  names = {segment.full_name for segment in trees.segments(spec)}
  assert ('lm_head.weight' in names) != config.tie_head


def test_smollm2_135m_has_the_tensors_of_its_checkpoint():
  spec = decoder.canonical_spec(tiny.SMOLLM2_135M)
  shapes = {
    segment.full_name: (segment.size, *leaf.shape[1:])
    for leaf in jax.tree.leaves(spec)
    for segment in leaf.segments
  }
  assert sum(map(math.prod, shapes.values())) == 134_515_008
  layer = {
    'input_layernorm': (576,),
    'self_attn.q_proj': (576, 576),
    'self_attn.k_proj': (192, 576),
    'self_attn.v_proj': (192, 576),
    'self_attn.o_proj': (576, 576),
    'post_attention_layernorm': (576,),
    'mlp.gate_proj': (1536, 576),
    'mlp.up_proj': (1536, 576),
    'mlp.down_proj': (576, 1536),
  }
  assert shapes == {
    'model.embed_tokens.weight': (49152, 576),
    'model.norm.weight': (576,),
    **{
      f'model.layers.{i}.{name}.weight': shape
      for i in range(30)
      for name, shape in layer.items()
    },
  }
