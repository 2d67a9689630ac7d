"""Means of a task's metrics over a data set, each example counted once."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Sums = dict[str, jax.Array]


def make_summed(task: Any) -> Callable[[Any, Mapping], Sums]:
  """Returns a jitted function that sums a task's metrics over a batch.

  The function takes variables and a batch with `mask` [batch], 0 where an
  example is padding; its result has the number of examples as `examples`.
  """

  @jax.jit
  def summed(variables, batch):
    mask = batch['mask']
    # A padded example may give anything, also NaN, which times 0 is NaN.
    sums = {
      name: jnp.where(mask > 0, values, 0).sum()
      for name, values in task.metrics(variables, batch).items()
    }
    return {**sums, 'examples': mask.sum()}

  return summed


def mean_metrics(
  summed: Callable, variables: Any, batches: Iterable[Mapping]
) -> dict[str, float]:
  """Returns the mean of each metric, and the number of `examples`.

  Args:
    summed: see `make_summed`.
    variables: of the model.
    batches: on the devices.
  """
  sums = []
  for batch in batches:
    sums.append(summed(variables, batch))
    # Devices never wait for the host, and hold few batches.
    if len(sums) > 2:
      sums[-3] = jax.device_get(sums[-3])
  sums = jax.device_get(sums)
  total = {
    name: float(np.sum([part[name] for part in sums], dtype=np.float64))
    for name in sums[0]
  }
  examples = total.pop('examples')
  return {
    **{name: value / examples for name, value in total.items()},
    'examples': int(examples),
  }
