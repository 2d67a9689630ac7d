"""Draws pictures of texts by a trained model."""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from vit_jax.config import ConfigError
from vit_jax.models.decoding import Sampling, candidate_keys
from vit_jax.training import image_codes, inputs, records, trained
from vit_jax.training import mesh as mesh_lib

# Pictures that are drawn at a time, on each device.
_AT_A_TIME = 32


class Wanted(NamedTuple):
  """A picture to draw; with a seed, that is all that its noise depends on.

  Attributes:
    text: to draw.
    line: of the text, among those of one request.
    number: of the picture, among those of the text.
  """

  text: str
  line: int
  number: int


class Sampler:
  """A model of text to image, ready to draw.

  Attributes:
    model: it.
    rows: of the grid of codes.
  """

  def __init__(self, model: trained.Trained):
    """Takes a model.

    Raises:
      ConfigError: it does not make images of texts, or only their codes.
    """
    if not hasattr(model.task, 'sample'):
      raise ConfigError(
        f'A {model.config.model.name} trained for {model.config.task.name} '
        'does not draw pictures. Give the run of a text_to_image.'
      )
    image_codes.check_can_decode(model.task)
    self.model = model
    self.rows = model.task.model.grid[0]
    self._draw = jax.jit(self._pictures)
    self._encode = jax.jit(model.task.encode)
    self._decode = jax.jit(model.task.decode)

  def _pictures(
    self,
    variables: Any,
    text: jax.Array,
    keys: jax.Array,
    sampling: Sampling,
    given: jax.Array | None,
  ) -> jax.Array:
    """Returns pictures, 0..1 [texts, pictures, height, width, channels]."""
    task = self.model.task
    codes = task.sample(variables, text, keys, sampling, given)
    flat = codes.reshape(-1, *task.model.grid)
    pictures = task.decode(variables, flat)
    return pictures.reshape(*keys.shape, *pictures.shape[1:])

  def cut(self, texts: Sequence[str]) -> list[str]:
    """Returns the texts that are too long, whose ends are not read."""
    _, truncated = self.model.task.tokenizer(texts)
    return [text for text, is_cut in zip(texts, truncated) if is_cut]

  def encode(self, images: Sequence[np.ndarray | bytes]) -> np.ndarray:
    """Returns the codes of images, int32 [images, rows, columns].

    Args:
      images: uint8 [height, width, channels] or the bytes of a file each; they
        are prepared as the test images of the run.

    Raises:
      ValueError: one cannot be read, or has another size after that.
    """
    shape = self.model.task.image_shape
    prepared = [inputs.with_channels(self.prepare(x), shape) for x in images]
    return self._in_batches(self._encode, np.stack(prepared))

  def decode(self, codes: np.ndarray) -> np.ndarray:
    """Returns the pictures, uint8, of codes [pictures, rows, columns]."""
    return _as_bytes(self._in_batches(self._decode, codes))

  def _in_batches(self, function: Callable, x: np.ndarray) -> np.ndarray:
    """Applies a compiled function of variables and arrays to any number."""
    found = mesh_lib.in_batches(
      functools.partial(function, self.model.variables),
      x,
      self.model.whole_batch(min(_AT_A_TIME, len(x))),
      self.model.mesh,
    )
    return np.concatenate(list(found))

  def prepare(self, image: np.ndarray | bytes) -> np.ndarray:
    """Returns an image as the run saw it in its tests, as floats."""
    transform = records.open_preprocess(self.model.config, 'test')
    return transform({'image': image}, None)['image']

  def draw(
    self,
    wanted: Sequence[Wanted],
    seed: int,
    sampling: Sampling,
    given: np.ndarray | None = None,
  ) -> Iterator[np.ndarray]:
    """Yields pictures, in their order.

    Args:
      wanted: what to draw; pictures of one text are cheapest side by side.
      seed: of the random numbers.
      sampling: how to draw.
      given: int [rows, columns], codes of the upper rows of all pictures.

    Yields:
      uint8 [height, width, channels].

    Raises:
      ConfigError: settings or given rows that cannot be.
    """
    self._check(sampling, given)
    shards = mesh_lib.batch_shards(self.model.mesh)
    rows, pictures = _rows(wanted, shards)
    size = self.model.whole_batch(
      min(len(rows), -(-_AT_A_TIME * shards // pictures))
    )
    keys = candidate_keys(
      seed,
      1 + max(one.line for one in wanted),
      1 + max(one.number for one in wanted),
    )

    def prepare(some):
      tokens, _ = self.model.task.tokenizer([row[0].text for row in some])
      filled = [row + row[-1:] * (pictures - len(row)) for row in some]
      lines = np.array([[one.line for one in row] for row in filled])
      numbers = np.array([[one.number for one in row] for row in filled])
      codes = None
      if given is not None:
        codes = np.tile(given.reshape(1, -1), (len(some), 1))
      return tokens, keys[lines, numbers], codes

    def draw(batch):
      tokens, some_keys, codes = batch
      return self._draw(
        self.model.variables, tokens, some_keys, sampling, codes
      )

    found = mesh_lib.in_batches(draw, rows, size, self.model.mesh, prepare)
    for row, images in zip(rows, itertools.chain.from_iterable(found)):
      yield from _as_bytes(images[: len(row)])

  def _check(self, sampling: Sampling, given: np.ndarray | None) -> None:
    """Raises ConfigError for what cannot be drawn."""
    try:
      sampling.check()
    except ValueError as error:
      raise ConfigError(str(error)) from error
    # At 1, what is drawn without the text does not count.
    guides = sampling.guidance not in (None, 1)
    if guides and not self.model.task.caption_dropout:
      raise ConfigError(
        f'guidance is {sampling.guidance}, which goes beyond what is drawn '
        'without a text, but this model was trained with '
        'config.task.caption_dropout=0 and has never drawn without one: leave '
        'it out, or train with a dropout such as 0.1.'
      )
    if given is not None and not 0 < len(given) < self.rows:
      raise ConfigError(
        f'{len(given)} rows are given, but a picture of this model has '
        f'{self.rows}: give 1 to {self.rows - 1}, so that some are left to '
        'draw.'
      )


def _rows(
  wanted: Sequence[Wanted], shards: int
) -> tuple[list[list[Wanted]], int]:
  """Returns pictures of one text in each row, and how many fit in a row.

  What is computed of a text is shared by the pictures of a row. Rows are
  split over devices, so that those of one text are on all of them.
  """
  texts = [
    list(several) for _, several in itertools.groupby(wanted, lambda x: x[:2])
  ]
  most = max(map(len, texts))
  length = min(-(-most // shards), _AT_A_TIME)
  rows = [
    several[start : start + length]
    for several in texts
    for start in range(0, len(several), length)
  ]
  return rows, length


def _as_bytes(pictures: np.ndarray) -> np.ndarray:
  """Returns pictures, 0..1, as uint8."""
  pictures = np.asarray(pictures, np.float32)
  return np.rint(255 * pictures.clip(0, 1)).astype(np.uint8)
