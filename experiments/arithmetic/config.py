# SPDX-License-Identifier: Apache-2.0
"""RandOpt on one-step arithmetic; the argument is the seed."""

import ml_collections

from configs import llm


def get_config(arg: str = '0') -> ml_collections.ConfigDict:
  """N = 64, K = 1, 5, 10, 64 selection and 256 test questions."""
  config = llm.get_config()
  config.seed = int(arg)
  config.population.size = 64
  config.ensemble.sizes = (1, 5, 10)
  config.data.num_test = 256
  return config
