"""Learning to say the text of an image, token by token.

Caption prediction, the first and slowest objective in figure 2 of CLIP's paper
(Radford et al., arXiv:2103.00020), in the form of Desai & Johnson,
arXiv:2006.06666, but from left to right only.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vit_jax.models.captioner import Captioner
from vit_jax.tasks import caption_tokens, image_text

Array = jax.Array
Batch = Mapping[str, Array]

# Logits that scores have in memory at a time, 256 MiB of them.
_CHUNK = 2**26


@dataclasses.dataclass(frozen=True)
class Captioning(image_text.ImageText):
  """Prediction of each token of a text from its image and the tokens before.

  How the image is seen is told in `Captioner`. The loss is the cross-entropy
  of the words and the end of a text, the mean over these and then over texts,
  so that parts of a batch are as good as the whole.

  Of the model the towers are used; there are no parameters of anything else.
  """

  def __post_init__(self):
    if not self.model.text.causal:
      raise ValueError(
        'The text tower sees the tokens that it is to predict: set '
        'model.text.causal=True.'
      )
    if self.model.text.pooling == 'map':
      raise ValueError(
        "pooling='map' of the text tower has parameters that predicting tokens "
        "does not use: leave out model.text.pooling, or make it 'end'."
      )

  @property
  def _captioner(self) -> Captioner:
    return Captioner(self.model.image, self.model.text)

  def init(self, key: Array) -> dict[str, Any]:
    """Returns freshly initialised variables."""
    image = jnp.zeros((1, *self.image_shape), jnp.float32)
    text = jnp.zeros((1, self.model.text.length), jnp.int32)
    return self._captioner.init(key, image, text)

  def loss(
    self,
    variables: Mapping[str, Any],
    batch: Batch,
    key: Array,
    step: Array,
    train: bool = True,
  ) -> tuple[Array, dict[str, Array], dict[str, Any]]:
    """Returns the mean loss over texts, and metrics of training.

    Args:
      variables: of the towers and the layers between and after them.
      batch: see `batch_spec`.
      key: random key of this batch.
      step: not used; other tasks have schedules.
      train: whether to regularise, and to learn statistics of batch norm.
    """
    del step
    inputs = batch['image'], batch['text']
    logits, changed = image_text.learn(
      self._captioner, variables, *inputs, key=key, train=train
    )
    means = jax.tree.map(jnp.mean, _compare(logits, batch['text']))
    means['truncated'] = batch['truncated'].mean()
    return means.pop('loss'), means, changed

  def metrics(
    self, variables: Mapping[str, Any], batch: Batch
  ) -> dict[str, Array]:
    """Returns what is said of the text of each image, [pairs].

    `loss`, and `accuracy`, the share of the tokens that are the likeliest ones
    after those before; both of words and end.
    """
    logits, _ = self._captioner.apply(variables, batch['image'], batch['text'])
    return _compare(logits, batch['text'])

  def encode_image(
    self, variables: Mapping[str, Any], image: Array
  ) -> tuple[Array, dict[str, Any]]:
    """Returns what texts start from, [images, width], and intermediates."""
    return self._captioner.apply(variables, image, method='encode_image')

  def scores(
    self, variables: Mapping[str, Any], image: Array, text: Array
  ) -> Array:
    """Returns the log-likelihood of each text, with its end, for each image.

    The text tower sees every pair: of as many images as texts this costs the
    square of what `Contrastive` does.

    Args:
      variables: see `loss`.
      image: [images, height, width, channels].
      text: int [texts, length].

    Returns:
      Float32 [images, texts].
    """
    features, _ = self.encode_image(variables, image)
    return self.score_features(variables, features, text)

  def score_features(
    self, variables: Mapping[str, Any], features: Array, text: Array
  ) -> Array:
    """Returns `scores` of images by their features, see `encode_image`."""
    images, length = features.shape[0], text.shape[1]

    def score(part: Array) -> Array:
      # Texts of an image are together, and stay on its device.
      pairs = jnp.tile(part, (images, 1))
      starts = jnp.repeat(features, part.shape[0], axis=0)
      logits, _ = self._captioner.apply(
        variables, starts, pairs, method='predict'
      )
      likelihood = _log_likelihood(logits, pairs).sum(axis=1)
      return likelihood.reshape(images, part.shape[0])

    vocabulary = self.model.text.vocabulary_size
    chunk = _CHUNK // (images * length * vocabulary)
    return caption_tokens.in_chunks(score, text, chunk)


def _log_likelihood(logits: Array, text: Array) -> Array:
  """Returns that of each token after the first, 0 of padding.

  Args:
    logits: [texts, length - 1, vocabulary].
    text: int [texts, length].
  """
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, text[:, 1:])
  return jnp.where(caption_tokens.words_and_end(text)[:, 1:], -losses, 0)


def _compare(logits: Array, text: Array) -> dict[str, Array]:
  """Returns loss and accuracy of each text."""
  real = caption_tokens.words_and_end(text)[:, 1:]
  right = logits.argmax(axis=-1) == text[:, 1:]
  return {
    'loss': -caption_tokens.mean(_log_likelihood(logits, text), real),
    'accuracy': caption_tokens.mean(right, real),
  }
