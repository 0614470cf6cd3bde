# SPDX-License-Identifier: Apache-2.0
"""One process speaks to itself; several are in multiprocess_test.py."""

import numpy as np

from thicket import processes


def test_one_process_is_the_first_and_gets_its_own_back():
  assert (processes.count(), processes.index()) == (1, 0)
  assert processes.is_first()
  assert processes.share(b'data') == [b'data']
  arrays = {'a': np.arange(3)}
  (found,) = processes.share_arrays(arrays)
  assert found.keys() == arrays.keys()
  assert found['a'] is arrays['a']


def test_one_process_waits_for_nobody_and_stays():
  processes.meet()
  assert processes.least(3) == 3
  assert processes.least(None) is None
  processes.agree('colour', 'blue')
  processes.outlast(RuntimeError())
  processes.leave(3, 'the end')
  processes.finish()
