# SPDX-License-Identifier: Apache-2.0
"""What a tokenizer is made of, whatever file it was read from."""

from __future__ import annotations

from typing import NamedTuple

import tokenizers


class TokenizerError(ValueError):
  """A tokenizer or its chat template cannot be used; the message says why."""


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
