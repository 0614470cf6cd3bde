# SPDX-License-Identifier: Apache-2.0
"""Majority votes over the answers of ranked members, on the device.

The vote of RandOpt (Neural Thickets, arXiv 2603.12228), with its ties decided
by rule: the answer of the best-ranked member wins. A member whose answer could
not be parsed abstains, and abstentions are counted, never outvoted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

ABSTAIN = -1


class Vote(NamedTuple):
  """The outcome for each of B questions.

  Fields:
    answer: int32 [B], the answer id that won; -1 where all abstained.
    count: int32 [B], the votes for it; 0 where all abstained.
    num_abstained: int32 [B], members without an answer.
  """

  answer: jax.Array
  count: jax.Array
  num_abstained: jax.Array


@jax.jit
def majority(answers: jax.Array) -> Vote:
  """The most frequent answer of each question.

  Equals `collections.Counter(answers in rank order).most_common(1)` over the
  members that did not abstain: among equal counts, first seen wins.

  Args:
    answers: int32 [K, B] answer ids, members in rank order, best first. An id
      means something within its question only; negative ids abstain.

  Returns:
    The vote of all K members.

  Raises:
    ValueError: answers is not [K, B] of integers, or K is 0.
  """
  _check(answers)
  is_cast = answers >= 0
  is_same_KKB = answers[:, None, :] == answers[None, :, :]
  count_KB = jnp.sum(is_same_KKB, axis=1, dtype=jnp.int32) * is_cast.astype(
    jnp.int32
  )
  return Vote(
    answer=_winner(answers, count_KB),
    count=jnp.max(count_KB, axis=0),
    num_abstained=jnp.sum(~is_cast, axis=0, dtype=jnp.int32),
  )


def vote_curve(answers: jax.Array, ks: Sequence[int]) -> jax.Array:
  """The winning answers of ever larger ensembles of the same ranked members.

  Args:
    answers: int32 [K, B] as for `majority`.
    ks: ensemble sizes, each in 1..K; ensemble k holds the k best members.

  Returns:
    int32 [len(ks), B], row i equal to `majority(answers[:ks[i]]).answer`.

  Raises:
    ValueError: a size is outside 1..K, or answers is not [K, B] of integers.
  """
  answers = jnp.asarray(answers)
  _check(answers)
  for k in ks:
    if not 1 <= k <= answers.shape[0]:
      raise ValueError(
        f'vote_curve: k={k} of {answers.shape[0]} members: must lie in '
        f'1..{answers.shape[0]}'
      )
  return _every_prefix(answers)[np.asarray(ks, np.int32) - 1]


@jax.jit
def _every_prefix(answers: jax.Array) -> jax.Array:
  """int32 [K, B]: row k holds the vote of the first k + 1 members."""
  ranks = jnp.arange(answers.shape[0], dtype=jnp.int32)

  def admit(count_KB, member):
    rank, cast_B = member
    is_same = (answers == cast_B[None, :]) & (answers >= 0)
    count_KB = count_KB + is_same.astype(jnp.int32)
    is_in = (ranks <= rank)[:, None]
    return count_KB, _winner(answers, jnp.where(is_in, count_KB, 0))

  _, winners = jax.lax.scan(
    admit, jnp.zeros(answers.shape, jnp.int32), (ranks, answers)
  )
  return winners


def _winner(answers: jax.Array, count_KB: jax.Array) -> jax.Array:
  # argmax takes the first of equal counts: the best-ranked member's answer.
  first_B = jnp.argmax(count_KB, axis=0)
  winner = jnp.take_along_axis(answers, first_B[None, :], axis=0)[0]
  return jnp.where(winner < 0, ABSTAIN, winner).astype(jnp.int32)


def _check(answers: jax.Array) -> None:
  if (
    answers.ndim != 2
    or answers.shape[0] == 0
    or not jnp.issubdtype(answers.dtype, jnp.integer)
  ):
    raise ValueError(
      f'answers is {answers.dtype} {answers.shape}: needs integers [K, B], '
      f'K > 0'
    )
