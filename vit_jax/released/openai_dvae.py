"""The discrete VAE of DALL-E as OpenAI has released it.

Theirs are two files, encoder.pkl and decoder.pkl: whole modules of torch, of
which only the tensors are read. The same names come as state dicts in .npz or
.safetensors files. A folder holds both; a single file has them with 'encoder.'
and 'decoder.' before their names.
"""

import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from vit_jax.released import archive, mapping, shapes
from vit_jax.released.checkpoint import Released, ReleasedError, require

# Whose names begin so, after any prefix, holds a model of this family.
BEGINNING = r'encoder\.blocks\.input\.'
# What a folder may hold, the best first.
_SUFFIXES = ('.safetensors', '.npz', '.pkl')
# What a pickled module puts around the names of its modules and parameters.
_OF_MODULES = re.compile(r'\b(?:_modules|_parameters)\.')
# Their classes have no other.
_GROUPS, _STEM, _KERNEL = 4, 7, 3
_SIDES = ('encoder', 'decoder')
# Of the model, those that say what it computes.
FIELDS = (
  'width', 'blocks_per_group', 'groups', 'vocabulary_size', 'code_width',
  'stem_size', 'encoder_kernel', 'patch_size', 'channels', 'pixel_mean',
  'pixel_std', 'quantization',
)  # fmt: skip
# Of the images that they were trained on; any multiple of 8 will do.
_SIDE = 256


def files(path: pathlib.Path) -> dict[str, pathlib.Path] | None:
  """Returns the files of encoder and decoder in a folder, if it has both."""
  for suffix in _SUFFIXES:
    found = {side: path / f'{side}{suffix}' for side in _SIDES}
    if all(file.is_file() for file in found.values()):
      return found
  return None


def joined(
  parts: Mapping[str, pathlib.Path],
  read: Callable[[pathlib.Path], Mapping[str, np.ndarray]],
) -> dict[str, np.ndarray]:
  """Returns the tensors of `files` by the names of a single file.

  Args:
    parts: by side, 'encoder' and 'decoder'.
    read: returns the tensors of a file.
  """
  result = {}
  for side, file in parts.items():
    for name, tensor in read(file).items():
      name = _OF_MODULES.sub('', name)
      before, blocks, rest = name.rpartition('blocks.')
      # What does not belong to the model keeps its name, apart from others.
      name = f'{side}.{blocks}{rest}' if blocks else f'{side}/{before}{rest}'
      result[name] = tensor
  return result


def fields(model: Mapping[str, Any]) -> dict[str, Any]:
  """Returns those fields of a discrete VAE that say what it computes."""
  return {name: model[name] for name in ('name', *FIELDS)}


def stride(model: Mapping[str, Any]) -> int:
  """Returns how many pixels lie between two codes."""
  return model['patch_size'] * 2 ** (model['groups'] - 1)


def of_model(model: Mapping[str, Any]) -> dict[str, shapes.Shape]:
  """Returns the shape that every parameter should have, by path."""
  result, groups = {}, model['groups']
  kernel = model['encoder_kernel']
  kernels = {'encoder': (*[kernel] * 3, 1), 'decoder': (1, 3, 3, 3)}

  def convolution(path, size, inputs, outputs):
    result[f'{path}/kernel'] = (size, size, inputs, outputs)
    result[f'{path}/bias'] = (outputs,)

  def side(name, inputs, widths):
    for group, width in enumerate(widths, 1):
      for i in range(1, model['blocks_per_group'] + 1):
        block, narrow = f'{name}/group_{group}_block_{i}', width // 4
        ins = (inputs, narrow, narrow, narrow)
        outs = (narrow, narrow, narrow, width)
        for j, sizes in enumerate(zip(kernels[name], ins, outs), 1):
          convolution(f'{block}/conv_{j}', *sizes)
        if inputs != width:
          convolution(f'{block}/identity', 1, inputs, width)
        inputs = width

  width, codes = model['width'], model['vocabulary_size']
  pixels = model['channels'] * model['patch_size'] ** 2
  widths = [width * 2**group for group in range(groups)]
  convolution('encoder/input', model['stem_size'], pixels, width)
  side('encoder', width, widths)
  convolution('encoder/output', 1, widths[-1], codes)
  result['codebook/kernel'] = (codes, model['code_width'])
  result['codebook/bias'] = (model['code_width'],)
  side('decoder', model['code_width'], widths[::-1])
  convolution('decoder/output', 1, width, 2 * pixels)
  return result


def _slot(path: str, shape: shapes.Shape) -> mapping.Slot:
  """Returns where their files have a parameter."""
  path = path.replace('codebook/', 'decoder/input/')
  side, *modules, leaf = path.split('/')
  if modules[0].startswith('group_'):
    modules[0] = modules[0].replace('_block_', '.block_')
    last = modules[1]
    modules[1] = 'id_path' if last == 'identity' else f'res_path.{last}'
  elif modules == ['output']:
    modules = ['output', 'conv']
  name = '.'.join([side, 'blocks', *modules])
  if leaf == 'bias':
    return mapping.slot(f'{name}.b', shape)
  # The codebook's matrix is a convolution of single pixels.
  view = (1,) * (4 - len(shape)) + shape
  return mapping.slot(f'{name}.w', view, (3, 2, 0, 1))


def _slots(of_model: Mapping[str, shapes.Shape]) -> dict[str, mapping.Slot]:
  return {path: _slot(path, shape) for path, shape in of_model.items()}


def read(
  tensors: Mapping[str, np.ndarray], grid: shapes.Grid | None
) -> Released:
  """Returns the model of a file, from its tensors in float32.

  Args:
    tensors: by name, with 'encoder.' and 'decoder.' before theirs.
    grid: rows and columns of codes, if not those of 256x256 pixels.
  """
  width, channels, _, _ = _shape(tensors, 'encoder.blocks.input.w')
  model = {
    'name': 'discrete_vae',
    'width': width,
    'blocks_per_group': shapes.count(
      r'encoder\.blocks\.group_1\.block_\d{1,4}\.', tensors
    ),
    'groups': _GROUPS,
    'vocabulary_size': _shape(tensors, 'encoder.blocks.output.conv.w')[0],
    'code_width': _shape(tensors, 'decoder.blocks.input.w')[0],
    'stem_size': _STEM,
    'encoder_kernel': _KERNEL,
    'patch_size': 1,
    'channels': channels,
    'pixel_mean': 0.0,
    'pixel_std': 1.0,
    'quantization': 'gumbel',
  }
  expected = of_model(model)
  params = mapping.to_params(
    tensors, _slots(expected), expected, "DALL-E's discrete VAE"
  )
  grid = grid or (_SIDE // stride(model),) * 2
  height, width = (side * stride(model) for side in grid)
  size = height if height == width else (height, width)
  return Released(
    dialect='openai',
    model=model,
    params=params,
    num_classes=0,
    grid=grid,
    image_shape=(height, width, channels),
    preprocess=(
      f'resize_small({max(height, width)})|central_crop({size})'
      '|value_range(0, 1)'
    ),
  )


def _shape(tensors: Mapping[str, np.ndarray], name: str) -> shapes.Shape:
  """Returns the shape of a kernel that tells sizes; it has to be there."""
  tensor = tensors.get(name)
  if tensor is None or tensor.ndim != 4 or 0 in tensor.shape:
    found = 'it is not there' if tensor is None else f'it is {tensor.shape}'
    raise ReleasedError(
      f'The sizes of the model cannot be told without {name}, an array of 4 '
      f'axes, and {found}. Encoder and decoder are both needed.'
    )
  return tensor.shape


def write(path: pathlib.Path, released: Released, overwrite: bool) -> None:
  """Writes both parts to one .safetensors file.

  Raises:
    ReleasedError: OpenAI's classes cannot express this model.
    FileExistsError: the file is there already.
  """
  require(
    released.model, 'openai', quantization=('gumbel',), groups=(_GROUPS,),
    stem_size=(_STEM,), encoder_kernel=(_KERNEL,), patch_size=(1,),
    pixel_mean=(0.0,), pixel_std=(1.0,),
  )  # fmt: skip
  expected = of_model(released.model)
  tensors = mapping.to_tensors(
    released.params, _slots(expected), expected, "DALL-E's discrete VAE"
  )
  archive.write_safetensors(path, tensors, overwrite)
