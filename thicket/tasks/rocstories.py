# SPDX-License-Identifier: Apache-2.0
"""ROCStories: put the five sentences of a story back into their order.

98,159 five-sentence stories (Mostafazadeh et al., arXiv 1604.01696), handed
out by cs.rochester.edu/nlp/rocstories after a form is filled in, without a
licence to pass them on: none is here. They come as CSV with the columns
storyid, storytitle, sentence1 .. sentence5; `parse` reads the five sentences.
There is no split of its own. The code of Neural Thickets (arXiv 2603.12228)
tests on 9,817 of them, from a file that it does not name further.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from thicket.tasks import base

LABELS = 'ABCDE'
MARK = 'Order:'

_LINE_CHARS = 80  # of a strict answer; five letters need no more
_BETWEEN = str.maketrans('', '', ' \t,;.*"\'`()[]->\u2192')
_RUN = re.compile(
  r'(?<![A-Za-z0-9])[A-E](?:[\s,;.>\u2192)(-]{0,5}(?:and )?[A-E]){4}'
  r'(?![A-Za-z0-9])'
)
_LABEL = re.compile(r'^[*(]{0,2}([A-E])[.):]', re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class RocStories(base.Task):
  """Five sentences labelled A to E; the answer is their order, as 'BDAEC'.

  How a story is shuffled follows from its text alone, all 120 ways alike.

  The strict rule reads the rest of the line after the last 'Order:', which
  must hold the five letters, each once, and nothing else but spaces, commas,
  arrows and the like. The lenient rule falls back on the last such five
  letters in the text, and then on labels that begin lines.

  Accuracy is the exact order, 1 in 120 by chance. The reward, which gives
  selection something to climb, is 0.6 times the share of letters in their
  place, plus 0.4 times the share of neighbours that are neighbours, in that
  order, in the story.
  """

  # The paper's prompt is not known word by word; both are ours.
  prompt_templates: ClassVar[tuple[str, ...]] = (
    'These five sentences tell a story, but they are out of order.\n\n'
    '{question}\n\nPut them in order. Reply with one line of the form '
    '"Order: <five letters>".',
    '{question}\n\nIn which order do these sentences make a story? Answer '
    '"Order: " and then the five letters, first to last.',
  )

  prompt_template: str = prompt_templates[0]
  max_new_tokens: int = 64

  name: ClassVar[str] = 'rocstories'

  def __post_init__(self):
    base.check_settings(self)

  def parse(self, row: Mapping[str, Any], row_id: int) -> base.Example:
    """Reads the fields `sentence1` .. `sentence5`, in the story's order.

    Raises:
      TaskError: one is missing, no text or empty.
    """
    story = []
    for field in (f'sentence{i}' for i in range(1, 6)):
      text = row.get(field)
      if not isinstance(text, str) or not text.strip():
        raise base.TaskError(
          f'field {field!r} is {text!r}, not a sentence; '
          f'the row has {sorted(map(str, row))}'
        )
      story.append(' '.join(text.split()))
    places = _shuffled('\n'.join(story))  # of the sentences behind A, B, ...
    gold = ''.join(LABELS[places.index(i)] for i in range(5))
    # Where a sentence occurs twice, no order tells its labels apart.
    twins = [
      ''.join(LABELS[j] for j in range(5) if story[places[j]] == text)
      for text in sorted(set(story))
      if story.count(text) > 1
    ]
    question = '\n'.join(
      f'{label}. {story[place]}'
      for label, place in zip(LABELS, places, strict=True)
    )
    meta = {'twins': twins} if twins else {}
    example = base.Example(row_id, question, gold, meta)
    return dataclasses.replace(example, gold=_settled(gold, example))

  def extract(self, response: str) -> str | None:
    """The normalised answer by the strict rule; None abstains."""
    _, mark, rest = response.rpartition(MARK)
    line = rest.split('\n', 1)[0]
    return _order(line) if mark and len(line) <= _LINE_CHARS else None

  def extract_lenient(self, response: str) -> str | None:
    """The strict answer, or else the last five letters, or labels of lines."""
    found = self.extract(response)
    if found is None:
      for match in _RUN.finditer(response):
        found = _order(match[0].replace('and ', '')) or found
    return found or _order(''.join(_LABEL.findall(response)))

  def reward(self, answer: str | None, example: base.Example) -> float:
    """0.6 * letters in place / 5 + 0.4 * neighbours kept / 4."""
    if answer is None:
      return 0.0
    answer, gold = _settled(answer, example), example.gold
    in_place = sum(a == b for a, b in zip(answer, gold, strict=True))
    kept = sum(answer[i : i + 2] in gold for i in range(4))
    return 0.6 * (in_place / 5) + 0.4 * (kept / 4)

  def is_correct(self, answer: str | None, example: base.Example) -> bool:
    """Whether the order is exact."""
    return answer is not None and _settled(answer, example) == example.gold

  def group(self, answers: Sequence[str], example: base.Example) -> list[int]:
    """Classes of equal orders, wherever one sentence occurs twice."""
    return super().group([_settled(a, example) for a in answers], example)

  def released(self, response: str, example: base.Example) -> float:
    """Accuracy, 0 or 1, by the rule of the code released with the paper.

    There, what is read leniently counts as right if it earns any partial
    credit at all: of the 120 orders, 106 do.
    """
    return float(self.reward(self.extract_lenient(response), example) > 0)


def _shuffled(story: str) -> list[int]:
  draw = lambda i: hashlib.blake2b(
    story.encode(), digest_size=8, person=b'shuffle', salt=b'%d' % i
  ).digest()
  return sorted(range(5), key=draw)


def _order(text: str) -> str | None:
  letters = text.translate(_BETWEEN)
  is_order = len(letters) == 5 and set(letters) == set(LABELS)
  return letters if is_order else None


def _settled(answer: str, example: base.Example) -> str:
  """The answer with the labels of equal sentences in alphabetical order."""
  for twins in example.meta.get('twins', ()):
    rest = iter(twins)
    answer = ''.join(next(rest) if c in twins else c for c in answer)
  return answer
