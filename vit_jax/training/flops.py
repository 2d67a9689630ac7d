"""How much arithmetic a function does, read from its jaxpr.

Compilers count the body of a loop once, whatever its length, so their figures
are wrong for scanned layers. Here the operations that carry the work, matrix
products and convolutions, are counted as often as they run.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.interpreters import partial_eval

# Peak bf16 FLOP/s of one JAX device. TPU: cloud.google.com/tpu/docs (v3: half
# of a chip, which is 123 TFLOP/s); GPU: NVIDIA's data sheets, dense.
PEAK_FLOPS = {
  'TPU v2': 22.5e12,
  'TPU v3': 61.5e12,
  'TPU v4': 275e12,
  'TPU v5 lite': 197e12,
  'TPU v5': 459e12,
  'TPU v6 lite': 918e12,
  'NVIDIA A100-SXM4-40GB': 312e12,
  'NVIDIA A100-SXM4-80GB': 312e12,
  'NVIDIA H100 80GB HBM3': 989e12,
  'NVIDIA H200': 989e12,
}


def peak_flops(device: Any) -> float | None:
  """Returns the peak bf16 FLOP/s of a device, None where it is not known."""
  return PEAK_FLOPS.get(device.device_kind)


def count_flops(function: Callable, *args: Any) -> int:
  """Returns the FLOPs of matrix products and convolutions in a call.

  A multiplication and an addition count as two.

  Args:
    function: traced, not run.
    *args: arrays or their shapes.
  """
  jaxpr = jax.make_jaxpr(function)(*args).jaxpr
  # Compilers drop what no output needs, so it does not count.
  jaxpr, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
  return _count(jaxpr)


def _count(jaxpr: Any) -> int:
  return sum(_count_equation(equation) for equation in jaxpr.eqns)


def _count_equation(equation: Any) -> int:
  name, params = equation.primitive.name, equation.params
  if name == 'dot_general':
    contracted = params['dimension_numbers'][0][0]
    shape = equation.invars[0].aval.shape
    depth = math.prod(shape[axis] for axis in contracted)
    return 2 * depth * math.prod(equation.outvars[0].aval.shape)
  if name == 'conv_general_dilated':
    kernel = equation.invars[1].aval.shape
    features = params['dimension_numbers'].rhs_spec[0]
    per_output = math.prod(kernel) // kernel[features]
    return 2 * per_output * math.prod(equation.outvars[0].aval.shape)
  times = 1
  if name == 'scan':
    times = params['length']
  elif name == 'shard_map':
    # What is inside is what one device does.
    shape = params['mesh'].shape
    times = math.prod(shape[axis] for axis in params['newly_manual_axes'])
  inner = (
    getattr(value, 'jaxpr', value)
    for param in params.values()
    for value in (param if isinstance(param, (tuple, list)) else [param])
  )
  return times * sum(_count(each) for each in inner if hasattr(each, 'eqns'))


def training_flops(task: Any) -> int:
  """Returns the FLOPs that one training example asks for.

  Three times the forward pass: the backward pass takes two products for each
  one. What rematerialisation computes again does not count, so that MFU
  (model FLOPs utilisation, arXiv:2204.02311, appendix B) compares runs.
  """
  key = jax.eval_shape(lambda: jax.random.key(0))
  forward = count_flops(
    lambda variables, batch, key: task.loss(variables, batch, key, 0)[0],
    jax.eval_shape(task.init, key),
    task.batch_spec(1),
    key,
  )
  return 3 * forward
