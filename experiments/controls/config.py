# SPDX-License-Identifier: Apache-2.0
"""RandOpt and its controls on one-step arithmetic; the argument is a seed."""

import ml_collections

from configs import llm


def get_config(arg: str = '0') -> ml_collections.ConfigDict:
  """N = 128, K = 10; 64 selection, 64 validation and 256 test questions."""
  config = llm.get_config()
  config.seed = int(arg)
  config.population.size = 128
  config.ensemble.sizes = (1, 5, 10)
  config.data.num_validation = 64
  config.data.num_test = 256
  config.selection.race_rows = (16, 32)  # of the race that is replayed
  config.controls.temperatures = (0.2, 0.4, 0.7)
  config.controls.population_sizes = (16, 64)
  config.controls.prompt_search = 64
  config.controls.validation = True
  config.run.keep_texts = 'all'
  return config
