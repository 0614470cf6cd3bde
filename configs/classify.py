# SPDX-License-Identifier: Apache-2.0
"""RandOpt (arXiv 2603.12228) on labels scored by their likelihood.

  python -m thicket.main --config=configs/classify.py --config.task.path=FILE

Rows are {"text": ..., "label": ...}, in JSONL or as a TSV file that names its
columns. Nothing is decoded: a row costs one forward pass over its prompt, and
samples of the base cost no more than their first.
"""

import pathlib

import ml_collections

from thicket.arguments import load_config

_TEXTS = pathlib.Path(__file__).with_name('llm.py')


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """What `configs/llm.py` asks, of another task; arg 'quick' as there."""
  config = load_config(f'{_TEXTS}:{arg}')
  config.task.name = 'classify'

  # Fields of `thicket.tasks.classify.Classify`.
  config.task.labels = ('negative', 'positive')
  config.task.words = ()  # what is said for each; default the labels
  # Or sum or mean, of the log-likelihoods of a label's tokens.
  config.task.score = 'calibrated'
  config.task.content_free = 'N/A'  # what calibrated is against
  config.task.offsets = ()  # nats added to each label's score
  config.task.objective = 'accuracy'  # or likelihood, in nats
  config.task.method = 'score'  # or generate: the answer is written

  # Of the labels' own distribution; all draws share one forward pass.
  config.controls.temperatures = (0.5, 1.0)
  return config
