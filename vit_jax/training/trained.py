"""A trained model, read back and ready to use."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vit_jax.config import ConfigError
from vit_jax.models import gradient_scale
from vit_jax.training import build, rules, saved
from vit_jax.training import frozen as frozen_lib
from vit_jax.training import mesh as mesh_lib
from vit_jax.training import state as state_lib


@dataclasses.dataclass(frozen=True)
class Trained:
  """A model with its parameters and all that belongs to them.

  Attributes:
    config: of the run, with overrides.
    task: what was learned; holds the model and the names of its classes.
    mesh: the devices, as the run had them if that is possible here.
    variables: parameters (their average where the run keeps one), on them.
    step: that they are from.
    names_known: whether the names of the classes are, or only their number.
  """

  config: ConfigDict
  task: Any
  mesh: Mesh
  variables: dict[str, Any]
  step: int
  names_known: bool

  def whole_batch(self, size: int) -> int:
    """Returns `size`, rounded up to what can be split over the devices."""
    shards = mesh_lib.batch_shards(self.mesh)
    return -(-size // shards) * shards


def load(
  path: pathlib.Path,
  step: str | None = None,
  overrides: Sequence[str] = (),
  grid: tuple[int, int] | None = None,
  told: Mapping[str, Any] | None = None,
) -> Trained:
  """Reads a trained model and sends it to the devices.

  Args:
    path: see `saved.read`, as for the others.
    step: number of a checkpoint, 'best', or None for the newest.
    overrides: of the configuration, '--config.section.key=value'.
    grid: rows and columns of position embeddings, where a file does not tell.
    told: what else it does not tell, see `vit_jax.released.read`.

  Raises:
    ConfigError: there is no such checkpoint, its parameters do not fit the
      model, or an override is of what training has settled.
    CheckpointError: it is damaged.
  """
  found = saved.read(path, step, overrides, grid, told)
  frozen = frozen_lib.of_meta(found.teacher)
  task = build.make_task(
    found.config, found.known, to_steps=None, frozen=frozen
  )
  mesh = _make_mesh(found.config.mesh, overrides)
  variables = {'params': found.params, **found.others}
  _check_fit(variables, task, mesh)
  variables = _place(variables, found.config.mesh, mesh)
  return Trained(
    found.config, task, mesh, variables, found.step, found.names_known
  )


def fit_batches(model: Trained) -> None:
  """Makes test batches divisible by the devices; padding is not counted.

  Raises:
    ConfigError: they have no example.
  """
  config = model.config
  size = config.eval.batch_size
  size = config.batch_size if size is None else size
  if size < 1:
    raise ConfigError(f'The batch size is {size}, expected 1 or more.')
  with config.unlocked():
    config.eval.batch_size = model.whole_batch(size)


def fresh_variables(model: Trained) -> Any:
  """Returns variables of a model as they are before training.

  Those of a model that it has learned with stay as they are.
  """
  key = state_lib.random_key(model.config.seed)
  with jax.set_mesh(model.mesh):
    fresh = jax.jit(model.task.init)(key)
  kept = {name: x for name, x in model.variables.items() if name == 'frozen'}
  return {**fresh, **kept}


def _make_mesh(settings: Any, overrides: Sequence[str]) -> Mesh:
  """Arranges the devices as in training, or all along `data` if they do
  not fit; they have to where that was asked for."""
  try:
    return mesh_lib.make(settings)
  except ConfigError:
    if any(
      override.startswith(('--config.mesh.', '--config.mesh='))
      for override in overrides
    ):
      raise
    return mesh_lib.make(mesh_lib.Settings())


def _place(variables: Mapping, settings: Any, mesh: Mesh) -> Any:
  """Sends variables to the devices, split as in training."""
  others = dict(variables)
  state = state_lib.State(
    step=None,
    params=others.pop('params'),
    others=others,
    optimizer=None,
    average=None,
    key=None,
  )
  sharding = mesh_lib.state_sharding(state, settings, mesh)
  return jax.device_put(state, sharding).evaluated


def _check_fit(variables: Mapping, task: Any, mesh: Mesh) -> None:
  """Raises ConfigError if the parameters are not those of the model."""
  # A teacher comes from the checkpoint alone; scales are for training, and
  # whether there are any depends on the precision, which may change.
  apart = ('frozen', gradient_scale.COLLECTION)

  def shapes(tree):
    return rules.shapes_by_path({k: tree[k] for k in tree if k not in apart})

  key = jax.eval_shape(lambda: state_lib.random_key(0))
  expected = build.abstract_variables(task, mesh, key)
  wrong = rules.misfits(shapes(expected), shapes(variables))
  if wrong:
    raise ConfigError(
      'The parameters of the checkpoint do not fit the model of its '
      'configuration; was it written by another version of this program?\n'
      + '\n'.join(wrong)
    )
