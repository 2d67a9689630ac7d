"""What is drawn is read back, and what is wrong is seen."""

import cv2
import numpy as np
import pytest

from vit_jax.data import shapes
from vit_jax.evaluation import shapes_checker


def drawn(pixels, objects, split, count):
  """Returns pictures and captions of some scenes."""
  source = shapes.shapes(f'pixels={pixels},objects={objects}')[split]()
  records = [source[number] for number in range(min(count, len(source)))]
  return [x['image'] for x in records], [x['texts'][0] for x in records]


@pytest.mark.parametrize('pixels', [16, 32, 64])
@pytest.mark.parametrize('objects', [1, 2])
def test_drawn_pictures_are_right(pixels, objects):
  for split in ('train', 'test'):
    images, captions = drawn(pixels, objects, split, 60)
    found = shapes_checker.accuracies(images, captions)
    assert set(found) == {'place', 'size', 'color', 'shape', 'all'}
    assert found['all'] == 1


def test_figures_come_in_one_order_whatever_is_said_first():
  scene = shapes.parse_caption(ONE)
  image = shapes.draw(scene, 32, np.random.default_rng(0))
  no_size = 'a red circle at the left'
  found = shapes_checker.accuracies([image, image], [no_size, ONE])
  assert list(found) == ['place', 'size', 'color', 'shape', 'all']
  found = shapes_checker.accuracies([image], [no_size])
  assert list(found) == ['place', 'color', 'shape', 'all']


@pytest.mark.slow
@pytest.mark.parametrize('pixels', [32, 64])
@pytest.mark.parametrize('objects', [1, 2])
def test_many_drawn_pictures_are_right(pixels, objects):
  images, captions = drawn(pixels, objects, 'train', 2000)
  assert shapes_checker.accuracies(images, captions)['all'] >= 0.995


def noisy(image, deviation):
  rng = np.random.default_rng(int(image.sum()))
  noise = rng.normal(0, deviation, image.shape)
  return np.rint((image + noise).clip(0, 255)).astype(np.uint8)


def blurred(image, deviation):
  return cv2.GaussianBlur(image, (0, 0), deviation)


def pale(image, share):
  return np.rint(255 - (255.0 - image) * share).astype(np.uint8)


@pytest.mark.parametrize(
  'change, some, more',
  [(noisy, 25, 45), (blurred, 0.9, 2), (pale, 0.8, 0.45)],
)
def test_what_is_wrong_grows_slowly(change, some, more):
  images, captions = drawn(32, 2, 'test', 60)
  found = [
    shapes_checker.accuracies([change(x, much) for x in images], captions)
    for much in (some, more)
  ]
  assert found[0]['all'] >= 0.95
  assert found[1]['all'] < 0.8 and found[1]['place'] > 0.5


ONE = 'a small red circle at the left'
TWO = 'a small red circle above a large blue cross'


@pytest.mark.parametrize(
  'caption, other, wrong',
  [
    (ONE, 'a small red square at the left', {'shape_1'}),
    (ONE, 'a small orange circle at the left', {'color_1'}),
    (ONE, 'a large red circle at the left', {'size_1'}),
    (ONE, 'a small red circle at the top left', {'place'}),
    (ONE, 'a red square at the left', {'shape_1'}),
    (ONE, TWO, {'place', 'size_2', 'color_2', 'shape_2'}),
    (TWO, 'a small red circle below a large blue cross', {'place'}),
    (TWO, 'a large blue cross below a small red circle', set()),
    (TWO, 'a large red circle above a small blue cross', {'size_1', 'size_2'}),
    (TWO, 'a blue circle above a red cross', {'color_1', 'color_2'}),
    (TWO, 'a red cross above a blue circle', {'shape_1', 'shape_2'}),
    (TWO, 'a small red circle at the top', {'place'}),
  ],
)  # fmt: skip
@pytest.mark.parametrize('seed', range(3))
def test_a_picture_of_something_else_is_refused(caption, other, wrong, seed):
  scene = shapes.parse_caption(caption)
  rng = np.random.default_rng(seed)
  image = shapes.draw(scene, 32, rng)
  assert all(shapes_checker.check(image, caption).values())
  found = shapes_checker.check(image, other)
  assert list(found) == list(shapes.parse_caption(other).attributes())
  missing = {name for name, right in found.items() if not right}
  assert missing == wrong


def test_pictures_of_nothing_are_refused():
  rng = np.random.default_rng(0)
  empty = np.full((32, 32, 3), 255, np.uint8)
  bar = empty.copy()
  bar[8:24, 15:17] = shapes.COLORS['red']
  (seen,) = shapes_checker.things(bar)
  assert (seen.color, seen.shape) == ('red', None)
  assert (seen.x, seen.y) == pytest.approx((0.5, 0.5))
  for image in (empty, rng.integers(0, 256, (32, 32, 3), np.uint8), 0 * empty):
    assert not any(shapes_checker.check(image, TWO).values())
  with pytest.raises(ValueError, match='uint8'):
    shapes_checker.check(empty / 255.0, ONE)
  with pytest.raises(ValueError, match='is not like'):
    shapes_checker.check(empty, 'a dog')
