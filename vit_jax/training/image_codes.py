"""Codes of images in files: whether they are those that a run would compute."""

import math
from typing import Any

from vit_jax.config import ConfigError
from vit_jax.data import captions, code_files


def about(config: Any, name: str) -> code_files.About | None:
  """Returns what is known of the codes that a split has; None of images.

  Args:
    config: complete.
    name: 'train' or 'test'.

  Raises:
    ConfigError: they are not there, or do not belong together.
  """
  section = config.data[name]
  if not captions.is_known(section.source):
    return None
  try:
    return captions.about_codes(section.source, section.split)
  except (ValueError, OSError) as error:
    raise ConfigError(f'config.data.{name}: {error}') from error


def check(config: Any, name: str, found: code_files.About) -> None:
  """Raises ConfigError unless a run can take codes in place of its images.

  Args:
    config: complete.
    name: 'train' or 'test'.
    found: what is known of the codes.
  """
  section, where = config.data[name], f'config.data.{name}'
  if config.task.name != 'text_to_image':
    raise ConfigError(
      f'{where}.source {section.source!r} has codes, which only text_to_image '
      f'reads; {config.task.name} needs images.'
    )
  if section.preprocess != found.preprocess:
    raise ConfigError(
      f'{where}.preprocess is {section.preprocess!r}, but the codes at '
      f'{section.source!r} are of images prepared by {found.preprocess!r}: '
      'say the same, or encode the images again.'
    )
  aspect = config.data.text.aspect
  if (None if math.isinf(aspect) else aspect) != found.aspect:
    raise ConfigError(
      f'config.data.text.aspect is {aspect}, but the images of the codes at '
      f'{section.source!r} were chosen by {found.aspect}: say the same, or '
      'encode the images again.'
    )
  model = config.model
  if (*found.grid, found.vocabulary) != (*model.grid, model.image_vocabulary):
    raise ConfigError(
      f'{section.source!r} has {found.grid[0]} x {found.grid[1]} codes of '
      f'{found.vocabulary}, but config.model is for {tuple(model.grid)} of '
      f'{model.image_vocabulary}: set grid={found.grid} and '
      f'image_vocabulary={found.vocabulary}.'
    )


def check_readable(config: Any, name: str, frozen: Any) -> None:
  """Raises ConfigError for images that nothing makes codes of.

  Args:
    config: complete.
    name: 'train' or 'test'.
    frozen: the `vit_jax.training.frozen.Frozen` of the task; None without.
  """
  if config.task.name != 'text_to_image' or frozen or about(config, name):
    return
  raise ConfigError(
    f'config.data.{name}.source {config.data[name].source!r} has images, but '
    'config.task.image_codes is empty, so that nothing makes codes of them: '
    "train with the workdir of a discrete VAE there, or DALL-E's released one, "
    'or name a source of codes.'
  )


def check_same_codes(config: Any, frozen: Any) -> None:
  """Raises ConfigError for codes that mean something else in test data.

  A discrete VAE says what they mean; without, they only have to be the same.

  Args:
    config: complete, with splits that are `check_readable`.
    frozen: the `vit_jax.training.frozen.Frozen` of the task; None without.
  """
  if config.task.name != 'text_to_image' or frozen:
    return
  train, test = (about(config, name) for name in ('train', 'test'))
  if train.vae != test.vae:
    raise ConfigError(
      'config.data.test.source has codes of another discrete VAE than '
      'config.data.train.source: encode the images of one of them again.'
    )


def check_vectors(config: Any, frozen: Any) -> None:
  """Raises ConfigError for codes whose vectors nothing has.

  Args:
    config: complete.
    frozen: the `vit_jax.training.frozen.Frozen` of the task; None without.
  """
  if config.task.name != 'text_to_image' or frozen:
    return
  if width := config.model.code_width:
    raise ConfigError(
      f'config.model.code_width is {width}, the length of vectors that a '
      'discrete VAE has for its codes, but config.task.image_codes is empty: '
      'name the one that has made the codes, or set code_width=0.'
    )


def check_can_decode(task: Any) -> None:
  """Raises ConfigError for a model of codes that nothing makes images of.

  Args:
    task: a `vit_jax.tasks.text_to_image.TextToImage` that has learned.
  """
  if task.frozen is None:
    raise ConfigError(
      'This model was trained without a discrete VAE, so nobody knows what its '
      'codes look like: train it with config.task.image_codes.'
    )


def check_same_vae(config: Any, name: str, frozen: Any) -> None:
  """Raises ConfigError for codes of another discrete VAE than the task's.

  Args:
    config: complete.
    name: 'train' or 'test'.
    frozen: the `vit_jax.training.frozen.Frozen` of the task; None without.
  """
  if config.task.name != 'text_to_image' or frozen is None:
    return
  found = about(config, name)
  if found and found.vae != frozen.identity:
    raise ConfigError(
      f'config.data.{name}.source {config.data[name].source!r} has codes of '
      f'another discrete VAE than that at {config.task.image_codes}: encode '
      'the images again, or name the one that has made the codes.'
    )
