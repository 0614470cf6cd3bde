# SPDX-License-Identifier: Apache-2.0
"""The key contract: published vectors, JAX's own streams, and statistics."""

import json
import pathlib

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from thicket import families, prng, trees

# Low-rank noise is made of Gaussian words; families_test has its own.
DENSE = 'gaussian', 'rademacher'
GOLDEN = json.loads(
  (pathlib.Path(__file__).parent / 'golden' / 'noise.json').read_text()
)

# One bound in two million is missed by chance, and a few thousand are checked.
# The draws are fixed, so what passes once passes always.
SIGMAS = 5


def _u32(*values):
  return np.array(values, np.uint32)


def _leaf(shape):
  return trees.Leaf(shape, (trees.Segment('', 0, shape[0] if shape else 1),))


def _draw(family, key, shape):
  draw = jax.jit(families.draw, static_argnums=(0, 2))
  return np.asarray(draw(family, _u32(*key)[None], _leaf(shape)))


def _key(seed=0, member=0, name='a', layer=0):
  return prng.tensor_keys(seed, [member], [name], [layer])[0, 0]


def _wrapped(words):
  return jax.random.wrap_key_data(
    jnp.asarray(words, jnp.uint32), impl='threefry2x32'
  )


_gaussian = jax.jit(prng.gaussian)


# Random123 1.09, tests/kat_vectors, lines `threefry2x32 20`.
@pytest.mark.parametrize('xp', [np, jnp])
@pytest.mark.parametrize(
  ('counter', 'key', 'expected'),
  [
    ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
    ((0xFFFFFFFF,) * 2, (0xFFFFFFFF,) * 2, (0x1CB996FC, 0xBB002BE7)),
    (
      (0x243F6A88, 0x85A308D3),
      (0x13198A2E, 0x03707344),
      (0xC4923A9C, 0x483DF7A0),
    ),
  ],
)
def test_threefry_gives_the_published_vectors(xp, counter, key, expected):
  word = lambda value: xp.asarray([value], xp.uint32)
  got = prng.threefry2x32(
    (word(key[0]), word(key[1])), (word(counter[0]), word(counter[1]))
  )
  assert [int(x[0]) for x in got] == list(expected)
  assert all(x.dtype == np.uint32 for x in got)


def test_the_hash_of_a_name_is_written_down():
  # printf %s model.layers.*.self_attn.q_proj.weight | sha256sum | head -c 16
  assert prng.name_words('model.layers.*.self_attn.q_proj.weight') == (
    0x5D956790,
    0x4F13583F,
  )
  assert prng.name_words('') == (0xE3B0C442, 0x98FC1C14)


def test_two_names_with_one_hash_are_refused(monkeypatch):
  prng.check_names(['a', 'b', 'a', 'c'])
  monkeypatch.setattr(prng, 'name_words', lambda name: (1, len(name)))
  prng.check_names(['a', 'bb', 'a'])
  with pytest.raises(ValueError, match="'a' and 'c' hash to the same 64 bits"):
    prng.check_names(['a', 'bb', 'c'])


@pytest.mark.parametrize('seed', [-1, 2**64])
def test_a_seed_has_64_bits(seed):
  with pytest.raises(ValueError, match=f'seed {seed} is outside'):
    prng.check_seed(seed)
  with pytest.raises(ValueError, match=f'seed {seed} is outside'):
    prng.tensor_keys(seed, [0], ['a'], [0])


def test_both_halves_of_the_seed_matter():
  seeds = [0, 1, 2**32, 2**32 + 1, 2**63, 2**64 - 1]
  for seed in seeds:
    prng.check_seed(seed)
  assert len({tuple(_key(seed=seed)) for seed in seeds}) == len(seeds)


@pytest.mark.parametrize('seed', [0, 0x0123456789ABCDEF])
def test_member_and_layer_steps_are_fold_in(seed):
  members, layers = [-1, 0, 1, 5000, 2**31 - 1, -(2**31)], [0, 1, 47]
  names = ['a', 'layers.*.q.weight', 'layers.*.q.weight']
  got = prng.tensor_keys(seed, members, names, layers)
  assert got.dtype == np.uint32
  assert got.shape == (6, 3, 2)
  root = _wrapped([seed >> 32, seed & 0xFFFFFFFF])
  for m, member in enumerate(members):
    member_key = jax.random.key_data(jax.random.fold_in(root, member % 2**32))
    for s, (name, layer) in enumerate(zip(names, layers, strict=True)):
      # The counter of the name step has two words, which fold_in cannot take.
      name_key = jax.extend.random.threefry_2x32(
        member_key, jnp.asarray(prng.name_words(name), jnp.uint32)
      )
      expected = jax.random.fold_in(_wrapped(name_key), layer)
      np.testing.assert_array_equal(got[m, s], jax.random.key_data(expected))


def test_a_key_does_not_depend_on_its_company():
  members, names, layers = [3, 9, 0], ['a', 'b'], [2, 7]
  together = prng.tensor_keys(11, members, names, layers)
  for m, member in enumerate(members):
    for s in range(2):
      alone = _key(11, member, names[s], layers[s])
      np.testing.assert_array_equal(together[m, s], alone)


@pytest.mark.parametrize('shape', [(1, 1), (1, 5), (7, 1), (7, 5), (64, 96)])
def test_words_are_jax_random_bits(shape):
  key = _key(5, 3, 'layers.*.q.weight', 2)
  draw = jax.jit(lambda k: prng.words((k[0], k[1]), prng.index_words(*shape)))
  np.testing.assert_array_equal(
    draw(key), jax.random.bits(_wrapped(key), shape)
  )


def test_the_rows_of_a_tensor_are_numbered_by_local_row():
  local = np.array([4, 0, 1, 4])
  high, low = jax.jit(lambda: prng.index_words(4, 6, local))()
  assert int(high) == 0
  np.testing.assert_array_equal(low, local[:, None] * 6 + np.arange(6))


# Only the columns of the window are computed: the slice goes into the fusion.
# The first two have exactly 2**32 words. Then the high word grows between two
# rows, inside a row (the carry), and inside a row that is out of order.
@pytest.mark.parametrize(
  ('rows', 'columns', 'local', 'first'),
  [
    (2, 2**31, None, 2**31 - 8),
    (4, 2**30, [0, 1, 2, 3], 2**30 - 8),
    (3, 2**31, None, 0),
    (3, 2**31, None, 2**31 - 8),
    (5, 2**30 + 7, None, 2**30 - 25),
    (6, 3 * 2**28, None, 2**28 - 4),
    (3, 2**31 - 5, [1, 2, 2**20], 5),
    (3, 2**31 - 5, [2, 1, 0], 2**31 - 13),
  ],
)
def test_indices_have_64_bits(rows, columns, local, first):
  window = slice(first, first + 8)

  @jax.jit
  def indices():
    high, low = prng.index_words(rows, columns, local)
    high = jnp.broadcast_to(high, (rows, columns))
    return high[:, window], low[:, window]

  local = np.arange(rows) if local is None else np.array(local)
  exact = local[:, None].astype(np.uint64) * np.uint64(columns) + np.arange(
    first, first + 8, dtype=np.uint64
  )
  high, low = indices()
  np.testing.assert_array_equal(high, exact >> np.uint64(32))
  np.testing.assert_array_equal(low, exact & np.uint64(0xFFFFFFFF))


def test_erf_inv_against_double_precision():
  end = 1 - 2.0**-24
  magnitudes = np.concatenate(
    [
      np.linspace(0, end, 1_000_001),
      # Words reach 1 - k * 2**-24 and, at the centre, k * 2**-31.
      1 - 2.0**-24 * np.arange(1, 100_000),
      2.0**-31 * np.arange(1, 100_000),
      np.logspace(-31, 0, 100_001, base=2)[:-1],
    ]
  ).astype(np.float32)
  magnitudes = magnitudes[(magnitudes > 0) & (magnitudes <= end)]
  x = np.concatenate([magnitudes, -magnitudes])
  got = np.asarray(jax.jit(prng.erf_inv)(x)).astype(np.float64)
  np.testing.assert_allclose(
    got, special.erfinv(x.astype(np.float64)), rtol=3e-7, atol=0
  )
  assert float(jax.jit(prng.erf_inv)(np.zeros(1, np.float32))[0]) == 0


def test_deviates_are_finite_at_the_ends():
  ends = np.asarray(
    _gaussian(_u32(0, 1, 0xFFFFFFFF, 0x7FFFFFFF, 0x80000000, 0x80000001))
  )
  assert ends[0] == 0
  assert 0 < ends[1] < 2e-9
  assert ends[2] == -ends[1]
  assert 5.41 < ends[3] < 5.43
  np.testing.assert_array_equal(ends[4:], [-ends[3]] * 2)


def test_deviates_are_odd_and_ordered():
  positive = np.unique(
    np.concatenate(
      [
        np.arange(1, 5000),
        np.linspace(1, 2**31 - 1, 300_001).astype(np.int64),
        2**31 - np.arange(1, 5000),
      ]
    )
  ).astype(np.int32)
  up = np.asarray(_gaussian(positive.view(np.uint32)))
  down = np.asarray(_gaussian((-positive).view(np.uint32)))
  np.testing.assert_array_equal(up, -down)
  # Where the two branches of erf_inv meet, and from one rounding to the next,
  # it may step back by a few units in the last place but never further.
  assert np.all(np.diff(up) >= -4 * np.spacing(up[1:]))


@pytest.mark.parametrize('family', DENSE)
def test_an_element_is_the_same_in_any_shape(family):
  # Vector loops and their remainders must round alike. Rows of signs start a
  # new word, so for them only the first row is a prefix.
  key = _key(7, 3, 'a', 2)
  big = _draw(family, key, (12_288,))
  for shape in [(), (1,), (7, 5), (3, 1000), (2, 3, 37), (4099,), (12_288, 1)]:
    small = _draw(family, key, shape).ravel()
    if family == 'rademacher' and len(shape) > 1:
      small = small[: shape[-1]]
    np.testing.assert_array_equal(
      small.view(np.uint32),
      big[: small.size].view(np.uint32),
      err_msg=str(shape),
    )


# Golden vectors. A change of any of them is a new prng.VERSION.


def _ulps(a, b):
  """Distance in float32 numbers, from bit patterns of equal sign."""
  assert np.all((a >> 31) == (b >> 31))
  return np.abs(a.astype(np.int64) - b.astype(np.int64))


def _parse(hexes):
  return np.array([int(text, 16) for text in hexes], np.uint32)


def test_golden_vectors_belong_to_this_version():
  assert (GOLDEN['prng'], GOLDEN['version']) == (prng.NAME, prng.VERSION)
  assert len(GOLDEN['draws']) >= 5


@pytest.mark.parametrize('case', GOLDEN['draws'])
def test_golden_vectors(case):
  key = _key(int(case['seed']), case['member'], case['name'], case['layer'])
  np.testing.assert_array_equal(key, _parse(case['key']))
  words = prng.words((key[:1], key[1:]), (_u32(0), np.arange(8, dtype='u4')))
  np.testing.assert_array_equal(words, _parse(case['words']))

  signs = _draw('rademacher', key, (2, 40)).view(np.uint32)
  np.testing.assert_array_equal(signs[0, :8], _parse(case['rademacher']))
  # Row 1 begins with word 2, not with bit 40.
  np.testing.assert_array_equal(signs[1, :8], _parse(case['rademacher_row_1']))

  # Whether the compiler fuses a multiplication and an addition depends on the
  # instruction set, and so does the square root of an accelerator; each such
  # rounding moves the deviate by about one unit in the last place.
  normal = _draw('gaussian', key, (8,)).view(np.uint32)
  assert _ulps(normal, _parse(case['gaussian'])).max() <= 4


# Statistics.


@pytest.fixture(scope='module')
def population():
  """24 draws of 200 thousand: 2 members x 3 names x 4 layers, both families."""
  combos = [
    (member, name, layer)
    for member in (1, 2)
    for name in ('layers.*.q.weight', 'layers.*.k.weight', 'layers.*.v.weight')
    for layer in (0, 1, 2, 3)
  ]
  keys = [_key(0, *combo) for combo in combos]
  return {
    family: np.stack([_draw(family, key, (250, 800)).ravel() for key in keys])
    for family in DENSE
  }


@pytest.mark.parametrize('family', DENSE)
def test_tensors_layers_and_members_are_uncorrelated(population, family):
  draws = population[family]
  correlation = np.corrcoef(draws)
  np.fill_diagonal(correlation, 0)
  assert np.abs(correlation).max() < SIGMAS / np.sqrt(draws.shape[1])


@pytest.mark.parametrize('family', DENSE)
def test_tensors_of_different_shape_share_no_stream(family):
  # With one stream for all tensors, the draws below would begin alike.
  shapes = {'a': (300, 700), 'b': (700, 300), 'c': (210_000,), 'd': (64, 4096)}
  starts = np.stack(
    [
      _draw(family, _key(0, 1, name), shape).ravel()[:200_000]
      for name, shape in shapes.items()
    ]
  )
  correlation = np.corrcoef(starts)
  np.fill_diagonal(correlation, 0)
  assert np.abs(correlation).max() < SIGMAS / np.sqrt(starts.shape[1])


def test_normal_moments(population):
  draws = population['gaussian'].astype(np.float64)
  n = draws.size
  # Variances of the first four powers of a normal deviate: 1, 2, 15, 96.
  for power, mean, variance in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)]:
    error = np.mean(draws**power) - mean
    assert abs(error) < SIGMAS * np.sqrt(variance / n)


def test_the_distribution_is_normal(population):
  draws = population['gaussian'][:6].ravel()
  ks = stats.kstest(draws, 'norm').statistic
  # The 1e-6 quantile of Kolmogorov's distribution.
  assert ks < 2.7 / np.sqrt(draws.size)


def test_tails_of_a_large_draw():
  x = _draw('gaussian', _key(1), (30_000, 1000))
  for threshold in (1, 2, 3, 4, 4.5):
    p = stats.norm.sf(threshold)
    bound = SIGMAS * np.sqrt(x.size * p * (1 - p))
    assert abs(np.count_nonzero(x > threshold) - x.size * p) < bound
    assert abs(np.count_nonzero(x < -threshold) - x.size * p) < bound


@pytest.mark.parametrize('sign', [1, -1])
def test_tails_are_exact_over_all_words(sign):
  # Deviates grow with the signed word, so the words above 3 sigma can be
  # counted, all of them: the shape of the tail without sampling error.
  words = np.arange(2**31 - 6_000_000, 2**31, dtype=np.int64) * sign
  x = sign * np.asarray(_gaussian(words.astype(np.uint32)))
  assert x[0] < 3
  for threshold in (3, 3.5, 4, 4.5):
    ideal = stats.norm.sf(threshold) * 2**32
    assert abs(np.sum(x > threshold) - ideal) < 0.01 * ideal


def test_bits_of_words_are_balanced_and_independent():
  n = 2**19
  words = np.asarray(jax.random.bits(_wrapped(_key(2)), (n,)))
  ours = prng.words(
    tuple(_key(2)[:, None]), (_u32(0), np.arange(n, dtype=np.uint32))
  )
  np.testing.assert_array_equal(ours, words)
  bits = (ours[:, None] >> np.arange(32, dtype=np.uint32)) & np.uint32(1)
  signs = 1 - 2 * bits.astype(np.float32)
  # Means of the 32 positions, and products of each two of them.
  assert np.abs(signs.mean(axis=0)).max() < SIGMAS / np.sqrt(n)
  products = signs.T @ signs / n
  np.fill_diagonal(products, 0)
  assert np.abs(products).max() < SIGMAS / np.sqrt(n)


def test_signs_are_balanced_and_neighbours_independent(population):
  signs = population['rademacher']
  np.testing.assert_array_equal(np.unique(signs), [-1, 1])
  assert abs(signs.mean(dtype=np.float64)) < SIGMAS / np.sqrt(signs.size)
  rows = signs.reshape(-1, 800)
  for lag in (1, 2, 31, 32, 33, 64):
    product = (rows[:, lag:] * rows[:, :-lag]).astype(np.float64)
    assert abs(product.mean()) < SIGMAS / np.sqrt(product.size)
  # The same column of neighbouring rows.
  product = rows[1:] * rows[:-1]
  assert abs(product.mean(dtype=np.float64)) < SIGMAS / np.sqrt(product.size)
