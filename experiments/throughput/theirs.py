# SPDX-License-Identifier: Apache-2.0
"""The released method's loop on transformers: perturb, generate, restore.

The same weights, prompts and number of tokens. Weights are perturbed in place
by noise drawn per tensor from a generator of the member's seed, and restored
by drawing it again and subtracting, as the released code of RandOpt does by
default (written anew here: only the idea is theirs).
"""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import jax
import numpy as np

from experiments.throughput.generation import Prompts
from thicket.models.load import LoadedModel


def is_installed() -> bool:
  """Whether torch and transformers are there to compare with."""
  return all(map(importlib.util.find_spec, ('torch', 'transformers')))


class Theirs:
  """A model of transformers with our weights."""

  def __init__(self, model: LoadedModel, prompts: Prompts, new_tokens: int):
    """Copies the weights and the prompts."""
    import torch
    import transformers

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    self._torch, self._new_tokens = torch, new_tokens
    self._pad = model.tokenizer.pad_id
    self._model = _model(transformers, torch, model)
    rows = prompts.batch.tokens.shape[0]
    tokens, mask = prompts.whole(self._pad)
    self._inputs = torch.tensor(tokens).long(), torch.tensor(mask).long()
    self.settings = (
      f'transformers {transformers.__version__}, torch {torch.__version__}: '
      f'{torch.get_num_threads()} threads, float32, sdpa, cache on, greedy, '
      f'inference mode, {rows} prompts, {new_tokens} new tokens, no early stop'
    )

  def generate(self) -> np.ndarray:
    """The new tokens [B, G]."""
    with self._torch.inference_mode():
      return self._model.generate(
        self._inputs[0],
        attention_mask=self._inputs[1],
        do_sample=False,
        use_cache=True,
        max_new_tokens=self._new_tokens,
        eos_token_id=None,  # no row stops early here either
        pad_token_id=self._pad,
      )[:, -self._new_tokens :].numpy()

  def member(self, seed: int, sigma: float) -> np.ndarray:
    """Perturbs, generates and restores."""
    self._add(seed, sigma)
    try:
      return self.generate()
    finally:
      self._add(seed, -sigma)

  def _add(self, seed: int, sigma: float) -> None:
    torch = self._torch
    with torch.inference_mode():
      for weight in self._model.parameters():
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(
          weight.shape, generator=generator, dtype=weight.dtype
        )
        weight.data.add_(noise, alpha=sigma)


def _model(transformers: Any, torch: Any, model: LoadedModel) -> Any:
  c = model.decoder.config
  config = transformers.LlamaConfig(
    vocab_size=c.vocab_size,
    hidden_size=c.d_model,
    intermediate_size=c.d_ff,
    num_hidden_layers=c.num_layers,
    num_attention_heads=c.num_heads,
    num_key_value_heads=c.num_kv_heads,
    head_dim=c.head_dim,
    rope_theta=c.ropes[0].base,
    rms_norm_eps=c.norm_eps,
    max_position_embeddings=c.context_length,
    tie_word_embeddings=c.tie_head,
    attn_implementation='sdpa',
  )
  theirs = transformers.LlamaForCausalLM(config).eval()
  state = {}
  for array, leaf in zip(
    jax.tree.leaves(model.params), jax.tree.leaves(model.spec), strict=True
  ):
    edges = np.cumsum([s.size for s in leaf.segments])[:-1]
    for s, part in zip(
      leaf.segments, np.split(np.asarray(array), edges), strict=True
    ):
      state[s.full_name] = torch.tensor(part)
  missing, extra = theirs.load_state_dict(state, strict=False)
  if extra or set(missing) - {'lm_head.weight'}:  # tied to the embedding
    raise RuntimeError(f'missing {missing}, not expected {extra}')
  theirs.tie_weights()
  theirs.generation_config.eos_token_id = None
  return theirs
