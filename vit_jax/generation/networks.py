"""Trained models as what looks at pictures, for `evaluation`."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from vit_jax.config import ConfigError
from vit_jax.evaluation import few_shot, picture_quality
from vit_jax.training import inputs, records, trained
from vit_jax.training import mesh as mesh_lib

# Pictures that go through the model at a time, at most.
_BATCH = 64


def of_trained(model: trained.Trained) -> picture_quality.Network:
  """Returns a model as a network of features, and of classes if it has them.

  Features are those of images for a model of images and texts, and otherwise
  what its head sees, 'pooled'.

  Raises:
    ConfigError: it gives no features of images.
  """
  task = model.task
  if hasattr(task, 'encode_image'):

    def features(variables, image):
      return task.encode_image(variables, image)[0]
  elif hasattr(task, 'intermediates'):

    def features(variables, image):
      found = task.intermediates(variables, image)
      return few_shot.feature_of(found, 'pooled')
  else:
    raise ConfigError(
      f'A {model.config.model.name} trained for {model.config.task.name} gives '
      'no features of images. Give a classifier or a CLIP.'
    )
  return picture_quality.Network(
    f'{model.config.model.name}_{model.config.task.name}',
    _on_pictures(model, features),
    _on_pictures(model, task.predict) if hasattr(task, 'predict') else None,
  )


def _on_pictures(
  model: trained.Trained, function: Callable[[Any, jax.Array], jax.Array]
) -> Callable[[Sequence[np.ndarray]], np.ndarray]:
  """Returns a function of pictures, uint8, that gives a row for each."""
  compiled = jax.jit(function)
  transform = records.open_preprocess(model.config, 'test')

  def apply(images: Sequence[np.ndarray]) -> np.ndarray:
    size, found = model.whole_batch(min(_BATCH, len(images))), []
    for start in range(0, len(images), size):
      some = images[start : start + size]
      # Of one shape, the last as well, so that it is compiled once.
      batch = np.zeros((size, *model.task.image_shape), np.float32)
      for row, image in enumerate(some):
        prepared = transform({'image': image}, None)['image']
        batch[row] = inputs.with_channels(prepared, model.task.image_shape)
      with jax.set_mesh(model.mesh):
        on_devices = mesh_lib.to_mesh({'image': batch}, model.mesh)['image']
        rows = compiled(model.variables, on_devices)
      found.append(np.asarray(jax.device_get(rows), np.float32)[: len(some)])
    return np.concatenate(found)

  return apply
