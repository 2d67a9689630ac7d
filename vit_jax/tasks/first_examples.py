"""The few examples of a batch that are shown, as they lie on the devices."""

from typing import Any

import jax


def first_examples(batch: Any, count: int) -> Any:
  """Returns the first examples of a tree of arrays [batch, ...].

  To be compiled: so little leaves the devices however large batches are.

  Args:
    batch: the arrays.
    count: of examples; a few more, so that each device has as many, or fewer
      where there are no more.
  """
  devices = jax.device_count()
  number = -(-count // devices) * devices
  return jax.tree.map(lambda values: values[:number], batch)
