"""Preprocessing pipelines written as text.

  inception_crop(224)|flip_lr|randaugment(2, 10)|value_range(-1, 1)

Steps are the transforms of `images`, `color` and `randaugment`; arguments are
literals, so that a text from a config or a checkpoint can run no code.
"""

import ast
import difflib
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from vit_jax.data import color, images, randaugment, square_crop

_RANDOM: dict[str, Callable[..., images.Transform]] = {
  'inception_crop': images.inception_crop,
  'random_crop': images.random_crop,
  'square_crop': square_crop.square_crop,
  'flip_lr': images.flip_lr,
  'randaugment': randaugment.randaugment,
  'color_jitter': color.color_jitter,
  'grayscale': color.grayscale,
  'blur': color.blur,
  'solarize': color.solarize,
}
_FIXED: dict[str, Callable[..., images.Transform]] = {
  'resize': images.resize,
  'resize_small': images.resize_small,
  'central_crop': images.central_crop,
  'value_range': images.value_range,
  'standardize': images.standardize,
  'to_rgb': images.to_rgb,
}
_STEPS = _RANDOM | _FIXED
# The steps after which values are floats.
_TO_FLOATS = ('value_range', 'standardize')
# The steps that take uint8 only, so they must come before the values change.
_BYTES_ONLY = (
  'randaugment',
  'color_jitter',
  'grayscale',
  'blur',
  'solarize',
  *_TO_FLOATS,
)


class Preprocess:
  """Turns a record into an example; picklable.

  Attributes:
    text: The pipeline as it was written.
    deterministic: Whether no step is random.
    leaves_floats: Whether the images come out as float32, not as uint8.
    bounds: What 0 becomes and what 255 becomes, of several channels the least
      and the largest; None without `leaves_floats`.
  """

  def __init__(self, text: str):
    """Checks the pipeline and builds its steps.

    Args:
      text: Steps joined with '|', each `name` or `name(arguments)`.

    Raises:
      ValueError: If a step is unknown, or its arguments are wrong.
    """
    self.text = text
    calls = [_parse_step(step, text) for step in text.split('|')]
    names = [name for name, _, _ in calls]
    self.deterministic = not any(name in _RANDOM for name in names)
    self.leaves_floats = any(name in _TO_FLOATS for name in names)
    changed = None
    for name in names:
      if changed and name in _BYTES_ONLY:
        raise ValueError(
          f'{name} in {text!r} needs values 0..255; put it before {changed}, '
          f'and write only one of {" and ".join(_TO_FLOATS)}'
        )
      changed = name if name in _TO_FLOATS else changed
    self._steps = [_build_step(*call) for call in calls]
    self.bounds = None
    if self.leaves_floats:
      self.bounds = _bounds(self._steps[names.index(changed)])

  def __call__(
    self, record: dict[str, Any], rng: np.random.Generator | None = None
  ) -> dict[str, np.ndarray]:
    """Processes one record.

    Args:
      record: 'image': uint8 [height, width, channels] or an encoded image;
        'label': int, if there is one.
      rng: Source of randomness; may be None if `deterministic`.

    Returns:
      'image': [height, width, channels], float32 if `leaves_floats`, else
      uint8; 'label': int32 scalar.

    Raises:
      images.DecodeError: If the image is damaged.
      ValueError: If the image does not suit a step, such as a too large crop.
    """
    image, steps = record['image'], self._steps
    if not isinstance(image, np.ndarray):
      if isinstance(steps[0], images.InceptionCrop):
        image, steps = steps[0].from_file(image, rng), steps[1:]
      else:
        image = images.decode(image)
    for step in steps:
      image = step(image, rng)
    if 'label' not in record:
      return {'image': image}
    return {'image': image, 'label': np.int32(record['label'])}

  def __reduce__(self):
    return Preprocess, (self.text,)

  def __repr__(self) -> str:
    return f'Preprocess({self.text!r})'


def parse(text: str) -> Preprocess:
  """Builds a pipeline from its text; see `Preprocess`."""
  return Preprocess(text)


def _parse_step(
  step: str, text: str
) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
  """Returns the name and the arguments of one step."""
  try:
    node = ast.parse(step.strip(), mode='eval').body
    call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
    name = call.func.id
    arguments = tuple(ast.literal_eval(value) for value in call.args)
    keywords = {
      keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords
    }
    if None in keywords:
      raise ValueError('** is not a literal')
  except (SyntaxError, ValueError, AttributeError) as error:
    raise ValueError(
      f'bad step {step.strip()!r} in {text!r}: write name or name(arguments) '
      'with numbers or names in quotes as arguments, and | between steps'
    ) from error
  if name not in _STEPS:
    near = difflib.get_close_matches(name, _STEPS, n=1)
    hint = f'did you mean {_signature(near[0])}? ' if near else ''
    raise ValueError(
      f'unknown step {name!r} in {text!r}: {hint}Steps are '
      f'{", ".join(sorted(_STEPS))}'
    )
  return name, arguments, keywords


def _build_step(
  name: str, arguments: tuple[Any, ...], keywords: dict[str, Any]
) -> images.Transform:
  """Builds one step, saying how to write it if the arguments are wrong."""
  try:
    return _STEPS[name](*arguments, **keywords)
  except (TypeError, ValueError) as error:
    raise ValueError(
      f'wrong arguments of {name}: {error}. Write {_signature(name)}'
    ) from error


def _bounds(to_floats: images.Transform) -> tuple[float, float]:
  """Returns the least and the largest value that a step makes of bytes."""
  black = np.zeros((1, 1, 3), np.uint8)
  low, high = (to_floats(image, None) for image in (black, black + 255))
  return float(low.min()), float(high.max())


def _signature(name: str) -> str:
  """Returns a step as it is to be written, such as 'resize(size)'."""
  parameters = inspect.signature(_STEPS[name]).parameters.values()
  shown = [
    parameter.name
    if parameter.default is parameter.empty
    else f'{parameter.name}={parameter.default!r}'
    for parameter in parameters
  ]
  return f'{name}({", ".join(shown)})' if shown else name
