# SPDX-License-Identifier: Apache-2.0
"""Labels scored by their likelihood, without decoding.

One forward pass over a prompt gives the likelihoods of all labels of one
token, from a handful of rows of the head. Labels of several tokens add one
short pass for all of them together: the tokens that others follow are packed
side by side behind the prompt, each of which sees the prompt and those before
it in its own labels (a tree mask, as in SpecInfer, arXiv 2305.09781). Which
label is chosen, the likeliest or a sample, is decided on the device by the
rule that otherwise picks tokens.

A score counts among the labels alone, so that of a row is normalised over
them: what is returned are logs of shares that add up to 1.

Axes: M members, B rows, C labels, P prefix tokens, S prompt bucket,
U packed tokens, E edges of the tree, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from thicket.decode import Prompts
from thicket.models.decoder import Context, Decoder, KeyValue
from thicket.sampling import Choose, Rows

Tree = Any
ABSTAIN = -1  # of a model whose likelihoods are not numbers


class Scored(NamedTuple):
  """What the members answered; as `decode.Generated`, a label for a token.

  Attributes:
    tokens: int32 [M, B, 1], the label's number, or -1.
    length: int32 [M, B], 1: one pass each.
    stopped: bool [M, B], true.
    steps: int32 [M], 1.
    logs: float32 [M, B, C], logs of the labels' shares, in nats.
  """

  tokens: jax.Array
  length: jax.Array
  stopped: jax.Array
  steps: jax.Array
  logs: jax.Array


@dataclasses.dataclass(frozen=True, eq=False)
class Labels:
  """What labels are scored, and how; fixed when it is compiled.

  Attributes:
    tokens: of each of C labels, none empty and none the start of another.
    is_mean: score by the mean over a label's tokens, not by their sum.
    empty: tokens of the whole content-free prompt, whose scores are taken off;
      or none.
    offsets: nats added to each label's score; or none.
    choose: the rule that picks a label by the logs of shares.

  Raises:
    ValueError: tokens of a label are empty, or those of another begin so.
  """

  tokens: tuple[tuple[int, ...], ...]
  is_mean: bool
  empty: tuple[int, ...]
  offsets: tuple[float, ...]
  choose: Choose

  def __post_init__(self):
    for i, one in enumerate(self.tokens):
      if not one:
        raise ValueError(f'label {i} has no tokens')
      for j, other in enumerate(self.tokens):
        if i != j and other[: len(one)] == one:
          raise ValueError(f'the tokens of label {i} begin those of label {j}')

  @property
  def scoring(self) -> tuple[Any, ...]:
    """What scores depend on: all but the rule, which comes after them."""
    return self.tokens, self.is_mean, self.empty, self.offsets

  @functools.cached_property
  def tree(self) -> _Tree:
    """The labels as paths of one tree."""
    inner = sorted(
      {label[:n] for label in self.tokens for n in range(1, len(label))},
      key=lambda path: (len(path), path),
    )
    node = {(): 0} | {path: 1 + i for i, path in enumerate(inner)}
    edges: dict[tuple[int, int], int] = {}
    on = [
      [
        edges.setdefault((node[label[:n]], token), len(edges))
        for n, token in enumerate(label)
      ]
      for label in self.tokens
    ]
    is_on = np.zeros((len(self.tokens), len(edges)), bool)
    for label, path in zip(is_on, on, strict=True):
      label[path] = True
    sees = [[one[: len(other)] == other for other in inner] for one in inner]
    return _Tree(
      token=np.array([path[-1] for path in inner], np.int32),
      depth=np.array([len(path) for path in inner], np.int32),
      sees=np.array(sees, bool).reshape(len(inner), len(inner)),
      edges=np.array(list(edges), np.int32),
      is_on=is_on,
    )


class _Tree(NamedTuple):
  """Nodes are the prompt's end, 0, and the U tokens that others follow."""

  token: np.ndarray  # int32 [U]
  depth: np.ndarray  # int32 [U], 1 for a first token
  sees: np.ndarray  # bool [U, U]: itself and what is before it in its labels
  edges: np.ndarray  # int32 [E, 2]: a node, and a token that follows it
  is_on: np.ndarray  # bool [C, E], the edges of each label


def _scores(
  model: Decoder,
  labels: Labels,
  weights: Tree,
  prefix: list[KeyValue] | None,
  tokens: jax.Array,
  length: jax.Array,
) -> jax.Array:
  """Scores [B, C] of one model, of a row up to a constant of the row.

  Args:
    model: the decoder.
    labels: C of them.
    weights: of one model.
    prefix: keys and values that all prompts start with, or None.
    tokens: int32 [B, S], left-padded.
    length: int32 [B].
  """
  B, S = tokens.shape
  P = prefix[0].value.shape[1] if prefix else 0
  tree, pad = labels.tree, S - length[:, None]
  mask = np.arange(S)[None] >= pad
  positions = jnp.maximum(P + np.arange(S)[None] - pad, 0)
  U = len(tree.token)
  # All labels have the edge's denominator in common: nobody needs it, nor the
  # rest of the vocabulary.
  vocabulary = None if U else tree.edges[:, 1]
  logits, fresh = model.apply(
    weights, tokens, positions, mask, Context(prefix=prefix),
    vocabulary=vocabulary,
  )  # fmt: skip
  if not U:
    return logits
  packed, _ = model.apply(
    weights,
    jnp.broadcast_to(tree.token[None], (B, U)),
    P + length[:, None] + tree.depth[None] - 1,
    np.ones((B, U), bool),
    Context(prefix, fresh, mask, positions),
    all_logits=True,
    sees=tree.sees,
  )
  logits = jnp.concatenate([logits[:, None], packed], axis=1)  # [B, 1 + U, V]
  total = jax.nn.logsumexp(logits, axis=-1)
  node, token = tree.edges.T
  logs = logits[:, node, token] - total[:, node]  # [B, E]
  # Selected, not multiplied: 0 times infinity is no number.
  terms = jnp.where(tree.is_on[None], logs[:, None], jnp.float32(0))
  found = jnp.sum(terms, axis=-1)
  if labels.is_mean:
    found = found / tree.is_on.sum(axis=1).astype(np.float32)[None]
  return found


def empty_scores(
  model: Decoder, labels: Labels, members: Tree, in_axes: Tree
) -> jax.Array:
  """Scores [M, C] behind the content-free prompt, zeros without one.

  They are as `_scores` gives them, and so is what they are taken from: the
  constants of rows cancel where shares are normalised.
  """
  tokens = np.asarray([labels.empty], np.int32)
  length = np.asarray([tokens.shape[1]], np.int32)

  def one(weights):
    return _scores(model, labels, weights, None, tokens, length)[0]

  return jax.vmap(one, in_axes=(in_axes,))(members)


def log_shares(
  model: Decoder,
  labels: Labels,
  members: Tree,
  in_axes: Tree,
  prefix: list[KeyValue] | None,
  empty: jax.Array | None,
  prompts: Prompts,
) -> jax.Array:
  """Logs of the labels' shares by each of M members, float32 [M, B, C].

  Args:
    model: the decoder.
    labels: C of them.
    members: weights of M members.
    in_axes: 0 for each array with a members axis, None for shared ones.
    prefix: what `decode.prefill_prefix` gave.
    empty: what `empty_scores` gave, or None to take nothing off.
    prompts: B rows of bucket S.
  """

  def one(weights, prefix):
    return _scores(
      model, labels, weights, prefix, prompts.tokens, prompts.length
    )

  found = jax.vmap(one, in_axes=(in_axes, 0))(members, prefix)
  if empty is not None:
    found = found - empty[:, None]
  if labels.offsets:
    found = found + np.array(labels.offsets, np.float32)[None, None]
  return jax.nn.log_softmax(found)


def choose(
  labels: Labels,
  logs: jax.Array,
  member_ids: jax.Array,
  draws: jax.Array,
  rows: jax.Array,
) -> Scored:
  """The label of each row by the rule; -1 where a log is no number.

  Args:
    labels: name the rule.
    logs: what `log_shares` gave.
    member_ids: int32 [M].
    draws: int32 [M], which of several answers this is.
    rows: uint32 [B, 2], row ids in two words.
  """

  def one(logs, member, draw):
    return labels.choose(logs, Rows(member, draw, rows), jnp.int32(0))

  chosen = jax.vmap(one)(logs, member_ids, draws)
  is_broken = jnp.isnan(logs).any(axis=-1)
  chosen = jnp.where(is_broken, jnp.int32(ABSTAIN), chosen)
  ones = jnp.ones_like(chosen)
  return Scored(
    chosen[:, :, None], ones, ones > 0, jnp.ones_like(member_ids), logs
  )
