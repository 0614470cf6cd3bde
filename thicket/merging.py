# SPDX-License-Identifier: Apache-2.0
"""Members of a run chosen by name, and merged into one set of weights.

A merge is w + sum_i a_i (w_i - w) for each weight w of the base: task
arithmetic (arXiv 2212.04089) with members in the place of fine-tuned models.
It is done an array at a time, so that a host that holds the base holds this.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from thicket import perturb
from thicket.models.load import LoadedModel
from thicket.population import Population
from thicket.ranking import Ranking


class ExportError(ValueError):
  """Something that cannot be exported; the message names the flag."""


@dataclasses.dataclass(frozen=True)
class Mix:
  """What is exported: the base, and weights of what members moved it by.

  Attributes:
    members: ids, each once.
    weights: one for each; a member with weight 1 and no other is itself.
  """

  members: tuple[int, ...]
  weights: tuple[float, ...]

  @property
  def is_member(self) -> bool:
    """Whether it is a member as it was evaluated, and no merge."""
    return self.weights == (1.0,)


def choose(
  population: Population,
  found: Ranking,
  *,
  rank: int | None = None,
  top: int | None = None,
  members: Sequence[int] | None = None,
  weights: Sequence[float] | None = None,
) -> Mix:
  """The members that are asked for, and their weights; see `export_member`.

  Raises:
    ExportError: too much is asked for, or something that there is not.
  """
  if sum(asked is not None for asked in (rank, top, members)) > 1:
    raise ExportError('give one of --rank, --top and --members')
  for flag, number in (('rank', rank), ('top', top)):
    if number is not None and not 1 <= number <= len(found.ranked):
      raise ExportError(
        f'--{flag}={number}: the run selected {len(found.ranked)} members; '
        'name others by --members'
      )
  if members is None:
    rank = rank or 1
    members = found.ranked[:top] if top else found.ranked[rank - 1 : rank]
  if not members:
    raise ExportError('--members: name at least one')
  for member in members:
    if not 0 <= member < population.size:
      raise ExportError(
        f'--members: {member} is not in 0..{population.size - 1}, the members '
        'of the run'
      )
    if list(members).count(member) > 1:
      raise ExportError(
        f'--members: {member} is named twice; give it the sum of its weights'
      )
  if weights is None:
    weights = [1 / len(members)] * len(members)
  if len(weights) != len(members):
    raise ExportError(
      f'--weights: {len(weights)} for {len(members)} members; give one each'
    )
  if not all(math.isfinite(np.float32(weight)) for weight in weights):
    raise ExportError(f'--weights: {list(weights)} are not all finite')
  return Mix(tuple(map(int, members)), tuple(map(float, weights)))


def tensors(
  model: LoadedModel,
  perturber: perturb.Perturber,
  population: Population,
  mix: Mix,
  dtype: Any,
) -> Iterator[tuple[str, np.ndarray]]:
  """The canonical tensors of a mix, by their names, one array at a time.

  Args:
    model: the base.
    perturber: of the run's noise around it.
    population: which noise the members have.
    mix: what is asked for.
    dtype: of the arrays.

  Yields:
    Full names and arrays, in the order of the leaves and of their segments.
  """
  steps = [
    (population.noise_ids([member]), population.amplitude([member]), weight)
    for member, weight in zip(mix.members, mix.weights, strict=True)
  ]
  leaves = jax.tree.leaves(model.spec)
  for index, base in enumerate(jax.tree.leaves(model.params)):
    array = _mixed(base, perturber.part(index), steps, mix.is_member)
    with np.errstate(over='ignore'):
      array = array.astype(dtype, copy=False)
    if not np.isfinite(array).all():
      raise ExportError(
        f'{leaves[index].segments[0].full_name} would not be finite: '
        f'--weights={list(mix.weights)} are too large'
      )
    end = 0
    for segment in leaves[index].segments:
      start, end = end, end + segment.size
      yield segment.full_name, array[start:end]
    del array  # before the next one is made


def _mixed(
  base: jax.Array,
  part: perturb.Perturber,
  steps: Sequence[tuple[np.ndarray, np.ndarray, float]],
  is_member: bool,
) -> np.ndarray:
  """One array on the host, of the base's dtype or float32."""
  if part.in_axes == [None]:
    return np.asarray(base)
  written = part.buffers(1)
  if is_member:
    ((ids, amplitudes, _),) = steps
    (array,) = part.write(ids, amplitudes, written)
    return np.asarray(array)[0]
  wide = np.asarray(base).astype(np.float32)
  moved = np.zeros_like(wide)
  for ids, amplitudes, weight in steps:
    written = part.write(ids, amplitudes, written)
    member = np.asarray(written[0])[0].astype(np.float32)
    moved += np.float32(weight) * (member - wide)
    del member  # it may be a view of what is donated next
  # What is not moved keeps every bit: adding 0 would turn -0 into +0.
  return np.where(moved == 0, wide, wide + moved)
