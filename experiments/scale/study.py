# SPDX-License-Identifier: Apache-2.0
"""What is asked of the model, and its answers as plain numbers."""

from __future__ import annotations

import dataclasses
from typing import Any

from experiments.scale import check, count
from experiments.scale.hardware import DEVICES, H100, V5E, Device, Shares
from experiments.scale.predict import Search, fastest, meshes
from thicket.models.decoder_config import DecoderConfig, Rope

COUNTS = (8, 256)
# Where the smaller questions are asked.
PLACES = (
  ('Qwen2.5-7B', H100, 8),
  ('Qwen2.5-7B', V5E, 8),
  ('Llama-2-7B', H100, 8),
  ('Llama-3-70B', H100, 8),
  ('Llama-3-70B', V5E, 256),
)
SHAPES = tuple(
  (examples, new) for examples in (200, 32) for new in (512, 64, 8)
)
# Output tokens a second on H100 in FP16: tensor parallel degree, tokens in and
# out. From the performance overview of TensorRT-LLM's documentation, version
# 0.10, and 0.14 for the 70B model.
PUBLISHED = (
  ('Llama-2-7B', count.LLAMA2_7B, 1, 128, 128, 10725.31),
  ('Llama-2-7B', count.LLAMA2_7B, 1, 128, 2048, 3399.43),
  ('Llama-2-7B', count.LLAMA2_7B, 1, 2048, 128, 1235.4),
  ('Llama-2-7B', count.LLAMA2_7B, 1, 2048, 2048, 1335.51),
  ('Llama-3-8B', count.LLAMA3_8B, 1, 128, 128, 12085.78),
  ('Llama-3-8B', count.LLAMA3_8B, 1, 128, 2048, 6208.23),
  ('Llama-3-8B', count.LLAMA3_8B, 1, 2048, 128, 1604.7),
  ('Llama-3-8B', count.LLAMA3_8B, 1, 2048, 2048, 2776.31),
  ('Llama-3-70B', count.LLAMA3_70B, 4, 1000, 1000, 3730.2124),
  ('Llama-3-70B', count.LLAMA3_70B, 8, 1000, 1000, 5963.0914),
)
SMOLLM2_135M = DecoderConfig(
  vocab_size=49152,
  num_layers=30,
  d_model=576,
  d_ff=1536,
  num_heads=9,
  num_kv_heads=3,
  head_dim=64,
  ropes=(Rope(1e5),) * 30,
  norm_eps=1e-5,
  context_length=8192,
  tie_head=True,
)
CHECKED = ((1, 64, 32, 32), (1, 64, 128, 512), (4, 16, 128, 128))


def cases() -> list[dict[str, Any]]:
  """Every model, device, count and family: all meshes, the fastest in full."""
  found = []
  for model, config in count.MODELS.items():
    for device in DEVICES:
      for devices in COUNTS:
        for family in count.FAMILIES:
          each = meshes(config, device, devices, family, Search(), Shares())
          brief = {
            str(m): {key: one[key] for key in ('members', 'rows', 'hours')}
            for m, one in each.items()
          }
          found.append({
            'model': model, 'device': device.name, 'devices': devices,
            'family': family, 'meshes': brief, 'fastest': fastest(each),
          })  # fmt: skip
  return found


def hours(
  model: str, device: Device, devices: int, family: str, search: Search,
  shares: Shares,
) -> dict[str, Any]:  # fmt: skip
  """The fastest mesh's prediction; all places hold some mesh."""
  config = count.MODELS[model]
  return fastest(meshes(config, device, devices, family, search, shares))


def both(place: tuple, search: Search, shares: Shares) -> dict[str, float]:
  """Hours of a dense and of a low-rank search, and the noise's share."""
  dense = hours(*place, 'gaussian', search, shares)
  thin = hours(*place, 'low_rank', search, shares)
  return {
    'gaussian': dense['hours'],
    'low_rank': thin['hours'],
    'noise': dense['parts']['noise'] / 3600 / dense['hours'],
  }


def name(place: tuple) -> str:
  """A place in words."""
  model, device, devices = place
  return f'{model}, {devices} {device.name}'


def shapes() -> list[dict[str, Any]]:
  """Fewer examples, shorter answers."""
  return [
    {'place': name(place), 'examples': examples, 'new_tokens': new}
    | both(place, Search(examples=examples, new_tokens=new), Shares())
    for place in PLACES
    for examples, new in SHAPES
  ]


def sensitivity() -> list[dict[str, Any]]:
  """What is assumed, made worse one by one."""
  given = {'as assumed': (Search(), Shares())}
  for field in dataclasses.fields(Shares):
    halved = {field.name: field.default / 2}
    given[f'share of {field.name} halved'] = Search(), Shares(**halved)
  given['80% of memory usable'] = Search(usable=0.8), Shares()
  given['judging 10x slower'] = Search(judged_per_s=500.0), Shares()
  found = [
    {'place': name(place), 'assumed': assumed} | both(place, *settings)
    for place in PLACES
    for assumed, settings in given.items()
  ]
  for model, device, devices in PLACES:
    slow = dataclasses.replace(device, hop_s=5 * device.hop_s)
    found.append(
      {'place': name((model, device, devices)), 'assumed': 'hops 5x slower'}
      | both((model, slow, devices), Search(), Shares())
    )
  return found


def attention() -> list[dict[str, Any]]:
  """What attention over filled slots, scores kept on chip, would bring."""
  found = []
  for place in PLACES:
    for family in ('gaussian', 'low_rank'):
      now = hours(*place, family, Search(), Shares())
      then = hours(*place, family, Search(filled=True), Shares())
      found.append({
        'place': name(place), 'family': family, 'now': now['hours'],
        'share': now['parts']['decode: attention'] / 3600 / now['hours'],
        'then': then['hours'],
      })  # fmt: skip
  return found


def published() -> list[dict[str, Any]]:
  """The same roofline for a server of one model, beside what was measured."""
  found = []
  for model, config, axis, prompt, new, measured in PUBLISHED:
    plain = Search(members=1, examples=3000, prompt=prompt, new_tokens=new)
    served = dataclasses.replace(plain, filled=True, in_flight=True)
    rates = [
      meshes(config, H100, axis, count.BASE, search, Shares())[axis]
      for search in (served, plain)
    ]
    found.append({
      'model': model, 'axis': axis, 'prompt': prompt, 'new_tokens': new,
      'measured': measured, 'served': rates[0]['tokens_per_s'],
      'ours': rates[1]['tokens_per_s'],
    })  # fmt: skip
  return found


def xla() -> list[dict[str, Any]]:
  """Counts beside XLA's, on SmolLM2-135M; compiles for half a minute."""
  found = []

  def add(program, ours, theirs_flops, theirs_bytes):
    found.append({
      'program': program, 'flops': ours.flops, 'xla_flops': theirs_flops,
      'bytes': ours.bytes, 'xla_bytes': theirs_bytes,
    })  # fmt: skip

  for family in ('gaussian', 'rademacher'):
    one = check.materialise(family, 1536, 576)
    add(f'write 1536 x 576, {family}', one.ours, one.flops, one.bytes)
  for members, rows, prompt, new in CHECKED:
    got = check.forward(SMOLLM2_135M, members, rows, prompt, new)
    shape = f'{members} x {rows} rows, {prompt} + {new} tokens'
    for program, one in (('prefill', got.prefill), ('step', got.step)):
      add(f'{program}, {shape}', one.ours, one.flops, one.bytes)
    found[-1] |= {'scratch': got.scratch[0], 'xla_scratch': got.scratch[1]}
  return found


def predictions() -> dict[str, Any]:
  """All that needs no compilation: the same numbers on every machine."""
  return {
    'search': dataclasses.asdict(Search()),
    'shares': dataclasses.asdict(Shares()),
    'hardware': [dataclasses.asdict(device) for device in DEVICES],
    'cases': cases(),
    'shapes': shapes(),
    'sensitivity': sensitivity(),
    'attention': attention(),
    'published': published(),
  }
