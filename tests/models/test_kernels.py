"""Gradients written by hand equal those of automatic differentiation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.models import kernels


def normal(seed, *shape):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.normal(size=shape), jnp.float32)


def plain_attention(query, key, value):
  logits = jnp.einsum('bqhd,bkhd->bhqk', query, key) / np.sqrt(8)
  return jnp.einsum('bhqk,bkhd->bqhd', jax.nn.softmax(logits), value)


def plain_layer_norm(x, scale, bias):
  mean = x.mean(-1, keepdims=True)
  variance = jnp.square(x - mean).mean(-1, keepdims=True)
  return (x - mean) / jnp.sqrt(variance + 1e-6) * scale + bias


CASES = {
  'attention': (
    lambda *x: kernels.attend(*x, jnp.float32),
    plain_attention,
    (normal(0, 2, 7, 3, 8), normal(1, 2, 9, 3, 8), normal(2, 2, 9, 3, 8)),
  ),
  'layer norm': (
    lambda *x: kernels.layer_norm(*x, 1e-6),
    plain_layer_norm,
    (3 * normal(0, 4, 5, 16) + 1, normal(1, 16), normal(2, 16)),
  ),
}


@pytest.mark.parametrize('name', CASES)
def test_values_and_gradients(name):
  ours, plain, inputs = CASES[name]
  weight = normal(5, *ours(*inputs).shape)

  def both(function):
    def loss(*inputs):
      out = function(*inputs)
      return (out * weight).sum(), out

    wanted = tuple(range(len(inputs)))
    return jax.jit(jax.grad(loss, wanted, has_aux=True))(*inputs)

  gradients, out = both(ours)
  expected_gradients, expected = both(plain)
  np.testing.assert_allclose(out, expected, atol=2e-6)
  for gradient, wanted in zip(gradients, expected_gradients):
    np.testing.assert_allclose(gradient, wanted, atol=1e-5)


def test_attention_in_bfloat16_is_near_and_survives_large_logits():
  inputs = CASES['attention'][2]
  low = [x.astype(jnp.bfloat16) for x in inputs]
  exact = plain_attention(*(x.astype(jnp.float32) for x in low))
  for dtype in (jnp.float32, jnp.bfloat16):
    out = kernels.attend(*low, dtype)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(jnp.float32), exact, atol=0.05)
  large = kernels.attend(1e4 * inputs[0], *inputs[1:], jnp.float32)
  assert np.isfinite(large).all()
