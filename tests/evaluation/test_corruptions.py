"""Corruptions do what their parameters say, and always the same."""

import contextlib
import io
import pickle

import cv2
import numpy as np
import pytest
from PIL import Image

from vit_jax.config import ConfigError
from vit_jax.data import array_sources, pipeline, preprocess
from vit_jax.evaluation import corruptions


def picture(height=224, width=240, channels=3):
  """A smooth picture with some edges, far from black and white."""
  rng = np.random.default_rng(0)
  coarse = rng.integers(60, 190, (6, 7, channels), np.uint8)
  image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
  image = image.reshape(height, width, channels)
  image[40:80, 50:90] = 150
  return image


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('name', corruptions.CORRUPTIONS)
def test_each_strength_is_further_from_the_image(name, channels):
  image = picture(channels=channels)
  original = image.copy()
  distances = []
  for strength in corruptions.STRENGTHS:
    out = corruptions.corrupt(image, name, strength, seed=3, index=5)
    assert out.dtype == np.uint8 and out.shape == image.shape
    again = corruptions.corrupt(image, name, strength, seed=3, index=5)
    np.testing.assert_array_equal(out, again)
    distances.append(np.abs(out.astype(float) - image).mean())
  np.testing.assert_array_equal(image, original)
  assert distances[0] > 0 and distances[4] == max(distances)
  # Squares of two pixels may be nearer to an image than uneven smaller ones.
  assert (np.diff(distances) > 0).all() or name == 'pixelate'


def test_noise_is_a_function_of_seed_and_index():
  image = np.full((100, 100, 3), 128, np.uint8)

  def noise(strength, seed, index):
    out = corruptions.corrupt(
      image, 'gaussian_noise', strength, seed=seed, index=index
    )
    return out.astype(float) - 128

  first = noise(1, 0, 0)
  # 8 % of 255, over 30,000 values.
  assert first.std() == pytest.approx(0.08 * 255, abs=0.4)
  assert abs(first.mean()) < 0.5
  assert np.corrcoef(first.ravel(), noise(2, 0, 0).ravel())[0, 1] > 0.99
  for seed, index in ((0, 1), (1, 0)):
    other = noise(1, seed, index)
    assert abs(np.corrcoef(first.ravel(), other.ravel())[0, 1]) < 0.05


def test_blur_is_in_proportion_to_the_image():
  for side in (224, 448):
    image = np.zeros((side, side, 1), np.uint8)
    image[:, side // 2 :] = 255
    out = corruptions.corrupt(image, 'gaussian_blur', 5)[side // 2, :, 0]
    # A blurred edge is at 84 % one sigma away from it.
    away = side // 2 + round(6 * side / 224)
    assert out[away] / 255 == pytest.approx(0.84, abs=0.03)
  tiny = picture(8, 8)
  np.testing.assert_array_equal(
    corruptions.corrupt(tiny, 'gaussian_blur', 1), tiny
  )


def test_contrast_brightness_and_pixels_by_hand():
  image = np.zeros((2, 4, 3), np.uint8)
  image[0], image[1] = (100, 50, 0), (200, 150, 100)
  out = corruptions.corrupt(image, 'contrast', 4)
  np.testing.assert_array_equal(out[:, 0], [[145, 95, 45], [155, 105, 55]])
  out = corruptions.corrupt(image, 'brightness', 5)
  # Value 100 becomes 227.5, and 200 the most, 255.
  expected = [[227.5, 113.75, 0], [255, 191.25, 127.5]]
  np.testing.assert_allclose(out[:, 0], expected, rtol=0, atol=0.51)
  assert (corruptions.corrupt(0 * image, 'brightness', 1) == 26).all()
  image = picture(80, 40)
  out = corruptions.corrupt(image, 'pixelate', 5)
  blocks = image.reshape(20, 4, 10, 4, 3).mean(axis=(1, 3))
  blocks = blocks.repeat(4, axis=0).repeat(4, axis=1)
  np.testing.assert_allclose(out, blocks, rtol=0, atol=0.51)


def test_jpeg_is_that_of_pillow():
  # Red and blue do not lose the same.
  image = picture(64, 64)
  file = io.BytesIO()
  Image.fromarray(image).save(file, 'JPEG', quality=25)
  out = corruptions.corrupt(image, 'jpeg', 1).astype(float)
  assert np.abs(out - np.asarray(Image.open(file))).mean() < 1
  other = corruptions.corrupt(image[..., ::-1], 'jpeg', 1).astype(float)
  assert np.abs(out - other[..., ::-1]).mean() > 1


def test_a_source_is_corrupted_after_resizing():
  images = np.stack([picture(20, 30)[:, ::step] for step in (1, -1)])
  labels = np.arange(2)
  source = array_sources.ArraySource(images, labels, ('a', 'b'), 'test')
  text = 'resize_small(10)|central_crop(8)|value_range(0, 255)|to_rgb'
  before, after = corruptions.split_preprocess(text)
  assert before == 'resize_small(10)|central_crop(8)'
  assert after == 'value_range(0, 255)|to_rgb'
  prepare = preprocess.parse(before)
  corrupted = pickle.loads(
    pickle.dumps(
      corruptions.CorruptedSource(source, prepare, 'gaussian_noise', 2, seed=7)
    )
  )
  assert corrupted.class_names == ('a', 'b') and corrupted.name(1) == 'test/1'
  assert list(corrupted.labels) == [0, 1]
  with pipeline_of(corrupted, after) as batches:
    (batch,) = batches
  for index in range(2):
    expected = corruptions.corrupt(
      prepare(source[index])['image'],
      'gaussian_noise',
      2,
      seed=7,
      index=index,
    )
    np.testing.assert_array_equal(batch['image'][index], expected)
  plain = corruptions.CorruptedSource(source, None, 'contrast', 1)
  np.testing.assert_array_equal(
    plain[0]['image'], corruptions.corrupt(images[0], 'contrast', 1)
  )
  assert corruptions.split_preprocess('standardize(.5, .5)') == (
    '', 'standardize(.5, .5)',
  )  # fmt: skip


def pipeline_of(source, text):
  return contextlib.closing(
    pipeline.eval_batches(source, preprocess.parse(text), batch_size=2)
  )


def test_mistakes_are_explained():
  image = picture()
  with pytest.raises(ConfigError, match="Did you mean 'jpeg'"):
    corruptions.corrupt(image, 'jpg', 1)
  with pytest.raises(ConfigError, match='strength is 6, expected 1 to 5'):
    corruptions.CorruptedSource([], None, 'jpeg', 6)
  with pytest.raises(ValueError, match='before value_range'):
    corruptions.corrupt(image / 255, 'jpeg', 1)
  with pytest.raises(ConfigError, match='leaves bytes'):
    corruptions.split_preprocess('resize(8)')


def test_results_are_means():
  accuracies = {'contrast': (0.5, 0.4, 0.3, 0.2, 0.1), 'jpeg': (0.5,) * 5}
  result = corruptions.Result(0.8, accuracies)
  assert corruptions.figures(result) == pytest.approx(
    {
      'robustness/contrast': 0.3,
      'robustness/jpeg': 0.5,
      'robustness/mean': 0.4,
      'robustness/clean': 0.8,
    }
  )
