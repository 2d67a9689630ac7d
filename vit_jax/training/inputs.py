"""What a run reads: opened, checked, and sent to the devices in batches."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from vit_jax.config import ConfigError
from vit_jax.data import pipeline, preprocess, sources
from vit_jax.training import mesh as mesh_lib

Batch = dict[str, jax.Array]
Say = Callable[[str], None]

# Batches that are on their way to the devices while one is computed.
_AHEAD = 2
# What opening can find wrong: each becomes a ConfigError.
_REFUSALS = (ValueError, FileNotFoundError, NotADirectoryError, ImportError)


@dataclasses.dataclass(frozen=True)
class Inputs:
  """What there is to learn from.

  Attributes:
    class_names: the label's meaning, by number.
    image_shape: height, width, channels after preprocessing.
    train_examples: examples of one epoch.
    source: of training and of testing; None where only planned.
    preprocess: of both.
  """

  class_names: tuple[str, ...]
  image_shape: tuple[int, int, int]
  train_examples: int
  source: Mapping[str, sources.Source | None]
  preprocess: Mapping[str, preprocess.Preprocess]


def open_split(config: Any, name: str) -> sources.Source:
  """Opens `config.data.train` or `config.data.test`."""
  section = config.data[name]
  try:
    return sources.open_source(section.source, section.split)
  except _REFUSALS as error:
    raise ConfigError(f'config.data.{name}: {error}') from error


def open_preprocess(config: Any, name: str) -> preprocess.Preprocess:
  """Reads how training or test images are prepared."""
  text = config.data[name].preprocess
  try:
    result = preprocess.parse(text)
  except ValueError as error:
    raise ConfigError(f'config.data.{name}.preprocess: {error}') from error
  if name == 'test' and not result.deterministic:
    raise ConfigError(
      f'config.data.test.preprocess {text!r} is random; evaluation must not '
      "be. Use for example 'resize_small(256)|central_crop(224)|"
      "value_range(-1, 1)'."
    )
  return result


def _planned(config: Any, transforms: Mapping) -> Inputs | None:
  """Returns inputs as `config.data.expected` says, if it says enough."""
  expected = config.data.expected
  if None in expected.to_dict().values():
    return None
  return Inputs(
    tuple(f'class {i}' for i in range(expected.classes)),
    tuple(expected.image_shape),
    expected.train_examples,
    {'train': None, 'test': None},
    transforms,
  )


def open_inputs(config: Any, planned: bool = False) -> Inputs:
  """Opens the data of a run.

  Args:
    config: complete.
    planned: take `config.data.expected` for data that is not there.

  Raises:
    ConfigError: the data is not there, or not as expected.
  """
  names = ('train', 'test')
  transforms = {name: open_preprocess(config, name) for name in names}
  try:
    source = {name: open_split(config, name) for name in names}
  except ConfigError:
    if planned and (inputs := _planned(config, transforms)):
      return inputs
    raise
  shapes = {
    name: tuple(pipeline.example_shape(source[name], transforms[name]))
    for name in names
  }
  if shapes['train'] != shapes['test']:
    raise ConfigError(
      f'Training images are {shapes["train"]} (height, width, channels), test '
      f'images are {shapes["test"]}. Make the preprocessing of both end in '
      'the same size.'
    )
  check_classes(source['train'].class_names, source['test'].class_names)
  inputs = Inputs(
    source['train'].class_names,
    shapes['train'],
    len(source['train']),
    source,
    transforms,
  )
  _check_expected(config, inputs)
  return inputs


def check_classes(train: tuple[str, ...], test: tuple[str, ...]) -> None:
  """Raises ConfigError if test data has other classes than training had."""
  if train == test:
    return
  shown = [', '.join(names[:5]) for names in (train, test)]
  raise ConfigError(
    f'The test data has other classes: {len(test)} ({shown[1]}, ...), but '
    f'training has {len(train)} ({shown[0]}, ...).'
  )


def _check_expected(config: Any, inputs: Inputs) -> None:
  found = dict(
    train_examples=inputs.train_examples,
    classes=len(inputs.class_names),
    image_shape=inputs.image_shape,
  )
  for key, value in found.items():
    expected = config.data.expected[key]
    if expected is not None and expected != value:
      raise ConfigError(
        f'config.data.expected.{key} is {expected}, but the data has {value}. '
        'Check source and split, or correct the expectation.'
      )


def with_channels(image: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
  """Fits a decoded file [height, width, 3] to what a model was trained on.

  Models of grey images get the luminance (ITU-R BT.601).

  Raises:
    ValueError: the size is not that of the training images.
  """
  if shape[-1] == 1 and image.shape[-1] == 3:
    image = image @ np.asarray([[0.299], [0.587], [0.114]], image.dtype)
  if image.shape != shape:
    raise ValueError(
      f'the image is {image.shape} (height, width, channels) after '
      f'preprocessing, the model was trained on {shape}. Resize it, or add '
      "for example '--config.data.test.preprocess=resize(8)|"
      "value_range(-1, 1)'."
    )
  return image


def _told(batches: pipeline.Batches, say: Say) -> Iterator[Any]:
  """Passes batches on, and says which records were skipped as broken."""
  told = set()
  for batch in batches:
    for name in batches.broken.keys() - told:
      say(f'skipped, cannot be read: {name} ({batches.broken[name]})')
      told.add(name)
    yield batch


def train_batches(
  config: Any, inputs: Inputs, mesh: Mesh, start: int, say: Say
) -> Iterator[Batch]:
  """Yields batches on the devices without end, sent ahead of their use.

  Args:
    config: complete.
    inputs: what to read.
    mesh: to send to.
    start: steps that are done already.
    say: is told of broken records.
  """
  with contextlib.closing(
    pipeline.train_batches(
      inputs.source['train'],
      inputs.preprocess['train'],
      batch_size=config.batch_size,
      seed=config.seed,
      start_step=start,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
      workers=config.data.workers,
      max_broken=config.data.max_broken,
    )
  ) as batches:
    queue = []
    for batch in _told(batches, say):
      queue.append(mesh_lib.to_mesh(batch, mesh))
      if len(queue) > _AHEAD:
        yield queue.pop(0)


def test_batches(
  config: Any,
  source: sources.Source,
  transform: preprocess.Preprocess,
  mesh: Mesh,
  say: Say,
) -> Iterator[Batch]:
  """Yields each test example once, on the devices; padding has `mask` 0."""
  with contextlib.closing(
    pipeline.eval_batches(
      source,
      transform,
      batch_size=config.eval.batch_size or config.batch_size,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
      workers=config.data.workers,
      max_broken=config.data.max_broken,
    )
  ) as batches:
    for batch in _told(batches, say):
      yield mesh_lib.to_mesh(batch, mesh)
