# SPDX-License-Identifier: Apache-2.0
"""HumanEval: rows, extraction and verdicts; programs run in confinement."""

import json

import confined
import pytest

from thicket import tasks
from thicket.tasks import base

ROW = {
  'task_id': 'HumanEval/999',
  'prompt': (
    '\nfrom typing import List\n\n\ndef unit(x: int) -> int:\n'
    '    """ The sign of x. """\n    return (x > 0) - (x < 0)\n\n\n'
    'def signs(xs: List[int]) -> List[int]:\n'
    '    """ The signs of all xs.\n    >>> signs([-4, 0])\n    [-1, 0]\n'
    '    """\n'
  ),
  'entry_point': 'signs',
  'canonical_solution': '    return [unit(x) for x in xs]\n',
  'test': (
    "\n\nMETADATA = {'author': 'x'}\n\n\ndef check(candidate):\n"
    '    import random\n'
    '    assert candidate([]) == []\n'
    '    for n in range(1, 4):\n'
    '        xs = [random.randint(-3, 3) for _ in range(n)]\n'
    '        assert candidate(xs) == [unit(x) for x in xs], "as told"\n'
    '    assert abs(candidate([5])[0] - 1) < 1e-6\n'
  ),
}
WHOLE = 'def signs(xs):\n    return [unit(x) for x in xs]'
BODY = '    return [unit(x) for x in xs]'


@pytest.fixture(scope='module')
def task():
  return confined.task('humaneval')


def test_parse_keeps_what_judges():
  example = tasks.make('humaneval').parse(ROW, 5)
  assert example == base.Example(
    5,
    ROW['prompt'].strip('\n'),
    (ROW['prompt'] + ROW['canonical_solution']).strip(),
    {name: ROW[name] for name in ('prompt', 'entry_point', 'test')},
  )
  assert json.loads(json.dumps(example.meta)) == example.meta


def test_a_gold_solution_is_worth_everything(task):
  example = task.parse(ROW, 0)
  verdict = base.judge(task, f'```python\n{example.gold}\n```', example)
  assert verdict == base.Judgement(
    1.0, 1.0, True, example.gold, example.gold, True
  )


@pytest.mark.parametrize('number', [0, 1])
def test_prompt_asks_for_what_the_extractor_reads(number):
  template = tasks.make('humaneval').prompt_templates[number]
  task = tasks.make('humaneval', prompt_template=template)
  prompt = task.prompt(task.parse(ROW, 0))
  assert ROW['prompt'].strip() in prompt
  assert ('```python' in prompt, '<answer>' in prompt) == (
    (True, False),
    (False, True),
  )[number]
  # The prompt itself, repeated, is no answer.
  assert task.extract(prompt) is None


@pytest.mark.parametrize(
  ('response', 'strict', 'lenient'),
  [
    (f'```python\n{WHOLE}\n```', WHOLE, WHOLE),
    (f'```python\n{BODY}\n```', BODY, BODY),
    (f'<answer>\n{BODY}\n</answer>', BODY, BODY),
    (f'```\n{WHOLE}\n```', None, WHOLE),
    (f'Yes.\n{WHOLE}', None, WHOLE),
    (f'{BODY}\n', None, BODY),
    (f'\n\n{BODY}\n\n\n', None, BODY),
    ('I do not know.', None, None),
    (' ', None, None),
  ],
)
def test_extraction(response, strict, lenient):
  task = tasks.make('humaneval')
  assert task.extract(response) == strict
  assert task.extract_lenient(response) == lenient


@pytest.mark.parametrize(
  ('answer', 'is_right'),
  [
    (WHOLE, True),
    (BODY, True),
    (f'{BODY}\n\ndef other():\n    return 1', True),
    (f'from __future__ import annotations\n{WHOLE}', True),
    (f'def unit(x):\n    return max(-1, min(1, x))\n{WHOLE}', True),
    (f'{WHOLE}\n\ndef check(candidate):\n    raise ValueError', True),
    ('signs = lambda xs: list(map(unit, xs))', True),
    ('return [unit(x) for x in xs]', False),
    ('    return [0 for x in xs]', False),
    ('    return (unit(x) for x in xs)', False),
    ('    return map(unit, xs)', False),
    ('    pass', False),
    ('def sign(xs):\n    return [unit(x) for x in xs]', False),
    # The helper of the tests is the prompt's, so this does not agree.
    ('def unit(x):\n    return 0\ndef signs(xs):\n    return [0] * len(xs)',
     False),
    # Neither does it help to put the tests out of work.
    ('def signs(xs):\n    return 0\ndef check(candidate):\n    pass', False),
    ('import random\nrandom.randint = lambda a, b: 1\n'
     'def signs(xs):\n    return [1] * len(xs)', False),
    ('    import os\n    os._exit(0)', False),
    ('    raise SystemExit(0)', False),
    ('    return signs(xs)', False),
  ],
)  # fmt: skip
def test_programs_are_judged_by_their_check(task, answer, is_right):
  example = task.parse(ROW, 1)
  assert task.is_correct(answer, example) is is_right
  assert base.judge_answer(task, answer, example).reward == float(is_right)


def test_programs_vote_by_what_they_do(task):
  example = task.parse(ROW, 1)
  answers = [
    BODY,
    WHOLE,
    '    return [0 for x in xs]',
    'signs = lambda xs: [0] * len(xs)',
    '    return 1 +',
    '    return [x and (1 if x > 0 else -1) for x in xs]',
  ]
  assert task.group(answers, example) == [0, 0, 1, 1, -1, 0]


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'test': None}, "field 'test' is None"),
    ({'prompt': 3}, "field 'prompt' is 3"),
    ({'canonical_solution': 3}, "field 'canonical_solution' is 3"),
    ({'entry_point': 'f()'}, r"entry_point='f\(\)' is no name"),
    ({'prompt': ' '}, 'question is empty'),
  ],
)
def test_bad_rows_are_named_by_their_field(change, message):
  with pytest.raises(base.TaskError, match=message):
    tasks.make('humaneval').parse(ROW | change, 0)
