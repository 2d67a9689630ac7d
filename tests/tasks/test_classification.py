"""Losses, mixup and metrics of classification: hand-computed values."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.tasks.classification import Classification, mixup

LOGITS = np.array([[2.0, 0.0, -1.0], [0.0, 3.0, 1.0]], np.float32)
LABELS = np.array([0, 2], np.int32)
KEY = jax.random.key(0)


class Given(nn.Module):
  """Gives its input back as logits."""

  @nn.compact
  def __call__(self, image, train=False):
    return image.reshape(image.shape[0], -1), {}


def task(**fields):
  return Classification(Given(), ('a', 'b', 'c'), (1, 1, 3), **fields)


def batch():
  return {'image': LOGITS[:, None, None], 'label': LABELS}


def log_softmax(x):
  return x - np.log(np.exp(x).sum(-1, keepdims=True))


def test_softmax_cross_entropy_and_accuracy():
  loss, metrics, _ = task().loss({}, batch(), KEY, 0)
  expected = -log_softmax(LOGITS)[[0, 1], LABELS]
  np.testing.assert_allclose(loss, expected.mean(), rtol=1e-6)
  assert metrics['accuracy'] == 0.5
  each = task().metrics({}, batch())
  np.testing.assert_allclose(each['loss'], expected, rtol=1e-6)
  np.testing.assert_array_equal(each['accuracy'], [1, 0])


def test_batch_norm_learns_in_training_alone():
  class Normed(nn.Module):
    """Gives its input back, normalised."""

    @nn.compact
    def __call__(self, image, train=False):
      x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(image)
      return x.reshape(x.shape[0], -1), {}

  made = Classification(Normed(), ('a', 'b', 'c'), (1, 1, 3))
  variables = made.init(KEY)
  _, _, changed = made.loss(variables, batch(), KEY, 0)
  (found,) = changed['batch_stats'].values()
  np.testing.assert_allclose(found['mean'], 0.1 * LOGITS.mean(0), atol=1e-6)
  before = 0.9 + 0.1 * LOGITS.var(0)
  np.testing.assert_allclose(found['var'], before, atol=1e-6)
  assert not made.loss(variables, batch(), KEY, 0, train=False)[2]


def test_sigmoid_cross_entropy_sums_over_classes():
  loss, *_ = task(loss_function='sigmoid').loss({}, batch(), KEY, 0)
  targets = np.eye(3)[LABELS]
  chance = 1 / (1 + np.exp(-LOGITS))
  each = targets * np.log(chance) + (1 - targets) * np.log(1 - chance)
  np.testing.assert_allclose(loss, -each.sum(-1).mean(), rtol=1e-6)


def test_label_smoothing_acts_in_training_only():
  smooth = task(label_smoothing=0.3)
  loss, *_ = smooth.loss({}, batch(), KEY, 0)
  targets = 0.7 * np.eye(3)[LABELS] + 0.1
  expected = -(targets * log_softmax(LOGITS)).sum(-1).mean()
  np.testing.assert_allclose(loss, expected, rtol=1e-6)
  plain, *_ = task().loss({}, batch(), KEY, 0)
  assert smooth.loss({}, batch(), KEY, 0, train=False)[0] == plain


def test_mixup_mixes_images_and_targets_alike():
  image = jnp.asarray([[0.0], [1.0], [2.0]])
  shares = []
  for seed in range(40):
    mixed, targets = mixup(image, jnp.eye(3), 0.5, jax.random.key(seed))
    share = float(targets[0, 0])
    np.testing.assert_allclose(targets[1], [1 - share, share, 0], atol=1e-6)
    np.testing.assert_allclose(mixed[1], share * 1 + (1 - share) * 0)
    np.testing.assert_allclose(mixed[0], (1 - share) * 2, atol=1e-6)
    shares.append(share)
  assert min(shares) >= 0.5
  assert np.std(shares) > 0.1


def test_impossible_fields_are_refused():
  with pytest.raises(ValueError, match='label_smoothing is 1.0'):
    task(label_smoothing=1.0)
  with pytest.raises(ValueError, match='mixup is -1'):
    task(mixup=-1.0)
