"""From features to an answer: attention pooling, the classifier."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.models import attention, layers

Array = jax.Array


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
    x, _ = attention.Attention(
      self.num_heads,
      dtype=self.dtype,
      softmax_dtype=self.softmax_dtype,
      name='attention',
    )(probe, x)
    y = layers.LayerNorm(self.norm_epsilon, self.dtype, name='norm')(x)
    y = layers.Mlp(self.mlp_dim, self.activation, dtype=self.dtype, name='mlp')(
      y
    )
    return (x + y)[:, 0]


def classifier(
  width: int, num_classes: int, bias: float = 0.0
) -> layers.Linear:
  """Returns the last layer of a model, `head`: it starts at zero.

  To be called inside a compact method. It computes in float32: the loss is
  sensitive, and the head is small.

  Args:
    width: of the features.
    num_classes: length of the output.
    bias: initial value; log(1 / classes) starts a sigmoid loss well.
  """
  return layers.Linear(
    (width,),
    (num_classes,),
    kernel_init=nn.initializers.zeros,
    bias_init=nn.initializers.constant(bias),
    name='head',
  )
