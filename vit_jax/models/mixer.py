"""MLP-Mixer (Tolstikhin et al., arXiv:2105.01601).

Patches become tokens as in the Vision Transformer, but there is no attention:
one MLP mixes the tokens of each channel, another the channels of each token.
So the number of tokens, and with it the image size, is fixed by training.
"""

import typing
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.models import heads, layers, variants
from vit_jax.models.patches import PatchEmbedding

Array = jax.Array


class Size(typing.NamedTuple):
  """What a variant's name stands for."""

  width: int
  depth: int
  token_mlp_dim: int
  channel_mlp_dim: int


# Table 1 of the paper.
VARIANTS = {
  'S': Size(512, 8, 256, 2048),
  'B': Size(768, 12, 384, 3072),
  'L': Size(1024, 24, 512, 4096),
  'H': Size(1280, 32, 640, 5120),
}


def variant(name: str) -> dict[str, int]:
  """Returns the sizes of a variant such as 'B/16', by the fields of Mixer."""
  return variants.size_and_patch('Mixer', name, VARIANTS)


class MixerBlock(nn.Module):
  """x + token_mlp(norm(x)), then x + channel_mlp(norm(x))."""

  token_mlp_dim: int
  channel_mlp_dim: int
  drop_rate: float = 0.0
  deterministic: bool = True
  dtype: Any = jnp.float32

  def _branch(self, y: Array) -> Array:
    if self.drop_rate and not self.deterministic:
      y = layers.drop_path(y, self.drop_rate, self.make_rng('dropout'))
    return y

  def _mlp(self, hidden: int, name: str) -> layers.Mlp:
    init = nn.initializers.lecun_normal()
    inits = layers.Inits(mlp_up=init, mlp_down=init)
    return layers.Mlp(hidden, inits=inits, dtype=self.dtype, name=name)

  @nn.compact
  def __call__(self, x: Array) -> tuple[Array, dict[str, Array]]:
    """Maps [batch, length, width] to the same, and its intermediates."""
    x = layers.constrain(x, layers.BATCH)
    y = layers.LayerNorm(dtype=self.dtype, name='token_norm')(x)
    y = self._mlp(self.token_mlp_dim, 'token_mlp')(y.swapaxes(1, 2))
    x = after_tokens = x + self._branch(y.swapaxes(1, 2))
    y = layers.LayerNorm(dtype=self.dtype, name='channel_norm')(x)
    x = x + self._branch(self._mlp(self.channel_mlp_dim, 'channel_mlp')(y))
    return x, {'after_token_mixing': after_tokens, 'output': x}


class Mixer(nn.Module):
  """MLP-Mixer.

  Sizes come from `variant` ('B/16'); each can be given instead, or in its
  place.
  """

  # Length of the output; 0 gives the pooled features instead.
  num_classes: int = 0
  # Size and patch size by name: 'S/32', 'B/16', ...; see VARIANTS.
  variant: str | None = None
  patch_size: int | None = None
  width: int | None = None
  depth: int | None = None
  token_mlp_dim: int | None = None
  channel_mlp_dim: int | None = None
  # Rate at which the last block is skipped; grows linearly with depth.
  stochastic_depth: float = 0.0
  # Initial bias of the head; log(1 / classes) starts a sigmoid loss well.
  head_bias: float = 0.0
  dtype: Any = jnp.float32

  @property
  def sizes(self) -> dict[str, int]:
    """The sizes of the variant, and those given in its place."""
    named = variant(self.variant) if self.variant else {}
    names = (*Size._fields, 'patch_size')
    fields = {name: getattr(self, name) for name in names}
    return variants.with_fields('Mixer', named, fields)

  @nn.compact
  def __call__(
    self, image: Array, *, train: bool = False
  ) -> tuple[Array, dict[str, Any]]:
    """Classifies images.

    Args:
      image: [batch, height, width, channels], usually in [-1, 1].
      train: whether stochastic depth acts (it needs the random stream
        `dropout`).

    Returns:
      Logits [batch, num_classes] in float32, or the pooled features where
      `num_classes` is 0; and a dict of intermediates: `patches`, `blocks` (a
      dict a block), `encoded` and `pooled`.

    Raises:
      ValueError: sizes or rates that cannot work.
    """
    if not 0 <= self.stochastic_depth < 1:
      raise ValueError(
        f'stochastic_depth is {self.stochastic_depth}, expected a rate: 0 or '
        'more, and less than 1.'
      )
    sizes = self.sizes
    x = PatchEmbedding(
      sizes['patch_size'], sizes['width'], self.dtype, name='embedding'
    )(image)
    out = {'patches': x, 'blocks': {}}
    x = x.reshape(x.shape[0], -1, sizes['width'])
    rates = np.linspace(0, self.stochastic_depth, sizes['depth'])
    for i, rate in enumerate(rates):
      name = f'block_{i:02d}'
      x, out['blocks'][name] = MixerBlock(
        sizes['token_mlp_dim'],
        sizes['channel_mlp_dim'],
        drop_rate=float(rate),
        deterministic=not train,
        dtype=self.dtype,
        name=name,
      )(x)
    out['encoded'] = x = layers.LayerNorm(dtype=self.dtype, name='norm')(x)
    out['pooled'] = x = x.mean(axis=1)
    if self.num_classes:
      x = heads.classifier(x.shape[-1], self.num_classes, self.head_bias)(x)
      out['logits'] = x
    return x, out
