# SPDX-License-Identifier: Apache-2.0
"""Containers: the same rows from each, and what is wrong with one is named."""

import json
import sys

import pyarrow as pa
import pytest
from pyarrow import parquet

from thicket import data, tasks
from thicket.data import sources
from thicket.tasks import base


def _rows(name, count):
  return [
    {
      'question': f'{name} has {i} pens and buys 2 more. How many are there?',
      'answer': f'{i} + 2 = {i + 2}\n#### {i + 2}',
    }
    for i in range(count)
  ]


TRAIN, TEST = _rows('Ana', 40), _rows('Ben', 20)


def _write(path, rows):
  if path.suffix == '.parquet':
    parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=7)
  elif path.suffix == '.json':
    path.write_text(json.dumps(rows, indent=1))
  else:
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return path


def _load(path, sizes=(10, 5, 8), task=None, **kwargs):
  names = ('num_selection', 'num_validation', 'num_test')
  kwargs |= dict(zip(names, sizes, strict=True))
  task = task or tasks.make('gsm8k')
  return data.load(task, seed=0, path=path, **kwargs)


@pytest.fixture
def expected(tmp_path):
  """The splits that JSONL gives, of a folder and of a file."""
  folder = tmp_path / 'expected'
  folder.mkdir()
  _write(folder / 'train.jsonl', TRAIN)
  _write(folder / 'test.jsonl', TEST)
  both = _write(tmp_path / 'both.jsonl', TRAIN + TEST)
  return _load(folder), _load(both)


@pytest.mark.parametrize('suffix', ['.jsonl', '.json', '.parquet'])
def test_every_container_gives_the_same_rows(suffix, tmp_path, expected):
  folder = tmp_path / 'given'
  folder.mkdir()
  train = _write(folder / f'gsm8k_train{suffix}', TRAIN)
  _write(folder / f'gsm8k_test{suffix}', TEST)
  both = _write(tmp_path / f'rows{suffix}', TRAIN + TEST)
  assert (_load(folder), _load(both)) == expected
  assert _load(both).source == expected[1].source != expected[0].source
  # Parts need not have one format.
  train.unlink()
  _write(folder / 'gsm8k_train.jsonl', TRAIN)
  assert _load(folder) == expected[0]


def test_shards_of_parquet_are_read_in_one(tmp_path, expected):
  for i, rows in enumerate((TRAIN[:15], TRAIN[15:])):
    _write(tmp_path / f'train-0000{i}-of-00002.parquet', rows)
  _write(tmp_path / 'test-00000-of-00001.parquet', TEST)
  assert _load(tmp_path) == expected[0]


def test_two_files_of_one_part_are_refused(tmp_path):
  for name in ('train.jsonl', 'train.parquet', 'test.jsonl'):
    _write(tmp_path / name, TRAIN)
  with pytest.raises(
    base.TaskError, match=r'holds train\.jsonl and train\.parquet: keep one'
  ):
    _load(tmp_path)


def test_a_folder_without_rows_says_what_it_may_hold(tmp_path):
  _write(tmp_path / 'train.jsonl', TRAIN)
  with pytest.raises(base.TaskError) as error:
    _load(tmp_path)
  for part in ('gsm8k_test.jsonl', '.json, .jsonl, .parquet', 'fetched gsm8k'):
    assert part in str(error.value)


def test_parquet_is_read_in_batches(tmp_path, monkeypatch):
  path = _write(tmp_path / 'rows.parquet', _rows('Ana', 50))
  monkeypatch.setattr(sources, '_BATCH_ROWS', 8)
  sizes = []
  whole = parquet.ParquetFile.iter_batches

  def watched(self, **kwargs):
    for batch in whole(self, **kwargs):
      sizes.append(batch.num_rows)
      yield batch

  monkeypatch.setattr(parquet.ParquetFile, 'iter_batches', watched)
  rows = sources.read_file(path)
  where, row = next(rows)
  assert (where, row) == (f'{path}, row 1', _rows('Ana', 1)[0])
  assert len(sizes) == 1
  assert max(sizes) <= 8
  assert [where for where, _ in rows][-1] == f'{path}, row 50'


@pytest.mark.parametrize(
  ('name', 'content', 'message'),
  [
    ('rows.json', b'{"question": "a"}', 'rows.json: a dict, not a list'),
    ('rows.json', b'[{"question": ', 'rows.json: not JSON'),
    ('rows.json', b'[[1]]', 'rows.json, row 1: a list, not an object'),
    ('rows.json', b'[' * 100_000, 'rows.json: not JSON'),
    ('rows.json', b'[{"question": "a"}]', "row 1: field 'answer' is None"),
    ('rows.jsonl', b'{}\n', "rows.jsonl, line 1: field 'question'"),
    ('rows.parquet', b'PAR1 no', 'rows.parquet: cannot be read as Parquet'),
    ('rows.txt', b'\nhello', 'rows.txt, line 2: not JSON'),
  ],
)
def test_a_broken_file_is_named(tmp_path, name, content, message):
  path = tmp_path / name
  path.write_bytes(content)
  with pytest.raises(base.TaskError, match=message):
    _load(path)


def test_a_broken_row_of_parquet_is_named_by_its_number(tmp_path):
  path = _write(
    tmp_path / 'rows.parquet', [*TRAIN, {'question': 'Why?', 'answer': '7'}]
  )
  with pytest.raises(base.TaskError, match='row 41: answer'):
    _load(path)


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
  path = _write(tmp_path / 'rows.parquet', TRAIN)
  monkeypatch.setitem(sys.modules, 'pyarrow', None)
  with pytest.raises(base.TaskError, match=r"pip install -e '\.\[parquet\]'"):
    _load(path)


def test_values_are_those_of_json(tmp_path):
  rows = [
    {
      'question': f'Row {i}?',
      'answer': i,
      'share': i / 8,
      'tags': ['a', 'b'] if i % 2 else [],
      'unit': 'm' if i else None,
    }
    for i in range(30)
  ]
  task = tasks.make('jsonl', reward='numeric')
  one, other = (
    _load(_write(tmp_path / name, rows), (4, 2, 4), task)
    for name in ('rows.jsonl', 'rows.parquet')
  )
  assert one == other
  # As they are stored with a run.
  assert data.examples_from_json(data.examples_to_json(other)) == one


def test_values_of_tfds_are_those_of_json(tmp_path):
  import numpy as np
  import tensorflow_datasets as tfds

  rows = [
    {
      'question': f'Où est {i}?',
      'answer': i,
      'tags': ['é', 'b'][: i % 3],
      'sizes': [i, i + 1],
      'more': {'text': 'x', 'grid': [[i, 2], [3, 4]]},
    }
    for i in range(30)
  ]

  class TinyLists(tfds.core.GeneratorBasedBuilder):
    """Rows written by hand, with lists and objects in them."""

    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
      text, lists = tfds.features.Text(), tfds.features.Sequence
      return tfds.core.DatasetInfo(
        builder=self,
        features=tfds.features.FeaturesDict(
          {
            'question': text,
            'answer': np.int64,
            'tags': lists(text),
            'sizes': lists(np.int64),
            'more': {
              'text': text,
              'grid': tfds.features.Tensor(shape=(2, 2), dtype=np.int64),
            },
          }
        ),
      )

    def _split_generators(self, dl_manager):
      return {'train': self._generate_examples()}

    def _generate_examples(self):
      yield from enumerate(rows)

  folder = tmp_path / 'tfds'
  TinyLists(data_dir=folder, file_format='array_record').download_and_prepare()
  task = tasks.make('jsonl', reward='numeric')
  kept = _load(folder, (4, 2, 4), task, source='tfds:tiny_lists')
  plain = _load(_write(tmp_path / 'rows.jsonl', rows), (4, 2, 4), task)
  assert kept == plain
