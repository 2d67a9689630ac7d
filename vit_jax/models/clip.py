"""CLIP: images and texts in one space (Radford et al., arXiv:2103.00020).

An image tower and a text tower, of any kind, a projection of each to vectors
of one length, and the parameters of the loss. SigLIP (arXiv:2303.15343) and LiT
(arXiv:2111.07991) are other choices of the same parts.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.models.mixer import Mixer
from vit_jax.models.modified_resnet import ModifiedResNet
from vit_jax.models.resnet import ResNet
from vit_jax.models.text import TextTransformer
from vit_jax.models.vit import ViT

Array = jax.Array

IMAGE_TOWERS = {
  'mixer': Mixer,
  'modified_resnet': ModifiedResNet,
  'resnet': ResNet,
  'vit': ViT,
}


class Size(NamedTuple):
  """What the name of a released model stands for."""

  # Of the space of images and texts.
  width: int
  # Height and width of images.
  image_size: int
  # Units of the stages of the ResNet, or the number of the ViT's blocks.
  image_depth: tuple[int, ...] | int
  image_width: int
  # Of the ViT, 0 for a ResNet.
  patch_size: int
  text_width: int


# arXiv:2103.00020, tables 19 and 20. Each text tower has 12 blocks, each head
# 64 channels.
VARIANTS = {
  'RN50': Size(1024, 224, (3, 4, 6, 3), 64, 0, 512),
  'RN101': Size(512, 224, (3, 4, 23, 3), 64, 0, 512),
  'RN50x4': Size(640, 288, (4, 6, 10, 6), 80, 0, 640),
  'RN50x16': Size(768, 384, (6, 8, 18, 8), 96, 0, 768),
  'RN50x64': Size(1024, 448, (3, 15, 36, 10), 128, 0, 1024),
  'ViT-B/32': Size(512, 224, 12, 768, 32, 512),
  'ViT-B/16': Size(512, 224, 12, 768, 16, 512),
  'ViT-L/14': Size(768, 224, 24, 1024, 14, 768),
  'ViT-L/14@336': Size(768, 336, 24, 1024, 14, 768),
}
_HEAD = 64


def variant(name: str) -> dict[str, Any]:
  """Returns a released model as the arguments of `make`.

  Args:
    name: one of VARIANTS; they say the size of images as well.
  """
  if name not in VARIANTS:
    raise ValueError(
      f'{name!r} is not a CLIP variant. Expected one of {", ".join(VARIANTS)}.'
    )
  size = VARIANTS[name]
  text = dict(
    vocabulary_size=49_408,
    length=77,
    width=size.text_width,
    depth=12,
    mlp_dim=4 * size.text_width,
    num_heads=size.text_width // _HEAD,
  )
  if size.patch_size:
    image = dict(
      name='vit',
      patch_size=size.patch_size,
      width=size.image_width,
      depth=size.image_depth,
      mlp_dim=4 * size.image_width,
      num_heads=size.image_width // _HEAD,
      patch_bias=False,
      pre_norm=True,
      activation='quick_gelu',
      norm_epsilon=1e-5,
      # As the text tower: what CLIP's image tower started from is not known.
      kernel_init='scaled',
    )
  else:
    image = dict(
      name='modified_resnet',
      stages=size.image_depth,
      width=size.image_width,
      num_heads=32 * size.image_width // _HEAD,
    )
  image_head = 'linear' if size.patch_size else 'affine'
  return dict(width=size.width, image=image, text=text, image_head=image_head)


def make(
  *,
  image: Mapping[str, Any],
  text: Mapping[str, Any],
  dtype: Any = jnp.float32,
  softmax_dtype: Any = jnp.float32,
  **fields: Any,
) -> 'CLIP':
  """Returns a model from plain values, such as those of `variant`.

  Args:
    image: `name`, one of IMAGE_TOWERS, and the fields of that model.
    text: the fields of TextTransformer.
    dtype: of activations and matrix products of both towers.
    softmax_dtype: of attention weights.
    **fields: the other fields of CLIP.
  """
  sizes = dict(image)
  kind = sizes.pop('name', None)
  if kind not in IMAGE_TOWERS:
    raise ValueError(
      f'The name of the image tower is {kind!r}, expected one of '
      f'{", ".join(IMAGE_TOWERS)}.'
    )
  tower = IMAGE_TOWERS[kind]
  dtypes = dict(dtype=dtype, softmax_dtype=softmax_dtype)
  # Not every tower has a softmax.
  known = {field.name for field in dataclasses.fields(tower)}
  sizes |= {name: dtypes[name] for name in dtypes if name in known}
  return CLIP(tower(**sizes), TextTransformer(**text, **dtypes), **fields)


class CLIP(nn.Module):
  """Two towers that map images and texts to vectors of unit length.

  Parameters beside those of the towers, `image/...` and `text/...`, are
  `image_projection/...`, `text_projection/...`, the scalar `logit_scale`, which
  is the logarithm of the factor of similarities, and the scalar `logit_bias`,
  where there is one.
  """

  # Give one vector an input: ViT, hybrid, ResNet, ModifiedResNet, Mixer.
  image: nn.Module
  text: nn.Module
  # Of the space of images and texts.
  width: int
  # What maps the features of a tower to that space: nothing, a matrix, or a
  # matrix and a bias.
  image_head: Literal['none', 'linear', 'affine'] = 'linear'
  text_head: Literal['none', 'linear', 'affine'] = 'linear'
  # Similarities are multiplied with this at first.
  initial_scale: float = 1 / 0.07
  # Added to logits at first. None is no bias, unless who trains it with a loss
  # that has one chooses: see `vit_jax.tasks.contrastive_loss.initial_bias`.
  initial_bias: float | None = None

  def setup(self):
    if self.width < 1 or not self.initial_scale > 0:
      raise ValueError(
        f'width is {self.width} and initial_scale {self.initial_scale}, '
        'expected 1 or more and more than 0.'
      )
    # In float32, as the loss is sensitive; its deviation is inputs**-0.5.
    projection = functools.partial(
      nn.Dense,
      self.width,
      kernel_init=nn.initializers.variance_scaling(1.0, 'fan_in', 'normal'),
    )
    if self.image_head != 'none':
      self.image_projection = projection(use_bias=self.image_head == 'affine')
    if self.text_head != 'none':
      self.text_projection = projection(use_bias=self.text_head == 'affine')
    constant = nn.initializers.constant
    self.logit_scale = self.param(
      'logit_scale', constant(math.log(self.initial_scale)), ()
    )
    if self.initial_bias is not None:
      self.logit_bias = self.param(
        'logit_bias', constant(self.initial_bias), ()
      )

  def __call__(
    self, image: Array, text: Array, *, train: bool = False
  ) -> tuple[tuple[Array, Array], dict[str, Any]]:
    """Encodes images and texts; as many of one as of the other, or not.

    Args:
      image: [images, height, width, channels].
      text: int [texts, length], token ids.
      train: whether dropout acts (random stream `dropout`), and batch norm
        learns, see `ModifiedResNet`.

    Returns:
      Image and text features in float32, [images, width] and [texts, width],
      of unit length; and a dict of intermediates: `image` and `text`, which
      are those of the towers, with `projected` (features of any length), and
      the scalars `logit_scale` and `logit_bias`.

    Raises:
      ValueError: sizes that cannot work.
    """
    out = {'logit_scale': self.logit_scale}
    if self.initial_bias is not None:
      out['logit_bias'] = self.logit_bias
    image_features, out['image'] = self.encode_image(image, train=train)
    text_features, out['text'] = self.encode_text(text, train=train)
    return (image_features, text_features), out

  def encode_image(
    self, image: Array, *, train: bool = False
  ) -> tuple[Array, dict[str, Any]]:
    """Returns image features and intermediates alone: see `__call__`."""
    x, out = self.image(image, train=train)
    if self.image_head != 'none':
      x = self.image_projection(x)
    return self._normalised('image', x), {**out, 'projected': x}

  def encode_text(
    self, text: Array, *, train: bool = False
  ) -> tuple[Array, dict[str, Any]]:
    """Returns text features and intermediates alone: see `__call__`."""
    x, out = self.text(text, train=train)
    if self.text_head != 'none':
      x = self.text_projection(x)
    return self._normalised('text', x), {**out, 'projected': x}

  def _normalised(self, side: str, x: Array) -> Array:
    """Gives vectors of `width` unit length; those of length 0 keep it."""
    if x.ndim != 2 or x.shape[1] != self.width:
      raise ValueError(
        f'The {side} tower gives features of the shape {x.shape}, expected '
        f'[batch, {self.width}]: give the tower a pooling, and where '
        f"{side}_head is 'none', make its width that of the model."
      )
    x = x.astype(jnp.float32)
    square = jnp.square(x).sum(axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(square, 1e-24))
