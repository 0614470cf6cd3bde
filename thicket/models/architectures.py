# SPDX-License-Identifier: Apache-2.0
"""From a checkpoint's config.json to a decoder config, and back.

What there is to know of each architecture is in `model_types`; here is how
its keys are read, and refused. A config says what is computed: a key that is
not understood is an error, never passed over.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from thicket.models import rotary
from thicket.models.checked import MAX_COUNT, Checked
from thicket.models.decoder_config import DecoderConfig, Rope
from thicket.models.files import ModelFileError
from thicket.models.model_types import (
  ACTIVATIONS,
  ARCHITECTURES,
  CAPS,
  FIXED,
  FULL,
  IGNORED,
  MAX_HEAD_DIM,
  MAX_LAYERS,
  SIZES,
  SLIDING,
  SPELT,
  WRAPPER_IGNORED,
  Architecture,
)

_MOST = {'num_layers': MAX_LAYERS, 'head_dim': MAX_HEAD_DIM}
_ROPE_KEYS = ('rope_theta', 'rope_scaling', 'rope_parameters')


def architecture_of(values: Mapping[str, Any], where: str) -> str:
  """The key of `ARCHITECTURES` of a config.json, by its `model_type`.

  Raises:
    ModelFileError: a `model_type` that is not supported, or none.
  """
  known = {name: name for name in ARCHITECTURES}
  return Checked(values, where).choice(
    'model_type', known | {'gemma3': 'gemma3_text'}
  )


def config_from_hf(values: Mapping[str, Any], where: str) -> DecoderConfig:
  """Reads a config.json.

  Args:
    values: what the file holds.
    where: its path, which starts every message.

  Returns:
    The config. `num_layers` is at most MAX_LAYERS.

  Raises:
    ModelFileError: another `model_type`; a key that is missing, has no value
      that a decoder can have, or changes what is computed and is not
      understood.
  """
  name = architecture_of(values, where)
  whole = Checked(values, where)
  if values.get('model_type') == 'gemma3':
    whole = _text_half(whole)
  try:
    return _config(whole, ARCHITECTURES[name])
  except ModelFileError:
    raise
  except ValueError as error:
    raise ModelFileError(f'{where}: {error}') from error


def _text_half(whole: Checked) -> Checked:
  """The language model of a Gemma 3 that also reads pictures."""
  whole.check_keys((), (*IGNORED, *WRAPPER_IGNORED, *FIXED))
  text = whole.section('text_config')
  if text is None:
    whole.refuse('text_config', 'a table')
  if text.get('model_type') not in (None, 'gemma3_text'):
    text.refuse('model_type', 'gemma3_text')
  ties = [
    table.flag('tie_word_embeddings')
    for table in (whole, text)
    if 'tie_word_embeddings' in table
  ]
  if len(set(ties)) > 1:
    text.refuse('tie_word_embeddings', f'{ties[0]}, as outside of text_config')
  entries = {**text.entries, 'tie_word_embeddings': all(ties)}
  return Checked(entries, text.where, text.prefix)


def _config(whole: Checked, architecture: Architecture) -> DecoderConfig:
  c = Checked(whole.entries, whole.where, whole.prefix, architecture.defaults)
  _check_keys(c, architecture)
  sizes = {}
  for key, field in SIZES.items():
    if field == 'num_kv_heads' and c.get(key) is None:
      sizes[field] = sizes['num_heads']
    elif field == 'head_dim' and c.get(key) is None:
      sizes[field] = max(sizes['d_model'] // sizes['num_heads'], 1)
    else:
      sizes[field] = c.count(key, _MOST.get(field, MAX_COUNT))
  slides = _sliding_layers(c, architecture, sizes['num_layers'])
  kinds = [SLIDING if is_local else FULL for is_local in slides]
  if c.get('layer_types') not in (None, kinds):
    c.refuse('layer_types', f'{kinds[0]}, as the other keys say,')
  window = c.count('sliding_window') if any(slides) else None
  full, local = _ropes(c, architecture, sizes)
  return DecoderConfig(
    **sizes,
    **architecture.fixed,
    **_constants(c, architecture, sizes),
    ropes=tuple(local if is_local else full for is_local in slides),
    windows=tuple(window if is_local else None for is_local in slides)
    if any(slides)
    else (),
  )


def _check_keys(c: Checked, architecture: Architecture) -> None:
  local = architecture.local_rope[:1] if architecture.local_rope else ()
  c.check_keys(
    {*SIZES, *architecture.defaults, *_ROPE_KEYS, *local},
    {'layer_types', *IGNORED, *FIXED, *architecture.ignored},
  )
  for key, value in FIXED.items():
    if key in c and c.get(key) != value:
      c.refuse(key, repr(value), 'other values are not supported')


def _sliding_layers(
  c: Checked, architecture: Architecture, num_layers: int
) -> Sequence[bool]:
  """Of each layer, whether it sees a window only."""
  none = (False,) * num_layers
  rule = architecture.slides
  if rule is None:
    return none
  if 'layer_types' in c and 'layer_types' in architecture.defaults:
    return _listed_layers(c, architecture, num_layers)
  if rule == 'all':
    return (c.get('sliding_window') is not None,) * num_layers
  if rule == 'last':
    if not c.flag('use_sliding_window') or c.get('sliding_window') is None:
      return none
    start = c.number('max_window_layers')
    return tuple(layer >= start for layer in range(num_layers))
  period = rule
  if 'sliding_window_pattern' in architecture.defaults:
    period = c.count('sliding_window_pattern')
  return tuple((layer + 1) % period != 0 for layer in range(num_layers))


def _listed_layers(
  c: Checked, architecture: Architecture, num_layers: int
) -> Sequence[bool]:
  types = c.get('layer_types')
  if not isinstance(types, (list, tuple)) or len(types) != num_layers:
    c.refuse('layer_types', f'a list of {num_layers}, one for each layer')
  for kind in types:
    if kind not in (FULL, SLIDING):
      c.refuse('layer_types', f'a list of {FULL} and {SLIDING}')
  slides = tuple(kind == SLIDING for kind in types)
  has_switch = 'use_sliding_window' in architecture.defaults
  if any(slides) and has_switch and not c.flag('use_sliding_window'):
    c.refuse('use_sliding_window', f'true, as layer_types has {SLIDING},')
  return slides


def _ropes(
  c: Checked, architecture: Architecture, sizes: Mapping[str, int]
) -> tuple[Rope, Rope]:
  """Rotary positions of full and of sliding layers."""

  def rope(table: Checked | None, base: float) -> Rope:
    table = table or Checked({}, c.where)
    return rotary.from_hf(
      table, sizes['head_dim'], sizes['context_length'], base
    )

  base = _base(c, 'rope_theta', architecture.rope_base)
  old, new = (c.section(key) for key in _ROPE_KEYS[1:])
  if old is not None and new is not None:
    c.refuse('rope_scaling', 'one of it and rope_parameters')
  if architecture.local_rope is None:
    whole = rope(old or new, base)
    return whole, whole
  local_base = _base(c, *architecture.local_rope)
  if new is None:
    return rope(old, base), rope(None, local_base)
  if 'rope_type' in new and FULL not in new:
    new.refuse(
      'rope_type',
      f'a table under {FULL} and one under {SLIDING}',
      'write what is there under the one that it is of',
    )
  new.check_keys((FULL, SLIDING))
  return (
    rope(new.section(FULL), base),
    rope(new.section(SLIDING), local_base),
  )


def _base(c: Checked, key: str, default: float) -> float:
  return c.positive(key) if key in c else default


def _constants(
  c: Checked, architecture: Architecture, sizes: Mapping[str, int]
) -> dict[str, Any]:
  """Fields that are no sizes, of keys that the architecture has."""
  found = {
    'norm_eps': c.positive('rms_norm_eps'),
    'tie_head': c.flag('tie_word_embeddings'),
    'activation': c.choice(architecture.activation_key, ACTIVATIONS),
  }
  if 'attention_bias' in architecture.defaults:
    found['qkv_bias'] = found['out_bias'] = c.flag('attention_bias')
  if 'mlp_bias' in architecture.defaults:
    found['mlp_bias'] = c.flag('mlp_bias')
  if architecture.embed_scaled:
    found['embed_scale'] = sizes['d_model'] ** 0.5
  if 'query_pre_attn_scalar' in architecture.defaults:
    scalar = c.positive('query_pre_attn_scalar')
    if scalar != sizes['head_dim']:
      found['query_scale'] = scalar**-0.5
  for key, field in CAPS.items():
    if key in architecture.defaults and c.get(key) is not None:
      found[field] = c.positive(key)
  return found


def hf_config(config: DecoderConfig, architecture: str) -> dict[str, Any]:
  """Writes a config as a config.json that transformers reads.

  Args:
    config: of the model.
    architecture: a key of `ARCHITECTURES`.

  Returns:
    Values of `config_from_hf`; without tokens and type of the weights.

  Raises:
    ModelFileError: the architecture's config.json cannot say the config; the
      fields are named.
  """
  where = f'a config.json of {architecture}'
  family = ARCHITECTURES[architecture]
  values = {
    'model_type': architecture,
    'architectures': [family.class_name],
    **{key: getattr(config, field) for key, field in SIZES.items()},
    'rms_norm_eps': config.norm_eps,
    'tie_word_embeddings': config.tie_head,
    family.activation_key: SPELT[config.activation],
    **_written_windows(config, family),
  }
  if 'attention_bias' in family.defaults:
    values['attention_bias'] = config.out_bias
  if 'mlp_bias' in family.defaults:
    values['mlp_bias'] = config.mlp_bias
  if 'query_pre_attn_scalar' in family.defaults:
    scale = config.query_scale
    scalar = config.head_dim if scale is None else round(scale**-2)
    values['query_pre_attn_scalar'] = scalar
  for key, field in CAPS.items():
    if key in family.defaults:
      values[key] = getattr(config, field)
  try:
    values.update(_written_ropes(config, family))
  except ValueError as error:
    raise ModelFileError(f'{where}: {error}') from error
  _check_written(config, config_from_hf(values, where), where)
  return values


def _written_windows(
  config: DecoderConfig, family: Architecture
) -> dict[str, Any]:
  if 'sliding_window' not in family.defaults:
    return {}
  slides = [window is not None for window in config.windows]
  slides = slides or [False] * config.num_layers
  written: dict[str, Any] = {
    'sliding_window': next(filter(None, config.windows), None)
  }
  if 'layer_types' in family.defaults:
    written['layer_types'] = [SLIDING if local else FULL for local in slides]
  if 'use_sliding_window' in family.defaults:
    first = slides.index(True) if any(slides) else config.num_layers
    written |= {'use_sliding_window': any(slides), 'max_window_layers': first}
  return written


def _written_ropes(
  config: DecoderConfig, family: Architecture
) -> dict[str, Any]:
  """The old spelling, which all versions of transformers read, if it can."""

  def scaling(rope: Rope) -> dict[str, Any]:
    return rotary.to_hf(rope, config.head_dim, config.context_length)

  windows = config.windows or (None,) * config.num_layers
  ropes = {
    FULL if window is None else SLIDING: rope
    for rope, window in zip(config.ropes, windows, strict=True)
  }
  if family.local_rope is None:
    (rope, *_) = ropes.values()
    return {'rope_theta': rope.base, 'rope_scaling': scaling(rope) or None}
  key, base = family.local_rope
  full = ropes.get(FULL, Rope(family.rope_base))
  local = ropes.get(SLIDING, Rope(full.base if key == 'rope_theta' else base))
  # transformers 5 takes its own default for OLMo 3's sliding layers.
  if local == Rope(local.base) and (key != 'rope_theta' or local.base == base):
    return {
      'rope_theta': full.base,
      'rope_scaling': scaling(full) or None,
      key: local.base,
    }
  return {
    'rope_parameters': {
      kind: {'rope_type': 'default', 'rope_theta': rope.base, **scaling(rope)}
      for kind, rope in ropes.items()
    }
  }


def _check_written(
  config: DecoderConfig, found: DecoderConfig, where: str
) -> None:
  """The file has to say what the model is, field by field."""
  same = all(map(rotary.is_close, config.ropes, found.ropes))
  found = dataclasses.replace(found, ropes=config.ropes) if same else found
  wrong = [
    f'{field.name} = {getattr(config, field.name)!r}'
    for field in dataclasses.fields(config)
    if getattr(config, field.name) != getattr(found, field.name)
  ]
  if wrong:
    raise ModelFileError(
      f'{where} cannot say {", ".join(wrong)}; export as an architecture '
      'that has it'
    )
