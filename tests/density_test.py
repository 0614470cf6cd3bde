# SPDX-License-Identifier: Apache-2.0
"""Solution density, where the effects of the members are known."""

import dataclasses

import jax
import numpy as np
import pytest
from scipy import special, stats

from thicket import metrics, prng
from thicket.analysis import density

MARGINS = np.array([-0.05, -0.02, 0.0, 0.01, 0.02, 0.05, 0.08, 0.1])


def _made(rng, effects, num_items=200, luck=0.5, common=0.0):
  """Rewards [N, r] and the base's [r]: the base has luck only in common."""
  base = 0.3 * rng.standard_normal(num_items)
  own = luck * rng.standard_normal((len(effects), num_items))
  shared = common * rng.standard_normal(num_items)
  return base + effects[:, None] + own + shared, base


def _one(rewards, base, margins=MARGINS, **options):
  groups = np.zeros(len(rewards), int)
  (found,) = density.solution_density(rewards, base, groups, margins, **options)
  return found


def _covers(low, high, truth):
  # Adding up to 1 leaves rounding errors in tails that are 0 or 1.
  return (low <= truth + 1e-9) & (truth - 1e-9 <= high)


def _errors(rng, sizes, draw, truth, repeats=12, **options):
  """Root mean squares [m] of errors, plain and corrected."""
  plain, corrected = [], []
  for _ in range(repeats):
    rewards, base = _made(rng, draw(rng, sizes[0]), sizes[1], **options)
    found = _one(rewards, base, num_resamples=1)
    plain.append(found.estimate - truth)
    corrected.append(found.corrected - truth)
  return [np.sqrt(np.mean(np.square(x), axis=0)) for x in (plain, corrected)]


def test_alike_members_have_the_intervals_of_fewer():
  rng = np.random.default_rng(5)
  rewards, base = _made(rng, 0.05 * rng.standard_normal(40))
  apart, pairs = (_one(rewards, base, alike=alike) for alike in (1, 2))
  np.testing.assert_array_equal(apart.estimate, pairs.estimate)
  np.testing.assert_array_equal(apart.corrected, pairs.corrected)
  low, high = metrics.wilson(20 * pairs.estimate, 20)
  np.testing.assert_allclose([pairs.low, pairs.high], [low, high])
  least, most = metrics.wilson_bounds(pairs.corrected, 20, special.ndtri(0.975))
  assert _covers(pairs.corrected_low, pairs.corrected_high, least).all()
  assert _covers(pairs.corrected_low, pairs.corrected_high, most).all()
  assert not _covers(apart.corrected_low, apart.corrected_high, most).all()


def test_the_plain_estimate_by_hand():
  base = np.array([1, 0, 0, 1, 0, 0, 0, 0, 0, 0])
  rewards = np.zeros((4, 10))
  rewards[0, :5] = 1  # +3 of 10
  rewards[1, :2] = 1  # 0
  rewards[2, 0] = 1  # -1
  rewards[3] = 1  # +8
  margins = [-0.2, -0.1, 0.0, 0.1, 0.3, 0.31, 0.8, 0.9]
  found = _one(rewards, base, margins)
  counts = np.array([4, 4, 3, 2, 2, 1, 1, 0])
  np.testing.assert_array_equal(found.estimate, counts / 4)
  low, high = metrics.wilson(counts, 4)
  np.testing.assert_array_equal(found.low, low)
  np.testing.assert_array_equal(found.high, high)
  np.testing.assert_array_equal(found.margins, margins)
  assert (found.group, found.members, found.items) == (0, 4, 10)


def test_a_margin_that_is_exactly_reached_counts_in_spite_of_rounding():
  # 0.7 - 0.6 and its mean fall short of 0.1 by a rounding error.
  assert 0.7 - 0.6 < 0.1
  found = _one([[0.7, 0.7]], [0.6, 0.6], [0.1, 0.1 + 1e-6])
  np.testing.assert_array_equal(found.estimate, [1, 0])


@pytest.mark.parametrize('tau', [0.015, 0.03])
def test_the_correction_finds_normal_effects(tau):
  # A score's standard error is 0.035: as much as the effects, or more.
  truth = stats.norm.sf(MARGINS, -0.01, tau)
  plain, corrected = _errors(
    np.random.default_rng(1),
    (500, 200),
    lambda rng, n: -0.01 + tau * rng.standard_normal(n),
    truth,
  )
  # 500 members of known effect would have an error of up to 0.022.
  assert corrected.max() < 0.07
  assert corrected.mean() < 0.4 * plain.mean()
  # The margins that matter: few members reach them, and noise adds many.
  assert np.all(corrected[4:] < 0.5 * plain[4:] + 0.003)


def test_the_correction_finds_effects_that_are_not_normal():
  truth = 0.7 * stats.norm.sf(MARGINS, 0, 0.03)
  truth += 0.3 * stats.norm.sf(MARGINS, -0.3, 0.03)

  def draw(rng, n):
    is_broken = rng.random(n) < 0.3
    return np.where(is_broken, -0.3, 0) + 0.03 * rng.standard_normal(n)

  plain, corrected = _errors(np.random.default_rng(2), (500, 200), draw, truth)
  assert corrected.max() < 0.05
  assert np.all(corrected[5:] < 0.5 * plain[5:])


def test_members_of_different_luck_are_corrected_each_by_its_own():
  # One error for all would drown the effects of the half that are known well.
  rng = np.random.default_rng(3)
  effects = 0.03 * rng.standard_normal(600)
  luck = np.repeat([1.4, 0.05], 300)[:, None]
  rewards = effects[:, None] + luck * rng.standard_normal((600, 200))
  found = _one(rewards, np.zeros(200), num_resamples=1)
  truth = stats.norm.sf(MARGINS, 0, 0.03)
  assert np.abs(found.corrected - truth).max() < 0.06
  assert np.abs(found.estimate - truth).max() > 0.12


def test_members_that_are_as_good_as_the_base_do_not_beat_it():
  rng = np.random.default_rng(4)
  errors = np.array([-2.0, 0.5, 1.5, 2.0])  # margins, in standard errors
  margins = errors * 0.5 / np.sqrt(200)
  corrected, num_covered = [], 0
  for _ in range(20):
    found = _one(*_made(rng, np.zeros(400)), margins, num_resamples=100)
    # As many as noise alone lifts above, and the correction takes out.
    np.testing.assert_allclose(found.estimate, stats.norm.sf(errors), atol=0.11)
    # Wilson's interval knows nothing of items.
    assert found.low[1] > 0.2
    assert found.low[2] > 0.015
    assert found.corrected_low[2] < 1e-3
    corrected.append(found.corrected)
    num_covered += found.corrected_low[1] < 1e-9
  # Some resamples spread no more than luck does, and none of them passes.
  assert num_covered >= 17
  off = np.abs(np.array(corrected) - [1, 0, 0, 0])
  # Chance makes scores spread more than their noise in half of the cases:
  # within half a standard error it shows.
  assert off[:, 1].mean() < 0.12
  assert off[:, [0, 2, 3]].max() < 0.02
  assert off[:, [0, 2, 3]].mean() < 0.002


def test_what_is_common_to_all_moves_the_estimate_and_widens_the_interval():
  # The base's luck on the items, say: scores move together, by 0.035 or so.
  rng = np.random.default_rng(5)
  truth = stats.norm.sf(MARGINS, 0, 0.03)
  covered, widths = [], []
  for common in (0.0, 0.5):
    for _ in range(40):
      effects = 0.03 * rng.standard_normal(300)
      rewards, base = _made(rng, effects, common=common)
      found = _one(rewards, base, num_resamples=60)
      low, high = found.corrected_low, found.corrected_high
      if common:
        covered.append(_covers(low, high, truth))
      widths.append(np.mean(high - low))
  assert np.mean(widths[40:]) > 2 * np.mean(widths[:40])
  # The margins of a repeat stand and fall together: 40 cases, not 320.
  assert np.mean(covered) > 0.85


def test_what_is_common_is_not_taken_for_luck_of_members():
  # Easy and hard items that even out move no score, so spread says the same.
  rng = np.random.default_rng(12)
  rewards, base = _made(rng, 0.03 * rng.standard_normal(300))
  shared = rng.standard_normal(200)
  shared -= shared.mean()
  found, moved = (
    _one(rewards + move, base, num_resamples=60) for move in (0, shared)
  )
  np.testing.assert_allclose(moved.corrected, found.corrected, atol=1e-9)
  width = found.corrected_high - found.corrected_low
  assert np.all(moved.corrected_high - moved.corrected_low > width)


def test_the_corrected_interval_covers():
  rng = np.random.default_rng(6)
  truth = stats.norm.sf(MARGINS, 0, 0.03)
  covered = []
  for _ in range(60):
    rewards, base = _made(rng, 0.03 * rng.standard_normal(200))
    found = _one(rewards, base, num_resamples=60)
    assert np.all(found.corrected_low <= found.corrected)
    assert np.all(found.corrected <= found.corrected_high)
    covered.append(_covers(found.corrected_low, found.corrected_high, truth))
  assert np.mean(covered) > 0.88
  assert np.all(np.mean(covered, axis=0) > 0.78)


def test_without_luck_the_correction_changes_nothing():
  # Items differ, and members gain the same on each: nothing is due to luck.
  rng = np.random.default_rng(7)
  effects = rng.integers(-5, 6, 50) / 100
  base = rng.integers(0, 2, 30).astype(float)
  found = _one(base + effects[:, None], base, MARGINS)
  np.testing.assert_allclose(found.corrected, found.estimate, atol=1e-12)
  low, high = metrics.wilson(np.rint(50 * found.estimate), 50)
  assert np.all(found.corrected_low <= low + 1e-12)
  assert np.all(found.corrected_high >= high - 1e-12)
  copies = _one(np.tile(base, (5, 1)), base, [-0.01, 0, 0.01])
  np.testing.assert_array_equal(copies.estimate, [1, 1, 0])
  np.testing.assert_array_equal(copies.corrected, [1, 1, 0])


# Members of a linear model, scored exactly.


def _linear(sigma, members, seed, draw=None):
  """Score gains [N] of <a, theta> and the norm of a."""
  rng = np.random.default_rng(seed)
  a = rng.standard_normal(64)
  noise = rng.standard_normal((members, 64)) if draw is None else draw
  return sigma * noise @ a, np.linalg.norm(a)


def test_a_linear_model_has_the_density_of_a_normal():
  sigma, members = 0.02, 4000
  words = jax.random.bits(jax.random.key(0), (members, 64), 'uint32')
  noise = np.asarray(prng.gaussian(words), np.float64)
  gains, norm = _linear(sigma, members, 0, noise)
  margins = sigma * norm * np.linspace(-3, 3, 13)
  found = _one(1.5 + gains[:, None], [1.5], margins)
  truth = special.ndtr(-margins / (sigma * norm))
  error = np.sqrt(truth * (1 - truth) / members)
  assert np.all(np.abs(found.estimate - truth) < 4 * error)
  # One item says nothing of the noise of items.
  for name in ('corrected', 'corrected_low', 'corrected_high'):
    assert np.isnan(getattr(found, name)).all()


def test_wilsons_interval_covers_at_its_rate():
  members, repeats = 200, 1000
  gains, norm = _linear(0.02, members * repeats, 1)
  margins = 0.02 * norm * np.array([-1.0, 0.0, 1.0, 2.0])
  truth = special.ndtr(-margins / (0.02 * norm))
  found = density.solution_density(
    gains[:, None], [0.0], np.repeat(np.arange(repeats), members), margins
  )
  assert [one.group for one in found] == list(range(repeats))
  covered = np.mean([_covers(x.low, x.high, truth) for x in found], axis=0)
  # What binomial counts make of it, exactly; 4 standard deviations are 0.028.
  counts = np.arange(members + 1)
  low, high = metrics.wilson(counts, members)
  chances = stats.binom.pmf(counts, members, truth[:, None])
  exact = (chances * _covers(low, high, truth[:, None])).sum(axis=1)
  np.testing.assert_allclose(covered, exact, atol=0.028)


def test_each_group_is_by_itself_and_all_follow_the_unit():
  rng = np.random.default_rng(8)
  effects = np.where(np.arange(90) % 3 == 2, -0.5, 0.05)
  rewards, base = _made(rng, effects, 50)
  groups = np.array([4, 1, 9])[np.arange(90) % 3]
  options = {'num_resamples': 20, 'seed': 3}
  found = density.solution_density(rewards, base, groups, MARGINS, **options)
  assert [one.group for one in found] == [1, 4, 9]
  scaled = density.solution_density(
    8 * rewards + 3, 8 * base + 3, groups, 8 * MARGINS, **options
  )
  names = [field.name for field in dataclasses.fields(density.Density)]
  for one, other in zip(found, scaled, strict=True):
    assert one.members == 30
    alone = _one(rewards[groups == one.group], base, **options)
    for name in set(names) - {'group'}:
      got = getattr(one, name)
      np.testing.assert_array_equal(getattr(alone, name), got)
      if name != 'margins':
        np.testing.assert_allclose(getattr(other, name), got, atol=1e-9)
  assert found[2].corrected.max() < 0.01 < 0.5 < found[0].corrected[0]


def test_densities_fall_with_the_margin_and_seeds_decide_bounds_only():
  rewards, base = _made(np.random.default_rng(9), 0.05 * np.ones(40), 30)
  margins = np.linspace(-0.5, 0.5, 41)
  found, again, other = (
    _one(rewards, base, margins, seed=seed, num_resamples=30)
    for seed in (0, 0, 1)
  )
  for name in ('estimate', 'low', 'high', 'corrected'):
    values = getattr(found, name)
    assert np.all(np.diff(values) <= 1e-12)
    assert values[0] > values[-1]
    np.testing.assert_array_equal(getattr(other, name), values)
  np.testing.assert_array_equal(again.corrected_low, found.corrected_low)
  assert (other.corrected_low != found.corrected_low).any()


def test_too_few_members_are_not_corrected():
  rewards, base = _made(np.random.default_rng(10), np.zeros(3), 20)
  assert np.isnan(_one(rewards[:2], base).corrected).all()
  assert np.isfinite(_one(rewards, base).corrected).all()


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'rewards': [1, 0]}, r'rewards has shape \(2,\)'),
    ({'rewards': np.zeros((0, 2))}, r'rewards has shape \(0, 2\)'),
    ({'base_rewards': [0]}, r'base_rewards has shape \(1,\) for 2 items'),
    ({'groups': [0]}, r'groups has shape \(1,\) for 3 members'),
    ({'margins': 0.1}, r'margins has shape \(\)'),
    ({'margins': []}, r'margins has shape \(0,\)'),
    ({'margins': [np.nan]}, 'margins holds a value that is not finite'),
    ({'base_rewards': [0, np.inf]}, 'base_rewards holds a value'),
    ({'rewards': np.full((3, 2), np.nan)}, 'rewards holds a value'),
    ({'confidence': 1.0}, 'confidence=1.0'),
    ({'num_resamples': 0}, 'num_resamples=0'),
  ],
)
def test_solution_density_refuses(changes, message):
  arguments = {
    'rewards': np.zeros((3, 2)),
    'base_rewards': np.zeros(2),
    'groups': np.zeros(3, int),
    'margins': [0.0],
  }
  with pytest.raises(ValueError, match=message):
    density.solution_density(**(arguments | changes))
