"""Scores of a trained model on whole data sets, in a run and after it.

What is measured is in `vit_jax.evaluation`; here it meets the data and the
devices. A `Scorer` compiles its programs once: it is kept for as long as there
is something to score.
"""

import dataclasses
import functools
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
  """

  task: Any
  config: Any
  mesh: Mesh
  say: inputs_lib.Say

  def batches(
    self, source: Any, transform: Callable, through: Through = iter
  ) -> Iterator[Any]:
    """Yields each record of a source once, on the devices.

    Args:
      source: what to read.
      transform: how it is prepared.
      through: what batches are passed through, which may stop them.
    """
    return through(
      inputs_lib.test_batches(
        self.config, source, transform, self.mesh, self.say
      )
    )

  @property
  def _batch_size(self) -> int:
    return self.config.eval.batch_size or self.config.batch_size

  @functools.cached_property
  def _encoders(self) -> pair_features.Encoders:
    return pair_features.Encoders(self.task, self._batch_size)

  @functools.cached_property
  def _log_likelihoods(self) -> Callable:
    def of_classes(variables: Any, image: jax.Array) -> jax.Array:
      chances = self.task.predict(variables, image)
      return jnp.log(jnp.maximum(chances, jnp.finfo(chances.dtype).tiny))

    return few_shot.of_batches(of_classes)

  def _transform(self) -> preprocess.Preprocess:
    return records.open_preprocess(self.config, 'test')

  def captions(self, source: Any, which: str) -> Callable[[int], list[str]]:
    """Returns what gives the texts of a record, as evaluation shows them.

    Args:
      source: of captions.
      which: 'first' or 'all' captions of each image.
    """
    template = (self.config.data.text.templates or ('{}',))[0]

    def texts(index: int) -> list[str]:
      found = source.captions(index)[: 1 if which == 'first' else None]
      return [template.replace('{}', caption) for caption in found]

    return texts

  def retrieval(
    self, variables: Any, source: Any, which: str, through: Through = iter
  ) -> tuple[retrieval.Result, pair_features.Candidates]:
    """Scores finding images by text and text by image.

    Args:
      variables: of the model.
      source: of captions.
      which: see `captions`.
      through: see `batches`.

    Returns:
      The result, and what was searched.
    """
    batches = self.batches(source, self._transform(), through)
    captions = self.captions(source, which)
    return self._encoders.retrieval(variables, batches, captions)

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
    found = few_shot.collect(
      self._log_likelihoods,
      variables,
      self.batches(source, transform or self._transform()),
    )
    real = found['mask'] > 0
    return zero_shot.evaluate_scores(
      found['features'][real], found['label'][real], among
    )

  def by_names(
    self, variables: Any, named: prompts.Prompts
  ) -> Callable[..., zero_shot.Result]:
    """Returns a function that scores classification by the names of classes.

    It takes a source of labels, and by name `transform`, `among` (see
    `classification`) and `through` (see `batches`). Texts are encoded when it
    is first called, once for all sources.

    Args:
      variables: of the model.
      named: names and templates, in the order of the sources' classes.
    """
    encoders = self._encoders

    @functools.cache
    def classifier() -> np.ndarray:
      encode = functools.partial(encoders.texts, variables)
      return zero_shot.classifier(named, encode, self._batch_size)

    def score(
      source: Any,
      transform: Callable | None = None,
      among: Sequence[int] | None = None,
      through: Through = iter,
    ) -> zero_shot.Result:
      batches = self.batches(source, transform or self._transform(), through)
      found = encoders.images(variables, batches)
      features, labels = found['features'], found['label']
      if hasattr(self.task, 'encode_text'):
        return zero_shot.evaluate(features, labels, classifier(), among)
      texts = [
        x for label in range(len(named.names)) for x in named.texts(label)
      ]
      scores = encoders.scores(variables, features, texts)
      classes = zero_shot.scores_of_classes(named, scores)
      return zero_shot.evaluate_scores(classes, labels, among)

    return score

  def zero_shot(
    self,
    variables: Any,
    source: Any,
    named: prompts.Prompts,
    through: Through = iter,
  ) -> zero_shot.Result:
    """Scores classification by the names of classes.

    Args:
      variables: of the model.
      source: of labels.
      named: names and templates, in the order of the source's classes.
      through: see `batches`.
    """
    return self.by_names(variables, named)(source, through=through)

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
    transform = self._transform()
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
