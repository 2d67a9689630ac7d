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


def _gradients(task: Any, params: Any, batch: Any, key: Any, step: Any):
  """Returns ((loss, metrics), gradients) of one (micro-)batch."""

  def loss(params):
    return task.loss({'params': params}, batch, key, step, train=True)

  return jax.value_and_grad(loss, has_aux=True)(params)


def _accumulated(
  task: Any, params: Any, batch: Any, key: Any, step: Any, count: int
):
  """Means of `_gradients` over micro-batches, each with its own key."""
  parts = gradient_cache.split(batch, count)
  shape = jax.eval_shape(
    lambda part: _gradients(task, params, part, key, step),
    jax.tree.map(lambda x: x[0], parts),
  )
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), shape)

  def add(total, numbered):
    number, part = numbered
    part_key = jax.random.fold_in(key, number)
    result = _gradients(task, params, part, part_key, step)
    return jax.tree.map(jnp.add, total, result), None

  total, _ = jax.lax.scan(add, zeros, (jnp.arange(count), parts))
  return jax.tree.map(lambda x: x / count, total)


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
    if settings.accumulate > 1:
      (loss, metrics), gradients = _accumulated(
        task, state.params, batch, key, state.step, settings.accumulate
      )
    else:
      (loss, metrics), gradients = _gradients(
        task, state.params, batch, key, state.step
      )
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
    state = state.replace(
      step=state.step + 1, params=params, optimizer=optimizer, average=average
    )
    return state, {'loss': loss, 'gradient_norm': norm, **metrics}

  return train_step
