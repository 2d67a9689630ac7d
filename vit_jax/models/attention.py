"""Multi-head attention, of one kind for all models of this package.

Shapes in comments: batch, length (tokens), width, heads, depth (of a head).
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.models import kernels, layers, sparse_attention

Array = jax.Array
Dtype = Any


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
    pattern: what tokens see where they are a text and an image after it.
    mix_heads: whether a last linear layer, `out`, mixes the heads' results.
    softmax_dtype: bfloat16 needs a quarter less memory on TPU than float32.
  """

  num_heads: int
  dropout: float = 0.0
  causal: bool = False
  pattern: sparse_attention.Pattern | None = None
  mix_heads: bool = True
  inits: layers.Inits = layers.Inits()
  deterministic: bool = True
  dtype: Dtype = jnp.float32
  softmax_dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: Array,
    memory: Array | None = None,
    offsets: Array | None = None,
    cache: sparse_attention.Cache | None = None,
  ) -> tuple[Array, dict[str, Array]]:
    """Attends from `x` to `memory`, or to itself.

    Args:
      x: [batch, queries, width].
      memory: [batch, keys, width].
      offsets: embeddings of relative positions, see `relative_logits`.
      cache: what earlier tokens left, where `x` is one next token of each of
        several images; see `sparse_attention.attend_next`.

    Returns:
      The output [batch, queries, width] and intermediates: `key` and `value`
      [batch, keys, heads, depth], `attention_weights` [batch, heads, queries,
      keys] or, of next tokens of images, `cache` for those after them.
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

    intermediates = {'key': key, 'value': value}
    if cache is not None:
      x, intermediates['cache'] = sparse_attention.attend_next(
        query, key, value, cache, self.pattern, self.softmax_dtype
      )
    else:
      weights = self._weights(query, key, offsets)
      intermediates['attention_weights'] = weights
      x = self._attend(query, key, value, weights, offsets is None)
    if not self.mix_heads:
      return x.reshape(*x.shape[:2], width), intermediates
    out = layers.Linear(
      heads,
      (width,),
      self.inits.attention_out,
      dtype=self.dtype,
      name='out',
    )
    return out(x), intermediates

  def _attend(
    self, query: Array, key: Array, value: Array, weights: Array, plain: bool
  ) -> Array:
    """Returns the heads' results, [batch, queries, heads, depth].

    Where it can do without the weights, which is best for a CPU, and for
    patterns everywhere, they are computed only if somebody else uses them.

    Args:
      query: [batch, queries, heads, depth].
      key: [batch, keys, heads, depth].
      value: likewise.
      weights: see `_weights`.
      plain: whether nothing is added to the logits.
    """
    drops = self.dropout > 0 and not self.deterministic
    if self.pattern and self.pattern.kind != 'full' and not drops:
      return sparse_attention.attend(
        query, key, value, self.pattern, self.softmax_dtype
      )
    if layers.on_cpu() and not drops and plain:
      return kernels.attend(query, key, value, self.softmax_dtype, self._causal)
    dropped = layers.Dropout(self.dropout, not drops)(weights)
    return jnp.einsum('bhqk,bkhd->bqhd', dropped, value)

  @property
  def _causal(self) -> bool:
    return self.causal or self.pattern is not None

  def _weights(self, query: Array, key: Array, offsets: Array | None) -> Array:
    """Returns the attention weights, [batch, heads, queries, keys]."""
    query = query * np.asarray(query.shape[-1] ** -0.5, query.dtype)
    logits = jnp.einsum(
      'bqhd,bkhd->bhqk', query, key, preferred_element_type=self.softmax_dtype
    )
    if offsets is not None:
      logits += relative_logits(query, offsets).astype(logits.dtype)
    if self.pattern and self.pattern.kind != 'full':
      seen = sparse_attention.visible(self.pattern)
      logits = jnp.where(seen, logits, -jnp.inf)
    elif self._causal:
      logits = kernels.hide_future(logits)
    return nn.softmax(logits, axis=-1).astype(self.dtype)
