"""ResNets as google-research has released them, in .npz files.

'bit' are the names of the published BiT models (pre-activation), 'big_vision'
those that big_vision gives to both forms. Hybrids have the latter as well.
"""

import re
import typing
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from vit_jax.released import mapping, shapes
from vit_jax.released.checkpoint import Released, describe, require

# Whose names begin so, after any prefix, holds a model of this family.
BEGINNING = r'(?:resnet/root_block|root_block/conv_root|conv_root)/'
# In some published files the convolutions are numbered.
_NUMBERED = re.compile(r'/standardized_conv2d_\d+/')


class Names(typing.NamedTuple):
  """How a kind of file names modules.

  Attributes:
    unit: what those of a unit begin with, from the numbers of stage and unit.
    modules: theirs by ours, of a unit.
    others: theirs by ours, outside of units.
    norm_rank: group norms are stored as [C], or as [1, 1, 1, C].
  """

  unit: str
  modules: dict[str, str]
  others: dict[str, str]
  norm_rank: int

  def units(self, names: Iterable[str]) -> tuple[int, ...]:
    """Returns how many units each stage of a file has."""
    pattern = re.sub(r'\{.*?\}', r'(\\d{1,4})', self.unit) + '/'
    return shapes.units(pattern, names)

  def table(self, stages: Sequence[int]) -> dict[str, str]:
    """Returns the name of each of our modules."""
    table = dict(self.others)
    for stage, length in enumerate(stages, 1):
      for unit in range(1, length + 1):
        theirs = self.unit.format(stage, unit)
        ours = f'backbone/stage_{stage}/unit_{unit:02d}'
        table |= {
          f'{ours}/{m}': f'{theirs}/{n}' for m, n in self.modules.items()
        }
    return table

  def stored(self, path: str, shape: shapes.Shape) -> shapes.Shape:
    """Returns the shape that a file has of a parameter."""
    if path.startswith('backbone/') and len(shape) == 1:
      return (1,) * (self.norm_rank - 1) + shape
    return shape


_BIG_VISION = {
  'projection': 'conv_proj',
  'projection_norm': 'gn_proj',
  **{f'conv_{i}': f'conv{i}' for i in (1, 2, 3)},
  **{f'norm_{i}': f'gn{i}' for i in (1, 2, 3)},
}
POST_ACTIVATION = Names(
  'block{}/unit{}',
  _BIG_VISION,
  {'backbone/root': 'conv_root', 'backbone/root_norm': 'gn_root'},
  norm_rank=1,
)
_PRE_ACTIVATION = Names(
  'block{}/unit{:02d}',
  _BIG_VISION,
  {'backbone/root': 'root_block/conv_root', 'backbone/norm': 'norm-pre-head'},
  norm_rank=4,
)
_BIT = Names(
  'resnet/block{}/unit{:02d}',
  {
    'projection': 'a/proj/standardized_conv2d',
    **{f'conv_{i}': f'{x}/standardized_conv2d' for i, x in enumerate('abc', 1)},
    **{f'norm_{i}': f'{x}/group_norm' for i, x in enumerate('abc', 1)},
  },
  {
    'backbone/root': 'resnet/root_block/standardized_conv2d',
    'backbone/norm': 'resnet/group_norm',
    'head': 'resnet/head/conv2d',
  },
  norm_rank=1,
)


def _slots(
  of_model: Mapping[str, shapes.Shape], names: Names, stages: Sequence[int]
) -> dict[str, mapping.Slot]:
  """Returns where a file has each parameter."""
  table, slots = names.table(stages), {}
  for path, shape in of_model.items():
    name = mapping.rename(path, table)
    view = names.stored(path, shape)
    if names is _BIT:
      name = name.replace('group_norm/scale', 'group_norm/gamma')
      name = name.replace('group_norm/bias', 'group_norm/beta')
      if path == 'head/kernel':
        view = (1, 1, *shape)
    slots[path] = mapping.slot(name, view)
  return slots


def read(
  tensors: Mapping[str, np.ndarray], grid: shapes.Grid | None
) -> Released:
  """Returns the model of a file, from its tensors in float32.

  Args:
    tensors: by name, without a prefix.
    grid: rows and columns of the feature map, None for any.
  """
  notes = []
  if any(_NUMBERED.search(name) for name in tensors):
    tensors = {
      _NUMBERED.sub('/standardized_conv2d/', name): tensor
      for name, tensor in tensors.items()
    }
    notes.append('Convolutions are numbered.')
  names = _names_of(tensors)
  stages = names.units(tensors)
  shape_of = shapes.shape_of(tensors, names.table(stages))
  form = 'post' if names.others is POST_ACTIVATION.others else 'pre'
  model = shapes.resnet_sizes(shape_of, stages, f'{form}_activation')
  of_model = shapes.of_model(model, shape_of)
  params = mapping.to_params(
    tensors, _slots(of_model, names, stages), of_model, _what(model)
  )
  if grid is None:
    notes.append('Any size of image will do; the file does not say which.')
  return describe(
    'bit' if names is _BIT else 'big_vision',
    model,
    params,
    grid=grid,
    image_shape=shapes.image_shape(model, grid, shape_of),
    notes=tuple(notes),
  )


def _names_of(tensors: Mapping[str, np.ndarray]) -> Names:
  if any(name.startswith('resnet/') for name in tensors):
    return _BIT
  if any(name.startswith('root_block/') for name in tensors):
    return _PRE_ACTIVATION
  root = tensors.get('gn_root/scale')
  return POST_ACTIVATION._replace(norm_rank=1 if root is None else root.ndim)


def _what(model: Mapping) -> str:
  return f'a {model["form"]} ResNet of stages {model["stages"]}'


def write(released: Released, dialect: str) -> dict[str, np.ndarray]:
  """Returns the tensors of a file by name; 'bit' or 'big_vision'.

  Raises:
    ReleasedError: the dialect cannot express this model.
  """
  model, params = released.model, released.params
  if dialect == 'bit':
    require(model, dialect, form=('pre_activation',))
    names, prefix = _BIT, ''
  else:
    post = model['form'] == 'post_activation'
    names, prefix = POST_ACTIVATION if post else _PRE_ACTIVATION, 'params/'
  of_model = shapes.of_model(model, shapes.shape_of(params))
  slots = _slots(of_model, names, model['stages'])
  tensors = mapping.to_tensors(params, slots, of_model, _what(model))
  return {prefix + name: tensor for name, tensor in tensors.items()}
