"""Scores a trained model: `python -m vit_jax.evaluate --workdir=D`.

`--config.data.test.source=folder:OTHER` scores it on other data, and
`--checkpoint=FILE` a released checkpoint in place of a run.
"""

import json
from collections.abc import Sequence

import jax
from rich.console import Console

from vit_jax import command_line
from vit_jax.config import ConfigError
from vit_jax.data import pipeline
from vit_jax.evaluation import mean_metrics
from vit_jax.training import inputs, trained


def main(arguments: Sequence[str], console: Console) -> None:
  """Prints the mean of the task's metrics over the test data."""
  options = command_line.parser(__doc__, 'vit_jax.evaluate')
  command_line.add_model(options)
  options.add_argument('--json', action='store_true', help='print JSON')
  known, overrides = command_line.split(options, arguments)
  model = command_line.open_model(known, overrides)
  # Nothing but JSON goes where JSON is expected.
  notes = Console(stderr=True, soft_wrap=True) if known.json else console
  metrics = _score(model, notes)
  if known.json:
    print(json.dumps({'step': model.step, **metrics}))
    return
  test = model.config.data.test
  console.print(f'step {model.step:,} on {test.source} {test.split}')
  for name, value in metrics.items():
    shown = f'{value:,}' if isinstance(value, int) else f'{value:.4f}'
    console.print(f'  {name:<12} {shown}')


def _score(model: trained.Trained, notes: Console) -> dict[str, float]:
  """Returns the mean metrics over `config.data.test`; notes what is broken."""

  def say(name: str, reason: str) -> None:
    text = f'skipped, cannot be read: {name} ({reason})'
    notes.print(text, highlight=False, markup=False)

  if not model.config.data.test.source:
    raise ConfigError(
      'A released checkpoint has no test data of its own: name some, such as '
      '--config.data.test.source=tfds:imagenet2012 '
      '--config.data.test.split=validation.'
    )
  source = inputs.open_split(model.config, 'test')
  _check_classes(model, source.class_names)
  transform = inputs.open_preprocess(model.config, 'test')
  _check_shape(pipeline.example_shape(source, transform), model)
  _fit_batches(model)
  with jax.set_mesh(model.mesh):
    return mean_metrics.mean_metrics(
      mean_metrics.make_summed(model.task),
      model.variables,
      inputs.test_batches(model.config, source, transform, model.mesh, say),
    )


def _check_classes(model: trained.Trained, test: tuple[str, ...]) -> None:
  """Raises ConfigError if test data has other classes than the model."""
  names = model.task.class_names
  if not model.names_known and len(names) == len(test):
    names = test
  inputs.check_classes(names, test)


def _check_shape(shape: tuple[int, ...], model: trained.Trained) -> None:
  """Raises ConfigError if images are not such as the model has learned from."""
  if tuple(shape) != model.task.image_shape:
    raise ConfigError(
      f'Test images are {tuple(shape)} (height, width, channels) after '
      f'preprocessing, the model was trained on {model.task.image_shape}: '
      'change config.data.test.preprocess, now '
      f'{model.config.data.test.preprocess!r}.'
    )


def _fit_batches(model: trained.Trained) -> None:
  """Makes batches divisible by these devices; padding is not counted."""
  config = model.config
  size = config.eval.batch_size
  size = config.batch_size if size is None else size
  if size < 1:
    raise ConfigError(f'The batch size is {size}, expected 1 or more.')
  with config.unlocked():
    config.eval.batch_size = model.whole_batch(size)


if __name__ == '__main__':
  command_line.run(main)
