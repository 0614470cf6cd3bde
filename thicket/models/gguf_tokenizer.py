# SPDX-License-Identifier: Apache-2.0
"""Tokenizers out of the metadata of GGUF files.

A tokenizer is rebuilt with the `tokenizers` library: BPE over bytes written as
printable characters, as in GPT-2 (Radford et al., 2019). The file names its
pre-tokenizer only; the patterns behind the names are those of the checkpoints'
own tokenizers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers
from tokenizers.pre_tokenizers import ByteLevel, Digits, Split
from tokenizers.pre_tokenizers import Sequence as Steps

from thicket.models.tokenizer_parts import Parts, TokenizerError, bad

# Token types of a GGUF file; all others are plain.
_UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 2, 3, 4, 5

_WORDS = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
  r'| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)


class PreTokenizer(NamedTuple):
  """How text is cut into words before merges are applied inside each."""

  pattern: str | None = None  # what a word is; None takes GPT-2's
  single_digits: bool = False  # digits are cut off one by one first
  whole_words: bool = False  # a word in the vocabulary skips the merges
  normalised: bool = False  # text is brought to Unicode's NFC first
  add_bos: bool = False  # texts start with bos where the file does not say


PRE_TOKENIZERS = {
  'gpt-2': PreTokenizer(),
  'smollm': PreTokenizer(single_digits=True),
  'llama-bpe': PreTokenizer(_WORDS % '{1,3}', whole_words=True, add_bos=True),
  'qwen2': PreTokenizer(_WORDS % '', normalised=True),
}


def read(metadata: Mapping[str, Any]) -> Parts:
  """The tokenizer of a GGUF file, from its metadata.

  Raises TokenizerError, naming the key, for a kind of tokenizer or a
  pre-tokenizer that is not known, and for entries that make no sense.
  """
  kind = metadata.get('tokenizer.ggml.model')
  if kind != 'gpt2':
    raise TokenizerError(
      f'tokenizer.ggml.model = {kind!r}; only gpt2 (byte-level BPE) is read '
      'by this version'
    )
  name = metadata.get('tokenizer.ggml.pre')
  rules = PRE_TOKENIZERS.get(name) if isinstance(name, str) else None
  if rules is None:
    raise TokenizerError(
      f'tokenizer.ggml.pre = {name!r} is unknown; known are '
      f'{", ".join(PRE_TOKENIZERS)}'
    )
  tokens = _strings(metadata, 'tokenizer.ggml.tokens')
  # Ends of a text, of a turn and of a message: each ends an answer.
  keys = [f'tokenizer.ggml.{end}_token_id' for end in ('eos', 'eot', 'eom')]
  eos_ids = [metadata[key] for key in keys if key in metadata]
  bos_id = metadata.get('tokenizer.ggml.bos_token_id')
  add_bos = rules.add_bos and bos_id is not None
  return Parts(
    _backend(metadata, tokens, rules),
    metadata.get('tokenizer.chat_template'),
    bos_id=bos_id,
    eos_ids=tuple(eos_ids),
    pad_id=metadata.get('tokenizer.ggml.padding_token_id', [*eos_ids, 0][0]),
    add_bos=bool(metadata.get('tokenizer.ggml.add_bos_token', add_bos)),
    vocab_size=len(tokens),
  )


def _backend(
  metadata: Mapping[str, Any], tokens: list[str], rules: PreTokenizer
) -> tokenizers.Tokenizer:
  types = metadata.get('tokenizer.ggml.token_type', [1] * len(tokens))
  if np.shape(types) != (len(tokens),):
    problem = f'has shape {np.shape(types)} for {len(tokens)} tokens'
    raise bad('tokenizer.ggml.token_type', problem)
  vocabulary: dict[str, int] = {}
  added: list[AddedToken] = []
  for id_, kind in enumerate(np.asarray(types).tolist()):
    token = tokens[id_]
    if kind == _UNUSED:
      continue
    if vocabulary.setdefault(token, id_) != id_:
      problem = f'{token!r} is both {vocabulary[token]} and {id_}'
      raise bad('tokenizer.ggml.tokens', problem)
    if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED):
      special = kind != _USER_DEFINED
      added.append(AddedToken(token, special=special, normalized=False))
  key = 'tokenizer.ggml.merges'
  merges = [tuple(merge.split(' ')) for merge in _strings(metadata, key)]
  for merge in merges:
    # Left to the library, a few of these end in a panic instead of an error.
    if len(merge) != 2 or not {*merge, ''.join(merge)} <= vocabulary.keys():
      raise bad(key, f'{" ".join(merge)!r} is not two tokens that make one')
  model = models.BPE(vocabulary, merges, ignore_merges=rules.whole_words)
  backend = tokenizers.Tokenizer(model)
  if rules.normalised:
    backend.normalizer = normalizers.NFC()
  steps = [Digits(individual_digits=True)] if rules.single_digits else []
  if rules.pattern:
    steps.append(Split(tokenizers.Regex(rules.pattern), 'isolated'))
  steps.append(ByteLevel(add_prefix_space=False, use_regex=not rules.pattern))
  backend.pre_tokenizer = Steps(steps)
  backend.decoder = decoders.ByteLevel()
  backend.add_tokens(added)
  return backend


def _strings(metadata: Mapping[str, Any], key: str) -> list[str]:
  value = metadata.get(key)
  if not isinstance(value, list) or not all(type(x) is str for x in value):
    raise bad(key, 'is not a list of strings')
  return value
