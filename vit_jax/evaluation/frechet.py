"""The Frechet distance of generated pictures to real ones.

Both sets are described by mean and covariance of the features that a network
gives them; the distance is that of two normal distributions with these (Heusel
et al., arXiv:1706.08500). With the features of Inception it is called FID.
Distances by different networks, sizes of pictures or numbers of them cannot be
compared.

A finite sample makes the distance too large, by an amount that falls like one
over its size: `extrapolated` takes it off (Chong & Forsyth, arXiv:1911.07023).
"""

from typing import NamedTuple

import cv2
import numpy as np

# Examples that a line can be put through.
FEWEST = 20
# Sizes of sample that `extrapolated` measures, and shares of the whole that
# they are between.
_SIZES, _SMALLEST = 8, 0.2


class Moments(NamedTuple):
  """What is kept of a set of features, in float64.

  Attributes:
    mean: [width].
    covariance: [width, width], unbiased.
    count: of the features.
  """

  mean: np.ndarray
  covariance: np.ndarray
  count: int


class Extrapolated(NamedTuple):
  """The distance of samples without end, as these suggest.

  Attributes:
    distance: the estimate; may be below 0 where the truth is near it.
    error: its standard error, of the fit of a line through several sizes.
  """

  distance: float
  error: float


def moments(features: np.ndarray) -> Moments:
  """Returns mean and covariance of features [n, width], n 2 or more.

  Raises:
    ValueError: they have another shape, or are not finite.
  """
  features = np.asarray(features, np.float64)
  if features.ndim != 2 or len(features) < 2:
    raise ValueError(
      f'features are of the shape {features.shape}, expected [n, width] with '
      'n 2 or more'
    )
  if not np.isfinite(features).all():
    raise ValueError('some features are not finite')
  covariance = np.cov(features, rowvar=False).reshape((features.shape[1],) * 2)
  return Moments(features.mean(0), covariance, len(features))


def distance(one: Moments, other: Moments) -> float:
  """Returns the squared Frechet distance of two normal distributions.

  It is |m - n|^2 + trace(C + D - 2 (C D)^(1/2)); the trace of the root is that
  of the symmetric (C^(1/2) D C^(1/2))^(1/2), whose eigenvalues are real, also
  where there are fewer examples than features.

  Raises:
    ValueError: their widths differ.
  """
  if one.mean.shape != other.mean.shape:
    raise ValueError(
      f'features of widths {len(one.mean)} and {len(other.mean)} cannot be '
      'compared: take both from one network'
    )
  values, vectors = np.linalg.eigh(one.covariance)
  root = vectors * np.sqrt(values.clip(0)) @ vectors.T
  values = np.linalg.eigvalsh(root @ other.covariance @ root)
  apart = np.square(one.mean - other.mean).sum()
  spread = np.trace(one.covariance) + np.trace(other.covariance)
  return float(apart + spread - 2 * np.sqrt(values.clip(0)).sum())


def extrapolated(
  real: np.ndarray, generated: np.ndarray, seed: int = 0
) -> Extrapolated:
  """Returns the distance that samples without end would have.

  Several sizes of sample, the same of both sets, are measured, and a line
  against one over the size is followed to 0.

  Args:
    real: features [n, width].
    generated: features [m, width].
    seed: of which features are in a sample.

  Raises:
    ValueError: there are fewer than FEWEST of one.
  """
  most = min(len(real), len(generated))
  if most < FEWEST:
    raise ValueError(
      f'{most} examples are too few to extrapolate: {FEWEST} or more'
    )
  # Even in one over the size, so that the line is held at both ends.
  inverse = np.linspace(1, 1 / _SMALLEST, _SIZES) / most
  sizes = np.rint(1 / inverse).astype(int)
  rng = np.random.default_rng(seed)
  distances = []
  for size in sizes:
    rows = (rng.permutation(len(x))[:size] for x in (real, generated))
    samples = (x[chosen] for x, chosen in zip((real, generated), rows))
    distances.append(distance(*map(moments, samples)))
  (_, limit), covariance = np.polyfit(1 / sizes, distances, 1, cov=True)
  return Extrapolated(float(limit), float(np.sqrt(covariance[1, 1])))


def blurred(image: np.ndarray, radius: float) -> np.ndarray:
  """Returns a picture after a Gaussian filter, uint8 [height, width, channels].

  A network that writes pictures in codes loses fine structure; with both sets
  blurred, what remains is compared (Ramesh et al., arXiv:2102.12092, figure 9).

  Args:
    image: uint8 [height, width, channels].
    radius: standard deviation in pixels; 0 leaves the picture as it is.
  """
  if not radius:
    return image
  result = cv2.GaussianBlur(image, (0, 0), radius)
  return result.reshape(image.shape)
