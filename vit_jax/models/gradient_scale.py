"""A factor for the gradients of each residual branch, for float16.

Ramesh et al., arXiv:2102.12092, section 2.4.1 and appendix D. The gradients of
deep blocks are so small that float16 makes zeros of them, and one factor for
all of them is too large for others. Here each branch has its own: gradients are
multiplied where they enter the branch, and divided again where they leave it,
for its parameters too, so that all around it is as without, in float32. What
overflows on the way is left out and counted; then the step is skipped and the
factor shrinks, otherwise it grows.

It helps where 16 bits mean float16, as on older GPUs. A TPU multiplies
bfloat16, which has the range of float32 and needs none of this.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array

# Of variables: a factor for each branch.
COLLECTION = 'gradient_scale'
# The paper's, for the 128 replicas of its batches of 1,024: 2**13 for each of
# them, no less than 2**7 and no more than 2**24; not its pause between two
# times that a factor shrinks.
START, SMALLEST, LARGEST = 2.0**20, 2.0**14, 2.0**31
_GROWTH, _SHRINKAGE = 2.0 ** (1 / 1000), 2.0**-0.5


def stream_dtype(dtype: Any) -> Any:
  """Returns the type of what is outside of branches, and of its gradients."""
  return jnp.float32 if dtype == jnp.float16 else dtype


def of(variables: Mapping[str, Any]) -> dict[str, Any]:
  """Returns those of variables that are scales: one collection, or none."""
  return {name: variables[name] for name in variables if name == COLLECTION}


@jax.custom_vjp
def enter(x: Array, scale: Array) -> Array:
  """Returns what a branch reads: x, whose gradient is divided by the scale.

  In place of the gradient of the scale comes how many values overflowed.
  """
  del scale
  return x


def _enter_backward(scale: Array, gradient: Array) -> tuple[Array, Array]:
  finite = jnp.isfinite(gradient)
  overflows = (~finite).sum(dtype=jnp.float32)
  return jnp.where(finite, gradient, 0) / scale, overflows


enter.defvjp(lambda x, scale: (x, scale), _enter_backward)


@jax.custom_vjp
def leave(x: Array, scale: Array) -> Array:
  """Returns what a branch adds: x in float32, whose gradient is multiplied.

  The product is taken before it is rounded to the type of x.
  """
  del scale
  return x.astype(jnp.float32)


def _leave_forward(x: Array, scale: Array) -> tuple[Array, Any]:
  # Only its type is of interest.
  return leave(x, scale), (scale, jnp.zeros((), x.dtype))


def _leave_backward(saved: Any, gradient: Array) -> tuple[Array, Array]:
  scale, like = saved
  return (gradient * scale).astype(like.dtype), jnp.zeros_like(scale)


leave.defvjp(_leave_forward, _leave_backward)


def updated(scales: Any, overflows: Any) -> Any:
  """Returns the scales of the next step.

  Args:
    scales: of this one.
    overflows: what came in place of their gradients: the number of values that
      overflowed, or its mean over micro-batches or replicas.
  """

  def one(scale, count):
    factor = jnp.where(count > 0, _SHRINKAGE, _GROWTH)
    return jnp.clip(scale * factor, SMALLEST, LARGEST)

  return jax.tree.map(one, scales, overflows)


def any_overflow(overflows: Any) -> Array:
  """Returns whether there was one, so that the step is to be skipped.

  Scales do not tell it: the smallest stays as it is.
  """
  return jnp.stack([(x > 0).any() for x in jax.tree.leaves(overflows)]).any()
