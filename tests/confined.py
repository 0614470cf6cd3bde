# SPDX-License-Identifier: Apache-2.0
"""Tasks whose answers are programs, where the kernel lets them be confined."""

import pytest

from thicket import sandbox, tasks


def task(name):
  """The task of this name; skips where nothing can be run."""
  try:
    sandbox.run(sandbox.Job(('a = 1',), 'assert True', ()))
  except sandbox.SandboxError as error:
    pytest.skip(f'no confinement here: {error}')
  return tasks.make(name)
