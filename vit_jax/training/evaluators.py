"""What a run scores beside its task's own metrics, by its configuration."""

import dataclasses
from collections.abc import Callable
from typing import Any

from vit_jax.config import ConfigError
from vit_jax.data import sources
from vit_jax.evaluation import few_shot, prompts, retrieval, zero_shot
from vit_jax.training import (
  classifying,
  few_shot_inputs,
  inputs,
  records,
  scoring,
)

# Of variables and of what batches are passed through, which may end them.
Evaluator = Callable[[Any, Callable], dict[str, float]]


@dataclasses.dataclass(frozen=True)
class ZeroShotInputs:
  """Data of `config.eval.zero_shot`.

  Attributes:
    source: what is classified.
    prompts: by what, in the order of its classes.
  """

  source: sources.Source
  prompts: prompts.Prompts


def open_zero_shot(
  config: Any, image_shape: tuple[int, int, int]
) -> ZeroShotInputs:
  """Opens what zero-shot evaluation reads.

  Args:
    config: complete.
    image_shape: that the model takes: height, width, channels.

  Raises:
    ConfigError: the data or the prompts are not there, do not fit each other,
      or images are not as the model needs them.
  """
  asked, where = config.eval.zero_shot, 'config.eval.zero_shot'
  source = records.open_source(asked.source, asked.split, (), where)
  transform = records.open_preprocess(config, 'test')
  records.check_shape(source, transform, image_shape, where)
  try:
    named = classifying.named(config, asked.prompts, source.class_names)
  except ConfigError as error:
    raise ConfigError(f'{where}.prompts: {error}') from error
  return ZeroShotInputs(source, named)


def make(run: Any, say: inputs.Say) -> list[Evaluator]:
  """Returns what `config.eval` asks for.

  Args:
    run: prepared.
    say: is told of broken records.

  Raises:
    ConfigError: it cannot be measured.
  """
  made = []
  # Compiles its programs once, for all evaluations.
  scorer = scoring.Scorer(run.task, run.config, run.mesh, say)
  if few_shot_figures := few_shot_inputs.make_figures(run, say):
    made.append(few_shot_figures)
  if run.config.eval.retrieval != 'off':
    made.append(_retrieval(run, scorer))
  if run.zero_shot:
    made.append(_zero_shot(run, scorer))
  return made


def names(run: Any) -> list[str]:
  """Returns what the evaluators of a run call their figures.

  Results of nothing are asked for their names. How far a figure spreads, and
  what has been chosen for it, are no figures of the model.
  """
  asked, figures = run.config.eval, {}
  if asked.few_shot.shots:
    nothing = [few_shot.Result(k, 0.0, (0.0,)) for k in asked.few_shot.shots]
    figures |= few_shot.figures(nothing, with_l2=False)
  if asked.retrieval != 'off':
    figures |= retrieval.figures(retrieval.chance([0], [0]))
  if asked.zero_shot.source:
    # Where the data is not here, it may have any number of classes.
    classes = len(run.zero_shot.prompts.names) if run.zero_shot else 1000
    figures |= zero_shot.figures(zero_shot.Result(0.0, 0.0, 0.0, 0, classes))
  return [*figures]


def check(run: Any) -> None:
  """Raises ConfigError if something is asked for that cannot be measured."""
  asked = run.config.eval
  if hasattr(run.task, 'encode_image'):
    return
  for name, on in (
    ('retrieval', asked.retrieval != 'off'),
    ('zero_shot', asked.zero_shot.source),
  ):
    if on:
      raise ConfigError(
        f'config.eval.{name} needs a model of images and texts, but the task '
        f'is {run.config.task.name}. Leave it out.'
      )


def _retrieval(run: Any, scorer: scoring.Scorer) -> Evaluator:
  source, which = run.inputs.source['test'], run.config.eval.retrieval

  def figures(variables: Any, through: Callable) -> dict[str, float]:
    found, _ = scorer.retrieval(variables, source, which, through)
    return retrieval.figures(found)

  return figures


def _zero_shot(run: Any, scorer: scoring.Scorer) -> Evaluator:
  data = run.zero_shot

  def figures(variables: Any, through: Callable) -> dict[str, float]:
    found = scorer.zero_shot(variables, data.source, data.prompts, through)
    return zero_shot.figures(found)

  return figures
