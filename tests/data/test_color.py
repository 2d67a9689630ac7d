"""Colour jitter and blur: values by hand, chances, one channel or three."""

import colorsys

import cv2
import numpy as np
import pytest

from vit_jax.data import color, preprocess

EVERY = [
  lambda chance: color.color_jitter(chance=chance),
  lambda chance: color.grayscale(chance),
  # Weaker ones may leave everything as it was.
  lambda chance: color.blur(chance, 0.5),
  lambda chance: color.solarize(chance),
]


class FixedRandom:
  """Gives the numbers it was made with, and one order."""

  def __init__(self, *numbers, order=(0, 1, 2, 3)):
    self.numbers = list(numbers)
    self.order = order

  def random(self):
    return self.numbers.pop(0)

  def permutation(self, count):
    assert count == len(self.order)
    return np.array(self.order)


def photo(channels=3, seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (40, 60, channels), np.uint8)


def jitter(image, *numbers, order=(0, 1, 2, 3), **limits):
  limits = {**dict(brightness=0, contrast=0, saturation=0, hue=0), **limits}
  return color.color_jitter(**limits)(
    image, FixedRandom(0.0, *numbers, order=order)
  )


@pytest.mark.parametrize('make', EVERY)
@pytest.mark.parametrize('channels', [1, 3])
def test_shape_and_type_stay_and_the_generator_decides(make, channels):
  image = photo(channels)
  before = image.copy()
  transform, outs = make(0.5), set()
  for seed in range(20):
    out = transform(image, np.random.default_rng(seed))
    assert out.shape == image.shape and out.dtype == np.uint8
    again = transform(image, np.random.default_rng(seed))
    np.testing.assert_array_equal(out, again)
    outs.add(out.tobytes())
  np.testing.assert_array_equal(image, before)
  assert image.tobytes() in outs
  # A grey image stays as it is when it is made grey.
  assert len(outs) > 1 or (channels == 1 and make is EVERY[1])


@pytest.mark.parametrize('make', EVERY)
def test_chance(make):
  changed = sum(
    bool((make(0.3)(photo(), np.random.default_rng(seed)) != photo()).any())
    for seed in range(300)
  )
  assert 65 <= changed <= 115
  for seed in range(20):
    rng = np.random.default_rng(seed)
    np.testing.assert_array_equal(make(0.0)(photo(), rng), photo())
    assert (make(1.0)(photo(), rng) != photo()).any()


def test_brightness_and_contrast_by_hand():
  image = np.uint8([[[0, 40, 100], [255, 80, 200]]])
  # 0.75 of the way from -0.4 to 0.4: 0.2 of 255 more, clipped.
  out = jitter(image, 0.75, 0.5, 0.5, 0.5, brightness=0.4)
  assert out[0].tolist() == [[51, 91, 151], [255, 131, 251]]
  # The means are 127.5, 60, 150; distances times 0.8.
  out = jitter(image, 0.5, 0.25, 0.5, 0.5, contrast=0.4)
  assert np.abs(out[0] - [[25.5, 44, 110], [229.5, 76, 190]]).max() <= 0.5
  limits = dict(brightness=0.4, contrast=0.4)
  grey = jitter(image[..., :1], 0.75, 0.25, 0.5, 0.5, **limits)
  assert np.abs(grey[0, :, 0] - [71.4, 234.6]).max() <= 0.5


def test_saturation_and_hue_agree_with_the_standard_library():
  image = photo()
  # Saturation times 1.1, then hue by -0.05 of the circle.
  out = jitter(image, 0.5, 0.5, 0.75, 0.25, saturation=0.2, hue=0.1)
  for row, column in np.ndindex(4, 60):
    h, s, v = colorsys.rgb_to_hsv(*(image[row, column] / 255))
    expected = colorsys.hsv_to_rgb((h - 0.05) % 1, min(1.1 * s, 1), v)
    np.testing.assert_allclose(
      out[row, column], 255 * np.array(expected), atol=0.6
    )


def test_order_matters_and_is_drawn():
  image = np.uint8([[[40] * 3, [200] * 3]])
  limits = dict(brightness=0.4, contrast=0.4)
  first = jitter(image, 1.0, 1.0, 0.5, 0.5, **limits)
  second = jitter(image, 1.0, 1.0, 0.5, 0.5, order=(1, 0, 2, 3), **limits)
  # 142 and 255 after the one, then 1.4 times as far from their mean.
  assert first[0, :, 0].tolist() == [119, 255]
  # 8 and 232 after the other, then 102 more.
  assert second[0, :, 0].tolist() == [110, 255]


def test_grayscale_is_luminance():
  image = np.uint8([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [10, 20, 30]]])
  out = color.grayscale(1.0)(image, np.random.default_rng(0))
  assert out[0].tolist() == [[v] * 3 for v in (76, 150, 29, 18)]


@pytest.mark.parametrize('size, width', [(224, 23), (64, 7), (28, 3)])
def test_blur_is_a_gaussian_of_a_tenth_of_the_image(size, width):
  image = np.zeros((size, size, 1), np.uint8)
  image[size // 2, size // 2] = 255
  out = color.blur(1.0, 0.5, 2.5)(image, FixedRandom(0.0, 0.5))[..., 0]
  offsets = np.arange(size) - size // 2
  bell = np.exp(-(offsets**2) / (2 * 1.5**2)) * (abs(offsets) <= width // 2)
  expected = 255 * np.outer(bell, bell) / bell.sum() ** 2
  assert np.abs(out - expected).max() <= 0.51
  assert cv2.boundingRect(out)[2] == min(width, 9)


def test_solarize_by_hand():
  image = np.uint8([[[0], [127], [128], [200], [255]]])
  rng = np.random.default_rng(0)
  out = color.solarize(1.0)(image, rng)
  assert out[0, :, 0].tolist() == [0, 127, 127, 55, 0]
  out = color.solarize(1.0, threshold=201)(image, rng)
  assert out[0, :, 0].tolist() == [0, 127, 128, 200, 0]


@pytest.mark.parametrize(
  'make, message',
  [
    (lambda: color.color_jitter(hue=0.6), 'hue is a share .* got 0.6'),
    (lambda: color.color_jitter(brightness=2), 'brightness is a share'),
    (lambda: color.color_jitter(chance=80), 'chance of color_jitter .* 80'),
    (lambda: color.grayscale(-1), 'chance of grayscale'),
    (lambda: color.blur(1.0, 0.0), 'sigma_min=0.0'),
    (lambda: color.blur(1.0, 3.0), 'sigma_min=3.0, sigma_max=2.0'),
    (lambda: color.solarize(0.5, -1), 'got -1'),
  ],
)
def test_arguments_are_checked(make, message):
  with pytest.raises(ValueError, match=message):
    make()


def test_steps_of_a_pipeline_come_before_floats():
  steps = 'color_jitter|grayscale(0.5)|blur(0.5)|solarize(0.5)'
  transform = preprocess.parse(f'{steps}|value_range(0, 1)')
  assert not transform.deterministic
  record = {'image': photo(), 'label': 0}
  one, same, other = (
    transform(record, np.random.default_rng(seed))['image']
    for seed in (0, 0, 1)
  )
  np.testing.assert_array_equal(one, same)
  assert (one != other).any()
  for step in steps.split('|'):
    with pytest.raises(ValueError, match='put it before value_range'):
      preprocess.parse(f'value_range(0, 1)|{step}')
