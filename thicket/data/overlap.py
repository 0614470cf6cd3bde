# SPDX-License-Identifier: Apache-2.0
"""Rows of one split that nearly repeat a row of another.

Rows of equal questions are never in two splits. These are looked for besides,
and reported: the same words with other punctuation, case or spelling of
numbers, and questions nearly all of whose words stand in runs that an earlier
split has, as contamination was measured for GPT-3 (arXiv 2005.14165, appendix
C). One changed number leaves most of a long question covered: rows made from
one template count, and whether that is contamination is for the reader to say.
No test question of GSM8K is found among its training questions, nor any of
MATH-500 or HumanEval in another half of it.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

from thicket.data.rows import named
from thicket.tasks import base, numbers

RUN_WORDS = 8
LEAST_SHARE = 0.8  # of a question's words, in runs

# What a reader would not miss is left out: the punctuation of prose, and
# hyphens. Operators, brackets and signs stay: '7 - 3' is not '7 + 3'.
_WORD = re.compile(
  r'\d+(?:,\d{3})*(?:\.\d+)?'  # 1,000.50
  r'|[\u3040-\u30ff\u3400-\u9fff]'  # written without spaces
  r'|[^\W\d_]+'
  r'|(?<![^\W\d_])-|-(?![^\W\d_])'
  r"""|[^\s\w.,;:!?'"\u2018-\u201f\u2026\u2013\u2014\u00ab\u00bb-]"""
)


@dataclasses.dataclass(frozen=True)
class Near:
  """A row that nearly repeats earlier splits, and the row that has most of it.

  Attributes:
    split, row_id: of the row.
    other_split, other_row_id: of the earlier one.
    share: of the row's words that stand in runs of earlier splits; 1 for the
      same words throughout.
  """

  split: str
  row_id: int
  other_split: str
  other_row_id: int
  share: float


def near_duplicates(splits: base.Splits) -> list[Near]:
  """One pair for each row that nearly repeats one of an earlier split.

  Splits are compared in their order: validation with selection, test with both.
  Takes time and memory in proportion to the text.
  """
  return list(_near_duplicates(splits))


@functools.lru_cache(maxsize=1)  # for the warning, then for the summary
def _near_duplicates(splits: base.Splits) -> tuple[Near, ...]:
  found: list[Near] = []
  texts: dict[tuple[str, ...], tuple[str, int]] = {}
  runs: dict[int, tuple[str, int]] = {}
  for split, rows in named(splits):
    words = [tuple(_words(row.question)) for row in rows]
    for row, said in zip(rows, words, strict=True):
      other, share = texts.get(said), 1.0
      if other is None:
        other, share = _shared(said, runs)
      if other is not None and share >= LEAST_SHARE:
        found.append(Near(split, row.row_id, *other, share))
    for row, said in zip(rows, words, strict=True):
      place = split, row.row_id
      if said:
        texts.setdefault(said, place)
      for run in _runs(said):
        runs.setdefault(run, place)
  return tuple(found)


def said(near: Sequence[Near], shown: int = 3) -> str:
  """How many near duplicates there are, and some of them, in a line."""
  examples = '; '.join(
    f'{x.split} {x.row_id} as {x.other_split} {x.other_row_id} '
    f'({100 * x.share:.0f}%)'
    for x in near[:shown]
  )
  more = '; ...' if len(near) > shown else ''
  return (
    f'{len(near)} rows nearly repeat one of another split: {examples}{more}'
  )


def summary(splits: base.Splits, shown: int = 10) -> dict[str, Any]:
  """How many near duplicates there are, of how many rows, and some of them."""
  near = near_duplicates(splits)
  return {
    'count': len(near),
    'rows': len(splits.validation) + len(splits.test),
    'examples': [dataclasses.asdict(x) for x in near[:shown]],
  }


def _words(question: str) -> Iterator[str]:
  text = unicodedata.normalize('NFKC', question).casefold()
  for word in _WORD.findall(text):
    yield numbers.normalise_number(word) or word if word[0].isdigit() else word


def _runs(words: tuple[str, ...]) -> Iterator[int]:
  """A hash of each run of words, in their order."""
  for i in range(len(words) - RUN_WORDS + 1):
    yield hash(words[i : i + RUN_WORDS])


def _shared(
  words: tuple[str, ...], runs: dict[int, tuple[str, int]]
) -> tuple[tuple[str, int] | None, float]:
  """The share of words that stand in known runs, and the row with most."""
  covered, end = 0, 0
  most: collections.Counter[tuple[str, int]] = collections.Counter()
  for i, run in enumerate(_runs(words)):
    if place := runs.get(run):
      # Words that an earlier run has counted are not counted again.
      new = i + RUN_WORDS - max(i, end)
      end = i + RUN_WORDS
      covered += new
      most[place] += new
  if not covered:
    return None, 0.0
  ((place, _),) = most.most_common(1)
  return place, covered / len(words)
