# SPDX-License-Identifier: Apache-2.0
"""1-D signals: what an MLP is pretrained on, and what it is post-trained for.

Section 3 of Neural Thickets (arXiv 2603.12228) asks in one dimension what a
random guess around pretrained weights can do. Formulas and ranges are facts of
the released experiment: 70 values, every 0.1 from x = -2.5; periodic families
share the angular frequency 4 and differ in phase, amplitude and offset. In the
release each target is one signal, so that what is tested has been selected on;
here its offset or phase varies, and test rows are fresh.

Signal i is a function of (key, i) alone: more signals change none of those
there are. Everything is drawn on the device.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

START, STEP = -2.5, 0.1
CONTEXT = 10  # values from which the next is predicted
NONE, MIXED = 'none', 'mixed'
FREQUENCY = np.float32(4)  # in radians for each unit of x

# (key, x [T]) -> y [T]: one signal with parameters of its own.
Family = Callable[[jax.Array, jax.Array], jax.Array]

_AMPLITUDE = (0.8, 1.2)
_PHASE = (0.0, 2 * np.pi)
_OFFSET = (-0.5, 0.5)


def _uniform(key: jax.Array, *ranges: tuple[float, float]) -> list[jax.Array]:
  low, high = np.array(ranges, np.float32).T
  return list(low + (high - low) * jax.random.uniform(key, (len(ranges),)))


def sinusoid(key: jax.Array, x: jax.Array) -> jax.Array:
  """Gives a sin(4 x + p) + b; a in 0.8..1.2, p in 0..2 pi, b in -0.5..0.5."""
  a, p, b = _uniform(key, _AMPLITUDE, _PHASE, _OFFSET)
  return a * jnp.sin(FREQUENCY * x + p) + b


def line(key: jax.Array, x: jax.Array) -> jax.Array:
  """Gives s x + b; the slope s in -0.5..0.5, b in -1..1."""
  s, b = _uniform(key, (-0.5, 0.5), (-1.0, 1.0))
  return s * x + b


def harmonic(key: jax.Array, x: jax.Array) -> jax.Array:
  """Gives a (0.5 sin(4 x + p) + 0.3 sin(8 x)) + b; ranges as `sinusoid`."""
  a, p, b = _uniform(key, _AMPLITUDE, _PHASE, _OFFSET)
  first = np.float32(0.5) * jnp.sin(FREQUENCY * x + p)
  return a * (first + np.float32(0.3) * jnp.sin(2 * FREQUENCY * x)) + b


def sigmoid(key: jax.Array, x: jax.Array) -> jax.Array:
  """Gives a tanh(0.1 x + p) + b; a in 0.5..1.5, p in -pi..pi."""
  a, p, b = _uniform(key, (0.5, 1.5), (-np.pi, np.pi), _OFFSET)
  return a * jnp.tanh(np.float32(0.1) * x + p) + b


def sawtooth(key: jax.Array, x: jax.Array) -> jax.Array:
  """Gives a / 2 of a soft sawtooth of four sines, plus b; as `sinusoid`.

  The sines of 1, 2, 3, 4 times 4 x + p weigh 1, -0.5, 0.33, -0.25.
  """
  a, p, b = _uniform(key, _AMPLITUDE, _PHASE, _OFFSET)
  angle = FREQUENCY * x + p
  weights = np.array([1, -0.5, 0.33, -0.25], np.float32)
  waves = [w * jnp.sin(n * angle) for n, w in enumerate(weights, 1)]
  return a / 2 * sum(waves) + b


def square(key: jax.Array, x: jax.Array) -> jax.Array:
  """Gives a tanh(k sin(4 x + p)) + b; a in 0.2..0.4, k in 4..6."""
  a, p, b, k = _uniform(key, (0.2, 0.4), _PHASE, _OFFSET, (4.0, 6.0))
  return a * jnp.tanh(k * jnp.sin(FREQUENCY * x + p)) + b


FAMILIES: dict[str, Family] = {
  'sinusoid': sinusoid,
  'line': line,
  'harmonic': harmonic,
  'sigmoid': sigmoid,
  'sawtooth': sawtooth,
  'square': square,
}


def fixed_line(key: jax.Array, x: jax.Array) -> jax.Array:
  """Gives -0.25 x + b; b in -0.5..0.5."""
  (b,) = _uniform(key, _OFFSET)
  return np.float32(-0.25) * x + b


def fixed_sinusoid(key: jax.Array, x: jax.Array) -> jax.Array:
  """Gives 0.5 sin(4 x + p); p in 0..2 pi."""
  (p,) = _uniform(key, _PHASE)
  return np.float32(0.5) * jnp.sin(FREQUENCY * x + p)


def fixed_square(key: jax.Array, x: jax.Array) -> jax.Array:
  """Gives 0.3 tanh(5 sin(4 x + p)); p in 0..2 pi."""
  (p,) = _uniform(key, _PHASE)
  return np.float32(0.3) * jnp.tanh(5 * jnp.sin(FREQUENCY * x + p))


# What is searched for: three fixed shapes, and families as a whole.
TARGETS: dict[str, Family] = {
  'fixed_line': fixed_line,
  'fixed_square': fixed_square,
  'fixed_sinusoid': fixed_sinusoid,
  'line': line,
  'sinusoid': sinusoid,
  'square': square,
}


class Pair(NamedTuple):
  """One experiment: initial weights, what was pretrained on, the target."""

  initializer: str
  source: str
  target: str


_SOURCES = (
  *itertools.product(('xavier', 'kaiming', 'orthogonal'), (NONE,)),
  ('xavier', MIXED),
  ('xavier', 'line'),
)
# The twenty of the released generalisation script, and the three of the
# approximation script.
PAIRS = (
  *(
    Pair(*source, target)
    for target in ('fixed_line', 'fixed_square', 'fixed_sinusoid')
    for source in _SOURCES
  ),
  Pair('xavier', MIXED, 'line'),
  Pair('xavier', MIXED, 'sinusoid'),
  Pair('xavier', MIXED, 'square'),
  Pair('xavier', 'sinusoid', 'square'),
  Pair('xavier', 'square', 'square'),
)
APPROXIMATION = tuple(
  Pair('xavier', source, 'fixed_line') for source in (NONE, MIXED, 'line')
)


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

  The released loop always takes the first window: length = CONTEXT + 1.

  Args:
    families: as for `draw`.
    key: a typed key; another key, other signals.
    num: how many windows.
    length: of the signals they are cut from, above CONTEXT.

  Returns:
    float32 [num, CONTEXT] and [num].

  Raises:
    ValueError: a signal is too short for a window and what follows.
  """
  if length <= CONTEXT:
    raise ValueError(f'length = {length}: must be above CONTEXT = {CONTEXT}')
  key_signal, key_start = jax.random.split(key)
  drawn = draw(families, key_signal, num, length)
  starts = jax.random.randint(key_start, (num,), 0, length - CONTEXT)
  cut = jax.vmap(
    lambda row, at: jax.lax.dynamic_slice(row, (at,), (CONTEXT + 1,))
  )(drawn, starts)
  return cut[:, :CONTEXT], cut[:, CONTEXT]
