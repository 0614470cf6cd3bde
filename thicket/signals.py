# SPDX-License-Identifier: Apache-2.0
"""1-D signals: what an MLP is pretrained on, and what it is post-trained for.

Section 3 of Neural Thickets (arXiv 2603.12228) asks in one dimension what a
random guess around pretrained weights can do. Signals are sampled every 0.1
from x = -2.5. The paper names the families; ranges of their parameters, which
it does not state, are chosen here so that all of them stay within about 1.5.

Signal i is a function of (key, i) alone: more signals change none of those
there are. Everything is drawn on the device.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

START, STEP = -2.5, 0.1
CONTEXT = 10  # values from which the next is predicted
NONE, MIXED = 'none', 'mixed'

# (key, x [T]) -> y [T]: one signal with parameters of its own.
Family = Callable[[jax.Array, jax.Array], jax.Array]


def _uniform(key: jax.Array, *ranges: tuple[float, float]) -> list[jax.Array]:
  low, high = np.array(ranges, np.float32).T
  return list(low + (high - low) * jax.random.uniform(key, (len(ranges),)))


_AMPLITUDE = (0.5, 1.5)
_FREQUENCY = (0.1, 0.5)  # in cycles for each unit of x
_PHASE = (0.0, 1.0)  # in cycles


def sinusoid(key: jax.Array, x: jax.Array) -> jax.Array:
  """Gives a sin(2 pi (f x + p)); a in 0.5..1.5, f in 0.1..0.5, p in 0..1."""
  a, f, p = _uniform(key, _AMPLITUDE, _FREQUENCY, _PHASE)
  return a * jnp.sin(2 * np.float32(np.pi) * (f * x + p))


def line(key: jax.Array, x: jax.Array) -> jax.Array:
  """Gives s x + b; the slope s in -0.3..0.3, b in -0.5..0.5."""
  s, b = _uniform(key, (-0.3, 0.3), (-0.5, 0.5))
  return s * x + b


def harmonic(key: jax.Array, x: jax.Array) -> jax.Array:
  """Three sinusoids of frequency f, 2f, 3f and amplitude a, a/2, a/3."""
  a, f, *phases = _uniform(key, (0.4, 0.9), (0.1, 0.3), *[_PHASE] * 3)
  waves = [
    jnp.sin(2 * np.float32(np.pi) * (n * f * x + p)) / n
    for n, p in enumerate(phases, 1)
  ]
  return a * sum(waves)


def sigmoid(key: jax.Array, x: jax.Array) -> jax.Array:
  """Gives a tanh(k (x - c)); a in -1.5..1.5, k in 0.5..3, c in -1.5..3."""
  a, k, c = _uniform(key, (-1.5, 1.5), (0.5, 3.0), (-1.5, 3.0))
  return a * jnp.tanh(k * (x - c))


def sawtooth(key: jax.Array, x: jax.Array) -> jax.Array:
  """Gives a (2 u - 1), u the fractional part of f x + p; as for `sinusoid`."""
  a, f, p = _uniform(key, _AMPLITUDE, _FREQUENCY, _PHASE)
  cycles = f * x + p
  return a * (2 * (cycles - jnp.floor(cycles)) - 1)


def square(key: jax.Array, x: jax.Array) -> jax.Array:
  """Gives a in the first half of each cycle of f x + p, -a in the second."""
  a, f, p = _uniform(key, _AMPLITUDE, _FREQUENCY, _PHASE)
  cycles = f * x + p
  return jnp.where(cycles - jnp.floor(cycles) < 0.5, a, -a)


FAMILIES: dict[str, Family] = {
  'sinusoid': sinusoid,
  'line': line,
  'harmonic': harmonic,
  'sigmoid': sigmoid,
  'sawtooth': sawtooth,
  'square': square,
}


def target_line(key: jax.Array, x: jax.Array) -> jax.Array:
  """Gives -0.25 x + b; b in -0.5..0.5. The paper's target."""
  (b,) = _uniform(key, (-0.5, 0.5))
  return np.float32(-0.25) * x + b


def target_sinusoid(key: jax.Array, x: jax.Array) -> jax.Array:
  """Gives sin(2 pi (0.25 x + p)), p in 0..1."""
  (p,) = _uniform(key, _PHASE)
  return jnp.sin(2 * np.float32(np.pi) * (np.float32(0.25) * x + p))


def target_sawtooth(key: jax.Array, x: jax.Array) -> jax.Array:
  """Gives 2 u - 1, u the fractional part of 0.25 x + p, p in 0..1."""
  (p,) = _uniform(key, _PHASE)
  cycles = np.float32(0.25) * x + p
  return 2 * (cycles - jnp.floor(cycles)) - 1


def target_square(key: jax.Array, x: jax.Array) -> jax.Array:
  """Gives 1 in the first half of each cycle of 0.25 x + p, -1 in the second."""
  (p,) = _uniform(key, _PHASE)
  cycles = np.float32(0.25) * x + p
  return jnp.where(cycles - jnp.floor(cycles) < 0.5, 1.0, -1.0)


TARGETS: dict[str, Family] = {
  'line': target_line,
  'sinusoid': target_sinusoid,
  'sawtooth': target_sawtooth,
  'square': target_square,
}

# What was pretrained on, and what is searched for.
PAIRS = tuple(
  (source, target)
  for source in (NONE, MIXED, 'line', 'sinusoid', 'square')
  for target in TARGETS
)
APPROXIMATION = ((NONE, 'line'), (MIXED, 'line'), ('line', 'line'))


def draw(
  families: tuple[Family, ...], key: jax.Array, num: int, length: int
) -> jax.Array:
  """Signals of one family, or of several in turn.

  Args:
    families: signal i is of family i modulo their number.
    key: a typed key; signal i takes fold_in(key, i).
    num: how many.
    length: values of each, T.

  Returns:
    float32 [num, T].
  """
  return _draw(tuple(families), key, num, length)


@functools.partial(jax.jit, static_argnums=(0, 2, 3))
def _draw(families, key, num, length):
  x = np.float32(START) + np.float32(STEP) * np.arange(length, dtype=np.float32)

  def one(i):
    own = jax.random.fold_in(key, i)
    return jax.lax.switch(i % len(families), families, own, jnp.asarray(x))

  return jax.vmap(one)(jnp.arange(num))


def of_pretraining(name: str) -> tuple[Family, ...]:
  """The families that a name stands for; `mixed` is all of them.

  Raises:
    ValueError: the name is neither a family nor `mixed`.
  """
  if name == MIXED:
    return tuple(FAMILIES.values())
  if name not in FAMILIES:
    known = ', '.join([NONE, MIXED, *FAMILIES])
    raise ValueError(f'pretraining on {name!r}: known are {known}')
  return (FAMILIES[name],)


def windows(
  families: tuple[Family, ...], key: jax.Array, num: int, length: int
) -> tuple[jax.Array, jax.Array]:
  """A random window of each of `num` signals, and the value that follows.

  Args:
    families: as for `draw`.
    key: a typed key; another key, other signals.
    num: how many windows.
    length: of the signals they are cut from.

  Returns:
    float32 [num, CONTEXT] and [num].
  """
  key_signal, key_start = jax.random.split(key)
  drawn = draw(families, key_signal, num, length)
  starts = jax.random.randint(key_start, (num,), 0, length - CONTEXT)
  cut = jax.vmap(
    lambda row, at: jax.lax.dynamic_slice(row, (at,), (CONTEXT + 1,))
  )(drawn, starts)
  return cut[:, :CONTEXT], cut[:, CONTEXT]
