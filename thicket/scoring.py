# SPDX-License-Identifier: Apache-2.0
"""Rewards and ensembles of models whose outputs are values or labels.

A text is judged on the host (see `tasks`); numbers are judged on the device,
in the program that made them. An ensemble of values is their mean, as in
section 3 of Neural Thickets (arXiv 2603.12228); one of labels averages logits
or votes, by the same rule as a vote of texts.

Axes: K members, B rows, C classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from thicket import voting
from thicket.user_rules import user_rules


class Batch(NamedTuple):
  """Rows with their targets; the first axis of both is B.

  Fields:
    inputs: what the model takes.
    targets: float [B, ...] values, or int32 [B] labels in 0..C-1.
  """

  inputs: Any
  targets: Any


def rewards(
  apply: Callable[[Any, Any], Any],
  score: Callable[[Any, Any], jax.Array],
  params: Any,
  data: Any,
) -> jax.Array:
  """What a user's model earns, float32 [B], or [1] of a scalar score.

  Raises:
    ValueError: the score is neither [B] nor a scalar, or there are no rows.
  """
  with user_rules():
    found = jnp.asarray(score(apply(params, data), data), jnp.float32)
  if found.ndim > 1:
    raise ValueError(f'score gives shape {found.shape}; [B] or () is needed')
  if not found.size:
    raise ValueError('score gives no reward: data has no rows')
  return jnp.atleast_1d(found)


def negative_mse(outputs: jax.Array, batch: Batch) -> jax.Array:
  """[B], minus the mean squared error of each row; at most 0."""
  if outputs.shape != batch.targets.shape:  # they would be broadcast
    raise ValueError(
      f'outputs {outputs.shape} for targets {batch.targets.shape}: one for one'
    )
  error = jnp.square(outputs - batch.targets)
  return -error.reshape(len(error), -1).mean(axis=1)


def log_likelihood(logits: jax.Array, batch: Batch) -> jax.Array:
  """[B], log probability of each row's label in nats; at most 0.

  NaN for a label that is not in 0..C-1.
  """
  logs = jax.nn.log_softmax(logits.astype(jnp.float32))
  labels = batch.targets
  found = jnp.take_along_axis(logs, labels[:, None], axis=1)[:, 0]
  is_label = (labels >= 0) & (labels < logits.shape[-1])
  return jnp.where(is_label, found, jnp.nan)


def is_correct(logits: jax.Array, batch: Batch) -> jax.Array:
  """[B], 1 where the largest logit is the label's (the first of equals).

  NaN where a logit is.
  """
  hits = (logits.argmax(axis=-1) == batch.targets).astype(jnp.float32)
  return jnp.where(jnp.isnan(logits).any(axis=-1), jnp.nan, hits)


def mean(outputs: jax.Array) -> jax.Array:
  """The mean of K members' outputs [K, B, ...]: values, or logits."""
  return outputs.mean(axis=0)


def vote(logits: jax.Array) -> jax.Array:
  """Majority vote of K members' labels, as one-hot [B, C] of who won.

  Among labels with equally many votes that of the best-ranked member wins; a
  member with a logit that is NaN abstains, and a row without a vote is NaN.

  Args:
    logits: [K, B, C], members in rank order.
  """
  labels = logits.argmax(axis=-1).astype(jnp.int32)
  labels = jnp.where(jnp.isnan(logits).any(axis=-1), voting.ABSTAIN, labels)
  won = voting.majority(labels).answer
  one_hot = jax.nn.one_hot(won, logits.shape[-1])
  return jnp.where((won == voting.ABSTAIN)[:, None], jnp.nan, one_hot)


@dataclasses.dataclass(frozen=True)
class Scoring:
  """How the outputs of one kind of model are scored, combined and counted.

  Attributes:
    reward: (outputs, batch) -> [B], what selection maximises; at most 0, so
      that members can be pruned exactly.
    measure: (outputs, batch) -> [B], what a result is reported in.
    measure_name: its name, with its unit.
    combine: by name, (outputs [K, B, ...]) -> outputs of the ensemble; the
      first is the ensemble's own, others are shown beside it.
  """

  reward: Callable[[jax.Array, Batch], jax.Array]
  measure: Callable[[jax.Array, Batch], jax.Array]
  measure_name: str
  combine: Mapping[str, Callable[[jax.Array], jax.Array]]


SCORINGS: dict[str, Scoring] = {
  'value': Scoring(negative_mse, negative_mse, 'negative MSE', {'mean': mean}),
  'label': Scoring(
    log_likelihood, is_correct, 'accuracy', {'logits': mean, 'vote': vote}
  ),
}
