# SPDX-License-Identifier: Apache-2.0
"""What answers: a configuration's model on a mesh, its members, the engine.

A run and whatever uses its members later set the same machine up, so that they
give the same answers.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
from absl import logging
from jax.sharding import Mesh

from thicket import engine, families, fit, perturb, sharding, trees
from thicket.models.load import LoadedModel, load
from thicket.plan import ConfigError
from thicket.population import Members, Population


@dataclasses.dataclass(frozen=True, eq=False)
class Base:
  """The pretrained model.

  Attributes:
    model: on the mesh.
    mesh: of all devices.
    mask: which tensors members move, by `trees.trainable`.
  """

  model: LoadedModel
  mesh: Mesh
  mask: Any


def load_base(config: ml_collections.ConfigDict) -> Base:
  """Loads the model of a configuration, as `configs/llm.py` makes it.

  Raises:
    ConfigError: the devices cannot share models so, or nothing may move.
    HubError, ModelFileError, TokenizerError: as `models.load` does.
  """
  start = time.monotonic()
  try:
    mesh = sharding.make_mesh(model=config.run.get('model_axis', 1))
  except ValueError as error:
    raise ConfigError(f'run.model_axis: {error}') from error
  model = load(**config.model, mesh=mesh)
  parameters = sum(x.size for x in jax.tree.leaves(model.params))
  logging.info(
    'loaded %s, %.1f M parameters, in %.1f s', model.name, parameters / 1e6,
    time.monotonic() - start,
  )  # fmt: skip
  try:
    only, skip = config.population.only, config.population.skip
    mask = trees.trainable(model.spec, only=only, skip=skip)
  except ValueError as error:
    raise ConfigError(f'population.only, population.skip: {error}') from error
  return Base(model, mesh, mask)


class Machine:
  """Writes members of a base and generates with them.

  Attributes:
    engine: generates.
  """

  def __init__(
    self,
    base: Base,
    population: ml_collections.ConfigDict,
    *,
    seed: int,
  ):
    """Prepares noise and engine; nothing is drawn or compiled yet.

    Args:
      base: what members are drawn around.
      population: that part of the configuration: its family and its scale.
      seed: root seed of the population.
    """
    self._base = base
    # A low-rank member is never materialised: all share the base's products.
    is_factored = families.rank_of(population.family) > 0
    self._perturber = perturb.Perturber(
      base.model.params,
      base.model.spec,
      seed=seed,
      mesh=base.mesh,
      family=population.family,
      scale=population.scale,
      mask=base.mask,
      factored=is_factored,
    )
    self._dtype = jax.tree.leaves(base.model.params)[0].dtype
    self.engine = engine.Engine(
      base.model.decoder,
      mesh=base.mesh,
      in_axes=self._perturber.in_axes,
      dtype=self._dtype,
    )

  def members(self, population: Population, per_device: int) -> Members:
    """The loop over members, so many on a device at a time."""
    return Members(self._perturber, population, self._base.mesh, per_device)

  def needs(
    self,
    *,
    rows: int,
    buckets: Sequence[int],
    prefix: int,
    max_new_tokens: int,
  ) -> fit.Needs:
    """Bytes that members take on each device; see `fit.needs`."""
    mesh = self._base.mesh
    return fit.needs(
      fit.part(self._base.model.decoder.config, mesh),
      self._base.model.params,
      self._perturber.shapes(sharding.num_devices(mesh)),
      self._perturber.in_axes,
      rows=rows,
      buckets=buckets,
      prefix=prefix,
      max_new_tokens=max_new_tokens,
      dtype=self._dtype,
      platform=mesh.devices.flat[0].platform,
    )
