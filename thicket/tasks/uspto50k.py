# SPDX-License-Identifier: Apache-2.0
"""USPTO-50k: which of ten classes a chemical reaction belongs to.

50,016 reactions from US patents (Lowe's text mining, CC0), classed by
Schneider, Stiefl and Landrum (J. Chem. Inf. Model. 2016, 56, 2336). The usual
files hold the columns id, class (1 to 10) and the mapped reaction, as
rxn_smiles or 'reactants>reagents>production'; splits of 80/10/10 are common,
and the code of Neural Thickets (arXiv 2603.12228) uses about 49,000 and 1,001.

Atom maps are removed (see `smiles`): they give away what changed.

The classes are unequal: 1, 2 and 6 are about 70% of the rows, so always
answering '1' earns 30%; 10% by balanced accuracy, the mean over classes.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, ClassVar

from thicket.tasks import base, numbers, smiles, tags

CLASSES = {
  1: 'heteroatom alkylation and arylation',
  2: 'acylation and related processes',
  3: 'carbon-carbon bond formation',
  4: 'heterocycle formation',
  5: 'protection',
  6: 'deprotection',
  7: 'reduction',
  8: 'oxidation',
  9: 'functional group interconversion',
  10: 'functional group addition',
}
MAX_CHARS = 200  # of what is inside the tags
REACTION_FIELDS = ('rxn_smiles', 'reactants>reagents>production')

_REACTION = re.compile(r'\s*[^\s>]+>[^\s>]*>[^\s>]+(?:\s|$)')
_NAMES = {str(number) for number in CLASSES}
_LIST = '\n'.join(f'{number}: {words}' for number, words in CLASSES.items())
# Alone, so that neither 'C1CC1' nor '3.5' nor '1/2' holds one.
_BEFORE = r'(?<![^\s(:*"\'`#]'
_ALONE = re.compile(
  rf'(?:10{_BEFORE}10)|[1-9]{_BEFORE}[1-9]))(?![\w/=#(\[@\\+-]|[.,][0-9])'
)


@dataclasses.dataclass(frozen=True)
class Uspto50k(base.Task):
  """Reactions in SMILES, with the number of a class as the answer.

  The strict rule reads the last <answer>...</answer>, which must hold exactly
  one number, from 1 to 10 ('Class 3' will do). The lenient rule falls back on
  the last such number that stands alone in the text.
  """

  # The paper's prompt lists the classes too; its words are not known.
  prompt_templates: ClassVar[tuple[str, ...]] = (
    f'Chemical reactions fall into ten classes:\n{_LIST}\n\nThe class of this '
    'reaction (SMILES, reactants >> product)?\n{question}\n\nReply with the '
    'number of its class inside <answer> </answer>.',
    f'{{question}}\n\nWhich kind of reaction is this?\n{_LIST}\n\nGive one '
    'number from the list inside <answer> </answer>.',
  )

  prompt_template: str = prompt_templates[0]
  max_new_tokens: int = 64

  name: ClassVar[str] = 'uspto50k'
  is_classification: ClassVar[bool] = True
  stand_ins: ClassVar[Mapping[str, Any]] = {'class': 1}

  def __post_init__(self):
    base.check_settings(self)

  def parse(self, row: Mapping[str, Any], row_id: int) -> base.Example:
    """Reads the fields `class` and the reaction (see `REACTION_FIELDS`).

    Raises:
      TaskError: a field is missing, the class is not in 1..10, or the reaction
        is no SMILES with a product.
    """
    gold = str(row.get('class'))
    if gold not in _NAMES:
      raise base.TaskError(f"field 'class' is {gold!r}, not in 1..10")
    field = next((f for f in REACTION_FIELDS if f in row), REACTION_FIELDS[0])
    reaction = row.get(field)
    if not isinstance(reaction, str) or not _REACTION.match(reaction):
      raise base.TaskError(
        f'field {field!r} is {reaction!r}, not reactants>reagents>product; '
        f'the row has {sorted(map(str, row))}'
      )
    try:
      # Behind the first space some files tell which molecules are salts.
      question = smiles.without_maps(reaction.split(maxsplit=1)[0])
    except ValueError as error:
      raise base.TaskError(f'field {field!r}: {error}') from error
    return base.Example(row_id, question, gold, {'class': int(gold)})

  def identity(self, example: base.Example) -> str:
    """The reaction as written: in SMILES C and c are different atoms."""
    return example.question

  def extract(self, response: str) -> str | None:
    """The normalised answer by the strict rule; None abstains."""
    content = tags.tagged(response)
    if content is None or len(content) > MAX_CHARS:
      return None
    found = numbers.only_number(content)
    return found if found in _NAMES else None

  def extract_lenient(self, response: str) -> str | None:
    """The strict answer, or else the last number in 1..10 that is alone."""
    found = self.extract(response)
    if found is None:
      for match in _ALONE.finditer(response):
        found = match[0]
    return found

  def released(self, response: str, example: base.Example) -> float:
    """Accuracy, 0 or 1, by the rule of the code released with the paper.

    It knows no strict rule: a number in tags, or else the last in 1..10.
    """
    return float(self.is_correct(self.extract_lenient(response), example))
