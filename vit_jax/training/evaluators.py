"""What a run scores beside its task's own metrics, by its configuration."""

from collections.abc import Callable
from typing import Any

from vit_jax.config import ConfigError
from vit_jax.evaluation import prompts, retrieval, zero_shot
from vit_jax.training import few_shot_inputs, inputs, records, scoring

# Of variables and of what batches are passed through, which may end them.
Evaluator = Callable[[Any, Callable], dict[str, float]]


def make(run: Any, say: inputs.Say) -> list[Evaluator]:
  """Returns what `config.eval` asks for.

  Args:
    run: prepared.
    say: is told of broken records.

  Raises:
    ConfigError: it cannot be measured.
  """
  made = []
  if few_shot := few_shot_inputs.make_figures(run, say):
    made.append(few_shot)
  if run.config.eval.retrieval != 'off':
    made.append(_retrieval(run, say))
  if run.config.eval.zero_shot.source:
    made.append(_zero_shot(run, say))
  return made


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


def _retrieval(run: Any, say: inputs.Say) -> Evaluator:
  source = run.inputs.source['test']

  def figures(variables: Any, through: Callable) -> dict[str, float]:
    scorer = scoring.Scorer(run.task, run.config, run.mesh, say, through)
    found, _ = scorer.retrieval(variables, source, run.config.eval.retrieval)
    return retrieval.figures(found)

  return figures


def _zero_shot(run: Any, say: inputs.Say) -> Evaluator:
  asked = run.config.eval.zero_shot
  source = records.open_source(
    asked.source, asked.split, (), 'config.eval.zero_shot'
  )
  if asked.prompts:
    named = prompts.ordered(prompts.load(asked.prompts), source.class_names)
  else:
    templates = run.config.data.text.templates or ('{}',)
    named = prompts.from_names(source.class_names, templates)

  def figures(variables: Any, through: Callable) -> dict[str, float]:
    scorer = scoring.Scorer(run.task, run.config, run.mesh, say, through)
    return zero_shot.figures(scorer.zero_shot(variables, source, named))

  return figures
