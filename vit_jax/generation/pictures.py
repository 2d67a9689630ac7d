"""Generated pictures on disk: PNG files that say how they were made."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, PngImagePlugin

from vit_jax.analysis import contact_sheet
from vit_jax.config import ConfigError
from vit_jax.models.decoding import Sampling

# Names of the texts in a file: one for people and their programs, one for us.
_DESCRIPTION, _FACTS = 'Description', 'vit_jax.generate'
# What the second says at least, of a picture and of a sheet.
_SAID = {
  'prompt', 'line', 'workdir', 'step', 'seed', 'given', 'overrides',
  *Sampling._fields,
}  # fmt: skip


class Picture(NamedTuple):
  """A generated picture, or a sheet of them.

  Attributes:
    image: uint8 [height, width, channels].
    facts: all that it takes to make it again, in types of JSON; see `shown` for
      those of a sheet.
    score: cosine with its text; None where nothing scored it.
  """

  image: np.ndarray
  facts: Mapping[str, Any]
  score: float | None = None


class Given(NamedTuple):
  """An image whose upper part generated pictures have.

  Attributes:
    codes: of all of it, int [rows, columns].
    image: what they mean, uint8 [height, width, channels].
  """

  codes: np.ndarray
  image: np.ndarray


def save(picture: Picture, path: pathlib.Path) -> None:
  """Writes a picture as PNG with how it was made."""
  facts = {**picture.facts, 'score': picture.score}
  _image(picture.image).save(path, pnginfo=_texts(facts))


def save_sheet(
  pictures: Sequence[Picture], path: pathlib.Path, given: Given | None = None
) -> None:
  """Writes pictures of one text on one sheet as PNG with how it was made.

  Args:
    pictures: see `sheet`; their facts differ by `number` alone.
    path: of the file.
    given: see `sheet`.
  """
  facts = {
    **pictures[0].facts,
    'shown': [[one.facts['number'], one.score] for one in pictures],
    'whole': None if given is None else given.codes.tolist(),
  }
  del facts['number']
  sheet(pictures, given).save(path, pnginfo=_texts(facts))


def _texts(facts: Mapping[str, Any]) -> PngImagePlugin.PngInfo:
  """Returns what is written into a file beside its pixels."""
  texts = PngImagePlugin.PngInfo()
  texts.add_itxt(_DESCRIPTION, facts['prompt'])
  texts.add_itxt(_FACTS, json.dumps(facts, ensure_ascii=False))
  return texts


def read(path: pathlib.Path) -> Picture:
  """Reads what `save` or `save_sheet` has written.

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
  try:
    facts = dict(json.loads(found))
  except (TypeError, ValueError):
    facts = {}
  own = {'shown', 'whole'} if 'shown' in facts else {'number'}
  if missing := (_SAID | own).difference(facts):
    raise ConfigError(
      f'{path} does not say all of how it was made ({min(missing)} is '
      'missing): another program has changed it.'
    )
  score = facts.pop('score', None)  # A sheet has many.
  return Picture(image.reshape(*image.shape[:2], -1), facts, score)


def is_sheet(picture: Picture) -> bool:
  """Returns whether what `read` has returned is a sheet."""
  return 'shown' in picture.facts


def shown(
  picture: Picture,
) -> tuple[list[tuple[dict[str, Any], float | None]], np.ndarray | None]:
  """Returns what a sheet shows, in its order.

  Args:
    picture: as `read` returns it.

  Returns:
    Facts and score of each picture, and the codes of the image that was given;
    None without. Of what is no sheet, its own.
  """
  facts = dict(picture.facts)
  if not is_sheet(picture):
    return [(facts, picture.score)], None
  several, whole = facts.pop('shown'), facts.pop('whole')
  own = [({**facts, 'number': number}, score) for number, score in several]
  return own, None if whole is None else np.array(whole, np.int32)


def sheet(
  pictures: Sequence[Picture], given: Given | None = None
) -> Image.Image:
  """Returns pictures of one text on one sheet, numbered, with their scores.

  Args:
    pictures: in the order to show them in.
    given: of which they have the upper part, shown first.
  """
  images = [picture.image for picture in pictures]
  # As the files of single pictures are called.
  labels = [_label(*numbered) for numbered in enumerate(pictures, 1)]
  if given is not None:
    images, labels = [given.image, *images], ['given', *labels]
  return contact_sheet.draw(images, labels, title=pictures[0].facts['prompt'])


def _label(number: int, picture: Picture) -> str:
  score = '' if picture.score is None else f'   {picture.score:.3f}'
  return f'{number}{score}'


def _image(image: np.ndarray) -> Image.Image:
  return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
