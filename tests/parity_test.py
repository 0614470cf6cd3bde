# SPDX-License-Identifier: Apache-2.0
"""The decoder against transformers, on a tiny random model of each family.

Skipped without torch and transformers (extra `parity`). The numbers that other
tests compare with when they are not there are written by

    PYTHONPATH=. python tests/parity_test.py
"""

import functools
import json
import sys

import numpy as np
import pytest
import tiny_families as tiny

from thicket.models.architectures import config_from_hf

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

FAMILIES = pytest.mark.parametrize('family', tiny.FAMILIES)
# The gap between the best two logits below which a rounding may decide.
CLOSE = 1e-3


@functools.cache
def _theirs(family, dtype='float32'):
  """Their model with our weights; 'eager' is the reference for soft caps."""
  torch.set_num_threads(1)
  values = dict(tiny.FAMILIES[family])
  config = transformers.AutoConfig.for_model(**values)
  model = transformers.AutoModelForCausalLM.from_config(
    config, attn_implementation='eager'
  )
  named = {
    name: torch.from_numpy(
      tiny.tensor(name, tuple(x.shape), tiny.config(family).norm_offset)
    )
    for name, x in model.state_dict().items()
    if not (name == 'lm_head.weight' and config.tie_word_embeddings)
  }
  left = model.load_state_dict(named, strict=False)
  assert not left.unexpected_keys
  assert set(left.missing_keys) <= {'lm_head.weight'}
  model.tie_weights()
  return model.to(getattr(torch, dtype)).eval()


def _their_logits(model, tokens, positions, mask):
  with torch.no_grad():
    found = model(
      input_ids=torch.from_numpy(tokens.astype(np.int64)),
      attention_mask=torch.from_numpy(mask.astype(np.int64)),
      position_ids=torch.from_numpy(positions.astype(np.int64)),
      use_cache=False,
    )
  return found.logits.float().numpy()


def _close(got, want, tolerance=1e-4):
  """Differences are small beside the largest of the values wanted."""
  assert np.abs(got - want).max() <= tolerance * np.abs(want).max()


@FAMILIES
def test_their_config_is_read_as_the_file_was(family):
  theirs = _theirs(family).config.to_dict()
  assert config_from_hf(theirs, family) == tiny.config(family)


@pytest.mark.parametrize(
  ('family', 'fused'),
  [(family, True) for family in tiny.FAMILIES]
  + [('llama', False), ('olmo2', False)],
)
def test_logits_of_left_padded_rows_at_every_position(family, fused):
  config, batch = tiny.config(family), tiny.padded()
  weights = tiny.params(config, fused)
  got = tiny.forward(config, weights, *batch, fused=fused)
  want = _their_logits(_theirs(family), *batch)
  mask = batch[-1]
  assert want.shape == got.shape
  _close(got[mask], want[mask])


@FAMILIES
@pytest.mark.parametrize('shared', [0, 5])
def test_logits_and_tokens_of_answers(family, shared):
  config = tiny.config(family)
  tokens, logits = tiny.answers(
    config, tiny.params(config), tiny.PREFIX[:shared]
  )
  # Their model reads our answers as a whole.
  batch = tiny.padded(tiny.continued(tokens))
  want = _their_logits(_theirs(family), *batch)[:, -tiny.NEW - 1 : -1]
  _close(logits, want)
  second, best = np.moveaxis(np.sort(want)[..., -2:], -1, 0)
  clear = best - second > CLOSE
  np.testing.assert_array_equal(tokens[clear], want.argmax(-1)[clear])
  assert clear.mean() > 0.9


def _golden(family):
  """Few numbers of every position, as transformers has them."""
  batch = tiny.padded()
  want = _their_logits(_theirs(family), *batch).astype(np.float64)
  config = tiny.config(family)
  tokens, _ = tiny.answers(config, tiny.params(config))
  whole = tiny.padded(tiny.continued(tokens))
  steps = _their_logits(_theirs(family), *whole)[:, -tiny.NEW - 1 : -1]
  steps = steps.astype(np.float64)
  assert (np.diff(np.sort(steps)[..., -2:]) > CLOSE).all(), family
  sums = lambda x: np.log(np.exp(x).sum(-1)).round(5).tolist()
  return {
    'logsumexp': [sums(row[m]) for row, m in zip(want, batch[-1], strict=True)],
    'last': want[:, -1, ::8].round(5).tolist(),
    'answers': steps.argmax(-1).tolist(),
    'answers_logsumexp': sums(steps),
  }


def main():
  """Writes golden/families.json."""
  found = {family: _golden(family) for family in tiny.FAMILIES}
  lines = ',\n'.join(
    f'{json.dumps(name)}: {json.dumps(value)}' for name, value in found.items()
  )
  tiny.GOLDEN.write_text(f'{{\n{lines}\n}}\n', encoding='utf-8')


if __name__ == '__main__':
  sys.exit(main())
