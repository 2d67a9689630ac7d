"""Turning images with captions into what a model of both learns from."""

import zlib
from collections.abc import Sequence
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
    self,
    image: preprocess_lib.Preprocess,
    tokenizer: tokenizer_lib.Tokenizer,
    templates: Sequence[str] = (),
  ):
    """Makes it of the preprocessing of both.

    Args:
      image: What is done with images.
      tokenizer: What is done with captions.
      templates: Texts with {} where the caption goes; () for itself alone.

    Raises:
      ValueError: If a template has no place for a caption.
    """
    for template in templates:
      if '{}' not in template:
        raise ValueError(f'the template {template!r} has no {{}}')
    self.image = image
    self.tokenizer = tokenizer
    self.templates = tuple(templates) or ('{}',)
    self.text = image.text
    self.deterministic = image.deterministic

  def __call__(
    self, record: dict[str, Any], rng: np.random.Generator | None = None
  ) -> dict[str, np.ndarray]:
    """Processes one record.

    Args:
      record: 'image' and 'texts'; see `captions.CaptionSource`.
      rng: Source of randomness, which also chooses one of the captions and one
        of the templates; None takes the first.

    Returns:
      'image': see `Preprocess`; 'text': int32 [context_length]; 'truncated':
      whether the caption was cut, bool scalar; 'identity': int32 scalar, the
      same for records whose first captions are the same.

    Raises:
      images.DecodeError: If the image is damaged.
    """
    texts = record['texts']
    text, template = _chosen(texts, rng), _chosen(self.templates, rng)
    tokens, truncated = self.tokenizer([template.replace('{}', text)])
    example = self.image({'image': record['image']}, rng)
    return {
      'image': example['image'],
      'text': tokens[0],
      'truncated': truncated[0],
      'identity': identity(texts[0]),
    }

  def __reduce__(self):
    return PairPreprocess, (self.image, self.tokenizer, self.templates)


def _chosen(texts: Sequence[str], rng: np.random.Generator | None) -> str:
  if rng is None or len(texts) == 1:
    return texts[0]
  return texts[int(rng.integers(len(texts)))]


def identity(caption: str) -> np.int32:
  """Returns a number for a caption, the same in every process."""
  words = tokenizer_lib.clean(caption).encode()
  return np.uint32(zlib.crc32(words)).view(np.int32)
