# SPDX-License-Identifier: Apache-2.0
"""From a checkpoint file to a decoder, its weights and its tokenizer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from thicket import sharding, trees
from thicket.models.decoder import Decoder, canonical_spec
from thicket.models.decoder_config import DecoderConfig, Rope
from thicket.models.gguf import GgufFile, ModelFileError, open_gguf
from thicket.models.hub import resolve
from thicket.models.tokenizer import Tokenizer

Tree = Any

DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}

# Canonical name -> name in a GGUF file; * is the layer number.
_LLAMA_GGUF = {
  'model.embed_tokens.weight': 'token_embd.weight',
  'model.layers.*.input_layernorm.weight': 'blk.*.attn_norm.weight',
  'model.layers.*.self_attn.q_proj.weight': 'blk.*.attn_q.weight',
  'model.layers.*.self_attn.k_proj.weight': 'blk.*.attn_k.weight',
  'model.layers.*.self_attn.v_proj.weight': 'blk.*.attn_v.weight',
  'model.layers.*.self_attn.o_proj.weight': 'blk.*.attn_output.weight',
  'model.layers.*.post_attention_layernorm.weight': 'blk.*.ffn_norm.weight',
  'model.layers.*.mlp.gate_proj.weight': 'blk.*.ffn_gate.weight',
  'model.layers.*.mlp.up_proj.weight': 'blk.*.ffn_up.weight',
  'model.layers.*.mlp.down_proj.weight': 'blk.*.ffn_down.weight',
  'model.norm.weight': 'output_norm.weight',
  'lm_head.weight': 'output.weight',
}


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedModel:
  """A pretrained model as everything else needs it.

  Attributes:
    name: what it was called when it was asked for, without folders.
    sha256: of the file its weights were read from.
    decoder: the Flax module.
    params: its weights.
    spec: their canonical tensors, `trees.Leaf` for each array.
    tokenizer: text to tokens and back.
  """

  name: str
  sha256: str
  decoder: Decoder
  params: Tree
  spec: Tree
  tokenizer: Tokenizer


def load(
  name_or_path: str, dtype: str = 'float32', mesh: Mesh | None = None
) -> LoadedModel:
  """Loads a model by its name in `hub.MODELS`, or from a local GGUF file.

  Args:
    name_or_path: see `hub.resolve`.
    dtype: of the weights, a key of `DTYPES`.
    mesh: where the weights are put, array by array, split over its axis
      `model` where they may be; by default JAX's default device.

  Returns:
    The model.

  Raises:
    HubError: it cannot be found or fetched.
    ModelFileError: the file is damaged, or of a kind that cannot be read.
  """
  if dtype not in DTYPES:
    raise ModelFileError(
      f'model dtype {dtype!r} is not one of {", ".join(DTYPES)}'
    )
  files = resolve(name_or_path)
  file = open_gguf(files.path)
  config = config_from_gguf(file)
  tokenizer = Tokenizer.from_gguf(file.metadata)
  if tokenizer.vocab_size > config.vocab_size:
    raise ModelFileError(
      f'{files.path}: the tokenizer has {tokenizer.vocab_size} tokens, the '
      f'embedding {config.vocab_size} rows; take another copy of the file'
    )
  mesh = sharding.make_mesh(jax.devices()[:1]) if mesh is None else mesh
  fused = not sharding.is_split(mesh)
  spec = canonical_spec(config, fused)
  return LoadedModel(
    name=files.name,
    sha256=files.sha256,
    decoder=Decoder(config, fused),
    params=params_from_gguf(file, config, spec, DTYPES[dtype], mesh),
    spec=spec,
    tokenizer=tokenizer,
  )


def config_from_gguf(file: GgufFile) -> DecoderConfig:
  """Reads the config of a llama-architecture GGUF file.

  Raises:
    ModelFileError: another architecture, a missing key, or a feature that
      the decoder does not have (and would silently get wrong).
  """
  metadata = file.metadata
  family = metadata.get('general.architecture')
  if family != 'llama':
    raise ModelFileError(
      f'{file.path}: architecture {family!r} is not supported; '
      'this version reads llama'
    )

  def number(key: str, default: Any = None) -> Any:
    value = metadata.get(f'llama.{key}', default)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
      raise ModelFileError(
        f'{file.path}: llama.{key} is {value!r}, a number is needed; '
        'take another copy of the file'
      )
    return value

  def count(key: str, default: Any = None) -> int:
    value = number(key, default)
    if value != int(value) or value < 1:
      raise ModelFileError(
        f'{file.path}: llama.{key} is {value!r}, a whole number above 0 is '
        'needed; take another copy of the file'
      )
    return int(value)

  scaling = metadata.get('llama.rope.scaling.type', 'none')
  linear = metadata.get('llama.rope.scale_linear', 1.0)
  if scaling != 'none' or linear != 1 or 'rope_freqs.weight' in file.tensors:
    raise ModelFileError(
      f'{file.path}: rotary scaling ({scaling!r}, {linear}) is not supported'
    )
  embedding = file.tensors.get('token_embd.weight')
  if embedding is None or len(embedding.shape) != 2:
    raise ModelFileError(f'{file.path}: no matrix token_embd.weight')
  num_heads, d_model = count('attention.head_count'), count('embedding_length')
  head_dim = count('attention.key_length', d_model // num_heads)
  rotary = count('rope.dimension_count', head_dim)
  if rotary != head_dim:
    raise ModelFileError(
      f'{file.path}: {rotary} of {head_dim} head dimensions are rotary; '
      'partial rotary positions are not supported'
    )
  values = {
    'vocab_size': embedding.shape[0],
    'num_layers': count('block_count'),
    'd_model': d_model,
    'd_ff': count('feed_forward_length'),
    'num_heads': num_heads,
    'num_kv_heads': count('attention.head_count_kv', num_heads),
    'head_dim': head_dim,
    'ropes': (Rope(number('rope.freq_base', 10000.0)),) * count('block_count'),
    'norm_eps': number('attention.layer_norm_rms_epsilon'),
    'context_length': count('context_length'),
    'tie_head': 'output.weight' not in file.tensors,
  }
  try:
    return DecoderConfig(**values)
  except ValueError as error:
    raise ModelFileError(f'{file.path}: {error}') from error


def _half_split(weight: np.ndarray, num_heads: int) -> np.ndarray:
  """Undoes GGUF's row order, which is for rotating neighbours, not halves."""
  out, d_in = weight.shape
  pairs = weight.reshape(num_heads, out // num_heads // 2, 2, d_in)
  return pairs.swapaxes(1, 2).reshape(out, d_in)


def params_from_gguf(
  file: GgufFile, config: DecoderConfig, spec: Tree, dtype: Any, mesh: Mesh
) -> Tree:
  """Reads the weights of a decoder onto a mesh, one tensor at a time.

  Raises:
    ModelFileError: names every missing, extra and misshapen tensor at once.
  """
  wanted = {}
  for leaf in jax.tree.leaves(spec):
    for segment in leaf.segments:
      stored = _LLAMA_GGUF[segment.name].replace('*', str(segment.layer))
      wanted[stored] = (segment.size, *leaf.shape[1:])
  _check_tensors(file, wanted)
  unpermute: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    'model.layers.*.self_attn.q_proj.weight': (
      lambda weight: _half_split(weight, config.num_heads)
    ),
    'model.layers.*.self_attn.k_proj.weight': (
      lambda weight: _half_split(weight, config.num_kv_heads)
    ),
  }

  def read(segment: trees.Segment) -> np.ndarray:
    stored = _LLAMA_GGUF[segment.name].replace('*', str(segment.layer))
    weight = file.read(stored)
    return unpermute.get(segment.name, lambda weight: weight)(weight)

  def array(leaf: trees.Leaf) -> jax.Array:
    parts = [read(segment) for segment in leaf.segments]
    whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return sharding.place(mesh, np.asarray(whole, dtype), leaf)

  return jax.tree.map(array, spec)


def _check_tensors(
  file: GgufFile, wanted: Mapping[str, tuple[int, ...]]
) -> None:
  missing = sorted(wanted.keys() - file.tensors.keys())
  extra = sorted(file.tensors.keys() - wanted.keys())
  misshapen = [
    f'{name} {file.tensors[name].shape} instead of {shape}'
    for name, shape in wanted.items()
    if name in file.tensors and tuple(file.tensors[name].shape) != shape
  ]
  problems = [
    f'{kind}: {", ".join(names)}'
    for kind, names in (
      ('missing', missing),
      ('not expected', extra),
      ('misshapen', misshapen),
    )
    if names
  ]
  if problems:
    raise ModelFileError(f'{file.path}: tensors {"; ".join(problems)}')
