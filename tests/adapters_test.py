# SPDX-License-Identifier: Apache-2.0
"""Linen and NNX models as pure functions, with the same members."""

import re

import flax.core
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

import thicket
from thicket import perturb, sharding, trees
from thicket.models import adapters
from thicket.user_rules import user_rules

X = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
SEED, SIGMA = 5, 0.1


class Linen(nn.Module):
  """With running statistics and dropout, as users write them."""

  def setup(self):
    """Names as in `Net`."""
    self.first = nn.Dense(4)
    self.norm = nn.BatchNorm()
    self.drop = nn.Dropout(0.5)
    self.head = nn.Dense(2)

  def __call__(self, x, train=False):
    """[B, 3] -> [B, 2]."""
    x = self.norm(self.first(x), use_running_average=not train)
    return self.head(self.drop(jnp.tanh(x), deterministic=not train))

  def features(self, x):
    """[B, 3] -> [B, 4]."""
    return self.first(x)


class Net(nnx.Module):
  """The same in NNX, in training mode when it is made."""

  def __init__(self, rngs):
    """Draws weights."""
    self.first = nnx.Linear(3, 4, rngs=rngs)
    self.norm = nnx.BatchNorm(4, rngs=rngs)
    self.drop = nnx.Dropout(0.5, rngs=rngs)
    self.head = nnx.Linear(4, 2, rngs=rngs)

  def __call__(self, x, scale=1.0):
    """[B, 3] -> [B, 2]."""
    x = self.drop(jnp.tanh(self.norm(self.first(x))))
    return self.head(x) * np.float32(scale)


@pytest.fixture(scope='module')
def variables():
  """Linen's, with statistics that are neither 0 and 1 nor the batch's."""
  found = jax.jit(Linen().init)(jax.random.key(1), X)
  mean, var = np.arange(4, dtype=np.float32), np.full(4, 2, np.float32)
  stats = {'norm': {'mean': jnp.asarray(mean), 'var': jnp.asarray(var)}}
  return {'params': found['params'], 'batch_stats': stats}


def _net(variables):
  """The NNX module with Linen's weights and statistics."""
  with user_rules():
    net = Net(nnx.Rngs(0))
  params, stats = variables['params'], variables['batch_stats']
  for layer in ('first', 'head'):
    getattr(net, layer).kernel[...] = params[layer]['kernel']
    getattr(net, layer).bias[...] = params[layer]['bias']
  net.norm.scale[...] = params['norm']['scale']
  net.norm.bias[...] = params['norm']['bias']
  net.norm.mean[...] = stats['norm']['mean']
  net.norm.var[...] = stats['norm']['var']
  return net


def _by_hand(variables, x):
  wide = jax.tree.map(lambda a: np.asarray(a, np.float64), variables)
  p, s = wide['params'], wide['batch_stats']['norm']
  x = x @ p['first']['kernel'] + p['first']['bias']
  x = (x - s['mean']) / np.sqrt(s['var'] + 1e-5)
  x = np.tanh(x * p['norm']['scale'] + p['norm']['bias'])
  return x @ p['head']['kernel'] + p['head']['bias']


@pytest.fixture(scope='module')
def models(variables):
  """By kind."""
  return {
    'linen': adapters.from_linen(Linen(), variables),
    'nnx': adapters.from_nnx(_net(variables)),
  }


def _names(params):
  return [s.name for s in trees.segments(trees.default_spec(params))]


def _members(params, ids=(0, 3)):
  mesh = sharding.make_mesh(jax.devices()[:1])
  perturber = perturb.Perturber(
    sharding.replicate(mesh, params),
    trees.default_spec(params),
    seed=SEED,
    mesh=mesh,
  )
  return perturber.write(ids, [SIGMA] * len(ids), perturber.buffers(len(ids)))


def _equal(ours, theirs):
  assert jax.tree.structure(ours) == jax.tree.structure(theirs)
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)


# What a model gives, and what its tensors are called.


@pytest.mark.parametrize('kind', ['linen', 'nnx'])
def test_outputs_use_weights_and_running_statistics(kind, models, variables):
  apply, params = models[kind]
  found = apply(params, X)
  np.testing.assert_allclose(found, _by_hand(variables, X), rtol=1e-5)
  np.testing.assert_array_equal(found, apply(params, X))  # pure
  moved = jax.tree.map(lambda a: a + np.float32(0.1), params)
  want = _by_hand({**variables, 'params': moved}, X)
  np.testing.assert_allclose(apply(moved, X), want, rtol=1e-5)


@pytest.mark.parametrize('kind', ['linen', 'nnx'])
def test_names_are_paths_of_attributes(kind, models):
  params = models[kind].params
  assert _names(params) == [
    'first/bias',
    'first/kernel',
    'head/bias',
    'head/kernel',
    'norm/bias',
    'norm/scale',
  ]
  assert jax.tree.all(jax.tree.map(lambda a: isinstance(a, jax.Array), params))


def test_linen_and_nnx_have_the_same_members(models):
  linen, nnx_ = models['linen'], models['nnx']
  _equal(linen.params, nnx_.params)
  ours, theirs = _members(linen.params), _members(nnx_.params)
  _equal(ours, theirs)
  for array, base in zip(
    jax.tree.leaves(ours), jax.tree.leaves(linen.params), strict=True
  ):
    assert (array != base[None]).all()


@pytest.mark.parametrize('kind', ['linen', 'nnx'])
def test_many_members_at_once_are_each_as_alone(kind, models):
  apply, params = models[kind]
  members = _members(params)
  found = jax.jit(jax.vmap(apply, in_axes=(0, None)))(members, X)
  assert found.shape == (2, 6, 2)
  for i, output in enumerate(found):
    alone = apply(jax.tree.map(lambda a, i=i: a[i], members), X)
    np.testing.assert_allclose(output, alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('kind', ['linen', 'nnx'])
def test_a_search_in_ten_lines(kind, models, variables):
  model = models[kind]
  target = np.sin(X[:, :2])

  def score(outputs, x):
    del x
    return -jnp.square(outputs - target).mean(axis=1)

  result = thicket.search(
    *model, X, score, key=SEED, num_members=16, top_k=2, sigma=SIGMA
  )
  want = -np.square(_by_hand(variables, X) - target).mean()
  assert result.base_score == pytest.approx(want, rel=1e-5)
  assert result.ensemble(X).shape == (2, 6, 2)
  weights = _members(model.params, [result.members[0].id])
  best = {**variables, 'params': jax.tree.map(lambda a: a[0], weights)}
  want = -np.square(_by_hand(best, X) - target).mean()
  assert result.members[0].score == pytest.approx(want, rel=1e-5)


def test_a_search_finds_the_same_in_linen_and_nnx(models):
  found = [
    thicket.search(
      *model,
      X,
      lambda outputs, x: -jnp.square(outputs).sum(-1) - jnp.square(x).sum(-1),
      key=SEED,
      num_members=24,
      top_k=5,
      sigma=SIGMA,
    )
    for model in models.values()
  ]
  np.testing.assert_allclose(found[0].scores, found[1].scores, rtol=1e-5)
  assert len({tuple(m.id for m in one.members) for one in found}) == 1


# Linen.


def test_keywords_and_methods_reach_the_module(variables):
  apply, params = adapters.from_linen(Linen(), variables, method=Linen.features)
  first = variables['params']['first']
  want = X @ np.asarray(first['kernel']) + first['bias'][None]
  np.testing.assert_allclose(apply(params, X), want, rtol=1e-5)
  by_name = adapters.from_linen(Linen(), variables, method='features')
  np.testing.assert_array_equal(by_name.apply(params, X), apply(params, X))


@pytest.mark.parametrize('with_drop', [False, True])
def test_linen_in_training_is_refused(with_drop, variables):
  module = Linen()
  if with_drop:
    module = nn.Dropout(0.5, deterministic=False)
  kwargs = {} if with_drop else {'train': True}
  apply, params = adapters.from_linen(module, variables, **kwargs)
  message = 'draws noise' if with_drop else 'changes its state'
  with pytest.raises(ValueError, match=f'{message}.*train=False'):
    apply(params, X)


def test_frozen_and_boxed_variables_lead_to_the_same_names(variables):
  boxed = jax.tree.map(
    lambda a: nn.Partitioned(a, (None,) * a.ndim), variables['params']
  )
  frozen = flax.core.freeze({**variables, 'params': boxed})
  apply, params = adapters.from_linen(Linen(), frozen)
  _equal(params, variables['params'])
  want = adapters.from_linen(Linen(), variables).apply(params, X)
  np.testing.assert_array_equal(apply(params, X), want)


def test_variables_can_be_changed_afterwards(variables):
  mine = jax.tree.map(jnp.copy, variables)
  apply, params = adapters.from_linen(Linen(), mine)
  before = apply(params, X)
  mine['batch_stats']['norm']['mean'] = jnp.zeros(4)
  np.testing.assert_array_equal(apply(params, X), before)
  assert set(mine) == {'params', 'batch_stats'}


def test_a_members_weights_go_back_into_linen(variables):
  moved = jax.tree.map(lambda a: a + np.float32(1), variables['params'])
  before = jax.tree.map(np.array, variables)
  found = adapters.to_linen(variables, moved)
  _equal(found['params'], moved)
  _equal(found['batch_stats'], variables['batch_stats'])
  _equal(jax.tree.map(np.array, variables), before)


# NNX.


def test_the_users_module_stays_as_it_is(variables):
  net = _net(variables)
  graph, state = nnx.split(net)
  model = adapters.from_nnx(net)
  model.apply(jax.tree.map(jnp.zeros_like, model.params), X)
  assert not net.norm.use_running_average
  assert not net.drop.deterministic
  after_graph, after = nnx.split(net)
  assert after_graph == graph
  for (path, ours), (_, theirs) in zip(
    nnx.to_flat_state(state), nnx.to_flat_state(after), strict=True
  ):
    assert ours.get_value() is theirs.get_value(), path


def test_later_training_of_the_module_is_not_seen(variables):
  net = _net(variables)
  apply, params = adapters.from_nnx(net)
  before = apply(params, X)
  with user_rules():
    net(X)  # moves the running statistics and the dropout's counter
  assert (net.norm.mean[...] != variables['batch_stats']['norm']['mean']).any()
  net.head.kernel[...] *= 2
  np.testing.assert_array_equal(apply(params, X), before)
  _equal(params, variables['params'])


def test_keywords_reach_an_nnx_module(variables):
  net = _net(variables)
  plain, scaled = adapters.from_nnx(net), adapters.from_nnx(net, scale=2.0)
  np.testing.assert_array_equal(
    scaled.apply(plain.params, X), 2 * plain.apply(plain.params, X)
  )


def test_lists_are_numbered_and_shared_weights_are_one_tensor():
  class Tied(nnx.Module):
    def __init__(self, rngs):
      self.layers = nnx.List([nnx.Linear(3, 3, rngs=rngs) for _ in range(11)])
      self.again = self.layers[10]  # sorted before it

    def __call__(self, x):
      for layer in self.layers:
        x = layer(x)
      return self.again(x)

  with user_rules():
    net = Tied(nnx.Rngs(0))
    want = net(X)
  apply, params = adapters.from_nnx(net)
  names = {f'layers/{i}/{leaf}' for i in range(10) for leaf in _LINEAR}
  assert set(_names(params)) == names | {f'again/{leaf}' for leaf in _LINEAR}
  np.testing.assert_allclose(apply(params, X), want, rtol=1e-5, atol=1e-6)
  back = adapters.to_nnx(net, jax.tree.map(jnp.zeros_like, params))
  assert back.again.kernel is back.layers[10].kernel
  assert not back.again.kernel[...].any()


_LINEAR = ('bias', 'kernel')


class _Counter(nnx.Module):
  """Counts its calls, in training or not."""

  def __init__(self):
    self.weight = nnx.Param(jnp.ones(3))
    self.count = nnx.Variable(jnp.zeros((), jnp.int32))

  def __call__(self, x):
    self.count[...] += 1
    return x * self.weight[...]


class _Sower(nnx.Module):
  """Keeps what it has computed, for whoever may look."""

  def __init__(self):
    self.weight = nnx.Param(jnp.ones(3))

  def __call__(self, x):
    x = x * self.weight[...]
    self.sow(nnx.Intermediate, 'seen', x)
    return x


@pytest.mark.parametrize('compiled', [False, True])
def test_state_that_changes_all_the_same_is_named(compiled):
  net = _Counter()
  apply, params = adapters.from_nnx(net)
  assert list(params) == ['weight']
  apply = jax.jit(apply) if compiled else apply
  for _ in range(2):
    with pytest.raises(ValueError, match='changes its state count; members'):
      apply(params, X)
  assert net.count[...] == 0


@pytest.mark.filterwarnings("ignore:Using 'Module.sow:DeprecationWarning")
def test_what_is_sown_is_left_alone():
  net = _Sower()
  apply, params = adapters.from_nnx(net)
  np.testing.assert_array_equal(jax.jit(apply)(params, X), X)
  assert not hasattr(net, 'seen')


def test_a_members_weights_go_back_into_nnx(variables):
  net = _net(variables)
  model = adapters.from_nnx(net)
  moved = jax.tree.map(lambda a: a + np.float32(1), model.params)
  back = adapters.to_nnx(net, moved)
  assert not back.drop.deterministic  # as the module it comes from
  again = adapters.from_nnx(back)
  _equal(again.params, moved)
  np.testing.assert_array_equal(again.apply(moved, X), model.apply(moved, X))
  _equal(adapters.from_nnx(net).params, model.params)
  with user_rules():
    back(X)  # its statistics are its own
  np.testing.assert_array_equal(
    net.norm.mean[...], variables['batch_stats']['norm']['mean']
  )


def test_statistics_on_one_device_serve_a_mesh_of_eight(variables):
  last = jax.devices()[7]
  placed = jax.device_put(variables, last)
  mesh = sharding.make_mesh()
  for model in (
    adapters.from_linen(Linen(), placed),
    adapters.from_nnx(_net(placed)),
  ):
    members = sharding.replicate(mesh, model.params)
    found = jax.jit(
      jax.shard_map(
        model.apply,
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec(None)),
        out_specs=PartitionSpec(),
        check_vma=False,
      )
    )(members, sharding.replicate(mesh, X))
    np.testing.assert_allclose(found, _by_hand(variables, X), rtol=1e-5)


# Functions, and errors.


def test_a_function_is_handed_through():
  fn = lambda params, x: x @ params['w']
  params = {'w': np.ones((3, 2), np.float32)}
  assert adapters.from_function(fn, params) == (fn, params)


class _Quantised(nn.Module):
  @nn.compact
  def __call__(self, x):
    codes = self.param('codes', lambda _: jnp.ones((3, 3), jnp.int8))
    return x @ codes.astype(x.dtype)


class _QuantisedNNX(nnx.Module):
  def __init__(self):
    self.codes = nnx.Param(jnp.ones((3, 3), jnp.int8))


class _NoParams(nnx.Module):
  def __init__(self):
    self.scale = nnx.Variable(jnp.ones(3))


@pytest.mark.parametrize(
  ('call', 'message'),
  [
    (lambda: adapters.from_function(3, {}), 'fn is a int: it cannot be called'),
    (lambda: adapters.from_function(abs, {}), 'params hold no array'),
    (
      lambda: adapters.from_function(abs, {'a': {'b': np.arange(3)}}),
      'a/b is int64: only float arrays can be perturbed',
    ),
    (
      lambda: adapters.from_function(abs, {'a': 1.5}),
      'a is float: only float arrays',
    ),
    (
      lambda: adapters.from_function(abs, {'key': jax.random.key(0)}),
      'key is key<fry>: only float arrays',
    ),
    (
      lambda: adapters.from_linen(
        _Quantised(), _Quantised().init(jax.random.key(0), X)
      ),
      'codes is int8: only float arrays can be perturbed',
    ),
    (
      lambda: adapters.from_linen(Linen(), {'first': {'kernel': X}}),
      "variables have no collection 'params' but ['first']; give all that",
    ),
    (
      lambda: adapters.from_linen(Linen(), {'params': {}}),
      "variables have no collection 'params'",
    ),
    (
      lambda: adapters.from_linen(_NoParams(), {}),
      'module is a _NoParams, not a Linen module; see from_nnx',
    ),
    (
      lambda: adapters.from_nnx(Linen()),
      'module is a Linen, not an NNX module; see from_linen',
    ),
    (
      lambda: adapters.from_nnx(abs),
      'module is a builtin_function_or_method, not an NNX module',
    ),
    (
      lambda: adapters.from_nnx(_QuantisedNNX()),
      'codes is int8: only float arrays can be perturbed',
    ),
    (lambda: adapters.from_nnx(_NoParams()), 'params hold no array'),
    (
      lambda: adapters.to_nnx(_Counter(), {}),
      'params: weight is missing, the model has float32(3,)',
    ),
    (
      lambda: adapters.to_nnx(_Counter(), {'weight': jnp.ones((2, 3))}),
      'params: weight is float32(2, 3), the model has float32(3,)',
    ),
    (
      lambda: adapters.to_linen(
        {'params': {'w': X}}, {'w': X, 'v': np.zeros(2, np.float32)}
      ),
      'params: v is float32(2,), the model has no such tensor',
    ),
    (
      lambda: adapters.to_linen({'params': {'w': X}}, {'w': X > 0}),
      'params: w is bool(6, 3), the model has float32(6, 3)',
    ),
  ],
)
def test_what_cannot_be_used_is_named(call, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    call()
