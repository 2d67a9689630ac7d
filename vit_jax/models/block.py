"""A block of the transformer: self-attention, then an MLP.

Pre-normalised (Vaswani et al., arXiv:1706.03762; the order of ViT,
arXiv:2010.11929, equations 2-3). Shapes in comments use: batch, length
(tokens), width, heads, depth (of a head).
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from vit_jax.models import gradient_scale, layers, sparse_attention
from vit_jax.models.attention import Attention

Array = jax.Array
Dtype = Any


class Block(nn.Module):
  """x + attention(norm(x)), then x + mlp(norm(x)).

  Attributes:
    position: makes the module of position embeddings that this block adds to
      its input, where every layer has its own.
    relative: whether this block learns its own relative positions.
    causal: whether a token sees none of those after it.
    pattern: what tokens see where they are a text and an image after it.
    scale_gradients: whether its branches are those of `gradient_scale`.
  """

  num_heads: int
  mlp_dim: int
  activation: str = 'gelu_tanh'
  norm_epsilon: float = 1e-6
  dropout: float = 0.0
  attention_dropout: float = 0.0
  stochastic_depth: bool = False
  position: Callable[[], nn.Module] | None = None
  relative: bool = False
  causal: bool = False
  pattern: sparse_attention.Pattern | None = None
  scale_gradients: bool = False
  inits: layers.Inits = layers.Inits()
  deterministic: bool = True
  dtype: Dtype = jnp.float32
  softmax_dtype: Dtype = jnp.float32

  def _branch(
    self, y: Array, drop_rate: float | Array, scale: Array | None
  ) -> Array:
    y = layers.Dropout(self.dropout, self.deterministic)(y)
    if self.stochastic_depth and not self.deterministic:
      y = layers.drop_path(y, drop_rate, self.make_rng('dropout'))
    return y if scale is None else gradient_scale.leave(y, scale)

  def _scale(self, name: str) -> Array | None:
    """Returns the scale of a branch; None where gradients have none."""
    collection = gradient_scale.COLLECTION
    # Variables without it are for evaluation, which has no gradients.
    known = self.is_initializing() or self.has_variable(collection, name)
    if not self.scale_gradients or not known:
      return None
    start = functools.partial(jnp.float32, gradient_scale.START)
    return self.variable(collection, name, start).value

  def _scaled(
    self, module: type[nn.Module], scale: Array | None
  ) -> type[nn.Module]:
    """Returns a module of a branch, which takes its parameters into it."""
    if scale is None:
      return module

    def enter(params):
      return jax.tree.map(lambda x: gradient_scale.enter(x, scale), params)

    return nn.map_variables(
      module, 'params', enter, init=self.is_initializing()
    )

  @nn.compact
  def __call__(
    self,
    x: Array,
    drop_rate: float | Array,
    shared: dict[str, Array],
    first: int | None = None,
    cache: sparse_attention.Cache | None = None,
  ) -> tuple[Array, dict[str, Array]]:
    """Maps [batch, length, width] to the same, and its intermediates.

    Args:
      x: the input.
      drop_rate: of both residual branches (stochastic depth).
      shared: what all blocks have in common: position embeddings `position`
        [1, length, width] and `offsets`, see `Attention`.
      first: compute the output of so many tokens only, None for all.
      cache: of this block's attention, see there.
    """
    norm = dict(epsilon=self.norm_epsilon, dtype=self.dtype)
    x = layers.constrain(x, layers.BATCH)
    offsets = shared.get('offsets')
    if self.position is not None:
      x = x + self.position()(x).astype(x.dtype)
    if 'position' in shared:
      x = x + shared['position'].astype(x.dtype)
    if self.relative:
      depth = x.shape[-1] // self.num_heads
      offsets = self.param('offsets', *relative_init(x.shape[1], depth))

    scale = self._scale('attention_scale')
    y = x if scale is None else gradient_scale.enter(x, scale)
    y = self._scaled(layers.LayerNorm, scale)(name='attention_norm', **norm)(y)
    y, of_attention = self._scaled(Attention, scale)(
      self.num_heads,
      dropout=self.attention_dropout,
      causal=self.causal,
      pattern=self.pattern,
      inits=self.inits,
      deterministic=self.deterministic,
      dtype=self.dtype,
      softmax_dtype=self.softmax_dtype,
      name='attention',
    )(y[:, :first], y, offsets=offsets, cache=cache)
    attended = checkpoint_name(y, 'attention_output')
    x = layers.constrain(
      x[:, :first] + self._branch(attended, drop_rate, scale), layers.BATCH
    )
    after_attention = x

    scale = self._scale('mlp_scale')
    y = x if scale is None else gradient_scale.enter(x, scale)
    y = self._scaled(layers.LayerNorm, scale)(name='mlp_norm', **norm)(y)
    y = self._scaled(layers.Mlp, scale)(
      self.mlp_dim,
      activation=self.activation,
      dropout=self.dropout,
      deterministic=self.deterministic,
      inits=self.inits,
      dtype=self.dtype,
      name='mlp',
    )(checkpoint_name(y, 'mlp_input'))
    x = layers.constrain(x + self._branch(y, drop_rate, scale), layers.BATCH)
    return x, {
      **of_attention,
      'attention': attended,
      'after_attention': after_attention,
      'mlp': y,
      'output': x,
    }


def relative_init(length: int, depth: int) -> tuple[Callable, tuple[int, int]]:
  """Initialiser and shape of the embeddings of relative positions."""
  return nn.initializers.normal(0.02), (2 * length - 1, depth)
