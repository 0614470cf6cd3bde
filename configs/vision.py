# SPDX-License-Identifier: Apache-2.0
"""RandOpt (arXiv 2603.12228) on your own Flax classifier, in Linen or NNX.

  pip install -e '.[vision]'
  python -m thicket.main --config=configs/vision.py          about a minute
  python -m thicket.main --config=configs/vision.py:nnx      the same in NNX
  python -m thicket.main --config=configs/vision.py:quick    a few seconds

A small convolutional net is pretrained on scikit-learn's handwritten digits
and post-trained on the same digits drawn otherwise (`task.shift`).
"""

import ml_collections


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """With arg 'quick' a small run; with 'nnx' or 'linen' the kind of module."""
  asked = set(filter(None, (arg or '').split(',')))
  if not asked <= {'quick', 'nnx', 'linen'}:
    raise ValueError(f'configs/vision.py:{arg}: known are quick, nnx and linen')
  quick = 'quick' in asked
  config = ml_collections.ConfigDict()
  config.seed = 0  # of initial weights, the order of digits and the population

  config.task = ml_collections.ConfigDict()
  config.task.name = 'digits'
  config.task.shift = 'rotation'  # what the pretrained model has not seen

  config.model = ml_collections.ConfigDict()
  config.model.name = 'nnx' if 'nnx' in asked else 'linen'
  config.model.width = 8 if quick else 16  # channels of the first layer

  config.pretraining = ml_collections.ConfigDict()
  config.pretraining.steps = 200 if quick else 600  # of Adam
  config.pretraining.batch_size = 128
  config.pretraining.learning_rate = 3e-3

  # Disjoint rows of 1,797; only selection may be chosen on.
  config.data = ml_collections.ConfigDict()
  config.data.num_pretrain = 700
  config.data.num_selection = 200
  config.data.num_test = 700

  config.population = ml_collections.ConfigDict()
  config.population.size = 64 if quick else 512  # N
  config.population.sigmas = (0.01, 0.02, 0.04)
  config.population.family = 'gaussian'  # or rademacher, or low_rank:R
  # Or relative to each tensor's RMS, or modular: then sigma is a radius.
  config.population.scale = 'absolute'
  config.population.antithetic = False  # members in pairs, + and - noise
  config.population.only = ''  # perturb tensors whose name matches this
  config.population.skip = ''  # and leave those that match this

  config.ensemble = ml_collections.ConfigDict()
  config.ensemble.sizes = (1, 5, 10)  # K

  config.run = ml_collections.ConfigDict()
  config.run.members_per_device = 16  # in memory at a time
  config.run.prune_after = ()  # rows; drops who cannot reach the top K
  return config
