"""Two views of one image, for learning from what they have in common."""

from typing import Any

import numpy as np

from vit_jax.data import preprocess as preprocess_lib


class TwoViews:
  """Turns a record into an example with two images of it; picklable.

  Attributes:
    first: What is done for the first view.
    second: What is done for the second.
    text: Both pipelines as they were written.
    deterministic: Whether no step of them is random.
  """

  def __init__(
    self, first: preprocess_lib.Preprocess, second: preprocess_lib.Preprocess
  ):
    self.first = first
    self.second = second
    self.text = f'{first.text} and {second.text}'
    self.deterministic = first.deterministic and second.deterministic

  def __call__(
    self, record: dict[str, Any], rng: np.random.Generator | None = None
  ) -> dict[str, np.ndarray]:
    """Returns 'image' and 'view', and what else `Preprocess` gives."""
    view = self.second(record, rng)['image']
    return {**self.first(record, rng), 'view': view}

  def __reduce__(self):
    return TwoViews, (self.first, self.second)
