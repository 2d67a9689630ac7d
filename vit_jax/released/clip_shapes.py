"""Shapes of CLIP models, from their sizes; see `shapes`."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_jax.released import mapping, shapes
from vit_jax.released.checkpoint import Released

# Running statistics of batch normalisation: no parameters.
_STATISTICS = ('/mean', '/var')
# Of a model and its text tower, those that are not only for training.
_FIELDS = ('name', 'width', 'image_head', 'text_head', 'initial_bias')
_TEXT_FIELDS = (
  'vocabulary_size', 'length', 'width', 'depth', 'mlp_dim', 'num_heads',
  'causal', 'pooling', 'activation', 'norm_epsilon',
)  # fmt: skip


def of_model(
  model: Mapping[str, Any], shape_of: shapes.ShapeOf
) -> dict[str, shapes.Shape]:
  """Returns the shape of every parameter and running statistic, by path.

  Args:
    model: the arguments of `vit_jax.models.clip.make`, and its name.
    shape_of: the parameters, for the sizes that are no fields of the model.
  """
  towers = {
    'image': _image(model['image'], lambda path: shape_of(f'image/{path}')),
    'text': (model['text']['width'], of_text(model['text'])),
  }
  result = {'logit_scale': ()}
  if model.get('initial_bias') is not None:
    result['logit_bias'] = ()
  for side, (features, tower) in towers.items():
    result |= {f'{side}/{path}': shape for path, shape in tower.items()}
    head = shapes.linear(f'{side}_projection', (features,), (model['width'],))
    if model[f'{side}_head'] == 'linear':
      del head[f'{side}_projection/bias']
    if model[f'{side}_head'] != 'none':
      result |= head
  return result


def _image(
  model: Mapping[str, Any], shape_of: shapes.ShapeOf
) -> tuple[int, dict[str, shapes.Shape]]:
  if model['name'] == 'modified_resnet':
    return _modified_resnet(model, shape_of)
  return shapes.without_head(model, shape_of)


def of_text(model: Mapping[str, Any]) -> dict[str, shapes.Shape]:
  """Returns the shapes of a text tower, by its own paths."""
  return {
    'embedding/embedding': (model['vocabulary_size'], model['width']),
    'position/embedding': (1, model['length'], model['width']),
    **shapes.encoder(model),
  }


def _modified_resnet(
  model: Mapping[str, Any], shape_of: shapes.ShapeOf
) -> tuple[int, dict[str, shapes.Shape]]:
  _, _, channels, _ = shapes.lookup(shape_of, 'stem/conv_1/kernel', 4)
  width, result = model['width'], {}

  def convolution(path, size, inputs, outputs):
    result[f'{path}/kernel'] = (size, size, inputs, outputs)

  def norm(path, features):
    for leaf in ('scale', 'bias', 'mean', 'var'):
      result[f'{path}/{leaf}'] = (features,)

  inputs = channels
  for i, outputs in enumerate((width // 2, width // 2, width), 1):
    convolution(f'stem/conv_{i}', 3, inputs, outputs)
    norm(f'stem/norm_{i}', outputs)
    inputs = outputs
  for i, units in enumerate(model['stages']):
    middle = width * 2**i
    for j in range(units):
      unit = f'stage_{i + 1}/unit_{j + 1:02d}'
      if j == 0:
        convolution(f'{unit}/projection', 1, inputs, 4 * middle)
        norm(f'{unit}/projection_norm', 4 * middle)
      convolution(f'{unit}/conv_1', 1, inputs, middle)
      convolution(f'{unit}/conv_2', 3, middle, middle)
      convolution(f'{unit}/conv_3', 1, middle, 4 * middle)
      for k, features in enumerate((middle, middle, 4 * middle), 1):
        norm(f'{unit}/norm_{k}', features)
      inputs = 4 * middle
  _, tokens, _ = shapes.lookup(shape_of, 'pooling/position/embedding', 3)
  result['pooling/position/embedding'] = (1, tokens, inputs)
  heads = (model['num_heads'], inputs // model['num_heads'])
  for name in ('query', 'key', 'value'):
    path = f'pooling/attention/{name}'
    result |= shapes.linear(path, (inputs,), heads)
  return inputs, result


def torch_slots(
  of_model: Mapping[str, shapes.Shape], names: Mapping[str, str]
) -> dict[str, mapping.Slot]:
  """Returns where a file of torch has each parameter and statistic."""
  slots = {}
  for path, shape in of_model.items():
    if path.endswith('position/embedding'):
      shape = shape[1:]
    if path.endswith('class_token'):
      shape = shape[2:]
    slots[path] = mapping.torch_slot(path, shape, names)
  return slots


def sizes(model: Mapping[str, Any], image: Mapping[str, Any]) -> dict[str, Any]:
  """Returns what of a configuration's section `model` says what is computed.

  Args:
    model: the section.
    image: the same of its image tower.
  """
  result = {name: model[name] for name in _FIELDS if name in model}
  text = {name: model['text'][name] for name in _TEXT_FIELDS}
  return {**result, 'image': dict(image), 'text': text}


def split(
  arrays: Mapping[str, np.ndarray],
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
  """Returns parameters and running statistics, by path."""
  statistics = {
    path: array for path, array in arrays.items() if path.endswith(_STATISTICS)
  }
  params = {path: x for path, x in arrays.items() if path not in statistics}
  return params, statistics


def joined(released: Released) -> dict[str, np.ndarray]:
  """Returns parameters and running statistics together; undoes `split`."""
  return {**released.params, **released.statistics}
