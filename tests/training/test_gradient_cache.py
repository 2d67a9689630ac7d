"""Gradients through cached features equal those of the whole batch."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.tasks import contrastive_loss
from vit_jax.training import gradient_cache
from vit_jax.training import mesh as mesh_lib

PAIRS, INPUTS, WIDTH = 32, 6, 16


def parameters():
  rng = np.random.default_rng(0)
  shapes = {'image': (INPUTS, WIDTH), 'text': (INPUTS, WIDTH)}
  params = {name: rng.normal(size=shape) for name, shape in shapes.items()}
  params |= {'log_scale': math.log(7.0), 'bias': -2.0}
  return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)


def batch():
  rng = np.random.default_rng(1)
  image = rng.normal(size=(PAIRS, INPUTS)).astype(np.float32)
  text = image + rng.normal(size=(PAIRS, INPUTS)).astype(np.float32)
  identity = np.arange(PAIRS) // 2 * 2
  return {'image': image, 'text': text, 'identity': identity}


def embed(params, part, key, dropout=0.0):
  """Two small towers."""
  features = {}
  for name, tower_key in zip(('image', 'text'), jax.random.split(key)):
    hidden = jnp.tanh(part[name] @ params[name])
    kept = jax.random.bernoulli(tower_key, 1 - dropout, hidden.shape)
    hidden = jnp.where(kept, hidden, 0.0)
    features[name] = hidden / jnp.linalg.norm(hidden, axis=-1, keepdims=True)
  return features


def softmax(params, features, batch):
  loss = contrastive_loss.softmax_loss(
    features['image'], features['text'], params['log_scale'], batch['identity']
  )
  return loss, {'scale': params['log_scale']}


def sigmoid(params, features, batch):
  loss = contrastive_loss.sigmoid_loss(
    features['image'], features['text'], params['log_scale'], params['bias']
  )
  return loss, {'bias': params['bias']}


def assert_same(found, expected):
  for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
    tolerance = 1e-6 * max(1, np.abs(other).max())
    np.testing.assert_allclose(one, other, atol=tolerance, rtol=0)


@pytest.mark.parametrize('devices', [1, 8])
@pytest.mark.parametrize('loss', [softmax, sigmoid])
def test_parts_have_the_gradients_of_the_whole(loss, devices):
  params, examples, key = parameters(), batch(), jax.random.key(0)

  def whole(params):
    return loss(params, embed(params, examples, key), examples)

  expected = jax.value_and_grad(whole, has_aux=True)(params)
  assert abs(expected[1]['log_scale']) > 1e-2
  mesh = mesh_lib.make(mesh_lib.Settings(), jax.devices()[:devices])
  with jax.set_mesh(mesh):
    on_mesh = mesh_lib.to_mesh(examples, mesh)
    for parts in (4,) if devices > 1 else (2, 4, 8):
      found = jax.jit(
        lambda params, batch, count=parts: gradient_cache.value_and_gradients(
          embed, loss, params, batch, key, count
        )
      )(params, on_mesh)
      assert_same(found, expected)


def test_each_part_has_the_same_random_numbers_both_times():
  params, examples, key = parameters(), batch(), jax.random.key(0)

  def noisy(params, part, key):
    return embed(params, part, key, dropout=0.5)

  def direct(params):
    parts = gradient_cache.split(examples, 4)
    features = [
      noisy(params, jax.tree.map(lambda x, n=n: x[n], parts), key_of(n))
      for n in range(4)
    ]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *features)
    return softmax(params, gradient_cache.join(stacked), examples)

  def key_of(number):
    return jax.random.fold_in(key, number)

  expected = jax.jit(jax.value_and_grad(direct, has_aux=True))(params)
  found = jax.jit(gradient_cache.value_and_gradients, static_argnums=(0, 1, 5))(
    noisy, softmax, params, examples, key, 4
  )
  assert_same(found, expected)


def test_parts_need_less_memory():
  def temporary(parts):
    compiled = (
      jax.jit(gradient_cache.value_and_gradients, static_argnums=(0, 1, 5))
      .lower(deep, softmax, parameters(), large, jax.random.key(0), parts)
      .compile()
    )
    return compiled.memory_analysis().temp_size_in_bytes

  def deep(params, part, key):
    part = jax.tree.map(lambda x: jnp.repeat(x, 64, axis=0), part)
    features = embed(params, part, key)
    return jax.tree.map(lambda x: x.reshape(-1, 64, WIDTH).mean(1), features)

  large = jax.tree.map(lambda x: np.concatenate([x] * 8), batch())
  assert temporary(8) < temporary(1) / 3


def test_unequal_parts_are_refused():
  with pytest.raises(ValueError, match='32 cannot be divided into 5'):
    gradient_cache.value_and_gradients(
      embed, softmax, parameters(), batch(), jax.random.key(0), 5
    )
