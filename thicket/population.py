# SPDX-License-Identifier: Apache-2.0
"""The population, and the loop that takes its members through a step.

Populations are nested: member i of N = 100 is member i of N = 5000, with the
same sigma. A chunk of members is materialised on every device of the mesh, a
step is dispatched on it, and while the devices work the host gets the results
of the chunk before: reading text and judging it overlaps with generation.
When a device runs out of memory the chunk is halved, and what has not been
handed out yet is computed again. With several processes each gets the results
that its own devices hold.
"""

from __future__ import annotations

import collections
import dataclasses
import gc
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh

from thicket import processes, sharding
from thicket.blocks import BASE
from thicket.perturb import Perturber

Tree = Any
# (weights [M, ...], int32 ids [M], int32 draws [M]) -> tree of arrays [M, ...],
# dispatched. Results must not be the weights: their memory is used again.
Step = Callable[[Tree, jax.Array, jax.Array], Tree]


class PopulationError(ValueError):
  """A population that cannot be drawn; the message names the setting."""


class OutOfMemory(RuntimeError):
  """Memory does not hold the smallest chunk; the message says what to lower."""


@dataclasses.dataclass(frozen=True)
class Population:
  """N members around one base model.

  Attributes:
    seed: root seed, 0 <= seed < 2**64.
    size: N, at least 1. Not part of what a member is.
    sigmas: the standard deviations, taken in turn by noise id: noise j has
      `sigmas[j % len(sigmas)]`, so that every prefix of the population that is
      a multiple of len(sigmas), or of twice as many if antithetic, is balanced
      over them. A population too small to try all is warned of.
    antithetic: members 2j and 2j + 1 are mirror images of noise id j,
      w + sigma n and w - sigma n, with one sigma; else noise ids are members'.

  Raises:
    PopulationError: a field is out of range.
  """

  seed: int
  size: int
  sigmas: tuple[float, ...]
  antithetic: bool = False

  def __post_init__(self):
    if not 0 <= self.seed < 2**64:
      raise PopulationError(f'seed = {self.seed} is outside [0, 2**64)')
    if not 1 <= self.size < 2**31:
      raise PopulationError(
        f'population size N = {self.size} is outside [1, 2**31)'
      )
    if not self.sigmas:
      raise PopulationError('no sigma: give at least one, such as 0.001')
    for sigma in self.sigmas:
      is_number = type(sigma) in (int, float)
      if not (is_number and math.isfinite(sigma) and sigma >= 0):
        raise PopulationError(f'sigma = {sigma} is not a finite number >= 0')
    tried = int(self.noise_ids(self.size - 1)) + 1
    if tried < len(self.sigmas):
      logging.warning(
        'population size N = %d%s: no member has sigma = %s; the sigmas are '
        'tried alike from N = %d',
        self.size,
        ' in mirrored pairs' if self.antithetic else '',
        ', '.join(f'{sigma:g}' for sigma in self.sigmas[tried:]),
        self.alike * len(self.sigmas),
      )

  def ids(self) -> np.ndarray:
    """int32 [N], the ids of all members, 0 to N - 1."""
    return np.arange(self.size, dtype=np.int32)

  def sigma_index(self, member_ids: Sequence[int] | np.ndarray) -> np.ndarray:
    """Which of `sigmas` each member has; meaningless for the base."""
    return self.noise_ids(member_ids) % len(self.sigmas)

  @property
  def alike(self) -> int:
    """Members that share one noise: 2 of a mirrored pair, else 1."""
    return 2 if self.antithetic else 1

  def noise_ids(self, member_ids: Sequence[int] | np.ndarray) -> np.ndarray:
    """The ids under which members' noise is drawn; the base keeps its own."""
    ids = np.asarray(member_ids)
    return ids // 2 if self.antithetic else ids

  def amplitude(self, member_ids: Sequence[int] | np.ndarray) -> np.ndarray:
    """float64 [M], what members' noise is multiplied by: +sigma or -sigma."""
    is_mirrored = self.antithetic & (np.asarray(member_ids) % 2 == 1)
    return np.where(is_mirrored, -1.0, 1.0) * self.sigma(member_ids)

  def sigma(self, member_ids: Sequence[int] | np.ndarray) -> np.ndarray:
    """float64 [M], the sigma of each member; 0 for the base."""
    ids = np.asarray(member_ids)
    sigmas = np.asarray(self.sigmas, np.float64)[self.sigma_index(ids)]
    return np.where(ids == BASE, 0.0, sigmas)

  def unselected(self, k: int, sigma_index: int | None = None) -> np.ndarray:
    """int32, the first k members, or all, maybe of one sigma only.

    Noise is independent of a member's number, so these are random members. Of
    mirrored pairs all with + come before any with -, as the mean of whole pairs
    is nearly the base.
    """
    ids = self.ids()
    if sigma_index is not None:
      ids = ids[self.sigma_index(ids) == sigma_index]
    if self.antithetic:
      ids = ids[np.argsort(ids % 2, kind='stable')]
    return ids[:k]

  def of_likely_sigma(self, member_ids: Sequence[int], k: int) -> np.ndarray:
    """`unselected` of the sigma that most of `member_ids` have.

    Among sigmas of equal number that of the member named first.
    """
    index = self.sigma_index(member_ids).tolist()
    return self.unselected(k, max(index, key=index.count))


class Members:
  """Takes members through steps, a chunk at a time, in reused memory."""

  def __init__(
    self,
    perturber: Perturber,
    population: Population,
    mesh: Mesh,
    per_device: int,
  ):
    """Prepares the loop.

    Args:
      perturber: writes members' weights.
      population: gives members their sigmas.
      mesh: the mesh of `perturber`.
      per_device: members on a device at a time; halved, for good, when memory
        does not hold them. Bits of results may depend on it (it is the shape
        of every product) but not on the mesh.

    Raises:
      PopulationError: `per_device` is below 1, or the mesh has devices of a
        process that has not been joined.
    """
    if per_device < 1:
      raise PopulationError(f'members per device = {per_device} is below 1')
    last = max(device.process_index for device in mesh.devices.flat)
    if last >= processes.count():
      raise PopulationError(
        f'the mesh has devices of process {last}, but {processes.count()} '
        'joined: call jax.distributed.initialize() in all processes first'
      )
    self._perturber, self._population, self._mesh = perturber, population, mesh
    self._asked = self._per_device = per_device
    self._buffers: Tree | None = None
    self._held: np.ndarray | None = None  # ids of the members in the buffers

  @property
  def per_device(self) -> dict[str, int]:
    """Members on a device at a time, as asked and as halved by now."""
    return {'asked': self._asked, 'last': self._per_device}

  @property
  def _chunk(self) -> int:
    return self._per_device * sharding.num_devices(self._mesh)

  def run(
    self,
    member_ids: Sequence[int] | np.ndarray,
    step: Step,
    draws: Sequence[int] | np.ndarray | None = None,
  ) -> Iterator[tuple[np.ndarray, np.ndarray, Tree]]:
    """Takes members through a step; a member may occur once for each draw.

    Args:
      member_ids: [n].
      step: what is dispatched on a chunk of them; once more on members whose
        results were lost when memory ran out, in smaller chunks.
      draws: [n], handed to the step; 0 by default.

    Yields:
      (ids [m], draws [m], results on the host, arrays [m, ...]), chunk by
      chunk in order, the results of one when the next has been dispatched.
      Of each chunk a process gets the members on its own devices, maybe none.
      The last chunk is filled with the base, whose results are dropped, so
      that every chunk has one shape.

    Raises:
      OutOfMemory: not even one member on each device fits.
    """
    for _, *found in self._chunks(member_ids, step, draws):
      yield tuple(found)

  def gather(
    self, member_ids: Sequence[int] | np.ndarray, step: Step
  ) -> Iterator[tuple[np.ndarray, Tree]]:
    """As `run`, but each process gets the results of all members.

    They travel over the network of the hosts: for results of little size.

    Yields:
      (ids [m], results on the host, arrays [m, ...]).
    """
    for chunk, *_, own in self._chunks(member_ids, step, None):
      yield chunk, self._everyone(own, len(chunk))

  def _chunks(
    self,
    member_ids: Sequence[int] | np.ndarray,
    step: Step,
    draws: Sequence[int] | np.ndarray | None,
  ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, Tree]]:
    """The ids of each chunk, and what `run` says of this process's part."""
    ids = np.asarray(member_ids, np.int32)
    draws = np.zeros_like(ids) if draws is None else np.asarray(draws, np.int32)
    flight: collections.deque[tuple] = collections.deque()
    sent = 0
    while sent < len(ids) or flight:
      try:
        if sent < len(ids):
          chunk = ids[sent : sent + self._chunk]
          draw = draws[sent : sent + self._chunk]
          fill = self._chunk - len(chunk)
          results = self._dispatch(
            np.append(chunk, np.full(fill, BASE, np.int32)),
            np.append(draw, np.zeros(fill, np.int32)),
            step,
          )
          flight.append((chunk, draw, results))
          del results  # the queue alone holds them
          sent += len(chunk)
          if len(flight) == 1 and sent < len(ids):
            continue  # one chunk ahead of the host
        found = flight[0][0], *self._collect(*flight[0])
      except jax.errors.JaxRuntimeError as error:
        self._shrink(error)
        # Whatever is in flight may hang on what failed.
        sent -= sum(len(chunk) for chunk, *_ in flight)
        flight.clear()
        found = None
      if found is None:
        gc.collect()  # frames of the failed call, which hold its arrays
      else:
        flight.popleft()
        yield found

  def _shrink(self, error: jax.errors.JaxRuntimeError) -> None:
    """Halves the chunk and frees its memory; raises what is another error."""
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise error
    self._buffers = self._held = None
    reason, number = str(error).splitlines()[0], self._per_device
    if number == 1:
      raise OutOfMemory(
        f'out of memory with a single member on each device ({reason}); lower '
        'the rows of a batch (decode.rows) or the new tokens '
        '(decode.max_new_tokens)'
      ) from error
    if processes.count() > 1:
      # With chunks of different sizes, processes would wait for each other.
      raise OutOfMemory(
        f'out of memory with {number} members on each device ({reason}); give '
        'all processes fewer (--members_per_step)'
      ) from error
    self._per_device = number // 2
    logging.warning(
      'out of memory with %d members on each device (%s): going on with %d; '
      'products of another size may round differently',
      number,
      reason,
      self._per_device,
    )

  def _dispatch(self, chunk: np.ndarray, draws: np.ndarray, step: Step) -> Tree:
    # Taken before it is donated: were the step interrupted, the next run
    # would otherwise be handed deleted arrays.
    weights, self._buffers = self._buffers, None
    if weights is None:
      weights, self._held = self._perturber.buffers(self._chunk), None
    # The draws of one member need its weights only once.
    if self._held is None or not np.array_equal(self._held, chunk):
      population = self._population
      weights = self._perturber.write(
        population.noise_ids(chunk), population.amplitude(chunk), weights
      )
      self._held = chunk
    ids, draws = (sharding.spread(self._mesh, x) for x in (chunk, draws))
    results = step(weights, ids, draws)
    self._buffers = weights
    return results

  def _collect(
    self, chunk: np.ndarray, draws: np.ndarray, results: Tree
  ) -> tuple[np.ndarray, np.ndarray, Tree]:
    own = self._rows_of(processes.index(), len(chunk))
    host = jax.tree.map(lambda array: _rows(array, own), results)
    return chunk[own], draws[own], host

  def _everyone(self, own: Tree, size: int) -> Tree:
    """The results of a chunk from what each process has of them."""
    if all(
      x.process_index == processes.index() for x in self._mesh.devices.flat
    ):
      return own
    leaves, structure = jax.tree.flatten(own)
    found = processes.share_arrays(
      {f'{i}': leaf for i, leaf in enumerate(leaves)}
    )
    whole = [np.empty((size, *leaf.shape[1:]), leaf.dtype) for leaf in leaves]
    for process, parts in enumerate(found):
      rows = self._rows_of(process, size)
      for array, part in zip(whole, parts.values(), strict=True):
        # As files know no bfloat16.
        array[rows] = part.view(array.dtype)
    return jax.tree.unflatten(structure, whole)

  def _rows_of(self, process: int, size: int) -> np.ndarray:
    owners = _owners(self._mesh, self._chunk)
    return np.flatnonzero(owners[:size] == process)


def _owners(mesh: Mesh, size: int) -> np.ndarray:
  """The process that speaks for each row spread over members, int [size].

  Where several devices hold a row, that of the first of them.
  """
  owners = np.full(size, -1)
  spread = sharding.over_members(mesh).devices_indices_map((size,))
  for device, (rows,) in spread.items():
    part = owners[rows]  # a view
    part[part < 0] = device.process_index
  return owners


def _rows(array: jax.Array, rows: np.ndarray) -> np.ndarray:
  """Rows on the host of an array of which this process holds these, or all.

  Raises RuntimeError if it does not hold them.
  """
  if array.is_fully_addressable:
    return np.asarray(array)[rows]
  start = lambda shard: shard.index[0].start or 0
  shards = {start(shard): shard.data for shard in array.addressable_shards}
  held = np.concatenate(
    [np.arange(first, first + len(data)) for first, data in shards.items()]
  )
  lacking = np.setdiff1d(rows, held)
  if lacking.size:
    raise RuntimeError(
      f'rows {lacking.tolist()} lie on no device of process '
      f'{processes.index()} of {processes.count()}'
    )
  parts = np.concatenate(jax.device_get([*shards.values()]))
  order = np.argsort(held)
  at = np.searchsorted(held, rows, sorter=order)
  return parts[order[at]]
