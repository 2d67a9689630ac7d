"""The task of a configuration, with its model."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from vit_jax.config import ConfigError
from vit_jax.data import tokenizer as tokenizer_lib
from vit_jax.training import schema


@dataclasses.dataclass(frozen=True)
class Known:
  """What the data of a run tells, which its checkpoints keep.

  Attributes:
    class_names: the label's meaning, by number; () where there are no labels.
    image_shape: height, width, channels after preprocessing.
    tokenizer: of texts, None where there are none.
  """

  class_names: tuple[str, ...]
  image_shape: tuple[int, int, int]
  tokenizer: tokenizer_lib.Tokenizer | None = None

  def meta(self) -> dict[str, Any]:
    """Returns what `of_meta` makes the same of, in types of JSON."""
    words = self.tokenizer
    return {
      'class_names': list(self.class_names),
      'image_shape': list(self.image_shape),
      'tokenizer': words
      and {
        'merges': [' '.join(pair) for pair in words.merges],
        'context_length': words.context_length,
      },
    }

  @classmethod
  def of_meta(cls, meta: Mapping[str, Any]) -> 'Known':
    """Returns what a checkpoint keeps."""
    words = meta.get('tokenizer')
    if words:
      merges = tuple(tuple(pair.split(' ')) for pair in words['merges'])
      words = tokenizer_lib.Tokenizer(merges, words['context_length'])
    return cls(tuple(meta['class_names']), tuple(meta['image_shape']), words)


def make_task(config: Any, known: Known, **supplied: Any) -> Any:
  """Returns the task of a configuration, with its model.

  Args:
    config: complete.
    known: what the data tells of itself.
    **supplied: what else tasks may want, see `vit_jax.tasks`.
  """
  model, task = config.model.to_dict(), config.task.to_dict()
  make_model = schema.MODELS[model.pop('name')]
  make = schema.TASKS[task.pop('name')]
  numbers = dict(
    num_classes=len(known.class_names),
    dtype=jnp.dtype(config.precision.compute),
    softmax_dtype=jnp.dtype(config.precision.softmax),
  )
  supplied = {**vars(known), **supplied}
  try:
    return make(
      model=make_model(**_wanted(make_model, numbers), **model),
      **_wanted(make, supplied),
      **task,
    )
  except ValueError as error:
    raise ConfigError(f'config.model or config.task: {error}') from error


def _wanted(user: Callable, supplied: Mapping[str, Any]) -> dict[str, Any]:
  """Returns what `user` has a parameter for."""
  names = inspect.signature(user).parameters
  return {name: supplied[name] for name in supplied if name in names}


def abstract_variables(task: Any, mesh: Mesh, key: jax.Array) -> Any:
  """Returns the shapes of all variables of a task."""
  try:
    with jax.set_mesh(mesh):
      return jax.eval_shape(task.init, key)
  except ValueError as error:
    raise ConfigError(f'config.model: {error}') from error
