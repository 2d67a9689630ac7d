"""RandAugment (Cubuk et al. 2019, https://arxiv.org/abs/1909.13719).

Operations and ranges are those of the EfficientNet code, which the recipes of
'How to train your ViT?' (https://arxiv.org/abs/2106.10270) use: each layer
applies one of 16 operations, drawn uniformly, always, at one fixed magnitude.
With `share` = magnitude / 10:

  operation     argument                              at magnitude 10, 15, 20
  auto_contrast stretch each channel to 0..255        -
  equalize      flatten each channel's histogram      -
  invert        255 - value                           -
  rotate        +-30 * share degrees                  30, 45, 60
  posterize     keep int(4 * share) upper bits        4, 6, 8 (= unchanged)
  solarize      invert from int(256 * share) on       256, 384, 512 (unchanged)
  solarize_add  add int(110 * share) to values < 128  110, 165, 220
  color         0.1 + 1.8 * share times saturation    1.9, 2.8, 3.7
  contrast      the same factor, from the mean grey   1.9, 2.8, 3.7
  brightness    the same factor, from black           1.9, 2.8, 3.7
  sharpness     the same factor, from a blurred copy  1.9, 2.8, 3.7
  shear_x, _y   +-0.3 * share pixels per pixel        0.3, 0.45, 0.6
  translate_x, _y  +-100 * share pixels               100, 150, 200
  cutout        square of half side int(40 * share)   40, 60, 80

A magnitude beyond 10 extrapolates, so posterize and solarize become weaker, as
they do there. Uncovered pixels are grey, 128. Pixels are meant at 224 pixels
or so: small images want small magnitudes. Two deliberate differences: contrast
blends with the mean grey value, as the paper's Pillow operation does (there,
by mistake, with the number of pixels / 256); and solarize leaves an image
unchanged from magnitude 10 on, where the original's comparison of a byte with
256 depends on the version of TensorFlow.
"""

import math

import cv2
import numpy as np

from vit_jax.data import images

_MAX_LEVEL = 10
_FILL = 128
_VALUES = np.arange(256)


def randaugment(layers: int, magnitude: float) -> images.Transform:
  """Applies `layers` random operations, one after the other.

  Args:
    layers: Number of operations, 0 or more (N in the paper).
    magnitude: Strength of each, 0 to 30 (M in the paper); 10 is the end of
      the range that the operations were designed for.

  Returns:
    A transform of uint8 images with 1 or 3 channels.
  """
  if not isinstance(layers, int) or layers < 0:
    raise ValueError(f'layers is a number of operations; got {layers!r}')
  if not 0 <= magnitude <= 30:
    raise ValueError(f'magnitude is from 0 to 30; got {magnitude!r}')
  share = magnitude / _MAX_LEVEL

  def transform(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    for _ in range(layers):
      operation = OPERATIONS[int(rng.random() * len(OPERATIONS))]
      image = operation(image, share, rng)
    return image

  return transform


def auto_contrast(image, share, rng):
  """Stretches each channel linearly to 0..255."""
  del share, rng
  tables = []
  for channel in cv2.split(image):
    low, high = int(channel.min()), int(channel.max())
    if low == high:
      tables.append(_VALUES)
    else:
      stretched = (_VALUES - low) * 255 // (high - low)
      tables.append(np.clip(stretched, 0, 255))
  return _look_up(image, tables)


def equalize(image, share, rng):
  """Makes each channel's histogram as flat as a table of values can."""
  del share, rng
  tables = []
  for channel in cv2.split(image):
    counts = np.bincount(channel.reshape(-1), minlength=256)
    # Pillow's rule: the brightest value present does not count as a step.
    step = (counts.sum() - counts[counts.nonzero()[0][-1]]) // 255
    if step:
      below = np.concatenate([[0], np.cumsum(counts)[:-1]])
      tables.append(np.minimum((below + step // 2) // step, 255))
    else:
      tables.append(_VALUES)
  return _look_up(image, tables)


def invert(image, share, rng):
  """Negates the image."""
  del share, rng
  return 255 - image


def rotate(image, share, rng):
  """Turns the image about its centre."""
  angle = math.radians(_random_sign(30 * share, rng))
  cosine, sine = math.cos(angle), math.sin(angle)
  middle_x, middle_y = (image.shape[1] - 1) / 2, (image.shape[0] - 1) / 2
  return _warp(
    image,
    [cosine, -sine, middle_x - cosine * middle_x + sine * middle_y],
    [sine, cosine, middle_y - sine * middle_x - cosine * middle_y],
  )


def posterize(image, share, rng):
  """Keeps the upper bits of each value."""
  del rng
  lost = max(0, 8 - int(4 * share))
  return _look_up(image, [(_VALUES >> lost) << lost])


def solarize(image, share, rng):
  """Inverts the values from a threshold on."""
  del rng
  threshold = int(256 * share)
  return _look_up(
    image, [np.where(threshold > _VALUES, _VALUES, 255 - _VALUES)]
  )


def solarize_add(image, share, rng):
  """Brightens the dark half of the values."""
  del rng
  brighter = np.minimum(_VALUES + int(110 * share), 255)
  return _look_up(image, [np.where(_VALUES < 128, brighter, _VALUES)])


def color(image, share, rng):
  """Changes the saturation; a grey image stays as it is."""
  del rng
  if image.shape[2] == 1:
    return image
  grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
  return _blend(cv2.merge([grey] * 3), image, _factor(share))


def contrast(image, share, rng):
  """Moves values away from, or towards, the mean grey value."""
  del rng
  grey = image
  if image.shape[2] == 3:
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
  mean, factor = int(grey.mean() + 0.5), _factor(share)
  return _look_up(image, [np.clip(mean + factor * (_VALUES - mean), 0, 255)])


def brightness(image, share, rng):
  """Multiplies the values."""
  del rng
  return _look_up(image, [np.clip(_factor(share) * _VALUES, 0, 255)])


def sharpness(image, share, rng):
  """Moves values away from, or towards, a smoothed copy; not at the edge."""
  del rng
  if min(image.shape[:2]) < 3:
    return image
  kernel = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13
  smooth = image.copy()
  smooth[1:-1, 1:-1] = cv2.filter2D(image, -1, kernel).reshape(image.shape)[
    1:-1, 1:-1
  ]
  return _blend(smooth, image, _factor(share))


def shear_x(image, share, rng):
  """Shifts each row by its number times a constant."""
  return _warp(image, [1, _random_sign(0.3 * share, rng), 0], [0, 1, 0])


def shear_y(image, share, rng):
  """Shifts each column by its number times a constant."""
  return _warp(image, [1, 0, 0], [_random_sign(0.3 * share, rng), 1, 0])


def translate_x(image, share, rng):
  """Shifts the image sideways."""
  return _warp(image, [1, 0, _random_sign(100 * share, rng)], [0, 1, 0])


def translate_y(image, share, rng):
  """Shifts the image up or down."""
  return _warp(image, [1, 0, 0], [0, 1, _random_sign(100 * share, rng)])


def cutout(image, share, rng):
  """Covers a square around a random pixel with grey."""
  half = int(40 * share)
  row = int(rng.random() * image.shape[0])
  column = int(rng.random() * image.shape[1])
  image = image.copy()
  image[
    max(0, row - half) : row + half, max(0, column - half) : column + half
  ] = _FILL
  return image


OPERATIONS = (
  auto_contrast,
  equalize,
  invert,
  rotate,
  posterize,
  solarize,
  color,
  contrast,
  brightness,
  sharpness,
  shear_x,
  shear_y,
  translate_x,
  translate_y,
  cutout,
  solarize_add,
)


def _factor(share: float) -> float:
  """Returns how far the enhancing operations blend; 1 changes nothing."""
  return 0.1 + 1.8 * share


def _random_sign(value: float, rng: np.random.Generator) -> float:
  return value if rng.random() < 0.5 else -value


def _look_up(image: np.ndarray, tables: list) -> np.ndarray:
  """Maps values by one table of 256 for all channels, or one for each."""
  table = np.stack(tables, axis=-1).astype(np.uint8)[None]
  return cv2.LUT(image, table).reshape(image.shape)


def _blend(start: np.ndarray, end: np.ndarray, factor: float) -> np.ndarray:
  """Returns start + factor * (end - start), clipped and cut to whole values."""
  start = start.astype(np.float32)
  mixed = start + np.float32(factor) * (end - start)
  return np.clip(mixed, 0, 255).astype(np.uint8)


def _warp(image: np.ndarray, row_x: list, row_y: list) -> np.ndarray:
  """Fetches each output pixel (x, y) from (row_x, row_y) . (x, y, 1)."""
  warped = cv2.warpAffine(
    image,
    np.array([row_x, row_y], np.float64),
    image.shape[1::-1],
    flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP,
    borderMode=cv2.BORDER_CONSTANT,
    borderValue=(_FILL,) * 4,
  )
  return warped.reshape(image.shape)
