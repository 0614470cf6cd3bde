# SPDX-License-Identifier: Apache-2.0
"""Any Flax model, Linen or NNX, as a pure function and a tree of weights.

RandOpt (Neural Thickets, arXiv 2603.12228) needs no more of a model than that:

  model = from_nnx(module)  # or from_linen(module, variables)
  thicket.search(*model, data, score, ...)

What a tensor is called decides its noise (see `prng`), so names must not come
from a framework's insides. Here a name is the path of attributes that leads to
the tensor, joined by slashes: `conv/kernel`, and `layers/0/kernel` in a list.
Linen's names begin below its collection 'params'. So a Linen and an NNX model
with the same names and weights have the same members.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.core
import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from thicket import trees
from thicket.user_rules import user_rules

Tree = Any

_PARAMS = 'params'
_EVALUATE = (
  'members are compared on what they give in evaluation; switch to it by a '
  'keyword that the module takes, such as train=False or deterministic=True'
)


class Model(NamedTuple):
  """A model as `thicket.search` takes it.

  Fields:
    apply: (params, inputs) -> outputs, pure.
    params: nested dicts of float arrays.
  """

  apply: Callable[[Tree, Any], Any]
  params: Tree


def from_function(fn: Callable[[Tree, Any], Any], params: Tree) -> Model:
  """A pure function and its weights, checked.

  Args:
    fn: (params, inputs) -> outputs, pure.
    params: any tree of float arrays, at least one.

  Raises:
    ValueError: fn cannot be called, or params hold anything else.
  """
  if not callable(fn):
    raise ValueError(f'fn is a {type(fn).__name__}: it cannot be called')
  _check_params(params)
  return Model(fn, params)


def from_linen(
  module: nn.Module,
  variables: Mapping[str, Tree],
  *,
  method: Callable[..., Any] | str | None = None,
  **kwargs: Any,
) -> Model:
  """A Linen module whose collection 'params' can be perturbed.

  All other collections, such as running statistics, stay as they are now.

  Args:
    module: the module.
    variables: what `module.init` or a training gave.
    method: of the module, by default `__call__`.
    **kwargs: handed to each call, such as train=False.

  Returns:
    The model; its `apply` raises a ValueError where the module wants to change
    its variables or to draw random numbers.

  Raises:
    ValueError: there are no params, or not all are float arrays.
  """
  if not isinstance(module, nn.Module):
    hint = '; see from_nnx' if isinstance(module, nnx.Module) else ''
    raise ValueError(
      f'module is a {type(module).__name__}, not a Linen module{hint}'
    )
  if not isinstance(variables, Mapping) or not variables.get(_PARAMS):
    found = list(variables) if isinstance(variables, Mapping) else variables
    raise ValueError(
      f"variables have no collection 'params' but {found}; give all that "
      'module.init returned'
    )
  # Boxes with the names of axes would add a name of Flax's own to each path.
  rest = nn.meta.unbox(flax.core.unfreeze(variables))
  params = rest.pop(_PARAMS)
  _check_params(params)

  def apply(params: Tree, inputs: Any) -> Any:
    everything = {**rest, _PARAMS: params}
    try:
      with user_rules():
        return module.apply(everything, inputs, method=method, **kwargs)
    except flax.errors.ModifyScopeVariableError as error:
      raise ValueError(f'the module changes its state; {_EVALUATE}') from error
    except flax.errors.InvalidRngError as error:
      raise ValueError(f'the module draws noise; {_EVALUATE}') from error

  return Model(apply, params)


def from_nnx(module: nnx.Module, **kwargs: Any) -> Model:
  """An NNX module whose `nnx.Param`s can be perturbed.

  A copy in evaluation mode (`nnx.Module.eval`) is used: the module itself stays
  as it is, and later changes of it are not seen. Variables of other types, such
  as running statistics, stay as they are now. Shared ones are one tensor, named
  by the first of their paths.

  Args:
    module: the module.
    **kwargs: handed to each call.

  Returns:
    The model; its `apply` raises a ValueError where the module changes its
    state all the same.

  Raises:
    ValueError: there are no params, or not all are float arrays.
  """
  graph, state, rest = _split(module)
  params = _to_tree(state)
  _check_params(params)

  def apply(params: Tree, inputs: Any) -> Any:
    # Copied: a module that writes to a variable would write to `rest` itself.
    called = nnx.merge(graph, _to_state(state, params), rest, copy=True)
    with user_rules():
      outputs = called(inputs, **kwargs)
    changed = _changed(rest, nnx.state(called))
    if changed:
      raise ValueError(f'the module changes its state {changed}; {_EVALUATE}')
    return outputs

  return Model(apply, params)


def to_linen(variables: Mapping[str, Tree], params: Tree) -> dict[str, Tree]:
  """Linen variables with other weights, such as a member's.

  Args:
    variables: as given to `from_linen`; not modified.
    params: a tree like that of `from_linen`.

  Raises:
    ValueError: params differ from the variables' in structure, shape or dtype.
  """
  variables = nn.meta.unbox(flax.core.unfreeze(variables))
  _check_alike(variables[_PARAMS], params)
  return {**variables, _PARAMS: params}


def to_nnx(module: nnx.Module, params: Tree) -> nnx.Module:
  """A new module with other weights, such as a member's.

  Args:
    module: as given to `from_nnx`; not modified. All that is no `nnx.Param`,
      and whether it is in training mode, is taken from it.
    params: a tree like that of `from_nnx`.

  Raises:
    ValueError: params differ from the module's in structure, shape or dtype.
  """
  graph, state, rest = nnx.split(nnx.clone(module), nnx.Param, ...)
  _check_alike(_to_tree(state), params)
  return nnx.merge(graph, _to_state(state, params), rest)


def _split(module: nnx.Module) -> tuple[Any, nnx.State, nnx.State]:
  if not isinstance(module, nnx.Module):
    hint = '; see from_linen' if isinstance(module, nn.Module) else ''
    raise ValueError(
      f'module is a {type(module).__name__}, not an NNX module{hint}'
    )
  copy = nnx.clone(module)
  copy.eval()
  return nnx.split(copy, nnx.Param, ...)


def _to_tree(state: nnx.State) -> Tree:
  """Nested dicts of arrays, each under its own path of attributes."""
  tree: dict[str, Any] = {}
  for path, variable in nnx.to_flat_state(state):
    *parents, last = map(str, path)  # places in a list are numbers
    node = tree
    for name in parents:
      node = node.setdefault(name, {})
    node[last] = variable.get_value()
  return tree


def _to_state(state: nnx.State, tree: Tree) -> nnx.State:
  """The state with the values of the tree, in new variables."""

  def value(path, variable):
    node = tree
    for name in path:
      node = node[str(name)]
    return variable.replace(node)

  return nnx.map_state(value, state)


def _changed(before: nnx.State, after: nnx.State) -> str:
  """The path of the first variable that holds another array; '' if none."""
  after = dict(nnx.to_flat_state(after))
  for path, variable in nnx.to_flat_state(before):
    now = after.get(path)
    if now is None or now.get_value() is not variable.get_value():
      return '/'.join(map(str, path))
  return ''


def _check_params(params: Tree) -> None:
  leaves = jax.tree_util.tree_leaves_with_path(params)
  if not leaves:
    raise ValueError('params hold no array')
  for path, array in leaves:
    dtype = getattr(array, 'dtype', None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
      kind = type(array).__name__ if dtype is None else dtype
      raise ValueError(
        f'{trees.path_name(path)} is {kind}: only float arrays can be '
        'perturbed; keep others out of the parameters, in a collection '
        'or nnx.Variable of their own'
      )


def _check_alike(ours: Tree, theirs: Tree) -> None:
  def kinds(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
      trees.path_name(path): f'{jnp.result_type(x)}{jnp.shape(x)}'
      for path, x in leaves
    }

  want, found = kinds(ours), kinds(theirs)
  for name in sorted({*want, *found}):
    if want.get(name) != found.get(name):
      raise ValueError(
        f'params: {name} is {found.get(name, "missing")}, the model has '
        f'{want.get(name, "no such tensor")}'
      )
