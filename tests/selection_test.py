# SPDX-License-Identifier: Apache-2.0
"""Selection: equal to Python's sort for every input, NaN last."""

import math

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from thicket import selection

TINY = float(np.finfo(np.float32).smallest_subnormal)

# Equal scores are the rule with few questions; the rest is what breaks sorts.
SCORES = st.sampled_from([1, 2, 5, 12]).flatmap(
  lambda size: hnp.arrays(
    np.float32,
    size,
    elements=st.sampled_from(
      [
        0.0,
        -0.0,
        0.25,
        0.5,
        1.0,
        -1.0,
        math.nan,
        math.inf,
        -math.inf,
        TINY,
        -TINY,
      ]
    )
    | st.floats(width=32),
  )
)


def _by_hand(scores):
  def place(i):
    is_nan = math.isnan(scores[i])
    return is_nan, 0.0 if is_nan else -scores[i], i

  return sorted(range(len(scores)), key=place)


@hypothesis.given(SCORES)
@hypothesis.settings(deadline=None)
def test_top_k_is_pythons_sort(scores):
  got = selection.top_k(scores, len(scores))
  assert got.dtype == np.int32
  assert got.tolist() == _by_hand(scores.tolist())


@pytest.mark.parametrize('k', [1, 2, 50, 199, 200])
def test_a_smaller_k_is_the_front_of_a_larger_one(k):
  scores = np.random.default_rng(0).integers(0, 9, 200) / np.float32(8)
  got = selection.top_k(scores.astype(np.float32), k)
  assert got.tolist() == _by_hand(scores.tolist())[:k]


def test_exact_order_of_the_odd_values():
  nan, inf = math.nan, math.inf
  scores = np.array([nan, -inf, 0.0, -0.0, inf, -nan, 0.0], np.float32)
  assert selection.top_k(scores, 7).tolist() == [4, 2, 3, 6, 1, 0, 5]


@pytest.mark.parametrize('k', [0, -1, 4])
def test_k_outside_the_population_is_refused(k):
  with pytest.raises(ValueError, match=f'k={k} of 3 members'):
    selection.top_k(np.zeros(3, np.float32), k)


def test_scores_must_be_floats_of_one_axis():
  with pytest.raises(ValueError, match='int32'):
    selection.top_k(np.zeros(3, np.int32), 1)
  with pytest.raises(ValueError, match=r'\(3, 1\)'):
    selection.top_k(np.zeros((3, 1), np.float32), 1)
