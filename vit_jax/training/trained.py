"""A trained model, read back from the workdir of its run."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from vit_jax import config as config_lib
from vit_jax.config import ConfigError
from vit_jax.training import run as run_lib
from vit_jax.training import schema
from vit_jax.training.checkpoint import Checkpoints


@dataclasses.dataclass(frozen=True)
class Trained:
  """A model with its parameters and all that belongs to them.

  Attributes:
    config: of the run, with overrides.
    task: what was learned; holds the model and the names of its classes.
    variables: parameters (their average where the run keeps one), on the host.
    step: that they are from.
  """

  config: ConfigDict
  task: Any
  variables: dict[str, Any]
  step: int


def load(
  workdir: pathlib.Path, step: str | None = None, overrides: Sequence[str] = ()
) -> Trained:
  """Reads a trained model.

  Args:
    workdir: of the run.
    step: number of a checkpoint, 'best', or None for the newest.
    overrides: of the run's configuration, '--config.section.key=value'.

  Raises:
    ConfigError: there is no such checkpoint.
  """
  if step not in (None, 'best'):
    if not step.isdecimal():
      raise ConfigError(f"--step={step} is neither a number nor 'best'.")
    step = int(step)
  try:
    params, meta, step = read_parameters(workdir, step)
  except FileNotFoundError as error:
    raise ConfigError(f'{workdir} holds no such model: {error}') from error
  config = config_lib.resolve(meta['config'], overrides, schema.SCHEMA)
  task = run_lib.make_task(config, meta['class_names'], meta['image_shape'])
  return Trained(config, task, {'params': params}, step)


def read_parameters(
  workdir: pathlib.Path, step: int | str | None = None
) -> tuple[dict[str, Any], dict[str, Any], int]:
  """Returns what a run has learned, on the host: (parameters, meta, step).

  The parameters are their moving average where the run keeps one.
  """
  said = workdir / 'config.json'
  best = (
    json.loads(said.read_text())['checkpoint']['best'] if said.exists() else ''
  )
  checkpoints = Checkpoints(workdir / 'checkpoints', best=best)
  tree, meta, step = checkpoints.load(('params',), step)
  if meta['config']['optimizer']['average'] > 0:
    tree, meta, step = checkpoints.load(('average',), step)
  return tree.get('average') or tree['params'], meta, step
