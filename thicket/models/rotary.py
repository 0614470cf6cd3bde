# SPDX-License-Identifier: Apache-2.0
"""Ways of stretching rotary positions, each as divisors of the frequencies.

Frequency i of H / 2 turns base ** (-2 i / H) radians a token. A scaling
divides slow frequencies, whose wavelength the training context has not seen
whole, by its factor, and leaves fast ones as they are.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from thicket.models.checked import Checked
from thicket.models.decoder_config import Rope

# Published parameters of Llama 3.1 to 3.3, where a file does not say them.
LOW_FREQ_FACTOR, HIGH_FREQ_FACTOR = 1.0, 4.0
BETA_FAST, BETA_SLOW = 32.0, 1.0  # of YaRN's paper

_TYPE_KEYS = {
  'default': (),
  'linear': ('factor',),
  'llama3': (
    'factor',
    'low_freq_factor',
    'high_freq_factor',
    'original_max_position_embeddings',
  ),
  'yarn': (
    'factor',
    'attention_factor',
    'beta_fast',
    'beta_slow',
    'mscale',
    'mscale_all_dim',
    'original_max_position_embeddings',
    'truncate',
  ),
}
# Keys that published files have and transformers passes over with a warning;
# what it computes without them is what their models are known by.
_UNREAD_KEYS = {
  'default': (),
  'linear': ('finetuned', 'original_max_position_embeddings'),
  'llama3': ('finetuned',),
  'yarn': ('finetuned', 'attn_factor'),
}
_COMMON_KEYS = ('rope_type', 'type', 'rope_theta', 'partial_rotary_factor')


def linear(base: float, head_dim: int, factor: float) -> Rope:
  """All positions divided by one factor."""
  return _rope(base, np.full(head_dim // 2, factor))


def llama3(
  base: float,
  head_dim: int,
  factor: float,
  original: float,
  low: float = LOW_FREQ_FACTOR,
  high: float = HIGH_FREQ_FACTOR,
) -> Rope:
  """Of Llama 3.1 (arXiv 2407.21783).

  Wavelengths above `original / low` tokens are divided by `factor`, those
  below `original / high` are not; in between, frequencies are mixed.
  """
  turns = original * _frequencies(base, head_dim) / (2 * math.pi)
  with np.errstate(over='ignore'):
    kept = np.clip((turns - low) / (high - low), 0, 1)
  return _mixed(base, factor, kept)


def yarn(
  base: float,
  head_dim: int,
  factor: float,
  original: float,
  fast: float = BETA_FAST,
  slow: float = BETA_SLOW,
  *,
  truncate: bool = True,
  amplitude: float | None = None,
) -> Rope:
  """YaRN (arXiv 2309.00071), as transformers computes it.

  Frequencies that turn `fast` times in `original` tokens or more often stay,
  those that turn `slow` times or less are divided by `factor`; in between
  they are mixed linearly in their index, whose bounds are whole numbers if
  `truncate`. The amplitude is 0.1 ln(factor) + 1 unless it is given.
  """

  def index(turns):
    # The logarithm of a product, in parts that cannot overflow.
    logs = math.log(original), math.log(turns), math.log(2 * math.pi)
    return head_dim * (logs[0] - logs[1] - logs[2]) / (2 * math.log(base))

  first, last = index(fast), index(slow)
  if truncate:
    first, last = math.floor(first), math.ceil(last)
  first, last = max(first, 0), min(last, head_dim - 1)
  last += 0.001 if first == last else 0
  ramp = np.clip((np.arange(head_dim // 2) - first) / (last - first), 0, 1)
  if amplitude is None:
    amplitude = _magnitude(factor)
  return _mixed(base, factor, 1 - ramp, amplitude)


def _magnitude(factor: float, scale: float = 1.0) -> float:
  return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0


def _frequencies(base: float, head_dim: int) -> np.ndarray:
  return base ** (-np.arange(0, head_dim, 2) / head_dim)


def _mixed(
  base: float, factor: float, kept: np.ndarray, amplitude: float = 1.0
) -> Rope:
  """Frequencies of which the share `kept` stays, the rest is divided."""
  if factor == 1:
    return Rope(base, (), float(amplitude))
  return _rope(base, 1 / (kept + (1 - kept) / factor), amplitude)


def _rope(base: float, divisors: np.ndarray, amplitude: float = 1.0) -> Rope:
  is_plain = bool((divisors == 1).all())
  return Rope(
    base, () if is_plain else tuple(map(float, divisors)), float(amplitude)
  )


def from_hf(
  table: Checked,
  head_dim: int,
  context_length: int,
  default_base: float,
) -> Rope:
  """Reads a `rope_scaling` or `rope_parameters` table of a config.json.

  Args:
    table: the table; empty for positions that are not scaled.
    head_dim: H.
    context_length: `max_position_embeddings`, the original context where the
      table does not say it.
    default_base: where the table has no `rope_theta`.

  Raises:
    ModelFileError: a scaling that is not supported, a key that is not
      understood, a value out of range.
  """
  table = table.with_defaults(
    {
      'rope_type': table.get('type') or 'default',
      'rope_theta': default_base,
      'partial_rotary_factor': 1.0,
      'original_max_position_embeddings': context_length,
      'beta_fast': BETA_FAST,
      'beta_slow': BETA_SLOW,
      'truncate': True,
    }
  )
  kind = table.choice('rope_type', {name: name for name in _TYPE_KEYS})
  table.check_keys((*_COMMON_KEYS, *_TYPE_KEYS[kind]), _UNREAD_KEYS[kind])
  if table.number('partial_rotary_factor') != 1:
    table.refuse(
      'partial_rotary_factor', '1', 'partly rotary heads are not supported'
    )
  base = table.positive('rope_theta')
  if base <= 1:
    table.refuse('rope_theta', 'a number above 1')
  if kind == 'default':
    return Rope(base)
  original = table.count('original_max_position_embeddings')
  if kind == 'yarn' and 'factor' not in table:
    factor = context_length / original
  else:
    factor = table.positive('factor')
  if factor < 1:
    table.refuse('factor', 'a number from 1 on')
  if kind == 'linear':
    return linear(base, head_dim, factor)
  if kind == 'llama3':
    low = table.positive('low_freq_factor')
    high = table.positive('high_freq_factor')
    if high <= low:
      table.refuse('high_freq_factor', f'a number above {low}')
    return llama3(base, head_dim, factor, original, low, high)
  fast, slow = table.positive('beta_fast'), table.positive('beta_slow')
  if fast < slow:
    table.refuse('beta_fast', f'a number from beta_slow = {slow} on')
  return yarn(
    base,
    head_dim,
    factor,
    original,
    fast,
    slow,
    truncate=table.flag('truncate'),
    amplitude=_amplitude(table, factor),
  )


def _amplitude(table: Checked, factor: float) -> float:
  if 'attention_factor' in table:
    return table.positive('attention_factor')
  if 'mscale' not in table or 'mscale_all_dim' not in table:
    return _magnitude(factor)
  scales = [table.number(key) for key in ('mscale', 'mscale_all_dim')]
  if min(scales) < 0:
    table.refuse('mscale', 'with mscale_all_dim, numbers from 0 on')
  if 0 in scales:  # as if they were not there
    return _magnitude(factor)
  above, below = (_magnitude(factor, scale) for scale in scales)
  return above / below


def to_hf(rope: Rope, head_dim: int, context_length: int) -> dict[str, Any]:
  """The `rope_scaling` table that says a rope's divisors, {} if it has none.

  Divisors are numbers without a history (GGUF stores Llama 3's as a tensor);
  they are compared with what the published parameters give.

  Raises:
    ValueError: no known scaling gives these divisors.
  """
  if not rope.divisors and rope.amplitude == 1:
    return {}
  for scaling in _candidates(rope, context_length):
    table = Checked(scaling, 'a scaling')
    found = from_hf(table, head_dim, context_length, rope.base)
    if is_close(found, rope):
      return dict(scaling)
  raise ValueError(
    f'rotary positions with divisors from {min(rope.divisors, default=1):g} '
    f'to {max(rope.divisors, default=1):g} and amplitude {rope.amplitude:g} '
    'are of no scaling that a config.json can name'
  )


def is_close(one: Rope, other: Rope) -> bool:
  """Whether two ropes are the same to the precision of float32."""
  if len(one.divisors) != len(other.divisors):
    return False
  values = [(r.base, r.amplitude, *r.divisors) for r in (one, other)]
  return np.allclose(*values, rtol=1e-6, atol=0)


def _candidates(rope: Rope, context: int) -> Iterator[Mapping[str, Any]]:
  """Scalings that may have given the divisors, likely ones first."""
  whole = max(rope.divisors, default=1.0)
  # What float32 or a division has left of a whole number is taken off.
  if math.isclose(whole, round(whole), rel_tol=1e-6):
    whole = float(round(whole))
  if rope.amplitude == 1:
    yield {'rope_type': 'linear', 'factor': whole}
  # Short heads have no frequency that is divided by the whole factor.
  factors = [whole, *(float(2**power) for power in range(1, 8))]
  for factor, power in itertools.product(factors, (None, *range(4, 18))):
    original = 2**power if power else max(round(context / factor), 1)
    shared = {'factor': factor, 'original_max_position_embeddings': original}
    if rope.amplitude == 1:
      yield {
        'rope_type': 'llama3',
        'low_freq_factor': LOW_FREQ_FACTOR,
        'high_freq_factor': HIGH_FREQ_FACTOR,
        **shared,
      }
    yield {
      'rope_type': 'yarn',
      'attention_factor': rope.amplitude,
      'beta_fast': BETA_FAST,
      'beta_slow': BETA_SLOW,
      **shared,
    }
