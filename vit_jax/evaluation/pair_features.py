"""Features of the images and texts of a data set, by a task that has both.

Such a task has `encode_image(variables, image)`, which gives features and
intermediates, `tokens(texts)`, and one of

  encode_text(variables, tokens), the same of texts; they are compared by their
    cosine with images.
  score_features(variables, features, tokens), which compares features of images
    with texts itself, and gives [images, texts].

Results are on the host, in float32, for `retrieval` and `zero_shot`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.evaluation import few_shot, retrieval, zero_shot
from vit_jax.models import layers


def make_encode_images(task: Any) -> Callable[[Any, Mapping], dict]:
  """Returns `few_shot.of_batches` of the features of images."""
  return few_shot.of_batches(
    lambda variables, image: task.encode_image(variables, image)[0]
  )


def make_encode_texts(
  task: Any, variables: Any, batch_size: int
) -> zero_shot.EncodeTexts:
  """Returns a function from texts [n] to features on the host, [n, width].

  Every process calls it with the same texts.

  Args:
    task: with texts.
    variables: of the model.
    batch_size: texts at a time, divisible by the devices of the mesh.
  """

  @jax.jit
  def encode(variables, tokens):
    tokens = layers.constrain(tokens, layers.BATCH)
    features, _ = task.encode_text(variables, tokens)
    return layers.constrain(features.astype(jnp.float32))

  def encode_texts(texts: Sequence[str]) -> np.ndarray:
    parts = []
    for start in range(0, len(texts), batch_size):
      some = list(texts[start : start + batch_size])
      # One compiled program for all: the last batch is filled up.
      padded = some + some[-1:] * (batch_size - len(some))
      features = encode(variables, np.asarray(task.tokens(padded)))
      parts.append(jax.device_get(features)[: len(some)])
    return np.concatenate(parts)

  return encode_texts


def images(
  task: Any, variables: Any, batches: Iterable[Mapping]
) -> dict[str, np.ndarray]:
  """Returns `features` of the images that could be read, `index`, `label`.

  Args:
    task: with images and texts.
    variables: of the model.
    batches: of a data set, each image once, on the devices.
  """
  found = few_shot.collect(
    make_encode_images(task), variables, batches, keep=('index',)
  )
  return {name: x[found['mask'] > 0] for name, x in found.items()}


def scores(
  task: Any,
  variables: Any,
  features: np.ndarray,
  texts: Sequence[str],
  batch_size: int,
) -> np.ndarray:
  """Returns how well texts go with images, [images, texts], by the task itself.

  Every process calls it with the same features and texts.

  Args:
    task: with `score_features`.
    variables: of the model.
    features: of images, [images, width].
    texts: all that images are compared with.
    batch_size: images at a time, divisible by the devices of the mesh.
  """
  tokens = np.asarray(task.tokens(list(texts)))

  @jax.jit
  def score(variables, features):
    features = layers.constrain(features, layers.BATCH)
    return layers.constrain(task.score_features(variables, features, tokens))

  parts = []
  for start in range(0, len(features), batch_size):
    part = features[start : start + batch_size]
    # One compiled program for all: the last batch is filled up.
    padded = np.pad(part, ((0, batch_size - len(part)), (0, 0)))
    parts.append(jax.device_get(score(variables, padded))[: len(part)])
  return np.concatenate(parts)


def evaluate_retrieval(
  task: Any,
  variables: Any,
  batches: Iterable[Mapping],
  captions: Callable[[int], Sequence[str]],
  batch_size: int,
) -> tuple[retrieval.Result, retrieval.Result]:
  """Scores retrieval on a data set.

  Images with the same first caption share their texts: each of them is right
  for all of these.

  Args:
    task: with images and texts.
    variables: of the model.
    batches: of the images, each once, on the devices. Images that could not be
      read are left out, and so are their captions.
    captions: of the record of an index.
    batch_size: of texts, divisible by the devices of the mesh.

  Returns:
    The result, and what guessing would give.
  """
  found = images(task, variables, batches)
  several = [captions(int(index)) for index in found['index']]
  numbers = {texts[0]: number for number, texts in enumerate(several)}
  image_of = [numbers[texts[0]] for texts in several]
  pairs = {
    (number, text): None
    for number, texts in zip(image_of, several)
    for text in texts
  }
  text_of, texts = zip(*pairs)
  if hasattr(task, 'encode_text'):
    encode_texts = make_encode_texts(task, variables, batch_size)
    result = retrieval.evaluate(
      found['features'], encode_texts(texts), text_of, image_of
    )
  else:
    table = scores(task, variables, found['features'], texts, batch_size)
    result = retrieval.evaluate_scores(table, text_of, image_of)
  return result, retrieval.chance(text_of, image_of)
