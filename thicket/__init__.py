# SPDX-License-Identifier: Apache-2.0
"""Post-training by random weight perturbations (RandOpt), in JAX.

`thicket.search` post-trains any Flax model or pure function; `python -m
thicket.main` runs the whole experiment on a language model.
"""

from thicket.version import __version__  # noqa: F401

__all__ = ['Member', 'Result', 'search']


def __getattr__(name: str):
  # On first use: tasks and metrics, which worker processes import, then start
  # without JAX. The module has another name than the function, or importing
  # the one would hide the other.
  if name in __all__:
    from thicket import randopt

    return getattr(randopt, name)
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
