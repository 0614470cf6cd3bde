# SPDX-License-Identifier: Apache-2.0
"""Tokenizers of Hugging Face model folders, read and written.

`tokenizer.json` says how texts are cut, `tokenizer_config.json` which tokens
are special and how a chat is written, `generation_config.json` which tokens end
an answer. Only the first must be there.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

import tokenizers
from tokenizers import processors

from thicket.models.tokenizer_parts import (
  Parts,
  TokenizerError,
  bad,
  line,
  make_special,
)

TOKENIZER = 'tokenizer.json'
CONFIG = 'tokenizer_config.json'
SPECIAL = 'special_tokens_map.json'
GENERATION = 'generation_config.json'
TEMPLATE = 'chat_template.jinja'  # goes before that of `CONFIG`
# All that `read` may look at.
FILES = (TOKENIZER, CONFIG, SPECIAL, GENERATION, 'config.json', TEMPLATE)

_OTHERS = ('tokenizer.model', 'tekken.json', 'vocab.json', 'spiece.model')
_NEEDED = ('bos', 'eos', 'pad')
_NAMED = ('bos', 'eos', 'pad', 'unk', 'sep', 'cls', 'mask')
_GAPS = 10_000  # ids without a token; each costs memory
_DEFAULT = 'default'  # of several templates


def read(path: pathlib.Path, rows: int | None = None) -> Parts:
  """The tokenizer of a folder.

  Added tokens that a model of so many `rows` of embeddings does not have, as
  text models of Gemma 3 have none for their tokenizer's picture, are left out.

  Raises TokenizerError, naming the file, where it is missing, malformed or of
  a kind that cannot be read.
  """
  backend = _backend(path)
  config = _object(path / CONFIG)
  named = {key: value for key, value in config.items() if value is not None}
  named = _object(path / SPECIAL) | named
  names = {key: _token(named.get(f'{key}_token')) for key in _NAMED}
  backend = _fitted(backend, rows, {names[key] for key in _NEEDED})
  vocabulary = backend.get_vocab(with_added_tokens=True)
  last = max(vocabulary.values(), default=0)
  if last > 2 * len(vocabulary) + _GAPS:
    problem = f'a token has the id {last}, and there are {len(vocabulary)}'
    raise bad(str(path / TOKENIZER), problem)
  for key in ('bos', 'eos'):
    if names[key] is not None and names[key] not in vocabulary:
      problem = f'{key}_token {names[key]!r} is not in {TOKENIZER}'
      raise bad(str(path / CONFIG), problem)
  make_special(backend, names.values())
  ids = {key: vocabulary.get(name) for key, name in names.items()}
  first = _first(backend, path)
  add_bos = config.get('add_bos_token')
  if not isinstance(add_bos, bool):
    add_bos = first is not None
  bos_id = ids['bos'] if ids['bos'] is not None else first
  eos_ids = [] if ids['eos'] is None else [ids['eos']]
  eos_ids += _end_ids(path)
  return Parts(
    backend,
    _template(path, config),
    bos_id=bos_id,
    eos_ids=tuple(dict.fromkeys(eos_ids)),
    pad_id=ids['pad'] if ids['pad'] is not None else [*eos_ids, 0][0],
    add_bos=add_bos and bos_id is not None,
  )


def write(path: pathlib.Path, parts: Parts) -> None:
  """Writes a tokenizer, so that `read` and `transformers` give it back.

  Ids of `parts.eos_ids` behind the first go into `generation_config.json`,
  which is overwritten. A pad that is no special token is left out: it would
  become one.
  """
  path.mkdir(parents=True, exist_ok=True)
  backend = tokenizers.Tokenizer.from_str(parts.backend.to_str())
  bos = None if parts.bos_id is None else backend.id_to_token(parts.bos_id)
  first = [bos] if parts.add_bos else []
  backend.post_processor = processors.TemplateProcessing(
    single=[*first, '$A'],
    pair=[*first, '$A', *(f'{token}:1' for token in first), '$B:1'],
    special_tokens=[(token, parts.bos_id) for token in first],
  )
  added = backend.get_added_tokens_decoder()
  ids = {
    'bos': parts.bos_id,
    'eos': parts.eos_ids[0] if parts.eos_ids else None,
    'pad': parts.pad_id,
  }
  config = {
    # The class that takes the file above as it stands.
    'tokenizer_class': 'PreTrainedTokenizerFast',
    'add_bos_token': parts.add_bos,
    # Else versions before 5 take spaces away before punctuation.
    'clean_up_tokenization_spaces': False,
  }
  for key, id_ in ids.items():
    if id_ in added and added[id_].special:
      config[f'{key}_token'] = added[id_].content
  if parts.chat_template:
    config['chat_template'] = parts.chat_template
  generation = {
    'bos_token_id': parts.bos_id,
    'eos_token_id': list(parts.eos_ids) or None,
    'pad_token_id': parts.pad_id,
  }
  backend.save(str(path / TOKENIZER))
  for name, values in ((CONFIG, config), (GENERATION, generation)):
    kept = {key: value for key, value in values.items() if value is not None}
    text = json.dumps(kept, indent=2, ensure_ascii=False)
    (path / name).write_text(f'{text}\n', encoding='utf-8')


def _backend(path: pathlib.Path) -> tokenizers.Tokenizer:
  file = path / TOKENIZER
  if not file.is_file():
    others = [name for name in _OTHERS if (path / name).is_file()]
    held = f', only {", ".join(others)}' if others else ''
    raise TokenizerError(
      f'{path} has no {TOKENIZER}{held}; write one with transformers: '
      f'AutoTokenizer.from_pretrained({str(path)!r}).save_pretrained(...), or '
      'take a copy of the model that has it, or a GGUF file'
    )
  try:
    backend = tokenizers.Tokenizer.from_file(str(file))
  except Exception as error:  # the library raises nothing narrower
    raise bad(str(file), line(error)) from error
  # A file may hold how its author last used it; a prompt is never cut.
  backend.no_truncation()
  backend.no_padding()
  return backend


def _fitted(
  backend: tokenizers.Tokenizer,
  rows: int | None,
  needed: Collection[str | None],
) -> tokenizers.Tokenizer:
  """Without added tokens, unless needed, whose ids are not below `rows`."""
  if rows is None:
    return backend
  added = backend.get_added_tokens_decoder()
  gone = {token.content for id_, token in added.items() if id_ >= rows}
  gone -= {*needed}
  if not gone:
    return backend
  whole = json.loads(backend.to_str())
  whole['added_tokens'] = [
    token for token in whole['added_tokens'] if token['content'] not in gone
  ]
  vocabulary = whole['model'].get('vocab')
  if isinstance(vocabulary, dict):
    for token in gone & vocabulary.keys():
      del vocabulary[token]
  return tokenizers.Tokenizer.from_str(json.dumps(whole))


def _first(backend: tokenizers.Tokenizer, path: pathlib.Path) -> int | None:
  """The id that the file puts in front of every text."""
  said = backend.encode('a', add_special_tokens=True)
  num = 0
  while num < len(said.ids) and said.special_tokens_mask[num]:
    num += 1
  if num > 1:
    raise bad(str(path / TOKENIZER), f'{num} tokens come before a text')
  return said.ids[0] if num else None


def _end_ids(path: pathlib.Path) -> list[int]:
  """Ids that end an answer, in `generation_config.json` or else the model's."""
  for name in (GENERATION, 'config.json'):
    said = _object(path / name).get('eos_token_id')
    if said is None:
      continue
    ids = said if isinstance(said, list) else [said]
    if not all(type(id_) is int for id_ in ids):
      problem = f'eos_token_id {said!r} is not a number, or a list of them'
      raise bad(str(path / name), problem)
    return ids
  return []


def _template(path: pathlib.Path, config: Mapping[str, Any]) -> str | None:
  file = path / TEMPLATE
  if file.is_file():
    try:
      return file.read_text(encoding='utf-8')
    except (OSError, UnicodeDecodeError) as error:
      raise bad(str(file), line(error)) from error
  found = config.get('chat_template')
  if isinstance(found, list):  # one for each use, by name
    try:
      named = {str(entry['name']): entry['template'] for entry in found}
    except (TypeError, KeyError) as error:
      problem = 'chat_template is not a list of names and templates'
      raise bad(str(path / CONFIG), problem) from error
    if _DEFAULT not in named:
      problem = f'of the chat templates {sorted(named)} none is {_DEFAULT!r}'
      raise bad(str(path / CONFIG), problem)
    return named[_DEFAULT]
  return found


def _token(value: Any) -> str | None:
  """A special token's text; files give it bare or with its properties."""
  value = value.get('content') if isinstance(value, dict) else value
  return value if isinstance(value, str) and value else None


def _object(file: pathlib.Path) -> dict[str, Any]:
  """A file's JSON object; empty where there is no file."""
  if not file.is_file():
    return {}
  try:
    value = json.loads(file.read_text(encoding='utf-8'))
  except (OSError, ValueError, RecursionError) as error:
    raise bad(str(file), line(error)) from error
  if not isinstance(value, dict):
    raise bad(str(file), 'is not a JSON object')
  return value
