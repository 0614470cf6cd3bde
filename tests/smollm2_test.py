# SPDX-License-Identifier: Apache-2.0
"""The real SmolLM2-135M against its reference in another framework.

The numbers of golden/smollm2_reference.json come from transformers in float32.
Needs the model (fetched on first use), hence slow; CI runs it.
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from thicket import batching, decode, sampling
from thicket.models.load import load

pytestmark = pytest.mark.slow
GOLDEN = pathlib.Path(__file__).parent / 'golden' / 'smollm2_reference.json'
REFERENCE = json.loads(GOLDEN.read_text(encoding='utf-8'))
PROMPT, GREEDY = REFERENCE['input_ids'], REFERENCE['greedy_40']


@pytest.fixture(scope='module')
def model():
  return load('smollm2-135m-instruct')


def test_logits_of_every_position(model):
  tokens = np.array([PROMPT], np.int32)
  T = tokens.shape[1]
  logits, _ = jax.jit(
    lambda params: model.decoder.apply(
      params,
      tokens,
      np.arange(T, dtype=np.int32)[None],
      np.ones((1, T), bool),
      all_logits=True,
    )
  )(model.params)
  logits = np.asarray(logits[0], np.float64)
  assert logits.argmax(-1).tolist() == REFERENCE['per_position_argmax']
  sums = np.log(np.exp(logits).sum(-1))
  # The reference is printed with four decimals.
  expected = REFERENCE['per_position_logsumexp']
  np.testing.assert_allclose(sums, expected, atol=2e-4)
  for token, value in REFERENCE['last_position_top10'].items():
    assert logits[-1, int(token)] == pytest.approx(value, abs=2e-4)


@pytest.mark.parametrize('members', [1, 2])
@pytest.mark.parametrize('shared', [0, 26])
def test_greedy_tokens_behind_a_padded_prompt(model, members, shared):
  never = np.zeros(model.decoder.config.vocab_size, np.int32)
  decoding = decode.Decoding(
    max_new_tokens=len(GREEDY),
    stop_table=np.stack([never, never + 1]),
    pad_id=model.tokenizer.pad_id,
    choose=sampling.greedy,
  )
  # A shorter neighbour, so that one row is padded and the batch is not alone.
  suffixes = [PROMPT[shared:], PROMPT[shared:-6] + PROMPT[-3:]]
  (prompts,) = batching.batches(suffixes, range(2), 2, model.tokenizer.pad_id)
  slots = decode.cache_slots(prompts.tokens.shape[1], len(GREEDY))
  axes = jax.tree.map(lambda _: 0, model.params)

  @jax.jit
  def run(params):
    weights = jax.tree.map(
      lambda x: jnp.broadcast_to(x, (members, *x.shape)), params
    )
    prefix = decode.prefill_prefix(
      model.decoder, weights, axes, np.array(PROMPT[:shared], np.int32)
    )
    caches = decode.empty_caches(model.decoder, members, 2, slots, jnp.float32)
    ids = jnp.arange(members, dtype=jnp.int32)
    found, _ = decode.generate(
      model.decoder, decoding, weights, axes, ids, ids * 0, prefix, prompts,
      caches,
    )  # fmt: skip
    return found.tokens

  tokens = np.asarray(run(model.params))
  row = prompts.prompt.tolist().index(0)
  for member in range(members):
    assert tokens[member, row].tolist() == GREEDY
