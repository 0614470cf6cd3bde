# SPDX-License-Identifier: Apache-2.0
"""Panels: equal to a Counter over voters in rank order, for every input.

Axes as in the module: K voters, r questions; m members, d draws of a block.
"""

import collections
import dataclasses

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from thicket import panel
from thicket.blocks import Block
from thicket.tasks import base


class Caseless(base.Task):
  """Answers that differ in case alone vote together."""

  def group(self, answers, example):
    assert example.question == f'question {example.row_id}'
    return super().group([answer.lower() for answer in answers], example)


def _examples(block):
  """The block's questions, in another order and among others."""
  ids = [*block.rows.tolist()[::-1], 10**6]
  return [base.Example(i, f'question {i}', '') for i in ids]


WORDS = ('A', 'B', 'a', 'b', 'c')
CLASS = {'A': 0, 'a': 0, 'B': 1, 'b': 1, 'c': 2, None: -1}

# Few words, so that ties and repeats are the rule; few shapes, few compiles.
SHAPES = st.sampled_from([(1, 3, 1), (2, 5, 1), (7, 4, 2)])


@st.composite
def blocks(draw, shapes=SHAPES):
  """A block whose judgements have nothing to do with its answers."""
  shape = draw(shapes)
  column = lambda elements, dtype: draw(
    hnp.arrays(dtype, shape, elements=elements)
  )
  m, r, d = shape
  answer = column(st.integers(-1, len(WORDS) - 1), np.int32)
  return Block(
    members=np.arange(m, dtype=np.int32) * 3 + 2,
    rows=np.arange(r),
    draws=np.arange(d, dtype=np.int32),
    seen=np.ones(shape, bool),
    reward=np.zeros(shape, np.float32),
    lenient=np.zeros(shape, np.float32),
    correct=column(st.booleans(), bool),
    lenient_correct=column(st.booleans(), bool),
    released=column(st.floats(0, 1, width=32), np.float32),
    answer=answer,
    lenient_answer=column(st.integers(-1, len(WORDS) - 1), np.int32),
    num_tokens=np.arange(answer.size, dtype=np.int32).reshape(shape),
    truncated=np.zeros(shape, bool),
    answers=WORDS,
    texts=tuple(f'text {i}' for i in range(answer.size)),
  )


def _elected(classes):
  """(class, votes, first voter for it) of one question; -1 where none voted."""
  cast = collections.Counter(c for c in classes if c >= 0)  # in rank order
  if not cast:
    return -1, 0, -1
  ((won, count),) = cast.most_common(1)
  return won, count, classes.index(won)


@hypothesis.given(blocks(), st.randoms(use_true_random=False))
@hypothesis.settings(deadline=None)
def test_votes_are_the_counters_most_common(block, random):
  ranked = block.members.tolist()
  random.shuffle(ranked)
  voters = panel.of_members(Caseless(), _examples(block), block, ranked)
  sizes = list(range(1, len(ranked) + 1))
  random.shuffle(sizes)
  outcomes = voters.votes(sizes)
  assert [vote.k for vote in outcomes] == sizes
  at = [block.members.tolist().index(i) for i in ranked]
  for vote in outcomes:
    abstained = 0
    for row in range(len(block.rows)):
      said = [block.answer[i, row, 0] for i in at[: vote.k]]
      classes = [CLASS[(*WORDS, None)[i]] for i in said]
      won, count, speaker = _elected(classes)
      assert vote.speaker[row] == speaker
      assert vote.count[row] == count
      assert vote.correct[row] == (
        won >= 0 and block.correct[at[speaker], row, 0]
      )
      abstained += classes.count(-1)
      said = [block.lenient_answer[i, row, 0] for i in at[: vote.k]]
      won, _, speaker = _elected([CLASS[(*WORDS, None)[i]] for i in said])
      assert vote.lenient_correct[row] == (
        won >= 0 and block.lenient_correct[at[speaker], row, 0]
      )
    assert vote.abstention_rate == abstained / (vote.k * len(block.rows))


class Strict(Caseless):
  """Questions show that 'c' is no answer."""

  def group(self, answers, example):
    ids = super().group([a for a in answers if a != 'c'], example)[::-1]
    return [-1 if answer == 'c' else ids.pop() for answer in answers]


@hypothesis.given(blocks())
@hypothesis.settings(deadline=None)
def test_an_answer_without_a_class_abstains(block):
  gone = lambda column: np.where(column == WORDS.index('c'), -1, column)
  without = dataclasses.replace(
    block,
    answer=gone(block.answer),
    lenient_answer=gone(block.lenient_answer),
  )
  strict = panel.of_members(Strict(), _examples(block), block, block.members)
  other = panel.of_members(Caseless(), _examples(block), without, block.members)
  sizes = range(1, len(block.members) + 1)
  for vote, same in zip(strict.votes(sizes), other.votes(sizes), strict=True):
    for field in dataclasses.fields(vote):
      np.testing.assert_array_equal(
        getattr(vote, field.name), getattr(same, field.name)
      )


@hypothesis.given(blocks(st.just((7, 4, 2))))
@hypothesis.settings(deadline=None)
def test_a_vote_of_few_is_the_vote_of_a_panel_of_few(block):
  ranked = block.members[::-1]
  whole = panel.of_members(Caseless(), _examples(block), block, ranked)
  for k in (1, 3, 7):
    few = panel.of_members(Caseless(), _examples(block), block, ranked[:k])
    (one,), (two,) = whole.votes([k]), few.votes([k])
    for field in ('speaker', 'count', 'correct', 'lenient_correct'):
      np.testing.assert_array_equal(getattr(one, field), getattr(two, field))
    assert one.abstention_rate == two.abstention_rate
  # The vote of one is what that one said.
  (vote,) = whole.votes([1])
  is_cast = whole.classes[0] >= 0
  np.testing.assert_array_equal(vote.correct, whole.correct[0] & is_cast)
  np.testing.assert_array_equal(vote.count, is_cast)


def _panel(classes, correct=None, lenient_classes=None, lenient_correct=None):
  classes = np.array(classes, np.int32)
  right = lambda given: (
    np.zeros(classes.shape, bool) if given is None else np.array(given, bool)
  )
  lenient = classes if lenient_classes is None else lenient_classes
  return panel.Panel(
    classes=classes,
    lenient_classes=np.array(lenient, np.int32),
    correct=right(correct),
    lenient_correct=right(lenient_correct),
    released=np.zeros(classes.shape, np.float32),
    num_tokens=np.zeros(classes.shape, np.int32),
    texts=[[''] * classes.shape[1]] * len(classes),
    answers=[[None] * classes.shape[1]] * len(classes),
  )


def test_votes_by_hand():
  voters = _panel(
    [
      # tie, tie with a later one, an abstention first, all silent, unanimous
      [4, 1, -1, -1, 0],
      [2, 2, 3, -1, 0],
      [2, 2, 5, -1, 0],
      [4, 1, 5, -1, 0],
    ],
    correct=[
      [1, 0, 1, 1, 0],
      [0, 1, 0, 1, 1],
      [0, 1, 1, 1, 1],
      [0, 0, 1, 1, 1],
    ],
  )
  one, two, three, four = voters.votes([1, 2, 3, 4])
  assert four.speaker.tolist() == [0, 0, 2, -1, 0]
  assert four.count.tolist() == [2, 2, 2, 0, 4]
  # The speaker's judgement, not that of others who say the same.
  assert four.correct.tolist() == [True, False, True, False, False]
  assert four.abstention_rate == 5 / 20
  assert three.speaker.tolist() == [1, 1, 1, -1, 0]
  assert three.correct.tolist() == [False, True, False, False, False]
  assert two.speaker.tolist() == [0, 0, 1, -1, 0]
  assert two.count.tolist() == [1, 1, 1, 0, 2]
  assert one.speaker.tolist() == [0, 0, -1, -1, 0]
  assert one.count.tolist() == [1, 1, 0, 0, 1]
  assert one.abstention_rate == 2 / 5


def test_the_lenient_vote_is_another_vote():
  (vote,) = _panel(
    [[0, -1], [1, -1], [1, -1]],
    correct=[[1, 0], [0, 0], [0, 0]],
    lenient_classes=[[0, 2], [0, 1], [1, 1]],
    lenient_correct=[[1, 0], [0, 1], [0, 1]],
  ).votes([3])
  assert vote.speaker.tolist() == [1, -1]
  assert vote.correct.tolist() == [False, False]
  assert vote.lenient_correct.tolist() == [True, True]
  assert vote.count.tolist() == [2, 0]


def test_speakers_are_first_among_those_who_agree():
  classes = np.array([[3, -1], [1, 0], [1, -1], [3, 0], [3, 7]])
  got = panel.speakers(classes, [5, 3, 1])
  np.testing.assert_array_equal(got, [[0, 1], [1, 1], [0, -1]])
  assert panel.speakers(classes, []).shape == (0, 2)


@pytest.mark.parametrize('k', [0, 4])
def test_a_vote_of_more_than_there_are_is_refused(k):
  with pytest.raises(ValueError, match=f'k={k} of 3 members'):
    _panel([[0], [1], [2]]).votes([1, k])


# From blocks.


@pytest.fixture
def block():
  """Members 2, 5 and 9, rows 10 and 20, draws 0 and 1."""
  answer = np.array(
    [[[0, 2], [1, -1]], [[2, 2], [-1, 4]], [[3, 0], [4, 1]]], np.int32
  )
  shape = answer.shape
  return Block(
    members=np.array([2, 5, 9], np.int32),
    rows=np.array([10, 20]),
    draws=np.array([0, 1], np.int32),
    seen=np.ones(shape, bool),
    reward=np.zeros(shape, np.float32),
    lenient=np.zeros(shape, np.float32),
    correct=answer == 2,
    lenient_correct=answer >= 2,
    released=(answer / 4).astype(np.float32),
    answer=answer,
    lenient_answer=np.where(answer < 0, 1, answer),
    num_tokens=np.arange(12, dtype=np.int32).reshape(shape),
    truncated=np.zeros(shape, bool),
    answers=WORDS,
    texts=tuple('abcdefghijkl'),
  )


def test_members_come_in_rank_order_with_their_first_draws(block):
  got = panel.of_members(Caseless(), _examples(block), block, [9, 2])
  assert got.answers == [['b', 'c'], ['A', 'B']]
  np.testing.assert_array_equal(got.classes, [[0, 0], [1, 1]])
  np.testing.assert_array_equal(got.correct, [[0, 0], [0, 0]])
  np.testing.assert_array_equal(got.lenient_correct, [[1, 1], [0, 0]])
  np.testing.assert_array_equal(got.released, [[0.75, 1], [0, 0.25]])
  np.testing.assert_array_equal(got.num_tokens, [[8, 10], [0, 2]])
  assert got.texts == [['i', 'k'], ['a', 'c']]
  other = panel.of_members(Caseless(), _examples(block), block, np.array([5]))
  assert other.answers == [['a', None]]
  np.testing.assert_array_equal(other.classes, [[0, -1]])
  np.testing.assert_array_equal(other.lenient_classes, [[0, 0]])
  np.testing.assert_array_equal(other.correct, [[1, 0]])


def test_draws_are_voters_in_their_order(block):
  one = Block(
    **{
      name: value[1:2] if isinstance(value, np.ndarray) else value
      for name, value in vars(block).items()
    }
    | {'rows': block.rows, 'draws': block.draws, 'texts': tuple('efgh')}
  )
  got = panel.of_draws(Caseless(), _examples(one), one)
  assert got.answers == [['a', None], ['a', 'c']]
  np.testing.assert_array_equal(got.classes, [[0, -1], [0, 0]])
  np.testing.assert_array_equal(got.num_tokens, [[4, 6], [5, 7]])
  assert got.texts == [['e', 'g'], ['f', 'h']]


def test_strict_and_lenient_answers_share_their_classes(block):
  got = panel.of_members(Caseless(), _examples(block), block, [2, 5, 9])
  np.testing.assert_array_equal(got.classes, [[0, 0], [0, -1], [1, 1]])
  np.testing.assert_array_equal(got.lenient_classes, [[0, 0], [0, 0], [1, 1]])


def test_equal_strings_are_one_class_by_default(block):
  class Plain(base.Task):
    pass

  got = panel.of_members(Plain(), _examples(block), block, [2, 5, 9])
  np.testing.assert_array_equal(got.classes, [[0, 0], [1, -1], [2, 1]])


def test_texts_may_be_missing_and_nobody_may_have_answered(block):
  silent = Block(
    **vars(block)
    | {
      'answer': np.full_like(block.answer, -1),
      'lenient_answer': np.full_like(block.answer, -1),
      'answers': (),
      'texts': None,
    }
  )
  got = panel.of_members(Caseless(), _examples(silent), silent, [5, 2])
  assert got.texts == [['', ''], ['', '']]
  assert got.answers == [[None, None], [None, None]]
  (vote,) = got.votes([2])
  assert vote.speaker.tolist() == [-1, -1]
  assert vote.abstention_rate == 1
  # Though the block has answers marked as right: no answer, no point.
  assert not vote.correct.any()
  assert not vote.lenient_correct.any()
