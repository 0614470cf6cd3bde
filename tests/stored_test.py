# SPDX-License-Identifier: Apache-2.0
"""A report without model or data: what a folder must hold."""

import json

import ml_collections
import pytest
from made import config

from thicket.ledger import LedgerError
from thicket.plan import make_plan
from thicket.stored import (
  NotStored,
  Stored,
  load_plan,
  save_command,
  save_plan,
)


def _saved(tmp_path, **changes):
  asked = config(**changes)
  plan = make_plan(asked)
  save_plan(tmp_path, asked, plan)
  return plan


def test_a_plan_survives(tmp_path):
  plan = _saved(
    tmp_path,
    data__num_validation=8,
    controls__temperatures=(0.3, 0.7),
    selection__rerank=2,
    task__prompt_template='Q {question} =',
  )
  again = load_plan(tmp_path)
  assert again.splits == plan.splits
  assert again.population == plan.population
  assert (again.sizes, again.selection) == (plan.sizes, plan.selection)
  assert again.controls == plan.controls
  assert again.greedy == plan.greedy
  assert again.task == plan.task


def test_the_model_s_file_may_be_gone(tmp_path):
  asked = config(model__name=str(tmp_path / 'gone.gguf'))
  splits = make_plan(config()).splits
  save_plan(tmp_path, asked, make_plan(asked, splits))
  assert load_plan(tmp_path).splits == splits


def test_a_folder_without_a_run_is_named(tmp_path):
  with pytest.raises(LedgerError, match=r'no run here \(plan\.json is miss'):
    Stored(tmp_path)


@pytest.mark.parametrize(
  'content',
  [
    '',
    '{',
    '[]',
    '{"config": {}}',
    '{"config": {}, "examples": {}}',
    '{"config": 3, "examples": []}',
  ],
)
def test_a_broken_plan_is_named(content, tmp_path):
  (tmp_path / 'plan.json').write_text(content)
  with pytest.raises(
    LedgerError, match=r'plan\.json: cannot be read'
  ) as caught:
    Stored(tmp_path)
  assert '\n' not in str(caught.value)


def test_an_edited_plan_is_checked(tmp_path):
  _saved(tmp_path)
  path = tmp_path / 'plan.json'
  content = json.loads(path.read_text())
  content['config']['ensemble']['sizes'] = [99]
  path.write_text(json.dumps(content))
  with pytest.raises(LedgerError, match=r'asks for K = 99 of N = 4'):
    Stored(tmp_path)


def test_nothing_answered_yet_is_said(tmp_path):
  plan = _saved(tmp_path)
  stored = Stored(tmp_path)
  with pytest.raises(NotStored, match=plan.greedy.folder):
    stored.get(plan.greedy, 'selection', [0])


def test_the_configuration_and_the_command_are_kept(tmp_path):
  _saved(tmp_path, population__size=7)
  assert Stored(tmp_path).config.population.size == 7
  assert Stored(tmp_path).command is None
  save_command(tmp_path, 'python -m thicket.main')
  assert Stored(tmp_path).command == 'python -m thicket.main'
  with pytest.raises(LedgerError, match=r'command\.txt: cannot be written'):
    save_command(tmp_path / 'none', 'python')


def test_a_place_that_cannot_be_written_is_named(tmp_path):
  (tmp_path / 'file').write_text('')
  asked = config()
  with pytest.raises(LedgerError, match='cannot be written'):
    save_plan(tmp_path / 'file', asked, make_plan(asked))


def test_a_configuration_is_plain_json(tmp_path):
  _saved(tmp_path)
  stored = json.loads((tmp_path / 'plan.json').read_text())
  assert ml_collections.ConfigDict(stored['config']).seed == 0
  assert len(stored['examples']['test']) == 16
