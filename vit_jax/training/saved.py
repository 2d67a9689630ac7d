"""What is on disk of a trained model: of a run, or a released checkpoint."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from vit_jax import config as config_lib
from vit_jax import released
from vit_jax.config import ConfigError
from vit_jax.training import checks, inputs, schema
from vit_jax.training.checkpoint import Checkpoints

# What may be overridden of a finished run: the rest made it what it is, or is
# of no use any more.
_MAY_CHANGE = (
  'batch_size', 'data.classes', 'data.max_broken', 'data.test.',
  'data.workers', 'eval.batch_size', 'mesh.', 'precision.',
)  # fmt: skip
# How images are prepared for a model that takes any number of patches, unless
# a person says otherwise.
_ANY_SIZE = 'resize(224)|value_range(-1, 1)'


@dataclasses.dataclass(frozen=True)
class Saved:
  """A trained model on the host.

  Attributes:
    path: where it was read from.
    config: of its run, with overrides; of a released checkpoint, one that
      says how it is evaluated.
    params: a tree of arrays; the moving average where the run keeps one.
    class_names: what the head tells apart.
    names_known: whether the checkpoint says so, or only how many there are.
    image_shape: height, width and channels of the images.
    step: that the parameters are from.
  """

  path: pathlib.Path
  config: ConfigDict
  params: dict[str, Any]
  class_names: tuple[str, ...]
  names_known: bool
  image_shape: tuple[int, int, int]
  step: int


def read(
  path: pathlib.Path,
  step: str | None = None,
  overrides: Sequence[str] = (),
  grid: tuple[int, int] | None = None,
) -> Saved:
  """Reads a trained model.

  Args:
    path: the workdir of a run, or a released checkpoint: an npz file, a
      safetensors file or its folder; see `vit_jax.released`.
    step: number of a run's checkpoint, 'best', or None for the newest.
    overrides: of the configuration, '--config.section.key=value'.
    grid: rows and columns of the position embeddings of a released
      checkpoint, where its tensors do not tell.

  Raises:
    ConfigError: there is no such checkpoint, it is not understood, or an
      override is of what training has settled.
    CheckpointError: it is damaged.
  """
  if path.is_file() or any(path.glob('*.safetensors')):
    return _of_released(path, step, overrides, grid)
  return _of_run(path, step, overrides)


def _of_run(
  workdir: pathlib.Path, step: str | None, overrides: Sequence[str]
) -> Saved:
  if step not in (None, 'best'):
    if not step.isdecimal():
      raise ConfigError(f"--step={step} is neither a number nor 'best'.")
    step = int(step)
  try:
    params, meta, step = read_parameters(workdir, step)
  except FileNotFoundError as error:
    raise ConfigError(str(error)) from error
  return Saved(
    workdir,
    _resolve(meta['config'], overrides),
    params,
    tuple(meta['class_names']),
    True,
    tuple(meta['image_shape']),
    step,
  )


def _of_released(
  path: pathlib.Path,
  step: str | None,
  overrides: Sequence[str],
  grid: tuple[int, int] | None,
) -> Saved:
  if step is not None:
    raise ConfigError(
      f'--step={step} chooses among the checkpoints of a run, but {path} is a '
      'released checkpoint. Leave it out.'
    )
  try:
    found = released.read(path, grid=grid)
  except (released.ReleasedError, OSError) as error:
    raise ConfigError(str(error)) from error
  # A run that nobody ran here: what evaluation asks for, and no data.
  if found.model['name'] not in schema.MODELS:
    raise ConfigError(
      f'{path} holds a model of the kind {found.model["name"]!r}. It can be '
      'inspected and converted, but not run here yet; those that can: '
      f'{", ".join(schema.MODELS)}.'
    )
  preprocess = found.preprocess or _ANY_SIZE
  data = dict(source='', split='test', preprocess=preprocess)
  config = dict(
    task=dict(name='classification'),
    model=dict(found.model),
    data=dict(train={**data, 'split': 'train'}, test=data),
    batch_size=64,
    total='1steps',
    optimizer=dict(name='sgd', learning_rate=1.0),
    schedule=dict(name='constant'),
    eval=dict(every='100%'),
    checkpoint=dict(every='100%'),
  )
  names = found.class_names
  if names is None:
    names = tuple(f'class {i}' for i in range(found.num_classes))
  config = _resolve(config, overrides)
  channels = found.image_shape[-1] if found.image_shape else 3
  record = {'image': np.zeros((512, 640, channels), np.uint8), 'label': 0}
  image = inputs.open_preprocess(config, 'test')(record, None)['image']
  return Saved(
    path,
    config,
    traverse_util.unflatten_dict(found.params, sep='/'),
    names,
    found.class_names is not None,
    image.shape,
    0,
  )


def _resolve(config: Any, overrides: Sequence[str]) -> ConfigDict:
  config = config_lib.resolve(config, overrides, schema.SCHEMA)
  _check_overrides(overrides)
  checks.check_values(config)
  return config


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
