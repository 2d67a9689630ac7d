"""A run that is as small as a run can be."""

import pytest

from vit_jax import config as config_lib
from vit_jax.training import schema

TINY = dict(
  task=dict(name='classification'),
  model=dict(
    name='vit',
    patch_size=4,
    width=32,
    depth=2,
    mlp_dim=32,
    num_heads=4,
    pooling='gap',
    dropout=0.1,
  ),
  data=dict(
    train=dict(
      source='digits',
      split='train',
      preprocess='random_crop(8, padding=1)|value_range(-1, 1)',
    ),
    test=dict(source='digits', split='test', preprocess='value_range(-1, 1)'),
  ),
  batch_size=32,
  total='12steps',
  optimizer=dict(name='adamw', learning_rate=1e-3, weight_decay=0.1),
  schedule=dict(name='cosine', warmup='3steps'),
  eval=dict(every='6steps'),
  checkpoint=dict(every='4steps', keep=3),
  log_every='1steps',
)


@pytest.fixture(scope='session')
def tiny():
  """Returns a function from overrides ('a.b=value') to a configuration."""

  def make(*overrides):
    arguments = [f'--config.{override}' for override in overrides]
    return config_lib.resolve(TINY, arguments, schema.SCHEMA)

  return make
