"""MLP-Mixers as google-research has released them, in .npz files."""

import re
from collections.abc import Mapping

import numpy as np

from vit_jax.released import mapping, shapes
from vit_jax.released.checkpoint import Released, ReleasedError, describe

# Whose names begin so, after any prefix, holds a model of this family.
BEGINNING = r'(?:MixerBlock_\d|Mixer/encoder)'
_BLOCK = r'MixerBlock_\d{1,4}/'
# How the oldest files name what newer ones do.
_OLD = (
  (r'^embedding/', 'stem/'),
  (r'^Mixer/encoder_norm/', 'pre_head_layer_norm/'),
  (r'^Mixer/encoderblock_(\d+)/', r'MixerBlock_\1/'),
  (r'_mixing_phase_0/(kernel|bias)1$', r'_mixing/Dense_0/\1'),
  (r'_mixing_phase_0/(kernel|bias)2$', r'_mixing/Dense_1/\1'),
)


def _names(depth: int, second_norm: int = 1) -> dict[str, str]:
  """Returns their names of our modules."""
  names = {'embedding': 'stem', 'norm': 'pre_head_layer_norm'}
  for i in range(depth):
    ours, theirs = f'block_{i:02d}', f'MixerBlock_{i}'
    names |= {
      f'{ours}/token_norm': f'{theirs}/LayerNorm_0',
      f'{ours}/token_mlp/up': f'{theirs}/token_mixing/Dense_0',
      f'{ours}/token_mlp/down': f'{theirs}/token_mixing/Dense_1',
      f'{ours}/channel_norm': f'{theirs}/LayerNorm_{second_norm}',
      f'{ours}/channel_mlp/up': f'{theirs}/channel_mixing/Dense_0',
      f'{ours}/channel_mlp/down': f'{theirs}/channel_mixing/Dense_1',
    }
  return names


def _renewed(
  tensors: Mapping[str, np.ndarray],
) -> tuple[dict[str, np.ndarray], list[str]]:
  """Gives tensors of the oldest files the names and shapes of newer ones."""
  if not any(name.startswith('Mixer/') for name in tensors):
    return dict(tensors), []
  result = {}
  for name, tensor in tensors.items():
    if '_mixing_phase_0/' in name:
      tensor = tensor.squeeze()
    for pattern, new in _OLD:
      name = re.sub(pattern, new, name)
    result[name] = tensor
  if len(result) < len(tensors):
    raise ReleasedError('The file has tensors by old and by new names at once.')
  return result, ['Names are those of the oldest files.']


def read(
  tensors: Mapping[str, np.ndarray], grid: shapes.Grid | None
) -> Released:
  """Returns the model of a file, from its tensors in float32.

  Args:
    tensors: by name, without a prefix.
    grid: rows and columns of patches, where they are no square.
  """
  tensors, notes = _renewed(tensors)
  # Before Linen, modules of all kinds were numbered together.
  second_norm = 2 if 'MixerBlock_0/LayerNorm_2/scale' in tensors else 1
  depth = shapes.count(_BLOCK, tensors)
  names = _names(depth, second_norm)
  shape_of = shapes.shape_of(tensors, names)
  model = shapes.mixer_sizes(shape_of, depth)
  of_model = shapes.of_model(model, shape_of)
  slots = _slots(of_model, names)
  params = mapping.to_params(tensors, slots, of_model, _what(model))
  patches = params['block_00/token_mlp/up/kernel'].shape[0]
  grid = shapes.grid_of(patches, grid)
  return describe(
    'mixer',
    model,
    params,
    grid=grid,
    image_shape=shapes.image_shape(model, grid, shape_of),
    notes=tuple(notes),
  )


def _slots(
  of_model: Mapping[str, shapes.Shape], names: Mapping[str, str]
) -> dict[str, mapping.Slot]:
  return {
    path: mapping.slot(mapping.rename(path, names), shape)
    for path, shape in of_model.items()
  }


def _what(model: Mapping) -> str:
  return f'a Mixer of width {model["width"]} and {model["depth"]} blocks'


def write(released: Released, dialect: str) -> dict[str, np.ndarray]:
  """Returns the tensors of a file by name."""
  del dialect
  model, params = released.model, released.params
  of_model = shapes.of_model(model, shapes.shape_of(params))
  slots = _slots(of_model, _names(model['depth']))
  return mapping.to_tensors(params, slots, of_model, _what(model))
