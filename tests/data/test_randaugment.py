"""RandAugment: each operation against values by hand or against Pillow."""

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from vit_jax.data import randaugment


class FixedRandom:
  """Gives the numbers it was made with."""

  def __init__(self, *numbers):
    self.numbers = list(numbers)

  def random(self):
    return self.numbers.pop(0)


def photo():
  noise = np.random.default_rng(0).integers(40, 200, (40, 60, 3))
  return noise.astype(np.uint8)


def apply(name, image, magnitude, *numbers):
  operation = getattr(randaugment, name)
  return operation(image, magnitude / 10, FixedRandom(*numbers))


def test_there_are_16_operations_and_each_is_reached():
  assert len(randaugment.OPERATIONS) == 16
  augment = randaugment.randaugment(1, 10)
  for number, operation in enumerate(randaugment.OPERATIONS):
    out = augment(photo(), FixedRandom((number + 0.5) / 16, 0.2, 0.2))
    expected = operation(photo(), 1.0, FixedRandom(0.2, 0.2))
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('magnitude', [0, 10, 15, 30])
def test_shape_and_type_stay_and_the_generator_decides(channels, magnitude):
  image = photo()[:, :, :channels]
  before = image.copy()
  augment = randaugment.randaugment(2, magnitude)
  outs = []
  for seed in range(60):
    out = augment(image, np.random.default_rng(seed))
    assert out.shape == image.shape and out.dtype == np.uint8
    np.testing.assert_array_equal(
      out, augment(image, np.random.default_rng(seed))
    )
    outs.append(out.tobytes())
  np.testing.assert_array_equal(image, before)
  assert len(set(outs)) > 10


@pytest.mark.parametrize(
  'name, magnitude, expected',
  [
    ('invert', 10, [255, 155, 127, 0]),
    # 4, 6 and 8 upper bits: magnitudes beyond 10 change less.
    ('posterize', 10, [0, 96, 128, 240]),
    ('posterize', 15, [0, 100, 128, 252]),
    ('posterize', 20, [0, 100, 128, 255]),
    ('posterize', 5, [0, 64, 128, 192]),
    # From 128 on, then from 256 on: never.
    ('solarize', 5, [0, 100, 127, 0]),
    ('solarize', 10, [0, 100, 128, 255]),
    ('solarize_add', 10, [110, 210, 128, 255]),
    ('solarize_add', 20, [220, 255, 128, 255]),
    # Factors 1.9 and 0.1.
    ('brightness', 10, [0, 190, 243, 255]),
    ('brightness', 0, [0, 10, 12, 25]),
    # The mean is 120.75, rounded to 121: 121 + 1.9 * (value - 121).
    ('contrast', 10, [0, 81, 134, 255]),
    ('color', 10, [0, 100, 128, 255]),
  ],
)
def test_values_by_hand(name, magnitude, expected):
  image = np.uint8([[[0], [100], [128], [255]]])
  assert apply(name, image, magnitude)[0, :, 0].tolist() == expected


@pytest.mark.parametrize(
  'name, reference, tolerance',
  [
    ('auto_contrast', ImageOps.autocontrast, 1),
    ('equalize', ImageOps.equalize, 0),
    ('color', lambda x: ImageEnhance.Color(x).enhance(1.9), 1),
    ('contrast', lambda x: ImageEnhance.Contrast(x).enhance(1.9), 1),
    ('brightness', lambda x: ImageEnhance.Brightness(x).enhance(1.9), 1),
    ('sharpness', lambda x: ImageEnhance.Sharpness(x).enhance(1.9), 1),
  ],
)
def test_operations_with_a_twin_in_pillow_agree_with_it(
  name, reference, tolerance
):
  expected = np.asarray(reference(Image.fromarray(photo()))).astype(int)
  out = apply(name, photo(), 10)
  assert np.abs(out - expected).max() <= tolerance


def test_geometry_by_hand():
  image = np.arange(1, 13, dtype=np.uint8).reshape(3, 4, 1)
  grey = randaugment._FILL
  shifted = apply('translate_x', image, 0.1, 0.2)
  np.testing.assert_array_equal(
    shifted[:, :, 0], [[2, 3, 4, grey], [6, 7, 8, grey], [10, 11, 12, grey]]
  )
  other_way = apply('translate_x', image, 0.1, 0.7)
  np.testing.assert_array_equal(other_way[:, 0, 0], [grey] * 3)
  up = apply('translate_y', image, 0.2, 0.2)
  np.testing.assert_array_equal(up[:, 0, 0], [9, grey, grey])
  # Shear by 0.3: row y moves by round(0.3 * y).
  sheared = apply('shear_x', image, 10, 0.2)
  np.testing.assert_array_equal(sheared[:, 0, 0], [1, 5, 10])
  sheared = apply('shear_y', image, 10, 0.7)
  np.testing.assert_array_equal(sheared[0, :, 0], [1, 2, grey, grey])
  # Magnitude 30 turns by 90 degrees about the centre, so sides change places.
  square = np.arange(9, dtype=np.uint8).reshape(3, 3, 1)
  turned = apply('rotate', square, 30, 0.2)
  np.testing.assert_array_equal(turned, np.rot90(square))


def test_cutout_covers_a_square_and_stops_at_the_edge():
  image = np.zeros((60, 60, 1), np.uint8)
  # Half side int(40 * 0.25) = 10, centre in row 30 and column 0.
  out = apply('cutout', image, 2.5, 0.5, 0.0)[:, :, 0]
  assert (out[20:40, :10] == 128).all() and (out != 0).sum() == 20 * 10


def test_arguments_are_checked():
  with pytest.raises(ValueError, match='layers'):
    randaugment.randaugment(-1, 10)
  with pytest.raises(ValueError, match='magnitude'):
    randaugment.randaugment(2, 31)
