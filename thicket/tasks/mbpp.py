# SPDX-License-Identifier: Apache-2.0
"""MBPP: small programs from one sentence (Austin et al., arXiv 2108.07732).

974 rows; the paper uses the 964 of train (374), validation (90) and test (500)
of the full configuration, the first 200 of them to select, and leaves the ten
meant for prompts. Source: github.com/google-research/google-research, folder
mbpp (mbpp.jsonl), CC BY 4.0. `parse` reads `text` (full) or `prompt`
(sanitized, 427 rows), `test_list` (the tests, mostly three), `code` (a
solution), and where they are there `test_setup_code` (full) or `test_imports`
(sanitized). `challenge_test_list` is not used.

The code released with the paper runs the same tests, so its accuracy of one
response follows the same rule as ours: it is its vote that differs, which
counts equal source texts, where ours counts what programs do. Its programs run
in its own process.
"""

from __future__ import annotations

import ast
import builtins
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from thicket import sandbox
from thicket.tasks import base, code


@dataclasses.dataclass(frozen=True)
class Mbpp(code.Coded):
  """A function by its description and the tests that it has to pass."""

  prompt_templates: ClassVar[tuple[str, ...]] = (
    '{question}\n\nAnswer with the whole program in one fenced block that '
    'starts with ```python and ends with ```.',
    # What the paper asks for, in other words: its text is not at hand.
    'You write Python programs that are correct and complete.\n\n{question}'
    '\n\nPut the code, and nothing else, in tags: </answer> ends what <answer> '
    'starts.',
  )

  prompt_template: str = prompt_templates[0]
  max_new_tokens: int = 512

  name: ClassVar[str] = 'mbpp'

  def parse(self, row: Mapping[str, Any], row_id: int) -> base.Example:
    """Reads one row.

    Raises:
      TaskError: a field is missing or of another type, there is no test, or
        the code of one does not parse.
    """
    words = 'text' if 'text' in row else 'prompt'
    text, solution, setup = base.texts(
      row, (words, 'code'), ('test_setup_code',)
    )
    tests = _list(row, 'test_list')
    imports = _list(row, 'test_imports')
    if not tests:
      raise base.TaskError("field 'test_list' is empty")
    asked = '\n'.join([setup, *tests]) + '\n'
    tree = _tree('test_list', asked)
    known = _tree('code', solution)
    context = '\n'.join([*imports, *_imports(known)])
    names = _names(tree, known, _tree('test_imports', context))
    shown = '\n'.join(test.strip() for test in tests)
    return base.Example(
      row_id,
      f'{text.strip()}\nYour code has to pass these tests:\n\n{shown}',
      code.tidy(solution) or '',
      {'tests': asked, 'context': context, 'names': names},
    )

  def job(self, answer: str, example: base.Example) -> sandbox.Job:
    """The answer as it is, with the row's tests."""
    return sandbox.Job(
      sources=(answer,),
      tests=example.meta['tests'],
      names=tuple(example.meta['names']),
      context=example.meta['context'],
    )


def _list(row: Mapping[str, Any], field: str) -> list[str]:
  held = row.get(field, [])
  if not (
    isinstance(held, list | tuple) and all(isinstance(x, str) for x in held)
  ):
    raise base.TaskError(f'field {field!r} is {held!r}, not a list of texts')
  return list(held)


def _tree(field: str, source: str) -> ast.Module:
  try:
    return ast.parse(source)
  except (SyntaxError, ValueError) as error:
    raise base.TaskError(f'field {field!r} is no Python: {error}') from error


def _imports(known: ast.Module) -> list[str]:
  """What the solution imports, as tests may rely on it: `math.isclose`."""
  return [
    ast.unparse(node)
    for node in known.body
    if isinstance(node, ast.Import | ast.ImportFrom)
  ]


def _names(asked: ast.AST, known: ast.AST, context: ast.AST) -> list[str]:
  """What tests take from the program.

  A builtin is taken only where the solution defines it too (one task asks for
  a function `sum`): no program may put its own `set` in place of the tests'.
  """
  used = _named(asked, ast.Load) - _named(asked, ast.Store) - _bound(context)
  return sorted(used - set(vars(builtins)) | (used & _bound(known)))


def _named(tree: ast.AST, kind: type) -> set[str]:
  return {
    node.id
    for node in ast.walk(tree)
    if isinstance(node, ast.Name) and isinstance(node.ctx, kind)
  }


def _bound(tree: ast.Module) -> set[str]:
  """Names that a module defines at its top."""
  found = set()
  for node in tree.body:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
      found.add(node.name)
    elif isinstance(node, ast.Import | ast.ImportFrom):
      found |= {x.asname or x.name.split('.')[0] for x in node.names}
    elif isinstance(node, ast.Assign):
      found |= _named(node, ast.Store)
  return found
