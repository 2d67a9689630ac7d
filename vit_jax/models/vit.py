"""The Vision Transformer (Dosovitskiy et al., arXiv:2010.11929).

An image is cut into patches, each patch becomes a token by one matrix
product, position embeddings say where it was, a transformer mixes the tokens
and a linear head reads the class from the pooled result. In a hybrid
(section 3.1) the patches are those of a ResNet's feature map.
"""

import functools
import typing
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.models import (
  heads,
  layers,
  position,
  resnet,
  transformer,
  variants,
)
from vit_jax.models.patches import PatchEmbedding, drop_patches

Array = jax.Array


class Size(typing.NamedTuple):
  """What a variant's name stands for."""

  width: int
  depth: int
  mlp_dim: int
  num_heads: int


# ViT, table 1; Ti and S: DeiT (arXiv:2012.12877); mu, M: big_vision;
# So400m: arXiv:2305.13035; g, G, e: arXiv:2106.04560 and arXiv:2209.06794.
VARIANTS = {
  'mu': Size(32, 1, 128, 2),
  'Ti': Size(192, 12, 768, 3),
  'S': Size(384, 12, 1536, 6),
  'M': Size(512, 12, 2048, 8),
  'B': Size(768, 12, 3072, 12),
  'L': Size(1024, 24, 4096, 16),
  'So400m': Size(1152, 27, 4304, 16),
  'H': Size(1280, 32, 5120, 16),
  'g': Size(1408, 40, 6144, 16),
  'g-opt': Size(1536, 40, 6144, 16),
  'G': Size(1664, 48, 8192, 16),
  'G-opt': Size(1536, 48, 8192, 16),
  'e': Size(1792, 56, 15360, 16),
}


# ResNet and patch size of the hybrids: the units of each stage, and the patch
# size on the feature map. The third stage of R50/16 has the units of the fourth
# as well. R/16 is only the root, and its tokens are 32 pixels apart in spite of
# its released name: the root's 4 times 8.
BACKBONES = {
  'R50/16': ((3, 4, 9), 1),
  'R50/32': ((3, 4, 6, 3), 1),
  'R26/32': ((2, 2, 2, 2), 1),
  'R/16': ((), 8),
}


def variant(name: str) -> dict[str, Any]:
  """Returns the sizes of a variant, by the fields of ViT.

  Args:
    name: size and patch size, such as 'B/16', or those of a hybrid, such as
      'R50+B/16'.
  """
  resnet_name, plus, rest = name.rpartition('+')
  if not plus:
    sizes = variants.size_and_patch('ViT', name, VARIANTS)
    return {**sizes, 'backbone_stages': None}
  size, _, patch = rest.partition('/')
  backbone = f'{resnet_name}/{patch}'
  if size not in VARIANTS or backbone not in BACKBONES:
    raise ValueError(
      f'{name!r} is not a hybrid. Expected a ResNet, a size and a patch size, '
      f'such as R50+B/16; ResNets with their patch sizes: '
      f'{", ".join(BACKBONES)}; sizes: {", ".join(VARIANTS)}.'
    )
  stages, kernel = BACKBONES[backbone]
  sizes = VARIANTS[size]._asdict()
  return {**sizes, 'patch_size': kernel, 'backbone_stages': stages}


# Fields that are a share: of what is dropped, or skipped.
_RATES = ('dropout', 'attention_dropout', 'patch_dropout', 'stochastic_depth')


class ViT(nn.Module):
  """Vision Transformer.

  Sizes come from `variant` ('B/16'); each can be given instead, or in its
  place. The image size is that of the input, and need not be square.
  """

  # Length of the output; 0 gives the pooled features instead.
  num_classes: int = 0
  # By name: 'Ti/16', 'B/32', 'R50+B/16', ...; see VARIANTS and BACKBONES.
  variant: str | None = None
  # In pixels; of a hybrid, in positions of the ResNet's feature map.
  patch_size: int | None = None
  width: int | None = None
  depth: int | None = None
  mlp_dim: int | None = None
  num_heads: int | None = None
  # Makes a hybrid: the units of each stage of its ResNet, such as (3, 4, 6, 3),
  # or () for the root alone.
  backbone_stages: tuple | None = None
  # Multiplies the ResNet's channels; its root has 64.
  backbone_width_factor: float = 1.0
  # How tokens become one vector: the class token's output, the mean over
  # patches, attention from a probe, or not at all (a prediction a token).
  pooling: Literal['token', 'gap', 'map', 'none'] = 'token'
  # A layer with tanh before the head: its width, 0 for none, -1 for `width`.
  representation_size: int = 0
  # Where a patch was.
  position: Literal[
    'none', 'learned', 'learned_2d', 'sincos_2d', 'relative'
  ] = 'learned'
  # Where that is told: once at the stem, to every layer by embeddings of its
  # own, or to every layer by shared ones.
  position_at: Literal['stem', 'every_layer', 'shared'] = 'stem'
  # Of the patch embedding; CLIP's has none.
  patch_bias: bool = True
  # Whether a norm comes before the first block as well, as in CLIP.
  pre_norm: bool = False
  activation: Literal['gelu_tanh', 'gelu', 'quick_gelu'] = 'gelu_tanh'
  norm_epsilon: float = 1e-6
  # Kernels of blocks, see `layers.scaled_inits`, class token and
  # positions.
  kernel_init: Literal['xavier', 'scaled'] = 'xavier'
  # After the position embeddings, each attention and each MLP layer.
  dropout: float = 0.0
  attention_dropout: float = 0.0
  # Share of the patches that training leaves out (FLIP).
  patch_dropout: float = 0.0
  # Rate at which the last block is skipped; grows linearly with depth.
  stochastic_depth: float = 0.0
  # Initial bias of the head; log(1 / classes) starts a sigmoid loss well.
  head_bias: float = 0.0
  # One compiled block in a loop: compiles faster, runs slower.
  scan: bool = False
  # What the backward pass computes again instead of keeping it.
  # 'auto' is 'none', unless who trains it chooses.
  remat: Literal['auto', 'none', 'full', 'dots', 'names'] = 'auto'
  dtype: Any = jnp.float32
  softmax_dtype: Any = jnp.float32

  @property
  def sizes(self) -> dict[str, Any]:
    """The sizes of the variant, and those given in its place."""
    names = (*Size._fields, 'patch_size', 'backbone_stages')
    named = variant(self.variant) if self.variant else {'backbone_stages': None}
    fields = {name: getattr(self, name) for name in names}
    sizes = variants.with_fields('ViT', named, fields)
    if sizes['width'] % sizes['num_heads']:
      raise ValueError(
        f'A width of {sizes["width"]} cannot be shared by '
        f'{sizes["num_heads"]} attention heads: it must be a multiple.'
      )
    return sizes

  def _check(self) -> None:
    """Raises ValueError for numbers that cannot be meant."""
    for name in _RATES:
      if not 0 <= (rate := getattr(self, name)) < 1:
        raise ValueError(
          f'{name} is {rate}, expected a rate: 0 or more, and less than 1.'
        )
    if not self.norm_epsilon > 0:
      raise ValueError(
        f'norm_epsilon is {self.norm_epsilon}, expected more than 0.'
      )
    if self.representation_size < -1:
      raise ValueError(
        f'representation_size is {self.representation_size}, expected a '
        'width, 0 for no layer, or -1 for the width of the model.'
      )
    if self.position == 'none' and self.position_at != 'stem':
      raise ValueError(
        f"position_at is {self.position_at!r}, but with position 'none' there "
        "is nothing to tell there: choose a position, or leave 'stem'."
      )
    if self.patch_dropout and self.position_at != 'stem':
      raise ValueError(
        f'patch_dropout is {self.patch_dropout}, but layers that are told '
        "positions need all patches: use position_at 'stem', or 0."
      )

  def _position(self, grid: tuple[int, int]):
    """Returns a maker of modules of position embeddings, or None."""
    if self.position == 'relative' and self.position_at == 'stem':
      raise ValueError(
        'Relative positions act inside attention, not at the stem: set '
        "position_at to 'every_layer' (the paper's) or 'shared'."
      )
    return {
      'none': None,
      'relative': None,
      'learned': functools.partial(
        position.Learned,
        self.sizes['width'] ** -0.5 if self.kernel_init == 'scaled' else 0.02,
        name='position',
      ),
      'learned_2d': functools.partial(
        position.Learned2d, grid, name='position'
      ),
      'sincos_2d': functools.partial(position.SinCos2d, grid, name='position'),
    }[self.position]

  @nn.compact
  def __call__(
    self,
    image: Array,
    *,
    train: bool = False,
    corrupt: Callable[[Array], Array] | None = None,
  ) -> tuple[Array, dict[str, Any]]:
    """Classifies images.

    Args:
      image: [batch, height, width, channels], usually in [-1, 1].
      train: whether dropout and stochastic depth act (they need the random
        stream `dropout`).
      corrupt: changes the patch embeddings [batch, patches, width] before
        class token and positions join them; None leaves them as they are.

    Returns:
      Logits [batch, num_classes] ([batch, patches, num_classes] without
      pooling) in float32, or the pooled features where `num_classes` is 0;
      and a dict of intermediates, among them `backbone` (of a hybrid: its
      root and each stage), `patches`, `tokens`, `blocks` (a dict a block,
      attention weights included), `encoded` and `pooled`. Under `jit` those
      that are not used cost nothing.

    Raises:
      ValueError: sizes, rates or options that cannot work, or not together.
    """
    self._check()
    sizes = self.sizes
    batch, width = image.shape[0], sizes['width']
    out = {}
    if sizes['backbone_stages'] is not None:
      image, out['backbone'] = self._features(image, sizes)
    x = PatchEmbedding(
      sizes['patch_size'],
      width,
      self.dtype,
      self.patch_bias,
      name='embedding',
    )(image)
    out['patches'] = x
    grid = x.shape[1:3]
    x = layers.constrain(x.reshape(batch, -1, width), layers.BATCH)
    if corrupt:
      x = corrupt(x)
    if self.pooling == 'token':
      x = self._with_class_token(x)
    add_position = self._position(grid)
    if add_position and self.position_at == 'stem':
      x = x + add_position()(x).astype(x.dtype)
    out['tokens'] = x
    if self.patch_dropout and train:
      before, patches = x[:, : -np.prod(grid)], x[:, -np.prod(grid) :]
      key = self.make_rng('dropout')
      patches = drop_patches(patches, self.patch_dropout, key)
      x = jnp.concatenate([before, patches], axis=1)
    if self.pre_norm:
      norm = layers.LayerNorm(self.norm_epsilon, self.dtype, name='pre_norm')
      out['normed'] = x = norm(x)
    x = layers.Dropout(self.dropout, not train)(x)

    x, out['blocks'] = self._encode(x, sizes, add_position, train)
    out['encoded'] = x
    out['pooled'] = x = self._pool(out['blocks'].pop('first', x), sizes)

    if self.representation_size:
      size = self.representation_size
      x = layers.Linear(
        (width,),
        (width if size == -1 else size,),
        kernel_init=nn.initializers.lecun_normal(),
        dtype=self.dtype,
        name='pre_logits',
      )(x)
      out['pre_logits'] = x = nn.tanh(x)
    if self.num_classes:
      x = heads.classifier(x.shape[-1], self.num_classes, self.head_bias)(x)
      out['logits'] = x
    return x, out

  def _features(
    self, image: Array, sizes: dict[str, Any]
  ) -> tuple[Array, dict[str, Array]]:
    """Maps images to the feature map that a hybrid cuts into patches."""
    stages, (height, width) = sizes['backbone_stages'], image.shape[1:3]
    stride = resnet.stride(stages) * sizes['patch_size']
    if height % stride or width % stride:
      raise ValueError(
        f'Tokens of this hybrid are {stride} pixels apart, which does not '
        f'divide an image of {height}x{width}. Resize the images to multiples '
        f'of {stride}.'
      )
    return resnet.Backbone(
      stages,
      self.backbone_width_factor,
      form='post_activation',
      dtype=self.dtype,
      name='backbone',
    )(image)

  def _with_class_token(self, x: Array) -> Array:
    """Puts the class token before the patches."""
    batch, _, width = x.shape
    init = nn.initializers.zeros
    if self.kernel_init == 'scaled':
      init = nn.initializers.normal(width**-0.5)
    token = self.param('class_token', init, (1, 1, width))
    token = jnp.broadcast_to(token.astype(x.dtype), (batch, 1, width))
    return jnp.concatenate([token, x], axis=1)

  def _encode(
    self,
    x: Array,
    sizes: dict[str, Any],
    add_position: Callable[[], nn.Module] | None,
    train: bool,
  ) -> tuple[Array, dict[str, Any]]:
    """Runs the transformer; returns what its blocks leave as well."""
    return transformer.Transformer(
      depth=sizes['depth'],
      num_heads=sizes['num_heads'],
      mlp_dim=sizes['mlp_dim'],
      activation=self.activation,
      norm_epsilon=self.norm_epsilon,
      dropout=self.dropout,
      attention_dropout=self.attention_dropout,
      stochastic_depth=self.stochastic_depth,
      position=add_position if self.position_at != 'stem' else None,
      relative=self.position == 'relative',
      shared_position=self.position_at == 'shared',
      kernel_init=self.kernel_init,
      # Offsets of relative positions go with all queries or none.
      first=int(self.pooling == 'token' and self.position != 'relative'),
      scan=self.scan,
      remat=self.remat,
      deterministic=not train,
      dtype=self.dtype,
      softmax_dtype=self.softmax_dtype,
      name='encoder',
    )(x)

  def _pool(self, x: Array, sizes: dict[str, int]) -> Array:
    """Maps the encoded tokens to one vector, where there is pooling."""
    if self.pooling == 'token':
      return x[:, 0]
    if self.pooling == 'gap':
      return x.mean(axis=1)
    if self.pooling == 'map':
      return heads.AttentionPooling(
        sizes['num_heads'],
        sizes['mlp_dim'],
        self.activation,
        self.norm_epsilon,
        self.dtype,
        self.softmax_dtype,
        name='pooling',
      )(x)
    return x


def count_parameters(params: Any) -> int:
  """Returns the number of scalars in a tree of arrays or their shapes."""
  return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))
