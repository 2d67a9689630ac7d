"""CLIP of Hugging Face's transformers: a folder with weights and a config.

The model is `CLIPModel`, whose image tower is a ViT. The names are those of
files, see `huggingface_vit`.
"""

import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_jax.released import (
  archive,
  clip_images,
  clip_shapes,
  huggingface,
  mapping,
  openai_clip,
  shapes,
)
from vit_jax.released.checkpoint import Released, ReleasedError
from vit_jax.released.huggingface import (
  ACTIVATIONS,
  CONFIG,
  PREPROCESSOR,
  WEIGHTS,
)

MODEL_TYPE = 'clip'
MERGES = 'merges.txt'
# Numbers of the positions, which older files store.
_NOT_READ = re.compile(r'(?:text|vision)_model\.embeddings\.position_ids')
# What a config means that does not say it.
_TOWER = dict(
  num_hidden_layers=12, hidden_act='quick_gelu', layer_norm_eps=1e-5,
)  # fmt: skip
_TEXT = _TOWER | dict(
  hidden_size=512, intermediate_size=2048, num_attention_heads=8,
  max_position_embeddings=77, vocab_size=49_408, eos_token_id=49_407,
)  # fmt: skip
_VISION = _TOWER | dict(
  hidden_size=768, intermediate_size=3072, num_attention_heads=12,
  image_size=224, patch_size=32, num_channels=3,
)  # fmt: skip
# The end of text in configs that were written before it was read: the models
# are those that pool at the highest id.
_HIGHEST_ID = 2


def _names(model: Mapping[str, Any]) -> dict[str, str]:
  """Returns their names of our modules."""
  vision, text = 'vision_model.embeddings', 'text_model.embeddings'
  names = {
    'image/class_token': f'{vision}.class_embedding',
    'image/embedding': f'{vision}.patch_embedding',
    'image/position/embedding': f'{vision}.position_embedding.weight',
    'image/pre_norm': 'vision_model.pre_layrnorm',  # As transformers spells it.
    'image/encoder/norm': 'vision_model.post_layernorm',
    'image_projection': 'visual_projection',
    'text/embedding/embedding': f'{text}.token_embedding.weight',
    'text/position/embedding': f'{text}.position_embedding.weight',
    'text/encoder/norm': 'text_model.final_layer_norm',
  }
  for side, tower in (('image', 'vision_model'), ('text', 'text_model')):
    for i in range(model[side]['depth']):
      ours = f'{side}/encoder/block_{i:02d}'
      theirs = f'{tower}.encoder.layers.{i}'
      names |= {
        f'{ours}/attention_norm': f'{theirs}.layer_norm1',
        f'{ours}/attention/out': f'{theirs}.self_attn.out_proj',
        f'{ours}/mlp_norm': f'{theirs}.layer_norm2',
        f'{ours}/mlp/up': f'{theirs}.mlp.fc1',
        f'{ours}/mlp/down': f'{theirs}.mlp.fc2',
      }
      for name in ('query', 'key', 'value'):
        theirs_too = f'{theirs}.self_attn.{name[0]}_proj'
        names[f'{ours}/attention/{name}'] = theirs_too
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
  model, image_shape = _model(huggingface.read_json(folder / CONFIG))
  patch = model['image']['patch_size']
  patches = (image_shape[0] // patch, image_shape[1] // patch)
  if grid not in (None, patches):
    raise ReleasedError(
      f'A grid of {grid[0]}x{grid[1]} was asked for, but {CONFIG} says '
      f'{patches[0]}x{patches[1]}.'
    )
  tensors, notes = archive.as_float32(
    {n: tensor for n, tensor in tensors.items() if not _NOT_READ.fullmatch(n)}
  )
  sizes = {
    'image/embedding/kernel': (
      patch, patch, image_shape[2], model['image']['width'],
    ),
    'image/position/embedding': (
      1, patches[0] * patches[1] + 1, model['image']['width'],
    ),
  }  # fmt: skip
  of_model = clip_shapes.of_model(model, sizes.get)
  slots = clip_shapes.torch_slots(of_model, _names(model))
  params = mapping.to_params(tensors, slots, of_model, f'the model of {CONFIG}')
  text, more = _read_preprocess(folder / PREPROCESSOR, image_shape)
  merges = folder / MERGES
  return Released(
    dialect='huggingface',
    model=model,
    params=params,
    num_classes=0,
    grid=patches,
    image_shape=image_shape,
    preprocess=text,
    notes=(*notes, *more),
    tokenizer=str(merges)
    if merges.is_file()
    else clip_images.tokenizer(model['text']),
  )


def _model(
  config: Mapping[str, Any],
) -> tuple[dict[str, Any], tuple[int, int, int]]:
  """Returns the model and the shape of images of a config."""
  text = _section(config, 'text_config', _TEXT)
  vision = _section(config, 'vision_config', _VISION)
  size, channels = vision['image_size'], vision['num_channels']
  width = config.get('projection_dim', 512)
  _check_sizes([size, channels, width, vision['patch_size']])
  _check_sizes([text['vocab_size'], text['max_position_embeddings']])
  end, vocabulary_size = text['eos_token_id'], text['vocab_size']
  if end not in (_HIGHEST_ID, vocabulary_size - 1):
    raise ReleasedError(
      f'{CONFIG} has eos_token_id {end!r}, expected the highest of the '
      f'{vocabulary_size} ids: texts are pooled where the highest is.'
    )
  image = {
    'name': 'vit',
    'patch_size': vision['patch_size'],
    **_tower(vision),
    'pooling': 'token',
    'representation_size': 0,
    'position': 'learned',
    'patch_bias': False,
    'pre_norm': True,
  }
  model = {
    'name': 'clip',
    'width': width,
    'image_head': 'linear',
    'text_head': 'linear',
    'image': image,
    'text': {
      'vocabulary_size': vocabulary_size,
      'length': text['max_position_embeddings'],
      **_tower(text),
      'causal': True,
      'pooling': 'end',
    },
  }
  return model, (size, size, channels)


def _section(
  config: Mapping[str, Any], name: str, defaults: Mapping[str, Any]
) -> dict[str, Any]:
  """Returns the config of a tower."""
  result = dict(defaults)
  # Configs of old have it twice, and the second counts.
  for key in (name, f'{name}_dict'):
    values = config.get(key) or {}
    if not isinstance(values, dict):
      raise ReleasedError(f'{CONFIG} has a {key} that is no JSON object.')
    result |= values
  return result


def _tower(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the fields that both towers have."""
  activation, epsilon = config['hidden_act'], config['layer_norm_eps']
  if str(activation) not in ACTIVATIONS or not isinstance(epsilon, float):
    raise ReleasedError(
      f'{CONFIG} has hidden_act {activation!r} and layer_norm_eps {epsilon!r}, '
      f'expected one of {", ".join(ACTIVATIONS)} and a number such as 1e-05.'
    )
  sizes = {
    'width': config['hidden_size'],
    'depth': config['num_hidden_layers'],
    'mlp_dim': config['intermediate_size'],
    'num_heads': config['num_attention_heads'],
  }
  _check_sizes(sizes.values())
  return {
    **sizes,
    'activation': ACTIVATIONS[activation],
    'norm_epsilon': epsilon,
  }


def _check_sizes(sizes: Any) -> None:
  for size in sizes:
    if type(size) is not int or size < 1:
      raise ReleasedError(
        f'{CONFIG} has a size of {size!r}, expected a whole number.'
      )


def _read_preprocess(
  path: pathlib.Path, image_shape: tuple[int, int, int]
) -> tuple[str, list[str]]:
  """Returns how images are prepared, and a note where that is not the same.

  Args:
    path: the settings of the image processor; they need not be there.
    image_shape: height, width and channels of the model's input.
  """
  usual = clip_images.preprocess(image_shape)
  if not path.is_file():
    return usual, []
  settings, size = huggingface.read_json(path), image_shape[0]
  if settings.get('size') == size:  # As older files say it.
    settings |= {'size': {'shortest_edge': size}}
  if settings.get('crop_size') == size:
    settings |= {'crop_size': {'height': size, 'width': size}}
  expected = _preprocessor(size)
  colours = [settings.get(name) for name in ('image_mean', 'image_std')]
  differs = any(
    settings.get(name, value) != value
    for name, value in expected.items()
    if name not in ('image_mean', 'image_std', 'image_processor_type')
  )
  if differs or not all(map(_is_colour, colours)):
    return usual, [f'{path.name} prepares images otherwise than {usual}.']
  return clip_images.preprocess(image_shape, *colours), []


def _is_colour(values: Any) -> bool:
  is_list = isinstance(values, list) and len(values) == 3
  return is_list and all(isinstance(x, float) for x in values)


def _preprocessor(
  size: int,
  mean: tuple = clip_images.MEAN,
  deviation: tuple = clip_images.DEVIATION,
) -> dict[str, Any]:
  """Returns the settings of transformers' image processor."""
  return {
    'image_processor_type': 'CLIPImageProcessor',
    'do_resize': True,
    'size': {'shortest_edge': size},
    'resample': 3,  # Bicubic.
    'do_center_crop': True,
    'crop_size': {'height': size, 'width': size},
    'do_rescale': True,
    'rescale_factor': 1 / 255,
    'do_normalize': True,
    'image_mean': list(mean),
    'image_std': list(deviation),
    'do_convert_rgb': True,
  }


def write(
  path: pathlib.Path, released: Released, overwrite: bool
) -> tuple[str, ...]:
  """Writes a folder that `CLIPModel.from_pretrained` takes.

  Returns:
    What of the checkpoint is not in it.

  Raises:
    ReleasedError: transformers' CLIP cannot express this model.
    FileExistsError: a file would be lost.
  """
  openai_clip.require_towers(released, 'huggingface')
  height, width, _ = released.image_shape
  if released.model['image']['name'] != 'vit' or height != width:
    raise ReleasedError(
      "The dialect 'huggingface' holds a CLIP whose image tower is a ViT for "
      f'square images, not a {released.model["image"]["name"]} for '
      f'{height}x{width} pixels.'
    )
  of_model = clip_shapes.of_model(
    released.model, shapes.shape_of(released.params)
  )
  slots = clip_shapes.torch_slots(of_model, _names(released.model))
  tensors = mapping.to_tensors(released.params, slots, of_model, 'a CLIP')
  for name in (CONFIG, PREPROCESSOR, WEIGHTS):
    archive.check_new(path / name, overwrite)
  path.mkdir(parents=True, exist_ok=True)
  # The config last: without it a folder is not taken for a checkpoint.
  archive.write_safetensors(path / WEIGHTS, tensors, overwrite)
  notes = ['Not in it: the tokenizer. Its files are those of transformers.']
  if found := clip_images.parse(released.preprocess):
    settings = _preprocessor(*found)
    huggingface.write_json(path / PREPROCESSOR, settings, overwrite)
  else:
    notes.append(
      "Not in it, as transformers' image processor has no such steps: "
      f'{released.preprocess}.'
    )
  huggingface.write_json(path / CONFIG, _config(released), overwrite)
  return tuple(notes)


def _config(released: Released) -> dict[str, Any]:
  model, (size, _, channels) = released.model, released.image_shape
  text, end = model['text'], model['text']['vocabulary_size'] - 1
  return {
    'architectures': ['CLIPModel'],
    'model_type': MODEL_TYPE,
    'projection_dim': model['width'],
    'text_config': {
      'model_type': 'clip_text_model',
      **_tower_config(text, model['width']),
      'vocab_size': text['vocabulary_size'],
      'max_position_embeddings': text['length'],
      'bos_token_id': end - 1,
      'eos_token_id': end,
    },
    'vision_config': {
      'model_type': 'clip_vision_model',
      **_tower_config(model['image'], model['width']),
      'image_size': size,
      'patch_size': model['image']['patch_size'],
      'num_channels': channels,
    },
  }


def _tower_config(tower: Mapping[str, Any], width: int) -> dict[str, Any]:
  return {
    'hidden_size': tower['width'],
    'num_hidden_layers': tower['depth'],
    'num_attention_heads': tower['num_heads'],
    'intermediate_size': tower['mlp_dim'],
    'hidden_act': huggingface.activation_of(tower),
    'layer_norm_eps': tower['norm_epsilon'],
    'attention_dropout': 0.0,
    'projection_dim': width,
  }
