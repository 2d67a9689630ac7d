"""A configuration turned into everything a run needs, before it allocates.

`prepare` is where a configuration meets its data, model and devices: what
cannot work is found here, and everything after it (training, `--check`,
planning, benchmarks, tests) uses the same functions on the same shapes.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vit_jax import config as config_lib
from vit_jax.config import ConfigError
from vit_jax.training import inputs as inputs_lib
from vit_jax.training import mesh as mesh_lib
from vit_jax.training import optimizer as optimizer_lib
from vit_jax.training import schema
from vit_jax.training import state as state_lib
from vit_jax.training import step as step_lib
from vit_jax.training.schedule import SCHEDULES


@dataclasses.dataclass(frozen=True)
class Run:
  """Everything about a run but its arrays.

  Attributes:
    config: complete and checked.
    total_steps: length of the run.
    state: shapes of the training state, each with its sharding.
    train_step: jitted; from (state, batch) to (state, metrics).
  """

  config: ConfigDict
  inputs: inputs_lib.Inputs
  mesh: Mesh
  task: Any
  schedule: Callable
  optimizer: optax.GradientTransformation
  total_steps: int
  state: state_lib.State
  train_step: Callable

  @property
  def batch(self) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a training batch, each with its sharding."""
    sharding = mesh_lib.batch_sharding(self.mesh)
    return {
      name: jax.ShapeDtypeStruct(spec.shape, spec.dtype, sharding=sharding)
      for name, spec in self.task.batch_spec(self.config.batch_size).items()
    }

  def steps(self, duration: config_lib.Duration) -> int:
    """Converts a duration of the configuration to steps, at least one."""
    count = config_lib.to_steps(
      duration,
      batch_size=self.config.batch_size,
      examples=self.inputs.train_examples,
      total=self.total_steps,
    )
    return max(1, count)

  def init(self) -> state_lib.State:
    """Allocates the state before the first step, already on its devices."""
    sharding = jax.tree.map(lambda leaf: leaf.sharding, self.state)
    return jax.jit(self._create, out_shardings=sharding)()

  def _create(self) -> state_lib.State:
    return _create_state(self.config, self.task, self.optimizer)


def _create_state(config, task, optimizer) -> state_lib.State:
  key = state_lib.random_key(config.seed)
  params = task.init(jax.random.fold_in(key, 0xFFFFFFFF))['params']
  return state_lib.create(params, optimizer, key, config.optimizer.average > 0)


def make_task(
  config: Any, class_names: Sequence[str], image_shape: Sequence[int]
) -> Any:
  """Returns the task of a configuration, with its model."""
  model = config.model.to_dict()
  task = config.task.to_dict()
  make_model = schema.MODELS[model.pop('name')]
  make = schema.TASKS[task.pop('name')]
  try:
    return make(
      model=make_model(
        num_classes=len(class_names),
        dtype=jnp.dtype(config.precision.compute),
        softmax_dtype=jnp.dtype(config.precision.softmax),
        **model,
      ),
      class_names=tuple(class_names),
      image_shape=tuple(image_shape),
      **task,
    )
  except ValueError as error:
    raise ConfigError(f'config.model or config.task: {error}') from error


def _check_batches(config: Any, mesh: Mesh) -> None:
  """Raises ConfigError if batches cannot be split over the devices."""
  shards = mesh_lib.batch_shards(mesh)
  parts = shards * config.optimizer.accumulate
  if config.batch_size < 1 or config.batch_size % parts:
    micro = config.optimizer.accumulate
    raise ConfigError(
      f'config.batch_size is {config.batch_size}, which cannot be split over '
      f'{shards} devices'
      + (f' and {micro} micro-batches' if micro > 1 else '')
      + f': use a multiple of {parts}.'
    )
  evaluated = config.eval.batch_size
  if evaluated is not None and (evaluated < 1 or evaluated % shards):
    raise ConfigError(
      f'config.eval.batch_size is {evaluated}, which cannot be split over '
      f'{shards} devices: use a multiple of {shards}.'
    )


def abstract_params(task: Any, mesh: Mesh, key: jax.Array) -> Any:
  """Returns the shapes of the parameters."""
  try:
    with jax.set_mesh(mesh):
      return jax.eval_shape(task.init, key)['params']
  except ValueError as error:
    raise ConfigError(f'config.model: {error}') from error


def prepare(
  config: ConfigDict,
  devices: Sequence[Any] | None = None,
  planned: bool = False,
) -> Run:
  """Checks a configuration against its data and devices; allocates nothing.

  Args:
    config: complete, see `vit_jax.config.resolve`.
    devices: to run on; all there are by default.
    planned: whether data that is not there may be planned with, see
      `schema.Expected`.

  Raises:
    ConfigError: for whatever would not work.
  """
  mesh = mesh_lib.make(config.mesh, devices)
  _check_batches(config, mesh)
  inputs = inputs_lib.open_inputs(config, planned)
  task = make_task(config, inputs.class_names, inputs.image_shape)

  def to_steps(duration, total=None):
    return config_lib.to_steps(
      duration,
      batch_size=config.batch_size,
      examples=inputs.train_examples,
      total=total,
    )

  total = to_steps(config.total)
  if total < 1:
    raise ConfigError(
      f'config.total is {config.total!r}, which is less than one step of '
      f'{config.batch_size} examples.'
    )
  own = {k: v for k, v in config.schedule.items() if k != 'name'}
  schedule = SCHEDULES[config.schedule.name](
    total, lambda duration: to_steps(duration, total), **own
  )
  key = jax.eval_shape(lambda: state_lib.random_key(config.seed))
  params = abstract_params(task, mesh, key)
  optimizer_lib.check(config.optimizer, params)
  optimizer = optimizer_lib.make(config.optimizer, schedule, params)
  shapes = jax.eval_shape(lambda: _create_state(config, task, optimizer))
  sharding = mesh_lib.state_sharding(shapes, config.mesh, mesh)
  state = jax.tree.map(
    lambda leaf, place: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=place
    ),
    shapes,
    sharding,
  )
  train_step = jax.jit(
    step_lib.make_train_step(task, optimizer, config.optimizer),
    donate_argnums=0,
    in_shardings=(sharding, mesh_lib.batch_sharding(mesh)),
    out_shardings=(sharding, None),
  )
  return Run(
    config, inputs, mesh, task, schedule, optimizer, total, state, train_step
  )
