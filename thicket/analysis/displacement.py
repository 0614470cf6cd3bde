# SPDX-License-Identifier: Apache-2.0
"""How far noise moves a model's function, and equal moves for two families.

A sigma says how far weights move, not how far outputs do: one sigma for all
sizes confounds the law of density in Neural Thickets (arXiv 2603.12228, section
2), and families of noise can only be compared at an equal move. Two measures:
the Kullback-Leibler divergence of the member's distribution from the base's,
and the root mean square by which hidden states move.

The same members are taken at every sigma, so a curve is smooth in sigma and a
search along it is deterministic.

Axes: S sigmas, N members, M at a time, B rows, C classes.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from thicket import perturb, prng, sharding, trees
from thicket.user_rules import user_rules

Tree = Any
Outputs = Callable[[Tree, Tree], jax.Array]

MEASURES = ('kl', 'rms', 'relative')


def kl(base_logits: jax.Array, member_logits: jax.Array) -> jax.Array:
  """KL(base || member) of each row in nats, in float32.

  The difference of two log-softmaxes loses a small divergence to rounding.
  With z = member - base, centred so that E z = 0 under the base, it equals
  log(1 + E[exp(z) - 1 - z]), a mean of terms >= 0, used while |z| < 10.

  Args:
    base_logits: [B, ..., C].
    member_logits: [B, ..., C].

  Returns:
    float32 [B], the mean over the axes between; exactly 0 for equal logits.
  """
  pair = base_logits, member_logits
  base, member = (jnp.asarray(x).astype(jnp.float32) for x in pair)
  log_p, log_q = jax.nn.log_softmax(base), jax.nn.log_softmax(member)
  p = jnp.exp(log_p)
  # Equal infinities (classes that are masked out) have not moved.
  z = jnp.where(base == member, 0.0, member - base)
  z = z - jnp.where(p > 0, p * z, 0.0).sum(axis=-1, keepdims=True)
  near = jnp.abs(z).max(axis=-1) < 10
  excess = jnp.where(near[..., None], _exp_beyond_first_order(z), 0.0)
  small = jnp.log1p((p * excess).sum(axis=-1))
  large = jnp.where(p > 0, p * (log_p - log_q), 0.0).sum(axis=-1)
  divergence = jnp.where(near, small, large)
  return divergence.reshape(len(divergence), -1).mean(axis=1)


def _exp_beyond_first_order(z: jax.Array) -> jax.Array:
  """exp(z) - 1 - z, to float32 accuracy near 0 too."""
  series = jnp.ones_like(z)
  for n in range(9, 2, -1):  # z**9 / 10! is below 2**-24 of the sum at 1/2
    series = 1 + series * z / n
  return jnp.where(
    jnp.abs(z) < 0.5, 0.5 * jnp.square(z) * series, jnp.expm1(z) - z
  )


def rms(
  base_hidden: jax.Array, member_hidden: jax.Array, *, relative: bool = False
) -> jax.Array:
  """Root mean square by which each row of hidden states moves, in float32.

  Args:
    base_hidden: [B, ...].
    member_hidden: [B, ...].
    relative: divide by the root mean square of the base's row; a row of zeros
      then gives infinity, or NaN if it has not moved.

  Returns:
    float32 [B], in the units of the states, or without unit.
  """

  def of_rows(x: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.square(x).reshape(len(x), -1).mean(axis=1))

  base = base_hidden.astype(jnp.float32)
  moved = of_rows(member_hidden.astype(jnp.float32) - base)
  return moved / of_rows(base) if relative else moved


def _of_member(measure: str, base: jax.Array, member: jax.Array) -> jax.Array:
  """A member's displacement over all rows: a scalar."""
  if measure == 'kl':
    return kl(base, member).mean()
  rows = rms(base, member, relative=measure == 'relative')
  return jnp.sqrt(jnp.square(rows).mean())


@dataclasses.dataclass(frozen=True, eq=False)
class Displacement:
  """How far the members of one family move the function, by sigma.

  Attributes:
    measure: one of `MEASURES`.
    family: see `families`.
    sigmas: float64 [S].
    values: float32 [S, N], the displacement by noise ids 0 to N - 1: the mean
      over rows of `kl`, the root of the mean over rows of `rms` squared.
    mean: float64 [S], over members: the mean of a divergence; the root of the
      mean square of an rms, so that its square is unbiased.
    error: float64 [S], standard error of `mean`; NaN with one member.
  """

  measure: str
  family: str
  sigmas: np.ndarray
  values: np.ndarray
  mean: np.ndarray
  error: np.ndarray


def displacement(
  outputs_fn: Outputs,
  params: Tree,
  data: Tree,
  sigmas: float | Sequence[float] | np.ndarray,
  **settings: Any,
) -> Displacement:
  """Measures how far members move the function, at sigmas [S].

  One call of a `Mover`, which describes the arguments and raises the errors.
  """
  return Mover(outputs_fn, params, data, **settings)(sigmas)


@dataclasses.dataclass(frozen=True)
class Match:
  """The sigma at which a family moves the function as far as asked.

  Attributes:
    sigma: found.
    mean: the displacement there, within the tolerance of the target.
    error: its standard error over members.
    evaluations: sigmas that were tried.
  """

  sigma: float
  mean: float
  error: float
  evaluations: int


def matched_sigma(
  target: float,
  mover: Callable[[float], Displacement],
  *,
  bracket: tuple[float, float],
  tolerance: float = 1e-3,
  max_evaluations: int = 40,
) -> Match:
  """The sigma at which a family of noise moves the function by `target`.

  Secant steps on log displacement against log sigma, where a small move is a
  straight line, kept inside the bracket (the Illinois rule). The sigma of
  family b that equals family a at 0.001:

      target = Mover(..., family=a)(0.001).mean[0]
      sigma = matched_sigma(target, Mover(..., family=b), bracket=...).sigma

  Args:
    target: displacement to match, > 0, in the units of the mover's measure.
    mover: of the family that is to match.
    bracket: (low, high) sigmas, 0 < low < high, that move less and more.
    tolerance: accepted |log(displacement / target)|, > 0.
    max_evaluations: sigmas to try at most, the bracket's two among them.

  Returns:
    The match. It is deterministic: the members are the same at every sigma.

  Raises:
    ValueError: a setting is out of range, the target is not between what the
      ends of the bracket do, or no sigma tried comes within the tolerance.
  """
  if not (math.isfinite(target) and target > 0):
    raise ValueError(f'target = {target} is not a finite number > 0')
  if not tolerance > 0:
    raise ValueError(f'tolerance = {tolerance} is not above 0')
  if not 0 < bracket[0] < bracket[1] < math.inf:
    raise ValueError(f'bracket = {bracket} is not two sigmas, 0 < low < high')
  tried = 0

  def at(log_sigma: float) -> tuple[Match, float]:
    nonlocal tried
    tried += 1
    sigma = math.exp(log_sigma)
    found = mover(sigma)
    mean, error = float(found.mean[0]), float(found.error[0])
    if not math.isfinite(mean):
      raise ValueError(
        f'the displacement at sigma = {sigma:.6g} is {mean}: lower the '
        f'bracket, {bracket}'
      )
    gap = math.log(mean / target) if mean > 0 else -math.inf
    return Match(sigma, mean, error, tried), gap

  a, b = map(math.log, bracket)
  (left, gap_a), (right, gap_b) = at(a), at(b)
  for match, gap in ((left, gap_a), (right, gap_b)):
    if abs(gap) <= tolerance:
      return dataclasses.replace(match, evaluations=tried)
  if not gap_a < 0 < gap_b:
    raise ValueError(
      f'target = {target:.6g} is outside the displacements '
      f'[{left.mean:.6g}, {right.mean:.6g}] at bracket = {bracket}: '
      + ('lower the first sigma' if gap_a > 0 else 'raise the second sigma')
    )
  kept = 0  # which end the last step left in place: -1 the low, 1 the high
  while tried < max_evaluations:
    middle = (a * gap_b - b * gap_a) / (gap_b - gap_a)
    if not a < middle < b:  # an end that does not move at all, or rounding
      middle = (a + b) / 2
    match, gap = at(middle)
    if abs(gap) <= tolerance:
      return match
    if gap < 0:
      a, gap_a = middle, gap
      gap_b, kept = (gap_b / 2 if kept == 1 else gap_b), 1
    else:
      b, gap_b = middle, gap
      gap_a, kept = (gap_a / 2 if kept == -1 else gap_a), -1
  raise ValueError(
    f'no sigma within tolerance = {tolerance} of target = {target:.6g} after '
    f'{tried} tries: between {math.exp(a):.9g} and {math.exp(b):.9g}, where '
    f'the displacement at {match.sigma:.9g} is {match.mean:.6g}'
  )


class Mover:
  """How far one family moves one function, as a function of sigma.

  What is compiled serves every sigma that it is called with.
  """

  def __init__(
    self,
    outputs_fn: Outputs,
    params: Tree,
    data: Tree,
    *,
    key: jax.Array | int,
    num_members: int,
    measure: str = 'kl',
    family: str = 'gaussian',
    scale: str = 'absolute',
    only: str = '',
    skip: str = '',
    spec: Tree | None = None,
    mesh: Mesh | None = None,
    members_at_a_time: int = 16,
  ):
    """Prepares the members, and the outputs of the base.

    Args:
      outputs_fn: (params, data) -> float array [B, ...], pure: logits whose
        last axis is C for 'kl', hidden states for the others.
      params: tree of float arrays.
      data: what `outputs_fn` takes.
      key: a typed threefry key or a root seed, as in `thicket.search`, whose
        noise ids 0 to N - 1 these are, bit for bit and without mirror images.
      num_members: N, at least 1; the same members at every sigma.
      measure: 'kl' in nats, 'rms' in units of the outputs, or 'relative'.
      family: see `families`.
      scale: one of `scales.SCALES`.
      only: perturb only parameters whose path matches this regular expression.
      skip: and not those that match this one.
      spec: tree of `trees.Leaf`; by default each array is one tensor.
      mesh: where to run; by default all devices. It changes no bit.
      members_at_a_time: members in memory at a time, on each device.

    Raises:
      ValueError: a setting is out of range; the message names it.
    """
    if measure not in MEASURES:
      raise ValueError(f'measure {measure!r} is not one of {MEASURES}')
    if num_members < 1:
      raise ValueError(f'num_members = {num_members} is below 1')
    if members_at_a_time < 1:
      raise ValueError(f'members_at_a_time = {members_at_a_time} is below 1')
    if not jax.tree.leaves(params):
      raise ValueError('params holds no array')
    self._measure, self._family, self._num = measure, family, num_members
    self._mesh = mesh = sharding.make_mesh() if mesh is None else mesh
    self._data = sharding.replicate(mesh, data)
    spec = trees.default_spec(params) if spec is None else spec
    self._perturber = perturb.Perturber(
      sharding.replicate(mesh, params),
      spec,
      seed=prng.seed_of(key),
      mesh=mesh,
      family=family,
      scale=scale,
      mask=trees.trainable(spec, only=only, skip=skip),
    )
    self._chunk = members_at_a_time * sharding.num_devices(mesh)
    self._buffers = self._perturber.buffers(self._chunk)
    self._compile(outputs_fn)
    # Through the members' own program, so that the base is 0 from itself.
    self._base = jax.tree.map(
      lambda x: sharding.replicate(mesh, np.asarray(x[0])),
      self._outputs(self._write([-1], [0.0]), self._data),
    )

  def _compile(self, outputs_fn):
    members, whole = PartitionSpec(sharding.MEMBERS), PartitionSpec()
    in_axes = self._perturber.in_axes
    of_weights = sharding.weight_specs(in_axes)
    over = functools.partial(
      jax.shard_map, mesh=self._mesh, out_specs=members, check_vma=False
    )

    def outputs(weights, data):
      with user_rules():
        found = jnp.asarray(outputs_fn(weights, data))
      if not found.ndim > (self._measure == 'kl'):
        raise ValueError(
          f'outputs_fn gives shape {found.shape}; [B, ...] is needed, and '
          '[B, ..., C] for kl'
        )
      return found

    def moves(base, member):
      return _of_member(self._measure, base, member)

    # Apart, so that how outputs are rounded cannot depend on what reads them.
    self._outputs = jax.jit(
      over(jax.vmap(outputs, (in_axes, None)), in_specs=(of_weights, whole))
    )
    self._moves = jax.jit(
      over(jax.vmap(moves, (None, 0)), in_specs=(whole, members))
    )

  def _write(self, ids, sigmas):
    fill = self._chunk - len(ids)
    self._buffers = self._perturber.write(
      np.append(np.asarray(ids, np.int32), np.full(fill, -1, np.int32)),
      np.append(np.asarray(sigmas, np.float64), np.zeros(fill)),
      self._buffers,
    )
    return self._buffers

  def __call__(
    self, sigmas: float | Sequence[float] | np.ndarray
  ) -> Displacement:
    """The displacement at each sigma; at 0 it is exactly 0.

    Raises:
      ValueError: a sigma is not a finite number >= 0.
    """
    sigmas = np.atleast_1d(np.asarray(sigmas, np.float64))
    if sigmas.ndim != 1 or not (np.isfinite(sigmas) & (sigmas >= 0)).all():
      raise ValueError(f'sigmas = {sigmas} are not finite numbers >= 0')
    ids = np.tile(np.arange(self._num), len(sigmas))
    each = np.repeat(sigmas, self._num)
    values = np.empty(len(ids), np.float32)
    for start in range(0, len(ids), self._chunk):
      part = slice(start, start + self._chunk)
      weights = self._write(ids[part], each[part])
      moved = self._moves(self._base, self._outputs(weights, self._data))
      values[part] = np.asarray(moved)[: len(ids[part])]
    values = values.reshape(-1, self._num)
    mean, error = _over_members(values, self._measure)
    of = self._measure, self._family
    return Displacement(*of, sigmas, values, mean, error)


def _over_members(
  values: np.ndarray, measure: str
) -> tuple[np.ndarray, np.ndarray]:
  """(mean, standard error) over the last axis, float64."""
  is_root = measure != 'kl'
  values = values.astype(np.float64) ** (2 if is_root else 1)
  mean = values.mean(axis=1)
  if values.shape[1] == 1:
    error = np.full_like(mean, np.nan)
  else:
    error = values.std(axis=1, ddof=1) / math.sqrt(values.shape[1])
  if not is_root:
    return mean, error
  root = np.sqrt(mean)
  # d sqrt(v) = dv / (2 sqrt(v)); where nothing moved the error is 0 too.
  return root, error / np.where(root > 0, 2 * root, 1)
