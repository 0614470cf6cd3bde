# SPDX-License-Identifier: Apache-2.0
"""The ledger keeps every row, whatever is killed, filled up or damaged."""

import dataclasses
import json
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import time

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from same import assert_same

from thicket import blocks
from thicket import ledger as ledger_lib
from thicket.blocks import BASE, COLUMNS, WORDS, Block
from thicket.ledger import Ledger, LedgerError, RecipeMismatch, staging
from thicket.recipe import check_recipe, differences, recipe_hash

ROOT = pathlib.Path(__file__).parents[1]
RECIPE = {
  'task': {'name': 'arithmetic', 'hash': 'ab12', 'shots': 0},
  'population': {'sigma': [0.001], 'family': 'gaussian', 'mask': None},
}
# Empty, line ends, a NUL, a lone surrogate, a pair of them, an astral sign.
ODD = ('', '\n', 'a\r\n\0b', '\ud800', '\ud83d\ude00', '😀', 'é', '18', ' 18')
# Each save costs about 25 ms, and each example makes a few.
property_test = hypothesis.settings(
  max_examples=15, deadline=None, derandomize=True, database=None
)


def world(num_members=6, num_rows=5, num_draws=2, seed=0, texts=True):
  """A full block, the base and `num_members` members, from which tests cut."""
  rng = np.random.default_rng(seed)
  shape = (num_members + 1, num_rows, num_draws)
  reward = rng.random(shape, np.float32)
  reward.flat[:3] = np.nan, -0.0, np.inf
  words = sorted({*ODD, *map(str, range(20))})
  # Of these, some are strict answers only, some lenient ones only, some both.
  said = rng.integers(-1, len(words), (2, *shape), np.int32)
  used = [i for i in range(len(words)) if i in said]
  place = {-1: -1} | {word: i for i, word in enumerate(used)}
  answer, lenient_answer = np.vectorize(place.get, otypes=[np.int32])(said)
  size = int(np.prod(shape))
  return Block(
    members=np.arange(-1, num_members, dtype=np.int32),
    rows=np.arange(num_rows) * 10**10,
    draws=np.arange(num_draws, dtype=np.int32),
    seen=np.ones(shape, np.bool_),
    reward=reward,
    lenient=rng.random(shape, np.float32),
    correct=rng.random(shape) < 0.5,
    lenient_correct=rng.random(shape) < 0.5,
    answer=answer,
    lenient_answer=lenient_answer,
    num_tokens=rng.integers(0, 99, shape, np.int32),
    truncated=rng.random(shape) < 0.5,
    released=rng.random(shape, np.float32),
    answers=tuple(words[i] for i in used),
    texts=tuple(f'{ODD[i % len(ODD)]} {i}' for i in range(size))
    if texts
    else None,
  )


def cut(block, members, rows, draws, mask=None, seed=0):
  """The entries at three lists of positions, its answers numbered anew."""
  rng = np.random.default_rng(seed)
  grid = np.ix_(members, rows, draws)
  order = rng.permutation(len(block.answers))
  place = np.append(np.argsort(order), -1).astype(np.int32)
  texts = None
  if block.texts is not None:
    texts = np.array(block.texts, object).reshape(block.seen.shape)[grid]
    texts = tuple(texts.ravel())
  return Block(
    members=block.members[list(members)],
    rows=block.rows[list(rows)],
    draws=block.draws[list(draws)],
    seen=block.seen[grid] if mask is None else mask & block.seen[grid],
    answer=place[block.answer[grid]],
    lenient_answer=place[block.lenient_answer[grid]],
    answers=tuple(block.answers[i] for i in order),
    texts=texts,
    **{
      name: getattr(block, name)[grid] for name in COLUMNS.keys() - WORDS.keys()
    },
  )


def whole(block, members):
  """All rows of some members, by position."""
  return cut(block, members, range(len(block.rows)), range(len(block.draws)))


def canonical(*blocks):
  """What a ledger that nothing happens to gives back."""
  ledger = Ledger.in_memory(RECIPE)
  for block in blocks:
    ledger.append('train', block)
  return ledger.view('train')


def one_line(error):
  text = str(error.value)
  assert '\n' not in text
  return text


def ranges(folder, split='train'):
  return sorted(path for path in (folder / split).iterdir())


def child(call):
  """Starts a fresh interpreter that calls a function of this file."""
  here = pathlib.Path(__file__)
  code = (
    f'import sys; sys.path[:0] = [{str(ROOT)!r}, {str(here.parent)!r}]; '
    f'import {here.stem} as t; t.{call}'
  )
  return subprocess.Popen(
    [sys.executable, '-c', code],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


# What is stored comes back.


@pytest.mark.parametrize('texts', [True, False])
def test_round_trip_is_exact(tmp_path, texts):
  block = world(texts=texts)
  ledger = Ledger.open(tmp_path, RECIPE)
  ledger.append('train', cut(block, [3, 0, 1, 6, 2, 5, 4], range(5), [1, 0]))
  for again in (ledger, Ledger.open(tmp_path, RECIPE), Ledger.read(tmp_path)):
    assert_same(again.view('train'), block)
    assert again.splits == ('train',)
    assert again.recipe == RECIPE


def test_view_takes_ids_in_any_order_and_shows_what_is_missing(tmp_path):
  block = world()
  ledger = Ledger.open(tmp_path, RECIPE)
  ledger.append('train', whole(block, [0, 2]))
  view = ledger.view('train', [1, 7, BASE], [3 * 10**10, 5, 0], [1])
  np.testing.assert_array_equal(view.members, [BASE, 1, 7])
  np.testing.assert_array_equal(view.rows, [3 * 10**10, 5, 0])
  expected = np.array([[1, 0, 1], [1, 0, 1], [0, 0, 0]], np.bool_)[..., None]
  np.testing.assert_array_equal(view.seen, expected)
  np.testing.assert_array_equal(view.reward[1, 0], block.reward[2, 3, 1:])
  for name in ('answer', 'lenient_answer'):
    assert set(getattr(view, name)[~view.seen]) == {-1}
  assert np.isnan(view.released[~view.seen]).all()
  for name in COLUMNS.keys() - WORDS.keys() - {'released'}:
    assert not getattr(view, name)[~view.seen].any()
  said = np.append(view.answer, view.lenient_answer)
  assert view.answers == tuple(
    sorted({view.answers[i] for i in said if i >= 0})
  )
  np.testing.assert_array_equal(
    ledger.seen('train', [7, BASE], [0, 5], [0]),
    np.array([[0, 0], [1, 0]], np.bool_)[..., None],
  )


def test_empty_ledger_and_empty_block_give_empty_views(tmp_path):
  ledger = Ledger.open(tmp_path, RECIPE)
  assert ledger.view('train').seen.shape == (0, 0, 0)
  ledger.append('train', whole(world(), []))
  ledger.append('train', cut(world(), [1], [1], [0], np.zeros((1, 1, 1), bool)))
  assert ledger.splits == ()
  assert not ledger.seen('train', [0, 1], [0]).any()
  assert Ledger.read(tmp_path).view('train', [1], [0]).answers == ()


@property_test
@hypothesis.given(
  st.lists(st.text(st.characters(codec=None)), max_size=5),
  st.booleans(),
  st.sampled_from(['answer', 'lenient_answer']),
)
def test_any_string_survives(words, as_texts, field):
  block = whole(world(1, max(len(words), 1), 1, texts=False), [1])
  ids = np.arange(len(block.rows), dtype=np.int32).reshape(1, -1, 1)
  ids = np.where(ids < len(words), ids, -1).astype(np.int32)
  none = np.full(ids.shape, -1, np.int32)
  answers = {'answer': none, 'lenient_answer': none} | {field: ids}
  block = dataclasses.replace(block, **answers, answers=tuple(words))
  if as_texts and words:
    block = dataclasses.replace(block, texts=tuple(words))
  folder = fresh_folder()
  Ledger.open(folder, RECIPE).append('train', block)
  view = Ledger.read(folder).view('train')
  found = getattr(view, field)
  assert [view.answers[i] for i in found.flat if i >= 0] == words
  assert view.answers == tuple(sorted(set(words)))
  if as_texts and any(words):
    assert view.texts == tuple(words)
  else:
    assert view.texts is None


def test_strict_and_lenient_answers_share_one_table(tmp_path):
  block = dataclasses.replace(
    whole(world(3, 1, 1), [1, 2, 3]),
    answer=np.array([1, -1, 4], np.int32).reshape(3, 1, 1),
    lenient_answer=np.array([2, 3, 4], np.int32).reshape(3, 1, 1),
    # '18' twice under two numbers, and one word that nobody says.
    answers=('unsaid', '18', '7', '18', '9'),
  )
  Ledger.open(tmp_path, RECIPE).append('train', block)
  # A range of its own, in which '18' is a lenient answer first.
  Ledger.open(tmp_path / 'two', RECIPE).append('train', whole(block, [1]))
  Ledger.open(tmp_path / 'two', RECIPE).append('train', whole(block, [0, 2]))
  for folder in (tmp_path, tmp_path / 'two'):
    ledger = Ledger.read(folder)
    view = ledger.view('train')
    assert view.answers == ('18', '7', '9')
    assert view.answer.ravel().tolist() == [0, -1, 2]
    assert view.lenient_answer.ravel().tolist() == [1, 0, 2]
    # What only the rows left out say goes; what one column says stays.
    view = ledger.view('train', [1])
    assert view.answers == ('18',)
    assert (view.answer.item(), view.lenient_answer.item()) == (-1, 0)
    view = ledger.view('train', [0])
    assert view.answers == ('18', '7')
    assert (view.answer.item(), view.lenient_answer.item()) == (0, 1)


FOLDERS = []


@pytest.fixture(autouse=True)
def _property_folders(tmp_path):
  # Hypothesis runs many examples in one test; each needs a folder of its own.
  FOLDERS[:] = [tmp_path / 'examples']


def fresh_folder():
  FOLDERS.append(FOLDERS[0] / str(len(FOLDERS)))
  return FOLDERS[-1]


@st.composite
def groupings(draw, shape):
  """Overlapping, partly masked sub-grids that together cover everything."""
  pieces = []
  for _ in range(draw(st.integers(0, 3))):
    picks = [
      draw(st.lists(st.integers(0, n - 1), min_size=1, unique=True))
      for n in shape
    ]
    mask_seed = draw(st.integers(0, 99))
    pieces.append((picks, mask_seed))
  rest = [range(n) for n in shape]
  pieces.insert(draw(st.integers(0, len(pieces))), (rest, None))
  return pieces


@property_test
@hypothesis.given(groupings((4, 3, 2)), st.booleans())
def test_grouping_and_order_leave_no_trace(pieces, texts):
  block = world(3, 3, 2, texts=texts)
  disk, memory = Ledger.open(fresh_folder(), RECIPE), Ledger.in_memory(RECIPE)
  for i, (picks, mask_seed) in enumerate(pieces):
    mask = None
    if mask_seed is not None:
      rng = np.random.default_rng(mask_seed)
      mask = rng.random([len(pick) for pick in picks]) < 0.6
    piece = cut(block, *picks, mask, seed=i)
    if texts and mask_seed is not None and mask_seed % 2:
      piece = dataclasses.replace(piece, texts=None)
    for ledger in (disk, memory):
      ledger.append('train', piece)
  expected = Ledger.in_memory(RECIPE)
  expected.append('train', block)
  assert_same(expected.view('train'), block)
  again = Ledger.read(disk.folder)
  subset = ([2, BASE], [10**10])
  for ledger in (disk, memory, again):
    assert_same(ledger.view('train'), expected.view('train'))
    assert_same(ledger.view('train', *subset), expected.view('train', *subset))


def test_splits_do_not_mix(tmp_path):
  ledger = Ledger.open(tmp_path, RECIPE)
  ledger.append('val', whole(world(seed=1), [1]))
  ledger.append('train', whole(world(seed=2), [1]))
  assert ledger.splits == ('train', 'val')
  assert_same(
    Ledger.read(tmp_path).view('val'),
    ledger.view('val'),
  )
  assert (
    ledger.view('val').reward[0, 0, 0] != ledger.view('train').reward[0, 0, 0]
  )


# Rows once judged do not change.


def test_appending_again_writes_nothing(tmp_path):
  block = world()
  ledger = Ledger.open(tmp_path, RECIPE)
  ledger.append('train', whole(block, [1, 2]))
  before = ranges(tmp_path)
  ledger.append('train', whole(block, [2, 1]))
  ledger.append('train', cut(block, [2], [0, 3], [1], seed=5))
  Ledger.open(tmp_path, RECIPE).append('train', whole(block, [1]))
  assert ranges(tmp_path) == before
  ledger.append('train', whole(block, [2, 3]))
  _, added = ranges(tmp_path)
  assert added.name.startswith('000002-000002-')


def test_ctrl_c_waits_for_the_save(tmp_path, monkeypatch):
  block, save = world(), ledger_lib._save

  def interrupted(path, part):
    # Python runs the handler at once: without the wait, nothing is saved.
    signal.raise_signal(signal.SIGINT)
    save(path, part)

  monkeypatch.setattr(ledger_lib, '_save', interrupted)
  usual = signal.getsignal(signal.SIGINT)
  ledger = Ledger.open(tmp_path, RECIPE)
  with pytest.raises(KeyboardInterrupt):
    ledger.append('train', whole(block, [1, 2]))
  assert signal.getsignal(signal.SIGINT) is usual
  finished = ranges(tmp_path)
  assert len(finished) == 1
  for found in (ledger, Ledger.read(tmp_path)):
    assert_same(found.view('train'), canonical(whole(block, [1, 2])))
  ledger.append('train', whole(block, [1, 2]))
  assert ranges(tmp_path) == finished


def test_a_second_ctrl_c_does_not_wait():
  reached = []

  @ledger_lib.uninterrupted()
  def twice():
    signal.raise_signal(signal.SIGINT)
    reached.append('first')
    signal.raise_signal(signal.SIGINT)
    reached.append('second')

  with pytest.raises(KeyboardInterrupt):
    twice()
  assert reached == ['first']


def test_ctrl_c_waits_for_the_outer_of_two():
  reached = []

  @ledger_lib.uninterrupted()
  def inner():
    signal.raise_signal(signal.SIGINT)
    reached.append('inner')

  @ledger_lib.uninterrupted()
  def outer():
    inner()
    reached.append('outer')

  with pytest.raises(KeyboardInterrupt):
    outer()
  assert reached == ['inner', 'outer']


def test_texts_may_be_added_later(tmp_path):
  block = world()
  ledger = Ledger.open(tmp_path, RECIPE)
  ledger.append('train', dataclasses.replace(block, texts=None))
  assert ledger.view('train').texts is None
  ledger.append('train', block)
  ledger.append('train', dataclasses.replace(block, texts=None))
  assert_same(Ledger.read(tmp_path).view('train'), block)


# Ledgers of before `released` was kept.


def without_released(block):
  """The same, judged by a version that had no such rule."""
  return dataclasses.replace(block, released=np.full_like(block.reward, np.nan))


def of_before(monkeypatch):
  """Has ranges written as they were then, down to their checksums."""

  def packed(part):
    tree = blocks.pack(part)
    del tree['released'], tree['digest']
    return tree | {'digest': np.frombuffer(blocks._digest(tree), np.uint8)}

  monkeypatch.setattr('thicket.ledger.pack', packed)


def test_older_ranges_are_read_resumed_and_named_as_ever(tmp_path, monkeypatch):
  block = world()
  with monkeypatch.context() as patch:
    of_before(patch)
    old = Ledger.open(tmp_path, RECIPE)
    old.append('train', without_released(whole(block, [0, 1, 2])))
  (path,) = ranges(tmp_path)
  assert 'released' not in staging.restore(ledger_lib._checkpointer(), path)
  # Names of ranges without the new column are those of then.
  part = blocks.from_block(without_released(whole(block, [0, 1, 2])))
  tree = dict(zip(blocks.KEYS, part.keys, strict=True))
  tree |= {'seen': part.seen, 'text': part.columns['text'] >= 0}
  assert path.name.endswith(blocks._digest(tree).hex()[:12])

  new = Ledger.open(tmp_path, RECIPE)
  new.append('train', whole(block, [3, 4, 5, 6]))
  view = Ledger.read(tmp_path).view('train')
  assert view.seen.all()
  assert np.isnan(view.released[:3]).all()
  np.testing.assert_array_equal(view.released[3:], block.released[3:])
  assert_same(
    dataclasses.replace(view, released=block.released), block
  )  # nothing else is lost


def test_a_range_that_lost_the_column_is_damaged(tmp_path, monkeypatch):
  def packed(part):
    tree = blocks.pack(part)
    del tree['released']
    return tree

  with monkeypatch.context() as patch:
    patch.setattr('thicket.ledger.pack', packed)
    Ledger.open(tmp_path, RECIPE).append('train', world())
  with pytest.raises(LedgerError, match='its checksum is wrong'):
    Ledger.read(tmp_path).view('train')


@pytest.mark.parametrize('first', ['old', 'new'])
def test_what_the_released_rule_says_may_come_later(tmp_path, first):
  block = world()
  old = without_released(block)
  ledger = Ledger.open(tmp_path, RECIPE)
  for one in (old, block) if first == 'old' else (block, old):
    ledger.append('train', one)
  assert len(ranges(tmp_path)) == (2 if first == 'old' else 1)
  assert_same(ledger.view('train'), block)
  assert_same(Ledger.read(tmp_path).view('train'), block)


@pytest.mark.parametrize('folder', [True, False])
@pytest.mark.parametrize(
  ('field', 'value', 'said'),
  [
    ('reward', np.float32(0.25), 'not 0.25'),
    ('lenient', np.float32(np.nan), 'not nan'),
    ('correct', np.bool_(True), 'not True'),
    ('lenient_correct', np.bool_(False), 'not False'),
    ('released', np.float32(2), 'not 2.0'),
    ('num_tokens', np.int32(1000), 'not 1000'),
    ('truncated', np.bool_(False), 'not False'),
    ('answer', np.int32(0), "not ''"),
    ('answer', np.int32(-1), 'not None'),
    ('lenient_answer', np.int32(0), "not ''"),
    ('lenient_answer', np.int32(-1), 'not None'),
    ('texts', 'other', "not 'other'"),
  ],
)
def test_another_value_is_refused_by_its_key(
  tmp_path, folder, field, value, said
):
  block = world()
  ledger = Ledger.in_memory(RECIPE)
  if folder:
    ledger = Ledger.open(tmp_path, RECIPE)
  ledger.append('train', block)
  at = (5, 2, 1)
  if field == 'texts':
    changed = list(block.texts)
    changed[np.ravel_multi_index(at, block.seen.shape)] = value
    changed = tuple(changed)
  else:
    changed = getattr(block, field).copy()
    assert changed[at] != value
    changed[at] = value
  with pytest.raises(LedgerError) as error:
    ledger.append('train', dataclasses.replace(block, **{field: changed}))
  text = one_line(error)
  key = 'split train, member 4, row 20000000000, draw 1'
  column = 'text' if field == 'texts' else field
  assert f'{key}: {column} is held as ' in text
  assert said in text
  assert (str(tmp_path) if folder else 'in memory') in text
  assert_same(ledger.view('train'), block)


def test_two_ranges_that_disagree_are_refused_when_read(tmp_path):
  block = world()
  Ledger.open(tmp_path / 'a', RECIPE).append('train', whole(block, [1, 2]))
  other = dataclasses.replace(block, reward=block.reward + 1)
  Ledger.open(tmp_path / 'b', RECIPE).append('train', whole(other, [2, 3]))
  (copied,) = ranges(tmp_path / 'b')
  shutil.copytree(copied, tmp_path / 'a' / 'train' / copied.name)
  with pytest.raises(LedgerError, match='member 1, row 0, draw 0: reward'):
    Ledger.read(tmp_path / 'a').view('train')


def test_caller_may_reuse_its_arrays(tmp_path):
  block = world()
  ledger = Ledger.open(tmp_path, RECIPE)
  mine = whole(block, range(7))
  ledger.append('train', mine)
  mine.reward[:] = 0
  mine.members[:] = 0
  ledger.view('train').reward[:] = 0
  assert_same(ledger.view('train'), block)


# What does not fit is refused at the door.


@pytest.mark.parametrize(
  ('change', 'said'),
  [
    ({'members': np.array([0, -2])}, 'members: -2'),
    ({'members': np.array([3, 3])}, 'members: 3 occurs twice'),
    ({'members': np.array([0, 2**31])}, 'members: values of type int64'),
    ({'rows': np.array([0.5])}, 'rows: values of type float64'),
    ({'draws': np.zeros((1, 1), np.int32)}, r'draws: shape \(1, 1\)'),
    ({'reward': np.zeros((2, 1), np.float32)}, r'reward: shape \(2, 1\)'),
    ({'answer': np.full((2, 1, 1), 2)}, 'answer: indices 2 to 2'),
    ({'answer': np.full((2, 1, 1), -2)}, '^answer: indices -2 to -2'),
    ({'lenient_answer': np.full((2, 1, 1), 2)}, 'lenient_answer: indices 2'),
    ({'lenient_answer': np.full((2, 1, 1), -2)}, 'lenient_answer: indices -2'),
    ({'lenient_correct': np.zeros(2, bool)}, r'lenient_correct: shape \(2,\)'),
    ({'texts': ('a',)}, r'texts: shape \(1,\), needs \(2,\)'),
  ],
)
def test_block_that_does_not_fit_is_refused(change, said):
  block = dataclasses.replace(
    cut(world(texts=False), [1, 2], [0], [0]),
    answer=np.zeros((2, 1, 1), np.int32),
    lenient_answer=np.ones((2, 1, 1), np.int32),
    answers=('a', 'b'),
  )
  ledger = Ledger.in_memory(RECIPE)
  ledger.append('train', block)
  with pytest.raises(LedgerError, match=said) as error:
    ledger.append('train', dataclasses.replace(block, **change))
  one_line(error)


def test_split_has_to_name_a_folder():
  for split in ('', '../x', 'a/b', '.hidden', 'a b'):
    with pytest.raises(LedgerError, match='split'):
      Ledger.in_memory(RECIPE).view(split)


def test_ids_asked_twice_are_refused():
  with pytest.raises(LedgerError, match='rows: 4 occurs twice'):
    Ledger.in_memory(RECIPE).seen('train', [0], [4, 4])


def test_read_does_not_append_nor_clean(tmp_path):
  Ledger.open(tmp_path, RECIPE).append('train', whole(world(), [1]))
  (path,) = ranges(tmp_path)
  rubbish = path.with_name(path.name + '.orbax-checkpoint-tmp')
  shutil.copytree(path, rubbish)
  (tmp_path / 'train' / 'probe.tmp').touch()
  (tmp_path / 'train' / 'notes.txt').touch()
  reader = Ledger.read(tmp_path)
  assert reader.view('train').seen.all()
  assert len(ranges(tmp_path)) == 4
  with pytest.raises(LedgerError, match=r'use Ledger\.open'):
    reader.append('train', whole(world(), [2]))
  Ledger.open(tmp_path, RECIPE)
  assert [p.name for p in ranges(tmp_path)] == [path.name, 'notes.txt']


# Recipes.


def test_recipe_hash_is_of_the_content():
  assert recipe_hash({'a': 1, 'b': [1.0, None]}) == recipe_hash(
    {'b': (1.0, None), 'a': 1}
  )
  assert recipe_hash({}) == '44136fa355b3'  # the SHA-256 of '{}'
  hashes = {recipe_hash({'a': v}) for v in (1, 1.0, True, '1', None, [1], {})}
  assert len(hashes) == 7


def test_differences_name_the_fields():
  stored = {'population': {'sigma': [0.001], 'rank': 1}, 'x': {'y': {}}}
  asked = {'population': {'sigma': [0.002], 'rank': 1.0}, 'x': 'two\nlines'}
  assert differences(stored, asked) == [
    'population.rank: stored 1, asked 1.0',
    'population.sigma: stored [0.001], asked [0.002]',
    "x: stored nothing, asked 'two\\nlines'",
    'x.y: stored {}, asked nothing',
  ]
  assert differences(stored, json.loads(json.dumps(stored))) == []
  (line,) = differences({'a': 'x' * 1000}, {'a': None})
  assert len(line) < 120


@pytest.mark.parametrize(
  ('recipe', 'said'),
  [
    ({'a': {'b': float('nan')}}, 'a.b: nan is not finite'),
    ({'a': [{'b': {1}}]}, r'a.b: \{1\} is a set'),
    ({'a': np.float64(1)}, 'a: .* is a float64'),
    ({'a': {3: 1}}, 'a: key 3 is not a string'),
    ([], 'recipe: '),
  ],
)
def test_recipe_holds_plain_values(recipe, said):
  for use in (check_recipe, recipe_hash, Ledger.in_memory):
    with pytest.raises(ValueError, match=said) as error:
      use(recipe)
    one_line(error)


def test_mismatch_names_the_field_and_touches_nothing(tmp_path):
  Ledger.open(tmp_path, RECIPE).append('train', whole(world(), [1]))
  (path,) = ranges(tmp_path)
  shutil.copytree(path, path.with_name(path.name + '.orbax-checkpoint-tmp'))
  asked = check_recipe(RECIPE)
  asked['population']['sigma'] = [0.002]
  with pytest.raises(RecipeMismatch) as error:
    Ledger.open(tmp_path, asked)
  text = one_line(error)
  assert str(tmp_path) in text
  assert 'population.sigma: stored [0.001], asked [0.002]' in text
  assert 'another --workdir or restore the field' in text
  assert len(ranges(tmp_path)) == 2
  many = {f'field{i}': i for i in range(9)}
  with pytest.raises(RecipeMismatch, match='and 7 more'):
    Ledger.open(tmp_path, asked | many)


def test_missing_or_broken_recipe_is_named(tmp_path):
  with pytest.raises(LedgerError, match='no ledger here'):
    Ledger.read(tmp_path)
  Ledger.open(tmp_path, RECIPE).append('train', whole(world(), [1]))
  (tmp_path / 'recipe.json').write_text('{"a": ')
  for use in (Ledger.read, lambda folder: Ledger.open(folder, RECIPE)):
    with pytest.raises(LedgerError, match='not a recipe') as error:
      use(tmp_path)
    one_line(error)
  (tmp_path / 'recipe.json').unlink()
  with pytest.raises(LedgerError, match='restore that file'):
    Ledger.open(tmp_path, RECIPE)


# Damage.


def damage_files(folder):
  """Run in a child, because Orbax's threads print tracebacks when it reads."""
  folder = pathlib.Path(folder)
  block = world(15, 64)  # large enough for data files beside the index
  Ledger.open(folder / 'good', RECIPE).append('train', block)
  (path,) = ranges(folder / 'good')
  names = [p.relative_to(path) for p in path.rglob('*') if p.is_file()]
  noticed = set()
  for i, name in enumerate(names):
    for how in ('delete', 'halve', 'flip'):
      copy = folder / f'{i}-{how}'
      shutil.copytree(folder / 'good', copy)
      damaged = copy / 'train' / path.name
      data = bytearray((damaged / name).read_bytes())
      if how == 'delete':
        (damaged / name).unlink()
      elif how == 'halve':
        (damaged / name).write_bytes(data[: len(data) // 2])
      else:
        data[len(data) // 2] ^= 1
        (damaged / name).write_bytes(data)
      try:
        assert_same(Ledger.read(copy).view('train'), block)
        said = ''
      except LedgerError as error:
        said = str(error)
      if said:
        noticed.add((name, how))
        assert '\n' not in said
        assert f'{damaged}: this range is damaged' in said
        assert 'delete the folder to have it recomputed' in said
        shutil.rmtree(damaged)
        again = Ledger.open(copy, RECIPE)
        again.append('train', block)
        assert_same(Ledger.read(copy).view('train'), block)
  # Some of Orbax's files are not needed; these are the tree and the index.
  for name in ('_METADATA', 'manifest.ocdbt'):
    for how in ('delete', 'halve', 'flip'):
      assert (pathlib.Path(name), how) in noticed
  assert len({name for name, how in noticed if how == 'flip'}) >= 4


def test_any_damaged_file_is_noticed(tmp_path):
  process = child(f'damage_files({str(tmp_path)!r})')
  _, err = process.communicate()
  assert process.returncode == 0, err


def test_unreadable_is_not_called_damaged(tmp_path, monkeypatch):
  Ledger.open(tmp_path, RECIPE).append('train', whole(world(), [1]))

  def refuse(tree):
    raise ValueError('PERMISSION_DENIED: x [os_error_code=13]') from (
      PermissionError(13, os.strerror(13))
    )

  monkeypatch.setattr(ledger_lib, 'unpack', refuse)
  with pytest.raises(LedgerError, match='cannot read') as error:
    Ledger.read(tmp_path).view('train')
  assert os.strerror(13) in one_line(error)
  assert 'delete' not in one_line(error)


# Full disks and other refusals.


@pytest.mark.parametrize(
  ('raised', 'said'),
  [
    (OSError(28, os.strerror(28)), os.strerror(28)),
    (ExceptionGroup('two', [OSError(27, os.strerror(27))]), os.strerror(27)),
    (RuntimeError('first line\nsecond'), 'first line'),
  ],
)
def test_failed_save_keeps_what_is_finished(
  tmp_path, monkeypatch, raised, said
):
  block = world()
  ledger = Ledger.open(tmp_path, RECIPE)
  ledger.append('train', whole(block, [1]))

  class Refuses:
    def save(self, path, args):
      (path.parent / (path.name + '.orbax-checkpoint-tmp')).mkdir()
      raise raised

  with monkeypatch.context() as patch:
    patch.setattr(ledger_lib, '_checkpointer', Refuses)
    with pytest.raises(LedgerError) as error:
      ledger.append('train', whole(block, [2]))
  text = one_line(error)
  assert str(tmp_path / 'train') in text
  assert f'({said})' in text
  assert 'finished ranges are safe' in text
  assert 'the same command resumes' in text
  assert len(ranges(tmp_path)) == 1
  ledger.append('train', whole(block, [2]))
  expected = canonical(whole(block, [1, 2]))
  assert_same(Ledger.read(tmp_path).view('train'), expected)


def test_range_committed_behind_our_back_is_taken_over(tmp_path):
  block = world()
  ledger = Ledger.open(tmp_path, RECIPE)
  assert not ledger.seen('train', [0], [0]).any()
  Ledger.open(tmp_path, RECIPE).append('train', whole(block, [1, 2]))
  ledger.append('train', whole(block, [1, 2]))
  assert len(ranges(tmp_path)) == 1
  assert_same(ledger.view('train'), canonical(whole(block, [1, 2])))


def test_a_file_in_the_way_is_named(tmp_path):
  (tmp_path / 'file').touch()
  with pytest.raises(LedgerError, match='file: cannot save'):
    Ledger.open(tmp_path / 'file', RECIPE)
  with pytest.raises(LedgerError, match='cannot save'):
    Ledger.open(tmp_path / 'file' / 'below', RECIPE)
  ledger = Ledger.open(tmp_path, RECIPE)
  (tmp_path / 'train').touch()
  with pytest.raises(LedgerError) as error:
    ledger.append('train', whole(world(), [1]))
  one_line(error)


def fill_the_disk(folder):
  """Run in a child: appends under limits on the size of any one file."""
  assert signal.getsignal(signal.SIGXFSZ) == signal.SIG_IGN
  free = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)

  def attempt(limit, action):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
      action()
      said = 'no error'
    except LedgerError as error:
      said = str(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, free)
    print(json.dumps(said), flush=True)

  block = world(30, 60)
  attempt(0, lambda: Ledger.open(folder, RECIPE))
  ledger = Ledger.open(folder, RECIPE)
  ledger.append('train', whole(block, [1]))
  for limit in (0, 100, 5_000, 50_000):
    attempt(limit, lambda: ledger.append('train', block))
  print('quiet until here', file=sys.stderr, flush=True)
  # Without the probe, Orbax itself meets the limit, and is not quiet.
  ledger_lib._probe = lambda folder, num_bytes: None
  for limit in (0, 100, 5_000):
    attempt(limit, lambda: ledger.append('train', block))
  ledger.append('train', block)


def test_full_disk_is_one_line_and_loses_nothing(tmp_path):
  process = child(f'fill_the_disk({str(tmp_path)!r})')
  out, err = process.communicate()
  assert process.returncode == 0, err
  assert err.startswith('quiet until here'), err
  said = [json.loads(line) for line in out.splitlines()]
  assert len(said) == 8
  for text in said:
    assert '\n' not in text
    assert str(tmp_path) in text
    assert f'cannot save ({os.strerror(27)})' in text
    assert 'finished ranges are safe' in text
  assert_same(Ledger.read(tmp_path).view('train'), world(30, 60))
  assert len(ranges(tmp_path)) == 2


# Kills.


def plan(num_blocks):
  """Blocks of two members each, the base too, in two runs of rows."""
  block = world(num_blocks - 1, 16, 1)
  for i in range(0, num_blocks, 2):
    members = range(i, min(i + 2, num_blocks))
    for rows in (range(8), range(8, 16)):
      yield cut(block, members, rows, [0], seed=i)


def append_all(folder, num_blocks):
  """Run in a child: appends what is missing, printing when each is done."""
  ledger = Ledger.open(folder, RECIPE)
  print('ready', flush=True)
  for i, block in enumerate(plan(num_blocks)):
    if not ledger.seen('train', block.members, block.rows).all():
      ledger.append('train', block)
      print(i, flush=True)


def kill_and_resume(folder, num_blocks, num_kills):
  """Kills writers at random, then finishes; returns how many died in a save."""
  rng = np.random.default_rng(0)
  blocks = list(plan(num_blocks))
  finished, num_in_save = set(), 0
  for attempt in range(num_kills):
    process = child(f'append_all({str(folder)!r}, {num_blocks})')
    assert process.stdout.readline() == 'ready\n', process.stderr.read()
    split = folder / 'train'
    if attempt % 2:
      time.sleep(rng.uniform(0, 0.15))
    else:  # wait for a save to be under way, then for a part of its 25 ms
      while not (split.exists() and any(split.glob('*orbax-checkpoint-tmp'))):
        pass
      time.sleep(rng.uniform(0, 0.01))
    process.send_signal(signal.SIGKILL)
    lines = process.communicate()[0].splitlines()
    assert process.returncode == -signal.SIGKILL
    finished |= {int(line) for line in lines}
    # A line cut short by the kill would read as another block.
    assert all(0 <= i < len(blocks) for i in finished)
    num_in_save += bool(split.exists() and list(split.glob('*tmp')))
    for ledger in (Ledger.read(folder), Ledger.open(folder, RECIPE)):
      for i in finished:
        block = blocks[i]
        assert ledger.seen('train', block.members, block.rows).all(), i
    assert not (split.exists() and list(split.glob('*tmp')))
  assert len(finished) < len(blocks), 'raise num_blocks: nothing was left to do'
  append_all(folder, num_blocks)
  assert_same(Ledger.read(folder).view('train'), canonical(*blocks))
  assert_same(canonical(*blocks), world(num_blocks - 1, 16, 1))
  return num_in_save


def test_killed_writers_lose_nothing_they_finished(tmp_path):
  assert kill_and_resume(tmp_path, num_blocks=80, num_kills=6) >= 1


@pytest.mark.slow
def test_many_killed_writers_lose_nothing_they_finished(tmp_path):
  assert kill_and_resume(tmp_path, num_blocks=400, num_kills=30) >= 5


@pytest.mark.slow
def test_many_ranges_agree_with_one(tmp_path):
  block = world(299, 20, 1)
  ledger = Ledger.open(tmp_path, RECIPE)
  for i in np.random.default_rng(0).permutation(100):
    ledger.append('train', whole(block, range(3 * i, 3 * i + 3)))
  assert_same(Ledger.read(tmp_path).view('train'), block)
