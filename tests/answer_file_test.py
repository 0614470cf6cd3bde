# SPDX-License-Identifier: Apache-2.0
"""Lines of input, whatever is on them, and files of answers gone on with."""

import io
import json

import pytest

from thicket import answer_file
from thicket.answer_file import AnswerFileError, Answers, read

SAID = {'answer': '7', 'votes': 1.0, 'abstained': 0, 'members': []}


def _lines(data):
  return list(read(io.BytesIO(data)))


def test_lines_are_objects_known_by_their_number():
  lines = _lines(b'{"prompt": "a"}\n\n  \t\n{"question": "b"}\r\n{"id": 3}')
  assert [line.number for line in lines] == [1, 4, 5]
  rows = [line.row for line in lines]
  assert rows == [{'prompt': 'a'}, {'question': 'b'}, {'id': 3}]
  assert all(line.error is None for line in lines)


def test_nothing_has_no_lines():
  assert _lines(b'') == _lines(b'\n\n') == []


def test_a_hash_is_of_what_is_said():
  one, two, three, four = _lines(b'{"a":1}\n {"a":1} \r\n{"a":2}\n{"a":1}')
  assert one.digest == two.digest == four.digest != three.digest
  assert len(one.digest) == 16


@pytest.mark.parametrize(
  ('data', 'said'),
  [
    (b'{', 'not JSON: '),
    (b'nothing', 'not JSON: '),
    (b'{"a": NaN}', 'not JSON: NaN is no JSON'),
    (b'{"a": -Infinity}', 'not JSON: -Infinity is no JSON'),
    (b'{"a": ' + b'9' * 5000 + b'}', 'not JSON: '),
    (b'[' * 100_000, 'not JSON: '),
    (b'{"a": "\xff"}', 'not UTF-8: '),
    (b'{"a": "\x00"}', 'not JSON: '),
    (b'\xef\xbb\xbf{"a": 1}', 'not JSON: '),
    (b'[1]', 'a list, not an object'),
    (b'"text"', 'a str, not an object'),
    (b'null', 'a NoneType, not an object'),
    (b'{"id": true}', 'id is True: text of up to 1000 characters, or a number'),
    (b'{"id": null}', 'id is None: '),
    (b'{"id": 1e999}', 'id is inf: '),
    (b'{"id": {}}', 'id is {}: '),
    (b'{"id": "' + b'x' * 1001 + b'"}', "id is 'xxx"),
  ],
)
def test_a_bad_line_is_told_and_the_next_is_read(data, said):
  bad, good = _lines(data + b'\n{"prompt": "a"}\n')
  assert bad.row is None
  assert bad.error.startswith(said)
  assert '\n' not in bad.error
  assert len(bad.error) <= answer_file.SHOWN_CHARS
  assert (good.number, good.row, good.error) == (2, {'prompt': 'a'}, None)


def test_a_line_without_end_is_never_in_memory(monkeypatch):
  monkeypatch.setattr(answer_file, 'MAX_LINE_BYTES', 1 << 20)

  class Watched(io.BytesIO):
    def readline(self, size=-1):
      assert 0 < size <= 1 << 20
      return super().readline(size)

  long = b'{"prompt": "' + b'x' * (3 << 20) + b'"}\n'
  other = long.replace(b'xx"', b'xy"')
  first, second, good = read(Watched(long + other + b'{"prompt": "a"}'))
  assert first.error == second.error == 'longer than 1 MB'
  assert first.digest != second.digest
  assert (good.number, good.row) == (3, {'prompt': 'a'})


# Files of answers.


def _write(path, data, *, ensemble='abc', responses=False, found=SAID):
  """What a command does; the number of lines that were held."""
  held = 0
  with Answers(path and str(path), ensemble, responses=responses) as answers:
    for line in _lines(data):
      if answers.holds(line):
        held += 1
      else:
        answers.add(line, {'error': line.error} if line.error else found)
    answers.finish()
  return held, answers.answered, answers.failed


INPUT = b'{"id": "one", "p": 1}\n\nbad\n{"id": 2.5}\n{"p": "\xc3\xa9"}\n'
BIG = 10**400  # no float


def test_a_line_of_answers_says_whose_it_is(tmp_path):
  path = tmp_path / 'out.jsonl'
  assert _write(path, INPUT) == (0, 3, 1)
  one, bad, two, three = map(json.loads, path.read_bytes().splitlines())
  digests = [line.digest for line in _lines(INPUT)]
  assert one == {
    'line': 1,
    'id': 'one',
    **SAID,
    'input': digests[0],
    'ensemble': 'abc',
  }
  assert list(one)[:2] == ['line', 'id']
  assert bad.pop('error').startswith('not JSON')
  assert bad == {'line': 3, 'input': digests[1], 'ensemble': 'abc'}
  assert (two['line'], two['id']) == (4, 2.5)
  assert 'id' not in three


def test_a_number_is_carried_over_whatever_its_size(tmp_path):
  path = tmp_path / 'out.jsonl'
  _write(path, b'{"id": %d}\n' % BIG)
  assert json.loads(path.read_bytes())['id'] == BIG


def test_text_stays_readable_and_utf_8(tmp_path):
  path = tmp_path / 'out.jsonl'
  _write(path, b'{"id": "\\ud800"}\n', found={**SAID, 'answer': 'é\u2028'})
  data = path.read_bytes()
  assert data.count(b'\n') == 1
  assert 'é\u2028' in data.decode()
  assert json.loads(data)['id'] == '\ud800'


def test_wherever_it_is_cut_the_same_bytes_come_again(tmp_path):
  path = tmp_path / 'out.jsonl'
  _write(path, INPUT)
  whole = path.read_bytes()
  for cut in range(len(whole) + 1):
    path.write_bytes(whole[:cut])
    held = whole[:cut].count(b'\n')
    assert _write(path, INPUT) == (held, 3, 1)
    assert path.read_bytes() == whole
  assert [x.name for x in tmp_path.iterdir()] == ['out.jsonl']


def test_lines_added_to_the_input_are_added_to_the_answers(tmp_path):
  path = tmp_path / 'out.jsonl'
  _write(path, INPUT[:-1])
  before = path.read_bytes()
  assert _write(path, INPUT + b'{"more": 1}\n')[0] == 4
  assert path.read_bytes().startswith(before)
  assert path.read_bytes().count(b'\n') == 5


@pytest.mark.parametrize(
  ('change', 'said'),
  [
    ({'ensemble': 'abd'}, 'line 1 is of ensemble abc, not abd; name another'),
    ({'data': INPUT[1:]}, 'line 1 is of a line of input with hash '),
    ({'data': INPUT.replace(b'2.5', b'2')}, 'line 3 is of a line of input wit'),
    ({'data': INPUT.replace(b'\n\n', b'\n')}, 'line 2 is of line 3 of the inp'),
    ({'data': INPUT[:-12]}, 'holds more answers than the input has lines'),
    ({'data': b''}, 'holds more answers than the input has lines'),
    ({'responses': True}, 'line 1 was written without --responses'),
  ],
)
def test_answers_of_others_are_refused_and_kept(change, said, tmp_path):
  path = tmp_path / 'out.jsonl'
  found = {**SAID, 'members': [{'member': 0, 'answer': '7'}]}
  _write(path, INPUT, found=found)
  whole = path.read_bytes()
  with pytest.raises(AnswerFileError) as caught:
    _write(path, **{'data': INPUT, **change})
  message = str(caught.value)
  assert message.startswith(f'{path}: {said}'), message
  assert '\n' not in message
  assert path.read_bytes() == whole


@pytest.mark.parametrize(
  'data',
  [
    b'notes',
    b'notes\n',
    b'{"answer": 3}\n',
    b'{"line": 1\n',
    b'\0\0\0\0',
    b'\n',
    b'{"line": 12, "text": "notes"}',
    b'{"line": 1, "text": "notes"}',
  ],
)
def test_a_file_of_something_else_is_not_touched(data, tmp_path):
  path = tmp_path / 'notes.txt'
  path.write_bytes(data)
  with pytest.raises(AnswerFileError, match='line 1 is no answer: '):
    _write(path, INPUT)
  assert path.read_bytes() == data


def test_what_cannot_be_written_is_named(tmp_path):
  for path, said in (
    (tmp_path, 'Is a directory'),
    (tmp_path / 'none' / 'out', 'No such file'),
    ('gs://bucket/out', 'nothing can be added'),
  ):
    with pytest.raises(AnswerFileError, match=said):
      _write(path, INPUT)
  assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_named():
  with pytest.raises(AnswerFileError, match='No space left on device; what is'):
    _write('/dev/full', INPUT)


def test_a_whole_line_of_others_is_not_touched(tmp_path):
  path = tmp_path / 'out.jsonl'
  data = b'{"line": 1, "text": "notes"}\n'
  path.write_bytes(data)
  with pytest.raises(AnswerFileError, match=r'name another --output'):
    _write(path, INPUT)
  assert path.read_bytes() == data


def test_two_do_not_answer_into_one_file(tmp_path):
  path = tmp_path / 'out.jsonl'
  with (
    Answers(str(path), 'abc', responses=False),
    pytest.raises(AnswerFileError, match='another process is answering'),
  ):
    Answers(str(path), 'abc', responses=False)
  assert _write(path, INPUT) == (0, 3, 1)


@pytest.mark.parametrize('members', [[1], None, 'x'])
def test_members_that_are_none_are_refused(tmp_path, members):
  path = tmp_path / 'out.jsonl'
  _write(path, INPUT)
  lines = [json.loads(x) for x in path.read_bytes().splitlines()]
  text = json.dumps(lines[0] | {'members': members}) + '\n'
  path.write_text(text)
  with pytest.raises(AnswerFileError, match='is no answer'):
    _write(path, INPUT)
  assert path.read_text() == text
