"""Colours as classes against hand-computed values; patches and back."""

import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.tasks import patch_colors


@pytest.mark.parametrize(
  'color, bits, expected',
  [
    # Digits of base 8, red first: the upper 3 bits of each byte.
    ([0, 0, 0], 3, 0),
    ([255, 255, 255], 3, 511),
    ([255, 0, 0], 3, 7 * 64),
    ([0, 255, 0], 3, 7 * 8),
    ([0, 0, 255], 3, 7),
    ([31, 32, 127], 3, 0 * 64 + 1 * 8 + 3),
    ([128, 223, 224], 3, 4 * 64 + 6 * 8 + 7),
    # Grey has as many classes as levels.
    ([0], 3, 0),
    ([159], 3, 4),
    ([160], 3, 5),
    ([255], 3, 7),
    ([100, 200, 50], 1, 0b010),
    ([17], 8, 17),
  ],
)
def test_class_of_a_color_by_hand(color, bits, expected):
  color = jnp.asarray(color, jnp.float32) / 255
  assert patch_colors.color_classes(color, bits) == expected


def test_every_byte_has_the_class_of_its_upper_bits():
  values = np.arange(256)
  classes = patch_colors.color_classes(
    jnp.asarray(values / 255, jnp.float32)[:, None], 3
  )
  np.testing.assert_array_equal(classes, values >> 5)


@pytest.mark.parametrize('channels', [1, 3])
def test_the_middle_of_a_class_is_in_the_class(channels):
  classes = jnp.arange(8**channels)
  colors = patch_colors.class_colors(classes, 3, channels)
  assert colors.shape == (8**channels, channels)
  np.testing.assert_array_equal(patch_colors.color_classes(colors, 3), classes)
  np.testing.assert_allclose(colors[-1], 7.5 / 8)
  np.testing.assert_allclose(colors[1, -1], 1.5 / 8)


def test_patches_are_cut_row_by_row_and_joined_again():
  image = np.random.default_rng(0).normal(size=(2, 6, 12, 3))
  patches = patch_colors.cut(image, (2, 3))
  assert patches.shape == (2, 6, 3, 4, 3)
  np.testing.assert_array_equal(patches[1, 4], image[1, 3:6, 4:8])
  np.testing.assert_array_equal(patch_colors.join(patches, (2, 3)), image)


def test_downsizing_averages():
  patch = np.random.default_rng(0).normal(size=(5, 8, 4, 3))
  small = patch_colors.downsize(patch)
  expected = (patch[:, ::2] + patch[:, 1::2]) / 2
  np.testing.assert_allclose(small, expected, atol=1e-12)
  with pytest.raises(ValueError, match='multiples of 4 pixels, these are 8x6'):
    patch_colors.downsize(np.zeros((8, 6, 1)))
