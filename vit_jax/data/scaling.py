"""Scaling images to another size, by one of three methods.

- bilinear: between the four nearest pixels, so that strong shrinking skips
  some; the fastest.
- area: an output pixel is the average of the area that it covers; bilinear if
  a side grows.
- bicubic: as Pillow does it, of all pixels around those that an output pixel
  covers (antialiased); what CLIP and most PyTorch models were trained with;
  the slowest, and of uint8 only.
"""

import cv2
import numpy as np
from PIL import Image

METHODS = ('bilinear', 'area', 'bicubic')


def check(method: str) -> str:
  """Returns the method; ValueError if there is no such method."""
  if method not in METHODS:
    raise ValueError(
      f'method is {method!r}, expected one of {", ".join(METHODS)}'
    )
  return method


def scale(image: np.ndarray, size: tuple[int, int], method: str) -> np.ndarray:
  """Scales [height, width, 1 or 3] to exactly `size`: (height, width)."""
  if method == 'bicubic':
    return _bicubic(image, size)
  shrinks = size[0] <= image.shape[0] and size[1] <= image.shape[1]
  area = method == 'area' and shrinks
  interpolation = cv2.INTER_AREA if area else cv2.INTER_LINEAR
  scaled = cv2.resize(image, size[::-1], interpolation=interpolation)
  return scaled.reshape(*size, image.shape[2])


def _bicubic(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  if image.dtype != np.uint8:
    raise ValueError(
      'bicubic scaling needs values 0..255; put it before value_range or '
      'standardize'
    )
  picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
  scaled = picture.resize(size[::-1], Image.Resampling.BICUBIC)
  return np.array(scaled).reshape(*size, image.shape[2])
