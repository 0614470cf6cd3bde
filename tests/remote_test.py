# SPDX-License-Identifier: Apache-2.0
"""Models of a hub: a local server that speaks the few words of it we use."""

import hashlib
import http.server
import json
import logging
import os
import pathlib
import re
import subprocess
import sys
import threading
import traceback
import urllib.parse

import huggingface_hub
import huggingface_hub.constants
import made
import pytest
import tiny_folder

from thicket.models import hub, remote
from thicket.models.files import HubError, ModelFileError
from thicket.models.load import load
from thicket.plan import make_plan, make_recipe
from thicket.recipe import differences

ROOT = pathlib.Path(__file__).parents[1]
NAME = 'org/Tiny-1.5'
TOKEN = 'hf_neverToBeSeen0123456789'
FIRST, SECOND = 'a' * 40, 'b' * 40  # commits
CONFIG, TOKENIZER = 'config.json', 'tokenizer.json'


class Hub:
  """What a hub holds, what it was asked, and how it refuses.

  Attributes:
    commits: bytes of files by name, by commit.
    refs: commits by branch or tag.
    requests: (method, path, what was sent as authorization).
    error: status, code and message that all requests get, or None.
    gated: whether files, unlike their names, are refused.
  """

  def __init__(self, files):
    self.commits = {FIRST: files}
    self.refs = {'main': FIRST}
    self.requests = []
    self.error = None
    self.gated = False

  def answer(self, method, path):
    """Status, headers and body of the answer to a request."""
    if self.error:
      status, code, message = self.error
      return status, {'X-Error-Code': code, 'X-Error-Message': message}, b''
    path = urllib.parse.unquote(path.partition('?')[0])
    pattern = rf'/(api/models/)?{re.escape(NAME)}(?:/(\w+)/(.+))?'
    match = re.fullmatch(pattern, path)
    if not match:
      return 404, {'X-Error-Code': 'RepoNotFound'}, b''
    is_api, verb, rest = match.groups()
    if verb == 'resolve':
      return self._file(*rest.split('/', 1), method)
    commit = self.refs.get(rest or 'main', rest)
    if commit not in self.commits or not is_api:
      return 404, {'X-Error-Code': 'RevisionNotFound'}, b''
    files = self.commits[commit]
    if verb == 'tree':
      said = [
        {'type': 'file', 'path': name, 'size': len(data), 'oid': _etag(data)}
        for name, data in files.items()
      ]
    else:
      siblings = [{'rfilename': name} for name in files]
      said = {'id': NAME, 'sha': commit, 'siblings': siblings, 'tags': []}
    headers = {'Content-Type': 'application/json'}
    return 200, headers, json.dumps(said).encode()

  def _file(self, commit, name, method):
    if self.gated:
      return 403, {'X-Error-Code': 'GatedRepo'}, b''
    data = self.commits[commit].get(name)
    if data is None:
      return 404, {'X-Error-Code': 'EntryNotFound'}, b''
    return 200, {'ETag': f'"{_etag(data)}"', 'X-Repo-Commit': commit}, data

  def asked(self, method='GET'):
    """Names of the files that were fetched, sorted."""
    resolve = f'/{NAME}/resolve/'
    return sorted(
      path.removeprefix(resolve).split('/', 1)[1]
      for verb, path, _ in self.requests
      if verb == method and path.startswith(resolve)
    )


def _etag(data):
  return hashlib.sha1(data).hexdigest()


@pytest.fixture
def files(tmp_path):
  """Bytes by name of a model in three shards, and of what is not read."""
  folder = tiny_folder.write(tmp_path / 'source', shards=3)
  found = {path.name: path.read_bytes() for path in folder.iterdir()}
  return found | {
    'README.md': b'about',
    'pytorch_model.bin': b'never',
    'consolidated.safetensors': b'the same in other names',
  }


@pytest.fixture
def server(files, tmp_path, monkeypatch):
  """A hub that holds one model, with an empty cache to fetch it into."""
  result = Hub(files)

  class Handler(http.server.BaseHTTPRequestHandler):
    """Answers as `result` says."""

    protocol_version = 'HTTP/1.1'

    def do_GET(self):
      sent = self.headers.get('Authorization')
      result.requests.append((self.command, self.path, sent))
      status, headers, body = result.answer(self.command, self.path)
      self.send_response(status)
      for key, value in headers.items():
        self.send_header(key, value)
      self.send_header('Content-Length', str(len(body)))
      self.end_headers()
      if self.command == 'GET':
        self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *_):
      pass

  running = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
  running.daemon_threads = True
  thread = threading.Thread(target=running.serve_forever)
  thread.start()
  result.url = f'http://127.0.0.1:{running.server_port}'
  constants = huggingface_hub.constants
  files_at = result.url + '/{repo_id}/resolve/{revision}/{filename}'
  monkeypatch.setattr(constants, 'ENDPOINT', result.url)
  monkeypatch.setattr(constants, 'HUGGINGFACE_CO_URL_TEMPLATE', files_at)
  monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'cache'))
  monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
  monkeypatch.delenv('HF_TOKEN', raising=False)

  def stop():
    huggingface_hub.close_session()  # or an open connection is answered yet
    running.shutdown()
    running.server_close()
    thread.join()

  result.stop = stop
  yield result
  if thread.is_alive():
    stop()


def refused(name, revision=None):
  with pytest.raises(HubError) as caught:
    remote.fetch(name, revision)
  message = str(caught.value)
  assert '\n' not in message
  return message


def test_what_is_read_is_fetched_once_and_nothing_else(server, files):
  found = remote.fetch(NAME)
  assert found.commit == FIRST
  assert found.folder.name == FIRST
  shards = [f'model-{i:05d}-of-00003.safetensors' for i in range(3)]
  wanted = sorted(
    [CONFIG, TOKENIZER, 'tokenizer_config.json', tiny_folder.INDEX, *shards]
  )
  assert sorted(path.name for path in found.folder.iterdir()) == wanted
  for name in wanted:
    assert (found.folder / name).read_bytes() == files[name]
  assert server.asked() == wanted
  # The branch may have moved, so it is asked again; files are not.
  server.requests.clear()
  assert remote.fetch(NAME) == found
  assert server.asked() == []
  assert server.requests
  server.requests.clear()
  assert remote.fetch(NAME, FIRST) == found
  assert server.asked() == []


def test_a_model_of_the_hub_is_that_of_its_folder(server, tmp_path):
  model = load(NAME)
  assert (model.name, model.revision) == ('Tiny-1.5', FIRST)
  local = load(str(tmp_path / 'source'))
  assert model.sha256 == local.sha256
  assert local.revision is None
  assert model.decoder == local.decoder
  assert load(f'{NAME}@main').sha256 == load(NAME, revision=FIRST).sha256


def test_a_branch_that_moves_and_one_that_is_named(server, files):
  server.commits[SECOND] = files | {CONFIG: files[CONFIG] + b' '}
  server.refs |= {'main': SECOND, 'v1.0': FIRST, 'refs/pr/1': FIRST}
  assert remote.fetch(NAME).commit == SECOND
  for revision in ('v1.0', 'refs/pr/1', FIRST):
    assert remote.fetch(NAME, revision).commit == FIRST
  assert hub.resolve(NAME).sha256 != hub.resolve(f'{NAME}@v1.0').sha256


def test_one_file_of_weights_goes_before_an_index(server, files):
  data = b'not looked at here'
  server.commits[FIRST] = files | {tiny_folder.WEIGHTS: data}
  folder = remote.fetch(NAME).folder
  assert (folder / tiny_folder.WEIGHTS).read_bytes() == data
  assert tiny_folder.WEIGHTS in server.asked()
  assert not any('-of-' in name for name in server.asked())


def test_without_network_the_cache_answers_and_says_so(
  server, caplog, monkeypatch
):
  found = remote.fetch(NAME)
  remote.fetch(NAME, 'main')
  assert not caplog.records
  server.stop()
  with caplog.at_level(logging.WARNING):
    assert remote.fetch(NAME) == found
  assert f'{NAME}: taken from the cache, commit {FIRST} (the hub is out of' in (
    caplog.text
  )
  assert 'is not in the cache' in refused('org/another')
  assert 'the hub is out of reach' in refused(NAME, 'v2')
  caplog.clear()
  monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
  with caplog.at_level(logging.WARNING):
    assert remote.fetch(NAME) == found
  assert f'commit {FIRST} (HF_HUB_OFFLINE is set)' in caplog.text
  assert refused('org/another') == (
    f'org/another@main is not in the cache '
    f'{huggingface_hub.constants.HF_HUB_CACHE}, or not whole, and '
    'HF_HUB_OFFLINE is set; fetch it once with network, or give the path of a '
    'folder'
  )


def test_a_hub_that_is_down_is_one_out_of_reach(server, caplog):
  found = remote.fetch(NAME)
  server.error = (503, '', 'maintenance')
  with caplog.at_level(logging.WARNING):
    assert remote.fetch(NAME) == found
  assert re.search('the hub is out of reach: .*503', caplog.text)


def test_offline_nothing_is_asked(server, monkeypatch):
  remote.fetch(NAME)
  server.requests.clear()
  monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
  remote.fetch(NAME)
  assert server.requests == []


def test_half_a_model_in_the_cache_is_none(server, monkeypatch):
  folder = remote.fetch(NAME).folder
  (folder / 'model-00001-of-00003.safetensors').unlink()
  monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
  assert 'or not whole' in refused(NAME)
  monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', False)
  assert remote.fetch(NAME, FIRST).folder == folder
  assert (folder / 'model-00001-of-00003.safetensors').exists()


def test_a_cache_written_by_another_tool_is_used(server, files, monkeypatch):
  # As huggingface_hub has laid it out for years: no list of files in it.
  home = pathlib.Path(huggingface_hub.constants.HF_HUB_CACHE)
  home /= 'models--org--Tiny-1.5'
  (home / 'blobs').mkdir(parents=True)
  (home / 'refs').mkdir()
  (home / 'refs' / 'main').write_text(SECOND)
  folder = home / 'snapshots' / SECOND
  folder.mkdir(parents=True)
  for name in [name for name in files if not name.startswith('p')]:
    blob = home / 'blobs' / _etag(files[name])
    blob.write_bytes(files[name])
    (folder / name).symlink_to(os.path.relpath(blob, folder))
  monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
  assert load(NAME).revision == SECOND
  assert load(NAME, revision=SECOND).revision == SECOND
  assert server.requests == []


def test_the_commit_is_in_the_recipe_and_the_revision_is_a_setting(server):
  config = made.config(model__name=NAME, model__revision='main')
  plan = make_plan(config)
  assert server.requests == []  # a plan is made offline
  model = load(**config.model)
  recipe = make_recipe(config, plan, model, plan.greedy)
  assert recipe['model']['revision'] == FIRST
  assert recipe['model']['name'] == 'Tiny-1.5'
  server.commits[SECOND] = server.commits[FIRST] | {'README.md': b'new'}
  server.refs['v2'] = SECOND
  config.model.revision = 'v2'
  moved = make_recipe(config, plan, load(**config.model), plan.greedy)
  assert differences(recipe, moved) == [
    f"model.revision: stored '{FIRST}', asked '{SECOND}'"
  ]
  config.model.revision = '../main'
  with pytest.raises(HubError, match=r"revision '\.\./main' is none"):
    make_plan(config)


def test_a_recipe_of_a_local_model_has_no_revision(server, tmp_path):
  config = made.config(model__name=str(tmp_path / 'source'))
  plan = make_plan(config)
  model = load(**config.model)
  recipe = make_recipe(config, plan, model, plan.greedy)
  assert recipe['model'].keys() == {'name', 'sha256', 'dtype', 'tree'}


# What the hub refuses.


def test_models_that_are_not_there(server):
  message = refused('org/other')
  assert message == (
    'org/other@main: there is no such model; check the name, if it is private '
    'set HF_TOKEN to a token that may read it'
  )
  assert 'there is no such revision; give a branch' in refused(NAME, 'v9')
  assert 'there is no such revision' in refused(NAME, 'c' * 40)
  assert 'is no name of a model: ' in refused('org/--x')


def test_models_behind_consent(server):
  server.gated = True
  assert refused(NAME) == (
    f'{NAME}@main: its owner asks for consent; give it on its page, and set '
    'HF_TOKEN to a token that may read it'
  )


@pytest.mark.parametrize(
  ('name', 'problem'),
  [
    ('pytorch_model.bin', "weights are pickled ('pytorch_model.bin')"),
    ('tiny.Q4_1.gguf', 'has GGUF files only; fetch tiny.Q4_1.gguf and give'),
    ('README.md', 'has no model.safetensors and no model.safetensors.index'),
  ],
)
def test_models_without_safetensors_are_not_fetched(name, problem, server):
  server.commits[FIRST] = {CONFIG: b'{}', name: b'never'}
  assert problem in refused(NAME)
  assert server.asked() == []


def test_an_index_that_leaves_the_folder_fetches_nothing(server):
  index = {'weight_map': {'a': '../../../x.safetensors'}}
  server.commits[FIRST] = {
    CONFIG: b'{}',
    tiny_folder.INDEX: json.dumps(index).encode(),
  }
  with pytest.raises(ModelFileError, match='which is not inside the folder'):
    remote.fetch(NAME)
  assert server.asked() == [CONFIG, tiny_folder.INDEX]


def test_a_shard_that_the_hub_does_not_have(server, files):
  name = 'model-00002-of-00003.safetensors'
  server.commits[FIRST] = {k: x for k, x in files.items() if k != name}
  with pytest.raises(ModelFileError, match=f"no file '{name}' in it"):
    hub.resolve(NAME)


# The token.


def test_the_token_is_sent_from_its_variable_alone(
  server, monkeypatch, tmp_path, caplog
):
  stored = tmp_path / 'token'
  stored.write_text('hf_ofAnotherTool')
  monkeypatch.setattr(huggingface_hub.constants, 'HF_TOKEN_PATH', str(stored))
  monkeypatch.setenv('HUGGING_FACE_HUB_TOKEN', 'hf_ofAnotherTool')
  remote.fetch(NAME)
  assert {sent for _, _, sent in server.requests} == {None}
  server.requests.clear()
  server.commits[SECOND] = server.commits[FIRST] | {CONFIG: b'{"a": 1}'}
  server.refs['main'] = SECOND
  monkeypatch.setenv('HF_TOKEN', TOKEN)
  with caplog.at_level(logging.DEBUG):
    remote.fetch(NAME)
  assert caplog.text
  assert TOKEN not in caplog.text
  assert {sent for _, _, sent in server.requests} == {f'Bearer {TOKEN}'}


@pytest.mark.parametrize(
  ('status', 'code'),
  [
    (401, 'RepoNotFound'),
    (403, 'GatedRepo'),
    (404, 'RevisionNotFound'),
    (400, ''),
    (429, ''),
    (500, ''),
  ],
)
def test_the_token_is_never_said(status, code, server, monkeypatch, caplog):
  monkeypatch.setenv('HF_TOKEN', TOKEN)
  # A server that says what it was sent.
  server.error = (status, code, f'no rights for {TOKEN}')
  with caplog.at_level(logging.INFO), pytest.raises(HubError) as caught:
    remote.fetch(NAME)
  assert TOKEN in server.requests[0][2]
  error = caught.value
  said = ''.join(traceback.format_exception(error))
  assert TOKEN not in said
  assert TOKEN not in str(error)
  assert TOKEN not in caplog.text


def test_environment_variables_of_the_hub_are_respected(server, tmp_path):
  program = (
    'import sys; from thicket.models.load import load; '
    'model = load(sys.argv[1]); print(model.name, model.revision)'
  )
  environment = os.environ | {
    'HF_ENDPOINT': server.url,
    'HF_HOME': str(tmp_path / 'home'),
  }

  def run(**more):
    return subprocess.run(
      [sys.executable, '-c', program, NAME],
      cwd=ROOT,
      env=environment | more,
      capture_output=True,
      text=True,
      check=False,
    )

  done = run(HF_HUB_OFFLINE='1')
  assert 'is not in the cache' in done.stderr
  assert not server.requests
  for more in ({}, {'HF_HUB_OFFLINE': '1'}):
    done = run(**more)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f'Tiny-1.5 {FIRST}\n'
  assert (tmp_path / 'home' / 'hub' / 'models--org--Tiny-1.5').is_dir()


def test_a_line_break_behind_the_token_is_not_sent(server, monkeypatch):
  monkeypatch.setenv('HF_TOKEN', f'{TOKEN}\n')
  remote.fetch(NAME)
  assert {sent for _, _, sent in server.requests} == {f'Bearer {TOKEN}'}


@pytest.mark.parametrize('token', [f'{TOKEN} x', f'{TOKEN}\nx', f'{TOKEN}\xe9'])
def test_what_is_no_token_is_not_shown(token, server, monkeypatch):
  monkeypatch.setenv('HF_TOKEN', token)
  with pytest.raises(HubError, match='HF_TOKEN holds no token') as caught:
    remote.fetch(NAME)
  assert TOKEN not in ''.join(traceback.format_exception(caught.value))
  assert not server.requests
