"""LARS against the formulas, with weight decay inside the gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from vit_jax.config import ConfigError
from vit_jax.training import optimizer


def settings(**fields):
  shared = dict(
    name='lars',
    learning_rate=0.3,
    weight_decay=0.02,
    weight_decay_convention='times_learning_rate',
    weight_decay_rules=(('.*/kernel', 1.0),),
    learning_rate_rules=(),
    clip_norm=0.0,
    accumulate=1,
    average=0.0,
    freeze=(),
    momentum=0.9,
    trust_coefficient=0.01,
    adapted=('.*/kernel',),
    moment_dtype='float32',
  )
  return ConfigDict({**shared, **fields})


def tree(seed):
  rng = np.random.default_rng(seed)
  return {
    'head': {
      'kernel': jnp.asarray(rng.normal(size=(3, 4)), jnp.float32),
      'bias': jnp.asarray(rng.normal(size=4), jnp.float32),
    },
    'zero': {'kernel': jnp.zeros((2, 2))},
  }


def test_updates_by_hand():
  tx = optimizer.make(settings(), lambda step: 1.0, tree(0))
  params = tree(0)
  state = tx.init(params)
  kernel, bias, zero = (
    np.asarray(x, np.float64)
    for x in (
      params['head']['kernel'],
      params['head']['bias'],
      params['zero']['kernel'],
    )
  )
  moments = [0, 0, 0]
  for seed in (1, 2, 3):
    gradient = tree(seed)
    gradient['zero']['kernel'] = jnp.full((2, 2), 0.1)
    updates, state = jax.jit(tx.update)(gradient, state, params)
    params = optax.apply_updates(params, updates)
    step = np.asarray(gradient['head']['kernel']) + 0.02 * kernel
    step *= 0.01 * np.linalg.norm(kernel) / np.linalg.norm(step)
    moments[0] = 0.9 * moments[0] + step
    # Biases are neither adapted nor decayed.
    moments[1] = 0.9 * moments[1] + np.asarray(gradient['head']['bias'])
    # Nothing is as long as a weight that is zero.
    factor = 0.01 * np.linalg.norm(zero) / np.linalg.norm(0.1 + 0.02 * zero)
    moments[2] = 0.9 * moments[2] + (0.1 + 0.02 * zero) * (factor or 1)
    kernel = kernel - 0.3 * moments[0]
    bias = bias - 0.3 * moments[1]
    zero = zero - 0.3 * moments[2]
  np.testing.assert_allclose(params['head']['kernel'], kernel, atol=1e-5)
  np.testing.assert_allclose(params['head']['bias'], bias, atol=1e-5)
  np.testing.assert_allclose(params['zero']['kernel'], zero, atol=1e-5)


def test_length_of_an_update_does_not_depend_on_that_of_the_gradient():
  tx = optimizer.make(settings(weight_decay=0.0), lambda step: 1.0, tree(0))
  state = tx.init(tree(0))
  small, _ = tx.update(tree(1), state, tree(0))
  large, _ = tx.update(
    jax.tree.map(lambda x: 1000 * x, tree(1)), state, tree(0)
  )
  np.testing.assert_allclose(
    small['head']['kernel'], large['head']['kernel'], atol=1e-6
  )


def test_frozen_parameters_stay_and_others_are_still_adapted():
  chosen = settings(freeze=('zero/.*',), weight_decay=0.0)
  tx = optimizer.make(chosen, lambda step: 1.0, tree(0))
  updates, _ = tx.update(tree(1), tx.init(tree(0)), tree(0))
  assert not updates['zero']['kernel'].any()
  np.testing.assert_allclose(
    jnp.linalg.norm(updates['head']['kernel']),
    0.3 * 0.01 * jnp.linalg.norm(tree(0)['head']['kernel']),
    rtol=1e-5,
  )


def test_independent_decay_is_refused():
  chosen = settings(weight_decay_convention='independent')
  with pytest.raises(ConfigError, match='weight decay of lars is a part'):
    optimizer.check(chosen, tree(0))
