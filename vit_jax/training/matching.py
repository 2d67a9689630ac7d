"""How well images and texts go together, by a trained model of both.

matcher = Matcher(trained.load(workdir))
matcher.score(images, ['a cat', 'a dog'])  # [images, texts]
matcher.rerank(images, 'a cat', count=8)   # the best eight, and their scores
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from vit_jax.config import ConfigError
from vit_jax.evaluation import pair_features
from vit_jax.tasks import contrastive_loss
from vit_jax.training import inputs, records, trained
from vit_jax.training import mesh as mesh_lib

# Images that go through the model at a time, at most.
_BATCH = 64


def check_tokenizer(model: trained.Trained) -> None:
  """Raises ConfigError for a released model that nobody can write to."""
  if model.task.tokenizer is not None:
    return
  # Released text towers that see what comes after a token are big_vision's.
  if not model.config.model.text.causal:
    raise ConfigError(
      'The checkpoint (SigLIP, LiT) reads texts by SentencePiece, '
      'which is not here: its text tower runs on tokens alone. Ask for what '
      'needs no texts, such as --tasks=linear_probe of evaluate.'
    )
  raise ConfigError(
    'The checkpoint has no tokenizer: name its file of merges by '
    '--config.data.text.tokenizer=FILE.'
  )


class Matcher:
  """A model of images and texts, ready to compare them."""

  def __init__(self, model: trained.Trained):
    """Takes a model.

    Raises:
      ConfigError: it knows no texts, or its tokenizer is not known.
    """
    if not hasattr(model.task, 'encode_text'):
      raise ConfigError(
        f'A {model.config.model.name} trained for {model.config.task.name} '
        'knows no texts. Give a model of images and texts, such as a CLIP.'
      )
    check_tokenizer(model)
    self.model = model
    self._prepare = records.open_preprocess(model.config, 'test')
    self._encoders = pair_features.Encoders(model.task, model.whole_batch(16))
    # Once for all texts.
    self._score = jax.jit(
      lambda variables, image, encoded: (
        model.task.encode_image(variables, image)[0] @ encoded.T
      )
    )

  def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
    """Returns features [texts, width] of unit length."""
    with jax.set_mesh(self.model.mesh):
      return self._encoders.texts(self.model.variables, texts)

  def scorer(self, texts: Sequence[str]) -> Callable[[Any, Any], jax.Array]:
    """Returns a function from variables and images to their cosines.

    Args:
      texts: that images are compared with, [texts].

    Returns:
      A function from variables and prepared images [images, height, width,
      channels] to [images, texts].
    """
    encoded = self.encode_texts(texts)

    def score(variables: Any, image: jax.Array) -> jax.Array:
      features, _ = self.model.task.encode_image(variables, image)
      return features @ encoded.T

    return score

  def classifier(self, texts: Sequence[str]) -> Callable[[Any, Any], jax.Array]:
    """Returns a function from variables and images to their probabilities.

    As `scorer`, but of each text being that of the image, among the others.
    """
    score = self.scorer(texts)

    def classify(variables: Any, image: jax.Array) -> jax.Array:
      scale = contrastive_loss.similarity_scale(
        variables['params']['logit_scale']
      )
      return jax.nn.softmax(score(variables, image) * scale)

    return classify

  def score(
    self, images: Sequence[np.ndarray], texts: Sequence[str]
  ) -> np.ndarray:
    """Returns how similar images and texts are.

    Args:
      images: uint8 [height, width, channels] each, prepared here.
      texts: to compare them with.

    Returns:
      Cosines, float32 [images, texts].

    Raises:
      ValueError: an image is, prepared, of another size than the model takes.
    """
    shape = self.model.task.image_shape
    prepared = np.stack(
      [
        inputs.with_channels(self._prepare({'image': x})['image'], shape)
        for x in images
      ]
    )
    size = self.model.whole_batch(min(_BATCH, len(prepared)))
    encoded = self.encode_texts(texts)
    found = mesh_lib.in_batches(
      lambda batch: self._score(self.model.variables, batch, encoded),
      prepared,
      size,
      self.model.mesh,
    )
    return np.concatenate(list(found))

  def rerank(
    self, images: Sequence[np.ndarray], text: str, count: int
  ) -> tuple[list[int], np.ndarray]:
    """Chooses the images that a text describes best.

    Args:
      images: see `score`.
      text: to compare them with.
      count: how many to choose.

    Returns:
      Their numbers, best first, and the scores of all images.
    """
    scores = self.score(images, [text])[:, 0]
    return np.argsort(-scores, kind='stable')[:count].tolist(), scores
