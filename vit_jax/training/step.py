"""One step of training, as one function of state and batch."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec

from vit_jax.models import gradient_scale
from vit_jax.training import gradient_cache, powersgd
from vit_jax.training import optimizer as optimizer_lib
from vit_jax.training.state import State, step_key

Metrics = dict[str, jax.Array]


def _gradients(task: Any, state: State, batch: Any, key: Any):
  """Returns what one (micro-)batch gives.

  Returns:
    ((loss, metrics), gradients, overflows), others. Overflows are those of
    `gradient_scale`, in place of gradients of its scales; {} without them.
  """
  scales = gradient_scale.of(state.others)

  def loss(params, scales):
    variables = {'params': params, **state.others, **scales}
    value, metrics, others = task.loss(
      variables, batch, key, state.step, train=True
    )
    return value, (metrics, others)

  differentiate = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
  (value, (metrics, others)), (gradients, overflows) = differentiate(
    state.params, scales
  )
  others = {**state.others, **others}
  return ((value, metrics), gradients, overflows), others


def _accumulated(task: Any, state: State, batch: Any, key: Any, count: int):
  """Means of `_gradients` over micro-batches, each with its own key."""
  parts = gradient_cache.split(batch, count)
  shape, _ = jax.eval_shape(
    lambda part: _gradients(task, state, part, key),
    jax.tree.map(lambda x: x[0], parts),
  )
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), shape)

  def add(carry, numbered):
    (total, others), (number, part) = carry, numbered
    result, others = _gradients(
      task, state.replace(others=others), part, jax.random.fold_in(key, number)
    )
    return (jax.tree.map(jnp.add, total, result), others), None

  (total, others), _ = jax.lax.scan(
    add, (zeros, state.others), (jnp.arange(count), parts)
  )
  return jax.tree.map(lambda x: x / count, total), others


def _cached(task: Any, state: State, batch: Any, key: Any, count: int):
  """As `_gradients`, of a loss over all examples: see `gradient_cache`."""

  def embed(params, part, part_key):
    variables = {'params': params, **state.others}
    return task.embed(variables, part, part_key)

  result = gradient_cache.value_and_gradients(
    embed, task.loss_of_features, state.params, batch, key, count
  )
  return (*result, {}), state.others


def _unless_overflown(
  before: State, after: State, overflows: Any
) -> tuple[State, Any]:
  """Leaves a step out whose gradients are not whole, but for their scales.

  Returns:
    The state, and a metric: whether the step was left out.
  """
  skipped = gradient_scale.any_overflow(overflows)
  kept = before.replace(step=after.step, others=after.others)
  state = jax.tree.map(
    lambda old, new: jnp.where(skipped, old, new), kept, after
  )
  return state, {'skipped': skipped.astype(jnp.float32)}


def _moved_average(average: Any, params: Any, decay: float, step: Any) -> Any:
  """Moves the average; early steps weigh more, so that it forgets the init."""
  decay = jnp.minimum(decay, (1 + step) / (10 + step))
  return jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, average, params)


def _on_replicas(train_step: Callable) -> Callable:
  """Lets each part of the mesh along `data` take a step by itself.

  The other axes are left to the compiler.
  """
  everywhere, split = PartitionSpec(), PartitionSpec('data')
  state = State(
    step=everywhere,
    params=everywhere,
    others=everywhere,
    optimizer=everywhere,
    average=everywhere,
    key=everywhere,
    exchange=powersgd.state_specs('data'),
  )
  return jax.shard_map(
    train_step,
    in_specs=(state, split),
    out_specs=(state, everywhere),
    axis_names={'data'},
    # That the parameters stay the same on all replicas is for tests to see.
    check_vma=False,
  )


def make_train_step(
  task: Any,
  tx: optax.GradientTransformation,
  settings: Any,
  exchange: optax.GradientTransformation | None = None,
) -> Callable[[State, Any], tuple[State, Metrics]]:
  """Returns the function that a run calls, jitted, for every step.

  Args:
    task: what is learned.
    tx: the optimizer.
    settings: the completed section `config.optimizer`.
    exchange: what averages gradients over replicas. With it each of them
      computes the loss of its own part of the batch, with its own random key,
      and the step is the mean of theirs, as that of micro-batches is.

  Returns:
    A function of state and batch that returns the next state, and the metrics
    of this step: those of the task, `loss` and `gradient_norm`; and `skipped`
    where gradients are scaled, 1 if they overflowed.
  """

  def train_step(state: State, batch: Any) -> tuple[State, Metrics]:
    key = step_key(state.key, state.step)
    if exchange:
      key = jax.random.fold_in(key, jax.lax.axis_index('data'))
    if settings.accumulate == 1:
      result, others = _gradients(task, state, batch, key)
    elif hasattr(task, 'loss_of_features'):
      result, others = _cached(task, state, batch, key, settings.accumulate)
    else:
      result, others = _accumulated(
        task, state, batch, key, settings.accumulate
      )
    (loss, metrics), gradients, overflows = result
    if settings.freeze:
      # Zeros here let the compiler drop the backward pass of frozen parts.
      gradients = jax.tree.map(
        lambda gradient, train: gradient if train else jnp.zeros_like(gradient),
        gradients,
        optimizer_lib.trainable(settings, gradients),
      )
    exchanged = state.exchange
    if exchange:
      gradients, exchanged = exchange.update(gradients, exchanged)
      # All skip a step that one of them has to.
      loss, metrics, overflows = jax.lax.pmean(
        (loss, metrics, overflows), 'data'
      )
    if overflows:
      others |= gradient_scale.updated(
        gradient_scale.of(state.others), overflows
      )
    norm = optax.tree.norm(gradients)
    updates, optimizer = tx.update(gradients, state.optimizer, state.params)
    params = optax.apply_updates(state.params, updates)
    average = state.average
    if average is not None:
      average = _moved_average(average, params, settings.average, state.step)
    after = State(
      step=state.step + 1,
      params=params,
      others=others,
      optimizer=optimizer,
      average=average,
      key=state.key,
      exchange=exchanged,
    )
    if overflows:
      after, skipped = _unless_overflown(state, after, overflows)
      metrics |= skipped
    return after, {'loss': loss, 'gradient_norm': norm, **metrics}

  return _on_replicas(train_step) if exchange else train_step
