"""Gradients in float16: none is lost, and what overflows is left out."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vit_jax.config import ConfigError
from vit_jax.models import dalle, gradient_scale
from vit_jax.training import checks, mesh, powersgd, rules
from vit_jax.training import state as state_lib
from vit_jax.training import step as step_lib

KEY = state_lib.random_key(0)
SMALL = dict(
  text_vocabulary=7, text_length=3, image_vocabulary=9, grid=(2, 2), width=16,
  depth=3, mlp_dim=16, num_heads=2, patterns=('full',),
  last_pattern='full',
)  # fmt: skip
BATCH = {
  'text': np.arange(24, dtype=np.int32).reshape(8, 3) % 7,
  'codes': np.arange(32, dtype=np.int32).reshape(8, 4) % 9,
}


class Task:
  """Adds up the image's logits, each times a number; and that by a factor."""

  def __init__(self, dtype, scan=False):
    self.model = dalle.DallE(**SMALL, dtype=dtype, scan=scan)

  def init(self):
    """Returns noise in every parameter, and the scales as they start."""
    shapes = jax.eval_shape(self.model.init, KEY, BATCH['text'], BATCH['codes'])
    rng = np.random.default_rng(0)
    variables = {
      'params': jax.tree.map(
        lambda x: jnp.asarray(rng.normal(scale=0.3, size=x.shape), x.dtype),
        shapes['params'],
      )
    }
    scales = jax.tree.map(
      lambda x: jnp.full(x.shape, gradient_scale.START),
      gradient_scale.of(shapes),
    )
    return variables | scales

  def loss(self, variables, batch, key, step, train=True):
    """Returns what is tiny, or huge where the batch says so."""
    factor = batch.get('factor', jnp.full(1, 1e-8))[0]
    (_, logits), _ = self.model.apply(variables, batch['text'], batch['codes'])
    numbers = jnp.sin(jnp.arange(logits[0].size).reshape(logits[0].shape))
    return factor * (logits * numbers).mean(0).sum(), {}, {}


def gradients(task, variables):
  """Returns gradients of parameters and scales, by path."""

  def loss(variables):
    return task.loss(variables, BATCH, KEY, 0)[0]

  found = jax.jit(jax.grad(loss))(variables)
  return rules.by_path(found['params']), gradient_scale.of(found)


@pytest.mark.parametrize('scan', [False, True])
def test_no_gradient_is_lost(scan):
  half, exact = Task(jnp.float16, scan), Task(jnp.float32, scan)
  variables = half.init()
  params = {'params': variables['params']}
  expected, none = gradients(exact, params)
  assert none == {}
  found, overflows = gradients(half, variables)
  assert not any(x.any() for x in jax.tree.leaves(overflows))
  lost, _ = gradients(half, params)
  zeros = []
  for path, gradient in expected.items():
    size = np.linalg.norm(gradient)
    difference = np.linalg.norm(found[path] - gradient)
    # Some are zero but for rounding.
    assert difference <= 0.02 * max(size, 1e-9), path
    if path.startswith('encoder/') and path.endswith('kernel'):
      zeros.append((lost[path] == 0).mean())
  assert np.mean(zeros) > 0.5
  # Three layers, two branches of each.
  sizes = [x.size for x in jax.tree.leaves(overflows)]
  assert sum(sizes) == 6


def settings(accumulate=1):
  return types.SimpleNamespace(accumulate=accumulate, freeze=(), average=0.9)


@pytest.mark.parametrize(
  'accumulate,exchanged', [(1, False), (4, False), (1, True)]
)
def test_a_step_that_overflows_is_left_out(accumulate, exchanged):
  task, tx = Task(jnp.float16, scan=True), optax.adam(1e-3)
  exchange = powersgd.power_sgd(rank=1, replicas=8) if exchanged else None
  state = state_lib.create(task.init(), tx, KEY, True, exchange)
  step = jax.jit(
    step_lib.make_train_step(task, tx, settings(accumulate), exchange)
  )
  # One example of eight has a gradient that float16 cannot hold.
  huge = np.full(8, 1e-8, np.float32)
  huge[0] = 1e6
  devices = jax.devices() if exchanged else jax.devices()[:1]
  with jax.set_mesh(mesh.make(mesh.Settings(), devices)):
    skipped, metrics = step(state, {**BATCH, 'factor': huge})
    taken, _ = step(state, {**BATCH, 'factor': np.full(8, 1e-8, np.float32)})
  assert metrics['skipped'] == 1 and np.isfinite(metrics['gradient_norm'])
  assert skipped.step == 1
  before, after = jax.device_get((state, skipped))
  for name in ('params', 'optimizer', 'average', 'exchange'):
    jax.tree.map(
      np.testing.assert_array_equal, getattr(before, name), getattr(after, name)
    )
  scales = np.concatenate(jax.tree.leaves(after.others))
  grown = gradient_scale.START * 2 ** (1 / 1000)
  shrunk = grown * 2 ** (-0.5 - 1 / 1000)
  assert np.isclose(scales, shrunk).any()
  assert np.isclose(scales, shrunk).sum() + np.isclose(scales, grown).sum() == 6
  scales = np.concatenate(jax.tree.leaves(taken.others))
  np.testing.assert_allclose(scales, grown, rtol=1e-5)
  assert np.abs(taken.params['start'] - state.params['start']).max() > 1e-4


def test_scales_stay_within_the_limits_of_the_paper():
  # 128 replicas.
  smallest, largest = 128 * 2.0**7, 128 * 2.0**24
  assert gradient_scale.START == 128 * 2.0**13
  before = {'scale': jnp.array([smallest, smallest * 1.2, largest])}
  finite = gradient_scale.updated(before, {'scale': jnp.zeros(3)})
  np.testing.assert_allclose(
    finite['scale'] / before['scale'], [2**0.001, 2**0.001, 1], rtol=1e-6
  )
  overflown = gradient_scale.updated(before, {'scale': jnp.ones(3)})
  np.testing.assert_allclose(
    overflown['scale'], [smallest, smallest, largest / np.sqrt(2)], rtol=1e-6
  )


@pytest.mark.parametrize('accumulate', [1, 4])
def test_a_step_that_overflows_at_the_smallest_scale_is_left_out(accumulate):
  task, tx = Task(jnp.float16, scan=True), optax.sgd(1e-3)
  state = state_lib.create(task.init(), tx, KEY, average=False)
  smallest = jax.tree.map(
    lambda x: jnp.full_like(x, gradient_scale.SMALLEST), state.others
  )
  state = state.replace(others=smallest)
  # The first example is in the first micro-batch; no other overflows.
  factor = np.full(8, 1e-8, np.float32)
  factor[0] = 1e9
  step = jax.jit(step_lib.make_train_step(task, tx, settings(accumulate)))
  with jax.set_mesh(mesh.make(mesh.Settings(), jax.devices()[:1])):
    after, metrics = step(state, {**BATCH, 'factor': factor})
  assert metrics['skipped'] == 1
  jax.tree.map(np.testing.assert_array_equal, after.params, state.params)
  scales = np.concatenate(jax.tree.leaves(after.others))
  assert scales.min() == gradient_scale.SMALLEST


def test_only_models_with_scales_learn_in_float16(tiny):
  config = tiny('precision.compute=float16')
  checks.check_precision(config, {'params': {}, 'gradient_scale': {}})
  with pytest.raises(ConfigError, match="compute is 'float16', but vit"):
    checks.check_precision(config, {'params': {}})
