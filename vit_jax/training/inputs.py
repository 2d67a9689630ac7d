"""What a run reads: opened, checked, and sent to the devices in batches."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from vit_jax.config import ConfigError
from vit_jax.data import captions, pipeline, sources, tfds_source, unique_order
from vit_jax.training import image_codes, records, texts
from vit_jax.training import mesh as mesh_lib
from vit_jax.training.build import Known

Batch = dict[str, jax.Array]
# Is told the name of a broken record and what is wrong with it.
Say = Callable[[str, str], None]

# Batches that are on their way to the devices while one is computed.
_AHEAD = 2
# What it finds where the data is not, but may be elsewhere.
_ABSENT = (FileNotFoundError, ImportError, tfds_source.UnknownDatasetError)


@dataclasses.dataclass(frozen=True)
class Inputs:
  """What there is to learn from.

  Attributes:
    known: what it tells of itself.
    train_examples: examples of one epoch.
    source: of training and of testing; None where only planned.
    preprocess: of both.
    order: of training records; None shuffles all of them.
    planned: whether this is only what `config.data.expected` says.
    codes: whether training reads codes of images, not images.
    names: arrays of a training batch that the task takes.
  """

  known: Known
  train_examples: int
  source: Mapping[str, Any]
  preprocess: Mapping[str, Callable]
  order: unique_order.UniqueOrder | None = None
  planned: bool = False
  codes: bool = False
  names: tuple[str, ...] = ()


def _absent(config: Any, name: str) -> bool:
  """Returns whether some data of a split is not here.

  Raises:
    ConfigError: a source or the split could not be opened anywhere.
  """
  section, absent = config.data[name], False
  family = captions if captions.is_known(section.source) else sources
  for source in section.source.split(' + '):
    try:
      family.open_source(source, section.split)
    except _ABSENT:
      absent = True
    except records.REFUSALS as error:
      raise ConfigError(f'config.data.{name}: {error}') from error
  return absent


def _planned(config: Any, transforms: Mapping) -> Inputs:
  """Returns inputs as `config.data.expected` says."""
  expected = config.data.expected
  shape = expected.image_shape
  sizes = (expected.train_examples, expected.classes or 1, *shape)
  if len(shape) != 3 or not all(isinstance(x, int) and x > 0 for x in sizes):
    raise ConfigError(
      f'config.data.expected is {expected.to_dict()}; expected are 1 or more '
      'examples and classes, and an image_shape such as (224, 224, 3).'
    )
  for name, transform in transforms.items():
    _check_planned_shape(name, transform, shape)
  names = tuple(f'class {i}' for i in range(expected.classes or 0))
  return Inputs(
    Known(names, shape),
    expected.train_examples,
    {'train': None, 'test': None},
    transforms,
    planned=True,
    codes=config.data.train.source.startswith('codes:'),
  )


def _check_planned_shape(
  name: str, transform: Callable, shape: tuple[int, int, int]
) -> None:
  """Raises ConfigError if no kind of image can come out as `shape`.

  Tried are an image as from a camera, and one that has the shape already.
  """
  found = []
  for tried in ((512, 640, shape[-1]), shape):
    record = {'image': np.zeros(tried, np.uint8), 'label': 0}
    try:
      example = transform(record, np.random.default_rng(0))
    except ValueError as error:
      found.append(f'cannot prepare {tried}: {error}')
    else:
      if example['image'].shape == shape:
        return
      found.append(f'makes {example["image"].shape} of {tried}')
  raise ConfigError(
    f'config.data.{name}.preprocess {transform.text!r} {found[0]} (height, '
    f'width, channels), but config.data.expected.image_shape is {shape}. Make '
    'them the same.'
  )


def _example_shape(
  name: str, source: Any, transform: Callable
) -> tuple[int, ...]:
  """Returns the shape of an example; ConfigError if it cannot be made."""
  try:
    return tuple(pipeline.example_shape(source, transform))
  except ValueError as error:
    notes = ' '.join(getattr(error, '__notes__', ()))
    raise ConfigError(
      f'config.data.{name}.preprocess {transform.text!r} fails: {error}. '
      f'{notes}'
    ) from error


def open_inputs(
  config: Any, planned: bool = False, frozen: Any = None
) -> Inputs:
  """Opens the data of a run.

  Args:
    config: complete.
    planned: take `config.data.expected` for data that is not there.
    frozen: the `vit_jax.training.frozen.Frozen` of the task; None without.

  Raises:
    ConfigError: the data is not there, or not as expected.
  """
  names = ('train', 'test')
  reads = records.reads(config)
  _check_used(config, reads)
  expected = config.data.expected
  needed = ['train_examples', 'image_shape']
  if reads == 'labels':
    needed.append('classes')
  enough = all(expected[key] is not None for key in needed)
  if planned and enough and any([_absent(config, name) for name in names]):
    return _planned(
      config,
      {name: records.open_transform(config, name, None) for name in names},
    )
  for name in names:
    # First, since another discrete VAE explains whatever else does not fit.
    image_codes.check_same_vae(config, name, frozen)
  source = {name: records.open_split(config, name) for name in names}
  words = None
  if reads == 'captions':
    words = texts.open_tokenizer(config, source['train'])
  transforms = {
    name: records.open_transform(config, name, words) for name in names
  }
  shapes = {
    name: _example_shape(name, source[name], transforms[name]) for name in names
  }
  if shapes['train'] != shapes['test']:
    raise ConfigError(
      f'Training images are {shapes["train"]} (height, width, channels), test '
      f'images are {shapes["test"]}. Make the preprocessing of both end in '
      'the same size.'
    )
  classes = ()
  if reads == 'labels':
    classes = source['test'].class_names
    if not records.ignores_labels(config):
      check_classes(source['train'].class_names, classes)
  inputs = Inputs(
    Known(classes, shapes['train'], words),
    len(source['train']),
    source,
    transforms,
    texts.order(source['train'], config) if reads == 'captions' else None,
    codes=image_codes.about(config, 'train') is not None,
  )
  _check_expected(config, inputs)
  return inputs


def _check_used(config: Any, reads: str) -> None:
  """Raises ConfigError for keys of the data that the task has no use for."""
  if reads == 'captions' and config.data.classes:
    raise ConfigError(
      f'config.data.classes chooses labels, but {config.task.name} reads '
      "captions. Use a condition: '... where FIELD=VALUE'."
    )
  for key in ('tokenizer', 'bpe_dropout', 'unique'):
    if reads != 'captions' and config.data.text[key]:
      raise ConfigError(
        f'config.data.text.{key} is set, but {config.task.name} reads no '
        'captions: leave it out.'
      )


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
    classes=len(inputs.known.class_names),
    image_shape=inputs.known.image_shape,
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
    height, width = shape[:2]
    size = height if height == width else (height, width)
    raise ValueError(
      f'the image is {image.shape} (height, width, channels) after '
      f'preprocessing, the model was trained on {shape}. Resize it, or put '
      f"'resize({size})|' before what config.data.test.preprocess says."
    )
  return image


def _told(batches: pipeline.Batches, say: Say) -> Iterator[Any]:
  """Passes batches on, and says which records were skipped as broken."""
  told = set()
  for batch in batches:
    for name in batches.broken.keys() - told:
      say(name, batches.broken[name])
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
      order=inputs.order,
      start_step=start,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
      workers=config.data.workers,
      max_broken=config.data.max_broken,
    )
  ) as batches:
    sent = (
      mesh_lib.to_mesh({name: batch[name] for name in inputs.names}, mesh)
      for batch in _told(batches, say)
    )
    # The others can come while the step is compiled.
    yield next(sent)
    queue = []
    for batch in sent:
      queue.append(batch)
      if len(queue) > _AHEAD:
        yield queue.pop(0)


def test_batches(
  config: Any,
  source: Any,
  transform: Callable,
  mesh: Mesh,
  say: Say,
  max_broken: float | None = None,
) -> Iterator[Batch]:
  """Yields each test example once, on the devices; padding has `mask` 0.

  Args:
    config: complete.
    source: what to read.
    transform: how it is prepared.
    mesh: to send to.
    say: is told of broken records.
    max_broken: their share that is borne; that of the configuration if None.
  """
  if max_broken is None:
    max_broken = config.data.max_broken
  with contextlib.closing(
    pipeline.eval_batches(
      source,
      transform,
      batch_size=config.eval.batch_size or config.batch_size,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
      workers=config.data.workers,
      max_broken=max_broken,
    )
  ) as batches:
    for batch in _told(batches, say):
      yield mesh_lib.to_mesh(batch, mesh)
