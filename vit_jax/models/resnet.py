"""ResNets with group norm and weight standardisation.

The convolutional rivals of the Vision Transformer (BiT, arXiv:1912.11370) and
the front end of its hybrids (ViT, arXiv:2010.11929, section 3.1). They were
released in two forms, which are two different functions:

  post_activation: the usual bottleneck, ReLU(x + branch(x)), with a norm after
    each convolution. The hybrids, and the ResNets that big_vision trains.
  pre_activation: x + branch(x), norm and ReLU before each convolution (He et
    al., arXiv:1603.05027), and a last norm. The published BiT models.
"""

import functools
import re
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.models import heads, layers, variants

Array = jax.Array
Form = Literal['post_activation', 'pre_activation']

# Units of each stage, by the number of layers.
STAGES = {
  26: (2, 2, 2, 2),
  50: (3, 4, 6, 3),
  101: (3, 4, 23, 3),
  152: (3, 8, 36, 3),
  200: (3, 24, 36, 3),
}
GROUPS = 32
NORM_EPSILON = {'post_activation': 1e-6, 'pre_activation': 1e-5}


def variant(name: str) -> dict[str, Any]:
  """Returns the sizes of a variant such as 'R50x1', by the fields of ResNet."""
  match = re.fullmatch(r'R(\d+)x(\d+)', name)
  if not match or int(match[1]) not in STAGES:
    raise ValueError(
      f'{name!r} is not a ResNet variant. Expected layers and a width factor, '
      f'such as R50x1; layers: {", ".join(map(str, STAGES))}.'
    )
  return {'stages': STAGES[int(match[1])], 'width_factor': float(match[2])}


def stride(stages: tuple[int, ...]) -> int:
  """Returns how many pixels lie between two columns of the feature map."""
  # The root takes 4, and every stage but the first halves what it is given.
  return 4 * 2 ** max(len(stages) - 1, 0)


def standardize(kernel: Array, form: Form) -> Array:
  """Gives each output channel mean 0 and variance 1 (arXiv:1903.10520).

  Args:
    kernel: [height, width, inputs, outputs].
    form: says how division by zero is avoided.
  """
  kernel = kernel - kernel.mean((0, 1, 2))
  variance = jnp.square(kernel).mean((0, 1, 2))
  if form == 'post_activation':
    return kernel / (jnp.sqrt(variance) + 1e-5)
  return kernel * jax.lax.rsqrt(variance + 1e-10)


def _padding(size: int, form: Form) -> Any:
  """Returns the padding of a window: the forms differ where it has a stride."""
  return 'SAME' if form == 'post_activation' else [(size // 2, size // 2)] * 2


class Convolution(nn.Module):
  """Convolution with a standardised kernel and no bias."""

  features: int
  size: int
  stride: int
  form: Form
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Maps [batch, height, width, channels], with the stride, to features."""
    kernel = self.param(
      'kernel',
      nn.initializers.lecun_normal(),
      (self.size, self.size, x.shape[-1], self.features),
    )
    # In float32, and once for all the positions that it is used at.
    kernel = standardize(kernel, self.form).astype(self.dtype)
    x = x.astype(self.dtype)
    if self.size == 1:
      # The same as a matrix product: half the time on a CPU.
      return x[:, :: self.stride, :: self.stride] @ kernel[0, 0]
    return jax.lax.conv_general_dilated(
      x,
      kernel,
      (self.stride, self.stride),
      _padding(self.size, self.form),
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )


class GroupNorm(nn.Module):
  """Group normalisation (arXiv:1803.08494), statistics in float32."""

  epsilon: float
  scale_init: Callable = nn.initializers.ones

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Normalises [batch, height, width, channels]."""
    scale = self.param('scale', self.scale_init, x.shape[-1:])
    bias = self.param('bias', nn.initializers.zeros, x.shape[-1:])

    def group_mean(y):
      # Over positions first: groups of few channels are slow to sum up.
      y = y.mean((1, 2)).reshape(x.shape[0], GROUPS, -1)
      y = jnp.broadcast_to(y.mean(-1, keepdims=True), y.shape)
      return y.reshape(x.shape[0], 1, 1, -1)

    centred = x.astype(jnp.float32)
    centred = centred - group_mean(centred)
    # Not the mean of squares less the square of the mean: big_vision found that
    # the published BiT models lose accuracy by the difference.
    variance = group_mean(jnp.square(centred))
    inverse = jax.lax.rsqrt(variance + self.epsilon)
    return (centred * (inverse * scale) + bias).astype(x.dtype)


class PostActivationUnit(nn.Module):
  """ReLU(x + branch(x)); the branch starts at zero."""

  width: int
  stride: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Maps [batch, height, width, channels] to 4 * `width` channels."""
    form = 'post_activation'
    conv = functools.partial(Convolution, form=form, dtype=self.dtype)
    norm = functools.partial(GroupNorm, NORM_EPSILON[form])
    width, features = self.width, 4 * self.width

    y = nn.relu(norm(name='norm_1')(conv(width, 1, 1, name='conv_1')(x)))
    y = conv(width, 3, self.stride, name='conv_2')(y)
    y = nn.relu(norm(name='norm_2')(y))
    y = conv(features, 1, 1, name='conv_3')(y)
    y = norm(scale_init=nn.initializers.zeros, name='norm_3')(y)
    if self.stride > 1 or x.shape[-1] != features:
      x = conv(features, 1, self.stride, name='projection')(x)
      x = norm(name='projection_norm')(x)
    return nn.relu(x + y)


class PreActivationUnit(nn.Module):
  """x + branch(x), where the branch begins with norm and ReLU."""

  width: int
  stride: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Maps [batch, height, width, channels] to 4 * `width` channels."""
    form = 'pre_activation'
    conv = functools.partial(Convolution, form=form, dtype=self.dtype)
    norm = functools.partial(GroupNorm, NORM_EPSILON[form])
    width, features = self.width, 4 * self.width

    y = nn.relu(norm(name='norm_1')(x))
    if self.stride > 1 or x.shape[-1] != features:
      x = conv(features, 1, self.stride, name='projection')(y)
    y = conv(width, 1, 1, name='conv_1')(y)
    y = nn.relu(norm(name='norm_2')(y))
    y = conv(width, 3, self.stride, name='conv_2')(y)
    y = nn.relu(norm(name='norm_3')(y))
    return x + conv(features, 1, 1, name='conv_3')(y)


class Stage(nn.Module):
  """Units of one width, of which the first has the stride."""

  units: int
  width: int
  stride: int
  form: Form
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Maps [batch, height, width, channels] to 4 * `width` channels."""
    post = self.form == 'post_activation'
    unit = PostActivationUnit if post else PreActivationUnit
    for i in range(self.units):
      x = layers.constrain(x, layers.BATCH)
      stride = 1 if i else self.stride
      x = unit(self.width, stride, self.dtype, name=f'unit_{i + 1:02d}')(x)
    return x


class Backbone(nn.Module):
  """Everything of a ResNet before its pooling.

  Attributes:
    stages: units of each stage; () leaves only the root.
    width_factor: multiplies the channels of the root, 64, and so all others.
    form: see the top of this file.
  """

  stages: tuple[int, ...]
  width_factor: float
  form: Form
  dtype: Any = jnp.float32

  def _check(self) -> None:
    """Raises ValueError for sizes that cannot be."""
    if any(not isinstance(units, int) or units < 1 for units in self.stages):
      raise ValueError(
        f'The stages of the ResNet are {self.stages}, expected the number of '
        'units of each, 1 or more, such as (3, 4, 6, 3).'
      )
    width = 64 * self.width_factor
    if width < GROUPS or width % GROUPS:
      raise ValueError(
        f'A width factor of {self.width_factor} makes {width:g} channels, '
        f'which {GROUPS} groups cannot share: use a multiple of '
        f'{GROUPS / 64}.'
      )

  @nn.compact
  def __call__(self, image: Array) -> tuple[Array, dict[str, Array]]:
    """Maps [batch, height, width, channels] to a feature map.

    Returns:
      [batch, height / s, width / s, channels] for a stride s, see `stride`,
      and a dict of intermediates: `root` and each stage's output, `stage_1`
      and so on.
    """
    self._check()
    norm = functools.partial(GroupNorm, NORM_EPSILON[self.form])
    post = self.form == 'post_activation'
    width = int(64 * self.width_factor)
    out = {}
    x = Convolution(width, 7, 2, self.form, self.dtype, name='root')(image)
    if post:
      x = nn.relu(norm(name='root_norm')(x))
    out['root'] = x = nn.max_pool(x, (3, 3), (2, 2), _padding(3, self.form))
    for i, units in enumerate(self.stages):
      out[f'stage_{i + 1}'] = x = Stage(
        units,
        width * 2**i,
        stride=2 if i else 1,
        form=self.form,
        dtype=self.dtype,
        name=f'stage_{i + 1}',
      )(x)
    if not post:
      x = nn.relu(norm(name='norm')(x))
    return x, out


class ResNet(nn.Module):
  """ResNet with group norm and weight standardisation ("ResNet (BiT)").

  Sizes come from `variant` ('R50x1'); each can be given instead, or in its
  place. Images may have any size.
  """

  # Length of the output; 0 gives the pooled features instead.
  num_classes: int = 0
  # Layers and width by name: 'R50x1', 'R101x3', 'R152x4', ...; see STAGES.
  variant: str | None = None
  # Units of each stage, such as (3, 4, 6, 3).
  stages: tuple | None = None
  # Multiplies all channels; the root has 64.
  width_factor: float | None = None
  # See the top of this file; 'pre_activation' are the published BiT models.
  form: Form = 'pre_activation'
  # Initial bias of the head; log(1 / classes) starts a sigmoid loss well.
  head_bias: float = 0.0
  dtype: Any = jnp.float32

  @property
  def sizes(self) -> dict[str, Any]:
    """The sizes of the variant, and those given in its place."""
    named = variant(self.variant) if self.variant else {}
    fields = {'stages': self.stages, 'width_factor': self.width_factor}
    return variants.with_fields('ResNet', named, fields)

  @nn.compact
  def __call__(
    self, image: Array, *, train: bool = False
  ) -> tuple[Array, dict[str, Any]]:
    """Classifies images.

    Args:
      image: [batch, height, width, channels], usually in [-1, 1].
      train: changes nothing here; other models have dropout.

    Returns:
      Logits [batch, num_classes] in float32, or the pooled features where
      `num_classes` is 0; and a dict of intermediates: `backbone` (`root` and
      the output of each stage), `features` and `pooled`.

    Raises:
      ValueError: sizes that cannot work.
    """
    del train
    x, backbone = Backbone(
      **self.sizes, form=self.form, dtype=self.dtype, name='backbone'
    )(image)
    out = {'backbone': backbone, 'features': x}
    out['pooled'] = x = x.mean(axis=(1, 2))
    if self.num_classes:
      x = heads.classifier(x.shape[-1], self.num_classes, self.head_bias)(x)
      out['logits'] = x
    return x, out
