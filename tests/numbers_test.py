# SPDX-License-Identifier: Apache-2.0
"""Numbers: one string a value, and nothing else is a number."""

import fractions

import hypothesis
import pytest
from hypothesis import strategies as st

from thicket.tasks import numbers


@pytest.mark.parametrize(
  ('text', 'want'),
  [
    ('18', '18'),
    ('18.', '18'),
    ('18.0', '18'),
    ('$18', '18'),
    (' $18.00 ', '18'),
    ('007', '7'),
    ('+5', '5'),
    ('-0', '0'),
    ('-0.00', '0'),
    ('-$5', '-5'),
    ('\u22123', '-3'),
    ('\u20ac20', '20'),
    ('50%', '50'),
    ('.5', '0.5'),
    ('-.50', '-0.5'),
    ('1,234.50', '1234.5'),
    ('1,000,000', '1000000'),
    ('1/2', '0.5'),
    ('3/8', '0.375'),
    ('2/6', '1/3'),
    ('-2/6', '-1/3'),
    ('48/2', '24'),
    ('9' * 40, '9' * 40),
  ],
)
def test_reads_every_spelling_of_a_value(text, want):
  assert numbers.normalise_number(text) == want


@pytest.mark.parametrize(
  'text',
  [
    '',
    '.',
    '-',
    '$',
    '%',
    '/2',
    '1,8',
    '0,123',
    '1234,567',
    '12,3456',
    '1e3',
    '1e999',
    '1/0',
    '1/2/3',
    '1.5/2',
    '1.2.3',
    '0x10',
    '1_000',
    '18 dollars',
    '2 + 2',
    'nan',
    'inf',
    '\uff14\uff12',  # full-width 42
    '\u0664\u0662',  # Arabic-Indic 42
    '9' * 41,
    '0' * 41,
    '.' + '3' * 40,
    '9' * 10_000_000,
    '2**9**9',
  ],
)
def test_refuses_what_is_not_plainly_a_number(text):
  assert numbers.normalise_number(text) is None


@hypothesis.given(
  st.fractions(max_denominator=10**9).filter(lambda v: abs(v) < 10**18)
)
def test_a_canonical_string_is_exact_and_its_own_canonical_form(value):
  text = numbers.normalise_number(f'{value.numerator}/{value.denominator}')
  assert fractions.Fraction(text) == value
  assert numbers.normalise_number(text) == text


@hypothesis.given(
  st.integers(-(10**12), 10**12), st.integers(0, 6), st.integers(0, 4)
)
def test_equal_values_give_equal_strings(whole, decimals, zeros):
  value = fractions.Fraction(whole, 10**decimals)
  sign, digits = '-' * (whole < 0), str(abs(whole)).rjust(decimals + 1, '0')
  cut = len(digits) - decimals
  left, right = digits[:cut], digits[cut:] + '0' * zeros
  plain = f'{sign}{left}' + (f'.{right}' if right else '')
  grouped = f'{sign}${int(left):,}' + (f'.{right}' if right else '.')
  ratio = f'{value.numerator}/{value.denominator}'
  assert (
    numbers.normalise_number(plain)
    == numbers.normalise_number(grouped)
    == numbers.normalise_number(ratio)
    != None  # noqa: E711
  )


@hypothesis.given(
  st.text(alphabet='0123456789+-.,/$% eE\u2212\uff14x_()', max_size=60)
)
def test_running_text_never_holds_a_number_that_is_not_one(text):
  for numeral in numbers.numerals(text):
    assert numeral is None or numbers.normalise_number(numeral) == numeral


@pytest.mark.parametrize(
  ('text', 'want'),
  [
    ('no digits', []),
    ('17 + 25 = 42', ['17', '25', '42']),
    ('17 - 25', ['17', '25']),
    ('17 -25', ['17', '25']),
    ('17-25', ['17', '25']),
    ('(3) -8', ['3', '8']),
    ('is -8', ['-8']),
    ('-8', ['-8']),
    ('3 * -8', ['3', '-8']),
    ('3, -8', ['3', '-8']),
    ('cost: -$5.', ['-5']),
    ('$-5', ['-5']),
    ('**42**', ['42']),
    ('\\boxed{42}', ['42']),
    ('<<48/2=24>>24 clips', ['24', '24', '24']),
    ('18.So', ['18']),
    ('...5', ['5']),
    ('2nd', ['2']),
    ('1,8', [None]),
    ('12/05/2020', [None]),
    ('version 1.2.3', [None]),
    ('1e999', [None]),
    ('7x13', ['7', None]),
    ('CO2', [None]),
    ('1\uff12', [None]),
    ('9' * 41 + ' or 3', [None, '3']),
  ],
)
def test_numerals_of_running_text(text, want):
  assert numbers.numerals(text) == want


def test_first_last_and_only_do_not_look_past_an_unreadable_numeral():
  assert numbers.last_number('3 of 4 are 7') == '7'
  assert numbers.only_number('$7.00 in all') == '7'
  assert numbers.last_number('7, then 1e9') is None
  assert numbers.only_number('7, then 1e9') is None
  assert numbers.only_number('') is None


@hypothesis.given(
  st.text(
    st.sampled_from('0123456789.,/-+$eE x_)\n\r%\u2212\u0661\uff12'),
    max_size=40,
  )
)
@hypothesis.settings(max_examples=2000, deadline=None)
def test_the_last_and_the_only_number_are_those_of_all(text):
  found = numbers.numerals(text)
  assert numbers.last_number(text) == (found[-1] if found else None)
  only = found[0] if len(found) == 1 else None
  assert numbers.only_number(text) == only


def test_long_hostile_text_is_read_in_linear_time():
  # Quadratic scanning of these would take minutes, not milliseconds.
  for text in ('a' * 10**6, '1' * 10**6, '- ' * 10**6, ' ' * 10**6 + '-1'):
    assert len(numbers.numerals(text)) <= 1
  for text in ('\n' * 10**6, '-\n' * 10**6, '1/' * 10**6 + '\n'):
    assert numbers.last_number(text) is None
