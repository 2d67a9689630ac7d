"""SigLIP and LiT as google-research has released them, in .npz files.

Two towers under `img/` and `txt/`, which are a ViT and a transformer of text
in the dialects of `google_vit`, and the parameters of the loss. The text tower
of some LiT models is a BERT: a file of those is read as its image tower alone.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_jax.released import clip_shapes, google_vit, mapping, shapes
from vit_jax.released.checkpoint import Released, ReleasedError, preprocess

# Whose names begin so, after any prefix, holds a model of this family.
BEGINNING = r'txt/Embed_0/'
_BLOCK = r'Transformer/encoderblock_\d{1,4}/'


def read(
  tensors: Mapping[str, np.ndarray], grid: shapes.Grid | None
) -> Released:
  """Returns the model of a file, from its tensors in float32.

  Args:
    tensors: by name, without a prefix.
    grid: rows and columns of patches, where the file does not tell.
  """
  image = google_vit.read(_below(tensors, 'img/'), grid)
  text, text_params = _text(_below(tensors, 'txt/'))
  if image.model['representation_size']:
    raise ReleasedError(
      'The image tower has a layer of the name pre_logits, which none of the '
      'released models has.'
    )
  params = {f'image/{path}': value for path, value in image.params.items()}
  params |= {f'text/{path}': value for path, value in text_params.items()}
  for side in ('image', 'text'):
    for leaf in ('kernel', 'bias'):
      if (value := params.pop(f'{side}/head/{leaf}', None)) is not None:
        params[f'{side}_projection/{leaf}'] = value
  params |= _scalars(tensors)
  projected = params.get('image_projection/bias')
  width = image.model['width'] if projected is None else projected.size
  model = {
    'name': 'clip',
    'width': width,
    'image_head': 'none' if projected is None else 'affine',
    'text_head': 'affine' if 'text_projection/bias' in params else 'none',
    'image': image.model,
    'text': text,
  }
  if 'logit_bias' in params:
    model['initial_bias'] = float(params['logit_bias'])
  mapping.check(
    clip_shapes.of_model(model, shapes.shape_of(params)),
    {path: value.shape for path, value in params.items()},
    'two towers (by the names of this package)',
  )
  return Released(
    dialect='big_vision',
    model=model,
    params=params,
    num_classes=0,
    grid=image.grid,
    image_shape=image.image_shape,
    preprocess=preprocess(image.image_shape),
    notes=image.notes,
  )


def _below(
  tensors: Mapping[str, np.ndarray], prefix: str
) -> dict[str, np.ndarray]:
  return {
    name.removeprefix(prefix): tensor
    for name, tensor in tensors.items()
    if name.startswith(prefix)
  }


def _scalars(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Returns the parameters of the loss; there they have an axis."""
  others = {
    name: tensor
    for name, tensor in tensors.items()
    if not name.startswith(('img/', 'txt/'))
  }
  expected = {'t': (1,), 'b': (1,)} if 'b' in others else {'t': (1,)}
  found = {name: tensor.shape for name, tensor in others.items()}
  mapping.check(expected, found, 'the loss of two towers')
  ours = {'t': 'logit_scale', 'b': 'logit_bias'}
  return {ours[name]: others[name].reshape(()) for name in expected}


def _text(
  tensors: Mapping[str, np.ndarray],
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """Returns fields and parameters of the text tower, with its `head`."""
  # The transformer has another name than in an image tower.
  tensors, _ = google_vit.unstacked(
    {
      name.replace('Encoder_0/', 'Transformer/', 1): tensor
      for name, tensor in tensors.items()
    }
  )
  depth = shapes.count(_BLOCK, tensors)
  names = google_vit.names_of(google_vit.form_of(tensors, None), depth, None)
  names |= {'embedding': 'Embed_0', 'position/embedding': 'pos_embedding'}
  shape_of = shapes.shape_of(tensors, names)
  vocabulary_size, width = shapes.lookup(shape_of, 'embedding/embedding', 2)
  _, length, _ = shapes.lookup(shape_of, 'position/embedding', 3)
  first = 'encoder/block_00'
  model = {
    'vocabulary_size': vocabulary_size,
    'length': length,
    'width': width,
    'depth': depth,
    'mlp_dim': shapes.lookup(shape_of, f'{first}/mlp/up/bias', 1)[0],
    'num_heads': shapes.lookup(shape_of, f'{first}/attention/query/bias', 2)[0],
    'causal': False,
    # Texts end in a token that is their padding, too.
    'pooling': 'map' if shape_of('pooling/probe') else 'last',
    'activation': 'gelu_tanh',
    'norm_epsilon': 1e-6,
  }
  of_model = clip_shapes.of_text(model)
  if shape_of('head/bias'):
    classes = shapes.lookup(shape_of, 'head/bias', 1)
    of_model |= shapes.linear('head', (width,), classes)
  slots = {
    path: mapping.slot(mapping.rename(path, names), shape)
    for path, shape in of_model.items()
  }
  what = f'a text tower of width {width} and {depth} blocks'
  return model, mapping.to_params(tensors, slots, of_model, what)
