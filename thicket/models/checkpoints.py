# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of our own: a config, a tokenizer and tensors that Orbax keeps.

    thicket.json     format, architecture, `DecoderConfig`, and how large the
                     files of weights are; written last
    tokenizer.json   and what else `Tokenizer.save` writes
    weights/         the canonical tensors by name, by Orbax

Tensors are kept apart, whatever was fused: each process then reads its own
part of each, straight onto any mesh, and a name of a file is a name of noise.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh, NamedSharding

from thicket import processes, sharding, trees
from thicket.models import weights
from thicket.models.decoder import canonical_spec
from thicket.models.decoder_config import DecoderConfig, Rope
from thicket.models.files import (
  ModelFileError,
  file_error,
  inside,
  read_object,
  shown,
)
from thicket.models.model_types import ARCHITECTURES
from thicket.models.tokenizer import Tokenizer

CONFIG = 'thicket.json'

_WEIGHTS = 'weights'
_FORMAT = 1
_KINDS = {'int': int, 'bool': bool, 'str': str}  # of fields, as annotated
_SHOWN_CHARS = 200  # of another library's message

Tree = Any


class Checkpoint(NamedTuple):
  """What a folder says of a model.

  Fields:
    architecture: Hugging Face's `model_type`.
    config: of the decoder.
  """

  architecture: str
  config: DecoderConfig


def save(
  folder: Path,
  checkpoint: Checkpoint,
  params: Tree,
  spec: Tree,
  tokenizer: Tokenizer,
) -> None:
  """Writes a model into a new folder; all processes have to call it.

  Args:
    folder: is made; what is there may only be an empty one.
    checkpoint: what the model is.
    params: its weights, in any layout.
    spec: their canonical tensors.
    tokenizer: text to tokens and back.

  Raises:
    ModelFileError: the folder has something in it, or cannot be written.
  """
  folder = Path(os.path.abspath(folder))
  try:
    if folder.exists() and any(folder.iterdir()):
      raise file_error(folder, 'is not empty', 'give a new folder')
    processes.agree('the folder of a checkpoint', str(folder))
    _checkpointer().save(
      folder / _WEIGHTS, args=ocp.args.PyTreeSave(_apart(params, spec))
    )
    if processes.is_first():
      tokenizer.save(folder)
      values = {'format': _FORMAT, 'architecture': checkpoint.architecture}
      values['config'] = dataclasses.asdict(checkpoint.config)
      values['bytes'] = {
        name: (folder / name).stat().st_size
        for name in file_names(folder)
        if name.startswith(_WEIGHTS)
      }
      text = json.dumps(values, indent=1, allow_nan=False)
      (folder / CONFIG).write_text(text + '\n', encoding='utf-8')
    processes.meet()  # none goes on before there is something to read
  except OSError as error:
    raise file_error(
      folder,
      f'cannot be written: {error.strerror or error}',
      'give another folder',
    ) from error


def file_names(folder: Path) -> list[str]:
  """Names of all files of a checkpoint, sorted; raises OSError."""
  return sorted(
    str(path.relative_to(folder))
    for path in folder.rglob('*')
    if not path.is_dir()
  )


def open_checkpoint(folder: Path) -> Checkpoint:
  """Reads what a checkpoint is, no tensor.

  Raises:
    ModelFileError: `thicket.json` is none of this version, or says nothing
      that a decoder can be; a file of weights is missing, cut or elsewhere.
  """
  path = folder / CONFIG
  values = read_object(folder, CONFIG)
  if values.get('format') != _FORMAT:
    raise file_error(
      path,
      f'format is {shown(values.get("format"))}, {_FORMAT} is read',
      'read it with the version of thicket that wrote it',
    )
  name, fields = values.get('architecture'), values.get('config')
  sizes = values.get('bytes')
  are_tables = isinstance(fields, dict) and isinstance(sizes, dict)
  if not isinstance(name, str) or not are_tables:
    raise file_error(path, 'has no architecture, config and bytes')
  if name not in ARCHITECTURES:
    raise file_error(path, f'architecture {shown(name)} is not known')
  try:
    config = _config(fields)
  except (TypeError, ValueError, KeyError, OverflowError) as error:
    problem = f'is no config of a decoder: {" ".join(str(error).split())}'
    raise file_error(path, problem[:_SHOWN_CHARS]) from error
  # Before Orbax does: its reads go on behind one that fails.
  for file, size in sizes.items():
    found = inside(folder, file).stat().st_size
    if found != size:
      raise file_error(folder / file, f'has {found} bytes instead of {size}')
  return Checkpoint(name, config)


def _config(fields: Mapping[str, Any]) -> DecoderConfig:
  for field in dataclasses.fields(DecoderConfig):
    kind = _KINDS.get(field.type)
    if kind and type(fields.get(field.name, field.default)) is not kind:
      raise TypeError(f'{field.name} = {shown(fields.get(field.name))}')
  ropes = [
    Rope(**rope | {'divisors': tuple(rope['divisors'])})
    for rope in fields['ropes']
  ]
  windows = tuple(fields['windows'])
  if not all(type(x) is int or x is None for x in windows):
    raise TypeError(f'windows = {shown(windows)}')
  if not math.isfinite(fields.get('norm_offset', 0.0)):
    raise TypeError(f'norm_offset = {shown(fields["norm_offset"])}')
  tuples = {'ropes': tuple(ropes), 'windows': windows}
  return DecoderConfig(**fields | tuples)


def restore(
  folder: Path, config: DecoderConfig, spec: Tree, dtype: Any, mesh: Mesh
) -> Tree:
  """Reads the weights of a checkpoint, each process its own part of them.

  Args:
    folder: of the checkpoint.
    config: of its decoder.
    spec: of the tree to make, `canonical_spec` of the config.
    dtype: of the arrays; values are rounded to it once.
    mesh: see `sharding.place`.

  Raises:
    ModelFileError: names every missing, extra and misshapen tensor at once;
      or weights that are damaged or not finite.
  """
  path = folder / _WEIGHTS
  apart = jax.tree.leaves(canonical_spec(config, fused=False))
  targets = {
    leaf.segments[0].full_name: jax.ShapeDtypeStruct(
      leaf.shape,
      dtype,
      sharding=NamedSharding(mesh, sharding.of_leaf(mesh, leaf)),
    )
    for leaf in apart
  }
  checkpointer = _checkpointer()
  try:
    stored = checkpointer.metadata(os.path.abspath(path)).item_metadata.tree
    found = {str(name): tuple(info.shape) for name, info in stored.items()}
  except Exception as error:  # of any of the libraries below
    raise _damaged(path, error) from error
  wanted = {name: target.shape for name, target in targets.items()}
  weights.check_tensors(path, wanted, found)
  try:
    arrays = checkpointer.restore(
      os.path.abspath(path),
      args=ocp.args.PyTreeRestore(
        targets,
        restore_args=ocp.checkpoint_utils.construct_restore_args(targets),
      ),
    )
  except Exception as error:
    raise _damaged(path, error) from error
  for name, array in arrays.items():
    if not _is_finite(array):
      raise ModelFileError(
        f'{path}: tensor {name} holds values that are not finite as '
        f'{array.dtype}; the model is broken, take another'
      )

  def together(leaf: trees.Leaf) -> jax.Array:
    parts = [arrays.pop(segment.full_name) for segment in leaf.segments]
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts)

  return jax.tree.map(together, spec)


def _apart(params: Tree, spec: Tree) -> dict[str, jax.Array | np.ndarray]:
  """The canonical tensors of a tree by name; parts of arrays are the host's."""
  tensors = {}
  leaves = zip(jax.tree.leaves(params), jax.tree.leaves(spec), strict=True)
  for array, leaf in leaves:
    if len(leaf.segments) == 1:
      tensors[leaf.segments[0].full_name] = array
      continue
    cuts = np.cumsum([segment.size for segment in leaf.segments])[:-1]
    parts = np.split(np.asarray(array), cuts)
    names = [segment.full_name for segment in leaf.segments]
    tensors |= zip(names, parts, strict=True)
  return tensors


def _checkpointer() -> ocp.Checkpointer:
  # Named, processes meet on the network of the hosts and not in a collective.
  who = ocp.options.MultiprocessingOptions(
    active_processes={*range(processes.count())}
  )
  handler = ocp.PyTreeCheckpointHandler(
    use_ocdbt=True, multiprocessing_options=who
  )
  return ocp.Checkpointer(handler, multiprocessing_options=who)


def _is_finite(array: jax.Array) -> bool:
  """Whether all values that are this process's to look at are finite."""
  return all(
    bool(jnp.isfinite(shard.data).all())
    for shard in array.addressable_shards
    if shard.replica_id == 0
  )


def _damaged(path: Path, error: Exception) -> ModelFileError:
  text = ' '.join(f'{type(error).__name__}: {error}'.split())
  return file_error(path, f'cannot be restored: {text[:_SHOWN_CHARS]}')
