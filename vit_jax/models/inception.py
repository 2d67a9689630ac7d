"""Inception-v3 as the Frechet Inception distance (FID) is measured with.

The network of Szegedy et al., arXiv:1512.00567, in the graph of 2015-12-05
that the authors of FID (Heusel et al., arXiv:1706.08500) took their features
from. Whoever computes something else measures another distance. What sets this
graph apart from others of the same name:

  - an average over 3 x 3 positions counts those inside of the image alone;
  - the last block takes their maximum in place of the average;
  - 1,008 classes, of which the Inception score uses the logits without bias;
  - its own way of scaling pictures, see `prepare`.

Layers bear the names that they have there. It is not for training: batch norm
knows only its running statistics, and there is no auxiliary classifier.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array

# Pixels of the sides of the images that the network was trained on.
SIDE = 299
# Those of which the last block still sees one position.
SMALLEST = 75
NORM_EPSILON = 1e-3
# Figures must not depend on the machine: a TPU would round products to bfloat16
# and a GPU to TensorFloat-32.
_PRECISION = jax.lax.Precision.HIGHEST


def prepare(images: Array) -> Array:
  """Scales pictures as the original graph does.

  Between the nearest four pixels, without antialiasing. Pixel i of the result
  lies at i * old / new, as in TensorFlow 1, and not at (i + 1/2) * old / new -
  1/2, so that pictures move up and left a little; pytorch-fid does the latter
  and gets slightly other distances.

  Args:
    images: [batch, height, width, 3] of 0..255.

  Returns:
    [batch, 299, 299, 3], float32; 128 becomes 0 and 255 almost 1.
  """
  x = jnp.asarray(images, jnp.float32)
  for axis in (2, 1):
    x = _scaled(x, axis)
  return (x - 128) / 128


def _scaled(x: Array, axis: int) -> Array:
  length = x.shape[axis]
  places = np.arange(SIDE, dtype=np.float32) * np.float32(length / SIDE)
  before = places.astype(int)
  after = np.minimum(before + 1, length - 1)
  share = (places - before.astype(np.float32)).reshape(-1, *[1] * (3 - axis))
  low, high = (jnp.take(x, at, axis) for at in (before, after))
  return low + (high - low) * share


def _halved(x: Array) -> Array:
  """Returns the maximum of every second window of 3 x 3."""
  return nn.max_pool(x, (3, 3), (2, 2))


def _maximum(x: Array) -> Array:
  return nn.max_pool(x, (3, 3), padding='SAME')


def _average(x: Array) -> Array:
  return nn.avg_pool(x, (3, 3), padding='SAME', count_include_pad=False)


class Convolution(nn.Module):
  """ReLU(batch norm(convolution)), by the norm's running statistics."""

  features: int
  size: tuple[int, int]
  stride: int = 1
  padding: str = 'SAME'

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Maps [batch, height, width, channels] to `features` channels."""
    x = nn.Conv(
      self.features,
      self.size,
      self.stride,
      self.padding,
      use_bias=False,
      precision=_PRECISION,
      name='conv',
    )(x)
    norm = nn.BatchNorm(
      use_running_average=True, epsilon=NORM_EPSILON, name='norm'
    )
    return nn.relu(norm(x))


# What follows no border, and what halves the image as well.
_Inner = functools.partial(Convolution, padding='VALID')
_Halving = functools.partial(_Inner, size=(3, 3), stride=2)


def _branch(x: Array, name: str, *sizes: tuple[int, int, int]) -> Array:
  """Applies convolutions in turn, to be called inside a compact method.

  Args:
    x: [batch, height, width, channels].
    name: of the branch; convolutions are numbered from 1.
    *sizes: features, height and width of each.
  """
  for i, (features, height, width) in enumerate(sizes, 1):
    x = Convolution(features, (height, width), name=f'{name}_{i}')(x)
  return x


class BlockA(nn.Module):
  """Filters of 1 x 1, 5 x 5 and twice 3 x 3, side by side; for 35 x 35."""

  pool_features: int

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Maps [batch, height, width, channels] to 224 + `pool_features`."""
    pooled = Convolution(self.pool_features, (1, 1), name='branch_pool')
    branches = [
      Convolution(64, (1, 1), name='branch1x1')(x),
      _branch(x, 'branch5x5', (48, 1, 1), (64, 5, 5)),
      _branch(x, 'branch3x3dbl', (64, 1, 1), (96, 3, 3), (96, 3, 3)),
      pooled(_average(x)),
    ]
    return jnp.concatenate(branches, -1)


class BlockB(nn.Module):
  """Halves height and width, from 35 x 35 to 17 x 17."""

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Maps [batch, height, width, channels] to 480 more channels."""
    double = _branch(x, 'branch3x3dbl', (64, 1, 1), (96, 3, 3))
    branches = [
      _Halving(384, name='branch3x3')(x),
      _Halving(96, name='branch3x3dbl_3')(double),
      _halved(x),
    ]
    return jnp.concatenate(branches, -1)


class BlockC(nn.Module):
  """Filters of 7 x 7 as rows and columns; for 17 x 17."""

  narrow: int

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Maps [batch, height, width, channels] to 768 channels."""
    first, row, column = (
      (self.narrow, *size) for size in ((1, 1), (1, 7), (7, 1))
    )
    last_row, last_column = (192, 1, 7), (192, 7, 1)
    double = (first, column, row, column, last_row)
    branches = [
      Convolution(192, (1, 1), name='branch1x1')(x),
      _branch(x, 'branch7x7', first, row, last_column),
      _branch(x, 'branch7x7dbl', *double),
      Convolution(192, (1, 1), name='branch_pool')(_average(x)),
    ]
    return jnp.concatenate(branches, -1)


class BlockD(nn.Module):
  """Halves height and width, from 17 x 17 to 8 x 8."""

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Maps [batch, height, width, channels] to 512 more channels."""
    single = _branch(x, 'branch3x3', (192, 1, 1))
    wide = _branch(x, 'branch7x7x3', (192, 1, 1), (192, 1, 7), (192, 7, 1))
    branches = [
      _Halving(320, name='branch3x3_2')(single),
      _Halving(192, name='branch7x7x3_4')(wide),
      _halved(x),
    ]
    return jnp.concatenate(branches, -1)


class BlockE(nn.Module):
  """Filters of 3 x 3, whose rows and columns stay apart; for 8 x 8.

  Attributes:
    takes_maximum: in place of the average, as only the last block does.
  """

  takes_maximum: bool = False

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Maps [batch, height, width, channels] to 2,048 channels."""
    single = _branch(x, 'branch3x3', (384, 1, 1))
    double = _branch(x, 'branch3x3dbl', (448, 1, 1), (384, 3, 3))
    pooled = (_maximum if self.takes_maximum else _average)(x)
    branches = [
      Convolution(320, (1, 1), name='branch1x1')(x),
      Convolution(384, (1, 3), name='branch3x3_2a')(single),
      Convolution(384, (3, 1), name='branch3x3_2b')(single),
      Convolution(384, (1, 3), name='branch3x3dbl_3a')(double),
      Convolution(384, (3, 1), name='branch3x3dbl_3b')(double),
      Convolution(192, (1, 1), name='branch_pool')(pooled),
    ]
    return jnp.concatenate(branches, -1)


class Head(nn.Module):
  """The classifier."""

  num_classes: int

  @nn.compact
  def __call__(self, x: Array) -> tuple[Array, Array]:
    """Maps [batch, width] to logits without, and with, their bias."""
    init, shape = nn.initializers.zeros, (x.shape[-1], self.num_classes)
    kernel = self.param('kernel', init, shape)
    bias = self.param('bias', init, shape[1:])
    logits = jnp.matmul(x, kernel, precision=_PRECISION)
    return logits, logits + bias


class InceptionV3(nn.Module):
  """Inception-v3 of FID; see the top of this file.

  Its running statistics are in the collection `batch_stats`.
  """

  # As the graph has; ImageNet has fewer.
  num_classes: int = 1008

  @nn.compact
  def __call__(self, image: Array) -> tuple[Array, dict[str, Any]]:
    """Classifies images.

    Args:
      image: [batch, height, width, 3] in [-1, 1], of 299 x 299 for FID; see
        `prepare`.

    Returns:
      Logits [batch, num_classes], and a dict of intermediates: the output of
      each layer by its name; `pooled` [batch, 2048], the features of FID; and
      `logits_without_bias`, of which the Inception score is taken.

    Raises:
      ValueError: the image is too small, or not of three channels.
    """
    if min(image.shape[1:3]) < SMALLEST or image.shape[-1] != 3:
      raise ValueError(
        f'Images are {image.shape[1:]} (height, width, channels), expected '
        f'{SMALLEST} pixels or more a side, {SIDE} for FID, and 3 channels.'
      )
    out, x = {}, image
    for layer in (
      _Inner(32, (3, 3), 2, name='Conv2d_1a_3x3'),
      _Inner(32, (3, 3), name='Conv2d_2a_3x3'),
      Convolution(64, (3, 3), name='Conv2d_2b_3x3'),
      _halved,
      _Inner(80, (1, 1), name='Conv2d_3b_1x1'),
      _Inner(192, (3, 3), name='Conv2d_4a_3x3'),
      _halved,
      BlockA(32, name='Mixed_5b'),
      BlockA(64, name='Mixed_5c'),
      BlockA(64, name='Mixed_5d'),
      BlockB(name='Mixed_6a'),
      BlockC(128, name='Mixed_6b'),
      BlockC(160, name='Mixed_6c'),
      BlockC(160, name='Mixed_6d'),
      BlockC(192, name='Mixed_6e'),
      BlockD(name='Mixed_7a'),
      BlockE(name='Mixed_7b'),
      BlockE(takes_maximum=True, name='Mixed_7c'),
    ):
      x = layer(x)
      if isinstance(layer, nn.Module):
        out[layer.name] = x
    out['pooled'] = x = x.mean((1, 2))
    out['logits_without_bias'], logits = Head(self.num_classes, name='head')(x)
    return logits, out
