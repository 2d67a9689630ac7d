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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.data import tokenizer
from vit_jax.evaluation import few_shot, retrieval
from vit_jax.models import layers


class Candidates(NamedTuple):
  """What is searched for what: images and texts by what they belong to.

  Attributes:
    index: of the record of each image, int [images].
    image_of: what each image belongs to, a number [images].
    texts: of all images, each once for what it belongs to.
    text_of: what each text belongs to, a number [texts].
  """

  index: np.ndarray
  image_of: Sequence[int]
  texts: Sequence[str]
  text_of: Sequence[int]

  def evaluate(self, images: np.ndarray, texts: np.ndarray) -> retrieval.Result:
    """Scores features of the images and texts, [images or texts, width]."""
    return retrieval.evaluate(images, texts, self.text_of, self.image_of)

  def chance(self) -> retrieval.Result:
    """Returns what guessing gives."""
    return retrieval.chance(self.text_of, self.image_of)


def candidates(
  index: np.ndarray, captions: Callable[[int], Sequence[str]]
) -> Candidates:
  """Returns the images and texts of a data set.

  Images whose first captions a tokenizer reads as the same share their texts,
  as in training (`pairs.identity`): each of them is right for all of these.

  Args:
    index: of the records, int [images].
    captions: of the record of an index.
  """
  several = [captions(int(one)) for one in index]
  names = [tokenizer.clean(texts[0]) for texts in several]
  numbers = {name: number for number, name in enumerate(names)}
  image_of = [numbers[name] for name in names]
  pairs = {
    (number, tokenizer.clean(text)): text
    for number, texts in zip(image_of, several)
    for text in texts
  }
  text_of = [number for number, _ in pairs]
  return Candidates(index, image_of, [*pairs.values()], text_of)


class Encoders:
  """What a task makes of images and texts, compiled once for all calls.

  Variables may be others each time, as of a model that is being trained.
  """

  def __init__(self, task: Any, batch_size: int):
    """Compiles nothing yet.

    Args:
      task: with images and texts.
      batch_size: texts at a time, or images that the task itself compares with
        texts; divisible by the devices of the mesh.
    """
    self._task = task
    self._batch_size = batch_size
    self._encode_images = few_shot.of_batches(
      lambda variables, image: task.encode_image(variables, image)[0]
    )

    @jax.jit
    def encode_texts(variables, tokens):
      tokens = layers.constrain(tokens, layers.BATCH)
      features, _ = task.encode_text(variables, tokens)
      return layers.constrain(features.astype(jnp.float32))

    @jax.jit
    def score(variables, features, tokens):
      features = layers.constrain(features, layers.BATCH)
      return layers.constrain(task.score_features(variables, features, tokens))

    self._encode_texts, self._score = encode_texts, score

  def images(
    self, variables: Any, batches: Iterable[Mapping]
  ) -> dict[str, np.ndarray]:
    """Returns `features` of the images that could be read, `index`, `label`.

    Args:
      variables: of the model.
      batches: of a data set, each image once, on the devices.
    """
    found = few_shot.collect(
      self._encode_images, variables, batches, keep=('index',)
    )
    return {name: x[found['mask'] > 0] for name, x in found.items()}

  def texts(self, variables: Any, texts: Sequence[str]) -> np.ndarray:
    """Returns features on the host, [texts, width].

    Every process calls it with the same texts.
    """
    size, parts = self._batch_size, []
    for start in range(0, len(texts), size):
      some = list(texts[start : start + size])
      # One compiled program for all: the last batch is filled up.
      padded = some + some[-1:] * (size - len(some))
      tokens = np.asarray(self._task.tokens(padded))
      features = self._encode_texts(variables, tokens)
      parts.append(jax.device_get(features)[: len(some)])
    return np.concatenate(parts)

  def scores(
    self, variables: Any, features: np.ndarray, texts: Sequence[str]
  ) -> np.ndarray:
    """Returns how well texts go with images, by the task itself.

    Every process calls it with the same features and texts.

    Args:
      variables: of the model, whose task has `score_features`.
      features: of images, [images, width].
      texts: all that images are compared with.

    Returns:
      [images, texts].
    """
    size, parts = self._batch_size, []
    tokens = np.asarray(self._task.tokens(list(texts)))
    for start in range(0, len(features), size):
      part = features[start : start + size]
      # One compiled program for all: the last batch is filled up.
      padded = np.pad(part, ((0, size - len(part)), (0, 0)))
      scores = self._score(variables, padded, tokens)
      parts.append(jax.device_get(scores)[: len(part)])
    return np.concatenate(parts)

  def retrieval(
    self,
    variables: Any,
    batches: Iterable[Mapping],
    captions: Callable[[int], Sequence[str]],
  ) -> tuple[retrieval.Result, Candidates]:
    """Scores retrieval on a data set.

    Args:
      variables: of the model.
      batches: of the images, each once, on the devices. Images that could not
        be read are left out, and so are their captions.
      captions: of the record of an index.

    Returns:
      The result, and what was searched.
    """
    found = self.images(variables, batches)
    among = candidates(found['index'], captions)
    if hasattr(self._task, 'encode_text'):
      texts = self.texts(variables, among.texts)
      return among.evaluate(found['features'], texts), among
    table = self.scores(variables, found['features'], among.texts)
    result = retrieval.evaluate_scores(table, among.text_of, among.image_of)
    return result, among
