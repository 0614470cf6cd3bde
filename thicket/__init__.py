# SPDX-License-Identifier: Apache-2.0
"""Post-training by random weight perturbations (RandOpt), in JAX."""

__version__ = '0.1.0'
