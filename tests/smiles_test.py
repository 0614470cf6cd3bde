# SPDX-License-Identifier: Apache-2.0
"""SMILES without atom maps: the same molecules, in fewer brackets."""

import pytest

from thicket.tasks import smiles


@pytest.mark.parametrize(
  ('mapped', 'plain'),
  [
    ('[CH3:1][OH:2]', 'CO'),
    ('[CH4:1]', 'C'),
    ('[Cl:7][CH2:1][C:2]#[N:3]', 'ClCC#N'),
    ('O[C:1](=[O:2])[CH2:10][NH:11][CH3:123]', 'OC(=O)CNC'),
    ('[CH3:1][C:2]([CH3:3])([F:4])[Br:5]', 'CC(C)(F)Br'),
    # Rings; bond orders at either end of a closure; two-digit closures.
    ('[CH2:1]1[CH2:2][CH2:3]1', 'C1CC1'),
    ('[CH:1]1=[CH:2][CH2:3]1', 'C1=CC1'),
    ('[CH:1]=1[CH2:2][CH:3]=1', 'C=1CC=1'),
    ('[CH:1]=1[CH2:2][CH2:3][CH:4]1', 'C=1CCC1'),
    ('[CH2:1]%12[CH2:2][CH2:3]%12', 'C%12CC%12'),
    ('[CH:1]12[CH2:2][CH:3]1[CH2:4]2', 'C12CC1C2'),
    # Aromatic atoms; a hydrogen on nitrogen has to be told.
    ('[cH:1]1[cH:2][cH:3][cH:4][cH:5][c:6]1[NH2:7]', 'c1ccccc1N'),
    ('[n:1]1[cH:2][cH:3][nH:4][cH:5]1', 'n1cc[nH]c1'),
    ('[c:1]1(=[O:2])[cH:3][cH:4][n:5]([CH3:6])[cH:7][cH:8]1',
     'c1(=O)ccn(C)cc1'),
    ('[cH:1]1[cH:2][cH:3][s:4][c:5]1-[c:6]1[cH:7][cH:8][cH:9][o:10]1',
     'c1ccsc1-c1ccco1'),
    # Raised valences.
    ('[CH3:1][S:2](=[O:3])(=[O:4])[Cl:5]', 'CS(=O)(=O)Cl'),
    ('[CH3:1][P:2](=[O:3])([OH:4])[OH:5]', 'CP(=O)(O)O'),
    ('[SH:1](=[O:2])(=[O:3])[CH3:4]', 'S(=O)(=O)C'),
    # Brackets that say something stay: charge, chirality, isotope, radicals,
    # and elements outside of the organic subset.
    ('[CH3:1][N+:2](=[O:3])[O-:4]', 'C[N+](=O)[O-]'),
    ('[Br][C@H:1]([CH3:2])[F:3]', '[Br][C@H](C)F'),
    ('[2H:1][13CH3:2]', '[2H][13CH3]'),
    ('[CH2:1][CH3:2]', '[CH2]C'),
    ('[CH3:1][Mg:2][Br:3]', 'C[Mg]Br'),
    ('[SiH3:1][CH3:2]', '[SiH3]C'),
    ('[NH4+:1].[Cl-:2]', '[NH4+].[Cl-]'),
    # Cis and trans.
    ('[CH3:1]/[CH:2]=[CH:3]/[CH3:4]', 'C/C=C/C'),
    # A reaction, with unmapped atoms and a reagent.
    ('Cl[CH2:1][CH3:2].[NH3:3]>O>[NH2:3][CH2:1][CH3:2]', 'ClCC.N>O>NCC'),
  ],
)  # fmt: skip
def test_maps_and_needless_brackets_go(mapped, plain):
  assert smiles.without_maps(mapped) == plain


@pytest.mark.parametrize(
  'text',
  [
    'CC(C)(C)OC(=O)NCCc1ccc(N)cc1F>>NCCc1ccc(N)cc1F',
    '[CH3][OH]',  # no maps, no change
    'C[C@@H]1CCCN1.[Na+].[OH-]',
    'C1=COCCC1.[2H]C([2H])Cl',
    '[CH3:a]C',
    '',
  ],
)
def test_text_without_maps_stays_as_it_is(text):
  assert smiles.without_maps(text) == text


@pytest.mark.parametrize(
  ('text', 'part'),
  [
    ('C)C', r"'\)'"),
    ('(C)', r"'\('"),
    ('1CC1', "'1'"),
    ('[CH3:1', r"'\['"),
    ('C C', "' '"),
    ('hello', "'h'"),
    ('C\u0663', "'\u0663'"),
    ('C\n', r"'\\n'"),
    ('[' * 10**5, r"'\['"),
    ('%' * 10**5, "'%'"),
  ],
)
def test_what_is_no_smiles_is_named(text, part):
  with pytest.raises(ValueError, match=f'no SMILES at {part} in') as error:
    smiles.without_maps(text)
  assert len(str(error.value)) < 80


@pytest.mark.parametrize('piece', ['C(', 'C1', 'c1ccccc1.', '[CH3:1]'])
def test_long_texts_and_open_ends_are_let_pass(piece):
  text = piece * (10**5 // len(piece))
  assert smiles.without_maps(text).count('C') == text.count('C')
