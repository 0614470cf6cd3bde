# SPDX-License-Identifier: Apache-2.0
"""Names of tensors in Hugging Face checkpoints, brought to the canonical ones.

A language model inside a model of pictures has a prefix, which has changed
between versions of transformers; a checkpoint of the layers without a head
has none.
"""

from __future__ import annotations

# Stored prefix -> canonical prefix; the first that fits is taken.
PREFIXES = (
  ('model.language_model.', 'model.'),
  ('language_model.model.', 'model.'),
  ('language_model.lm_head.', 'lm_head.'),
  ('embed_tokens.', 'model.embed_tokens.'),
  ('layers.', 'model.layers.'),
  ('norm.', 'model.norm.'),
)
# Tensors that say nothing of tokens: the half that reads pictures, and
# frequencies of rotary positions, which old checkpoints store as well.
IGNORED_PREFIXES = (
  'vision_tower.',
  'multi_modal_projector.',
  'model.vision_tower.',
  'model.multi_modal_projector.',
)
IGNORED_SUFFIXES = ('.rotary_emb.inv_freq',)


def is_head(stored: str) -> bool:
  """Whether a stored tensor is the output matrix."""
  return canonical_name(stored, tie_head=False) == 'lm_head.weight'


def canonical_name(stored: str, tie_head: bool) -> str | None:
  """The canonical name of a stored tensor, None for one to be ignored.

  A head beside an embedding that is the head as well is a copy, and ignored.
  """
  if stored.startswith(IGNORED_PREFIXES) or stored.endswith(IGNORED_SUFFIXES):
    return None
  for old, new in PREFIXES:
    if stored.startswith(old):
      stored = new + stored.removeprefix(old)
      break
  return None if tie_head and stored == 'lm_head.weight' else stored
