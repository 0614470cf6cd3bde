# SPDX-License-Identifier: Apache-2.0
"""The library call: any function, any Flax model, the same members anywhere."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import thicket
from thicket import perturb, sharding, trees
from thicket.blocks import LedgerError
from thicket.population import BASE, OutOfMemory

SEED, SIGMA = 7, 0.5
X = np.linspace(-2, 2, 24, dtype=np.float32).reshape(12, 2)
LABELS = (X.sum(axis=1) > 0).astype(np.int32)
DATA = {'x': X, 'label': LABELS}


class MLP(nn.Module):
  """Two layers, written as users write them."""

  @nn.compact
  def __call__(self, x):
    return nn.Dense(3)(nn.tanh(nn.Dense(8)(x)))


MODEL = MLP()


def apply(params, data):
  return MODEL.apply(params, data['x'])


def hits(logits, data):
  """[B] rewards of 0 and 1."""
  return logits.argmax(-1) == data['label']


def margin(logits, data):
  """[B] rewards that are hardly ever equal."""
  label = jax.nn.one_hot(data['label'], 3)
  return (logits * label).sum(-1) - logits.mean(-1)


@pytest.fixture(scope='module')
def params():
  with jax.numpy_dtype_promotion('standard'):
    params = MODEL.init(jax.random.key(1), X[:1])
  return jax.tree.map(np.asarray, params)


def _search(params, score=margin, **more):
  settings = {
    'key': SEED,
    'num_members': 8,
    'top_k': 3,
    'sigma': SIGMA,
    'members_per_device': 2,
  } | more
  return thicket.search(
    settings.pop('apply', apply),
    params,
    settings.pop('data', DATA),
    score,
    **settings,
  )


def _mesh(devices):
  return sharding.make_mesh(jax.devices()[:devices])


def _row(view, member):
  """[B] rewards of one member."""
  (at,) = np.flatnonzero(view.members == member)
  return view.reward[at, :, 0]


def _rewards(result):
  return result.ledger.view('selection').reward[..., 0]


@pytest.fixture(scope='module')
def found(params):
  return _search(params, num_members=32, mesh=_mesh(1))


def _weights(params, member_id, sigma=SIGMA, seed=SEED, **settings):
  """One member's weights, by the noise contract alone."""
  mesh = _mesh(1)
  perturber = perturb.Perturber(
    sharding.replicate(mesh, params),
    trees.default_spec(params),
    seed=seed,
    mesh=mesh,
    **settings,
  )
  weights = perturber.write([member_id], [sigma], perturber.buffers(1))
  # Biases of 0 do not move under relative sigma: those stand in for all.
  return jax.tree.map(
    lambda axis, array: array if axis is None else array[0],
    perturber.in_axes,
    weights,
    is_leaf=lambda axis: axis is None,
  )


def _apply(params, data=DATA):
  with jax.numpy_dtype_promotion('standard'):
    return apply(params, data)


# Results.


def test_the_ledger_holds_a_reward_for_each_row_of_each_member(params, found):
  view = found.ledger.view('selection')
  assert view.members.tolist() == [BASE, *range(32)]
  assert view.rows.tolist() == list(range(12))
  assert view.seen.all()
  assert found.ledger.splits == ('selection',)
  for member in (BASE, 0, 17, 31):
    weights = params if member == BASE else _weights(params, member)
    want = margin(_apply(weights), DATA)
    np.testing.assert_allclose(_row(view, member), want, rtol=1e-4, atol=1e-5)


def test_scores_are_means_of_rewards(found):
  rewards = _rewards(found).astype(np.float64)
  assert found.scores.dtype == np.float32
  np.testing.assert_array_equal(
    found.scores, rewards[1:].mean(axis=1).astype(np.float32)
  )
  assert found.base_score == np.float32(rewards[0].mean())
  assert len(set(found.scores.tolist())) == 32


def test_the_best_are_selected_best_first(found):
  order = np.argsort(-found.scores, kind='stable')[:3]
  assert [member.id for member in found.members] == order.tolist()
  for member in found.members:
    assert member.sigma == SIGMA
    assert member.score == found.scores[member.id]


def test_the_ensemble_is_the_model_with_the_members_weights(params, found):
  other = {'x': X[:5] * np.float32(0.7)}
  outputs = found.ensemble(other)
  assert outputs.shape == (3, 5, 3)
  for member, output in zip(found.members, outputs, strict=True):
    want = _apply(_weights(params, member.id), other)
    np.testing.assert_allclose(output, want, rtol=1e-4, atol=1e-5)
  again = found.ensemble(other)  # its memory is lent and taken back
  np.testing.assert_array_equal(again, outputs)


def test_ensembles_of_several_chunks_keep_their_order(params):
  one, many = (
    _search(params, top_k=8, mesh=_mesh(1), members_per_device=chunk)
    for chunk in (8, 3)
  )
  np.testing.assert_allclose(
    many.ensemble(DATA), one.ensemble(DATA), rtol=1e-5, atol=1e-6
  )
  assert [m.id for m in one.members] == [m.id for m in many.members]


# What does not matter.


def test_members_do_not_depend_on_how_many_there_are(params, found):
  small = _search(params, num_members=8, mesh=_mesh(1))
  np.testing.assert_array_equal(_rewards(small), _rewards(found)[:9])
  np.testing.assert_array_equal(small.scores, found.scores[:8])


@pytest.mark.parametrize('devices', [2, 8])
def test_the_mesh_changes_no_bit(devices, params, found):
  other = _search(params, num_members=32, mesh=_mesh(devices))
  np.testing.assert_array_equal(_rewards(other), _rewards(found))
  assert other.members == found.members
  # The ensemble's chunks hold fewer members on more devices.
  np.testing.assert_allclose(
    other.ensemble(DATA), found.ensemble(DATA), rtol=1e-5, atol=1e-6
  )


def test_by_default_all_devices_are_used(params, found):
  other = _search(params, num_members=32)
  np.testing.assert_array_equal(_rewards(other), _rewards(found))


@pytest.mark.parametrize('chunk', [1, 5, 16])
def test_the_chunk_changes_nothing_but_roundings(chunk, params, found):
  other = _search(
    params, num_members=32, mesh=_mesh(1), members_per_device=chunk
  )
  np.testing.assert_allclose(
    _rewards(other), _rewards(found), rtol=1e-4, atol=1e-6
  )


@pytest.mark.parametrize(
  ('key', 'seed'),
  [
    (jax.random.key(7), 7),
    (np.int64(7), 7),
    (jax.random.key(0), 0),
    (jax.random.wrap_key_data(np.array([5, 9], np.uint32)), 5 * 2**32 + 9),
  ],
)
def test_a_key_is_the_seed_that_its_words_spell(key, seed, params):
  ours, plain = (
    _search(params, key=k, num_members=4, mesh=_mesh(1)) for k in (key, seed)
  )
  np.testing.assert_array_equal(ours.scores, plain.scores)
  assert ours.ledger.recipe == plain.ledger.recipe


def test_other_seeds_are_other_members(params, found):
  other = _search(params, key=SEED + 1, mesh=_mesh(1))
  assert not set(other.scores.tolist()) & set(found.scores.tolist())
  assert other.base_score == found.base_score


# Settings.


def test_sigmas_are_taken_in_turn(params):
  result = _search(params, sigma=[0.0, 0.25], num_members=6, top_k=6)
  assert (result.scores[::2] == np.float32(result.base_score)).all()
  assert (result.scores[1::2] != np.float32(result.base_score)).all()
  for member in result.members:
    assert member.sigma == (0.25 if member.id % 2 else 0.0)


@pytest.mark.parametrize(
  'settings', [{'family': 'rademacher'}, {'scale': 'relative'}]
)
def test_family_and_scale_reach_the_noise(settings, params, found):
  result = _search(params, mesh=_mesh(1), **settings)
  want = margin(_apply(_weights(params, 5, **settings)), DATA)
  np.testing.assert_allclose(_rewards(result)[6], want, rtol=1e-4, atol=1e-5)
  assert (result.scores != found.scores[:8]).all()


def test_masks_keep_tensors_frozen(params):
  # The names are those of the tree; the model is its own test.
  names = {s.name for s in trees.segments(trees.default_spec(params))}
  assert 'params/Dense_1/bias' in names
  first = lambda params, data: jnp.concatenate(
    [x.reshape(-1) for x in jax.tree.leaves(params)]
  )
  score = lambda outputs, data: outputs
  base = np.asarray(first(params, None))
  for mask, is_moved in (
    ({'only': 'Dense_1/kernel'}, lambda name: name.endswith('1/kernel')),
    ({'skip': 'bias'}, lambda name: not name.endswith('bias')),
    (
      {'only': 'Dense_0', 'skip': 'kernel'},
      lambda name: name.endswith('0/bias'),
    ),
  ):
    result = _search(params, score, apply=first, **mask)
    moved = np.concatenate(
      [
        np.full(leaf.shape, is_moved(leaf.segments[0].name)).reshape(-1)
        for leaf in jax.tree.leaves(trees.default_spec(params))
      ]
    )
    assert (_rewards(result)[1:, moved] != base[moved][None]).all()
    np.testing.assert_array_equal(
      _rewards(result)[1:, ~moved],
      np.broadcast_to(base[~moved], (8, (~moved).sum())),
    )


# Any pure function.


def _quadratic(params, data):
  return {'sum': params['a'] + data, 'a': params['a'] + np.float32(0)}


def _closeness(outputs, data):
  return -((outputs['sum'] - 3) ** 2).sum()


def test_a_pure_function_with_a_scalar_score():
  params = {'a': np.float32(1)}
  result = _search(
    params, _closeness, apply=_quadratic, data=np.float32(1), num_members=40
  )
  assert _rewards(result).shape == (41, 1)
  assert result.base_score == -1.0
  noise = [float(_weights(params, i)['a']) for i in range(40)]
  want = -((np.array(noise) + 1 - 3) ** 2)
  np.testing.assert_allclose(result.scores, want, rtol=1e-5, atol=1e-6)
  outputs = result.ensemble(np.float32(10))
  assert set(outputs) == {'sum', 'a'}
  best = [noise[member.id] for member in result.members]
  np.testing.assert_allclose(outputs['a'], best, rtol=1e-6)
  np.testing.assert_allclose(outputs['sum'], np.array(best) + 10, rtol=1e-6)
  assert result.members[0].score > result.base_score


def test_outputs_that_are_the_weights_themselves():
  # Nothing that is handed out may be memory that the next chunk writes to.
  params = {'a': np.arange(3, dtype=np.float32)}
  result = _search(
    params,
    lambda outputs, data: outputs['a'],
    apply=lambda params, data: params,
    data=None,
    top_k=7,
    mesh=_mesh(1),
  )
  outputs = result.ensemble(None)['a']
  for member, output in zip(result.members, outputs, strict=True):
    np.testing.assert_array_equal(output, _weights(params, member.id)['a'])


def _table(scores):
  """A model that knows itself by its noise: member i scores `scores[i]`."""
  params, members = {'a': np.float32(0)}, range(len(scores))
  noise = np.stack([_weights(params, i)['a'] for i in members])

  def score(value, data):
    del data
    member = jnp.argmin(jnp.abs(value - noise))
    own = jnp.asarray(scores, jnp.float32)[member]
    return jnp.where(value == 0, np.float32(0.5), own)

  return {
    'apply': lambda params, data: params['a'],
    'data': None,
    'score': score,
    'params': params,
    'num_members': len(scores),
  }


@pytest.mark.parametrize(
  ('scores', 'best'),
  [
    ([1, 3, 2, 3, 1], [1, 3, 2]),
    ([2, 2, 2, 2], [0, 1, 2]),
    ([np.nan, 1, np.nan, -np.inf, 0], [1, 4, 3]),
    ([np.nan, np.nan, 0.25, np.nan], [2, 0, 1]),
    ([0.5, np.inf, 0.5, 0.75], [1, 3, 0]),
  ],
)
def test_ties_go_to_the_lower_id_and_nan_comes_last(scores, best):
  result = _search(**_table(scores))
  np.testing.assert_array_equal(result.scores, np.float32(scores))
  assert [member.id for member in result.members] == best
  assert result.base_score == 0.5


@pytest.mark.parametrize('dtype', [np.bool_, np.int32, np.float16])
def test_rewards_of_any_type_become_float32(dtype, params):
  def score(logits, data):
    return hits(logits, data).astype(dtype)

  result = _search(params, score)
  rewards = _rewards(result)
  assert rewards.dtype == np.float32
  assert set(rewards.flat) == {0.0, 1.0}
  np.testing.assert_array_equal(rewards, _rewards(_search(params, hits)))


def test_models_are_traced_under_jax_s_own_rules():
  # int32 + bfloat16 + float32, and a vector on a matrix: strict here.
  def mixed(params, data):
    wide = params['w'] * data['x'].astype(jnp.bfloat16)
    return (wide + data['label'][:, None]) * np.float32(0.5) + params['b']

  weights = {'w': np.ones(2, np.float32), 'b': np.float32(0.25)}
  with pytest.raises((TypeError, ValueError)):
    jax.eval_shape(mixed, weights, DATA)
  result = _search(
    weights, lambda out, data: out.mean(-1) * data['label'], apply=mixed
  )
  assert np.isfinite(result.scores).all()
  assert result.ensemble(DATA).shape == (3, 12, 2)
  # And the caller's rules are as they were.
  with pytest.raises((TypeError, ValueError)):
    jax.eval_shape(mixed, weights, DATA)


def test_weights_of_bfloat16_stay_so(params):
  narrow = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), params)
  seen = []

  def apply_and_note(params, data):
    seen.extend(x.dtype for x in jax.tree.leaves(params))
    return apply(params, data)

  result = _search(narrow, apply=apply_and_note)
  assert set(seen) == {jnp.dtype(jnp.bfloat16)}
  assert np.isfinite(result.scores).all()


def test_the_base_is_never_modified(params):
  before = jax.tree.map(np.copy, params)
  placed = jax.tree.map(jnp.asarray, params)
  _search(placed)
  for array, want in zip(
    jax.tree.leaves(placed), jax.tree.leaves(before), strict=True
  ):
    np.testing.assert_array_equal(array, want)


# Errors.


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'top_k': 0}, 'top_k = 0 is outside [1, 8] members'),
    ({'top_k': 9}, 'top_k = 9 is outside [1, 8] members'),
    ({'sigma': []}, 'no sigma: give at least one, such as 0.001'),
    ({'sigma': -0.1}, 'sigma = -0.1 is not a finite number >= 0'),
    ({'key': -1}, 'seed = -1 is outside [0, 2**64)'),
    ({'members_per_device': 0}, 'members per device = 0 is below 1'),
    (
      {'key': np.array([0, 1], np.uint32)},
      'key is uint32; make it with jax.random.key(seed)',
    ),
    (
      {'key': jax.random.key(0, impl='unsafe_rbg')},
      'key holds words of shape (4,); one threefry key is needed',
    ),
    (
      {'key': jax.random.split(jax.random.key(0))},
      'key holds words of shape (2, 2); one threefry key is needed',
    ),
    (
      {'family': 'normal'},
      "noise family 'normal'; known: gaussian, rademacher, low_rank",
    ),
    (
      {'scale': 'rms'},
      "sigma scale 'rms' is not one of ('absolute', 'relative', 'modular')",
    ),
    (
      {'only': 'Conv'},
      "only='Conv', skip='' leave no tensor to perturb; names look like "
      "'params/Dense_0/bias'",
    ),
    (
      {'score': lambda logits, data: logits},
      'score gives shape (12, 3); [B] or () is needed',
    ),
  ],
)
def test_bad_settings_are_named_with_their_value(settings, message, params):
  with pytest.raises(ValueError, match=re.escape(message)) as caught:
    _search(params, **settings)
  assert str(caught.value) == message


def loss(logits, data):
  """[B] rewards that are at most 0 and differ widely between members."""
  label = jax.nn.one_hot(data['label'], 3)
  return -jnp.square(4 * (logits - label)).mean(-1)


@pytest.mark.parametrize('devices', [1, 8])
def test_pruning_selects_what_the_full_search_selects(devices, params):
  settings = {'num_members': 40, 'top_k': 3, 'mesh': _mesh(devices)}
  settings['prune_after'] = (3, 6)
  full = _search(params, loss, max_reward=np.inf, **settings)
  found = _search(params, loss, **settings)
  assert found.members == full.members
  assert found.base_score == full.base_score
  assert full.saved == 0 < found.saved
  whole = ~np.isnan(found.scores)
  assert 3 <= whole.sum() < 40
  np.testing.assert_array_equal(found.scores[whole], full.scores[whole])
  known = ~np.isnan(found.rewards)
  np.testing.assert_array_equal(found.rewards[known], full.rewards[known])
  assert known[:, :3].all()
  assert found.saved == pytest.approx(1 - known.mean())


def test_blocks_of_rows_change_nothing_but_roundings(params):
  plain = _search(params, loss, num_members=8)
  cut = _search(params, loss, num_members=8, prune_after=(5,), max_reward=1e9)
  np.testing.assert_allclose(cut.rewards, plain.rewards, rtol=1e-5)


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'prune_after': (0,)}, 'there are 12 rows'),
    ({'prune_after': (13,)}, 'there are 12 rows'),
    ({'prune_after': (3,), 'max_reward': -1e6}, 'above max_reward'),
    ({'prune_after': (3,), 'max_reward': np.nan}, 'max_reward is NaN'),
    ({'prune_after': (3,), 'data': {'x': X, 'label': LABELS[:6]}}, 'as many'),
  ],
)
def test_pruning_that_would_not_be_exact_is_refused(settings, message, params):
  with pytest.raises(ValueError, match=message):
    _search(params, loss, **settings)


def test_what_is_kept_is_held_to_the_bound_too(params, tmp_path):
  kept = {'prune_after': (3,), 'num_members': 4, 'workdir': tmp_path}
  _search(params, loss, **kept)
  with pytest.raises(ValueError, match='above max_reward'):
    _search(params, loss, max_reward=-1e6, **kept)


def test_a_scalar_score_cannot_be_pruned(params):
  with pytest.raises(ValueError, match='a reward for each row'):
    _search(params, lambda *x: loss(*x).mean(), prune_after=(3,))


def test_scores_that_are_all_no_numbers_are_refused(params):
  with pytest.raises(ValueError, match='no score is a number'):
    _search(params, lambda *x: loss(*x) * np.nan)


def test_members_do_not_depend_on_how_few_fill_a_chunk(params):
  few = _search(params, loss, num_members=5, members_per_device=4)
  many = _search(params, loss, num_members=40, members_per_device=4)
  alone = _search(
    params, loss, num_members=5, members_per_device=4, mesh=_mesh(1)
  )
  np.testing.assert_array_equal(few.rewards, many.rewards[:5])
  np.testing.assert_array_equal(few.rewards, alone.rewards)


def test_outputs_are_those_of_any_members(params, found):
  again = found.outputs([m.id for m in found.members], DATA)
  np.testing.assert_array_equal(again, found.ensemble(DATA))
  base = found.outputs([BASE], DATA)[0]
  np.testing.assert_allclose(base, apply(params, DATA), rtol=1e-5)


def test_weights_are_those_that_gave_the_outputs(params, found):
  best = found.members[0].id
  outputs = apply(found.weights(best), DATA)
  np.testing.assert_allclose(found.ensemble(DATA)[0], outputs, rtol=1e-5)
  for own, base in zip(
    jax.tree.leaves(found.weights(BASE)), jax.tree.leaves(params), strict=True
  ):
    np.testing.assert_array_equal(own, base)


def test_a_folder_keeps_rewards_and_a_larger_search_adds_to_them(
  params, tmp_path
):
  small = _search(params, num_members=4, workdir=tmp_path)
  calls = []

  def counting(logits, data):
    calls.append(None)
    return margin(logits, data)

  again = _search(params, counting, num_members=4, workdir=tmp_path)
  np.testing.assert_array_equal(again.scores, small.scores)
  assert not calls  # nothing was even traced
  large = _search(params, num_members=8, workdir=tmp_path)
  np.testing.assert_array_equal(large.scores[:4], small.scores)
  fresh = _search(params, num_members=8)
  np.testing.assert_allclose(large.scores, fresh.scores, rtol=1e-6)


@pytest.mark.parametrize(
  ('settings', 'field'),
  [
    ({'sigma': 0.25}, 'sigmas'),
    ({'name': 'another score'}, 'name'),
    ({'family': 'rademacher'}, 'family'),
    ({'data': {**DATA, 'x': X + 1}}, 'data'),
  ],
)
def test_the_folder_of_another_search_is_refused(
  settings, field, params, tmp_path
):
  _search(params, num_members=3, workdir=tmp_path)
  with pytest.raises(LedgerError, match=field):
    _search(params, num_members=3, workdir=tmp_path, **settings)


# Memory.


def _scarce(monkeypatch, room):
  """Memory holds the weights of so many members."""
  write = perturb.Perturber.write

  def scarce(self, ids, *args):
    if len(ids) > room:
      jnp.zeros((2**25, 2**25), jnp.uint8).block_until_ready()  # 2**50 bytes
    return write(self, ids, *args)

  monkeypatch.setattr(perturb.Perturber, 'write', scarce)


@pytest.mark.parametrize('prune_after', [(), (4,)])
def test_a_search_that_runs_out_of_memory_is_one_of_smaller_chunks(
  prune_after, params, monkeypatch, caplog
):
  settings = {'num_members': 13, 'mesh': _mesh(1), 'prune_after': prune_after}
  settings |= {'max_reward': 100.0} if prune_after else {}
  want = _search(params, members_per_device=2, **settings)
  with monkeypatch.context() as patch:
    _scarce(patch, 2)
    found = _search(params, members_per_device=8, **settings)
    outputs = found.ensemble(DATA)
  assert 'going on with 2; products of another size' in caplog.text
  np.testing.assert_array_equal(_rewards(found), _rewards(want))
  assert found.members == want.members
  np.testing.assert_allclose(outputs, want.ensemble(DATA), rtol=1e-5)


def test_a_search_of_members_too_large_is_refused(params, monkeypatch):
  _scarce(monkeypatch, 0)
  with pytest.raises(OutOfMemory, match='a single member on each device'):
    _search(params, mesh=_mesh(1))
