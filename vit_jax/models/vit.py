"""The Vision Transformer (Dosovitskiy et al., arXiv:2010.11929).

An image is cut into patches, each patch becomes a token by one matrix
product, position embeddings say where it was, a transformer mixes the tokens
and a linear head reads the class from the pooled result.
"""

import functools
import typing
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.models import position, transformer

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


def variant(name: str) -> dict[str, int]:
  """Returns the sizes of a variant such as 'B/16', by the fields of ViT."""
  size, _, patch = name.partition('/')
  if size not in VARIANTS or not patch.isdecimal() or not int(patch):
    raise ValueError(
      f'{name!r} is not a ViT variant. Expected a size and a patch size, '
      f'such as B/16; sizes: {", ".join(VARIANTS)}.'
    )
  return {**VARIANTS[size]._asdict(), 'patch_size': int(patch)}


class PatchEmbedding(nn.Module):
  """Cuts an image into patches and maps each to a token.

  The same function as a convolution with stride `patch_size`, computed as a
  matrix product.
  """

  patch_size: int
  width: int
  dtype: Any = jnp.float32

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
    bias = self.param('bias', nn.initializers.zeros, (self.width,))
    rows, columns = height // size, width // size
    x = image.astype(self.dtype)
    x = x.reshape(batch, rows, size, columns, size, channels)
    x = x.transpose(0, 1, 3, 2, 4, 5).reshape(batch * rows * columns, -1)
    kernel = kernel.reshape(-1, self.width).astype(self.dtype)
    x = x @ kernel + bias.astype(self.dtype)
    return x.reshape(batch, rows, columns, self.width)


class AttentionPooling(nn.Module):
  """Pools tokens by attention from one learned probe ("MAP head").

  Multihead attention pooling (Zhai et al., arXiv:2106.04560, section 3.2).
  """

  num_heads: int
  mlp_dim: int
  activation: str
  norm_epsilon: float
  dtype: Any
  softmax_dtype: Any

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Maps [batch, length, width] to [batch, width]."""
    width = x.shape[-1]
    probe = self.param('probe', nn.initializers.xavier_uniform(), (1, 1, width))
    probe = jnp.broadcast_to(probe.astype(x.dtype), (x.shape[0], 1, width))
    x, _ = transformer.Attention(
      self.num_heads,
      dtype=self.dtype,
      softmax_dtype=self.softmax_dtype,
      name='attention',
    )(probe, x)
    y = transformer.LayerNorm(self.norm_epsilon, self.dtype, name='norm')(x)
    y = transformer.Mlp(
      self.mlp_dim, self.activation, dtype=self.dtype, name='mlp'
    )(y)
    return (x + y)[:, 0]


class ViT(nn.Module):
  """Vision Transformer.

  Sizes come from `variant` ('B/16'); each can be given instead, or in its
  place. The image size is that of the input, and need not be square.
  """

  # Length of the output; 0 gives the pooled features instead.
  num_classes: int = 0
  # Size and patch size by name: 'Ti/16', 'B/32', ...; see VARIANTS.
  variant: str | None = None
  patch_size: int | None = None
  width: int | None = None
  depth: int | None = None
  mlp_dim: int | None = None
  num_heads: int | None = None
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
  activation: Literal['gelu_tanh', 'gelu', 'quick_gelu'] = 'gelu_tanh'
  norm_epsilon: float = 1e-6
  # After the position embeddings, each attention and each MLP layer.
  dropout: float = 0.0
  attention_dropout: float = 0.0
  # Rate at which the last block is skipped; grows linearly with depth.
  stochastic_depth: float = 0.0
  # Initial bias of the head; log(1 / classes) starts a sigmoid loss well.
  head_bias: float = 0.0
  # One compiled block in a loop: compiles faster, runs slower.
  scan: bool = False
  # What the backward pass computes again instead of keeping it.
  remat: Literal['none', 'full', 'dots', 'names'] = 'none'
  dtype: Any = jnp.float32
  softmax_dtype: Any = jnp.float32

  @property
  def sizes(self) -> dict[str, int]:
    """The sizes of the variant, and those given in its place."""
    names = (*Size._fields, 'patch_size')
    sizes = variant(self.variant) if self.variant else {}
    given = {name: getattr(self, name) for name in names}
    sizes |= {name: size for name, size in given.items() if size is not None}
    if missing := [name for name in names if name not in sizes]:
      raise ValueError(
        f'The size of this ViT is not known: give variant, such as '
        f"'B/16', or {', '.join(missing)}."
      )
    for name, size in sizes.items():
      if size < 1:
        raise ValueError(f'{name} is {size}, expected 1 or more.')
    if sizes['width'] % sizes['num_heads']:
      raise ValueError(
        f'A width of {sizes["width"]} cannot be shared by '
        f'{sizes["num_heads"]} attention heads: it must be a multiple.'
      )
    return sizes

  def _check(self) -> None:
    """Raises ValueError for numbers that cannot be meant."""
    for name in ('dropout', 'attention_dropout', 'stochastic_depth'):
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
      'learned': functools.partial(position.Learned, name='position'),
      'learned_2d': functools.partial(
        position.Learned2d, grid, name='position'
      ),
      'sincos_2d': functools.partial(position.SinCos2d, grid, name='position'),
    }[self.position]

  @nn.compact
  def __call__(
    self, image: Array, *, train: bool = False
  ) -> tuple[Array, dict[str, Any]]:
    """Classifies images.

    Args:
      image: [batch, height, width, channels], usually in [-1, 1].
      train: whether dropout and stochastic depth act (they need the random
        stream `dropout`).

    Returns:
      Logits [batch, num_classes] ([batch, patches, num_classes] without
      pooling) in float32, or the pooled features where `num_classes` is 0;
      and a dict of intermediates, among them `patches`, `tokens`,
      `blocks` (a dict a block, attention weights included), `encoded` and
      `pooled`. Under `jit` those that are not used cost nothing.

    Raises:
      ValueError: sizes, rates or options that cannot work, or not together.
    """
    self._check()
    sizes = self.sizes
    batch, width = image.shape[0], sizes['width']
    out = {}
    x = PatchEmbedding(
      sizes['patch_size'], width, self.dtype, name='embedding'
    )(image)
    out['patches'] = x
    grid = x.shape[1:3]
    x = transformer.constrain(x.reshape(batch, -1, width), transformer.BATCH)
    if self.pooling == 'token':
      token = self.param('class_token', nn.initializers.zeros, (1, 1, width))
      token = jnp.broadcast_to(token.astype(x.dtype), (batch, 1, width))
      x = jnp.concatenate([token, x], axis=1)
    add_position = self._position(grid)
    if add_position and self.position_at == 'stem':
      x = x + add_position()(x).astype(x.dtype)
    out['tokens'] = x
    x = nn.Dropout(self.dropout, deterministic=not train)(x)

    x, out['blocks'] = transformer.Transformer(
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
      # Offsets of relative positions go with all queries or none.
      first=int(self.pooling == 'token' and self.position != 'relative'),
      scan=self.scan,
      remat=self.remat,
      deterministic=not train,
      dtype=self.dtype,
      softmax_dtype=self.softmax_dtype,
      name='encoder',
    )(x)
    out['encoded'] = x
    out['pooled'] = x = self._pool(out['blocks'].pop('first', x), sizes)

    if self.representation_size:
      size = self.representation_size
      x = transformer.Linear(
        (width,),
        (width if size == -1 else size,),
        kernel_init=nn.initializers.lecun_normal(),
        dtype=self.dtype,
        name='pre_logits',
      )(x)
      out['pre_logits'] = x = nn.tanh(x)
    if self.num_classes:
      # In float32: the loss is sensitive, and the head is small.
      x = transformer.Linear(
        x.shape[-1:],
        (self.num_classes,),
        kernel_init=nn.initializers.zeros,
        bias_init=nn.initializers.constant(self.head_bias),
        name='head',
      )(x)
      out['logits'] = x
    return x, out

  def _pool(self, x: Array, sizes: dict[str, int]) -> Array:
    """Maps the encoded tokens to one vector, where there is pooling."""
    if self.pooling == 'token':
      return x[:, 0]
    if self.pooling == 'gap':
      return x.mean(axis=1)
    if self.pooling == 'map':
      return AttentionPooling(
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
