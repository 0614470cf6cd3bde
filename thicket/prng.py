# SPDX-License-Identifier: Apache-2.0
"""The key contract and the noise kernel.

The noise of a member is a pure function of (root seed, member id, canonical
tensor name, layer, element index) and of nothing else: not of tree order,
batch, mesh, device count or weight dtype. Four applications of Threefry-2x32
with 20 rounds (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
SC 2011) lead from the seed to a word:

    member key  = threefry(seed,       (0, member id))
    name key    = threefry(member key, first 8 bytes of SHA-256(name))
    tensor key  = threefry(name key,   (0, layer))
    word(index) = xor of threefry(tensor key, index), index a 64-bit number

Each input is unique where it is used, so no two words of a population share a
block of the cipher. The layout is that of JAX's own partitionable Threefry:
the member and layer steps equal `jax.random.fold_in`, and the words of a
tensor equal `jax.random.bits(tensor key, shape)`. The kernel is written out
round by round because XLA keeps the rolled one as a loop on CPU (4-6x slower).

Axes: M members, S tensors.
"""

from __future__ import annotations

import hashlib
import pathlib
import platform
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

NAME = 'threefry2x32-20'  # goes into the recipe
VERSION = 1  # of the whole path from seed to normal deviate

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = np.uint32(0x1BD11BDA)
# The largest float32 below 1: erf_inv(1) is infinite and no draw may be.
_LAST = np.float32(1 - 2**-24)

# Highest power first.
_LOG = (
  7.0376836292e-2,
  -1.1514610310e-1,
  1.1676998740e-1,
  -1.2420140846e-1,
  1.4249322787e-1,
  -1.6668057665e-1,
  2.0000714765e-1,
  -2.4999993993e-1,
  3.3333331174e-1,
)
_CENTRE = (
  2.81022636e-08,
  3.43273939e-07,
  -3.5233877e-06,
  -4.39150654e-06,
  0.00021858087,
  -0.00125372503,
  -0.00417768164,
  0.246640727,
  1.50140941,
)
_TAIL = (
  -0.000200214257,
  0.000100950558,
  0.00134934322,
  -0.00367342844,
  0.00573950773,
  -0.0076224613,
  0.00943887047,
  1.00167406,
  2.83297682,
)

Words = Any  # uint32, numpy or jax


def threefry2x32(
  key: tuple[Words, Words], counter: tuple[Words, Words]
) -> tuple[Words, Words]:
  """Threefry-2x32 with 20 rounds, elementwise on numpy or jax uint32 arrays.

  Args:
    key: two words; each broadcasts against the counter.
    counter: two words, at least one of them an array.

  Returns:
    Two words of the broadcast shape.
  """
  k0, k1 = key
  schedule = (k0, k1, k0 ^ k1 ^ _PARITY)
  x0, x1 = counter[0] + k0, counter[1] + k1
  for block in range(5):
    for r in _ROTATIONS[block % 2]:
      x0 = x0 + x1
      x1 = (x1 << np.uint32(r)) | (x1 >> np.uint32(32 - r))
      x1 = x1 ^ x0
    x0 = x0 + schedule[(block + 1) % 3]
    x1 = x1 + (schedule[(block + 2) % 3] + np.uint32(block + 1))
  return x0, x1


def name_words(name: str) -> tuple[int, int]:
  """The first 8 bytes of a name's SHA-256 as (high, low) 32-bit words."""
  digest = hashlib.sha256(name.encode()).digest()
  return (
    int.from_bytes(digest[:4], 'big'),
    int.from_bytes(digest[4:8], 'big'),
  )


def check_names(names: Sequence[str]) -> None:
  """Raises ValueError if two different names hash to the same 64 bits."""
  seen: dict[tuple[int, int], str] = {}
  for name in names:
    other = seen.setdefault(name_words(name), name)
    if other != name:
      raise ValueError(
        f'tensors {other!r} and {name!r} hash to the same 64 bits and would '
        'share their noise; rename one of them'
      )


def check_seed(seed: int) -> None:
  """Raises ValueError unless 0 <= seed < 2**64."""
  if not 0 <= seed < 2**64:
    raise ValueError(f'seed {seed} is outside [0, 2**64)')


def seed_of(key: jax.Array | int) -> int:
  """The root seed in a typed threefry key, or an integer as it is.

  Raises:
    ValueError: `key` is neither.
  """
  if isinstance(key, (int, np.integer)):
    return int(key)
  dtype = getattr(key, 'dtype', None)
  if dtype is None or not jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):
    raise ValueError(
      f'key is {dtype or type(key).__name__}; make it with jax.random.key(seed)'
    )
  words = np.asarray(jax.random.key_data(key))
  if words.shape != (2,):
    raise ValueError(
      f'key holds words of shape {words.shape}; one threefry key is needed'
    )
  return int(words[0]) << 32 | int(words[1])


def tensor_keys(
  seed: int,
  member_ids: Sequence[int] | np.ndarray,
  names: Sequence[str],
  layers: Sequence[int],
) -> np.ndarray:
  """The keys of some tensors of some members, computed on the host.

  Args:
    seed: root seed of the population, 0 <= seed < 2**64.
    member_ids: [M] ids, -2**31 <= id < 2**31.
    names: [S] canonical names without the layer number.
    layers: [S] layer numbers, 0 for a tensor that belongs to no layer.

  Returns:
    uint32 [M, S, 2], high word first.

  Raises:
    ValueError: a seed or a member id is out of range.
  """
  check_seed(seed)
  ids = np.asarray(member_ids, np.int64)
  if ids.size and not (ids.min() >= -(2**31) and ids.max() < 2**31):
    raise ValueError(f'member id {ids[np.abs(ids).argmax()]} exceeds 31 bits')
  members = ids.astype(np.uint32)[:, None]
  halves = np.array([name_words(name) for name in names], np.uint32)
  layer = np.asarray(layers, np.uint32)[None, :]
  root = (
    np.array([[seed >> 32]], np.uint32),
    np.array([[seed & 0xFFFFFFFF]], np.uint32),
  )
  zero = np.zeros((1, 1), np.uint32)
  member_key = threefry2x32(root, (zero, members))
  name_key = threefry2x32(member_key, (halves[None, :, 0], halves[None, :, 1]))
  return np.stack(threefry2x32(name_key, (zero, layer)), axis=-1)


def index_words(
  rows: int, columns: int, local_row: np.ndarray | None = None
) -> tuple[Words, Words]:
  """The 64-bit index `row * columns + column` as (high, low) uint32 words.

  Args:
    rows: number of rows R.
    columns: number of columns C.
    local_row: [R] the row's number inside its tensor; None counts from 0.

  Returns:
    Two words that broadcast to [R, C]; high is 0 while 32 bits suffice.
  """
  column = jax.lax.broadcasted_iota(jnp.uint32, (rows, columns), 1)
  last_row = rows - 1 if local_row is None else int(np.max(local_row))
  if (last_row + 1) * columns <= 2**32:
    if local_row is None:
      row = jax.lax.broadcasted_iota(jnp.uint32, (rows, columns), 0)
    else:
      row = np.asarray(local_row, np.uint32)[:, None]
    return np.uint32(0), row * np.uint32(columns) + column
  # Exact 64-bit starts of the rows from the host, then one carry.
  row = np.arange(rows) if local_row is None else np.asarray(local_row)
  start = row.astype(np.uint64) * np.uint64(columns)
  high = (start >> np.uint64(32)).astype(np.uint32)[:, None]
  low = (start & np.uint64(0xFFFFFFFF)).astype(np.uint32)[:, None]
  total = low + column
  return high + (total < low).astype(jnp.uint32), total


def words(key: tuple[Words, Words], index: tuple[Words, Words]) -> Words:
  """The random uint32 words of a tensor at the given element indices."""
  first, second = threefry2x32(key, index)
  return first ^ second


def log(y: jax.Array) -> jax.Array:
  """Natural logarithm of normal float32 numbers, to 1 unit in the last place.

  Cephes' logf without its special cases: y = 2**e * (1 + f), 1 + f between
  sqrt(1/2) and sqrt(2).
  """
  bits = jax.lax.bitcast_convert_type(y, jnp.int32)
  exponent = (bits - np.float32(np.sqrt(0.5)).view(np.int32)) >> np.int32(23)
  f = jax.lax.bitcast_convert_type(
    bits - (exponent << np.int32(23)), jnp.float32
  ) - np.float32(1)
  square = f * f
  cubic = _horner(_LOG, f) * f * square
  return exponent.astype(jnp.float32) * np.float32(np.log(2)) + (
    (f - np.float32(0.5) * square) + cubic
  )


def _horner(coefficients: Sequence[float], x: jax.Array) -> jax.Array:
  total = np.float32(coefficients[0])
  for coefficient in coefficients[1:]:
    total = total * x + np.float32(coefficient)
  return total


def erf_inv(x: jax.Array, factor: float = 1.0) -> jax.Array:
  """The inverse error function for |x| <= 1 - 2**-24, times `factor`.

  Giles, "Approximating the erfinv function" (GPU Computing Gems, 2011), single
  precision; relative error below 3e-7. Our own rather than `jax.lax.erf_inv`
  (6e-6 on CPU) so that an upgrade of XLA cannot change a member, and because
  the logarithm of (1 - x)(1 + x) needs none of the special cases (20% faster).
  The factor goes into the coefficients: left as a product, XLA would move it
  to whatever the result is multiplied by, in some shapes and not in others.
  """
  w = -log((np.float32(1) - x) * (np.float32(1) + x))
  centre = _horner([factor * c for c in _CENTRE], w - np.float32(2.5))
  tail = _horner([factor * c for c in _TAIL], jnp.sqrt(w) - np.float32(3))
  return jnp.where(w < np.float32(5), centre, tail) * x


def gaussian(random_words: jax.Array) -> jax.Array:
  """Standard normal float32 deviates from uint32 words, one each.

  The word is read as a signed fraction u in (-1, 1) and the deviate is
  sqrt(2) erf_inv(u). Near the ends u moves in steps of 2**-24, so tails are
  right to 4.5 sigma and the largest magnitude is 5.42; none is infinite.
  """
  fraction = jax.lax.bitcast_convert_type(random_words, jnp.int32).astype(
    jnp.float32
  ) * np.float32(2**-31)
  return erf_inv(jnp.clip(fraction, -_LAST, _LAST), np.sqrt(2))


def arithmetic() -> str:
  """The class of devices on which members and their products have equal bits.

  On CPU the fused multiply-add changes the last bit of a Gaussian deviate, and
  the vector width the order of sums in a product.
  """
  backend = jax.default_backend()
  if backend != 'cpu':
    return f'{backend}:{jax.devices()[0].device_kind}'
  try:
    flags = pathlib.Path('/proc/cpuinfo').read_text(encoding='utf-8').split()
  except OSError:
    return f'cpu:{platform.machine()}'
  classes = [flag for flag in ('fma', 'avx2', 'avx512f') if flag in flags]
  return '+'.join([f'cpu:{platform.machine()}', *classes])
