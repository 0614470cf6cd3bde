# SPDX-License-Identifier: Apache-2.0
"""Generation of M members x B rows, prefill and single steps timed apart.

One program makes nine tokens: prefill, which chooses the first, and eight
steps. With rows that only fill the batch it ends after prefill. Both are timed
with the same weights one after the other, and a step is an eighth of their
difference.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.throughput.timing import seconds
from thicket import (
  data,
  decode,
  engine,
  evaluation,
  perturb,
  sampling,
  sharding,
  tasks,
)
from thicket.models.load import LoadedModel

STEPS = 8
RULES = {
  'greedy': sampling.greedy,
  'sampling': sampling.sampler(0, 0.7),
  'top-p 0.9': sampling.sampler(0, 0.7, top_p=0.9),
}


@dataclasses.dataclass(frozen=True)
class Timed:
  """Seconds of the prefill of a batch, prefix included, and of one step."""

  prefill: float
  step: float

  def answers(self, tokens: int) -> float:
    """Seconds for answers of so many tokens."""
    return self.prefill + (tokens - 1) * self.step


class Prompts:
  """Real prompts of the arithmetic task, in one batch of B rows."""

  def __init__(self, model: LoadedModel, rows: int, room: int):
    """Encodes so many questions; `room` tokens are left to the answers."""
    task = tasks.make('arithmetic')
    splits = data.load(
      task, num_selection=rows, num_validation=0, num_test=1, seed=0
    )
    self.prefix, questions = evaluation.prepare(
      task,
      model.tokenizer,
      {'selection': splits.selection},
      rows=rows,
      max_new_tokens=room,
      context_length=model.decoder.config.context_length,
    )
    (self.batch,) = questions['selection'].batches()

  def whole(self, pad: int) -> tuple[np.ndarray, np.ndarray]:
    """Prompts with their prefix, padded on the left to the longest.

    Returns:
      int32 [B, T], and bool [B, T], false where it is padding.
    """
    prefix, batch = list(self.prefix), self.batch
    lengths = batch.length + len(prefix)
    tokens = np.full((len(lengths), lengths.max()), pad, np.int32)
    for row, length in enumerate(batch.length):
      own = batch.tokens[row, -length:].tolist()
      tokens[row, -lengths[row] :] = [*prefix, *own]
    places = np.arange(tokens.shape[1])[None]
    return tokens, places >= tokens.shape[1] - lengths[:, None]


def perturber(model: LoadedModel, family: str) -> perturb.Perturber:
  """Writes members of a family on one device; low rank stays factored."""
  return perturb.Perturber(
    model.params,
    model.spec,
    seed=0,
    mesh=sharding.make_mesh(jax.devices()[:1]),
    family=family,
    factored=family.startswith('low_rank'),
  )


class Setting:
  """M members that answer B prompts and never stop early."""

  def __init__(
    self,
    model: LoadedModel,
    in_axes: Any,
    members: int,
    rows: int,
    rules: tuple[str, ...] = ('greedy',),
    tokens: int = 1 + STEPS,
  ):
    """Prepares programs; each is compiled when it first runs.

    Args:
      model: the model.
      in_axes: of the weights to come.
      members: M.
      rows: B.
      rules: token rules, of `RULES`.
      tokens: new tokens of each row.
    """
    self.prompts = Prompts(model, rows, tokens)
    self.members, self.rows = members, rows
    self._num_steps = tokens - 1
    vocab = model.decoder.config.vocab_size
    # State 0 never leads to the accepting state: no row stops before the limit.
    table = np.stack([np.zeros(vocab, np.int32), np.ones(vocab, np.int32)])
    self._ids = jnp.zeros(members, jnp.int32)
    self.engine = engine.Engine(
      model.decoder,
      mesh=sharding.make_mesh(jax.devices()[:1]),
      in_axes=in_axes,
      dtype=jax.tree.leaves(model.params)[0].dtype,
    )
    batch = self.prompts.batch
    idle = batch._replace(live=np.zeros_like(batch.live))
    self._steps = {}
    for rule in rules:
      decoding = decode.Decoding(
        tokens, table, model.tokenizer.pad_id, RULES[rule]
      )
      for live, asked in ((True, batch), (False, idle)):
        self._steps[rule, live] = engine.answer_all(
          self.engine, decoding, self.prompts.prefix, [asked]
        )

  def answer(
    self, weights: Any, rule: str = 'greedy', *, live: bool = True
  ) -> Any:
    """Answers with the weights at hand, awaited; prefill alone if not live."""
    return jax.block_until_ready(
      self._steps[rule, live](weights, self._ids, self._ids)
    )

  def time(self, weights: Any) -> Timed:
    """One measurement; compile first by calling it once."""
    prefill = seconds(lambda: self.answer(weights, live=False))
    longer = seconds(lambda: self.answer(weights))
    return Timed(prefill, (longer - prefill) / self._num_steps)

  def prefill_tokens(self) -> int:
    """Tokens that prefill takes through the layers, padding included."""
    rows, size = self.prompts.batch.tokens.shape
    return self.members * (rows * size + len(self.prompts.prefix))
