# SPDX-License-Identifier: Apache-2.0
"""Our counts beside XLA's, for the programs that thicket compiles.

XLA counts a loop's body once, so generation as a whole holds the prefill and
one decoding step; the step is what it has beyond a prefill compiled alone.
Everything is float32 on this machine's CPU; only shapes are given, no weight
is made.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.scale import count
from thicket import decode, perturb, sampling, sharding, trees
from thicket.models import decoder
from thicket.models.decoder_config import DecoderConfig


class Both(NamedTuple):
  """Ours and XLA's operations and bytes of one program."""

  ours: count.Work
  flops: float
  bytes: float

  def ratios(self) -> tuple[float, float]:
    """XLA's count over ours, of operations and of bytes."""
    return self.flops / self.ours.flops, self.bytes / self.ours.bytes


class Checked(NamedTuple):
  """The two passes of generation, and its scratch memory.

  Attributes:
    prefill, step: what is counted.
    scratch: bytes a row, ours and XLA's.
  """

  prefill: Both
  step: Both
  scratch: tuple[float, float]


def _array(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(shape, dtype)


def _cost(compiled: Any) -> tuple[float, float]:
  cost = compiled.cost_analysis()
  # exp, rsqrt and the like are a count of their own there.
  flops = cost['flops'] + cost.get('transcendentals', 0.0)
  return flops, cost['bytes accessed']


class Programs:
  """Shapes of a batch, and the functions over them that thicket compiles."""

  def __init__(
    self, config: DecoderConfig, members: int, rows: int, prompt: int, new: int
  ):
    """`members` answer `rows` prompts with `new` tokens each."""
    self.config, self.model = config, decoder.Decoder(config)
    self.members, self.rows = members, rows
    self.prompt, self.slots = prompt, decode.cache_slots(prompt, new)
    spec = decoder.canonical_spec(config)
    self.weights = jax.tree.map(
      lambda leaf: _array(jnp.float32, members, *leaf.shape), spec
    )
    self.in_axes = jax.tree.map(lambda leaf: 0, spec)
    table = np.zeros((2, config.vocab_size), np.int32)
    self.decoding = decode.Decoding(new, table, 0, sampling.greedy)

  def prefill(self, weights, tokens, positions, mask):
    """Logits of the last position, their argmax, and keys and values."""

    def one(weights):
      logits, fresh = self.model.apply(weights, tokens, positions, mask)
      return jnp.argmax(logits, -1), fresh

    return jax.vmap(one)(weights)

  def prefill_shapes(self) -> tuple:
    """What `prefill` takes."""
    batch = self.rows, self.prompt
    ids = _array(jnp.int32, *batch)
    return self.weights, ids, ids, _array(bool, *batch)

  def generate(self, weights, ids, draws, prompts, caches):
    """`decode.generate`, as the engine calls it on each device."""
    return decode.generate(
      self.model, self.decoding, weights, self.in_axes, ids, draws, None,
      prompts, caches,
    )  # fmt: skip

  def generate_shapes(self) -> tuple:
    """What `generate` takes."""
    rows, each = self.rows, _array(jnp.int32, self.members)
    prompts = decode.Prompts(
      tokens=_array(jnp.int32, rows, self.prompt),
      length=_array(jnp.int32, rows),
      prompt=_array(jnp.int32, rows),
      row=_array(jnp.uint32, rows, 2),
      live=_array(bool, rows),
    )
    caches = jax.eval_shape(
      lambda: decode.empty_caches(
        self.model, self.members, rows, self.slots, jnp.float32
      )
    )
    return self.weights, each, each, prompts, caches

  def counted(self, tokens: int, slots: int) -> count.Work:
    """Our count of one pass of all members."""
    parts = count.forward(
      self.config,
      rows=self.members * self.rows,
      tokens=tokens,
      slots=slots,
      members=self.members,
      itemsize=4,
    )
    return sum(parts.values(), count.Work())


def forward(
  config: DecoderConfig, members: int, rows: int, prompt: int, new: int
) -> Checked:
  """Prefill and one decoding step; two compilations.

  The step holds the padding of the caches, which XLA fuses into the prefill of
  generation.
  """
  programs = Programs(config, members, rows, prompt, new)
  prefill = _cost(
    jax.jit(programs.prefill).lower(*programs.prefill_shapes()).compile()
  )
  compiled = (
    jax.jit(programs.generate, donate_argnums=4, keep_unused=True)
    .lower(*programs.generate_shapes())
    .compile()
  )
  step = (a - b for a, b in zip(_cost(compiled), prefill, strict=True))
  slots, num_rows = programs.slots, members * rows
  padding = count.padding(config, prompt, slots, 4) * num_rows
  return Checked(
    prefill=Both(programs.counted(prompt, 0), *prefill),
    step=Both(programs.counted(1, slots) + padding, *step),
    scratch=(
      count.scratch_bytes(config, prompt, 4, 1),
      compiled.memory_analysis().temp_size_in_bytes / num_rows,
    ),
  )


def materialise(family: str, rows: int, columns: int) -> Both:
  """One member's array written by `perturb.Perturber`'s program."""
  leaf = trees.Leaf((rows, columns), (trees.Segment('', 0, rows),))
  compiled = perturb._materialise.lower(
    _array(jnp.float32, 1, rows, columns),
    _array(jnp.float32, rows, columns),
    _array(jnp.uint32, 1, 1, 2),
    _array(jnp.float32, 1, 1),
    family=family,
    leaf=leaf,
    mesh=sharding.make_mesh(jax.devices()[:1]),
  ).compile()
  return Both(count.array_noise(family, leaf, itemsize=4), *_cost(compiled))
