# SPDX-License-Identifier: Apache-2.0
"""How many members a device has memory for, known before anything is compiled.

Bytes are counted from shapes alone: what stays (weights, caches, the prefix)
and the largest moment of what comes and goes (`_scratch`). What comes and goes
was read off `memory_analysis()` of the engine's programs, and a test compares
the two. Found there: donated caches are updated in place, the loop keeps no
second set; writing members' weights takes no scratch; and XLA on CPU computes
in float32, so that it holds float32 copies of all bfloat16 weights for as long
as the loop runs. What runs out on an accelerator is an error, from which
`population.Members` recovers; on CPU the kernel kills, so a run that would not
fit is refused.

Axes: M members, B rows, T query time, C cache slots, S prompt bucket, P prefix
tokens, G new tokens; letters of the model as in `decoder_config`.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh

from thicket import decode, sharding, trees
from thicket.models.decoder_config import DecoderConfig

Tree = Any

# Of free memory, left alone: what is not counted (the runtime, compilation,
# 0.3 GB for SmolLM2, the host's own work, fragments) and what others take.
MARGIN = 0.1
# No more by `auto`: rows of all members wait for the slowest of them, and a
# kill loses the chunk, while 64 members fill any product that there is.
MOST = 64


class FitError(ValueError):
  """A run that memory does not hold; the message names bytes and remedies."""


@dataclasses.dataclass(frozen=True)
class Needs:
  """What members take on one device, in bytes.

  Attributes:
    base: the base weights, held once; they are there when this is asked.
    shared: what else is held once.
    weights: of one member, with copies that XLA makes of them.
    caches: of one member, with the prefix.
    scratch: of one member, at the worst moment.
    tokens: of one member, those generated.
  """

  base: int
  shared: int
  weights: int
  caches: int
  scratch: int
  tokens: int

  @property
  def member(self) -> int:
    """Bytes that one member more takes."""
    return self.weights + self.caches + self.scratch + self.tokens

  def total(self, members: int) -> int:
    """Bytes that so many members take, the base not counted."""
    return self.shared + members * self.member

  def members(self, room: int) -> int:
    """The most members that so many bytes hold, maybe 0."""
    return max(0, (room - self.shared) // self.member)

  def __str__(self):
    once = f' and {_size(self.shared)} of copies' if self.shared else ''
    return (
      f'base {_size(self.base)}{once}, a member {_size(self.weights)} of '
      f'weights + {_size(self.caches)} of caches + '
      f'{_size(self.scratch + self.tokens)} of scratch'
    )


def needs(
  config: DecoderConfig,
  base: Tree,
  weights: Tree,
  in_axes: Tree,
  *,
  rows: int,
  buckets: Sequence[int],
  prefix: int,
  max_new_tokens: int,
  dtype: Any,
  platform: str,
  members: int = 1,
) -> Needs:
  """Bytes that the engine's programs take on each device.

  Args:
    config: of the decoder, or of the part of it that a device has.
    base: base weights, arrays or their shapes.
    weights: of `members` members on each device, or their shapes.
    in_axes: 0 for each array with a members axis, None for shared ones.
    rows: B.
    buckets: S of all batches that may be asked.
    prefix: P, at most.
    max_new_tokens: G.
    dtype: of the caches.
    platform: of the devices: cpu, gpu, tpu.
    members: those on each device in `weights`.
  """
  c, B, P, item = config, rows, prefix, np.dtype(dtype).itemsize
  S = max(buckets)
  C = decode.cache_slots(S, max_new_tokens)
  kv_bytes = 2 * c.num_layers * c.num_kv_heads * c.head_dim * item  # a token
  shared, mapped, copies = 0, 0, [0, 0]
  axes = jax.tree.leaves(in_axes, is_leaf=lambda axis: axis is None)
  for array, axis in zip(jax.tree.leaves(weights), axes, strict=True):
    is_mapped = axis is not None
    mapped += _bytes(array) // members if is_mapped else 0
    if platform == 'cpu' and array.dtype.itemsize < 4:
      copies[is_mapped] += 4 * math.prod(_local(array))
  shared += copies[False]
  return Needs(
    base=sum(map(_bytes, jax.tree.leaves(base))),
    shared=shared,
    weights=mapped + copies[True] // members,
    caches=kv_bytes * (_sets(buckets, platform) * B * C + P),
    scratch=_scratch(c, B, S, P, C, 4 if platform == 'cpu' else item),
    # In the loop and as results, of this chunk and of the one before.
    tokens=4 * 4 * B * max_new_tokens,
  )


def _sets(buckets: Sequence[int], platform: str) -> int:
  """Sets of caches that are in memory at a time.

  Each bucket has caches of its own shape, freed before the next are made
  (`engine.Engine.generate`). An accelerator frees in the order of its work; on
  CPU the heap keeps the holes that slightly smaller arrays leave.
  """
  return 2 if platform == 'cpu' and len(set(buckets)) > 1 else 1


def _scratch(c: DecoderConfig, B: int, S: int, P: int, C: int, a: int) -> int:
  """The largest moment of a member's passes; activations of `a` bytes each."""
  # Logits, float32: in two layouts, with a mask, and for top-p with shares.
  # Keys and values of all layers, in three layouts, wait for their write.
  fresh = 2 * c.num_layers * c.num_kv_heads * c.head_dim * B * a
  logits = 4 * 4 * B * c.vocab_size + 3 * fresh
  largest = max(
    logits,
    _pass_bytes(c, 1, P, P, a),
    _pass_bytes(c, B, S, P + S, a),
    _pass_bytes(c, B, 1, P + C + 1, a),
  )
  return largest * 21 // 20  # masks, angles, norms: small beside it


def _pass_bytes(c: DecoderConfig, B: int, T: int, seen: int, a: int) -> int:
  """The largest moment of a layer in which B x T tokens see so many."""
  n = B * T
  x = c.d_model * n * a
  query, kv = (
    count * c.head_dim * n * a for count in (c.num_heads, 2 * c.num_kv_heads)
  )
  # As they come from the product, and rotated.
  wide = a if c.head_norm is None else 4
  heads = x + (query + kv) * (a + wide) // a
  # float32 scores and their exponentials; masks of windows.
  attention = 2 * 4 * c.num_heads * n * seen + x + query + kv
  attention += n * seen * any(window is not None for window in c.windows)
  # gate and up together, their product, and the residual beside them.
  mlp = 3 * c.d_ff * n * a + x
  return max(heads, attention, mlp)


def choose(
  found: Needs,
  free: int | None,
  *,
  asked: int | None,
  units: int,
  devices: int,
  platform: str,
) -> int:
  """How many members each device takes at a time, said in a line of the log.

  Args:
    found: what they take.
    free: bytes that are free on a device, the base being there; None where
      nobody says.
    asked: a number that was asked for; None for as many as are of use.
    units: members (or draws of them) that will run.
    devices: of the mesh, along members.
    platform: of the devices.

  Raises:
    FitError: on CPU, one member or the number asked for does not fit.
  """
  if free is None:
    chosen = asked or 1
    logging.info(
      'free memory of %s is unknown: %s a step; %s', platform, _count(chosen),
      found,
    )  # fmt: skip
    return chosen
  fitting = found.members(math.floor(free * (1 - MARGIN)))
  if fitting < (asked or 1):
    remedies = 'lower decode.rows or decode.max_new_tokens'
    if platform != 'cpu':  # where narrow weights are copied, and cost more
      remedies += ', or take model.dtype=bfloat16'
    if fitting:
      remedies = (
        f'ask for {fitting} at most (--members_per_step), or {remedies}'
      )
    message = (
      f'{_count(asked or 1)} a step, on each device, would take '
      f'{_size(found.total(asked or 1))} of {_size(free)} free, of which '
      f'{MARGIN:.0%} is kept ({found}); {remedies}'
    )
    if platform == 'cpu':  # where the kernel would kill the process
      raise FitError(message)
    logging.warning('%s', message)
  if asked is None:
    most = min(fitting, MOST, -(-units // devices))
    # In as many steps, of the same size each: the last is not half empty.
    steps = -(-units // (max(most, 1) * devices))
    chosen = -(-units // (steps * devices))
  else:
    chosen = asked
  logging.info(
    '%s a step on each device: %s; %s of %s free',
    _count(chosen),
    found,
    _size(found.total(chosen)),
    _size(free),
  )
  return chosen


def free_bytes(devices: Sequence[jax.Device]) -> int | None:
  """Memory that is free on each of this process's devices; None if unknown.

  CPU devices share what the host has free. So do processes of one host, who
  do not know of each other: with several, ask for fewer members.
  """
  if devices[0].platform == 'cpu':
    host = host_free_bytes()
    return None if host is None else host // len(devices)
  found = []
  for device in devices:
    stats = device.memory_stats() or {}
    if not {'bytes_limit', 'bytes_in_use'} <= stats.keys():
      return None
    found.append(stats['bytes_limit'] - stats['bytes_in_use'])
  return min(found)


def host_free_bytes(root: str = '/') -> int | None:
  """Memory that this process may still take: of the host and its cgroups.

  Linux only, None elsewhere. A cgroup's use is counted without the pages of
  files that it would give back first.
  """
  root = pathlib.Path(root)
  try:
    text = (root / 'proc/meminfo').read_text(encoding='utf-8')
    (available,) = (
      int(line.split()[1]) * 1024
      for line in text.splitlines()
      if line.startswith('MemAvailable:')
    )
  except (OSError, ValueError):
    return None
  return max(0, min([available, *_cgroups_free(root)]))


# Version: where it is mounted, files of limit and use, the line of memory.stat.
_CGROUPS = {
  1: ('memory', 'limit_in_bytes', 'usage_in_bytes', 'total_inactive_file'),
  2: ('', 'max', 'current', 'inactive_file'),
}


def _cgroups_free(root: pathlib.Path) -> Iterator[int]:
  """What is left of each limit on this process, its own and those above."""
  try:
    lines = (root / 'proc/self/cgroup').read_text(encoding='utf-8')
  except OSError:
    return
  for line in lines.splitlines():
    _, controllers, path = line.split(':', 2)
    if controllers and 'memory' not in controllers.split(','):
      continue
    mount, limit, used, cached = _CGROUPS[1 if controllers else 2]
    # A path of the host's is not there inside a container; parents that are
    # not are skipped, up to the mount, which is the container's own group.
    top = root / 'sys/fs/cgroup' / mount
    group = top / path.lstrip('/')
    for folder in [group, *group.parents]:
      if folder.is_relative_to(top):
        yield from _group_free(folder, limit, used, cached)


def _group_free(
  folder: pathlib.Path, limit: str, used: str, cached: str
) -> Iterator[int]:
  read = lambda name: (folder / f'memory.{name}').read_text(encoding='utf-8')
  try:
    bound, use = read(limit).strip(), int(read(used))
    stat = dict(line.split() for line in read('stat').splitlines())
  except (OSError, ValueError):
    return
  if bound != 'max':
    yield int(bound) - use + int(stat.get(cached, 0))


def part(config: DecoderConfig, mesh: Mesh) -> DecoderConfig:
  """The part of a decoder that each device of a mesh has."""

  def count(name: str, units: int) -> int:
    axis = sharding.split(mesh, trees.Axis(name, units))
    return mesh.shape[axis] if axis else 1

  heads = count('heads', config.num_kv_heads)
  return dataclasses.replace(
    config,
    num_heads=config.num_heads // heads,
    num_kv_heads=config.num_kv_heads // heads,
    d_ff=config.d_ff // count('hidden', config.d_ff),
    vocab_size=config.vocab_size // count('vocab', config.vocab_size),
  )


def _local(array: Any) -> tuple[int, ...]:
  """The shape that each device has of an array."""
  placed = getattr(array, 'sharding', None)
  return array.shape if placed is None else placed.shard_shape(array.shape)


def _bytes(array: Any) -> int:
  return math.prod(_local(array)) * np.dtype(array.dtype).itemsize


def _count(members: int) -> str:
  return f'{members} member{"s" * (members != 1)}'


def _size(count: int) -> str:
  return f'{count / 1e9:.1f} GB' if count >= 1e9 else f'{count / 1e6:.0f} MB'
