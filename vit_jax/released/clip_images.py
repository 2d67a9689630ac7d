"""How images and texts are prepared for CLIP."""

import ast
import re
from collections.abc import Mapping, Sequence
from typing import Any

# Of the pictures that OpenAI trained on.
MEAN = (0.48145466, 0.4578275, 0.40821073)
DEVIATION = (0.26862954, 0.26130258, 0.27577711)
_PREPROCESS = re.compile(
  r"resize_small\((\d+), 'bicubic'\)\|central_crop\((\d+)\)\|"
  r'standardize\((\(.*?\)), (\(.*?\))\)'
)


def preprocess(
  image_shape: tuple[int, int, int],
  mean: Sequence[float] = MEAN,
  deviation: Sequence[float] = DEVIATION,
) -> str:
  """Returns how images are prepared, in `vit_jax.data.preprocess`'s language.

  Args:
    image_shape: height, width and channels of the input.
    mean: subtracted from each channel in [0, 1], before it is
    deviation: divided by this.
  """
  height, width, _ = image_shape
  size = height if height == width else (height, width)
  return (
    f"resize_small({min(height, width)}, 'bicubic')|central_crop({size})|"
    f'standardize({tuple(mean)}, {tuple(deviation)})'
  )


def parse(text: str | None) -> tuple[int, tuple, tuple] | None:
  """Returns size, mean and deviation of a `preprocess`; None of another."""
  match = _PREPROCESS.fullmatch(text or '')
  if not match or match[1] != match[2]:
    return None
  return int(match[1]), *map(ast.literal_eval, match.groups()[2:])


def tokenizer(text: Mapping[str, Any]) -> str | None:
  """Returns whose token ids a text tower takes, as far as its size tells."""
  return 'openai' if text['vocabulary_size'] == 49_408 else None
