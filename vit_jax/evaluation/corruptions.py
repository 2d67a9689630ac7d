"""How a model does on corrupted images.

Corruptions of 5 strengths after ImageNet-C (Hendrycks & Dietterich,
arXiv:1903.12261), computed here, so that they serve any data; what differs
from the released files is said below.

The image that a model gets is corrupted, so after resizing and cropping, as in
ImageNet-C. Random numbers are a function of (seed, index), the same for all
strengths.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import cv2
import numpy as np

from vit_jax.config import ConfigError, did_you_mean
from vit_jax.data import images, preprocess, sources

STRENGTHS = (1, 2, 3, 4, 5)
# Of the images of ImageNet-C, to which sizes in pixels refer.
_SIDE = 224


class Result(NamedTuple):
  """How accurate a model is on corrupted images.

  Attributes:
    clean: accuracy on the images as they are.
    accuracies: of each corruption, at strengths 1 to 5.
  """

  clean: float
  accuracies: Mapping[str, tuple[float, ...]]

  @property
  def mean(self) -> float:
    """The mean over corruptions and strengths."""
    return float(np.mean([*self.accuracies.values()]))


def corrupt(
  image: np.ndarray, name: str, strength: int, *, seed: int = 0, index: int = 0
) -> np.ndarray:
  """Corrupts one image.

  Args:
    image: uint8 [height, width, 1 or 3].
    name: one of CORRUPTIONS.
    strength: 1 to 5.
    seed: of random numbers, 0 or more.
    index: of the image among the others, 0 or more.

  Returns:
    uint8 of the same shape.

  Raises:
    ConfigError: there is no such corruption or strength.
    ValueError: the image is not of this kind.
  """
  check(name, strength)
  if image.dtype != np.uint8 or image.ndim != 3:
    raise ValueError(
      f'an image is {image.dtype} {image.shape}, expected uint8 [height, '
      'width, 1 or 3]; corrupt it before value_range or standardize'
    )
  function, values = CORRUPTIONS[name]
  rng = np.random.default_rng((seed, index))
  result = function(image, values[strength - 1], rng).reshape(image.shape)
  if result.dtype != np.uint8:
    result = np.round(np.clip(result, 0, 1) * 255).astype(np.uint8)
  return result


def check(name: str, strength: int) -> None:
  """Raises ConfigError if there is no such corruption or strength."""
  if name not in CORRUPTIONS:
    raise ConfigError(
      f'{name!r} is no corruption.{did_you_mean(name, CORRUPTIONS)}'
    )
  if strength not in STRENGTHS:
    raise ConfigError(f'The strength is {strength!r}, expected 1 to 5.')


def _gaussian_noise(image, deviation, rng):
  return image / 255 + rng.normal(scale=deviation, size=image.shape)


def _gaussian_blur(image, sigma, rng):
  sigma = sigma * min(image.shape[:2]) / _SIDE
  # Beyond four deviations a weight is less than a grey level.
  size = 2 * round(4 * sigma) + 1
  return cv2.GaussianBlur(
    image, (size, size), sigma, borderType=cv2.BORDER_REPLICATE
  )


def _contrast(image, share, rng):
  image = image / 255
  mean = image.mean(axis=(0, 1))
  return (image - mean) * share + mean


def _brightness(image, more, rng):
  # Hue and saturation stay, the value of HSV, which is the largest, grows.
  image = image / 255
  value = image.max(axis=2, keepdims=True)
  brighter = np.minimum(value + more, 1)
  return np.where(value > 0, image * brighter / value.clip(1e-9), brighter)


def _pixelate(image, share, rng):
  height, width = image.shape[:2]
  small = (max(1, int(width * share)), max(1, int(height * share)))
  image = cv2.resize(image, small, interpolation=cv2.INTER_AREA)
  return cv2.resize(image, (width, height), interpolation=cv2.INTER_NEAREST)


def _jpeg(image, quality, rng):
  # OpenCV takes blue for the first channel, and JPEG keeps it the worst.
  blue_first = np.ascontiguousarray(image[..., ::-1])
  options = [cv2.IMWRITE_JPEG_QUALITY, quality]
  _, data = cv2.imencode('.jpg', blue_first, options)
  if image.shape[2] == 1:
    return cv2.imdecode(data, cv2.IMREAD_GRAYSCALE)
  return cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)


# What each does, and its parameter at each strength; those of ImageNet-C.
CORRUPTIONS: Mapping[str, tuple[Callable[..., np.ndarray], tuple]] = {
  # Standard deviation, of values 0 to 1.
  'gaussian_noise': (_gaussian_noise, (0.08, 0.12, 0.18, 0.26, 0.38)),
  # Standard deviation in pixels where the shorter side is 224, else in
  # proportion (ImageNet-C knows no other sizes).
  'gaussian_blur': (_gaussian_blur, (1, 2, 3, 4, 6)),
  # Share of the distance to the mean colour that remains.
  'contrast': (_contrast, (0.4, 0.3, 0.2, 0.1, 0.05)),
  # Added to the value of HSV, of values 0 to 1.
  'brightness': (_brightness, (0.1, 0.2, 0.3, 0.4, 0.5)),
  # Share of height and width that remains; its pixels are averages.
  'pixelate': (_pixelate, (0.6, 0.5, 0.4, 0.3, 0.25)),
  # Quality of the file.
  'jpeg': (_jpeg, (25, 18, 15, 10, 7)),
}


class CorruptedSource:
  """A source whose images are prepared, as far as bytes go, and corrupted.

  Attributes:
    class_names: see `sources.Source`.
    labels: see `sources.Source`.
  """

  def __init__(
    self,
    source: sources.Source,
    prepare: preprocess.Preprocess | None,
    name: str,
    strength: int,
    seed: int = 0,
  ):
    """Opens nothing.

    Args:
      source: of the images.
      prepare: resizes and crops; None where images are as they should be.
      name: of the corruption.
      strength: of it.
      seed: see `corrupt`.

    Raises:
      ConfigError: there is no such corruption or strength.
    """
    check(name, strength)
    self.class_names = source.class_names
    self._source = source
    self._prepare = prepare
    self._how = (name, strength)
    self._seed = seed

  @property
  def labels(self):
    return self._source.labels

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> dict[str, Any]:
    record = self._source[index]
    if self._prepare:
      image = self._prepare(record)['image']
    elif isinstance(record['image'], np.ndarray):
      image = record['image']
    else:
      image = images.decode(record['image'])
    image = corrupt(image, *self._how, seed=self._seed, index=index)
    return {**record, 'image': image}

  def name(self, index: int) -> str:
    return self._source.name(index)


def split_preprocess(text: str) -> tuple[str, str]:
  """Divides a pipeline into what is done to bytes, and what makes floats.

  Args:
    text: such as 'resize(8)|value_range(-1, 1)'.

  Returns:
    The steps before the first that gives floats, '' if there are none; and
    that one and those after it.
  """
  steps = text.split('|')
  for count in range(1, len(steps) + 1):
    if preprocess.parse('|'.join(steps[:count])).leaves_floats:
      return '|'.join(steps[: count - 1]), '|'.join(steps[count - 1 :])
  raise ConfigError(f'{text!r} leaves bytes, but a model takes floats.')


def figures(result: Result) -> dict[str, float]:
  """Returns a result by the names that it has among a run's metrics."""
  return {
    **{
      f'robustness/{name}': float(np.mean(accuracies))
      for name, accuracies in result.accuracies.items()
    },
    'robustness/mean': result.mean,
    'robustness/clean': result.clean,
  }
