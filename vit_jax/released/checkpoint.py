"""What a released checkpoint says, once its dialect is out of the way."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np


class ReleasedError(ValueError):
  """A file that is not what it should be, or a model it cannot hold."""


@dataclasses.dataclass(frozen=True)
class Released:
  """A model with its parameters and what else its file tells.

  Attributes:
    dialect: how the file writes names: one of `vit_jax.released.DIALECTS`,
      'inception', which is only read, or 'vit_jax' for parameters of a run.
    model: the section `model` of a configuration, as far as the file
      determines it: `name` and the sizes.
    params: float32 arrays by path, such as 'encoder/block_00/mlp/up/kernel'.
    num_classes: length of the output, 0 without a head.
    grid: rows and columns of patches, None if any number will do and the file
      does not say for which it was trained.
    image_shape: height, width and channels, None where `grid` is.
    class_names: None if the file has none.
    preprocess: how images are prepared for it, in the language of
      `vit_jax.data.preprocess`; None where `image_shape` is.
    statistics: running statistics of batch normalisation, which training does
      not learn, by path.
    tokenizer: of a CLIP: a file of merges, or 'openai' for those that OpenAI
      has released; None where that is not known.
    notes: what a person should know, such as what was not read.
  """

  dialect: str
  model: dict[str, Any]
  params: dict[str, np.ndarray] = dataclasses.field(repr=False)
  num_classes: int
  grid: tuple[int, int] | None = None
  image_shape: tuple[int, int, int] | None = None
  class_names: tuple[str, ...] | None = None
  preprocess: str | None = None
  notes: tuple[str, ...] = ()
  statistics: dict[str, np.ndarray] = dataclasses.field(
    default_factory=dict, repr=False
  )
  tokenizer: str | None = None


def require(model: Mapping[str, Any], dialect: str, **allowed: Any) -> None:
  """Raises ReleasedError if the model has what a dialect cannot express.

  Args:
    model: of the checkpoint to write, or a tower of it.
    dialect: for the message.
    **allowed: by field of `model`, what it may be: a tuple. A field that the
      model does not have counts as its first.
  """
  wrong = [
    f'  {field} is {model[field]!r}, can be ' + ' or '.join(map(repr, values))
    for field, values in allowed.items()
    if model.get(field, values[0]) not in values
  ]
  if wrong:
    raise ReleasedError(
      f'The dialect {dialect!r} cannot express this model:\n'
      + '\n'.join(wrong)
      + '\nIts files hold nothing that would say so, and whoever reads one '
      'would compute something else.'
    )


def preprocess(
  image_shape: tuple[int, ...] | None, crop: bool = False
) -> str | None:
  """Returns how the original code prepares images for evaluation.

  Args:
    image_shape: height, width and channels of the input.
    crop: whether the middle 7/8 of the image is taken, as big_vision does;
      else the whole of it is scaled, whatever its shape.
  """
  if image_shape is None:
    return None
  height, width, _ = image_shape
  if crop and height == width:
    steps = f'resize_small({round(height * 8 / 7)})|central_crop({height})'
  else:
    steps = f'resize({height if height == width else (height, width)})'
  return f'{steps}|value_range(-1, 1)'


def describe(
  dialect: str,
  model: Mapping[str, Any],
  params: Mapping[str, np.ndarray],
  **known: Any,
) -> Released:
  """Returns a `Released` whose remaining fields follow from the others."""
  head = params.get('head/bias')
  text = preprocess(known.get('image_shape'), crop=dialect == 'big_vision')
  return Released(
    dialect=dialect,
    model=dict(model),
    params=dict(params),
    num_classes=0 if head is None else len(head),
    **{'preprocess': text, **known},
  )
