# SPDX-License-Identifier: Apache-2.0
"""Signals against their formulas in float64, and what a key decides."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from thicket import signals
from thicket.models import mlp

X = signals.START + signals.STEP * np.arange(70)
PHASE, OFFSET = (0.0, 2 * np.pi), (-0.5, 0.5)
WAVE = ((0.8, 1.2), PHASE, OFFSET)


def _harmonic(a, p, b):
  return a * (0.5 * np.sin(4 * X + p) + 0.3 * np.sin(8 * X)) + b


def _sawtooth(a, p, b):
  waves = [1, -0.5, 0.33, -0.25]
  return a / 2 * sum(
    w * np.sin(n * (4 * X + p)) for n, w in enumerate(waves, 1)
  ) + b  # fmt: skip


# Ranges of the parameters in the order of the draw, and the formula.
FAMILIES = {
  'sinusoid': (WAVE, lambda a, p, b: a * np.sin(4 * X + p) + b),
  'line': (((-0.5, 0.5), (-1.0, 1.0)), lambda s, b: s * X + b),
  'harmonic': (WAVE, _harmonic),
  'sigmoid': (
    ((0.5, 1.5), (-np.pi, np.pi), OFFSET),
    lambda a, p, b: a * np.tanh(0.1 * X + p) + b,
  ),
  'sawtooth': (WAVE, _sawtooth),
  'square': (
    ((0.2, 0.4), PHASE, OFFSET, (4.0, 6.0)),
    lambda a, p, b, k: a * np.tanh(k * np.sin(4 * X + p)) + b,
  ),
}
TARGETS = {
  'fixed_line': ((OFFSET,), lambda b: -0.25 * X + b),
  'fixed_square': (
    (PHASE,),
    lambda p: 0.3 * np.tanh(5 * np.sin(4 * X + p)),
  ),
  'fixed_sinusoid': ((PHASE,), lambda p: 0.5 * np.sin(4 * X + p)),
  **{name: FAMILIES[name] for name in ('line', 'sinusoid', 'square')},
}
KINDS = [(signals.FAMILIES, name, known) for name, known in FAMILIES.items()]
KINDS += [(signals.TARGETS, name, known) for name, known in TARGETS.items()]


def test_every_family_and_target_has_a_formula_here():
  assert list(signals.FAMILIES) == list(FAMILIES)
  assert list(signals.TARGETS) == list(TARGETS)


@pytest.mark.parametrize(('table', 'name', 'known'), KINDS)
def test_signals_follow_their_formula(table, name, known):
  ranges, formula = known
  low, high = np.array(ranges).T
  key, num = jax.random.key(7), 40
  found = np.asarray(signals.draw((table[name],), key, num, len(X)))
  assert found.dtype == np.float32
  for i in range(num):
    own = jax.random.fold_in(key, i)
    uniform = np.asarray(jax.random.uniform(own, (len(ranges),)), np.float64)
    wanted = formula(*(low + (high - low) * uniform))
    np.testing.assert_allclose(found[i], wanted, atol=2e-5)


@pytest.mark.parametrize('name', [signals.MIXED, *signals.FAMILIES])
def test_more_or_longer_signals_leave_the_first_as_they_were(name):
  families = signals.of_pretraining(name)
  key = jax.random.key(3)
  some = np.asarray(signals.draw(families, key, 7, 20))
  more = np.asarray(signals.draw(families, key, 50, 20))
  longer = np.asarray(signals.draw(families, key, 7, 70))
  np.testing.assert_array_equal(more[:7], some)
  np.testing.assert_array_equal(longer[:, :20], some)


def test_a_mixture_takes_its_families_in_turn():
  key = jax.random.key(5)
  mixed = np.asarray(signals.draw(signals.of_pretraining('mixed'), key, 18, 30))
  for at, family in enumerate(signals.FAMILIES.values()):
    alone = np.asarray(signals.draw((family,), key, 18, 30))
    np.testing.assert_allclose(mixed[at::6], alone[at::6], rtol=0, atol=1e-6)


def test_another_key_gives_other_signals():
  families = signals.of_pretraining('line')
  a = np.asarray(signals.draw(families, jax.random.key(0), 8, 12))
  b = np.asarray(signals.draw(families, jax.random.key(1), 8, 12))
  assert (a != b).all(axis=1).all()
  assert len(np.unique(a[:, 0])) == 8


def test_pairs_name_what_there_is():
  assert len(signals.PAIRS) == len(set(signals.PAIRS)) == 20
  assert len(signals.APPROXIMATION) == 3
  for initializer, source, target in (*signals.PAIRS, *signals.APPROXIMATION):
    assert initializer in mlp.INITIALIZERS
    assert target in signals.TARGETS
    if source != signals.NONE:
      assert signals.of_pretraining(source)


def test_unknown_pretraining_names_what_is_known():
  with pytest.raises(ValueError, match=r"'triangle'.*none.*mixed.*sawtooth"):
    signals.of_pretraining('triangle')


def test_signals_too_short_for_a_window_are_refused():
  families = signals.of_pretraining('line')
  with pytest.raises(ValueError, match='length = 10: must be above'):
    signals.windows(families, jax.random.key(0), 3, signals.CONTEXT)


def test_windows_are_consecutive_and_reach_both_ends():
  length = 30

  def ramp(key, x):
    del key
    return x

  inputs, following = signals.windows((ramp,), jax.random.key(2), 600, length)
  inputs, following = np.asarray(inputs), np.asarray(following)
  assert inputs.shape == (600, signals.CONTEXT)
  assert following.shape == (600,)
  starts = np.rint((inputs[:, 0] - signals.START) / signals.STEP).astype(int)
  steps = starts[:, None] + np.arange(signals.CONTEXT + 1)
  wanted = signals.START + signals.STEP * steps
  np.testing.assert_allclose(inputs, wanted[:, :-1], atol=1e-6)
  np.testing.assert_allclose(following, wanted[:, -1], atol=1e-6)
  # All starts from which a value follows, and the last value is among them.
  assert sorted(set(starts)) == list(range(length - signals.CONTEXT))


def test_windows_are_cut_from_signals_of_the_family():
  families = (signals.FAMILIES['line'],)
  inputs, following = signals.windows(families, jax.random.key(4), 50, 70)
  whole = np.concatenate([inputs, np.asarray(following)[:, None]], axis=1)
  np.testing.assert_allclose(np.diff(whole, n=2), 0, atol=1e-6)
  assert np.abs(np.diff(whole)[:, 0]).max() <= 0.05 + 1e-6


def test_signals_can_be_drawn_inside_another_program():
  key = jax.random.key(6)
  families = signals.of_pretraining('mixed')
  inside = jax.jit(lambda key: signals.draw(families, key, 12, 25))(key)
  outside = signals.draw(families, key, 12, 25)
  np.testing.assert_allclose(inside, outside, rtol=0, atol=1e-6)
  assert jnp.isfinite(inside).all()
