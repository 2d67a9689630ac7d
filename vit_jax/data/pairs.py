"""Turning images with captions into what a model of both learns from."""

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from vit_jax.data import code_shards
from vit_jax.data import preprocess as preprocess_lib
from vit_jax.data import tokenizer as tokenizer_lib


class PairPreprocess:
  """Turns a record with captions into an example; picklable.

  Attributes:
    image: What is done with images.
    tokenizer: What is done with captions.
    text: The pipeline of images as it was written.
    deterministic: Whether no step of it is random.
    image_shape: Of images whose codes are read; None of images themselves.
  """

  def __init__(
    self,
    image: preprocess_lib.Preprocess | code_shards.ChooseCrop,
    tokenizer: tokenizer_lib.Tokenizer,
    templates: Sequence[str] = (),
    bpe_dropout: float = 0.0,
  ):
    """Makes it of the preprocessing of both.

    Args:
      image: What is done with images, or with their codes.
      tokenizer: What is done with captions.
      templates: Texts with {} where the caption goes; () for itself alone.
      bpe_dropout: Chance of each merge of a caption to be left out, where
        there is randomness; see `merge_dropout`.

    Raises:
      ValueError: If a template has no place for a caption.
    """
    for template in templates:
      if '{}' not in template:
        raise ValueError(f'the template {template!r} has no {{}}')
    if not 0 <= bpe_dropout <= 1:
      raise ValueError(
        f'bpe_dropout is {bpe_dropout}, expected a share, 0 to 1'
      )
    self.image = image
    self.tokenizer = tokenizer
    self.templates = tuple(templates) or ('{}',)
    self.bpe_dropout = bpe_dropout
    self.image_shape = getattr(image, 'image_shape', None)
    self.text = image.text
    self.deterministic = image.deterministic

  def __call__(
    self, record: dict[str, Any], rng: np.random.Generator | None = None
  ) -> dict[str, np.ndarray]:
    """Processes one record.

    Args:
      record: 'image', or 'codes' of it, and 'texts'; see
        `captions.CaptionSource`.
      rng: Source of randomness, which also chooses one of the captions and one
        of the templates; None takes the first.

    Returns:
      'image' as of `Preprocess`, or 'codes' as of `ChooseCrop`; 'text': int32
      [context_length]; 'truncated': whether the caption was cut, bool scalar;
      'identity': int32 scalar, the same for records whose first captions are
      the same.

    Raises:
      images.DecodeError: If the image is damaged.
    """
    texts = record['texts']
    text, template = _chosen(texts, rng), _chosen(self.templates, rng)
    tokens, truncated = self.tokenizer(
      [template.replace('{}', text)],
      self.bpe_dropout if rng is not None else 0.0,
      rng,
    )
    shown = {k: record[k] for k in ('image', 'codes') if k in record}
    return {
      **self.image(shown, rng),
      'text': tokens[0],
      'truncated': truncated[0],
      'identity': identity(texts[0]),
    }

  def __reduce__(self):
    return PairPreprocess, (
      self.image, self.tokenizer, self.templates, self.bpe_dropout
    )  # fmt: skip


def _chosen(texts: Sequence[str], rng: np.random.Generator | None) -> str:
  if rng is None or len(texts) == 1:
    return texts[0]
  return texts[int(rng.integers(len(texts)))]


def identity(caption: str) -> np.int32:
  """Returns a number for a caption, the same in every process."""
  words = tokenizer_lib.clean(caption).encode()
  return np.uint32(zlib.crc32(words)).view(np.int32)
