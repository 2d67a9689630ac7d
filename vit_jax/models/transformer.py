"""The transformer that every model of this package is made of.

Pre-normalised blocks of self-attention and MLP (Vaswani et al.,
arXiv:1706.03762; the order of ViT, arXiv:2010.11929, equations 2-3). Shapes
in comments use: batch, length (tokens), width, heads, depth (of a head).
"""

import functools
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from vit_jax.models import kernels, layers

Array = jax.Array
Dtype = Any

# What rematerialisation keeps of the forward pass for the backward one.
REMAT = {
  # Nothing but the input of each block: least memory, a third more work.
  'full': None,
  # The results of matrix products with weights.
  'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  # The two results of each block that cost most to compute again.
  'names': jax.checkpoint_policies.save_only_these_names(
    'attention_output', 'mlp_input'
  ),
}


def relative_logits(query: Array, offsets: Array) -> Array:
  """Attention logits from the distance of two tokens in the sequence.

  The query is multiplied with an embedding of the offset between query and
  key (Shaw et al., arXiv:1803.02155; ViT, arXiv:2010.11929, appendix D.4:
  "1-dimensional relative attention"). Heads share the embeddings.

  Args:
    query: [batch, length, heads, depth].
    offsets: [2 length - 1, depth], from -(length - 1) to length - 1.

  Returns:
    [batch, heads, query, key].
  """
  length = query.shape[1]
  logits = jnp.einsum('bqhd,od->bhqo', query, offsets.astype(query.dtype))
  wanted = np.arange(length)[None, :] - np.arange(length)[:, None]
  wanted = jnp.asarray(wanted + length - 1)[None, None]
  return jnp.take_along_axis(logits, wanted, axis=-1)


class Attention(nn.Module):
  """Multi-head attention (arXiv:1706.03762, section 3.2).

  Attributes:
    num_heads: heads, each of width / num_heads.
    dropout: rate at which attention weights are dropped.
    causal: whether a token sees none of those after it.
    mix_heads: whether a last linear layer, `out`, mixes the heads' results.
    softmax_dtype: bfloat16 needs a quarter less memory on TPU than float32.
  """

  num_heads: int
  dropout: float = 0.0
  causal: bool = False
  mix_heads: bool = True
  inits: layers.Inits = layers.Inits()
  deterministic: bool = True
  dtype: Dtype = jnp.float32
  softmax_dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(
    self, x: Array, memory: Array | None = None, offsets: Array | None = None
  ) -> tuple[Array, Array]:
    """Attends from `x` to `memory`, or to itself.

    Args:
      x: [batch, queries, width].
      memory: [batch, keys, width].
      offsets: embeddings of relative positions, see `relative_logits`.

    Returns:
      The output [batch, queries, width] and the attention weights
      [batch, heads, queries, keys].
    """
    width = x.shape[-1]
    heads = (self.num_heads, width // self.num_heads)
    memory = x if memory is None else memory
    linear = functools.partial(
      layers.Linear, (width,), heads, self.inits.attention, dtype=self.dtype
    )
    query = linear(name='query')(x)
    key = linear(name='key')(memory)
    value = linear(name='value')(memory)

    weights = self._weights(query, key, offsets)
    drops = self.dropout > 0 and not self.deterministic
    if layers.on_cpu() and not drops and offsets is None:
      # The weights above are then computed only if somebody uses them.
      x = kernels.attend(query, key, value, self.softmax_dtype, self.causal)
    else:
      dropped = nn.Dropout(self.dropout, deterministic=not drops)(weights)
      x = jnp.einsum('bhqk,bkhd->bqhd', dropped, value)
    if not self.mix_heads:
      return x.reshape(*x.shape[:2], width), weights
    out = layers.Linear(
      heads,
      (width,),
      self.inits.attention_out,
      dtype=self.dtype,
      name='out',
    )
    return out(x), weights

  def _weights(self, query: Array, key: Array, offsets: Array | None) -> Array:
    """Returns the attention weights, [batch, heads, queries, keys]."""
    query = query * np.asarray(query.shape[-1] ** -0.5, query.dtype)
    logits = jnp.einsum(
      'bqhd,bkhd->bhqk', query, key, preferred_element_type=self.softmax_dtype
    )
    if offsets is not None:
      logits += relative_logits(query, offsets).astype(logits.dtype)
    if self.causal:
      logits = kernels.hide_future(logits)
    return nn.softmax(logits, axis=-1).astype(self.dtype)


class Block(nn.Module):
  """x + attention(norm(x)), then x + mlp(norm(x)).

  Attributes:
    position: makes the module of position embeddings that this block adds to
      its input, where every layer has its own.
    relative: whether this block learns its own relative positions.
    causal: whether a token sees none of those after it.
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
  inits: layers.Inits = layers.Inits()
  deterministic: bool = True
  dtype: Dtype = jnp.float32
  softmax_dtype: Dtype = jnp.float32

  def _branch(self, y: Array, drop_rate: float | Array) -> Array:
    y = nn.Dropout(self.dropout, deterministic=self.deterministic)(y)
    if self.stochastic_depth and not self.deterministic:
      y = layers.drop_path(y, drop_rate, self.make_rng('dropout'))
    return y

  @nn.compact
  def __call__(
    self,
    x: Array,
    drop_rate: float | Array,
    shared: dict[str, Array],
    first: int | None = None,
  ) -> tuple[Array, dict[str, Array]]:
    """Maps [batch, length, width] to the same, and its intermediates.

    Args:
      x: the input.
      drop_rate: of both residual branches (stochastic depth).
      shared: what all blocks have in common: position embeddings `position`
        [1, length, width] and `offsets`, see `relative_logits`.
      first: compute the output of so many tokens only, None for all.
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

    y = layers.LayerNorm(name='attention_norm', **norm)(x)
    y, weights = Attention(
      self.num_heads,
      dropout=self.attention_dropout,
      causal=self.causal,
      inits=self.inits,
      deterministic=self.deterministic,
      dtype=self.dtype,
      softmax_dtype=self.softmax_dtype,
      name='attention',
    )(y[:, :first], y, offsets=offsets)
    attended = checkpoint_name(y, 'attention_output')
    x = layers.constrain(
      x[:, :first] + self._branch(attended, drop_rate), layers.BATCH
    )
    after_attention = x

    y = layers.LayerNorm(name='mlp_norm', **norm)(x)
    y = layers.Mlp(
      self.mlp_dim,
      activation=self.activation,
      dropout=self.dropout,
      deterministic=self.deterministic,
      inits=self.inits,
      dtype=self.dtype,
      name='mlp',
    )(checkpoint_name(y, 'mlp_input'))
    x = layers.constrain(x + self._branch(y, drop_rate), layers.BATCH)
    return x, {
      'attention_weights': weights,
      'attention': attended,
      'after_attention': after_attention,
      'mlp': y,
      'output': x,
    }


def relative_init(length: int, depth: int) -> tuple[Callable, tuple[int, int]]:
  """Initialiser and shape of the embeddings of relative positions."""
  return nn.initializers.normal(0.02), (2 * length - 1, depth)


class Transformer(nn.Module):
  """A stack of blocks and a final norm.

  Attributes:
    stochastic_depth: rate of the last block; grows linearly from 0.
    position: makes the module of position embeddings that blocks add.
    relative: whether attention knows relative positions.
    shared_position: whether all blocks share the positions of the two above.
    causal: whether a token sees none of those after it.
    kernel_init: 'xavier' as in ViT, or see `layers.scaled_inits`.
    first: the intermediate `first` is the output of so many tokens, for which
      the last block computes no others: a twelfth of ViT-B's work is saved
      where the class token is all that is used.
    scan: one compiled block in a loop; parameters are stacked under `blocks`
      with a leading axis of depth. Compiles faster, runs slower.
    remat: what to keep of the forward pass, see `REMAT`; 'none' keeps all.
  """

  depth: int
  num_heads: int
  mlp_dim: int
  activation: str = 'gelu_tanh'
  norm_epsilon: float = 1e-6
  dropout: float = 0.0
  attention_dropout: float = 0.0
  stochastic_depth: float = 0.0
  position: Callable[[], nn.Module] | None = None
  relative: bool = False
  shared_position: bool = False
  causal: bool = False
  kernel_init: Literal['xavier', 'scaled'] = 'xavier'
  first: int = 0
  scan: bool = False
  remat: str = 'none'
  deterministic: bool = True
  dtype: Dtype = jnp.float32
  softmax_dtype: Dtype = jnp.float32

  def _shared(self, x: Array) -> dict[str, Array]:
    shared = {}
    if self.shared_position and self.position is not None:
      shared['position'] = self.position()(x)
    if self.shared_position and self.relative:
      depth = x.shape[-1] // self.num_heads
      init = relative_init(x.shape[1], depth)
      shared['offsets'] = self.param('offsets', *init)
    return shared

  @nn.compact
  def __call__(self, x: Array) -> tuple[Array, dict[str, Any]]:
    """Maps [batch, length, width] to the same.

    Returns:
      The normalised output, and the intermediates: a dict a block under
      `block_00` ..., or one dict under `blocks` with a leading axis of depth.
    """
    block = Block
    if self.remat != 'none':
      # Inside a loop the compiler cannot merge what is computed twice.
      block = nn.remat(
        Block,
        policy=REMAT[self.remat],
        prevent_cse=not self.scan,
        static_argnums=() if self.scan else (4,),
      )
    own = not self.shared_position
    scaled = self.kernel_init == 'scaled'
    fields = dict(
      num_heads=self.num_heads,
      mlp_dim=self.mlp_dim,
      activation=self.activation,
      norm_epsilon=self.norm_epsilon,
      dropout=self.dropout,
      attention_dropout=self.attention_dropout,
      stochastic_depth=self.stochastic_depth > 0,
      position=self.position if own else None,
      relative=self.relative and own,
      causal=self.causal,
      inits=layers.scaled_inits(x.shape[-1], self.depth)
      if scaled
      else layers.Inits(),
      deterministic=self.deterministic,
      dtype=self.dtype,
      softmax_dtype=self.softmax_dtype,
    )
    shared = self._shared(x)
    rates = np.linspace(0, self.stochastic_depth, self.depth)
    if self.scan:
      blocks = nn.scan(
        block,
        variable_axes={'params': 0},
        split_rngs={'params': True, 'dropout': True},
        in_axes=(0, nn.broadcast),
        length=self.depth,
      )(**fields, name='blocks')
      x, stacked = blocks(x, jnp.asarray(rates, jnp.float32), shared)
      intermediates = {'blocks': stacked}
    else:
      intermediates = {}
      for i, rate in enumerate(rates):
        name = f'block_{i:02d}'
        layer = block(**fields, name=name)
        if self.first and i == self.depth - 1:
          intermediates['first'], _ = layer(x, float(rate), shared, self.first)
        x, intermediates[name] = layer(x, float(rate), shared, None)
    norm = layers.LayerNorm(self.norm_epsilon, self.dtype, name='norm')
    x = norm(x)
    if self.first:
      first = intermediates.get('first')
      intermediates['first'] = (
        x[:, : self.first] if first is None else norm(first)
      )
    return x, intermediates
