"""Everything that changes in a run, as one tree."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax


@flax.struct.dataclass
class State:
  """The state of training between two steps.

  Attributes:
    step: int32, the number of steps done; also the position in the data.
    params: what is learned.
    others: variables that no gradient changes, by collection: statistics of
      batch norm, moving targets, a frozen teacher.
    optimizer: the state of the optimizer.
    average: moving average of the parameters, or None.
    key: data of the run's random key; every step folds its number into it.
    exchange: what replicas have not told each other yet, see
      `vit_jax.training.powersgd`; None where gradients are not compressed.
  """

  step: jax.Array
  params: Any
  others: Any
  optimizer: Any
  average: Any
  key: jax.Array
  exchange: Any = None

  @property
  def evaluated(self) -> dict[str, Any]:
    """The variables that evaluation looks at: the average if there is one."""
    params = self.params if self.average is None else self.average
    return {'params': params, **self.others}


def random_key(seed: int) -> jax.Array:
  """Returns the key of a run.

  Of the kind `rbg`, with which dropout on a TPU costs next to nothing: with
  the default kind a step of ViT-B/16 takes 1.8 times the cycles, by the
  compiler's estimate for a v3-8.
  """
  return jax.random.key(seed, impl='rbg')


def step_key(key_data: jax.Array, step: jax.Array) -> jax.Array:
  """Returns the random key of a step: a function of (seed, step) alone."""
  key = jax.random.wrap_key_data(key_data, impl='rbg')
  return jax.random.fold_in(key, step)


def create(
  variables: Any,
  tx: optax.GradientTransformation,
  key: jax.Array,
  average: bool,
  exchange: optax.GradientTransformation | None = None,
) -> State:
  """Returns the state before the first step, from what a task starts with."""
  others = dict(variables)
  params = others.pop('params')
  return State(
    step=jnp.zeros((), jnp.int32),
    params=params,
    others=others,
    optimizer=tx.init(params),
    average=jax.tree.map(jnp.copy, params) if average else None,
    key=jax.random.key_data(key),
    exchange=exchange and exchange.init(params),
  )
