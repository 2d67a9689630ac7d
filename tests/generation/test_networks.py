"""Trained models as networks of features."""

import dataclasses
import pathlib
import types

import numpy as np

from vit_jax.generation import networks
from vit_jax.training import trained

CLASSIFIER = pathlib.Path(__file__).parents[1] / 'goldens' / 'vit_token.npz'


def test_models_look_at_pictures():
  model = trained.load(CLASSIFIER)
  rng = np.random.default_rng(0)
  # More than go through at a time, and of another size than the model's.
  images = list(rng.integers(0, 256, (70, 9, 9, 3), dtype=np.uint8))
  found = networks.of_trained(model)
  assert found.name == 'vit_classification'
  features = found.features(images)
  assert len(features) == 70 and np.std(features, 0).min() > 0
  np.testing.assert_allclose(
    features[[3, 69]], found.features([images[3], images[69]]), atol=1e-5
  )
  rows = found.probabilities(images[:3])
  np.testing.assert_allclose(rows.sum(1), 1, atol=1e-5)

  pairs = types.SimpleNamespace(
    image_shape=model.task.image_shape,
    encode_image=lambda unused_variables, image: (image.mean((1, 2)), {}),
  )
  found = networks.of_trained(dataclasses.replace(model, task=pairs))
  assert found.probabilities is None
  expected = np.stack([x.mean((0, 1)) for x in images]) / 127.5 - 1
  np.testing.assert_allclose(found.features(images), expected, atol=0.02)
