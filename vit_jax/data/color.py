"""Random changes of colour and sharpness, for learning from views of an image.

Those of SimCLR (Chen et al., arXiv:2002.05709, appendix A) and BYOL (Grill et
al., arXiv:2006.07733, appendix B), with BYOL's numbers. Each acts with a
chance, on uint8 images with 1 or 3 channels.
"""

import cv2
import numpy as np

from vit_jax.data import images

# ITU-R BT.601.
_LUMINANCE = np.float32([0.299, 0.587, 0.114])


def color_jitter(
  brightness: float = 0.4,
  contrast: float = 0.4,
  saturation: float = 0.2,
  hue: float = 0.1,
  chance: float = 0.8,
) -> images.Transform:
  """Shifts brightness, contrast, saturation and hue, in random order.

  Values are clipped after each; grey images have no saturation and no hue.

  Args:
    brightness: Largest value to add or subtract, of a range of 1.
    contrast: Distances from a channel's mean are multiplied with 1 - contrast
      to 1 + contrast.
    saturation: The same for the distance from grey.
    hue: Largest turn of the circle of hues, which is 1.
    chance: Of all of it, from 0 to 1.
  """
  _check_chance(chance, 'color_jitter')
  limits = dict(
    brightness=brightness, contrast=contrast, saturation=saturation, hue=hue
  )
  for name, limit in limits.items():
    if not 0 <= limit <= (0.5 if name == 'hue' else 1):
      raise ValueError(
        f'{name} is a share from 0 to 1, or to 0.5 for hue; got {limit}'
      )
  steps = [
    (_add, -brightness, brightness),
    (_stretch, 1 - contrast, 1 + contrast),
    (_saturate, 1 - saturation, 1 + saturation),
    (_turn, -hue, hue),
  ]

  def transform(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    if rng.random() >= chance:
      return image
    x = image.astype(np.float32) / 255
    for number in rng.permutation(len(steps)):
      change, low, high = steps[number]
      amount = np.float32(low + (high - low) * rng.random())
      if change in (_add, _stretch) or image.shape[2] == 3:
        x = change(x, amount)
        np.clip(x, 0, 1, out=x)
    return cv2.convertScaleAbs(x, alpha=255).reshape(image.shape)

  return transform


def _add(x: np.ndarray, amount: float) -> np.ndarray:
  return x + amount


def _stretch(x: np.ndarray, factor: float) -> np.ndarray:
  mean = np.float32(cv2.mean(x)[: x.shape[2]])
  return factor * x + (1 - factor) * mean


def _saturate(x: np.ndarray, factor: float) -> np.ndarray:
  hsv = cv2.cvtColor(x, cv2.COLOR_RGB2HSV)
  hsv[..., 1] = np.clip(hsv[..., 1] * factor, 0, 1)
  return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def _turn(x: np.ndarray, amount: float) -> np.ndarray:
  hsv = cv2.cvtColor(x, cv2.COLOR_RGB2HSV)
  hsv[..., 0] = (hsv[..., 0] + 360 * amount) % 360
  return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def grayscale(chance: float = 0.2) -> images.Transform:
  """Makes images grey, with as many channels as before.

  Args:
    chance: From 0 to 1.
  """
  _check_chance(chance, 'grayscale')

  def transform(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    if rng.random() >= chance or image.shape[2] == 1:
      return image
    grey = np.rint(image @ _LUMINANCE).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)

  return transform


def blur(
  chance: float = 1.0, sigma_min: float = 0.1, sigma_max: float = 2.0
) -> images.Transform:
  """Blurs with a Gaussian, cut off at a twentieth of the height either side.

  That is a kernel of 23 pixels for images of 224. There is black around the
  image.

  Args:
    chance: From 0 to 1.
    sigma_min: Smallest standard deviation, in pixels.
    sigma_max: Largest one; deviations are drawn uniformly.
  """
  _check_chance(chance, 'blur')
  if not 0 < sigma_min <= sigma_max:
    raise ValueError(
      'deviations are pixels with 0 < sigma_min <= sigma_max; got sigma_min='
      f'{sigma_min}, sigma_max={sigma_max}'
    )

  def transform(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    if rng.random() >= chance:
      return image
    sigma = sigma_min + (sigma_max - sigma_min) * rng.random()
    radius = max(1, image.shape[0] // 20)
    kernel = cv2.getGaussianKernel(2 * radius + 1, sigma, cv2.CV_32F)
    return cv2.sepFilter2D(
      image, -1, kernel, kernel, borderType=cv2.BORDER_CONSTANT
    ).reshape(image.shape)

  return transform


def solarize(chance: float = 0.2, threshold: int = 128) -> images.Transform:
  """Inverts values from a threshold on.

  Args:
    chance: From 0 to 1.
    threshold: 0 to 256.
  """
  _check_chance(chance, 'solarize')
  if not 0 <= threshold <= 256:
    raise ValueError(f'threshold is a value from 0 to 256; got {threshold}')
  values = np.arange(256)
  table = np.where(values < threshold, values, 255 - values).astype(np.uint8)

  def transform(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    if rng.random() >= chance:
      return image
    return cv2.LUT(image, table).reshape(image.shape)

  return transform


def _check_chance(chance: float, step: str) -> None:
  if not 0 <= chance <= 1:
    raise ValueError(f'the chance of {step} is from 0 to 1; got {chance}')
