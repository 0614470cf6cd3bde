# SPDX-License-Identifier: Apache-2.0
"""From a folder of safetensors, or a checkpoint of ours, to a decoder."""

import dataclasses
import json
import os

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import tiny
import tiny_folder
import tiny_gguf

from thicket import sharding, trees
from thicket.models import decoder
from thicket.models.files import ModelFileError
from thicket.models.load import load, save_checkpoint

TIED = dataclasses.replace(
  tiny_gguf.CONFIG, num_layers=2, ropes=tiny.CONFIG.ropes, tie_head=True
)
UNTIED = dataclasses.replace(TIED, tie_head=False)


def same(found, want):
  """Whether two trees are bit for bit the same."""
  assert jax.tree.structure(found) == jax.tree.structure(want)
  for (path, array), expected in zip(
    jax.tree_util.tree_leaves_with_path(found),
    jax.tree.leaves(want),
    strict=True,
  ):
    assert array.dtype == expected.dtype
    np.testing.assert_array_equal(
      np.asarray(array), np.asarray(expected), err_msg=str(path)
    )


def refused(path, dtype='float32'):
  with pytest.raises(ModelFileError) as caught:
    load(str(path), dtype)
  message = str(caught.value)
  assert '\n' not in message
  assert message.startswith(str(path)), message
  return message


@pytest.mark.parametrize('shards', [1, 3])
@pytest.mark.parametrize('config', [TIED, UNTIED])
def test_weights_are_those_of_the_files_bit_for_bit(config, shards, tmp_path):
  folder = tiny_folder.write(tmp_path / 'Tiny-1', config, shards=shards)
  model = load(str(folder))
  assert model.decoder.config == config
  assert (model.name, model.architecture) == ('Tiny-1', 'llama')
  assert model.revision is None
  same(model.params, tiny.params(config))
  assert model.spec == decoder.canonical_spec(config)
  assert model.tokenizer.render('12') == '<s>12>'
  assert model.tokenizer.stop_ids == (tiny_gguf.EOS,)


def test_a_folder_and_a_gguf_file_of_a_model_are_the_same(tmp_path):
  named = tiny_gguf.named()
  stored = tiny_gguf.stored(named)
  path = tiny_gguf.write(tmp_path / 'a.gguf', stored, tiny_gguf.metadata())
  one, other = load(str(path)), load(str(tiny_folder.write(tmp_path / 'a')))
  same(one.params, other.params)
  assert one.decoder == other.decoder
  assert one.architecture == other.architecture
  for text in ('12 + 3', 'a b\n<end>'):
    assert one.tokenizer.encode(text) == other.tokenizer.encode(text)


@pytest.mark.parametrize('stored', [np.float16, ml_dtypes.bfloat16, np.float32])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_stored_types_are_cast_once(stored, dtype, tmp_path):
  tensors = {k: x.astype(stored) for k, x in tiny_gguf.named(TIED).items()}
  model = load(str(tiny_folder.write(tmp_path, TIED, tensors)), dtype)
  want = jax.tree.map(
    lambda x: x.astype(stored).astype(dtype), tiny.params(TIED)
  )
  same(model.params, want)


@pytest.mark.parametrize('model_axis', [1, 2])
def test_weights_lie_where_the_mesh_wants_them(model_axis, tmp_path):
  folder = tiny_folder.write(tmp_path, UNTIED)
  mesh = sharding.make_mesh(model=model_axis)
  model = load(str(folder), mesh=mesh)
  is_split = model_axis > 1
  assert model.decoder.fused != is_split
  spec = decoder.canonical_spec(UNTIED, fused=not is_split)
  for array, leaf in zip(
    jax.tree.leaves(model.params), jax.tree.leaves(spec), strict=True
  ):
    where = jax.NamedSharding(mesh, sharding.of_leaf(mesh, leaf))
    assert array.sharding.is_equivalent_to(where, array.ndim)
  kernel = model.params['params']['layer_0']['mlp']['down']['kernel']
  assert len(kernel.sharding.device_set) == 8
  assert kernel.is_fully_replicated != is_split
  named = tiny.tensors(tiny.params(UNTIED), UNTIED)
  for array, leaf in zip(
    jax.tree.leaves(model.params), jax.tree.leaves(spec), strict=True
  ):
    want = [named[segment.full_name] for segment in leaf.segments]
    np.testing.assert_array_equal(np.asarray(array), np.concatenate(want))


def test_what_checkpoints_store_beside_the_weights_is_ignored(tmp_path):
  tensors = tiny_gguf.named(TIED)
  more = {
    'lm_head.weight': tensors['model.embed_tokens.weight'],
    'model.layers.0.self_attn.rotary_emb.inv_freq': np.ones(3, np.float32),
  }
  model = load(str(tiny_folder.write(tmp_path, TIED, tensors | more)))
  same(model.params, tiny.params(TIED))


def test_a_head_of_its_own_is_not_passed_over(tmp_path):
  tensors = tiny_gguf.named(TIED)
  head = tensors['model.embed_tokens.weight'].copy()
  head[-1, 3] += 1
  folder = tiny_folder.write(tmp_path, TIED, tensors | {'lm_head.weight': head})
  with pytest.raises(ModelFileError, match=r'lm_head\.weight is not '):
    load(str(folder))


# Errors.


def test_all_that_is_wrong_with_tensors_is_one_error(tmp_path):
  tensors = tiny_gguf.named()
  layer = 'model.layers.0'
  del tensors[f'{layer}.mlp.up_proj.weight']
  del tensors['model.norm.weight']
  tensors['norm.weight'] = np.ones(21, np.float32)  # another name of it
  tensors[f'{layer}.self_attn.q_proj.bias'] = np.ones(24, np.float32)
  tensors['embed_tokens.weight'] = np.ones(3, np.float32)
  folder = tiny_folder.write(tmp_path, tensors=tensors)
  data = (folder / 'model.safetensors').read_bytes()
  # Two bytes a value, and the same number of bytes.
  old = b'{"dtype": "F32", "shape": [20, 24]'
  assert data.count(old) == 2  # attention's output and the MLP's
  data = data.replace(old, b'{"dtype": "I32", "shape": [20, 24]', 1)
  (folder / 'model.safetensors').write_bytes(data)
  assert refused(folder) == (
    f'{folder}: tensors missing: {layer}.mlp.up_proj.weight; '
    f'not expected: {layer}.self_attn.q_proj.bias; '
    'twice: embed_tokens.weight beside model.embed_tokens.weight; '
    f'of a type that is not read: {layer}.self_attn.o_proj.weight I32; '
    'misshapen: model.norm.weight (21,) instead of (20,)'
  )


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('shards', [1, 2])
def test_values_that_are_not_finite_are_refused_by_name(
  value, shards, tmp_path
):
  tensors = tiny_gguf.named()
  name = 'model.layers.0.self_attn.v_proj.weight'
  tensors[name][-1, -1] = value
  folder = tiny_folder.write(tmp_path, tensors=tensors, shards=shards)
  assert refused(folder) == (
    f"{folder}: tensor '{name}' holds values that are not finite as float32; "
    'the model is broken, take another'
  )


def test_values_too_large_for_the_type_of_the_weights(tmp_path):
  tensors = tiny_gguf.named()
  tensors['model.norm.weight'][3] = 3.4e38
  folder = tiny_folder.write(tmp_path, tensors=tensors)
  load(str(folder))
  assert 'are not finite as bfloat16' in refused(folder, 'bfloat16')


@pytest.mark.parametrize(
  ('values', 'problem'),
  [
    ({'hidden_size': 24}, 'misshapen: model.embed_tokens.weight (320, 20)'),
    ({'vocab_size': 400}, '(320, 20) instead of (400, 20)'),
    ({'num_hidden_layers': 2}, 'missing: model.layers.1.input_layernorm'),
    ({'num_hidden_layers': 10**9}, 'at most'),
    ({'num_attention_heads': 3}, 'num_heads = 3 is no multiple'),
    ({'intermediate_size': 25}, 'up_proj.weight (24, 20) instead of (25, 20)'),
    ({'model_type': 'mamba'}, "model_type is 'mamba'"),
    ({'model_type': None}, 'model_type is missing'),
    ({'hidden_size': '20'}, "hidden_size is '20'"),
    ({'hidden_size': float('nan')}, 'hidden_size is nan'),
    ({'tie_word_embeddings': True}, 'lm_head.weight is not model.embed_tok'),
    ({'attention_bias': True}, 'missing: model.layers.0.self_attn.k_proj.bias'),
  ],
)
def test_a_config_that_disagrees_with_the_weights(values, problem, tmp_path):
  folder = tiny_folder.write(tmp_path, **values)
  assert problem in refused(folder)


@pytest.mark.parametrize(
  ('text', 'problem'),
  [('', 'no JSON'), ('[1]', 'a JSON list'), ('{"a": 1, "a": 1}', 'twice')],
)
def test_a_config_that_is_malformed(text, problem, tmp_path):
  folder = tiny_folder.write(tmp_path)
  (folder / 'config.json').write_text(text)
  message = refused(folder)
  assert message.startswith(f'{folder}/config.json: ')
  assert problem in message


def test_more_tokens_than_rows_of_the_embedding(tmp_path):
  rows = tiny_gguf.CONFIG.vocab_size - 1
  config = dataclasses.replace(tiny_gguf.CONFIG, vocab_size=rows)
  folder = tiny_folder.write(tmp_path, config)
  assert refused(folder) == (
    f'{folder}: the tokenizer has {rows + 1} tokens, the embedding {rows} '
    'rows; take another copy of the file'
  )


# Checkpoints of our own.


@pytest.mark.parametrize('model_axis', [1, 2])
@pytest.mark.parametrize('saved_axis', [1, 2])
@pytest.mark.parametrize('config', [TIED, UNTIED])
def test_a_checkpoint_is_read_onto_any_mesh(
  config, saved_axis, model_axis, tmp_path
):
  folder = tiny_folder.write(tmp_path / 'a', config)
  first = load(str(folder), mesh=sharding.make_mesh(model=saved_axis))
  save_checkpoint(first, tmp_path / 'b')
  mesh = sharding.make_mesh(model=model_axis)
  found = load(str(tmp_path / 'b'), mesh=mesh)
  want = load(str(folder), mesh=mesh)
  same(found.params, want.params)
  for array, other in zip(
    jax.tree.leaves(found.params), jax.tree.leaves(want.params), strict=True
  ):
    assert array.sharding.is_equivalent_to(other.sharding, array.ndim)
  assert found.decoder == want.decoder
  assert found.architecture == 'llama'
  assert found.spec == want.spec
  trees.check_spec(found.params, found.spec)
  assert found.tokenizer.stop_ids == want.tokenizer.stop_ids
  assert found.tokenizer.render('12') == want.tokenizer.render('12')


def test_a_checkpoint_is_cast_once(tmp_path):
  model = load(str(tiny_folder.write(tmp_path / 'a')))
  save_checkpoint(model, tmp_path / 'b')
  found = load(str(tmp_path / 'b'), 'bfloat16')
  same(
    found.params,
    jax.tree.map(lambda x: np.asarray(x).astype(jnp.bfloat16), model.params),
  )
  save_checkpoint(found, tmp_path / 'c')
  same(load(str(tmp_path / 'c'), 'bfloat16').params, found.params)


def test_every_field_of_a_config_comes_back(tmp_path):
  config = dataclasses.replace(
    tiny_gguf.CONFIG,
    num_layers=2,
    ropes=(
      tiny.CONFIG.ropes[0],
      dataclasses.replace(
        tiny.CONFIG.ropes[0], divisors=(1.0, 2.5, 8.0), amplitude=1.25
      ),
    ),
    windows=(None, 7),
    activation='gelu_tanh',
    qkv_bias=True,
    out_bias=True,
    mlp_bias=True,
    norm_after=True,
    head_norm='head',
    norm_offset=1.0,
    embed_scale=20**0.5,
    query_scale=0.3,
    attention_cap=50.0,
    logit_cap=30.0,
  )
  params = tiny.params(config)
  model = dataclasses.replace(
    load(str(tiny_folder.write(tmp_path / 'a'))),
    decoder=decoder.Decoder(config),
    params=params,
    spec=decoder.canonical_spec(config),
    architecture='gemma3_text',
  )
  save_checkpoint(model, tmp_path / 'b')
  found = load(str(tmp_path / 'b'))
  assert found.decoder.config == config
  assert found.architecture == 'gemma3_text'
  same(found.params, params)


@pytest.fixture
def checkpoint(tmp_path):
  """A folder with a checkpoint, and what its thicket.json says."""
  folder = tmp_path / 'checkpoint'
  save_checkpoint(load(str(tiny_folder.write(tmp_path / 'a'))), folder)
  return folder, json.loads((folder / 'thicket.json').read_text())


def test_a_folder_that_is_not_empty_is_left_alone(checkpoint, tmp_path):
  folder, _ = checkpoint
  before = {path: path.stat().st_mtime_ns for path in folder.rglob('*')}
  model = load(str(folder))
  with pytest.raises(ModelFileError, match='is not empty; give a new folder'):
    save_checkpoint(model, folder)
  assert {p: p.stat().st_mtime_ns for p in folder.rglob('*')} == before
  (tmp_path / 'file').write_text('')
  with pytest.raises(ModelFileError, match='cannot be written'):
    save_checkpoint(model, tmp_path / 'file' / 'x')


@pytest.mark.parametrize(
  ('values', 'problem'),
  [
    ({'format': 2}, 'format is 2, 1 is read; read it with the version'),
    ({'architecture': None}, 'has no architecture, config and bytes'),
    ({'config': []}, 'has no architecture, config and bytes'),
    ({'bytes': [3]}, 'has no architecture, config and bytes'),
    ({'bytes': {'../a': 3}}, "names the file '../a', which is not inside"),
    ({'config.d_ff': '24'}, "is no config of a decoder: d_ff = '24'"),
    ({'config.d_ff': True}, 'd_ff = True'),
    ({'config.d_ff': 20.0}, 'd_ff = 20.0'),
    ({'config.norm_eps': None}, 'is no config of a decoder'),
    ({'config.ropes': 3}, 'is no config of a decoder'),
    ({'config.ropes': [{}]}, 'is no config of a decoder'),
    ({'config.windows': [0]}, 'a window of 0 tokens'),
    ({'config.new': 3}, "unexpected keyword argument 'new'"),
    ({'config.num_layers': 2}, '1 ropes for num_layers = 2'),
    ({'config.d_model': 22}, 'model.norm.weight (20,) instead of (22,)'),
    ({'config.tie_head': True}, 'not expected: lm_head.weight'),
    ({'config.mlp_bias': True}, 'missing: model.layers.0.mlp.down_proj.bias'),
  ],
)
def test_a_checkpoint_that_makes_no_sense(values, problem, checkpoint):
  folder, said = checkpoint
  for key, value in values.items():
    *section, key = key.split('.')
    (said[section[0]] if section else said)[key] = value
  (folder / 'thicket.json').write_text(json.dumps(said))
  assert problem in refused(folder)


def test_weights_that_are_damaged_or_gone(checkpoint):
  folder, _ = checkpoint
  files = sorted((folder / 'weights').rglob('d/*'), key=os.path.getsize)
  size = files[-1].stat().st_size
  os.truncate(files[-1], 100)
  assert refused(folder) == (
    f'{files[-1]}: has 100 bytes instead of {size}; the file is damaged or '
    'incomplete, get it again'
  )
  files[-1].unlink()
  assert f"there is no file '{files[-1].relative_to(folder)}'" in refused(
    folder
  )


def test_weights_that_orbax_does_not_understand(checkpoint):
  folder, _ = checkpoint
  file = folder / 'weights' / '_METADATA'
  file.write_bytes(b'[' * file.stat().st_size)
  assert f'{folder}/weights: cannot be restored: ' in refused(folder)


def test_weights_of_a_checkpoint_that_lie_elsewhere(checkpoint, tmp_path):
  folder, _ = checkpoint
  file = folder / 'weights' / '_METADATA'
  file.rename(tmp_path / 'outside')
  file.symlink_to(tmp_path / 'outside')
  assert 'outside the folder' in refused(folder)


def test_weights_of_a_checkpoint_that_are_not_finite(tmp_path):
  model = load(str(tiny_folder.write(tmp_path / 'a')))
  model.params['params']['final_norm']['scale'] = jnp.full(20, jnp.nan)
  save_checkpoint(model, tmp_path / 'b')
  assert 'tensor model.norm.weight holds values that are not' in refused(
    tmp_path / 'b'
  )


def test_a_checkpoint_of_another_program(checkpoint, tmp_path):
  folder, _ = checkpoint
  (folder / 'thicket.json').unlink()
  with pytest.raises(ValueError, match='holds no model'):
    load(str(folder))
  with pytest.raises(ValueError, match='holds no model'):
    load(str(folder / 'weights'))
