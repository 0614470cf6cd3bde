# SPDX-License-Identifier: Apache-2.0
"""From the name of a model to a decoder, its weights and its tokenizer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from thicket import sharding, trees
from thicket.models import checkpoints, hub, weights
from thicket.models.architectures import architecture_of, config_from_hf
from thicket.models.checkpoint_names import canonical_name, is_head
from thicket.models.decoder import Decoder, canonical_spec
from thicket.models.decoder_config import DecoderConfig
from thicket.models.files import ModelFileError, file_error, read_object
from thicket.models.gguf import open_gguf
from thicket.models.gguf_architectures import (
  ROPE_FREQS,
  config_from_gguf,
  from_gguf,
  gguf_architecture,
  gguf_name,
)
from thicket.models.remote import CONFIG
from thicket.models.safetensors import SafetensorsFolder, open_folder
from thicket.models.tokenizer import Tokenizer

Tree = Any

DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedModel:
  """A pretrained model as everything else needs it.

  Attributes:
    name: what it was called when it was asked for, without folders.
    sha256: of the files it was read from, see `hub.ModelFiles`.
    revision: the commit of a model of the hub, else None.
    architecture: Hugging Face's `model_type`, a key of
      `model_types.ARCHITECTURES`.
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
  architecture: str
  revision: str | None = None


class Source(NamedTuple):
  """A model that was opened, its weights still to be read.

  Fields:
    architecture: as of `LoadedModel`.
    config: of the decoder.
    tokenizer: text to tokens and back.
    params: reads the weights of a spec, in a type, onto a mesh.
  """

  architecture: str
  config: DecoderConfig
  tokenizer: Tokenizer
  params: Callable[[Tree, Any, Mesh], Tree]


def load(
  name: str,
  dtype: str = 'float32',
  mesh: Mesh | None = None,
  revision: str | None = None,
) -> LoadedModel:
  """Loads a model by its name, from the hub, or from a file or a folder.

  Args:
    name: or a path, see `hub.resolve`.
    dtype: of the weights, a key of `DTYPES`.
    mesh: where the weights are put, array by array, split over its axis
      `model` where they may be; by default JAX's default device.
    revision: of a model of the hub: a branch, a tag or a commit.

  Returns:
    The model.

  Raises:
    HubError: it cannot be found or fetched.
    ModelFileError: a file is damaged, or of a kind that cannot be read.
    TokenizerError: its tokenizer is.
  """
  if dtype not in DTYPES:
    raise ModelFileError(
      f'model dtype {dtype!r} is not one of {", ".join(DTYPES)}'
    )
  files = hub.resolve(name, revision=revision)
  source = _OPEN[files.kind](files.path)
  config, tokenizer = source.config, source.tokenizer
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
    params=source.params(spec, DTYPES[dtype], mesh),
    spec=spec,
    tokenizer=tokenizer,
    architecture=source.architecture,
    revision=files.revision,
  )


def save_checkpoint(model: LoadedModel, folder: str | Path) -> None:
  """Writes a model into a new folder, which `load` reads onto any mesh.

  All processes have to call it. Raises ModelFileError where the folder has
  something in it or cannot be written.
  """
  about = checkpoints.Checkpoint(model.architecture, model.decoder.config)
  checkpoints.save(
    Path(folder), about, model.params, model.spec, model.tokenizer
  )


def _open_gguf(path: Path) -> Source:
  file = open_gguf(path)
  architecture, config = gguf_architecture(file), config_from_gguf(file)

  def stored(segment: trees.Segment) -> str:
    return gguf_name(segment.name, segment.layer, architecture)

  def read(segment: trees.Segment) -> np.ndarray:
    tensor = file.read(stored(segment))
    return from_gguf(segment.name, tensor, config, architecture)

  def params(spec: Tree, dtype: Any, mesh: Mesh) -> Tree:
    found = {name: info.shape for name, info in file.tensors.items()}
    found.pop(ROPE_FREQS, None)
    weights.check_tensors(path, weights.shapes(spec, stored), found)
    return weights.place(path, spec, read, dtype, mesh)

  tokenizer = Tokenizer.from_gguf(file.metadata)
  return Source(architecture, config, tokenizer, params)


def _open_folder(path: Path) -> Source:
  values, where = read_object(path, CONFIG), str(path / CONFIG)
  config = config_from_hf(values, where)
  files = open_folder(path)
  names: dict[str, str] = {}  # of stored tensors, by canonical name
  twice = []
  for stored in files.tensors:
    name = canonical_name(stored, config.tie_head)
    if name is not None and names.setdefault(name, stored) != stored:
      twice.append(f'{stored} beside {names[name]}')
  if config.tie_head:
    _check_copies(files, names)

  def params(spec: Tree, dtype: Any, mesh: Mesh) -> Tree:
    wanted = weights.shapes(spec, lambda segment: segment.full_name)
    found = {name: files.tensors[x].shape for name, x in names.items()}
    unread = [
      f'{x} {files.tensors[x].type}'
      for name, x in names.items()
      if name in wanted and not files.is_readable(x)
    ]
    problems = {'twice': twice, 'of a type that is not read': unread}
    weights.check_tensors(path, wanted, found, problems)
    read = lambda segment: files.read(names[segment.full_name])
    return weights.place(path, spec, read, dtype, mesh)

  tokenizer = Tokenizer.from_folder(path, config.vocab_size)
  return Source(architecture_of(values, where), config, tokenizer, params)


def _check_copies(files: SafetensorsFolder, names: Mapping[str, str]) -> None:
  """A head stored beside an embedding that is the head has to be its copy."""
  head = next((x for x in files.tensors if is_head(x)), None)
  embedding = names.get('model.embed_tokens.weight')
  if head is None or embedding is None or not files.is_readable(head):
    return
  ours, theirs = files.read(embedding), files.read(head)
  slices = range(0, len(ours), 4096)  # a part at a time, they are mapped
  if ours.shape != theirs.shape or any(
    (ours[i : i + 4096] != theirs[i : i + 4096]).any() for i in slices
  ):
    raise file_error(
      files.path,
      f'{head} is not {embedding}, as tie_word_embeddings in {CONFIG} says',
      'set that to false if the head was trained by itself',
    )


def _open_checkpoint(path: Path) -> Source:
  architecture, config = checkpoints.open_checkpoint(path)

  def params(spec: Tree, dtype: Any, mesh: Mesh) -> Tree:
    return checkpoints.restore(path, config, spec, dtype, mesh)

  return Source(architecture, config, Tokenizer.from_folder(path), params)


_OPEN = {
  hub.GGUF: _open_gguf,
  hub.SAFETENSORS: _open_folder,
  hub.CHECKPOINT: _open_checkpoint,
}
