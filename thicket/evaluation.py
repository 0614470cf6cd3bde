# SPDX-License-Identifier: Apache-2.0
"""From a task's rows to batches of prompts, and from tokens to judged rows.

The tokens that all prompts of all splits start with (a chat template's head,
the wording of the question) are found once; each member computes them once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from thicket import decode
from thicket.blocks import Block
from thicket.models.tokenizer import Tokenizer, stop_table, truncate
from thicket.tasks import base as tasks

_MEMO_SIZE = 100_000  # judged texts; about 100 MB of long answers


@dataclasses.dataclass(frozen=True, eq=False)
class Questions:
  """The prompts of one split, ready to be answered.

  Attributes:
    split: its name in the ledger.
    examples: its rows.
    batches: the prompts behind the shared prefix; their `prompt` counts
      `examples`.
  """

  split: str
  examples: tuple[tasks.Example, ...]
  batches: list[decode.Prompts]

  @property
  def row_ids(self) -> np.ndarray:
    """int64 [r], the ledger's keys of the rows."""
    return np.array([example.row_id for example in self.examples], np.int64)


def prepare(
  task: tasks.Task,
  tokenizer: Tokenizer,
  splits: Mapping[str, Sequence[tasks.Example]],
  *,
  rows: int,
  max_new_tokens: int,
  context_length: int,
) -> tuple[list[int], dict[str, Questions]]:
  """Renders, encodes and batches all prompts of a run.

  Args:
    task: makes the prompts.
    tokenizer: its chat template goes around them.
    splits: rows by name of split.
    rows: B, prompts in a batch.
    max_new_tokens: room to leave for the answer.
    context_length: tokens that the model can take.

  Returns:
    The tokens that all prompts share, and the questions of each split.

  Raises:
    TaskError: a prompt is empty or does not fit the context, or `rows` is
      below 1.
  """
  if rows < 1:
    raise tasks.TaskError(f'prompts in a batch = {rows} is below 1')
  encoded: dict[str, list[list[int]]] = {}
  for split, examples in splits.items():
    encoded[split] = []
    for example in examples:
      text = task.prompt(example)
      tokens = tokenizer.encode(tokenizer.render(text)) if text.strip() else []
      if not tokens:
        raise tasks.TaskError(
          f'{split} row {example.row_id}: the prompt {text!r} is empty'
        )
      if len(tokens) + max_new_tokens > context_length:
        raise tasks.TaskError(
          f'{split} row {example.row_id}: {len(tokens)} prompt tokens and '
          f'{max_new_tokens} new ones exceed the context of {context_length}; '
          'drop the row or lower config.decode.max_new_tokens'
        )
      encoded[split].append(tokens)
  everything = [tokens for some in encoded.values() for tokens in some]
  shared = decode.shared_prefix(everything)
  prefix = everything[0][:shared] if everything else []
  questions = {
    split: Questions(
      split,
      tuple(splits[split]),
      decode.batches(
        [tokens[shared:] for tokens in prompts], rows, tokenizer.pad_id
      ),
    )
    for split, prompts in encoded.items()
  }
  return prefix, questions


def decoding(
  task: tasks.Task,
  tokenizer: Tokenizer,
  *,
  vocab_size: int,
  max_new_tokens: int,
  choose: decode.Choose = decode.greedy,
) -> decode.Decoding:
  """Generation as a task wants it: its stop strings, its tokenizer's stops.

  Args:
    task: names the stop strings.
    tokenizer: names the stop ids and what each token spells.
    vocab_size: V of the model; ids that the tokenizer does not know spell
      nothing.
    max_new_tokens: G.
    choose: the token rule.
  """
  spelled = list(tokenizer.token_bytes)[:vocab_size]
  spelled += [b''] * (vocab_size - len(spelled))
  return decode.Decoding(
    max_new_tokens=max_new_tokens,
    stop_table=stop_table(spelled, tokenizer.stop_ids, task.stop_strings),
    pad_id=tokenizer.pad_id,
    choose=choose,
  )


class Judge:
  """Turns generated tokens into rows of the ledger.

  A text is judged once for each question, however many members write it.
  """

  def __init__(
    self, task: tasks.Task, tokenizer: Tokenizer, *, keep_texts: bool = False
  ):
    """Takes the task's rules; `keep_texts` stores the answers' text too."""
    self._task, self._tokenizer = task, tokenizer
    self._keep_texts = keep_texts
    self._memo: dict[tuple[int, bytes], tuple[tasks.Judgement, str]] = {}

  def __call__(
    self,
    questions: Questions,
    member_ids: np.ndarray,
    generated: Sequence[decode.Generated],
  ) -> Block:
    """Judges what some members answered to all questions of a split.

    Args:
      questions: the split.
      member_ids: [m].
      generated: one for each of the split's batches, arrays [m, B, ...].

    Returns:
      The block [m, r, 1].
    """
    m, r = len(member_ids), len(questions.examples)
    judged = np.empty((m, r), object)
    num_tokens = np.zeros((m, r), np.int32)
    truncated = np.zeros((m, r), bool)
    for batch, answers in zip(questions.batches, generated, strict=True):
      live = np.flatnonzero(batch.live)
      where = batch.prompt[live]
      num_tokens[:, where] = answers.length[:, live]
      truncated[:, where] = ~answers.stopped[:, live]
      for row, i in zip(live, where, strict=True):
        for member in range(m):
          tokens = answers.tokens[member, row, : answers.length[member, row]]
          judged[member, i] = self._judge(questions.examples[i], tokens)
    flat = [item for row in judged for item in row]
    results = [result for result, _ in flat]
    table = sorted({x.answer for x in results if x.answer is not None})
    index = {None: -1} | {answer: i for i, answer in enumerate(table)}
    column = lambda values, dtype: np.array(values, dtype).reshape(m, r, 1)
    return Block(
      members=np.asarray(member_ids, np.int32),
      rows=questions.row_ids,
      draws=np.zeros(1, np.int32),
      seen=np.ones((m, r, 1), bool),
      reward=column([x.reward for x in results], np.float32),
      lenient=column([x.lenient_reward for x in results], np.float32),
      correct=column([x.is_correct for x in results], bool),
      answer=column([index[x.answer] for x in results], np.int32),
      num_tokens=num_tokens[..., None],
      truncated=truncated[..., None],
      answers=tuple(table),
      texts=tuple(text for _, text in flat) if self._keep_texts else None,
    )

  def _judge(
    self, example: tasks.Example, tokens: np.ndarray
  ) -> tuple[tasks.Judgement, str]:
    key = example.row_id, tokens.tobytes()
    if key not in self._memo:
      if len(self._memo) >= _MEMO_SIZE:
        self._memo.clear()
      # Rows of a padded embedding are no tokens; a member that is broken
      # enough to choose one says nothing by it.
      known = tokens[tokens < self._tokenizer.vocab_size]
      text = self._tokenizer.decode(known.tolist())
      text = truncate(text, self._task.stop_strings)
      self._memo[key] = tasks.judge(self._task, text, example), text
    return self._memo[key]
