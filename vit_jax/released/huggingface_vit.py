"""ViTs of Hugging Face's transformers: a folder with weights and a config.

The names are those of files, which transformers keeps across versions (in
memory, version 5 has others). The model is `ViTForImageClassification`, or
`ViTModel` without a head.
"""

import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_jax.released import archive, huggingface, mapping, shapes
from vit_jax.released.checkpoint import (
  Released,
  ReleasedError,
  describe,
  require,
)
from vit_jax.released.huggingface import (
  ACTIVATIONS,
  CONFIG,
  PREPROCESSOR,
  WEIGHTS,
)

# What a config means that does not say it.
_DEFAULTS = dict(
  hidden_size=768, num_hidden_layers=12, num_attention_heads=12,
  intermediate_size=3072, hidden_act='gelu', layer_norm_eps=1e-12,
  image_size=224, patch_size=16, num_channels=3, qkv_bias=True,
)  # fmt: skip


def _names(depth: int) -> dict[str, str]:
  """Returns their names of our modules."""
  names = {
    'class_token': 'vit.embeddings.cls_token',
    'position/embedding': 'vit.embeddings.position_embeddings',
    'embedding': 'vit.embeddings.patch_embeddings.projection',
    'encoder/norm': 'vit.layernorm',
    'head': 'classifier',
  }
  for i in range(depth):
    ours, theirs = f'encoder/block_{i:02d}', f'vit.encoder.layer.{i}'
    names |= {
      f'{ours}/attention_norm': f'{theirs}.layernorm_before',
      f'{ours}/attention/out': f'{theirs}.attention.output.dense',
      f'{ours}/mlp_norm': f'{theirs}.layernorm_after',
      f'{ours}/mlp/up': f'{theirs}.intermediate.dense',
      f'{ours}/mlp/down': f'{theirs}.output.dense',
    }
    for name in ('query', 'key', 'value'):
      names[f'{ours}/attention/{name}'] = f'{theirs}.attention.attention.{name}'
  return names


def read(
  path: pathlib.Path,
  tensors: Mapping[str, np.ndarray],
  grid: shapes.Grid | None,
) -> Released:
  """Returns the model of a folder, or of the weights in it.

  Args:
    path: as it was given.
    tensors: the weights, as they are stored.
    grid: rows and columns of patches; the config says them as well.
  """
  folder = huggingface.weights(path).parent
  config = {**_DEFAULTS, **huggingface.read_json(folder / CONFIG)}
  model, image_shape = _model(config)
  patches = tuple(side // model['patch_size'] for side in image_shape[:2])
  if grid not in (None, patches):
    raise ReleasedError(
      f'A grid of {grid[0]}x{grid[1]} was asked for, but {CONFIG} says '
      f'{patches[0]}x{patches[1]}.'
    )
  tensors, notes = _own(tensors, model['depth'])
  sizes = {
    'embedding/kernel': (
      model['patch_size'], model['patch_size'], image_shape[2], model['width'],
    ),
    'position/embedding': (1, math.prod(patches) + 1, model['width']),
  }  # fmt: skip
  if 'classifier.bias' in tensors:
    sizes['head/bias'] = tensors['classifier.bias'].shape
  of_model = shapes.of_model(model, sizes.get)
  params = mapping.to_params(
    tensors, _slots(of_model, model), of_model, f'the model of {CONFIG}'
  )
  names = _class_names(config, sizes.get('head/bias', (0,))[0])
  text, more = huggingface.read_preprocess(folder / PREPROCESSOR, image_shape)
  return describe(
    'huggingface',
    model,
    params,
    grid=patches,
    image_shape=image_shape,
    class_names=names,
    preprocess=text,
    notes=(*notes, *more),
  )


def _own(
  tensors: Mapping[str, np.ndarray], depth: int
) -> tuple[dict[str, np.ndarray], list[str]]:
  """Returns the tensors of the model in float32, and notes on others."""
  tensors, notes = archive.as_float32(tensors)
  if not any(name.startswith('vit.') for name in tensors):
    tensors = {f'vit.{name}': tensor for name, tensor in tensors.items()}
  found = shapes.count(r'vit\.encoder\.layer\.\d{1,4}\.', tensors)
  if found != depth:
    raise ReleasedError(
      f'{CONFIG} says that there are {depth} blocks, but the weights are of '
      f'{found}.'
    )
  if pooler := [name for name in tensors if name.startswith('vit.pooler.')]:
    tensors = {n: tensor for n, tensor in tensors.items() if n not in pooler}
    notes.append(f'Not of the model, so not read: {", ".join(pooler)}.')
  return tensors, notes


def _slots(
  of_model: Mapping[str, shapes.Shape], model: Mapping[str, Any]
) -> dict[str, mapping.Slot]:
  names = _names(model['depth'])
  return {
    path: mapping.torch_slot(path, shape, names)
    for path, shape in of_model.items()
  }


def _model(
  config: Mapping[str, Any],
) -> tuple[dict[str, Any], tuple[int, int, int]]:
  """Returns the section `model` and the shape of images of a config."""
  if config.get('model_type') != 'vit':
    raise ReleasedError(
      f'{CONFIG} is of model_type {config.get("model_type")!r}, expected '
      "'vit'. Other models of transformers are other functions."
    )
  activation, epsilon = config['hidden_act'], config['layer_norm_eps']
  if str(activation) not in ACTIVATIONS or config['qkv_bias'] is not True:
    raise ReleasedError(
      f'{CONFIG} has hidden_act {activation!r} and qkv_bias '
      f'{config["qkv_bias"]!r}, expected one of {", ".join(ACTIVATIONS)} and '
      'True.'
    )
  if not isinstance(epsilon, float):
    raise ReleasedError(f'{CONFIG} has layer_norm_eps {epsilon!r}.')
  size, patch = config['image_size'], config['patch_size']
  is_pair = isinstance(size, list) and len(size) == 2
  height, width = size if is_pair else (size, size)
  model = {
    'name': 'vit',
    'patch_size': patch,
    'width': config['hidden_size'],
    'depth': config['num_hidden_layers'],
    'mlp_dim': config['intermediate_size'],
    'num_heads': config['num_attention_heads'],
  }
  image_shape = (height, width, config['num_channels'])
  for given in (*image_shape, *list(model.values())[1:]):
    if not isinstance(given, int) or given < 1:
      raise ReleasedError(
        f'{CONFIG} has a size of {given!r}, expected a whole number.'
      )
  model |= {
    'pooling': 'token',
    'representation_size': 0,
    'position': 'learned',
    'activation': ACTIVATIONS[activation],
    'norm_epsilon': epsilon,
  }
  return model, image_shape


def _class_names(
  config: Mapping[str, Any], classes: int
) -> tuple[str, ...] | None:
  """Returns the names of the classes, None where they have none."""
  labels = config.get('id2label')
  labels = labels if isinstance(labels, dict) else {}
  names = tuple(labels.get(str(i)) for i in range(classes))
  if not classes or names == tuple(f'LABEL_{i}' for i in range(classes)):
    return None
  if len(labels) != classes or None in names:
    # Two is what a config means that does not say it.
    if not labels and classes == 2:
      return None
    raise ReleasedError(
      f'{CONFIG} names {len(labels)} classes in id2label, but the head has '
      f'{classes}.'
    )
  return names


def write(
  path: pathlib.Path, released: Released, overwrite: bool
) -> tuple[str, ...]:
  """Writes a folder that `ViTForImageClassification.from_pretrained` takes.

  Returns:
    What of the checkpoint is not in it.

  Raises:
    ReleasedError: transformers' ViT cannot express this model.
    FileExistsError: a file would be lost.
  """
  if released.model['name'] != 'vit':
    raise ReleasedError(
      f"The dialect 'huggingface' holds a ViT, not a {released.model['name']}."
    )
  require(
    released.model, 'huggingface', pooling=('token',), position=('learned',),
    position_at=('stem',), patch_bias=(True,), pre_norm=(False,),
    representation_size=(0,), backbone_stages=(None,),
    activation=tuple(dict.fromkeys(ACTIVATIONS.values())),
  )  # fmt: skip
  of_model = shapes.of_model(released.model, shapes.shape_of(released.params))
  tensors = mapping.to_tensors(
    released.params, _slots(of_model, released.model), of_model, 'a ViT'
  )
  for name in (CONFIG, PREPROCESSOR, WEIGHTS):
    archive.check_new(path / name, overwrite)
  path.mkdir(parents=True, exist_ok=True)
  # The config last: without it a folder is not taken for a checkpoint.
  archive.write_safetensors(path / WEIGHTS, tensors, overwrite)
  if settings := huggingface.preprocessor_of(released):
    huggingface.write_json(path / PREPROCESSOR, settings, overwrite)
  huggingface.write_json(path / CONFIG, _config(released), overwrite)
  if settings:
    return ()
  return (
    f"Not in it, as transformers' image processor has no such steps: "
    f'{released.preprocess}.',
  )


def _config(released: Released) -> dict[str, Any]:
  model, (height, width, channels) = released.model, released.image_shape
  names = released.class_names
  if names is None:
    names = [f'LABEL_{i}' for i in range(released.num_classes)]
  return {
    'architectures': ['ViTForImageClassification'],
    'model_type': 'vit',
    'hidden_size': model['width'],
    'num_hidden_layers': model['depth'],
    'num_attention_heads': model['num_heads'],
    'intermediate_size': model['mlp_dim'],
    'hidden_act': huggingface.activation_of(model),
    'layer_norm_eps': model['norm_epsilon'],
    'image_size': height if height == width else [height, width],
    'patch_size': model['patch_size'],
    'num_channels': channels,
    'qkv_bias': True,
    'hidden_dropout_prob': 0.0,
    'attention_probs_dropout_prob': 0.0,
    'id2label': {str(i): name for i, name in enumerate(names)},
    'label2id': {name: i for i, name in enumerate(names)},
  }
