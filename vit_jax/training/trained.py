"""A trained model, read back from the workdir of its run."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vit_jax import config as config_lib
from vit_jax.config import ConfigError
from vit_jax.training import checks, rules, schema
from vit_jax.training import mesh as mesh_lib
from vit_jax.training import run as run_lib
from vit_jax.training import state as state_lib
from vit_jax.training.checkpoint import Checkpoints

# What may be overridden of a finished run: the rest made it what it is, or is
# of no use any more.
_MAY_CHANGE = (
  'batch_size', 'data.max_broken', 'data.test.', 'data.workers',
  'eval.batch_size', 'mesh.', 'precision.',
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Trained:
  """A model with its parameters and all that belongs to them.

  Attributes:
    config: of the run, with overrides.
    task: what was learned; holds the model and the names of its classes.
    mesh: the devices, as the run had them if that is possible here.
    variables: parameters (their average where the run keeps one), on them.
    step: that they are from.
  """

  config: ConfigDict
  task: Any
  mesh: Mesh
  variables: dict[str, Any]
  step: int

  def whole_batch(self, size: int) -> int:
    """Returns `size`, rounded up to what can be split over the devices."""
    shards = mesh_lib.batch_shards(self.mesh)
    return -(-size // shards) * shards


def load(
  workdir: pathlib.Path, step: str | None = None, overrides: Sequence[str] = ()
) -> Trained:
  """Reads a trained model.

  Args:
    workdir: of the run.
    step: number of a checkpoint, 'best', or None for the newest.
    overrides: of the run's configuration, '--config.section.key=value'.

  Raises:
    ConfigError: there is no such checkpoint, its parameters do not fit the
      model, or an override is of what training has settled.
    CheckpointError: it is damaged.
  """
  if step not in (None, 'best'):
    if not step.isdecimal():
      raise ConfigError(f"--step={step} is neither a number nor 'best'.")
    step = int(step)
  try:
    params, meta, step = read_parameters(workdir, step)
  except FileNotFoundError as error:
    raise ConfigError(str(error)) from error
  config = config_lib.resolve(meta['config'], overrides, schema.SCHEMA)
  _check_overrides(overrides)
  checks.check_values(config)
  task = run_lib.make_task(config, meta['class_names'], meta['image_shape'])
  mesh = _make_mesh(config.mesh, overrides)
  _check_fit(params, task, mesh)
  variables = {'params': _place(params, config.mesh, mesh)}
  return Trained(config, task, mesh, variables, step)


def _check_overrides(overrides: Sequence[str]) -> None:
  """Raises ConfigError for what a finished run cannot be told any more."""
  for override in overrides:
    path, _ = config_lib.split_override(override)
    if not f'{path}.'.startswith(_MAY_CHANGE):
      allowed = ', '.join(f'{key.rstrip(".")}' for key in _MAY_CHANGE)
      raise ConfigError(
        f'--config.{path} cannot be changed after training. What can: '
        f'{allowed}.'
      )


def _make_mesh(settings: Any, overrides: Sequence[str]) -> Mesh:
  """Arranges the devices as in training, or all along `data` if they do
  not fit; they have to where that was asked for."""
  try:
    return mesh_lib.make(settings)
  except ConfigError:
    if any(override.startswith('--config.mesh.') for override in overrides):
      raise
    return mesh_lib.make(mesh_lib.Settings())


def _place(params: Mapping, settings: Any, mesh: Mesh) -> Any:
  """Sends parameters to the devices, split as in training."""
  state = state_lib.State(
    step=None, params=params, optimizer=None, average=None, key=None
  )
  sharding = mesh_lib.state_sharding(state, settings, mesh)
  return jax.device_put(params, sharding.params)


def _check_fit(params: Mapping, task: Any, mesh: Mesh) -> None:
  """Raises ConfigError if the parameters are not those of the model."""
  key = jax.eval_shape(lambda: state_lib.random_key(0))
  expected = rules.by_path(run_lib.abstract_params(task, mesh, key))
  wanted = {path: tuple(leaf.shape) for path, leaf in expected.items()}
  got = {path: leaf.shape for path, leaf in rules.by_path(params).items()}
  wrong = [
    f'  {path}: expected {wanted.get(path, "nothing")}, '
    f'has {got.get(path, "nothing")}'
    for path in sorted({*wanted, *got})
    if wanted.get(path) != got.get(path)
  ]
  if wrong:
    raise ConfigError(
      f'{len(wrong)} parameters of the checkpoint do not fit the model of its '
      'configuration; was it written by another version of this program?\n'
      + '\n'.join(wrong[:20])
    )


def read_parameters(
  workdir: pathlib.Path, step: int | str | None = None
) -> tuple[dict[str, Any], dict[str, Any], int]:
  """Returns what a run has learned, on the host: (parameters, meta, step).

  The parameters are their moving average where the run keeps one.

  Args:
    workdir: of the run.
    step: number of a checkpoint, 'best', or None for the newest intact one.

  Raises:
    FileNotFoundError: there is no run, or no such checkpoint.
    CheckpointError: it is damaged.
  """
  checkpoints = Checkpoints(workdir / 'checkpoints')
  steps = checkpoints.steps()
  if not steps:
    raise FileNotFoundError(
      f'There is no run in {workdir}: '
      + ('no checkpoint is there.' if workdir.is_dir() else 'no such folder.')
    )
  if step == 'best':
    step = _best(workdir / 'checkpoints')
  if step is not None and step not in steps:
    raise FileNotFoundError(
      f'{workdir} has no checkpoint of step {step}. It has those of '
      f'{", ".join(map(str, steps))}.'
    )
  try:
    tree, meta, step = checkpoints.load(('average',), step)
  except KeyError:  # The run keeps no average.
    tree, meta, step = checkpoints.load(('params',), step)
  return tree.get('average') or tree['params'], meta, step


def _best(directory: pathlib.Path) -> int:
  """Returns the best step, by the metric that the run itself goes by."""
  # The smallest part of a checkpoint, for its meta.
  _, meta, _ = Checkpoints(directory).load(('step',))
  metric = meta['config']['checkpoint']['best']
  best = Checkpoints(directory, best=metric).best()
  if best is None:
    raise FileNotFoundError(
      f'The run in {directory.parent} keeps no best checkpoint: its '
      f'config.checkpoint.best is {metric!r}.'
    )
  return best
