# SPDX-License-Identifier: Apache-2.0
"""From rows to prompts and from tokens to judged rows, without a model."""

import dataclasses

import numpy as np
import pytest
import tiny_gguf
from tiny_gguf import token

from thicket import decode, evaluation, sampling, tasks
from thicket.ledger import Ledger
from thicket.models.tokenizer import Tokenizer
from thicket.population import BASE
from thicket.tasks.base import Example, TaskError

BYTES = Tokenizer.from_gguf(tiny_gguf.metadata())
TASK = tasks.make('arithmetic', prompt_template='Q {question}=')
SELECTION = (
  Example(11, '3 + 4', '7'),
  Example(12, '30 + 12', '42'),
  Example(13, '5 - 2', '3'),
)
TEST = (Example(21, '3 + 5', '8'), Example(22, '12 * 30', '360'))
SPLITS = {'selection': SELECTION, 'test': TEST}
PAD = BYTES.pad_id
G = 4


def _prepare(splits=SPLITS, task=TASK, tokenizer=BYTES, **more):
  settings = {'rows': 2, 'max_new_tokens': G, 'context_length': 64} | more
  return evaluation.prepare(task, tokenizer, splits, **settings)


def _whole_prompts(prefix, questions):
  """Tokens of each of a split's prompts, in the order of its rows."""
  found = {}
  for batch in questions.batches():
    for row in np.flatnonzero(batch.live):
      suffix = batch.tokens[row, -batch.length[row] :]
      assert (batch.tokens[row, : -batch.length[row]] == PAD).all()
      found[int(batch.prompt[row])] = [*prefix, *suffix.tolist()]
  return [found[i] for i in range(len(questions.examples))]


# Prompts.


def test_prefix_and_batches_put_together_are_the_rendered_prompts():
  prefix, questions = _prepare()
  assert list(questions) == list(SPLITS)
  for split, examples in SPLITS.items():
    assert questions[split].split == split
    assert questions[split].examples == examples
    want = [BYTES.encode(f'<s>Q {row.question}=>') for row in examples]
    assert _whole_prompts(prefix, questions[split]) == want


def test_all_splits_share_one_prefix():
  prefix, _ = _prepare()
  assert BYTES.decode(prefix) == 'Q '
  assert prefix[0] == tiny_gguf.BOS
  # Selection alone would share more than it shares with test.
  alike = tuple(Example(i, f'3 + {i}', '0') for i in (4, 5))
  longer, _ = _prepare({'selection': alike})
  assert BYTES.decode(longer) == 'Q 3 + '
  both, _ = _prepare({'selection': alike, 'test': TEST[1:]})
  assert both == prefix


def test_row_ids_follow_the_examples():
  _, questions = _prepare()
  assert questions['test'].row_ids.tolist() == [21, 22]
  assert questions['test'].row_ids.dtype == np.int64
  large = Example(2**63 - 1, '1 + 1', '2')
  _, questions = _prepare({'test': (large, *TEST)})
  assert questions['test'].row_ids.tolist() == [2**63 - 1, 21, 22]


@pytest.mark.parametrize('which', [None, [2, 0]])
def test_the_token_rule_gets_row_ids_not_places(which):
  large = Example(5 << 32 | 3, '1 + 1', '2')
  _, questions = _prepare({'test': (large, *TEST)})
  words = {0: [5, 3], 1: [0, 21], 2: [0, 22]}
  batches = questions['test'].batches(which)
  found = {}
  for batch in batches:
    found |= zip(batch.prompt.tolist(), batch.row.tolist(), strict=True)
  assert found == {i: words[i] for i in which or words}


def test_batches_have_the_rows_asked_for():
  _, questions = _prepare(rows=3)
  shapes = [
    [batch.tokens.shape for batch in questions[split].batches()]
    for split in SPLITS
  ]
  assert shapes == [[(3, 8)], [(3, 8)]]
  (batch,) = questions['test'].batches()
  assert batch.live.tolist() == [True, True, False]


def test_one_row_leaves_a_token_behind_the_prefix():
  prefix, questions = _prepare({'test': TEST[:1]})
  (batch,) = questions['test'].batches()
  assert batch.length.tolist() == [1, 1]
  assert _whole_prompts(prefix, questions['test']) == [
    BYTES.encode('<s>Q 3 + 5=>')
  ]


def test_without_a_chat_template_the_prompt_is_the_task_s():
  entries = tiny_gguf.metadata()
  del entries['tokenizer.chat_template']
  plain = Tokenizer.from_gguf(entries)
  prefix, questions = _prepare(tokenizer=plain)
  got = _whole_prompts(prefix, questions['test'])
  assert [plain.decode(tokens) for tokens in got] == ['Q 3 + 5=', 'Q 12 * 30=']


def test_rows_below_one_are_refused():
  with pytest.raises(TaskError) as caught:
    _prepare(rows=0)
  assert str(caught.value) == 'prompts in a batch = 0 is below 1'


def test_a_prompt_may_fill_the_context_and_not_exceed_it():
  longest = len(BYTES.encode('<s>Q 12 * 30=>'))  # row 22, after row 12
  _prepare(context_length=longest + G)
  with pytest.raises(TaskError) as caught:
    _prepare({'test': TEST}, context_length=longest + G - 1)
  assert str(caught.value) == (
    f'test row 22: {longest} prompt tokens and {G} new ones exceed the context '
    f'of {longest + G - 1}; drop the row or lower config.decode.max_new_tokens'
  )


def test_a_prompt_far_beyond_the_context_names_its_row():
  rows = {'test': (TEST[0], Example(22, '1' * 10**7, '1'))}
  with pytest.raises(TaskError) as caught:
    _prepare(rows)
  assert str(caught.value) == (
    'test row 22: 958 (in its first 960 of 10000007 characters) prompt tokens '
    f'and {G} new ones exceed the context of 64; drop the row or lower '
    'config.decode.max_new_tokens'
  )


def test_a_prompt_that_the_chat_template_refuses_names_its_row():
  refuse = "{{ raise_exception('no ' + messages[0].content) }}"
  entries = tiny_gguf.metadata() | {'tokenizer.chat_template': refuse}
  with pytest.raises(TaskError, match=r'selection row 11: chat template: no Q'):
    _prepare(tokenizer=Tokenizer.from_gguf(entries))


class _Silent(type(TASK)):
  """Asks nothing about one row."""

  def prompt(self, example):
    return ' \n' if example.row_id == 21 else super().prompt(example)


def test_an_empty_prompt_is_refused():
  with pytest.raises(TaskError) as caught:
    _prepare(task=_Silent())
  assert str(caught.value) == "test row 21: the prompt ' \\n' is empty"


# Settings of generation.


@pytest.mark.parametrize('extra', [0, 9])
def test_a_vocabulary_larger_than_the_tokenizer_s_spells_nothing(extra):
  size = BYTES.vocab_size + extra
  decoding = evaluation.decoding(TASK, BYTES, vocab_size=size, max_new_tokens=G)
  assert decoding.max_new_tokens == G
  assert decoding.pad_id == PAD == tiny_gguf.EOS
  assert decoding.choose is sampling.greedy
  table = decoding.stop_table
  assert table.shape == (2, size)
  # A line end stops, alone or inside a token; so does the end of a turn.
  stops = [i for i in range(BYTES.vocab_size) if b'\n' in BYTES.token_bytes[i]]
  assert token('\n') in stops
  assert len(stops) == 1 + len(tiny_gguf.NUMBERS)
  want = np.zeros(size, int)
  want[[*stops, tiny_gguf.EOS]] = 1
  np.testing.assert_array_equal(table[0], want)


def test_the_token_rule_is_handed_on():
  rule = lambda logits, rows, step: rows.draw
  decoding = evaluation.decoding(
    TASK,
    BYTES,
    vocab_size=BYTES.vocab_size,
    max_new_tokens=1,
    choose=rule,
  )
  assert decoding.choose is rule


# Judging. What members say is scripted: texts by member and row.


def _generated(questions, said, batches=None):
  """What members would have generated; rows are cut at G tokens."""
  result = []
  for batch in questions.batches() if batches is None else batches:
    B = len(batch.live)
    tokens = np.full((len(said), B, G), PAD, np.int32)
    length = np.zeros((len(said), B), np.int32)
    stopped = np.tile(~batch.live, (len(said), 1))
    for member, answers in enumerate(said):
      for row in np.flatnonzero(batch.live):
        ids = [
          i if isinstance(i, int) else token(i)
          for i in answers[batch.prompt[row]]
        ]
        tokens[member, row, : len(ids)] = ids
        length[member, row] = len(ids)
        last = BYTES.token_bytes[ids[-1]]
        stopped[member, row] = b'\n' in last or ids[-1] == tiny_gguf.EOS
    steps = length.max(axis=1)
    result.append(decode.Generated(tokens, length, stopped, steps))
  return result


END = tiny_gguf.EOS
SAID = [
  # 3 + 4 = 7           30 + 12 = 42           5 - 2 = 3
  [['7\n'], ['4', '2', END], ['3', ' ', 'x', 'x']],
  [['7', END], ['4', '2\n'], ['x', 'y', END]],
  [['1', ' ', '7', '\n'], ['4', '2', ' ', '5'], [END]],
]


def _blocks(judge, selection, said, members, draws=None, **more):
  """A block for each member; all questions."""
  which = np.arange(len(selection.examples))
  generated = _generated(selection, said)
  draws = np.zeros(len(members), int) if draws is None else draws
  return judge(
    selection, which, selection.batches(), generated, np.array(members), draws,
    **more,
  )  # fmt: skip


def _together(blocks):
  """The blocks as one, members sorted."""
  ledger = Ledger.in_memory({})
  for block in blocks:
    ledger.append('all', block)
  return ledger.view('all')


def _judge(said=SAID, task=TASK, members=(BASE, 3, 5), **more):
  _, questions = _prepare(task=task)
  judge = evaluation.Judge(task, BYTES)
  return _together(
    _blocks(judge, questions['selection'], said, members, **more)
  )


def test_scripted_answers_become_exact_rows():
  block = _judge()
  assert block.members.tolist() == [-1, 3, 5]
  assert block.rows.tolist() == [11, 12, 13]
  assert block.draws.tolist() == [0]
  assert block.seen.all()
  # The lenient rule takes the last number: '42 5' gives 5.
  assert block.answers == ('3', '42', '5', '7')
  columns = {
    'answer': [[3, 1, 0], [3, 1, -1], [-1, -1, -1]],
    'correct': [[1, 1, 1], [1, 1, 0], [0, 0, 0]],
    'reward': [[1, 1, 1], [1, 1, 0], [0, 0, 0]],
    # '1 7' ends in the gold answer; '42 5' does not.
    'lenient': [[1, 1, 1], [1, 1, 0], [1, 0, 0]],
    'lenient_correct': [[1, 1, 1], [1, 1, 0], [1, 0, 0]],
    # Arithmetic was not in the code released with the paper.
    'released': np.full((3, 3), np.nan),
    'lenient_answer': [[3, 1, 0], [3, 1, -1], [3, 2, -1]],
    'num_tokens': [[1, 3, 4], [2, 2, 3], [4, 4, 1]],
    'truncated': [[0, 0, 1], [0, 0, 0], [0, 1, 0]],
  }
  types = [np.int32, bool, np.float32, np.float32, bool, np.float32]
  types += [np.int32, np.int32, bool]
  for (name, want), dtype in zip(columns.items(), types, strict=True):
    found = getattr(block, name)
    assert found.shape == (3, 3, 1)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found[..., 0], want, err_msg=name)


class _Released(type(TASK)):
  """Also says how much of a text is digits, by a rule of its own."""

  def released(self, response, example):
    return sum(map(str.isdigit, response)) / max(1, len(response))


def test_what_the_released_rule_says_is_a_column():
  block, without = _judge(task=_Released()), _judge()
  assert block.released.dtype == np.float32
  np.testing.assert_array_equal(
    block.released[..., 0],
    np.array([[1, 1, 1 / 4], [1, 1, 0], [2 / 3, 3 / 4, 0]], np.float32),
  )
  for field in dataclasses.fields(without):
    if field.name != 'released':
      np.testing.assert_array_equal(
        getattr(block, field.name), getattr(without, field.name)
      )


def test_a_text_ends_before_the_stop_string_wherever_tokens_end():
  block = _judge(keep_texts=True)
  assert block.texts == (
    '7', '42', '3 xx',
    '7', '42', 'xy',
    '1 7', '42 5', '',
  )  # fmt: skip
  assert _judge().texts is None


def test_texts_change_nothing_else():
  with_texts, without = _judge(keep_texts=True), _judge()
  for field in dataclasses.fields(without):
    if field.name != 'texts':
      np.testing.assert_array_equal(
        getattr(with_texts, field.name), getattr(without, field.name)
      )


class _Counting(type(TASK)):
  """Notes what it has to judge."""

  def extract(self, response):
    self.asked.append(response)
    return super().extract(response)

  def extract_lenient(self, response):
    return None


def _counting():
  task = _Counting()
  object.__setattr__(task, 'asked', [])
  return task


def test_a_text_is_judged_once_for_each_question():
  task = _counting()
  same = [['7\n'], ['7\n'], ['3', END]]
  block = _judge([same, same, same], task)
  assert sorted(task.asked) == ['3', '7', '7']
  # Equal texts to different questions are not mixed up.
  np.testing.assert_array_equal(block.correct[..., 0], [[1, 0, 1]] * 3)


def test_the_memo_lasts_from_chunk_to_chunk():
  task = _counting()
  _, questions = _prepare(task=task)
  selection = questions['selection']
  judge = evaluation.Judge(task, BYTES)
  for member in range(4):
    said = [[['7\n'], [str(member % 2), END], ['3', END]]]
    (block,) = _blocks(judge, selection, said, [member])
    assert block.members.tolist() == [member]
  assert sorted(task.asked) == ['0', '1', '3', '7']


def test_no_answer_at_all():
  block = _judge([[[END]] * 3], members=(0,))
  assert block.answers == ()
  np.testing.assert_array_equal(block.answer, -1)
  np.testing.assert_array_equal(block.reward, 0)
  np.testing.assert_array_equal(block.num_tokens, 1)


def test_the_ledger_takes_the_block():
  ledger = Ledger.in_memory({})
  ledger.append('selection', _judge(keep_texts=True))
  view = ledger.view('selection')
  assert view.members.tolist() == [-1, 3, 5]
  assert view.texts[3:6] == ('7', '42', 'xy')


def test_each_draw_is_a_block_of_its_own():
  _, questions = _prepare()
  judge = evaluation.Judge(TASK, BYTES)
  blocks = _blocks(
    judge, questions['selection'], SAID, [BASE, BASE, 4], [0, 7, 2]
  )
  keys = [(x.members.tolist(), x.draws.tolist()) for x in blocks]
  assert keys == [([BASE], [0]), ([BASE], [7]), ([4], [2])]
  block = _together(blocks)
  assert block.seen[..., 0, :].tolist() == [
    [True, False, True], [False, True, False]
  ]  # fmt: skip
  assert block.num_tokens[0, :, 2].tolist() == [2, 2, 3]


def test_some_questions_are_judged_as_themselves():
  _, questions = _prepare()
  selection, judge = questions['selection'], evaluation.Judge(TASK, BYTES)
  which = np.array([2, 0])
  batches = selection.batches(which)
  assert sorted(i for b in batches for i in b.prompt[b.live]) == [0, 2]
  result = _generated(selection, SAID[:1], batches)
  (block,) = judge(
    selection, which, batches, result, np.array([4]), np.zeros(1, int)
  )
  assert block.rows.tolist() == [13, 11]
  assert block.num_tokens[0, :, 0].tolist() == [4, 1]
  assert block.correct[0, :, 0].tolist() == [True, True]


def test_answers_for_another_number_of_batches_are_refused():
  _, questions = _prepare()
  selection = questions['selection']
  judge = evaluation.Judge(TASK, BYTES)
  generated = _generated(selection, SAID)
  numbers = np.arange(3)
  with pytest.raises(ValueError, match='shorter'):
    judge(
      selection, numbers, selection.batches(), generated[:1], numbers, numbers
    )
