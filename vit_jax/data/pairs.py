"""Turning images with captions into what a model of both learns from."""

import zlib
from typing import Any

import numpy as np

from vit_jax.data import preprocess as preprocess_lib
from vit_jax.data import tokenizer as tokenizer_lib


class PairPreprocess:
  """Turns a record with captions into an example; picklable.

  Attributes:
    image: What is done with images.
    tokenizer: What is done with captions.
    text: The pipeline of images as it was written.
    deterministic: Whether no step of it is random.
  """

  def __init__(
    self, image: preprocess_lib.Preprocess, tokenizer: tokenizer_lib.Tokenizer
  ):
    self.image = image
    self.tokenizer = tokenizer
    self.text = image.text
    self.deterministic = image.deterministic

  def __call__(
    self, record: dict[str, Any], rng: np.random.Generator | None = None
  ) -> dict[str, np.ndarray]:
    """Processes one record.

    Args:
      record: 'image' and 'texts'; see `captions.CaptionSource`.
      rng: Source of randomness, which also chooses one of the captions; None
        takes the first.

    Returns:
      'image': see `Preprocess`; 'text': int32 [context_length]; 'truncated':
      whether the caption was cut, bool scalar; 'identity': int32 scalar, the
      same for records whose first captions are the same.

    Raises:
      images.DecodeError: If the image is damaged.
    """
    texts = record['texts']
    chosen = 0 if rng is None else int(rng.integers(len(texts)))
    tokens, truncated = self.tokenizer([texts[chosen]])
    example = self.image({'image': record['image'], 'label': 0}, rng)
    return {
      'image': example['image'],
      'text': tokens[0],
      'truncated': truncated[0],
      'identity': identity(texts[0]),
    }

  def __reduce__(self):
    return PairPreprocess, (self.image, self.tokenizer)


def identity(caption: str) -> np.int32:
  """Returns a number for a caption, the same in every process."""
  words = tokenizer_lib.clean(caption).encode()
  return np.uint32(zlib.crc32(words)).view(np.int32)
