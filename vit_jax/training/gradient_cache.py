"""Gradients of a loss over a batch that is too large to differentiate at once.

A contrastive loss compares all examples with each other, so it is not a mean
over parts of the batch. But the gradient passes through the features, which
are small (Gao et al., arXiv:2101.06983): compute them in parts, without what
differentiation needs; differentiate the loss by them; then compute each part
again and differentiate it. This is exact, for the parameters of the loss too.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from vit_jax.models.layers import constrain
from vit_jax.training import mesh as mesh_lib

Embed = Callable[[Any, Any, jax.Array], Any]
Loss = Callable[[Any, Any, Any], tuple[jax.Array, Any]]


def value_and_gradients(
  embed: Embed,
  loss: Loss,
  params: Any,
  batch: Any,
  key: jax.Array,
  parts: int,
) -> tuple[tuple[jax.Array, Any], Any]:
  """Returns what `jax.value_and_grad` of the loss of the features would.

  Args:
    embed: from parameters, part of a batch and random key to features: arrays
      whose first axis is the examples of the part. It is called twice with
      each part, with the same key.
    loss: from parameters, features of the whole batch and the batch to a
      scalar and metrics.
    params: what to differentiate by.
    batch: arrays [examples, ...].
    key: random key of this batch; parts have their own.
    parts: how many; 1 is plain differentiation, but costs a forward pass more.

  Returns:
    ((loss, metrics), gradients).

  Raises:
    ValueError: the batch cannot be divided into equal parts.
  """
  size = jax.tree.leaves(batch)[0].shape[0]
  if parts < 1 or size % parts:
    raise ValueError(
      f'a batch of {size} cannot be divided into {parts} equal parts; make the '
      'batch size a multiple of their number.'
    )
  numbered = (split(batch, parts), jnp.arange(parts))

  def features_of(params, part, number):
    return embed(params, part, jax.random.fold_in(key, number))

  features = jax.lax.map(lambda one: features_of(params, *one), numbered)
  (value, metrics), (gradients, by_features) = jax.value_and_grad(
    loss, argnums=(0, 1), has_aux=True
  )(params, join(features), batch)

  def add(total, one):
    part, number, by_part = one
    _, pull_back = jax.vjp(
      lambda params: features_of(params, part, number), params
    )
    return jax.tree.map(jnp.add, total, *pull_back(by_part)), None

  gradients, _ = jax.lax.scan(
    add, gradients, (*numbered, split(by_features, parts))
  )
  return (value, metrics), gradients


def split(batch: Any, parts: int) -> Any:
  """Divides arrays [examples, ...] into [parts, examples / parts, ...].

  Each part takes every parts-th example, so that no example has to move to
  another device.
  """

  def one(x):
    x = x.reshape(x.shape[0] // parts, parts, *x.shape[1:])
    return constrain(x.swapaxes(0, 1), None, *mesh_lib.BATCH)

  return jax.tree.map(one, batch)


def join(parts: Any) -> Any:
  """Undoes `split`."""

  def one(x):
    x = x.swapaxes(0, 1)
    return constrain(x.reshape(-1, *x.shape[2:]), *mesh_lib.BATCH)

  return jax.tree.map(one, parts)
