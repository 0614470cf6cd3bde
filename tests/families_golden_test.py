# SPDX-License-Identifier: Apache-2.0
"""Every family as transformers has it, without transformers.

golden/families.json holds numbers that tests/parity_test.py took from there.
"""

import collections
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_families as tiny
from jax.extend.core import jaxprs_in_params

from thicket import batching, decode, labels, sampling
from thicket.models import decoder

FAMILIES = pytest.mark.parametrize('family', tiny.FAMILIES)
GOLDEN = tiny.golden()


def _logsumexp(logits):
  return np.log(np.exp(logits.astype(np.float64)).sum(-1))


def _close(got, want, scale):
  """To 1e-4 of the largest; the golden numbers have five decimals."""
  np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * scale + 1e-5)


def test_there_are_numbers_of_every_family():
  assert GOLDEN.keys() == tiny.FAMILIES.keys()


@FAMILIES
def test_logits_of_left_padded_rows(family):
  config, want, batch = tiny.config(family), GOLDEN[family], tiny.padded()
  logits = tiny.forward(config, tiny.params(config), *batch)
  scale = np.abs(want['last']).max()
  for row, mask, sums in zip(logits, batch[-1], want['logsumexp'], strict=True):
    _close(_logsumexp(row[mask]), sums, scale)
  _close(logits[:, -1, ::8], want['last'], scale)


@FAMILIES
def test_answers_by_prefix_prefill_and_steps(family):
  config, want = tiny.config(family), GOLDEN[family]
  tokens, logits = tiny.answers(config, tiny.params(config))
  assert tokens.tolist() == want['answers']  # gaps were above 1e-3 there
  _close(_logsumexp(logits), want['answers_logsumexp'], np.abs(logits).max())


def test_labels_longer_than_windows():
  # Packed side by side, tokens are further apart than in their own labels.
  config = tiny.config('gemma3_text')
  weights = tiny.params(config)
  asked = labels.Labels(
    tokens=((5, 9, 13, 2, 4, 8, 1), (5, 9, 20, 2), (5, 30), (60, 9, 3)),
    is_mean=False,
    empty=(),
    offsets=(),
    choose=sampling.greedy,
  )
  (prompts,) = batching.batches(
    tiny.SUFFIXES, range(tiny.ROWS), tiny.ROWS, tiny.PAD
  )
  model = decoder.Decoder(config)

  @jax.jit
  def run(members):
    before = decode.prefill_prefix(model, members, 0, tiny.PREFIX)
    return labels.log_shares(model, asked, members, 0, before, None, prompts)

  got = run(jax.tree.map(lambda x: x[None], weights))[0]
  got = np.asarray(got)[np.argsort(prompts.prompt)]
  # A whole pass for each label of each prompt.
  whole = tiny.padded([[*s, *x] for s in tiny.SUFFIXES for x in asked.tokens])
  logits = tiny.forward(config, weights, *whole)
  logs = np.asarray(jax.nn.log_softmax(logits))
  scores = [
    sum(row[-len(x) - 1 + i, token] for i, token in enumerate(x))
    for row, x in zip(logs, asked.tokens * tiny.ROWS, strict=True)
  ]
  want = jax.nn.log_softmax(np.float32(scores).reshape(tiny.ROWS, -1))
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


# In bfloat16. Logits of the worst row, beside the largest; measured were 0.006
# to 0.019, of 2 or 3 layers of two dozen features.
BOUND = 0.04


@functools.cache
def _narrow(family):
  """Logits of bfloat16 weights, and of the same weights in float32."""
  config, batch = tiny.config(family), tiny.padded()
  weights = tiny.params(config, dtype=jnp.bfloat16)
  wide = jax.tree.map(lambda x: x.astype(np.float32), weights)
  return [tiny.forward(config, x, *batch)[batch[-1]] for x in (weights, wide)]


@FAMILIES
def test_bfloat16_logits_are_near_those_of_float32(family):
  narrow, wide = _narrow(family)
  chex.assert_type(narrow, np.float32)
  assert np.abs(narrow - wide).max() < BOUND * np.abs(wide).max()
  rounded = np.asarray(jnp.asarray(narrow, jnp.bfloat16), np.float32)
  assert np.mean(rounded == narrow) < 0.1  # they are not rounded to it


def test_bfloat16_answers_are_near_the_best():
  # That caches are bfloat16 is asserted where they are made.
  config = tiny.config('gemma3_text')
  weights = tiny.params(config, dtype=jnp.bfloat16)
  wide = jax.tree.map(lambda x: x.astype(np.float32), weights)
  tokens, logits = tiny.answers(config, weights, dtype=jnp.bfloat16)
  whole = tiny.padded(tiny.continued(tokens))
  want = tiny.forward(config, wide, *whole)[:, -tiny.NEW - 1 : -1]
  assert np.abs(logits - want).max() < BOUND * np.abs(want).max()
  chosen = np.take_along_axis(want, tokens[..., None], -1)[..., 0]
  assert (want.max(-1) - chosen < 2 * BOUND * np.abs(want).max()).all()


def _operations(jaxpr):
  """All operations of a jaxpr: their names and the types they give."""
  for equation in jaxpr.eqns:
    yield equation.primitive.name, equation.outvars[0].aval.dtype
    for inner in jaxprs_in_params(equation.params):
      yield from _operations(inner)


@FAMILIES
def test_what_has_to_be_float32_is(family):
  config = tiny.config(family)
  weights = tiny.params(config, dtype=jnp.bfloat16)
  model = decoder.Decoder(config)
  jaxpr = jax.make_jaxpr(model.apply)(weights, *tiny.padded())
  types = {}
  for name, dtype in _operations(jaxpr.jaxpr):
    types.setdefault(name, []).append(dtype.name)
  # Angles; norms; the softmax with its sums and its shares.
  for name in ('cos', 'sin', 'rsqrt', 'exp', 'reduce_max', 'reduce_sum', 'div'):
    assert set(types[name]) == {'float32'}, name
  capped = (config.attention_cap is not None) * config.num_layers
  capped += config.logit_cap is not None
  assert types.get('tanh', []).count('float32') == capped
  norms = config.num_layers * 2 * (config.norm_before + config.norm_after)
  norms += config.num_layers * 2 * (config.head_norm is not None)
  assert len(types['rsqrt']) == norms + 1
  # Products are rounded but for those to which something is still added, the
  # heads that are still normed, scores, what is read by them, and logits.
  rounded = (not config.qkv_bias and config.head_norm is None) + (
    not config.out_bias
  )
  rounded += 2 * (not config.mlp_bias)
  counts = collections.Counter(types['dot_general'])
  assert counts['bfloat16'] == config.num_layers * rounded
  assert counts['float32'] == config.num_layers * (6 - rounded) + 1


def test_windows_are_shorter_and_positions_further_than_what_they_bound():
  # Or the numbers above say nothing of them.
  shortest = len(tiny.PREFIX) + min(map(len, tiny.SUFFIXES)) + tiny.NEW
  windows = {w for f in tiny.FAMILIES for w in tiny.config(f).windows}
  assert max(filter(None, windows)) < shortest
  for family in ('llama', 'olmo3'):
    (divisors,) = {r.divisors for r in tiny.config(family).ropes} - {()}
    assert min(divisors) == 1
    assert max(divisors) == 4
    assert any(1.1 < divisor < 3.9 for divisor in divisors)
