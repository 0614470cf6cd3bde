# SPDX-License-Identifier: Apache-2.0
"""Tokenizers of each kind, trained on a few lines, and folders that hold them.

They are put together as those of the families are: the same normalizers, the
same patterns, decoders and post-processors.
"""

import json

from tokenizers import (
  AddedToken,
  Regex,
  Tokenizer,
  decoders,
  models,
  normalizers,
  pre_tokenizers,
  processors,
  trainers,
)

CORPUS = """\
The thicket grew around the old house, and nobody had cut it for 1234 years.
"I'll go in," she said; they'd LAUGHED: you're lost in there, you've no map!
def add(a, b):
    return a + b  # the sum of two numbers, 12 + 30 = 42
\u00dcber den Wolken mu\u00df die Freiheit wohl grenzenlos sein.
\u2581 stands for a space \u2014 \u4f60\u597d\uff0c\u4e16\u754c\u3002
\U0001f642 and \U0001f44d\U0001f3fd.
""".splitlines(keepends=True)
SPECIAL = ('<unk>', '<s>', '</s>', '<|eot|>')
WORDS = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
  r'| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)
KINDS = ('gpt2', 'llama3', 'qwen2', 'llama2', 'mistral', 'gemma')
# Kinds that put a space before a text, and take it away when they decode.
WITH_SPACE = ('llama2', 'mistral')

_PARTS = (
  *('', 'a', 'the thicket', "I'll", ' 12', '1234567', '\n', '\n\n', '\t', '  '),
  *('    return', '<s>', '</s>', '<|eot|>', '<unk>', '<0x0A>', '\u2581'),
  *('\u4f60\u597d', '\U0001f642', '\U0001f44d\U0001f3fd', '\u0000', '\u200b'),
  *('\ufffd', '\u00e9', 'e\u0301', 'Wolken', '!?', '\r\n', ' \n '),
  *('\u00a0', 'x=1;y'),
)  # fmt: skip
# A few hundred: alone, side by side, with spaces around.
TEXTS = tuple(
  dict.fromkeys(
    [
      *_PARTS,
      *CORPUS,
      *(f' {part} ' for part in _PARTS),
      *(
        left + middle + right
        for n, left in enumerate(_PARTS)
        for right in (_PARTS[(7 * n + k) % len(_PARTS)] for k in (1, 4, 11))
        for middle in ('', ' ', 'ab')
      ),
    ]
  )
)

CHATML = (
  '{% for message in messages %}'
  "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] }}"
  "{{ '<|eot|>' + '\\n' }}"
  '{% endfor %}'
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def _merges(backend, alphabet=()):
  """Tokens and merges of a BPE trained with a backend's way to cut."""
  trainer = trainers.BpeTrainer(
    vocab_size=480, initial_alphabet=list(alphabet), show_progress=False
  )
  backend.train_from_iterator(CORPUS * 3, trainer)
  state = json.loads(backend.to_str())['model']
  tokens = sorted(state['vocab'], key=state['vocab'].get)
  return tokens, [tuple(merge) for merge in state['merges']]


def backend(kind):
  """A tokenizer of the `tokenizers` library, of one of KINDS."""
  if kind in ('gpt2', 'llama3', 'qwen2'):
    result = _byte_level(kind)
  else:
    result = _sentencepiece(kind)
  result.add_special_tokens(
    [AddedToken(x, special=True, normalized=False) for x in SPECIAL]
  )
  if kind not in ('gpt2', 'qwen2'):
    result.post_processor = processors.TemplateProcessing(
      single='<s> $A',
      pair='<s> $A <s> $B',
      special_tokens=[('<s>', result.token_to_id('<s>'))],
    )
  return result


def _byte_level(kind):
  byte_level = pre_tokenizers.ByteLevel
  cut = byte_level(add_prefix_space=False)
  if kind != 'gpt2':
    words = WORDS if kind == 'llama3' else WORDS.replace('{1,3}', '')
    cut = pre_tokenizers.Sequence(
      [
        pre_tokenizers.Split(Regex(words), 'isolated'),
        byte_level(add_prefix_space=False, use_regex=False),
      ]
    )
  result = Tokenizer(models.BPE())
  result.pre_tokenizer = cut
  tokens, merges = _merges(result, byte_level.alphabet())
  vocab = {token: i for i, token in enumerate(tokens)}
  whole_words = kind == 'llama3'
  result.model = models.BPE(vocab, merges, ignore_merges=whole_words)
  if kind == 'qwen2':
    result.normalizer = normalizers.NFC()
  result.decoder = decoders.ByteLevel()
  return result


def _sentencepiece(kind):
  marked = normalizers.Replace(' ', '\u2581')
  cut = None
  if kind == 'llama2':
    marked = normalizers.Sequence([normalizers.Prepend('\u2581'), marked])
  elif kind == 'mistral':
    marked = None
    cut = pre_tokenizers.Metaspace(prepend_scheme='first', split=False)
  elif kind == 'gemma':
    cut = pre_tokenizers.Split(' ', 'merged_with_previous')
  # Words are cut while training, so that no merge spans two of them.
  trained = Tokenizer(models.BPE())
  trained.pre_tokenizer = pre_tokenizers.Metaspace()
  learnt, merges = _merges(trained)
  tokens = [*SPECIAL, *(f'<0x{byte:02X}>' for byte in range(256)), *learnt]
  vocab = {token: i for i, token in enumerate(tokens)}
  result = Tokenizer(
    models.BPE(
      vocab, merges, unk_token='<unk>', fuse_unk=True, byte_fallback=True
    )
  )
  if marked is not None:
    result.normalizer = marked
  if cut is not None:
    result.pre_tokenizer = cut
  steps = [
    decoders.Replace('\u2581', ' '),
    decoders.ByteFallback(),
    decoders.Fuse(),
  ]
  if kind in WITH_SPACE:
    steps.append(decoders.Strip(' ', 1, 0))
  result.decoder = decoders.Sequence(steps)
  if kind == 'gemma':
    # Runs of spaces are tokens of their own there, and are not special.
    result.add_tokens([AddedToken('\u2581\u2581', normalized=False)])
  return result


def write(folder, kind, special=(), **files):
  """A folder with a tokenizer of a kind; returns its path.

  `special` are more special tokens; `files` are objects by stem
  (`tokenizer_config`, ...), or None for no file.
  """
  folder.mkdir(parents=True, exist_ok=True)
  made = backend(kind)
  made.add_special_tokens([AddedToken(x, normalized=False) for x in special])
  made.save(str(folder / 'tokenizer.json'))
  default = {
    'tokenizer_config': {
      'tokenizer_class': 'PreTrainedTokenizerFast',
      'bos_token': '<s>',
      'eos_token': '</s>',
      'chat_template': CHATML,
    }
  }
  for stem, content in (default | files).items():
    if content is not None:
      text = json.dumps(content)
      (folder / f'{stem}.json').write_text(text, encoding='utf-8')
  return folder
