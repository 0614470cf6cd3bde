# SPDX-License-Identifier: Apache-2.0
"""Chat templates of the families' kinds, and what they make of a question."""

from typing import NamedTuple

QUESTION, SYSTEM, ANSWER = ' What is 1 + 1? ', 'Be brief.', 'two'


class Chat(NamedTuple):
  """A template, and what it says.

  Fields:
    kind: of the tokenizer, see `tiny_tokenizers.KINDS`.
    source: Jinja.
    end: the token that ends an answer.
    prompt: for QUESTION.
    with_system: for SYSTEM and QUESTION; None where that is refused.
  """

  kind: str
  source: str
  end: str
  prompt: str
  with_system: str | None


_QWEN = r"""
{%- if messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}
{%- else %}
    {{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not \
loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + \
'<|im_end|>' + '\n' }}
    {%- elif message.role == "tool" %}
        {{- message.content | tojson }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
""".replace('\\\n', '').strip()

# Its shape: a loop from the end, a namespace, thoughts cut out of answers.
_QWEN3 = r"""
{%- set ns = namespace(multi_step_tool=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and not \
(message.content.startswith('<tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == "user" or message.role == "system" %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + \
'<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" %}
        {%- set content = message.content %}
        {%- if message.reasoning_content is defined and \
message.reasoning_content is not none %}
            {%- set thought = message.reasoning_content %}
        {%- else %}
            {%- if '</think>' in message.content %}
                {%- set content = message.content.split('</think>')[-1]\
.lstrip('\n') %}
            {%- endif %}
        {%- endif %}
        {%- generation %}
        {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>\n' }}
        {%- endgeneration %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}
""".replace('\\\n', '').strip()

_LLAMA3 = r"""
{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\n" }}
{{- "Today Date: " + date_string + "\n\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + \
message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
""".replace('\\\n', '').strip()

_GEMMA2 = (
  "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
  "{{ raise_exception('System role not supported') }}{% endif %}"
  '{% for message in messages %}'
  "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
  "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
  "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}"
  "{% else %}{% set role = message['role'] %}{% endif %}"
  "{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim"
  " + '<end_of_turn>\\n' }}{% endfor %}"
  "{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}"
)

_GEMMA3 = r"""
{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set first_user_prefix = messages[0]['content'] + '

' -%}
    {%- else -%}
        {%- set first_user_prefix = messages[0]['content'][0]['text'] -%}
    {%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'assistant') -%}
        {%- set role = "model" -%}
    {%- else -%}
        {%- set role = message['role'] -%}
    {%- endif -%}
    {{ '<start_of_turn>' + role + '
' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {{ raise_exception("Invalid content type") }}
    {%- endif -%}
    {{ '<end_of_turn>
' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{'<start_of_turn>model
'}}
{%- endif -%}
""".strip()

_MISTRAL = (
  '{{ bos_token }}{% for message in messages %}'
  "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
  "{{ raise_exception('Conversation roles must alternate "
  "user/assistant/user/assistant/...') }}{% endif %}"
  "{% if message['role'] == 'user' %}"
  "{{ '[INST] ' + message['content'] + ' [/INST]' }}"
  "{% elif message['role'] == 'assistant' %}"
  "{{ message['content'] + eos_token }}"
  "{% else %}{{ raise_exception('Only user and assistant roles are "
  "supported!') }}{% endif %}{% endfor %}"
)

_OLMO2 = (
  "{{ bos_token }}{% for message in messages %}{% if message['role'] == "
  "'system' %}{{ '<|system|>\\n' + message['content'] + '\\n' }}"
  "{% elif message['role'] == 'user' %}"
  "{{ '<|user|>\\n' + message['content'] + '\\n' }}"
  "{% elif message['role'] == 'assistant' %}{% if not loop.last %}"
  "{{ '<|assistant|>\\n'  + message['content'] + eos_token + '\\n' }}"
  "{% else %}{{ '<|assistant|>\\n'  + message['content'] + eos_token }}"
  '{% endif %}{% endif %}{% if loop.last and add_generation_prompt %}'
  "{{ '<|assistant|>\\n' }}{% endif %}{% endfor %}"
)

_LLAMA3_HEAD = '<s><|start_header_id|>system<|end_header_id|>\n\n'
_LLAMA3_DATE = 'Today Date: 26 Jul 2024\n\n'
_LLAMA3_TAIL = (
  '<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nWhat is 1 + 1?'
  '<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n'
)
_QWEN_TAIL = (
  '<|im_start|>user\n What is 1 + 1? <|im_end|>\n<|im_start|>assistant\n'
)

CHATS = {
  'qwen2': Chat(
    'qwen2',
    _QWEN,
    '<|im_end|>',
    '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' + _QWEN_TAIL,
    '<|im_start|>system\nBe brief.<|im_end|>\n' + _QWEN_TAIL,
  ),
  'qwen3': Chat(
    'qwen2',
    _QWEN3,
    '<|im_end|>',
    _QWEN_TAIL,
    '<|im_start|>system\nBe brief.<|im_end|>\n' + _QWEN_TAIL,
  ),
  'llama3': Chat(
    'llama3',
    _LLAMA3,
    '<|eot_id|>',
    _LLAMA3_HEAD + _LLAMA3_DATE + _LLAMA3_TAIL,
    _LLAMA3_HEAD + _LLAMA3_DATE + 'Be brief.' + _LLAMA3_TAIL,
  ),
  'gemma2': Chat(
    'gemma',
    _GEMMA2,
    '<end_of_turn>',
    '<s><start_of_turn>user\nWhat is 1 + 1?<end_of_turn>\n'
    '<start_of_turn>model\n',
    None,
  ),
  'gemma3': Chat(
    'gemma',
    _GEMMA3,
    '<end_of_turn>',
    '<s><start_of_turn>user\nWhat is 1 + 1?<end_of_turn>\n'
    '<start_of_turn>model\n',
    '<s><start_of_turn>user\nBe brief.\n\nWhat is 1 + 1?<end_of_turn>\n'
    '<start_of_turn>model\n',
  ),
  'mistral': Chat(
    'mistral',
    _MISTRAL,
    '</s>',
    '<s>[INST]  What is 1 + 1?  [/INST]',
    None,
  ),
  'olmo2': Chat(
    'llama3',
    _OLMO2,
    '</s>',
    '<s><|user|>\n What is 1 + 1? \n<|assistant|>\n',
    '<s><|system|>\nBe brief.\n<|user|>\n What is 1 + 1? \n<|assistant|>\n',
  ),
}
# Special in the vocabularies of the families, beside `tiny_tokenizers.SPECIAL`.
ENDS = ('<|im_start|>', '<|im_end|>', '<|eot_id|>', '<end_of_turn>')
