"""How well a linear classifier does on frozen features of all examples.

The protocol of CLIP (Radford et al., arXiv:2103.00020, section A.3): logistic
regression by L-BFGS, at most 1,000 iterations, on features as they are. Its
regularisation is found on validation examples; then it is fitted once more to
these and the training examples together, and tested once.

Features are those before the projection to the space of images and texts,
'pooled' of every image tower: see `few_shot.make_features` and
`few_shot.collect`. What needs no more than a few examples is in `few_shot`.
"""

import math
import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from vit_jax.config import ConfigError
from vit_jax.evaluation import zero_shot

# C is searched from 1e-6 to 1e6, at first every two decades, and at last in
# steps of an eighth of a decade, which is the unit here.
_DECADE = 8
_LARGEST, _FIRST_STEP = 6 * _DECADE, 2 * _DECADE
_ITERATIONS = 1000
# Examples x width x classes. Threads that share less work than this mostly wait
# for each other, and where other programs run they wait long.
_ONE_THREAD = 2**24


class Examples(NamedTuple):
  """Features of examples, [examples, width], and labels, int [examples]."""

  features: np.ndarray
  labels: np.ndarray


class Result(NamedTuple):
  """What came out.

  Attributes:
    accuracy: share of the test examples that are classified correctly.
    mean_per_class: mean over classes of theirs, each class counting the same.
    c: scikit-learn's inverse strength of the regularisation that was chosen.
    validation: accuracy on validation examples of every C that was tried.
    converged: whether the last fit did within its iterations.
    examples: number of test examples.
  """

  accuracy: float
  mean_per_class: float
  c: float
  validation: dict[float, float]
  converged: bool
  examples: int


def hold_out(
  labels: np.ndarray, share: float = 0.2, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
  """Divides examples where there is no validation split.

  Args:
    labels: int [examples].
    share: of each class that is held out, rounded up, but never all of it.
    seed: nothing else decides.

  Returns:
    Indices of the examples to train on and of those held out, ascending.

  Raises:
    ConfigError: no class has two examples, so that nothing can be held out.
  """
  if not 0 < share < 1:
    raise ValueError(f'share is between 0 and 1, got {share}')
  labels = np.asarray(labels)
  shuffled = np.random.default_rng(seed).permutation(len(labels))
  found, counts = np.unique(labels, return_counts=True)
  if counts.max(initial=0) < 2:
    raise ConfigError(
      f'The linear probe has {len(labels)} training examples of {len(found)} '
      'classes, and holds some out to choose its regularisation by: it needs '
      'two or more of a class. Take a larger split.'
    )
  held = []
  for label in found:
    members = shuffled[labels[shuffled] == label]
    count = min(len(members) - 1, math.ceil(share * len(members)))
    held.append(members[:count])
  held = np.sort(np.concatenate(held))
  return np.setdiff1d(np.arange(len(labels)), held), held


def evaluate(train: Examples, validation: Examples, test: Examples) -> Result:
  """Chooses the regularisation, fits and tests.

  Args:
    train: what is learned from.
    validation: what C is chosen by, and then learned from as well; see
      `hold_out`.
    test: looked at once.

  Raises:
    ValueError: shapes do not fit, features are not finite, or there is but one
      class.
  """
  parts = dict(train=train, validation=validation, test=test)
  for name, examples in parts.items():
    _check(name, examples, np.shape(train.features)[-1])
  scores = search(lambda c: _accuracy(_fit(train, c), validation))
  # Of equals the strongest regularisation.
  best = max(sorted(scores), key=scores.get)
  both = Examples(*map(np.concatenate, zip(train, validation)))
  model = _fit(both, best)
  right = model.predict(test.features) == test.labels
  return Result(
    float(right.mean()),
    zero_shot.mean_per_class(right, test.labels),
    best,
    scores,
    bool(model.n_iter_.max() < _ITERATIONS),
    len(right),
  )


def search(score: Callable[[float], float]) -> dict[float, float]:
  """Returns the score of every C tried, on the way to the best of 97.

  Starts with 1e-6, 1e-4, ..., 1e6; then the best so far gets two neighbours at
  half the distance, until that is an eighth of a decade.

  Args:
    score: of a C; the more the better.
  """
  scores: dict[int, float] = {}
  step, tried = _FIRST_STEP, range(-_LARGEST, _LARGEST + 1, _FIRST_STEP)
  while step:
    for exponent in tried:
      if abs(exponent) <= _LARGEST:
        scores[exponent] = score(10 ** (exponent / _DECADE))
    best = max(sorted(scores), key=scores.get)
    step //= 2
    tried = (best - step, best + step)
  return {10 ** (x / _DECADE): scores[x] for x in sorted(scores)}


def _fit(examples: Examples, c: float):
  import threadpoolctl  # Comes with scikit-learn.
  from sklearn import exceptions, linear_model  # Slow to import.

  model = linear_model.LogisticRegression(C=c, max_iter=_ITERATIONS)
  work = examples.features.size * len(np.unique(examples.labels))
  threads = threadpoolctl.threadpool_limits(1 if work < _ONE_THREAD else None)
  with threads, warnings.catch_warnings():
    # `Result.converged` says it.
    warnings.simplefilter('ignore', exceptions.ConvergenceWarning)
    return model.fit(examples.features, examples.labels)


def _accuracy(model, examples: Examples) -> float:
  return float(np.mean(model.predict(examples.features) == examples.labels))


def _check(name: str, examples: Examples, width: int) -> None:
  features, labels = map(np.asarray, examples)
  if features.shape != (*labels.shape, width) or not len(labels):
    raise ValueError(
      f'{name}: features are {features.shape} and labels {labels.shape}, '
      f'expected [examples, {width}] and [examples], not none'
    )
  if not np.isfinite(features).all():
    raise ValueError(f'{name}: some features are not finite')
  if name == 'train' and len(np.unique(labels)) < 2:
    raise ValueError('train: examples are of one class, expected two or more')


def figures(result: Result) -> dict[str, float]:
  """Returns a result by the names that it has among a run's metrics."""
  return {
    'linear_probe/accuracy': result.accuracy,
    'linear_probe/mean_per_class': result.mean_per_class,
    'linear_probe/c': result.c,
  }
