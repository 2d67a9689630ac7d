"""Distances and scores whose value is known."""

import numpy as np
import pytest
import scipy.linalg

from vit_jax.evaluation import (
  clip_score,
  frechet,
  inception_score,
  picture_quality,
)


def moments(mean, covariance):
  return frechet.Moments(np.asarray(mean), np.asarray(covariance), 100)


def random_covariance(rng, width, rank):
  factor = rng.normal(size=(width, rank))
  return factor @ factor.T


def test_normal_distributions_along_axes():
  one = moments([1.0, 2.0, 3.0], np.diag([4.0, 9.0, 0.25]))
  other = moments([0.0, 2.0, 5.0], np.diag([1.0, 16.0, 0.25]))
  # (1, 0, 2) apart, standard deviations 2 and 1, 3 and 4, and the same.
  assert frechet.distance(one, other) == pytest.approx(5 + 1 + 1, abs=1e-12)
  rotation = scipy.linalg.expm(np.array([[0, 1, 2], [-1, 0, 3], [-2, -3, 0]]))
  turned = [
    moments(rotation @ x.mean, rotation @ x.covariance @ rotation.T)
    for x in (one, other)
  ]
  assert frechet.distance(*turned) == pytest.approx(7, abs=1e-9)


@pytest.mark.parametrize('rank', [9, 3])
def test_any_covariances(rank):
  rng = np.random.default_rng(rank)
  one, other = (
    moments(rng.normal(size=6), random_covariance(rng, 6, rank))
    for _ in range(2)
  )
  # The product is not symmetric, but its eigenvalues are real.
  values = np.linalg.eigvals(one.covariance @ other.covariance).real
  expected = (
    np.square(one.mean - other.mean).sum()
    + np.trace(one.covariance + other.covariance)
    - 2 * np.sqrt(values.clip(0)).sum()
  )
  assert frechet.distance(one, other) == pytest.approx(expected, abs=1e-5)
  assert frechet.distance(one, one) == pytest.approx(0, abs=1e-5)


def test_a_larger_sample_is_foretold():
  rng = np.random.default_rng(0)
  real, generated = rng.normal(size=(2, 400, 32))
  generated = generated + 0.1  # The distance is 32 x 0.01.
  measured = frechet.distance(*map(frechet.moments, (real, generated)))
  found = frechet.extrapolated(real, generated)
  assert measured > 1.5
  assert found.distance == pytest.approx(0.32, abs=0.25)
  assert 0 < found.error < 0.25
  with pytest.raises(ValueError, match='too few'):
    frechet.extrapolated(real[:19], generated)


@pytest.mark.parametrize(
  'rows, message',
  [([[0.5, 0.6]] * 10, 'no probabilities'), ([[0.5, 0.5]] * 9, '10 or more')],
)
def test_inception_score_refuses(rows, message):
  with pytest.raises(ValueError, match=message):
    inception_score.score(np.array(rows))


def test_inception_score():
  sure = np.eye(5)[np.arange(100) % 5]
  assert inception_score.score(sure).mean == pytest.approx(5, abs=1e-9)
  unsure = np.full((100, 5), 0.2)
  assert inception_score.score(unsure).mean == pytest.approx(1, abs=1e-9)
  # Two classes, each certain with q, give 2 q^q (1 - q)^(1 - q).
  q = 0.9
  both = np.array([[q, 1 - q], [1 - q, q]] * 20)
  expected = 2 * q**q * (1 - q) ** (1 - q)
  found = inception_score.score(both)
  assert found.mean == pytest.approx(expected, abs=1e-9)
  assert found.spread == pytest.approx(0, abs=1e-9) and found.count == 40
  halves = inception_score.score(np.concatenate([sure, unsure]), 2)
  assert (halves.mean, halves.spread) == pytest.approx((3, 2), abs=1e-9)
  # A part of one class each has a score of 1.
  assert inception_score.score(
    np.eye(5)[np.repeat(range(5), 20)], 5
  ).mean == pytest.approx(1, abs=1e-9)


def test_clip_score():
  found = clip_score.score([1, 0.8, -1])
  assert found.cosine == pytest.approx(0.8 / 3, abs=1e-12)
  assert found.clip_score == pytest.approx(2.5 * 1.8 / 3, abs=1e-12)
  spread = np.std([1, 0.8, -1], ddof=1)
  assert found.error == pytest.approx(spread / 3**0.5, abs=1e-12)


def test_pictures_are_compared_blurred_and_not():
  rng = np.random.default_rng(0)
  real, other = rng.integers(0, 256, (2, 60, 12, 12, 3), dtype=np.uint8)
  stripes = other.copy()
  stripes[:, ::2] //= 2  # What blurring takes away, but for the mean.
  stripes[:, 1::2] = 255 - (255 - stripes[:, 1::2].astype(int)) // 2

  def look(images):
    means = np.stack([x.mean((0, 1)) for x in images])
    features = np.stack([x[2:6, 2, :2].ravel() for x in images]) / 255.0
    return features, means / means.sum(1, keepdims=True)

  network = picture_quality.Network('pixels', look)
  sharp, soft = picture_quality.compare(real, stripes, network, (0, 2))
  assert soft.radius == 2 and soft.distance < sharp.distance / 5
  assert sharp.distance > 0.2 and sharp.score.count == 60
  assert '60 generated against 60 real' in sharp.note and 'few' not in (
    sharp.note
  )
  few, *_ = picture_quality.compare(real[:15], other[:12], network)
  assert few.extrapolated is None and 'few' in few.note
  # A part of one picture alone has a score of 1.
  assert few.score.mean > 1 and 'Fewer than 10' not in few.note
  fewer, *_ = picture_quality.compare(real[:15], other[:9], network)
  assert fewer.score is None and 'Fewer than 10' in fewer.note
  values = picture_quality.figures([fewer])
  assert not any('inception_score' in name for name in values)
  values = picture_quality.figures([sharp, soft])
  assert values['generation/pixels_frechet_blur_2'] == soft.distance
  assert 'generation/pixels_inception_score_real' in values
  spread = sharp.score.spread
  assert values['generation/pixels_inception_score_spread'] == spread
  error = soft.extrapolated.error
  name = 'generation/pixels_frechet_extrapolated_error_blur_2'
  assert values[name] == error
  with pytest.raises(ValueError, match='several shapes'):
    picture_quality.compare(real, other[:, :8], network)
