# SPDX-License-Identifier: Apache-2.0
"""From a GGUF file to a decoder that computes what the checkpoint means."""

import dataclasses
import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_gguf
from gguf import GGMLQuantizationType as Kind

from thicket import trees
from thicket.models import decoder
from thicket.models.decoder_config import Rope
from thicket.models.gguf import ModelFileError
from thicket.models.hub import HubError
from thicket.models.load import load

TIED = dataclasses.replace(
  tiny_gguf.CONFIG, num_layers=2, ropes=tiny.CONFIG.ropes, tie_head=True
)
UNTIED = dataclasses.replace(TIED, tie_head=False)
TOKENS = (3, 200, 17, 17, 260, 5, 301)


@pytest.fixture
def write(tmp_path):
  """Writes a model file; gives its path as a string."""

  def to_file(
    config=tiny_gguf.CONFIG,
    *,
    tensors=None,
    drop=(),
    kind=None,
    architecture='llama',
    name='model',
    **entries,
  ):
    stored = tiny_gguf.stored(tiny_gguf.named(config), config)
    stored |= tensors or {}
    for gone in drop:
      del stored[gone]
    entries = {key.replace('__', '.'): x for key, x in entries.items()}
    merged = tiny_gguf.metadata(config) | entries
    merged = {key: x for key, x in merged.items() if x is not None}
    path = tmp_path / f'{name}.gguf'
    return str(tiny_gguf.write(path, stored, merged, architecture, kind))

  return to_file


def _logits(model, tokens=TOKENS):
  tokens = np.array([tokens], np.int32)
  logits, _ = model.decoder.apply(
    model.params,
    tokens,
    np.arange(tokens.size, dtype=np.int32)[None],
    np.ones(tokens.shape, bool),
    all_logits=True,
  )
  return np.asarray(logits[0])


@pytest.mark.parametrize('config', [TIED, UNTIED])
def test_a_loaded_model_computes_what_the_checkpoint_means(config, write):
  model = load(write(config))
  assert model.decoder.config == config
  # The reference is told nothing of the file: neither names nor row order.
  named = {k: x.astype(np.float64) for k, x in tiny_gguf.named(config).items()}
  want = tiny.reference(config, named, list(TOKENS))
  np.testing.assert_allclose(_logits(model), want, rtol=2e-4, atol=2e-5)
  assert np.ptp(want) > 1


@pytest.mark.parametrize('config', [TIED, UNTIED])
def test_weights_are_those_of_the_file_bit_for_bit(config, write):
  model = load(write(config))
  found = jax.tree.map(np.asarray, model.params)
  want = tiny.params(config)
  assert jax.tree.structure(found) == jax.tree.structure(want)
  for (path, array), expected in zip(
    jax.tree_util.tree_leaves_with_path(found),
    jax.tree.leaves(want),
    strict=True,
  ):
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, expected, err_msg=str(path))
  trees.check_spec(model.params, model.spec)
  assert model.spec == decoder.canonical_spec(config)


def test_the_order_of_rows_in_q_and_k_matters(write):
  # Or the comparison above would pass whatever the loader does with it.
  config = TIED
  stored = tiny_gguf.stored(tiny_gguf.named(config), config)
  for letter, heads in (('q', config.num_heads), ('k', config.num_kv_heads)):
    name = f'model.layers.1.self_attn.{letter}_proj.weight'
    plain = tiny_gguf.named(config)[name]
    permuted = stored[f'blk.1.attn_{letter}.weight']
    assert plain.shape == permuted.shape == (heads * 6, 20)
    assert (plain != permuted).any()
    # Pairs of halves (0, 3), (1, 4), (2, 5) have become neighbours.
    np.testing.assert_array_equal(permuted[:6], plain[[0, 3, 1, 4, 2, 5]])
  right = _logits(load(write(config)))
  plain = tiny_gguf.named(config)['model.layers.1.self_attn.q_proj.weight']
  wrong = load(write(config, tensors={'blk.1.attn_q.weight': plain}))
  assert np.abs(_logits(wrong) - right).max() > 1e-2


def test_name_hash_and_tokenizer_come_with_the_model(write):
  path = write(name='Tiny-1.Q8')
  model = load(path)
  assert model.name == 'Tiny-1.Q8'
  with open(path, 'rb') as file:
    assert model.sha256 == hashlib.sha256(file.read()).hexdigest()
  assert model.tokenizer.vocab_size == tiny_gguf.CONFIG.vocab_size
  prompt = model.tokenizer.render('12')
  assert prompt == '<s>12>'
  ids = model.tokenizer.encode(prompt)
  assert ids == [tiny_gguf.BOS, *map(tiny_gguf.token, ('12', '>'))]
  assert model.tokenizer.stop_ids == (tiny_gguf.EOS,)


def test_a_folder_with_one_file_is_its_file(write, tmp_path):
  path = write()
  assert load(str(tmp_path)).sha256 == load(path).sha256


def test_bfloat16_rounds_every_weight_once(write):
  path = write(TIED)
  exact, rounded = load(path), load(path, 'bfloat16')
  for one, other in zip(
    jax.tree.leaves(exact.params), jax.tree.leaves(rounded.params), strict=True
  ):
    assert other.dtype == jnp.bfloat16
    np.testing.assert_array_equal(
      np.asarray(other), np.asarray(one).astype(jnp.bfloat16)
    )
  logits = _logits(rounded)
  assert logits.dtype == np.float32
  np.testing.assert_allclose(logits, _logits(exact), atol=0.3)
  assert (logits != _logits(exact)).any()


@pytest.mark.parametrize('kind', [Kind.F16, Kind.Q8_0])
def test_stored_types_are_widened(kind, write):
  # Blocks of 32 run along rows, so rows have to be of that length.
  config = dataclasses.replace(
    UNTIED, d_model=32, d_ff=64, num_heads=8, num_kv_heads=2, head_dim=4
  )
  model = load(write(config, kind=kind))
  for array, want in zip(
    jax.tree.leaves(model.params),
    jax.tree.leaves(tiny.params(config)),
    strict=True,
  ):
    assert array.dtype == jnp.float32
    atol = 0 if want.ndim == 1 else np.abs(want).max() / 127
    np.testing.assert_allclose(np.asarray(array), want, rtol=0, atol=atol)


def test_defaults_that_old_files_leave_out(write):
  config = dataclasses.replace(
    UNTIED, ropes=(Rope(1e4),) * 2, num_kv_heads=4, head_dim=4, d_model=16
  )
  path = write(
    config,
    llama__rope__freq_base=None,
    llama__attention__head_count_kv=None,
    llama__attention__key_length=None,
  )
  assert load(path).decoder.config == config


# Errors. Each is one line that begins with the path.


def _refused(path, dtype='float32'):
  with pytest.raises(ModelFileError) as caught:
    load(path, dtype)
  message = str(caught.value)
  assert '\n' not in message
  assert message.startswith(f'{path}: '), message
  return message.removeprefix(f'{path}: ')


def test_a_type_of_weights_that_is_not_known(tmp_path):
  # Said before the file is looked for.
  with pytest.raises(ModelFileError) as caught:
    load(str(tmp_path / 'none.gguf'), 'float16')
  assert str(caught.value) == (
    "model dtype 'float16' is not one of float32, bfloat16"
  )


def test_a_path_that_is_not_there(tmp_path):
  with pytest.raises(HubError, match=r'none\.gguf'):
    load(str(tmp_path / 'none.gguf'))


def test_another_architecture(write):
  assert _refused(write(architecture='phi3')) == (
    "architecture 'phi3' is not supported; "
    'this version reads llama, qwen2, qwen3, gemma2, gemma3, olmo2'
  )


def test_missing_extra_and_misshapen_tensors_are_named_together(write):
  path = write(
    drop=['blk.0.ffn_up.weight', 'blk.0.attn_norm.weight'],
    tensors={
      'blk.0.attn_sinks.weight': np.ones(4, np.float32),
      'blk.0.ffn_down.weight': np.ones((24, 20), np.float32),
      'output_norm.weight': np.ones(21, np.float32),
    },
  )
  assert _refused(path) == (
    'tensors missing: blk.0.attn_norm.weight, blk.0.ffn_up.weight; '
    'not expected: blk.0.attn_sinks.weight; '
    'misshapen: output_norm.weight (21,) instead of (20,), '
    'blk.0.ffn_down.weight (24, 20) instead of (20, 24)'
  )


def test_more_layers_than_the_metadata_says(write):
  message = _refused(write(UNTIED, llama__block_count=1))
  assert message.startswith('tensors not expected: blk.1.attn_k.weight, ')


def test_no_embedding(write):
  wanted = 'no matrix token_embd.weight'
  assert _refused(write(drop=['token_embd.weight'])) == wanted
  flat = {'token_embd.weight': np.ones(20, np.float32)}
  assert _refused(write(tensors=flat)) == wanted


@pytest.mark.parametrize(
  ('key', 'value', 'shown'),
  [
    ('block_count', None, 'missing'),
    ('context_length', 'long', "'long'"),
    ('attention.layer_norm_rms_epsilon', None, 'missing'),
    ('feed_forward_length', True, 'True'),
  ],
)
def test_numbers_that_are_none(key, value, shown, write):
  assert _refused(write(**{f'llama.{key}': value})) == (
    f'llama.{key} is {shown}, a number is needed; take another copy of the file'
  )


@pytest.mark.parametrize(
  ('entries', 'problem'),
  [
    ({'attention.head_count': 0}, 'attention.head_count is 0, a whole'),
    (
      {
        'attention.key_length': 7,
        'attention.value_length': 7,
        'rope.dimension_count': 7,
      },
      'head_dim = 7 is odd',
    ),
    ({'block_count': 1.5}, 'llama.block_count is 1.5, a whole number'),
    ({'attention.head_count_kv': 3}, 'num_heads = 4 is no multiple of'),
  ],
)
def test_sizes_that_no_decoder_can_have(entries, problem, write):
  entries = {f'llama.{key}': value for key, value in entries.items()}
  assert problem in _refused(write(**entries))
