# SPDX-License-Identifier: Apache-2.0
"""FLOPs and bytes of a search, from a `DecoderConfig` alone.

Counted is what thicket's own programs do, not what they could do: attention
reads every slot of its caches at every step, whether filled or not, and its
scores are arrays in memory. `check` compares the counts with XLA's.

Axes: D model, F hidden, N heads, K kv heads, H head dim, V vocabulary,
L layers, R rank, T tokens at hand, C cache slots.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from thicket import families, trees
from thicket.families import FAMILIES
from thicket.models import decoder
from thicket.models.decoder_config import DecoderConfig, Rope

BASE = 'base'  # no noise: what a server of one model does

LLAMA2_7B = DecoderConfig(
  vocab_size=32000,
  num_layers=32,
  d_model=4096,
  d_ff=11008,
  num_heads=32,
  num_kv_heads=32,
  head_dim=128,
  ropes=(Rope(1e4),) * 32,
  norm_eps=1e-5,
  context_length=4096,
  tie_head=False,
)
# Its biases of q, k and v (129,024 numbers) are left out.
QWEN25_7B = DecoderConfig(
  vocab_size=152064,
  num_layers=28,
  d_model=3584,
  d_ff=18944,
  num_heads=28,
  num_kv_heads=4,
  head_dim=128,
  ropes=(Rope(1e6),) * 28,
  norm_eps=1e-6,
  context_length=32768,
  tie_head=False,
)
LLAMA3_8B = DecoderConfig(
  vocab_size=128256,
  num_layers=32,
  d_model=4096,
  d_ff=14336,
  num_heads=32,
  num_kv_heads=8,
  head_dim=128,
  ropes=(Rope(5e5),) * 32,
  norm_eps=1e-5,
  context_length=8192,
  tie_head=False,
)
LLAMA3_70B = DecoderConfig(
  vocab_size=128256,
  num_layers=80,
  d_model=8192,
  d_ff=28672,
  num_heads=64,
  num_kv_heads=8,
  head_dim=128,
  ropes=(Rope(5e5),) * 80,
  norm_eps=1e-5,
  context_length=8192,
  tie_head=False,
)
MODELS = {
  'Qwen2.5-7B': QWEN25_7B,
  'Llama-2-7B': LLAMA2_7B,
  'Llama-3-70B': LLAMA3_70B,
}


@dataclasses.dataclass(frozen=True)
class Work:
  """What one device has to do.

  Attributes:
    products: FLOPs of matrix products.
    vector: float elementwise operations.
    integer: integer elementwise operations.
    bytes: read from and written to the device's memory.
  """

  products: float = 0.0
  vector: float = 0.0
  integer: float = 0.0
  bytes: float = 0.0

  def __add__(self, other: Work) -> Work:
    pairs = zip(
      dataclasses.astuple(self), dataclasses.astuple(other), strict=True
    )
    return Work(*(a + b for a, b in pairs))

  def __mul__(self, times: float) -> Work:
    return Work(*(times * x for x in dataclasses.astuple(self)))

  @property
  def flops(self) -> float:
    """All operations, as XLA counts them."""
    return self.products + self.vector + self.integer


# The model.


def kernels(config: DecoderConfig) -> tuple[tuple[int, int], ...]:
  """(out, in) of the four fused products of a layer."""
  c = config
  NH, KH = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
  return (
    (NH + 2 * KH, c.d_model),
    (c.d_model, NH),
    (2 * c.d_ff, c.d_model),
    (c.d_model, c.d_ff),
  )


def num_parameters(config: DecoderConfig) -> int:
  """All weights, norms and a tied head counted once."""
  return sum(math.prod(leaf.shape) for leaf in _leaves(config))


@functools.cache
def _leaves(config: DecoderConfig) -> list[trees.Leaf]:
  return jax.tree.leaves(decoder.canonical_spec(config))


def num_factors(config: DecoderConfig, rank: int) -> tuple[int, int]:
  """Numbers that make a low-rank member: of thin factors, of dense norms."""
  thin, dense = 0, 0
  for leaf in _leaves(config):
    if len(leaf.shape) == 1:
      dense += leaf.shape[0]
    else:
      thin += sum(rank * (s.size + leaf.shape[1]) for s in leaf.segments)
  return thin, dense


def kv_split(config: DecoderConfig, model_axis: int) -> int:
  """Into how many parts the caches of a row fall; beyond, they are copies."""
  return min(model_axis, config.num_kv_heads)


def cache_bytes(config: DecoderConfig, slots: int, itemsize: int) -> int:
  """Bytes of the caches of one row of one member."""
  c = config
  return 2 * c.num_layers * c.num_kv_heads * c.head_dim * slots * itemsize


def forward(
  config: DecoderConfig,
  *,
  rows: int,
  tokens: int,
  slots: int,
  members: int = 1,
  shared: bool = False,
  rank: int = 0,
  itemsize: int = 2,
  model_axis: int = 1,
  fused: bool = False,
) -> dict[str, Work]:
  """One forward pass on one of the devices that share a member.

  Args:
    config: the model.
    rows: of all members at hand together.
    tokens: T of each row.
    slots: C, earlier tokens whose slots attention reads; 0 in prefill.
    members: how many there are.
    shared: whether one product with the base serves all of them (low rank).
    rank: R of the thin factors; 0 for none.
    itemsize: bytes of a weight and of an activation; logits, scores and what
      is normalised are float32 whatever it is.
    model_axis: devices over which weights, heads and hidden units are split.
    fused: whether attention keeps its scores out of memory; ours does not.

  Returns:
    Work by part: 'weights' (the layers' products and what lies between),
    'attention' and 'head' (embedding, last norm, logits and their argmax).
  """
  c, m, b = config, model_axis, itemsize
  D, F, N, K, H = c.d_model, c.d_ff, c.num_heads, c.num_kv_heads, c.head_dim
  L, V, T, NH, KH = c.num_layers, c.vocab_size, tokens, N * H, K * H
  at_hand = rows * T
  copies = 1 if shared else members
  matrix = sum(out * into for out, into in kernels(c))
  # Read and written: 14 D of norms, products and residuals, which every device
  # of the model axis does again; the rest is split.
  between = 14 * D + (3 * (NH + 2 * KH) + 2 * NH + 6 * F) / m
  weights = Work(
    products=2 * at_hand * matrix / m,
    # Two norms of 5 D, two residuals; rotation and scaling; SwiGLU.
    vector=at_hand * (12 * D + (3 * (NH + KH) + NH + 4 * F) / m),
    bytes=b * (copies * matrix / m + at_hand * between),
  )
  if rank:
    # x @ B is read again, and a product is read and written once more.
    thin = num_factors(c, rank)[0] / L
    once_more = sum(into + 2 * out for out, into in kernels(c))
    weights += Work(
      products=2 * at_hand * thin / m,
      bytes=b * (members * thin + at_hand * once_more) / m,
    )
  scores = rows * N * T * (T + slots) / m
  kv = 2 * KH / kv_split(c, m) * b
  attention = Work(
    products=2 * 2 * scores * H,
    vector=6 * scores,  # mask, maximum, difference, exp, sum, cast
    # Keys and values, then float32 scores: written, read for the maximum, for
    # exp and sum, and for the mixing.
    bytes=rows * kv * (slots + 2 * T) + (0 if fused else 16 * scores),
  )
  head = Work(
    products=2 * rows * D * V / m,
    vector=rows * (5 * D + 2 * V / m),  # the argmax compares twice
    bytes=copies * D * V * b / m
    + 2 * at_hand * D * b
    + rows * (D * b + 2 * 4 * V / m),
  )
  return {'weights': weights * L, 'attention': attention * L, 'head': head}


def padding(config: DecoderConfig, prompt: int, slots: int, b: int) -> Work:
  """Zeroing the slots of a row's caches that its prompt does not fill."""
  return Work(bytes=cache_bytes(config, slots - prompt, b))


def scratch_bytes(
  config: DecoderConfig, prompt: int, itemsize: int, model_axis: int
) -> float:
  """Bytes a row needs while its prompt is read, beside its caches.

  Those of one layer, the wider of MLP and attention; keys and values go
  straight to the caches.
  """
  c, m = config, model_axis
  mlp = prompt * (2 * c.d_model + 3 * c.d_ff / m) * itemsize
  heads = (c.num_heads + 2 * c.num_kv_heads) * c.head_dim / m
  attention = (
    prompt * (2 * c.d_model + heads) * itemsize
    + 2 * 4 * c.num_heads / m * prompt**2
  )
  return max(mlp, attention)


# The noise.

# Primitives that only move or rename; XLA fuses them away.
_FREE = {
  'broadcast_in_dim', 'concatenate', 'expand_dims', 'gather', 'iota', 'pad',
  'dynamic_slice', 'dynamic_update_slice', 'bitcast_convert_type', 'copy',
  'optimization_barrier', 'reshape', 'rev', 'slice', 'split', 'squeeze',
  'stop_gradient', 'transpose',
}  # fmt: skip


def operations(fn: Callable, *args: Any) -> collections.Counter:
  """Operations of a function by kind, read off its jaxpr.

  Args:
    fn: a JAX function; a loop's body is counted once.
    *args: arrays or their shapes.

  Returns:
    'products' (FLOPs of dot_general), 'integer' and 'vector' (one for each
    element that an elementwise operation makes or a reduction reads).
  """
  found = collections.Counter(products=0, integer=0, vector=0)
  _count(jax.make_jaxpr(fn)(*args).jaxpr, found)
  return found


def _count(jaxpr, found):
  for eqn in jaxpr.eqns:
    inner = [
      getattr(param, 'jaxpr', param)
      for param in jax.tree.leaves(eqn.params)
      if hasattr(param, 'eqns')
    ]
    name, out = eqn.primitive.name, eqn.outvars[0].aval
    if inner:
      for each in inner:
        _count(each, found)
    elif name == 'dot_general':
      (over, _), _ = eqn.params['dimension_numbers']
      shape = eqn.invars[0].aval.shape
      found['products'] += 2 * out.size * math.prod(shape[i] for i in over)
    elif name not in _FREE:
      size = max(x.aval.size for x in [*eqn.invars, *eqn.outvars])
      is_float = any(
        jnp.issubdtype(x.aval.dtype, jnp.floating)
        for x in [*eqn.invars, *eqn.outvars]
      )
      found['vector' if is_float else 'integer'] += size


@functools.cache
def _drawing(family: str, leaf: trees.Leaf) -> Work:
  """Drawing the noise of one array and adding it to the base, without bytes."""
  keys = jax.ShapeDtypeStruct((len(leaf.segments), 2), np.uint32)
  found = operations(lambda key: families.draw(family, key, leaf), keys)
  # The sum: to float32, product, sum, back, and the choice for frozen tensors.
  size = math.prod(leaf.shape)
  return Work(vector=found['vector'] + 5 * size, integer=found['integer'])


def array_noise(family: str, leaf: trees.Leaf, itemsize: int = 2) -> Work:
  """Writing one array of a dense member.

  The base is read and the member written once; signs pass through memory as
  words of 32.
  """
  size = math.prod(leaf.shape)
  words = size / 32 if family == 'rademacher' else 0
  moved = Work(bytes=2 * itemsize * size + 2 * 4 * words)
  return _drawing(family, trees.anonymous(leaf)) + moved


@functools.cache
def noise(
  config: DecoderConfig, family: str, rank: int = 1, itemsize: int = 2
) -> Work:
  """Making one member: its weights, or its thin factors and dense norms.

  Raises:
    ValueError: unknown family.
  """
  if family == BASE:
    return Work()
  if family not in FAMILIES:
    raise ValueError(f'noise family {family!r} is not one of {FAMILIES}')
  if family == 'low_rank':
    # A draw a number, whatever array it lies in: one long array stands for all.
    numbers = sum(num_factors(config, rank))
    whole = trees.Leaf((1, numbers), (trees.Segment('', 0, 1),))
    return array_noise('gaussian', whole, itemsize)
  each = (array_noise(family, leaf, itemsize) for leaf in _leaves(config))
  return sum(each, Work())
