"""Layers that every model of this package is made of.

They know of the mesh only what its axes are called.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
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


def constrain(x: Array, *axes) -> Array:
  """Says how an activation lies on the mesh; without a mesh, does nothing.

  With it at every block the compiler never gathers activations, which
  otherwise triples the memory of a sharded run.

  Args:
    x: the activation.
    *axes: for each of its axes, names of those of the mesh that split it, or
      None. Those that `jax.shard_map` has split by then are left out.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return x
  left = (
    names and tuple(name for name in names if name not in mesh.manual_axes)
    for names in axes
  )
  return jax.lax.with_sharding_constraint(x, PartitionSpec(*left))


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


class Dropout(nn.Module):
  """Sets a share of an activation to zero, and scales up the others.

  Eight random bits decide about each value, so that a rate means the nearest
  multiple of 1/256 (0.1016 for 0.1); the scale is exactly that of the share.
  With 32 bits a step of ViT-B/16 is 5 % slower on a TPU v3, by its compiler.

  Attributes:
    rate: 0 or more, and less than 1.
    deterministic: whether nothing is dropped.
  """

  rate: float
  deterministic: bool

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Maps an array to one of the same shape and type."""
    if self.deterministic or not self.rate:
      return x
    # A rate that is not 0 drops something, and never all.
    dropped = min(max(round(self.rate * 256), 1), 255)
    bits = jax.random.bits(self.make_rng('dropout'), x.shape, jnp.uint8)
    kept = x / jnp.asarray(1 - dropped / 256, x.dtype)
    return jnp.where(bits >= dropped, kept, 0)


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
    x = Dropout(self.dropout, self.deterministic)(x)
    return linear((self.hidden,), (width,), down, name='down')(x)


def drop_path(x: Array, rate: float | Array, key: Array) -> Array:
  """Drops whole examples of a residual branch, and scales up the others.

  Stochastic depth (Huang et al., arXiv:1603.09382); scaled by 1 / (1 - rate)
  in training so that evaluation needs no factor.
  """
  shape = (x.shape[0],) + (1,) * (x.ndim - 1)
  keep = jax.random.bernoulli(key, 1 - rate, shape)
  return jnp.where(keep, x / jnp.asarray(1 - rate, x.dtype), 0)
