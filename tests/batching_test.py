# SPDX-License-Identifier: Apache-2.0
"""Who shares a batch: each question once, alike in answers, then in prompts.

Axes as in the module: B rows, S prompt bucket, G new tokens.
"""

import chex
import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from thicket import batching, decode
from thicket.batching import RowSteps

PAD = 9  # no token of a prompt, so that padding can be told apart

QUESTIONS = st.lists(
  st.tuples(
    st.lists(st.integers(0, 2), min_size=1, max_size=40), st.integers(1, 70)
  ),
  max_size=12,
)


@hypothesis.given(QUESTIONS, st.integers(1, 4), st.booleans())
@hypothesis.settings(deadline=None)
def test_each_prompt_is_in_one_batch(questions, rows, is_known):
  suffixes = [suffix for suffix, _ in questions]
  answers = np.array([n for _, n in questions], int) if is_known else None
  row_ids = [10**12 * i + 5 for i in range(len(suffixes))]
  batches = batching.batches(suffixes, row_ids, rows, PAD, answers=answers)
  assert len(batches) == -(-len(suffixes) // rows)
  places = [i for batch in batches for i in batch.prompt[batch.live]]
  assert sorted(places) == list(range(len(suffixes)))
  if not is_known:
    lengths = [len(suffixes[i]) for i in places]
    assert lengths == sorted(lengths)  # so that little of a batch is padding
  sizes = [batch.tokens.shape[1] for batch in batches]
  assert sizes == sorted(sizes)
  for batch in batches:
    types = [*[np.int32] * 3, np.uint32, np.bool_]
    chex.assert_type(list(batch), types)
    size = decode.bucket(int(batch.length.max()))
    shapes = [(rows, size), (rows,), (rows,), (rows, 2), (rows,)]
    chex.assert_shape(list(batch), shapes)
    for row, i in enumerate(batch.prompt):
      n = len(suffixes[i])
      assert batch.length[row] == n
      assert batch.tokens[row].tolist() == [PAD] * (size - n) + suffixes[i]
      high, low = map(int, batch.row[row])
      assert (high << 32) + low == row_ids[i]
    assert batch.live[0]
    # Fillers come last and repeat a row, so that they never widen a batch.
    assert np.all(np.diff(batch.live.astype(int)) <= 0)
    assert set(batch.prompt[~batch.live]) <= {batch.prompt[0]}
  assert sum(not batch.live.all() for batch in batches) <= 1


@hypothesis.given(QUESTIONS.filter(len), st.integers(1, 4), st.randoms())
@hypothesis.settings(deadline=None)
def test_the_order_of_asking_is_no_matter(questions, rows, random):
  # A run that resumes lists what is missing in whatever order it finds.
  suffixes = [suffix for suffix, _ in questions]
  answers = np.array([n for _, n in questions])
  asked = np.array(random.sample(range(len(suffixes)), len(suffixes)))
  ids = range(len(suffixes))
  want = batching.batches(suffixes, ids, rows, PAD, answers=answers)
  got = batching.batches(suffixes, ids, rows, PAD, asked, answers[asked])
  for one, other in zip(got, want, strict=True):
    chex.assert_trees_all_equal(one, other)


def test_some_prompts_keep_their_numbers():
  suffixes = [[1], [2, 2], [3], [4, 4, 4], [5]]
  some = batching.batches(suffixes, [9, 8, 7, 6, 5], 2, PAD, [4, 1, 0])
  assert [x.prompt[x.live].tolist() for x in some] == [[0, 4], [1]]
  assert [x.row[x.live][:, 1].tolist() for x in some] == [[9, 5], [8]]


def _groups(*args):
  return [chosen.tolist() for chosen in batching.group(*args)]


def test_rows_of_alike_answers_share_a_batch():
  prompts = [5, 6, 7, 8]  # one bucket: answers alone decide
  assert _groups(prompts, 2) == [[0, 1], [2, 3]]
  assert _groups(prompts, 2, [30, 3, 31, 4]) == [[2, 0], [1, 3]]


def test_answers_alike_enough_leave_prompts_alone():
  # A step or two more are nothing beside 24 tokens of padding.
  prompts = [30, 8, 30, 8]
  assert _groups(prompts, 2, [9, 10, 10, 9]) == [[1, 3], [0, 2]]


def test_prompts_differ_in_length_where_answers_say_so():
  # 90 steps for two rows are worth 24 tokens of padding.
  prompts = [30, 8, 30, 8]
  assert _groups(prompts, 2, [10, 10, 100, 100]) == [[2, 3], [1, 0]]


def test_a_batch_across_two_classes_has_prompts_of_one_length():
  # Of three rows a class, two batches of two: the third of each share one.
  prompts = [8, 40, 100, 8, 40, 100]
  answers = [10, 10, 10, 200, 200, 200]
  groups = _groups(prompts, 2, answers)
  assert groups == [[3, 4], [5, 2], [1, 0]]


@hypothesis.given(QUESTIONS, st.integers(1, 4))
@hypothesis.settings(deadline=None)
def test_the_base_itself_is_never_predicted_to_lose(questions, rows):
  prompts = np.array([len(suffix) for suffix, _ in questions], int)
  answers = np.array([n for _, n in questions], int)

  def cost(groups):
    return sum(
      answers[x].max()
      + batching.PROMPT_TOKEN * decode.bucket(int(prompts[x].max()))
      for x in groups
    )

  after = cost(batching.group(prompts, rows, answers))
  assert after <= cost(batching.group(prompts, rows))


# What waiting costs.


def test_row_steps_are_counted_exactly():
  (batch,) = batching.batches([[1], [2], [3]], range(3), 4, PAD)
  # Two members on devices of their own; the last row fills the batch.
  answers = decode.Generated(
    tokens=np.zeros((2, 4, 8), np.int32),
    length=np.array([[3, 8, 1, 0], [2, 2, 2, 0]], np.int32),
    stopped=np.ones((2, 4), bool),
    steps=np.array([8, 2], np.int32),
  )
  found = batching.row_steps(batch, answers)
  assert found == RowSteps(
    total=32 + 8, finished=(24 - 12) + (6 - 6), filler=8 + 2
  )
  assert found.finished_share == pytest.approx(0.3)
  assert found.filler_share == pytest.approx(0.25)
  assert found + RowSteps(10, 1, 2) == RowSteps(50, 13, 12)


def test_nothing_made_has_no_share():
  assert RowSteps().finished_share is None
  assert RowSteps().filler_share is None
  assert batching.predicted([], np.zeros(0, int), 4) == RowSteps()


def test_what_is_predicted_is_what_the_same_answers_take():
  answers = np.array([30, 3, 31, 4, 5])
  before = batching.group([5, 6, 7, 8, 8], 2)
  assert batching.predicted(before, answers, 2) == RowSteps(
    total=60 + 62 + 10, finished=27 + 27, filler=5
  )
  after = batching.group([5, 6, 7, 8, 8], 2, answers)
  assert [x.tolist() for x in after] == [[2, 0], [4, 3], [1]]
  assert batching.predicted(after, answers, 2) == RowSteps(
    total=62 + 10 + 6, finished=1 + 1, filler=3
  )
