"""Dropout drops the share it says, and keeps the mean."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.models import layers


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
  'rate,share',
  [(0.1, 26 / 256), (0.5, 0.5), (0.001, 1 / 256), (0.999, 255 / 256)],
)
def test_a_share_is_dropped_and_the_rest_scaled_up(rate, share, dtype):
  x = jax.random.normal(jax.random.key(0), (500, 1000), dtype)
  dropout = layers.Dropout(rate, deterministic=False)
  y = dropout.apply({}, x, rngs={'dropout': jax.random.key(1, impl='rbg')})
  assert y.dtype == dtype
  x, y = np.float32(x), np.float32(y)
  assert abs((y == 0).mean() - share) < 0.002
  kept = y != 0
  np.testing.assert_allclose(y[kept], x[kept] / (1 - share), rtol=0.01)


def test_nothing_is_dropped_where_nothing_should_be():
  x = jax.random.normal(jax.random.key(0), (50,))
  for dropout in (layers.Dropout(0.5, True), layers.Dropout(0.0, False)):
    np.testing.assert_array_equal(dropout.apply({}, x), x)
