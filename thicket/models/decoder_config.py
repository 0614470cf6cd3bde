# SPDX-License-Identifier: Apache-2.0
"""The shape of a decoder-only transformer, as values read from a checkpoint."""

from __future__ import annotations

import dataclasses


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
  rope_base: float
  norm_eps: float
  context_length: int  # longest sequence the model was trained on, in tokens
  tie_head: bool  # the embedding is the output matrix too

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if field.name != 'tie_head' and not value > 0:
        raise ValueError(f'decoder config: {field.name} = {value!r} is not > 0')
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
