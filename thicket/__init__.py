# SPDX-License-Identifier: Apache-2.0
"""Post-training by random weight perturbations (RandOpt), in JAX.

`thicket.search` post-trains any Flax model or pure function; `python -m
thicket.main` runs the whole experiment on a language model.
"""

__version__ = '0.1.0'

from thicket.search import Member, Result, search

__all__ = ['Member', 'Result', 'search']
