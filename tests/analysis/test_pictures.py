"""Models whose answers are known."""

import jax
import numpy as np
import pytest

from vit_jax.analysis import examples, pictures
from vit_jax.config import ConfigError


def read(model, number):
  return examples.read(model, None, number, print)


@pytest.mark.parametrize(
  'pooling,reader',
  [
    ('token', 'reaches the class token'),
    ('gap', 'there is no class token'),
    ('map', 'the attention of the head pools'),
  ],
)
def test_a_model_that_attends_to_all_alike(open_vit, pooling, reader):
  model = open_vit(pooling=pooling)
  for name in ('block_00', 'block_01'):
    attention = model.variables['params']['encoder'][name]['attention']
    attention['query'] = jax.tree.map(np.zeros_like, attention['query'])
  if pooling == 'map':
    attention = model.variables['params']['pooling']['attention']
    attention['query'] = jax.tree.map(np.zeros_like, attention['query'])
  given = read(model, 2)
  answer = pictures.attention_map(model, given)
  flat = np.ones((2, 2, 3))
  np.testing.assert_allclose(answer.numbers['maps'], flat, atol=1e-5)
  assert reader in answer.reading and len(answer.each) == 2
  maps = pictures.attention_heads(model, given).numbers['maps']
  # Images, layers (and the one that pools), heads, rows, columns.
  flat = np.ones((2, 2 + (pooling == 'map'), 2, 2, 3))
  np.testing.assert_allclose(maps, flat, atol=1e-5)
  # Of 36 pairs of 2 x 3 patches, 8 are next to each other in a row, ...
  apart = (8 * 4 + 4 * 8 + 6 * 4 + 8 * np.sqrt(32) + 4 * np.sqrt(80)) / 36
  numbers = pictures.attention_distance(model, given).numbers
  np.testing.assert_allclose(numbers['mean'], np.full((2, 2), apart), atol=1e-5)
  assert numbers['all_alike'] == pytest.approx(apart, abs=1e-5)


@pytest.mark.parametrize('name', ['vit', 'resnet'])
def test_features_are_those_of_the_last_layer_at_their_places(
  name, open_vit, resnet
):
  model = open_vit(pooling='token') if name == 'vit' else resnet
  given = read(model, 3)
  _, out = jax.jit(model.task.model.apply)(model.variables, given.inputs)
  if name == 'vit':
    expected = out['encoded'][:, 1:].reshape(3, 2, 3, -1)
  else:
    expected = out['features']
  answer = pictures.features(model, given)
  np.testing.assert_allclose(answer.numbers['features'], expected, atol=1e-4)
  assert answer.numbers['colours'].shape == (3, 2, 3, 3)


def test_what_cannot_be_answered(resnet):
  with pytest.raises(ConfigError, match='no attention to look at'):
    pictures.attention_map(resnet, read(resnet, 1))
  with pytest.raises(ConfigError, match=r'no embedding .* \(position: none\)'):
    pictures.positions(resnet)
  with pytest.raises(ConfigError, match='alone has no neighbours'):
    pictures.neighbours(resnet, read(resnet, 1))
