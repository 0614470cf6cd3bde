# SPDX-License-Identifier: Apache-2.0
"""Token rules: greedy, and sampling by temperature, top-k and top-p.

A sample is a pure function of (root seed, member, row id, draw, step) and the
logits: who shares its batch, how many draws there are and in which order they
are made leave no trace, so draw 3 of 8 is draw 3 of 64. The key contract of
`prng` is continued:

    use key     = threefry(member key, first 8 bytes of SHA-256(USE))
    row key     = threefry(use key,    row id)
    draw key    = threefry(row key,    (0, draw))
    step key    = threefry(draw key,   (0, step))
    word(token) = xor of threefry(step key, (0, token))

A token is drawn by the Gumbel-max trick (Gumbel, 1954; Yellott, 1977), one
word for each token of the vocabulary. All temperatures use the same words,
which makes comparisons between them paired.

Axes: B rows, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from thicket import prng

USE = 'tokens of a sample'  # no tensor has this name
VERSION = 1  # of the path from seed to token

_LAST = np.float32(1 - 2**-24)
_BLOCKS = 512  # at most, into which `greedy` cuts a vocabulary


class Rows(NamedTuple):
  """Who a row is; a token rule may depend on this and on nothing else.

  Attributes:
    member: int32 [], the member's id.
    draw: int32 [], which of several answers to the same questions.
    row: uint32 [B, 2], the row ids of the questions, high word first.
  """

  member: jax.Array
  draw: jax.Array
  row: jax.Array


# (float32 logits [B, V], rows, int32 step []) -> int32 tokens [B]
Choose = Callable[[jax.Array, Rows, jax.Array], jax.Array]


def row_words(row_ids: Sequence[int] | np.ndarray) -> np.ndarray:
  """uint32 [B, 2], row ids in 0..2**63-1 as (high, low) words."""
  ids = np.asarray(row_ids, np.uint64)
  high, low = ids >> np.uint64(32), ids & np.uint64(0xFFFFFFFF)
  return np.stack([high, low], axis=-1).astype(np.uint32)


def greedy(logits: jax.Array, rows: Rows, step: jax.Array) -> jax.Array:
  """The most likely token, the lowest id among equals; a `Choose` rule.

  The last of the vocabulary where a logit is NaN.
  """
  del rows, step
  # Two reductions, each by blocks of the vocabulary first, in the order in
  # which products leave logits: XLA's argmax is a reduction of pairs, and
  # without blocks it transposes the logits and works with one core. Equal
  # blocks are split over devices as the vocabulary is.
  size = logits.shape[-1]
  last = np.int32(size - 1)
  ids = jnp.arange(size, dtype=jnp.int32)
  ids = ids.reshape(math.gcd(size, _BLOCKS), -1, *[1] * (logits.ndim - 1))
  columns = jnp.moveaxis(logits, -1, 0)
  columns = columns.reshape(*ids.shape[:2], *columns.shape[1:])
  peak = jnp.max(jnp.max(columns, axis=1), axis=0)
  found = jnp.where(columns == peak[None, None], ids, last)
  return jnp.min(jnp.min(found, axis=1), axis=0)


def check(temperature: float, top_k: int = 0, top_p: float = 1.0) -> None:
  """Raises ValueError for settings that `sampler` does not take."""
  if not (math.isfinite(temperature) and temperature >= 0):
    raise ValueError(f'temperature = {temperature} is not a finite number >= 0')
  if temperature and not 1e-30 <= temperature <= 1e30:
    raise ValueError(
      f'temperature = {temperature} is outside [1e-30, 1e30], where logits '
      'overflow; 0 is greedy'
    )
  if isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 0:
    raise ValueError(f'top_k = {top_k} is not a whole number >= 0')
  if not 0 < top_p <= 1:
    raise ValueError(f'top_p = {top_p} is outside (0, 1]')


def sampler(
  seed: int, temperature: float, top_k: int = 0, top_p: float = 1.0
) -> Choose:
  """The rule that draws from softmax(logits / temperature), cut to the best.

  Args:
    seed: root seed, that of the population.
    temperature: at least 0; 0 is `greedy` itself.
    top_k: keep the k most likely tokens; 0 keeps all.
    top_p: then keep the fewest most likely tokens whose share of what is left
      reaches top_p, in (0, 1] (Holtzman et al., arXiv 1904.09751). Tokens as
      likely as the last one kept are kept too, in both.

  Raises:
    ValueError: a setting is out of range.
  """
  check(temperature, top_k, top_p)
  prng.check_seed(seed)
  if temperature == 0:
    return greedy
  use = tuple(map(np.uint32, prng.name_words(USE)))

  def choose(logits: jax.Array, rows: Rows, step: jax.Array) -> jax.Array:
    zero = jnp.zeros((), jnp.uint32)
    word = lambda number: number.astype(jnp.uint32)
    # Arrays: scalars of NumPy warn where the cipher wraps around.
    root = jnp.uint32(seed >> 32), jnp.uint32(seed & 0xFFFFFFFF)
    key = prng.threefry2x32(root, (zero, word(rows.member)))
    key = prng.threefry2x32(key, use)
    key = prng.threefry2x32(key, (rows.row[:, 0], rows.row[:, 1]))
    for number in (rows.draw, step):
      key = prng.threefry2x32(key, (zero, word(number)))
    key = tuple(half[:, None] for half in key)
    token = jax.lax.broadcasted_iota(jnp.uint32, logits.shape, 1)
    noise = gumbel(prng.words(key, (zero, token)))
    scaled = logits * np.float32(1 / temperature)
    kept = truncate(scaled, min(top_k, logits.shape[-1]), top_p)
    return greedy(kept + noise, rows, step)

  return choose


def gumbel(random_words: jax.Array) -> jax.Array:
  """Standard Gumbel float32 deviates from uint32 words, one each.

  They lie in [-2.82, 22.9]: the upper tail, which decides, is resolved to
  2**-32 and none is infinite. Relative error of exp(-deviate) below 4e-6, but
  for the lowest 1%, where words are rounded to float32.
  """
  u = random_words.astype(jnp.float32) * np.float32(2**-32)
  u = jnp.clip(u + np.float32(2**-33), None, _LAST)
  # -log(1 - u), by its series where 1 - u would lose digits.
  third, quarter = np.float32(1 / 3), np.float32(1 / 4)
  series = u * (1 + u * (np.float32(0.5) + u * (third + u * quarter)))
  wait = jnp.where(u < np.float32(0.01), series, -prng.log(1 - u))
  return -prng.log(wait)


def truncate(logits: jax.Array, top_k: int, top_p: float) -> jax.Array:
  """Logits [B, V] with -inf where top-k, then top-p, leaves a token out.

  The last token kept is found by bisection over the bits of its logit: 32
  passes over the vocabulary, exact, where a sort would be ten times slower.
  """
  if top_k:
    ones = jnp.ones_like(logits)
    logits = _cut(logits, ones, np.float32(top_k))
  if top_p < 1:
    peak = jnp.max(logits, axis=-1, keepdims=True)
    share = jax.nn.softmax(logits - peak, axis=-1)
    total = jnp.sum(share, axis=-1, keepdims=True)
    logits = _cut(logits, share, np.float32(top_p) * total)
  return logits


def _cut(logits: jax.Array, weight: jax.Array, needed: jax.Array) -> jax.Array:
  """Keeps the fewest greatest logits whose weights reach what is needed."""
  bits = jax.lax.bitcast_convert_type(logits, jnp.uint32)
  sign = np.uint32(1 << 31)
  bits = jnp.where(bits == sign, np.uint32(0), bits)  # -0.0 equals 0.0
  # Unsigned integers in the order of the floats.
  order = jnp.where(bits & sign, ~bits, bits | sign)

  def held(least):
    inside = jnp.where(order >= least, weight, np.float32(0))
    return jnp.sum(inside, axis=-1, keepdims=True)

  def narrow(i, least):
    higher = least | (sign >> i.astype(jnp.uint32))
    return jnp.where(held(higher) >= needed, higher, least)

  # Zeros that are known to differ from device to device, as the logits do.
  least = order[..., :1] & np.uint32(0)
  least = jax.lax.fori_loop(0, 32, narrow, least)
  return jnp.where(order >= least, logits, -jnp.inf)
