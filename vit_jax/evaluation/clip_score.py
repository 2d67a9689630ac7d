"""How well pictures and their captions go together, by a model of both.

The mean cosine of the two features, and CLIPScore, which is 2.5 times that
with nothing below 0 (Hessel et al., arXiv:2104.08718). Only figures of the same
model can be compared; those of a model that chose the pictures flatter them.
"""

from typing import NamedTuple

import numpy as np

_WEIGHT = 2.5


class Score(NamedTuple):
  """Means over pairs.

  Attributes:
    cosine: from -1 to 1.
    clip_score: from 0 to 2.5.
    error: standard error of the cosine.
    count: of pairs.
  """

  cosine: float
  clip_score: float
  error: float
  count: int


def score(cosines: np.ndarray) -> Score:
  """Returns the score of pairs with these cosines, [n], n 1 or more."""
  cosines = np.asarray(cosines, np.float64)
  spread = cosines.std(ddof=1) if len(cosines) > 1 else 0.0
  return Score(
    float(cosines.mean()),
    float(_WEIGHT * cosines.clip(0).mean()),
    float(spread / np.sqrt(len(cosines))),
    len(cosines),
  )
