"""What was planted in embeddings comes back."""

import numpy as np
import pytest

from vit_jax.analysis import embeddings


def orthonormal(rows, columns, seed=0):
  """Returns orthogonal rows of length 1 that sum up to almost nothing."""
  noise = np.random.default_rng(seed).normal(size=(columns, rows))
  return np.linalg.qr(noise)[0].T


def planted(images, width, scales):
  """Returns vectors, their coordinates, and the directions of these."""
  directions = orthonormal(len(scales), width)
  coordinates = np.random.default_rng(1).normal(size=(images, len(scales)))
  coordinates = np.linalg.qr(coordinates - coordinates.mean(0))[0] * scales
  offset = np.random.default_rng(2).normal(size=width)
  return coordinates @ directions + offset, coordinates, directions


def test_planted_filters_come_back():
  scales = np.array([5.0, 3.0, 1.0])
  vectors, _, patterns = planted(40, 2 * 3 * 3, scales)
  kernel = vectors.T.reshape(2, 3, 3, 40)
  components, shares = embeddings.principal_filters(kernel, 2)
  assert components.shape == (2, 2, 3, 3)
  for component, pattern in zip(components.reshape(2, -1), patterns):
    sign = np.sign(component @ pattern)
    np.testing.assert_allclose(sign * component, pattern, atol=1e-6)
    assert component[np.abs(component).argmax()] > 0
  np.testing.assert_allclose(shares, [25 / 35, 9 / 35], atol=1e-6)
  assert len(embeddings.principal_filters(kernel, 99)[0]) == 18


def test_similarity_is_the_cosine():
  a, b = np.random.default_rng(0).normal(size=(2, 3, 4, 8))
  a[0, 0] = 0
  found = embeddings.cosine_similarity(a, b)
  for index in np.ndindex(3, 4, 4):
    x, y = a[index[0], index[1]], b[index[0], index[2]]
    lengths = np.sqrt(x @ x) * np.sqrt(y @ y)
    expected = x @ y / lengths if lengths else 0
    assert found[index] == pytest.approx(expected, abs=1e-12)


def test_nearest_are_others_by_angle():
  angles = np.array([0.0, 0.5, -0.1, 2.0, 0.3])
  lengths = np.array([1.0, 9.0, 2.0, 0.1, 5.0])[:, None]
  features = lengths * np.stack([np.cos(angles), np.sin(angles)], axis=1)
  order, similarity = embeddings.nearest(features, queries=2, number=3)
  np.testing.assert_array_equal(order, [[2, 4, 1], [4, 0, 2]])
  np.testing.assert_allclose(similarity[0], np.cos([0.1, 0.3, 0.5]), atol=1e-9)
  order, _ = embeddings.nearest(features, queries=9, number=9)
  assert order.shape == (5, 4)


def test_colours_are_the_first_three_components():
  vectors, coordinates, _ = planted(200, 10, np.array([9.0, 6.0, 4.0, 1.0]))
  found = embeddings.as_colours(vectors.reshape(2, 10, 10, 10))
  assert found.shape == (2, 10, 10, 3)
  assert found.min() == 0 and found.max() == 1
  for colour, expected in zip(found.reshape(-1, 3).T, coordinates.T):
    cut = (colour > 0) & (colour < 1)
    assert cut.sum() == 196  # A percent at either end is cut off.
    correlation = np.corrcoef(colour[cut], expected[cut])[0, 1]
    assert abs(correlation) == pytest.approx(1, abs=1e-9)
