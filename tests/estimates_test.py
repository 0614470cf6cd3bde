# SPDX-License-Identifier: Apache-2.0
"""Estimates: what one number says of many rows."""

import numpy as np
import pytest

from thicket import estimates


def test_one_answer_for_all_is_worth_one_class():
  golds = ['1'] * 30 + ['2'] * 24 + ['6'] * 16 + ['3'] * 10
  always = np.array([gold == '1' for gold in golds], float)
  assert always.mean() == 0.375
  assert estimates.balanced_accuracy(always, golds) == 0.25
  assert estimates.balanced_accuracy(np.ones(80), golds) == 1
  mixed = np.array([1.0, 0.0, 1.0])
  assert estimates.balanced_accuracy(mixed, ['1', '1', '2']) == 0.75
  # A mean over members is no 0 or 1.
  mixed = np.array([0.5, 0.0, 1.0])
  assert estimates.balanced_accuracy(mixed, ['b', 'b', 'a']) == 0.625


@pytest.mark.parametrize(('count', 'golds'), [(0, []), (1, ['1', '2'])])
def test_balanced_accuracy_needs_rows(count, golds):
  with pytest.raises(ValueError, match=f'{count} answers to'):
    estimates.balanced_accuracy(np.ones(count), golds)
