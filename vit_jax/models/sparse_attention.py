"""Causal attention over a text and the image after it, sparse in the image.

Image tokens lie on a grid and come row after row (DALL-E, Ramesh et al.,
arXiv:2102.12092, appendix B.1 and figure 11). Text tokens see all text before
them. Image tokens see all of the text, and of the image what lies certain
numbers of tokens back: a pattern is a set of such offsets, so it wraps around
at the edges of the grid. What is seen is computed and nothing else: blocks of
tokens against the few rows, or the column, that they see a part of.

Shapes in comments: batch, heads, depth (of a head), text (tokens), blocks.
"""

import functools
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.models import layers

Array = jax.Array
Dtype = Any

Kind = Literal['full', 'row', 'column', 'convolutional']
# Rows and columns around a token that the convolutional pattern sees: 11 x 11,
# of which the later half does not exist yet.
_REACH = 5
# Tokens that are compared with their keys at a time: larger blocks waste more,
# but the matrix unit of a TPU multiplies 128 rows for the price of one.
_BLOCK = {'cpu': 64, 'others': 128}


class Cache(NamedTuple):
  """What one layer keeps of earlier tokens while images are sampled.

  All images of a text share what is kept of it. Of an image, only tokens that
  later ones see are kept, in slots that are used again: see `_places`.

  Attributes:
    text_key: [texts, heads, text, depth].
    text_value: likewise.
    key: [groups, texts, images, slots, heads, depth].
    value: likewise.
    place: int scalar, on the grid in raster order, of the tokens that come
      next.
  """

  text_key: Array
  text_value: Array
  key: Array
  value: Array
  place: Array | int


class Pattern(NamedTuple):
  """What each token sees.

  Attributes:
    kind: full: every image token before; row: so many as a row has, the last
      of which is above the token; column: those above it; convolutional: 11 x
      11 around it.
    text: number of text tokens.
    grid: rows and columns of image tokens.
  """

  kind: Kind
  text: int
  grid: tuple[int, int]

  @property
  def offsets(self) -> np.ndarray:
    """How many tokens back are seen, in ascending order; 0 is itself."""
    rows, columns = self.grid
    if self.kind == 'full':
      return np.arange(rows * columns)
    if self.kind == 'row':
      seen = np.arange(columns + 1)
    elif self.kind == 'column':
      seen = columns * np.arange(rows)
    else:
      around = np.arange(-_REACH, _REACH + 1)
      seen = np.unique(columns * np.arange(_REACH + 1)[:, None] + around)
    return seen[(seen >= 0) & (seen < rows * columns)]


@functools.lru_cache(maxsize=4)
def visible(pattern: Pattern) -> np.ndarray:
  """Returns what is seen as a dense matrix, bool [queries, keys].

  It defines the patterns; only attention weights that somebody asks for are
  computed with it.
  """
  image = math.prod(pattern.grid)
  length = pattern.text + image
  seen = np.tri(length, dtype=bool)
  back = np.arange(image)[:, None] - np.arange(image)
  seen[pattern.text :, pattern.text :] = np.isin(back, pattern.offsets)
  return seen


def attend(
  query: Array,
  key: Array,
  value: Array,
  pattern: Pattern,
  dtype: Dtype,
  block: int | None = None,
) -> Array:
  """Softmax attention in which tokens see what `pattern` says.

  Args:
    query: [batch, text + rows * columns, heads, depth], not yet scaled.
    key: the same shape.
    value: the same shape.
    pattern: of any kind but 'full', which has no structure to gain from.
    dtype: of the logits.
    block: tokens that are compared with their keys at a time, at least those
      of a row; None is what is best for the device.

  Returns:
    [batch, text + rows * columns, heads, depth].
  """
  text = pattern.text
  block = block or _BLOCK['cpu' if layers.on_cpu() else 'others']
  # Products are over the last two axes.
  query, key, value = (x.swapaxes(1, 2) for x in (_scaled(query), key, value))
  of_text, before = value[:, :, :text], key[:, :, :text]
  logits = _product(query[:, :, :text], before, dtype)
  logits = jnp.where(np.tri(text, dtype=bool), logits, -jnp.inf)
  first = _mix([(logits, of_text)])
  if query.shape[2] == text:  # No image yet.
    return first.swapaxes(1, 2)

  if pattern.kind == 'column':
    split, join, around, seen = _columns(pattern)
  else:
    split, join, around, seen = _rows(pattern, block)
  query, key, value = (split(x[:, :, text:]) for x in (query, key, value))
  near = _product(query, around(key), dtype)
  # [batch, heads, blocks, queries, keys]
  near = jnp.where(seen, near, -jnp.inf)
  # All blocks see the text: one product.
  far = _product(_flat(query), before, dtype)
  far = far.reshape(*near.shape[:-1], text)
  rest = join(_mix([(far, of_text), (near, around(value))]))
  return jnp.concatenate([first, rest], axis=2).swapaxes(1, 2)


def _scaled(query: Array) -> Array:
  return query * np.asarray(query.shape[-1] ** -0.5, query.dtype)


def _product(query: Array, key: Array, dtype: Dtype) -> Array:
  """Returns logits [..., queries, keys]."""
  return jnp.einsum(
    '...qd,...kd->...qk', query, key, preferred_element_type=dtype
  )


def _flat(x: Array) -> Array:
  """Makes one axis of blocks and tokens."""
  return x.reshape(*x.shape[:2], -1, x.shape[-1])


def _mix(parts: list[tuple[Array, Array]]) -> Array:
  """Averages values by one softmax over all parts.

  Args:
    parts: pairs of logits [..., queries, keys] and values [..., keys, depth];
      values without an axis of blocks are those of all blocks.
  """
  largest = [logits.max(-1, keepdims=True) for logits, _ in parts]
  # Any other number would give the same result: no gradient has to pass.
  largest = jax.lax.stop_gradient(functools.reduce(jnp.maximum, largest))
  total, sums = 0, 0
  for logits, value in parts:
    weights = jnp.exp(logits - largest)
    sums += weights.sum(-1, keepdims=True, dtype=jnp.float32)
    weights = weights.astype(value.dtype)
    if weights.ndim > value.ndim:
      mixed = (_flat(weights) @ value).reshape(*weights.shape[:-1], -1)
    else:
      mixed = weights @ value
    total += mixed
  return total / sums.astype(total.dtype)


def _columns(pattern: Pattern):
  """As `_rows`: a block is a column, which sees nothing of any other."""
  rows, columns = pattern.grid

  def split(x):
    return x.reshape(*x.shape[:2], rows, columns, -1).swapaxes(2, 3)

  def join(x):
    return _flat(x.swapaxes(2, 3))

  return split, join, lambda x: x, np.tri(rows, dtype=bool)


def _rows(pattern: Pattern, block: int):
  """Cuts the image into blocks of rows.

  Returns:
    A function from [batch, heads, tokens, depth] to [batch, heads, blocks,
    queries, depth]; its inverse; a function from blocks to their keys, which
    are those rows and some before; and which keys are seen, bool [blocks,
    queries, keys].
  """
  rows, columns = pattern.grid
  number = max(1, block // columns)
  while rows % number:
    number -= 1
  # The first rows see as many that do not exist.
  extra = min(-(-int(pattern.offsets[-1]) // columns), rows - 1)
  starts = np.arange(0, rows, number)

  def split(x):
    return x.reshape(*x.shape[:2], len(starts), number * columns, -1)

  def around(x):
    x = x.reshape(*x.shape[:2], rows, columns, -1)
    x = jnp.pad(x, ((0, 0), (0, 0), (extra, 0), (0, 0), (0, 0)))
    windows = [x[:, :, at : at + number + extra] for at in starts]
    x = jnp.stack(windows, axis=2)
    return x.reshape(*x.shape[:3], -1, x.shape[-1])

  query = extra * columns + np.arange(number * columns)
  key = np.arange((extra + number) * columns)
  seen = np.isin(query[:, None] - key, pattern.offsets)
  exists = key // columns + starts[:, None] >= extra
  return split, _flat, around, seen & exists[:, None]


def begin(key: Array, value: Array, pattern: Pattern, images: int) -> Cache:
  """Returns what a layer keeps of the tokens that all images have in common.

  Args:
    key: [texts, text + given, heads, depth], of the text and of so many tokens
      that each image starts with.
    value: likewise.
    pattern: of the layer.
    images: number of images of each text.
  """
  text, given = pattern.text, key.shape[1] - pattern.text
  places = _places(pattern, given - 1)

  def kept(x):
    # What free slots hold is not read; there is one token more for them.
    x = jnp.pad(x[:, text:], ((0, 0), (0, 1), (0, 0), (0, 0)))
    x = jnp.moveaxis(x[:, np.clip(places, 0, given)], 0, 2)
    # [groups, slots, texts, 1, heads, depth]
    x = x[:, :, :, None].transpose(0, 2, 3, 1, 4, 5)
    return jnp.broadcast_to(x, (*x.shape[:2], images, *x.shape[3:]))

  text_key, text_value = (x[:, :text].swapaxes(1, 2) for x in (key, value))
  return Cache(text_key, text_value, kept(key), kept(value), given)


def attend_next(
  query: Array,
  key: Array,
  value: Array,
  cache: Cache,
  pattern: Pattern,
  dtype: Dtype,
) -> tuple[Array, Cache]:
  """Attention of one next token of every image.

  Args:
    query: [texts, images, heads, depth], not yet scaled.
    key: likewise, of the same tokens.
    value: likewise.
    cache: of the tokens before.
    pattern: of the layer.
    dtype: of the logits.

  Returns:
    [texts, images, heads, depth], and the cache for the tokens after these.
  """
  place = jnp.asarray(cache.place)
  groups, _, _, slots = cache.key.shape[:4]
  group, slot = place % groups, place // groups % slots

  def put(kept, x):
    x = x[None, :, :, None]
    return jax.lax.dynamic_update_slice(kept, x, (group, 0, 0, slot, 0, 0))

  # Kept first, then read, as the other order would copy all of it.
  cache = cache._replace(
    key=put(cache.key, key), value=put(cache.value, value), place=place + 1
  )
  keys, values = cache.key[group], cache.value[group]
  product = functools.partial(jnp.einsum, preferred_element_type=dtype)
  query = _scaled(query)
  far = product('tihd,thkd->thik', query, cache.text_key)
  near = product('tihd,tikhd->thik', query, keys)
  back = place - jnp.asarray(_places(pattern, place))[group]
  seen = np.isin(np.arange(math.prod(pattern.grid)), pattern.offsets)
  seen = jnp.asarray(seen)[back] & (back >= 0) & (back <= place)
  near = jnp.where(seen, near, -jnp.inf)
  logits = jnp.concatenate([far, near], axis=-1)
  weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
  far, near = weights[..., : pattern.text], weights[..., pattern.text :]
  out = jnp.einsum('thik,thkd->tihd', far, cache.text_value)
  return out + jnp.einsum('thik,tikhd->tihd', near, values), cache


def _places(pattern: Pattern, place: Array | int) -> Array:
  """Returns where on the grid the tokens of a cache are from.

  Columns are groups with a slot for each row. Other patterns have one group,
  with as many slots as tokens see each other; they are used in turns.

  Args:
    pattern: of the layer.
    place: of the newest token: slots that are still free seem to hold those
      after it, or negative places.

  Returns:
    int [groups, slots].
  """
  if pattern.kind == 'column':
    return np.arange(math.prod(pattern.grid)).reshape(pattern.grid).T
  slots = np.arange(pattern.offsets[-1] + 1)[None]
  return place - (place - slots) % slots.size
