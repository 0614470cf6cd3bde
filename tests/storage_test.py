# SPDX-License-Identifier: Apache-2.0
"""Runs in buckets, against servers that speak their protocols."""

import contextlib
import importlib.util
import os
import pathlib
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import pytest
from etils import epath

from thicket import report, storage, stored
from thicket.ledger import LedgerError

ROOT = pathlib.Path(__file__).parents[1]
BUCKET = 'thicket-test'
NEEDS = {
  's3': ('s3fs', 'moto', 'flask'),
  'gs': ('gcsfs', 'gcp_storage_emulator'),
}


# Names.


@pytest.mark.parametrize(
  'text',
  ['foo://x/y', 'gs:/x/y', 'S3://x', 'az://x/y', 'file:///x', 's3:///x'],
)
def test_no_storage_is_one_line(text, capsys):
  with pytest.raises(LedgerError) as caught:
    storage.as_path(text)
  assert str(caught.value).startswith(f'{text}: no ')
  assert '://BUCKET/FOLDER' in str(caught.value)
  assert report.main(['--workdir', text]) == 2
  assert capsys.readouterr().err == f'thicket: {caught.value}\n'


@pytest.mark.parametrize(
  ('text', 'said'),
  [
    ('gs://b/x', "gs://b/x: needs gcsfs; run pip install 'thicket[gcs]'"),
    ('s3://b/x', "s3://b/x: needs s3fs; run pip install 'thicket[s3]'"),
  ],
)
def test_a_library_that_is_missing_is_named(text, said, monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(LedgerError) as caught:
    storage.as_path(text)
  assert str(caught.value) == said


def test_extras_install_what_is_named():
  setup = (ROOT / 'setup.py').read_text(encoding='utf-8')
  for library, extra in storage._SCHEMES.values():
    assert re.search(rf"'{extra}': \['{library}>=", setup)


def test_the_command_line_refuses_before_anything_loads():
  done = subprocess.run(
    [sys.executable, '-m', 'thicket.main', '--config=configs/llm.py:quick',
     '--workdir=foo://x/y'],
    cwd=ROOT, capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert done.returncode == 2
  assert 'thicket: foo://x/y: no such storage' in done.stderr
  assert 'loaded' not in done.stderr
  assert 'Traceback' not in done.stderr
  assert not (ROOT / 'foo:').exists()


def test_folders_stay_as_they_are(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv('HOME', str(tmp_path))
  assert str(storage.as_path('runs/x')) == 'runs/x'
  assert str(storage.as_path('~/x')) == str(tmp_path / 'x')
  assert str(storage.absolute('x')) == str(tmp_path / 'x')
  assert storage.is_local(storage.as_path('a/b:/c'))


# Text files in a folder.


def test_writers_of_one_file_leave_it_whole(tmp_path):
  path = epath.Path(tmp_path / 'plan.json')
  texts = [str(i) * 100_000 for i in range(8)]
  failed = []

  def write(text):
    try:
      for _ in range(10):
        storage.write_atomically(path, text)
        assert path.read_text().rstrip('\n') in texts
    except BaseException as error:
      failed.append(error)

  threads = [threading.Thread(target=write, args=(x,)) for x in texts]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert failed == []
  assert os.listdir(tmp_path) == ['plan.json']


def test_a_failed_write_leaves_nothing(tmp_path):
  (tmp_path / 'plan.json').mkdir()
  with pytest.raises(OSError, match='directory'):
    storage.write_atomically(epath.Path(tmp_path / 'plan.json'), 'x')
  assert os.listdir(tmp_path) == ['plan.json']


# Buckets.


@contextlib.contextmanager
def _server(kind):
  """The environment of a child that has a bucket to itself."""
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = free.getsockname()[1]
  url = f'http://127.0.0.1:{port}'
  if kind == 's3':
    command = ['-m', 'moto.server', '-H', '127.0.0.1', '-p', str(port)]
    ours = {
      'AWS_ENDPOINT_URL_S3': url,
      'AWS_ACCESS_KEY_ID': 'test',
      'AWS_SECRET_ACCESS_KEY': 'test',
      'AWS_DEFAULT_REGION': 'us-east-1',
    }
  else:
    command = [
      '-m', 'gcp_storage_emulator', 'start', '--host=127.0.0.1',
      f'--port={port}', '--in-memory', f'--default-bucket={BUCKET}',
    ]  # fmt: skip
    ours = {
      'STORAGE_EMULATOR_HOST': url,  # gcsfs
      'TENSORSTORE_GCS_HTTP_URL': url,  # TensorStore, for Orbax
      # Asks another service, which there is none of, what kind of bucket it is.
      'GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT': 'false',
    }
  process = subprocess.Popen(
    [sys.executable, *command],
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )
  try:
    deadline = time.monotonic() + 60
    while True:
      assert process.poll() is None
      assert time.monotonic() < deadline
      try:
        urllib.request.urlopen(url, timeout=5).close()
        break
      except urllib.error.HTTPError as error:
        error.close()
        break
      except OSError:
        time.sleep(0.1)
    if kind == 's3':
      asked = urllib.request.Request(f'{url}/{BUCKET}', method='PUT')
      urllib.request.urlopen(asked, timeout=30).close()
    yield os.environ | ours
  finally:
    process.kill()
    process.wait()


@pytest.fixture(scope='module', params=['s3', 'gs'])
def bucket(request):
  """URL of a bucket that is there, and the environment to see it."""
  for name in NEEDS[request.param]:
    if importlib.util.find_spec(name) is None:
      pytest.skip(f'needs {name}; pip install -e .[gcs,s3,emulators]')
  with _server(request.param) as environment:
    yield f'{request.param}://{BUCKET}', environment


def _start(call, environment):
  """Starts a fresh interpreter that calls a function of this file."""
  here = pathlib.Path(__file__)
  code = (
    f'import sys; sys.path[:0] = [{str(ROOT)!r}, {str(here.parent)!r}]; '
    f'import {here.stem} as t; t.{call}'
  )
  return subprocess.Popen(
    [sys.executable, '-c', code],
    cwd='/',  # where nobody puts `gs:/...`
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def _call(call, environment):
  process = _start(call, environment)
  out, errors = process.communicate(timeout=300)
  assert process.returncode == 0, errors
  return out


def round_trip(url):
  """Run in a child: what comes back, what is refused, what is left."""
  import ledger_test as t

  block, folder = t.world(), epath.Path(url)
  ledger = t.Ledger.open(url, t.RECIPE)
  ledger.append('train', t.whole(block, [1, 2]))
  ledger.append('train', t.whole(block, [3, 0]))
  names = sorted(x.name for x in (folder / 'train').iterdir())
  assert len(names) == 2
  ledger.append('train', t.whole(block, [0, 1]))
  assert sorted(x.name for x in (folder / 'train').iterdir()) == names
  expected = t.canonical(t.whole(block, range(4)))
  for again in (ledger, t.Ledger.open(url, t.RECIPE), t.Ledger.read(url)):
    assert again.splits == ('train',)
    t.assert_same(again.view('train'), expected)
  with pytest.raises(t.RecipeMismatch, match='x: stored nothing, asked 1'):
    t.Ledger.open(url, t.RECIPE | {'x': 1})
  elsewhere = f'{url.partition("://")[0]}://no-such-bucket/run'
  with pytest.raises(LedgerError, match='cannot save') as error:
    t.Ledger.open(elsewhere, t.RECIPE)
  t.one_line(error)
  with pytest.raises(LedgerError, match='no ledger here'):
    t.Ledger.read(elsewhere)
  with pytest.raises(LedgerError, match=r'no run here \(plan\.json is mis'):
    stored.load_plan(elsewhere)


def test_a_ledger_in_a_bucket_keeps_its_rows(bucket):
  url, environment = bucket
  _call(f'round_trip({f"{url}/round-trip"!r})', environment)
