"""One step of training, as one function of state and batch."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vit_jax.training import gradient_cache
from vit_jax.training import optimizer as optimizer_lib
from vit_jax.training.state import State, step_key

Metrics = dict[str, jax.Array]


def _gradients(task: Any, state: State, batch: Any, key: Any):
  """Returns ((loss, metrics), gradients), others of one (micro-)batch."""

  def loss(params):
    value, metrics, others = task.loss(
      {'params': params, **state.others}, batch, key, state.step, train=True
    )
    return value, (metrics, others)

  differentiate = jax.value_and_grad(loss, has_aux=True)
  (value, (metrics, others)), gradients = differentiate(state.params)
  return ((value, metrics), gradients), {**state.others, **others}


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
  return result, state.others


def _moved_average(average: Any, params: Any, decay: float, step: Any) -> Any:
  """Moves the average; early steps weigh more, so that it forgets the init."""
  decay = jnp.minimum(decay, (1 + step) / (10 + step))
  return jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, average, params)


def make_train_step(
  task: Any, tx: optax.GradientTransformation, settings: Any
) -> Callable[[State, Any], tuple[State, Metrics]]:
  """Returns the function that a run calls, jitted, for every step.

  Args:
    task: what is learned.
    tx: the optimizer.
    settings: the completed section `config.optimizer`.

  Returns:
    A function of state and batch that returns the next state, and the metrics
    of this step: those of the task, `loss` and `gradient_norm`.
  """

  def train_step(state: State, batch: Any) -> tuple[State, Metrics]:
    key = step_key(state.key, state.step)
    if settings.accumulate == 1:
      result, others = _gradients(task, state, batch, key)
    elif hasattr(task, 'loss_of_features'):
      result, others = _cached(task, state, batch, key, settings.accumulate)
    else:
      result, others = _accumulated(
        task, state, batch, key, settings.accumulate
      )
    (loss, metrics), gradients = result
    if settings.freeze:
      # Zeros here let the compiler drop the backward pass of frozen parts.
      gradients = jax.tree.map(
        lambda gradient, train: gradient if train else jnp.zeros_like(gradient),
        gradients,
        optimizer_lib.trainable(settings, gradients),
      )
    norm = optax.tree.norm(gradients)
    updates, optimizer = tx.update(gradients, state.optimizer, state.params)
    params = optax.apply_updates(state.params, updates)
    average = state.average
    if average is not None:
      average = _moved_average(average, params, settings.average, state.step)
    state = State(
      step=state.step + 1,
      params=params,
      others=others,
      optimizer=optimizer,
      average=average,
      key=state.key,
    )
    return state, {'loss': loss, 'gradient_norm': norm, **metrics}

  return train_step
