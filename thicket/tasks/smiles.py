# SPDX-License-Identifier: Apache-2.0
"""SMILES without atom maps, written as chemists do: '[CH3:1][OH:2]' is 'CO'.

Maps say which atom of a product was which atom of a reactant, and so give
away what the reaction did. Without its map an atom needs its bracket only
where it says something that the bare symbol does not: an isotope, a charge,
chirality, or a number of hydrogens other than the one that follows from its
bonds. Rules: opensmiles.org, "Organic Subset".
"""

from __future__ import annotations

import re

# Lowest first; hydrogens fill up to the first that the bonds do not exceed.
_VALENCES = {
  'B': (3,),
  'C': (4,),
  'N': (3, 5),
  'O': (2,),
  'P': (3, 5),
  'S': (2, 4, 6),
  'F': (1,),
  'Cl': (1,),
  'Br': (1,),
  'I': (1,),
}
_AROMATIC = 'bcnops'
_BOND_ORDERS = {'=': 2, '#': 3, '$': 4}  # all others are single here

_TOKEN = re.compile(
  r'(?P<atom>\[[^\[\]]*\]|Br|Cl|[BCNOPSFI]|[bcnops]|\*)'
  r'|(?P<bond>[-=#$:/\\~])|(?P<ring>[0-9]|%[0-9]{2})|(?P<other>[().>])|(?P<no>.)',
  re.DOTALL,
)
_MAP = re.compile(r':[0-9]+\]$')
_PLAIN = re.compile(r'\[(Br|Cl|[BCNOPSFI]|[bcnops])(?:(H)([0-9]?))?\]')


def without_maps(smiles: str) -> str:
  """The same molecules or reaction, without atom maps or needless brackets.

  Text without maps comes back as it is. Stereochemistry, charges, isotopes
  and the order of atoms stay.

  Raises:
    ValueError: the text is no SMILES, with the part that is not; rings that
      are opened and not closed are let pass.
  """
  tokens = list(_TOKEN.finditer(smiles))
  orders = _bond_orders(smiles, tokens)
  written = []
  for token, order in zip(tokens, orders, strict=True):
    text = token[0]
    if token['atom'] and _MAP.search(text):
      text = _MAP.sub(']', text)
      plain = _PLAIN.fullmatch(text)
      if plain is not None:
        symbol, has_hydrogen, count = plain.groups()
        hydrogens = int(count or 1) if has_hydrogen else 0
        if _implied_hydrogens(symbol, order) == hydrogens:
          text = symbol
    written.append(text)
  return ''.join(written)


def _bond_orders(smiles: str, tokens: list[re.Match[str]]) -> list[int]:
  """For each token that is an atom, the sum of its bonds' orders."""
  orders = [0] * len(tokens)
  last: int | None = None  # the atom that the next one is bound to
  bond = ''
  branches: list[int | None] = []
  rings: dict[str, tuple[int, str]] = {}
  for i, token in enumerate(tokens):
    text = token[0]
    if token['atom']:
      if last is not None:
        _bind(orders, last, i, bond)
      last, bond = i, ''
    elif token['bond']:
      bond = text
    elif token['ring'] and last is not None:
      if text in rings:
        first, opened = rings.pop(text)
        _bind(orders, first, last, bond or opened)
      else:
        rings[text] = last, bond
      bond = ''
    elif text == '(' and last is not None:
      branches.append(last)
    elif text == ')' and branches:
      last = branches.pop()
    elif text in '.>':
      last, bond = None, ''
    else:
      near = smiles[max(0, token.start() - 10) : token.end() + 10]
      raise ValueError(f'no SMILES at {text!r} in {near!r}')
  return orders


def _bind(orders: list[int], a: int, b: int, bond: str) -> None:
  order = _BOND_ORDERS.get(bond, 1)
  orders[a] += order
  orders[b] += order


def _implied_hydrogens(symbol: str, order: int) -> int:
  valences = _VALENCES[symbol.capitalize()]
  if symbol in _AROMATIC:
    # One more for its share of the ring's double bonds; never a raised valence.
    return max(0, valences[0] - order - 1)
  return next((v - order for v in valences if v >= order), 0)
