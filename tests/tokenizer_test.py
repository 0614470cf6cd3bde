# SPDX-License-Identifier: Apache-2.0
"""Tokenizers, chat templates and stop strings."""

import json
import pathlib
import unicodedata

import hypothesis
import numpy as np
import pytest
import tokenizers
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from thicket.models import gguf, hub
from thicket.models.gguf_tokenizer import PRE_TOKENIZERS
from thicket.models.stops import stop_table, truncate
from thicket.models.tokenizer import Tokenizer
from thicket.models.tokenizer_parts import TokenizerError, TooLong

GOLDEN = pathlib.Path(__file__).parent / 'golden' / 'smollm2_reference.json'
LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())  # 256 tokens of a byte
MERGES = ['1 2', '12 3', '123 4', 'a b', 'Ġ a', '. .']
SPECIAL = {'<s>': 3, '<end>': 3, '<eot>': 3, '<tool \u00e9>': 4, '[PAD9]': 5}
CHAT = """\
{% for message in messages %}
  {% if message['role'] == 'system' %}
[{{ message['content'] }}]
  {% elif message['role'] == 'user' %}
<s>{{ message['content'] }}<end>
  {% else %}
{{ message['content'] }}<eot>
  {% endif %}
{% endfor %}
{% if add_generation_prompt %}{{ 'answer:' }}{% endif %}"""

quick = hypothesis.settings(
  max_examples=150, derandomize=True, database=None, deadline=None
)


def metadata(pre='gpt-2', merges=MERGES, special=SPECIAL, **more):
  """GGUF metadata of a small tokenizer; `more` are its other keys."""
  tokens = [*LETTERS, *(merge.replace(' ', '') for merge in merges), *special]
  num_plain = len(tokens) - len(special)
  types = np.array([1] * num_plain + list(special.values()), np.int32)
  ids = {'bos': '<s>', 'eos': '<end>', 'padding': '<end>'}
  result = {
    'tokenizer.ggml.model': 'gpt2',
    'tokenizer.ggml.pre': pre,
    'tokenizer.ggml.tokens': tokens,
    'tokenizer.ggml.merges': list(merges),
    'tokenizer.ggml.token_type': types,
  }
  for key, token in ids.items():
    if token in special:
      result[f'tokenizer.ggml.{key}_token_id'] = tokens.index(token)
  more = {f'tokenizer.{key}': value for key, value in more.items()}
  return {k: v for k, v in (result | more).items() if v is not None}


def make(pre='gpt-2', **more):
  return Tokenizer.from_gguf(metadata(pre, **more))


def pieces(tokenizer, text):
  """The text cut into what each token stands for."""
  return [
    tokenizer.token_bytes[i].decode('utf-8', 'replace')
    for i in tokenizer.encode(text)
  ]


@pytest.mark.parametrize(
  ('pre', 'expected'),
  [
    ('gpt-2', ['1234', ' ', 'ab']),
    ('smollm', ['1', '2', '3', '4', ' ', 'ab']),
    ('llama-bpe', ['123', '4', ' ', 'ab']),
    ('qwen2', ['1', '2', '3', '4', ' ', 'ab']),
    ('olmo', ['1234', ' ', 'ab']),
    ('dbrx', ['123', '4', ' ', 'ab']),
    ('tekken', ['1', '2', '3', '4', ' ', 'ab']),
    ('default', ['123', '4', ' ', 'ab']),
  ],
)
def test_digits_are_cut_as_the_pre_tokenizer_says(pre, expected):
  tokenizer = make(pre, **{'ggml.add_bos_token': False})
  assert pieces(tokenizer, '1234 ab') == expected


@pytest.mark.parametrize(
  ('pre', 'expected'),
  [
    ('gpt-2', ['i', "'", 'L', 'L', '\n\n', ' ', 'x', '..', '\n']),
    ('qwen2', ['i', "'LL", '\n\n', ' ', 'x', '..\n']),
    ('dbrx', ['i', "'LL", '\n\n', ' ', 'x', '..\n']),
    ('olmo', ['i', "'", 'L', 'L', '\n\n', ' ', 'x', '..', '\n']),
    ('tekken', ['i', "'LL", '\n\n', ' ', 'x', '..\n']),
    ('default', ['i', "'", 'L', 'L', '\n\n', ' ', 'x', '..', '\n']),
  ],
)
def test_words_are_cut_as_the_pre_tokenizer_says(pre, expected):
  merges = ["' L", "'L L", 'Ċ Ċ', '. .', '.. Ċ']  # Ċ is a newline
  tokenizer = make(pre, merges=merges, **{'ggml.add_bos_token': False})
  assert pieces(tokenizer, "i'LL\n\n x..\n") == expected


def test_whole_words_skip_the_merges():
  # 'abc' cannot be reached by the merges: 'b c' comes first.
  merges = ['b c', 'a b', 'ab c']
  text = 'abc'
  no_bos = {'ggml.add_bos_token': False}
  assert pieces(make('gpt-2', merges=merges), text) == ['a', 'bc']
  for pre in ('llama-bpe', 'tekken'):
    assert pieces(make(pre, merges=merges, **no_bos), text) == ['abc']


def test_words_end_where_capitals_start_again():
  no_bos = {'ggml.add_bos_token': False}
  merges = ['a B', 'a b', 'B c']
  assert pieces(make('tekken', merges=merges, **no_bos), 'aBc') == ['a', 'Bc']
  assert pieces(make('dbrx', merges=merges), 'aBc') == ['aB', 'c']


@pytest.mark.parametrize('pre', PRE_TOKENIZERS)
def test_text_survives_the_round_trip(pre):
  tokenizer = make(pre)

  @quick
  @hypothesis.given(st.text(max_size=30))
  def check(text):
    expected = text
    if pre in ('qwen2', 'olmo'):
      expected = unicodedata.normalize('NFC', text)
    assert tokenizer.decode(tokenizer.encode(text)) == expected

  check()


@quick
@hypothesis.given(st.lists(st.integers(0, len(LETTERS) + len(MERGES) - 1)))
def test_decode_is_that_of_the_library(ids):
  tokenizer = make()
  backend = tokenizer._backend
  assert tokenizer.decode(ids) == backend.decode(ids)
  assert tokenizer.decode(np.array(ids, np.int32)) == backend.decode(ids)
  joined = b''.join(tokenizer.token_bytes[i] for i in ids)
  assert tokenizer.decode(ids) == joined.decode('utf-8', 'replace')


def test_special_tokens():
  tokenizer = make()
  tokens = metadata()['tokenizer.ggml.tokens']
  start, end, tool = map(tokens.index, ('<s>', '<end>', '<tool \u00e9>'))
  ids = tokenizer.encode('<s>ab<end><tool \u00e9>')
  assert ids == [start, tokens.index('ab'), end, tool]
  assert tokenizer.decode(ids) == 'ab<tool \u00e9>'
  assert tokenizer.token_bytes[start] == b''
  assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.pad_id) == (
    start,
    (end,),
    end,
  )


def test_unused_tokens_have_an_id_and_nothing_else():
  tokenizer = make()
  unused = metadata()['tokenizer.ggml.tokens'].index('[PAD9]')
  assert tokenizer.vocab_size == unused + 1 == len(tokenizer.token_bytes)
  assert tokenizer.token_bytes[unused] == b''
  assert unused not in tokenizer.encode('[PAD9]')
  assert tokenizer.decode(tokenizer.encode('[PAD9]')) == '[PAD9]'


@pytest.mark.parametrize('id_', [-1, 10**6])
def test_ids_outside_the_vocabulary_are_refused(id_):
  with pytest.raises(ValueError, match=str(id_)):
    make().decode([0, id_])


def test_bos_comes_first_and_once():
  tokenizer = make(**{'ggml.add_bos_token': True})
  bos = tokenizer.bos_id
  assert tokenizer.encode('ab')[0] == bos
  assert tokenizer.encode('<s>ab') == tokenizer.encode('ab')
  assert tokenizer.encode('') == [bos]
  assert make('llama-bpe').add_bos  # the file does not say
  assert not make().add_bos


def test_a_text_that_is_too_long_says_how_long_it_is():
  tokenizer = make(**{'ggml.add_bos_token': True})
  assert len(tokenizer.encode('x' * 9, 10)) == 10
  with pytest.raises(TooLong, match='text has 11 tokens'):
    tokenizer.encode('x' * 10, 10)
  with pytest.raises(TooLong, match='has 1 tokens'):
    tokenizer.encode('', 0)
  # Only the start is read of one that is far too long.
  with pytest.raises(TooLong) as caught:
    tokenizer.encode('x y ' * 10**7, 100)
  assert (
    caught.value.tokens == '1600 (in its first 1600 of 40000000 characters)'
  )


def test_a_text_of_long_tokens_may_be_long():
  merges = ['x x', 'xx xx', 'xxxx xxxx', 'xxxxxxxx xxxxxxxx']
  merges += [f'{"x" * 16} {"x" * 16}', f'{"x" * 32} {"x" * 32}']
  tokenizer = make(merges=merges)
  assert len(tokenizer.encode('x' * 640, 10)) == 10  # more than 16 a token
  with pytest.raises(TooLong, match=r'20 \(in its first 1280 of 6400 char'):
    tokenizer.encode('x' * 6400, 10)


def test_a_text_that_the_library_gives_up_on():
  # The pattern looks at each of so many spaces, and gives up before the end.
  with pytest.raises(TokenizerError, match='a text of 10000001 characters can'):
    make('qwen2').encode(' ' * 10**7 + 'x')


@pytest.mark.parametrize(
  ('more', 'problem'),
  [
    ({'ggml.model': 't5'}, "tokenizer.ggml.model = 't5'; only gpt2"),
    ({'ggml.model': None}, 'tokenizer.ggml.model = None'),
    ({'pre': 'mpt'}, "pre = 'mpt' is unknown; known are gpt-2, smollm"),
    ({'pre': None}, 'tokenizer.ggml.pre = None'),
    ({'ggml.tokens': None}, 'tokenizer.ggml.tokens: is not a list'),
    ({'ggml.tokens': [*LETTERS, 5]}, 'tokenizer.ggml.tokens: is not a list'),
    ({'ggml.merges': ['a']}, "tokenizer.ggml.merges: 'a' is not two"),
    ({'ggml.merges': ['a b c']}, "tokenizer.ggml.merges: 'a b c' is not two"),
    ({'ggml.merges': ['z z']}, "tokenizer.ggml.merges: 'z z' is not two"),
    ({'special': {'ab': 1}}, "'ab' is both 259 and 262"),
    ({'ggml.token_type': [1]}, r'token_type: has shape \(1,\)'),
    ({'ggml.eos_token_id': 9999}, r'special ids: 9999 is not in \[0, 267\)'),
    ({'ggml.bos_token_id': 'x'}, "special ids: 'x'"),
    ({'ggml.eos_token_id': [2]}, r'special ids: \[2\] is not'),
    ({'special': {}, 'ggml.add_bos_token': True}, 'add_bos: is set'),
    ({'chat_template': '{% if %}'}, 'chat template: '),
    ({'chat_template': 5}, 'chat template: '),
  ],
)
def test_metadata_that_makes_no_sense_is_named(more, problem):
  with pytest.raises(TokenizerError, match=problem) as caught:
    make(**more)
  assert '\n' not in str(caught.value)


def test_rows_of_the_embedding_beyond_the_tokens():
  backend = tokenizers.Tokenizer(models.BPE({'a': 0}, []))
  backend.decoder = decoders.ByteLevel()
  tokenizer = Tokenizer(backend, None, None, (), 0, False, vocab_size=3)
  assert tokenizer.token_bytes == [b'a', b'', b'']


def test_chat_template():
  tokenizer = make(chat_template=CHAT)
  assert tokenizer.render('hi') == '<s>hi<end>\nanswer:'
  assert tokenizer.render('hi', 'be brief') == (
    '[be brief]\n<s>hi<end>\nanswer:'
  )


def test_special_tokens_are_known_to_the_template():
  tokenizer = make(
    chat_template='{{ bos_token }}{{ eos_token }}'
    '{% if strftime_now is defined %}today{% endif %}'
  )
  assert tokenizer.render('hi') == '<s><end>'


def test_today_is_always_the_same_day():
  template = '{% set today = strftime_now("%d %b %Y") %}{{ today }}'
  assert make(chat_template=template).render('hi') == '26 Jul 2024'


def test_without_a_template_the_text_is_the_prompt():
  assert make().render('hi') == 'hi'
  assert make(chat_template='').render('hi') == 'hi'
  with pytest.raises(TokenizerError, match="system = 'be brief'"):
    make().render('hi', 'be brief')


@pytest.mark.parametrize(
  ('template', 'problem'),
  [
    ("{{ ''.__class__.__mro__ }}", 'unsafe'),
    ('{{ messages.append.__self__ }}', 'unsafe'),
    ('{{ raise_exception.__globals__ }}{{ 1 / 0 }}', 'division'),
    ("{{ (raise_exception|attr('__globals__'))['x'] }}", 'unsafe'),
    ("{{ '{0.__class__.__mro__}'.format(1) }}", 'unsafe'),
    ('{{ messages.append(1) }}', "attribute 'append' of 'list'"),
    ("{% include 'x' %}", 'no loader'),
    ("{{ raise_exception('system role\nnot supported') }}", 'role not supp'),
    ('{{ messages[7].content }}', 'no element 7'),
  ],
)
def test_templates_cannot_leave_the_sandbox(template, problem):
  with pytest.raises(TokenizerError, match=problem) as caught:
    make(chat_template=template).render('hi')
  assert '\n' not in str(caught.value)


def test_end_of_turn_stops_too():
  tokens = metadata()['tokenizer.ggml.tokens']
  eos, eot = tokens.index('<end>'), tokens.index('<eot>')
  assert make().stop_ids == (eos,)
  assert make(chat_template=CHAT).stop_ids == (eos, eot)
  prompts_only = CHAT.replace('{% else %}', '{% else %}{{ 1 / 0 }}')
  assert make(chat_template=prompts_only).stop_ids == (eos,)
  no_answers = '{{ bos_token }}'  # its special token ends no answer
  assert make(chat_template=no_answers).stop_ids == (eos,)
  named = {'ggml.eot_token_id': eot, 'ggml.eom_token_id': eos}
  assert make(**named).stop_ids == (eos, eot)


def follow(table, ids):
  """The states after each token."""
  state, states = 0, []
  for id_ in ids:
    state = table[state, id_]
    states.append(int(state))
  return states


texts = st.text('ab\n\u00e9\U0001f642', min_size=1, max_size=5)


@quick
@hypothesis.given(
  tokens=st.lists(st.one_of(st.just(''), texts), min_size=1, max_size=8),
  cut=st.booleans(),
  stops=st.lists(texts, max_size=4),
  data=st.data(),
)
def test_stop_table_is_a_search_in_the_text(tokens, cut, stops, data):
  vocabulary = [token.encode() for token in tokens]
  if cut:  # characters that are spread over tokens
    vocabulary += [bytes([byte]) for byte in b''.join(vocabulary)]
  some_id = st.integers(0, len(vocabulary) - 1)
  stop_ids = data.draw(st.lists(some_id, max_size=2))
  ids = data.draw(st.lists(some_id, max_size=30))
  table = stop_table(vocabulary, stop_ids, stops)
  assert table.dtype == np.int32
  assert table.min() >= 0
  assert table.max() <= len(table) - 1
  assert (table[-1] == len(table) - 1).all()
  expected, content = [], b''
  for n, id_ in enumerate(ids):
    content += vocabulary[id_]
    found = any(stop.encode() in content for stop in stops)
    expected.append(found or not set(stop_ids).isdisjoint(ids[: n + 1]))
  assert [state == len(table) - 1 for state in follow(table, ids)] == expected


def test_stop_table_by_hand():
  vocabulary = [b'a', b'b', b'ab', b'', b'xaby']
  # Nothing, a, stopped: the start, one letter of the stop string, the end.
  expected = [[1, 0, 2, 2, 2], [1, 2, 2, 2, 2], [2, 2, 2, 2, 2]]
  assert stop_table(vocabulary, [3], ['ab']).tolist() == expected
  assert stop_table(vocabulary, [], []).tolist() == [[0] * 5, [1] * 5]


def test_stop_table_errors():
  with pytest.raises(ValueError, match=r'stop_strings\[1\] is empty'):
    stop_table([b'a'], [], ['a', ''])
  for id_ in (-1, 1):
    with pytest.raises(ValueError, match=f'stop id {id_} is not in'):
      stop_table([b'a'], [id_], [])


def test_truncate():
  assert truncate('12\nQ: 3', ['Q:', '\n']) == '12'
  assert truncate('12', ['\n']) == '12'
  assert truncate('\n12', ['\n']) == ''
  assert truncate('12\n', []) == '12\n'
  with pytest.raises(ValueError, match=r'stop_strings\[0\] is empty'):
    truncate('12', [''])


@pytest.mark.slow
def test_smollm2_is_the_reference(tmp_path):
  golden = json.loads(GOLDEN.read_text(encoding='utf-8'))
  path = hub.resolve('smollm2-135m-instruct').path
  tokenizer = Tokenizer.from_gguf(gguf.open_gguf(path).metadata)
  prompt = tokenizer.render('What is 17 + 25? Answer with a number.')
  assert prompt == golden['prompt']
  assert tokenizer.encode(prompt) == golden['input_ids']
  answer = tokenizer.decode(golden['greedy_40'])
  assert answer.startswith('17 + 25 = 32\n\nThis is a classic example of a ')
  assert tokenizer.encode(answer) == golden['greedy_40']
  assert tokenizer.vocab_size == 49_152
  assert tokenizer.stop_ids == (2,)
  table = stop_table(tokenizer.token_bytes, tokenizer.stop_ids, ['\n\nThis'])
  states = follow(table, golden['greedy_40'])
  assert states.index(len(table) - 1) == 12  # the token ' This' of the answer
  tokenizer.save(tmp_path)
  saved = Tokenizer.from_folder(tmp_path)
  assert saved.render('What is 17 + 25? Answer with a number.') == prompt
  assert saved.encode(prompt + answer) == tokenizer.encode(prompt + answer)
  assert saved.token_bytes == tokenizer.token_bytes
  assert saved.stop_ids == (2,)
