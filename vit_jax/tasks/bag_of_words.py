"""Learning which words the text of an image has, whatever their order.

The objective between caption prediction and CLIP in figure 2 of CLIP's paper
(Radford et al., arXiv:2103.00020); Joulin et al., arXiv:1511.02251, learned
features of images so, with the same loss.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vit_jax.models.captioner import BagPredictor
from vit_jax.tasks import caption_tokens, image_text

Array = jax.Array
Batch = Mapping[str, Array]

# Logarithms of probabilities that scores have in memory at a time.
_CHUNK = 2**26


@dataclasses.dataclass(frozen=True)
class BagOfWords(image_text.ImageText):
  """Prediction of the tokens of a text from the features of its image.

  The loss is the cross-entropy of a softmax over the vocabulary, against the
  share that each token has of the words of the text. Start, end and padding
  are no words; a text without any has the loss 0.

  Of the model the image tower is used, and of the text tower no more than its
  vocabulary and length; there are no parameters of anything else.
  """

  @property
  def _predictor(self) -> BagPredictor:
    return BagPredictor(self.model.image, self.model.text.vocabulary_size)

  def init(self, key: Array) -> dict[str, Any]:
    """Returns freshly initialised variables."""
    image = jnp.zeros((1, *self.image_shape), jnp.float32)
    return self._predictor.init(key, image)

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
      variables: of the image tower and the layer that predicts.
      batch: see `batch_spec`.
      key: random key of this batch.
      step: not used; other tasks have schedules.
      train: whether to regularise, and to learn statistics of batch norm.
    """
    del step
    logits, changed = image_text.learn(
      self._predictor, variables, batch['image'], key=key, train=train
    )
    means = jax.tree.map(jnp.mean, _compare(logits, batch['text']))
    means['truncated'] = batch['truncated'].mean()
    return means.pop('loss'), means, changed

  def metrics(
    self, variables: Mapping[str, Any], batch: Batch
  ) -> dict[str, Array]:
    """Returns what is said of the text of each image, [pairs].

    `loss`; `divergence`, which is the loss less the smallest that there can be
    for the text, see `scores`; and `accuracy`, 1 where the likeliest token is
    one of the text.
    """
    logits, _ = self._predictor.apply(variables, batch['image'])
    return _compare(logits, batch['text'])

  def encode_image(
    self, variables: Mapping[str, Any], image: Array
  ) -> tuple[Array, dict[str, Any]]:
    """Returns features [images, width], and intermediates."""
    return self._predictor.apply(variables, image, method='encode_image')

  def scores(
    self, variables: Mapping[str, Any], image: Array, text: Array
  ) -> Array:
    """Returns how well each text is predicted from each image.

    It is the mean log-likelihood of the words of the text, less the largest
    that any prediction could give: the divergence of what is predicted from
    the bag, negative, so that 0 is the best. The plain likelihood would choose
    'a cat' for whatever has 'a black cat' as well: each word costs.

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
    logits = self._predictor.apply(variables, features, method='predict')
    log_chances = jax.nn.log_softmax(logits)

    def score(part: Array) -> Array:
      excess = log_chances[:, part] - _log_shares(part)
      return caption_tokens.mean(excess, caption_tokens.words(part))

    chunk = _CHUNK // (features.shape[0] * text.shape[1])
    return caption_tokens.in_chunks(score, text, chunk)


def _log_shares(text: Array) -> Array:
  """Returns log(share that a token has of the words), [texts, length].

  Where there is no word it may be anything finite.
  """
  words = caption_tokens.words(text)
  same = (text[:, :, None] == text[:, None]) & words[:, None]
  count = jnp.maximum(same.sum(axis=2), 1)
  return jnp.log(count / jnp.maximum(words.sum(axis=1, keepdims=True), 1))


def _compare(logits: Array, text: Array) -> dict[str, Array]:
  """Returns loss, divergence and accuracy of each image's own text."""
  words = caption_tokens.words(text)
  log_chances = jnp.take_along_axis(jax.nn.log_softmax(logits), text, axis=1)
  likeliest = logits.argmax(axis=1)[:, None]
  found = ((text == likeliest) & words).any(axis=1)
  return {
    'loss': -caption_tokens.mean(log_chances, words),
    'divergence': caption_tokens.mean(_log_shares(text) - log_chances, words),
    'accuracy': found.astype(jnp.float32),
  }
