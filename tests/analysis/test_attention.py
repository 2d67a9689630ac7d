"""Cases of attention whose distance and rollout are known."""

import numpy as np
import pytest

from vit_jax.analysis import attention

GRID, SPACING = (3, 5), (4.0, 2.0)
PATCHES = GRID[0] * GRID[1]


def random_weights(*shape):
  """Returns attention weights with noise in all of them."""
  weights = np.random.default_rng(0).uniform(0.1, 1, shape)
  return weights / weights.sum(-1, keepdims=True)


def test_distance_of_uniform_attention_has_a_closed_form():
  # As many pairs of patches are (i, j) apart as the grid has room for.
  expected = sum(
    (2 - (i == 0)) * (2 - (j == 0))
    * (GRID[0] - i) * (GRID[1] - j)
    * np.hypot(i * SPACING[0], j * SPACING[1])
    for i in range(GRID[0])
    for j in range(GRID[1])
  ) / PATCHES**2  # fmt: skip
  apart = attention.grid_distances(GRID, SPACING)
  uniform = np.full((2, 3, PATCHES, PATCHES), 1 / PATCHES)
  found = attention.mean_distance(uniform, apart)
  np.testing.assert_allclose(found, np.full((2, 3), expected), atol=1e-5)


def test_distance_of_attention_to_itself_and_to_one_side():
  apart = attention.grid_distances(GRID, SPACING)
  assert attention.mean_distance(np.eye(PATCHES), apart) == 0
  # Each patch looks at the one on its right, the last of a row at the first.
  right = np.roll(np.eye(GRID[1]), 1, axis=1)
  weights = np.kron(np.eye(GRID[0]), right)
  found = attention.mean_distance(weights, apart)
  assert found == pytest.approx((4 * 2.0 + 8.0) / 5, abs=1e-6)


def test_distance_leaves_the_class_token_out():
  apart = attention.grid_distances(GRID, SPACING)
  weights = random_weights(2, PATCHES, PATCHES)
  expected = attention.mean_distance(weights, apart)
  whole = random_weights(2, PATCHES + 1, PATCHES + 1)
  # Whatever the class token takes of a patch, the rest is shared as before.
  share = 1 - whole[:, 1:, :1]
  whole[:, 1:, 1:] = share * weights
  found = attention.mean_distance(whole, apart)
  np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize('causal', [False, True])
def test_distance_in_texts_leaves_out_what_does_not_count(causal):
  places = np.arange(7)
  apart = np.abs(places[:, None] - places)
  ends = np.array([3, 6])
  counted = (places > 0) & (places <= ends[:, None])
  # Alike to all, but much to the start and to padding, which do not count.
  weights = np.full((2, 4, 7, 7), 0.1)
  weights[..., 0] = 9
  weights[0, ..., 4:] = 5
  if causal:
    weights = np.tril(weights)
    expected = (ends - 1) / 4
  else:
    expected = (ends**2 - 1) / (3 * ends)
  found = attention.mean_distance(weights, apart, counted)
  expected = np.repeat(expected[:, None], 4, axis=1)
  np.testing.assert_allclose(found, expected, atol=1e-6)


def test_rollout_mixes_layers_as_the_residual_stream_does():
  layers = random_weights(3, 2, 4, 6, 6)  # Layers, batch, heads.
  readers = random_weights(2, 6)
  found = attention.rollout(list(layers), readers)
  expected = np.eye(6)
  for layer in layers:
    expected = (0.5 * layer.mean(1) + 0.5 * np.eye(6)) @ expected
  expected = np.einsum('bo,boi->bi', readers, expected)
  np.testing.assert_allclose(found, expected, atol=1e-6)
  np.testing.assert_allclose(found.sum(-1), 1, atol=1e-6)
  np.testing.assert_array_equal(attention.rollout([], readers), readers)
  # Several readers at once.
  others = random_weights(2, 3, 6)
  found = attention.rollout(list(layers), others)
  for number in range(3):
    one = attention.rollout(list(layers), others[:, number])
    np.testing.assert_allclose(found[:, number], one, atol=1e-6)


@pytest.mark.parametrize('before', [0, 1])
def test_rollout_of_uniform_attention_is_flat(before):
  tokens = PATCHES + before
  uniform = np.full((2, 3, tokens, tokens), 1 / tokens)
  reader = np.eye(tokens)[:1] if before else np.full((1, tokens), 1 / tokens)
  found = attention.rollout([uniform] * 4, reader)
  found = attention.evened(found, PATCHES)
  np.testing.assert_allclose(found, np.ones((2, PATCHES)), atol=1e-5)


def test_what_is_seen_is_seen_by_the_class_token_or_else_by_all():
  weights = random_weights(2, 7, 7)
  for patches, expected in ((6, weights[:, 0, 1:]), (7, weights.mean(1))):
    expected = expected / expected.mean(-1, keepdims=True)
    found = attention.seen(weights, patches)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_word_that_is_heard_in_one_place_lights_up_there():
  shares = random_weights(4, 2, 3)
  # However much of a place is text, and a word weighs everywhere.
  of_places, of_words = random_weights(1, 2, 3), random_weights(4, 1, 1)
  flat = attention.more_than_others(of_places * of_words)
  np.testing.assert_allclose(flat, np.ones((4, 2, 3)), atol=1e-6)
  found = attention.more_than_others(shares)
  np.testing.assert_allclose(found.mean((1, 2)), np.ones(4), atol=1e-6)
  shares[2, 1, 0] *= 50
  found = attention.more_than_others(shares)
  assert found[2].argmax() == 3 and found[2, 1, 0] > 2
  assert (found[[0, 1, 3], 1, 0] < 1).all()
