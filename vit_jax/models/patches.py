"""From an image, or a feature map, to tokens."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

Array = jax.Array


def drop_patches(patches: Array, rate: float, key: Array) -> Array:
  """Keeps a random share of each image's patches (FLIP, arXiv:2212.00794).

  Args:
    patches: [batch, patches, width], with their positions.
    rate: share of the patches to drop; at least one stays.
    key: random key.

  Returns:
    [batch, round(patches * (1 - rate)), width], in any order.
  """
  batch, length, _ = patches.shape
  keep = max(1, round(length * (1 - rate)))
  order = jnp.argsort(jax.random.uniform(key, (batch, length)), axis=1)
  return jnp.take_along_axis(patches, order[:, :keep, None], axis=1)


class PatchEmbedding(nn.Module):
  """Cuts an image into patches and maps each to a token.

  The same function as a convolution with stride `patch_size`, computed as a
  matrix product.
  """

  patch_size: int
  width: int
  dtype: Any = jnp.float32
  use_bias: bool = True

  @nn.compact
  def __call__(self, image: Array) -> Array:
    """Maps [batch, height, width, channels] to [batch, rows, columns, D]."""
    size, (batch, height, width, channels) = self.patch_size, image.shape
    if height % size or width % size:
      raise ValueError(
        f'Patches of {size}x{size} pixels do not divide an image of '
        f'{height}x{width}. Resize the images to multiples of {size}, or '
        'choose another patch size.'
      )
    # The released kernels are those of a convolution: [P, P, channels, D].
    kernel = self.param(
      'kernel',
      nn.initializers.lecun_normal(),
      (size, size, channels, self.width),
    )
    rows, columns = height // size, width // size
    x = image.astype(self.dtype)
    x = x.reshape(batch, rows, size, columns, size, channels)
    x = x.transpose(0, 1, 3, 2, 4, 5).reshape(batch * rows * columns, -1)
    kernel = kernel.reshape(-1, self.width).astype(self.dtype)
    x = x @ kernel
    if self.use_bias:
      bias = self.param('bias', nn.initializers.zeros, (self.width,))
      x = x + bias.astype(self.dtype)
    return x.reshape(batch, rows, columns, self.width)
