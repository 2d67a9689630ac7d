"""CLIP as OpenAI has released it: the tensors of its state dict, by name.

They come as TorchScript archives, and as .safetensors files that others have
made of them; open_clip writes the same names. The names do not say which
activation the towers have, nor how many heads: the first has to be read
elsewhere, or asked for, the second is width / 64 unless it is said.
"""

import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_jax.released import archive, clip_images, clip_shapes, mapping, shapes
from vit_jax.released.checkpoint import Released, ReleasedError, require

# Whose names begin so, after any prefix, holds a model of this family.
BEGINNING = r'visual\.(?:conv1|class_embedding)'
# What the archives hold beside the tensors of the model, and torch's counters.
NOT_READ = re.compile(
  r'(?:.*[./])?(?:num_batches_tracked|input_resolution|context_length|'
  r'vocab_size)'
)
# What a reader may have to say; see `read`.
TOLD = ('activation', 'image_heads', 'text_heads')
_HEAD = 64
_ACTIVATIONS = ('quick_gelu', 'gelu', 'gelu_tanh')
_BLOCK = '{}transformer.resblocks.{}'
# Attention has one matrix for these, on top of each other.
_STACKED = ('query', 'key', 'value')


def _names(model: Mapping[str, Any]) -> dict[str, str]:
  """Returns their names of our modules."""
  names = {
    'text/embedding/embedding': 'token_embedding.weight',
    'text/position/embedding': 'positional_embedding',
    'text/encoder/norm': 'ln_final',
    'text_projection/kernel': 'text_projection',
  }
  names |= _blocks('text', '', model['text']['depth'])
  if model['image']['name'] == 'vit':
    names |= {
      'image/class_token': 'visual.class_embedding',
      'image/position/embedding': 'visual.positional_embedding',
      'image/embedding': 'visual.conv1',
      'image/pre_norm': 'visual.ln_pre',
      'image/encoder/norm': 'visual.ln_post',
      'image_projection/kernel': 'visual.proj',
    }
    return names | _blocks('image', 'visual.', model['image']['depth'])
  names |= {
    'image/pooling/position/embedding': 'visual.attnpool.positional_embedding',
    'image_projection': 'visual.attnpool.c_proj',
  }
  for name in _STACKED:
    theirs = f'visual.attnpool.{name[0]}_proj'
    names[f'image/pooling/attention/{name}'] = theirs
  units = {'image/stem': 'visual'}
  for stage, length in enumerate(model['image']['stages'], 1):
    for unit in range(length):
      ours = f'image/stage_{stage}/unit_{unit + 1:02d}'
      theirs = units[ours] = f'visual.layer{stage}.{unit}'
      names[f'{ours}/projection'] = f'{theirs}.downsample.0'
      names[f'{ours}/projection_norm'] = f'{theirs}.downsample.1'
  for ours, theirs in units.items():
    for i in (1, 2, 3):
      names[f'{ours}/conv_{i}'] = f'{theirs}.conv{i}'
      names[f'{ours}/norm_{i}'] = f'{theirs}.bn{i}'
  return names


def _blocks(side: str, prefix: str, depth: int) -> dict[str, str]:
  names = {}
  for i in range(depth):
    ours, theirs = f'{side}/encoder/block_{i:02d}', _BLOCK.format(prefix, i)
    names |= {
      f'{ours}/attention_norm': f'{theirs}.ln_1',
      f'{ours}/attention/out': f'{theirs}.attn.out_proj',
      f'{ours}/mlp_norm': f'{theirs}.ln_2',
      f'{ours}/mlp/up': f'{theirs}.mlp.c_fc',
      f'{ours}/mlp/down': f'{theirs}.mlp.c_proj',
    }
    for name in _STACKED:
      names[f'{ours}/attention/{name}'] = f'{theirs}.attn.in_proj.{name}'
  return names


def _unstacked(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Gives query, key and value tensors of their own."""
  result = {}
  for name, tensor in tensors.items():
    before, stacked, leaf = name.rpartition('.in_proj_')
    if not stacked:
      result[name] = tensor
      continue
    if not tensor.ndim or len(tensor) % 3:
      raise ReleasedError(
        f'{name} has the shape {tensor.shape}, expected query, key and value '
        'on top of each other: three times the width.'
      )
    parts = zip(_STACKED, np.split(tensor, 3))
    result |= {f'{before}.in_proj.{which}.{leaf}': x for which, x in parts}
  return result


def _stacked(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Undoes `_unstacked`."""
  result = {}
  for name, tensor in tensors.items():
    before, stacked, rest = name.rpartition('.in_proj.')
    which, _, leaf = rest.partition('.')
    if not stacked:
      result[name] = tensor
    elif which == _STACKED[0]:
      parts = [tensors[f'{before}.in_proj.{w}.{leaf}'] for w in _STACKED]
      result[f'{before}.in_proj_{leaf}'] = np.concatenate(parts)
  return result


def read(
  tensors: Mapping[str, np.ndarray],
  grid: shapes.Grid | None,
  told: Mapping[str, Any],
) -> Released:
  """Returns the model of a file, from its tensors in float32.

  Args:
    tensors: by name, without a prefix.
    grid: rows and columns of patches, where they are no square.
    told: what the names do not say: `activation`, and, where they are not
      width / 64, `image_heads` and `text_heads`.
  """
  if told.get('activation') not in _ACTIVATIONS:
    raise ReleasedError(
      f'The activation is {told.get("activation")!r}, expected one of '
      f'{", ".join(_ACTIVATIONS)}. The tensors do not say it, and with a wrong '
      "one the model is silently worse: OpenAI's own have 'quick_gelu', most "
      "that open_clip has trained 'gelu'. Say which with "
      'read(..., told=dict(activation=...)), --activation on a command line '
      'or config.init.activation.'
    )
  tensors = _unstacked(tensors)
  text_width, width = _shape(tensors, 'text_projection', 2)
  model = {
    'name': 'clip',
    'width': width,
    'image_head': 'linear' if 'visual.proj' in tensors else 'affine',
    'text_head': 'linear',
    'image': _image(tensors, told),
    'text': {
      'vocabulary_size': _shape(tensors, 'token_embedding.weight', 2)[0],
      'length': _shape(tensors, 'positional_embedding', 2)[0],
      'width': text_width,
      **_transformer(tensors, '', text_width, told, 'text_heads'),
      'causal': True,
      'pooling': 'end',
    },
  }
  names = _names(model)
  of_model = clip_shapes.of_model(model, _shape_of(tensors, model))
  params, statistics = clip_shapes.split(
    mapping.to_params(
      tensors,
      clip_shapes.torch_slots(of_model, names),
      of_model,
      f'a CLIP whose image tower is a {model["image"]["name"]}',
    )
  )
  position = 'position/embedding'
  if model['image']['name'] != 'vit':
    position = f'pooling/{position}'
  grid = shapes.grid_of(params[f'image/{position}'].shape[1] - 1, grid)
  stride = model['image'].get('patch_size', 32)
  channels = _shape(tensors, 'visual.conv1.weight', 4)[1]
  image_shape = (grid[0] * stride, grid[1] * stride, channels)
  return Released(
    dialect='openai',
    model=model,
    params=params,
    num_classes=0,
    grid=grid,
    image_shape=image_shape,
    preprocess=clip_images.preprocess(image_shape),
    statistics=statistics,
    tokenizer=clip_images.tokenizer(model['text']),
  )


def _shape(
  tensors: Mapping[str, np.ndarray], name: str, rank: int
) -> shapes.Shape:
  """Returns the shape of a tensor that tells sizes; it has to be there."""
  tensor = tensors.get(name)
  if tensor is None or tensor.ndim != rank or 0 in tensor.shape:
    found = 'it is not there' if tensor is None else f'it is {tensor.shape}'
    raise ReleasedError(
      f'The sizes of the model cannot be told without {name}, an array of '
      f'{rank} axes, and {found}.'
    )
  return tensor.shape


def _shape_of(
  tensors: Mapping[str, np.ndarray], model: Mapping[str, Any]
) -> shapes.ShapeOf:
  """Returns what finds the shapes that are no fields of the model."""
  position = 'visual.positional_embedding'
  if model['image']['name'] != 'vit':
    position = 'visual.attnpool.positional_embedding'
  rows, columns, channels, features = (
    _shape(tensors, 'visual.conv1.weight', 4)[i] for i in (2, 3, 1, 0)
  )
  first = (rows, columns, channels, features)
  table = (1, *_shape(tensors, position, 2))
  return {
    'image/embedding/kernel': first,
    'image/stem/conv_1/kernel': first,
    'image/position/embedding': table,
    'image/pooling/position/embedding': table,
  }.get


def _image(
  tensors: Mapping[str, np.ndarray], told: Mapping[str, Any]
) -> dict[str, Any]:
  """Returns the image tower."""
  if 'visual.proj' not in tensors:
    stages = shapes.units(r'visual\.layer(\d)\.(\d{1,4})\.', tensors)
    width = _shape(tensors, 'visual.layer1.0.conv1.weight', 4)[0]
    heads = _heads(32 * width, told, 'image_heads')
    return dict(
      name='modified_resnet', stages=stages, width=width, num_heads=heads
    )
  features, _, patch, _ = _shape(tensors, 'visual.conv1.weight', 4)
  return {
    'name': 'vit',
    'patch_size': patch,
    'width': features,
    **_transformer(tensors, 'visual.', features, told, 'image_heads'),
    'pooling': 'token',
    'representation_size': 0,
    'position': 'learned',
    'patch_bias': False,
    'pre_norm': True,
  }


def _transformer(
  tensors: Mapping[str, np.ndarray],
  prefix: str,
  width: int,
  told: Mapping[str, Any],
  heads: str,
) -> dict[str, Any]:
  """Returns the fields that both towers have."""
  pattern = _BLOCK.format(re.escape(prefix), r'\d{1,4}\.')
  first = _BLOCK.format(prefix, 0)
  return {
    'depth': shapes.count(pattern, tensors),
    'mlp_dim': _shape(tensors, f'{first}.mlp.c_fc.bias', 1)[0],
    'num_heads': _heads(width, told, heads),
    'activation': told['activation'],
    'norm_epsilon': 1e-5,
  }


def _heads(width: int, told: Mapping[str, Any], name: str) -> int:
  heads = told.get(name, width // _HEAD)
  told_right = isinstance(heads, int) and heads > 0 and width % heads == 0
  if not told_right or (name not in told and width % _HEAD):
    raise ReleasedError(
      f'A width of {width} is not shared by {heads!r} attention heads ('
      f'{"as was said" if name in told else "one for each 64 channels"}). '
      f'Say how many there are with read(..., told=dict({name}=...)), '
      f'--{name.replace("_", "-")} on a command line, or config.init.{name}.'
    )
  return heads


def write(path: pathlib.Path, released: Released, overwrite: bool) -> None:
  """Writes a .safetensors file, whose metadata has what its names do not say.

  Raises:
    ReleasedError: OpenAI's CLIP cannot express this model.
    FileExistsError: the file is there already.
  """
  if path.suffix != '.safetensors':
    raise ReleasedError(
      f"The dialect 'openai' is written to a .safetensors file, which {path} "
      'is not by its name.'
    )
  image, text = require_towers(released, 'openai')
  activation = text['activation']
  require(text, 'openai', norm_epsilon=(1e-5,))
  require(image, 'openai', norm_epsilon=(1e-5,), activation=(activation,))
  arrays = clip_shapes.joined(released)
  of_model = clip_shapes.of_model(released.model, shapes.shape_of(arrays))
  slots = clip_shapes.torch_slots(of_model, _names(released.model))
  tensors = _stacked(mapping.to_tensors(arrays, slots, of_model, 'a CLIP'))
  for name in [name for name in tensors if name.endswith('.running_var')]:
    # Nothing reads them, but torch does not load without.
    counter = name.replace('running_var', 'num_batches_tracked')
    tensors[counter] = np.zeros((), np.int64)
  told = (activation, image['num_heads'], text['num_heads'])
  metadata = dict(zip(TOLD, map(str, told)))
  archive.write_safetensors(path, tensors, overwrite, metadata)


def require_towers(
  released: Released, dialect: str
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Returns image and text tower, where they are of the kind of CLIP's own.

  Raises:
    ReleasedError: they have what a dialect cannot express.
  """
  if released.model['name'] != 'clip':
    raise ReleasedError(
      f'The dialect {dialect!r} holds a CLIP, not a {released.model["name"]}.'
    )
  image, text = released.model['image'], released.model['text']
  is_vit = image['name'] == 'vit'
  require(
    released.model, dialect, initial_bias=(None,), text_head=('linear',),
    image_head=('linear' if is_vit else 'affine',),
  )  # fmt: skip
  require(text, dialect, causal=(True,), pooling=('end',))
  if is_vit:
    has = {'patch_bias': True, 'pre_norm': False, **image}
    require(
      has, dialect, patch_bias=(False,), pre_norm=(True,), pooling=('token',),
      position=('learned',), position_at=('stem',), representation_size=(0,),
      backbone_stages=(None,),
    )  # fmt: skip
  else:
    require(image, dialect, name=('modified_resnet',))
  return image, text
