"""The convolutions of DALL-E's discrete VAE: its encoder and its decoder.

Ramesh et al., arXiv:2102.12092, appendix A.1; as released, block for block.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.models import layers

Array = jax.Array

# Sizes of the four kernels of a block of the decoder.
_DECODER_KERNELS = (1, 3, 3, 3)
# All convolutions of a block but the last are narrower by this factor.
BOTTLENECK = 4


def to_patches(image: Array, size: int) -> Array:
  """Moves each patch of pixels into the channels of one position."""
  batch, height, width, channels = image.shape
  rows, columns = height // size, width // size
  x = image.reshape(batch, rows, size, columns, size, channels)
  return x.swapaxes(2, 3).reshape(batch, rows, columns, -1)


def from_patches(x: Array, size: int) -> Array:
  """Undoes `to_patches`."""
  batch, rows, columns, features = x.shape
  x = x.reshape(batch, rows, columns, size, size, features // size**2)
  return x.swapaxes(2, 3).reshape(batch, rows * size, columns * size, -1)


class Convolution(nn.Module):
  """Convolution that keeps height and width, initialised as by OpenAI."""

  features: int
  size: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Maps [batch, height, width, channels] to features."""
    kernel = self.param(
      'kernel',
      nn.initializers.variance_scaling(1.0, 'fan_in', 'normal'),
      (self.size, self.size, x.shape[-1], self.features),
    ).astype(self.dtype)
    bias = self.param('bias', nn.initializers.zeros, (self.features,))
    x = x.astype(self.dtype)
    if self.size == 1:
      # The same as a matrix product, which is faster on a CPU.
      x = x @ kernel[0, 0]
    else:
      x = jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1, 1),
        padding=[(self.size // 2, self.size // 2)] * 2,
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
      )
    return x + bias.astype(self.dtype)


class Block(nn.Module):
  """x + gain * branch(x); there are no norms, so the gain keeps it in range.

  Attributes:
    features: of the output.
    kernels: sizes of the four convolutions.
    gain: factor of the branch, 1 / (number of blocks)^2.
  """

  features: int
  kernels: tuple[int, ...]
  gain: float
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Maps [batch, height, width, channels] to features."""
    x = layers.constrain(x, layers.BATCH)
    narrow, y = self.features // BOTTLENECK, x
    widths = (narrow, narrow, narrow, self.features)
    for i, (width, size) in enumerate(zip(widths, self.kernels), 1):
      y = Convolution(width, size, self.dtype, name=f'conv_{i}')(nn.relu(y))
    if x.shape[-1] != self.features:
      x = Convolution(self.features, 1, self.dtype, name='identity')(x)
    return x + self.gain * y


class Encoder(nn.Module):
  """Convolutional groups, between which a maximum halves height and width."""

  width: int
  groups: int
  blocks_per_group: int
  outputs: int
  stem_size: int
  kernel: int
  patch_size: int
  block: Any
  dtype: Any

  @nn.compact
  def __call__(self, image: Array) -> tuple[Array, dict[str, Array]]:
    """Maps mapped images [batch, height, width, channels] to features.

    Returns:
      float32 [batch, rows, columns, outputs], and a dict of intermediates:
      `input`, and `group_1` and on, each after its maximum.
    """
    x = to_patches(image, self.patch_size)
    x = Convolution(self.width, self.stem_size, self.dtype, name='input')(x)
    out = {'input': x}
    kernels = (self.kernel,) * 3 + (1,)
    for group in range(self.groups):
      block = functools.partial(self.block, self.width * 2**group, kernels)
      for i in range(self.blocks_per_group):
        x = block(name=f'group_{group + 1}_block_{i + 1}')(x)
      if group < self.groups - 1:
        x = nn.max_pool(x, (2, 2), (2, 2))
      out[f'group_{group + 1}'] = x
    # In float32: logits of two codes that are close would be one in bfloat16.
    return Convolution(self.outputs, 1, name='output')(nn.relu(x)), out


class Decoder(nn.Module):
  """Convolutional groups, between which each pixel becomes 2 x 2."""

  width: int
  groups: int
  blocks_per_group: int
  channels: int
  patch_size: int
  block: Any
  dtype: Any

  @nn.compact
  def __call__(self, x: Array) -> tuple[Array, dict[str, Array]]:
    """Maps vectors of codes [batch, rows, columns, code_width] to statistics.

    Returns:
      float32 [batch, height, width, 2 * channels], and a dict of
      intermediates: `group_1` and on, each after its repetition.
    """
    out = {}
    for group in range(self.groups):
      block = functools.partial(
        self.block, self.width * 2 ** (self.groups - 1 - group),
        _DECODER_KERNELS,
      )  # fmt: skip
      for i in range(self.blocks_per_group):
        x = block(name=f'group_{group + 1}_block_{i + 1}')(x)
      if group < self.groups - 1:
        x = x.repeat(2, axis=1).repeat(2, axis=2)
      out[f'group_{group + 1}'] = x
    features = 2 * self.channels * self.patch_size**2
    x = Convolution(features, 1, self.dtype, name='output')(nn.relu(x))
    return from_patches(x, self.patch_size).astype(jnp.float32), out
