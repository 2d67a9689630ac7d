"""DALL-E: a text and the codes of an image in one stream of tokens.

Ramesh et al., arXiv:2102.12092, section 2.2 and appendix B.1. What comes before
predicts what comes next: the start of the stream the first token of the text,
the last token of the text the first code of the image, and so on.

Shapes in comments: batch (texts), text (tokens), image (codes), width.
"""

import math
import typing
from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.models import (
  gradient_scale,
  layers,
  sparse_attention,
  transformer,
)

Array = jax.Array

# Stands for no token of a text: each place of the text has its own embedding
# for that.
NO_TOKEN = -1


def mark_padding(text: Array) -> Array:
  """Puts NO_TOKEN after the end of texts.

  Args:
    text: int [batch, text], with an end token, the highest id of all, and any
      padding after it.
  """
  end = text.argmax(axis=1, keepdims=True)
  return jnp.where(jnp.arange(text.shape[1]) > end, NO_TOKEN, text)


class DallE(nn.Module):
  """A decoder of texts and images; the defaults are the paper's model.

  Parameters of the transformer are under `encoder`.
  """

  # Ids of text tokens; the model adds one for the padding of each place.
  text_vocabulary: int = 16_384
  # Tokens of a text, with the tokenizer's marks of its start and its end, and
  # padding. With the start of the stream there is one more: 255 fill the tiles
  # of a TPU where 256 do not.
  text_length: int = 256
  # Codes of the discrete VAE.
  image_vocabulary: int = 8192
  # Length of the vectors that stand for codes, both where they are read and
  # where they are predicted. They are not learned: `code_vectors` of the
  # collection `constants` are for the caller to set. With those of the discrete
  # VAE, what a code looks like is predicted, so that one can be drawn that was
  # never seen with such a text. 0 is the paper's: each code has an embedding
  # and an output of its own.
  code_width: int = 0
  # Rows and columns of codes.
  grid: tuple = (32, 32)
  width: int = 3968
  depth: int = 64
  mlp_dim: int = 15_872
  num_heads: int = 62
  # What image tokens see of the image, layer after layer and again from the
  # start; see `sparse_attention.Pattern`.
  patterns: tuple = ('row', 'column', 'row', 'row')
  # The same for the last layer.
  last_pattern: Literal['full', 'row', 'column', 'convolutional'] = (
    'convolutional'
  )
  activation: Literal['gelu_tanh', 'gelu', 'quick_gelu'] = 'gelu_tanh'
  norm_epsilon: float = 1e-6
  # After the embeddings, each attention and each MLP layer.
  dropout: float = 0.0
  # One compiled period of patterns in a loop: compiles faster, runs slower.
  scan: bool = False
  # What the backward pass computes again instead of keeping it; 'auto' is
  # 'none', unless who trains it chooses.
  remat: Literal['auto', 'none', 'full', 'dots', 'names'] = 'auto'
  dtype: Any = jnp.float32
  softmax_dtype: Any = jnp.float32

  @property
  def image_length(self) -> int:
    """Number of codes of an image."""
    return math.prod(self.grid)

  def layer_patterns(
    self, rows: int | None = None
  ) -> tuple[sparse_attention.Pattern, ...]:
    """Returns the pattern of each layer, for so many rows or all of them."""
    repeats = -(-self.depth // len(self.patterns))
    kinds = (*(self.patterns * repeats)[: self.depth - 1], self.last_pattern)
    grid = (self.grid[0] if rows is None else rows, self.grid[1])
    # The start of the stream is part of the text.
    text = 1 + self.text_length
    return tuple(sparse_attention.Pattern(kind, text, grid) for kind in kinds)

  def _check(self) -> None:
    """Raises ValueError for numbers that cannot be meant."""
    for name in (
      'text_vocabulary', 'text_length', 'image_vocabulary', 'width', 'depth',
      'mlp_dim', 'num_heads',
    ):  # fmt: skip
      if (size := getattr(self, name)) < 1:
        raise ValueError(f'{name} is {size}, expected 1 or more.')
    if self.width % self.num_heads:
      raise ValueError(
        f'A width of {self.width} cannot be shared by {self.num_heads} '
        'attention heads: it must be a multiple.'
      )
    if len(self.grid) != 2 or min(self.grid) < 1:
      raise ValueError(f'grid is {self.grid}, expected rows and columns.')
    known = typing.get_args(sparse_attention.Kind)
    if not self.patterns or not {*self.patterns} <= {*known}:
      raise ValueError(
        f'patterns are {self.patterns}, expected one or more of '
        f'{", ".join(known)}.'
      )
    if self.code_width < 0:
      raise ValueError(f'code_width is {self.code_width}, expected 0 or more.')
    if not 0 <= self.dropout < 1:
      raise ValueError(
        f'dropout is {self.dropout}, expected a rate: 0 or more, and less '
        'than 1.'
      )

  def text_labels(self, text: Array) -> Array:
    """Gives the padding of each place its own id, above those of tokens."""
    own = self.text_vocabulary + jnp.arange(self.text_length)
    return jnp.where(text == NO_TOKEN, own, text)

  def _embedding(self, name: str, *shape: int) -> Array:
    init = nn.initializers.normal(0.02)
    embedding = self.param(name, init, (*shape, self.width))
    return embedding.astype(gradient_scale.stream_dtype(self.dtype))

  def _text(self, text: Array) -> Array:
    """Embeds the start of the stream and texts: [batch, 1 + text, width]."""
    ids = self.text_vocabulary + self.text_length
    x = jnp.take(
      self._embedding('text_embedding', ids), self.text_labels(text), axis=0
    )
    x += self._embedding('text_position', self.text_length)
    start = self._embedding('start', 1, 1)
    start = jnp.broadcast_to(start, (x.shape[0], 1, self.width))
    return jnp.concatenate([start, x], axis=1)

  def _code_vectors(self) -> Array | None:
    """Returns the vectors of codes, [image_vocabulary, code_width], if any."""
    if not self.code_width:
      return None
    shape = (self.image_vocabulary, self.code_width)
    return self.variable(
      'constants',
      'code_vectors',
      lambda: jax.random.normal(self.make_rng('params'), shape),
    ).value

  def _image(self, codes: Array, places: Array, vectors: Array | None) -> Array:
    """Embeds codes at places of the grid: [..., width]."""
    rows, columns = self.grid
    if vectors is None:
      embedding = self._embedding('image_embedding', self.image_vocabulary)
    else:
      kernel = self._embedding('code_embedding', self.code_width)
      embedding = vectors.astype(kernel.dtype) @ kernel
    row = self._embedding('row', rows)[places // columns]
    column = self._embedding('column', columns)[places % columns]
    return jnp.take(embedding, codes, axis=0) + row + column

  @nn.compact
  def __call__(
    self,
    text: Array | None,
    codes: Array,
    *,
    train: bool = False,
    caches: Sequence[sparse_attention.Cache] = (),
  ) -> tuple[tuple[Array | None, Array], dict[str, Any]]:
    """Predicts each token from those before it.

    Args:
      text: int [batch, text], token ids or NO_TOKEN; None with caches.
      codes: int [batch, image], of the first so many rows of an image, or of
        all. With caches the newest code of each image, [texts, images].
      train: whether dropout acts (it needs the random stream `dropout`).
      caches: what each layer keeps of the tokens before, for a decoder that
        computes each token once; see `vit_jax.models.decoding`.

    Returns:
      Logits in float32: of the text, [batch, text, text_vocabulary + text]
      where the last ids stand for padding (None with caches), and of the codes
      and the one that comes next, [batch, image (+ 1), image_vocabulary];
      with caches of that one alone, [texts, images, image_vocabulary]. And a
      dict of intermediates: `tokens`, `blocks` and `encoded`.

    Raises:
      ValueError: sizes that cannot work, or codes that are not whole rows.
    """
    self._check()
    rows, vectors = None, self._code_vectors()
    if caches:
      x = self._image(codes, caches[0].place, vectors)
    else:
      rows = self._rows(text, codes)
      places = jnp.arange(codes.shape[1])
      x = jnp.concatenate(
        [self._text(text), self._image(codes, places, vectors)], 1
      )
    x = layers.constrain(x, layers.BATCH)
    out = {'tokens': x}
    x = layers.Dropout(self.dropout, not train)(x)
    x, out['blocks'] = transformer.Transformer(
      depth=self.depth,
      num_heads=self.num_heads,
      mlp_dim=self.mlp_dim,
      activation=self.activation,
      norm_epsilon=self.norm_epsilon,
      dropout=self.dropout,
      patterns=self.layer_patterns(rows),
      scale_gradients=self.dtype == jnp.float16,
      kernel_init='scaled',
      scan=self.scan,
      remat=self.remat,
      deterministic=not train,
      dtype=self.dtype,
      softmax_dtype=self.softmax_dtype,
      name='encoder',
    )(x, caches)
    out['encoded'] = x
    ids = self.text_vocabulary + self.text_length
    text_logits = None
    if not caches:
      text_logits = self._head('text_head', ids)(x[:, : self.text_length])
      x = x[:, self.text_length :][:, : self.image_length]
    if vectors is None:
      image_logits = self._head('image_head', self.image_vocabulary)(x)
    else:
      image_logits = self._head('image_head', self.code_width)(x) @ vectors.T
    return (text_logits, image_logits), out

  def _head(self, name: str, outputs: int) -> nn.Module:
    """Returns a last layer: its logits are float32, for losses and samples."""
    zeros = nn.initializers.zeros
    return layers.Linear((self.width,), (outputs,), zeros, name=name)

  def _rows(self, text: Array, codes: Array) -> int:
    """Returns of how many rows the codes are; raises ValueError for others."""
    if text.ndim != 2 or text.shape[1] != self.text_length:
      raise ValueError(
        f'Texts have the shape {text.shape}, expected [batch, '
        f'{self.text_length}]: cut and pad them, or change text_length.'
      )
    columns = self.grid[1]
    length = codes.shape[-1]
    if codes.ndim != 2 or length % columns or length > self.image_length:
      raise ValueError(
        f'Codes have the shape {codes.shape}, expected [batch, image] with at '
        f'most {self.grid[0]} whole rows of {columns}.'
      )
    return length // columns
