# SPDX-License-Identifier: Apache-2.0
"""Tasks of reasoning-gym (Stojanovski et al., arXiv 2505.24760), by name.

Rows are made by rule, as many as are asked for, from a seed; the package also
judges them. It gives small rewards to garbage (.01, .05, or the share of an
answer that is right), so only its full score counts here, as reward too.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import functools
import importlib.metadata
import json
import re
from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

from thicket.tasks import base
from thicket.tasks.tags import CLOSE, OPEN, tagged

MAX_CHARS = 10_000  # of an answer that the package is asked about

# Of this version it is known which scorers evaluate an answer as Python, by
# `eval` or in sympy. What a model writes is not evaluated here, but for sums of
# a few numbers. 'composite' may hold any of the others.
VERSION = '0.1.25'
EVALUATED = frozenset(
  {
    'binary_matrix',
    'composite',
    'intermediate_integration',
    'n_queens',
    'polynomial_multiplication',
    'simple_integration',
    'spiral_matrix',
    'string_insertion',
  }
)
ARITHMETIC = frozenset({'countdown', 'puzzle24'})
_SUM = re.compile(r'(?:(?<![0-9])[0-9]{1,9}|[-+/()\s]|\*(?!\s*\*)){1,200}')


class Gym(NamedTuple):
  """What decides the rows: the data set's name, size, seed and options."""

  dataset: str
  size: int
  seed: int
  options: str


@dataclasses.dataclass(frozen=True)
class ReasoningGym(base.Task):
  """The rows of one of its data sets; `reasoning_gym:NAME` makes it.

  The strict rule reads what stands in the last answer tags. The lenient rule
  also takes an answer whose tag is not closed, or else the last line.

  Attributes:
    dataset: its name there.
    size: how many rows are made, of which repeats are left out.
    seed: they are made from, at least 0.
    options: JSON of the data set's own settings, such as '{"min_target": 10}'.
    version: of the package, which decides what the rows are.

  Raises:
    TaskError: the package is not installed in this version, has no such data
      set or refuses its settings; or it would evaluate what a model writes.
  """

  prompt_templates: ClassVar[tuple[str, ...]] = (
    f'{{question}}\n\nEnd with the final answer between {OPEN} and {CLOSE}.',
    'Think step by step, then give nothing but the final answer between '
    f'{OPEN} and {CLOSE}.\n\n{{question}}',
  )

  dataset: str
  size: int = 1000
  seed: int = 0
  options: str = '{}'
  prompt_template: str = prompt_templates[0]
  max_new_tokens: int = 512
  version: str = dataclasses.field(init=False, default=VERSION)

  def __post_init__(self):
    base.check_settings(self)
    for name, least in (('size', 1), ('seed', 0)):
      value = getattr(self, name)
      if value < least:
        raise base.TaskError(f'{self.name}: {name}={value} is below {least}')
    _dataset(self._gym())

  @property
  def name(self) -> str:
    """As `thicket.tasks.make` knows it."""
    return f'reasoning_gym:{self.dataset}'

  def examples(self) -> Iterator[base.Example]:
    """The rows, each question once, known by their number in the data set."""
    seen = set()
    for number, entry in enumerate(_entries(self._gym())):
      key = base.canonical(entry['question'])
      if key not in seen:
        seen.add(key)
        yield base.Example(number, entry['question'], str(entry['answer']))

  def extract(self, response: str) -> str | None:
    """What stands in the last answer tags; None abstains."""
    return (tagged(response) or '').strip() or None

  def extract_lenient(self, response: str) -> str | None:
    """The strict answer, or what follows an open tag, or the last line."""
    strict = self.extract(response)
    if strict is not None:
      return strict
    lines = response.rpartition(OPEN)[2].strip().splitlines()
    return lines[-1].strip() if lines else None

  def is_correct(self, answer: str | None, example: base.Example) -> bool:
    """Whether the package gives its full score."""
    if answer is None or len(answer) > MAX_CHARS:
      return False
    return _is_right(self._gym(), answer, example.row_id)

  def _gym(self) -> Gym:
    return Gym(self.dataset, self.size, self.seed, self.options)


@functools.lru_cache(maxsize=4)
def _dataset(gym: Gym) -> Any:
  name = f'reasoning_gym:{gym.dataset}'
  try:
    import reasoning_gym
    from reasoning_gym.factory import DATASETS
  except ImportError as error:
    raise base.TaskError(
      f"{name} needs reasoning-gym ({error}): pip install -e '.[reasoning_gym]'"
    ) from error
  found = importlib.metadata.version('reasoning-gym')
  if found != VERSION:
    raise base.TaskError(
      f'{name}: reasoning-gym {found} is installed; other versions make other '
      f"rows: pip install -e '.[reasoning_gym]' takes {VERSION}"
    )
  if gym.dataset not in DATASETS:
    near = difflib.get_close_matches(gym.dataset, DATASETS, n=3, cutoff=0.4)
    hint = f'did you mean {" or ".join(near)}? ' if near else ''
    raise base.TaskError(
      f'reasoning-gym has no {gym.dataset!r}; {hint}all of them: '
      f'{", ".join(sorted(DATASETS))}'
    )
  if gym.dataset in EVALUATED:
    raise base.TaskError(
      f'{name}: the package would evaluate what a model writes as Python, '
      'which is not done here; choose another'
    )
  try:
    options = json.loads(gym.options)
    return reasoning_gym.create_dataset(
      gym.dataset, **{**options, 'size': gym.size, 'seed': gym.seed}
    )
  except Exception as error:  # assertions, too, and what JSON may hold
    raise base.TaskError(
      f'{name}: options={gym.options!r}: {type(error).__name__}: {error}; give '
      'JSON of its settings'
    ) from error


@functools.lru_cache(maxsize=4)
def _entries(gym: Gym) -> tuple[dict[str, Any], ...]:
  dataset = _dataset(gym)
  try:
    return tuple(dataset[i] for i in range(gym.size))
  except Exception as error:  # some settings leave nothing to be found
    raise base.TaskError(
      f'reasoning_gym:{gym.dataset}: options={gym.options!r}: no rows can be '
      f'made: {type(error).__name__}: {error}'
    ) from error


# Judging asks for reward and for correctness, by both rules.
@functools.lru_cache(maxsize=64)
def _is_right(gym: Gym, answer: str, number: int) -> bool:
  if gym.dataset in ARITHMETIC and not _SUM.fullmatch(answer):
    return False
  entry = copy.deepcopy(_entries(gym)[number])
  try:
    return float(_dataset(gym).score_answer(answer, entry)) == 1.0
  except Exception:  # of a scorer that did not expect such an answer
    return False
