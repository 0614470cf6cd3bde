# SPDX-License-Identifier: Apache-2.0
"""Is a label's gain more than a shifted threshold? Movie reviews, one pass.

  python -m experiments.classify --path=vader_movieReviewSnippets.tsv
  python -m experiments.classify --path=... --both    one more search
  python -m experiments.classify --speed      share of GEMM peak, a minute
  python -m experiments.classify --table      of the committed results

A search around SmolLM2 as it is, whose labels may lean to one side; and, as a
control and with --both to search around, SmolLM2 with one offset, in nats,
fitted on the selection rows at the cost of a single pass over them.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import sys
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from rich.console import Console

from configs import classify as configuration
from experiments.controls.__main__ import table
from experiments.throughput.timing import (
  gemm_peak,
  matmul_parameters,
  seconds,
)
from thicket import (
  batching,
  decode,
  engine,
  estimates,
  evaluation,
  panel,
  perturb,
  reading,
  sharding,
  tasks,
)
from thicket.blocks import BASE
from thicket.models.load import load
from thicket.plan import Plan, make_plan
from thicket.run import Run
from thicket.storage import write_atomically
from thicket.stored import Stored
from thicket.tables import percent
from thicket.tasks.base import Example

RESULTS = pathlib.Path(__file__).parent / 'results' / 'reviews.json'
PROMPT = 'Is this movie review {labels}? Answer with that label only.\n\n{text}'
LEAST_RATING = 1.0  # of -4..4; nearer to 0 raters did not agree on a sign
MOST_CHARACTERS = 70  # short snippets, so that a member is seconds
SEARCHES = ('plain', 'fitted')
_REPEATS = 5


def write_rows(source: pathlib.Path, path: pathlib.Path) -> None:
  """Turns lines `id, rating, text` into rows of text and label, as JSONL.

  The snippets are those of Hutto and Gilbert's VADER (ICWSM 2014).
  """
  lines = []
  for line in source.read_text(encoding='utf-8').splitlines():
    _, rating, text = line.split('\t')
    if abs(float(rating)) >= LEAST_RATING and len(text) <= MOST_CHARACTERS:
      label = 'positive' if float(rating) > 0 else 'negative'
      lines.append(json.dumps({'text': text, 'label': label}))
  write_atomically(path, '\n'.join(lines))


def config_of(
  path: pathlib.Path, offsets: Sequence[float] = ()
) -> ml_collections.ConfigDict:
  """The configuration of one search."""
  config = configuration.get_config()
  config.task.path = str(path)
  config.task.prompt_template = PROMPT
  config.task.offsets = tuple(offsets)
  config.data.num_selection, config.data.num_test = 64, 1024
  config.population.size = 256
  config.ensemble.sizes = (1, 5, 10)
  config.controls.population_sizes = ()  # another ten members on test each
  config.decode.rows = 32  # divides the test rows
  config.run.keep_texts = 'none'
  return config


class Base:
  """SmolLM2 itself through the programs that members run by."""

  def __init__(self, config: ml_collections.ConfigDict):
    """Loads the model."""
    mesh = sharding.make_mesh(jax.devices()[:1])
    self.model = load(**config.model, mesh=mesh)
    perturber = perturb.Perturber(
      self.model.params, self.model.spec, seed=0, mesh=mesh
    )
    self.weights = perturber.write([BASE], [0.0], perturber.buffers(1))
    self.engine = engine.Engine(
      self.model.decoder,
      mesh=mesh,
      in_axes=perturber.in_axes,
      dtype=np.float32,
    )
    self._zero = sharding.spread(mesh, np.zeros(1, np.int32))

  def prepare(self, plan: Plan, rows: int) -> tuple[Any, list[int], Any]:
    """Labels, the prefix of all prompts, and the questions by split."""
    room, config = plan.max_new_tokens, self.model.decoder.config
    splits = {x: getattr(plan.splits, x) for x in ('selection', 'test')}
    prefix, questions = evaluation.prepare(
      plan.task,
      self.model.tokenizer,
      splits,
      rows=rows,
      max_new_tokens=room,
      context_length=config.context_length,
    )
    asked = reading.decoding(
      plan.task,
      self.model.tokenizer,
      vocab_size=config.vocab_size,
      max_new_tokens=room,
    )
    return asked, prefix, questions

  def logs(self, plan: Plan, rows: int) -> dict[str, np.ndarray]:
    """Logs of the labels' shares [r, C], by split."""
    asked, prefix, questions = self.prepare(plan, rows)
    found = {}
    for split, some in questions.items():
      batches = some.batches()
      step = engine.answer_all(self.engine, asked, prefix, batches)
      found[split] = np.empty((len(some.examples), len(asked.tokens)))
      answers = step(self.weights, self._zero, self._zero)
      for batch, scored in zip(batches, answers, strict=True):
        live = np.flatnonzero(batch.live)
        found[split][batch.prompt[live]] = np.asarray(scored.logs)[0, live]
    return found


def fit_offset(logs: np.ndarray, gold: np.ndarray) -> float:
  """Nats for the second of two labels that make most rows right.

  Args:
    logs: [r, 2].
    gold: [r], 0 or 1.

  Returns:
    The middle one of the best, which lie halfway between neighbours.
  """
  lead = np.sort(logs[:, 0] - logs[:, 1])
  asked = (lead[1:] + lead[:-1]) / 2
  right = [((logs[:, 1] + nats > logs[:, 0]) == gold).mean() for nats in asked]
  best = np.flatnonzero(np.array(right) == max(right))
  return round(float(asked[best[len(best) // 2]]), 3)


def _balance(examples: Sequence[Example]) -> dict[str, int]:
  golds = [example.gold for example in examples]
  return {label: golds.count(label) for label in sorted(set(golds))}


def _with_offset(
  config: ml_collections.ConfigDict, plan: Plan, path: pathlib.Path
) -> dict[str, Any]:
  """The base with its offset: nats, and the test rows it has right as 0s, 1s.

  Kept, since a rounding must not make another recipe of a restart.
  """
  if not path.exists():
    logs = Base(config).logs(plan, config.decode.rows)
    gold = {
      split: np.array([plan.task.labels.index(x.gold) for x in examples])
      for split, examples in (
        ('selection', plan.splits.selection),
        ('test', plan.splits.test),
      )
    }
    nats = fit_offset(logs['selection'], gold['selection'])
    says = logs['test'][:, 1] + nats > logs['test'][:, 0]
    right = (says == gold['test']).astype(int)
    found = {'offset': nats, 'right': ''.join(map(str, right))}
    write_atomically(path, json.dumps(found))
  return json.loads(path.read_text(encoding='utf-8'))


def _right(workdir: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
  """0 or 1 for each test row: the base's, and those of the vote of all K."""
  stored = Stored(workdir)
  plan = stored.plan
  summary = json.loads((workdir / 'summary.json').read_text(encoding='utf-8'))
  found = []
  for ids in ([BASE], [x['member'] for x in summary['selected']]):
    block = stored.get(plan.greedy, 'test', ids)
    voters = panel.of_members(plan.task, plan.splits.test, block, ids)
    (vote,) = voters.votes([len(ids)])
    found.append(vote.correct.astype(np.float64))
  return found[0], found[1]


def search(
  source: pathlib.Path, workdir: pathlib.Path, both: bool
) -> dict[str, Any]:
  """One search or both, and the first vote against the base's offset."""
  workdir.mkdir(parents=True, exist_ok=True)
  path = workdir / 'rows.jsonl'
  write_rows(source, path)
  config = config_of(path)
  plan = make_plan(config)
  balance = {
    split: _balance(getattr(plan.splits, split))
    for split in ('selection', 'test')
  }
  print(json.dumps(balance), flush=True)
  with_offset = _with_offset(config, plan, workdir / 'base.json')
  nats = with_offset['offset']
  found: dict[str, Any] = {'rows': balance}
  for name in SEARCHES if both else SEARCHES[:1]:
    offsets = (0.0, nats) if name == 'fitted' else ()
    job = Run(config_of(path, offsets), str(workdir / name), Console(width=80))
    summary = job.finish()
    summary['repairs'].pop('items')
    summary['selection']['members'].pop('each')
    found[name] = summary
  base, vote = _right(workdir / SEARCHES[0])
  right = np.array([*map(float, with_offset['right'])])
  found['offset'] = {
    'nats': nats,
    'accuracy': estimates.accuracy(right),
    'against_base': estimates.difference(right, base),
    'vote_against_it': estimates.difference(vote, right),
  }
  return found


def speed(rows: int = 32, size: int = 24) -> dict[str, Any]:
  """A batch of prompts, scored, as a share of the peak of products."""
  base = Base(configuration.get_config())
  asked = reading.decoding(
    tasks.make('classify', prompt_template=PROMPT),
    base.model.tokenizer,
    vocab_size=base.model.decoder.config.vocab_size,
    max_new_tokens=8,
  )
  rng = np.random.default_rng(0)
  suffixes = [rng.integers(100, 40_000, size).tolist() for _ in range(rows)]
  (batch,) = batching.batches(suffixes, range(rows), rows, 0)
  batch = decode.Prompts(*map(jax.numpy.asarray, batch))
  prefix = base.engine.prefill(base.weights, range(100, 132))
  empty = base.engine.empty_scores(asked, base.weights)
  score = lambda: base.engine.score(asked, base.weights, prefix, empty, batch)
  jax.block_until_ready(score())
  body, _ = matmul_parameters(base.model)
  measure, shares, spent = gemm_peak(), [], []
  for _ in range(_REPEATS):
    peak = measure()
    spent.append(seconds(score))
    peak = max(peak, measure())
    shares.append(2 * body * rows * size / spent[-1] / peak)
  return {
    'prompts': rows,
    'tokens': size,
    'seconds': min(spent),
    'share_of_peak': {
      'min': min(shares),
      'median': statistics.median(shares),
      'max': max(shares),
    },
    'devices': f'{jax.device_count()} x {jax.devices()[0].device_kind}',
  }


def markdown(found: dict[str, Any]) -> str:
  """The tables of a README."""
  parts = []
  for name in SEARCHES:
    if name in found:
      parts += [f'### {name}', table(found[name])]
  offset = found['offset']
  pair = lambda name: percent(
    offset[name]['difference'], offset[name]['interval'], '+'
  )
  accuracy = offset['accuracy']
  parts.append(
    f'The base with an offset of {offset["nats"]:g} nats: '
    f'{percent(accuracy["rate"], accuracy["interval"])}%, '
    f'{pair("against_base")} points against the base; the vote of the plain '
    f'search against it: {pair("vote_against_it")} points.'
  )
  return '\n\n'.join(parts)


def main(argv: list[str]) -> int:
  """Runs the experiment; returns the exit code."""
  parser = argparse.ArgumentParser(prog='python -m experiments.classify')
  parser.add_argument('--path', type=pathlib.Path, help='the TSV file')
  parser.add_argument('--workdir', default='runs/classify', type=pathlib.Path)
  parser.add_argument(
    '--both', action='store_true', help='search around the offset too'
  )
  parser.add_argument('--speed', action='store_true', help='the speed alone')
  parser.add_argument('--table', action='store_true', help='of the results')
  args = parser.parse_args(argv)
  if args.table:
    print(markdown(json.loads(RESULTS.read_text(encoding='utf-8'))))
    return 0
  if args.speed:
    print(json.dumps(speed(), indent=2))
    return 0
  if args.path is None:
    parser.error('--path names vader_movieReviewSnippets.tsv')
  found = search(args.path, args.workdir, args.both)
  path = args.workdir / RESULTS.name
  write_atomically(path, json.dumps(found, indent=1))
  print(markdown(found))
  print(f'\nwritten   {path}')
  return 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
