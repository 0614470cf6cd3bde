# SPDX-License-Identifier: Apache-2.0
"""Answers by rule instead of by a model, with all that is asked on record."""

import contextlib
import pathlib

import jax
import numpy as np
import pytest

from thicket import sharding
from thicket.arguments import load_config
from thicket.blocks import BASE, Block
from thicket.comparison import compare
from thicket.plan import make_plan
from thicket.ranking import rank

ROOT = pathlib.Path(__file__).parents[1]


@contextlib.contextmanager
def devices(count):
  """Runs get a mesh of so many devices."""
  make = sharding.make_mesh
  with pytest.MonkeyPatch.context() as patch:
    some = lambda model=1: make(jax.devices()[:count], model)
    patch.setattr(sharding, 'make_mesh', some)
    yield


def config(**changes):
  """`configs/llm.py:quick` with some settings changed; a__b sets a.b."""
  made = load_config(f'{ROOT / "configs" / "llm.py"}:quick')
  for name, value in changes.items():
    *path, last = name.split('__')
    node = made
    for key in path:
      node = node[key]
    assert last in node
    node[last] = value
  return made


def plan(**changes):
  """The plan of such a configuration."""
  return make_plan(config(**changes))


def small_plan(**changes):
  """A plan with every control, K = 3, three sigmas and two temperatures."""
  return plan(
    **{
      'population__sigmas': (0.1, 0.2, 0.4),
      'ensemble__sizes': (1, 3),
      'controls__temperatures': (0.5, 1.0),
      'controls__population_sizes': (4, 6),
      'controls__validation': True,
    }
    | changes
  )


def compared(asked, say):
  """The source of a comparison's answers, and the comparison."""
  source = Made(asked, say)
  found = rank(source, asked, asked.greedy, asked.population.size)
  return source, compare(source, asked, found)


class Made:
  """A source of answers: `say(condition, split, member, draw)` makes them.

  It returns an answer, or None, for each question of the split; a tuple of
  two gives a lenient answer too, one of three also what the released rule
  says. Tokens are 10 + member id.
  """

  def __init__(self, plan, say):
    self.plan, self._say = plan, say
    self.asked = []
    self._told = {}

  def get(self, condition, split, members, draws=(0,), *, rows=None, label=''):
    self.asked.append((condition, split, sorted(map(int, members)), rows))
    examples = getattr(self.plan.splits, split)
    for member in members:
      for draw in draws:
        key = condition, split, int(member), int(draw)
        new = self._say(condition, split, int(member), int(draw))
        new = new[: rows if rows is not None else len(examples)]
        if len(new) > len(self._told.get(key, ())):
          self._told[key] = new
    return self._block(condition, split, members, draws, rows)

  def held(self, condition, split, members):
    return self._block(condition, split, members, (0,), None)

  def _block(self, condition, split, members, draws, rows):
    examples = getattr(self.plan.splits, split)[:rows]
    members = sorted(map(int, members))
    shape = len(members), len(examples), len(draws)
    seen = np.zeros(shape, bool)
    said = np.full((2, *shape), None, object)
    released = np.full(shape, np.nan, np.float32)
    for i, member in enumerate(members):
      for j, draw in enumerate(draws):
        told = self._told.get((condition, split, member, int(draw)), ())
        for row, one in enumerate(told[: len(examples)]):
          strict, lenient, *rest = one if isinstance(one, tuple) else (one,) * 2
          said[:, i, row, j] = strict, lenient
          released[i, row, j] = rest[0] if rest else np.nan
          seen[i, row, j] = True
    table = sorted({x for x in said.flat if x is not None})
    index = {None: -1} | {answer: i for i, answer in enumerate(table)}
    number = np.vectorize(index.get, otypes=[np.int32])
    gold = np.array([x.gold for x in examples], object)[None, :, None]
    strict, lenient = (x == gold for x in said)
    tokens = np.where(seen, 10 + np.array(members)[:, None, None], 0)
    return Block(
      members=np.array(members, np.int32),
      rows=np.array([x.row_id for x in examples], np.int64),
      draws=np.array(draws, np.int32),
      seen=seen,
      reward=strict.astype(np.float32),
      lenient=lenient.astype(np.float32),
      correct=strict,
      lenient_correct=lenient,
      released=released,
      answer=number(said[0]) if said[0].size else np.zeros(shape, np.int32),
      lenient_answer=number(said[1])
      if said[1].size
      else np.zeros(shape, np.int32),
      num_tokens=tokens.astype(np.int32),
      truncated=np.zeros(shape, bool),
      answers=tuple(table),
      texts=tuple(str(x) for x in said[0].flat),
    )


def gold(plan, split):
  """The right answers of a split."""
  return [example.gold for example in getattr(plan.splits, split)]


class Thicket:
  """Correlated answers: items differ in difficulty, members in skill.

  A member's answer is right where its skill, its own luck with that question
  and the question's ease together are above 0.
  """

  def __init__(self, plan, seed, *, skill=0.0, spread=0.0, luck=0.5):
    self.plan, self.seed = plan, seed
    self.skill, self.spread, self.luck = skill, spread, luck

  def __call__(self, condition, split, member, draw):
    right = gold(self.plan, split)
    n = len(right)
    # Hashing by name would differ from process to process.
    where = ('selection', 'validation', 'test').index(split)
    ease = np.random.default_rng([self.seed, where, 0]).normal(-0.8, 1, n)
    own = np.random.default_rng([self.seed, 1, member + 2]).normal()
    skill = 0.0 if member == BASE else self.skill + self.spread * own
    luck = np.random.default_rng(
      [
        self.seed,
        where,
        2 + member + 2,
        draw,
        round(condition.temperature * 10),
      ]
    ).normal(0, self.luck, n)
    is_right = ease + skill + luck > 0
    return [
      g if ok else f'wrong {member}'
      for g, ok in zip(right, is_right, strict=True)
    ]
