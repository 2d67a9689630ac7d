"""The images that pictures are made of."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vit_jax.config import ConfigError
from vit_jax.data import folder_source
from vit_jax.training import inputs, records, trained

# Of an image that no preprocessing cuts to nothing.
_ANY_SIZE = (512, 640)


@dataclasses.dataclass(frozen=True)
class Examples:
  """Images, for a model and for a person.

  Attributes:
    names: of their files, or 'test/123'.
    inputs: as the model takes them, float32 [images, height, width, channels].
    pixels: as a person sees them, from 0 to 1, [images, height, width, 3].
    source: where they are from, in words.
  """

  names: tuple[str, ...]
  inputs: np.ndarray
  pixels: np.ndarray
  source: str

  def first(self, number: int) -> 'Examples':
    """Returns the first of them."""
    return Examples(
      self.names[:number],
      self.inputs[:number],
      self.pixels[:number],
      self.source,
    )


def read(
  model: trained.Trained,
  folder: pathlib.Path | None,
  number: int,
  say: inputs.Say,
) -> Examples:
  """Reads images, prepared as for a test of the model.

  They are chosen at random, always the same: fewer are the first of more.

  Args:
    model: whose preprocessing, and whose test data without a folder, to use.
    folder: of image files, and of folders of them.
    number: of images, at most.
    say: is told of those that cannot be read.

  Raises:
    ConfigError: there is none.
  """
  transform = records.open_preprocess(model.config, 'test')
  shape = model.task.image_shape
  names, record, source = _open(model, folder)

  def image(index):
    image = transform(record(index), None)['image']
    return inputs.with_channels(image, shape)

  found = readable(names, image, number, source, say)
  images = np.stack([*found.values()])
  pixels = _pixels(images, transform, shape)
  return Examples(tuple(found), images, pixels, source)


def readable(
  names: Sequence[str],
  read: Callable[[int], Any],
  number: int,
  source: str,
  say: inputs.Say,
) -> dict[str, Any]:
  """Reads some records, chosen at random, always the same; by their names.

  Args:
    names: of all there are.
    read: one of them, by its number.
    number: of records, at most.
    source: where they are from, in words.
    say: is told of those that cannot be read.

  Raises:
    ConfigError: none can be read.
  """
  found, failed = {}, {}
  for index in np.random.default_rng(0).permutation(len(names)):
    if len(found) == number:
      break
    try:
      found[names[index]] = read(index)
    except (OSError, ValueError) as error:
      failed[names[index]] = str(error)
  if not found:
    name, reason = next(iter(failed.items()))
    raise ConfigError(f'No image of {source} can be used. {name}: {reason}')
  for name, reason in failed.items():
    say(name, reason)
  return found


def _open(
  model: trained.Trained, folder: pathlib.Path | None
) -> tuple[Sequence[str], Callable[[int], dict[str, Any]], str]:
  """Returns the names of all images, what reads one, and what they are."""
  if folder is not None:
    names = sorted(folder_source.image_files(folder))
    if not names:
      raise ConfigError(
        f'--images={folder}: there is no image file in this folder.'
      )

    def record(index):
      return {'image': (folder / names[index]).read_bytes(), 'label': 0}

    return names, record, str(folder)
  if not model.config.data.test.source:
    raise ConfigError(
      'A released checkpoint comes without data: name a folder of images, '
      '--images=FOLDER.'
    )
  source = records.open_split(model.config, 'test')
  names = [source.name(index) for index in range(len(source))]
  return names, lambda index: source[int(index)], 'the test data'


def _pixels(
  images: np.ndarray, transform: Callable, shape: tuple[int, int, int]
) -> np.ndarray:
  """Undoes what preprocessing does to the values of each channel."""

  def prepared(value):
    record = {'image': np.full((*_ANY_SIZE, shape[-1]), value, np.uint8)}
    return transform({**record, 'label': 0}, None)['image'][0, 0]

  black, white = prepared(0), prepared(255)
  pixels = ((images - black) / (white - black)).clip(0, 1)
  return np.broadcast_to(pixels, (*pixels.shape[:-1], 3))
