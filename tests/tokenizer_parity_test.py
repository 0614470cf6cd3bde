# SPDX-License-Identifier: Apache-2.0
"""Tokenizers and chats beside those of transformers; skipped without it."""

import chat_templates
import gguf_tokenizer_test
import pytest
import tiny_tokenizers
import tokenizer_test
from chat_templates import ANSWER, CHATS, ENDS, QUESTION, SYSTEM
from tiny_tokenizers import KINDS, TEXTS, WITH_SPACE

from thicket.models.tokenizer import Tokenizer

transformers = pytest.importorskip('transformers')

# A folder's model says which class of tokenizers is made of it.
MODELS = {
  'gpt2': 'olmo2',
  'llama3': 'llama',
  'qwen2': 'qwen2',
  'llama2': 'llama',
  'mistral': 'mistral',
  'gemma': 'gemma2',
}


def theirs(path):
  return transformers.AutoTokenizer.from_pretrained(str(path))


def same_ids(ours, reference, with_space=False):
  for text in TEXTS:
    want = reference(text).input_ids
    if ours.add_bos and text.startswith('<s>'):
      want = want[1:]  # bos comes once
    ids = ours.encode(text)
    assert ids == want, text
    said = ours.decode(ids)
    if with_space:
      said = said.removeprefix(' ')
    assert said == reference.decode(ids, skip_special_tokens=True), text


def same_chats(ours, reference, has_system=True):
  turns = [{'role': 'user', 'content': QUESTION}]
  system = [{'role': 'system', 'content': SYSTEM}]
  render = lambda turns, prompt=True: reference.apply_chat_template(
    turns, tokenize=False, add_generation_prompt=prompt
  )
  assert ours.render(QUESTION) == render(turns)
  if has_system:
    assert ours.render(QUESTION, SYSTEM) == render(system + turns)
  answer = [{'role': 'assistant', 'content': ANSWER}]
  said = ours._template.render(user=QUESTION, assistant=ANSWER)
  assert said == render(turns + answer, False)


@pytest.mark.parametrize('kind', KINDS)
def test_folders(tmp_path, kind):
  path = tiny_tokenizers.write(tmp_path / 'model', kind)
  same_ids(Tokenizer.from_folder(path), theirs(path), kind in WITH_SPACE)


@pytest.mark.parametrize('name', CHATS)
def test_chats(tmp_path, name):
  family = CHATS[name]
  config = {
    'tokenizer_class': 'PreTrainedTokenizerFast',
    'bos_token': '<s>',
    'eos_token': '</s>',
    'chat_template': family.source,
  }
  path = tiny_tokenizers.write(
    tmp_path, family.kind, ENDS, tokenizer_config=config
  )
  ours, reference = Tokenizer.from_folder(path), theirs(path)
  same_chats(ours, reference, family.with_system is not None)
  turns = [{'role': 'user', 'content': QUESTION}]
  ids = reference.apply_chat_template(
    turns, add_generation_prompt=True, return_dict=False
  )
  assert ours.encode(ours.render(QUESTION)) == ids


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('add_bos', [None, True, False])
def test_saved_folders(tmp_path, kind, add_bos):
  config = {'bos_token': '<s>', 'eos_token': '</s>', 'pad_token': '<unk>'}
  if add_bos is not None:
    config['add_bos_token'] = add_bos
  config['chat_template'] = CHATS['llama3'].source
  path = tiny_tokenizers.write(
    tmp_path / 'a',
    kind,
    chat_templates.ENDS,
    tokenizer_config=config,
    generation_config={'eos_token_id': [2]},
    config={'model_type': MODELS[kind]},
  )
  before = Tokenizer.from_folder(path)
  before.save(tmp_path / 'b')
  (tmp_path / 'b' / 'config.json').write_bytes(
    (path / 'config.json').read_bytes()
  )
  after, reference = (
    Tokenizer.from_folder(tmp_path / 'b'),
    theirs(tmp_path / 'b'),
  )
  for name in ('bos_id', 'pad_id', 'add_bos', 'vocab_size', 'stop_ids'):
    assert getattr(after, name) == getattr(before, name), name
  assert after.token_bytes == before.token_bytes
  assert all(after.encode(x) == before.encode(x) for x in TEXTS)
  same_ids(after, reference, kind in WITH_SPACE)
  same_chats(after, reference)
  said = transformers.GenerationConfig.from_pretrained(str(tmp_path / 'b'))
  assert tuple(said.eos_token_id) == before.stop_ids


def from_gguf(name):
  chat = tokenizer_test.CHAT
  if name != 'llama':
    return tokenizer_test.make(name, chat_template=chat)
  metadata = gguf_tokenizer_test.metadata(own=['<h1>', '\u2581\u2581'])
  return Tokenizer.from_gguf(metadata | {'tokenizer.chat_template': chat})


@pytest.mark.parametrize('name', [*tokenizer_test.PRE_TOKENIZERS, 'llama'])
def test_saved_tokenizers_of_gguf_files(tmp_path, name):
  before = from_gguf(name)
  before.save(tmp_path)
  after = Tokenizer.from_folder(tmp_path)
  assert all(after.encode(x) == before.encode(x) for x in TEXTS)
  assert after.stop_ids == before.stop_ids
  size = after.vocab_size
  assert after.token_bytes == before.token_bytes[:size]
  assert not any(before.token_bytes[size:])
  same_ids(after, theirs(tmp_path), name == 'llama')
  same_chats(after, theirs(tmp_path))
