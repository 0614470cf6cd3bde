# SPDX-License-Identifier: Apache-2.0
r"""Answers written in LaTeX: where they stand, and one spelling of each.

A *normal form* is a text that is its own normal form. Spellings that differ on
the surface only share it: spaces, `\left`, `\dfrac`, dollars, a unit, a degree
or percent sign, the order in a set. A rational number becomes what
`numbers.normalise_number` makes of it, and is exact; '810,221' is one number
and '810, 221' two. Normal forms are cheap
and take no algebra; that `2\sqrt{3}` is `\sqrt{12}` is for `equivalence` to
say, which takes a form apart by `parts` first.

Everything is linear in the length of the text, and nothing is evaluated.
"""

from __future__ import annotations

import re

from thicket.tasks import numbers

MAX_CHARS = 1000  # the longest gold of MATH-500 and OlympiadBench has 204
MAX_DEPTH = 24  # of brackets
_MAX_ROUNDS = 4

ATOM, SET, UNION, MATRIX = 'atom', 'set', 'union', 'matrix'  # kinds of forms

_BOXES = ('\\boxed', '\\fbox')
_OPEN, _CLOSE = ('(', '[', '{', '\\{', '\\begin'), (')', ']', '}', '\\}')
_TOKEN = re.compile(r'\\[a-zA-Z]+|\\.|.', re.DOTALL)

# What models type where LaTeX has a command.
_TYPED = str.maketrans(
  {
    '\u2212': '-',
    '\u2013': '-',
    '\u00d7': '\\cdot ',
    '\u00b7': '\\cdot ',
    '\u03c0': '\\pi ',
    '\u221e': '\\infty ',
    '\u00b0': '^\\circ ',
    '\u2264': '\\le ',
    '\u2265': '\\ge ',
    '\u222a': '\\cup ',
    '\u00b1': '\\pm ',
    '\u00b2': '^2',
    '\u00b3': '^3',
    '\u00a0': ' ',
  }
)

# Commands that change the look, and others for which there are two names.
_RENAMED = {
  **dict.fromkeys(('left', 'right', 'big', 'Big', 'bigg', 'Bigg'), ' '),
  **dict.fromkeys(('bigl', 'bigr', 'Bigl', 'Bigr'), ' '),
  **dict.fromkeys(('displaystyle', 'limits', 'quad', 'qquad', 'degree'), ' '),
  **dict.fromkeys(('dfrac', 'tfrac', 'cfrac'), '\\frac'),
  **dict.fromkeys(('geqslant', 'geq'), '\\ge '),
  **dict.fromkeys(('leqslant', 'leq'), '\\le '),
  **dict.fromkeys(('times', 'ast'), '\\cdot '),
  **dict.fromkeys(('langle', 'lparen'), '('),
  **dict.fromkeys(('rangle', 'rparen'), ')'),
  **dict.fromkeys(('mbox', 'textbf', 'textrm', 'textit', 'mathrm'), '\\text'),
  **dict.fromkeys(('mathbf', 'mathit', 'operatorname'), '\\text'),
  **{'lt': '<', 'gt': '>', 'lbrack': '[', 'rbrack': ']'},
  **{'lbrace': '\\{', 'rbrace': '\\}'},
}
_COMMAND = re.compile(r'\\\\|\\([a-zA-Z]+)|\\([^a-zA-Z])|\$|~')
_THOUSANDS = re.compile(r'-?[1-9][0-9]{0,2}(?:,[0-9]{3})+(?:\.[0-9]*)?')
_PLACEHOLDER = re.compile(r'<[A-Za-z ]*>')

# A unit is a word, or words, behind a value: at least two letters if bare.
_TEXT_UNIT = re.compile(
  r'(?<=[\w})!])\s*\\text\s*\{[^{}]*\}(?:\^\{?[0-9]\}?)?$'
)
_BARE_UNIT = re.compile(
  r'^(-?[0-9][0-9.,/]*|-?\\frac\{[0-9]+\}\{[0-9]+\})\s*'
  r'(?!(?:pi|sqrt|sin|cos|tan|log|ln|or|and|mod)\b)'
  r'[a-z]{2,}(?:[ /][a-z]+)*(?:\^\{?[0-9]\}?)?$'
)

# Possessive, because it is tried at the start of whatever a model wrote.
_NAME = (
  r'(?:(?:\\(?!(?:frac|sqrt|sin|cos|tan|log|ln|in|cdot|pm|text)(?![a-zA-Z]))'
  r"[a-zA-Z]++ ?|\\text ?\{[^{}]*\}|[a-zA-Z']|_\{[^{}]*\}|_\w)++"
  r'(?:\((?:[a-zA-Z0-9],?)++\))?|\((?:[a-zA-Z],?)++\))'
)
_NAMED = re.compile(rf'({_NAME})=(.+)')
_MEMBER_OF = re.compile(rf'{_NAME}\\in(?![a-zA-Z]) ?(.+)')
# 't(0,4]' can only mean that t is in it; 'f(0,4)' may be a value.
_HALF_OPEN = re.compile(r'[a-z](\([^()\[\]]+\]|\[[^()\[\]]+\))')
_FRACTION = re.compile(
  r'(-?)([0-9]+)??\\frac\{(-?)([0-9]+)\}\{([0-9]+)\}'  # mixed ones, too
)
_WORD = re.compile(r'[A-Za-z]{3,}')
_BASED = re.compile(r'([0-9]+)_\{?([0-9]+)\}?')


def last_boxed(text: str) -> tuple[int, str | None]:
  r"""The last `\boxed{...}` or `\fbox{...}`: where it starts, what it holds.

  (-1, None) without one; the content is None where the box is not closed, for
  what stands before it was not the answer, or holds over 1,000 characters.
  """
  start = max(text.rfind(box) for box in _BOXES)
  if start < 0:
    return -1, None
  rest = text[start : start + MAX_CHARS + 10]
  opening = rest.find('{')
  if opening < 0 or rest[:opening].strip() not in _BOXES:
    return start, None
  depth = 0
  for token in _TOKEN.finditer(rest, opening):
    depth += (token[0] == '{') - (token[0] == '}')
    if depth == 0:
      return start, rest[opening + 1 : token.start()]
  return start, None


def normal(text: str) -> str | None:
  """The normal form of an answer, or None where there is none to read.

  Refused are empty answers, more than 1,000 characters, digits outside 0-9,
  placeholders ('<answer>'), and brackets that are not balanced or over 24 deep.
  """
  form = _form(text)
  for _ in range(_MAX_ROUNDS):
    if form is None:
      return None
    form, before = _form(form), form
    if form == before:
      return form
  return None


def parts(form: str) -> tuple[str, list[str]]:
  """A normal form taken apart: its kind, and normal forms inside.

  The kinds: 'set' and 'union' (order does not matter), two brackets such as
  '(]' (a tuple or an interval), 'matrix 2' with its number of rows, 'atom'.
  """
  elements = _split(form, ',')
  if len(elements) > 1:
    return SET, [x.strip() for x in elements]
  pieces = _split(form, '\\cup')
  if len(pieces) > 1:
    return UNION, pieces
  inside = _bracketed(form)
  if inside is not None:
    return form[0] + form[-1], _split(inside, ',')
  rows = _rows(form)
  if rows is not None:
    return f'{MATRIX} {len(rows)}', [cell for row in rows for cell in row]
  return ATOM, [form]


def named(form: str) -> tuple[str, str]:
  """The name in front of '=' ('' without one) and the rest of an atom."""
  match = _NAMED.fullmatch(form)
  if match is None or '=' in match[2]:
    return '', form
  return match[1], match[2]


def is_number(form: str) -> bool:
  """Whether an atom is an exact rational number."""
  return numbers.normalise_number(form) == form


def is_words(form: str) -> bool:
  """Whether an atom is no mathematics but words, or digits with a base."""
  return form.startswith('\\text{') or bool(_BASED.fullmatch(form))


def _form(text: str) -> str | None:
  """One round of `normal`: what honest answers need, and odd ones not."""
  if len(text) > MAX_CHARS or _PLACEHOLDER.search(text):
    return None
  text = text.translate(_TYPED)
  if any(x.isnumeric() and not x.isascii() for x in text):
    return None
  text = _clean(text)
  if not _is_balanced(text):
    return None
  return ', '.join(sorted(_elements(text))) or None


def _clean(text: str) -> str:
  """One spelling of commands; without units, and without spaces."""
  text = text.replace('{,}', ',').replace('\\!', '\0')
  text = re.sub(r',\0 *(?=[0-9]{3})', '', text).replace('\0', '')
  text = _COMMAND.sub(_rename, text)
  text = re.sub(r'bmatrix(?=\})', 'pmatrix', text)
  text = re.sub(r'\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![a-zA-Z]))|%', ' ', text)
  text = re.sub(r',?\s*\\text\s*\{\s*(?:and|or)\s*\}', ',', text)
  text = re.sub(r',?\s+(?:and|or)\s+', ',', text).replace(';', ',')
  text = text.strip().rstrip('.,:').strip()
  text = re.sub(r'\\text\s*\{(\s*-?[0-9][^{}]*)\}', r'\1', text)  # '5 cm'
  text = _TEXT_UNIT.sub('', text)
  text = _BARE_UNIT.sub(r'\1', text)
  if _THOUSANDS.fullmatch(text):  # '1, 000' is two numbers
    text = text.replace(',', '')
  text = re.sub(r'(\\[a-zA-Z]+)\s+(?=[a-zA-Z])', '\\1\0', text)
  text = re.sub(r'\s+', '', text).replace('\0', ' ')
  text = re.sub(
    r'(?<![a-zA-Z\\])(?=(?:pi|sqrt|infty)(?![a-zA-Z]))', r'\\', text
  )
  text = text.replace('**', '^').replace('*', '\\cdot ')
  text = re.sub(r'\\cdot (?![a-zA-Z])', r'\\cdot', text)
  text = re.sub(r'\\frac([0-9])([0-9])', r'\\frac{\1}{\2}', text)
  text = re.sub(r'\\frac([0-9])\{', r'\\frac{\1}{', text)
  text = re.sub(r'\\frac\{([^{}]*)\}([0-9])', r'\\frac{\1}{\2}', text)
  text = re.sub(r'\\sqrt ?([0-9a-zA-Z])', r'\\sqrt{\1}', text)
  text = re.sub(r'([\^_])\{([0-9a-zA-Z])\}', r'\1\2', text)
  return re.sub(r'(?<![0-9.])\.(?=[0-9])', '0.', text)


def _rename(match: re.Match[str]) -> str:
  word, sign = match[1], match[2]
  if word is not None:
    return _RENAMED.get(word, match[0])
  if sign is not None:
    return match[0] if sign in '{}|' else '%' if sign == '%' else ' '
  return match[0] if match[0] == '\\\\' else ' '


def _elements(text: str) -> list[str]:
  """The normal forms of the elements of a set, each once, in order."""
  found = []
  for piece in _split(text, ','):
    piece = re.sub(r'^[.:=]+', '', piece)
    match = _MEMBER_OF.fullmatch(piece) or _HALF_OPEN.fullmatch(piece)
    piece = match[1] if match else piece
    if named(piece)[1].startswith('\\{'):
      piece = named(piece)[1]
    if piece.startswith('\\{') and _closes(piece) == len(piece):
      found += _elements(piece[2:-2])
    elif re.search(r'\\(?:pm|mp)(?![a-zA-Z])', piece):
      for plus, minus in ('+-', '-+'):
        signed = re.sub(r'\\pm ?', plus, piece)
        signed = re.sub(r'\\mp ?', minus, signed)
        found += _elements(re.sub(r'(^|[=(,])\+', r'\1', signed))
    elif piece:
      found.append(_element(piece))
  names = {named(x)[0] for x in found if named(x)[0]}
  if len(names) == 1:  # 'x=1,x=2' says no more than '1,2'
    is_list = len(found) > 1
    found = [x if _needs_name(x, is_list) else named(x)[1] for x in found]
  return list(dict.fromkeys(found))


def _needs_name(form: str, is_list: bool) -> bool:
  """A name stays where the answer may be meant as an equation: y = 2x + 3."""
  value = named(form)[1]
  return not (is_list or is_number(value) or parts(value)[0] != ATOM)


def _element(text: str) -> str:
  while text.startswith('(') and _closes(text) == len(text) > 2:
    if len(_split(text[1:-1], ',')) > 1:
      break
    text = text[1:-1]
  pieces = _split(text, '\\cup')
  if len(pieces) > 1:
    return '\\cup'.join(sorted(_element(x) for x in pieces if x))
  inside = _bracketed(text)
  if inside is not None:
    cells = ','.join(_element(x) for x in _split(inside, ','))
    return text[0] + cells + text[-1]
  rows = _rows(text)
  if rows is not None:
    lines = ('&'.join(_element(x) for x in row) for row in rows)
    return '\\begin{pmatrix}' + '\\\\'.join(lines) + '\\end{pmatrix}'
  return _atom(text)


def _atom(text: str) -> str:
  if text.count('=') and not re.search(r'[<>]|\\[lg]e', text):
    first, _, last = text.rpartition('=')
    if '=' in first or not re.search(r'(?<![\\a-zA-Z])[a-zA-Z]', first):
      text = last  # a calculation: its result
  name, value = named(text)
  if name and value:
    return f'{name}={_element(value)}'
  text = re.sub(r'\\text ?\{([a-zA-Z])\}', r'\1', text)
  words = re.fullmatch(r'\\text ?\{\(?([^{}]*?)\)?\}', text)
  word = words[1] if words else text
  if len(word) == 1:
    return word
  if words or _WORD.fullmatch(word):
    return f'\\text{{{word.lower()}}}'
  based = _BASED.fullmatch(text)
  if based:
    return f'{based[1]}_{based[2]}'
  return _rational(text) or text


def _rational(text: str) -> str | None:
  match = _FRACTION.fullmatch(text)
  if match is None:
    is_plain = re.fullmatch(r'[-+]?[0-9.]+(?:/[0-9]+)?', text)
    return numbers.normalise_number(text) if is_plain else None
  sign, whole, inner, top, bottom = match.groups()
  if len(text) > numbers.MAX_DIGITS:
    return None
  if whole is not None:
    if inner or int(top) >= int(bottom):
      return None
    top = str(int(whole) * int(bottom) + int(top))
  sign = '-' if bool(sign) != bool(inner) else ''
  return numbers.normalise_number(f'{sign}{top}/{bottom}')


def _is_balanced(text: str) -> bool:
  depth = 0
  for token in _TOKEN.finditer(text):
    depth += (token[0] in _OPEN) - (token[0] in (*_CLOSE, '\\end'))
    if not 0 <= depth <= MAX_DEPTH:
      return False
  return depth == 0


def _split(text: str, separator: str) -> list[str]:
  """Splits at a token that stands outside all brackets."""
  found, depth, start = [], 0, 0
  for token in _TOKEN.finditer(text):
    depth += (token[0] in _OPEN) - (token[0] in (*_CLOSE, '\\end'))
    if depth == 0 and token[0] == separator:
      found.append(text[start : token.start()])
      start = token.end()
  return [*found, text[start:]]


def _closes(text: str) -> int:
  """Where the bracket at the start is closed, or -1."""
  depth = 0
  for token in _TOKEN.finditer(text):
    depth += (token[0] in _OPEN) - (token[0] in (*_CLOSE, '\\end'))
    if depth == 0:
      return token.end()
  return -1


def _bracketed(text: str) -> str | None:
  """What a tuple or an interval holds; None for anything else."""
  if text[:1] in ('(', '[') and text[-1] in ')]':
    inside = text[1:-1]
    if _closes(text) == len(text) and len(_split(inside, ',')) > 1:
      return inside
  return None


def _rows(text: str) -> list[list[str]] | None:
  match = re.fullmatch(r'\\begin\{pmatrix\}(.*)\\end\{pmatrix\}', text)
  if match is None or '\\begin' in match[1]:
    return None
  rows = [row.split('&') for row in match[1].split('\\\\')]
  return [row for row in rows if any(row)]
