# SPDX-License-Identifier: Apache-2.0
"""Rewards and ensembles of values and labels against numpy."""

import collections

import jax.numpy as jnp
import numpy as np
import pytest

from thicket import scoring
from thicket.scoring import Batch

RNG = np.random.default_rng(0)


def test_negative_mse_is_a_mean_over_all_but_rows():
  outputs = RNG.standard_normal((4, 3, 2)).astype(np.float32)
  targets = RNG.standard_normal((4, 3, 2)).astype(np.float32)
  got = scoring.negative_mse(jnp.asarray(outputs), Batch(None, targets))
  np.testing.assert_allclose(
    got, -((outputs - targets) ** 2).mean((1, 2)), rtol=1e-6
  )
  exact = scoring.negative_mse(jnp.asarray(targets), Batch(None, targets))
  np.testing.assert_array_equal(exact, np.zeros(4))


def test_log_likelihood_is_that_of_the_label_in_nats():
  logits = RNG.standard_normal((5, 3)).astype(np.float32)
  labels = np.array([0, 2, 1, 1, 0], np.int32)
  p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  got = scoring.log_likelihood(jnp.asarray(logits), Batch(None, labels))
  np.testing.assert_allclose(got, np.log(p[np.arange(5), labels]), rtol=1e-5)


def test_is_correct_takes_the_first_of_equal_logits():
  logits = jnp.array([[1.0, 1.0], [1.0, 1.0], [0.0, 2.0]])
  got = scoring.is_correct(logits, Batch(None, np.array([0, 1, 1])))
  assert got.tolist() == [1, 0, 1]


def test_the_mean_is_over_members():
  outputs = RNG.standard_normal((3, 4, 2)).astype(np.float32)
  np.testing.assert_allclose(
    scoring.mean(jnp.asarray(outputs)), outputs.mean(0), rtol=1e-6
  )


def test_the_vote_is_the_most_frequent_label_of_ranked_members():
  labels = RNG.integers(0, 4, (7, 50))
  logits = jnp.asarray(np.eye(4, dtype=np.float32)[labels])
  got = np.asarray(scoring.vote(logits))
  expected = [
    collections.Counter(column.tolist()).most_common(1)[0][0]
    for column in labels.T
  ]
  assert got.shape == (50, 4)
  assert (got.sum(1) == 1).all()
  assert got.argmax(1).tolist() == expected


def test_vote_and_mean_of_logits_may_disagree():
  logits = jnp.array([[[9.0, 0.0]], [[0.0, 1.0]], [[0.0, 1.0]]])
  rules = scoring.SCORINGS['label'].combine
  assert rules['logits'](logits).argmax(-1).tolist() == [0]
  assert rules['vote'](logits).argmax(-1).tolist() == [1]


def test_outputs_that_would_be_broadcast_are_refused():
  with pytest.raises(ValueError, match='one for one'):
    scoring.negative_mse(jnp.ones((4, 1)), Batch(None, jnp.ones(4)))


@pytest.mark.parametrize('label', [-1, 3])
def test_a_label_that_there_is_not_has_no_likelihood(label):
  labels = np.array([label, 1], np.int32)
  got = np.asarray(
    scoring.log_likelihood(jnp.ones((2, 3)), Batch(None, labels))
  )
  assert np.isnan(got).tolist() == [True, False]


def test_members_that_broke_do_not_vote():
  logits = np.eye(3, dtype=np.float32)[np.array([[0, 0], [1, 0], [1, 0]])]
  logits[1:, 0] = np.nan  # on the first row two of three
  logits[:, 1] = np.nan  # on the second all
  won = np.asarray(scoring.vote(jnp.asarray(logits)))
  assert won[0].tolist() == [1, 0, 0]
  assert np.isnan(won[1]).all()
  hits = scoring.is_correct(jnp.asarray(won), Batch(None, np.array([0, 0])))
  assert hits[0] == 1
  assert np.isnan(hits[1])
