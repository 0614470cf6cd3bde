# SPDX-License-Identifier: Apache-2.0
"""Members answer prompts: generation compiled for a mesh and kept warm.

Under `shard_map` over members each device loops until its own rows are done;
no collective takes part in a member's work. One program is compiled for each
token rule and bucket of prompt lengths; caches are donated from batch to batch,
whichever rule comes next.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from thicket import decode, labels, processes, sharding, trees
from thicket.models.decoder import Decoder

Tree = Any


class Engine:
  """Generates the answers of M members at a time to batches of B prompts."""

  def __init__(
    self,
    model: Decoder,
    *,
    mesh: Mesh,
    in_axes: Tree,
    dtype: Any,
  ):
    """Prepares the engine; nothing is compiled yet.

    Args:
      model: the decoder.
      mesh: its axis `members` splits M.
      in_axes: `Perturber.in_axes` of the weights to come.
      dtype: of the caches, that of the weights.
    """
    self._model, self._mesh = model, mesh
    self._in_axes, self._dtype = in_axes, dtype
    self._weight_specs = sharding.weight_specs(in_axes)
    self._programs: dict[Any, Any] = {}
    self._caches: tuple[Any, Tree] | None = None
    c = model.config
    heads = sharding.split(mesh, trees.Axis('heads', c.num_kv_heads))
    self._cache_place = NamedSharding(
      mesh, PartitionSpec(sharding.MEMBERS, None, heads)
    )
    self.compile_s = 0.0

  def prefill(self, weights: Tree, prefix: Sequence[int]) -> Tree:
    """Keys and values of a shared prefix, maybe empty, for `generate`."""
    prefix = np.asarray(prefix, np.int32)
    fn = functools.partial(decode.prefill_prefix, self._model)
    local = lambda weights, prefix: fn(weights, self._in_axes, prefix)
    sharded = self._over_members(local, self._weight_specs, PartitionSpec())
    # A frozen array has no members axis; at least one array moves.
    axes = jax.tree.leaves(self._in_axes, is_leaf=lambda axis: axis is None)
    mapped = axes.index(0)
    members = jax.tree.leaves(weights)[mapped].shape[0]
    sizes = {'members': members, 'tokens': len(prefix)}
    return self._call('the prefix', None, sizes, sharded, (), weights, prefix)

  def generate(
    self,
    decoding: decode.Decoding,
    weights: Tree,
    member_ids: jax.Array,
    draws: jax.Array,
    prefix: Tree,
    prompts: decode.Prompts,
  ) -> decode.Generated:
    """Dispatches one batch; the arrays of the result are still to come.

    Args:
      decoding: what stops a row and how tokens are chosen.
      weights: of M members.
      member_ids: int32 [M].
      draws: int32 [M].
      prefix: what `prefill` gave for these weights.
      prompts: B rows of one bucket.

    Returns:
      The answers, arrays [M, B, ...] sharded over members.
    """
    members, (rows, size) = len(member_ids), prompts.tokens.shape
    slots = decode.cache_slots(size, decoding.max_new_tokens)
    shape = (members, rows, slots)
    if self._caches is None or self._caches[0] != shape:
      # Freed before the new ones are made: on CPU, once no batch that was
      # dispatched needs them. Else those of all that wait are there at once.
      old, self._caches = self._caches, None
      if self._mesh.devices.flat[0].platform == 'cpu':
        # An error of theirs has reached whoever read the answers.
        with contextlib.suppress(jax.errors.JaxRuntimeError):
          jax.block_until_ready(old)
      del old
      self._caches = (
        shape,
        decode.empty_caches(
          self._model, *shape, self._dtype, self._cache_place
        ),
      )

    def local(weights, ids, draws, prefix, prompts, caches):
      return decode.generate(
        self._model,
        decoding,
        weights,
        self._in_axes,
        ids,
        draws,
        prefix,
        prompts,
        caches,
      )

    replicated = PartitionSpec()
    sharded = self._over_members(
      local, self._weight_specs, *[_MEMBERS] * 3, replicated, _MEMBERS
    )
    caches, self._caches = self._caches[1], None
    sizes = dict(zip(('members', 'prompts', 'slots'), shape, strict=True))
    generated, caches = self._call(
      'generation', decoding, sizes, sharded, (5,), weights, member_ids, draws,
      prefix, prompts, caches,
    )  # fmt: skip
    self._caches = shape, caches
    return generated

  def empty_scores(self, asked: labels.Labels, weights: Tree) -> Any:
    """What `score` takes off, [M, C]; None without a content-free prompt."""
    if not asked.empty:
      return None

    def local(weights):
      return labels.empty_scores(self._model, asked, weights, self._in_axes)

    sharded = self._over_members(local, self._weight_specs)
    sizes = {'labels': len(asked.tokens)}
    return self._call(
      'the empty prompt', asked.scoring, sizes, sharded, (), weights
    )

  def score(
    self,
    asked: labels.Labels,
    weights: Tree,
    prefix: Tree,
    empty: Any,
    prompts: decode.Prompts,
  ) -> jax.Array:
    """Dispatches a batch; gives the logs of labels' shares, [M, B, C].

    Args:
      asked: the labels.
      weights: of M members.
      prefix: what `prefill` gave for these weights.
      empty: what `empty_scores` gave for them.
      prompts: B rows of one bucket.
    """

    def local(weights, prefix, empty, prompts):
      return labels.log_shares(
        self._model, asked, weights, self._in_axes, prefix, empty, prompts
      )

    sharded = self._over_members(
      local, self._weight_specs, _MEMBERS, _MEMBERS, PartitionSpec()
    )
    rows, size = prompts.tokens.shape
    sizes = {'prompts': rows, 'slots': size, 'labels': len(asked.tokens)}
    return self._call(
      'scoring', asked.scoring, sizes, sharded, (), weights, prefix, empty,
      prompts,
    )  # fmt: skip

  def choose(
    self,
    asked: labels.Labels,
    logs: jax.Array,
    member_ids: jax.Array,
    draws: jax.Array,
    rows: jax.Array,
  ) -> labels.Scored:
    """Dispatches the choice of labels by what `score` gave."""
    sharded = self._over_members(
      functools.partial(labels.choose, asked), *[_MEMBERS] * 3, PartitionSpec()
    )
    sizes = {'prompts': len(rows), 'labels': len(asked.tokens)}
    return self._call(
      'the choice', asked, sizes, sharded, (), logs, member_ids, draws, rows
    )

  def _over_members(self, fn, *specs):
    return jax.shard_map(
      fn,
      mesh=self._mesh,
      in_specs=specs,
      out_specs=_MEMBERS,
      axis_names=sharding.manual_axes(self._mesh),
    )

  def _call(self, name, rule, sizes, fn, donated, *args):
    """Runs the program of that name and sizes, compiled at its first call."""
    # Shapes of the prefix, too, make another program.
    shapes = [jnp.shape(array) for array in jax.tree.leaves(args)]
    key = name, rule, *shapes
    if key not in self._programs:
      start = time.perf_counter()
      lowered = jax.jit(fn, donate_argnums=donated, keep_unused=True).lower(
        *args
      )
      self._programs[key] = lowered.compile()
      seconds = time.perf_counter() - start
      self.compile_s += seconds
      memory = self._programs[key].memory_analysis()
      logging.info(
        'compiled %s for %s in %.1f s',
        name,
        ' x '.join(f'{number} {what}' for what, number in sizes.items()),
        seconds,
      )
      logging.info(
        '  it takes %.0f MB of arguments and %.0f MB of scratch',
        memory.argument_size_in_bytes / 1e6,
        memory.temp_size_in_bytes / 1e6,
      )
    return self._programs[key](*args)


_MEMBERS = PartitionSpec(sharding.MEMBERS)


def answer_all(
  engine: Engine,
  decoding: decode.Decoding | labels.Labels,
  prefix: Sequence[int],
  batches: Sequence[decode.Prompts],
) -> Any:
  """A `population.Step` that answers all batches with the members given.

  The results are a tuple of `decode.Generated`, one for each batch; or of
  `labels.Scored`.
  """
  batches = [jax.tree.map(jnp.asarray, batch) for batch in batches]
  if isinstance(decoding, labels.Labels):
    return _score_all(engine, decoding, prefix, batches)

  def step(weights: Tree, member_ids: jax.Array, draws: jax.Array) -> tuple:
    before = engine.prefill(weights, prefix)
    return tuple(
      engine.generate(decoding, weights, member_ids, draws, before, batch)
      for batch in batches
    )

  return step


def _score_all(
  engine: Engine,
  asked: labels.Labels,
  prefix: Sequence[int],
  batches: Sequence[decode.Prompts],
) -> Any:
  """As `answer_all`. All draws of a member are drawn from one forward pass."""
  held: tuple[bytes, list[jax.Array]] | None = None

  def step(weights: Tree, member_ids: jax.Array, draws: jax.Array) -> tuple:
    nonlocal held
    # With several processes, none knows whether the others' members are new.
    known = np.asarray(member_ids).tobytes() if processes.count() == 1 else None
    if held is None or known is None or held[0] != known:
      held = None  # freed before there are more
      before = engine.prefill(weights, prefix)
      empty = engine.empty_scores(asked, weights)
      held = (
        known,
        [
          engine.score(asked, weights, before, empty, batch)
          for batch in batches
        ],
      )
    return tuple(
      engine.choose(asked, logs, member_ids, draws, batch.row)
      for logs, batch in zip(held[1], batches, strict=True)
    )

  return step
