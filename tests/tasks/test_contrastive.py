"""What a contrastive task tells of a batch, by directions in a plane."""

import types

import jax
import numpy as np
import pytest

from vit_jax.tasks.contrastive import Contrastive

# Of images and texts, in degrees. The first and the third pair have the same
# caption.
IMAGES = [0, 90, 180, 270]
TEXTS = [10, 100, 345, 230]
IDENTITY = np.array([7, 8, 7, 9])
BATCH = {
  'identity': IDENTITY,
  'truncated': np.array([True, False, False, False]),
}
PARAMS = {'logit_scale': np.float32(np.log(5)), 'logit_bias': np.float32(-2)}


def cosine(degrees):
  return np.cos(np.deg2rad(degrees))


def directions(degrees):
  angle = np.deg2rad(degrees)
  return np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)


FEATURES = directions(IMAGES), directions(TEXTS)


def task(features=None, **fields):
  """Returns a task whose model gives these features, whatever it sees."""
  sigmoid = fields.get('loss_function') == 'sigmoid'
  model = types.SimpleNamespace(
    initial_bias=-2.0 if sigmoid else None,
    apply=lambda variables, image, text: (features, {}),
  )
  return Contrastive(model, (8, 8, 3), None, **fields)


def by_hand(duplicates):
  """Returns the mean cross-entropy of choosing the text, and the image."""
  logits = 5 * cosine(np.subtract.outer(IMAGES, TEXTS))
  targets = np.eye(4)
  if duplicates == 'positive':
    targets[0] = targets[2] = [0.5, 0, 0.5, 0]
  losses = [
    -(targets * np.log(chance)).sum() / 4
    for chance in (
      np.exp(logits) / np.exp(logits).sum(1, keepdims=True),
      np.exp(logits) / np.exp(logits).sum(0, keepdims=True),
    )
  ]
  return np.mean(losses)


@pytest.mark.parametrize('duplicates', ['positive', 'negative'])
def test_what_training_tells_by_hand(duplicates):
  made = task(duplicates=duplicates)
  loss, found = made.loss_of_features(PARAMS, FEATURES, BATCH)
  np.testing.assert_allclose(loss, by_hand(duplicates), rtol=1e-5)
  of_others = [
    cosine(image - text)
    for i, image in enumerate(IMAGES)
    for j, text in enumerate(TEXTS)
    if IDENTITY[i] != IDENTITY[j]
  ]
  assert len(of_others) == 10
  expected = {
    # The third image is nearest to the fourth text. The third text is nearest
    # to the first image, which has the same caption.
    'image_to_text': 0.75,
    'text_to_image': 1.0,
    'positive': cosine([10, 10, 165, 40]).mean(),
    'negative': np.mean(of_others),
    'duplicates': 0.25,
    'truncated': 0.25,
    'scale': 5.0,
  }
  found = {name: float(value) for name, value in found.items()}
  assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize('kind', ['softmax', 'sigmoid'])
@pytest.mark.parametrize('duplicates', ['positive', 'negative'])
def test_a_ring_loses_as_much_and_tells_less(kind, duplicates):
  fields = dict(loss_function=kind, duplicates=duplicates)
  (whole, told), (ring, less) = (
    jax.jit(task(ring=ring, **fields).loss_of_features)(PARAMS, FEATURES, BATCH)
    for ring in (False, True)
  )
  np.testing.assert_allclose(ring, whole, rtol=1e-5)
  assert 'image_to_text' in told
  bias = {'bias'} if kind == 'sigmoid' else set()
  assert set(less) == {'scale', 'truncated'} | bias
  if bias:
    assert less['bias'] == told['bias'] == -2


def test_padding_is_nobodys_best_match():
  # Beside the first text, and beside the second image.
  padded = directions([*IMAGES, 11, 0]), directions([*TEXTS, 0, 89])
  text = np.ones((6, 3), np.int32)
  text[4:] = 0
  found = task(padded).metrics(
    {},
    {
      'image': None,
      'text': text,
      # As that of no caption.
      'identity': np.array([*IDENTITY, 0, 0]),
    },
  )
  assert found['image_to_text'][:4].tolist() == [1, 1, 0, 1]
  assert found['text_to_image'][:4].tolist() == [1, 1, 1, 1]
  np.testing.assert_allclose(
    found['similarity'][:4], cosine([10, 10, 165, 40]), atol=1e-6
  )


def test_a_loss_and_its_bias_belong_together():
  model = types.SimpleNamespace(initial_bias=None)
  with pytest.raises(ValueError, match='set model.initial_bias'):
    Contrastive(model, (8, 8, 3), None, loss_function='sigmoid')
  model.initial_bias = -10.0
  with pytest.raises(ValueError, match='no use for a bias'):
    Contrastive(model, (8, 8, 3), None)
