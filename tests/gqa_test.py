# SPDX-License-Identifier: Apache-2.0
"""GQA: short answers, what makes two of them one, and the released rule."""

import dataclasses

import pytest

from thicket import tasks
from thicket.tasks import base, gqa

# A value of the published JSON, made up.
ROW = {
  'question': 'What is the woman sitting on?',
  'answer': 'couch',
  'imageId': 'n000001',
  'fullAnswer': 'The woman is sitting on the couch.',
  'isBalanced': True,
}
EXAMPLE = base.Example(2, ROW['question'], 'sofa', {'image': 'n000001'})


@pytest.fixture(scope='module')
def task():
  return tasks.make('gqa')


def test_parse_normalises_the_gold(task):
  assert task.parse(ROW, 2) == EXAMPLE
  bare = {'question': ROW['question'], 'answer': 'Sofas'}
  assert task.parse(bare, 2).gold == 'sofa'
  assert task.parse(bare, 2).meta == {}


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'question': None}, "'question' is None"),
    ({'answer': 1}, "'answer' is 1"),
    ({'answer': '...'}, "answer '...' must have 1 to 5 words"),
    ({'answer': 'on the old green couch by her window'}, 'must have 1 to 5'),
  ],
)
def test_bad_rows_are_named_by_their_field(task, change, message):
  with pytest.raises(base.TaskError, match=message):
    task.parse(ROW | change, 0)


@pytest.mark.parametrize('template', gqa.Gqa.prompt_templates)
def test_prompt_asks_for_what_the_extractor_reads(template):
  task = tasks.make('gqa', prompt_template=template)
  prompt = task.prompt(EXAMPLE)
  assert ROW['question'] in prompt
  assert 'one or two words' in prompt
  # The prompt itself, repeated, is no answer.
  assert task.extract_lenient(prompt) is None


@pytest.mark.parametrize(
  ('text', 'normal'),
  [
    ('Sofa', 'sofa'),
    (' the Couches. ', 'sofa'),
    ('A TV set!', 'tv'),
    ('**grey**', 'gray'),
    ('left side', 'left'),
    ('on the left', 'left'),
    ("The man's hats", 'man hat'),
    ('The man\u2019s hat', 'man hat'),
    ('black-and-white', 'black and white'),
    ('women', 'woman'),
    ('People', 'person'),
    ('boxes', 'box'),
    ('dresses', 'dress'),
    ('horses', 'horse'),
    ('buses', 'bus'),
    ('cherries', 'cherry'),
    ('potatoes', 'potato'),
    ('shoes', 'shoe'),
    ('knives', 'knife'),
    ('gloves', 'glove'),
    # No plurals, though they end so.
    ('grass', 'grass'),
    ('bus', 'bus'),
    ('cactus', 'cactus'),
    ('tennis', 'tennis'),
    ('glasses', 'glasses'),
    ('gas', 'gas'),
    ('one two three four five six', None),
    ('word ' * 30, None),
    ('the', None),
    ('!?', None),
    ('', None),
  ],
)
def test_normal_forms(text, normal):
  assert gqa.normalise(text) == normal
  if normal is not None:
    assert gqa.normalise(normal) == normal


def test_tables_hold_normal_forms():
  for word, synonym in gqa._SYNONYMS.items():
    assert gqa.normalise(synonym) == synonym
    assert gqa.normalise(word) == synonym
  for plural, singular in gqa._SINGULARS.items():
    assert gqa._singular(singular) == singular
    assert gqa.normalise(plural) == gqa.normalise(singular)


@pytest.mark.parametrize(
  ('response', 'strict', 'lenient'),
  [
    ('\\boxed{couch}', 'sofa', 'sofa'),
    ('She sits on it.\nSo: \\boxed{the couch}.', 'sofa', 'sofa'),
    ('$\\boxed{\\text{Couch}}$', 'sofa', 'sofa'),
    ('\\boxed{chair} or \\boxed{couch}', 'sofa', 'sofa'),
    ('couch', 'sofa', 'sofa'),
    ('\n\nThe couch.\nShe looks tired.', 'sofa', 'sofa'),
    ('Yes', 'yes', 'yes'),
    ('no.', 'no', 'no'),
    # A box that is empty, open or full of talk hides the rest.
    ('couch \\boxed{}', None, None),
    ('couch \\boxed{couch', None, None),
    ('\\boxed{she is sitting on the old green couch}', None, None),
    # Sentences are no short answers.
    ('She is sitting on a couch.', None, None),
    ('The answer is a couch.', None, 'sofa'),
    ('Answer: couch', None, 'sofa'),
    ('So answer is couch', None, 'sofa'),
    ('I see.\nAnswer: couch\n', 'i see', 'i see'),
    ('She sits on something soft.\nAnswer: couch\n', None, 'sofa'),
    ('The answer is chair. No, the answer is couch.', None, 'sofa'),
    ('The answer is what she is sitting on, which is soft', None, None),
    ('Yes, there is a couch in the room.', None, 'yes'),
    ('No, I see no couch in the room.', None, 'no'),
    ('Now, I see a couch in the room.', None, None),
    ('Maybe yes, maybe no, who can tell.', None, None),
    ('', None, None),
    (' \n ', None, None),
  ],
)
def test_extraction(task, response, strict, lenient):
  assert task.extract(response) == strict
  assert task.extract_lenient(response) == lenient


@pytest.mark.parametrize(
  ('gold', 'response', 'released', 'lenient'),
  [
    ('sofa', '\\boxed{couch}', 1, 1),
    ('sofa', 'couch', 1, 1),
    ('sofa', '\\boxed{chair}', 0, 0),
    ('sofa', 'She is sitting on an old green sofa by the wall.', 1, 0),
    ('sofa', 'It is soft.\nShe is sitting on a sofa.', 0, 0),
    ('sofa', '\\boxed{sofa bed}', 1, 0),
    ('no', '\\boxed{snow}', 1, 0),
    ('no', 'There is snow on the roof of the house.', 0, 0),
    ('yes', 'It may be yes or no, I cannot tell.', 1, 0),
    ('no', 'It may be yes or no, I cannot tell.', 1, 0),
    ('car', '\\boxed{cart}', 1, 0),
    ('sofa', '', 0, 0),
    ('sofa', '\\boxed{}', 0, 0),
  ],
)
def test_the_released_rule_finds_what_was_not_meant(
  task, gold, response, released, lenient
):
  example = base.Example(0, 'q', gold)
  assert task.released(response, example) == released
  assert base.judge(task, response, example).is_lenient_correct == lenient


def test_a_right_answer_is_worth_everything(task):
  verdict = base.judge(task, '\\boxed{Couches}', EXAMPLE)
  assert verdict == base.Judgement(1.0, 1.0, True, 'sofa', 'sofa', True, 1.0)


@pytest.mark.parametrize(
  'piece',
  [
    'a',
    'a ',
    ' ',
    '\n',
    '\\boxed{',
    '}',
    'answer is ',
    'answer:',
    "'s",
    '\\text{',
  ],
)
def test_a_megabyte_is_judged(task, piece):
  response = piece * (10**6 // len(piece))
  for text in (response, '\\boxed{' + response):
    assert not base.judge(task, text, EXAMPLE).is_lenient_correct
    assert task.released(text, EXAMPLE) == 0


def test_a_question_of_another_image_is_another_row(task):
  same = base.Example(5, ROW['question'].upper(), 'sofa', EXAMPLE.meta)
  other = dataclasses.replace(EXAMPLE, meta={'image': 'n000002'})
  assert task.identity(same) == task.identity(EXAMPLE)
  assert task.identity(other) != task.identity(EXAMPLE)
  # Without images the question is all there is.
  bare = dataclasses.replace(EXAMPLE, meta={})
  assert task.identity(bare) == base.canonical(ROW['question'])
