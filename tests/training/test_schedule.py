"""Schedules: hand-computed values."""

import numpy as np
import pytest

from vit_jax.training.schedule import SCHEDULES

STEPS = {
  '10steps': 10, '20steps': 20, '0steps': 0, '5steps': 5, '100%': 100
}  # fmt: skip

# At steps 0, 5, 10 (end of warm-up), 55 (half way), 100 (the end).
EXPECTED = {
  'constant': ({}, [0, 0.5, 1, 1, 1]),
  'cosine': ({'final': 0.2}, [0, 0.5, 1, 0.6, 0.2]),
  'linear': ({'final': 0.2}, [0, 0.5, 1, 0.6, 0.2]),
  'rsqrt': (
    {'timescale': '5steps', 'cooldown': '20steps'},
    [0, 0.5, 1, 10**-0.5, 0],
  ),
}


@pytest.mark.parametrize('name', SCHEDULES)
def test_values(name):
  fields, expected = EXPECTED[name]
  schedule = SCHEDULES[name](100, STEPS.__getitem__, warmup='10steps', **fields)
  values = [float(schedule(step)) for step in (0, 5, 10, 55, 100)]
  np.testing.assert_allclose(values, expected, atol=1e-6)


def test_rsqrt_cools_down_to_zero_over_the_last_steps():
  fields = dict(timescale='5steps', warmup='10steps')
  hot = SCHEDULES['rsqrt'](100, STEPS.__getitem__, **fields)
  cold = SCHEDULES['rsqrt'](
    100, STEPS.__getitem__, cooldown='20steps', **fields
  )
  np.testing.assert_allclose(cold(80), hot(80))
  np.testing.assert_allclose(cold(95), hot(95) / 4, rtol=1e-6)


def test_cosine_can_end_before_the_run():
  schedule = SCHEDULES['cosine'](
    100, STEPS.__getitem__, warmup='10steps', final=0.2, over='20steps'
  )
  found = [float(schedule(step)) for step in (10, 15, 20, 60, 100)]
  np.testing.assert_allclose(found, [1, 0.6, 0.2, 0.2, 0.2], atol=1e-6)
