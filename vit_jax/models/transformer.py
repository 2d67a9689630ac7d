"""The transformer that every model of this package is made of.

Pre-normalised blocks of self-attention and MLP (Vaswani et al.,
arXiv:1706.03762; the order of ViT, arXiv:2010.11929, equations 2-3). Shapes
in comments use: batch, length (tokens), width, heads, depth (of a head).
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from vit_jax.models import kernels

Array = jax.Array
Dtype = Any

# The mesh axes that the batch is split over, wherever there is a mesh.
BATCH = ('data', 'fsdp')

ACTIVATIONS = {
  # The released ViTs use the approximation by tanh, torch's use erf and
  # OpenAI's CLIP the sigmoid: checkpoints are exact only with their own.
  'gelu_tanh': nn.gelu,
  'gelu': lambda x: nn.gelu(x, approximate=False),
  'quick_gelu': lambda x: x * nn.sigmoid(1.702 * x),
}

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


def constrain(x: Array, *axes) -> Array:
  """Says how an activation lies on the mesh; without a mesh, does nothing.

  With it at every block the compiler never gathers activations, which
  otherwise triples the memory of a sharded run.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return x
  return jax.lax.with_sharding_constraint(x, PartitionSpec(*axes))


def on_cpu() -> bool:
  """Whether what is being traced is for a CPU: the mesh's, or the default.

  The few places that ask compute the same in another order. What is best for
  a TPU is not always so for a CPU.
  """
  device = jax.sharding.get_abstract_mesh().abstract_device
  platform = device.platform if device else jax.default_backend()
  return platform == 'cpu'


class Inits(NamedTuple):
  """How the kernels of a block start."""

  attention: Callable = nn.initializers.xavier_uniform()
  attention_out: Callable = nn.initializers.xavier_uniform()
  mlp_up: Callable = nn.initializers.xavier_uniform()
  mlp_down: Callable = nn.initializers.xavier_uniform()


def scaled_inits(width: int, depth: int) -> Inits:
  """Returns initialisers whose residual branches start the smaller the deeper.

  Those of GPT-2 and of CLIP's text tower (arXiv:2103.00020, section 2.4).

  Args:
    width: of the tokens.
    depth: number of blocks.
  """
  out = nn.initializers.normal((2 * depth * width) ** -0.5)
  return Inits(
    attention=nn.initializers.normal(width**-0.5),
    attention_out=out,
    mlp_up=nn.initializers.normal((2 * width) ** -0.5),
    mlp_down=out,
  )


class LayerNorm(nn.Module):
  """Layer normalisation over the last axis, statistics in float32."""

  epsilon: float = 1e-6
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Normalises [..., width]."""
    scale = self.param('scale', nn.initializers.ones, x.shape[-1:])
    bias = self.param('bias', nn.initializers.zeros, x.shape[-1:])
    return kernels.layer_norm(x.astype(self.dtype), scale, bias, self.epsilon)


class Linear(nn.Module):
  """Contracts the last axes of the input with a kernel, and adds a bias.

  Attributes:
    inputs: the input axes that are contracted, for example (heads, depth).
    outputs: the axes that replace them.
    kernel_init: applied to the kernel as a matrix, so that heads share one
      fan-in and fan-out as they do in the released models.
  """

  inputs: tuple[int, ...]
  outputs: tuple[int, ...]
  kernel_init: Callable = nn.initializers.xavier_uniform()
  bias_init: Callable = nn.initializers.zeros
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Maps [..., *inputs] to [..., *outputs]."""
    fan_in, fan_out = int(np.prod(self.inputs)), int(np.prod(self.outputs))

    def init(key, shape):
      return self.kernel_init(key, (fan_in, fan_out)).reshape(shape)

    kernel = self.param('kernel', init, (*self.inputs, *self.outputs))
    bias = self.param('bias', self.bias_init, self.outputs)
    x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
    bias = bias.astype(self.dtype)
    if on_cpu():
      # One product of two matrices is the fastest there.
      batch = x.shape[: x.ndim - len(self.inputs)]
      x = x.reshape(-1, fan_in) @ kernel.reshape(fan_in, fan_out)
      return (x + bias.reshape(fan_out)).reshape(*batch, *self.outputs)
    # Reshaping would cost a TPU a quarter more cycles, by its compiler's own
    # estimate for a v3-8: it stores [length, width] in tiles.
    axes = tuple(range(-len(self.inputs), 0))
    return jnp.tensordot(x, kernel, (axes, tuple(range(len(axes))))) + bias


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
  inits: Inits = Inits()
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
      Linear, (width,), heads, self.inits.attention, dtype=self.dtype
    )
    query = linear(name='query')(x)
    key = linear(name='key')(memory)
    value = linear(name='value')(memory)

    weights = self._weights(query, key, offsets)
    drops = self.dropout > 0 and not self.deterministic
    if on_cpu() and not drops and offsets is None:
      # The weights above are then computed only if somebody uses them.
      x = kernels.attend(query, key, value, self.softmax_dtype, self.causal)
    else:
      dropped = nn.Dropout(self.dropout, deterministic=not drops)(weights)
      x = jnp.einsum('bhqk,bkhd->bqhd', dropped, value)
    if not self.mix_heads:
      return x.reshape(*x.shape[:2], width), weights
    out = Linear(
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


class Mlp(nn.Module):
  """Two linear layers with an activation, and dropout, between them."""

  hidden: int
  activation: str = 'gelu_tanh'
  dropout: float = 0.0
  deterministic: bool = True
  inits: Inits = Inits()
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Maps [..., width] to [..., width]."""
    width = x.shape[-1]
    linear = functools.partial(
      Linear, bias_init=nn.initializers.normal(1e-6), dtype=self.dtype
    )
    up, down = self.inits.mlp_up, self.inits.mlp_down
    x = linear((width,), (self.hidden,), up, name='up')(x)
    x = ACTIVATIONS[self.activation](x)
    x = nn.Dropout(self.dropout, deterministic=self.deterministic)(x)
    return linear((self.hidden,), (width,), down, name='down')(x)


def drop_path(x: Array, rate: float | Array, key: Array) -> Array:
  """Drops whole examples of a residual branch, and scales up the others.

  Stochastic depth (Huang et al., arXiv:1603.09382); scaled by 1 / (1 - rate)
  in training so that evaluation needs no factor.
  """
  shape = (x.shape[0],) + (1,) * (x.ndim - 1)
  keep = jax.random.bernoulli(key, 1 - rate, shape)
  return jnp.where(keep, x / jnp.asarray(1 - rate, x.dtype), 0)


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
  inits: Inits = Inits()
  deterministic: bool = True
  dtype: Dtype = jnp.float32
  softmax_dtype: Dtype = jnp.float32

  def _branch(self, y: Array, drop_rate: float | Array) -> Array:
    y = nn.Dropout(self.dropout, deterministic=self.deterministic)(y)
    if self.stochastic_depth and not self.deterministic:
      y = drop_path(y, drop_rate, self.make_rng('dropout'))
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
    x = constrain(x, BATCH)
    offsets = shared.get('offsets')
    if self.position is not None:
      x = x + self.position()(x).astype(x.dtype)
    if 'position' in shared:
      x = x + shared['position'].astype(x.dtype)
    if self.relative:
      depth = x.shape[-1] // self.num_heads
      offsets = self.param('offsets', *relative_init(x.shape[1], depth))

    y = LayerNorm(name='attention_norm', **norm)(x)
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
    x = constrain(x[:, :first] + self._branch(attended, drop_rate), BATCH)
    after_attention = x

    y = LayerNorm(name='mlp_norm', **norm)(x)
    y = Mlp(
      self.mlp_dim,
      activation=self.activation,
      dropout=self.dropout,
      deterministic=self.deterministic,
      inits=self.inits,
      dtype=self.dtype,
      name='mlp',
    )(checkpoint_name(y, 'mlp_input'))
    x = constrain(x + self._branch(y, drop_rate), BATCH)
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
    kernel_init: 'xavier' as in ViT, or see `scaled_inits`.
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
      inits=scaled_inits(x.shape[-1], self.depth) if scaled else Inits(),
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
    norm = LayerNorm(self.norm_epsilon, self.dtype, name='norm')
    x = norm(x)
    if self.first:
      first = intermediates.get('first')
      intermediates['first'] = (
        x[:, : self.first] if first is None else norm(first)
      )
    return x, intermediates
