# SPDX-License-Identifier: Apache-2.0
"""Splits of digits that nest and never meet, and shifts of single images."""

import builtins
import re
import types

import numpy as np
import pytest
from sklearn import datasets

from thicket import digits

SIZES = {
  'num_pretrain': 60,
  'num_selection': 30,
  'num_validation': 20,
  'num_test': 40,
}


def _load(**more):
  return digits.load(**{**SIZES, **more})


@pytest.fixture(scope='module')
def source():
  return datasets.load_digits()


def test_rows_are_scikit_learn_s_own(source):
  for rows, name in zip(_load(), SIZES, strict=True):
    assert rows.inputs.shape == (SIZES[name], 8, 8, 1)
    assert rows.inputs.dtype == np.float32
    assert rows.targets.dtype == rows.row_ids.dtype == np.int32
    np.testing.assert_array_equal(
      rows.inputs[..., 0] * 16, source.images[rows.row_ids]
    )
    np.testing.assert_array_equal(rows.targets, source.target[rows.row_ids])


def test_pixels_fill_the_unit_interval():
  inputs = _load().pretrain.inputs
  assert (inputs.min(), inputs.max()) == (0, 1)


@pytest.mark.parametrize('seed', [0, 1, 17])
def test_all_rows_can_be_taken_and_none_twice(seed):
  splits = digits.load(
    num_pretrain=800,
    num_selection=278,
    num_validation=19,
    num_test=700,
    seed=seed,
  )
  ids = np.concatenate([rows.row_ids for rows in splits])
  assert sorted(ids.tolist()) == list(range(1797))


@pytest.mark.parametrize('name', SIZES)
def test_more_rows_of_one_split_move_no_other(name):
  small, large = _load(), _load(**{name: SIZES[name] + 55})
  for split, before, after in zip(SIZES, small, large, strict=True):
    np.testing.assert_array_equal(
      before.row_ids, after.row_ids[: len(before.row_ids)]
    )
    assert len(after.row_ids) - len(before.row_ids) == 55 * (split == name)


def test_the_seed_changes_what_is_trained_and_selected_on_only():
  ours, theirs = _load(), _load(seed=1)
  assert set(ours.pretrain.row_ids) != set(theirs.pretrain.row_ids)
  assert set(ours.selection.row_ids) != set(theirs.selection.row_ids)
  np.testing.assert_array_equal(
    ours.validation.row_ids, theirs.validation.row_ids
  )
  np.testing.assert_array_equal(ours.test.row_ids, theirs.test.row_ids)


def test_rows_held_out_are_never_trained_on_whatever_the_seed():
  held_out = digits.load(num_pretrain=0, num_selection=0, num_test=719).test
  for seed in range(5):
    trained = digits.load(
      num_pretrain=1078, num_selection=0, num_test=0, seed=seed
    ).pretrain
    assert not set(trained.row_ids) & set(held_out.row_ids)


def test_splits_hold_every_digit_in_its_proportion(source):
  # 700 of 1,797 without replacement: four standard errors of each share.
  want = np.bincount(source.target) / 1797
  rows = digits.load(num_pretrain=700, num_selection=0, num_test=700)
  for split in (rows.pretrain, rows.test):
    share = np.bincount(split.targets, minlength=10) / 700
    error = np.sqrt(want * (1 - want) / 700 * (1 - 700 / 1797))
    assert (np.abs(share - want) < 4 * error).all()


def test_the_order_of_the_source_does_not_matter(source, monkeypatch):
  want = _load()
  order = np.random.default_rng(0).permutation(1797)
  shuffled = types.SimpleNamespace(
    images=source.images[order], target=source.target[order]
  )
  monkeypatch.setattr(datasets, 'load_digits', lambda: shuffled)
  for ours, theirs in zip(want, _load(), strict=True):
    np.testing.assert_array_equal(ours.inputs, theirs.inputs)
    np.testing.assert_array_equal(ours.targets, theirs.targets)
    np.testing.assert_array_equal(ours.row_ids, order[theirs.row_ids])


# Shifts.


@pytest.mark.parametrize('name', digits.SHIFTS)
def test_all_but_pretraining_is_shifted(name):
  plain, shifted = _load(), _load(shift=name)
  np.testing.assert_array_equal(plain.pretrain.inputs, shifted.pretrain.inputs)
  for before, after in zip(plain[1:], shifted[1:], strict=True):
    np.testing.assert_array_equal(
      after.inputs, digits.SHIFTS[name](before.inputs)
    )
    np.testing.assert_array_equal(before.targets, after.targets)
    assert (before.inputs != after.inputs).any(axis=(1, 2, 3)).all()


@pytest.mark.parametrize('name', digits.SHIFTS)
def test_a_shifted_image_does_not_depend_on_the_others(name):
  images = _load().test.inputs
  before, shift = images.copy(), digits.SHIFTS[name]
  whole = shift(images)
  assert whole.dtype == np.float32
  assert whole.shape == images.shape
  assert 0 <= whole.min() < whole.max() <= 1
  np.testing.assert_array_equal(shift(images[7:9]), whole[7:9])
  np.testing.assert_array_equal(images, before)
  assert shift(images[:0]).shape == (0, 8, 8, 1)


def test_rotation_turns_a_bar_by_its_angle():
  image = np.zeros((1, 8, 8, 1), np.float32)
  image[:, :, 3:5] = 1
  turned = digits.rotation(image)[0, :, :, 0]
  np.testing.assert_allclose(turned, turned[::-1, ::-1], atol=1e-6)
  rows, columns = np.mgrid[:8, :8] - 3.5
  spread = np.cov(
    np.stack([rows.ravel(), columns.ravel()]), aweights=turned.ravel()
  )
  axis = np.linalg.eigh(spread)[1][:, -1]
  angle = np.degrees(np.arctan2(axis[1], axis[0])) % 180
  assert min(angle, 180 - angle) == pytest.approx(35, abs=4)


def test_inversion_undoes_itself():
  images = _load().test.inputs
  np.testing.assert_array_equal(
    digits.inversion(digits.inversion(images)), images
  )


def test_noise_is_gaussian_before_it_is_clipped():
  # Of a pixel at 0 half the draws are clipped, and the mean of the others is
  # that of a half normal; draws above 1, at two sigma, are clipped too.
  images = digits.load(num_pretrain=0, num_selection=0, num_test=700)
  images = images.test.inputs
  noisy = digits.noise(images)[images == 0]
  share = (noisy > 0).mean()
  assert share == pytest.approx(0.5, abs=4 * np.sqrt(0.25 / noisy.size))
  rng = np.random.default_rng(3)
  clipped = np.minimum(np.abs(rng.normal(0, 0.5, 10**6)), 1)
  error = clipped.std() / np.sqrt(noisy.size / 2)
  assert noisy[noisy > 0].mean() == pytest.approx(clipped.mean(), abs=4 * error)


# Errors.


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    (
      {'num_pretrain': 1000, 'num_selection': 79},
      'num_pretrain = 1000 and num_selection = 79 need 1079 rows, there are '
      '1078; ask for fewer',
    ),
    (
      {'num_test': 700, 'num_validation': 20},
      'num_test = 700 and num_validation = 20 need 720 rows, there are 719; '
      'ask for fewer',
    ),
    ({'num_test': -1}, 'num_test = -1 is below 0'),
    ({'seed': -3}, 'seed = -3 is below 0'),
    (
      {'shift': 'blur'},
      "shift = 'blur' is not one of ('rotation', 'inversion', 'noise')",
    ),
  ],
)
def test_bad_settings_are_named_with_their_value(settings, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    _load(**settings)


def test_without_scikit_learn_the_extra_is_named(monkeypatch):
  real = builtins.__import__

  def without(name, *args, **kwargs):
    if name.startswith('sklearn'):
      raise ImportError(name)
    return real(name, *args, **kwargs)

  monkeypatch.setattr(builtins, '__import__', without)
  with pytest.raises(ImportError, match=re.escape("'thicket[vision]'")):
    _load()
