"""A configuration turned into everything a run needs, before it allocates.

`prepare` is where a configuration meets its data, model and devices: what
cannot work is found here, and everything after it (training, `--check`,
planning, benchmarks, tests) uses the same functions on the same shapes.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vit_jax import config as config_lib
from vit_jax.config import ConfigError
from vit_jax.data import pipeline, preprocess, sources
from vit_jax.training import mesh as mesh_lib
from vit_jax.training import optimizer as optimizer_lib
from vit_jax.training import rules, schema
from vit_jax.training import state as state_lib
from vit_jax.training import step as step_lib
from vit_jax.training.schedule import SCHEDULES

# What preparing can find wrong: each becomes a ConfigError.
_REFUSALS = (ValueError, FileNotFoundError, NotADirectoryError, ImportError)


@dataclasses.dataclass(frozen=True)
class Data:
  """What there is to learn from.

  Attributes:
    class_names: the label's meaning, by number.
    image_shape: height, width, channels after preprocessing.
    train_examples: examples of one epoch.
    source: of training and of testing; None where only planned.
    preprocess: of both.
  """

  class_names: tuple[str, ...]
  image_shape: tuple[int, int, int]
  train_examples: int
  source: Mapping[str, sources.Source | None]
  preprocess: Mapping[str, preprocess.Preprocess]


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
  data: Data
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
      examples=self.data.train_examples,
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


def _open(where: str, section: Any) -> sources.Source:
  try:
    return sources.open_source(section.source, section.split)
  except _REFUSALS as error:
    raise ConfigError(f'config.data.{where}: {error}') from error


def _parse(where: str, section: Any) -> preprocess.Preprocess:
  try:
    return preprocess.parse(section.preprocess)
  except ValueError as error:
    raise ConfigError(f'config.data.{where}.preprocess: {error}') from error


def open_data(config: Any, planned: bool = False) -> Data:
  """Opens the data of a run.

  Args:
    config: complete.
    planned: take `config.data.expected` instead of data that is not there.

  Raises:
    ConfigError: the data is not there, or not as expected.
  """
  data, expected = config.data, config.data.expected
  transforms = {name: _parse(name, data[name]) for name in ('train', 'test')}
  if not transforms['test'].deterministic:
    raise ConfigError(
      f'config.data.test.preprocess {data.test.preprocess!r} is random; '
      'evaluation must not be. Use for example '
      "'resize_small(256)|central_crop(224)|value_range(-1, 1)'."
    )
  known = None not in expected.to_dict().values()
  try:
    source = {name: _open(name, data[name]) for name in ('train', 'test')}
  except ConfigError:
    if not (planned and known):
      raise
    names = tuple(f'class {i}' for i in range(expected.classes))
    nothing = {'train': None, 'test': None}
    shape = tuple(expected.image_shape)
    return Data(names, shape, expected.train_examples, nothing, transforms)
  shapes = {
    name: tuple(pipeline.example_shape(source[name], transforms[name]))
    for name in source
  }
  names = source['train'].class_names
  if source['test'].class_names != names:
    raise ConfigError(
      'config.data.train and config.data.test have different classes: '
      f'{len(names)} ({", ".join(names[:5])}, ...) and '
      f'{len(source["test"].class_names)}.'
    )
  if shapes['train'] != shapes['test']:
    raise ConfigError(
      f'Training images are {shapes["train"]} (height, width, channels), test '
      f'images are {shapes["test"]}. Make the preprocessing of both end in '
      'the same size.'
    )
  found = dict(
    train_examples=len(source['train']),
    classes=len(names),
    image_shape=shapes['train'],
  )
  for key, value in found.items():
    if expected[key] is not None and expected[key] != value:
      raise ConfigError(
        f'config.data.expected.{key} is {expected[key]}, but the data has '
        f'{value}. Check source and split, or correct the expectation.'
      )
  return Data(
    names, shapes['train'], len(source['train']), source, transforms
  )


def _make_task(config: Any, data: Data) -> Any:
  fields = {
    name: section.to_dict()
    for name, section in config.items()
    if name in ('model', 'task')
  }
  make_model = schema.MODELS[fields['model'].pop('name')]
  make_task = schema.TASKS[fields['task'].pop('name')]
  try:
    model = make_model(
      num_classes=len(data.class_names),
      dtype=jnp.dtype(config.precision.compute),
      softmax_dtype=jnp.dtype(config.precision.softmax),
      **fields['model'],
    )
    return make_task(
      model=model,
      class_names=data.class_names,
      image_shape=data.image_shape,
      **fields['task'],
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
  data = open_data(config, planned)
  task = _make_task(config, data)

  def to_steps(duration, total=None):
    return config_lib.to_steps(
      duration,
      batch_size=config.batch_size,
      examples=data.train_examples,
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
    config, data, mesh, task, schedule, optimizer, total, state, train_step
  )


def describe_sharding(run: Run) -> dict[str, str]:
  """Returns the parameters that are split, each with how."""
  return {
    path: str(leaf.sharding.spec)
    for path, leaf in rules.by_path(run.state.params).items()
    if any(leaf.sharding.spec)
  }
