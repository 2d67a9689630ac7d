"""Sizes of a model from its parameters, and shapes of these from the sizes.

What the modules of `vit_jax.models` say by how they compute, said again in
numbers, so that files can be checked without JAX. A test holds both together.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from vit_jax.released import mapping
from vit_jax.released.checkpoint import ReleasedError

Shape = tuple[int, ...]
Grid = tuple[int, int]
# Returns the shape of a parameter by our path, None if there is none.
ShapeOf = Callable[[str], Shape | None]


def shape_of(
  tensors: Mapping[str, np.ndarray], names: Mapping[str, str] | None = None
) -> ShapeOf:
  """Returns what finds shapes by our paths.

  Args:
    tensors: by name.
    names: of our modules in `tensors`, where they are not ours.
  """

  def find(path: str) -> Shape | None:
    tensor = tensors.get(mapping.rename(path, names or {}))
    return None if tensor is None else tensor.shape

  return find


def lookup(shape_of: ShapeOf, path: str, rank: int) -> Shape:
  """Returns a shape that tells sizes; it has to be there."""
  shape = shape_of(path)
  if shape is None or len(shape) != rank or 0 in shape:
    found = 'it is not there' if shape is None else f'its shape is {shape}'
    raise ReleasedError(
      f'The sizes of the model cannot be told without {path} (by the name that '
      f'it has in this package), an array of {rank} axes, and {found}.'
    )
  return shape


def count(pattern: str, names: Iterable[str]) -> int:
  """Returns how many different beginnings of names match."""
  return len({m[0] for name in names if (m := re.match(pattern, name))})


def units(pattern: str, names: Iterable[str]) -> tuple[int, ...]:
  """Returns the number of units of each stage of a ResNet.

  Args:
    pattern: its two groups are the stage and the unit.
    names: of all parameters.
  """
  found = {m.groups() for name in names if (m := re.match(pattern, name))}
  stages = sorted({int(stage) for stage, _ in found})
  return tuple(sum(int(s) == stage for s, _ in found) for stage in stages)


def grid_of(patches: int, given: Grid | None) -> Grid:
  """Returns rows and columns of so many patches.

  Raises:
    ReleasedError: `given` is another number, or it was not given and the grid
      cannot be square.
  """
  if given:
    if given[0] * given[1] != patches:
      raise ReleasedError(
        f'A grid of {given[0]}x{given[1]} is {given[0] * given[1]} patches, '
        f'but the file has position embeddings of {patches}.'
      )
    return given
  side = math.isqrt(patches)
  if side * side != patches:
    raise ReleasedError(
      f'The file has position embeddings of {patches} patches, which are no '
      'square. Say how many rows and columns they are, such as grid=(rows, '
      'columns), or --grid=ROWSxCOLUMNS on a command line.'
    )
  return side, side


def patch_sizes(shape_of: ShapeOf) -> dict[str, int]:
  """Returns `patch_size` and `width`, by the kernel of the embedding."""
  height, patch, _, width = lookup(shape_of, 'embedding/kernel', 4)
  if height != patch:
    raise ReleasedError(
      f'Patches are {height}x{patch} pixels. Only square ones are known.'
    )
  return {'patch_size': patch, 'width': width}


def vit_sizes(
  shape_of: ShapeOf, depth: int, stages: tuple[int, ...] = ()
) -> dict[str, Any]:
  """Returns the fields of a ViT that its parameters determine.

  Args:
    shape_of: the parameters.
    depth: number of blocks.
    stages: units of each stage of a hybrid's ResNet.
  """
  block = 'encoder/block_00'
  _, heads, _ = lookup(shape_of, f'{block}/attention/query/kernel', 3)
  _, mlp_dim = lookup(shape_of, f'{block}/mlp/up/kernel', 2)
  pooling = 'gap'
  if shape_of('class_token') is not None:
    pooling = 'token'
  elif shape_of('pooling/probe') is not None:
    pooling = 'map'
  representation = 0
  if shape_of('pre_logits/bias') is not None:
    (representation,) = lookup(shape_of, 'pre_logits/bias', 1)
  model = {
    'name': 'vit',
    **patch_sizes(shape_of),
    'depth': depth,
    'mlp_dim': mlp_dim,
    'num_heads': heads,
    'pooling': pooling,
    'representation_size': representation,
  }
  if shape_of('backbone/root/kernel') is not None:
    model['backbone_stages'] = stages
    model['backbone_width_factor'] = _width_factor(shape_of)
  return model


def resnet_sizes(
  shape_of: ShapeOf, stages: tuple[int, ...], form: str
) -> dict[str, Any]:
  """Returns the fields of a ResNet that its parameters determine."""
  return {
    'name': 'resnet',
    'stages': stages,
    'width_factor': _width_factor(shape_of),
    'form': form,
  }


def mixer_sizes(shape_of: ShapeOf, depth: int) -> dict[str, Any]:
  """Returns the fields of a Mixer that its parameters determine."""
  token, channel = (
    lookup(shape_of, f'block_00/{name}_mlp/up/kernel', 2)[1]
    for name in ('token', 'channel')
  )
  return {
    'name': 'mixer',
    **patch_sizes(shape_of),
    'depth': depth,
    'token_mlp_dim': token,
    'channel_mlp_dim': channel,
  }


def _width_factor(shape_of: ShapeOf) -> float:
  return lookup(shape_of, 'backbone/root/kernel', 4)[-1] / 64


def stride(model: Mapping[str, Any]) -> int:
  """Returns how many pixels of the image lie between two patches."""
  stages = model.get('backbone_stages', model.get('stages'))
  backbone = 1 if stages is None else 4 * 2 ** max(len(stages) - 1, 0)
  return backbone * model.get('patch_size', 1)


def image_shape(
  model: Mapping[str, Any], grid: Grid | None, shape_of: ShapeOf
) -> tuple[int, int, int] | None:
  """Returns height, width and channels of the images of a grid of patches."""
  if grid is None:
    return None
  return grid[0] * stride(model), grid[1] * stride(model), _channels(shape_of)


def _channels(shape_of: ShapeOf) -> int:
  has_backbone = shape_of('backbone/root/kernel') is not None
  first = 'backbone/root' if has_backbone else 'embedding'
  return lookup(shape_of, f'{first}/kernel', 4)[2]


def of_model(model: Mapping[str, Any], shape_of: ShapeOf) -> dict[str, Shape]:
  """Returns the shape that every parameter should have, by path.

  Args:
    model: see `Released`; `name` says which.
    shape_of: the parameters, for the sizes that are no fields of the model:
      channels of images, classes, and rows of position embeddings.
  """
  features, shapes = without_head(model, shape_of)
  if shape_of('head/bias') is not None:
    classes = lookup(shape_of, 'head/bias', 1)
    shapes |= linear('head', (features,), classes)
  return shapes


def without_head(
  model: Mapping[str, Any], shape_of: ShapeOf
) -> tuple[int, dict[str, Shape]]:
  """Returns the length of the features, and what `of_model` does but the head.

  Args:
    model: see `of_model`.
    shape_of: see `of_model`.
  """
  shapes = {'vit': _vit, 'resnet': _resnet, 'mixer': _mixer}[model['name']]
  return shapes(model, shape_of)


def linear(path: str, inputs: Shape, outputs: Shape) -> dict[str, Shape]:
  return {f'{path}/kernel': (*inputs, *outputs), f'{path}/bias': outputs}


def norm(path: str, width: int) -> dict[str, Shape]:
  return {f'{path}/scale': (width,), f'{path}/bias': (width,)}


def mlp(path: str, width: int, hidden: int) -> dict[str, Shape]:
  up = linear(f'{path}/up', (width,), (hidden,))
  return up | linear(f'{path}/down', (hidden,), (width,))


def attention(path: str, width: int, heads: int) -> dict[str, Shape]:
  split = (heads, width // heads)
  shapes = linear(f'{path}/out', split, (width,))
  for name in ('query', 'key', 'value'):
    shapes |= linear(f'{path}/{name}', (width,), split)
  return shapes


def encoder(model: Mapping[str, Any]) -> dict[str, Shape]:
  """Returns the shapes of a transformer, and of a pooling by attention.

  Args:
    model: the fields of a ViT or of a text tower.
  """
  width, mlp_dim = model['width'], model['mlp_dim']
  heads, shapes = model['num_heads'], {}
  for i in range(model['depth']):
    block = f'encoder/block_{i:02d}'
    shapes |= norm(f'{block}/attention_norm', width)
    shapes |= attention(f'{block}/attention', width, heads)
    shapes |= norm(f'{block}/mlp_norm', width)
    shapes |= mlp(f'{block}/mlp', width, mlp_dim)
  shapes |= norm('encoder/norm', width)
  if model['pooling'] == 'map':
    shapes['pooling/probe'] = (1, 1, width)
    shapes |= attention('pooling/attention', width, heads)
    shapes |= norm('pooling/norm', width)
    shapes |= mlp('pooling/mlp', width, mlp_dim)
  return shapes


def _vit(
  model: Mapping[str, Any], shape_of: ShapeOf
) -> tuple[int, dict[str, Shape]]:
  channels, shapes = _channels(shape_of), {}
  patch, width = model['patch_size'], model['width']
  if model.get('backbone_stages') is not None:
    factor = model['backbone_width_factor']
    channels, shapes = _backbone(
      model['backbone_stages'], factor, 'post_activation', channels
    )
  shapes |= linear('embedding', (patch, patch, channels), (width,))
  if not model.get('patch_bias', True):
    del shapes['embedding/bias']
  if model.get('pre_norm', False):
    shapes |= norm('pre_norm', width)
  if model['pooling'] == 'token':
    shapes['class_token'] = (1, 1, width)
  if model['position'] == 'learned':
    _, tokens, _ = lookup(shape_of, 'position/embedding', 3)
    shapes['position/embedding'] = (1, tokens, width)
  shapes |= encoder(model)
  representation = model['representation_size']
  if representation == -1:
    representation = width
  if representation:
    shapes |= linear('pre_logits', (width,), (representation,))
  return representation or width, shapes


def _resnet(
  model: Mapping[str, Any], shape_of: ShapeOf
) -> tuple[int, dict[str, Shape]]:
  return _backbone(
    model['stages'], model['width_factor'], model['form'], _channels(shape_of)
  )


def _backbone(
  stages: tuple[int, ...], factor: float, form: str, channels: int
) -> tuple[int, dict[str, Shape]]:
  post, width = form == 'post_activation', int(64 * factor)
  shapes = {'backbone/root/kernel': (7, 7, channels, width)}
  if post:
    shapes |= norm('backbone/root_norm', width)
  inputs = width
  for i, length in enumerate(stages):
    middle = width * 2**i
    for j in range(length):
      unit = f'backbone/stage_{i + 1}/unit_{j + 1:02d}'
      sides = (
        (1, inputs, middle),
        (3, middle, middle),
        (1, middle, 4 * middle),
      )
      for k, (side, before, after) in enumerate(sides, 1):
        shapes[f'{unit}/conv_{k}/kernel'] = (side, side, before, after)
        shapes |= norm(f'{unit}/norm_{k}', after if post else before)
      if j == 0:
        shapes[f'{unit}/projection/kernel'] = (1, 1, inputs, 4 * middle)
        if post:
          shapes |= norm(f'{unit}/projection_norm', 4 * middle)
      inputs = 4 * middle
  if not post:
    shapes |= norm('backbone/norm', inputs)
  return inputs, shapes


def _mixer(
  model: Mapping[str, Any], shape_of: ShapeOf
) -> tuple[int, dict[str, Shape]]:
  patch, width = model['patch_size'], model['width']
  tokens, _ = lookup(shape_of, 'block_00/token_mlp/up/kernel', 2)
  shapes = linear('embedding', (patch, patch, _channels(shape_of)), (width,))
  for i in range(model['depth']):
    block = f'block_{i:02d}'
    shapes |= norm(f'{block}/token_norm', width)
    shapes |= mlp(f'{block}/token_mlp', tokens, model['token_mlp_dim'])
    shapes |= norm(f'{block}/channel_norm', width)
    shapes |= mlp(f'{block}/channel_mlp', width, model['channel_mlp_dim'])
  return width, shapes | norm('norm', width)
