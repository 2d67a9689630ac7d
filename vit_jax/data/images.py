"""Decoding images, and the transforms that pipelines are made of.

An image is an array [height, width, channels] with 1 or 3 channels; uint8 until
`value_range` or `standardize` makes it float32. A transform is a function
`(image, rng) -> image`; those that are not random ignore `rng`, a
`numpy.random.Generator`.
"""

import io
import math
from collections.abc import Callable, Sequence

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from vit_jax.data import jpeg, scaling

Transform = Callable[[np.ndarray, np.random.Generator], np.ndarray]
Size = int | tuple[int, int]

# Examples are processed in parallel; threads inside one only get in the way.
cv2.setNumThreads(0)

_REDUCED = {
  1: cv2.IMREAD_COLOR_RGB,
  2: cv2.IMREAD_REDUCED_COLOR_2,
  4: cv2.IMREAD_REDUCED_COLOR_4,
  8: cv2.IMREAD_REDUCED_COLOR_8,
}
_ORIENTATION = 0x0112
# Pillow's limit, used for JPEG files as well: about 0.5 GB decoded.
_MAX_PIXELS = 2 * Image.MAX_IMAGE_PIXELS


class DecodeError(ValueError):
  """The bytes are not an image that can be decoded whole."""


def decode(data: bytes, reduction: int = 1) -> np.ndarray:
  """Decodes an image file.

  JPEG is decoded by OpenCV, everything else by Pillow. EXIF rotation is
  applied; transparent images are put on white; of 16 bits, the upper 8 remain.
  Damage inside a JPEG scan that the decoder conceals is not noticed.

  Args:
    data: Content of the file.
    reduction: 1, 2, 4 or 8: decode a JPEG at 1 / reduction of its size, which
      is the cheaper the larger the factor. Other formats come at full size.

  Returns:
    uint8 [height, width, 3], RGB; of a reduced JPEG, sizes are rounded up.

  Raises:
    DecodeError: If the file is damaged, cut off, of an unknown format, or too
      large to decode safely (about 179 million pixels).
  """
  try:
    if jpeg.is_jpeg(data):
      return _decode_jpeg(data, reduction)
    return _decode_by_pillow(data)
  except DecodeError:
    raise
  except UnidentifiedImageError as error:
    # Pillow's own message is about a Python object.
    raise DecodeError('not an image of a known format') from error
  # The decoders raise almost anything on malformed input: struct.error,
  # SyntaxError, EOFError, OverflowError, MemoryError, cv2.error, ...
  except Exception as error:
    raise DecodeError(f'{type(error).__name__}: {error}') from error


def _decode_jpeg(data: bytes, reduction: int) -> np.ndarray:
  header = jpeg.read_header(data)
  if header.height * header.width > _MAX_PIXELS:
    raise DecodeError(
      f'{header.height}x{header.width} pixels are over the limit of '
      f'{_MAX_PIXELS}'
    )
  image = cv2.imdecode(np.frombuffer(data, np.uint8), _REDUCED[reduction])
  if image is None:
    raise DecodeError('OpenCV cannot decode this JPEG')
  if reduction > 1:
    cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image)
  return image


def _decode_by_pillow(data: bytes) -> np.ndarray:
  with Image.open(io.BytesIO(data)) as file:
    image = ImageOps.exif_transpose(file)
    if image.mode.startswith('I;16'):
      grey = (np.asarray(image) >> 8).astype(np.uint8)
      return np.repeat(grey[..., None], 3, axis=2)
    if image.has_transparency_data:
      image = image.convert('RGBA')
      white = Image.new('RGBA', image.size, 'white')
      image = Image.alpha_composite(white, image)
    return np.array(image.convert('RGB'))


def inception_crop(
  size: Size,
  area_min: float = 0.05,
  area_max: float = 1.0,
  method: str = 'bilinear',
) -> 'InceptionCrop':
  """Cuts a random box of random shape and scales it to `size`.

  The box covers a uniformly drawn share of the image's area; the logarithm of
  its aspect ratio is uniform between those of 3/4 and 4/3 (times the aspect
  ratio of `size`). After 10 boxes that do not fit, the largest central box of
  allowed shape is taken. Source: Szegedy et al. 2015, section 6.

  Args:
    size: Output size, int or (height, width).
    area_min: Smallest share of the area, 0..1.
    area_max: Largest share of the area, 0..1.
    method: Of scaling: 'bilinear', 'area' or 'bicubic'; see `scaling`.
  """
  if not 0 < area_min <= area_max <= 1:
    raise ValueError(
      f'areas are shares with 0 < area_min <= area_max <= 1; got area_min='
      f'{area_min}, area_max={area_max} (5% is 0.05)'
    )
  return InceptionCrop(_pair(size), area_min, area_max, scaling.check(method))


class InceptionCrop:
  """See `inception_crop`; can also decode only as much as the crop needs."""

  def __init__(
    self,
    size: tuple[int, int],
    area_min: float,
    area_max: float,
    method: str,
  ):
    self._size = size
    self._method = method
    self._areas = (area_min, area_max)
    aspect = size[1] / size[0]
    self._aspects = (aspect * 3 / 4, aspect * 4 / 3)

  def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return self._cut(image, *self.box(*image.shape[:2], rng))

  def from_file(self, data: bytes, rng: np.random.Generator) -> np.ndarray:
    """Decodes and crops; the same as cropping the decoded image, but faster.

    Where the box is at least twice as large as the output, a JPEG is decoded
    at 1/2, 1/4 or 1/8 of its size, never so far that the box becomes smaller
    than the output. This also averages pixels that bilinear scaling would skip.

    Args:
      data: Content of an image file.
      rng: Source of randomness.

    Returns:
      uint8 [height, width, 3].

    Raises:
      DecodeError: See `decode`.
    """
    shape = _shown_shape(data) if jpeg.is_jpeg(data) else None
    if shape is None:
      return self(decode(data), rng)
    top, left, height, width = self.box(*shape, rng)
    enlarged = min(height / self._size[0], width / self._size[1])
    reduction = next(
      factor for factor in (8, 4, 2, 1) if factor <= max(enlarged, 1)
    )
    image = decode(data, reduction)
    if image.shape[:2] != tuple(-(-side // reduction) for side in shape):
      # A contradictory EXIF block, which the decoders read differently.
      return self(decode(data), rng)
    bottom, right = (top + height) // reduction, (left + width) // reduction
    top, left = top // reduction, left // reduction
    return self._cut(image, top, left, bottom - top, right - left)

  def box(
    self, height: int, width: int, rng: np.random.Generator
  ) -> tuple[int, int, int, int]:
    """Draws (top, left, height, width) of a box in an image of given size."""
    low, high = self._areas
    log_low, log_high = map(math.log, self._aspects)
    for _ in range(10):
      area = height * width * (low + rng.random() * (high - low))
      aspect = math.exp(log_low + rng.random() * (log_high - log_low))
      box_width = round(math.sqrt(area * aspect))
      box_height = round(math.sqrt(area / aspect))
      if 0 < box_width <= width and 0 < box_height <= height:
        top = int(rng.random() * (height - box_height + 1))
        left = int(rng.random() * (width - box_width + 1))
        return top, left, box_height, box_width
    aspect = min(max(width / height, self._aspects[0]), self._aspects[1])
    box_width = max(1, min(width, round(height * aspect)))
    box_height = max(1, min(height, round(width / aspect)))
    top, left = (height - box_height) // 2, (width - box_width) // 2
    return top, left, box_height, box_width

  def _cut(self, image, top, left, height, width):
    box = image[top : top + height, left : left + width]
    return scaling.scale(box, self._size, self._method)


def random_crop(size: Size, padding: int = 0) -> Transform:
  """Cuts a box of `size` at a uniformly drawn place.

  Args:
    size: Output size, int or (height, width).
    padding: Width in pixels of a black border put around the image before.
  """
  height, width = _pair(size)
  if padding < 0:
    raise ValueError(f'padding is a number of pixels, 0 or more; got {padding}')

  def transform(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    if padding:
      image = cv2.copyMakeBorder(
        image, padding, padding, padding, padding, cv2.BORDER_CONSTANT
      ).reshape(image.shape[0] + 2 * padding, image.shape[1] + 2 * padding, -1)
    _check_fits(image, height, width, 'random_crop')
    top = int(rng.random() * (image.shape[0] - height + 1))
    left = int(rng.random() * (image.shape[1] - width + 1))
    return image[top : top + height, left : left + width]

  return transform


def flip_lr() -> Transform:
  """Mirrors every second image, left to right."""

  def transform(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    if rng.random() < 0.5:
      return cv2.flip(image, 1).reshape(image.shape)
    return image

  return transform


def resize(size: Size, method: str = 'bilinear') -> Transform:
  """Scales to exactly `size`, changing the aspect ratio.

  Args:
    size: Output size, int or (height, width).
    method: Of scaling: 'bilinear', 'area' or 'bicubic'; see `scaling`.
  """
  pair, method = _pair(size), scaling.check(method)
  return lambda image, rng: scaling.scale(image, pair, method)


def resize_small(size: int, method: str = 'area') -> Transform:
  """Scales the shorter side to `size`, keeping the aspect ratio.

  The longer side is rounded to whole pixels; if bicubic, down, which together
  is what OpenAI's CLIP does.

  Args:
    size: Length of the shorter side in pixels.
    method: Of scaling: 'bilinear', 'area' or 'bicubic'; see `scaling`.
  """
  _pair(size)
  scaling.check(method)
  rounded = math.floor if method == 'bicubic' else round

  def transform(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    # Multiplied first: the quotient may be a hair too small to round down.
    sides, shorter = image.shape[:2], min(image.shape[:2])
    height, width = (rounded(side * size / shorter) for side in sides)
    return scaling.scale(image, (height, width), method)

  return transform


def central_crop(size: Size) -> Transform:
  """Cuts the central box of `size`.

  Args:
    size: Output size, int or (height, width).
  """
  height, width = _pair(size)

  def transform(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    _check_fits(image, height, width, 'central_crop')
    top = (image.shape[0] - height) // 2
    left = (image.shape[1] - width) // 2
    return image[top : top + height, left : left + width]

  return transform


def value_range(low: float, high: float) -> Transform:
  """Maps uint8 0..255 linearly to float32 low..high.

  Args:
    low: What 0 becomes.
    high: What 255 becomes.
  """
  if not low < high:
    raise ValueError(f'low must be below high; got {low} and {high}')
  table = np.linspace(low, high, 256).astype(np.float32)
  return lambda image, rng: cv2.LUT(image, table).reshape(image.shape)


def standardize(
  mean: float | Sequence[float], deviation: float | Sequence[float]
) -> Transform:
  """Maps uint8 0..255 to float32: 0..1, less the mean, by the deviation.

  Args:
    mean: Of values 0..1; one for each channel, or one for all.
    deviation: What is divided by, likewise; more than 0.
  """
  mean, deviation = np.atleast_1d(mean), np.atleast_1d(deviation)
  if mean.ndim > 1 or mean.shape != deviation.shape or len(mean) not in (1, 3):
    raise ValueError(
      'mean and deviation are one number each, or one for each of 3 channels; '
      f'got {mean.tolist()} and {deviation.tolist()}'
    )
  if not ((mean >= 0) & (mean <= 1) & (deviation > 0)).all():
    raise ValueError(
      'mean is of values 0..1 and deviation more than 0; got '
      f'{mean.tolist()} and {deviation.tolist()} (of values 0..255, divide '
      'both by 255)'
    )
  values = np.linspace(0, 1, 256)[:, None]
  # [1, value, channel]
  table = ((values - mean) / deviation).astype(np.float32)[None]

  def transform(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    if len(mean) not in (1, image.shape[2]):
      raise ValueError(
        f'standardize has means of {len(mean)} channels, but an image has '
        f'{image.shape[2]}; put to_rgb before it'
      )
    return cv2.LUT(image, table).reshape(image.shape)

  return transform


def to_rgb() -> Transform:
  """Repeats the channel of a grey image three times; leaves colour as it is."""

  def transform(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image

  return transform


def _shown_shape(data: bytes) -> tuple[int, int] | None:
  """Returns the height and width of a JPEG after EXIF rotation."""
  try:
    header = jpeg.read_header(data)
    if not header.has_exif:
      return header.height, header.width
    with Image.open(io.BytesIO(data)) as image:
      if image.getexif().get(_ORIENTATION, 1) < 5:
        return header.height, header.width
      return header.width, header.height
  except Exception:  # Whatever is wrong, `decode` says it best.
    return None


def _check_fits(image: np.ndarray, height: int, width: int, step: str) -> None:
  if image.shape[0] < height or image.shape[1] < width:
    raise ValueError(
      f'{step}: an image of {image.shape[0]}x{image.shape[1]} is smaller than '
      f'the crop of {height}x{width}; put resize_small or resize before it'
    )


def _pair(size: Size) -> tuple[int, int]:
  """Returns `size` as (height, width)."""
  pair = (size, size) if isinstance(size, int) else size
  if not (
    isinstance(pair, (tuple, list))
    and len(pair) == 2
    and all(isinstance(side, int) and side > 0 for side in pair)
  ):
    raise ValueError(
      f'size is a positive int or (height, width) in pixels; got {size!r}'
    )
  return tuple(pair)
