"""The transformer that every model of this package is made of.

Pre-normalised blocks of self-attention and MLP (Vaswani et al.,
arXiv:1706.03762; the order of ViT, arXiv:2010.11929, equations 2-3). Shapes
in comments use: batch, length (tokens), width, heads, depth (of a head).
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.models import gradient_scale, layers, sparse_attention
from vit_jax.models.block import Block, relative_init

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


class Period(nn.Module):
  """Blocks that see different patterns, one after the other.

  Attributes:
    blocks: make them.
  """

  blocks: tuple[Callable[..., Block], ...]

  @nn.compact
  def __call__(
    self, x: Array, drop_rates: Array, shared: dict[str, Array]
  ) -> tuple[Array, dict[str, Any]]:
    """As a block, with a rate and intermediates of each."""
    intermediates = {}
    for i, make in enumerate(self.blocks):
      name = f'block_{i:02d}'
      x, intermediates[name] = make(name=name)(x, drop_rates[i], shared)
    return x, intermediates


def period_of(patterns: tuple[Any, ...]) -> int:
  """Returns after how many layers the patterns repeat themselves.

  The one with which a loop has the fewest blocks in it and after it, where the
  rest comes that fills no period.
  """

  def blocks(period):
    return period + len(patterns) - period * _turns(patterns, period)

  return min(range(1, len(patterns) + 1), key=blocks)


def _turns(patterns: tuple[Any, ...], period: int) -> int:
  """Returns how often the first `period` patterns come one after the other."""
  count = 1
  while patterns[count * period :][:period] == patterns[:period]:
    count += 1
  return count


def unrolled(params: Mapping[str, Any]) -> dict[str, Any]:
  """Turns the parameters of a Transformer with `scan` into those without."""
  result = dict(params)
  stacked = result.pop('blocks', None)
  if stacked is None:
    return result
  if 'block_00' not in stacked:  # No patterns, so no periods.
    stacked = {'block_00': stacked}
  period = len(stacked)
  for at, block in enumerate(stacked[name] for name in sorted(stacked)):
    for turn in range(jax.tree.leaves(block)[0].shape[0]):
      name = f'block_{turn * period + at:02d}'
      result[name] = jax.tree.map(lambda x, turn=turn: x[turn], block)
  return result


class Transformer(nn.Module):
  """A stack of blocks and a final norm.

  Attributes:
    stochastic_depth: rate of the last block; grows linearly from 0.
    position: makes the module of position embeddings that blocks add.
    relative: whether attention knows relative positions.
    shared_position: whether all blocks share the positions of the two above.
    causal: whether a token sees none of those after it.
    patterns: what tokens see in each block, where they are a text and an image
      after it; () for none.
    scale_gradients: whether each residual branch scales its gradients; see
      `gradient_scale`.
    kernel_init: 'xavier' as in ViT, or see `layers.scaled_inits`.
    first: the intermediate `first` is the output of so many tokens, for which
      the last block computes no others: a twelfth of ViT-B's work is saved
      where the class token is all that is used.
    scan: one compiled block in a loop; parameters are stacked under `blocks`
      with a leading axis of depth. Compiles faster, runs slower. With patterns,
      the loop is over periods of them, see `Period`.
    remat: what to keep of the forward pass, see `REMAT`; 'none' and 'auto' keep
      all.
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
  patterns: tuple[sparse_attention.Pattern, ...] = ()
  scale_gradients: bool = False
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

  def _fields(self, width: int) -> dict[str, Any]:
    """Returns what all blocks have in common."""
    own = not self.shared_position
    scaled = self.kernel_init == 'scaled'
    return dict(
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
      scale_gradients=self.scale_gradients,
      inits=layers.scaled_inits(width, self.depth)
      if scaled
      else layers.Inits(),
      deterministic=self.deterministic,
      dtype=self.dtype,
      softmax_dtype=self.softmax_dtype,
    )

  def _block(self, looped: bool) -> type[Block]:
    """Returns the block, which keeps of the forward pass what it should."""
    if self.remat not in REMAT:
      return Block
    # Inside a loop the compiler cannot merge what is computed twice.
    return nn.remat(
      Block,
      policy=REMAT[self.remat],
      prevent_cse=not looped,
      static_argnums=() if looped else (4,),
    )

  def _loop(
    self, x: Array, rates: np.ndarray, shared: dict[str, Array]
  ) -> tuple[Array, Any, int]:
    """Runs as many blocks as a loop can.

    Returns:
      Their output, their intermediates and their number.
    """
    make = functools.partial(
      self._block(looped=True), **self._fields(x.shape[-1])
    )
    if self.patterns:
      period = period_of(self.patterns)
      turns = _turns(self.patterns, period)
      done = period * turns
      parts = (
        functools.partial(make, pattern=pattern)
        for pattern in self.patterns[:period]
      )
      blocks = functools.partial(Period, blocks=tuple(parts))
      rates = rates[:done].reshape(turns, period)
    else:
      turns = done = self.depth
      blocks = make
    blocks = nn.scan(
      blocks.func,
      variable_axes={'params': 0, gradient_scale.COLLECTION: 0},
      split_rngs={'params': True, 'dropout': True},
      in_axes=(0, nn.broadcast),
      length=turns,
    )(**blocks.keywords, name='blocks')
    return *blocks(x, jnp.asarray(rates, jnp.float32), shared), done

  @nn.compact
  def __call__(
    self,
    x: Array,
    caches: Sequence[sparse_attention.Cache] = (),
  ) -> tuple[Array, dict[str, Any]]:
    """Maps [batch, length, width] to the same.

    Args:
      x: the input.
      caches: of each block, or none: see `Attention`. Not with `scan`.

    Returns:
      The normalised output, and the intermediates: a dict a block under
      `block_00` ..., or one dict under `blocks` with a leading axis of depth.
    """
    shared = self._shared(x)
    rates = np.linspace(0, self.stochastic_depth, self.depth)
    intermediates, done = {}, 0
    if self.scan:
      x, intermediates['blocks'], done = self._loop(x, rates, shared)
    make = functools.partial(
      self._block(looped=False), **self._fields(x.shape[-1])
    )
    for i in range(done, self.depth):
      name = f'block_{i:02d}'
      pattern = self.patterns[i] if self.patterns else None
      layer = make(pattern=pattern, name=name)
      rate, cache = float(rates[i]), caches[i : i + 1]
      if self.first and i == self.depth - 1:
        intermediates['first'], _ = layer(x, rate, shared, self.first)
      x, intermediates[name] = layer(x, rate, shared, None, *cache)
    outside = gradient_scale.stream_dtype(self.dtype)
    norm = layers.LayerNorm(self.norm_epsilon, outside, name='norm')
    x = norm(x)
    if self.first:
      first = intermediates.get('first')
      intermediates['first'] = (
        x[:, : self.first] if first is None else norm(first)
      )
    return x, intermediates
