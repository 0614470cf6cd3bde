# SPDX-License-Identifier: Apache-2.0
"""Names in checkpoints: one canonical name each, or none."""

import pytest

from thicket.models.checkpoint_names import canonical_name

CANONICAL = 'model.layers.3.self_attn.q_proj.weight'


@pytest.mark.parametrize(
  ('stored', 'canonical'),
  [
    (CANONICAL, CANONICAL),
    ('model.norm.weight', 'model.norm.weight'),
    # The text half of a model of pictures, before and since transformers 4.52.
    (f'language_model.{CANONICAL}', CANONICAL),
    (CANONICAL.replace('model.', 'model.language_model.', 1), CANONICAL),
    ('language_model.lm_head.weight', 'lm_head.weight'),
    # A model without its head.
    (CANONICAL.removeprefix('model.'), CANONICAL),
    ('embed_tokens.weight', 'model.embed_tokens.weight'),
    ('norm.weight', 'model.norm.weight'),
    # What is no weight of the text half.
    ('vision_tower.vision_model.embeddings.patch_embedding.weight', None),
    ('model.vision_tower.vision_model.head.weight', None),
    ('multi_modal_projector.mm_soft_emb_norm.weight', None),
    ('model.multi_modal_projector.mm_input_projection_weight', None),
    ('model.layers.0.self_attn.rotary_emb.inv_freq', None),
    ('model.rotary_emb.inv_freq', None),
    # What is not known stays as it is, to be named in an error.
    ('model.layers.0.mlp.experts.0.w1.weight',) * 2,
  ],
)
def test_names(stored, canonical):
  assert canonical_name(stored, tie_head=False) == canonical


def test_a_head_beside_a_tied_embedding_is_a_copy():
  for stored in ('lm_head.weight', 'language_model.lm_head.weight'):
    assert canonical_name(stored, tie_head=True) is None
    assert canonical_name(stored, tie_head=False) == 'lm_head.weight'
