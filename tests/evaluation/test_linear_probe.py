"""The paper's search and fits, against scikit-learn asked directly."""

import numpy as np
import pytest
from sklearn import linear_model

from vit_jax.config import ConfigError
from vit_jax.evaluation import linear_probe


def examples(count, seed, spread=4.0):
  rng = np.random.default_rng(seed)
  labels = rng.integers(0, 3, count)
  centres = np.random.default_rng(9).normal(size=(3, 6))
  features = centres[labels] + rng.normal(scale=spread, size=(count, 6))
  return linear_probe.Examples(features, labels)


def test_search_halves_its_steps_around_the_peak():
  tried = []

  def score(c):
    tried.append(round(8 * np.log10(c)))
    return -abs(np.log10(c) - 1.4)

  scores = linear_probe.search(score)
  assert tried == [*range(-48, 49, 16), 8, 24, 4, 12, 10, 14, 11, 13]
  assert max(scores, key=scores.get) == pytest.approx(10 ** (11 / 8))
  assert list(scores) == sorted(scores) and len(scores) == 15
  # The peak at an end: beyond it nothing is tried, and no strength twice.
  tried.clear()
  assert max(linear_probe.search(lambda c: score(1e9 / c))) == 1e6
  edge = linear_probe.search(lambda c: c)
  assert max(edge) == 1e6 and len(edge) == 11


def test_chosen_on_validation_and_fitted_to_all():
  train, validation, test = (examples(60, s) for s in (1, 2, 3))
  result = linear_probe.evaluate(train, validation, test)

  def accuracy(c, learned, tested):
    model = linear_model.LogisticRegression(C=c, max_iter=1000)
    return model.fit(*learned).score(*tested)

  for c, found in [*result.validation.items()][::4]:
    assert found == pytest.approx(accuracy(c, train, validation))
  best = max(result.validation.values())
  equals = [c for c, x in result.validation.items() if x == best]
  assert result.c == min(equals) and best > min(result.validation.values())
  both = [np.concatenate(parts) for parts in zip(train, validation)]
  assert result.accuracy == pytest.approx(accuracy(result.c, both, test))
  assert result.converged and result.examples == 60
  assert linear_probe.figures(result)['linear_probe/c'] == result.c


def test_classes_count_the_same_and_fits_may_end_early(monkeypatch):
  monkeypatch.setattr(linear_probe, '_ITERATIONS', 1)
  train, validation = examples(60, 1, 0.1), examples(60, 2, 0.1)
  rare = examples(40, 3, 0.1)
  wrong = np.where(np.arange(40) == rare.labels.argmax(), 0, rare.labels)
  result = linear_probe.evaluate(
    train, validation, linear_probe.Examples(rare.features, wrong)
  )
  assert not result.converged
  assert result.accuracy == 39 / 40
  zeros = (wrong == 0).sum()
  expected = ((zeros - 1) / zeros + 1 + 1) / 3
  assert result.mean_per_class == pytest.approx(expected)


def test_holding_out_takes_of_each_class_but_never_all():
  labels = np.array([0] * 10 + [1] * 4 + [2] + [7] * 2)
  kept, held = linear_probe.hold_out(labels, share=0.3)
  assert np.bincount(labels[held]).tolist() == [3, 2, 0, 0, 0, 0, 0, 1]
  np.testing.assert_array_equal(np.sort([*kept, *held]), np.arange(17))
  again = linear_probe.hold_out(labels, share=0.3)[1]
  np.testing.assert_array_equal(held, again)
  other = linear_probe.hold_out(labels, share=0.3, seed=1)[1]
  assert held.tolist() != other.tolist()
  with pytest.raises(ValueError, match='between 0 and 1, got 30'):
    linear_probe.hold_out(labels, share=30)
  with pytest.raises(ConfigError, match='of 3 classes.*needs two'):
    linear_probe.hold_out(np.arange(3))


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(features=np.ones((6, 3))), r'\(6, 3\) and labels \(6,\), expected'),
    (dict(labels=np.ones((6, 1))), r'labels \(6, 1\), expected'),
    (dict(features=np.ones((0, 2)), labels=np.ones(0)), 'not none'),
    (dict(features=np.full((6, 2), np.inf)), 'test: some features are not'),
  ],
)
def test_what_cannot_be_fitted(change, message):
  good = linear_probe.Examples(np.ones((6, 2)), np.arange(6) % 2)
  with pytest.raises(ValueError, match=message):
    linear_probe.evaluate(good, good, good._replace(**change))
  one = good._replace(labels=np.zeros(6, int))
  with pytest.raises(ValueError, match='of one class'):
    linear_probe.evaluate(one, one, good)
