"""The baseline learns words from colours, by the normal equations."""

import numpy as np
import pytest

from vit_jax.evaluation import ngrams, prompts, retrieval, zero_shot

COLOURS = {'red': (200, 30, 30), 'green': (30, 200, 30), 'blue': (30, 30, 200)}


def pictures(count, seed):
  """Returns noisy pictures of one colour, described, and their captions."""
  rng = np.random.default_rng(seed)
  names = rng.choice(list(COLOURS), count)
  images, captions = [], []
  for name in names:
    shape = (*rng.integers(8, 20, 2), 3)
    noise = rng.integers(-30, 31, shape)
    image = (np.array(COLOURS[name]) + noise).astype(np.uint8)
    images.append(ngrams.describe(image))
    thing = rng.choice(['ball', 'cup', 'hat'])
    captions.append((f'A {name} {thing}', f'{name}-ish {thing}, once more'))
  return np.stack(images), captions


def test_colours_are_found_by_their_names():
  baseline = ngrams.fit(*pictures(200, seed=0))
  images, captions = pictures(60, seed=1)
  labels = [list(COLOURS).index(one[0].split()[1]) for one in captions]
  names = prompts.from_names(list(COLOURS), ['{}', 'a {} thing'])
  classes = zero_shot.classifier(names, baseline.encode_texts)
  found = zero_shot.evaluate(baseline.encode_images(images), labels, classes)
  assert found.top_1 == 1
  # A text finds the images of its colour, of which there are 20, first.
  result = retrieval.evaluate(
    baseline.encode_images(images),
    baseline.encode_texts([f'a {name}' for name in COLOURS]),
    range(3),
    labels,
  )
  assert result.text_to_image.recalls[1] == 1
  assert result.image_to_text.recalls[1] == 1


def test_weights_solve_the_normal_equations(monkeypatch):
  images, captions = pictures(50, seed=0)
  whole = ngrams.fit(images, captions, l2=0.3)
  monkeypatch.setattr(ngrams, '_ROWS', 7)
  baseline = ngrams.fit(images, captions, l2=0.3)
  np.testing.assert_allclose(baseline.weights, whole.weights, rtol=0, atol=1e-4)
  x = images.astype(float)
  deviation = x.std(0) + 1e-5
  x = (x - x.mean(0)) / deviation
  y = np.stack([baseline.encode_texts(texts).mean(0) for texts in captions])
  np.testing.assert_allclose(y.mean(0), 0, rtol=0, atol=1e-6)
  y = y.astype(float)
  gram = x.T @ x + 0.3 * 50 * np.eye(256)
  expected = x @ np.linalg.solve(gram, x.T @ y)
  np.testing.assert_allclose(
    baseline.encode_images(images), expected, rtol=0, atol=2e-3
  )


def test_features_of_texts_by_hand():
  captions = [['Red ball!', 'a red, RED ball'], ['a cup'], ['Cup 2']]
  images = pictures(3, seed=0)[0]
  baseline = ngrams.fit(images, captions)
  expected = {('red',): 2, ('ball',): 2, ('red', 'ball'): 2}
  expected |= {('a',): 2, ('cup',): 2}
  assert set(baseline.places) == set(expected)
  feature = baseline.encode_texts(['the RED_cup'])[0]
  for ngram, place in baseline.places.items():
    present = ngram in {('red',), ('cup',)}
    value = np.log(4 / 2) * (present - 2 / 4)
    assert feature[place] == pytest.approx(value, abs=1e-6)
  few = ngrams.fit(images, captions, longest=1, most=2)
  assert set(few.places) == {('a',), ('ball',)}


def test_description_is_a_thumbnail_and_shares_of_colours():
  image = np.zeros((16, 24, 3), np.uint8)
  image[:, 12:] = (255, 64, 0)
  described = ngrams.describe(image)
  thumbnail = described[:192].reshape(8, 8, 3)
  np.testing.assert_allclose(thumbnail[:, :4], 0)
  np.testing.assert_allclose(thumbnail[3, 4], [1, 64 / 255, 0], atol=1e-6)
  shares = described[192:].reshape(4, 4, 4)
  assert shares[0, 0, 0] == 0.5 and shares[3, 1, 0] == 0.5
  grey = ngrams.describe(image[..., :1])
  np.testing.assert_array_equal(grey, ngrams.describe(image[..., [0, 0, 0]]))


def test_what_cannot_be_learned():
  images, captions = pictures(5, seed=0)
  for wrong in (captions[:4], [*captions[:4], ()], [['once'], *[['']] * 4]):
    with pytest.raises(ValueError, match='expected one or more captions'):
      ngrams.fit(images, wrong)
  with pytest.raises(ValueError, match='expected uint8'):
    ngrams.describe(np.zeros((4, 4, 3)))
