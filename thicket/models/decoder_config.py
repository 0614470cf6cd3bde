# SPDX-License-Identifier: Apache-2.0
"""What sets one decoder-only transformer apart from another, as values.

A family of checkpoints is no class and no flag: it is what a checkpoint's own
`config.json` or GGUF metadata says, written into these fields.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

ACTIVATIONS = ('silu', 'gelu_tanh')
HEAD_NORMS = (None, 'head', 'whole')


@dataclasses.dataclass(frozen=True)
class Rope:
  """Rotary positions of a layer (arXiv 2104.09864), scaled or not.

  Every way of stretching a context comes down to these numbers: one divisor
  for all frequencies (linear), one for each (Llama 3, YaRN, GGUF's own
  tensor), and what YaRN multiplies cosines and sines by (arXiv 2309.00071).

  Attributes:
    base: frequency i of H / 2 is base ** (-2 i / H), in radians a token.
    divisors: H / 2 numbers that the frequencies are divided by; () is 1 each.
    amplitude: of cosines and sines.
  """

  base: float
  divisors: tuple[float, ...] = ()
  amplitude: float = 1.0

  def __post_init__(self):
    for value in (self.base, self.amplitude, *self.divisors):
      if not (value > 0 and math.isfinite(value)):
        raise ValueError(f'rotary positions: {value!r} is not above 0')


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
  """Sizes and constants of one checkpoint; every field is read by the model.

  Letters in shapes: V vocabulary, L layers, D model, F hidden, N heads,
  K kv heads, H head dim.
  """

  vocab_size: int  # V
  num_layers: int  # L
  d_model: int  # D
  d_ff: int  # F
  num_heads: int  # N
  num_kv_heads: int  # K
  head_dim: int  # H
  ropes: tuple[Rope, ...]  # of each layer
  norm_eps: float
  context_length: int  # longest sequence the model was trained on, in tokens
  tie_head: bool  # the embedding is the output matrix too
  windows: tuple[int | None, ...] = ()  # tokens that a layer sees, its own
  # included, None is all; () is all in every layer
  activation: str = 'silu'  # of the gate: one of ACTIVATIONS
  qkv_bias: bool = False
  out_bias: bool = False  # of attention's output
  mlp_bias: bool = False
  norm_before: bool = True  # attention and MLP read a normed residual
  norm_after: bool = False  # what they give is normed before it is added
  head_norm: str | None = None  # of q and k: 'head' over H of each head,
  # 'whole' over all heads of a token together
  norm_offset: float = 0.0  # added to every stored norm scale (Gemma: 1)
  embed_scale: float = 1.0  # of embedded tokens (Gemma: sqrt(D))
  query_scale: float | None = None  # of scores; None is H ** -0.5
  attention_cap: float | None = None  # c: scores become c tanh(scores / c)
  logit_cap: float | None = None  # the same of logits

  def __post_init__(self):
    for name in _POSITIVE:
      value = getattr(self, name)
      if not (value > 0 and math.isfinite(value)):
        raise ValueError(f'decoder config: {name} = {value!r} is not > 0')
    for name in ('query_scale', 'attention_cap', 'logit_cap'):
      value = getattr(self, name)
      if value is not None and not (value > 0 and math.isfinite(value)):
        raise ValueError(f'decoder config: {name} = {value!r} is not > 0')
    if self.num_heads % self.num_kv_heads:
      raise ValueError(
        f'decoder config: num_heads = {self.num_heads} is no multiple of '
        f'num_kv_heads = {self.num_kv_heads}'
      )
    if self.head_dim % 2:
      raise ValueError(
        f'decoder config: head_dim = {self.head_dim} is odd, rotary positions '
        'turn pairs'
      )
    self._check_layers('ropes', self.ropes)
    if self.windows:
      self._check_layers('windows', self.windows)
    for rope in self.ropes:
      if rope.divisors and len(rope.divisors) != self.head_dim // 2:
        raise ValueError(
          f'decoder config: {len(rope.divisors)} divisors of rotary '
          f'frequencies for head_dim = {self.head_dim}'
        )
    for window in self.windows:
      if window is not None and window < 1:
        raise ValueError(f'decoder config: a window of {window} tokens')
    for name, choices in (
      ('activation', ACTIVATIONS),
      ('head_norm', HEAD_NORMS),
    ):
      if getattr(self, name) not in choices:
        raise ValueError(
          f'decoder config: {name} = {getattr(self, name)!r} is not one of '
          f'{", ".join(map(repr, choices))}'
        )

  def _check_layers(self, name: str, values: Sequence[object]) -> None:
    if len(values) != self.num_layers:
      raise ValueError(
        f'decoder config: {len(values)} {name} for num_layers = '
        f'{self.num_layers}'
      )

  def window(self, layer: int) -> int | None:
    """How many tokens a layer sees, its own included; None is all."""
    return self.windows[layer] if self.windows else None


_POSITIVE = (
  'vocab_size',
  'num_layers',
  'd_model',
  'd_ff',
  'num_heads',
  'num_kv_heads',
  'head_dim',
  'norm_eps',
  'context_length',
  'embed_scale',
)
