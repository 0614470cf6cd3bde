# SPDX-License-Identifier: Apache-2.0
"""Strict numerics and eight virtual CPU devices for every test."""

import jax

jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')
jax.config.update('jax_numpy_dtype_promotion', 'strict')
