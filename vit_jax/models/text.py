"""The text tower: tokens in, one vector out (CLIP, arXiv:2103.00020)."""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.models import heads, layers, position, transformer

Array = jax.Array


class TextTransformer(nn.Module):
  """Token embeddings, learned positions and a transformer.

  Attributes of the models that were released: CLIP's are the defaults;
  SigLIP and LiT have causal=False, pooling='last', activation='gelu_tanh',
  norm_epsilon=1e-6, kernel_init='xavier'.
  """

  vocabulary_size: int
  # Tokens of a text, padding included.
  length: int
  width: int
  depth: int
  mlp_dim: int
  num_heads: int
  # Whether a token sees none of those after it.
  causal: bool = True
  # How tokens become one vector: the output at the end-of-text token (the
  # first of the highest id), at the last token, or attention from a probe.
  pooling: Literal['end', 'last', 'map'] = 'end'
  activation: Literal['gelu_tanh', 'gelu', 'quick_gelu'] = 'quick_gelu'
  norm_epsilon: float = 1e-5
  # Kernels of blocks; see `layers.scaled_inits`.
  kernel_init: Literal['xavier', 'scaled'] = 'scaled'
  # After the position embeddings, each attention and each MLP layer.
  dropout: float = 0.0
  # One compiled block in a loop: compiles faster, runs slower.
  scan: bool = False
  # What the backward pass computes again instead of keeping it.
  # 'auto' is 'none', unless who trains it chooses.
  remat: Literal['auto', 'none', 'full', 'dots', 'names'] = 'auto'
  dtype: Any = jnp.float32
  softmax_dtype: Any = jnp.float32

  def _check(self, text: Array) -> None:
    """Raises ValueError for numbers that cannot be meant."""
    for name in (
      'vocabulary_size', 'length', 'width', 'depth', 'mlp_dim', 'num_heads',
    ):  # fmt: skip
      if (size := getattr(self, name)) < 1:
        raise ValueError(f'{name} is {size}, expected 1 or more.')
    if self.width % self.num_heads:
      raise ValueError(
        f'A width of {self.width} cannot be shared by {self.num_heads} '
        'attention heads: it must be a multiple.'
      )
    if not 0 <= self.dropout < 1:
      raise ValueError(
        f'dropout is {self.dropout}, expected a rate: 0 or more, and less '
        'than 1.'
      )
    if text.ndim != 2 or text.shape[1] != self.length:
      raise ValueError(
        f'Texts have the shape {text.shape}, expected [batch, {self.length}]: '
        'cut and pad them to the length of the text tower, or change it.'
      )

  @nn.compact
  def __call__(
    self, text: Array, *, start: Array | None = None, train: bool = False
  ) -> tuple[Array, dict[str, Any]]:
    """Encodes texts.

    Args:
      text: int [batch, length], token ids below `vocabulary_size`; what is
        embedded of another id is not a number.
      start: [batch, width], stands for the embedding of the first token.
      train: whether dropout acts (it needs the random stream `dropout`).

    Returns:
      The pooled features [batch, width], and a dict of intermediates:
      `tokens`, `blocks`, `encoded` and `pooled`.

    Raises:
      ValueError: sizes that cannot work, or texts of another length.
    """
    self._check(text)
    embedding = nn.Embed(
      self.vocabulary_size,
      self.width,
      embedding_init=nn.initializers.normal(0.02),
      dtype=self.dtype,
      name='embedding',
    )
    x = layers.constrain(embedding(text), layers.BATCH)
    if start is not None:
      x = x.at[:, 0].set(start.astype(x.dtype))
    x = x + position.Learned(0.01, name='position')(x).astype(x.dtype)
    out = {'tokens': x}
    x = layers.Dropout(self.dropout, not train)(x)
    out['encoded'], out['blocks'] = transformer.Transformer(
      depth=self.depth,
      num_heads=self.num_heads,
      mlp_dim=self.mlp_dim,
      activation=self.activation,
      norm_epsilon=self.norm_epsilon,
      dropout=self.dropout,
      causal=self.causal,
      kernel_init=self.kernel_init,
      scan=self.scan,
      remat=self.remat,
      deterministic=not train,
      dtype=self.dtype,
      softmax_dtype=self.softmax_dtype,
      name='encoder',
    )(x)
    out['pooled'] = self._pool(out['encoded'], text)
    return out['pooled'], out

  def _pool(self, x: Array, text: Array) -> Array:
    """Maps [batch, length, width] to [batch, width]."""
    if self.pooling == 'end':
      # The highest id is that of the end of text.
      end = text.argmax(axis=1)[:, None, None]
      return jnp.take_along_axis(x, end, axis=1)[:, 0]
    if self.pooling == 'last':
      return x[:, -1]
    return heads.AttentionPooling(
      self.num_heads,
      self.mlp_dim,
      self.activation,
      self.norm_epsilon,
      self.dtype,
      self.softmax_dtype,
      name='pooling',
    )(x)
