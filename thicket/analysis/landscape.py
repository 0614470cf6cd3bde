# SPDX-License-Identifier: Apache-2.0
"""The score around a model: on a random plane, and along random lines.

Figure 2 of Neural Thickets (arXiv 2603.12228) shows a random 2-D projection of
the neighbourhood of pretrained weights. Here the directions are members of a
population, by noise id (of mirrored pairs, noise j is that of members 2j and
2j + 1), so the picture and a search speak of the same noise: with n1 and n2 the
unit noise of two members, the point (x, y) is

    theta + sigma * (x * n1 + y * n2)

and (1, 0) is the first member itself. Random directions in many dimensions are
nearly orthogonal and of nearly equal length, so the plane is not distorted.

Axes: P points, A directions at once (2 of a plane, 1 of a line), D lines.
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

from thicket import families, perturb, prng, scales, scoring, sharding, trees

Tree = Any
Apply = Callable[[Tree, Tree], Tree]
Score = Callable[[Tree, Tree], jax.Array]


@dataclasses.dataclass(frozen=True, eq=False)
class Landscape:
  """Scores on a square of a random plane, centred on the base.

  Attributes:
    x: float64 [n], coordinates along the first direction, in units of sigma.
    y: float64 [n], along the second.
    scores: float32 [n, n]; `scores[i, j]` is at `(x[j], y[i])`, the order that
      matplotlib's contours take.
    base_score: score of the unperturbed model.
    sigma: the unit of `x` and `y`.
    directions: noise ids of the two members.
  """

  x: np.ndarray
  y: np.ndarray
  scores: np.ndarray
  base_score: float
  sigma: float
  directions: tuple[int, int]


@dataclasses.dataclass(frozen=True, eq=False)
class Slices:
  """Scores along random lines through the base.

  Attributes:
    x: float64 [n], coordinates in units of sigma.
    scores: float32 [D, n].
    base_score: score of the unperturbed model.
    sigma: the unit of `x`.
    directions: noise ids of the D members.
  """

  x: np.ndarray
  scores: np.ndarray
  base_score: float
  sigma: float
  directions: tuple[int, ...]


def landscape(
  apply: Apply,
  params: Tree,
  data: Tree,
  score: Score,
  *,
  key: jax.Array | int,
  sigma: float,
  radius: float = 3.0,
  resolution: int = 25,
  directions: tuple[int, int] = (0, 1),
  family: str = 'gaussian',
  scale: str = 'absolute',
  only: str = '',
  skip: str = '',
  spec: Tree | None = None,
  mesh: Mesh | None = None,
  points_at_a_time: int = 16,
) -> Landscape:
  """Scores a grid on the plane of two members' noise, in one compiled call.

  Args:
    apply: (params, data) -> outputs, pure.
    params: tree of float arrays.
    data: what `apply` and `score` take, as one batch.
    score: (outputs, data) -> rewards, [B] or a scalar; higher is better.
    key: a typed threefry key or a root seed, as in `thicket.search`.
    sigma: of the noise one unit away, a multiple of what `scale` says, > 0.
    radius: half the side of the square, in units of sigma, > 0.
    resolution: n, points on a side, at least 2; with an odd number the base
      is the point in the middle.
    directions: noise ids of two members, >= 0, not the same.
    family: see `families`.
    scale: one of `scales.SCALES`.
    only: perturb only parameters whose path matches this regular expression.
    skip: and not those that match this one.
    spec: tree of `trees.Leaf`; by default each array is one tensor.
    mesh: where to run; by default all devices. It changes no bit.
    points_at_a_time: points in memory at a time, on each device; bits may
      depend on it, as it is the shape of every product.

  Returns:
    The scores, means over rows in float32.

  Raises:
    ValueError: a setting is out of range; the message names it.
  """
  if len(directions) != 2:
    raise ValueError(f'directions = {directions} are not two members')
  plane = _Lines(
    apply, params, score, key=key, sigma=sigma, directions=directions,
    family=family, scale=scale, only=only, skip=skip, spec=spec, mesh=mesh,
    points_at_a_time=points_at_a_time,
  )  # fmt: skip
  x = _axis(radius, resolution)
  points = np.stack(np.meshgrid(x, x), axis=-1).reshape(-1, 2)
  scores, base = plane.scores(points, data, directions)
  return Landscape(
    x, x.copy(), scores.reshape(len(x), -1), base, float(sigma),
    tuple(map(int, directions)),
  )  # fmt: skip


def slices(
  apply: Apply,
  params: Tree,
  data: Tree,
  score: Score,
  *,
  key: jax.Array | int,
  sigma: float,
  radius: float = 3.0,
  resolution: int = 25,
  directions: Sequence[int] = (0, 1, 2, 3),
  family: str = 'gaussian',
  scale: str = 'absolute',
  only: str = '',
  skip: str = '',
  spec: Tree | None = None,
  mesh: Mesh | None = None,
  points_at_a_time: int = 16,
) -> Slices:
  """Scores along the noise of several members, from -radius to radius.

  One program, called once a line, so that the noise of one line only is in
  memory; a line does not depend on which others are asked for.

  Args:
    apply: as in `landscape`, like all that are not named here.
    params: tree of float arrays.
    data: what `apply` and `score` take, as one batch.
    score: (outputs, data) -> rewards, [B] or a scalar; higher is better.
    key: a typed threefry key or a root seed.
    sigma: of the noise one unit away, a multiple of what `scale` says, > 0.
    radius: half the length of a line, in units of sigma, > 0.
    resolution: n, points on a line, at least 2.
    directions: noise ids of D members, >= 0, all different.
    family: see `families`.
    scale: one of `scales.SCALES`.
    only: perturb only parameters whose path matches this regular expression.
    skip: and not those that match this one.
    spec: tree of `trees.Leaf`; by default each array is one tensor.
    mesh: where to run; by default all devices. It changes no bit.
    points_at_a_time: points in memory at a time, on each device.

  Returns:
    The scores, means over rows in float32.

  Raises:
    ValueError: a setting is out of range; the message names it.
  """
  lines = _Lines(
    apply, params, score, key=key, sigma=sigma, directions=directions,
    family=family, scale=scale, only=only, skip=skip, spec=spec, mesh=mesh,
    points_at_a_time=points_at_a_time,
  )  # fmt: skip
  x = _axis(radius, resolution)
  found = [lines.scores(x[:, None], data, [one]) for one in directions]
  return Slices(
    x, np.stack([scores for scores, _ in found]), found[0][1], float(sigma),
    tuple(map(int, directions)),
  )  # fmt: skip


def _axis(radius: float, resolution: int) -> np.ndarray:
  """Equal steps from -radius to radius; the middle one is exactly 0."""
  if not (math.isfinite(radius) and radius > 0):
    raise ValueError(f'radius = {radius} is not a finite number > 0')
  if resolution < 2:
    raise ValueError(f'resolution = {resolution} is below 2 points on a side')
  twice = 2 * np.arange(resolution) - (resolution - 1)
  return radius * twice / (resolution - 1)


class _Lines:
  """Scores of points on lines or planes of members' noise."""

  def __init__(
    self, apply, params, score, *, key, sigma, directions, family, scale,
    only, skip, spec, mesh, points_at_a_time,
  ):  # fmt: skip
    if not (math.isfinite(sigma) and sigma > 0):
      raise ValueError(f'sigma = {sigma} is not a finite number > 0')
    if not len(directions) or len(set(directions)) < len(directions):
      raise ValueError(f'directions = {directions} are not different members')
    if min(directions) < 0:
      raise ValueError(f'directions = {directions}: ids of members are >= 0')
    if points_at_a_time < 1:
      raise ValueError(f'points_at_a_time = {points_at_a_time} is below 1')
    if not jax.tree.leaves(params):
      raise ValueError('params holds no array')
    self._mesh = sharding.make_mesh() if mesh is None else mesh
    self._spec = trees.default_spec(params) if spec is None else spec
    # Not kept: it refuses what cannot be perturbed, in the words of a search.
    perturb.Perturber(
      params, self._spec, seed=prng.seed_of(key), mesh=self._mesh, family=family
    )
    self._seed, self._family, self._sigma = prng.seed_of(key), family, sigma
    mask = trees.trainable(self._spec, only=only, skip=skip)
    self._factors = jax.tree.map(
      lambda leaf, factors, moves: factors * np.asarray(moves, np.float64),
      self._spec,
      scales.tensor_scales(params, self._spec, scale, family),
      mask,
    )
    self._params = sharding.replicate(self._mesh, params)
    self._chunk = points_at_a_time
    self._run = _compile(apply, score, self._mesh, points_at_a_time)

  def scores(
    self, points: np.ndarray, data: Tree, directions: Sequence[int]
  ) -> tuple[np.ndarray, float]:
    """Scores of points [P, A] in units of sigma, and that of the base."""
    unit = self._chunk * sharding.num_devices(self._mesh)
    # The base is a point more, and the filling too: all zeros.
    rounds = -(-(len(points) + 1) // unit)
    padded = np.zeros((rounds * unit, points.shape[1]))
    padded[: len(points)] = self._sigma * points
    found = self._run(
      self._params,
      self._noise(directions),
      sharding.replicate(self._mesh, data),
      sharding.spread(self._mesh, padded.astype(np.float32)),
      np.int32(rounds),
    )
    found = np.asarray(found)
    return found[: len(points)], float(found[len(points)])

  def _noise(self, directions: Sequence[int]) -> Tree:
    """Noise [A, ...] of each array that moves, by the number of its leaf."""
    names = list(trees.segments(self._spec))
    keys = prng.tensor_keys(
      self._seed,
      directions,
      [segment.name for segment in names],
      [segment.layer for segment in names],
    )
    leaves, tree = jax.tree.flatten(self._spec)
    factors = tree.flatten_up_to(self._factors)
    edges = np.cumsum([len(leaf.segments) for leaf in leaves])[:-1]
    noise = {}
    for number, (leaf, factor, own) in enumerate(
      zip(leaves, factors, np.split(keys, edges, axis=1), strict=True)
    ):
      if factor.any():
        rows = np.repeat(factor, leaf.rows).astype(np.float32)
        # Names are in the keys.
        shape = trees.anonymous(leaf)
        noise[number] = _draw(own, rows, family=self._family, leaf=shape)
    return sharding.replicate(self._mesh, noise)


@functools.partial(jax.jit, static_argnames=('family', 'leaf'))
def _draw(keys, rows, *, family, leaf):
  """Unit noise [A, ...] of members with keys [A, S, 2], times [R] factors."""
  drawn = jax.vmap(lambda own: families.draw(family, own, leaf))(keys)
  matrix = drawn.reshape(len(keys), len(rows), leaf.num_columns)
  return (matrix * rows[None, :, None]).reshape(drawn.shape)


def _compile(apply, score, mesh, chunk):
  """(params, noise, data, points [P, A], rounds) -> float32 [P]."""
  members, whole = PartitionSpec(sharding.MEMBERS), PartitionSpec()

  def one(params, noise, data, point):
    leaves, tree = jax.tree.flatten(params)
    for number, directions in noise.items():
      leaves[number] = _moved(leaves[number], directions, point)
    weights = jax.tree.unflatten(tree, leaves)
    return scoring.rewards(apply, score, weights, data).mean()

  def local(params, noise, data, points, rounds):
    of_points = jax.vmap(one, in_axes=(None, None, None, 0))

    def body(i, scores):
      part = jax.lax.dynamic_slice_in_dim(points, i * chunk, chunk)
      found = of_points(params, noise, data, part)
      return jax.lax.dynamic_update_slice_in_dim(scores, found, i * chunk, 0)

    # The bound is an argument: a loop that is known to have one round may be
    # taken apart by XLA, and devices that share the points have fewer rounds.
    empty = jnp.zeros(len(points), jnp.float32)
    return jax.lax.fori_loop(0, rounds, body, empty)

  return jax.jit(
    jax.shard_map(
      local,
      mesh=mesh,
      in_specs=(whole, whole, whole, members, whole),
      out_specs=members,
      check_vma=False,
    )
  )


def _moved(base, directions, point):
  """The base + sum of point[a] * directions[a], rounded once to its type."""
  step = point[0] * directions[0]
  for coordinate, direction in zip(point[1:], directions[1:], strict=True):
    step = step + coordinate * direction
  moved = (base.astype(jnp.float32) + step).astype(base.dtype)
  # What does not move keeps every bit: adding 0 would turn -0 into +0.
  return jnp.where(step == 0, base, moved)
