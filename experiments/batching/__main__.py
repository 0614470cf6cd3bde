# SPDX-License-Identifier: Apache-2.0
"""What do rows wait for each other? Two ways to batch, in one process.

  python -m experiments.batching --path=FOLDER [--output=results.json]

FOLDER holds GSM8K's train and test rows as JSONL. The base answers in batches
of prompts of one length; then base and members answer the same questions both
ways: batched so, and by the length of the base's answers. The two ways take
turns in going first.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import pathlib
import platform
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from thicket import (
  batching,
  data,
  decode,
  engine,
  evaluation,
  perturb,
  sharding,
  tasks,
)
from thicket.blocks import BASE
from thicket.models.load import load

WAYS = ('prompts', 'answers')  # before and after


class Bench:
  """A model, and questions put to it in given batches."""

  def __init__(self, args: argparse.Namespace):
    """Loads the model and makes prompts of the first rows of selection."""
    model = load('smollm2-135m-instruct')
    task = tasks.make('gsm8k')
    splits = data.load(
      task,
      num_selection=args.rows,
      num_validation=0,
      num_test=1,
      seed=0,
      path=args.path,
    )
    self.prefix, questions = evaluation.prepare(
      task,
      model.tokenizer,
      {'selection': splits.selection},
      rows=args.batch,
      max_new_tokens=args.new_tokens,
      context_length=model.decoder.config.context_length,
    )
    self.questions = questions['selection']
    self._decoding = evaluation.decoding(
      task,
      model.tokenizer,
      vocab_size=model.decoder.config.vocab_size,
      max_new_tokens=args.new_tokens,
    )
    mesh = sharding.make_mesh(jax.devices()[:1])
    self._perturber = perturb.Perturber(
      model.params, model.spec, seed=0, mesh=mesh
    )
    self._engine = engine.Engine(
      model.decoder,
      mesh=mesh,
      in_axes=self._perturber.in_axes,
      dtype=jnp.float32,
    )
    self._weights = self._perturber.buffers(1)

  def write(self, member: int, sigma: float) -> None:
    """Brings a member's weights; -1 is the base."""
    self._weights = self._perturber.write([member], [sigma], self._weights)
    jax.block_until_ready(self._weights)

  def answer(
    self, batches: Sequence[decode.Prompts]
  ) -> tuple[dict[str, Any], np.ndarray]:
    """What a pass over all questions took, and its tokens [n, G]."""
    step = engine.answer_all(self._engine, self._decoding, self.prefix, batches)
    ids = jnp.zeros(1, jnp.int32)
    compiled, start = self._engine.compile_s, time.perf_counter()
    found = jax.block_until_ready(step(self._weights, ids, ids))
    seconds = time.perf_counter() - start
    seconds -= self._engine.compile_s - compiled
    took = batching.RowSteps()
    count = len(self.questions.examples)
    tokens = np.zeros((count, self._decoding.max_new_tokens), np.int32)
    lengths = np.zeros(count, np.int32)
    for batch, answers in zip(batches, jax.device_get(found), strict=True):
      took += batching.row_steps(batch, answers)
      where = batch.prompt[batch.live]
      tokens[where] = answers.tokens[0, batch.live]
      lengths[where] = answers.length[0, batch.live]
    return {
      'seconds': seconds,
      'tokens': int(lengths.sum()),
      'row_steps': took.total,
      'finished': took.finished,
      'filler': took.filler,
      'prompt_tokens': sum(batch.tokens.size for batch in batches),
      'lengths': lengths.tolist(),
    }, tokens


def measure(args: argparse.Namespace) -> dict[str, Any]:
  """Base and members both ways, and what the base's lengths predicted."""
  bench = Bench(args)
  bench.write(BASE, 0.0)
  batches = {'prompts': bench.questions.batches()}
  first, _ = bench.answer(batches['prompts'])
  lengths = np.array(first['lengths'])
  batches['answers'] = bench.questions.batches(answers=lengths)
  predicted = {}
  for way, known in zip(WAYS, (None, lengths), strict=True):
    prompts = [len(suffix) for suffix in bench.questions.suffixes]
    groups = batching.group(prompts, args.batch, known)
    predicted[way] = batching.predicted(groups, lengths, args.batch)
  # Once without a clock, as the other way has been.
  bench.answer(batches['answers'])
  members = []
  for turn, member in enumerate((BASE, *range(args.members))):
    bench.write(member, 0.0 if member == BASE else args.sigma)
    found: dict[str, Any] = {'member': member}
    said = {}
    for way in WAYS if turn % 2 else WAYS[::-1]:
      found[way], said[way] = bench.answer(batches[way])
    same = (said['prompts'] == said['answers']).all(axis=1)
    found['rows_that_differ'] = int((~same).sum())
    members.append(found)
  return {
    'predicted': {
      way: {'row_steps': x.total, 'finished': x.finished, 'filler': x.filler}
      for way, x in predicted.items()
    },
    'members': members,
  }


def ratios(found: dict[str, Any]) -> list[dict[str, Any]]:
  """A row for each member, and one for what was predicted."""
  share = lambda x: x['finished'] / x['row_steps']
  before, after = (found['predicted'][way] for way in WAYS)
  rows = [
    {
      'who': 'predicted',
      'before': share(before),
      'after': share(after),
      'steps': after['row_steps'] / before['row_steps'],
    }
  ]
  for member in found['members']:
    before, after = (member[way] for way in WAYS)
    speed = lambda x: x['tokens'] / x['seconds']
    rows.append(
      {
        'who': 'base' if member['member'] == BASE else str(member['member']),
        'before': share(before),
        'after': share(after),
        'steps': after['row_steps'] / before['row_steps'],
        'prompts': after['prompt_tokens'] / before['prompt_tokens'],
        'speed': speed(after) / speed(before),
        'differ': member['rows_that_differ'],
      }
    )
  return rows


def markdown(found: dict[str, Any]) -> str:
  """The table of the README."""
  lines = [
    '| member | finished rows % before | after | row-steps | prompt tokens '
    '| tokens/s | rows that differ |',
    '|---|---|---|---|---|---|---|',
  ]
  for row in ratios(found):
    shares = [f'{100 * row[when]:.1f}' for when in ('before', 'after')]
    times = [
      f'x {row[key]:.3f}' if key in row else ''
      for key in ('steps', 'prompts', 'speed')
    ]
    cells = [row['who'], *shares, *times, str(row.get('differ', ''))]
    lines.append(f'| {" | ".join(cells)} |'.replace('  ', ' '))
  return '\n'.join(lines)


def main() -> None:
  """Measures, prints a table, writes JSON if asked."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--path', required=True, help="GSM8K's JSONL files")
  parser.add_argument('--rows', type=int, default=128)
  parser.add_argument('--batch', type=int, default=16)
  parser.add_argument('--new_tokens', type=int, default=128)
  parser.add_argument('--members', type=int, default=2)
  parser.add_argument('--sigma', type=float, default=1e-3)
  parser.add_argument('--output', type=pathlib.Path)
  args = parser.parse_args()
  start = time.monotonic()
  found = measure(args)
  print(markdown(found))
  print(f'{time.monotonic() - start:.0f} s in all')
  if args.output:
    settings = {key: getattr(args, key) for key in (
      'rows', 'batch', 'new_tokens', 'members', 'sigma'
    )}  # fmt: skip
    machine = {
      'device': jax.devices()[0].device_kind,
      'cores': len(os.sched_getaffinity(0)),
      'jax': importlib.metadata.version('jax'),
      'python': platform.python_version(),
    }
    result = {'settings': settings, 'machine': machine, **found}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(result) + '\n')


if __name__ == '__main__':
  main()
