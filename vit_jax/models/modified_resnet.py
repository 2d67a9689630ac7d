"""CLIP's ResNets: batch norm, no strided convolutions, attention at the end.

Radford et al., arXiv:2103.00020, section 2.4: the changes of ResNet-D
(arXiv:1812.01187), blurring before each subsampling (arXiv:1904.11486) and a
pooling by attention.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.models import attention, heads, layers, position

Array = jax.Array

# Pixels between two columns of the feature map, whatever the stages.
_STRIDE = 32
_STAGES = 4


def _layers(train: bool, dtype: Any) -> tuple[Callable, Callable]:
  """Returns what makes convolutions, by features and size, and norms."""

  def convolution(features, size, stride=1, name=None):
    return nn.Conv(
      features,
      (size, size),
      stride,
      padding=size // 2,
      use_bias=False,
      dtype=dtype,
      name=name,
    )

  norm = functools.partial(
    nn.BatchNorm,
    use_running_average=not train,
    momentum=0.9,
    epsilon=1e-5,
    dtype=dtype,
  )
  return convolution, norm


def _mean_pool(x: Array, stride: int) -> Array:
  window = (stride, stride)
  return nn.avg_pool(x, window, window) if stride > 1 else x


class Stem(nn.Module):
  """Three small convolutions, of which the first has a stride, and a mean."""

  width: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, train: bool) -> Array:
    """Maps [batch, height, width, channels] to a quarter of the size."""
    convolution, norm = _layers(train, self.dtype)
    x = convolution(self.width // 2, 3, stride=2, name='conv_1')(x)
    x = nn.relu(norm(name='norm_1')(x))
    x = convolution(self.width // 2, 3, name='conv_2')(x)
    x = nn.relu(norm(name='norm_2')(x))
    x = convolution(self.width, 3, name='conv_3')(x)
    return _mean_pool(nn.relu(norm(name='norm_3')(x)), 2)


class Unit(nn.Module):
  """ReLU(x + branch(x)); a stride is a mean over pixels, and comes late."""

  width: int
  stride: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, train: bool) -> Array:
    """Maps [batch, height, width, channels] to 4 * `width` channels."""
    convolution, norm = _layers(train, self.dtype)
    width, features = self.width, 4 * self.width

    y = convolution(width, 1, name='conv_1')(x)
    y = nn.relu(norm(name='norm_1')(y))
    y = convolution(width, 3, name='conv_2')(y)
    y = _mean_pool(nn.relu(norm(name='norm_2')(y)), self.stride)
    y = convolution(features, 1, name='conv_3')(y)
    y = norm(scale_init=nn.initializers.zeros, name='norm_3')(y)
    if self.stride > 1 or x.shape[-1] != features:
      x = _mean_pool(x, self.stride)
      x = convolution(features, 1, name='projection')(x)
      x = norm(name='projection_norm')(x)
    return nn.relu(x + y)


class Stage(nn.Module):
  """Units of one width, of which the first has the stride."""

  units: int
  width: int
  stride: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, train: bool) -> Array:
    """Maps [batch, height, width, channels] to 4 * `width` channels."""
    for i in range(self.units):
      x = layers.constrain(x, layers.BATCH)
      stride = 1 if i else self.stride
      x = Unit(self.width, stride, self.dtype, name=f'unit_{i + 1:02d}')(
        x, train
      )
    return x


class AttentionPool(nn.Module):
  """Pools a feature map by attention from its mean.

  The heads' results stay unmixed: what mixes them in CLIP is also what maps
  them to the space of image and text, so it is CLIP's.
  """

  num_heads: int
  dtype: Any = jnp.float32
  softmax_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Maps [batch, height, width, channels] to [batch, channels]."""
    channels = x.shape[-1]
    x = x.reshape(x.shape[0], -1, channels)
    x = jnp.concatenate([x.mean(axis=1, keepdims=True), x], axis=1)
    deviation = channels**-0.5
    x = x + position.Learned(deviation, name='position')(x).astype(x.dtype)
    x, _ = attention.Attention(
      self.num_heads,
      mix_heads=False,
      inits=layers.Inits(attention=nn.initializers.normal(deviation)),
      dtype=self.dtype,
      softmax_dtype=self.softmax_dtype,
      name='attention',
    )(x[:, :1], x)
    return x[:, 0]


class ModifiedResNet(nn.Module):
  """The image tower of CLIP's RN50, RN101, RN50x4, RN50x16 and RN50x64.

  By itself it is a model of images like the others.

  Batch norm keeps running statistics in the collection `batch_stats`, which
  is made by `init` beside `params`. Evaluation reads it. In training it is to
  be given as well and comes back changed:

    output, changed = model.apply(
      {'params': params, 'batch_stats': statistics}, image, train=True,
      mutable=['batch_stats'],
    )
    statistics = changed['batch_stats']

  Statistics of a batch are over all of the global batch. The running variance
  is that of the batch itself; torch's is larger by n / (n - 1).
  """

  # Units of each of the four stages, such as (3, 4, 6, 3).
  stages: tuple
  # Channels of the stem; the feature map has 32 times as many.
  width: int
  # Of the attention at the end.
  num_heads: int
  # Length of the output; 0 gives the pooled features instead, as in CLIP.
  num_classes: int = 0
  dtype: Any = jnp.float32
  softmax_dtype: Any = jnp.float32

  def _check(self, image: Array) -> None:
    """Raises ValueError for sizes that cannot work."""
    if len(self.stages) != _STAGES or min(self.stages) < 1:
      raise ValueError(
        f'The stages of the ResNet are {self.stages}, expected the number of '
        'units of each of four, 1 or more, such as (3, 4, 6, 3).'
      )
    if self.width < 2 or self.width % 2:
      raise ValueError(
        f'width is {self.width}, expected an even number: the stem begins '
        'with half of it.'
      )
    if self.num_heads < 1 or 32 * self.width % self.num_heads:
      raise ValueError(
        f'{32 * self.width} channels cannot be shared by {self.num_heads} '
        'attention heads: it must be a multiple.'
      )
    height, width = image.shape[1:3]
    if height % _STRIDE or width % _STRIDE:
      raise ValueError(
        f'The features of this ResNet are {_STRIDE} pixels apart, which does '
        f'not divide an image of {height}x{width}. Resize the images to '
        f'multiples of {_STRIDE}.'
      )

  @nn.compact
  def __call__(
    self, image: Array, *, train: bool = False
  ) -> tuple[Array, dict[str, Any]]:
    """Encodes images, or classifies them.

    Args:
      image: [batch, height, width, channels].
      train: whether batch norm uses, and updates, the statistics of the batch.

    Returns:
      Logits [batch, num_classes] in float32, or the pooled features
      [batch, 32 * width] where `num_classes` is 0; and a dict of intermediates:
      `stem`, `stage_1` to `stage_4` and `pooled`.

    Raises:
      ValueError: sizes that cannot work.
    """
    self._check(image)
    x = Stem(self.width, self.dtype, name='stem')(image, train)
    out = {'stem': x}
    for i, units in enumerate(self.stages):
      out[f'stage_{i + 1}'] = x = Stage(
        units,
        self.width * 2**i,
        stride=2 if i else 1,
        dtype=self.dtype,
        name=f'stage_{i + 1}',
      )(x, train)
    out['pooled'] = x = AttentionPool(
      self.num_heads, self.dtype, self.softmax_dtype, name='pooling'
    )(x)
    if self.num_classes:
      x = heads.classifier(x.shape[-1], self.num_classes)(x)
      out['logits'] = x
    return x, out
