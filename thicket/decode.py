# SPDX-License-Identifier: Apache-2.0
"""Generation: the loop outside, the members inside.

One `while_loop` drives all members and rows of a device and `vmap` over
members is inside its body. The other way round, the loop's predicate would be
batched, each cache write would become a scatter and the whole cache would be
selected at every step. The step counter and the cache's write index are
scalars; the write itself is outside the `vmap`, in place.

A prompt is a prefix that all prompts share, computed once a member with a
batch of one, and the rest, left-padded to a bucket. What stops a row is a
table over tokens (see `stops.stop_table`), exact for stop strings that
span tokens; the rule that picks a token is an argument.

Axes: M members, B rows, P prefix tokens, S prompt bucket, C cache slots,
G new tokens, K kv heads, H head dim, V vocabulary, Q stop states.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from thicket.models.decoder import Context, Decoder, KeyValue
from thicket.sampling import Choose, Rows

Tree = Any


class Prompts(NamedTuple):
  """One batch of prompts behind the shared prefix.

  Attributes:
    tokens: int32 [B, S], left-padded.
    length: int32 [B], real tokens of each row, at least 1.
    prompt: int32 [B], the prompt's number in its split.
    row: uint32 [B, 2], its row id in two words, for the token rule.
    live: bool [B], false for rows that only fill the batch.
  """

  tokens: np.ndarray
  length: np.ndarray
  prompt: np.ndarray
  row: np.ndarray
  live: np.ndarray


class Generated(NamedTuple):
  """What the members answered.

  Attributes:
    tokens: int32 [M, B, G], pad once a row has stopped.
    length: int32 [M, B], tokens generated, the stopping one included.
    stopped: bool [M, B], false where the limit G cut the answer.
    steps: int32 [M], forward passes made with the row's batch.
  """

  tokens: jax.Array
  length: jax.Array
  stopped: jax.Array
  steps: jax.Array


@dataclasses.dataclass(frozen=True, eq=False)
class Decoding:
  """Settings of generation that are fixed when it is compiled.

  Attributes:
    max_new_tokens: G, at least 1.
    stop_table: int32 [Q, V], the next stop state by state and token; the last
      state means stopped and is absorbing.
    pad_id: the token that fills what follows a stop.
    choose: the token rule.
  """

  max_new_tokens: int
  stop_table: np.ndarray
  pad_id: int
  choose: Choose

  def __post_init__(self):
    if self.max_new_tokens < 1:
      raise ValueError(f'max_new_tokens = {self.max_new_tokens} is below 1')
    vocab_size = self.stop_table.shape[1]
    if not 0 <= self.pad_id < vocab_size:
      # An embedding of it would be NaN and spread through the whole row.
      raise ValueError(f'pad_id = {self.pad_id} is outside [0, {vocab_size})')


def shared_prefix(prompts: Sequence[Sequence[int]]) -> int:
  """How many first tokens all prompts share, at least one left to each."""
  if not prompts:
    return 0
  first, last = min(prompts), max(prompts)
  limit = max(min(len(prompt) for prompt in prompts) - 1, 0)
  for i in range(limit):
    if first[i] != last[i]:
      return i
  return limit


def bucket(length: int) -> int:
  """The smallest of 8, 16, 24, 32, 48, 64, 96, 128, 192, ... not below."""
  size = 8
  while size < length:
    power = 1 << (size.bit_length() - 1)
    size += max(8, power // 2)
  return size


def empty_caches(
  model: Decoder,
  members: int,
  rows: int,
  slots: int,
  dtype: Any,
  device: Any = None,
) -> list[KeyValue]:
  """Zeroed caches, a pair [M, B, ...] of C slots for each layer.

  `device` is a device or a sharding, by default JAX's own default.
  """
  c = model.config
  lead = (members, rows, c.num_kv_heads)
  return [
    KeyValue(
      jnp.zeros((*lead, c.head_dim, slots), dtype, device=device),
      jnp.zeros((*lead, slots, c.head_dim), dtype, device=device),
    )
    for _ in range(c.num_layers)
  ]


def cache_slots(prompt_bucket: int, max_new_tokens: int) -> int:
  """C: the last token is never fed back, so it needs no slot."""
  return prompt_bucket + max_new_tokens - 1


def prefill_prefix(
  model: Decoder, members: Tree, in_axes: Tree, prefix: jax.Array
) -> list[KeyValue] | None:
  """Keys and values of the prefix that all prompts share.

  Args:
    model: the decoder.
    members: weights of M members.
    in_axes: 0 for each array with a members axis, None for shared ones.
    prefix: int32 [P].

  Returns:
    A pair [M, ...] without B for each layer, or None when P is 0.
  """
  P = prefix.shape[0]
  if not P:
    return None

  def one(weights):
    _, fresh = model.apply(
      weights, prefix[None], np.arange(P)[None], np.ones((1, P), bool)
    )
    return jax.tree.map(lambda x: x[0], fresh)

  return jax.vmap(one, in_axes=(in_axes,))(members)


class _State(NamedTuple):
  step: jax.Array  # int32 [], tokens chosen so far, the same for all rows
  token: jax.Array  # int32 [M, B], the last token, not yet in the cache
  stop: jax.Array  # int32 [M, B], stop state
  done: jax.Array  # bool [M, B]
  tokens: jax.Array  # int32 [M, B, G]
  length: jax.Array  # int32 [M, B]
  caches: list[KeyValue]  # [M, B, ...], C slots


def generate(
  model: Decoder,
  decoding: Decoding,
  members: Tree,
  in_axes: Tree,
  member_ids: jax.Array,
  draws: jax.Array,
  prefix: list[KeyValue] | None,
  prompts: Prompts,
  caches: list[KeyValue],
) -> tuple[Generated, list[KeyValue]]:
  """Answers one batch of prompts with each of M members.

  Args:
    model: the decoder.
    decoding: what stops a row and how tokens are chosen.
    members: weights of M members.
    in_axes: 0 for each array with a members axis, None for shared ones.
    member_ids: int32 [M], for the token rule.
    draws: int32 [M], which of several answers this is, for the token rule.
    prefix: what `prefill_prefix` gave.
    prompts: B rows of bucket S.
    caches: what `empty_caches` gave for C = `cache_slots(S, G)`, of any
      content. To donate them, jit with `keep_unused=True`: they are memory
      to write to and are never read.

  Returns:
    The answers, and the caches for the next batch.
  """
  G, C = decoding.max_new_tokens, caches[0].value.shape[3]
  B, S = prompts.tokens.shape
  P = prefix[0].value.shape[2] if prefix else 0
  M = member_ids.shape[0]
  stop_table = jnp.asarray(decoding.stop_table)
  last_state = decoding.stop_table.shape[0] - 1
  pad = S - prompts.length[:, None]
  prompt_mask = np.arange(S)[None] >= pad  # [B, S]
  slot = jnp.arange(C)[None]
  cache_prompt_mask = np.arange(C)[None] >= pad  # [B, C]
  slot_positions = P + np.arange(C)[None] - pad  # [B, C]
  who = (member_ids, draws)

  def choose(logits, who, step):
    rows = Rows(*who, prompts.row)
    return decoding.choose(logits, rows, step)

  def prefill(weights, who, prefix):
    logits, fresh = model.apply(
      weights,
      prompts.tokens,
      jnp.maximum(P + np.arange(S)[None] - pad, 0),
      prompt_mask,
      Context(prefix=prefix),
    )
    return choose(logits, who, jnp.int32(0)), fresh

  def advance(weights, who, prefix, token, cache, step):
    seen = cache_prompt_mask & (slot < S + step - 1)
    logits, fresh = model.apply(
      weights,
      token[:, None],
      P + prompts.length[:, None] + step - 1,
      np.ones((B, 1), bool),
      Context(prefix, cache, seen, slot_positions),
    )
    return choose(logits, who, step), fresh

  def emit(state, token):
    """Records the tokens of one step; rows that are done emit pad."""
    token = jnp.where(state.done, jnp.int32(decoding.pad_id), token)
    stop = jnp.where(state.done, state.stop, stop_table[state.stop, token])
    return state._replace(
      step=state.step + 1,
      token=token,
      stop=stop,
      done=stop == last_state,
      tokens=jax.lax.dynamic_update_slice(
        state.tokens, token[:, :, None], (0, 0, state.step)
      ),
      length=state.length + (~state.done).astype(jnp.int32),
    )

  def body(state):
    token, fresh = jax.vmap(advance, in_axes=(in_axes, 0, 0, 0, 0, None))(
      members, who, prefix, state.token, state.caches, state.step
    )
    after = emit(state, token)
    # The slot is made to depend on the tokens (when all rows are done it does
    # not matter which it is), so that XLA knows each cache to be read before
    # it is written. Otherwise it copies every cache twice a step.
    slot = S + state.step - jnp.all(after.done).astype(jnp.int32)
    write = jax.lax.dynamic_update_slice
    caches = [
      KeyValue(
        write(cache.key, new.key, (0, 0, 0, 0, slot - 1)),
        write(cache.value, new.value, (0, 0, 0, slot - 1, 0)),
      )
      for cache, new in zip(state.caches, fresh, strict=True)
    ]
    return after._replace(caches=caches)

  def each_its_own(x):
    """A value that is one for all devices under `shard_map`, as one of each.

    Layers below the first array that moves answer alike for all members, and
    the loop's state has to start as what it becomes. XLA folds the comparison.
    """
    own = member_ids == member_ids
    return jnp.where(jnp.expand_dims(own, range(1, x.ndim)), x, x[:1])

  def unfinished(state):
    return (state.step < G) & ~jnp.all(state.done)

  token, fresh = jax.vmap(prefill, in_axes=(in_axes, 0, 0))(
    members, who, prefix
  )
  # Slots not written yet are zeroed, not left over from the last batch: a
  # weight of 0 times a stale NaN would be NaN, in another member's answer.
  lead, ahead = [(0, 0)] * 3, [(0, C - S)]
  caches = [
    KeyValue(
      each_its_own(jnp.pad(new.key, [*lead, (0, 0), *ahead])),
      each_its_own(jnp.pad(new.value, [*lead, *ahead, (0, 0)])),
    )
    for new in fresh
  ]
  idle = jnp.broadcast_to(~prompts.live[None], (M, B))
  state = _State(
    step=jnp.int32(0),
    token=token,
    stop=jnp.where(idle, jnp.int32(last_state), jnp.int32(0)),
    done=idle,
    tokens=jnp.full((M, B, G), decoding.pad_id, jnp.int32),
    length=jnp.zeros_like(token),
    caches=caches,
  )
  state = jax.lax.while_loop(unfinished, body, emit(state, token))
  generated = Generated(
    tokens=state.tokens,
    length=state.length,
    stopped=state.done,
    steps=jnp.broadcast_to(state.step, (M,)),
  )
  return generated, state.caches
