# SPDX-License-Identifier: Apache-2.0
"""What a finished run says about its members, its vote and its selection."""
