# SPDX-License-Identifier: Apache-2.0
"""RandOpt on 1-D signals: needle, thicket and plateau in a minute.

  python -m thicket.main --config=configs/signals.py          about a minute
  python -m thicket.main --config=configs/signals.py:quick    under 30 s

Section 3 of Neural Thickets (arXiv 2603.12228): an MLP that predicts the next
value from the last ten is pretrained on nothing, on a mixture of families, or
on lines; then random guesses around its weights are scored on one target line.
"""

import ml_collections


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """The paper's sizes; with arg 'quick' smaller ones."""
  if arg not in (None, '', 'quick'):
    raise ValueError(f'configs/signals.py:{arg}: the only variant is quick')
  quick = arg == 'quick'
  config = ml_collections.ConfigDict()
  config.seed = 0  # of signals, initial weights and population

  config.task = ml_collections.ConfigDict()
  config.task.name = 'signals'
  config.task.target = 'fixed_line'  # a name of thicket.signals.TARGETS
  config.task.steps = 60  # predicted in a row, each from the ones before

  config.model = ml_collections.ConfigDict()
  config.model.width = 64 if quick else 128
  config.model.depth = 5
  config.model.initializer = 'xavier'  # or kaiming, orthogonal

  # One search for each: none, mixed, or a family of thicket.signals.FAMILIES.
  config.pretraining = ml_collections.ConfigDict()
  config.pretraining.on = ('none', 'mixed', 'line')
  config.pretraining.steps = 1000  # of Adam
  config.pretraining.batch_size = 256
  config.pretraining.learning_rate = 1e-3

  config.data = ml_collections.ConfigDict()
  config.data.num_selection = 256 if quick else 1024  # signals
  config.data.num_test = 256

  config.population = ml_collections.ConfigDict()
  config.population.size = 400 if quick else 1000  # N
  config.population.sigmas = (0.002,)
  config.population.sigmas_untrained = (0.05,)  # where nothing was learned
  config.population.family = 'gaussian'  # or rademacher, or low_rank:R
  # Or relative to each tensor's RMS, or modular: then sigma is a radius.
  config.population.scale = 'absolute'
  config.population.antithetic = False  # members in pairs, + and - noise
  config.population.only = ''  # perturb tensors whose name matches this
  config.population.skip = ''  # and leave those that match this

  config.ensemble = ml_collections.ConfigDict()
  config.ensemble.sizes = (1, 5)  # K

  config.run = ml_collections.ConfigDict()
  config.run.members_per_device = 8  # in memory at a time
  config.run.prune_after = (128,)  # rows; drops who cannot reach the top K
  return config
