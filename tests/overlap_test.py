# SPDX-License-Identifier: Apache-2.0
"""Near duplicates between splits: what counts, and in how much time."""

import json

import pytest

from thicket import data, tasks
from thicket.data import overlap
from thicket.data.overlap import Near, near_duplicates
from thicket.tasks import base

LONG = (
  'A baker sells 12 loaves at $3 each in the morning, and half as many in the '
  'afternoon for 1,000 cents less. How much money does the baker take home?'
)


def _splits(selection, test, validation=()):
  """Rows 0, 1, ... of selection, 10,000, ... of validation, 20,000 of test."""

  def rows(texts, start):
    return tuple(
      base.Example(start + i, text, '1') for i, text in enumerate(texts)
    )

  return base.Splits(
    rows(selection, 0), rows(validation, 10_000), rows(test, 20_000)
  )


@pytest.mark.parametrize(
  ('one', 'other'),
  [
    (LONG, LONG.replace(',', '').replace('1000', '1000.00') + '!'),
    ('How far is it?', 'how far — is it'),
    ('How far is it', '\uff28ow “far” is it…'),
    ('It costs 1,000.50 for 2', 'It costs 1000.5 for 2.0'),
    ("The well-known farmer's cow", 'the well known farmer\u2019s cow.'),
  ],
)
def test_the_same_words_are_found(one, other):
  found = near_duplicates(_splits([one], [other]))
  assert found == [Near('test', 20_000, 'selection', 0, 1.0)]


@pytest.mark.parametrize(
  ('one', 'other'),
  [
    ('17 + 25', '17 - 25'),
    ('17 * 25', '17 / 25'),
    ('17 - 25', '25 - 17'),
    ('Is (() balanced?', 'Is ()) balanced?'),
    ('Is 1,5 more?', 'Is 15 more?'),
    ('How far is it?', 'How far is that?'),
    ('[[]]', '][]['),
    ('!?', '...'),
  ],
)
def test_other_questions_are_not(one, other):
  assert near_duplicates(_splits([one], [other])) == []


def test_a_long_question_with_a_change_is_found():
  (near,) = near_duplicates(_splits(['Why?', LONG], [LONG.replace('12', '15')]))
  assert (near.other_row_id, near.split) == (1, 'test')
  assert 0.8 < near.share < 1
  assert near_duplicates(
    _splits([LONG], [LONG, 'Where?'], [LONG])
  ) == [
    Near('validation', 10_000, 'selection', 0, 1.0),
    Near('test', 20_000, 'selection', 0, 1.0),
  ]  # fmt: skip


def test_a_shared_half_is_no_near_duplicate():
  half = LONG.partition('. ')[0]
  rest = (
    ' Which of the two times of the day would a careful baker rather keep, '
  )
  other = half + '.' + rest + 'and how many loaves are left over for the birds?'
  assert near_duplicates(_splits([LONG], [other])) == []


def test_no_word_is_counted_twice(monkeypatch):
  words = [f'{a}{b}' for a in 'abcdef' for b in 'abcdefghij']
  monkeypatch.setattr(overlap, 'LEAST_SHARE', 0.5)
  one, other = ' '.join(words[:40]), ' '.join(words[20:])
  # 20 words of 40 are shared, in 13 runs that overlap.
  (near,) = near_duplicates(_splits([one], [other]))
  assert near.share == 0.5
  less = ' '.join(words[21:])
  assert near_duplicates(_splits([one], [less])) == []


def test_a_question_may_be_made_of_several():
  words = [f'{a}{b}' for a in 'abcdef' for b in 'abcdefghij']
  one, other, both = (
    ' '.join(words[i:j]) for i, j in ((0, 25), (25, 60), (0, 60))
  )
  (near,) = near_duplicates(_splits([one, other], [both]))
  assert (near.other_row_id, near.share) == (1, 1.0)


def test_a_template_takes_work_in_proportion_to_the_text(monkeypatch):
  # Pairs would be 25 million. Each text is cut into runs twice at most.
  cut = []
  whole = overlap._runs
  monkeypatch.setattr(
    overlap, '_runs', lambda words: cut.append(0) or whole(words)
  )
  texts = [f'{LONG} Give it in {i} coins.' for i in range(10_000)]
  found = near_duplicates(_splits(texts[:5000], texts[5000:]))
  assert len(cut) <= 2 * len(texts)
  assert len(found) == 5000
  assert {x.other_row_id for x in found} == {0}


def test_a_long_text_takes_linear_work():
  text = (
    ' '.join(str(i) for i in range(100_000)) + '-' * 300_000 + "'" * 300_000
  )
  found = near_duplicates(_splits([text], [text + '.']))
  assert [near.share for near in found] == [1.0]


def test_loading_warns_and_drops_nothing(tmp_path, caplog):
  rows = [
    {'question': f'{LONG} {word}?', 'answer': word} for word in 'abcdefgh'
  ]
  path = tmp_path / 'train.jsonl'
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  path = tmp_path / 'test.jsonl'
  rows = [row | {'question': row['question'] + '!'} for row in rows]
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  splits = data.load(
    tasks.make('jsonl'), num_selection=8, num_validation=0, num_test=8, seed=0,
    path=tmp_path,
  )  # fmt: skip
  assert len(splits.test) == 8
  (line,) = (x for x in caplog.messages if 'nearly' in x)
  assert line.startswith('jsonl: 8 rows nearly repeat one of another split: ')
  near = near_duplicates(splits)[0]
  assert f'test {near.row_id} as selection {near.other_row_id} (100%)' in line
  assert line.endswith('; ...')


def test_a_summary_counts_and_names_some():
  texts = [f'Where is {word}?' for word in 'abcdefghijkl']
  splits = _splits(texts, [*texts, 'Why?'], ['Who is it?'])
  assert overlap.summary(splits, shown=2) == {
    'count': 12,
    'rows': 14,  # of validation and test
    'examples': [
      {
        'split': 'test',
        'row_id': 20_000 + i,
        'other_split': 'selection',
        'other_row_id': i,
        'share': 1.0,
      }
      for i in range(2)
    ],
  }


def test_the_default_rows_have_none():
  splits = data.load(
    tasks.make('arithmetic'), num_selection=700, num_validation=600,
    num_test=1300, seed=0,
  )  # fmt: skip
  assert near_duplicates(splits) == []
