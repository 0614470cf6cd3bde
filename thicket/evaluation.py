# SPDX-License-Identifier: Apache-2.0
"""From a task's rows to batches of prompts, and from tokens to judged rows.

The tokens that all prompts of all splits start with (a chat template's head,
the wording of the question) are found once; each member computes them once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from thicket import batching, decode, sampling
from thicket.blocks import Block
from thicket.judging import Judges
from thicket.models.stops import stop_table, truncate
from thicket.models.tokenizer import Tokenizer
from thicket.models.tokenizer_parts import TokenizerError, TooLong
from thicket.tasks import base as tasks

_Said = tuple[int, bytes]  # a row's id, and int32 tokens that answer it
_MEMO_SIZE = 100_000  # judged texts; about 100 MB of long answers


@dataclasses.dataclass(frozen=True, eq=False)
class Questions:
  """The prompts of one split, ready to be answered.

  Attributes:
    split: its name in the ledger.
    examples: its rows.
    suffixes: the tokens of each prompt behind the shared prefix.
    rows: B, prompts in a batch.
    pad_id: the token on the left of short prompts.
  """

  split: str
  examples: tuple[tasks.Example, ...]
  suffixes: tuple[tuple[int, ...], ...]
  rows: int
  pad_id: int

  @property
  def row_ids(self) -> np.ndarray:
    """int64 [r], the ledger's keys of the rows."""
    return np.array([example.row_id for example in self.examples], np.int64)

  @property
  def buckets(self) -> set[int]:
    """Sizes of all batches that these prompts may come to lie in."""
    return {decode.bucket(len(suffix)) for suffix in self.suffixes}

  def batches(
    self,
    which: np.ndarray | None = None,
    answers: np.ndarray | None = None,
  ) -> list[decode.Prompts]:
    """Batches of all prompts, or of those `which` names by their index.

    `answers` says how many tokens the base took for each of them, None that
    this is not known; see `batching`.
    """
    return batching.batches(
      self.suffixes, self.row_ids, self.rows, self.pad_id, which, answers
    )


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
    TaskError: a prompt is empty, is refused by the chat template or does not
      fit the context, or `rows` is below 1.
  """
  if rows < 1:
    raise tasks.TaskError(f'prompts in a batch = {rows} is below 1')
  encoded: dict[str, list[list[int]]] = {}
  for split, examples in splits.items():
    encoded[split] = []
    for example in examples:
      try:
        tokens = encode(
          task.prompt(example),
          tokenizer,
          max_new_tokens=max_new_tokens,
          context_length=context_length,
          remedy='drop the row or lower config.decode.max_new_tokens',
        )
      except tasks.TaskError as error:
        raise tasks.TaskError(
          f'{split} row {example.row_id}: {error}'
        ) from error
      encoded[split].append(tokens)
  everything = [tokens for some in encoded.values() for tokens in some]
  shared = decode.shared_prefix(everything)
  prefix = everything[0][:shared] if everything else []
  questions = {
    split: Questions(
      split,
      tuple(splits[split]),
      tuple(tuple(tokens[shared:]) for tokens in prompts),
      rows,
      tokenizer.pad_id,
    )
    for split, prompts in encoded.items()
  }
  return prefix, questions


def encode(
  text: str,
  tokenizer: Tokenizer,
  *,
  max_new_tokens: int,
  context_length: int,
  remedy: str,
) -> list[int]:
  """The tokens of one prompt, its chat template around it.

  Args:
    text: of the user.
    tokenizer: its chat template goes around it.
    max_new_tokens: room to leave for the answer.
    context_length: tokens that the model can take.
    remedy: what to do where it is too long.

  Raises:
    TaskError: the prompt is empty, is refused by the chat template or does not
      fit the context.
  """
  if not text.strip():
    raise tasks.TaskError(f'the prompt {text!r} is empty')
  try:
    most = context_length - max_new_tokens
    tokens = tokenizer.encode(tokenizer.render(text), most)
  except TooLong as error:
    raise tasks.TaskError(
      f'{error.tokens} prompt tokens and {max_new_tokens} new ones exceed the '
      f'context of {context_length}; {remedy}'
    ) from error
  except TokenizerError as error:
    raise tasks.TaskError(str(error)) from error
  if not tokens:
    raise tasks.TaskError(f'the prompt {text!r} has no tokens')
  return tokens


def decoding(
  task: tasks.Task,
  tokenizer: Tokenizer,
  *,
  vocab_size: int,
  max_new_tokens: int,
  choose: sampling.Choose = sampling.greedy,
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

  Attributes:
    memo_hits: answers that needed no judging, as they were known.
  """

  def __init__(
    self, task: tasks.Task, tokenizer: Tokenizer, processes: int = 0
  ):
    """Takes the task's rules and the tokenizer that spells answers.

    Args:
      task: judges.
      tokenizer: spells.
      processes: that judge beside this one, see `judging.Judges`; 0: none.

    Raises:
      TaskError: the task cannot be sent to processes.
    """
    self._task, self._tokenizer = task, tokenizer
    self._judges = Judges(task, processes)
    self._memo: dict[_Said, tuple[tasks.Judgement, str]] = {}
    self.memo_hits = 0

  def start(self) -> None:
    """Starts processes that judge, if there are to be any, ahead of need."""
    self._judges.start()

  def close(self) -> None:
    """Ends them."""
    self._judges.close()

  def __call__(
    self,
    questions: Questions,
    which: np.ndarray,
    batches: Sequence[decode.Prompts],
    generated: Sequence[decode.Generated],
    member_ids: np.ndarray,
    draws: np.ndarray,
    *,
    keep_texts: bool = False,
  ) -> list[Block]:
    """Judges what some members answered to some questions of a split.

    Args:
      questions: the split.
      which: [r], indices of the questions.
      batches: what `questions.batches(which)` gave.
      generated: one for each batch, arrays [m, B, ...].
      member_ids: [m].
      draws: [m], which of its answers each member gave.
      keep_texts: put the texts into the blocks.

    Returns:
      For each of the m a block [1, r, 1].

    Raises:
      TaskError: the task fails at a text, which is named.
    """
    place = {int(prompt): i for i, prompt in enumerate(which)}
    asked = [questions.examples[prompt] for prompt in place]
    m, r = len(member_ids), len(asked)
    said: list[list] = [[None] * r for _ in range(m)]
    num_tokens = np.zeros((m, r), np.int32)
    truncated = np.zeros((m, r), bool)
    for batch, answers in zip(batches, generated, strict=True):
      live = np.flatnonzero(batch.live)
      where = [place[int(prompt)] for prompt in batch.prompt[live]]
      num_tokens[:, where] = answers.length[:, live]
      truncated[:, where] = ~answers.stopped[:, live]
      for row, i in zip(live, where, strict=True):
        for member in range(m):
          tokens = answers.tokens[member, row, : answers.length[member, row]]
          said[member][i] = asked[i].row_id, tokens.tobytes()
    known = self._judge(asked, [key for row in said for key in row])
    row_ids = questions.row_ids[which]
    return [
      block(
        int(member_ids[i]),
        int(draws[i]),
        row_ids,
        [known[key][0] for key in said[i]],
        [known[key][1] for key in said[i]] if keep_texts else None,
        num_tokens[i],
        truncated[i],
      )
      for i in range(m)
    ]

  def _judge(
    self, asked: Sequence[tasks.Example], said: Sequence[_Said]
  ) -> dict[_Said, tuple[tasks.Judgement, str]]:
    """The judgement and the text of all that was said to what was asked."""
    rows = {example.row_id: example for example in asked}
    unique = dict.fromkeys(said)
    known = {key: self._memo[key] for key in unique if key in self._memo}
    new = [key for key in unique if key not in known]
    texts = [self._text(tokens) for _, tokens in new]
    judged = self._judges(
      [(rows[key[0]], text) for key, text in zip(new, texts, strict=True)]
    )
    fresh = dict(zip(new, zip(judged, texts, strict=True), strict=True))
    if len(self._memo) + len(fresh) > _MEMO_SIZE:
      self._memo.clear()
    self._memo |= fresh
    self.memo_hits += len(said) - len(new)
    return known | fresh

  def _text(self, data: bytes) -> str:
    tokens = np.frombuffer(data, np.int32)
    # Rows of a padded embedding are no tokens; a member that is broken
    # enough to choose one says nothing by it.
    known = tokens[tokens < self._tokenizer.vocab_size]
    text = self._tokenizer.decode(known.tolist())
    return truncate(text, self._task.stop_strings)


def block(
  member: int,
  draw: int,
  row_ids: np.ndarray,
  judged: Sequence[tasks.Judgement],
  texts: Sequence[str] | None,
  num_tokens: np.ndarray,
  truncated: np.ndarray,
) -> Block:
  """One answer of one member to each of r questions, as a block [1, r, 1]."""
  said = {x.answer for x in judged} | {x.lenient_answer for x in judged}
  table = sorted(said - {None})
  index = {None: -1} | {answer: i for i, answer in enumerate(table)}
  column = lambda values, dtype: np.array(values, dtype).reshape(1, -1, 1)
  return Block(
    members=np.array([member], np.int32),
    rows=row_ids,
    draws=np.array([draw], np.int32),
    seen=np.ones((1, len(judged), 1), bool),
    reward=column([x.reward for x in judged], np.float32),
    lenient=column([x.lenient_reward for x in judged], np.float32),
    correct=column([x.is_correct for x in judged], bool),
    lenient_correct=column([x.is_lenient_correct for x in judged], bool),
    # None becomes NaN.
    released=column([x.released for x in judged], np.float32),
    answer=column([index[x.answer] for x in judged], np.int32),
    lenient_answer=column([index[x.lenient_answer] for x in judged], np.int32),
    num_tokens=column(num_tokens, np.int32),
    truncated=column(truncated, bool),
    answers=tuple(table),
    texts=None if texts is None else tuple(texts),
  )
