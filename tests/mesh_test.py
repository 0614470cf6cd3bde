# SPDX-License-Identifier: Apache-2.0
"""One model on one device or split over several: same noise, same answers.

Splitting a product changes the order of its sums, so answers need not have
equal bits; where a token differs, the two best logits were closer than 1e-3.
"""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from thicket import batching, decode, engine, perturb, sampling, sharding
from thicket.models import decoder

# Eight devices can share the hidden units and the vocabulary, four the heads.
CONFIG = dataclasses.replace(tiny.CONFIG, num_heads=8, num_kv_heads=4, d_ff=48)
V, G, M = CONFIG.vocab_size, 6, 8
IDS = np.arange(M, dtype=np.int32)
PREFIX = (1, 2, 3)
BATCH = batching.batches([[2] * 8, [8, 30, 4], [50, 6, 1]], range(3), 3, 63)[0]
MESHES = pytest.mark.parametrize(
  'model', [1, 2, pytest.param(4, marks=pytest.mark.slow), 8]
)
FAMILIES = pytest.mark.parametrize('family', ['gaussian', 'low_rank:2'])


@functools.cache
def _named():
  return tiny.tensors(tiny.params(CONFIG), CONFIG)


def _params(spec):
  return jax.tree.map(
    lambda leaf: np.concatenate(
      [_named()[segment.full_name] for segment in leaf.segments]
    ).astype(np.float32),
    spec,
  )


class _Setting:
  """Members on a mesh, and an engine that has answered one batch."""

  def __init__(self, devices, model, family):
    self.mesh = sharding.make_mesh(jax.devices()[:devices], model)
    fused = not sharding.is_split(self.mesh)
    self.spec = decoder.canonical_spec(CONFIG, fused)
    self.perturber = perturb.Perturber(
      sharding.place(self.mesh, _params(self.spec), self.spec),
      self.spec,
      seed=3,
      mesh=self.mesh,
      family=family,
      factored=family.startswith('low_rank'),
    )
    self.weights = self.perturber.write(
      IDS, [0.05] * M, self.perturber.buffers(M)
    )
    self.model = decoder.Decoder(CONFIG, fused)
    self.engine = engine.Engine(
      self.model,
      mesh=self.mesh,
      in_axes=self.perturber.in_axes,
      dtype=np.float32,
    )
    table = np.zeros((2, V), np.int32)
    table[0, [5, 9]] = table[1] = 1
    decoding = decode.Decoding(G, table, 63, sampling.greedy)
    ids = sharding.spread(self.mesh, IDS)
    before = self.engine.prefill(self.weights, PREFIX)
    batch = jax.tree.map(jnp.asarray, BATCH)
    self.caches = None
    self.answers = jax.device_get(
      self.engine.generate(decoding, self.weights, ids, ids, before, batch)
    )
    (_, self.caches) = self.engine._caches
    (self.program,) = [
      compiled.as_text()
      for (name, *_), compiled in self.engine._programs.items()
      if name == 'generation'
    ]

  def tensors(self):
    """What members' weights are, by canonical name."""
    dense = self.weights
    if 'noise' in dense:
      dense = {'params': dense['params']}
    found = {}
    for leaf, array in zip(
      jax.tree.leaves(self.spec), jax.tree.leaves(dense), strict=True
    ):
      if array.ndim == len(leaf.shape):
        continue
      cuts = np.cumsum([segment.size for segment in leaf.segments])[:-1]
      for segment, part in zip(
        leaf.segments, np.split(np.asarray(array), cuts, axis=1), strict=True
      ):
        found[segment.full_name] = part.view(np.uint32)
    for path, array in jax.tree_util.tree_leaves_with_path(
      self.weights.get('noise', {})
    ):
      name = jax.tree_util.keystr(path)
      if 'down' in name or 'embed' in name:  # not fused, whatever the mesh
        found[name] = np.asarray(array).view(np.uint32)
    return found


@functools.cache
def _setting(devices, model, family):
  return _Setting(devices, model, family)


@MESHES
@FAMILIES
def test_members_have_the_same_bits_on_every_mesh(model, family):
  one, split = (_setting(*x, family).tensors() for x in ((1, 1), (8, model)))
  assert one.keys() == split.keys()
  # Matrices and vectors of the dense family; of the other vectors, and factors.
  assert len(one) > 2 * CONFIG.num_layers + 1
  for name, bits in one.items():
    np.testing.assert_array_equal(split[name], bits, err_msg=name)


@functools.cache
def _gaps(family):
  """The least gap of the two best logits along each answer, [M, B]."""
  setting = _setting(1, 1, family)
  answers = setting.answers.tokens
  P, S = len(PREFIX), BATCH.tokens.shape[1]
  prefix = np.broadcast_to(PREFIX, (*answers.shape[:2], P))
  prompts = np.broadcast_to(BATCH.tokens, (M, *BATCH.tokens.shape))
  # A row's own order: padding first, then prefix, prompt and answer.
  tokens = np.concatenate([prefix, prompts, answers], axis=2).astype(np.int32)
  pad = S - BATCH.length
  positions = np.arange(P + S + G)[None] - pad[:, None]
  mask = np.ones((len(pad), P + S + G), bool)
  for row, count in enumerate(pad):
    moved = tokens[:, row].copy()
    moved[:, :count] = 0
    moved[:, count : count + P] = tokens[:, row, :P]
    moved[:, count + P :] = tokens[:, row, P + count :]
    tokens[:, row] = moved
    mask[row, :count] = False
  one = lambda weights, tokens: setting.model.apply(
    weights, tokens, positions.astype(np.int32), mask, all_logits=True
  )[0]
  axes = setting.perturber.in_axes
  logits = jax.jit(jax.vmap(one, in_axes=(axes, 0)))(setting.weights, tokens)
  best = np.sort(np.asarray(logits)[:, :, P + S - 1 : -1], axis=-1)
  # The check of the check: these are the logits that chose the answers.
  chosen = np.argmax(np.asarray(logits)[:, :, P + S - 1 : -1], axis=-1)
  live = np.arange(G) < setting.answers.length[..., None]
  assert (chosen == answers)[live].mean() > 0.99
  return np.where(live, best[..., -1] - best[..., -2], np.inf).min(axis=2)


@MESHES
@FAMILIES
def test_answers_are_the_same_but_for_near_ties(model, family):
  one, split = (_setting(*x, family).answers for x in ((1, 1), (8, model)))
  differs = (one.tokens != split.tokens).any(axis=2)
  assert not (differs & (_gaps(family) >= 1e-3)).any()
  assert differs.mean() < 0.05
  assert (one.tokens.reshape(M, -1) != one.tokens[:1].reshape(1, -1)).any()


@MESHES
def test_what_may_be_split_is(model):
  setting = _setting(8, model, 'gaussian')
  heads = 4 // model if model <= 4 else 4  # eight do not divide four kv heads
  members = M // (8 // model)
  shape = {
    shard.data.shape for shard in setting.caches[0].key.addressable_shards
  }
  slots = decode.cache_slots(BATCH.tokens.shape[1], G)
  assert shape == {(members, 3, heads, CONFIG.head_dim, slots)}
  local = lambda *path: {
    shard.data.shape
    for shard in functools.reduce(
      lambda tree, name: tree[name], path, setting.weights['params']
    ).addressable_shards
  }
  D, F = CONFIG.d_model, CONFIG.d_ff
  assert local('embed', 'embedding') == {(members, V // model, D)}
  assert local('layer_0', 'mlp', 'down', 'kernel') == {(members, D, F // model)}
  assert local('final_norm', 'scale') == {(members, D)}
  if model > 1:
    assert local('layer_0', 'mlp', 'up', 'kernel') == {(members, F // model, D)}


@MESHES
def test_collectives_are_the_two_of_a_layer_and_stay_in_its_group(model):
  program = _setting(8, model, 'gaussian').program
  kinds = re.findall(
    r' (all-[a-z]+|collective-permute|reduce-scatter)(?:-start)?\(', program
  )
  if model == 1:
    assert not kinds
    thin = _setting(8, 1, 'low_rank:2').program
    assert not re.search(' (all-|collective-permute|reduce-scatter)', thin)
    return
  assert set(kinds) == {'all-reduce'}
  # Prefill and one step: the embedding, attention and MLP of each layer (where
  # heads are split), and the choice of a token, a maximum and its place.
  layers = CONFIG.num_layers * (2 if model <= 4 else 1)
  assert len(kinds) == 2 * (1 + layers + 2)
  # Of eight devices, neighbours: `[4,2]<=[8]` is {0,1}, {2,3}, ...; groups are
  # not named where all eight are one.
  groups = set(re.findall(r'replica_groups=(\S+?), ', program))
  assert groups == ({f'[{8 // model},{model}]<=[8]'} if model < 8 else set())


RICH = dataclasses.replace(
  CONFIG,
  windows=(3, None),
  activation='gelu_tanh',
  qkv_bias=True,
  out_bias=True,
  mlp_bias=True,
  norm_after=True,
  head_norm='whole',
)


@FAMILIES
def test_biases_and_head_norms_are_split_as_their_rows_are(family):
  named = tiny.tensors(tiny.params(RICH), RICH)
  positions = np.broadcast_to(np.arange(9, dtype=np.int32), (2, 9))
  mask = np.ones((2, 9), bool)

  def written(devices, model):
    mesh = sharding.make_mesh(jax.devices()[:devices], model)
    fused = not sharding.is_split(mesh)
    spec = decoder.canonical_spec(RICH, fused)
    base = jax.tree.map(
      lambda leaf: np.concatenate(
        [named[segment.full_name] for segment in leaf.segments]
      ).astype(np.float32),
      spec,
    )
    perturber = perturb.Perturber(
      sharding.place(mesh, base, spec),
      spec,
      seed=3,
      mesh=mesh,
      family=family,
      factored=family.startswith('low_rank'),
    )
    weights = perturber.write(IDS, [0.05] * M, perturber.buffers(M))
    vectors = {
      leaf.segments[0].full_name: array
      for leaf, array in zip(
        jax.tree.leaves(spec), jax.tree.leaves(weights['params']), strict=True
      )
      if len(leaf.shape) == 1
    }
    one = lambda weights: decoder.Decoder(RICH, fused).apply(
      weights, positions * 7 % V, positions, mask
    )[0]
    logits = jax.jit(jax.vmap(one, in_axes=(perturber.in_axes,)))(weights)
    return vectors, np.asarray(logits)

  (whole, want), (split, got) = written(1, 1), written(8, 4)
  # Of each layer seven biases, two norms of heads, four others; one at the end.
  assert len(whole) == 2 * (7 + 2 + 4) + 1
  assert whole.keys() == split.keys()
  for name, array in whole.items():
    assert np.abs(np.asarray(array[0]) - named[name]).max() > 0.01
    np.testing.assert_array_equal(split[name], array, err_msg=name)
  assert np.abs(got - want).max() < 1e-4 * np.abs(want).max()
  parts = {
    name.removeprefix('model.layers.1.'): (
      split[name].addressable_shards[0].data.shape[1] / array.shape[1]
    )
    for name, array in whole.items()
    if '.1.' in name
  }
  assert {name for name, part in parts.items() if part == 0.25} == {
    *(f'self_attn.{name}_proj.bias' for name in 'qkv'),
    *(f'self_attn.{name}_norm.weight' for name in 'qk'),
    *(f'mlp.{name}_proj.bias' for name in ('gate', 'up')),
  }
  assert {*parts.values()} == {0.25, 1}
