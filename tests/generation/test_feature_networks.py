"""Trained models, and Inception, as what looks at pictures."""

import dataclasses
import pathlib
import types

import numpy as np
import pytest

from vit_jax.config import ConfigError
from vit_jax.generation import feature_networks
from vit_jax.released import inception
from vit_jax.training import trained

CLASSIFIER = pathlib.Path(__file__).parents[1] / 'goldens' / 'vit_token.npz'


def test_models_look_at_pictures():
  model = trained.load(CLASSIFIER)
  rng = np.random.default_rng(0)
  # More than go through at a time, and of another size than the model's.
  images = list(rng.integers(0, 256, (70, 9, 9, 3), dtype=np.uint8))
  found = feature_networks.of_path(CLASSIFIER)
  assert found.name == 'vit_classification'
  features, rows = found.look(images)
  assert len(features) == 70 and np.std(features, 0).min() > 0
  np.testing.assert_allclose(rows.sum(1), 1, atol=1e-5)
  some, rows_of_some = found.look([images[3], images[69]])
  np.testing.assert_allclose(features[[3, 69]], some, atol=1e-5)
  np.testing.assert_allclose(rows[[3, 69]], rows_of_some, atol=1e-5)

  pairs = types.SimpleNamespace(
    image_shape=model.task.image_shape,
    encode_image=lambda unused_variables, image: (image.mean((1, 2)), {}),
  )
  found = feature_networks.of_trained(dataclasses.replace(model, task=pairs))
  features, rows = found.look(images)
  assert rows is None
  expected = np.stack([x.mean((0, 1)) for x in images]) / 127.5 - 1
  np.testing.assert_allclose(features, expected, atol=0.02)


def test_inception_looks_at_pictures(tmp_path):
  rng = np.random.default_rng(0)
  tensors = {
    slot.name: rng.normal(0, 0.05, slot.shape).astype(np.float32)
    for slot in inception.slots().values()
  }
  for name in tensors:
    if name.endswith(('bn.weight', 'running_var')):
      tensors[name] += 1
  tensors['fc.bias'] += 9 * rng.normal(size=1008)
  np.savez(tmp_path / 'x.npz', **tensors)
  found = feature_networks.of_path(tmp_path / 'x.npz')
  assert found.name == 'inception_v3'
  images = list(rng.integers(0, 256, (2, 40, 30, 3), dtype=np.uint8))
  images += [images[1][..., :1], np.repeat(images[1][..., :1], 3, -1)]
  features, rows = found.look(images)
  assert features.shape == (4, 2048) and rows.shape == (4, 1008)
  assert np.abs(features[0] - features[1]).max() > 1e-3
  np.testing.assert_array_equal(features[2], features[3])
  # Without the bias.
  odds = np.exp(features.astype(float) @ tensors['fc.weight'].T)
  odds /= odds.sum(1, keepdims=True)
  np.testing.assert_allclose(rows, odds, rtol=1e-3)


def test_what_cannot_look_is_said(tmp_path):
  with pytest.raises(ConfigError, match='--network=.*There is no run'):
    feature_networks.of_path(tmp_path)
  path = tmp_path / 'x.npz'
  np.savez(path, **{'Conv2d_1a_3x3.conv.weight': np.zeros((32, 3, 3, 3))})
  with pytest.raises(ConfigError, match='do not fit the Inception-v3 of FID'):
    feature_networks.of_path(path)
