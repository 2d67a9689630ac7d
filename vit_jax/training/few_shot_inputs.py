"""Few-shot evaluation of a run, in it and after it: what it reads, checked."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from vit_jax.config import ConfigError
from vit_jax.data import preprocess, sources
from vit_jax.evaluation import few_shot
from vit_jax.training import inputs as inputs_lib
from vit_jax.training import records, trained

# If neither a command nor the configuration of a run says so.
_SHOTS = (1, 5, 10, 25)


@dataclasses.dataclass(frozen=True)
class FewShotInputs:
  """Data of few-shot evaluation.

  Attributes:
    train: where the few examples are chosen.
    test: what is classified by them.
    preprocess: of both.
  """

  train: sources.Source
  test: sources.Source
  preprocess: preprocess.Preprocess


def open_few_shot(
  config: Any,
  settings: Any,
  image_shape: tuple[int, int, int],
  opened: Mapping[str, sources.Source] | None = None,
) -> FewShotInputs:
  """Opens what few-shot evaluation reads.

  Args:
    config: complete; what the settings leave open is as in `config.data`.
    settings: those of `few_shot.Settings`.
    image_shape: that the model takes: height, width, channels.
    opened: `train` and `test` of `config.data`, where they are open already.

  Raises:
    ConfigError: the settings cannot work, or the data is not there, or not
      as the model needs it.
  """
  few_shot.check(settings)
  source = {
    name: _open(config, settings, name, opened) for name in ('train', 'test')
  }
  inputs_lib.check_classes(
    source['train'].class_names, source['test'].class_names
  )
  if settings.preprocess:
    transform = records.parse_preprocess(
      settings.preprocess, 'config.eval.few_shot.preprocess', fixed=True
    )
  else:
    transform = records.open_preprocess(config, 'test')
  for name in source:
    where = f'config.eval.few_shot, {name}'
    records.check_shape(source[name], transform, image_shape, where)
  return FewShotInputs(source['train'], source['test'], transform)


def _open(
  config: Any, settings: Any, name: str, opened: Mapping | None
) -> sources.Source:
  split = getattr(settings, f'{name}_split')
  labelled = opened and hasattr(opened[name], 'class_names')
  if labelled and not (settings.source or split):
    return opened[name]
  section = config.data[name]
  return records.open_source(
    settings.source or section.source,
    split or section.split,
    () if settings.source else config.data.classes,
    f'config.eval.few_shot, {name}',
  )


def make_figures(
  run: Any, say: inputs_lib.Say
) -> Callable[[Any, Callable], dict[str, float]] | None:
  """Returns what measures a run's few-shot accuracy, None if nothing shall.

  It takes variables and a function that batches are passed through, and gives
  `few_shot.figures`.

  Args:
    run: prepared.
    say: is told of broken records.

  Raises:
    ConfigError: a class has too few training examples.
  """
  if run.few_shot is None:
    return None
  data, settings = run.few_shot, run.config.eval.few_shot
  evaluate = few_shot.make_evaluator(run.task, settings, data.train, data.test)

  def figures(variables: Any, through: Callable) -> dict[str, float]:
    def batches(source: sources.Source) -> Iterator[inputs_lib.Batch]:
      # So many of the whole, of which these may be a few.
      broken = run.config.data.max_broken * len(data.train) / len(source)
      return through(
        inputs_lib.test_batches(
          run.config,
          source,
          data.preprocess,
          run.mesh,
          say,
          max_broken=min(0.999, broken),
        )
      )

    results = evaluate(variables, batches)
    return few_shot.figures(results, with_l2=len(settings.l2) > 1)

  return figures


def settings(own: Any, **given: Any) -> few_shot.Settings:
  """Returns the settings of a run, with those that a command gives.

  Args:
    own: `config.eval.few_shot`.
    **given: by the names of `few_shot.Settings`; None where nothing is said.
  """
  said = {name: value for name, value in given.items() if value is not None}
  found = {**own.to_dict(), **said}
  return few_shot.Settings(**{**found, 'shots': found['shots'] or _SHOTS})


def make_measure(
  model: trained.Trained, settings: few_shot.Settings, say: inputs_lib.Say
) -> Callable[[Any], list[few_shot.Result]]:
  """Returns what measures the few-shot accuracy of any variables of a model.

  Args:
    model: with test batches that `trained.fit_batches` has made fit.
    settings: see `settings`.
    say: is told of broken records.

  Raises:
    ConfigError: there is no data, or as of `open_few_shot`.
  """
  config = model.config
  if not (settings.source or config.data.train.source):
    raise ConfigError(
      'A released checkpoint comes without data: name it, for example with '
      '--source=folder:DIR --train-split=train --test-split=test.'
    )
  data = open_few_shot(config, settings, model.task.image_shape)
  evaluate = few_shot.make_evaluator(
    model.task, settings, data.train, data.test
  )

  def batches(source: sources.Source) -> Iterator[inputs_lib.Batch]:
    return inputs_lib.test_batches(
      config, source, data.preprocess, model.mesh, say
    )

  return lambda variables: evaluate(variables, batches)
