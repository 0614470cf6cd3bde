# SPDX-License-Identifier: Apache-2.0
"""Classification of texts: which of a few labels fits.

The model writes nothing. Each label's words are scored by their likelihood
behind the prompt, in one forward pass, and the likeliest label is the answer
(see `thicket.labels`); with `method='generate'` it writes its answer as for
any other task. No task of Neural Thickets (arXiv 2603.12228) is of this kind,
so both templates are ours.

Rows are the user's own, {"text": ..., "label": ...}: a JSONL file, or a TSV
file with these two among the columns that its first line names. Such a file
has no split: half of its rows, by a hash of the text, are for test.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any, ClassVar

from thicket.tasks import base

TEXT, LABELS = '{text}', '{labels}'
METHODS = ('score', 'generate')
SCORES = ('calibrated', 'sum', 'mean')
OBJECTIVES = ('accuracy', 'likelihood')

# Nats; less is counted as this much, so that rewards have a range and one
# hopeless row cannot outweigh all others.
FLOOR = -20.0

_AROUND = ' \t\r\n"\'`*_.,:;!()[]'  # what may stand around a label alone


@dataclasses.dataclass(frozen=True)
class Classify(base.Task):
  """One of a few labels for each text.

  Written answers: by the strict rule the first line is a label's words and
  nothing else but quotes, stops and stars around them, in any case. The
  lenient rule takes the only label that is named anywhere in the response, as
  whole words; a label inside a longer one ('sure' in 'not sure') does not
  count there. Everything else abstains.

  Fields:
    labels: the classes, as rows name them; what votes.
    words: what the model is to say for each; default the labels themselves.
      Without a chat template they may need a space in front.
    prompt_template: holds `{text}`, and maybe `{labels}` for all words.
    method: 'score' or 'generate'.
    score: of a label, 'sum' of the log-likelihoods of its tokens; their
      'mean', which does not favour short labels; or 'calibrated', their sum
      less that behind the same prompt around `content_free`, so that labels
      that are likely whatever the text says are not preferred (Holtzman et
      al., arXiv 2104.08315; Zhao et al., arXiv 2102.09690).
    content_free: the text that says nothing.
    offsets: nats added to the score of each label, such as fit the base on
      rows that are not for test; none by default.
    objective: what selection maximises, 'accuracy' or 'likelihood', the log
      of the gold label's share among all labels, in nats, at least -20.

  Raises:
    TaskError: labels or words are too few, empty or alike, or a setting is
      unknown.
  """

  prompt_templates: ClassVar[tuple[str, ...]] = (
    'Classify the text as {labels}. Answer with that label only.\n\n{text}',
    '{text}\n\nWhich label fits this text: {labels}?',
  )

  labels: tuple[str, ...] = ('negative', 'positive')
  words: tuple[str, ...] = ()
  prompt_template: str = prompt_templates[0]
  method: str = 'score'
  score: str = 'calibrated'
  content_free: str = 'N/A'
  offsets: tuple[float, ...] = ()
  objective: str = 'accuracy'
  max_new_tokens: int = 8

  name: ClassVar[str] = 'classify'
  is_classification: ClassVar[bool] = True
  stop_strings: ClassVar[tuple[str, ...]] = ('\n',)

  def __post_init__(self):
    for field in ('labels', 'words', 'offsets'):  # JSON has lists
      object.__setattr__(self, field, tuple(getattr(self, field)))
    base.check_settings(self, TEXT)
    for field, known in (
      ('method', METHODS),
      ('score', SCORES),
      ('objective', OBJECTIVES),
    ):
      if getattr(self, field) not in known:
        raise base.TaskError(
          f'classify: {field}={getattr(self, field)!r}; known: '
          f'{", ".join(known)}'
        )
    if len(self.labels) < 2:
      raise base.TaskError(
        f'classify: labels={self.labels!r}: name two at least'
      )
    for field in ('words', 'offsets'):
      found = getattr(self, field)
      if found and len(found) != len(self.labels):
        raise base.TaskError(
          f'classify: {field}={found!r} for labels={self.labels!r}: one each'
        )
    if not all(math.isfinite(nats) for nats in self.offsets):
      raise base.TaskError(f'classify: offsets={self.offsets!r}: not finite')
    for field in ('labels', 'words'):
      _check_apart(field, getattr(self, field))
    if not self.content_free.strip():
      raise base.TaskError("classify: content_free is empty; try 'N/A'")
    if self.objective == 'likelihood' and self.method == 'generate':
      raise base.TaskError(
        "classify: objective='likelihood' needs method='score': a written "
        'answer has no likelihoods'
      )

  @property
  def output_kind(self) -> str:
    """'label', or 'text' where the answer is written."""
    return 'label' if self.method == 'score' else 'text'

  @property
  def reward_range(self) -> tuple[float, float]:
    """0 to 1, or nats from -20 to 0."""
    return (0.0, 1.0) if self.objective == 'accuracy' else (FLOOR, 0.0)

  @property
  def spoken(self) -> tuple[str, ...]:
    """What the model is to say for each label."""
    return self.words or self.labels

  @property
  def stand_ins(self) -> Mapping[str, Any]:
    """A label, for a text that has none."""
    return {'label': self.labels[0]}

  def prompt(self, example: base.Example) -> str:
    """The user's text; a chat template is put around it elsewhere."""
    *most, last = (word.strip() for word in self.spoken)
    listed = f'{", ".join(most)} or {last}'
    # The text last: it may hold braces of its own.
    return self.prompt_template.replace(LABELS, listed).replace(
      TEXT, example.question
    )

  def parse(self, row: Mapping[str, Any], row_id: int) -> base.Example:
    """Reads the fields `text` and `label` of one row.

    Raises:
      TaskError: a field is missing or no text, or the label is not known.
    """
    text, label = base.texts(row, ('text', 'label'))
    if label not in self.labels:
      raise base.TaskError(f'label {label!r} is not one of {self.labels!r}')
    return base.Example(row_id, text, label)

  def extract(self, response: str) -> str | None:
    """The label that the first line is, by the strict rule; None abstains."""
    line, _, _ = response.lstrip().partition('\n')
    said = _plain(line.strip(_AROUND))
    for label, word in zip(self.labels, self.spoken, strict=True):
      if said == _plain(word.strip(_AROUND)):
        return label
    return None

  def extract_lenient(self, response: str) -> str | None:
    """The strict answer, or else the only label that is named."""
    strict = self.extract(response)
    if strict is not None:
      return strict
    words = [_plain(word) for word in self.spoken]
    # Longest first, so that 'not sure' is not read as 'sure'.
    order = sorted(range(len(words)), key=lambda i: -len(words[i]))
    either = '|'.join(re.escape(words[i]) for i in order)
    found = re.findall(rf'(?<!\w)(?:{either})(?!\w)', _plain(response))
    named = set(found)
    return self.labels[words.index(named.pop())] if len(named) == 1 else None

  def reward(self, answer: str | None, example: base.Example) -> float:
    """Of an answer without likelihoods, a vote's: the most or the least."""
    return self.reward_range[self.is_correct(answer, example)]

  def scored_reward(
    self, answer: str | None, log_share: float, example: base.Example
  ) -> float:
    """Of a label that was scored.

    Args:
      answer: the label.
      log_share: of the gold label among all labels, in nats; NaN of a model
        that is broken.
      example: the row.
    """
    if self.objective == 'accuracy':
      return self.reward(answer, example)
    return log_share if log_share > FLOOR else FLOOR


def _plain(text: str) -> str:
  """The text as labels are compared: one case, one space between words."""
  return ' '.join(text.casefold().split())


def _check_apart(field: str, labels: tuple[str, ...]) -> None:
  seen: dict[str, str] = {}
  for label in labels:
    if not isinstance(label, str) or not label.strip(_AROUND):
      raise base.TaskError(
        f'classify: {field}={labels!r}: {label!r} says nothing'
      )
    other = seen.setdefault(_plain(label.strip(_AROUND)), label)
    if other is not label or labels.count(label) > 1:
      raise base.TaskError(
        f'classify: {field}={labels!r}: {other!r} and {label!r} are alike'
      )
