# SPDX-License-Identifier: Apache-2.0
"""Data sets by name: fetched once, checked, and read as their files are."""

import dataclasses
import gzip
import hashlib
import http.server
import json
import re
import sys
import threading

import pytest
from rich.console import Console

from thicket import data, tasks
from thicket.data import __main__ as command
from thicket.data import fetching, published, sources
from thicket.tasks import base

ROWS = {
  'train': [
    {
      'question': f'Ana has {i} pens; she buys “2”.\nHow many are there?',
      'answer': f'{i}+2=<<{i}+2={i + 2}>>{i + 2}\n#### {i + 2:,}',
    }
    for i in range(30)
  ],
  'test': [
    {'question': f'Ben eats {i} pies. How many?', 'answer': f'#### {i}'}
    for i in range(20)
  ],
}


def _text(rows):
  return ''.join(json.dumps(row) + '\n' for row in rows).encode()


TEXT = {part: _text(rows) for part, rows in ROWS.items()}


def _known(base_url='https://nowhere.invalid/', suffix=''):
  """GSM8K with the rows above in place of its own."""
  return dataclasses.replace(
    published.PUBLISHED['gsm8k'],
    files=tuple(
      published.File(
        part,
        f'{base_url}{part}.jsonl{suffix}',
        hashlib.sha256(TEXT[part]).hexdigest(),
        len(ROWS[part]),
      )
      for part in ROWS
    ),
  )


@pytest.fixture
def known(monkeypatch):
  """Puts a data set in the place of GSM8K."""

  def put(chosen):
    monkeypatch.setitem(published.PUBLISHED, 'gsm8k', chosen)

  put(_known())
  return put


@pytest.fixture
def files(tmp_path):
  folder = tmp_path / 'files'
  folder.mkdir()
  for part, text in TEXT.items():
    (folder / f'gsm8k_{part}.jsonl').write_bytes(text)
  return folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv('THICKET_CACHE', str(tmp_path / 'cache'))
  return tmp_path / 'cache' / 'data'


def _load(**kwargs):
  return data.load(
    tasks.make('gsm8k'), num_selection=15, num_validation=10, num_test=12,
    seed=0, **kwargs,
  )  # fmt: skip


def _quiet():
  return Console(quiet=True)


def test_fetched_rows_are_those_of_the_file(known, files, cache, capsys):
  with pytest.raises(base.TaskError) as error:
    _load()
  assert f'not been fetched into {cache}' in str(error.value)
  (line,) = re.findall(r'`python -m thicket\.data (.*?)`', str(error.value))
  assert command.main([*line.split(), f'--from={files}']) == 0
  assert f'gsm8k: prepared in {cache}' in capsys.readouterr().out.replace(
    '\n', ''
  )
  assert 'tensorflow' not in sys.modules
  fetched, plain = _load(), _load(path=files)
  assert fetched == plain
  assert fetched.source == plain.source != ''
  assert {row.row_id for row in fetched.test} == {
    row.row_id for row in plain.test
  }
  # A folder of one's own is named as the path.
  assert _load(path=cache) == plain


@dataclasses.dataclass(frozen=True)
class _Whole(base.Task):
  """Keeps each row as it was read."""

  name = 'math500'

  def parse(self, row, row_id):
    return base.Example(row_id, row['problem'], '', dict(row))


def test_fields_order_and_numbers_are_as_published(monkeypatch, tmp_path):
  rows = [
    {
      'problem': f'Find ${i}^2$.\n[asy]é[/asy]',
      'solution': '',
      'answer': f'\\boxed{{{i * i}}}',
      'subject': 'Algebra',
      'level': i % 5 + 1,
      'unique_id': f'test/algebra/{i}.json',
    }
    for i in range(40)
  ]
  text = _text(rows)
  chosen = published.PUBLISHED['math500']
  file = dataclasses.replace(
    chosen.files[0], sha256=hashlib.sha256(text).hexdigest()
  )
  monkeypatch.setitem(
    published.PUBLISHED, 'math500', dataclasses.replace(chosen, files=(file,))
  )
  path = tmp_path / 'math500.jsonl'
  path.write_bytes(text)
  fetching.fetch('math500', folder=tmp_path, console=_quiet())
  task = _Whole()
  fetched, plain = (
    [x for part in sources.read_path(task, where).values() for x in part]
    for where in (None, path)
  )
  assert fetched == plain
  assert [dict(row.meta) for row in fetched] == rows
  sizes = {'num_selection': 5, 'num_validation': 3, 'num_test': 5, 'seed': 1}
  assert data.load(task, **sizes) == data.load(task, path=path, **sizes)


def test_the_same_call_again_does_nothing(known, files, cache, capsys):
  first = fetching.fetch('gsm8k', folder=files, console=_quiet())
  before = {path: path.stat().st_mtime_ns for path in first.rglob('*')}
  assert len(before) >= 4
  for folder in (files, None):  # nor is the network asked
    again = fetching.fetch('gsm8k', folder=folder, console=_quiet())
    assert again == first
  assert capsys.readouterr() == ('', '')  # TFDS speaks of a folder in passing
  assert {path: path.stat().st_mtime_ns for path in first.rglob('*')} == before
  # Nothing else is left lying about.
  assert [path.name for path in cache.iterdir()] == ['gsm8k']


def test_what_is_kept_says_where_it_is_from(known, files):
  import tensorflow_datasets as tfds

  folder = fetching.fetch('gsm8k', folder=files, console=_quiet())
  info = tfds.builder_from_directory(folder).info
  assert 'cobbe2021gsm8k' in info.citation
  assert info.homepage == 'https://github.com/openai/grade-school-math'
  assert info.as_proto.redistribution_info.license == 'MIT'
  assert {part: x.num_examples for part, x in info.splits.items()} == {
    'train': 30,
    'test': 20,
  }


def test_another_version_is_refused_naming_both_hashes(known, files, cache):
  path = files / 'gsm8k_test.jsonl'
  changed = TEXT['test'].replace(b'pies', b'cakes')
  path.write_bytes(changed)
  found, expected = (
    hashlib.sha256(text).hexdigest() for text in (changed, TEXT['test'])
  )
  with pytest.raises(
    base.TaskError,
    match=f'gsm8k_test.jsonl: SHA-256 is {found} instead of {expected}',
  ):
    fetching.fetch('gsm8k', folder=files, console=_quiet())
  assert published.prepared('gsm8k') is None
  asked = ['fetch', 'gsm8k', f'--from={files}', '--any-version']
  assert command.main(asked) == 0
  assert 'cakes' in _load().test[0].question
  (line,) = (x for x in fetching.listed() if x.startswith('gsm8k'))
  assert 'another version than was published' in line
  # The published rows take the place of others.
  path.write_bytes(TEXT['test'])
  fetching.fetch('gsm8k', folder=files, console=_quiet())
  assert 'pies' in _load().test[0].question


def test_the_right_one_of_several_files_is_found_by_its_hash(known, files):
  (files / 'test.jsonl').write_text('{"other": 1}\n')  # another data set's
  (files / 'train.jsonl.gz').write_bytes(gzip.compress(TEXT['train']))
  (files / 'gsm8k_train.jsonl').unlink()
  known(_known(suffix='.gz'))
  fetching.fetch('gsm8k', folder=files, console=_quiet())
  assert len(_load().test) == 12


@pytest.mark.parametrize(
  ('row', 'message'),
  [
    ({'question': 'a'}, r'line 21: .* has not the fields'),
    ({'question': 'a', 'answer': 3}, 'line 21: .* has not the fields'),
    ({'question': 'a', 'answer': '3', 'x': 1}, 'line 21: .* has not the'),
    ([1], 'line 21: .* has not the fields'),
  ],
)
def test_rows_without_the_fields_are_refused(known, files, cache, row, message):
  (files / 'gsm8k_test.jsonl').write_bytes(TEXT['test'] + _text([row]))
  with pytest.raises(base.TaskError, match=message):
    fetching.fetch('gsm8k', folder=files, any_version=True, console=_quiet())
  assert published.prepared('gsm8k') is None
  assert list(cache.iterdir()) == []


def test_what_cannot_be_fetched_is_explained(known, tmp_path, files, capsys):
  for argv, message in [
    (['fetch', 'gsm'], "no data set 'gsm'; there are: gsm8k, math500"),
    (['fetch', 'gsm8k', f'--from={tmp_path}'], 'has none of train.jsonl'),
    (['fetch', 'gsm8k', f'--data_dir={files}/gsm8k_test.jsonl'], '--data_dir'),
  ]:
    assert command.main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith('thicket: ')
    assert message in error


def test_without_tfds_the_extra_is_named(known, files, monkeypatch):
  fetching.fetch('gsm8k', folder=files, console=_quiet())
  monkeypatch.setitem(sys.modules, 'tensorflow_datasets', None)
  for call in (lambda: fetching.fetch('gsm8k', folder=files), _load):
    with pytest.raises(base.TaskError, match=r"pip install -e '\.\[tfds\]'"):
      call()


def test_the_list_names_rows_licence_and_place(known, files, cache, capsys):
  assert command.main(['list']) == 0
  before = capsys.readouterr().out.splitlines()
  assert [line.split()[0] for line in before] == list(published.PUBLISHED)
  words = ' '.join(before[0].split())
  assert words == 'gsm8k 30 train + 20 test MIT not fetched'
  fetching.fetch('gsm8k', folder=files, console=_quiet())
  assert command.main(['list', f'--data_dir={cache}']) == 0
  after = capsys.readouterr().out.splitlines()
  assert after[0].split()[-1] == str(cache / 'gsm8k' / published.VERSION)
  assert after[1:] == before[1:]


def test_the_table_is_whole():
  for name, chosen in published.PUBLISHED.items():
    assert chosen.citation.count('{') == chosen.citation.count('}')
    assert set(chosen.fields.values()) <= {str, int}
    parts = [file.part for file in chosen.files]
    assert parts in (['train', 'test'], ['test']), name
    for file in chosen.files:
      assert len(bytes.fromhex(file.sha256)) == 32
      assert file.url.startswith('https://')


# Downloads, from a server of our own.


class _Server(http.server.ThreadingHTTPServer):
  """Sends texts; `cut` ends each answer after so many bytes."""

  def __init__(self, texts, ranges=True):
    super().__init__(('127.0.0.1', 0), _Handler)
    self.texts, self.ranges = texts, ranges
    self.cut, self.asked = None, []

  @property
  def url(self):
    return f'http://127.0.0.1:{self.server_port}/'


class _Handler(http.server.BaseHTTPRequestHandler):
  def do_GET(self):
    server = self.server
    text = server.texts.get(self.path.strip('/'))
    wanted = self.headers.get('Range')
    server.asked.append((self.path, wanted))
    if text is None:
      self.send_error(404)
      return
    start = 0
    if wanted and server.ranges:
      start = int(re.fullmatch(r'bytes=(\d+)-', wanted)[1])
      if start >= len(text):
        self.send_error(416)
        return
    self.send_response(206 if start else 200)
    self.send_header('Content-Length', str(len(text) - start))
    self.end_headers()
    self.wfile.write(text[start:][: server.cut])

  def log_message(self, *_):
    pass


@pytest.fixture(params=[True, False], ids=['ranges', 'no ranges'])
def server(request):
  texts = {f'{part}.jsonl': text for part, text in TEXT.items()}
  texts |= {
    f'{part}.jsonl.gz': gzip.compress(text) for part, text in TEXT.items()
  }
  made = _Server(texts, ranges=request.param)
  thread = threading.Thread(target=made.serve_forever, daemon=True)
  thread.start()
  yield made
  made.shutdown()
  made.server_close()
  thread.join()


def _fetch():
  return fetching.fetch('gsm8k', console=_quiet())


@pytest.mark.parametrize('suffix', ['', '.gz'])
def test_a_download_goes_on_where_it_was_cut(
  known, server, files, cache, suffix
):
  known(_known(server.url, suffix))
  server.cut = 150
  for _ in range(2):
    with pytest.raises(base.TaskError, match='the same command goes on'):
      _fetch()
  assert published.prepared('gsm8k') is None
  server.cut = None
  folder = _fetch()
  ranges = [wanted for path, wanted in server.asked if 'train' in path]
  second = 'bytes=300-' if server.ranges else 'bytes=150-'
  assert ranges == [None, 'bytes=150-', second]
  assert _load() == _load(path=files)
  assert [path.name for path in cache.iterdir()] == ['gsm8k']
  asked = len(server.asked)
  assert _fetch() == folder
  assert len(server.asked) == asked


def test_whole_files_are_not_downloaded_again(known, server):
  known(_known(server.url))
  server.texts['test.jsonl'] = None
  with pytest.raises(base.TaskError, match=r'test\.jsonl: HTTP Error 404'):
    _fetch()
  server.texts['test.jsonl'] = TEXT['test']
  _fetch()
  assert [path for path, _ in server.asked].count('/train.jsonl') == 1


def test_a_changed_download_is_refused_and_not_kept(known, server, cache):
  known(_known(server.url))
  server.texts['test.jsonl'] = b'{}\n'
  with pytest.raises(base.TaskError, match='which was published'):
    _fetch()
  assert not [path for path in cache.iterdir() if 'test' in path.name]
  server.texts['test.jsonl'] = TEXT['test']
  _fetch()
  assert len(_load().test) == 12


def test_a_damaged_archive_is_refused(known, server):
  known(_known(server.url, '.gz'))
  whole = server.texts['train.jsonl.gz']
  server.texts['train.jsonl.gz'] = whole[:-20]
  with pytest.raises(base.TaskError, match='is damaged'):
    _fetch()
  server.texts['train.jsonl.gz'] = whole
  _fetch()
  assert len(_load().test) == 12
