# SPDX-License-Identifier: Apache-2.0
"""From a checkpoint file to a decoder, its weights and its tokenizer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from thicket import sharding, trees
from thicket.models.decoder import Decoder, canonical_spec
from thicket.models.decoder_config import DecoderConfig
from thicket.models.gguf import GgufFile, ModelFileError, open_gguf
from thicket.models.gguf_architectures import (
  ROPE_FREQS,
  config_from_gguf,
  from_gguf,
  gguf_architecture,
  gguf_name,
)
from thicket.models.hub import resolve
from thicket.models.tokenizer import Tokenizer

Tree = Any

DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}


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


def params_from_gguf(
  file: GgufFile, config: DecoderConfig, spec: Tree, dtype: Any, mesh: Mesh
) -> Tree:
  """Reads the weights of a decoder onto a mesh, one tensor at a time.

  Raises:
    ModelFileError: names every missing, extra and misshapen tensor at once.
  """
  architecture = gguf_architecture(file)

  def stored(segment: trees.Segment) -> str:
    return gguf_name(segment.name, segment.layer, architecture)

  wanted = {
    stored(segment): (segment.size, *leaf.shape[1:])
    for leaf in jax.tree.leaves(spec)
    for segment in leaf.segments
  }
  _check_tensors(file, wanted)

  def read(segment: trees.Segment) -> np.ndarray:
    weight = file.read(stored(segment))
    return from_gguf(segment.name, weight, config, architecture)

  def array(leaf: trees.Leaf) -> jax.Array:
    parts = [read(segment) for segment in leaf.segments]
    whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return sharding.place(mesh, np.asarray(whole, dtype), leaf)

  return jax.tree.map(array, spec)


def _check_tensors(
  file: GgufFile, wanted: Mapping[str, tuple[int, ...]]
) -> None:
  missing = sorted(wanted.keys() - file.tensors.keys())
  extra = sorted(file.tensors.keys() - wanted.keys() - {ROPE_FREQS})
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
