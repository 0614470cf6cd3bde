# SPDX-License-Identifier: Apache-2.0
"""What each token adds to a text, read off a tokenizer's decoder.

Two families: tokens written in GPT-2's alphabet of printable characters, one a
byte (Radford et al., 2019), and SentencePiece's (Kudo and Richardson, 2018),
where a mark stands for a space and `<0x0A>` for a byte.
"""

from __future__ import annotations

import json
import re

import tokenizers

from thicket.models.tokenizer_parts import TokenizerError

_BYTE = re.compile('<0x([0-9A-Fa-f]{2})>')


class Speller:
  """A decoder as a function of one token."""

  def __init__(self, decoder: tokenizers.decoders.Decoder | None):
    """Reads the decoder.

    Raises TokenizerError where it is of another kind, or what it makes of a
    token depends on the token's neighbours.
    """
    if decoder is None:
      raise TokenizerError('tokenizer: has no decoder; get the model again')
    state = json.loads(decoder.__getstate__())
    steps = state['decoders'] if state['type'] == 'Sequence' else [state]
    kinds = [step['type'] for step in steps]
    self._alphabet = byte_alphabet() if 'ByteLevel' in kinds else None
    self._has_bytes = 'ByteFallback' in kinds
    self._replaced: list[tuple[str, str]] = []
    for n, step in enumerate(steps):
      match step:
        case {'type': 'ByteLevel'} if n == 0:
          pass
        case {'type': 'Replace', 'pattern': {'String': mark}, 'content': text}:
          self._replaced.append((mark, text))
        case {'type': 'Metaspace', 'replacement': mark}:
          self._replaced.append((mark, ' '))
        case {'type': 'ByteFallback' | 'Fuse'}:
          pass
        case {'type': 'Strip', 'stop': 0} if 'Fuse' in kinds[:n]:
          pass  # of the start of a text, see `spell`
        case _:
          raise TokenizerError(
            f'tokenizer: decoder {json.dumps(step)[:100]} is not read by this '
            'version; byte-level and SentencePiece-like BPE are'
          )

  def __call__(self, token: str, is_added: bool = False) -> bytes:
    """What the token adds to a text; `is_added`: it is no result of merges."""
    if self._alphabet is not None:
      try:
        if not is_added:
          return bytes([self._alphabet[char] for char in token])
      except KeyError:
        pass
      return token.encode()  # not written in the alphabet: stands for itself
    for mark, text in self._replaced:
      token = token.replace(mark, text)
    byte = _BYTE.fullmatch(token) if self._has_bytes else None
    return bytes.fromhex(byte[1]) if byte else token.encode()

  def spell(self, backend: tokenizers.Tokenizer, size: int) -> list[bytes]:
    """What each of `size` ids adds; b'' for special tokens and for no token.

    A space at the start of a text is what its first token says. Libraries take
    it away, as the tokenizer has put it there before a text's first word; but
    what is decoded here stands behind a prompt.
    """
    result = [b''] * size
    for token, id_ in backend.get_vocab(with_added_tokens=True).items():
      result[id_] = self(token)
    for id_, added in backend.get_added_tokens_decoder().items():
      result[id_] = b'' if added.special else self(added.content, True)
    return result


def byte_alphabet() -> dict[str, int]:
  """The byte that each printable character stands for (GPT-2's encoder.py)."""
  printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
  others = sorted(set(range(256)) - set(printable))
  return {chr(byte): byte for byte in printable} | {
    chr(256 + n): byte for n, byte in enumerate(others)
  }
