# SPDX-License-Identifier: Apache-2.0
"""Which controls there are, what they are asked and what they cost."""

import made
import numpy as np
import pytest
from made import Made, Thicket, gold, small_plan

from thicket.blocks import BASE
from thicket.comparison import compare
from thicket.plan import Condition
from thicket.ranking import Cost, rank
from thicket.stored import NotStored

N, K, ROWS, TESTED = 9, 3, 16, 12


def _plan(**changes):
  return small_plan(
    **{
      'population__size': N,
      'data__num_selection': ROWS,
      'data__num_validation': 8,
      'data__num_test': TESTED,
    }
    | changes
  )


@pytest.fixture(scope='module')
def every():
  asked = _plan()
  source, compared = made.compared(asked, Thicket(asked, 0, spread=0.5))
  return asked, source, compared


def test_every_control_is_a_row_in_order(every):
  _, _, compared = every
  found = [(x.id, x.kind, x.passes) for x in compared.systems]
  best = compared.temperature[compared.found.condition.template]
  other = 1.5 - best
  expected = [
    ('base', 'base', 1),
    ('selected-mean', 'ensemble', 1),
    ('best-member', 'ensemble', 1),
    ('vote-3', 'ensemble', 3),
    ('self-consistency-1', 'sampling', 1),
    ('self-consistency-3', 'sampling', 3),
    (f'samples-{other:g}', 'control', 3),
    ('unselected', 'control', 3),
    ('same-sigma', 'control', 3),
    ('best-on-test', 'bound', 1),
    ('oracle', 'bound', 3),
    ('oracle-samples', 'bound', 3),
  ]
  mandatory = [x for x in found if not x[0].startswith('prompt')]
  assert mandatory == expected
  assert compared.missing == []


def test_only_the_selection_split_is_chosen_on(every):
  """Nothing but what was chosen is asked on test, before it is chosen."""
  asked, source, compared = every
  own = asked.task.prompt_template
  tested = [x for x in source.asked if x[1] == 'test']
  templates = {condition.template for condition, *_ in tested}
  assert templates <= {own, compared.prompt}
  members = {
    i for condition, _, ids, _ in tested if not condition.temperature
    for i in ids
  }  # fmt: skip
  allowed = {BASE, *range(K), *compared.found.ranked}
  for found, _ in compared.populations.values():
    allowed |= set(found.ranked)
  same = [i for i in range(N) if i % 3 == _winning(asked, compared)][:K]
  assert members <= allowed | set(same)


def _winning(asked, compared):
  index = [i % 3 for i in compared.found.ranked]
  return max(index, key=index.count)


def test_votes_and_bounds_are_what_they_say(every):
  _, _, compared = every
  right = compared.ensemble.correct
  np.testing.assert_array_equal(
    compared.system('best-member').correct, right[0]
  )
  np.testing.assert_array_equal(
    compared.system('selected-mean').correct, right.mean(axis=0)
  )
  np.testing.assert_array_equal(
    compared.system('oracle').correct, right.any(axis=0)
  )
  best = right.mean(axis=1).max()
  assert compared.system('best-on-test').correct.mean() == best
  assert compared.system('nothing') is None


def test_costs_can_be_read_off(every):
  _, _, compared = every
  search = compared.found.cost
  assert search.answers == N * ROWS
  for name in ('selected-mean', 'best-member', 'vote-3', 'same-sigma'):
    assert compared.system(name).selection == search
  for name in ('base', 'unselected'):
    assert compared.system(name).selection == Cost()
  # Two temperatures times K samples of each selection question.
  sampled = compared.system('self-consistency-3')
  assert sampled.selection == Cost(2 * K * ROWS, 2 * K * ROWS * 9)
  assert sampled.tokens == K * 9
  vote = compared.system('vote-3')
  assert vote.tokens == sum(10 + i for i in compared.found.ranked)


def test_the_temperature_is_that_of_the_best_vote_on_selection():
  asked = _plan(controls__prompts=False, data__num_test=40)

  def say(condition, split, member, draw):
    answers = gold(asked, split)
    # On selection 1.0 is better, on test 0.5 is.
    better = {'selection': 1.0, 'test': 0.5, 'validation': 0.0}[split]
    n = len(answers) // (1 if condition.temperature == better else 2)
    return answers[:n] + [None] * (len(answers) - n)

  _, compared = made.compared(asked, say)
  own = asked.task.prompt_template
  assert compared.temperature == {own: 1.0}
  assert compared.temperature_scores == {own: {0.5: 0.5, 1.0: 1.0}}
  assert compared.system('self-consistency-3').correct.mean() == 0.5
  # Shown, and not maximised over.
  assert compared.system('samples-0.5').correct.mean() == 1.0
  assert compared.system('samples-0.5').kind == 'control'


def test_equal_temperatures_leave_the_lowest():
  asked = _plan(controls__prompts=False)
  same = lambda condition, split, *_: gold(asked, split)
  _, compared = made.compared(asked, same)
  assert compared.temperature[asked.task.prompt_template] == 0.5


def test_one_temperature_costs_no_choice():
  asked = _plan(controls__temperatures=(0.7,), controls__prompts=False)
  source, compared = made.compared(asked, Thicket(asked, 1))
  assert compared.system('self-consistency-3').selection == Cost()
  assert not any(
    condition.temperature and split == 'selection'
    for condition, split, *_ in source.asked
  )


def _prefers(asked, number):
  """The base is right only under one of the task's prompts."""
  template = asked.controls.prompts[number - 1]

  def say(condition, split, member, draw):
    answers = gold(asked, split)
    if condition.template == template:
      return answers
    return ['wrong'] * len(answers)

  return say


def test_the_best_prompt_is_measured_and_searched_under():
  asked = _plan(controls__prompt_search=5)
  source, compared = made.compared(asked, _prefers(asked, 3))
  chosen = asked.controls.prompts[2]
  assert compared.prompt == chosen
  assert compared.prompt_scores == dict(
    zip(asked.controls.prompts, (0.0, 0.0, 1.0), strict=True)
  )
  greedy = compared.system('prompt')
  assert greedy.correct.mean() == 1.0
  assert greedy.selection == Cost(3 * ROWS, 3 * ROWS * 9)
  sampled = compared.system('prompt-self-consistency-3')
  assert sampled.selection.answers == 3 * ROWS + 2 * K * ROWS
  voted = compared.system('prompt-vote-3')
  assert voted.selection.answers == 3 * ROWS + 5 * ROWS
  searched = {
    i for condition, split, ids, _ in source.asked
    if condition == Condition(chosen) and split == 'selection'
    for i in ids
  }  # fmt: skip
  assert searched == {BASE, *range(5)}
  assert compared.system('base').correct.mean() == 0.0


def test_the_own_prompt_needs_no_second_run():
  asked = _plan(controls__prompt_search=5)
  _, compared = made.compared(asked, _prefers(asked, 1))
  assert compared.prompt == asked.task.prompt_template
  assert not any(x.id.startswith('prompt') for x in compared.systems)
  assert len(compared.prompt_scores) == 3


def test_an_own_template_stands_before_the_tasks():
  asked = _plan(task__prompt_template='Q {question} =')
  assert asked.controls.prompts[0] == 'Q {question} ='
  assert len(asked.controls.prompts) == 4
  assert asked.greedy.template == 'Q {question} ='


def test_random_members_of_the_winning_sigma():
  asked = _plan(controls__temperatures=(), controls__prompts=False)

  def say(condition, split, member, draw):
    answers = gold(asked, split)
    # Selected: 8, 2 of sigma 0.4, and 4; random ones of 0.4: 2, 5, 8.
    n = {8: 12, 2: 10, 4: 9}.get(member, 0) if split == 'selection' else member
    return answers[:n] + [None] * (len(answers) - n)

  _, compared = made.compared(asked, say)
  assert compared.found.ranked == (8, 2, 4)
  same = compared.system('same-sigma')
  assert same.name == 'vote of 3 of sigma 0.4'
  assert same.tokens == 12 + 15 + 18
  # Whoever does not abstain elects: the most capable of 2, 5, 8.
  assert same.correct.sum() == 8
  assert compared.system('unselected').correct.sum() == 2


def test_controls_are_no_mirrored_pairs():
  asked = _plan(
    population__size=12,
    population__antithetic=True,
    controls__temperatures=(),
    controls__prompts=False,
  )

  def say(condition, split, member, draw):
    answers = gold(asked, split)
    # Selected: 8, 2 of sigma 0.2, and 4; of 0.2 there are 2, 3, 8 and 9.
    n = {8: 12, 2: 10, 4: 9}.get(member, 0) if split == 'selection' else member
    return answers[:n] + [None] * (len(answers) - n)

  _, compared = made.compared(asked, say)
  unselected = compared.system('unselected')
  assert unselected.tokens == 10 + 12 + 14  # of members 0, 2 and 4
  assert unselected.correct.sum() == 4
  same = compared.system('same-sigma')
  assert same.name == 'vote of 3 of sigma 0.2'
  assert same.tokens == 12 + 18 + 13  # 2, 8, and then a mirror image


def test_fewer_members_of_a_sigma_than_k_are_counted():
  asked = _plan(ensemble__sizes=(5,), controls__population_sizes=())
  _, compared = made.compared(asked, Thicket(asked, 2))
  assert compared.system('same-sigma').passes == 3
  assert compared.system('same-sigma').name.startswith('vote of 3 of sigma')


def test_populations_are_nested_searches(every):
  asked, source, compared = every
  assert sorted(compared.populations) == [4, 6, N]
  for size, (found, voters) in compared.populations.items():
    assert len(found.scores) == size
    alone = rank(source, asked, asked.greedy, size)
    assert found.ranked == alone.ranked
    assert voters.correct.shape == (K, TESTED)
  assert compared.populations[N][1] is compared.ensemble


def test_all_members_are_validated_when_asked(every):
  _, _, compared = every
  assert compared.validated.members.tolist() == [BASE, *range(N)]
  assert compared.validated.reward.shape == (1 + N, 8, 1)


@pytest.mark.parametrize(
  ('switch', 'off', 'gone'),
  [
    ('controls__temperatures', (), ('self-', 'samples', 'oracle-samples')),
    ('controls__unselected', False, ('unselected',)),
    ('controls__same_sigma', False, ('same-sigma',)),
    ('controls__prompts', False, ('prompt',)),
    ('controls__population_sizes', (), ()),
    ('controls__validation', False, ()),
  ],
)
def test_each_control_has_a_switch(switch, off, gone):
  asked = _plan(**{switch: off})
  source, compared = made.compared(asked, Thicket(asked, 0, spread=0.5))
  full = made.compared(_plan(), Thicket(asked, 0, spread=0.5))[0]
  assert not any(x.id.startswith(gone) for x in compared.systems if gone)
  assert len(source.asked) < len(full.asked)


def test_what_is_not_stored_is_said_and_the_rest_is_told():
  asked = _plan()
  source = Made(asked, Thicket(asked, 0))
  get = source.get

  def partly(condition, *args, **kwargs):
    if condition.temperature:
      raise NotStored('3 samples at T = 0.5: missing')
    return get(condition, *args, **kwargs)

  source.get = partly
  found = rank(source, asked, asked.greedy, N)
  compared = compare(source, asked, found)
  assert '3 samples at T = 0.5: missing' in compared.missing
  assert compared.system('vote-3') is not None
  assert compared.system('unselected') is not None
  assert compared.system('self-consistency-3') is None


def test_the_lenient_rule_is_kept_apart():
  asked = _plan(controls__temperatures=(), controls__prompts=False)

  def say(condition, split, member, draw):
    right = gold(asked, split)
    # The base knows every answer and writes none so that it can be read.
    return [(None, g) for g in right] if member == BASE else right

  _, compared = made.compared(asked, say)
  base = compared.system('base')
  assert (base.correct.mean(), base.lenient_correct.mean()) == (0.0, 1.0)
  assert (base.abstention_rate, base.without_vote) == (1.0, TESTED)
