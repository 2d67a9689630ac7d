"""What a training step needs of a device's memory, from shapes alone."""

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from jax.extend.core import Literal
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vit_jax.config import ConfigError
from vit_jax.training import build
from vit_jax.training import mesh as mesh_lib
from vit_jax.training import optimizer as optimizer_lib
from vit_jax.training import state as state_lib

# GiB of a JAX device that programs can have, by the word of the TPU compiler
# when it refuses one that needs more.
GIB = {
  'TPU v2': 7.48,
  'TPU v3': 15.48,
  'TPU v4': 30.75,
  'TPU v5 lite': 15.75,
  'TPU v5': 95.74,
  'TPU v6 lite': 31.25,
}


@dataclasses.dataclass(frozen=True)
class Needs:
  """Memory of a training step, in bytes of one device.

  Attributes:
    state: parameters, optimizer, averages, by the size of `mesh.fsdp`.
    gradients: the same way.
    weights: parameters as they are computed with, whole.
    example: what differentiation keeps of one example.
    scan: whether layers are a loop.
    parts: whether micro-batches give what one batch gives.
  """

  state: Mapping[int, int]
  gradients: Mapping[int, int]
  weights: int
  example: int
  scan: bool = False
  parts: bool = True


def values(section: Mapping, name: str) -> Iterator[Any]:
  """Yields the values of a key of a model and of the models in it."""
  for key, value in section.items():
    if isinstance(value, Mapping | ConfigDict):
      yield from values(value, name)
    elif key == name:
      yield value


def measure(config: ConfigDict, devices: Sequence[Any], task: Any) -> Needs:
  """Returns what a step needs, from shapes alone.

  Args:
    config: complete, with nothing left open.
    devices: to run on.
    task: of this configuration; its model computes nothing again.

  Raises:
    ConfigError: the model or the task cannot work.
  """
  one = mesh_lib.make(mesh_lib.Settings(), devices[:1])
  key = jax.eval_shape(lambda: state_lib.random_key(config.seed))
  variables = build.abstract_variables(task, one, key)
  params = variables['params']
  optimizer_lib.check(config.optimizer, params)
  optimizer = optimizer_lib.make(config.optimizer, lambda step: 1.0, params)
  once, twice = (_kept(task, one, variables, key, size) for size in (1, 2))
  most = len(devices) // config.mesh.tensor
  whole, gradients = {}, {}
  for size in (size for size in range(1, most + 1) if most % size == 0):
    split = {**config.mesh.to_dict(), 'data': -1, 'fsdp': size}
    settings = mesh_lib.Settings(**split)
    mesh = mesh_lib.make(settings, devices)
    exchange = optimizer_lib.make_exchange(
      config.optimizer, mesh.shape['data'], lambda start: 0
    )
    create = functools.partial(
      state_lib.create,
      tx=optimizer,
      average=config.optimizer.average > 0,
      exchange=exchange,
    )
    state = jax.eval_shape(create, variables, key=key)
    places = mesh_lib.state_sharding(state, settings, mesh)
    whole[size] = _bytes_per_device(state, places)
    gradients[size] = _bytes_per_device(state.params, places.params)
  return Needs(
    state=whole,
    gradients=gradients,
    weights=2 * once - twice,
    example=twice - once,
    scan=any(values(config.model, 'scan')),
    # Batch norm would see only parts of a batch.
    parts='batch_stats' not in variables,
  )


def _kept(task: Any, mesh: Mesh, variables: Any, key: Any, size: int) -> int:
  """Returns the bytes that differentiation keeps, parameters left out."""

  def forward(variables, batch, key):
    others = dict(variables)
    return jax.vjp(
      lambda params: task.loss({**others, 'params': params}, batch, key, 0)[0],
      others.pop('params'),
    )

  try:
    with jax.set_mesh(mesh):
      batch = task.batch_spec(size)
      jaxpr = jax.make_jaxpr(forward)(variables, batch, key).jaxpr
  except (TypeError, ValueError) as error:
    raise ConfigError(f'config.model or config.task: {error}') from error
  kept = {out for out in jaxpr.outvars if not isinstance(out, Literal)}
  return sum(
    math.prod(out.aval.shape) * out.aval.dtype.itemsize
    for out in kept.difference(jaxpr.invars)
  )


def _bytes_per_device(tree: Any, sharding: Any) -> int:
  return sum(
    math.prod(place.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf, place in zip(jax.tree.leaves(tree), jax.tree.leaves(sharding))
  )
