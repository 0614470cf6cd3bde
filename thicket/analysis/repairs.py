# SPDX-License-Identifier: Apache-2.0
"""What a vote repaired and what it broke: format, or reasoning.

Neural Thickets (arXiv 2603.12228, section 8) finds that more than half of the
gain on GSM8K is format. An item that the vote fixed is a repair of format if
the base's answer was right under the task's lenient rule (the base knew it,
and only wrote it otherwise), else one of reasoning; a regression likewise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from thicket.panel import Outcome, Panel
from thicket.tasks.base import Example

KINDS = ('format', 'reasoning')


def repairs(
  examples: Sequence[Example], base: Panel, ensemble: Panel, vote: Outcome
) -> dict[str, Any]:
  """Counts and items that base and vote do not agree on.

  Args:
    examples: the r questions.
    base: the base's answer to each, a panel of one.
    ensemble: the voters.
    vote: their vote.

  Returns:
    `fixed` and `regressed`, each with its counts by kind, and `items`, one for
    each such question: what base and vote answered, and the text of the
    best-ranked voter for it.
  """
  was, now = base.correct[0], vote.correct
  found: dict[str, Any] = {'items': []}
  for change, hits, knew in (
    ('fixed', now & ~was, base.lenient_correct[0]),
    ('regressed', was & ~now, vote.lenient_correct),
  ):
    found[change] = {
      'format': int((hits & knew).sum()),
      'reasoning': int((hits & ~knew).sum()),
    }
    for row in np.flatnonzero(hits):
      speaker = int(vote.speaker[row])
      is_silent = speaker < 0
      found['items'].append(
        {
          'row': examples[row].row_id,
          'question': examples[row].question,
          'gold': examples[row].gold,
          'change': change,
          'kind': KINDS[0 if knew[row] else 1],
          'base': {'answer': base.answers[0][row], 'text': base.texts[0][row]},
          'vote': {
            'answer': None if is_silent else ensemble.answers[speaker][row],
            'text': ensemble.texts[max(speaker, 0)][row],
            'count': int(vote.count[row]),
            'of': vote.k,
          },
        }
      )
  return found
