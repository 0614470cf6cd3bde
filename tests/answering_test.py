# SPDX-License-Identifier: Apache-2.0
"""Members at work on a tiny model: in which order, batched how, counted how."""

import io
import time

import made
import numpy as np
import pytest
import same
import tiny_gguf
from rich.console import Console

from thicket import (
  batching,
  engine,
  evaluation,
  run,
  tables,
)
from thicket.population import BASE
from thicket.tasks.base import TaskError

ROWS, N, G = 8, 3, 8


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  """The path of a model file, of answers of one to three tokens."""
  path = tmp_path_factory.mktemp('model') / 'tiny.gguf'
  return str(tiny_gguf.write_answering(path, seed=9))


@pytest.fixture
def start(model, tmp_path, monkeypatch):
  """Makes a run on one device; a__b sets a.b."""
  # Answers of a few tokens are not worth padding a prompt.
  monkeypatch.setattr(batching, 'PROMPT_TOKEN', 0.0)
  jobs = []

  def start(folder='work', **changes):
    settings = {
      'model__name': model,
      'task__prompt_template': 'Q {question}=',
      'data__num_selection': 20,
      'data__num_test': 12,
      'population__size': N,
      'population__sigmas': (0.05, 0.2),
      'ensemble__sizes': (1,),
      'decode__max_new_tokens': G,
      'decode__rows': ROWS,
      'run__members_per_range': 1,
    } | changes
    console = Console(file=io.StringIO(), width=80)
    jobs.append(
      run.Run(made.config(**settings), str(tmp_path / folder), console)
    )
    return jobs[-1]

  with made.devices(1):
    yield start
  for job in jobs:
    job._work.close()


@pytest.fixture
def batches(monkeypatch):
  """Batches of each round of answering: row numbers, batch by batch."""
  found = []
  answer_all = engine.answer_all

  def noted(the_engine, decoding, prefix, batches):
    found.append([x.prompt[x.live].tolist() for x in batches])
    return answer_all(the_engine, decoding, prefix, batches)

  monkeypatch.setattr(engine, 'answer_all', noted)
  return found


def _questions(job, split='selection'):
  return job._desk(job.plan.greedy).questions[split]


def _grouped(job, answers=None, split='selection', which=None):
  batches = _questions(job, split).batches(which, answers)
  return [x.prompt[x.live].tolist() for x in batches]


def _get(job, members, split='selection', **more):
  return job.get(job.plan.greedy, split, members, **more)


def _lengths(block):
  assert block.members[0] == BASE
  return block.num_tokens[0, :, 0]


# Order.


def test_the_next_chunk_is_dispatched_before_one_is_judged(start, monkeypatch):
  job, events = start(), []
  generate, judge = job._machine.engine.generate, evaluation.Judge.__call__

  def generating(decoding, weights, ids, *rest):
    events.append(('dispatch', int(ids[0])))
    return generate(decoding, weights, ids, *rest)

  def judging(self, questions, which, batches, generated, ids, *rest, **more):
    events.append(('judge', int(ids[0])))
    return judge(self, questions, which, batches, generated, ids, *rest, **more)

  monkeypatch.setattr(job._machine.engine, 'generate', generating)
  monkeypatch.setattr(evaluation.Judge, '__call__', judging)
  _get(job, range(N))
  three = len(_grouped(job))
  assert events == [
    *[('dispatch', 0)] * three,
    *[('dispatch', 1)] * three,
    ('judge', 0),
    *[('dispatch', 2)] * three,
    ('judge', 1),
    ('judge', 2),
  ]


@pytest.mark.parametrize('members', [[BASE, 1, 0], [1, BASE, 0]])
def test_the_base_is_asked_first_and_batches_the_others(
  start, batches, members
):
  job = start()
  lengths = _lengths(_get(job, members))
  assert len(set(lengths)) > 1  # or there is nothing to batch by
  assert batches == [_grouped(job), _grouped(job, lengths)]
  assert batches[0] != batches[1]


def test_the_base_is_asked_first_though_it_lacks_other_rows(start, batches):
  job = start()
  _get(job, [0], rows=8)
  lengths = _lengths(_get(job, [0, BASE]))
  rest = np.arange(8, 20)
  assert batches[1:] == [
    _grouped(job), _grouped(job, lengths[rest], which=rest)
  ]  # fmt: skip


def test_each_split_and_condition_has_lengths_of_its_own(start, batches):
  job = start()
  selection = _lengths(_get(job, [BASE]))
  _get(job, [0], 'test')  # of which the base has answered nothing
  test = _lengths(_get(job, [BASE, 1], 'test'))
  sampled = job.plan.sampled(1.0, job.plan.task.prompt_template)
  samples = job.get(sampled, 'selection', [BASE], range(3)).num_tokens
  _get(job, [0])
  assert batches == [
    _grouped(job),
    *[_grouped(job, split='test')] * 2,
    _grouped(job, test, 'test'),
    _grouped(job),
    _grouped(job, samples[0, :, 0]),  # not those of another draw
    _grouped(job, selection),
  ]


def test_rows_of_a_race_are_batched_among_themselves(start, batches):
  job = start()
  lengths = _lengths(_get(job, [BASE]))
  _get(job, [0], rows=12)
  _get(job, [0])
  first, rest = np.arange(12), np.arange(12, 20)
  assert batches[1:] == [
    _grouped(job, lengths[which], which=which) for which in (first, rest)
  ]


def test_what_resumes_is_batched_as_it_would_have_been(
  start, batches, monkeypatch
):
  job = start('whole')
  whole = _get(job, [BASE, *range(N)])
  undisturbed = list(batches)
  judge, calls = evaluation.Judge.__call__, []

  def judging(self, *args, **more):
    calls.append(args)
    if len(calls) in (1, 3):
      raise KeyboardInterrupt
    return judge(self, *args, **more)

  monkeypatch.setattr(evaluation.Judge, '__call__', judging)
  for _ in range(2):  # before the base is done, and after it
    job = start('stopped')
    with pytest.raises(KeyboardInterrupt):
      _get(job, [BASE, *range(N)])
  assert job.held(job.plan.greedy, 'selection', [BASE]).seen.all()
  batches.clear()
  job = start('stopped')
  same.assert_same(_get(job, [BASE, *range(N)]), whole)
  assert batches == undisturbed[1:]


# Judging in processes.


def test_processes_give_the_same_blocks(start):
  asked = [BASE, *range(N)]
  here = _get(start('here', run__keep_texts='all'), asked)
  there = start('there', run__keep_texts='all', run__judge_processes=2)
  same.assert_same(_get(there, asked), here)
  assert len(here.answers) > 3


@pytest.mark.parametrize('processes', [0, 1])
def test_a_reward_that_fails_loses_no_judged_member(
  start, processes, monkeypatch
):
  job = start(run__judge_processes=processes, run__members_per_range=8)
  judges, calls = job._work._judge._judges, []

  def failing(self, asked):
    calls.append(asked)
    if len(calls) == 3:
      raise TaskError('the third fails')
    return call(self, asked)

  call = type(judges).__call__
  monkeypatch.setattr(type(judges), '__call__', failing)
  with pytest.raises(TaskError, match='the third fails'):
    _get(job, range(N))
  held = start().held(job.plan.greedy, 'selection', range(N))
  assert held.seen.all(axis=(1, 2)).tolist() == [True, True, False]


def test_finishing_ends_the_processes(start):
  job = start(
    run__judge_processes=1,
    controls__temperatures=(),
    controls__prompts=False,
    controls__unselected=False,
    controls__same_sigma=False,
    population__size=1,
  )
  job.finish()
  assert job._work._judge.memo_hits + len(job._work._judge._memo) == 2 * (
    20 + 12
  )
  assert job._work._judge._judges._pool is None


# Counts.


def test_finished_and_filling_rows_are_counted(start):
  job = start()
  block = _get(job, [BASE, 0, 1])
  lengths = block.num_tokens[:, :, 0]
  groups = [np.array(x) for x in _grouped(job)]
  spent = batching.predicted(groups, lengths[0], ROWS)
  groups = [np.array(x) for x in _grouped(job, lengths[0])]
  for member in (1, 2):
    spent += batching.predicted(groups, lengths[member], ROWS)
  facts = job._work.facts()
  assert spent.finished > 0
  assert spent.filler > 0
  assert facts['finished_share'] == spent.finished_share
  assert facts['filler_share'] == spent.filler_share


def test_known_answers_are_counted(start):
  job = start(population__sigmas=(0.0,))  # members say what the base says
  _get(job, [BASE])
  before = job._work.facts()['memo_hits']
  assert before == 0
  _get(job, [0, 1])
  assert job._work.facts()['memo_hits'] == 2 * 20


def test_devices_are_idle_while_a_slow_judge_holds_the_host(start, monkeypatch):
  job = start(population__size=7)
  _get(job, [BASE, 0])  # compiles

  def spent(members):
    before = job._work.facts()
    _get(job, members)
    after = job._work.facts()
    shares = [facts['device_idle_share'] for facts in (before, after)]
    assert all(0 <= share <= 1 for share in shares)
    old, new = before['seconds'], after['seconds']
    return shares[1] * new - shares[0] * old, new - old

  fast, judge = spent([1, 2, 3])[1] / 3, evaluation.Judge.__call__

  def slow(self, *args, **more):
    time.sleep(10 * fast)  # ten times a chunk, its share of saving included
    return judge(self, *args, **more)

  monkeypatch.setattr(evaluation.Judge, '__call__', slow)
  idle, seconds = spent([4, 5, 6])
  assert idle > 0.3 * seconds


def test_the_line_of_work_tells_the_shares(start):
  job = start()
  _get(job, [BASE, 0])
  facts = job._facts()
  shares = facts['work']['this_run']
  shares |= {'finished_share': 0.254, 'device_idle_share': 0.0}
  line = tables.work_line(facts['work'])
  assert '25.4% of row-steps for rows that had finished' in line
  assert '0.0% of the time without work for the devices' in line
  # A summary written before there were shares.
  for key in ('finished_share', 'device_idle_share'):
    del shares[key]
  assert tables.work_line(facts['work']).count('%') == 0
