"""N-grams of colours beside a model of images and texts, on the same data."""

import functools
import os
import random
from collections.abc import Sequence
from concurrent import futures
from typing import Any

import numpy as np

from vit_jax.config import ConfigError
from vit_jax.data import batching, images
from vit_jax.evaluation import ngrams, pair_features, retrieval
from vit_jax.training import inputs, records, scoring

# Training records that are looked at, at most: more teach 256 numbers of an
# image nothing new.
_MOST = 20_000


def evaluate(
  scorer: scoring.Scorer,
  source: Any,
  among: pair_features.Candidates,
) -> retrieval.Result:
  """Scores `ngrams.Baseline` where a model was scored.

  It is fitted to all captions of `config.data.train`, or of 20,000 records of
  it, chosen at random, always the same.

  Args:
    scorer: that has scored the model.
    source: of captions, that the model was tested on.
    among: what was searched.

  Raises:
    ConfigError: there is no training data, or none to learn n-grams from.
  """
  config, say = scorer.config, scorer.say
  if not config.data.train.source:
    raise ConfigError(
      'The baseline is fitted to the training data of a run, and a released '
      'checkpoint has none: leave out --baseline.'
    )
  train = records.open_split(config, 'train')
  count = min(_MOST, len(train))
  chosen = sorted(random.Random(0).sample(range(len(train)), count))
  described, readable = _described(train, chosen, say)
  captions = scorer.captions(train, 'all')
  try:
    baseline = ngrams.fit(described, [captions(index) for index in readable])
  except ValueError as error:
    raise ConfigError(
      f'The baseline cannot be fitted to config.data.train: {error}.'
    ) from error
  tested, _ = _described(source, among.index.tolist(), say)
  return among.evaluate(
    baseline.encode_images(tested), baseline.encode_texts(among.texts)
  )


def _described(
  source: Any, indices: Sequence[int], say: inputs.Say
) -> tuple[np.ndarray, list[int]]:
  """Returns `ngrams.describe` of images, and of which records they are.

  Args:
    source: of the images.
    indices: of its records.
    say: is told of those that cannot be read, which are left out.
  """
  found, readable = [], []
  with futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    read = functools.partial(_describe, source)
    for index, described in zip(indices, pool.map(read, indices)):
      if isinstance(described, str):
        say(source.name(index), described)
      else:
        found.append(described)
        readable.append(index)
  return np.reshape(found, (-1, ngrams.STATISTICS)), readable


def _describe(source: Any, index: int) -> np.ndarray | str:
  """Returns the description of an image, or why it cannot be read."""

  def prepare(record: dict[str, Any], unused_rng: None) -> np.ndarray:
    image = record['image']
    if isinstance(image, bytes):
      image = images.decode(image)
    return ngrams.describe(image)

  try:
    return batching.read_example(source, prepare, index, None)
  except batching.BrokenRecordError as error:
    return str(error)
