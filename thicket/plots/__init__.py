# SPDX-License-Identifier: Apache-2.0
"""Figures from plain arrays, all in one style."""
