# SPDX-License-Identifier: Apache-2.0
"""Tokenizers out of the metadata of GGUF files.

A tokenizer is rebuilt with the `tokenizers` library. `gpt2` is BPE over bytes
written as printable characters, as in GPT-2 (Radford et al., 2019); the file
names its pre-tokenizer only, and the patterns behind the names are those of the
checkpoints' own tokenizers. `llama` is SentencePiece's BPE (Kudo and
Richardson, 2018): scores in place of merges, spaces written as a mark, bytes as
tokens of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers
from tokenizers.pre_tokenizers import ByteLevel, Split
from tokenizers.pre_tokenizers import Sequence as Steps

from thicket.models.tokenizer_parts import (
  Parts,
  TokenizerError,
  bad,
  make_special,
)

# Token types of a GGUF file; bytes (6) are plain to us.
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 1, 2, 3, 4, 5
_SPACE = '\u2581'  # how SentencePiece writes it

_GPT2 = (
  r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
)
_WORDS = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
  r'| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)
_UPPER, _LOWER = r'\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}', r'\p{Ll}\p{Lm}\p{Lo}\p{M}'
_CASED_WORDS = (
  rf'[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+'
  rf'|[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*|\p{{N}}'
  r'| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)


class PreTokenizer(NamedTuple):
  """How text is cut into words before merges are applied inside each."""

  patterns: tuple[str, ...]  # each cuts what the ones before have left whole
  whole_words: bool = False  # a word in the vocabulary skips the merges
  normalised: bool = False  # text is brought to Unicode's NFC first
  add_bos: bool = False  # texts start with bos where the file does not say


PRE_TOKENIZERS = {
  'gpt-2': PreTokenizer((_GPT2,)),
  'smollm': PreTokenizer((r'\p{N}', _GPT2)),
  'llama-bpe': PreTokenizer(
    (_WORDS % '{1,3}',), whole_words=True, add_bos=True
  ),
  'qwen2': PreTokenizer((_WORDS % '',), normalised=True),
  'olmo': PreTokenizer((_GPT2,), normalised=True),
  'dbrx': PreTokenizer((_WORDS % '{1,3}',)),  # OLMo 2 and 3
  'tekken': PreTokenizer((_CASED_WORDS,), whole_words=True, add_bos=True),
  # What llama.cpp takes where a file knows no better.
  'default': PreTokenizer((r'[\p{P}$+<=>^~|]+', _GPT2, r'\p{N}+', '[0-9]{3}')),
}


_SCALARS = {
  'chat_template',
  'model',
  'pre',
  'remove_extra_whitespaces',
  'add_space_prefix',
  'add_bos_token',
}


def read(metadata: Mapping[str, Any]) -> Parts:
  """The tokenizer of a GGUF file, from its metadata.

  Raises TokenizerError, naming the key, for a kind of tokenizer or a
  pre-tokenizer that is not known, and for entries that make no sense.
  """
  for key, value in metadata.items():
    name = key.removeprefix('tokenizer.').removeprefix('ggml.')
    if isinstance(value, np.ndarray | list) and name in _SCALARS:
      raise bad(key, 'is a list, one value is needed')
  kind = metadata.get('tokenizer.ggml.model')
  if kind not in ('gpt2', 'llama'):
    raise TokenizerError(
      f'tokenizer.ggml.model = {kind!r}; only gpt2 (byte-level BPE) and llama '
      '(SentencePiece) are read by this version'
    )
  tokens = _strings(metadata, 'tokenizer.ggml.tokens')
  if kind == 'gpt2':
    rules = _rules(metadata)
    backend, add_bos = _byte_level(metadata, tokens, rules), rules.add_bos
  else:
    backend, add_bos = _sentencepiece(metadata, tokens), True
  # Ends of a text, of a turn and of a message: each ends an answer.
  keys = [f'tokenizer.ggml.{end}_token_id' for end in ('eos', 'eot', 'eom')]
  eos_ids = [metadata[key] for key in keys if key in metadata]
  bos_id = metadata.get('tokenizer.ggml.bos_token_id')
  add_bos = add_bos and bos_id is not None
  named = [id_ for id_ in (bos_id, *eos_ids) if isinstance(id_, int)]
  make_special(backend, [tokens[i] for i in named if 0 <= i < len(tokens)])
  return Parts(
    backend,
    metadata.get('tokenizer.chat_template'),
    bos_id=bos_id,
    eos_ids=tuple(eos_ids),
    pad_id=metadata.get('tokenizer.ggml.padding_token_id', [*eos_ids, 0][0]),
    add_bos=bool(metadata.get('tokenizer.ggml.add_bos_token', add_bos)),
    vocab_size=len(tokens),
  )


def _rules(metadata: Mapping[str, Any]) -> PreTokenizer:
  name = metadata.get('tokenizer.ggml.pre')
  rules = PRE_TOKENIZERS.get(name) if isinstance(name, str) else None
  if rules is None:
    raise TokenizerError(
      f'tokenizer.ggml.pre = {name!r} is unknown; known are '
      f'{", ".join(PRE_TOKENIZERS)}'
    )
  return rules


def _byte_level(
  metadata: Mapping[str, Any], tokens: list[str], rules: PreTokenizer
) -> tokenizers.Tokenizer:
  vocabulary, added = _vocabulary(tokens, _types(metadata, len(tokens)))
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
  steps = [Split(tokenizers.Regex(x), 'isolated') for x in rules.patterns]
  steps.append(ByteLevel(add_prefix_space=False, use_regex=False))
  backend.pre_tokenizer = Steps(steps)
  backend.decoder = decoders.ByteLevel()
  backend.add_tokens(added)
  return backend


def _sentencepiece(
  metadata: Mapping[str, Any], tokens: list[str]
) -> tokenizers.Tokenizer:
  if metadata.get('tokenizer.ggml.remove_extra_whitespaces'):
    key = 'tokenizer.ggml.remove_extra_whitespaces'
    raise TokenizerError(f'{key} is set, and is not read by this version')
  types = _types(metadata, len(tokens))
  key = 'tokenizer.ggml.scores'
  scores = np.asarray(metadata.get(key, ()))
  if scores.shape != (len(tokens),) or scores.dtype.kind not in 'fiu':
    problem = f'has shape {scores.shape} for {len(tokens)} tokens'
    raise bad(key, problem)
  # Found in a text before its spaces are marked, so written with spaces.
  tokens = [
    token.replace(_SPACE, ' ') if kind == _USER_DEFINED else token
    for token, kind in zip(tokens, types, strict=True)
  ]
  vocabulary, added = _vocabulary(tokens, types)
  merges = _merges(tokens, types, scores.tolist())
  unknown = [x for x, kind in zip(tokens, types, strict=True) if kind == 2]
  model = models.BPE(
    vocabulary,
    merges,
    unk_token=unknown[0] if unknown else None,
    fuse_unk=True,
    byte_fallback=True,
  )
  backend = tokenizers.Tokenizer(model)
  has_prefix = bool(metadata.get('tokenizer.ggml.add_space_prefix', True))
  steps = [normalizers.Prepend(_SPACE)] if has_prefix else []
  steps.append(normalizers.Replace(' ', _SPACE))
  backend.normalizer = normalizers.Sequence(steps)
  backend.decoder = decoders.Sequence(
    [
      decoders.Replace(_SPACE, ' '),
      decoders.ByteFallback(),
      decoders.Fuse(),
      *([decoders.Strip(' ', 1, 0)] if has_prefix else []),
    ]
  )
  backend.add_tokens(added)
  return backend


def _merges(
  tokens: list[str], types: list[int], scores: list[float]
) -> list[tuple[str, str]]:
  """Pairs that make a token, best token first: what the scores mean."""
  rows = zip(tokens, types, scores, strict=True)
  plain = {x: score for x, kind, score in rows if kind == _NORMAL}
  return [
    (token[:cut], token[cut:])
    for token in sorted(plain, key=plain.get, reverse=True)
    for cut in range(1, len(token))
    if token[:cut] in plain and token[cut:] in plain
  ]


def _types(metadata: Mapping[str, Any], num_tokens: int) -> list[int]:
  key = 'tokenizer.ggml.token_type'
  types = metadata.get(key, [_NORMAL] * num_tokens)
  if np.shape(types) != (num_tokens,):
    raise bad(key, f'has shape {np.shape(types)} for {num_tokens} tokens')
  return np.asarray(types).tolist()


def _vocabulary(
  tokens: list[str], types: list[int]
) -> tuple[dict[str, int], list[AddedToken]]:
  """Ids by token, and the tokens that are found in texts as they stand."""
  vocabulary: dict[str, int] = {}
  added: list[AddedToken] = []
  for id_, (token, kind) in enumerate(zip(tokens, types, strict=True)):
    if kind == _UNUSED:
      continue
    if vocabulary.setdefault(token, id_) != id_:
      problem = f'{token!r} is both {vocabulary[token]} and {id_}'
      raise bad('tokenizer.ggml.tokens', problem)
    if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED):
      special = kind != _USER_DEFINED
      added.append(AddedToken(token, special=special, normalized=False))
  return vocabulary, added


def _strings(metadata: Mapping[str, Any], key: str) -> list[str]:
  value = metadata.get(key)
  if not isinstance(value, list) or not all(type(x) is str for x in value):
    raise bad(key, 'is not a list of strings')
  return value
