"""How well a linear classifier does on frozen features of a few examples.

For each class a few examples are chosen, their features are computed once, and
a linear map to targets of 1 (the class) and -1 (the others) is fitted by
regularised least squares, which needs no training: ViT (Dosovitskiy et al.,
arXiv:2010.11929, section 4.1), with the details of google-research/big_vision.
All but the features is float64 on the host, so that one result does not depend
on the devices; which examples are chosen depends on nothing but a seed.
"""

import dataclasses
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.config import ConfigError, did_you_mean
from vit_jax.data import sources
from vit_jax.models import layers

# Added to standard deviations: some features never change.
_EPSILON = 1e-5
# The feature that stands for the bias; so large that regularising its weight
# hardly matters.
_BIAS = 100.0


@dataclasses.dataclass(frozen=True)
class Settings:
  """`config.eval.few_shot`; what is '' is as in `config.data`."""

  # Numbers of examples of each class to learn from; () does not evaluate.
  shots: tuple = ()
  # How often the examples are chosen anew, for a mean and its spread.
  seeds: int = 3
  # Which intermediate of the model: 'pooled', 'encoded',
  # 'blocks/block_03/output', ...; the mean over tokens where it has them.
  feature: str = 'pooled'
  # Strengths of the regularisation; of several, each number of shots takes the
  # one that does best on as many other training examples.
  l2: tuple = (1024.0,)
  # Data of its own.
  source: str = ''
  train_split: str = ''
  test_split: str = ''
  # Not random, for the chosen examples and for those they are tested on.
  preprocess: str = ''


class Result(typing.NamedTuple):
  """What came out for one number of examples of each class."""

  shots: int
  # The strength of the regularisation that was used.
  l2: float
  # Share of the test examples that are classified correctly, for each seed.
  accuracies: tuple[float, ...]

  @property
  def mean(self) -> float:
    """The mean accuracy over the seeds."""
    return float(np.mean(self.accuracies))

  @property
  def spread(self) -> float:
    """The standard deviation between seeds; NaN of a single one."""
    if len(self.accuracies) < 2:
      return float('nan')
    return float(np.std(self.accuracies, ddof=1))


def check(settings: Any) -> None:
  """Raises ConfigError for settings that cannot work.

  Args:
    settings: those of `Settings`.
  """
  if not all(isinstance(k, int) and k >= 1 for k in settings.shots):
    raise ConfigError(
      f'The shots of few-shot evaluation are {settings.shots}, expected '
      'numbers of examples, each 1 or more, such as (1, 5, 10, 25).'
    )
  if settings.seeds < 1:
    raise ConfigError(
      f'The seeds of few-shot evaluation are {settings.seeds}, expected how '
      'often examples are chosen: 1 or more.'
    )
  numbers = all(isinstance(l2, int | float) for l2 in settings.l2)
  if not (settings.l2 and numbers and all(l2 > 0 for l2 in settings.l2)):
    raise ConfigError(
      f'The l2 of few-shot evaluation is {settings.l2}, expected strengths '
      'of the regularisation, each more than 0, such as (1024.0,).'
    )


def fit(
  features: np.ndarray, labels: np.ndarray, classes: int
) -> Callable[[float], tuple[np.ndarray, np.ndarray]]:
  """Prepares regularised least squares for any strength of regularisation.

  With X [n, d], the standardised features and a constant for the bias, and
  targets Y [n, classes], the weights are

    (X'X + l2 I)^-1 X'Y  =  X' (XX' + l2 I)^-1 Y,

  so one decomposition of the smaller matrix, X'X or XX', serves every l2.

  Args:
    features: [n, width].
    labels: int [n].
    classes: their number.

  Returns:
    A function from l2, more than 0, to the kernel [width, classes] and the
    bias [classes] of a classifier of features as they are.
  """
  features = features.astype(np.float64)
  mean, std = features.mean(0), features.std(0) + _EPSILON
  x = np.pad((features - mean) / std, ((0, 0), (0, 1)), constant_values=_BIAS)
  targets = 2.0 * (labels[:, None] == np.arange(classes)) - 1.0
  if x.shape[0] >= x.shape[1]:
    values, vectors = np.linalg.eigh(x.T @ x)
    left, right = vectors, vectors.T @ (x.T @ targets)
  else:
    values, vectors = np.linalg.eigh(x @ x.T)
    left, right = x.T @ vectors, vectors.T @ targets

  def classifier(l2: float) -> tuple[np.ndarray, np.ndarray]:
    weights = (left / (np.maximum(values, 0) + l2)) @ right
    kernel = weights[:-1] / std[:, None]
    return kernel, _BIAS * weights[-1] - mean @ kernel

  return classifier


def choose(
  labels: Sequence[int], class_names: Sequence[str], count: int, seed: int
) -> np.ndarray:
  """Chooses examples of each class.

  Args:
    labels: of all examples.
    class_names: by label.
    count: examples of each class.
    seed: nothing else decides; fewer are the first of more.

  Returns:
    Indices, int [classes, count].

  Raises:
    ConfigError: a class has fewer examples.
  """
  labels = np.asarray(labels)
  found = np.bincount(labels, minlength=len(class_names))
  if found.min() < count:
    rarest = int(found.argmin())
    raise ConfigError(
      f'Few-shot evaluation needs {count} training examples of each class, '
      f'but of {class_names[rarest]!r} there are {found[rarest]}. Ask for '
      'fewer shots (several strengths of l2 need twice as many examples), or '
      'take a larger split.'
    )
  shuffled = np.random.default_rng(seed).permutation(len(labels))
  by_class = shuffled[np.argsort(labels[shuffled], kind='stable')]
  starts = np.cumsum(found) - found
  return by_class[starts[:, None] + np.arange(count)]


def feature_of(intermediates: Mapping[str, Any], name: str) -> jax.Array:
  """Returns one vector an image, [batch, width], in float32.

  Args:
    intermediates: of the model.
    name: of one of them, '/' between the keys. Of what has tokens, or rows
      and columns, the mean over them is taken, the class token included.

  Raises:
    ConfigError: there is no such intermediate, or layers are stacked in it.
  """
  leaves = {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(intermediates)
  }
  if name not in leaves:
    raise ConfigError(
      f'The model has no feature {name!r} for few-shot evaluation.'
      f'{did_you_mean(name, leaves)}'
    )
  if name.startswith('blocks/blocks/'):
    raise ConfigError(
      f'{name!r} holds all layers in one array, as the model was made with '
      "scan: choose 'encoded' or 'pooled' for few-shot evaluation."
    )
  x = leaves[name].astype(jnp.float32)
  return x.mean(axis=tuple(range(1, x.ndim - 1)))


def make_features(task: Any, name: str) -> Callable[[Any, Mapping], dict]:
  """Returns `of_batches` of an intermediate, see `feature_of`."""
  return of_batches(
    lambda variables, image: feature_of(
      task.intermediates(variables, image), name
    )
  )


def of_batches(
  function: Callable[[Any, jax.Array], jax.Array],
) -> Callable[[Any, Mapping], dict]:
  """Returns a jitted function from variables and a batch to its features.

  The result, on every device, has `features` [batch, width] in float32 and
  what the batch has besides images; `collect` makes a whole of it.

  Args:
    function: from variables and images to features.
  """

  @jax.jit
  def features(variables, batch):
    batch = dict(batch)
    found = function(variables, batch.pop('image'))
    batch['features'] = found.astype(jnp.float32)
    # Every process needs all of it.
    return jax.tree.map(layers.constrain, batch)

  return features


def collect(
  features: Callable,
  variables: Any,
  batches: Iterable[Mapping],
  keep: Sequence[str] = (),
) -> dict[str, np.ndarray]:
  """Returns the features of all batches on the host, in the records' order.

  Args:
    features: see `make_features`.
    variables: of the model.
    batches: on the devices.
    keep: 'index' if the number of each record is of interest.
  """
  parts = []
  for batch in batches:
    parts.append(features(variables, batch))
    # Devices never wait for the host, and hold few batches.
    if len(parts) > 2:
      parts[-3] = jax.device_get(parts[-3])
  parts = jax.device_get(parts)
  whole = {
    name: np.concatenate([part[name] for part in parts]) for name in parts[0]
  }
  # Devices of several hosts may lie in another order than their records.
  order = np.argsort(whole['index'])
  if 'index' not in keep:
    del whole['index']
  return {name: values[order] for name, values in whole.items()}


def make_evaluator(
  task: Any, settings: Any, train: sources.Source, test: sources.Source
) -> Callable[[Any, Callable], list[Result]]:
  """Chooses the examples, and returns what evaluates a model on them.

  Args:
    task: whose `intermediates` are the features.
    settings: those of `Settings`.
    train: where examples are chosen.
    test: what is classified.

  Returns:
    A function of variables and of what yields the batches of a source, each
    record once and in order, on the devices: gives a result for each number
    of shots.

  Raises:
    ConfigError: a class has too few training examples.
  """
  # Half of them to choose l2 by, where there is a choice.
  count = max(settings.shots) * (2 if len(settings.l2) > 1 else 1)
  chosen = np.stack([
    choose(train.labels, train.class_names, count, seed)
    for seed in range(settings.seeds)
  ])  # fmt: skip
  needed, position = np.unique(chosen, return_inverse=True)
  position = position.reshape(chosen.shape)
  subset = sources.JoinedSource([(train, needed.tolist())])
  features = make_features(task, settings.feature)

  def evaluate(
    variables: Any, batches: Callable[[sources.Source], Iterator[Mapping]]
  ) -> list[Result]:
    support = collect(features, variables, batches(subset))
    tested = _readable(collect(features, variables, batches(test)))

    def examples(seed: int, start: int, stop: int) -> dict[str, np.ndarray]:
      rows = position[seed, :, start:stop].ravel()
      return _readable({name: value[rows] for name, value in support.items()})

    classes = len(train.class_names)
    return [
      _result(shots, settings, classes, examples, tested)
      for shots in settings.shots
    ]

  return evaluate


def _readable(examples: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Leaves out padding, and records that could not be read."""
  return {name: x[examples['mask'] > 0] for name, x in examples.items()}


def _result(
  shots: int,
  settings: Any,
  classes: int,
  examples: Callable[[int, int, int], Mapping],
  tested: Mapping[str, np.ndarray],
) -> Result:
  """Fits and tests for every seed; of several l2 takes the best elsewhere."""
  classifiers = []
  for seed in range(settings.seeds):
    support = examples(seed, 0, shots)
    classifiers.append(fit(support['features'], support['label'], classes))
  best = settings.l2[0]
  if len(settings.l2) > 1:
    held_out = [
      examples(seed, shots, 2 * shots) for seed in range(settings.seeds)
    ]
    scores = {
      l2: np.mean([_accuracy(f(l2), x) for f, x in zip(classifiers, held_out)])
      for l2 in settings.l2
    }
    best = max(scores, key=scores.get)
  accuracies = (_accuracy(f(best), tested) for f in classifiers)
  return Result(shots, float(best), tuple(accuracies))


def _accuracy(
  classifier: tuple[np.ndarray, np.ndarray], examples: Mapping[str, np.ndarray]
) -> float:
  kernel, bias = classifier
  predicted = (examples['features'] @ kernel + bias).argmax(-1)
  return float((predicted == examples['label']).mean())


def figures(results: Iterable[Result], with_l2: bool) -> dict[str, float]:
  """Returns results by the names that they have among a run's metrics.

  Args:
    results: of an evaluator.
    with_l2: whether there was a choice of l2.
  """
  values = {}
  for result in results:
    name = f'few_shot/{result.shots}_shot'
    values[name] = result.mean
    if len(result.accuracies) > 1:
      values[f'{name}_std'] = result.spread
    if with_l2:
      values[f'{name}_l2'] = result.l2
  return values
