# SPDX-License-Identifier: Apache-2.0
"""USPTO-50k: reactions without maps, class numbers."""

import pytest

from thicket import tasks
from thicket.tasks import base, uspto50k

# The columns of the usual files; the reaction is made up.
ROW = {
  'id': 'US0000000',
  'class': 7,
  'rxn_smiles': '[CH3:1][C:2]#[N:3]>>[CH3:1][CH2:2][NH2:3]',
}
EXAMPLE = base.Example(0, 'CC#N>>CCN', '7', {'class': 7})


@pytest.fixture(scope='module')
def task():
  return tasks.make('uspto50k')


def test_parse_removes_the_maps(task):
  assert task.parse(ROW, 0) == EXAMPLE
  other = {'class': '7', 'reactants>reagents>production': ROW['rxn_smiles']}
  assert task.parse(other, 0) == EXAMPLE
  salts = ROW | {'rxn_smiles': ROW['rxn_smiles'] + ' |f:0.1|'}
  assert task.parse(salts, 0) == EXAMPLE


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'class': 0}, "'class' is '0'"),
    ({'class': 11}, "'class' is '11'"),
    ({'class': None}, "'class' is 'None'"),
    ({'class': 7.5}, "'class' is '7.5'"),
    ({'rxn_smiles': None}, "'rxn_smiles' is None"),
    ({'rxn_smiles': 'CCO'}, "'rxn_smiles' is 'CCO', not reactants"),
    ({'rxn_smiles': '>>C'}, 'not reactants>reagents>product'),
    ({'rxn_smiles': 'C>>'}, 'not reactants>reagents>product'),
    ({'rxn_smiles': 'C>> C'}, 'not reactants>reagents>product'),
    ({'rxn_smiles': 'C>C>C>C'}, 'not reactants>reagents>product'),
    ({'rxn_smiles': 'hello>>C'}, "'rxn_smiles': no SMILES at 'h'"),
  ],
)
def test_bad_rows_are_named_by_their_field(task, change, message):
  with pytest.raises(base.TaskError, match=message):
    task.parse(ROW | change, 0)


def test_a_row_without_a_reaction_says_what_it_has(task):
  with pytest.raises(base.TaskError, match=r"the row has \['class', 'rxn'\]"):
    task.parse({'class': 1, 'rxn': 'C>>C'}, 0)


@pytest.mark.parametrize('template', uspto50k.Uspto50k.prompt_templates)
def test_prompt_asks_for_what_the_extractor_reads(template):
  task = tasks.make('uspto50k', prompt_template=template)
  prompt = task.prompt(EXAMPLE)
  assert 'CC#N>>CCN' in prompt
  assert '<answer> </answer>' in prompt
  for number, words in uspto50k.CLASSES.items():
    assert f'{number}: {words}\n' in prompt
  # The prompt itself, repeated, is no answer.
  assert task.extract(prompt) is None


@pytest.mark.parametrize(
  ('response', 'strict', 'lenient'),
  [
    ('<answer>7</answer>', '7', '7'),
    ('It gains hydrogen. <answer> 7 </answer>', '7', '7'),
    ('<answer>Class 10</answer>', '10', '10'),
    ('<answer>7: reduction</answer>', '7', '7'),
    ('<answer>**7**</answer>', '7', '7'),
    ('<answer>3</answer> no, <answer>7</answer>', '7', '7'),
    ('<answer>7</answer> not 8', '7', '7'),
    ('<answer>07</answer>', '7', '7'),
    # Not one class.
    ('<answer>7 or 8</answer>', None, '8'),
    ('<answer>0</answer>', None, None),
    ('<answer>11</answer>', None, None),
    ('<answer>-7</answer>', None, None),
    ('<answer>7.5</answer>', None, None),
    ('<answer>\u0667</answer>', None, None),
    ('<answer>\uff17</answer>', None, None),
    ('<answer>reduction</answer>', None, None),
    ('<answer></answer>', None, None),
    ('<answer>7', None, None),
    ('<answer>7' + ' ' * 200 + '</answer>', None, None),
    # Without tags.
    ('7', None, '7'),
    ('The class is 10.', None, '10'),
    ('The class is **7**', None, '7'),
    ('Class:7, since it is no 8', None, '8'),
    ('(7)', None, '7'),
    ('Number 7 of 100', None, '7'),
    ('Class 7\nC1CC1 has a ring of 3', None, '3'),
    # Digits of SMILES and of other numbers stand not alone.
    ('C1CC1>>C2CC2', None, None),
    ('c1ccc(C)cc1', None, None),
    ('3-methyl', None, None),
    ('7.5 and 1/2 and 1,000', None, None),
    ('the 7th', None, None),
    ('110 107', None, None),
    ('\u0667', None, None),
    ('', None, None),
  ],
)
def test_extraction(task, response, strict, lenient):
  assert task.extract(response) == strict
  assert task.extract_lenient(response) == lenient
  assert task.released(response, EXAMPLE) == float(lenient == '7')


def test_a_right_answer_is_worth_everything(task):
  verdict = base.judge(task, 'Hm. <answer>7</answer>', EXAMPLE)
  assert verdict == base.Judgement(1.0, 1.0, True, '7', '7', True, 1.0)
  verdict = base.judge(task, 'Class 7', EXAMPLE)
  assert verdict == base.Judgement(0.0, 1.0, False, None, '7', True, 1.0)


def test_atoms_that_differ_in_case_only_are_two_reactions(task):
  ring, chain = (
    task.parse({'class': 1, 'rxn_smiles': x}, 0)
    for x in ('c1ccccc1>>c1ccccc1O', 'C1CCCCC1>>C1CCCCC1O')
  )
  assert base.canonical(ring.question) == base.canonical(chain.question)
  assert task.identity(ring) != task.identity(chain)


@pytest.mark.parametrize(
  'piece', ['1', '1 ', '10', '(', '<answer>', '</answer>', '1.', '<answer>1 ']
)
def test_a_megabyte_is_judged(task, piece):
  response = piece * (10**6 // len(piece))
  for text in (response, '<answer>' + response + '</answer>'):
    assert not base.judge(task, text, EXAMPLE).is_lenient_correct
