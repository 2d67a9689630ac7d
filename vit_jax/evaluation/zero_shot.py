"""Classifying images by the texts that they are nearest to.

Each class is the mean direction of sentences about it; nothing is trained, so
that classes may be any that there are words for (Radford et al.,
arXiv:2103.00020, section 3.1).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from vit_jax.evaluation import prompts as prompts_lib
from vit_jax.evaluation import retrieval

# Of texts [n] to their features [n, width].
EncodeTexts = Callable[[Sequence[str]], np.ndarray]


class Result(NamedTuple):
  """How well images were classified; ties count as in `retrieval`.

  Attributes:
    top_1: share of the images whose class comes first.
    top_5: share of the images whose class is among the first five.
    mean_per_class: mean over classes of their top_1, each class counting the
      same.
    examples: number of images.
    classes: number of classes to choose from.
  """

  top_1: float
  top_5: float
  mean_per_class: float
  examples: int
  classes: int


def classifier(
  prompts: prompts_lib.Prompts, encode_texts: EncodeTexts, batch_size: int = 256
) -> np.ndarray:
  """Returns a unit vector for each class, float32 [classes, width].

  It is the direction of the mean of the directions of all sentences about the
  class: every template with every synonym.

  Args:
    prompts: of the classes.
    encode_texts: gives features of any length; is called with `batch_size`
      texts, the last time with fewer.
    batch_size: number of texts at a time.

  Raises:
    ValueError: features are not finite.
  """
  pairs = [
    (label, text)
    for label in range(len(prompts.names))
    for text in prompts.texts(label)
  ]
  total = 0
  for start in range(0, len(pairs), batch_size):
    labels, texts = zip(*pairs[start : start + batch_size])
    features = retrieval.unit(encode_texts(texts))
    # Sums by class are enough: their direction is that of the means.
    member = np.arange(len(prompts.names))[:, None] == labels
    total = total + member.astype(np.float64) @ features
  return retrieval.unit(total).astype(np.float32)


def evaluate(
  images: np.ndarray,
  labels: Sequence[int],
  classes: np.ndarray,
  among: Sequence[int] | None = None,
) -> Result:
  """Scores a classifier.

  Args:
    images: features [images, width], of any length.
    labels: int [images].
    classes: vectors [classes, width], see `classifier`.
    among: the classes to choose from, where data has but some of them, such as
      ImageNet-A and -R; all by default.

  Raises:
    ValueError: a label is of no class to choose from, or features are not
      finite.
  """
  labels, among = _checked(labels, len(classes), among)
  found = retrieval.ranks(images, classes[among], labels, among)
  return _result(found, labels, len(among))


def evaluate_scores(
  scores: np.ndarray,
  labels: Sequence[int],
  among: Sequence[int] | None = None,
) -> Result:
  """Scores a model that gives log-likelihoods, or logits, of classes.

  Args:
    scores: [images, classes].
    labels: int [images].
    among: see `evaluate`.

  Raises:
    ValueError: as in `evaluate`, or scores are not finite.
  """
  scores = np.asarray(scores)
  labels, among = _checked(labels, scores.shape[1], among)
  found = retrieval.ranks_of_scores(scores[:, among], labels, among)
  return _result(found, labels, len(among))


def _checked(
  labels: Sequence[int], classes: int, among: Sequence[int] | None
) -> tuple[np.ndarray, np.ndarray]:
  """Returns labels, and the classes to choose from, ascending."""
  labels = np.asarray(labels)
  among = np.arange(classes) if among is None else np.unique(among)
  outside = np.setdiff1d(labels, among)
  if len(outside) or among.max() >= classes:
    raise ValueError(
      f'labels {outside[:5].tolist()} are not among the {len(among)} classes '
      f'to choose from, of {classes} that there are'
    )
  return labels, among


def scores_of_classes(
  prompts: prompts_lib.Prompts, scores: np.ndarray
) -> np.ndarray:
  """Returns log-likelihoods of classes, float64 [images, classes].

  That of a class is the one of any of its sentences, all being as likely.

  Args:
    prompts: of the classes.
    scores: log-likelihoods [images, sentences], of all sentences of the first
      class, then of the second, and so on.
  """
  counts = [len(prompts.texts(label)) for label in range(len(prompts.names))]
  parts = np.split(np.asarray(scores, np.float64), np.cumsum(counts)[:-1], 1)
  return np.stack(
    [np.logaddexp.reduce(x, axis=1) - np.log(x.shape[1]) for x in parts], axis=1
  )


def _result(found: retrieval.Ranks, labels: np.ndarray, classes: int) -> Result:
  first = retrieval.hits(found, 1)
  return Result(
    float(first.mean()),
    float(retrieval.hits(found, 5).mean()),
    mean_per_class(first, labels),
    len(labels),
    classes,
  )


def mean_per_class(right: np.ndarray, labels: np.ndarray) -> float:
  """Returns the mean over the classes that occur of each one's mean.

  Args:
    right: of each example, from 0 to 1.
    labels: int [examples].
  """
  count = np.bincount(labels)
  return float(np.mean((np.bincount(labels, right) / count.clip(1))[count > 0]))


def figures(result: Result) -> dict[str, float]:
  """Returns a result by the names that it has among a run's metrics."""
  values = {
    'zero_shot/accuracy': result.top_1,
    'zero_shot/mean_per_class': result.mean_per_class,
  }
  # Of five classes or fewer the right one always is among the first five.
  if result.classes > 5:
    values['zero_shot/top_5'] = result.top_5
  return values
