"""Folders of Hugging Face's transformers: weights, a config, image settings."""

import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from vit_jax.released import archive
from vit_jax.released.checkpoint import Released, ReleasedError, preprocess

WEIGHTS = 'model.safetensors'
CONFIG = 'config.json'
PREPROCESSOR = 'preprocessor_config.json'
# Ours by theirs; the first of several is written.
ACTIVATIONS = {
  'gelu': 'gelu',
  'gelu_pytorch_tanh': 'gelu_tanh',
  'gelu_new': 'gelu_tanh',
  'gelu_fast': 'gelu_tanh',
  'quick_gelu': 'quick_gelu',
}


def is_one(path: pathlib.Path) -> bool:
  """Whether there are weights of this kind."""
  return path.suffix == '.safetensors' or (path / WEIGHTS).is_file()


def weights(path: pathlib.Path) -> pathlib.Path:
  """Returns the file of the weights."""
  return path / WEIGHTS if path.is_dir() else path


def model_type(path: pathlib.Path) -> Any:
  """Returns what the config beside weights says that they are of."""
  return read_json(weights(path).parent / CONFIG).get('model_type')


def activation_of(model: Mapping[str, Any]) -> str:
  """Returns transformers' name of a model's activation."""
  return next(
    theirs
    for theirs, ours in ACTIVATIONS.items()
    if ours == model['activation']
  )


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """Returns the object in a JSON file."""
  try:
    found = json.loads(path.read_text(encoding='utf-8'))
  except FileNotFoundError as error:
    raise ReleasedError(
      f'There is no {path.name} beside the weights, which says what model they '
      'are of. Download it too.'
    ) from error
  except (ValueError, RecursionError) as error:
    raise ReleasedError(f'{path} is not valid JSON: {error}') from error
  if not isinstance(found, dict):
    raise ReleasedError(f'{path} is no JSON object.')
  return found


def write_json(path: pathlib.Path, values: Any, overwrite: bool) -> None:
  """Writes a JSON file; see `archive.replacing`."""
  with archive.replacing(path, overwrite) as temporary:
    temporary.write_text(json.dumps(values, indent=2) + '\n', encoding='utf-8')


def read_preprocess(
  path: pathlib.Path, image_shape: tuple[int, int, int]
) -> tuple[str, list[str]]:
  """Returns how images are prepared, and a note where that is not the same.

  Args:
    path: the settings of the image processor; they need not be there.
    image_shape: height, width and channels of the model's input.
  """
  usual = preprocess(image_shape)
  if not path.is_file():
    return usual, []
  settings = read_json(path)
  height, width, _ = image_shape
  sizes = [None, {'height': height, 'width': width}]
  sizes += [height] if height == width else []
  mean, deviation = 0.0, 1.0
  if settings.get('do_normalize', True):
    mean, deviation = (
      _same_for_all(settings.get(name, [0.5]))
      for name in ('image_mean', 'image_std')
    )
  if settings.get('size') not in sizes or mean is None or not deviation:
    note = f'{path.name} prepares images otherwise than {usual}.'
    return usual, [note]
  low, high = (0 - mean) / deviation, (1 - mean) / deviation
  resize, _, _ = usual.partition('|')
  return f'{resize}|value_range({low:g}, {high:g})', []


def _same_for_all(channels: Any) -> float | None:
  """Returns what is said for all channels, None if they differ."""
  if not isinstance(channels, list) or channels != channels[:1] * len(channels):
    return None
  is_number = channels and isinstance(channels[0], (int, float))
  return float(channels[0]) if is_number else None


def preprocessor_of(released: Released) -> dict[str, Any] | None:
  """Returns the settings of transformers' image processor, if it has such."""
  number = r'(-?[\d.]+)'
  match = re.fullmatch(
    rf'resize\(.*?\)\|value_range\({number}, {number}\)',
    released.preprocess or '',
  )
  if not match:
    return None
  low, high = map(float, match.groups())
  height, width, channels = released.image_shape
  return {
    'image_processor_type': 'ViTImageProcessor',
    'do_resize': True,
    'size': {'height': height, 'width': width},
    'resample': 2,  # Bilinear.
    'do_rescale': True,
    'rescale_factor': 1 / 255,
    'do_normalize': True,
    'image_mean': [-low / (high - low)] * channels,
    'image_std': [1 / (high - low)] * channels,
  }
