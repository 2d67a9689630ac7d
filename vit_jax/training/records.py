"""Sources and preprocessing as a configuration names them, opened."""

from collections.abc import Callable, Sequence
from typing import Any

from vit_jax.config import ConfigError
from vit_jax.data import (
  captions,
  code_shards,
  pairs,
  pipeline,
  preprocess,
  sources,
  tokenizer,
  views,
)
from vit_jax.training import image_codes, schema, texts

# What opening can find wrong: each becomes a ConfigError. TensorFlow Datasets
# asserts that it knows the version.
REFUSALS = (ValueError, OSError, ImportError, AssertionError)


def reads(config: Any) -> str:
  """Returns what the task of a configuration reads, see `vit_jax.tasks`."""
  return schema.TASKS[config.task.name].reads


def ignores_labels(config: Any) -> bool:
  """Returns whether a task that reads labels learns without those of training.

  Then its training data can be any images, with other classes or none.
  """
  share = getattr(schema.TASKS[config.task.name], 'share_of_labels', None)
  return share is not None and not config.task[share]


def open_split(config: Any, name: str) -> Any:
  """Opens `config.data.train` or `config.data.test`."""
  section, where = config.data[name], f'config.data.{name}'
  unlabelled = name == 'train' and ignores_labels(config)
  labelled = reads(config) == 'labels' and not unlabelled
  if labelled or not captions.is_known(section.source):
    if reads(config) == 'captions':
      known = ', '.join(captions.FAMILIES)
      raise ConfigError(
        f'{where}.source {section.source!r} has no captions, which '
        f'{config.task.name} learns from. Sources of captions: {known}.'
      )
    classes = () if unlabelled else config.data.classes
    return open_source(section.source, section.split, classes, where)
  source = texts.open_source(section, where)
  about = image_codes.about(config, name)
  if about:
    image_codes.check(config, name, about)
  return texts.filtered(source, config.data.text, images=not about)


def open_source(
  source: str, split: str, classes: Sequence[str], where: str
) -> sources.Source:
  """Opens a source of labels; ConfigError, beginning with `where`, if not."""
  if captions.is_known(source):
    fields = [f'field:NAME:{one.strip()}' for one in source.split(' + ')]
    labels = ' + '.join(fields)
    raise ConfigError(
      f'{where}: {source!r} has captions and no labels. Name a field of its '
      f'records that holds labels by {labels!r}; to a command that takes it, '
      f'--source={labels!r}.'
    )
  try:
    return sources.open_source(source, split, classes)
  except REFUSALS as error:
    raise ConfigError(f'{where}: {error}') from error


def open_transform(
  config: Any, name: str, words: tokenizer.Tokenizer | None
) -> Callable:
  """Returns what turns records of a split into examples for the task.

  Args:
    config: complete.
    name: 'train' or 'test'.
    words: of the texts, for a task that reads captions.
  """
  image = open_preprocess(config, name)
  if reads(config) == 'captions' and words is not None:
    if about := image_codes.about(config, name):
      image = code_shards.ChooseCrop(image, about.image_shape)
    text = config.data.text
    dropout = text.bpe_dropout if name == 'train' else 0.0
    return pairs.PairPreprocess(image, words, text.templates, dropout)
  second = config.data[name].second_view
  if reads(config) == 'views' or second:
    key = f'config.data.{name}.second_view'
    second = second or image.text
    second = parse_preprocess(second, key, fixed=name == 'test')
    return views.TwoViews(image, second)
  return image


def open_preprocess(config: Any, name: str) -> preprocess.Preprocess:
  """Reads how training or test images are prepared."""
  return parse_preprocess(
    config.data[name].preprocess,
    f'config.data.{name}.preprocess',
    fixed=name == 'test',
    bounds=getattr(schema.TASKS[config.task.name], 'bounds', None),
  )


def parse_preprocess(
  text: str,
  where: str,
  fixed: bool,
  bounds: tuple[float, float] | None = None,
) -> preprocess.Preprocess:
  """Reads how images are prepared for a model.

  Args:
    text: see `vit_jax.data.preprocess`.
    where: it stands, for messages.
    fixed: whether it must not be random.
    bounds: what black and white have to be; None for anything.

  Raises:
    ConfigError: it is not understood, leaves bytes, has other bounds, or is
      random.
  """
  step = 'value_range({:g}, {:g})'.format(*bounds or (-1, 1))
  try:
    result = preprocess.parse(text)
  except ValueError as error:
    raise ConfigError(f'{where}: {error}') from error
  if not result.leaves_floats:
    raise ConfigError(
      f'{where} {text!r} leaves bytes, 0 to 255, but a model takes floats. '
      f"Add '|{step}'."
    )
  if bounds and result.bounds != bounds:
    low, high = result.bounds
    raise ConfigError(
      f'{where} {text!r} makes values from {low:g} to {high:g}, but the model '
      f"takes {bounds[0]:g} to {bounds[1]:g}. Use '{step}'."
    )
  if fixed and not result.deterministic:
    raise ConfigError(
      f'{where} {text!r} is random; evaluation must not be. Use for example '
      f"'resize_small(256)|central_crop(224)|{step}'."
    )
  return result


def check_shape(
  source: Any, transform: Callable, expected: tuple[int, ...], where: str
) -> None:
  """Raises ConfigError if images are not such as a model takes.

  Args:
    source: whose first readable record is looked at.
    transform: how it is prepared; has the `text` that says so.
    expected: height, width, channels.
    where: the source stands, for messages.
  """
  where = f'{where}: preprocess {transform.text!r}'
  try:
    shape = tuple(pipeline.example_shape(source, transform))
  except ValueError as error:
    raise ConfigError(f'{where} fails: {error}.') from error
  if shape != tuple(expected):
    raise ConfigError(
      f'{where} makes {shape} (height, width, channels), but the model takes '
      f'{tuple(expected)}. Resize images to that.'
    )
