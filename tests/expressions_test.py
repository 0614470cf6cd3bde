# SPDX-License-Identifier: Apache-2.0
"""Expressions: what is read, what is refused, and what counts as the same."""

import fractions

import hypothesis
import pytest
from hypothesis import strategies as st

from thicket.tasks import expressions


@st.composite
def written(draw, depth=3):
  """Text, its value, its numbers; None for a division by zero."""
  if depth == 0 or draw(st.booleans()):
    number = draw(st.integers(0, 20))
    return str(number), fractions.Fraction(number), [number]
  if draw(st.integers(0, 5)) == 0:
    text, value, numbers = draw(written(depth=depth - 1))
    return f'(-({text}))', None if value is None else -value, numbers
  left, a, some = draw(written(depth=depth - 1))
  right, b, more = draw(written(depth=depth - 1))
  sign = draw(st.sampled_from('+-*/'))
  text = f'({left} {sign} {right})'
  if a is None or b is None or (sign == '/' and b == 0):
    return text, None, some + more
  value = {
    '+': lambda: a + b,
    '-': lambda: a - b,
    '*': lambda: a * b,
    '/': lambda: a / b,
  }[sign]()
  return text, value, some + more


@hypothesis.given(written())
@hypothesis.settings(deadline=None)
def test_values_are_exact_and_canonical_forms_are_fixed_points(made):
  text, value, numbers = made
  found = expressions.read(text)
  if value is None:
    assert found is None
    return
  assert (found.value, found.numbers) == (value, tuple(sorted(numbers)))
  assert expressions.read(found.text) == found


@pytest.mark.parametrize(
  'same',
  [
    ['2+3-1', '3+(2-1)', ' 2 - 1 + 3 ', '((3 + 2)) - 1', '-1+2+3', '-(1-2)+3'],
    ['12*4/3', '12/(3/4)', '(4*12)/3', '4/3*12', '12*(4/3)'],
    ['20-3*5', '20+-3*5', '20+3*-5', '-(3*5)+20', '20-(5*3)'],
    ['39-96/(32-28)', '(96 / (28-32)) +39', '96/(-32+28) + 39'],
    ['-(5-3)*2', '(3-5)*2', '2*(-5+3)', '2*-(5-3)', '-(2*(5-3))'],
    ['(4-1)*(5-3)', '(1-4)*(3-5)', '(3-5)*-(4-1)', '-(3-5)*(4-1)'],
    ['-(0+0)*0*0', '(-0-0)*0*0', '0*-(0+0)*0'],
    ['(2-2)*3', '(-2+2)*3', '3*(2-2)', '-(2-2)*3', '(2-2)*-3'],
    ['(2-2)*3+5', '5-(2-2)*3'],
    ['(2-4/2)*3', '(4/2-2)*-3'],
    ['10-2-3', '10-(2+3)', '10-3-2', '(10-2)-3'],
    ['24/2/3', '24/(2*3)', '(24/3)/2'],
    ['2*3', '(-2)*(-3)', '(-2)*-3', '--2*3', '3*2'],
  ],
)
def test_what_only_order_and_brackets_tell_apart_is_the_same(same):
  assert {expressions.read(text).text for text in same} == {same[0]}


@pytest.mark.parametrize(
  ('one', 'other'),
  [
    ('2*(3+4)', '2*3+2*4'),
    ('1+1', '2'),
    ('10-(2-3)', '10-2-3'),
    ('24/(2/3)', '24/2/3'),
    ('(1+2)*3', '1+2*3'),
    ('2/4', '1/2'),
    ('2+2', '2*2'),
  ],
)
def test_other_expressions_are_told_apart(one, other):
  assert expressions.read(one).text != expressions.read(other).text


def test_values_are_read_with_the_usual_precedence():
  values = {
    '2+3*4': 14,
    '(2+3)*4': 20,
    '20-6-4': 10,
    '100/5/2': 10,
    '100/5*2': 40,
    '-3*5+20': 5,
    '-2-3': -5,
    '7-6/4': fractions.Fraction(11, 2),
    '1/3*3': 1,
    '1/(1-2/3)': 3,
    '0/5': 0,
    '2\n+\t2': 4,
  }
  assert {text: expressions.read(text).value for text in values} == values


@pytest.mark.parametrize(
  'text',
  [
    *('', ' ', '()', '(', ')', '+', '-', '+3', '3+', '3 4', '3(4)', '(3)4'),
    *('2**3', '2* *3', '7//2', '7%2', '1.5+2', '1e3', '0x10', '1_000', '1,000'),
    *('3+(4', '3+4)', '3+4=7', '[3+4]', '3\u00d74', '3\u22124', '3x4', 'a+b'),
    *('\u0663+4', '3+\uff14', '\u00b2', '3\u00a0+4', '007+1', '1234567'),
    *('1/0', '1/(2-2)', '3/(4/2-2)', '1/-0', '0/0', '1/(1/0)', '0*(1/0)'),
    '(' * 25 + '1' + ')' * 25,
    '-' * 25 + '1',
    '+'.join('1' * 17),
    '1' + ' ' * 200,
    '__import__("os")',
    'lambda: 1',
  ],
)
def test_anything_else_is_refused(text):
  assert expressions.read(text) is None


def test_the_bounds_themselves_are_read():
  depth = expressions.MAX_DEPTH
  assert expressions.read('(' * depth + '1' + ')' * depth).text == '1'
  sixteen = '*'.join(['999999'] * expressions.MAX_NUMBERS)
  assert expressions.read(sixteen).value == 999_999**16
  assert expressions.read('1' + ' ' * (expressions.MAX_CHARS - 1)).value == 1


@pytest.mark.parametrize('text', ['(' * 10**6, '-' * 10**6, '1+' * 10**6])
def test_long_texts_are_refused_unread(text):
  assert expressions.read(text) is None
