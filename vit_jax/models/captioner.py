"""Texts from images: which tokens one has, or token by token.

What CLIP is compared with in figure 2 of its paper (Radford et al.,
arXiv:2103.00020), on the same towers.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.models import layers
from vit_jax.models.text import TextTransformer

Array = jax.Array


def _token_logits(vocabulary_size: int, dtype: Any) -> nn.Dense:
  """Returns the layer that predicts tokens; it starts at zero.

  Logits are float32, whatever the inputs are, as the loss is sensitive.
  """
  return nn.Dense(
    vocabulary_size,
    kernel_init=nn.initializers.zeros,
    dtype=dtype,
    dot_general=functools.partial(
      jax.lax.dot_general, preferred_element_type=jnp.float32
    ),
  )


class BagPredictor(nn.Module):
  """Which tokens the text of an image has, in no order.

  Parameters are `image/...`, of the tower, and `prediction/...`.
  """

  # Gives one vector an input, as in `CLIP`.
  image: nn.Module
  vocabulary_size: int

  def setup(self):
    self.prediction = _token_logits(self.vocabulary_size, jnp.float32)

  def __call__(
    self, image: Array, *, train: bool = False
  ) -> tuple[Array, dict[str, Any]]:
    """Maps images to logits of tokens.

    Args:
      image: [batch, height, width, channels].
      train: whether dropout acts (random stream `dropout`), and batch norm
        learns.

    Returns:
      Logits, float32 [batch, vocabulary_size], and the tower's intermediates.
    """
    features, out = self.encode_image(image, train=train)
    return self.predict(features), out

  def encode_image(
    self, image: Array, *, train: bool = False
  ) -> tuple[Array, dict[str, Any]]:
    """Returns the tower's features [batch, width], and its intermediates."""
    return self.image(image, train=train)

  def predict(self, features: Array) -> Array:
    """Maps features to logits of tokens: see `__call__`."""
    return self.prediction(features)


class Captioner(nn.Module):
  """Each token of a text from the image and the tokens before it.

  The image takes the place of the first token, start-of-text: what its tower
  gives, mapped to the width of the text tower by a linear layer, stands for
  the embedding of that token. So all of the text sees the image, by the same
  causal attention as the rest.

  Parameters are `image/...` and `text/...`, of the towers, `start/...` and
  `prediction/...`.
  """

  # Gives one vector an input, as in `CLIP`.
  image: nn.Module
  # With causal attention.
  text: TextTransformer

  def setup(self):
    self.start = nn.Dense(
      self.text.width,
      kernel_init=nn.initializers.variance_scaling(1.0, 'fan_in', 'normal'),
    )
    self.prediction = _token_logits(self.text.vocabulary_size, self.text.dtype)

  def __call__(
    self, image: Array, text: Array, *, train: bool = False
  ) -> tuple[Array, dict[str, Any]]:
    """Predicts the tokens of texts after the first one.

    Args:
      image: [batch, height, width, channels].
      text: int [batch, length], token ids; the first is not looked at.
      train: whether dropout acts (random stream `dropout`), and batch norm
        learns.

    Returns:
      Logits of `text[:, 1:]`, float32 [batch, length - 1, vocabulary_size],
      and the intermediates `image` and `text`, of the towers.
    """
    out = {}
    start, out['image'] = self.encode_image(image, train=train)
    logits, out['text'] = self.predict(start, text, train=train)
    return logits, out

  def encode_image(
    self, image: Array, *, train: bool = False
  ) -> tuple[Array, dict[str, Any]]:
    """Returns what stands for the first token, and the tower's intermediates.

    The former is float32 [batch, width of the text tower].
    """
    features, out = self.image(image, train=train)
    return self.start(features.astype(jnp.float32)), out

  def predict(
    self, start: Array, text: Array, *, train: bool = False
  ) -> tuple[Array, dict[str, Any]]:
    """Predicts tokens after a given start: see `__call__`."""
    _, out = self.text(text, start=start, train=train)
    logits = self.prediction(out['encoded'][:, :-1])
    return layers.constrain(logits, layers.BATCH), out
