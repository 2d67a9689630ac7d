"""The crop that DALL-E was trained with."""

import numpy as np

from vit_jax.data import images, scaling


def square_crop(
  size: int,
  least: int,
  most: int,
  low: float = 0.0,
  high: float = 1.0,
  method: str = 'area',
) -> images.Transform:
  """Cuts out a large square, scales it, and cuts `size` out of that.

  The square is as large as the image allows. Its scaled side is drawn evenly
  from `least` to `most`, each of them no more than the side that it has: only a
  square smaller than `size` is enlarged, to that. Source: Ramesh et al.,
  arXiv:2102.12092, listings 1 and 2.

  Args:
    size: Height and width of the output.
    least: Smallest side of the scaled square.
    most: Largest side of it.
    low: Where the square is at least: 0 is the left or the top of what the
      image has beside it.
    high: Where it is at most: 1 is the right or the bottom.
    method: Of scaling: 'bilinear', 'area' or 'bicubic'; see `scaling`.
  """
  if not 0 < size <= least <= most:
    raise ValueError(
      f'size, least and most are {size}, {least} and {most}, expected pixels, '
      'none smaller than the one before'
    )
  if not 0 <= low <= high <= 1:
    raise ValueError(
      f'low and high are {low} and {high}, expected shares, low not above high'
    )
  scaling.check(method)

  def transform(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    side = min(image.shape[:2])
    top, left = (
      round((length - side) * (low + rng.random() * (high - low)))
      for length in image.shape[:2]
    )
    largest = max(size, min(most, side))
    scaled_side = int(rng.integers(min(least, largest), largest + 1))
    square = image[top : top + side, left : left + side]
    scaled = scaling.scale(square, (scaled_side, scaled_side), method)
    top, left = rng.integers(scaled_side - size + 1, size=2)
    return scaled[top : top + size, left : left + size]

  return transform
