# SPDX-License-Identifier: Apache-2.0
"""Text to tokens and back, and the prompt of a chat.

Axes: V vocabulary.
"""

from __future__ import annotations

import functools
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import tokenizers

from thicket.models import folder_tokenizer, gguf_tokenizer
from thicket.models.chat import ChatTemplate
from thicket.models.spelling import Speller
from thicket.models.tokenizer_parts import (
  Parts,
  TokenizerError,
  TooLong,
  bad,
  no_panic,
)

# As far as a text is read at first, to see whether it is too long.
_CHARS_A_TOKEN = 16


class Tokenizer:
  """Text to ids and back, and a chat's prompt.

  Attributes:
    bos_id: the id that starts a text, or None.
    eos_ids: ids that end a text, in the file's order.
    pad_id: the id that fills rows.
    add_bos: whether `encode` puts bos first.
    vocab_size: V; ids without a token contribute no text.
  """

  def __init__(
    self,
    backend: tokenizers.Tokenizer,
    chat_template: str | None,
    bos_id: int | None,
    eos_ids: tuple[int, ...],
    pad_id: int,
    add_bos: bool,
    vocab_size: int | None = None,
  ):
    """Wraps a backend; V is at least what its ids need.

    Raises TokenizerError where the backend's decoder is of another kind than
    `spelling.Speller` reads, an id is not in [0, V), bos is wanted but not
    named, or the chat template is no template.
    """
    self._speller = Speller(backend.decoder)
    names = backend.get_vocab(with_added_tokens=True)
    self.vocab_size = max(vocab_size or 0, 1 + max(names.values(), default=0))
    for id_ in (pad_id, *eos_ids, *([] if bos_id is None else [bos_id])):
      if not isinstance(id_, int) or not 0 <= id_ < self.vocab_size:
        raise bad('special ids', f'{id_!r} is not in [0, {self.vocab_size})')
    if add_bos and bos_id is None:
      raise bad('add_bos', 'is set and there is no bos id')
    self.bos_id = bos_id
    self.eos_ids = tuple(dict.fromkeys(eos_ids))
    self.pad_id = pad_id
    self.add_bos = add_bos
    self._backend = backend
    self._template = self._chat(chat_template) if chat_template else None

  @classmethod
  def from_gguf(cls, metadata: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer of a GGUF file, from its metadata.

    Raises TokenizerError, naming the key, for a kind of tokenizer or a
    pre-tokenizer that is not known, and for entries that make no sense.
    """
    return cls(*gguf_tokenizer.read(metadata))

  @classmethod
  def from_folder(
    cls, path: str | os.PathLike[str], rows: int | None = None
  ) -> Tokenizer:
    """The tokenizer of a Hugging Face model folder.

    Added tokens without one of the model's `rows` of embeddings are left out.

    Raises TokenizerError, naming the file, where `tokenizer.json` is missing,
    and for files that are malformed or of a kind that cannot be read.
    """
    try:
      with no_panic(f'{path}: is damaged, get the model again'):
        return cls(*folder_tokenizer.read(pathlib.Path(path), rows))
    except TokenizerError as error:
      named = str(path) in str(error)
      raise error if named else TokenizerError(f'{path}: {error}') from error

  def save(self, folder: str | os.PathLike[str]) -> None:
    """Writes the tokenizer into a folder, as Hugging Face's are.

    `from_folder` and `transformers.AutoTokenizer` give the same ids and chats;
    all of `stop_ids` are ends there. Files of the same names are overwritten.
    """
    template = self._template.source if self._template else None
    parts = Parts(
      self._backend,
      template,
      self.bos_id,
      self.stop_ids,
      self.pad_id,
      self.add_bos,
    )
    folder_tokenizer.write(pathlib.Path(folder), parts)

  @property
  def is_chat(self) -> bool:
    """Whether the model was taught to chat: it came with a chat template."""
    return self._template is not None

  def encode(self, text: str, most: int | None = None) -> list[int]:
    """Ids of the text; names of special tokens in it become those tokens.

    Under `add_bos` the ids start with bos, once even where the text (a
    rendered chat) has it already. Bytes that have no token are dropped.

    Raises TooLong where there are more than `most` ids, without reading a text
    that is far longer to its end; TokenizerError where the text is of a shape
    that the backend cannot cut, as of millions of spaces.
    """
    chars = len(text) if most is None else max(1, most) * _CHARS_A_TOKEN
    while chars < len(text):
      if (num := len(self._ids(text[:chars]))) > most:
        start = f'in its first {chars} of {len(text)} characters'
        raise TooLong(f'{num} ({start})')
      chars *= 2
    ids = self._ids(text)
    if self.add_bos and ids[:1] != [self.bos_id]:
      ids = [self.bos_id, *ids]
    if most is not None and len(ids) > most:
      raise TooLong(f'{len(ids)}')
    return ids

  def _ids(self, text: str) -> list[int]:
    with no_panic(f'a text of {len(text)} characters cannot be cut'):
      return self._backend.encode(text, add_special_tokens=False).ids

  def decode(self, ids: Iterable[int]) -> str:
    """Text that the ids add to a text, without special tokens.

    Bad UTF-8 becomes U+FFFD. A space before the first word is kept.

    Raises ValueError for an id outside [0, V).
    """
    pieces = []
    for id_ in ids:
      if not 0 <= id_ < self.vocab_size:  # -1 would be the last token
        raise ValueError(f'token id {id_} is not in [0, {self.vocab_size})')
      pieces.append(self.token_bytes[id_])
    return b''.join(pieces).decode('utf-8', 'replace')

  @functools.cached_property
  def token_bytes(self) -> list[bytes]:
    """What each of V ids adds to decoded text; b'' for special tokens."""
    return self._speller.spell(self._backend, self.vocab_size)

  @functools.cached_property
  def stop_ids(self) -> tuple[int, ...]:
    """Ids that end an answer: eos, and the template's end of turn."""
    return tuple(dict.fromkeys((*self.eos_ids, *self._end_of_turn())))

  def render(self, user_text: str, system: str | None = None) -> str:
    """The prompt for one user turn, up to where the answer starts.

    Without a chat template this is the user's text. Raises TokenizerError
    where the template refuses or fails, or a system text has no template.
    """
    if self._template is None:
      if system is not None:
        problem = 'there is no chat template; put the text into the prompt'
        raise TokenizerError(f'system = {system!r}: {problem}')
      return user_text
    return self._template.render(system=system, user=user_text)

  def _chat(self, source: str) -> ChatTemplate:
    def name(id_):
      return '' if id_ is None else self._backend.id_to_token(id_) or ''

    eos_id = self.eos_ids[0] if self.eos_ids else None
    ids = {'bos': self.bos_id, 'eos': eos_id, 'pad': self.pad_id}
    tokens = {f'{key}_token': name(id_) for key, id_ in ids.items()}
    return ChatTemplate(source, tokens)

  def _end_of_turn(self) -> list[int]:
    """The first special token that the template puts behind an answer."""
    if self._template is None:
      return []
    answer = 'forty-two'
    try:
      text = self._template.render(user='number?', assistant=answer)
    except TokenizerError:  # it renders prompts only; eos has to do
      return []
    rest = text.partition(answer)[2]  # '' where the answer is not repeated
    ids = self._ids(rest)
    added = self._backend.get_added_tokens_decoder()
    return [id_ for id_ in ids if id_ in added and added[id_].special][:1]
