# SPDX-License-Identifier: Apache-2.0
"""Chat templates: programs from a file that is not trusted."""

from __future__ import annotations

from collections.abc import Mapping

import jinja2
import jinja2.sandbox

from thicket.models.tokenizer_parts import TokenizerError, bad, line


class ChatTemplate:
  """A template that puts a chat's turns into one text."""

  def __init__(self, source: str, tokens: Mapping[str, str]):
    """Compiles it.

    Args:
      source: Jinja.
      tokens: texts of special tokens by the names that templates use.

    Raises:
      TokenizerError: it is no template.
    """
    self.source = source
    self._tokens = dict(tokens)
    self._template = _compile(source)

  def render(self, **turns: str | None) -> str:
    """Fills the template with texts by role; None leaves a role out.

    Without an assistant's turn the text ends where the answer starts. Raises
    TokenizerError where the template refuses or fails.
    """
    messages = [
      {'role': role, 'content': text}
      for role, text in turns.items()
      if text is not None
    ]
    try:
      return self._template.render(
        messages=messages,
        add_generation_prompt='assistant' not in turns,
        tools=None,
        documents=None,
        **self._tokens,
      )
    except Exception as error:  # a foreign program may raise anything
      raise TokenizerError(
        f'chat template: {line(error)}; change the prompt or the system text'
      ) from error


def _compile(chat_template: str) -> jinja2.Template:
  """The template in a sandbox, set up as `transformers` does.

  There is no `strftime_now`: templates that would put today's date into the
  prompt fall back to a fixed one, and a run stays the same tomorrow.
  """

  def raise_exception(message):
    raise jinja2.TemplateError(message)

  environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True,
    lstrip_blocks=True,
    extensions=['jinja2.ext.loopcontrols'],
  )
  environment.globals['raise_exception'] = raise_exception
  try:
    return environment.from_string(chat_template)
  except Exception as error:  # the parser's own errors are not all alike
    raise bad('chat template', line(error)) from error
