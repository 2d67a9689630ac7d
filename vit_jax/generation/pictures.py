"""Generated pictures on disk: PNG files that say how they were made."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, PngImagePlugin

from vit_jax.analysis import contact_sheet
from vit_jax.config import ConfigError

# Names of the texts in a file: one for people and their programs, one for us.
_DESCRIPTION, _FACTS = 'Description', 'vit_jax.generate'


class Picture(NamedTuple):
  """A generated picture.

  Attributes:
    image: uint8 [height, width, channels].
    facts: all that it takes to make it again, in types of JSON.
    score: cosine with its text; None where nothing scored it.
  """

  image: np.ndarray
  facts: Mapping[str, Any]
  score: float | None = None


def save(picture: Picture, path: pathlib.Path) -> None:
  """Writes a picture as PNG with how it was made."""
  texts = PngImagePlugin.PngInfo()
  texts.add_itxt(_DESCRIPTION, picture.facts['prompt'])
  facts = {**picture.facts, 'score': picture.score}
  texts.add_itxt(_FACTS, json.dumps(facts, ensure_ascii=False))
  _image(picture.image).save(path, pnginfo=texts)


def read(path: pathlib.Path) -> Picture:
  """Reads a picture that `save` has written.

  Raises:
    ConfigError: it is not there, or says nothing of how it was made.
  """
  try:
    with Image.open(path) as file:
      image, found = np.asarray(file), file.info.get(_FACTS)
  except OSError as error:
    raise ConfigError(f'{path} is no picture that can be read: {error}') from (
      error
    )
  if found is None:
    raise ConfigError(
      f'{path} does not say how it was made: it was not written by '
      'vit_jax.generate, or another program has changed it.'
    )
  facts = json.loads(found)
  score = facts.pop('score')
  return Picture(image.reshape(*image.shape[:2], -1), facts, score)


def sheet(
  pictures: Sequence[Picture], given: np.ndarray | None = None
) -> Image.Image:
  """Returns pictures of one text on one sheet, with number and score.

  Args:
    pictures: in the order to show them in.
    given: of which they have the upper part, shown first.
  """
  images = [picture.image for picture in pictures]
  labels = [_label(picture) for picture in pictures]
  if given is not None:
    images, labels = [given, *images], ['given', *labels]
  return contact_sheet.draw(images, labels, title=pictures[0].facts['prompt'])


def _label(picture: Picture) -> str:
  number = f'#{picture.facts["number"]}'
  if picture.score is None:
    return number
  return f'{number}  {picture.score:.3f}'


def _image(image: np.ndarray) -> Image.Image:
  return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
