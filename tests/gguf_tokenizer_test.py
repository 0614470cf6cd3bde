# SPDX-License-Identifier: Apache-2.0
"""SentencePiece's tokenizers out of GGUF files."""

import numpy as np
import pytest
import tiny_tokenizers
from tiny_tokenizers import TEXTS

from thicket.models.tokenizer import Tokenizer
from thicket.models.tokenizer_parts import TokenizerError

SPECIAL = ['<unk>', '<s>', '</s>']
BYTES = [f'<0x{byte:02X}>' for byte in range(256)]
# Scores as SentencePiece has them: later is worse.
PLAIN = ['ab', 'bc', '\u2581a', '\u2581ab', 'abc', *'\u2581abc']


def metadata(plain=PLAIN, own=(), **more):
  """A small tokenizer; `own` tokens are user-defined, `more` other keys."""
  tokens = [*SPECIAL, *BYTES, *plain, *own]
  rest = len(tokens) - 259 - len(own)
  result = {
    'tokenizer.ggml.model': 'llama',
    'tokenizer.ggml.tokens': tokens,
    'tokenizer.ggml.scores': np.array(
      [0.0] * 259 + [-1.0 * n for n in range(rest)] + [-1000.0] * len(own),
      np.float32,
    ),
    'tokenizer.ggml.token_type': np.array(
      [2, 3, 3] + [6] * 256 + [1] * rest + [4] * len(own), np.int32
    ),
    'tokenizer.ggml.bos_token_id': 1,
    'tokenizer.ggml.eos_token_id': 2,
  }
  more = {f'tokenizer.ggml.{key}': value for key, value in more.items()}
  return {k: v for k, v in (result | more).items() if v is not None}


def make(**more):
  return Tokenizer.from_gguf(metadata(**more))


def pieces(tokenizer, text):
  names = metadata()['tokenizer.ggml.tokens'] + ['#']
  return [names[id_] for id_ in tokenizer.encode(text)[1:]]


def test_better_tokens_are_merged_first():
  tokenizer = make(add_space_prefix=False)
  # ab before bc, though abc is a token too: c is left over until they meet.
  assert pieces(tokenizer, 'abc') == ['abc']
  assert pieces(tokenizer, 'bcab') == ['bc', 'ab']
  assert pieces(tokenizer, ' abab') == ['\u2581ab', 'ab']
  worse = ['bc', 'ab', *PLAIN[2:4], *'\u2581abc']
  names = [*SPECIAL, *BYTES, *worse]
  ids = make(plain=worse, add_space_prefix=False).encode('abc')
  assert [names[id_] for id_ in ids[1:]] == ['a', 'bc']


def test_bytes_stand_for_characters_that_are_no_tokens():
  tokenizer = make(add_space_prefix=False)
  assert pieces(tokenizer, '\u00e9\n') == ['<0xC3>', '<0xA9>', '<0x0A>']
  assert tokenizer.decode(tokenizer.encode('\u00e9\n')) == '\u00e9\n'
  assert tokenizer.token_bytes[3 + 0xC3] == b'\xc3'
  # Cut inside a character.
  assert tokenizer.decode(tokenizer.encode('\u00e9')[:-1]) == '\ufffd'


def test_a_space_is_put_before_a_text_unless_the_file_says_no():
  assert pieces(make(), 'ab') == ['\u2581ab']
  assert pieces(make(), ' ab') == ['\u2581', '\u2581ab']
  assert pieces(make(), '') == []
  assert pieces(make(add_space_prefix=False), 'ab') == ['ab']
  # What follows a special token is a text of its own.
  assert pieces(make(), 'ab</s>ab') == ['\u2581ab', '</s>', '\u2581ab']
  assert make().decode(make().encode('ab')) == ' ab'


def test_bos_comes_first_unless_the_file_says_no():
  assert make().encode('ab')[0] == 1
  assert make().encode('<s>ab') == make().encode('ab')
  assert make(add_bos_token=False).encode('ab')[0] != 1
  assert not make(bos_token_id=None).add_bos


def test_unused_tokens_are_no_part_of_any_merge():
  entries = metadata(add_space_prefix=False)
  ab = entries['tokenizer.ggml.tokens'].index('ab')
  entries['tokenizer.ggml.token_type'][ab] = 5
  tokenizer = Tokenizer.from_gguf(entries)
  assert pieces(tokenizer, 'abab') == ['a', 'b', 'a', 'b']
  assert pieces(tokenizer, 'abc') == ['abc']  # by way of bc
  assert tokenizer.token_bytes[ab] == b''


@pytest.mark.parametrize('written', ['  ', '\u2581\u2581'])
def test_tokens_of_the_user_are_found_before_anything_else(written):
  tokenizer = make(own=[written, '<h1>'], add_space_prefix=False)
  two, heading = tokenizer.vocab_size - 2, tokenizer.vocab_size - 1
  a = metadata()['tokenizer.ggml.tokens'].index('a')
  assert tokenizer.encode('a<h1>  a')[1:] == [a, heading, two, a]
  assert tokenizer.decode([two, heading]) == '  <h1>'


@pytest.mark.parametrize(
  ('more', 'problem'),
  [
    ({'scores': None}, r'tokenizer.ggml.scores: has shape \(0,\) for 268 tok'),
    ({'scores': np.zeros(3)}, r'tokenizer.ggml.scores: has shape \(3,\)'),
    ({'scores': ['x'] * 268}, r'tokenizer.ggml.scores: has shape \(268,\)'),
    ({'plain': ['a', 'a']}, "'a' is both 259 and 260"),
    ({'remove_extra_whitespaces': True}, 'remove_extra_whitespaces is set'),
    ({'model': 'bert'}, "tokenizer.ggml.model = 'bert'"),
  ],
)
def test_metadata_that_makes_no_sense_is_named(more, problem):
  with pytest.raises(TokenizerError, match=problem):
    make(**more)


@pytest.mark.parametrize('has_prefix', [True, False])
@pytest.mark.parametrize('own', [(), ('<h1>', '\u2581\u2581', '\u2581' * 4)])
def test_ids_and_texts_are_those_of_sentencepiece(tmp_path, has_prefix, own):
  spm = pytest.importorskip('sentencepiece')
  (tmp_path / 'corpus').write_text(''.join(tiny_tokenizers.CORPUS))
  spm.SentencePieceTrainer.train(
    input=str(tmp_path / 'corpus'),
    model_prefix=str(tmp_path / 'model'),
    model_type='bpe',
    vocab_size=400,
    byte_fallback=True,
    normalization_rule_name='identity',
    remove_extra_whitespaces=False,
    add_dummy_prefix=has_prefix,
    user_defined_symbols=list(own),
    minloglevel=2,
  )
  theirs = spm.SentencePieceProcessor(str(tmp_path / 'model.model'))
  ids = range(theirs.get_piece_size())
  kinds = {
    2: theirs.is_unknown,
    3: theirs.is_control,
    5: theirs.is_unused,
    6: theirs.is_byte,
  }
  tokens = [theirs.id_to_piece(i) for i in ids]
  types = [
    4 if tokens[i] in own else next((k for k, f in kinds.items() if f(i)), 1)
    for i in ids
  ]
  tokenizer = Tokenizer.from_gguf(
    {
      'tokenizer.ggml.model': 'llama',
      'tokenizer.ggml.tokens': tokens,
      'tokenizer.ggml.scores': np.array([theirs.get_score(i) for i in ids]),
      'tokenizer.ggml.token_type': types,
      'tokenizer.ggml.add_space_prefix': has_prefix,
      'tokenizer.ggml.add_bos_token': False,
    }
  )
  asked = [text for text in TEXTS if '<' not in text and '\u2581' not in text]
  assert len(asked) > 150
  if has_prefix and own:  # found before the space is put there
    asked = [text for text in asked if '  ' not in f' {text}']
  for text in asked:
    ids = tokenizer.encode(text)
    assert ids == theirs.encode(text), text
    said = tokenizer.decode(ids)
    # The library drops a space at the start if it puts one there.
    assert said[has_prefix:] == theirs.decode(ids), text
