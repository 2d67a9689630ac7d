"""How much generated pictures, as a whole, are like real ones.

Frechet distance and Inception score by the features of a network that the
caller chooses, on pictures as they are and after blurring both sides.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from vit_jax.evaluation import frechet, inception_score

# Standard deviations in pixels of the filter that both sides go through.
RADII = (0, 1, 2)
# Fewer pictures than this for each feature: the distance is mostly bias.
_ENOUGH = 2
# Pictures in each part of an Inception score, at least: of one alone it is 1,
# whatever it shows.
_IN_A_PART = 10

Images = Sequence[np.ndarray]


class Network(NamedTuple):
  """What looks at the pictures.

  Attributes:
    name: that figures bear.
    look: from pictures, uint8 [height, width, channels] each, to features [n,
      width] and probabilities of classes [n, classes], None if it knows none.
  """

  name: str
  look: Callable[[Images], tuple[np.ndarray, np.ndarray | None]]


class Quality(NamedTuple):
  """What one filter gives.

  Attributes:
    network: its name.
    width: number of features.
    radius: of the filter; 0 for none.
    distance: Frechet distance to the real pictures, as measured.
    extrapolated: the same without the bias of finite samples; None of fewer
      than 20 pictures.
    score: Inception score; None where the network knows no classes, or of
      fewer than 10 pictures.
    real_score: that of the real pictures.
    real: number of real pictures.
    generated: number of generated pictures.
  """

  network: str
  width: int
  radius: float
  distance: float
  extrapolated: frechet.Extrapolated | None
  score: inception_score.Score | None
  real_score: inception_score.Score | None
  real: int
  generated: int

  @property
  def note(self) -> str:
    """What a reader has to know about the sample."""
    text = (
      f'{self.generated:,} generated against {self.real:,} real pictures, '
      f'{self.width} features of {self.network}; a finite sample makes the '
      'distance too large and the score too small, so compare only figures of '
      'the same network and numbers'
    )
    if min(self.real, self.generated) < _ENOUGH * self.width:
      text += (
        f'. These are few: fewer than {_ENOUGH * self.width:,}, twice the '
        'number of features. Go by the extrapolated distance'
      )
    if min(self.real, self.generated) < _IN_A_PART:
      text += f'. Fewer than {_IN_A_PART} have no Inception score'
    return text


def compare(
  real: Images,
  generated: Images,
  network: Network,
  radii: Sequence[float] = RADII,
) -> list[Quality]:
  """Returns how near generated pictures are to real ones, for each filter.

  Args:
    real: uint8 [height, width, channels] each, as large as those generated:
      the distance sees how pictures were resized.
    generated: likewise, in random order.
    network: that looks at them.
    radii: of the filters.

  Raises:
    ValueError: sizes differ, or there are fewer than two of one.
  """
  shapes = {image.shape for image in (*real, *generated)}
  if len(shapes) > 1:
    raise ValueError(
      f'pictures are of several shapes, {sorted(shapes)}: give all the same '
      'size, real and generated'
    )
  results = []
  for radius in radii:
    sides = [
      network.look([frechet.blurred(image, radius) for image in images])
      for images in (real, generated)
    ]
    features = [found for found, _ in sides]
    scores = [_score(probabilities) for _, probabilities in sides]
    results.append(
      Quality(
        network.name,
        features[0].shape[1],
        radius,
        frechet.distance(*map(frechet.moments, features)),
        _extrapolated(*features),
        scores[1],
        scores[0],
        len(real),
        len(generated),
      )
    )
  return results


def _extrapolated(
  real: np.ndarray, generated: np.ndarray
) -> frechet.Extrapolated | None:
  if min(len(real), len(generated)) < frechet.FEWEST:
    return None
  return frechet.extrapolated(real, generated)


def _score(probabilities: np.ndarray | None) -> inception_score.Score | None:
  if probabilities is None or len(probabilities) < _IN_A_PART:
    return None
  parts = min(inception_score.PARTS, len(probabilities) // _IN_A_PART)
  return inception_score.score(probabilities, parts)


def figures(results: Sequence[Quality]) -> dict[str, float]:
  """Returns results by names that tell network and filter."""
  values = {}
  for result in results:
    start = f'generation/{result.network}'
    end = f'_blur_{result.radius:g}' if result.radius else ''
    values[f'{start}_frechet{end}'] = result.distance
    if found := result.extrapolated:
      values[f'{start}_frechet_extrapolated{end}'] = found.distance
      values[f'{start}_frechet_extrapolated_error{end}'] = found.error
    if result.score and result.real_score:
      for name, score in (('', result.score), ('_real', result.real_score)):
        values[f'{start}_inception_score{name}{end}'] = score.mean
        values[f'{start}_inception_score{name}_spread{end}'] = score.spread
  return values
