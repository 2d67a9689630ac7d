"""A trained model that another one learns with, and that stays as it is.

A task says by its attribute `teacher` which of its keys holds the path. The
model's variables go into the state of the run, and what it is into the meta of
its checkpoints, so that whoever reads those does not need the other run.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from vit_jax import config as config_lib
from vit_jax.config import ConfigError, fields_of
from vit_jax.training import build, rules, saved, schema


@dataclasses.dataclass(frozen=True)
class Frozen:
  """The other model.

  Attributes:
    task: what it has learned.
    variables: on the host; None where they come from a checkpoint.
    meta: what `of_meta` makes the same task of.
    names_known: whether the names of its classes are, or only their number.
  """

  task: Any
  variables: Any
  meta: Mapping[str, Any]
  names_known: bool = False

  @property
  def identity(self) -> str:
    """A hash of model and variables; '' where no hash was kept."""
    return self.meta.get('identity', '')


def load(config: Any) -> Frozen | None:
  """Reads the model that a task names; None if it names none.

  Raises:
    ConfigError: there is no such model.
    CheckpointError: it is damaged.
  """
  key = getattr(schema.TASKS[config.task.name], 'teacher', None)
  if not key or not config.task[key]:
    return None
  try:
    found = saved.read(epath.Path(config.task[key]), grid=_grid(config.model))
  except ConfigError as error:
    raise ConfigError(f'config.task.{key}: {error}') from error
  # Not what it has learned with itself.
  others = {name: x for name, x in found.others.items() if name != 'frozen'}
  variables = {'params': found.params, **others}
  meta = {
    'config': found.config.to_dict(),
    **found.known.meta(),
    'frozen': found.teacher,
    'identity': _identity(found.config.model.to_dict(), variables),
  }
  task = build.make_task(
    found.config, found.known, frozen=of_meta(found.teacher)
  )
  return Frozen(task, variables, meta, found.names_known)


def check_classes(
  config: Any, frozen: Frozen | None, class_names: Sequence[str]
) -> None:
  """Raises ConfigError if a teacher's classes are not those of the data.

  Where either has no names, or another number of them, nothing is compared:
  the number is for the task to judge.

  Args:
    config: complete.
    frozen: what `load` gives of it.
    class_names: of the data, by label.
  """
  if frozen is None or not frozen.names_known:
    return
  taught = getattr(frozen.task, 'class_names', ())
  if len(taught) != len(class_names):
    return
  for label, (there, here) in enumerate(zip(taught, class_names)):
    if there != here:
      key = schema.TASKS[config.task.name].teacher
      raise ConfigError(
        f'config.task.{key}: class {label} of {config.task[key]} is {there!r}, '
        f'but of the data {here!r}. Name the same classes in the same order by '
        'config.data.classes. If these are two names of the same, take the '
        'names away: python -m vit_jax.convert TEACHER teacher.npz'
      )


def _grid(model: Any) -> tuple[int, int] | None:
  """Returns the rows and columns of codes that a model continues, if it does.

  A released discrete VAE takes images of any size, so it takes those of which
  it makes so many codes.
  """
  if model.name != 'dalle':
    return None
  grid = tuple(model.grid)
  # What else it may be, the model says best.
  return grid if len(grid) == 2 and min(grid) >= 1 else None


def _identity(model: Mapping[str, Any], variables: Any) -> str:
  """Returns a hash of a model: of its numbers and its variables.

  Numbers that are the defaults do not count, so that it stays the same when
  models learn more options.
  """
  defaults = fields_of(schema.MODELS[model['name']])
  own = {
    name: value
    for name, value in model.items()
    if name not in defaults or value != defaults[name].default
  }
  digest = hashlib.sha256(json.dumps(own, sort_keys=True).encode())
  for path, leaf in sorted(rules.by_path(variables).items()):
    array = np.ascontiguousarray(leaf)
    digest.update(f'{path} {array.dtype} {array.shape}'.encode())
    digest.update(array.view(np.uint8))
  return digest.hexdigest()


def of_meta(meta: Mapping[str, Any] | None) -> Frozen | None:
  """Returns the model of a checkpoint's meta, without its variables."""
  if not meta:
    return None
  config = config_lib.resolve(meta['config'], (), schema.SCHEMA)
  known = build.Known.of_meta(meta)
  task = build.make_task(config, known, frozen=of_meta(meta.get('frozen')))
  return Frozen(task, None, meta)
