# SPDX-License-Identifier: Apache-2.0
"""Exported members: the bits that a run evaluated, a card of what it stored."""

import dataclasses
import io
import json
import pathlib
import re
import shutil

import jax
import jax.numpy as jnp
import made
import ml_dtypes
import numpy as np
import pytest
import safetensors
import tiny_gguf
import yaml
from rich.console import Console

from thicket import export, merging, perturb, run, sharding, trees
from thicket.blocks import BASE
from thicket.export import ExportError, export_member
from thicket.ledger import Ledger
from thicket.merging import Mix
from thicket.models.load import load

N, K = 6, 3


def _config(model, **changes):
  """A run without controls; a__b sets a.b."""
  settings = {
    'seed': 3,  # the best is not the first
    'model__name': model,
    'task__prompt_template': 'Q {question}=',
    'data__num_selection': 64,
    'data__num_validation': 16,
    'data__num_test': 32,
    'population__size': N,
    'population__sigmas': (0.05, 0.2),
    'ensemble__sizes': (1, K),
    'controls__temperatures': (),
    'controls__unselected': False,
    'controls__same_sigma': False,
    'controls__prompts': False,
    'controls__population_sizes': (),
    'controls__validation': True,
    'decode__max_new_tokens': 3,
    'decode__rows': 32,
  } | changes
  return made.config(**settings)


@dataclasses.dataclass(frozen=True)
class _Finished:
  folder: pathlib.Path
  summary: dict
  job: run.Run

  @property
  def ranked(self):
    return [found['member'] for found in self.summary['selected']]


def _run(config, folder):
  console = Console(file=io.StringIO(), width=80)
  with made.devices(1):
    job = run.Run(config, str(folder), console)
    return _Finished(folder, job.finish(), job)


@pytest.fixture(scope='module')
def finished(model, tmp_path_factory):
  """A plain run."""
  folder = tmp_path_factory.mktemp('run') / 'work'
  return _run(_config(model), folder)


@pytest.fixture(scope='module')
def special(tmp_path_factory):
  """A run with everything that can make a member another one."""
  folder = tmp_path_factory.mktemp('special')
  tied = dataclasses.replace(tiny_gguf.CONFIG, tie_head=True)
  weights = tiny_gguf.named(tied)
  path = tiny_gguf.write(
    folder / 'tiny.gguf',
    tiny_gguf.stored(weights, tied),
    tiny_gguf.metadata(tied),
  )
  config = _config(
    str(path),
    model__dtype='bfloat16',
    population__family='low_rank:2',
    population__scale='modular',
    population__sigmas=(5.0, 20.0),
    population__antithetic=True,
    population__skip='gate_proj|o_proj',
  )
  return _run(config, folder / 'work')


def _read(folder):
  """All tensors of a folder, and the files that they are in."""
  found = {}
  for path in sorted(folder.glob('*.safetensors')):
    with safetensors.safe_open(path, framework='np') as file:
      found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
  return found


def _config_of(folder):
  return json.loads((folder / 'config.json').read_text(encoding='utf-8'))


def _named(spec, arrays):
  """Canonical tensors by name, cut out of the arrays of a tree."""
  named = {}
  leaves = jax.tree.leaves(spec)
  for leaf, array in zip(leaves, jax.tree.leaves(arrays), strict=True):
    cuts = np.cumsum([segment.size for segment in leaf.segments])[:-1]
    parts = np.split(np.asarray(array), cuts)
    for segment, part in zip(leaf.segments, parts, strict=True):
      named[segment.full_name] = part
  return named


def _assert_bits(got, expected):
  assert sorted(got) == sorted(expected)
  for name, array in expected.items():
    assert (got[name].dtype, got[name].shape) == (array.dtype, array.shape)
    assert got[name].tobytes() == array.tobytes(), name


def _evaluated(done, member):
  """The weights of a member in the run itself, by canonical name."""
  keep = lambda weights, *_: jax.tree.map(jnp.copy, weights)
  ((_, weights),) = done.job._members.gather([member], keep)
  spec = done.job._model.spec
  return _named(spec, jax.tree.map(lambda array: array[0], weights))


# What is written.


def test_the_best_member_has_the_bits_that_were_evaluated(finished, tmp_path):
  folder = export_member(finished.folder, f'hf:{tmp_path / "out"}')
  assert folder == tmp_path / 'out'
  _assert_bits(_read(folder), _evaluated(finished, finished.ranked[0]))
  base = _named(finished.job._model.spec, finished.job._model.params)
  assert _read(folder)['lm_head.weight'].tobytes() != (
    base['lm_head.weight'].tobytes()
  )


def test_every_rank_and_every_id_is_another_member(finished, tmp_path):
  for rank in range(1, K + 1):
    folder = export_member(
      finished.folder, f'hf:{tmp_path / str(rank)}', rank=rank
    )
    member = finished.ranked[rank - 1]
    expected = _evaluated(finished, member)
    _assert_bits(_read(folder), expected)
    by_id = export_member(
      finished.folder, f'hf:{tmp_path / f"id{rank}"}', members=[member]
    )
    _assert_bits(_read(by_id), expected)


def test_low_rank_mirrored_modular_masked_members(special, tmp_path):
  model, config = special.job._model, special.job.config
  mask = trees.trainable(model.spec, skip='gate_proj|o_proj')
  mesh = sharding.make_mesh(jax.devices()[:1])
  perturber = perturb.Perturber(
    model.params, model.spec, seed=config.seed, mesh=mesh,
    family='low_rank:2', scale='modular', mask=mask,
  )  # fmt: skip
  base = _named(model.spec, model.params)
  pair = []
  for member, sigma in ((4, 5.0), (5, -5.0)):  # noise 2 has the first sigma
    folder = export_member(
      special.folder, f'hf:{tmp_path / str(member)}', members=[member]
    )
    whole = perturber.write([2], [sigma], perturber.buffers(1))
    alone = lambda array, axis: array if axis is None else array[0]
    whole = jax.tree.map(
      alone, whole, perturber.in_axes, is_leaf=lambda x: x is None
    )
    got = _read(folder)
    _assert_bits(got, _named(model.spec, whole))
    pair.append(got)
    for name, array in got.items():
      assert array.dtype == ml_dtypes.bfloat16
      is_still = array.tobytes() == base[name].tobytes()
      assert is_still == bool(re.search('gate_proj|o_proj', name)), name
  up, down = (
    part['model.layers.0.mlp.up_proj.weight'].astype(np.float32)
    for part in pair
  )
  middle = base['model.layers.0.mlp.up_proj.weight'].astype(np.float32)
  # Mirror images, but for the rounding of each.
  limit = 2.0**-7 * np.maximum(abs(up), abs(down))
  assert (abs(up + down - 2 * middle) <= limit).all()
  assert (up != down).mean() > 0.9


@pytest.mark.parametrize('weights', [None, [0.25, -1.5], [1.0, 0.0]])
def test_a_merge_is_its_formula(weights, finished, tmp_path):
  members = [4, 1]
  folder = export_member(
    finished.folder, f'hf:{tmp_path / "out"}', members=members, weights=weights
  )
  base = _named(finished.job._model.spec, finished.job._model.params)
  moved = [_evaluated(finished, member) for member in members]
  first, second = np.float32([0.5, 0.5] if weights is None else weights)
  expected = {
    name: w + (first * (moved[0][name] - w) + second * (moved[1][name] - w))
    for name, w in base.items()
  }
  _assert_bits(_read(folder), expected)


def test_a_merge_in_bfloat16_is_rounded_once_and_keeps_what_is_still(
  special, tmp_path
):
  folder = export_member(special.folder, f'hf:{tmp_path / "out"}', top=K)
  parts = []
  for member in special.ranked:
    to = f'hf:{tmp_path / str(member)}'
    parts.append(_read(export_member(special.folder, to, members=[member])))
  got, wide = _read(folder), np.float32
  third = wide(1 / 3)
  for name, w in _named(
    special.job._model.spec, special.job._model.params
  ).items():
    w = w.astype(wide)
    total = np.zeros_like(w)
    for part in parts:
      total += third * (part[name].astype(wide) - w)
    expected = (w + total).astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(got[name], expected, name)
  _assert_bits(
    {'': got['model.layers.0.mlp.gate_proj.weight']},
    {'': parts[0]['model.layers.0.mlp.gate_proj.weight']},
  )


def test_a_weighted_member_is_a_merge_of_one(finished, tmp_path):
  to = f'hf:{tmp_path / "out"}'
  folder = export_member(finished.folder, to, members=[2], weights=[0.5])
  base = _named(finished.job._model.spec, finished.job._model.params)
  member = _evaluated(finished, 2)
  half = np.float32(0.5)
  _assert_bits(
    _read(folder), {k: w + half * (member[k] - w) for k, w in base.items()}
  )


def test_another_dtype_is_one_rounding_of_the_member(
  finished, special, tmp_path
):
  narrow = export_member(
    finished.folder, f'hf:{tmp_path / "narrow"}', rank=2, dtype='bfloat16'
  )
  member = _evaluated(finished, finished.ranked[1])
  rounded = {k: w.astype(ml_dtypes.bfloat16) for k, w in member.items()}
  _assert_bits(_read(narrow), rounded)
  own = export_member(special.folder, f'hf:{tmp_path / "own"}')
  wide = export_member(
    special.folder, f'hf:{tmp_path / "wide"}', dtype='float32'
  )
  same = {k: w.astype(np.float32) for k, w in _read(own).items()}
  _assert_bits(_read(wide), same)


def test_minus_zero_of_the_base_survives_a_merge():
  base = np.float32([[-0.0, 0.0, 1.0, -0.0]])
  leaf = trees.Leaf((1, 4), (trees.Segment('x', 0, 1),))
  mesh = sharding.make_mesh(jax.devices()[:1])
  perturber = perturb.Perturber(
    sharding.replicate(mesh, [base]), [leaf], seed=1, mesh=mesh,
    family='rademacher',
  )  # fmt: skip
  # A member and its mirror image.
  steps = [(np.array([3]), np.array([sigma]), 0.5) for sigma in (0.5, -0.5)]
  got = merging._mixed(jnp.asarray(base), perturber.part(0), steps, False)
  assert got.tobytes() == base.tobytes()


def test_there_is_one_array_at_a_time(finished):
  model = finished.job._model
  leaves = jax.tree.leaves(model.params)
  mesh = sharding.make_mesh(jax.devices()[:1])
  perturber = perturb.Perturber(model.params, model.spec, seed=0, mesh=mesh)
  population = finished.job.plan.population
  largest = max(leaf.nbytes for leaf in leaves)
  held = lambda: sum(array.nbytes for array in jax.live_arrays())
  # A member's array stands where it was written; that of a merge on the host.
  for mix, floor in (
    (Mix((1,), (1.0,)), largest),
    (Mix((0, 1, 2), (0.1, 0.2, 0.3)), 0),
  ):
    before = held()
    stream = merging.tensors(model, perturber, population, mix, np.float32)
    peak = max(held() - before for _ in stream)
    assert floor <= peak <= largest + 1024, mix  # keys are small
    assert held() == before


# The folder.


def test_a_folder_has_all_that_loaders_want(finished, tmp_path):
  folder = export_member(finished.folder, f'hf:{tmp_path / "a" / "b"}')
  names = {path.name for path in folder.iterdir()}
  assert names >= {
    'model.safetensors', 'config.json', 'tokenizer.json',
    'tokenizer_config.json', 'README.md',
  }  # fmt: skip
  config = _config_of(folder)
  assert config['model_type'] == 'llama'
  assert config['torch_dtype'] == 'float32'
  assert config['vocab_size'] == tiny_gguf.CONFIG.vocab_size
  assert [path.name for path in tmp_path.iterdir()] == ['a']


def test_a_tied_head_is_not_written(special, tmp_path):
  folder = export_member(special.folder, f'hf:{tmp_path / "out"}')
  got = _read(folder)
  assert 'model.embed_tokens.weight' in got
  assert 'lm_head.weight' not in got
  config = _config_of(folder)
  assert config['tie_word_embeddings'] is True
  assert config['torch_dtype'] == 'bfloat16'


# The card.


def _card(folder):
  """Front matter and text."""
  text = (folder / 'README.md').read_text(encoding='utf-8')
  start, head, body = text.split('---\n', 2)
  assert start == ''
  return yaml.safe_load(head), body


def _rows(body, head):
  """The rows of the table that starts with a column."""
  (table,) = re.findall(rf'^\| {head} .*\n\|[-|]+\n((?:\|.*\n)+)', body, re.M)
  return [
    tuple(x.strip() for x in re.split(r'(?<!\\)\|', line.strip('|')))
    for line in table.splitlines()
  ]


def _stored_rows(done, member):
  """Split, questions, score and accuracy of the ledger itself."""
  (folder,) = (done.folder / 'ledger').iterdir()
  rows = {}
  for split in ('selection', 'validation', 'test'):
    block = Ledger.read(folder).view(split)
    (at,) = np.flatnonzero(block.members == member)
    rows[split] = (
      str(len(block.rows)),
      f'{block.reward[at].mean():.4g}',
      f'{100 * block.correct[at].mean():.1f}',
    )
  return rows


def test_the_card_tells_what_the_run_stored(finished, tmp_path):
  folder = export_member(finished.folder, f'hf:{tmp_path / "out"}')
  head, body = _card(folder)
  assert head == {
    'base_model': 'tiny',
    'library_name': 'transformers',
    'pipeline_tag': 'text-generation',
    'tags': ['thicket', 'randopt'],
  }
  best = finished.ranked[0]
  assert f'# tiny, member {best}' in body
  (row,) = _rows(body, 'member')
  assert row == (str(best), '1', f'{(0.05, 0.2)[best % 2]:g}', '1')
  found = {(split, name): rest for split, *rest, name in (
    (r[0], r[1], r[3], r[4], r[5], r[2]) for r in _rows(body, 'split')
  )}  # fmt: skip
  assert list(found) == [
    (split, name)
    for split in ('selection', 'validation', 'test')
    for name in ('base', f'member {best}')
  ]
  for member, name in ((BASE, 'base'), (best, f'member {best}')):
    for split, expected in _stored_rows(finished, member).items():
      questions, score, right, against = found[split, name]
      assert (questions, score, right.split()[0]) == expected
      assert (against == '') == (member == BASE)
  tested = finished.summary['test']['systems']
  (system,) = (x for x in tested if x['id'] == 'best-member')
  low, high = system['accuracy']['interval']
  gain = system['against_base']
  right, against = found['test', f'member {best}'][2:]
  assert right.endswith(f'[{100 * low:.1f}, {100 * high:.1f}]')
  down, up = gain['interval']
  assert against == (
    f'{100 * gain["difference"]:+.1f} [{100 * down:+.1f}, {100 * up:+.1f}]'
  )
  recipe = dict(_rows(body, 'setting'))
  stored = finished.summary['recipe']
  assert recipe['SHA-256 of its files'] == stored['model']['sha256']
  assert recipe['seed'] == str(stored['noise']['seed'])
  assert recipe['noise family'] == 'gaussian'
  assert 'Selection scores of selected members are too high' in body
  assert 'has not been evaluated' not in body


def test_the_card_of_a_merge_gives_it_no_score(special, tmp_path):
  to = f'hf:{tmp_path / "out"}'
  folder = export_member(
    special.folder, to, members=[5, 0], weights=[0.75, 0.25]
  )
  body = _card(folder)[1]
  assert '# tiny, a merge of members 5, 0' in body
  assert '**The merge has not been evaluated.**' in body
  assert [(row[0], *row[2:]) for row in _rows(body, 'member')] == [
    ('5', '-5', '0.75'),
    ('0', '5', '0.25'),
  ]
  names = {row[2] for row in _rows(body, 'split')}
  assert names == {'base', 'member 5', 'member 0'}
  recipe = dict(_rows(body, 'setting'))
  assert recipe['perturbed tensors'] == (
    r'all but those that match `gate_proj\|o_proj`'
  )
  assert recipe['mirrored pairs'] == 'yes'
  assert 'thin factors' in body


def test_what_was_not_answered_has_no_score(finished, tmp_path):
  loser = min(set(range(N)) - set(finished.ranked))
  to = f'hf:{tmp_path / "out"}'
  body = _card(export_member(finished.folder, to, members=[loser]))[1]
  rows = {row[0]: row[3:] for row in _rows(body, 'split') if 'mem' in row[2]}
  assert rows['test'] == ('not evaluated', '', '')
  assert rows['validation'][0] != 'not evaluated'
  assert _rows(body, 'member')[0][1] == 'not selected'


def test_the_command_of_a_card_makes_the_same_again(finished, tmp_path):
  first = export_member(
    finished.folder, f'hf:{tmp_path / "out"}', top=2, weights=[1 / 3, 0.1]
  )
  body = _card(first)[1]
  (command,) = re.findall(r'^python -m thicket\.export (.*)$', body, re.M)
  kept = shutil.move(first, tmp_path / 'kept')
  assert export.main(command.split()) == 0
  for path in pathlib.Path(kept).iterdir():
    assert path.read_bytes() == (first / path.name).read_bytes(), path.name


# The door.


@pytest.mark.parametrize(
  ('asked', 'message'),
  [
    ({'rank': 0}, '--rank=0: the run selected 3'),
    ({'rank': K + 1}, '--rank=4: the run selected 3'),
    ({'top': 0}, '--top=0'),
    ({'top': K + 1}, '--top=4'),
    ({'rank': 1, 'top': 2}, 'one of --rank, --top and --members'),
    ({'rank': 1, 'members': [1]}, 'one of --rank'),
    ({'members': []}, '--members: name at least one'),
    ({'members': [N]}, r'--members: 6 is not in 0\.\.5'),
    ({'members': [-1]}, r'--members: -1 is not in 0\.\.5'),
    ({'members': [2, 2]}, '--members: 2 is named twice'),
    ({'members': [1, 2], 'weights': [1.0]}, '--weights: 1 for 2 members'),
    ({'weights': [0.5, 0.5]}, '--weights: 2 for 1 members'),
    ({'weights': [float('nan')]}, r'--weights: \[nan\]'),
    ({'dtype': 'int8'}, '--dtype=int8: known are float32, bfloat16'),
    ({'to': 'gguf:/x'}, '--to=gguf:/x: only hf:FOLDER'),
    ({'to': '/x'}, '--to=/x: only hf:FOLDER'),
    ({'to': 'hf:'}, '--to=hf:: give a folder'),
    ({'to': 'hf:gs://bucket/x'}, 'give a folder on this machine'),
  ],
)
def test_what_is_refused(asked, message, finished, tmp_path):
  asked = {'to': f'hf:{tmp_path / "out"}'} | asked
  with pytest.raises(ExportError, match=message):
    export_member(finished.folder, **asked)
  assert list(tmp_path.iterdir()) == []


def _refused(capsys, *flags):
  """What the command says, in one line."""
  assert export.main([f'--{flag}' for flag in flags]) == 2
  said = capsys.readouterr().err
  assert said.startswith('thicket: ')
  assert said.count('\n') == 1
  return said


def test_numbers_are_numbers(finished, tmp_path, capsys):
  flags = f'workdir={finished.folder}', f'to=hf:{tmp_path / "out"}'
  assert '--members=1,x' in _refused(capsys, *flags, 'members=1,x')
  said = _refused(capsys, *flags, 'members=1', 'weights=a')
  assert '--weights=a: give numbers' in said


def test_there_has_to_be_a_finished_search(finished, tmp_path, capsys):
  to = f'to=hf:{tmp_path / "out"}'
  nothing = tmp_path / 'nothing'
  assert 'no run here' in _refused(capsys, f'workdir={nothing}', to)
  folder = tmp_path / 'work'
  shutil.copytree(finished.folder, folder)
  (ledger,) = (folder / 'ledger').iterdir()
  shutil.rmtree(ledger / 'selection')
  said = _refused(capsys, f'workdir={folder}', to)
  assert 'answers are missing; the command of the run makes them' in said
  shutil.rmtree(ledger)
  said = _refused(capsys, f'workdir={folder}', to)
  assert 'nothing has been answered' in said
  assert not (tmp_path / 'out').exists()


def test_a_target_that_is_there_is_left_alone(finished, tmp_path, capsys):
  full, file = tmp_path / 'full', tmp_path / 'file'
  full.mkdir()
  (full / 'x').write_text('mine')
  file.write_text('mine')
  workdir = f'workdir={finished.folder}'
  for target in (full, file):
    said = _refused(capsys, workdir, f'to=hf:{target}')
    assert 'exists and is not an empty folder' in said
  assert 'cannot be written' in _refused(capsys, workdir, f'to=hf:{file}/x')
  assert [x.read_text() for x in (full / 'x', file)] == ['mine', 'mine']
  assert sorted(tmp_path.iterdir()) == [file, full]


def test_an_empty_folder_is_taken(finished, tmp_path, capsys):
  (tmp_path / 'out').mkdir()
  flags = [f'--workdir={finished.folder}', f'--to=hf:{tmp_path / "out"}']
  assert export.main(flags) == 0
  assert f'model     {tmp_path / "out"}' in capsys.readouterr().out
  assert list(_read(tmp_path / 'out'))


@pytest.mark.parametrize('error', [OSError(28, 'No space'), KeyboardInterrupt])
def test_a_failure_leaves_nothing_behind(
  error, finished, tmp_path, monkeypatch
):
  class Full:
    """A disk that takes half of a model."""

    def __init__(self, stream):
      self._stream = stream

    def __iter__(self):
      for number, found in enumerate(self._stream):
        if number == 3:
          raise error
        yield found

  true = export.tensors
  monkeypatch.setattr(export, 'tensors', lambda *args: Full(true(*args)))
  kind = KeyboardInterrupt if error is KeyboardInterrupt else ExportError
  with pytest.raises(kind):
    export_member(finished.folder, f'hf:{tmp_path / "a" / "out"}')
  assert list(tmp_path.iterdir()) == []


def test_another_model_in_the_same_place_is_refused(tmp_path, capsys):
  path = tmp_path / 'tiny.gguf'
  tiny_gguf.write_answering(path)
  folder = tmp_path / 'work'
  _run(_config(str(path)), folder)
  path.unlink()
  to = f'to=hf:{tmp_path / "out"}'
  said = _refused(capsys, f'workdir={folder}', to)
  assert 'there is no such file' in said
  tiny_gguf.write_answering(path, seed=2)
  said = _refused(capsys, f'workdir={folder}', to)
  assert 'members would not be those of the run: model.sha256: ' in said
  assert sorted(x.name for x in tmp_path.iterdir()) == ['tiny.gguf', 'work']


# What others read.


def test_our_own_loader_reads_it_back(finished, tmp_path):
  folder = export_member(finished.folder, f'hf:{tmp_path / "out"}')
  back = load(str(folder))
  assert back.decoder.config == finished.job._model.decoder.config
  got = _named(back.spec, back.params)
  _assert_bits(got, _evaluated(finished, finished.ranked[0]))
  text = 'Q 12+3=\nab'
  theirs = finished.job._model.tokenizer
  assert back.tokenizer.encode(text) == theirs.encode(text)
  assert back.tokenizer.render(text) == theirs.render(text)
  assert back.tokenizer.stop_ids == theirs.stop_ids


def test_as_a_base_it_answers_as_it_did_as_a_member(finished, tmp_path):
  folder = export_member(finished.folder, f'hf:{tmp_path / "out"}')
  again = _run(_config(str(folder), population__size=K), tmp_path / 'work')
  best = finished.ranked[0]
  assert _stored_rows(again, BASE) == _stored_rows(finished, best)
  assert _stored_rows(finished, BASE) != _stored_rows(finished, best)


def _assert_their_logits(folder, ids):
  """Transformers and ours, both in float32, agree to 1e-4."""
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
  back = load(str(folder))
  dtype = jax.tree.leaves(back.params)[0].dtype
  assert str(theirs.dtype) == f'torch.{_config_of(folder)["torch_dtype"]}'
  with torch.no_grad():
    expected = theirs.float()(torch.tensor([ids])).logits[0].numpy()
  assert dtype == np.float32
  tokens = jnp.asarray([ids], jnp.int32)
  positions = jnp.arange(len(ids))[None]
  got, _ = back.decoder.apply(
    back.params, tokens, positions, tokens >= 0, all_logits=True
  )
  difference = abs(np.asarray(got[0]) - expected).max()
  assert difference <= 1e-4 * abs(expected).max()
  assert np.ptp(expected, axis=0).max() > 0.1  # positions are not all alike


@pytest.mark.parametrize('name', ['finished', 'special'])
def test_transformers_reads_it(name, request, tmp_path):
  transformers = pytest.importorskip('transformers')
  done = request.getfixturevalue(name)
  folder = export_member(done.folder, f'hf:{tmp_path / "out"}')
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  ids = tokenizer('Q 12+3=', add_special_tokens=False)['input_ids']
  assert ids == done.job._model.tokenizer.encode('Q 12+3=')
  _assert_their_logits(folder, ids)
  # Generation ends where ours does.
  ends = transformers.GenerationConfig.from_pretrained(folder).eos_token_id
  assert tuple(ends) == done.job._model.tokenizer.stop_ids


@pytest.mark.parametrize(
  ('kind', 'options'),
  [
    ('gemma2', {'sliding_window': 3, 'query_pre_attn_scalar': 9}),
    ('qwen2', {'tie_word_embeddings': False}),
  ],
)
def test_other_families_go_there_and_back(kind, options, finished, tmp_path):
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  config = transformers.AutoConfig.for_model(
    kind, vocab_size=tiny_gguf.CONFIG.vocab_size, hidden_size=20,
    intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=6, max_position_embeddings=128, **options,
  )  # fmt: skip
  torch.manual_seed(0)
  base = transformers.AutoModelForCausalLM.from_config(config)
  with torch.no_grad():
    for tensor in base.parameters():
      tensor.add_(0.2 * torch.randn_like(tensor))
  base.save_pretrained(tmp_path / 'base')
  finished.job._model.tokenizer.save(tmp_path / 'base')
  done = _run(_config(str(tmp_path / 'base')), tmp_path / 'work')
  folder = export_member(done.folder, f'hf:{tmp_path / "out"}')
  names = lambda folder: sorted(_read(folder))
  assert names(folder) == names(tmp_path / 'base')
  assert _config_of(folder)['model_type'] == kind
  back = load(str(folder))
  assert back.decoder.config == done.job._model.decoder.config
  _assert_their_logits(folder, [5, 9, 200, 31, 7, 7, 80])
