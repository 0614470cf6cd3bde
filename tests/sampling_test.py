# SPDX-License-Identifier: Apache-2.0
"""The sampling rule: pinned streams, the right odds, and exact cuts.

Axes as in the module: M members, B rows, V vocabulary; G new tokens.
"""

import functools
from unittest import mock

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import special, stats

from thicket import batching, decode, prng, sampling
from thicket.models import decoder

# The draws are fixed, so what passes once passes always.
SIGMAS = 5
P_VALUE = 1e-5

# Ids of the last two differ in nothing but the high word.
ROW_IDS = (0, 17, 2**32 + 17, 2**62 + 17)
LAST_SEED = 2**64 - 1


def _rows(member=0, draw=0, row_ids=ROW_IDS):
  return sampling.Rows(
    jnp.int32(member), jnp.int32(draw), jnp.asarray(sampling.row_words(row_ids))
  )


@functools.cache
def _rule(seed, temperature, **cut):
  return jax.jit(sampling.sampler(seed, temperature, **cut))


def _tokens(logits, rows, step=0, seed=0, temperature=1.0, **cut):
  choose = _rule(seed, temperature, **cut)
  return np.asarray(choose(logits, rows, jnp.int32(step)))


# LLVM takes seconds for the remainders of a V that is no multiple of 16.
def _logits(rows=4, vocab=64, seed=0):
  rng = np.random.default_rng(seed)
  return rng.standard_normal((rows, vocab)).astype(np.float32)


def _words(seed, member, row_id, draw, step, vocab):
  """The contract of the module's text, in plain numpy; uint32 [V]."""
  word = lambda value: np.array([value % 2**32], np.uint32)
  pair = lambda value: (word(value >> 32), word(value))
  key = prng.threefry2x32(pair(seed), (word(0), word(member)))
  # printf %s 'tokens of a sample' | sha256sum | head -c 16
  key = prng.threefry2x32(key, (word(0x32C5F4D2), word(0x8C4D7D0D)))
  key = prng.threefry2x32(key, pair(row_id))
  key = prng.threefry2x32(key, (word(0), word(draw)))
  key = prng.threefry2x32(key, (word(0), word(step)))
  tokens = np.arange(vocab, dtype=np.uint32)
  first, second = prng.threefry2x32(key, (np.zeros_like(tokens), tokens))
  return first ^ second


def _by_numpy(logits, words, temperature=1.0):
  """A token by the Gumbel-max trick in float64, and how far it was ahead."""
  u = (words.astype(np.float64) + 0.5) * 2.0**-32
  noisy = logits / temperature - np.log(-np.log1p(-u))
  second, best = np.sort(noisy)[-2:]
  return int(np.argmax(noisy)), best - second


def _chi_square(tokens, odds):
  """The p-value of some tokens under softmax odds of which some may be 0."""
  counts = np.bincount(tokens, minlength=odds.size)
  assert not counts[odds == 0].any()
  kept = odds > 0
  return stats.chisquare(counts[kept], odds[kept] * tokens.size).pvalue


# The path from the seed to a token.


@functools.cache
def _spied(seed):
  """(words, tokens) of the rule where all logits are 0."""
  choose = sampling.sampler(seed, 0.5)

  @jax.jit
  def run(rows, step):
    with mock.patch.object(sampling, 'gumbel', wraps=sampling.gumbel) as spy:
      tokens = choose(jnp.zeros((4, 64)), rows, step)
    (((words,), _),) = spy.call_args_list
    return words, tokens

  return lambda rows, step: map(np.asarray, run(rows, jnp.int32(step)))


GOLDEN = [
  # seed, member, row id, draw, step, first words, token
  (0, 0, 0, 0, 0, 'b3fa8722 a429284c 36990b5c', 13),
  (0, -1, 17, 3, 5, 'aef6766a ad253dde beb90f2b', 19),
  (2**40, 4999, 2**32 + 17, 63, 127, 'b074a62a 10f278fb b52ba203', 8),
  (LAST_SEED, 2**31 - 1, 2**63 - 1, 0, 2047, 'a5cbe669 11688c83 86a7cbdd', 50),
]


@pytest.mark.parametrize(
  ('seed', 'member', 'row_id', 'draw', 'step', 'want', 'token'), GOLDEN
)
def test_golden_words_and_tokens(seed, member, row_id, draw, step, want, token):
  rows = _rows(member, draw, [8, 9, row_id, 10])
  words, tokens = _spied(seed)(rows, step)
  assert ' '.join(f'{word:08x}' for word in words[2, :3]) == want
  assert tokens[2] == token
  # The least word is the largest deviate, and logits are equal.
  np.testing.assert_array_equal(tokens, words.argmin(-1))


@pytest.mark.parametrize('seed', [0, 2**40, LAST_SEED])
@pytest.mark.parametrize(
  ('member', 'draw', 'step'), [(-1, 0, 0), (7, 3, 1), (4999, 63, 511)]
)
def test_words_follow_the_contract(seed, member, draw, step):
  words, _ = _spied(seed)(_rows(member, draw), step)
  want = [_words(seed, member, i, draw, step, 64) for i in ROW_IDS]
  np.testing.assert_array_equal(words, want)


@pytest.mark.parametrize('temperature', [0.3, 2.5])
def test_tokens_are_those_of_plain_numpy(temperature):
  logits, row_ids = _logits(200), np.arange(200) * 2**30
  rows = _rows(5, 2, row_ids)
  got = _tokens(logits, rows, 9, 11, temperature)
  chex.assert_type(got, np.int32)
  for i, row_id in enumerate(row_ids):
    words = _words(11, 5, int(row_id), 2, 9, 64)
    token, gap = _by_numpy(logits[i], words, temperature)
    assert gap > 1e-5  # or the test means nothing: choose another seed
    assert got[i] == token
  assert len(set(got)) > 10


def test_row_ids_become_two_words():
  got = sampling.row_words([0, 2**32 - 1, 2**32, 2**63 - 1])
  chex.assert_type(got, np.uint32)
  top = 2**32 - 1
  np.testing.assert_array_equal(
    got, [[0, 0], [0, top], [1, 0], [2**31 - 1, top]]
  )
  assert sampling.row_words(np.array([], np.int64)).shape == (0, 2)


@functools.cache
def _streams(seed):
  """The rule for zeros, at 64 steps from a given one on."""
  choose = sampling.sampler(seed, 1.0)
  one = lambda rows, step: choose(jnp.zeros((1, 1024)), rows, step)[0]
  each = jax.vmap(one, in_axes=(None, 0))
  return jax.jit(lambda rows, step: each(rows, step + jnp.arange(64)))


def _stream(seed=3, member=2, draw=1, row_id=5, step=0):
  rows = _rows(member, draw, [row_id])
  return np.asarray(_streams(seed)(rows, jnp.int32(step)))


@pytest.mark.parametrize(
  'changed',
  [
    {'seed': 4},
    {'member': -1},
    {'member': 3},
    {'draw': 0},
    {'draw': 2},
    {'row_id': 6},
    {'row_id': 5 + 2**32},
    {'row_id': 5 << 32},
    {'step': 64},
    # Numbers that trade places.
    {'member': 1, 'draw': 2},
    {'draw': 5, 'row_id': 1},
  ],
)
def test_another_seed_member_row_or_draw_is_another_stream(changed):
  one, two = _stream(), _stream(**changed)
  assert len(set(one)) > 48  # 64 of 1024 with replacement
  assert (one == two).sum() <= 3  # 0.06 are expected


def test_who_shares_the_batch_does_not_matter():
  logits, rows = _logits(6), _rows(2, 3, [9, 4, 2**33, 1, 7, 8])
  together = _tokens(logits, rows, 4)
  order = np.array([3, 5, 0, 1, 4, 2])
  moved = rows._replace(row=rows.row[order])
  np.testing.assert_array_equal(
    _tokens(logits[order], moved, 4), together[order]
  )
  for i in range(6):
    alone = rows._replace(row=rows.row[i : i + 1])
    assert _tokens(logits[i : i + 1], alone, 4) == together[i]
  others = np.where(np.arange(6)[:, None] == 2, logits, _logits(6, seed=1))
  assert _tokens(others, rows, 4)[2] == together[2]


def test_equal_rows_get_equal_tokens_wherever_they_stand():
  logits = np.tile(_logits(1), (5, 1))
  got = _tokens(logits, _rows(row_ids=[8, 3, 8, 3, 8]))
  assert got[0] == got[2] == got[4]
  assert got[1] == got[3]


def test_members_and_draws_at_once_are_those_one_by_one():
  member = jnp.asarray([0, 4, -1, 4], jnp.int32)
  draw = jnp.asarray([0, 3, 3, 63], jnp.int32)
  logits = np.stack([_logits(seed=i) for i in range(4)])
  choose = sampling.sampler(6, 0.8, top_k=20, top_p=0.9)
  together = jax.jit(
    jax.vmap(choose, in_axes=(0, sampling.Rows(0, 0, None), None))
  )(logits, sampling.Rows(member, draw, _rows().row), jnp.int32(2))
  for i in range(4):
    rows = _rows(member[i], draw[i])
    one = _tokens(logits[i], rows, 2, 6, 0.8, top_k=20, top_p=0.9)
    np.testing.assert_array_equal(together[i], one)


def test_a_draw_does_not_depend_on_how_many_there_are():
  choose, logits = sampling.sampler(0, 1.0), _logits(vocab=512)
  run = jax.jit(
    lambda draws: jax.vmap(
      lambda draw: choose(logits, _rows(1)._replace(draw=draw), jnp.int32(3))
    )(draws)
  )
  many = np.asarray(run(jnp.arange(64)))
  np.testing.assert_array_equal(run(jnp.arange(3, 4)), many[3:4])
  assert len(np.unique(many, axis=0)) == 64


# Noise.

_gumbel = jax.jit(sampling.gumbel)


def _deviates(words):
  return np.asarray(_gumbel(np.asarray(words).astype(np.uint32))).astype(float)


def _exact(words):
  """Minus the logarithm of 1 - u at the middle of each word's interval."""
  return -np.log1p(-(np.asarray(words) + 0.5) * 2.0**-32)


def test_the_ends_of_the_noise_are_finite():
  ends = _deviates([0, 1, 2**32 - 2, 2**32 - 1])
  assert np.isfinite(ends).all()
  assert ends[0] == pytest.approx(33 * np.log(2), rel=1e-6)
  assert ends[-1] == pytest.approx(-np.log(24 * np.log(2)), rel=1e-6)
  assert -2.82 < ends[-1] < ends[0] < 22.9


def test_waits_against_double_precision():
  edge = int(0.01 * 2**32)  # where the series ends
  words = np.concatenate(
    [
      np.arange(200_000),
      np.arange(edge - 200_000, edge + 200_000),
      np.arange(0, int(0.99 * 2**32), 4093),
    ]
  )
  np.testing.assert_allclose(
    np.exp(-_deviates(words)), _exact(words), rtol=4e-6, atol=0
  )
  # Below, words are rounded to 24 bits; rounded ones are exact again.
  words = np.arange(int(0.99 * 2**32), 2**32, 257)
  u = words.astype(np.float32) * np.float32(2**-32) + np.float32(2**-33)
  u = np.minimum(u, 1 - 2**-24).astype(np.float64)
  np.testing.assert_allclose(
    np.exp(-_deviates(words)), -np.log1p(-u), rtol=4e-6, atol=0
  )


def test_a_smaller_word_is_a_larger_deviate():
  # Not next to each other: roundings may swap neighbours.
  assert np.all(np.diff(_deviates(np.arange(0, 2**32, 4093))) <= 0)
  assert np.all(np.diff(_deviates(np.arange(1000))) < 0)


def test_the_distribution_is_gumbels():
  grid = _deviates(np.arange(2**11, 2**32, 2**12))  # 2**20, evenly spread
  assert stats.kstest(grid, stats.gumbel_r.cdf).statistic < 2e-6
  assert grid.mean() == pytest.approx(np.euler_gamma, abs=1e-5)
  assert grid.var() == pytest.approx(np.pi**2 / 6, abs=1e-4)
  drawn = _deviates(_words(2, 0, 0, 0, 0, 200_000))
  assert stats.kstest(drawn, stats.gumbel_r.cdf).pvalue > P_VALUE
  bound = SIGMAS * np.pi / np.sqrt(6 * drawn.size)
  assert abs(drawn.mean() - np.euler_gamma) < bound
  # The fourth central moment of Gumbel's distribution is 5.4 variances**2.
  bound = SIGMAS * np.pi**2 / 6 * np.sqrt(4.4 / drawn.size)
  assert abs(drawn.var() - np.pi**2 / 6) < bound


# Odds.

MANY = 20_000
SKEWED = np.array(
  [2.0, -1.5, 0.5, 0.0, -np.inf, 1.0, 1.0, -3.0, 2.5, -0.5], np.float32
)


def _many_rows(logits, seed=0, temperature=1.0, **cut):
  rows = _rows(row_ids=np.arange(MANY))
  logits = np.tile(logits, (MANY, 1))
  return _tokens(logits, rows, 0, seed, temperature, **cut)


@pytest.mark.parametrize('temperature', [0.2, 1.0, 1.5, 20.0])
def test_frequencies_are_the_softmax(temperature):
  odds = special.softmax(SKEWED.astype(float) / temperature)
  tokens = _many_rows(SKEWED, 1, temperature)
  assert _chi_square(tokens, odds) > P_VALUE
  # The test can tell: a temperature off by a tenth is found out.
  wrong = special.softmax(SKEWED.astype(float) / temperature / 1.1)
  assert temperature > 10 or _chi_square(tokens, wrong) < P_VALUE


@pytest.mark.parametrize('axis', ['member', 'draw', 'step'])
def test_frequencies_along_any_axis(axis):
  choose = sampling.sampler(9, 1.0)

  def one(i):
    member, draw, step = (
      i if name == axis else jnp.int32(2) for name in ('member', 'draw', 'step')
    )
    rows = sampling.Rows(member, draw, _rows(row_ids=[4]).row)
    return choose(SKEWED[None], rows, step)[0]

  tokens = np.asarray(jax.jit(jax.vmap(one))(jnp.arange(MANY)))
  assert _chi_square(tokens, special.softmax(SKEWED.astype(float))) > P_VALUE
  # Neighbours know nothing of each other.
  pairs = np.zeros((10, 10))
  np.add.at(pairs, (tokens[:-1:2], tokens[1::2]), 1)
  pairs = np.delete(np.delete(pairs, 4, 0), 4, 1)
  assert stats.chi2_contingency(pairs).pvalue > P_VALUE


@pytest.mark.parametrize(
  ('cut', 'kept'),
  [
    ({'top_k': 3}, [0, 5, 6, 8]),  # two are equally third
    ({'top_p': 0.65}, [0, 8]),
    ({'top_p': 0.7}, [0, 5, 6, 8]),
    # Of the four that are left, two have 78%.
    ({'top_k': 3, 'top_p': 0.75}, [0, 8]),
  ],
)
def test_frequencies_of_what_is_left(cut, kept):
  left = np.full_like(SKEWED, -np.inf)
  left[kept] = SKEWED[kept]
  tokens = _many_rows(SKEWED, **cut)
  assert _chi_square(tokens, special.softmax(left.astype(float))) > P_VALUE


# Edges.


@pytest.mark.parametrize('cut', [{}, {'top_k': 5, 'top_p': 0.3}])
def test_temperature_0_is_greedy_itself(cut):
  assert sampling.sampler(3, 0, **cut) is sampling.greedy
  assert sampling.sampler(3, 0.0, **cut) is sampling.greedy


@pytest.mark.parametrize('temperature', [1e-6, 1e-30])
def test_a_low_temperature_is_greedy(temperature):
  rng = np.random.default_rng(0)
  logits = np.stack([rng.permutation(64) for _ in range(512)]) - np.float32(32)
  rows = _rows(row_ids=range(512))
  got = _tokens(logits, rows, 0, 0, temperature)
  np.testing.assert_array_equal(got, logits.argmax(-1))
  # Equals stay equal: there is nothing to prefer the first.
  got = _tokens(np.zeros((512, 64), np.float32), rows, 0, 0, temperature)
  assert len(set(got)) == 64


def test_the_best_only_is_greedy():
  logits, rows = _logits(512), _rows(row_ids=range(512))
  want = logits.argmax(-1)
  for cut in ({'top_k': 1}, {'top_p': 1e-6}):
    got = _tokens(logits, rows, temperature=5.0, **cut)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize('cut', [{}, {'top_k': 5}, {'top_p': 0.999}])
def test_impossible_tokens_are_never_chosen(cut):
  logits, rows = _logits(2048), _rows(row_ids=range(2048))
  possible = np.random.default_rng(1).random(logits.shape) < 0.05
  possible[:, 7] = True
  logits = np.where(possible, logits, np.float32(-np.inf))
  got = _tokens(logits, rows, temperature=3.0, **cut)
  assert possible[np.arange(2048), got].all()
  assert len(set(got)) > 20


@pytest.mark.parametrize('cut', [{}, {'top_k': 5}, {'top_p': 0.5}])
def test_broken_logits_harm_no_other_row(cut):
  logits, rows = _logits(), _rows()
  want = _tokens(logits, rows, **cut)
  for value in (np.nan, -np.nan, np.inf, -np.inf):
    broken = logits.copy()
    broken[1] = value
    broken[2, 3] = value
    got = _tokens(broken, rows, **cut)
    np.testing.assert_array_equal(got[[0, 3]], want[[0, 3]])
    assert np.all((got >= 0) & (got < 64))


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'temperature': -0.1}, r'temperature = -0\.1 is not a finite number'),
    ({'temperature': np.nan}, 'temperature = nan is not a finite number'),
    ({'temperature': np.inf}, 'temperature = inf is not a finite number'),
    ({'temperature': 1e-31}, 'temperature = 1e-31 is outside'),
    ({'temperature': 1e31}, r'temperature = 1e\+31 is outside'),
    ({'top_k': -1}, 'top_k = -1 is not a whole number'),
    ({'top_k': 2.0}, r'top_k = 2\.0 is not a whole number'),
    ({'top_k': True}, 'top_k = True is not a whole number'),
    ({'top_p': 0}, r'top_p = 0 is outside \(0, 1\]'),
    ({'top_p': 1.01}, r'top_p = 1\.01 is outside'),
    ({'top_p': np.nan}, 'top_p = nan is outside'),
  ],
)
def test_settings_out_of_range_are_refused(settings, message):
  settings = {'temperature': 1.0} | settings
  for call in (sampling.check, lambda **some: sampling.sampler(0, **some)):
    with pytest.raises(ValueError, match=message):
      call(**settings)
  # Not even where greedy needs none of them.
  with pytest.raises(ValueError, match=message):
    sampling.check(**{'temperature': 0} | settings)


@pytest.mark.parametrize('temperature', [0, 1.0])
def test_seeds_out_of_range_are_refused(temperature):
  with pytest.raises(ValueError, match='seed -1 is outside'):
    sampling.sampler(-1, temperature)
  sampling.check(temperature, 0, 1.0)
  sampling.check(temperature, 10**9, 1e-9)


# Cuts.

_truncate = jax.jit(sampling.truncate, static_argnums=(1, 2))

# Few values, for ties at the edge, and neighbours; -0.0 and 0.0 are one.
NEXT = float(np.nextafter(np.float32(0.5), np.float32(1)))
TIED = hnp.arrays(
  np.float32,
  (4, 7),
  elements=st.sampled_from([-np.inf, -2.5, -1.0, -0.0, 0.0, 0.5, NEXT, 8.0]),
)
ANY = hnp.arrays(
  np.float32, (4, 7), elements=st.floats(width=32, allow_nan=False)
)


@hypothesis.given(TIED | ANY, st.sampled_from([1, 2, 3, 6, 7]))
@hypothesis.example(
  np.tile(np.array([0, -0.0, -2, 0.5, NEXT, -3, 0.5], np.float32), (4, 1)), 1
)
@hypothesis.settings(deadline=None)
def test_top_k_keeps_the_k_best_and_their_equals(logits, k):
  edge = np.sort(logits, axis=-1)[:, -k, None]
  want = np.where(logits >= edge, logits, np.float32(-np.inf))
  got = np.asarray(_truncate(logits, k, 1.0))
  np.testing.assert_array_equal(got.view(np.int32), want.view(np.int32))


def _kept(logits, top_p, slack=0.0):
  """Bool [B, V]: a token is kept if those above it do not reach top_p."""
  share = special.softmax(logits.astype(np.float64), axis=-1)
  is_above = logits[:, None, :] > logits[:, :, None]
  above = (share[:, None, :] * is_above).sum(-1)
  return above < top_p + slack


@hypothesis.given(
  hnp.arrays(
    np.float32, (4, 7), elements=st.sampled_from([-np.inf, *range(-3, 4)])
  ).filter(lambda x: np.isfinite(x).any(-1).all())
  | hnp.arrays(np.float32, (4, 7), elements=st.floats(-9, 9, width=32)),
  st.sampled_from([0.01, 0.3, 0.5, 0.9, 0.99]),
)
@hypothesis.settings(deadline=None)
def test_top_p_keeps_the_fewest_that_reach_it(logits, top_p):
  want = _kept(logits, top_p)
  # Where a sum may be on either side by a rounding, either is right.
  loose = _kept(logits, top_p, 1e-6)
  hypothesis.assume((_kept(logits, top_p, -1e-6) == loose).all())
  want = np.where(want, logits, np.float32(-np.inf))
  np.testing.assert_array_equal(_truncate(logits, 0, top_p), want)


def test_cuts_of_a_large_vocabulary():
  logits = 3 * _logits(4, 50_000)
  share = special.softmax(logits.astype(np.float64), axis=-1)
  ordered = -np.sort(-share, axis=-1)
  for top_p in (0.1, 0.9, 0.999):
    got = np.isfinite(_truncate(logits, 0, top_p))
    count = (np.cumsum(ordered, axis=-1) < top_p).sum(-1) + 1
    # 50,000 float32 shares add up to a few of the smallest kept.
    assert np.all(np.abs(got.sum(-1) - count) <= 2 + count / 1000)
    for kept, row in zip(got, logits, strict=True):
      assert row[kept].min() > row[~kept].max()
  got = np.isfinite(_truncate(logits, 1000, 1.0))
  np.testing.assert_array_equal(got.sum(-1), [1000] * 4)


def test_top_p_is_of_what_top_k_left():
  # 40%, 30%, 20% and 10%; 57% and 43% of two; 44%, 33% and 22% of three.
  logits = np.log(np.array([[0.1, 0.4, 0.2, 0.3]], np.float32))
  for (top_k, top_p), want in {
    (0, 0.5): [1, 3],
    (2, 0.5): [1],
    (2, 0.6): [1, 3],
    (3, 0.75): [1, 3],
  }.items():
    got = np.asarray(_truncate(logits, top_k, top_p))
    assert np.flatnonzero(np.isfinite(got)).tolist() == want


def test_without_cuts_logits_are_left_alone():
  logits = _logits()
  assert sampling.truncate(logits, 0, 1.0) is logits
  rows = _rows(row_ids=range(4))
  want = _tokens(logits, rows)
  for cut in ({'top_k': 10**6}, {'top_p': 1}):
    np.testing.assert_array_equal(_tokens(logits, rows, **cut), want)


# Whole answers of a model.

G, PAD = 6, 63
SMALL = tiny.with_layers(tiny.CONFIG, 1)
PREFIX = np.array([7, 3, 44], np.int32)
SUFFIXES = [[2], [8, 30, 4], [50, 6, 17, 40, 22], [11, 60]]
(PROMPTS,) = batching.batches(SUFFIXES, ROW_IDS, 4, PAD)
TEMPERATURE, SEED = 1.5, 21
STOP_IDS = (10, 18, 20, 48, 57)


@jax.jit
def _generate(weights, member_ids, draws, prompts):
  table = np.zeros((2, SMALL.vocab_size), np.int32)
  table[0, list(STOP_IDS)] = table[1] = 1
  choose = sampling.sampler(SEED, TEMPERATURE)
  decoding = decode.Decoding(G, table, PAD, choose)
  model = decoder.Decoder(SMALL)
  (M,), (B, S) = member_ids.shape, prompts.tokens.shape
  slots = decode.cache_slots(S, G)
  caches = decode.empty_caches(model, M, B, slots, np.float32)
  prefix = decode.prefill_prefix(model, weights, 0, PREFIX)
  found, _ = decode.generate(
    model, decoding, weights, 0, member_ids, draws, prefix, prompts, caches
  )
  return found


def _answers(weights, member_ids, draws, prompts=PROMPTS):
  ids = (np.asarray(x, np.int32) for x in (member_ids, draws))
  return jax.tree.map(np.asarray, _generate(weights, *ids, prompts))


def test_a_model_samples_what_plain_numpy_samples():
  # Two draws of one member, and one of another.
  stacked = tiny.members(2, SMALL)
  weights = jax.tree.map(lambda x: x[np.array([0, 0, 1])], stacked)
  member_ids, draws = [40, 40, 41], [0, 5, 5]
  got = _answers(weights, member_ids, draws)
  assert len({x.tobytes() for x in got.tokens}) == 3
  for m, (member, draw) in enumerate(zip(member_ids, draws, strict=True)):
    named = tiny.tensors(tiny.member(weights, m), SMALL)
    for b, i in enumerate(PROMPTS.prompt):
      answer = []
      while len(answer) < G and not {*answer} & {*STOP_IDS}:
        tokens = [*PREFIX, *SUFFIXES[i], *answer]
        logits = tiny.reference(SMALL, named, tokens)[-1]
        words = _words(SEED, member, ROW_IDS[i], draw, len(answer), 64)
        token, gap = _by_numpy(logits, words, TEMPERATURE)
        assert gap > 1e-3  # or the test means nothing: choose another seed
        answer.append(token)
      assert got.tokens[m, b, : got.length[m, b]].tolist() == answer
  assert len(set(got.length.flat)) > 2


def test_a_draw_among_many_is_the_draw_alone():
  one = tiny.members(1, SMALL)
  weights = jax.tree.map(lambda x: np.repeat(x, 3, axis=0), one)
  draws = [3, 0, 63]
  together = _answers(weights, [-1] * 3, draws)
  assert len({x.tobytes() for x in together.tokens}) == 3
  for m, draw in enumerate(draws):
    alone = _answers(one, [-1], [draw])
    np.testing.assert_array_equal(alone.tokens[0], together.tokens[m])
    np.testing.assert_array_equal(alone.length[0], together.length[m])
  # Nor does it depend on the questions beside it.
  (few,) = batching.batches(SUFFIXES, ROW_IDS, 4, PAD, [2])
  alone = _answers(one, [-1], [63], few)
  row = int(np.flatnonzero(PROMPTS.prompt == 2)[0])
  np.testing.assert_array_equal(alone.tokens[0, 0], together.tokens[2, row])
