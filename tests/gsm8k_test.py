# SPDX-License-Identifier: Apache-2.0
"""GSM8K: parsing of rows, and the strict and the lenient rule."""

import pytest

from thicket import tasks
from thicket.tasks import base, gsm8k

ROW = {
  'question': 'A crate holds 12 jars. How many jars do 90 crates hold?',
  'answer': '90 crates hold 90*12=<<90*12=1080>>1080 jars.\n#### 1,080',
}


@pytest.fixture
def task():
  return tasks.make('gsm8k')


def test_parse_normalises_the_gold(task):
  assert task.parse(ROW, 5) == base.Example(5, ROW['question'], '1080')


def test_a_gold_solution_is_worth_everything(task):
  row = task.parse(ROW, 0)
  verdict = base.judge(task, ROW['answer'], row)
  assert verdict == base.Judgement(1.0, 1.0, True, '1080', '1080', True, 0.0)


@pytest.mark.parametrize('template', gsm8k.Gsm8k.prompt_templates)
def test_prompt_asks_for_what_the_extractor_reads(template):
  task = tasks.make('gsm8k', prompt_template=template)
  prompt = task.prompt(task.parse(ROW, 0))
  assert ROW['question'] in prompt
  assert '{question}' not in prompt
  assert '####' in prompt
  # The prompt itself, repeated, is no answer.
  assert task.extract(prompt) is None


@pytest.mark.parametrize(
  ('response', 'strict', 'lenient'),
  [
    ('so 18 eggs.\n#### 18', '18', '18'),
    ('#### 18.', '18', '18'),
    ('#### $18', '18', '18'),
    ('####18.00', '18', '18'),
    ('#### 1,080 jars', '1080', '1080'),
    ('#### **-5**', '-5', '-5'),
    ('#### 50%', '50', '50'),
    ('#### 18\nIs there anything else? 1 2 3', '18', '18'),
    ('#### 5\nno, wait\n#### 6', '6', '6'),
    ('#### 1/3', '1/3', '1/3'),
    ('The answer is 18.', None, '18'),
    ('#### 3 * 6 = 18', None, '18'),
    ('#### 18 or 19', None, '19'),
    ('18 ####', None, '18'),
    ('18\n#### <number>', None, '18'),
    ('#### 1,8', None, None),
    ('#### 1e999', None, None),
    ('### 18', None, '18'),
    ('no idea', None, None),
    ('', None, None),
  ],
)
def test_extraction(task, response, strict, lenient):
  assert task.extract(response) == strict
  assert task.extract_lenient(response) == lenient


def test_strict_and_lenient_rewards_are_told_apart(task):
  row = task.parse(ROW, 0)
  verdict = base.judge(task, 'That makes 1080 jars.', row)
  assert verdict == base.Judgement(0.0, 1.0, False, None, '1080', True, 1.0)


@pytest.mark.parametrize(
  ('response', 'is_right'),
  [
    ('#### 1080', True),
    ('####1080', True),
    ('####\n1080', True),
    ('#### 1080\nIs there more? 1 2 3', True),
    ('#### 7\nno, wait\n#### 1080', True),
    ('#### 1080\nno, wait\n#### 7', False),
    ('So 1080 jars', True),
    ('1080 jars of 90 * 12', False),
    ('#### 1080 - 5', True),
    ('#### -1080', False),
    ('90-1080', False),  # a minus is always a sign
    # Defects, kept: what is compared is a string.
    ('#### 1080.', False),
    ('So it is 1080.', False),
    ('#### 1,080', False),
    ('#### 1080.00', False),
    ('#### 01080', False),
    # Behind '$' or words no number is seen: the last of all is taken.
    ('#### $1080', True),
    ('#### $1080 for 90 crates', False),
    ('#### **1080**', True),
    ('####', False),
    ('#### .', False),
    ('#### \u0661\u0660\u0668\u0660', False),  # digits of another script
    ('no idea', False),
    ('', False),
    # Only the last 300 characters are read.
    ('#### 1080' + ' ' * 291, True),
    ('#### 1080' + ' ' * 297, False),  # ends up as '080'
    ('#### 1080' + ' ' * 300, False),
    ('#### 7 ' + 'x' * 293 + ' 1080', True),
  ],
)
def test_the_released_rule_reads_as_the_released_code_does(
  task, response, is_right
):
  row = task.parse(ROW, 0)
  assert task.released(response, row) == float(is_right)


def test_a_megabyte_is_read_at_once(task):
  row = task.parse(ROW, 0)
  for text in ('#' * 10**6, '1' * 10**6, '1,' * 500_000, '-' * 10**6,
               '1/' * 500_000, '#### ' * 200_000, '. ' * 500_000):  # fmt: skip
    verdict = base.judge(task, text + '\nso 1080', row)
    assert (verdict.lenient_answer, verdict.released) == ('1080', 1.0)
    assert base.judge(task, text + '\n#### 1080', row).is_correct


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'answer': 'no mark 7'}, "'no mark 7' does not end with"),
    ({'answer': '#### seven'}, 'does not end with'),
    ({'answer': None}, "field 'answer' is None"),
    ({'question': 3}, "field 'question' is 3"),
    ({'question': '  '}, 'question is empty'),
  ],
)
def test_bad_rows_are_named_by_their_field(task, change, message):
  with pytest.raises(base.TaskError, match=message):
    task.parse(ROW | change, 0)
