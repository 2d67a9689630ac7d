"""A configuration turned into everything a run needs, before it allocates.

`prepare` is where a configuration meets its data, model and devices: what
cannot work is found here, and everything after it (training, `--check`,
planning, benchmarks, tests) uses the same functions on the same shapes.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vit_jax import config as config_lib
from vit_jax.config import ConfigError, Duration
from vit_jax.evaluation import few_shot
from vit_jax.training import (
  build,
  checks,
  defaults,
  evaluators,
  few_shot_inputs,
  image_codes,
)
from vit_jax.training import frozen as frozen_lib
from vit_jax.training import inputs as inputs_lib
from vit_jax.training import mesh as mesh_lib
from vit_jax.training import optimizer as optimizer_lib
from vit_jax.training import state as state_lib
from vit_jax.training import step as step_lib
from vit_jax.training.schedule import SCHEDULES


@dataclasses.dataclass(frozen=True)
class Run:
  """Everything about a run but its arrays.

  Attributes:
    config: complete and checked.
    exchange: what averages gradients where they are compressed, or None.
    total_steps: length of the run.
    state: shapes of the training state, each with its sharding.
    train_step: jitted; from (state, batch) to (state, metrics).
    few_shot: data of `config.eval.few_shot`; None without.
    zero_shot: data of `config.eval.zero_shot`; None without.
    chosen: what followed from the memory of the devices, to be printed; ''
      if nothing did.
  """

  config: ConfigDict
  inputs: inputs_lib.Inputs
  mesh: Mesh
  task: Any
  schedule: Callable
  optimizer: optax.GradientTransformation
  exchange: optax.GradientTransformation | None
  total_steps: int
  state: state_lib.State
  train_step: Callable
  few_shot: few_shot_inputs.FewShotInputs | None = None
  zero_shot: evaluators.ZeroShotInputs | None = None
  chosen: str = ''

  @property
  def batch(self) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a training batch, each with its sharding."""
    return self._placed(self.task.batch_spec(self.config.batch_size))

  @property
  def test_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of so many test examples, each with its sharding."""
    spec = getattr(self.task, 'test_batch_spec', self.task.batch_spec)
    return self._placed(spec(self.config.batch_size))

  def _placed(self, batch: Any) -> dict[str, jax.ShapeDtypeStruct]:
    sharding = mesh_lib.batch_sharding(self.mesh)
    return {
      name: jax.ShapeDtypeStruct(spec.shape, spec.dtype, sharding=sharding)
      for name, spec in batch.items()
    }

  def steps(self, duration: Duration) -> int:
    """Converts a duration of the configuration to steps, at least one."""
    to_steps = _to_steps(self.config, self.inputs, self.total_steps)
    return max(1, to_steps(duration))

  def init(self) -> state_lib.State:
    """Allocates the state before the first step, already on its devices."""
    sharding = jax.tree.map(lambda leaf: leaf.sharding, self.state)
    return jax.jit(self._create, out_shardings=sharding)()

  def _create(self) -> state_lib.State:
    key = state_lib.random_key(self.config.seed)
    variables = self.task.init(jax.random.fold_in(key, 0xFFFFFFFF))
    return _create_state(
      self.config, self.optimizer, self.exchange, variables, key
    )


def _create_state(
  config, optimizer, exchange, variables, key
) -> state_lib.State:
  average = config.optimizer.average > 0
  return state_lib.create(variables, optimizer, key, average, exchange)


def _to_steps(
  config: Any, inputs: inputs_lib.Inputs, total: int | None
) -> Callable[[Duration], int]:
  """Returns what converts durations; `total` is what '%' is a share of."""
  return functools.partial(
    config_lib.to_steps,
    batch_size=config.batch_size,
    examples=inputs.train_examples,
    total=total,
  )


def _schedule(
  config: Any, inputs: inputs_lib.Inputs
) -> tuple[int, Callable[[Any], Any]]:
  """Returns the length of the run in steps, and its schedule."""
  total = _to_steps(config, inputs, None)(config.total)
  if total < 1:
    raise ConfigError(
      f'config.total is {config.total!r}, which is less than one step of '
      f'{config.batch_size} examples.'
    )
  own = {k: v for k, v in config.schedule.items() if k != 'name'}
  to_steps = _to_steps(config, inputs, total)
  return total, SCHEDULES[config.schedule.name](total, to_steps, **own)


def _trace(run: Run) -> list[str]:
  """Traces what the run will call, which finds shapes that do not fit.

  The trace of a step is kept: the first call does not trace again.

  Returns:
    The names of the task's metrics.
  """
  try:
    with jax.set_mesh(run.mesh):
      run.train_step.eval_shape(run.state, run.batch)
      metrics = jax.eval_shape(
        run.task.metrics, run.state.evaluated, run.test_batch
      )
  except (TypeError, ValueError) as error:
    raise ConfigError(f'config.model or config.task: {error}') from error
  return [*metrics]


def _with_evaluation(run: Run) -> Run:
  """Returns the run with what it is evaluated on beside its test data."""
  asked, shape = run.config.eval, run.inputs.known.image_shape
  if run.inputs.planned:
    return run
  if asked.few_shot.shots:
    opened = few_shot_inputs.open_few_shot(
      run.config, asked.few_shot, shape, run.inputs.source
    )
    features = few_shot.make_features(run.task, asked.few_shot.feature)
    with jax.set_mesh(run.mesh):
      jax.eval_shape(features, run.state.evaluated, run.batch)
    run = dataclasses.replace(run, few_shot=opened)
  if asked.zero_shot.source:
    opened = evaluators.open_zero_shot(run.config, shape)
    run = dataclasses.replace(run, zero_shot=opened)
  return run


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
  checks.check_values(config)
  checks.check_init(config.init)
  checks.check_wandb(config.wandb)
  # Data is opened only if the batches can be split.
  checks.check_batches(config, mesh_lib.make(config.mesh, devices))
  frozen = frozen_lib.load(config)
  inputs = inputs_lib.open_inputs(config, planned, frozen)
  total, schedule = _schedule(config, inputs)
  if not planned:
    for name in ('train', 'test'):
      image_codes.check_readable(config, name, frozen)
    image_codes.check_same_codes(config, frozen)
    image_codes.check_vectors(config, frozen)
  if not inputs.planned:
    frozen_lib.check_classes(config, frozen, inputs.known.class_names)
  make_task = functools.partial(
    build.make_task,
    known=inputs.known,
    to_steps=_to_steps(config, inputs, total),
    frozen=frozen,
    reads_codes=inputs.codes,
  )
  config, chosen = defaults.settle(config, devices, make_task)
  mesh = mesh_lib.make(config.mesh, devices)
  task = make_task(config)
  inputs = dataclasses.replace(inputs, names=tuple(task.batch_spec(1)))
  key = jax.eval_shape(lambda: state_lib.random_key(config.seed))
  variables = build.abstract_variables(task, mesh, key)
  checks.check_accumulation(config, task, variables)
  checks.check_compression(config, task, variables)
  checks.check_precision(config, variables)
  checks.check_views(config, inputs.names)
  params = variables['params']
  optimizer_lib.check(config.optimizer, params)
  optimizer = optimizer_lib.make(config.optimizer, schedule, params)
  exchange = optimizer_lib.make_exchange(
    config.optimizer, mesh.shape['data'], _to_steps(config, inputs, total)
  )
  shapes = jax.eval_shape(
    functools.partial(_create_state, config, optimizer, exchange),
    variables,
    key,
  )
  sharding = mesh_lib.state_sharding(shapes, config.mesh, mesh)
  state = jax.tree.map(
    lambda leaf, place: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=place
    ),
    shapes,
    sharding,
  )
  train_step = jax.jit(
    step_lib.make_train_step(task, optimizer, config.optimizer, exchange),
    donate_argnums=0,
    in_shardings=(sharding, mesh_lib.batch_sharding(mesh)),
    out_shardings=(sharding, None),
  )
  run = Run(
    config,
    inputs,
    mesh,
    task,
    schedule,
    optimizer,
    exchange,
    total,
    state,
    train_step,
    chosen=chosen,
  )
  metrics = _trace(run)
  evaluators.check(run)
  run = _with_evaluation(run)
  known = [*(f'test/{name}' for name in metrics), *evaluators.names(run)]
  checks.check_best(config.checkpoint.best, known)
  return run
