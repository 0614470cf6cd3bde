# SPDX-License-Identifier: Apache-2.0
"""Runs in buckets, against servers that speak their protocols."""

import contextlib
import importlib.util
import os
import pathlib
import re
import signal
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


def _call_of(call):
  """Code that calls a function of this file."""
  here = pathlib.Path(__file__)
  return (
    f'import sys; sys.path[:0] = [{str(ROOT)!r}, {str(here.parent)!r}]; '
    f'import {here.stem} as t; t.{call}'
  )


def serve_gs(port):
  """Run in a child: the emulator, with a header that the real service sends.

  TensorStore reads it where it reads a file that it is about to replace.
  """
  from gcp_storage_emulator.handlers import objects
  from gcp_storage_emulator.server import create_server

  plain = objects.download

  def download(request, response, storage, *args, **kwargs):
    plain(request, response, storage)
    if response.status < 300:
      found = storage.get_file_obj(
        request.params['bucket_name'], request.params['object_id']
      )
      response['x-goog-generation'] = found['generation']

  objects.download = download
  create_server('127.0.0.1', port, True, BUCKET).run()


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
    command = ['-c', _call_of(f'serve_gs({port})')]
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
  return subprocess.Popen(
    [sys.executable, '-c', _call_of(call)],
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


BLOCKS = 24  # of two members and a half of the rows each


def append_all(url):
  """Run in a child that is killed: as in the test of folders."""
  import ledger_test as t

  t.append_all(url, BLOCKS)


def after_kill(url, finished):
  """Run in a child: prints how many ranges are half there; none is lost."""
  import ledger_test as t

  folder, blocks = epath.Path(url) / 'train', list(t.plan(BLOCKS))
  partial = lambda: sum(
    not (x / 'commit_success.txt').exists() for x in folder.iterdir()
  )
  print(partial())
  for ledger in (t.Ledger.read(url), t.Ledger.open(url, t.RECIPE)):
    for i in finished:
      assert ledger.seen('train', blocks[i].members, blocks[i].rows).all(), i
  assert partial() == 0


def finish(url):
  """Run in a child: after that, nothing is missing or too much."""
  import ledger_test as t

  t.append_all(url, BLOCKS)
  expected = t.canonical(*t.plan(BLOCKS))
  t.assert_same(t.Ledger.read(url).view('train'), expected)


def test_no_credentials_are_one_line(tmp_path):
  if importlib.util.find_spec('s3fs') is None:
    pytest.skip('needs s3fs; pip install -e .[s3]')
  environment = {
    name: value for name, value in os.environ.items() if 'AWS' not in name
  }
  environment |= {'AWS_EC2_METADATA_DISABLED': 'true', 'HOME': str(tmp_path)}
  url = f's3://{BUCKET}/run'
  done = _module(environment, 'thicket.report', f'--workdir={url}')
  assert done.returncode == 2
  assert done.stderr.count('\n') == 1
  assert done.stderr.startswith(f'thicket: {url}/plan.json: cannot be read: ')
  assert 'credentials' in done.stderr


@pytest.mark.slow
def test_killed_writers_lose_nothing_they_finished(bucket):
  url, environment = f'{bucket[0]}/killed', bucket[1]
  finished, num_partial = set(), 0
  for delay in (0.0, 0.1, 0.2):
    process = _start(f'append_all({url!r})', environment)
    assert process.stdout.readline() == 'ready\n', process.stderr.read()
    line = process.stdout.readline()
    time.sleep(delay)  # into the next save, which takes 0.3 s
    process.send_signal(signal.SIGKILL)
    lines = [line, *process.communicate()[0].splitlines()]
    assert process.returncode == -signal.SIGKILL
    finished |= {int(line) for line in lines}
    call = f'after_kill({url!r}, {sorted(finished)})'
    num_partial += int(_call(call, environment))
  assert num_partial >= 1
  assert len(finished) < BLOCKS
  _call(f'finish({url!r})', environment)


# Whole runs.


def _main(environment, *flags, config='configs/llm.py:quick'):
  """A command that runs from the root of the repository."""
  return subprocess.Popen(
    [sys.executable, '-m', 'thicket.main', f'--config={config}', *flags],
    cwd=ROOT,
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def _finish(process):
  out, errors = process.communicate(timeout=300)
  assert process.returncode == 0, errors
  return out


def _module(environment, *command):
  return subprocess.run(
    [sys.executable, '-m', *command],
    cwd=ROOT,
    env=environment,
    capture_output=True,
    text=True,
    check=False,
  )


def is_same_run(url, folder):
  """Run in a child: the rows, metrics and findings of two runs are equal."""
  import json

  from same import assert_same

  from thicket.ledger import Ledger

  url, folder = epath.Path(url), epath.Path(folder)
  names = sorted(x.name for x in (folder / 'ledger').iterdir())
  assert sorted(x.name for x in (url / 'ledger').iterdir()) == names
  for name in names:
    ours, theirs = (Ledger.read(x / 'ledger' / name) for x in (url, folder))
    assert ours.splits == theirs.splits
    for split in theirs.splits:
      assert_same(ours.view(split), theirs.view(split))
  lines = [
    sorted((x / 'metrics.jsonl').read_text().splitlines())
    for x in (url, folder)
  ]
  assert lines[0] == lines[1]
  ours, theirs = (
    json.loads((x / 'summary.json').read_text()) for x in (url, folder)
  )
  assert ours['work']['stored'] == theirs['work']['stored']
  for part in theirs.keys() - {'work'}:
    assert ours[part] == theirs[part], part
  assert (url / 'report.html').read_text().startswith('<!')


def _small(model):
  return (
    f'--config.model.name={model}',
    '--config.task.prompt_template=Q {question}=',
    '--config.population.sigmas=(0.05,0.2)',
    '--config.run.members_per_range=1',
  )


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(bucket, model, tmp_path):
  url, environment = f'{bucket[0]}/run', bucket[1]
  folder = tmp_path / 'run'
  _finish(_main(os.environ, *_small(model), f'--workdir={folder}'))
  process = _main(environment, *_small(model), f'--workdir={url}')
  for line in process.stderr:
    if 'base on selection: 1 of 1' in line:
      break  # saved, and members are next
  process.send_signal(signal.SIGKILL)
  process.communicate()
  assert process.returncode == -signal.SIGKILL
  done = _module(environment, 'thicket.report', f'--workdir={url}')
  assert done.returncode == 2, done.stderr
  assert 'Traceback' not in done.stderr
  # TensorStore may log that it found no credentials for gs://.
  *_, said = done.stderr.splitlines()
  assert said.startswith('thicket: ')
  assert 'answers are missing' in said
  out = _finish(_main(environment, *_small(model), f'--workdir={url}'))
  assert 'base on selection: 1 of 1 stored' in out
  assert f'report    {url}/report.html' in out
  _call(f'is_same_run({url!r}, {str(folder)!r})', environment)
  done = _module(environment, 'thicket.report', f'--workdir={url}')
  assert done.returncode == 0, done.stderr
  _call(f'is_same_run({url!r}, {str(folder)!r})', environment)
  other = '--config.population.sigmas=(0.3,)'
  process = _main(environment, *_small(model), f'--workdir={url}', other)
  assert 'noise.sigmas: stored' in process.communicate()[1]
  assert process.returncode == 2
  assert not list(ROOT.glob('*:'))  # a folder named gs: or s3:


@pytest.mark.slow
def test_slices_in_a_bucket_are_one_run(bucket, model, tmp_path):
  url, environment = f'{bucket[0]}/slices', bucket[1]
  flags = (*_small(model), f'--workdir={url}')
  jobs = [_main(environment, *flags, f'--shard={i}/2') for i in range(2)]
  for job in jobs:
    assert f'--workdir={url}' in _finish(job)
  done = _module(environment, 'thicket.ledger', 'merge', f'--workdir={url}')
  assert done.returncode == 0, done.stderr
  assert 'complete' in done.stdout
  out = _finish(_main(environment, *flags))
  assert '4 members on selection: 4 of 4 stored' in out


@pytest.mark.slow
def test_a_run_on_arrays_in_a_bucket(bucket, tmp_path):
  url, environment = f'{bucket[0]}/signals', bucket[1]
  flags = (
    f'--workdir={url}',
    '--config.model.width=16',
    '--config.pretraining.on=("none",)',
    '--config.pretraining.steps=20',
    '--config.population.size=16',
    '--config.ensemble.sizes=(1,3)',
  )
  config = 'configs/signals.py:quick'
  _finish(_main(environment, *flags, config=config))
  _call(f'is_array_run({url!r})', environment)
  _finish(_main(environment, *flags, config=config))


def is_array_run(url):
  """Run in a child: tables, figures and rewards are there."""
  import json

  from thicket.ledger import Ledger

  folder = epath.Path(url)
  summary = json.loads((folder / 'summary.json').read_text())
  (problem,) = summary['problems']
  ledger = Ledger.read(folder / problem['name'] / 'ledger')
  assert ledger.view('selection').members.tolist() == [-1, *range(16)]
  figures = list((folder / 'figures').iterdir())
  assert figures
  assert all(x.read_bytes().startswith(b'\x89PNG') for x in figures)
