# SPDX-License-Identifier: Apache-2.0
"""What a tokenizer is made of, whatever file it was read from."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import tokenizers
from tokenizers import AddedToken


class TokenizerError(ValueError):
  """A tokenizer or its chat template cannot be used; the message says why."""


class TooLong(TokenizerError):
  """A text has more tokens than it may have; `tokens` says how many."""

  def __init__(self, tokens: str):
    """Takes the number, in words where it was not counted to the end."""
    super().__init__(f'the text has {tokens} tokens')
    self.tokens = tokens


class Parts(NamedTuple):
  """The arguments of `tokenizer.Tokenizer`.

  Fields:
    backend: text to ids, without special tokens around it.
    chat_template: Jinja, or None.
    bos_id: the id that starts a text, or None.
    eos_ids: ids that end a text, the tokenizer's own first.
    pad_id: the id that fills rows.
    add_bos: whether a text starts with bos.
    vocab_size: V, or None for what the ids need.
  """

  backend: tokenizers.Tokenizer
  chat_template: str | None
  bos_id: int | None
  eos_ids: tuple[int, ...]
  pad_id: int
  add_bos: bool
  vocab_size: int | None = None


def bad(key: str, problem: str) -> TokenizerError:
  """The error for an entry of a file that makes no sense."""
  return TokenizerError(f'{key}: {problem}; get the model again')


def line(error: BaseException) -> str:
  """An error's message on one line."""
  return ' '.join(str(error).split()).rstrip('.') or type(error).__name__


@contextlib.contextmanager
def no_panic(what: str) -> Iterator[None]:
  """Makes a panic of the `tokenizers` library an error that says what failed.

  A panic is no `Exception`, and its class is not to be had.
  """
  try:
    yield
  except BaseException as error:
    if type(error).__name__ != 'PanicException':
      raise
    raise TokenizerError(f'{what}: {line(error)}') from error


def make_special(
  backend: tokenizers.Tokenizer, tokens: Iterable[str | None]
) -> None:
  """Makes tokens that the vocabulary has special, where they are not yet.

  A token that is named as an end of texts is one in texts too, and says
  nothing, whatever its type.
  """
  added = backend.get_added_tokens_decoder().values()
  known = {token.content for token in added if token.special}
  backend.add_special_tokens(
    [
      AddedToken(token, special=True, normalized=False)
      for token in dict.fromkeys(tokens)
      if token is not None
      and token not in known
      and backend.token_to_id(token) is not None
    ]
  )
