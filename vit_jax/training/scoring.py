"""Scores of a trained model on whole data sets, in a run and after it.

What is measured is in `vit_jax.evaluation`; here it meets the data and the
devices.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vit_jax.data import preprocess
from vit_jax.evaluation import (
  corruptions,
  few_shot,
  linear_probe,
  pair_features,
  prompts,
  retrieval,
  zero_shot,
)
from vit_jax.training import inputs as inputs_lib
from vit_jax.training import records

Through = Callable[[Iterable], Iterable]


@dataclasses.dataclass(frozen=True)
class Scorer:
  """What every score of a model needs.

  Attributes:
    task: what it has learned.
    config: complete.
    mesh: of its variables.
    say: is told of broken records.
    through: what batches are passed through, which may stop them.
  """

  task: Any
  config: Any
  mesh: Mesh
  say: inputs_lib.Say
  through: Through = iter

  def batches(self, source: Any, transform: Callable) -> Iterator[Any]:
    """Yields each record of a source once, on the devices."""
    return self.through(
      inputs_lib.test_batches(
        self.config, source, transform, self.mesh, self.say
      )
    )

  def retrieval(
    self, variables: Any, source: Any, which: str
  ) -> tuple[retrieval.Result, retrieval.Result]:
    """Scores finding images by text and text by image.

    Args:
      variables: of the model.
      source: of captions.
      which: 'first' or 'all' captions of each image.

    Returns:
      The result, and what chance gives.
    """
    template = (self.config.data.text.templates or ('{}',))[0]

    def captions(index: int) -> list[str]:
      found = source.captions(index)[: 1 if which == 'first' else None]
      return [template.replace('{}', caption) for caption in found]

    transform = records.open_preprocess(self.config, 'test')
    batches = self.batches(source, transform)
    return pair_features.evaluate_retrieval(
      self.task, variables, batches, captions, self._batch_size
    )

  @property
  def _batch_size(self) -> int:
    return self.config.eval.batch_size or self.config.batch_size

  def classification(
    self,
    variables: Any,
    source: Any,
    transform: Callable | None = None,
    among: Sequence[int] | None = None,
  ) -> zero_shot.Result:
    """Scores classification by a model that has learned the classes.

    Args:
      variables: of the model.
      source: of labels.
      transform: of images; that of `config.data.test` by default.
      among: classes to choose from; all by default.
    """
    transform = transform or records.open_preprocess(self.config, 'test')

    def log_likelihoods(variables: Any, image: jax.Array) -> jax.Array:
      chances = self.task.predict(variables, image)
      return jnp.log(jnp.maximum(chances, jnp.finfo(chances.dtype).tiny))

    found = few_shot.collect(
      few_shot.of_batches(log_likelihoods),
      variables,
      self.batches(source, transform),
    )
    real = found['mask'] > 0
    return zero_shot.evaluate_scores(
      found['features'][real], found['label'][real], among
    )

  def zero_shot(
    self,
    variables: Any,
    source: Any,
    named: prompts.Prompts,
    transform: Callable | None = None,
    among: Sequence[int] | None = None,
  ) -> zero_shot.Result:
    """Scores classification by the names of classes.

    Args:
      variables: of the model.
      source: of labels.
      named: names and templates, in the order of the source's classes.
      transform: see `classification`.
      among: see `classification`.
    """
    transform = transform or records.open_preprocess(self.config, 'test')
    batches = self.batches(source, transform)
    found = pair_features.images(self.task, variables, batches)
    if hasattr(self.task, 'encode_text'):
      classes = self.classifier(variables, named)
      return zero_shot.evaluate(
        found['features'], found['label'], classes, among
      )
    texts = [x for label in range(len(named.names)) for x in named.texts(label)]
    scores = pair_features.scores(
      self.task, variables, found['features'], texts, self._batch_size
    )
    classes = zero_shot.scores_of_classes(named, scores)
    return zero_shot.evaluate_scores(classes, found['label'], among)

  def classifier(self, variables: Any, named: prompts.Prompts) -> np.ndarray:
    """Returns a unit vector for each class, [classes, width]."""
    encode = pair_features.make_encode_texts(
      self.task, variables, self._batch_size
    )
    return zero_shot.classifier(named, encode)

  def linear_probe(
    self, variables: Any, train: Any, test: Any, feature: str
  ) -> linear_probe.Result:
    """Scores a linear classifier of frozen features.

    Args:
      variables: of the model.
      train: source of labels to learn from; a fifth of each class is held out
        to choose the regularisation.
      test: source of labels.
      feature: which intermediate, see `few_shot.feature_of`.
    """
    transform = records.open_preprocess(self.config, 'test')
    features = few_shot.make_features(self.task, feature)

    def examples(source: Any) -> linear_probe.Examples:
      found = few_shot.collect(
        features, variables, self.batches(source, transform)
      )
      real = found['mask'] > 0
      return linear_probe.Examples(
        found['features'][real], found['label'][real]
      )

    learned = examples(train)
    fitted, held = (
      linear_probe.Examples(*(x[rows] for x in learned))
      for rows in linear_probe.hold_out(learned.labels)
    )
    return linear_probe.evaluate(fitted, held, examples(test))

  def robustness(
    self, source: Any, accuracy: Callable[[Any, Callable], float]
  ) -> corruptions.Result:
    """Scores how accuracy falls as images get worse, at five strengths.

    Args:
      source: of labels.
      accuracy: of the model, on a source whose images are prepared by a
        function.
    """
    whole = self.config.data.test.preprocess
    on_bytes, to_floats = corruptions.split_preprocess(whole)
    prepare = preprocess.parse(on_bytes) if on_bytes else None
    finish = preprocess.parse(to_floats)

    def corrupted(name: str, strength: int) -> float:
      worse = corruptions.CorruptedSource(source, prepare, name, strength)
      return accuracy(worse, finish)

    return corruptions.Result(
      accuracy(source, preprocess.parse(whole)),
      {
        name: tuple(corrupted(name, strength) for strength in range(1, 6))
        for name in corruptions.CORRUPTIONS
      },
    )
