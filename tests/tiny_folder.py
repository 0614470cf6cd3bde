# SPDX-License-Identifier: Apache-2.0
"""The tiny model of `tiny_gguf` as a folder that transformers would write."""

import json
import struct

import ml_dtypes
import numpy as np
import tiny_gguf

from thicket.models.architectures import hf_config
from thicket.models.gguf_tokenizer import read

TYPES = {'F32': np.float32, 'F16': np.float16, 'BF16': ml_dtypes.bfloat16}
WEIGHTS = 'model.safetensors'
INDEX = 'model.safetensors.index.json'


def entries(arrays):
  """A header's entries, tensors back to back in the order given."""
  names = {np.dtype(dtype): name for name, dtype in TYPES.items()}
  result, at = {}, 0
  for name, array in arrays.items():
    result[name] = {
      'dtype': names[array.dtype],
      'shape': list(array.shape),
      'data_offsets': [at, at + array.nbytes],
    }
    at += array.nbytes
  return result


def file(header, data=b'', length=None):
  """Bytes of a file; a header that is no bytes is written as JSON."""
  if not isinstance(header, bytes):
    header = json.dumps(header).encode()
  length = len(header) if length is None else length
  return struct.pack('<Q', length) + header + data


def content(arrays):
  """Bytes of a sound file."""
  data = b''.join(array.tobytes() for array in arrays.values())
  return file({'__metadata__': {'format': 'pt'}, **entries(arrays)}, data)


def write_sharded(folder, shards):
  """Writes arrays by name, by file, and an index; gives the index."""
  places = {}
  for name, arrays in shards.items():
    (folder / name).write_bytes(content(arrays))
    places |= dict.fromkeys(arrays, name)
  index = {'metadata': {'total_size': 1}, 'weight_map': places}
  (folder / INDEX).write_text(json.dumps(index))
  return index


def write(folder, config=tiny_gguf.CONFIG, tensors=None, shards=1, **values):
  """Writes a folder; `values` change its config.json, None takes one out."""
  folder.mkdir(parents=True, exist_ok=True)
  said = hf_config(config, 'llama') | values
  said = {key: value for key, value in said.items() if value is not None}
  (folder / 'config.json').write_text(json.dumps(said))
  tensors = tiny_gguf.named(config) if tensors is None else tensors
  if shards == 1:
    (folder / WEIGHTS).write_bytes(content(tensors))
  else:
    names = list(tensors)
    files = {
      f'model-{i:05d}-of-{shards:05d}.safetensors': {
        name: tensors[name] for name in names[i::shards]
      }
      for i in range(shards)
    }
    write_sharded(folder, files)
  write_tokenizer(folder)
  return folder


def write_tokenizer(folder):
  """Writes the tokenizer of `tiny_gguf`."""
  read(tiny_gguf.metadata()).backend.save(str(folder / 'tokenizer.json'))
  said = {
    'bos_token': '<s>',
    'eos_token': '<end>',
    'add_bos_token': False,
    'chat_template': tiny_gguf.CHAT,
  }
  (folder / 'tokenizer_config.json').write_text(json.dumps(said))
