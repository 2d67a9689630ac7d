"""ViTs and hybrids as google-research has released them, in .npz files.

Two code bases wrote them, with two dialects: 'google' is that of
vision_transformer (the ViT paper and AugReg), whose modules are numbered as
Flax did before Linen; 'big_vision' is that of big_vision, which adds position
embeddings before there is a class token. Files of both exist with names and
shapes of yet other versions; those are read, but not written.
"""

import re
import typing
from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_jax.released import bit, mapping, shapes
from vit_jax.released.checkpoint import (
  Released,
  ReleasedError,
  describe,
  require,
)

# Whose names begin so, after any prefix, holds a model of this family.
BEGINNING = r'Transformer/encoder'
_BLOCK = r'Transformer/encoderblock_\d{1,4}/'
_STACKED = 'Transformer/encoderblock/'
# Newest last.
_POSITIONS = (
  'Transformer/posembed_input/pos_embedding',
  'Transformer/pos_embedding',
  'pos_embedding',
)


class Form(typing.NamedTuple):
  """What differs between files of this family.

  Attributes:
    linen: whether modules are numbered by Linen: each kind from 0.
    position: name of the position embeddings.
    token_has_position: whether their first row is that of the class token.
    backbone: the names of a hybrid's ResNet.
  """

  linen: bool
  position: str
  token_has_position: bool
  backbone: bit.Names


# As they are written.
_FORMS = {
  'google': Form(
    False, _POSITIONS[0], True, bit.POST_ACTIVATION._replace(norm_rank=4)
  ),
  'big_vision': Form(True, _POSITIONS[-1], False, bit.POST_ACTIVATION),
}


def names_of(
  form: Form, depth: int, stages: tuple[int, ...] | None
) -> dict[str, str]:
  """Returns their names of our modules."""
  attention, norm, mlp = (0, 1, 0) if form.linen else (1, 2, 3)
  names = {
    **form.backbone.table(stages or ()),
    'class_token': 'cls',
    'position/embedding': form.position,
    'encoder/norm': 'Transformer/encoder_norm',
    'pooling/probe': 'MAPHead_0/probe',
    'pooling/attention': 'MAPHead_0/MultiHeadDotProductAttention_0',
    'pooling/norm': 'MAPHead_0/LayerNorm_0',
    'pooling/mlp/up': 'MAPHead_0/MlpBlock_0/Dense_0',
    'pooling/mlp/down': 'MAPHead_0/MlpBlock_0/Dense_1',
  }
  for i in range(depth):
    ours, theirs = f'encoder/block_{i:02d}', f'Transformer/encoderblock_{i}'
    names |= {
      f'{ours}/attention_norm': f'{theirs}/LayerNorm_0',
      f'{ours}/attention': f'{theirs}/MultiHeadDotProductAttention_{attention}',
      f'{ours}/mlp_norm': f'{theirs}/LayerNorm_{norm}',
      f'{ours}/mlp/up': f'{theirs}/MlpBlock_{mlp}/Dense_0',
      f'{ours}/mlp/down': f'{theirs}/MlpBlock_{mlp}/Dense_1',
    }
  return names


def _slots(
  of_model: Mapping[str, shapes.Shape], form: Form, model: Mapping[str, Any]
) -> dict[str, mapping.Slot]:
  """Returns where a file has each parameter."""
  names = names_of(form, model['depth'], model.get('backbone_stages'))
  return {
    path: mapping.slot(
      mapping.rename(path, names), form.backbone.stored(path, shape)
    )
    for path, shape in of_model.items()
  }


def read(
  tensors: Mapping[str, np.ndarray], grid: shapes.Grid | None
) -> Released:
  """Returns the model of a file, from its tensors in float32.

  Args:
    tensors: by name, without a prefix.
    grid: rows and columns of patches, where the file does not tell.
  """
  tensors, notes = unstacked(tensors)
  form = form_of(tensors, grid)
  depth = shapes.count(_BLOCK, tensors)
  stages = form.backbone.units(tensors)
  shape_of = shapes.shape_of(tensors, names_of(form, depth, stages))
  model = shapes.vit_sizes(shape_of, depth, stages)
  # Of the two dialects only big_vision's has models that store none.
  stored = shape_of('position/embedding') is not None or not form.linen
  model['position'] = 'learned' if stored else 'sincos_2d'
  model |= {'activation': 'gelu_tanh', 'norm_epsilon': 1e-6}
  if stored:
    _, tokens, _ = shapes.lookup(shape_of, 'position/embedding', 3)
    grid = shapes.grid_of(tokens - form.token_has_position, grid)
  else:
    notes.append(
      'No position embeddings are stored, so they are taken to be sincos_2d.'
    )
  of_model = shapes.of_model(model, shape_of)
  params = mapping.to_params(
    tensors, _slots(of_model, form, model), of_model, _what(model)
  )
  if model['pooling'] == 'token' and stored and not form.token_has_position:
    # Zeros for the class token, which changes nothing and can be undone.
    params['position/embedding'] = np.pad(
      params['position/embedding'], ((0, 0), (1, 0), (0, 0))
    )
  is_big_vision = form.linen and form.position != _POSITIONS[0]
  return describe(
    'big_vision' if is_big_vision else 'google',
    model,
    params,
    grid=grid,
    image_shape=shapes.image_shape(model, grid, shape_of),
    notes=tuple(notes),
  )


def _what(model: Mapping) -> str:
  kind = 'hybrid' if 'backbone_stages' in model else 'ViT'
  return (
    f'a {kind} of width {model["width"]}, {model["depth"]} blocks and pooling '
    f'{model["pooling"]!r}'
  )


def unstacked(
  tensors: Mapping[str, np.ndarray],
) -> tuple[dict[str, np.ndarray], list[str]]:
  """Gives each block of a scanned model its own tensors."""
  result, depths = {}, set()
  for name, tensor in tensors.items():
    if not name.startswith(_STACKED):
      result[name] = tensor
      continue
    rest = name.removeprefix(_STACKED)
    depths.add(tensor.shape[0] if tensor.ndim else 0)
    for i, part in enumerate(tensor if tensor.ndim else ()):
      result[f'Transformer/encoderblock_{i}/{rest}'] = part
  if len(depths) > 1:
    raise ReleasedError(
      f'The blocks under {_STACKED} are stacked, but not all are of one depth: '
      f'the leading axes are {", ".join(map(str, sorted(depths)))}.'
    )
  return result, ['Blocks are stacked along a leading axis.'] if depths else []


def form_of(
  tensors: Mapping[str, np.ndarray], grid: shapes.Grid | None
) -> Form:
  """Returns how the names and shapes of a file are written."""
  linen = not any(re.match(f'{_BLOCK}MlpBlock_3/', name) for name in tensors)
  position = next((p for p in _POSITIONS if p in tensors), _POSITIONS[-1])
  has_row = 'cls' in tensors
  if has_row and position in tensors and position != _POSITIONS[0]:
    has_row = _counts_class_token(tensors[position].shape, grid)
  root = tensors.get('gn_root/scale')
  backbone = bit.POST_ACTIVATION._replace(
    norm_rank=1 if root is None else root.ndim
  )
  return Form(linen, position, has_row, backbone)


def _counts_class_token(shape: shapes.Shape, grid: shapes.Grid | None) -> bool:
  """Whether position embeddings have a row for the class token.

  Older files of big_vision do, newer ones do not. Where the grid is not
  given, it is the only one of both that makes a square.
  """
  tokens = shape[1] if len(shape) == 3 else 0
  if grid:
    return tokens == grid[0] * grid[1] + 1
  return tokens > 1 and int((tokens - 1) ** 0.5 + 0.5) ** 2 == tokens - 1


def write(released: Released, dialect: str) -> dict[str, np.ndarray]:
  """Returns the tensors of a file by name; 'google' or 'big_vision'.

  Raises:
    ReleasedError: the dialect cannot express this model.
  """
  fixed = dict(
    position_at=('stem',), activation=('gelu_tanh',), norm_epsilon=(1e-6,),
    patch_bias=(True,), pre_norm=(False,),
  )  # fmt: skip
  if dialect == 'google':
    require(
      released.model, dialect, pooling=('token', 'gap'), position=('learned',),
      **fixed,
    )  # fmt: skip
  else:
    require(
      released.model, dialect, pooling=('token', 'gap', 'map'),
      position=('learned', 'sincos_2d'), backbone_stages=(None,), **fixed,
    )  # fmt: skip
  form, model, params = _FORMS[dialect], released.model, dict(released.params)
  if 'position/embedding' in params and model['pooling'] == 'token':
    params = params if form.token_has_position else _folded(params)
  of_model = shapes.of_model(model, shapes.shape_of(params))
  slots = _slots(of_model, form, model)
  prefix = 'params/' if dialect == 'big_vision' else ''
  tensors = mapping.to_tensors(params, slots, of_model, _what(model))
  return {prefix + name: tensor for name, tensor in tensors.items()}


def _folded(params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Adds the first position embedding to the class token, and drops it."""
  table, token = params['position/embedding'], params['class_token']
  first = table[:, :1]
  if first.any():  # Adding zeros would make 0.0 of -0.0.
    token = token + first
  return {**params, 'position/embedding': table[:, 1:], 'class_token': token}
