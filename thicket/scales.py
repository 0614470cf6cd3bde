# SPDX-License-Identifier: Apache-2.0
"""What sigma is a multiple of, tensor by tensor.

    absolute   1: sigma is the standard deviation of every weight's noise
    relative   the root mean square of the tensor's weights
    modular    1 / (s_p |Z_p|): sigma is a radius in the modular norm

Under the modular norm (Modular-Norm RandOpt; Large et al., arXiv 2405.14813) a
tensor's noise Z_p has the length sigma / s_p in the norm natural to what the
tensor does: spectral for linear maps, the longest row for embeddings, the
largest element for vectors. s_p = total mass / mass of the tensor; masses are 1
for embedding and head, 1/2 for attention and for MLPs, 1/10 for norms and for
all else, each split evenly among its tensors. Two departures: sensitivities
are taken as 1, and |Z_p| is the norm's expectation for the family and shape,
not that of the draw at hand, so that a member stays w + c n with c known before
n. For matrices of hundreds of rows and columns a draw's spectral norm is within
a few percent of it; the largest of a few hundred elements varies by a tenth.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from scipy import stats

from thicket import families, trees

SCALES = ('absolute', 'relative', 'modular')

Tree = Any

_MASSES = {
  'embedding': 1.0,
  'head': 1.0,
  'attention': 0.5,
  'mlp': 0.5,
  'norm': 0.1,
  'other': 0.1,
}
# Vectors are norms or other (biases); the first that matches a matrix's name.
_ROLES = {
  'attention': re.compile('attn|attention', re.IGNORECASE),
  'embedding': re.compile(
    r'embed_tokens|\bembed(ding)?(_\d+)?\b', re.IGNORECASE
  ),
  'head': re.compile('head', re.IGNORECASE),
  'mlp': re.compile('mlp|dense', re.IGNORECASE),
}
_NORM = re.compile('norm', re.IGNORECASE)
# The mean of the largest of n is close to the quantile 1 - exp(-gamma) / n.
_LARGEST = math.exp(-np.euler_gamma)


def role(name: str, ndim: int) -> str:
  """What a tensor does, a key of the masses, by its name and axes."""
  if ndim < 2:
    return 'norm' if _NORM.search(name) else 'other'
  found = (role for role, match in _ROLES.items() if match.search(name))
  return next(found, 'other')


def expected_norm(role: str, family: str, rows: int, columns: int) -> float:
  """The mean norm of unit noise of a family, in the norm natural to a role.

  Args:
    role: of the tensor; a vector is one row.
    family: see `families`.
    rows: of the tensor seen as a matrix.
    columns: of it.
  """
  rank = families.rank_of(family)
  if role in ('norm', 'other') and rows == 1:
    if family == 'rademacher':
      return 1.0
    if columns == 1:
      return math.sqrt(2 / math.pi)
    return float(stats.chi.isf(_LARGEST / columns, 1))
  if role == 'embedding':
    if family == 'rademacher':
      return math.sqrt(columns)
    if not rank:
      return float(stats.chi.isf(min(_LARGEST / rows, 0.5), columns))
    longest = float(stats.chi.isf(min(_LARGEST / rows, 0.5), rank))
    return longest * math.sqrt(columns / rank)
  if not rank:
    return math.sqrt(rows) + math.sqrt(columns)
  more = math.sqrt(rank) - 1  # of the largest singular value of a factor
  product = (math.sqrt(rows) + more) * (math.sqrt(columns) + more)
  return product / math.sqrt(rank)


def tensor_scales(
  params: Tree, spec: Tree, scale: str, family: str = 'gaussian'
) -> Tree:
  """The factor by which sigma is multiplied, for each tensor of each leaf.

  Args:
    params: base weights.
    spec: their tree of `trees.Leaf`.
    scale: one of `SCALES`.
    family: of the noise, which modular scaling divides by its norm.

  Returns:
    The tree of float64 numpy arrays [S].

  Raises:
    ValueError: unknown `scale` or `family`.
  """
  if scale not in SCALES:
    raise ValueError(f'sigma scale {scale!r} is not one of {SCALES}')
  families.rank_of(family)
  if scale == 'absolute':
    return jax.tree.map(lambda leaf: np.ones(len(leaf.segments)), spec)
  if scale == 'relative':
    return jax.tree.map(_root_mean_squares, params, spec)
  roles = [
    role(segment.name, len(leaf.shape))
    for leaf in jax.tree.leaves(spec)
    for segment in leaf.segments
  ]
  return jax.tree.map(
    lambda leaf: np.array(_modular(leaf, Counter(roles), family)), spec
  )


def _root_mean_squares(array: jax.Array, leaf: trees.Leaf) -> np.ndarray:
  # In float64, so that no layout changes it.
  matrix = np.asarray(array).reshape(sum(leaf.rows), leaf.num_columns)
  squares = np.square(matrix.astype(np.float64)).mean(axis=1)
  parts = np.split(squares, np.cumsum(leaf.rows)[:-1])
  return np.sqrt([part.mean() for part in parts])


def _modular(
  leaf: trees.Leaf, counts: Counter[str], family: str
) -> Sequence[float]:
  total = sum(_MASSES[name] for name in counts)
  scales = []
  for segment, rows in zip(leaf.segments, leaf.rows, strict=True):
    own = role(segment.name, len(leaf.shape))
    share = _MASSES[own] / counts[own] / total
    scales.append(share / expected_norm(own, family, rows, leaf.num_columns))
  return scales
