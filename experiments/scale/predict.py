# SPDX-License-Identifier: Apache-2.0
"""Time and memory of a search on a mesh, by a roofline for each part.

A part takes as long as the resource that it uses most: products, memory,
integer or float operations. Parts follow one another and are summed; judging
on the host runs beside the device and counts where it is slower.

Letters: M members and B rows of each at hand in a group of m devices.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from experiments.scale import count
from experiments.scale.hardware import Device, Shares
from thicket.models.decoder_config import DecoderConfig


@dataclasses.dataclass(frozen=True)
class Search:
  """What is asked, and what is assumed beside the hardware."""

  members: int = 5000
  examples: int = 200
  prompt: int = 128  # tokens of each prompt; no prefix is shared
  new_tokens: int = 512  # of every answer: none stops early
  rank: int = 1
  itemsize: int = 2  # bfloat16 weights, activations and caches
  usable: float = 0.9  # of a device's memory; the rest is the program's
  judged_per_s: float = 5000.0  # answers made text and judged by one host
  # Not what thicket does: attention reads filled slots alone and keeps its
  # scores out of memory;
  filled: bool = False
  # rows come and go, so that caches are as full as they are on average.
  in_flight: bool = False

  @property
  def mean_slots(self) -> float:
    """Filled slots, on average over the steps."""
    return self.prompt + (self.new_tokens - 2) / 2

  @property
  def slots(self) -> float:
    """Cache slots held for a row: the last token is never fed back."""
    whole = self.prompt + self.new_tokens - 1
    return self.mean_slots if self.in_flight else whole


@dataclasses.dataclass(frozen=True)
class Fit:
  """What a group of devices holds at once.

  Attributes:
    members: M.
    rows: B of each member; the examples are answered in `batches` of them.
    batches: for each chunk of members.
    chunks: of M members, one after the other, by each group.
    memory: bytes on one device, by what they hold.
  """

  members: int
  rows: int
  batches: int
  chunks: int
  memory: dict[str, float]


def axes(config: DecoderConfig, device: Device, num_devices: int) -> list[int]:
  """Powers of two that a model axis can be: all heads must divide."""
  most = min(num_devices, device.max_model_axis)
  sizes = (1 << i for i in range(most.bit_length()))
  return [m for m in sizes if config.num_heads % m == 0 and m <= most]


def fits(
  config: DecoderConfig,
  device: Device,
  num_devices: int,
  family: str,
  model_axis: int,
  search: Search,
) -> list[Fit]:
  """What a group can hold: for each number of rows, as many members as can be.

  Members are spread evenly over chunks, so that groups do not wait in the last
  one. Empty where one row of one member is too much.
  """
  m, b = model_axis, search.itemsize
  free = search.usable * device.memory
  whole = count.num_parameters(config) * b / m
  if family == 'low_rank':
    own = sum(count.num_factors(config, search.rank)) * b / m
  else:
    own = 0.0 if family == count.BASE else whole
  cache = count.cache_bytes(config, search.slots, b) / count.kv_split(config, m)
  scratch = count.scratch_bytes(config, search.prompt, b, m)
  scratch += 2 * 4 * config.vocab_size / m  # logits and their comparison
  share = math.ceil(search.members / (num_devices // m))
  found, sizes = [], set()
  for batches in range(1, search.examples + 1):
    rows = math.ceil(search.examples / batches)
    most = int((free - whole) // (own + rows * (cache + scratch)))
    if most < 1 or rows in sizes:
      continue
    sizes.add(rows)
    chunks = math.ceil(share / most)
    members = math.ceil(share / chunks)
    memory = {
      'base': whole,
      'members': members * own,
      'caches': members * rows * cache,
      'scratch': members * rows * scratch,
    }
    found.append(Fit(members, rows, batches, chunks, memory))
  return found


def roofline(
  work: count.Work, device: Device, products: float, shares: Shares
) -> dict[str, float]:
  """Seconds by resource; the largest is how long the work takes.

  Integers and floats share their units, so their seconds are one sum.
  """
  elementwise = work.integer / device.integer + work.vector / device.vector
  return {
    'compute': work.products / (device.products * products),
    'memory': work.bytes / (device.bandwidth * shares.memory),
    'integer': elementwise / shares.vector,
  }


def all_reduce_s(
  num_bytes: float, device: Device, model_axis: int, shares: Shares
) -> float:
  """One all-reduce over a ring of `model_axis` devices."""
  if model_axis == 1:
    return 0.0
  links = min(device.ring_links, model_axis - 1)
  sent = 2 * (model_axis - 1) / model_axis * num_bytes
  return (
    sent / (device.link * links * shares.network)
    + 2 * (model_axis - 1) * device.hop_s
  )


def predict(
  config: DecoderConfig,
  device: Device,
  num_devices: int,
  family: str,
  model_axis: int,
  search: Search,
  shares: Shares,
  held: Fit,
) -> dict[str, Any]:
  """The whole search on one mesh, with what its groups hold at once.

  Returns:
    Plain numbers: 'parts' holds seconds by part, 'binds' the resource of each,
    'hours' their sum; rates are over all devices.
  """
  m, s = model_axis, search
  shared = family in ('low_rank', count.BASE)
  rows = held.members * held.rows
  common = {
    'rows': rows,
    'members': held.members,
    'shared': shared,
    'rank': s.rank if family == 'low_rank' else 0,
    'itemsize': s.itemsize,
    'model_axis': m,
    'fused': s.filled,
  }
  read = s.mean_slots if s.filled else s.slots
  first = count.forward(config, tokens=s.prompt, slots=0, **common)
  step = count.forward(config, tokens=1, slots=read, **common)
  steps = s.new_tokens - 1  # the prefill gives the first token
  noise = count.noise(config, family, s.rank, s.itemsize)
  zeroed = count.padding(config, s.prompt, s.slots, s.itemsize)
  zeroed *= rows / count.kv_split(config, m)

  times = held.chunks * held.batches
  work = [
    ('noise', noise * (held.members / m), held.chunks, 1.0),
    *(('prefill', part, times, shares.prefill) for part in first.values()),
    ('prefill', zeroed, times, 1.0),
    ('decode: weights', step['weights'], times * steps, shares.decode),
    ('decode: attention', step['attention'], times * steps, shares.decode),
    ('decode: head', step['head'], times * steps, shares.decode),
  ]
  by_part: dict[str, dict[str, float]] = {}
  parts: dict[str, float] = {}
  for name, each, repeats, share in work:
    took = roofline(each, device, share, shares)
    parts[name] = parts.get(name, 0.0) + repeats * max(took.values())
    spent = by_part.setdefault(name, {})
    bound = max(took, key=took.get)
    spent[bound] = spent.get(bound, 0.0) + repeats * took[bound]
  binds = {name: max(spent, key=spent.get) for name, spent in by_part.items()}

  # Two a layer and one for the embedding, whose rows are split.
  reduces = 2 * config.num_layers + 1
  row_bytes = config.d_model * s.itemsize
  reduce = lambda size: reduces * all_reduce_s(size, device, m, shares)
  parts['network'] = times * (
    reduce(rows * s.prompt * row_bytes) + steps * reduce(rows * row_bytes)
  )
  binds['network'] = 'network'
  # Tokens to the host, text and reward there, scores to all hosts.
  answers = held.chunks * num_devices // m * held.members * s.examples
  hosts = math.ceil(num_devices / device.devices_per_host)
  judging = answers / hosts / s.judged_per_s + answers / num_devices * m * (
    4 * s.new_tokens / device.host_bandwidth
  )
  parts['host'] = max(0.0, judging - sum(parts.values()))
  binds['host'] = 'host'

  total = sum(parts.values())
  next_part = max(parts, key=parts.get)
  return {
    'model_axis': m,
    'groups': num_devices // m,
    'members': held.members,
    'rows': held.rows,
    'batches': held.batches,
    'chunks': held.chunks,
    'idle': 1 - s.members / (num_devices // m * held.chunks * held.members),
    'memory': held.memory,
    'parts': parts,
    'binds': binds,
    'judging': judging,
    'hours': total / 3600,
    'members_per_s': s.members / total,
    'tokens_per_s': s.members * s.examples * s.new_tokens / total,
    'next': next_part,
    'next_share': parts[next_part] / total,
  }


def meshes(
  config: DecoderConfig,
  device: Device,
  num_devices: int,
  family: str,
  search: Search,
  shares: Shares,
) -> dict[int, dict[str, Any]]:
  """The fastest prediction for every model axis on which the search fits."""
  found = {}
  for m in axes(config, device, num_devices):
    where = config, device, num_devices, family, m, search
    each = [predict(*where, shares, held) for held in fits(*where)]
    if each:
      # Of what is within a hundredth of the fastest, the most rows a member.
      limit = 1.01 * min(one['hours'] for one in each)
      found[m] = next(one for one in each if one['hours'] <= limit)
  return found


def fastest(found: dict[int, dict[str, Any]]) -> dict[str, Any] | None:
  """The fastest of `meshes`, or None where nothing fits."""
  return min(found.values(), key=lambda one: one['hours'], default=None)
