"""Values of a configuration that cannot work, found before it allocates.

What only one part can judge, that part checks; here is what a number may be,
and what has to fit between sections.
"""

import importlib.util
import math
from collections.abc import Iterable
from typing import Any

from jax.sharding import Mesh

from vit_jax.config import ConfigError, amount, did_you_mean
from vit_jax.models import gradient_scale
from vit_jax.training import mesh as mesh_lib

_COUNT = ('1 or more', lambda x: x >= 1)
_NOT_NEGATIVE = ('0 or more', lambda x: 0 <= x < math.inf)
_POSITIVE = ('more than 0', lambda x: 0 < x < math.inf)
_SHARE = ('0 or more, and less than 1', lambda x: 0 <= x < 1)
# What numbers may be, by the path of their key.
_RANGES = {
  'seed': ('0 to 2**32 - 1', lambda x: 0 <= x < 2**32),
  'batch_size': _COUNT,
  'data.workers': _NOT_NEGATIVE,
  'data.max_broken': _SHARE,
  'checkpoint.keep': _COUNT,
  'mesh.fsdp_minimum_mib': _NOT_NEGATIVE,
  'optimizer.accumulate': _COUNT,
  'optimizer.average': _SHARE,
  'optimizer.b1': _SHARE,
  'optimizer.b2': _SHARE,
  'optimizer.b2_cap': _SHARE,
  'optimizer.clip_norm': _NOT_NEGATIVE,
  'optimizer.compression_rank': _NOT_NEGATIVE,
  'optimizer.decay_exponent': _POSITIVE,
  'optimizer.epsilon': _POSITIVE,
  'optimizer.learning_rate': _POSITIVE,
  'optimizer.momentum': _SHARE,
  'optimizer.weight_decay': _NOT_NEGATIVE,
  'schedule.final': _NOT_NEGATIVE,
}


def check_values(config: Any) -> None:
  """Raises ConfigError for a number or a length that cannot be meant."""
  for path, (expected, holds) in _RANGES.items():
    *sections, name = path.split('.')
    section = config[sections[0]] if sections else config
    # None is chosen later, or means that there is none.
    if section.get(name) is not None and not holds(section[name]):
      raise ConfigError(
        f'config.{path} is {section[name]}, expected {expected}.'
      )
  intervals = {
    'log_every': config.log_every,
    'eval.every': config.eval.every,
    'checkpoint.every': config.checkpoint.every,
  }
  for path, every in intervals.items():
    if not amount(every)[0]:
      raise ConfigError(
        f'config.{path} is {every!r}, expected more than 0. For once, at the '
        "end, write '100%'."
      )


def check_batches(config: Any, mesh: Mesh) -> None:
  """Raises ConfigError if batches cannot be split over the devices."""
  shards = mesh_lib.batch_shards(mesh)
  micro = config.optimizer.accumulate or 1
  parts = shards * micro
  if config.batch_size % parts:
    raise ConfigError(
      f'config.batch_size is {config.batch_size}, which cannot be split over '
      f'{shards} devices'
      + (f' and {micro} micro-batches' if micro > 1 else '')
      + f': use a multiple of {parts}.'
    )
  groups = mesh.devices.reshape(shards, -1)
  if any(len({d.process_index for d in group}) > 1 for group in groups):
    raise ConfigError(
      f'config.mesh.tensor is {mesh.shape["tensor"]}, which spans several '
      'processes, but each of them reads its own part of a batch. Use at most '
      'the devices of one process, and fsdp for the rest.'
    )
  evaluated = config.eval.batch_size
  if evaluated is not None and (evaluated < 1 or evaluated % shards):
    raise ConfigError(
      f'config.eval.batch_size is {evaluated}, which cannot be split over '
      f'{shards} devices: use a multiple of {shards}.'
    )


def check_accumulation(config: Any, task: Any, variables: Any) -> None:
  """Raises ConfigError if micro-batches would not give what one batch gives."""
  whole = hasattr(task, 'loss_of_features')
  if config.optimizer.accumulate > 1 and whole and 'batch_stats' in variables:
    raise ConfigError(
      f'config.optimizer.accumulate is {config.optimizer.accumulate}, but the '
      'model has batch norm, which would see only parts of a batch. Use 1, and '
      'more devices or a smaller batch, or a model without batch norm.'
    )
  if config.optimizer.average and 'batch_stats' in variables:
    raise ConfigError(
      f'config.optimizer.average is {config.optimizer.average}, but the model '
      'has batch norm, whose statistics are not those of averaged parameters. '
      'Use 0, or a model without batch norm.'
    )


def check_compression(config: Any, task: Any, variables: Any) -> None:
  """Raises ConfigError if replicas cannot compute gradients by themselves."""
  if not config.optimizer.compression_rank:
    return
  why = ''
  if hasattr(task, 'loss_of_features'):
    why = f'the loss of {config.task.name} compares all examples of a batch'
  elif 'batch_stats' in variables:
    why = 'the model has batch norm, whose statistics are those of a batch'
  if why:
    raise ConfigError(
      'config.optimizer.compression_rank is '
      f'{config.optimizer.compression_rank}, but {why}, of which replicas see '
      'only parts. Use 0, which sends whole gradients.'
    )
  if config.mesh.split_optimizer:
    raise ConfigError(
      'config.mesh.split_optimizer=True scatters whole gradients over the '
      'mesh, which config.optimizer.compression_rank is there to avoid: use '
      'one of them.'
    )


def check_precision(config: Any, variables: Any) -> None:
  """Raises ConfigError if float16 would lose gradients."""
  if config.precision.compute == 'float16' and not gradient_scale.of(variables):
    raise ConfigError(
      f"config.precision.compute is 'float16', but {config.model.name} does "
      "not scale its gradients, of which most would be lost: use 'bfloat16', "
      "or the model 'dalle'."
    )


def check_views(config: Any, batch: Iterable[str]) -> None:
  """Raises ConfigError for a second view that the task does not look at."""
  for name in ('train', 'test'):
    if config.data[name].second_view and 'view' not in batch:
      raise ConfigError(
        f'config.data.{name}.second_view is set, but {config.task.name} looks '
        'at one view of an image: leave it out.'
      )


def check_best(best: str, known: Iterable[str]) -> None:
  """Raises ConfigError if `config.checkpoint.best` is never measured.

  Args:
    best: a figure such as 'test/accuracy', '' for none.
    known: figures that evaluation gives.
  """
  known = list(known)
  if best and best not in known:
    raise ConfigError(
      f'config.checkpoint.best is {best!r}, which evaluation does not measure.'
      f'{did_you_mean(best, known)}'
    )


def check_init(init: Any) -> None:
  """Raises ConfigError if `config.init` contradicts itself.

  Whether its path holds a model is seen when a run starts: one that goes on
  from a checkpoint of its own no longer needs it.
  """
  if init.fresh and not init.path:
    raise ConfigError(
      f'config.init.fresh is {init.fresh}, but every parameter starts fresh '
      'without config.init.path. Name the run or the checkpoint to start from.'
    )
  grid = init.grid
  if grid and (len(grid) != 2 or not all(isinstance(n, int) for n in grid)):
    raise ConfigError(
      f'config.init.grid is {grid!r}, expected rows and columns of patches, '
      'such as (14, 14).'
    )


def check_wandb(project: str) -> None:
  """Raises ConfigError if figures cannot go where `config.wandb` says."""
  if project and importlib.util.find_spec('wandb') is None:
    raise ConfigError(
      f'config.wandb is {project!r}, but the package is not installed: run '
      "'pip install wandb', or leave config.wandb out."
    )
