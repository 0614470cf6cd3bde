# SPDX-License-Identifier: Apache-2.0
"""The scale study: counts against XLA, rooflines by hand, and its README."""

import dataclasses
import json
import math
import pathlib
import sys

import jax
import jax.numpy as jnp
import pytest

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
import tiny  # noqa: E402

from experiments.scale import __main__ as scale  # noqa: E402
from experiments.scale import check, count, hardware, predict, study  # noqa: E402
from thicket import trees  # noqa: E402

H100, V5E = hardware.DEVICES
TINY = tiny.CONFIG
UNTIED = dataclasses.replace(TINY, tie_head=False, num_kv_heads=1)
IDEAL = hardware.Shares(1.0, 1.0, 1.0, 1.0, 1.0)


def whole(parts):
  return sum(parts.values(), count.Work())


# Counts.


def test_parameters_are_those_of_the_published_checkpoints():
  # Of Qwen2.5 without the biases of q, k and v.
  assert {n: count.num_parameters(c) for n, c in count.MODELS.items()} == {
    'Qwen2.5-7B': 7_615_616_512 - 28 * (3584 + 512 + 512),
    'Llama-2-7B': 6_738_415_616,
    'Llama-3-70B': 70_553_706_496,
  }
  assert count.num_parameters(count.LLAMA3_8B) == 8_030_261_248


@pytest.mark.parametrize('config', [TINY, UNTIED, tiny.SMOLLM2_135M])
def test_kernels_embedding_and_norms_are_all_parameters(config):
  c = config
  layers = c.num_layers * sum(out * into for out, into in count.kernels(c))
  tables = (1 if c.tie_head else 2) * c.vocab_size * c.d_model
  norms = (2 * c.num_layers + 1) * c.d_model
  assert count.num_parameters(c) == layers + tables + norms


def test_thin_factors_by_hand():
  # q, k, v, o, gate, up, down of two layers, and the tied embedding; each
  # (out + in) times the rank.
  D, F, NH, KH, V = 20, 24, 24, 12, 64
  layer = (NH + D) + 2 * (KH + D) + (D + NH) + 2 * (F + D) + (D + F)
  for rank in (1, 3):
    thin, dense = count.num_factors(TINY, rank)
    assert thin == rank * (2 * layer + V + D)
    assert dense == 5 * D


@pytest.mark.parametrize('config', [TINY, UNTIED])
@pytest.mark.parametrize('batch', [(1, 3, 8, 4), (2, 4, 8, 6)])
def test_products_are_exactly_those_of_the_traced_program(config, batch):
  programs = check.Programs(config, *batch)
  prompt = programs.counted(programs.prompt, 0)
  step = programs.counted(1, programs.slots)
  traced = count.operations(programs.prefill, *programs.prefill_shapes())
  assert traced['products'] == prompt.products
  traced = count.operations(programs.generate, *programs.generate_shapes())
  assert traced['products'] == prompt.products + step.products


@pytest.mark.parametrize('batch', [(1, 8, 64, 1024), (2, 4, 64, 512)])
def test_a_pass_agrees_with_xla(batch):
  # Wide enough for arrays to outweigh what XLA does around them.
  shallow = tiny.with_layers(tiny.SMOLLM2_135M, 2, vocab_size=512)
  got = check.forward(shallow, *batch)
  # In the prefill XLA's copies to other layouts come on top of what we count:
  # there are too few columns for it to fuse norms into products.
  for program, least, most in (
    (got.prefill, 1.1, 1.35),
    (got.step, 0.93, 1.05),
  ):
    flops, moved = program.ratios()
    assert flops == pytest.approx(1, abs=0.02)
    assert least < moved < most
  ours, xla = got.scratch
  assert 0.85 < xla / ours < 1.02


@pytest.mark.parametrize(
  ('family', 'least'), [('gaussian', 0.98), ('rademacher', 0.88)]
)
def test_writing_a_member_agrees_with_xla(family, least):
  flops, moved = check.materialise(family, 96, 64).ratios()
  assert least < flops < 1.01
  assert moved == pytest.approx(1, abs=0.05)


def test_noise_is_counted_word_by_word():
  rows, columns = 8, 64
  leaf = trees.Leaf((rows, columns), (trees.Segment('', 0, rows),))
  dense = count.array_noise('gaussian', leaf)
  signs = count.array_noise('rademacher', leaf)
  # A round of threefry is five operations, of which there are twenty; a word
  # holds 32 signs, and taking one out is a shift right, a shift left and an or.
  per_word = dense.integer / leaf.shape[0] / columns
  assert 20 * 5 < per_word < 20 * 5 + 5 * 3 + 6
  taken = signs.integer - 3 * rows * columns
  assert taken == pytest.approx(per_word * rows * columns / 32, rel=0.05)
  assert dense.bytes == 2 * 2 * rows * columns
  assert signs.bytes == dense.bytes + 2 * 4 * rows * columns / 32


def test_a_low_rank_member_draws_its_factors_and_norms_alone():
  thin = count.noise(TINY, 'low_rank', 2)
  dense = count.noise(TINY, 'gaussian')
  ratio = sum(count.num_factors(TINY, 2)) / count.num_parameters(TINY)
  assert thin.bytes / dense.bytes == pytest.approx(ratio)
  assert thin.integer / dense.integer == pytest.approx(ratio, rel=0.01)
  assert count.noise(TINY, count.BASE) == count.Work()
  with pytest.raises(ValueError, match="'cauchy' is not one of"):
    count.noise(TINY, 'cauchy')


def test_only_a_shared_base_is_read_once_for_all_members():
  batch = {'rows': 12, 'tokens': 1, 'slots': 9}
  once = whole(count.forward(TINY, **batch))
  dense = whole(count.forward(TINY, **batch, members=3))
  shared = whole(count.forward(TINY, **batch, members=3, shared=True))
  c = TINY
  read = c.num_layers * sum(out * into for out, into in count.kernels(c))
  read += c.vocab_size * c.d_model
  assert shared == once
  assert dense.bytes == once.bytes + 2 * 2 * read
  assert dense.flops == once.flops


def test_thin_factors_cost_what_they_hold():
  batch = {'rows': 12, 'tokens': 1, 'slots': 9, 'members': 3, 'shared': True}
  plain = whole(count.forward(TINY, **batch))
  ranks = [whole(count.forward(TINY, **batch, rank=r)) for r in (1, 2)]
  thin = count.num_factors(TINY, 1)[0]
  assert ranks[0].products - plain.products == pytest.approx(2 * 12 * thin)
  assert ranks[1].products - ranks[0].products == pytest.approx(2 * 12 * thin)
  assert ranks[1].bytes - ranks[0].bytes == pytest.approx(2 * 3 * thin)


@pytest.mark.parametrize('axis', [2, 4])
def test_devices_of_a_model_axis_share_the_products(axis):
  batch = {'rows': 6, 'tokens': 1, 'slots': 9, 'members': 2}
  alone = count.forward(TINY, **batch)
  split = count.forward(TINY, **batch, model_axis=axis)
  for part, work in alone.items():
    assert split[part].products * axis == pytest.approx(work.products)
    assert work.bytes / axis <= split[part].bytes < work.bytes
  # Two kv heads: four devices hold two copies of every cache.
  assert count.kv_split(TINY, axis) == 2


def test_longer_caches_cost_attention_alone():
  short, long = (
    count.forward(TINY, rows=6, tokens=1, slots=slots) for slots in (9, 10)
  )
  assert short['weights'] == long['weights']
  assert short['head'] == long['head']
  # A slot more: its key and value in bfloat16, and a score of each head.
  more = long['attention'].bytes - short['attention'].bytes
  assert more == TINY.num_layers * 6 * (2 * 2 * 2 * 6 + 16 * 4)
  fused = count.forward(TINY, rows=6, tokens=1, slots=9, fused=True)
  saved = short['attention'].bytes - fused['attention'].bytes
  assert saved == TINY.num_layers * 6 * 16 * 4 * (9 + 1)


def test_a_loop_and_what_it_calls_are_counted_once():
  def fn(x, w):
    body = lambda i, x: jax.nn.relu(jnp.dot(w, x))
    return jax.lax.fori_loop(0, 7, body, x)

  shapes = (jax.ShapeDtypeStruct((3,), 'float32'),
            jax.ShapeDtypeStruct((3, 3), 'float32'))  # fmt: skip
  found = count.operations(fn, *shapes)
  assert found['products'] == 2 * 9
  assert found['vector'] == 3  # the maximum


# Rooflines.


def test_a_roofline_by_hand():
  work = count.Work(products=2e12, vector=3e12, integer=4e12, bytes=5e12)
  device = dataclasses.replace(
    H100, products=1e12, integer=2e12, vector=3e12, bandwidth=1e12
  )
  got = predict.roofline(work, device, 0.5, hardware.Shares())
  assert got == pytest.approx(
    {'compute': 2 / 0.5, 'memory': 5 / 0.8, 'integer': (4 / 2 + 3 / 3) / 0.5}
  )


def test_an_all_reduce_by_hand():
  reduce = predict.all_reduce_s
  assert reduce(1e9, H100, 1, IDEAL) == 0
  assert reduce(450e9, H100, 8, IDEAL) == pytest.approx(2 * 7 / 8 + 14e-6)
  # Two chips have one link between them, four a ring that runs both ways.
  assert reduce(50e9, V5E, 2, IDEAL) == pytest.approx(1 + 2e-6)
  assert reduce(50e9, V5E, 4, IDEAL) == pytest.approx(2 * 3 / 4 / 2 + 6e-6)


@pytest.mark.parametrize('family', count.FAMILIES)
@pytest.mark.parametrize('axis', [2, 4])
def test_what_is_held_fits_and_no_member_is_left_out(family, axis):
  search = predict.Search()
  config = count.QWEN25_7B
  held = predict.fits(config, H100, 8, family, axis, search)
  for fit in held:
    assert sum(fit.memory.values()) <= search.usable * H100.memory
    assert fit.rows * fit.batches >= search.examples
    assert fit.rows * (fit.batches - 1) < search.examples
    spread = 8 // axis * fit.chunks * fit.members
    assert search.members <= spread < search.members + 8 // axis * fit.chunks
    weights = 2 * count.num_parameters(config) / axis
    assert fit.memory['base'] == weights
    thin = 2 * sum(count.num_factors(config, 1)) / axis
    own = thin if family == 'low_rank' else weights
    assert fit.memory['members'] == fit.members * own
  assert [fit.rows for fit in held] == sorted(
    {math.ceil(200 / k) for k in range(1, 201)}, reverse=True
  )


def test_where_the_weights_do_not_fit_there_is_no_prediction():
  where = count.LLAMA3_70B, V5E, 8
  for family in count.FAMILIES:
    found = predict.meshes(*where, family, predict.Search(), IDEAL)
    assert found == {}
    assert predict.fastest(found) is None


def test_a_model_axis_divides_the_heads_within_fast_links():
  axes = lambda config, device, n: predict.axes(config, device, n)
  assert axes(count.QWEN25_7B, H100, 256) == [1, 2, 4]  # 28 heads
  assert axes(count.LLAMA3_70B, H100, 256) == [1, 2, 4, 8]
  assert axes(count.LLAMA3_70B, V5E, 256) == [1, 2, 4, 8, 16, 32, 64]
  assert axes(count.LLAMA3_70B, V5E, 8) == [1, 2, 4, 8]


def _one(device=H100, shares=IDEAL, family='gaussian', **search):
  asked = predict.Search(members=8, **search)
  found = predict.meshes(count.LLAMA3_8B, device, 8, family, asked, shares)
  return found[1]


def test_few_rows_take_as_long_as_their_weights_are_read():
  got = _one(examples=1, new_tokens=11)
  config = count.LLAMA3_8B
  layers = 32 * sum(out * into for out, into in count.kernels(config))
  assert got['binds']['decode: weights'] == 'memory'
  read_s = 10 * 2 * layers / H100.bandwidth
  assert got['parts']['decode: weights'] == pytest.approx(read_s, rel=0.01)
  assert got['parts']['network'] == 0


@pytest.mark.parametrize('family', ['gaussian', 'low_rank'])
def test_a_part_takes_as_long_as_what_binds_it(family):
  shares, config = hardware.Shares(), count.LLAMA3_8B
  got = _one(shares=shares, family=family, new_tokens=16)
  thin = family == 'low_rank'
  step = count.forward(
    config,
    rows=got['members'] * got['rows'],
    tokens=1,
    slots=128 + 16 - 1,
    members=got['members'],
    shared=thin,
    rank=1 if thin else 0,
  )
  steps = got['chunks'] * got['batches'] * 15
  for part, work in step.items():
    took = predict.roofline(work, H100, shares.decode, shares)
    most = max(took, key=took.get)
    assert got['binds'][f'decode: {part}'] == most
    assert got['parts'][f'decode: {part}'] == pytest.approx(steps * took[most])


def test_noise_is_made_once_a_member_whatever_the_mesh():
  config, shares = count.LLAMA3_70B, hardware.Shares()
  search = predict.Search(members=640)
  work = count.noise(config, 'gaussian')
  took = max(predict.roofline(work, H100, 1.0, shares).values())
  found = predict.meshes(config, H100, 64, 'gaussian', search, shares)
  assert list(found) == [4, 8]
  for got in found.values():
    made = search.members / (1 - got['idle'])
    assert got['parts']['noise'] == pytest.approx(made * took / 64)


def test_hours_and_rates_follow_from_the_parts():
  got = _one(examples=20, new_tokens=16)
  total = sum(got['parts'].values())
  assert got['hours'] == pytest.approx(total / 3600)
  assert got['tokens_per_s'] == pytest.approx(8 * 20 * 16 / total)
  assert got['members_per_s'] == pytest.approx(8 / total)
  assert got['next_share'] == max(got['parts'].values()) / total


def test_hardware_twice_as_fast_takes_half_the_time():
  fast = dataclasses.replace(
    V5E, **{name: 2 * getattr(V5E, name) for name in
            ('products', 'integer', 'vector', 'bandwidth', 'link')},
    hop_s=V5E.hop_s / 2,
  )  # fmt: skip
  asked = predict.Search(members=8, judged_per_s=1e12)
  now, then = (
    predict.meshes(count.LLAMA3_8B, device, 8, 'low_rank', asked, IDEAL)
    for device in (V5E, fast)
  )
  assert list(now) == list(then) == [2, 4, 8]
  for axis in now:
    assert then[axis]['hours'] == pytest.approx(now[axis]['hours'] / 2)
    assert now[axis]['parts']['network'] > 0


def test_a_slow_judge_is_waited_for_and_a_quick_one_is_not():
  quick, slow = _one(judged_per_s=1e9), _one(judged_per_s=0.5)
  assert quick['parts']['host'] == 0
  assert slow['judging'] == pytest.approx(8 * 200 / 0.5, rel=1e-3)
  assert sum(slow['parts'].values()) == pytest.approx(slow['judging'])


def test_low_rank_is_ahead_where_few_rows_share_a_weight():
  ahead = [
    _one(examples=n)['hours'] / _one(examples=n, family='low_rank')['hours']
    for n in (1, 8, 200)
  ]
  assert ahead[0] > ahead[1] >= ahead[2] * 0.99


# What is committed.


@pytest.fixture(scope='module')
def committed():
  path = scale.RESULTS / 'scale.json'
  return json.loads(path.read_text(encoding='utf-8'))


def _close(got, want, path=''):
  """Equal, numbers to a thousandth: a JAX version may trace a step more."""
  if isinstance(want, dict):
    assert got.keys() == want.keys(), path
    for key in want:
      _close(got[key], want[key], f'{path}/{key}')
  elif isinstance(want, list):
    assert len(got) == len(want), path
    for i, pair in enumerate(zip(got, want, strict=True)):
      _close(*pair, f'{path}/{i}')
  elif isinstance(want, float):
    assert got == pytest.approx(want, rel=1e-3, abs=1e-9), path
  else:
    assert got == want, path


def test_the_results_are_what_the_code_predicts(committed):
  fresh = json.loads(json.dumps(study.predictions()))
  _close({k: v for k, v in committed.items() if k != 'xla'}, fresh)


def test_the_readme_holds_the_tables_of_the_results(committed):
  readme = (scale.RESULTS.parent / 'README.md').read_text(encoding='utf-8')
  for title, make in scale.TABLES.items():
    assert f'## {title}\n' in readme
    table = scale.markdown(make(committed))
    assert len({line.count('|') for line in table.split('\n')}) == 1, title
    assert table in readme, title
  assert scale.facts(committed) in ' '.join(readme.split())
  assert (scale.RESULTS / 'shares.png').stat().st_size > 10_000


def test_committed_counts_agree_with_xla_s(committed):
  passes = [one for one in committed['xla'] if 'rows' in one['program']]
  assert len(passes) == 2 * len(study.CHECKED)
  for one in passes:
    assert one['xla_flops'] / one['flops'] == pytest.approx(1, abs=0.01)
    assert 0.9 < one['xla_bytes'] / one['bytes'] < 1.35


def test_the_figure_shows_every_place_and_family(committed):
  axes = scale.figure(committed).axes[0]
  labels = [label.get_text() for label in axes.get_yticklabels()]
  assert labels == list(count.FAMILIES) * len(study.PLACES)
  texts = {text.get_text() for text in axes.texts}
  assert {study.name(place) for place in study.PLACES} <= texts
  ends = [bar.get_x() + bar.get_width() for bar in axes.containers[-1]]
  assert ends[-1] == pytest.approx(100)
