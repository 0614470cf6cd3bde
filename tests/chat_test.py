# SPDX-License-Identifier: Apache-2.0
"""Chats of the families, and templates that mean harm."""

import os
import signal
import subprocess
import sys

import pytest
import tiny_tokenizers
from chat_templates import CHATS, ENDS, QUESTION, SYSTEM

from thicket.models import chat
from thicket.models.chat import ChatTemplate
from thicket.models.tokenizer import Tokenizer
from thicket.models.tokenizer_parts import TokenizerError

TOKENS = {'bos_token': '<s>', 'eos_token': '</s>'}


def tokenizer_of(path, name):
  """The tokenizer of a folder with a family's template."""
  family = CHATS[name]
  config = TOKENS | {'chat_template': family.source}
  tiny_tokenizers.write(path, family.kind, ENDS, tokenizer_config=config)
  return Tokenizer.from_folder(path)


@pytest.mark.parametrize('name', CHATS)
def test_chats_of_the_families(tmp_path, name):
  tokenizer, family = tokenizer_of(tmp_path, name), CHATS[name]
  assert tokenizer.is_chat
  assert tokenizer.render(QUESTION) == family.prompt
  if family.with_system is None:
    with pytest.raises(TokenizerError, match='change the prompt or the system'):
      tokenizer.render(QUESTION, SYSTEM)
  else:
    assert tokenizer.render(QUESTION, SYSTEM) == family.with_system


@pytest.mark.parametrize('name', CHATS)
def test_the_end_of_a_turn_is_found_in_the_template(tmp_path, name):
  tokenizer, family = tokenizer_of(tmp_path, name), CHATS[name]
  (end,) = tokenizer.encode(family.end)[-1:]
  assert tokenizer.stop_ids == tuple(dict.fromkeys((tokenizer.eos_ids[0], end)))
  assert tokenizer.token_bytes[end] == b''


@pytest.mark.parametrize('name', CHATS)
def test_bos_stands_once_before_a_rendered_chat(tmp_path, name):
  tokenizer = tokenizer_of(tmp_path, name)
  ids = tokenizer.encode(tokenizer.render(QUESTION))
  assert ids.count(tokenizer.bos_id) == tokenizer.add_bos
  assert (ids[0] == tokenizer.bos_id) == tokenizer.add_bos


def test_a_model_is_one_for_chats_by_its_template_alone(tmp_path):
  path = tiny_tokenizers.write(
    tmp_path / 'Llama-3-Instruct-chat', 'llama3', tokenizer_config=TOKENS
  )
  tokenizer = Tokenizer.from_folder(path)
  assert not tokenizer.is_chat
  assert tokenizer.render(QUESTION) == QUESTION


def test_a_template_must_not_leave_the_system_text_out():
  template = ChatTemplate("{{ messages[-1]['content'] }}", TOKENS)
  assert template.render(user='hi') == 'hi'
  with pytest.raises(TokenizerError, match='leaves the system text out'):
    template.render(system='be brief', user='hi')


@pytest.mark.parametrize(
  'text',
  [
    '{{ 7 * 7 }}{% for x in y %}',
    '\x00\x1f"\\\n',
    '\ud800 alone',
    '\U0001f642',
  ],
)
def test_a_message_is_never_read_as_code(text):
  template = ChatTemplate("<{{ messages[0]['content'] }}>", TOKENS)
  assert template.render(user=text) == f'<{text}>'


def test_long_prompts_are_rendered():
  template = ChatTemplate("<{{ messages[0]['content'] | trim }}>", TOKENS)
  text = 'prompt \u4f60 ' * 10**6
  assert template.render(user=text) == f'<{text.strip()}>'


DOUBLED = (
  "{% set ns = namespace(s='xx') %}{% for i in range(99) %}"
  '{% set ns.s = ns.s ~ ns.s %}{% endfor %}'
)


@pytest.mark.parametrize(
  ('source', 'problem'),
  [
    ('{% for i in range(10**9) %}x{% endfor %}', 'Range too big'),
    ("{{ 'x' * 10**10 }}", 'MemoryError'),
    ("{{ 'x'|center(10**10) }}", 'MemoryError'),
    ("{{ '{:>9999999999}'.format(1) }}", 'MemoryError'),
    ("{{ ['x' * 10**6] * 10**6 }}", 'MemoryError'),
    (DOUBLED, 'MemoryError'),
    ('{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}', 'recursion'),
    ('{{ ' + '(' * 9999 + '1' + ')' * 9999 + ' }}', 'recursion'),
    (
      '{% for i in range(99999) %}{% for j in range(99999) %}'
      "{{ 'xxxxxxxx' }}{% endfor %}{% endfor %}",
      'writes without end',
    ),
    ("{{ messages[0]['content'] * 99 }}", 'writes without end'),
    ('{{ raise_exception("system\nrole") }}', 'system role; change the prompt'),
  ],
)
def test_templates_that_mean_harm_are_ended(source, problem):
  text = 'y' * 100_000
  with pytest.raises(TokenizerError, match=problem) as caught:
    ChatTemplate(source, TOKENS).render(user=text)
  assert '\n' not in str(caught.value)
  template = ChatTemplate("<{{ messages[0]['content'] }}>", TOKENS)
  assert template.render(user='after') == '<after>'


ENDLESS = (
  '{% for i in range(99999) %}{% for j in range(99999) %}'
  '{% endfor %}{% endfor %}'
)


@pytest.mark.parametrize('source', [ENDLESS, '{{ (7 ** 9999999) % 10 }}'])
def test_templates_without_end_are_ended(monkeypatch, source):
  # The process started here has less time than others.
  monkeypatch.setattr(chat, '_own', {})
  boot = 'renderer.CPU_S = 0\n  renderer.serve'
  monkeypatch.setattr(chat, '_BOOT', chat._BOOT.replace('renderer.serve', boot))
  with pytest.raises(TokenizerError, match='takes more than 3 s'):
    ChatTemplate(source, TOKENS).render(user='hi')
  # Another one is started.
  template = ChatTemplate("<{{ messages[0]['content'] }}>", TOKENS)
  assert template.render(user='hi') == '<hi>'


def test_a_renderer_that_was_killed_is_started_again():
  template = ChatTemplate("<{{ messages[0]['content'] }}>", TOKENS)
  process = chat._own['renderer']._process
  os.kill(process.pid, signal.SIGKILL)
  with pytest.raises(TokenizerError, match='ended, with code -9'):
    template.render(user='hi')
  assert template.render(user='hi') == '<hi>'


FORK = """
import os
from thicket.models import chat
template = chat.ChatTemplate('<{{ messages[0].content }}>', {})
ours = chat._own['renderer']
child = os.fork()
assert template.render(user='hi') == '<hi>'
if child:
  assert os.waitpid(child, 0)[1] == 0
  assert template.render(user='more') == '<more>'
assert (chat._own['renderer'] is ours) == bool(child)
"""
PROBE = """
from thicket.models import chat
template = chat.ChatTemplate('{{ messages[0].content }}', {})
assert template.render(user='hi') == 'hi'
print(chat._own['renderer']._process.pid)
"""


def run(program, *flags):
  return subprocess.run(
    [sys.executable, *flags, '-c', program],
    capture_output=True,
    text=True,
    check=True,
  )


def test_a_fork_has_a_renderer_of_its_own():
  run(FORK)


@pytest.mark.skipif(sys.platform != 'linux', reason='looks into /proc')
def test_the_renderer_ends_with_its_process_and_knows_no_secrets():
  done = run(PROBE, '-X', 'dev', '-W', 'error')
  assert done.stderr == ''
  assert not os.path.exists(f'/proc/{int(done.stdout)}')
  ChatTemplate('', TOKENS)
  pid = chat._own['renderer']._process.pid
  with open(f'/proc/{pid}/environ', 'rb') as file:
    assert file.read() == b'PYTHONHASHSEED=0\x00'
