"""Classifying labelled images by what a model has learned, or by texts."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

from vit_jax.config import ConfigError
from vit_jax.evaluation import imagenet_variants, prompts, zero_shot
from vit_jax.training import inputs, matching, records, scoring, trained


def named(
  config: Any, name: str | None, class_names: Sequence[str]
) -> prompts.Prompts:
  """Returns what the classes of some data are called, and in what sentences.

  Args:
    config: complete; its templates are used without a name.
    name: see `prompts.load`; None for the names that the data gives.
    class_names: of the data, by label.

  Raises:
    ConfigError: there is nothing of this name, or it does not fit the data.
  """
  if name:
    return prompts.ordered(prompts.load(name), class_names)
  templates = config.data.text.templates or ('{}',)
  return prompts.from_names(class_names, templates)


def measure(
  model: trained.Trained,
  scorer: scoring.Scorer,
  class_names: Sequence[str],
  prompts_name: str | None,
) -> Callable[..., zero_shot.Result]:
  """Returns a function that scores a model on a source of labels.

  It takes the source, and by name `transform` and `among`, see
  `scoring.Scorer.classification`. Texts are encoded once for all sources.

  Args:
    model: of images and texts, or one that has learned these classes.
    scorer: of the model.
    class_names: of the source, by label.
    prompts_name: for a model of images and texts, see `named`.

  Raises:
    ConfigError: the model does not classify, or knows other classes.
  """
  if hasattr(model.task, 'encode_image'):
    matching.check_tokenizer(model)
    texts = named(model.config, prompts_name, class_names)
    return scorer.by_names(model.variables, texts)
  if not hasattr(model.task, 'predict'):
    raise ConfigError(
      '--tasks=robustness needs a model that classifies; this one is for '
      f'{model.config.task.name}.'
    )
  check_classes(model, class_names)
  return functools.partial(scorer.classification, model.variables)


def check_classes(model: trained.Trained, test: Sequence[str]) -> None:
  """Raises ConfigError if test data has other classes than the model."""
  names = model.task.class_names
  if not model.names_known and len(names) == len(test):
    names = test
  inputs.check_classes(tuple(names), tuple(test))


def variants(
  model: trained.Trained,
  scorer: scoring.Scorer,
  names: Sequence[str],
  prompts_name: str | None = None,
) -> dict[str, zero_shot.Result]:
  """Scores a classifier of ImageNet on natural variants of it.

  Args:
    model: see `measure`; one that classifies has ImageNet's 1,000 classes.
    scorer: of the model.
    names: of `imagenet_variants.VARIANTS`.
    prompts_name: see `named`; 'imagenet' by default.

  Raises:
    ConfigError: a variant is not there, or not as its paper has it, or the
      model does not classify ImageNet.
  """
  ready = {}

  @functools.cache
  def of_classes(class_names: tuple[str, ...]) -> Callable:
    return measure(model, scorer, class_names, prompts_name or 'imagenet')

  for name, variant in imagenet_variants.chosen(names).items():
    where = f'--variants={name}'
    source = records.open_source(variant.source, variant.split, (), where)
    imagenet_variants.check_class_names(source.class_names, where)
    transform = records.open_preprocess(model.config, 'test')
    records.check_shape(source, transform, model.task.image_shape, where)
    classes = source.class_names
    if _has_names_we_ship(model):
      # These, in place of the WordNet ids, in the same order.
      classes = model.task.class_names
    among = None
    if variant.classes < len(classes):
      among = imagenet_variants.among(source.labels, variant, where)
    score = of_classes(tuple(classes))
    ready[name] = functools.partial(score, source, among=among)
  # All of them are there before the first is scored.
  return {name: score() for name, score in ready.items()}


def _has_names_we_ship(model: trained.Trained) -> bool:
  known = getattr(model.task, 'class_names', ())
  return known == tuple(x[0] for x in prompts.load('imagenet').names)
