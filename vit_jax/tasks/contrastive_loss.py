"""Losses that bring images and their texts together, over the whole batch.

They are global expressions: where features are split over devices, the
compiler exchanges what is needed. `ring_...` compute the same in a memory that
grows with the batch, not with its square: texts travel around the devices, and
of the similarities only some rows exist at a time.

Shapes: image and text are [pairs, width], of unit length; pair i is row i of
both. Scalars `log_scale` and `bias` are learned.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from vit_jax.models.layers import BATCH

Array = jax.Array

# The largest factor of similarities (Radford et al., arXiv:2103.00020, 2.5).
MAX_SCALE = 100.0
# Rows of similarities that a ring computes at a time.
_ROWS = 512


@jax.custom_vjp
def similarity_scale(log_scale: Array) -> Array:
  """Returns exp(log_scale), at most MAX_SCALE.

  Beyond the limit the gradient can only lower `log_scale`, so that a step too
  far is taken back, whereas that of a plain minimum would be zero for ever.
  """
  return jnp.exp(jnp.minimum(log_scale, math.log(MAX_SCALE)))


def _scale_forward(log_scale: Array) -> tuple[Array, tuple[Array, Array]]:
  scale = similarity_scale(log_scale)
  return scale, (log_scale, scale)


def _scale_backward(kept: tuple[Array, Array], gradient: Array) -> tuple[Array]:
  log_scale, scale = kept
  gradient = gradient * scale
  beyond = log_scale > math.log(MAX_SCALE)
  return (jnp.where(beyond, jnp.maximum(gradient, 0), gradient),)


similarity_scale.defvjp(_scale_forward, _scale_backward)


def initial_bias(pairs: int) -> float:
  """Returns the bias at which one in `pairs` pairs is taken to match.

  It is log(p / (1 - p)) with p = 1 / pairs: without it the sigmoid loss starts
  by unlearning that half of all pairs match. Zhai et al., arXiv:2303.15343,
  use -10 (batches of about 22,000).
  """
  if pairs < 2:
    raise ValueError(f'a batch of {pairs} has no pairs that do not match')
  return -math.log(pairs - 1)


def softmax_loss(
  image: Array, text: Array, log_scale: Array, identity: Array | None = None
) -> Array:
  """Returns the mean cross-entropy of choosing the text, and the image.

  Radford et al., arXiv:2103.00020, figure 3.

  Args:
    image: [pairs, width].
    text: [pairs, width].
    log_scale: logarithm of the inverse temperature.
    identity: int [pairs]; pairs with the same number match each other, and
      share the target equally. By default each matches itself alone.
  """
  scale = similarity_scale(log_scale)
  logits = _similarities(image, text) * scale  # [pairs, pairs]
  rows, columns = (jax.nn.logsumexp(logits, axis) for axis in (1, 0))
  if identity is None:
    positive = jnp.diagonal(logits)
  else:
    same = _same(identity, identity)
    positive = (same * logits).sum(1) / same.sum(1)
  # Over all pairs, the targets of rows weigh the same logits as of columns.
  return ((rows + columns) / 2 - positive).mean()


def sigmoid_loss(
  image: Array,
  text: Array,
  log_scale: Array,
  bias: Array,
  identity: Array | None = None,
) -> Array:
  """Returns the cross-entropy of telling which pairs match, summed over texts.

  Zhai et al., arXiv:2303.15343, equation 1: a mean over images.

  Args:
    image: [pairs, width].
    text: [pairs, width].
    log_scale: logarithm of the inverse temperature.
    bias: added to all logits; see `initial_bias`.
    identity: int [pairs]; pairs with the same number match each other. By
      default each matches itself alone.
  """
  identity = _own(identity, image)
  scale = similarity_scale(log_scale)
  logits = _similarities(image, text) * scale + bias  # [pairs, pairs]
  return _sigmoid_rows(logits, _same(identity, identity)).mean()


def ring_softmax_loss(
  image: Array,
  text: Array,
  log_scale: Array,
  identity: Array | None = None,
  rows: int = _ROWS,
) -> Array:
  """Returns `softmax_loss`; `rows` of similarities exist at a time."""

  def visit(columns, own, visitor, scale):
    image, identity, (row_sum, positive, count) = own
    logits = _similarities(image, visitor['text']) * scale
    same = _same(identity, visitor['identity'])
    row_sum = jnp.logaddexp(row_sum, jax.nn.logsumexp(logits, 1))
    columns = jnp.logaddexp(columns, jax.nn.logsumexp(logits, 0))
    positive += (same * logits).sum(1)
    return columns, (row_sum, positive, count + same.sum(1))

  def start(zeros):
    # The logarithm of an empty sum, but finite, as its gradient must be.
    nothing = zeros - 1e30
    return nothing, (nothing, zeros, zeros)

  def finish(columns, own):
    row_sum, positive, count = own
    return (row_sum + columns) / 2 - positive / count

  scale = similarity_scale(log_scale)
  identity = _own(identity, image)
  return _ring(visit, start, finish, image, text, identity, (scale,), rows)


def ring_sigmoid_loss(
  image: Array,
  text: Array,
  log_scale: Array,
  bias: Array,
  identity: Array | None = None,
  rows: int = _ROWS,
) -> Array:
  """Returns `sigmoid_loss`; `rows` of similarities exist at a time."""

  def visit(columns, own, visitor, scale, bias):
    image, identity, total = own
    logits = _similarities(image, visitor['text']) * scale + bias
    same = _same(identity, visitor['identity'])
    return columns, total + _sigmoid_rows(logits, same)

  def start(zeros):
    return (), zeros

  def finish(columns, own):
    del columns
    return own

  scale = similarity_scale(log_scale)
  identity = _own(identity, image)
  return _ring(visit, start, finish, image, text, identity, (scale, bias), rows)


def _similarities(image: Array, text: Array) -> Array:
  """Returns [images, texts]; exact, as they are multiplied by up to 100."""
  image, text = image.astype(jnp.float32), text.astype(jnp.float32)
  return jnp.matmul(image, text.T, precision=jax.lax.Precision.HIGHEST)


def _own(identity: Array | None, image: Array) -> Array:
  """Returns the identity, or numbers that differ for all pairs."""
  return jnp.arange(image.shape[0]) if identity is None else identity


def _same(rows: Array, columns: Array) -> Array:
  """Returns 1 where pairs match, else 0: float32 [rows, columns]."""
  return (rows[:, None] == columns[None, :]).astype(jnp.float32)


def _sigmoid_rows(logits: Array, same: Array) -> Array:
  """Returns the cross-entropy of each row, [images]."""
  return -jax.nn.log_sigmoid((2 * same - 1) * logits).sum(1)


def _ring(
  visit: Callable,
  start: Callable,
  finish: Callable,
  image: Array,
  text: Array,
  identity: Array,
  scalars: tuple[Array, ...],
  rows: int,
) -> Array:
  """Lets every text visit every image; returns the mean over pairs.

  Args:
    visit: adds to the sums of texts and of images what some images and the
      visiting texts give, `(columns, (image, identity, own), visitor,
      *scalars) -> (columns, own)`.
    start: both sums before any visit, given zeros [pairs of a device].
    finish: the loss of each pair of a device, given both sums.
    image: [pairs, width].
    text: [pairs, width].
    identity: [pairs].
    scalars: what else `visit` needs.
    rows: images that are visited at a time.
  """
  mesh = jax.sharding.get_abstract_mesh()
  axes = tuple(axis for axis in BATCH if axis in mesh.axis_names)
  pairs = image.shape[0]

  def on_device(image, text, identity, *scalars):
    blocks = _blocks(image.shape[0], rows)
    # Made of the features, so that it is known to differ between devices.
    columns, own = start(jnp.zeros_like(image, jnp.float32).sum(1))
    in_blocks = functools.partial(_split, blocks=blocks)
    image, identity = in_blocks(image), in_blocks(identity)

    def block(visitor, columns, own):
      return visit(columns, own, visitor, *scalars)

    @jax.checkpoint
    def step(carry, _):
      visitor, columns, own = carry
      columns, own = jax.lax.scan(
        jax.checkpoint(functools.partial(block, visitor)),
        columns,
        (image, identity, own),
      )
      visitor, columns = _pass_on((visitor, columns), axes)
      return (visitor, columns, own), None

    visitor = {'text': text, 'identity': identity.reshape(-1)}
    own = jax.tree.map(in_blocks, own)
    count = jax.lax.axis_size(axes) if axes else 1
    carry = (visitor, columns, own)
    (_, columns, own), _ = jax.lax.scan(step, carry, length=count)
    # The sums of texts have come home.
    own = jax.tree.map(lambda x: x.reshape(-1), own)
    total = finish(columns, own).sum() / pairs
    return jax.lax.psum(total, axes) if axes else total

  if not axes:
    return on_device(image, text, identity, *scalars)
  split, whole = PartitionSpec(axes), PartitionSpec()
  specs = (split, split, split, *(whole for _ in scalars))
  ring = jax.shard_map(on_device, in_specs=specs, out_specs=whole)
  return ring(image, text, identity, *scalars)


def _blocks(pairs: int, rows: int) -> int:
  """Returns into how many equal blocks of at most `rows` to divide pairs."""
  fewest = -(-pairs // rows)
  return next(n for n in range(fewest, pairs + 1) if pairs % n == 0)


def _split(x: Array, blocks: int) -> Array:
  """Returns [blocks, pairs / blocks, ...] of [pairs, ...]."""
  return x.reshape(blocks, -1, *x.shape[1:])


def _pass_on(x: Any, axes: tuple[str, ...]) -> Any:
  """Gives x to the next device, and takes that of the one before."""
  if not axes:
    return x
  count = jax.lax.axis_size(axes)
  around = [(device, (device + 1) % count) for device in range(count)]
  return jax.lax.ppermute(x, axes, around)
