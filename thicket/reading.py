# SPDX-License-Identifier: Apache-2.0
"""How answers are read: off a text that is written, or off scored labels.

A task says which by its `output_kind`; everything else in a run is the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from absl import logging

from thicket import decode, evaluation, labels, sampling
from thicket.blocks import Block
from thicket.models.tokenizer import Tokenizer
from thicket.tasks import base as tasks
from thicket.tasks.classify import Classify


def decoding(
  task: tasks.Task,
  tokenizer: Tokenizer,
  *,
  vocab_size: int,
  max_new_tokens: int,
  choose: sampling.Choose = sampling.greedy,
) -> decode.Decoding | labels.Labels:
  """What the engine is told: see `evaluation.decoding`, or `labels.Labels`.

  Raises:
    TaskError: a label has no tokens, has more than there is room for, or
      cannot be told from another.
  """
  if task.output_kind == 'label':
    return _labels(task, tokenizer, max_new_tokens, choose)
  return evaluation.decoding(
    task,
    tokenizer,
    vocab_size=vocab_size,
    max_new_tokens=max_new_tokens,
    choose=choose,
  )


def judge(
  task: tasks.Task, tokenizer: Tokenizer, processes: int = 0
) -> evaluation.Judge | LabelJudge:
  """What turns a task's answers into rows of the ledger."""
  if task.output_kind == 'label':
    return LabelJudge(task)
  return evaluation.Judge(task, tokenizer, processes)


def _labels(
  task: Classify,
  tokenizer: Tokenizer,
  max_new_tokens: int,
  choose: sampling.Choose,
) -> labels.Labels:
  """The labels' tokens, as they stand behind a prompt."""
  example = tasks.Example(0, task.content_free, task.labels[0])
  prompt = tokenizer.render(task.prompt(example))
  before = tokenizer.encode(prompt)
  found = []
  for word in task.spoken:
    tokens = tokenizer.encode(word)
    tokens = tokens[1:] if tokenizer.add_bos else tokens
    if not tokens:
      raise tasks.TaskError(
        f'{task.name}: label {word!r} has no tokens in this model; name '
        'another with task.words'
      )
    if len(tokens) > max_new_tokens:
      raise tasks.TaskError(
        f'{task.name}: label {word!r} has {len(tokens)} tokens, above '
        f'decode.max_new_tokens = {max_new_tokens}; raise it'
      )
    if tokenizer.encode(prompt + word) != before + tokens:
      logging.warning(
        '%s: behind the prompt, label %r is written with other tokens than '
        'alone; change the end of the prompt, or the words',
        task.name,
        word,
      )
    found.append(tuple(tokens))
  try:
    return labels.Labels(
      tokens=tuple(found),
      is_mean=task.score == 'mean',
      empty=tuple(before) if task.score == 'calibrated' else (),
      offsets=task.offsets,
      choose=choose,
    )
  except ValueError as error:
    raise tasks.TaskError(
      f'{task.name}: {task.spoken}: {error}, so that the longer one could '
      'never be likelier; name others with task.words'
    ) from error


class LabelJudge:
  """Turns scored labels into rows of the ledger; as `evaluation.Judge`.

  Attributes:
    memo_hits: 0; there is nothing to be saved.
  """

  memo_hits = 0

  def __init__(self, task: Classify):
    """Takes the task's rules."""
    self._task = task

  def start(self) -> None:
    """Nothing: no process is needed."""

  def close(self) -> None:
    """Nothing."""

  def __call__(
    self,
    questions: evaluation.Questions,
    which: np.ndarray,
    batches: Sequence[decode.Prompts],
    scored: Sequence[labels.Scored],
    member_ids: np.ndarray,
    draws: np.ndarray,
    *,
    keep_texts: bool = False,
  ) -> list[Block]:
    """Judges the labels that some members gave some questions of a split.

    Args and the result are those of `evaluation.Judge`.

    Raises:
      TaskError: the task gave a reward outside its own range.
    """
    place = {int(prompt): i for i, prompt in enumerate(which)}
    asked = [questions.examples[prompt] for prompt in place]
    gold = np.array([self._task.labels.index(x.gold) for x in asked])
    shape = len(member_ids), len(asked)
    number = np.full(shape, labels.ABSTAIN)
    log_share = np.full(shape, np.nan)
    for batch, answers in zip(batches, scored, strict=True):
      live = np.flatnonzero(batch.live)
      where = [place[int(prompt)] for prompt in batch.prompt[live]]
      number[:, where] = answers.tokens[:, live, 0]
      log_share[:, where] = answers.logs[:, live, gold[where]]
    row_ids = questions.row_ids[which]
    result = []
    for i in range(shape[0]):
      # The last of them stands for -1.
      said = [(*self._task.labels, None)[label] for label in number[i]]
      judged = [
        self._judge(answer, float(log), example)
        for answer, log, example in zip(said, log_share[i], asked, strict=True)
      ]
      result.append(
        evaluation.block(
          int(member_ids[i]),
          int(draws[i]),
          row_ids,
          judged,
          [answer or '' for answer in said] if keep_texts else None,
          np.ones(len(asked), np.int32),
          np.zeros(len(asked), bool),
        )
      )
    return result

  def _judge(
    self, answer: str | None, log_share: float, example: tasks.Example
  ) -> tasks.Judgement:
    found = tasks.judge_answer(self._task, answer, example)
    reward = self._task.scored_reward(answer, log_share, example)
    return dataclasses.replace(found, reward=reward, lenient_reward=reward)
