# SPDX-License-Identifier: Apache-2.0
"""Tokenizers, chat templates and exact stop strings.

A tokenizer is rebuilt from GGUF metadata with the `tokenizers` library: BPE
over bytes written as printable characters, as in GPT-2 (Radford et al., 2019).
The file names its pre-tokenizer only; the patterns behind the names are those
of the checkpoints' own tokenizers. Chat templates are programs from a file
that is not trusted, so they run in Jinja's immutable sandbox.

A stop string may span tokens or end inside one. `stop_table` turns stop
strings into an automaton over bytes (Aho and Corasick, CACM 1975) and that
into one over tokens, which the decoding loop follows on the device.

Axes: S stop states, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jinja2
import jinja2.sandbox
import numpy as np
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers
from tokenizers.pre_tokenizers import ByteLevel, Digits, Split
from tokenizers.pre_tokenizers import Sequence as Steps

# Token types of a GGUF file; all others are plain.
_UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 2, 3, 4, 5

_WORDS = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
  r'| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)


class TokenizerError(ValueError):
  """A tokenizer or its chat template cannot be used; the message says why."""


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
    """Wraps a byte-level tokenizer; V is at least what its ids need.

    Raises TokenizerError where the backend is not byte-level, an id is not in
    [0, V), bos is wanted but not named, or the chat template is no template.
    """
    if not isinstance(backend.decoder, decoders.ByteLevel):
      raise TokenizerError(
        f'tokenizer: decoder {type(backend.decoder).__name__} is not '
        'byte-level; only byte-level BPE is read by this version'
      )
    names = backend.get_vocab(with_added_tokens=True)
    self.vocab_size = max(vocab_size or 0, 1 + max(names.values(), default=0))
    for id_ in (pad_id, *eos_ids, *([] if bos_id is None else [bos_id])):
      if not isinstance(id_, int) or not 0 <= id_ < self.vocab_size:
        raise _bad('special ids', f'{id_!r} is not in [0, {self.vocab_size})')
    if add_bos and bos_id is None:
      raise _bad('add_bos', 'is set and there is no bos id')
    self.bos_id = bos_id
    self.eos_ids = tuple(dict.fromkeys(eos_ids))
    self.pad_id = pad_id
    self.add_bos = add_bos
    self._backend = backend
    self._template = _compile(chat_template) if chat_template else None

  @classmethod
  def from_gguf(cls, metadata: Mapping[str, Any]) -> Tokenizer:
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
    return cls(
      _backend(metadata, tokens, rules),
      metadata.get('tokenizer.chat_template'),
      bos_id=bos_id,
      eos_ids=tuple(eos_ids),
      pad_id=metadata.get('tokenizer.ggml.padding_token_id', [*eos_ids, 0][0]),
      add_bos=bool(metadata.get('tokenizer.ggml.add_bos_token', add_bos)),
      vocab_size=len(tokens),
    )

  def encode(self, text: str) -> list[int]:
    """Ids of the text; names of special tokens in it become those tokens.

    Under `add_bos` the ids start with bos, once even where the text (a
    rendered chat) has it already. Bytes that have no token are dropped.
    """
    ids = self._backend.encode(text, add_special_tokens=False).ids
    if self.add_bos and ids[:1] != [self.bos_id]:
      ids = [self.bos_id, *ids]
    return ids

  def decode(self, ids: Iterable[int]) -> str:
    """Text of the ids without special tokens; bad UTF-8 becomes U+FFFD.

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
    result = [b''] * self.vocab_size
    alphabet = _byte_alphabet()
    for token, id_ in self._backend.get_vocab(with_added_tokens=True).items():
      try:
        result[id_] = bytes([alphabet[char] for char in token])
      except KeyError:  # not written in the alphabet: stands for itself
        result[id_] = token.encode()
    for id_, added in self._backend.get_added_tokens_decoder().items():
      result[id_] = b'' if added.special else added.content.encode()
    return result

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
    return self._chat(system=system, user=user_text)

  def _chat(self, **turns: str | None) -> str:
    """Fills the template with texts by role; None leaves a role out."""

    def name(id_):
      return '' if id_ is None else self._backend.id_to_token(id_) or ''

    messages = [
      {'role': role, 'content': text}
      for role, text in turns.items()
      if text is not None
    ]
    try:
      return self._template.render(
        messages=messages,
        add_generation_prompt='assistant' not in turns,
        bos_token=name(self.bos_id),
        eos_token=name(self.eos_ids[0] if self.eos_ids else None),
        pad_token=name(self.pad_id),
        tools=None,
        documents=None,
      )
    except Exception as error:  # a foreign program may raise anything
      raise TokenizerError(
        f'chat template: {_line(error)}; change the prompt or the system text'
      ) from error

  def _end_of_turn(self) -> list[int]:
    """The first special token that the template puts behind an answer."""
    if self._template is None:
      return []
    answer = 'forty-two'
    try:
      text = self._chat(user='number?', assistant=answer)
    except TokenizerError:  # it renders prompts only; eos has to do
      return []
    rest = text.partition(answer)[2]  # '' where the answer is not repeated
    ids = self._backend.encode(rest, add_special_tokens=False).ids
    added = self._backend.get_added_tokens_decoder()
    return [id_ for id_ in ids if id_ in added and added[id_].special][:1]


def _backend(
  metadata: Mapping[str, Any], tokens: list[str], rules: PreTokenizer
) -> tokenizers.Tokenizer:
  types = metadata.get('tokenizer.ggml.token_type', [1] * len(tokens))
  if np.shape(types) != (len(tokens),):
    problem = f'has shape {np.shape(types)} for {len(tokens)} tokens'
    raise _bad('tokenizer.ggml.token_type', problem)
  vocabulary: dict[str, int] = {}
  added: list[AddedToken] = []
  for id_, kind in enumerate(np.asarray(types).tolist()):
    token = tokens[id_]
    if kind == _UNUSED:
      continue
    if vocabulary.setdefault(token, id_) != id_:
      problem = f'{token!r} is both {vocabulary[token]} and {id_}'
      raise _bad('tokenizer.ggml.tokens', problem)
    if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED):
      special = kind != _USER_DEFINED
      added.append(AddedToken(token, special=special, normalized=False))
  key = 'tokenizer.ggml.merges'
  merges = [tuple(merge.split(' ')) for merge in _strings(metadata, key)]
  for merge in merges:
    # Left to the library, a few of these end in a panic instead of an error.
    if len(merge) != 2 or not {*merge, ''.join(merge)} <= vocabulary.keys():
      raise _bad(key, f'{" ".join(merge)!r} is not two tokens that make one')
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
    raise _bad(key, 'is not a list of strings')
  return value


def _byte_alphabet() -> dict[str, int]:
  """The byte that each printable character stands for (GPT-2's encoder.py)."""
  printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
  others = sorted(set(range(256)) - set(printable))
  return {chr(byte): byte for byte in printable} | {
    chr(256 + n): byte for n, byte in enumerate(others)
  }


def _bad(key: str, problem: str) -> TokenizerError:
  return TokenizerError(f'{key}: {problem}; get the model again')


def _line(error: Exception) -> str:
  return ' '.join(str(error).split()).rstrip('.') or type(error).__name__


def _compile(chat_template: str) -> jinja2.Template:
  """The template in a sandbox, set up as `transformers` does.

  There is no `strftime_now`: templates that would put today's date into the
  prompt fall back to a fixed one, and a run stays the same tomorrow.
  """

  def raise_exception(message):
    raise jinja2.TemplateError(message)

  environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True,
    lstrip_blocks=True,
    extensions=['jinja2.ext.loopcontrols'],
  )
  environment.globals['raise_exception'] = raise_exception
  try:
    return environment.from_string(chat_template)
  except Exception as error:  # the parser's own errors are not all alike
    raise _bad('tokenizer.chat_template', _line(error)) from error


def stop_table(
  token_bytes: Sequence[bytes],
  stop_ids: Iterable[int],
  stop_strings: Sequence[str],
) -> np.ndarray:
  """The next stop state by state and token, int32 [S, V].

  Generation starts in state 0. State S-1 is reached once the generated bytes
  contain a stop string, wherever tokens begin and end, or a stop id was
  generated, and is never left.

  Raises ValueError for an empty stop string and a stop id not in [0, V).
  """
  _check_stop_strings(stop_strings)
  step = _byte_automaton([text.encode() for text in stop_strings])
  S, V = len(step), len(token_bytes)
  lengths = np.array([len(piece) for piece in token_bytes], np.int64)
  starts = np.cumsum(lengths) - lengths
  data = np.frombuffer(b''.join(token_bytes), np.uint8)
  # Longest tokens first: those that still have a byte to read are a prefix.
  order = np.argsort(-lengths, kind='stable')
  table = np.repeat(np.arange(S, dtype=np.int32)[:, None], V, axis=1)
  for at in range(lengths.max(initial=0)):
    active = order[: np.count_nonzero(lengths > at)]
    table[:, active] = step[table[:, active], data[starts[active] + at]]
  for id_ in stop_ids:
    if not 0 <= id_ < V:
      raise ValueError(f'stop id {id_} is not in [0, {V})')
    table[:, id_] = S - 1
  return table


def _byte_automaton(strings: Sequence[bytes]) -> np.ndarray:
  """The next state by state and byte, int32 [S, 256]; S-1 is absorbing."""
  children: list[dict[int, int]] = [{}]
  ends = set()
  for string in strings:
    node = 0
    for byte in string:
      if byte not in children[node]:
        children.append({})
        children[node][byte] = len(children) - 1
      node = children[node][byte]
    ends.add(node)
  step = np.zeros((len(children), 256), np.int32)
  fallback = np.zeros(len(children), np.int32)  # longest proper suffix
  queue = [0]
  for node in queue:  # breadth first: a fallback's row is ready before use
    step[node] = step[fallback[node]]
    for byte, child in children[node].items():
      fallback[child] = step[node, byte]
      step[node, byte] = child
      if fallback[child] in ends:
        ends.add(child)
      queue.append(child)
  open_nodes = [node for node in queue if node not in ends]
  S = len(open_nodes) + 1
  state = np.full(len(children), S - 1, np.int32)
  state[open_nodes] = np.arange(S - 1)
  last = np.full((1, 256), S - 1, np.int32)
  return np.concatenate([state[step[open_nodes]], last])


def truncate(text: str, stop_strings: Sequence[str]) -> str:
  """The text before the first place where a stop string starts.

  Raises ValueError for an empty stop string.
  """
  _check_stop_strings(stop_strings)
  places = [text.find(stop) for stop in stop_strings]
  return text[: min((at for at in places if at >= 0), default=len(text))]


def _check_stop_strings(stop_strings: Sequence[str]) -> None:
  for n, text in enumerate(stop_strings):
    if not text:
      raise ValueError(f'stop_strings[{n}] is empty; it would stop everything')
