# SPDX-License-Identifier: Apache-2.0
"""Splits: disjoint, nested, and an error rather than a row used twice."""

import dataclasses
import hashlib
import json
import sys

import hypothesis
import pytest
from hypothesis import strategies as st

from thicket import data, tasks
from thicket.tasks import base


def _gsm8k_rows(name, count, start=0):
  return [
    {
      'question': f'{name} has {i} pens and buys 2 more. How many are there?',
      'answer': f'{i}+2=<<{i}+2={i + 2}>>{i + 2} pens.\n#### {i + 2:,}',
    }
    for i in range(start, start + count)
  ]


def _write(path, rows):
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return path


def _load(task, sizes, **kwargs):
  names = ('num_selection', 'num_validation', 'num_test')
  kwargs = {'seed': 0, **dict(zip(names, sizes, strict=True)), **kwargs}
  return data.load(task, **kwargs)


@pytest.fixture
def gsm8k():
  return tasks.make('gsm8k')


@pytest.fixture
def folder(tmp_path):
  _write(tmp_path / 'train.jsonl', _gsm8k_rows('Ana', 40))
  _write(tmp_path / 'test.jsonl', _gsm8k_rows('Ben', 20))
  return tmp_path


SIZES = st.tuples(st.integers(1, 90), st.integers(0, 90), st.integers(1, 90))


@hypothesis.given(SIZES, SIZES, st.integers(0, 2**40))
@hypothesis.settings(deadline=None, max_examples=12)
def test_generated_splits_are_disjoint_and_nested(sizes, others, seed):
  task = tasks.make('arithmetic')
  one = _load(task, sizes, seed=seed)
  two = _load(task, others, seed=seed)
  for split in ('selection', 'validation', 'test'):
    a, b = getattr(one, split), getattr(two, split)
    shared = min(len(a), len(b))
    assert a[:shared] == b[:shared]
  parts = (one.selection, one.validation, one.test)
  assert tuple(map(len, parts)) == sizes
  rows = sum(parts, ())
  assert len({row.row_id for row in rows}) == len(rows)
  assert len({row.question for row in rows}) == len(rows)


def test_no_seed_selects_what_another_tests_on():
  task = tasks.make('arithmetic', operators='*')
  tested, chosen = set(), set()
  for seed in range(8):
    splits = _load(task, (60, 60, 100), seed=seed)
    tested |= set(splits.test)
    chosen |= set(splits.selection + splits.validation)
  assert not tested & chosen
  # Other seeds do draw other rows.
  assert len(tested) > 200
  assert len(chosen) > 200


def test_generated_splits_mix_the_operators():
  rows = _load(tasks.make('arithmetic'), (400, 0, 400))
  for part in (rows.selection, rows.test):
    share = [sum(sign in r.question for r in part) / 400 for sign in '+-*']
    assert share == pytest.approx([0.428, 0.403, 0.169], abs=0.08)


def test_too_few_generated_rows_is_an_error():
  task = tasks.make('arithmetic', operators='*')
  with pytest.raises(base.TaskError, match='num_test=600, but there are 227'):
    _load(task, (1, 0, 600))
  with pytest.raises(base.TaskError, match='need 600 rows, there are 257'):
    _load(task, (300, 300, 1))


@pytest.mark.parametrize(
  ('sizes', 'seed', 'message'),
  [
    ((0, 0, 1), 0, 'num_selection=0: must be at least 1'),
    ((1, -1, 1), 0, 'num_validation=-1: must be at least 0'),
    ((1, 0, 0), 0, 'num_test=0: must be at least 1'),
    ((1, 0, 1), -3, 'seed=-3: must be at least 0'),
  ],
)
def test_counts_are_checked(sizes, seed, message):
  with pytest.raises(base.TaskError, match=message):
    _load(tasks.make('arithmetic'), sizes, seed=seed)


def test_two_files_give_train_to_choose_on_and_test_to_test_on(gsm8k, folder):
  splits = _load(gsm8k, (25, 15, 20), path=folder)
  chosen = {row.question for row in splits.selection + splits.validation}
  assert chosen == {row['question'] for row in _gsm8k_rows('Ana', 40)}
  assert {row.question for row in splits.test} == {
    row['question'] for row in _gsm8k_rows('Ben', 20)
  }
  smaller = _load(gsm8k, (5, 15, 3), path=str(folder))
  assert smaller.selection == splits.selection[:5]
  assert smaller.validation == splits.validation
  assert smaller.test == splits.test[:3]
  for name in ('train', 'test'):
    (folder / f'{name}.jsonl').rename(folder / f'gsm8k_{name}.jsonl')
  assert _load(gsm8k, (25, 15, 20), path=folder) == splits


def test_rows_are_known_by_question_not_by_place(gsm8k, folder):
  before = _load(gsm8k, (10, 5, 5), path=folder)
  _write(folder / 'train.jsonl', reversed(_gsm8k_rows('Ana', 40)))
  after = _load(gsm8k, (10, 5, 5), path=folder)
  assert after == before
  assert after.source == before.source != ''


def test_one_file_is_cut_by_question(gsm8k, tmp_path):
  path = _write(tmp_path / 'all.jsonl', _gsm8k_rows('Ana', 60))
  splits = _load(gsm8k, (10, 5, 15), path=path)
  rows = splits.selection + splits.validation + splits.test
  assert len({row.question for row in rows}) == 30
  _write(path, _gsm8k_rows('Ana', 90))
  grown = _load(gsm8k, (10, 5, 15), path=path, seed=1)
  assert not set(grown.test) & set(splits.selection + splits.validation)


@hypothesis.given(
  sizes=st.tuples(st.integers(1, 12), st.integers(0, 12), st.integers(1, 12)),
  seed=st.integers(0, 2**40),
  num_new=st.integers(1, 60),
)
@hypothesis.settings(deadline=None, max_examples=30)
def test_rows_that_are_added_move_no_other(sizes, seed, num_new):
  rows = tuple(base.Example(i, f'Row {i}?', str(i)) for i in range(200))
  _splits = lambda rows: _load(_Listed(rows), sizes, seed=seed)
  before, after = (
    {
      row.question: split
      for split in data.SPLITS
      for row in getattr(_splits(some), split)
    }
    for some in (rows[: 200 - num_new], rows)
  )
  # It may be left out, but then for a new row.
  old = {row.question for row in rows[: 200 - num_new]}
  assert all(after.get(x, split) == split for x, split in before.items())
  for split in data.SPLITS:
    came = {x for x, where in after.items() if where == split} - set(before)
    gone = {x for x, where in before.items() if where == split} - set(after)
    assert len(came) == len(gone)
    assert not came & old


def test_too_few_rows_of_a_file_is_an_error(gsm8k, folder):
  with pytest.raises(
    base.TaskError,
    match='num_selection=30 and num_validation=11 need 41 rows, there are 40',
  ):
    _load(gsm8k, (30, 11, 1), path=folder)
  with pytest.raises(base.TaskError, match='num_test=21, but there are 20'):
    _load(gsm8k, (1, 0, 21), path=folder)


def test_repeated_questions_are_dropped_and_never_from_test(
  gsm8k, folder, caplog
):
  copies = _gsm8k_rows('Ben', 3)
  copies[0]['question'] = '  ' + copies[0]['question'].upper()
  train = _gsm8k_rows('Ana', 10)
  _write(folder / 'train.jsonl', train + copies + train[:4])
  splits = _load(gsm8k, (6, 4, 20), path=folder)
  assert {row.question for row in splits.selection + splits.validation} == {
    row['question'] for row in train
  }
  assert 'dropped 3 training rows whose question is in test' in caplog.text
  assert 'dropped 4 rows that repeat an earlier question' in caplog.text
  with pytest.raises(base.TaskError, match='need 11 rows, there are 10'):
    _load(gsm8k, (11, 0, 20), path=folder)


def test_rows_are_one_row_if_the_task_says_so(tmp_path):
  task = tasks.make('uspto50k')
  atoms = ['C', 'N', 'O', 'S', 'CC', 'CN', 'CO', 'CS', 'CCC', 'CCN']
  rings = ['C1CCCC1', 'c1cccc1']  # other atoms, in the same letters
  _write(
    tmp_path / 'rows.jsonl',
    [
      {'class': 1, 'rxn_smiles': f'{ring}.{atom}>>{ring}{atom}'}
      for ring in rings
      for atom in atoms
    ],
  )
  kwargs = {'path': tmp_path / 'rows.jsonl'}
  with pytest.raises(base.TaskError, match='there are') as caught:
    _load(task, (21, 0, 1), **kwargs)
  train = int(str(caught.value).split('there are ')[1].split(';')[0])
  splits = _load(task, (train, 0, 20 - train), **kwargs)
  assert len({row.row_id for row in splits.selection + splits.test}) == 20


def test_which_repeat_is_kept_does_not_depend_on_their_order(
  gsm8k, folder, caplog
):
  rows = _gsm8k_rows('Ana', 10)
  other = rows[3] | {'answer': '#### 99'}
  loud = rows[4] | {'question': rows[4]['question'].upper()}
  loaded = []
  for order in ([*rows, other, loud], [loud, other, *rows[::-1]]):
    _write(folder / 'train.jsonl', order)
    loaded.append(_load(gsm8k, (6, 4, 20), path=folder))
  assert loaded[0] == loaded[1]
  assert caplog.text.count(
    'dropped 2 rows that repeat an earlier question, 1 with another answer'
  ) == 2  # fmt: skip


def test_source_holds_the_meta_of_rows(folder):
  task = tasks.make('jsonl')

  def source(**more):
    rows = _gsm8k_rows('Ana', 20)
    rows[7] |= more
    _write(folder / 'train.jsonl', rows)
    return _load(task, (1, 0, 1), path=folder).source

  given = [source(), source(unit='m'), source(unit='s'), source(tests=['m'])]
  assert len(set(given)) == len(given)
  assert source(a=1, b=2) == source(b=2, a=1) != source(a=2, b=1)
  with pytest.raises(base.TaskError, match=r'meta=.*is not JSON'):
    source(x=float('nan'))


@pytest.mark.parametrize(
  ('line', 'message'),
  [
    (b'{"question": "a', 'line 3: not JSON'),
    (b'\xff', 'line 3: not JSON'),
    (b'[1]', 'line 3: a list, not an object'),
    (b'{"question": "Why?"}', "line 3: field 'answer' is None"),
    (b'{"question": "Why?", "answer": "7"}', "line 3: answer '7' does not"),
    (b'{"question": "\\ud800", "answer": "#### 7"}', 'line 3: .*surrogates'),
  ],
)
def test_a_malformed_line_is_named_by_its_number(
  gsm8k, tmp_path, line, message
):
  good = json.dumps(_gsm8k_rows('Ana', 1)[0]).encode()
  path = tmp_path / 'rows.jsonl'
  path.write_bytes(good + b'\n\n' + line + b'\n')
  with pytest.raises(base.TaskError, match=f'rows.jsonl, {message}'):
    _load(gsm8k, (1, 0, 1), path=path)


def test_sources_that_do_not_fit_are_refused(gsm8k, tmp_path, monkeypatch):
  monkeypatch.setenv('THICKET_CACHE', str(tmp_path / 'nothing'))
  arithmetic = tasks.make('arithmetic')
  for task, kwargs, message in [
    (gsm8k, {}, 'gsm8k has not been fetched into'),
    (tasks.make('jsonl'), {}, 'jsonl needs rows: set task.path'),
    (gsm8k, {'path': tmp_path / 'no'}, 'is no file, and no folder with'),
    (gsm8k, {'path': tmp_path}, 'gsm8k_train.jsonl'),
    (gsm8k, {'source': 'generated'}, 'needs a task that generates'),
    (gsm8k, {'source': 'csv', 'path': tmp_path}, "source='csv': must be"),
    (arithmetic, {'path': tmp_path}, 'arithmetic generates its rows'),
    (arithmetic, {'source': 'tfds:x'}, 'arithmetic generates its rows'),
  ]:
    with pytest.raises(base.TaskError, match=message):
      _load(task, (1, 0, 1), **kwargs)


def test_check_disjoint_names_the_row():
  row = base.Example(1, 'How many?', '2')
  same = base.Example(2, ' how  MANY?', '2')
  other = base.Example(1, 'How much?', '2')
  task = tasks.make('arithmetic')
  data.check_disjoint(task, base.Splits((row,), (), ()))
  for twin in (same, other):
    message = f'row {twin.row_id} of test is also in selection'
    with pytest.raises(base.TaskError, match=message):
      data.check_disjoint(task, base.Splits((row,), (), (twin,)))


@pytest.mark.parametrize('name', ['arithmetic', 'gsm8k'])
def test_source_depends_on_neither_sizes_nor_seed(name, folder):
  path = folder if name == 'gsm8k' else None
  sizes = [(1, 0, 1), (10, 5, 8), (25, 15, 20), (40, 0, 20), (1, 39, 1)]
  loaded = [
    _load(tasks.make(name), size, seed=seed, path=path)
    for size in sizes
    for seed in (0, 7)
  ]
  assert len({splits.test for splits in loaded}) > 3
  (source,) = {splits.source for splits in loaded}
  assert len(bytes.fromhex(source)) == 32


@pytest.mark.parametrize('is_folder', [True, False])
def test_source_changes_with_each_row(gsm8k, tmp_path, is_folder):
  train, test = _gsm8k_rows('Ana', 20), _gsm8k_rows('Ben', 20)

  def source(train, test):
    if is_folder:
      path = tmp_path
      _write(path / 'train.jsonl', train)
      _write(path / 'test.jsonl', test)
    else:
      path = _write(tmp_path / 'all.jsonl', train + test)
    return _load(gsm8k, (1, 0, 1), path=path).source

  first = source(train, test)
  assert source(train[::-1], test[3:] + test[:3]) == first
  # The working is not read, and a repeat of a row is dropped.
  worked = train[2] | {'answer': 'Two more.\n#### 4'}
  assert source([*train[:2], worked, *train[3:]], test) == first
  assert source([*train, train[4]], test) == first

  changed = [first, source(train, [*test, *_gsm8k_rows('Cy', 1)])]
  for i in range(20):
    # Spacing too: the row is known by the same id, the prompt is another.
    question = train[i]['question']
    spaced = train[i] | {'question': question.replace(' ', '  ')}
    reworded = train[i] | {'question': question.replace('more', 'extra')}
    other = test[i] | {'answer': '#### 99'}
    changed += [
      source([*train[:i], spaced, *train[i + 1 :]], test),
      source([*train[:i], reworded, *train[i + 1 :]], test),
      source(train[:i] + train[i + 1 :], test),
      source(train, [*test[:i], other, *test[i + 1 :]]),
      source(train, test[:i] + test[i + 1 :]),
    ]
  # Two golds that change places leave what is in each field as it was.
  a, b = (train[i]['answer'] for i in (0, 1))
  swapped = [train[0] | {'answer': b}, train[1] | {'answer': a}]
  changed.append(source(swapped + train[2:], test))
  if is_folder:
    changed += [
      source(train[1:], [*test, train[0]]),
      source([*train, test[0]], test[1:]),
      source(test, train),
    ]
  assert len(set(changed)) == len(changed)


@dataclasses.dataclass(frozen=True)
class _Listed(base.Task):
  """Generates the rows it is given, and counts how often it is asked to."""

  rows: tuple[base.Example, ...]
  reads: list[int] = dataclasses.field(default_factory=list)
  name = 'listed'

  def examples(self):
    self.reads.append(0)
    for row in self.rows:
      self.reads[-1] += 1
      yield row


def test_source_of_generated_rows_reads_them_no_more_often():
  rows = tuple(base.Example(i, f'Row {i}?', str(i % 7)) for i in range(50))
  task = _Listed(rows)
  source = _load(task, (3, 2, 4)).source
  assert task.reads == [50, 50, 50]
  assert _load(_Listed(rows[::-1]), (9, 0, 1), seed=5).source == source
  others = [
    rows[1:],
    (*rows, base.Example(50, 'Row 50?', '1')),
    (base.Example(90, 'Row 0?', '0'), *rows[1:]),
    (base.Example(0, 'Row 0!', '0'), *rows[1:]),
    (base.Example(0, 'Row 0?', '1'), *rows[1:]),
    (*rows, rows[0]),
    # Copies do not cancel out; two of these three are rows of one part.
    *((*rows, row, row) for row in rows[:3]),
  ]
  sources = {_load(_Listed(other), (1, 0, 1)).source for other in others}
  assert len(sources | {source}) == len(others) + 1


def test_default_data_never_changes():
  # The recipe of every stored ledger holds this source.
  splits = _load(tasks.make('arithmetic'), (64, 32, 128))
  assert splits.source == (
    '400aab7de068bc56ce072b3532952054d7ee922cd0e54ee88169bd8ad9f9b5f6'
  )
  # And these rows are taken from it.
  parts = (splits.selection, splits.validation, splits.test)
  text = json.dumps([[row.row_id for row in part] for part in parts])
  assert hashlib.sha256(text.encode()).hexdigest() == (
    '3cc03d379d3d9094e9f5f5324c5fce3cb7e79ef2b28b29939f1de8cc2a006fd4'
  )


def test_splits_survive_json():
  meta = {'unit': 'm', 'steps': [1, 2.5, -0.0, None, True, {'é': []}]}
  rows = (
    base.Example(base.MAX_ROW_ID - 1, ' Où?\r\n\u2028"\\', '½', meta),
    base.Example(0, 'b', ''),
    base.Example(2**53 + 1, 'c', '0.1', {'x': 0.1 + 0.2, 'n': 10**30}),
  )
  for splits in (
    base.Splits(rows[:2], (), rows[2:], 'ab' * 32),
    base.Splits(rows[2:], rows[1::-1], ()),
    _load(tasks.make('arithmetic'), (5, 4, 3)),
  ):
    stored = data.examples_to_json(splits)
    for ascii_only in (True, False):
      text = json.dumps(stored, ensure_ascii=ascii_only, allow_nan=False)
      again = data.examples_from_json(json.loads(text))
      assert again == splits
      # Equality holds for 1 and True, and for 0 and -0.
      assert repr(again) == repr(splits)


@pytest.mark.parametrize(
  'meta',
  [
    {'steps': (1, 2)},
    {'steps': {1, 2}},
    {3: 'x'},
    {'deep': [{None: 1}]},
    {'x': float('nan')},
    {'x': [float('inf')]},
    {'x': b'bytes'},
  ],
)
def test_meta_that_json_would_change_is_refused(meta):
  rows = (base.Example(1, 'a', '1'), base.Example(2, 'b', '2', meta))
  with pytest.raises(base.TaskError, match='row 2 of test: meta='):
    data.examples_to_json(base.Splits((), (), rows))


def test_stored_rows_that_are_not_splits_are_refused():
  def stored(**fields):
    row = {'row_id': 1, 'question': 'a', 'gold': '1', 'meta': {}} | fields
    return {'selection': [row], 'validation': [], 'test': [], 'source': ''}

  data.examples_from_json(stored())
  for broken in (
    {key: value for key, value in stored().items() if key != 'test'},
    {key: value for key, value in stored().items() if key != 'source'},
    stored(answer='1'),
    stored(row_id='1'),
    stored(question=None),
    {**stored(), 'selection': ['a']},
    {**stored(), 'selection': None},
    [],
  ):
    with pytest.raises(base.TaskError, match='stored rows cannot be read'):
      data.examples_from_json(broken)
  with pytest.raises(base.TaskError, match='row_id=-1: must lie in'):
    data.examples_from_json(stored(row_id=-1))


@pytest.fixture
def tfds_folder(tmp_path):
  import tensorflow_datasets as tfds

  rows = {'train': _gsm8k_rows('Ana', 40), 'test': _gsm8k_rows('Ben', 20)}

  class TinyWordProblems(tfds.core.GeneratorBasedBuilder):
    """Rows written by hand, in the schema of TFDS's gsm8k."""

    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
      text = tfds.features.Text()
      fields = ('question', 'answer', 'annotation', 'short_answer')
      return tfds.core.DatasetInfo(
        builder=self,
        features=tfds.features.FeaturesDict(dict.fromkeys(fields, text)),
      )

    def _split_generators(self, dl_manager):
      return {part: self._generate_examples(part) for part in rows}

    def _generate_examples(self, part):
      for i, row in enumerate(rows[part]):
        steps, short = row['answer'].split('#### ')
        yield i, row | {'annotation': steps, 'short_answer': short}

  folder = tmp_path / 'tfds'
  builder = TinyWordProblems(data_dir=str(folder), file_format='array_record')
  builder.download_and_prepare()
  return folder


def test_tfds_and_jsonl_give_the_same_rows(
  gsm8k, folder, tfds_folder, monkeypatch
):
  source = 'tfds:tiny_word_problems'
  splits = _load(gsm8k, (20, 10, 15), source=source, path=tfds_folder)
  copy = _load(gsm8k, (20, 10, 15), path=folder)
  assert splits == copy
  assert splits.source == copy.source != ''
  assert 'tensorflow' not in sys.modules

  # Where it has to be fetched first and cannot be, that is one line.
  import tensorflow_datasets as tfds

  def offline(self):
    raise OSError('no route\nto host')

  builder = type(tfds.builder('tiny_word_problems', data_dir=tfds_folder))
  monkeypatch.setattr(builder, 'download_and_prepare', offline)
  message = 'prepared: no route to host; prepare'
  with pytest.raises(base.TaskError, match=message):
    _load(gsm8k, (20, 10, 15), source=source, path=tfds_folder)


def test_without_tfds_the_extra_is_named(gsm8k, monkeypatch):
  monkeypatch.setitem(sys.modules, 'tensorflow_datasets', None)
  with pytest.raises(base.TaskError, match=r"pip install -e '\.\[tfds\]'"):
    _load(gsm8k, (1, 0, 1), source='tfds:gsm8k')


def test_an_unknown_tfds_name_is_refused(gsm8k, tmp_path):
  with pytest.raises(base.TaskError, match="'tfds:nonesuch': TFDS has no"):
    _load(gsm8k, (1, 0, 1), source='tfds:nonesuch', path=tmp_path)
