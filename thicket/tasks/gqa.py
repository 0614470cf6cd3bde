# SPDX-License-Identifier: Apache-2.0
r"""GQA: short answers to questions on images (Hudson, Manning; 1902.09506).

Questions and scoring only: no image is part of a prompt yet, and without one
a model can but guess (15-22% against 59% with it, of Qwen2.5-VL-3B in a
re-examination; the code released with Neural Thickets, arXiv 2603.12228,
passes none). 943,000 balanced questions to train on, 132,062 to validate,
12,578 in testdev on 398 images, the last being what the paper seems to use.
From cs.stanford.edu/people/dorarad/gqa, which states its terms; the images are
those of Visual Genome (CC BY 4.0). `parse` reads `question` and `answer`, and
`imageId` where it is given: the fields of a value of the published
testdev_balanced_questions.json, and of its parquet copies.

Many questions ask the same of several images. Until images are read, rows are
known by their question alone, and only the first of such rows is kept.

Answers are compared as normalised words: 'The couches.' and 'sofa' are one.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any, ClassVar

from thicket.tasks import base

MAX_WORDS = 5  # of an answer without articles
MAX_LINE_WORDS = 3  # of an answer without a box; more is a sentence
MAX_CHARS = 100  # of an answer
_LINE_CHARS = 1_000  # of the first line, as far as it is read
_TAIL = 2_000  # characters at the end in which a claim is looked for

_BOX = r'\boxed{'
_TEXT = re.compile(r'\\(?:text|textbf|mathrm)\{([^{}]*)\}')
_CLAIM = re.compile(r'\b(?:answer is|answer:)[ \t]*([^\n.;]{1,100})', re.I)
_WORD = re.compile(r'[^\W_]+')
_OWNER = re.compile(r"['\u2019]s\b")
_ARTICLES = frozenset(('a', 'an', 'the'))

# Words of this form that are no plurals, or are their own.
_NO_PLURALS = frozenset(
  (
    'glasses',
    'sunglasses',
    'eyeglasses',
    'pants',
    'shorts',
    'jeans',
    'scissors',
    'tongs',
    'binoculars',
    'clothes',
    'always',
    'gas',
    'canvas',
    'christmas',
    'series',
    'species',
    'lens',
  )
)
_SINGULARS = {
  'men': 'man',
  'women': 'woman',
  'people': 'person',
  'children': 'child',
  'feet': 'foot',
  'teeth': 'tooth',
  'mice': 'mouse',
  'geese': 'goose',
  'leaves': 'leaf',
  'shelves': 'shelf',
  'knives': 'knife',
  'loaves': 'loaf',
  'wolves': 'wolf',
  'calves': 'calf',
  'scarves': 'scarf',
  'shoes': 'shoe',
  'toes': 'toe',
  'canoes': 'canoe',
  'cookies': 'cookie',
  'brownies': 'brownie',
  'movies': 'movie',
  'ties': 'tie',
  'pies': 'pie',
  'buses': 'bus',
}
# Of normalised answers, whole; one way to say each thing that GQA asks for.
_SYNONYMS = {
  'yeah': 'yes',
  'yep': 'yes',
  'true': 'yes',
  'nope': 'no',
  'false': 'no',
  'grey': 'gray',
  'couch': 'sofa',
  'television': 'tv',
  'tv set': 'tv',
  'fridge': 'refrigerator',
  'bike': 'bicycle',
  'motorbike': 'motorcycle',
  'plane': 'airplane',
  'aeroplane': 'airplane',
  'automobile': 'car',
  'cellphone': 'cell phone',
  'mobile phone': 'cell phone',
  'kid': 'child',
  'lady': 'woman',
  'guy': 'man',
  'left side': 'left',
  'on left': 'left',
  'right side': 'right',
  'on right': 'right',
}


@dataclasses.dataclass(frozen=True)
class Gqa(base.Task):
  r"""Questions that one or two words answer; see the module for images.

  The strict rule reads the last \boxed{...} of up to five words, or, where
  there is no box, the first line that is not empty, of up to three. The lenient
  rule falls back on what follows the last 'answer is' or 'answer:', and then on
  a first line that begins with yes or no.

  No rule looks for the right answer in the text, as the released one does
  (`released`): an answer has to be read without knowing it, or else the votes
  of members would be cast with the gold answer in view.
  """

  # The first asks for what the paper's prompt asks for, in our words.
  prompt_templates: ClassVar[tuple[str, ...]] = (
    'Look at the image and answer the question.\n\n{question}\n\nReason step '
    'by step, then put a short answer, one or two words, in \\boxed{}.',
    '{question}\nAnswer with one or two words and nothing else.',
  )

  prompt_template: str = prompt_templates[0]
  max_new_tokens: int = 256

  name: ClassVar[str] = 'gqa'
  stand_ins: ClassVar[Mapping[str, Any]] = {'answer': 'yes'}

  def __post_init__(self):
    base.check_settings(self)

  def parse(self, row: Mapping[str, Any], row_id: int) -> base.Example:
    """Reads the fields `question` and `answer`, and `imageId` if there is one.

    Raises:
      TaskError: a field is missing or no text, or the answer has no words or
        too many.
    """
    question, answer = base.texts(row, ('question', 'answer'))
    gold = normalise(answer)
    if gold is None:
      raise base.TaskError(
        f'answer {answer[:40]!r} must have 1 to {MAX_WORDS} words'
      )
    meta = {'image': str(row['imageId'])} if 'imageId' in row else {}
    return base.Example(row_id, question, gold, meta)

  def identity(self, example: base.Example) -> str:
    """The question and its image: one question is asked of several."""
    asked = super().identity(example)
    return '\n'.join([asked, *filter(None, [example.meta.get('image')])])

  def extract(self, response: str) -> str | None:
    """The normalised answer by the strict rule; None abstains."""
    boxed = _boxed(response)
    if boxed is not None:
      return normalise(boxed)
    line = _first_line(response)
    is_sentence = _CLAIM.search(line) or line.count(' ') >= MAX_LINE_WORDS
    return None if is_sentence else normalise(line)

  def extract_lenient(self, response: str) -> str | None:
    """The strict answer, or else a claim in words, or a leading yes or no."""
    strict = self.extract(response)
    if strict is not None:
      return strict
    claims = _CLAIM.findall(response[-_TAIL:])
    claimed = normalise(claims[-1]) if claims else None
    if claimed is not None:
      return claimed
    word = _WORD.search(_first_line(response))
    leading = normalise(word[0]) if word else None
    return leading if leading in ('yes', 'no') else None

  def released(self, response: str, example: base.Example) -> float:
    """Accuracy, 0 or 1, by the rule of the code released with the paper.

    As it is described: right if the gold answer is contained in the answer
    that was read, be it inside another word, or is among the words of the
    first line. So 'no' is found in 'snow', and 'yes or no' is always right.
    """
    gold = example.gold
    found = _boxed(response)
    said = _plain(self.extract_lenient(response) if found is None else found)
    line = _plain(_first_line(response))
    return float(gold in said or f' {gold} ' in f' {line} ')


def normalise(text: str) -> str | None:
  """Lower-case words without articles and punctuation, singular, one synonym.

  None for a text of no words, of more than five, or of over 100 characters. A
  normalised answer is its own normal form.
  """
  if len(text) > MAX_CHARS:
    return None
  words = _words(text)
  if not 1 <= len(words) <= MAX_WORDS:
    return None
  answer = ' '.join(words)
  return _SYNONYMS.get(answer, answer)


def _plain(text: str | None) -> str:
  return ' '.join(_SYNONYMS.get(word, word) for word in _words(text))


def _words(text: str | None) -> list[str]:
  found = _WORD.findall(_OWNER.sub('', (text or '').lower()))
  return [_singular(word) for word in found if word not in _ARTICLES]


@functools.lru_cache(maxsize=4096)
def _singular(word: str) -> str:
  if word in _SINGULARS:
    return _SINGULARS[word]
  is_plural = word.endswith('s') and len(word) > 3
  if not is_plural or word in _NO_PLURALS or word.endswith(('ss', 'us', 'is')):
    return word
  if word.endswith('ies') and len(word) > 4:
    return word[:-3] + 'y'
  if word.endswith(('sses', 'ches', 'shes', 'xes', 'oes')):
    return word[:-2]
  return word[:-1]


def _boxed(response: str) -> str | None:
  r"""What is in the last \boxed{...}; '' for one that is not closed."""
  start = response.rfind(_BOX)
  if start < 0:
    return None
  start += len(_BOX)
  inside = _TEXT.sub(r'\1', response[start : start + 2 * MAX_CHARS])
  return inside.partition('}')[0] if '}' in inside else ''


def _first_line(response: str) -> str:
  return response[:_LINE_CHARS].strip().split('\n', 1)[0]
