"""Classifiers made of texts: means of directions, and known accuracies."""

import numpy as np
import pytest

from vit_jax.evaluation import prompts, zero_shot


def test_a_class_is_the_mean_direction_of_its_sentences():
  vectors = {
    'a cat': [3.0, 4.0, 0.0],
    'the cat': [0.0, 0.0, 9.0],
    'a dog': [0.0, 2.0, 0.0],
    'the dog': [0.0, 8.0, 0.0],
    'a hound': [0.0, 0.0, -5.0],
    'the hound': [0.0, 0.0, -1.0],
  }
  asked = []

  def encode(texts):
    asked.append(len(texts))
    return np.array([vectors[text] for text in texts])

  given = prompts.Prompts((('cat',), ('dog', 'hound')), ('a {}', 'the {}'))
  cat = np.array([0.6, 0.8, 1.0]) / 2**0.5
  dog = np.array([0.0, 1.0, -1.0]) / 2**0.5
  for size, batches in ((4, [4, 2]), (256, [6]), (1, [1] * 6)):
    asked.clear()
    found = zero_shot.classifier(given, encode, batch_size=size)
    np.testing.assert_allclose(found, [cat, dog], rtol=0, atol=1e-6)
    assert asked == batches and found.dtype == np.float32


def directions(*degrees):
  angles = np.deg2rad(degrees)
  return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def test_known_accuracies():
  classes = directions(0, 20, 40, 60, 80, 100)
  # Of class 0 three of four are right, of class 5 one of two; the last image is
  # as far as it can be from its own.
  images = directions(1, 2, 3, 25, 99, 1) * [[1], [5], [1], [2], [1], [3]]
  labels = [0, 0, 0, 0, 5, 5]
  result = zero_shot.evaluate(images, labels, classes)
  assert result.top_1 == pytest.approx(4 / 6)
  assert result.top_5 == pytest.approx(5 / 6)
  assert result.mean_per_class == pytest.approx((3 / 4 + 1 / 2) / 2)
  assert (result.examples, result.classes) == (6, 6)
  figures = zero_shot.figures(result)
  assert figures['zero_shot/top_5'] == result.top_5
  # Choosing among the two that occur, 25 degrees are nearer to 0.
  fewer = zero_shot.evaluate(images, labels, classes, among=[5, 0, 5])
  assert fewer.top_1 == pytest.approx(5 / 6) and fewer.classes == 2
  assert 'zero_shot/top_5' not in zero_shot.figures(fewer)


def test_classes_of_the_same_name_share_their_hits():
  classes = directions(0, 0, 50)
  result = zero_shot.evaluate(directions(1, 1, 49), [0, 1, 2], classes)
  assert result.top_1 == pytest.approx(2 / 3)


def test_labels_without_a_class_are_an_error():
  images, classes = directions(0, 10), directions(0, 10)
  with pytest.raises(ValueError, match=r'labels \[2\] are not among the 2'):
    zero_shot.evaluate(images, [0, 2], classes)
  with pytest.raises(ValueError, match=r'labels \[1\] are not among the 1'):
    zero_shot.evaluate(images, [0, 1], classes, among=[0])
  with pytest.raises(ValueError, match='of 2 that there are'):
    zero_shot.evaluate(images, [0, 1], classes, among=[0, 1, 2])


def test_log_likelihoods_of_sentences():
  given = prompts.Prompts((('cat',), ('dog', 'hound')))
  # By any of its sentences: of the first image 0.5 to 0.45, of the second 0.2
  # to 0.25.
  chances = np.array([[0.5, 0.7, 0.2], [0.2, 0.5, 1e-30]])
  classes = zero_shot.scores_of_classes(given, np.log(chances))
  result = zero_shot.evaluate_scores(classes, [0, 1])
  assert result.top_1 == 1 and result.classes == 2
  assert zero_shot.evaluate_scores(classes, [1, 0]).top_1 == 0
  # Where only the second is to choose from, it is chosen.
  assert zero_shot.evaluate_scores(classes, [1, 1], among=[1]).top_1 == 1
  with pytest.raises(ValueError, match='not finite'):
    zero_shot.evaluate_scores(np.full((2, 2), np.inf), [0, 1])
