"""Least squares as in the books, on examples that only a seed decides."""

import jax
import numpy as np
import pytest

from vit_jax.config import ConfigError
from vit_jax.data import array_sources, pipeline, preprocess
from vit_jax.evaluation import few_shot
from vit_jax.training import mesh as mesh_lib

CLASSES = ('ant', 'bee', 'cat')


def noise(*shape, seed=0):
  return np.random.default_rng(seed).normal(2, 3, shape)


def solved(features, labels, l2, classes):
  """Returns a classifier by the normal equations as they are written."""
  mean, std = features.mean(0), features.std(0) + 1e-5

  def standardised(x):
    x = (np.asarray(x, np.float64) - mean) / std
    return np.concatenate([x, np.full((len(x), 1), 100.0)], axis=1)

  x = standardised(features)
  targets = np.where(labels[:, None] == np.arange(classes), 1.0, -1.0)
  gram = x.T @ x + l2 * np.eye(x.shape[1])
  weights = np.linalg.solve(gram, x.T @ targets)
  return lambda new: standardised(new) @ weights


@pytest.mark.parametrize('examples,width', [(40, 7), (7, 40)])
@pytest.mark.parametrize('l2', [0.1, 1024.0])
def test_fits_the_normal_equations(examples, width, l2):
  features = noise(examples, width)
  features[:, 3] = 5  # Never changes.
  labels = np.arange(examples) % 4
  kernel, bias = few_shot.fit(features, labels, 4)(l2)
  new = noise(10, width, seed=1)
  new[:, 3] = 5
  expected = solved(features, labels, l2, 4)(new)
  np.testing.assert_allclose(new @ kernel + bias, expected, rtol=0, atol=1e-8)


def test_a_seed_chooses_examples_of_each_class():
  labels = np.random.default_rng(0).permutation(np.arange(90) % 3)
  chosen = few_shot.choose(labels, CLASSES, 10, seed=0)
  assert (labels[chosen] == [[0], [1], [2]]).all()
  assert len(np.unique(chosen)) == 30
  fewer = few_shot.choose(labels, CLASSES, 4, seed=0)
  np.testing.assert_array_equal(fewer, chosen[:, :4])
  other = few_shot.choose(labels, CLASSES, 10, seed=1)
  assert len(np.intersect1d(chosen, other)) < 25
  with pytest.raises(ConfigError, match="31 .* but of 'ant' there are 30"):
    few_shot.choose(labels, CLASSES, 31, seed=0)


def test_features_by_name_are_means_over_tokens():
  tokens = noise(2, 6, 3).astype(np.float32)
  block = {'output': tokens}
  intermediates = {
    'patches': tokens.reshape(2, 2, 3, 3),
    'blocks': {'block_00': block},
    'pooled': tokens[:, 0],
  }
  for name in ('patches', 'blocks/block_00/output'):
    found = few_shot.feature_of(intermediates, name)
    np.testing.assert_allclose(found, tokens.mean(1), rtol=0, atol=1e-6)
  found = few_shot.feature_of(intermediates, 'pooled')
  np.testing.assert_array_equal(found, tokens[:, 0])
  with pytest.raises(ConfigError, match="Did you mean 'pooled'"):
    few_shot.feature_of(intermediates, 'poold')
  stacked = {'blocks': {'blocks': block}}
  with pytest.raises(ConfigError, match='all layers in one array'):
    few_shot.feature_of(stacked, 'blocks/blocks/output')


class Flat:
  """A task whose features are the pixels."""

  def intermediates(self, variables, image):
    return {'pixels': image.reshape(image.shape[0], -1)}


def test_every_device_has_all_features():
  mesh = mesh_lib.make(mesh_lib.Settings(), jax.devices())
  batch = {'image': noise(16, 3), 'label': np.arange(16)}
  features = few_shot.make_features(Flat(), 'pixels')
  with jax.set_mesh(mesh):
    found = features({}, mesh_lib.to_mesh(batch, mesh))
  assert found['features'].shape == (16, 3)
  assert all(value.is_fully_replicated for value in found.values())


class Torn(array_sources.ArraySource):
  """Images of noise around one mean a class; some cannot be read."""

  def __init__(self, examples, seed, torn=()):
    labels = np.arange(examples) % len(CLASSES)
    images = noise(examples, 3, 3, 1, seed=seed) + labels[:, None, None, None]
    images = np.clip(images * 20 + 100, 0, 255).astype(np.uint8)
    super().__init__(images, labels, CLASSES, f'{seed}')
    self.torn = torn

  def __getitem__(self, index):
    if index in self.torn:
      raise OSError('torn')
    return super().__getitem__(index)


def evaluated(settings, train, test, devices):
  mesh = mesh_lib.make(mesh_lib.Settings(), jax.devices()[:devices])

  def batches(source):
    for batch in pipeline.eval_batches(
      source,
      preprocess.parse('value_range(-1, 1)'),
      batch_size=16,
      max_broken=0.5,
    ):
      yield mesh_lib.to_mesh(batch, mesh)

  evaluate = few_shot.make_evaluator(Flat(), settings, train, test)
  with jax.set_mesh(mesh):
    return evaluate({}, batches)


def pixels(source, indices):
  images = source.images[indices].reshape(len(indices), -1)
  return images / 127.5 - 1, np.asarray(source.labels)[indices]


@pytest.mark.parametrize('devices', [1, 8])
def test_evaluates_what_can_be_read_on_any_devices(devices):
  test = Torn(100, seed=2, torn=(0, 99))
  train = Torn(300, seed=1)
  train.torn = few_shot.choose(train.labels, CLASSES, 5, seed=1)[2, :2]
  settings = few_shot.Settings(
    shots=(1, 5), seeds=2, feature='pixels', l2=(10.0,)
  )
  results = evaluated(settings, train, test, devices)
  new, truth = pixels(test, np.arange(1, 99))
  for result in results:
    for seed, accuracy in enumerate(result.accuracies):
      chosen = few_shot.choose(train.labels, CLASSES, result.shots, seed)
      chosen = np.setdiff1d(chosen, train.torn)
      scores = solved(*pixels(train, chosen), 10.0, 3)(new)
      np.testing.assert_allclose(
        accuracy, (scores.argmax(1) == truth).mean(), atol=1e-12
      )
  assert [result.shots for result in results] == [1, 5]
  figures = few_shot.figures(results, with_l2=False)
  assert figures['few_shot/5_shot'] == np.mean(results[1].accuracies)
  assert figures['few_shot/1_shot_std'] == np.std(results[0].accuracies, ddof=1)


def test_l2_is_chosen_by_training_examples_alone():
  train, test = Torn(300, seed=1), Torn(100, seed=2)
  l2 = (1e-3, 30.0, 1e9)
  settings = few_shot.Settings(shots=(8,), feature='pixels', l2=l2)
  (chosen,) = evaluated(settings, train, test, 1)
  held_out = []
  for strength in l2:
    right = []
    for seed in range(3):
      some = few_shot.choose(train.labels, CLASSES, 16, seed)
      fitted = solved(*pixels(train, some[:, :8].ravel()), strength, 3)
      images, labels = pixels(train, some[:, 8:].ravel())
      right.append((fitted(images).argmax(1) == labels).mean())
    held_out.append(np.mean(right))
  assert len(set(held_out)) == 3
  assert chosen.l2 == l2[np.argmax(held_out)]
  # Whatever the test says.
  test.labels = [(label + 1) % 3 for label in test.labels]
  (again,) = evaluated(settings, train, test, 1)
  assert again.l2 == chosen.l2 and again.mean < chosen.mean


@pytest.mark.parametrize(
  'given,message',
  [
    (dict(shots=(1, 0)), r'shots .* are \(1, 0\)'),
    (dict(shots=('5',)), 'numbers of examples'),
    (dict(seeds=0), 'seeds .* are 0'),
    (dict(l2=()), 'strengths'),
    (dict(l2=(1.0, 0.0)), 'more than 0'),
    (dict(l2=(1.0, float('nan'))), 'more than 0'),
  ],
)
def test_settings_that_cannot_work(given, message):
  with pytest.raises(ConfigError, match=message):
    few_shot.check(few_shot.Settings(**given))


def test_features_come_in_the_order_of_the_records():
  # As where the devices of two hosts take turns.
  batches = [
    {'index': np.array([0, 2, 1, 3]), 'features': np.array([0, 2, 1, 3])},
    {'index': np.array([4, 6, 5, 7]), 'features': np.array([4, 6, 5, 7])},
  ]
  found = few_shot.collect(lambda variables, batch: batch, None, batches)
  assert found.keys() == {'features'}
  assert found['features'].tolist() == list(range(8))
