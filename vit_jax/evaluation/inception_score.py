"""The Inception score: how sure a classifier is, and of how many things.

Salimans et al., arXiv:1606.03498, section 4. It knows nothing of real pictures,
cannot exceed the number of classes, and means something only for a classifier
of what is in the pictures. A small sample makes it too small.
"""

from typing import NamedTuple

import numpy as np

# Of a sample, as in the paper.
PARTS = 10


class Score(NamedTuple):
  """The score of several parts of a sample.

  Attributes:
    mean: over the parts.
    spread: standard deviation between them.
    count: of all examples.
  """

  mean: float
  spread: float
  count: int


def score(probabilities: np.ndarray, parts: int = PARTS) -> Score:
  """Returns exp of the mean KL divergence of predictions to their mean.

  Args:
    probabilities: [n, classes], each row of sum 1, in random order.
    parts: that are scored for themselves, of equal size; what is left over is
      not used.

  Raises:
    ValueError: rows are not probabilities, or there are fewer than parts.
  """
  probabilities = np.asarray(probabilities, np.float64)
  if probabilities.ndim != 2 or len(probabilities) < parts:
    raise ValueError(
      f'probabilities are of the shape {probabilities.shape}, expected '
      f'[n, classes] with n {parts} or more, one for each part'
    )
  if not (
    np.allclose(probabilities.sum(1), 1, atol=1e-3) and probabilities.min() >= 0
  ):
    raise ValueError('rows are no probabilities, 0 or more with a sum of 1')
  size = len(probabilities) // parts
  scores = [
    _score(probabilities[start : start + size])
    for start in range(0, parts * size, size)
  ]
  return Score(
    float(np.mean(scores)), float(np.std(scores)), len(probabilities)
  )


def _score(probabilities: np.ndarray) -> float:
  mean = np.broadcast_to(probabilities.mean(0), probabilities.shape)
  # What never happens adds nothing.
  happens = probabilities > 0
  ratio = np.log(probabilities, where=happens, out=np.zeros_like(mean))
  ratio -= np.log(mean, where=happens, out=np.zeros_like(mean))
  return float(np.exp((probabilities * ratio).sum(1).mean()))
