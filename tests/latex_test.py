# SPDX-License-Identifier: Apache-2.0
"""Answers in LaTeX: what a box holds, normal forms, and their parts."""

import pytest

from thicket.tasks import latex

SAME = [
  ('7', ['7', '7.', '$7$', r'\(7\)', '7.0', '+7', '(7)', r'\$7', '7 apples']),
  ('50', [r'50\%', '50%', r'50^\circ', r'50^{\circ}', '50°', '50 degrees']),
  ('15', [r'15\mbox{ cm}^2', r'15 \text{ cm}^{2}', '15 cm^2', r'\text{15 cm}']),
  ('11111100', [r'11,\! 111,\! 100', '11,111,100', '11{,}111{,}100']),
  ('1.5', [r'\frac{3}{2}', r'\frac32', r'\dfrac 32', '3/2', r'1\frac12']),
  (
    '-1/3',
    [r'-\frac{1}{3}', r'\frac{-1}{3}', r'-\dfrac13', '-2/6', '\u22121/3'],
  ),
  ('5', ['x=5', r'\text{Area} = 5', 'f(3)=5', r'\angle ABC = 5^\circ']),
  ('5', ['AB = 5', 'x = 2 + 3 = 5', r'10 \times \frac{1}{2} = 5', "y'=5"]),
  ('0.5', ['.5', '0.50', r'\tfrac12']),
  (r'3\sqrt{13}', [r'3\sqrt{13}', r'3 \sqrt {13}', r'$3\, \sqrt{13}$']),
  (r'2\pi', [r'2 \pi', '2π', '2 pi']),
  ('x^2', ['x^2', 'x^{2}', 'x²']),
  (r'\text{nosolution}', [r'\text{no solution}', 'No solution']),
  ('C', ['C', r'\text{(C)}', '(C)', r'\textbf{C}', r'\mathrm{C}']),
  ('52_8', ['52_8', '52_{8}']),
  ('-2, 1', ['1,-2', r'\{-2, 1\}', '-2 and 1', r'1 \text{ or } -2', '1;-2']),
  ('-2, 1', ['x=1, x=-2', r'x \in \{1,-2,1\}', r'x=1 \text{ or } x=-2']),
  ('1+a, 1-a', [r'1 \pm a', r'x = 1 \mp a', '1-a, 1+a']),
  ('221, 810', ['810, 221', '$221$,$810$', '221, 810,221']),
  ('f(n)=n, g(n)=1', ['$f(n)=n$, $g(n)=1$', 'g(n)=1 and f(n)=n']),
  ('(2,1.5)', [r'\left( 2, \frac{3}{2} \right)', '(x,y) = (2, 3/2)']),
  (r'(-\infty,0]', [r'(-\infty, 0]', r'x \in (-\infty,0]', '(-∞, 0]']),
  ('(0,4]', ['(0,4]', 't(0,4]', '(0, 4]']),
  (r'(0,1)\cup[2,3]', [r'[2,3] \cup (0,1)', '(0,1) \u222a [2,3]']),
  ('y=2x+3', ['y = 2x + 3', '$y=2x+3$.']),
  (r'k\ge2', [r'k \geqslant 2', r'k\geq 2', 'k ≥ 2']),
  (
    r'\begin{pmatrix}-0.5&1\\0&2\end{pmatrix}',
    [
      r'\begin{pmatrix} -1/2 & 1 \\ 0 & 2 \end{pmatrix}',
      r'\left(\begin{bmatrix}-\frac12 & 1\\0&2\\ \end{bmatrix}\right)',
    ],
  ),
]


@pytest.mark.parametrize(('form', 'spellings'), SAME)
def test_spellings_have_one_normal_form(form, spellings):
  assert latex.normal(form) == form
  for text in spellings:
    assert latex.normal(text) == form, text


@pytest.mark.parametrize(
  ('one', 'other'),
  [
    ('50%', '0.5'),
    ('1/3', '0.333333'),
    ('(1,2)', '(2,1)'),
    ('(1,2)', '[1,2]'),
    ('(1,2)', '1,2'),
    ('(3,4]', '(3,4)'),
    ('1,2', '1.2'),
    ('12', '1,2'),
    ('52', '52_8'),
    ('6m', '6'),
    ('2d', '2'),
    ('f(0,4)', '(0,4)'),
    (r'\text{east}', 'seat'),
    ('5x=0', '0'),
    (r'2\pi', '2'),
    ('A=1,B=2', 'A=2,B=1'),
    (r'\sqrt{2}', r'\sqrt[3]{2}'),
  ],
)
def test_what_differs_has_other_forms(one, other):
  assert None not in (latex.normal(one), latex.normal(other))
  assert latex.normal(one) != latex.normal(other)


@pytest.mark.parametrize(
  'text',
  [
    *('', ' ', '.', '$$', r'\{\}', '<answer>', '{1', '1)', ')('),
    *('\u0663', '\uff15', '\u00bd'),  # digits of other scripts, and a half
    *('1' * 1001, '{' * 30 + '}' * 30, '(1,' * 200 + '1' + ')' * 200),
  ],
)
def test_what_cannot_be_read_is_refused(text):
  assert latex.normal(text) is None


@pytest.mark.parametrize(
  ('form', 'kind', 'inside'),
  [
    ('7', latex.ATOM, ['7']),
    ('1, (2,3)', latex.SET, ['1', '(2,3)']),
    ('(1,(2,3)]', '(]', ['1', '(2,3)']),
    (r'(0,1)\cup\{2\}', latex.UNION, ['(0,1)', r'\{2\}']),
    (r'\begin{pmatrix}1&2\\3&4\end{pmatrix}', 'matrix 2', list('1234')),
    ('(a+1)(b+1)', latex.ATOM, ['(a+1)(b+1)']),
    (r'\frac{1,2}{3}', latex.ATOM, [r'\frac{1,2}{3}']),
  ],
)
def test_forms_are_taken_apart(form, kind, inside):
  assert latex.parts(form) == (kind, inside)


@pytest.mark.parametrize(
  ('text', 'found'),
  [
    (r'so \boxed{5}.', (3, '5')),
    (r'\boxed{1} no: \boxed{2}', (14, '2')),
    (r'\boxed{\frac{1}{2}} \{', (0, r'\frac{1}{2}')),
    (r'\boxed {5}', (0, '5')),
    (r'\fbox{5}', (0, '5')),
    (r'\boxed{\boxed{5}}', (7, '5')),
    (r'\boxed{\{1,2\}}', (0, r'\{1,2\}')),
    (r'\boxed{\}}', (0, r'\}')),
    (r'\boxed{}', (0, '')),
    (r'\boxed{1} \boxed{2', (10, None)),
    (r'\boxed 5 {6}', (0, None)),
    (r'\boxed{' + '1' * 2000 + '}', (0, None)),
    ('boxed{5}', (-1, None)),
  ],
)
def test_the_last_box_counts(text, found):
  assert latex.last_boxed(text) == found


def test_names_stand_before_one_equals_sign():
  assert latex.named('f(x)=x+1') == ('f(x)', 'x+1')
  assert latex.named('x+y=1') == ('', 'x+y=1')
  assert latex.named(r'\sin x=1') == ('', r'\sin x=1')


@pytest.mark.parametrize(
  'text',
  [
    *(r'\abcdefgh' * 110, '_{a}' * 250, r'\text{' * 160, r'\frac' * 200),
    *('a ' * 500, ' ' * 999, '=' * 1000, '$' * 999, 'a' * 999 + '='),
    *('f(' + 'a,' * 490 + '=', '1,' * 500, r'a\pm' * 250),
    r'\{' * 12 + r'1\pm' * 200 + r'\}' * 12,
  ],
)
def test_no_text_keeps_the_reader_busy(text):
  """Would take for ever, not merely long, under a rule that backtracks."""
  form = latex.normal(text)
  assert form is None or latex.normal(form) is not None
