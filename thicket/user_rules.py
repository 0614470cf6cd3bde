# SPDX-License-Identifier: Apache-2.0
"""Under which rules of JAX the functions of users are traced.

Our own code holds under strict promotion of types and without implicit ranks;
users' models, and optax, are written for JAX's defaults.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax


@contextlib.contextmanager
def user_rules() -> Iterator[None]:
  """JAX's default promotion of types and ranks, while the context is open."""
  with jax.numpy_dtype_promotion('standard'), jax.numpy_rank_promotion('allow'):
    yield
