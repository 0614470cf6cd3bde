# SPDX-License-Identifier: Apache-2.0
"""Members answer prompts: generation compiled for a mesh and kept warm.

Under `shard_map` over members each device loops until its own rows are done;
no collective takes part in a member's work. One program is compiled for each
bucket of prompt lengths, its caches are donated from batch to batch.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh, PartitionSpec

from thicket import decode, sharding
from thicket.models.decoder import Decoder

Tree = Any


class Engine:
  """Generates the answers of M members at a time to batches of B prompts."""

  def __init__(
    self,
    model: Decoder,
    decoding: decode.Decoding,
    *,
    mesh: Mesh,
    in_axes: Tree,
    prefix: Sequence[int],
    dtype: Any,
  ):
    """Prepares the engine; nothing is compiled yet.

    Args:
      model: the decoder.
      decoding: what stops a row and how tokens are chosen.
      mesh: its axis `members` splits M.
      in_axes: `Perturber.in_axes` of the weights to come.
      prefix: tokens that every prompt starts with, may be empty.
      dtype: of the caches, that of the weights.
    """
    self._model, self._decoding, self._mesh = model, decoding, mesh
    self._in_axes, self._dtype = in_axes, dtype
    self._prefix = np.asarray(prefix, np.int32)
    self._weight_specs = sharding.weight_specs(in_axes)
    self._programs: dict[Any, Any] = {}
    self._caches: tuple[Any, Tree] | None = None
    self.compile_s = 0.0

  def prefill(self, weights: Tree) -> Tree:
    """Keys and values of the shared prefix, for `generate`."""
    shard = functools.partial(
      jax.shard_map,
      mesh=self._mesh,
      in_specs=(self._weight_specs, PartitionSpec()),
      out_specs=_MEMBERS,
    )
    fn = functools.partial(decode.prefill_prefix, self._model)
    local = lambda weights, prefix: fn(weights, self._in_axes, prefix)
    # A frozen array has no members axis; at least one array moves.
    axes = jax.tree.leaves(self._in_axes, is_leaf=lambda axis: axis is None)
    mapped = axes.index(0)
    members = jax.tree.leaves(weights)[mapped].shape[0]
    sizes = {'members': members, 'tokens': len(self._prefix)}
    return self._call(
      'the prefix', sizes, shard(local), (), weights, self._prefix
    )

  def generate(
    self,
    weights: Tree,
    member_ids: jax.Array,
    prefix: Tree,
    prompts: decode.Prompts,
  ) -> decode.Generated:
    """Dispatches one batch; the arrays of the result are still to come.

    Args:
      weights: of M members.
      member_ids: int32 [M].
      prefix: what `prefill` gave for these weights.
      prompts: B rows of one bucket.

    Returns:
      The answers, arrays [M, B, ...] sharded over members.
    """
    members, (rows, size) = len(member_ids), prompts.tokens.shape
    slots = decode.cache_slots(size, self._decoding.max_new_tokens)
    shape = (members, rows, slots)
    if self._caches is None or self._caches[0] != shape:
      self._caches = None  # freed before the new ones are made
      placed = sharding.over_members(self._mesh)
      self._caches = (
        shape,
        decode.empty_caches(self._model, *shape, self._dtype, placed),
      )

    def local(weights, ids, prefix, prompts, caches):
      return decode.generate(
        self._model,
        self._decoding,
        weights,
        self._in_axes,
        ids,
        prefix,
        prompts,
        caches,
      )

    replicated = PartitionSpec()
    sharded = jax.shard_map(
      local,
      mesh=self._mesh,
      in_specs=(self._weight_specs, _MEMBERS, _MEMBERS, replicated, _MEMBERS),
      out_specs=_MEMBERS,
    )
    caches, self._caches = self._caches[1], None
    sizes = dict(zip(('members', 'prompts', 'slots'), shape, strict=True))
    generated, caches = self._call(
      'generation', sizes, sharded, (4,), weights, member_ids, prefix,
      prompts, caches,
    )  # fmt: skip
    self._caches = shape, caches
    return generated

  def _call(self, name, sizes, fn, donated, *args):
    """Runs the program of that name and sizes, compiled at its first call."""
    key = name, *sizes.values()
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


def answer_all(engine: Engine, batches: Sequence[decode.Prompts]) -> Any:
  """A `population.Step` that answers all batches with the members given.

  The results are a tuple of `decode.Generated`, one for each batch.
  """
  batches = [jax.tree.map(jnp.asarray, batch) for batch in batches]

  def step(weights: Tree, member_ids: jax.Array) -> tuple:
    prefix = engine.prefill(weights)
    return tuple(
      engine.generate(weights, member_ids, prefix, batch) for batch in batches
    )

  return step
