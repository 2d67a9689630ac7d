"""What is on disk of a trained model: of a run, or a released checkpoint."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from vit_jax import config as config_lib
from vit_jax import released
from vit_jax.config import ConfigError
from vit_jax.training import checks, records, schema, texts
from vit_jax.training.build import Known
from vit_jax.training.checkpoint import Checkpoints

# What may be overridden of a finished run: the rest made it what it is, or is
# of no use any more.
_MAY_CHANGE = (
  'batch_size', 'data.classes', 'data.max_broken', 'data.test.',
  'data.text.templates', 'data.workers', 'eval.batch_size', 'mesh.',
  'precision.',
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
    others: the variables that no gradient changes, by collection.
    known: what is kept of the data that it was trained on.
    names_known: whether it says what its classes are, or only how many.
    step: that the parameters are from.
    teacher: meta of the model that it has learned with, see `frozen.of_meta`.
  """

  path: pathlib.Path
  config: ConfigDict
  params: dict[str, Any]
  others: dict[str, Any]
  known: Known
  names_known: bool
  step: int
  teacher: Mapping[str, Any] | None = None


def told(given: Any) -> dict[str, Any]:
  """Returns what is said of a released CLIP that its tensors do not tell.

  Args:
    given: has the names of `released.TOLD`, '' or None where nothing is said:
      options of a command, or `config.init`.
  """
  said = {name: getattr(given, name) for name in released.TOLD}
  return {name: x for name, x in said.items() if x not in (None, '')}


def read(
  path: pathlib.Path,
  step: str | None = None,
  overrides: Sequence[str] = (),
  grid: tuple[int, int] | None = None,
  told: Mapping[str, Any] | None = None,
) -> Saved:
  """Reads a trained model.

  Args:
    path: the workdir of a run, or a released checkpoint: an npz file, a
      safetensors file or its folder; see `vit_jax.released`.
    step: number of a run's checkpoint, 'best', or None for the newest.
    overrides: of the configuration, '--config.section.key=value'.
    grid: rows and columns of the position embeddings of a released
      checkpoint, or of the codes of a discrete VAE, where its tensors do not
      tell.
    told: what else they do not tell, see `vit_jax.released.read`.

  Raises:
    ConfigError: there is no such checkpoint, it is not understood, or an
      override is of what training has settled.
    CheckpointError: it is damaged.
  """
  if released.is_one(path):
    return _of_released(path, step, overrides, grid, told or {})
  if told:
    raise ConfigError(
      f'{", ".join(told)} cannot be told of {path}: a run knows its own. Leave '
      'it out.'
    )
  return _of_run(path, step, overrides)


def _of_run(
  workdir: pathlib.Path, step: str | None, overrides: Sequence[str]
) -> Saved:
  if step not in (None, 'best'):
    if not step.isdecimal():
      raise ConfigError(f"--step={step} is neither a number nor 'best'.")
    step = int(step)
  try:
    params, others, meta, step = read_variables(workdir, step)
  except FileNotFoundError as error:
    raise ConfigError(str(error)) from error
  return Saved(
    workdir,
    _resolve(meta['config'], overrides),
    params,
    others,
    Known.of_meta(meta),
    True,
    step,
    meta.get('frozen'),
  )


def _of_released(
  path: pathlib.Path,
  step: str | None,
  overrides: Sequence[str],
  grid: tuple[int, int] | None,
  told: Mapping[str, Any],
) -> Saved:
  if step is not None:
    raise ConfigError(
      f'--step={step} chooses among the checkpoints of a run, but {path} is a '
      'released checkpoint. Leave it out.'
    )
  try:
    found = released.read(path, grid=grid, told=told)
  except (released.ReleasedError, OSError) as error:
    raise ConfigError(str(error)) from error
  # A run that nobody ran here: what evaluation asks for, and no data.
  if found.model['name'] not in schema.MODELS:
    raise ConfigError(
      f'{path} holds a model of the kind {found.model["name"]!r}, which is for '
      'evaluate --network=FILE alone. Models that can be used otherwise: '
      f'{", ".join(schema.MODELS)}.'
    )
  preprocess = found.preprocess or _ANY_SIZE
  data = dict(source='', split='test', preprocess=preprocess)
  text = dict(tokenizer=found.tokenizer or '')
  config = dict(
    task=_task(found.model),
    model=dict(found.model),
    data=dict(train={**data, 'split': 'train'}, test=data, text=text),
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
  config = _resolve(config, overrides, ('data.text.tokenizer',))
  channels = found.image_shape[-1] if found.image_shape else 3
  record = {'image': np.zeros((512, 640, channels), np.uint8), 'label': 0}
  image = records.open_preprocess(config, 'test')(record, None)['image']
  words = None
  if config.task.name == 'contrastive' and config.data.text.tokenizer:
    words = texts.open_tokenizer(config, None)
  return Saved(
    path,
    config,
    _tree(found.params),
    {'batch_stats': _tree(found.statistics)} if found.statistics else {},
    Known(names, image.shape, words),
    found.class_names is not None,
    0,
  )


def _task(model: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the task of a released model."""
  if model['name'] == 'discrete_vae':
    return {'name': 'discrete_vae'}
  if model['name'] != 'clip':
    return {'name': 'classification'}
  sigmoid = model.get('initial_bias') is not None
  loss = 'sigmoid' if sigmoid else 'softmax'
  return {'name': 'contrastive', 'loss_function': loss}


def _tree(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
  return traverse_util.unflatten_dict(arrays, sep='/')


def _resolve(
  config: Any, overrides: Sequence[str], besides: Sequence[str] = ()
) -> ConfigDict:
  config = config_lib.resolve(config, overrides, schema.SCHEMA)
  _check_overrides(overrides, (*_MAY_CHANGE, *besides))
  checks.check_values(config)
  return config


def _check_overrides(
  overrides: Sequence[str], may_change: tuple[str, ...]
) -> None:
  """Raises ConfigError for what a finished run cannot be told any more."""
  for override in overrides:
    path, _ = config_lib.split_override(override)
    if not f'{path}.'.startswith(may_change):
      allowed = ', '.join(f'{key.rstrip(".")}' for key in may_change)
      raise ConfigError(
        f'--config.{path} cannot be changed after training. What can: '
        f'{allowed}.'
      )


def read_variables(
  workdir: pathlib.Path, step: int | str | None = None
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any], int]:
  """Returns what a run has learned: (parameters, others, meta, step).

  All on the host. The parameters are their moving average where the run keeps
  one; others are the variables that no gradient changes, by collection.

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
  params = tree.get('average') or tree['params']
  try:
    others, *_ = checkpoints.load(('others',), step)
  except KeyError:
    others = {'others': {}}
  return params, others['others'], meta, step


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
