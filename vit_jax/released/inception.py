"""Inception-v3 of FID: `pt_inception-2015-12-05-6726825d.pth` and the like.

pytorch-fid and torch-fidelity publish the same state dict of torch, made of the
graph that the authors of FID used. Of torchvision's Inception-v3 names or
shapes differ, and so would distances: it is refused.
"""

from collections.abc import Iterable, Mapping

import numpy as np

from vit_jax.released import mapping, shapes
from vit_jax.released.checkpoint import Released

# Whose names begin so, after any prefix, holds a model of this family.
BEGINNING = r'Conv2d_1a_3x3\.'
_CLASSES, _FEATURES = 1008, 2048
_SIDE, _GRID = 299, 8
# Of batch norm, those that training does not learn.
_STATISTICS = ('/mean', '/var')
# Theirs of our last modules, below the names that both have.
_LEAVES = {'conv': 'conv', 'norm': 'bn'}

# Input channels, features, height and width of a convolution.
Sizes = tuple[int, int, int, int]
_STEM = {
  'Conv2d_1a_3x3': (3, 32, 3, 3),
  'Conv2d_2a_3x3': (32, 32, 3, 3),
  'Conv2d_2b_3x3': (32, 64, 3, 3),
  'Conv2d_3b_1x1': (64, 80, 1, 1),
  'Conv2d_4a_3x3': (80, 192, 3, 3),
}


def _branch(
  name: str, inputs: int, sizes: Iterable[tuple[int, int, int]]
) -> dict[str, Sizes]:
  """Returns convolutions in turn, from the features and the size of each."""
  result = {}
  for i, (features, height, width) in enumerate(sizes, 1):
    result[f'{name}_{i}'] = (inputs, features, height, width)
    inputs = features
  return result


def _block_a(inputs: int, pooled: int) -> dict[str, Sizes]:
  double = ((64, 1, 1), (96, 3, 3), (96, 3, 3))
  return {
    'branch1x1': (inputs, 64, 1, 1),
    **_branch('branch5x5', inputs, ((48, 1, 1), (64, 5, 5))),
    **_branch('branch3x3dbl', inputs, double),
    'branch_pool': (inputs, pooled, 1, 1),
  }


def _block_b(inputs: int) -> dict[str, Sizes]:
  double = ((64, 1, 1), (96, 3, 3), (96, 3, 3))
  return {
    'branch3x3': (inputs, 384, 3, 3),
    **_branch('branch3x3dbl', inputs, double),
  }


def _block_c(inputs: int, narrow: int) -> dict[str, Sizes]:
  first, row, column = (narrow, 1, 1), (narrow, 1, 7), (narrow, 7, 1)
  double = (first, column, row, column, (192, 1, 7))
  return {
    'branch1x1': (inputs, 192, 1, 1),
    **_branch('branch7x7', inputs, (first, row, (192, 7, 1))),
    **_branch('branch7x7dbl', inputs, double),
    'branch_pool': (inputs, 192, 1, 1),
  }


def _block_d(inputs: int) -> dict[str, Sizes]:
  wide = ((192, 1, 1), (192, 1, 7), (192, 7, 1), (192, 3, 3))
  return {
    **_branch('branch3x3', inputs, ((192, 1, 1), (320, 3, 3))),
    **_branch('branch7x7x3', inputs, wide),
  }


def _block_e(inputs: int) -> dict[str, Sizes]:
  return {
    'branch1x1': (inputs, 320, 1, 1),
    'branch3x3_1': (inputs, 384, 1, 1),
    'branch3x3_2a': (384, 384, 1, 3),
    'branch3x3_2b': (384, 384, 3, 1),
    'branch3x3dbl_1': (inputs, 448, 1, 1),
    'branch3x3dbl_2': (448, 384, 3, 3),
    'branch3x3dbl_3a': (384, 384, 1, 3),
    'branch3x3dbl_3b': (384, 384, 3, 1),
    'branch_pool': (inputs, 192, 1, 1),
  }


_BLOCKS = {
  'Mixed_5b': _block_a(192, 32),
  'Mixed_5c': _block_a(256, 64),
  'Mixed_5d': _block_a(288, 64),
  'Mixed_6a': _block_b(288),
  'Mixed_6b': _block_c(768, 128),
  'Mixed_6c': _block_c(768, 160),
  'Mixed_6d': _block_c(768, 160),
  'Mixed_6e': _block_c(768, 192),
  'Mixed_7a': _block_d(768),
  'Mixed_7b': _block_e(1280),
  'Mixed_7c': _block_e(2048),
}


def of_model() -> dict[str, shapes.Shape]:
  """Returns the shape of every parameter and running statistic, by path."""
  convolutions = dict(_STEM)
  for block, branches in _BLOCKS.items():
    convolutions |= {f'{block}/{name}': x for name, x in branches.items()}
  result = {}
  for path, (inputs, features, height, width) in convolutions.items():
    result[f'{path}/conv/kernel'] = (height, width, inputs, features)
    for leaf in ('scale', 'bias', 'mean', 'var'):
      result[f'{path}/norm/{leaf}'] = (features,)
  return result | shapes.linear('head', (_FEATURES,), (_CLASSES,))


def slots() -> dict[str, mapping.Slot]:
  """Returns where the file has each of `of_model`."""
  names, found = {'head': 'fc'}, of_model()
  for path in found:
    module, _, last = path.rpartition('/')[0].rpartition('/')
    if module:
      names[f'{module}/{last}'] = f'{module}.{_LEAVES[last]}'.replace('/', '.')
  return {
    path: mapping.torch_slot(path, shape, names)
    for path, shape in found.items()
  }


def read(
  tensors: Mapping[str, np.ndarray], grid: shapes.Grid | None
) -> Released:
  """Returns the model of a file, from its tensors in float32.

  Args:
    tensors: by name, without a prefix.
    grid: not asked for: its images are always of 299 x 299 pixels.
  """
  del grid
  found = mapping.to_params(
    tensors, slots(), of_model(), 'the Inception-v3 of FID'
  )
  statistics = {
    path: found.pop(path) for path in list(found) if path.endswith(_STATISTICS)
  }
  return Released(
    dialect='inception',
    model={'name': 'inception_v3'},
    params=found,
    num_classes=_CLASSES,
    grid=(_GRID, _GRID),
    image_shape=(_SIDE, _SIDE, 3),
    notes=('Prepares pictures itself, as the graph does that it is from.',),
    statistics=statistics,
  )
