# SPDX-License-Identifier: Apache-2.0
"""Handwritten digits to pretrain, select and test small classifiers on.

The 1,797 images that scikit-learn brings along (8 x 8 pixels; Alpaydin and
Kaynak 1998, UCI), so nothing is downloaded. They are cut by a hash of each
image, never by its place: splits are disjoint, a larger split begins with the
rows of the smaller one, and asking for more of one never moves another.

A model that has learned digits has nothing left to find, so post-training gets
a shifted domain: the same kind of images, drawn otherwise (`SHIFTS`).

Axes: n images.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import ndimage

# Rows that are never trained or selected on, whatever the seed: 2 of 5.
_NUM_HELD_OUT = 719
_DEGREES = 35.0  # far enough to be mistaken, near enough to be learned
_NOISE = 0.5  # standard deviation, in units of the range of a pixel


class Rows(NamedTuple):
  """Images with their digits.

  Fields:
    inputs: float32 [n, 8, 8, 1] in [0, 1].
    targets: int32 [n], the digits.
    row_ids: int32 [n], places in scikit-learn's array.
  """

  inputs: np.ndarray
  targets: np.ndarray
  row_ids: np.ndarray


class Digits(NamedTuple):
  """Disjoint rows; only `pretrain` is never shifted."""

  pretrain: Rows
  selection: Rows
  validation: Rows
  test: Rows


def load(
  *,
  num_pretrain: int,
  num_selection: int,
  num_validation: int = 0,
  num_test: int,
  seed: int = 0,
  shift: str = '',
) -> Digits:
  """Cuts the digits into disjoint splits.

  Of all rows 719 are for test and validation, the same for all seeds: test is
  taken from the front of their order, validation from its back. The order of
  the other 1,078 is drawn with `seed`: pretraining is taken from its front,
  selection from its back.

  Args:
    num_pretrain: rows to train on, at least 0.
    num_selection: rows to score members on, at least 0.
    num_validation: rows to choose anything else on, at least 0.
    num_test: rows to report, at least 0.
    seed: which rows are taken, at least 0.
    shift: a key of `SHIFTS`, for all rows but those of pretraining; '' leaves
      them as they are.

  Returns:
    The splits, of exactly the sizes asked for.

  Raises:
    ValueError: a number is out of range, there are too few rows, or the shift
      is unknown.
    ImportError: scikit-learn is not installed.
  """
  numbers = {
    'num_pretrain': num_pretrain,
    'num_selection': num_selection,
    'num_validation': num_validation,
    'num_test': num_test,
    'seed': seed,
  }
  for name, number in numbers.items():
    if number < 0:
      raise ValueError(f'{name} = {number} is below 0')
  if shift and shift not in SHIFTS:
    raise ValueError(f'shift = {shift!r} is not one of {tuple(SHIFTS)}')
  images, labels = _read()
  fixed = _order(images, 'held out')
  held_out, rest = fixed[:_NUM_HELD_OUT], fixed[_NUM_HELD_OUT:]
  rest = rest[_order(images[rest], f'order {seed}')]
  pretrain, selection = _ends(
    rest, num_pretrain=num_pretrain, num_selection=num_selection
  )
  test, validation = _ends(
    held_out, num_test=num_test, num_validation=num_validation
  )

  def rows(ids: np.ndarray, shift: str = shift) -> Rows:
    inputs = images[ids].astype(np.float32)[..., None] / np.float32(16)
    inputs = SHIFTS[shift](inputs) if shift else inputs
    return Rows(inputs, labels[ids].astype(np.int32), ids.astype(np.int32))

  return Digits(
    rows(pretrain, shift=''), rows(selection), rows(validation), rows(test)
  )


def rotation(images: np.ndarray) -> np.ndarray:
  """Images [n, 8, 8, 1] turned by 35 degrees, corners filled with 0."""
  turned = ndimage.rotate(
    images, _DEGREES, axes=(1, 2), reshape=False, order=1, mode='constant'
  )
  return np.clip(turned, 0, 1).astype(np.float32)


def inversion(images: np.ndarray) -> np.ndarray:
  """Images with ink and paper exchanged."""
  return 1 - images


def noise(images: np.ndarray) -> np.ndarray:
  """Images with Gaussian noise on each pixel, clipped to [0, 1].

  The noise of an image is drawn from a hash of it, so that it does not depend
  on which others are there.
  """
  draws = [
    np.random.default_rng(int.from_bytes(_digest(image, 'noise'))).normal(
      0, _NOISE, image.shape
    )
    for image in images
  ]
  noisy = images + np.reshape(draws, images.shape)
  return np.clip(noisy, 0, 1).astype(np.float32)


SHIFTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
  'rotation': rotation,
  'inversion': inversion,
  'noise': noise,
}


def _read() -> tuple[np.ndarray, np.ndarray]:
  """Images uint8 [n, 8, 8] of 0..16, and their digits."""
  try:
    from sklearn import datasets
  except ImportError as error:
    raise ImportError(
      "the digits come with scikit-learn: pip install 'thicket[vision]'"
    ) from error
  found = datasets.load_digits()
  return found.images.astype(np.uint8), found.target


def _order(images: np.ndarray, salt: str) -> np.ndarray:
  """Places of images in the order of their hashes."""
  return np.array(
    sorted(range(len(images)), key=lambda i: _digest(images[i], salt)), int
  )


def _digest(image: np.ndarray, salt: str) -> bytes:
  return hashlib.sha256(salt.encode() + b':' + image.tobytes()).digest()


def _ends(rows: np.ndarray, **numbers: int) -> tuple[np.ndarray, np.ndarray]:
  """The first rows, and the last ones from the back."""
  (_, first), (_, last) = numbers.items()
  if first + last > len(rows):
    asked = ' and '.join(f'{name} = {n}' for name, n in numbers.items())
    raise ValueError(
      f'{asked} need {first + last} rows, there are {len(rows)}; ask for fewer'
    )
  return rows[:first], rows[::-1][:last]
