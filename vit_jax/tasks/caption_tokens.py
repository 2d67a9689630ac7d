"""What tasks that read captions have in common.

Texts are int [texts, length], as `vit_jax.data.tokenizer` makes them: start,
words, end, padding. The end has the highest id of all; padding has the id of a
word, so that only the place tells them apart.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Array = jax.Array


def batch_spec(
  size: int, image_shape: tuple[int, int, int], length: int
) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns the shapes of a batch of `size` pairs."""
  return {
    'image': jax.ShapeDtypeStruct((size, *image_shape), jnp.float32),
    'text': jax.ShapeDtypeStruct((size, length), jnp.int32),
    'identity': jax.ShapeDtypeStruct((size,), jnp.int32),
    'truncated': jax.ShapeDtypeStruct((size,), jnp.bool),
  }


def words(text: Array) -> Array:
  """Returns where texts have words, bool [texts, length]."""
  place = jnp.arange(text.shape[1])
  return (place > 0) & (place < _end(text))


def words_and_end(text: Array) -> Array:
  """Returns where texts have words or their end, bool [texts, length]."""
  place = jnp.arange(text.shape[1])
  return (place > 0) & (place <= _end(text))


def _end(text: Array) -> Array:
  return text.argmax(axis=1)[:, None]


def mean(values: Array, where: Array) -> Array:
  """Returns means over the last axis of what counts; 0 where nothing does."""
  count = where.sum(axis=-1)
  return values.sum(axis=-1, where=where) / jnp.maximum(count, 1)


def in_chunks(
  function: Callable[[Array], Array], text: Array, chunk: int
) -> Array:
  """Applies a function to some texts at a time, so that memory is limited.

  Args:
    function: from texts [chunk, length] to [images, chunk].
    text: int [texts, length].
    chunk: number of texts at a time; cut to 1 at least, and to all at most.

  Returns:
    [images, texts].
  """
  count, length = text.shape
  chunk = min(max(chunk, 1), count)
  padded = jnp.pad(text, ((0, -count % chunk), (0, 0)))
  parts = jax.lax.map(function, padded.reshape(-1, chunk, length))
  images = parts.shape[1]
  return parts.swapaxes(0, 1).reshape(images, -1)[:, :count]
