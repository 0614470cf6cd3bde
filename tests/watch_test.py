# SPDX-License-Identifier: Apache-2.0
"""When work is pending: unions of intervals, and a thread that ends."""

import threading
import time
import weakref

import hypothesis
import jax.numpy as jnp
import pytest
from hypothesis import strategies as st

from thicket.watch import Watch, covered


@pytest.mark.parametrize(
  ('intervals', 'want'),
  [
    ([], 0),
    ([(1, 3)], 2),
    ([(1, 3), (5, 6)], 3),
    ([(5, 6), (1, 3)], 3),
    ([(1, 3), (2, 6)], 5),  # dispatched before the last was ready
    ([(1, 9), (2, 3)], 8),
    ([(1, 3), (3, 4)], 3),
    ([(4, 3)], 0),  # compiled for longer than it was pending
  ],
)
def test_the_length_of_a_union(intervals, want):
  assert covered(intervals) == want


@hypothesis.given(
  st.lists(
    st.tuples(st.integers(0, 30), st.integers(0, 30)).map(
      lambda ends: tuple(sorted(ends))
    )
  )
)
def test_a_union_is_what_a_count_of_seconds_finds(intervals):
  seconds = {second for low, high in intervals for second in range(low, high)}
  assert covered(intervals) == len(seconds)


def test_nothing_dispatched_is_nothing_pending():
  with Watch() as watch:
    pass
  assert watch.pending_s == 0


def test_the_thread_ends_with_the_work():
  before = threading.active_count()
  with Watch() as watch:
    assert threading.active_count() == before + 1
    for _ in range(3):
      watch.dispatched({'a': jnp.ones(3), 'b': [jnp.zeros(2)]})
      watch.turn()
  assert threading.active_count() == before
  assert watch.pending_s > 0


def test_an_interruption_is_not_held_up_and_ends_the_thread():
  watch = Watch()

  def work():
    with watch:
      watch.dispatched(jnp.ones(3))
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    work()
  watch._thread.join()  # by itself
  assert watch.pending_s == 0


def test_results_are_let_go_though_no_others_come():
  with Watch() as watch:
    first = jnp.ones(1000)
    seen = weakref.ref(first)
    watch.dispatched(first)
    del first
    for _ in range(1000):  # until the thread has been there
      if seen() is None:
        break
      time.sleep(0.01)
    assert seen() is None


def test_what_fails_on_the_device_is_for_the_reader_of_the_results():
  gone = jnp.ones(3)
  gone.delete()
  with Watch() as watch:
    watch.dispatched(gone)
    for _ in range(2):  # once memory ran out, work goes on in smaller chunks
      watch.dispatched(jnp.ones(3))
  assert not watch._thread.is_alive()
  assert len(watch._intervals) == 3
