"""Scores a trained model: `python -m vit_jax.evaluate --workdir=D`.

`--config.data.test.source=folder:OTHER` scores it on other data, and
`--checkpoint=FILE` a released checkpoint in place of a run. What `--tasks` can
name:

  metrics       means of what the model was trained for; the default
  retrieval     finding images by text and text by image
  zero_shot     classifying by the names of classes
  linear_probe  a linear classifier of frozen features
  robustness    accuracy on corrupted images
  generation    how good the pictures are that a model draws of captions

zero_shot, linear_probe and robustness read labels: of the test data, or of
--source.
"""

import argparse
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
from etils import epath
from rich.console import Console

from vit_jax import command_line
from vit_jax.config import ConfigError, did_you_mean
from vit_jax.data import pipeline
from vit_jax.evaluation import (
  corruptions,
  linear_probe,
  markdown_report,
  mean_metrics,
  prompts,
  retrieval,
  zero_shot,
)
from vit_jax.generation import networks, sampler, scores
from vit_jax.models import decoding
from vit_jax.training import inputs, matching, records, scoring, trained


def main(arguments: Sequence[str], console: Console) -> None:
  """Prints the scores; `--report` writes them as a page of Markdown."""
  known, overrides = command_line.split(_parser(), arguments)
  names = _chosen(known.tasks)
  model = command_line.open_model(known, overrides)
  # Nothing but JSON goes where JSON is expected.
  notes = Console(stderr=True, soft_wrap=True) if known.json else console

  def say(name: str, reason: str) -> None:
    text = f'skipped, cannot be read: {name} ({reason})'
    notes.print(text, highlight=False, markup=False)

  _fit_batches(model)
  scorer = scoring.Scorer(model.task, model.config, model.mesh, say)
  figures, tables = {}, {}
  with jax.set_mesh(model.mesh):
    for name in names:
      found, results = _TASKS[name](model, scorer, known)
      figures |= found
      tables |= results
  if known.report:
    _write_report(known.report, model, tables)
  if known.json:
    print(json.dumps({'step': model.step, **figures}))
    return
  test = model.config.data.test
  own = {'metrics', 'retrieval', 'generation'} & {*names} or not known.source
  data = [f'{test.source} {test.split}'] if own else []
  if known.source and {'zero_shot', 'linear_probe', 'robustness'} & {*names}:
    data.append(f'{known.source} {known.test_split or "test"}')
  console.print(f'step {model.step:,} on {" and ".join(data)}')
  width = max(12, *map(len, figures))
  for name, value in figures.items():
    shown = f'{value:,}' if isinstance(value, int) else f'{value:.4f}'
    console.print(f'  {name:<{width}} {shown}')


def _parser() -> argparse.ArgumentParser:
  options = command_line.parser(__doc__, 'vit_jax.evaluate')
  options.formatter_class = argparse.RawDescriptionHelpFormatter
  command_line.add_model(options)
  options.add_argument(
    '--tasks', default='metrics', help='of those above, with commas'
  )
  options.add_argument(
    '--captions',
    choices=('first', 'all'),
    default='all',
    help='of each image, for retrieval',
  )
  options.add_argument('--source', help="labels, such as 'folder:DIR'")
  options.add_argument(
    '--train-source', help='of linear_probe, where it is another one'
  )
  options.add_argument('--train-split', help="'train' by default")
  options.add_argument('--test-split', help="'test' by default")
  options.add_argument(
    '--prompts',
    help='of zero_shot: a JSON file or one of '
    f'{", ".join(prompts.known())}; names of classes by default',
  )
  options.add_argument(
    '--feature', default='pooled', help='of linear_probe; pooled by default'
  )
  options.add_argument(
    '--count', type=int, default=1000, help='of captions, for generation'
  )
  options.add_argument(
    '--best-of', type=int, default=1, help='pictures of each that --clip ranks'
  )
  options.add_argument('--clip', help='workdir of a CLIP, for generation')
  options.add_argument(
    '--network', help='workdir whose features compare pictures, for generation'
  )
  options.add_argument(
    '--report', type=pathlib.Path, help='Markdown file to write'
  )
  options.add_argument('--json', action='store_true', help='print JSON')
  return options


def _chosen(text: str) -> list[str]:
  for name in (names := text.split(',')):
    if name not in _TASKS:
      hint = did_you_mean(name, _TASKS)
      raise ConfigError(f'--tasks={name} is not measured.{hint}')
  return names


def _metrics(
  model: trained.Trained, scorer: scoring.Scorer, known: argparse.Namespace
) -> tuple[dict, dict]:
  """Scores what the model was trained for, on `config.data.test`."""
  del known
  source = _test_source(model)
  if records.reads(model.config) == 'captions':
    _check_tokenizer(model)
  if records.reads(model.config) == 'labels':
    _check_classes(model, source.class_names)
  transform = records.open_transform(
    model.config, 'test', getattr(model.task, 'tokenizer', None)
  )
  _check_shape(pipeline.example_shape(source, transform), model)
  found = mean_metrics.mean_metrics(
    mean_metrics.make_summed(model.task),
    model.variables,
    scorer.batches(source, transform),
  )
  return found, {}


def _retrieval(
  model: trained.Trained, scorer: scoring.Scorer, known: argparse.Namespace
) -> tuple[dict, dict]:
  _check_pairs(model, 'retrieval')
  source = _test_source(model)
  if not hasattr(source, 'captions'):
    raise ConfigError(
      f'{model.config.data.test.source!r} has no captions to find. Name a '
      'source of captions by --config.data.test.source.'
    )
  found, chance = scorer.retrieval(model.variables, source, known.captions)
  where = f'{model.config.data.test.source} {model.config.data.test.split}'
  return retrieval.figures(found), {
    'retrieval_results': {where: found, 'chance': chance}
  }


def _zero_shot(
  model: trained.Trained, scorer: scoring.Scorer, known: argparse.Namespace
) -> tuple[dict, dict]:
  _check_pairs(model, 'zero_shot')
  source, where = _labelled(model, known, 'test')
  found = scorer.zero_shot(
    model.variables, source, _prompts(model, known, source)
  )
  return zero_shot.figures(found), {'zero_shot_results': {where: found}}


def _linear_probe(
  model: trained.Trained, scorer: scoring.Scorer, known: argparse.Namespace
) -> tuple[dict, dict]:
  train, _ = _labelled(model, known, 'train')
  test, where = _labelled(model, known, 'test')
  inputs.check_classes(train.class_names, test.class_names)
  found = scorer.linear_probe(model.variables, train, test, known.feature)
  return linear_probe.figures(found), {'linear_probe_results': {where: found}}


def _robustness(
  model: trained.Trained, scorer: scoring.Scorer, known: argparse.Namespace
) -> tuple[dict, dict]:
  source, where = _labelled(model, known, 'test')
  if hasattr(model.task, 'encode_image'):
    _check_tokenizer(model)
    named = _prompts(model, known, source)

    def accuracy(source: Any, transform: Callable) -> float:
      found = scorer.zero_shot(model.variables, source, named, transform)
      return found.top_1
  else:
    if not hasattr(model.task, 'class_names'):
      raise ConfigError(
        '--tasks=robustness needs a model that classifies; this one is for '
        f'{model.config.task.name}.'
      )
    _check_classes(model, source.class_names)
    summed = mean_metrics.make_summed(model.task)

    def accuracy(source: Any, transform: Callable) -> float:
      batches = scorer.batches(source, transform)
      found = mean_metrics.mean_metrics(summed, model.variables, batches)
      return found['accuracy']

  found = scorer.robustness(source, accuracy)
  return corruptions.figures(found), {'corruption_results': {where: found}}


def _generation(
  model: trained.Trained, scorer: scoring.Scorer, known: argparse.Namespace
) -> tuple[dict, dict]:
  """Scores pictures that a model draws of test captions."""
  del scorer
  if not hasattr(model.task, 'sample'):
    raise ConfigError(
      '--tasks=generation needs a model that draws pictures; this one is a '
      f'{model.config.model.name} for {model.config.task.name}.'
    )

  def opened(path: str | None) -> trained.Trained | None:
    return trained.load(epath.Path(path)) if path else None

  drawer = sampler.Sampler(model)
  clip, network = opened(known.clip), opened(known.network)
  found, notes = scores.evaluate(
    drawer,
    scores.read(drawer, _test_source(model), known.count),
    sampling=decoding.Sampling(),
    best_of=known.best_of,
    matcher=matching.Matcher(clip) if clip else None,
    network=networks.of_trained(network) if network else None,
  )
  return found, {'facts': {'pictures': '; '.join(notes)}}


_TASKS = {
  'metrics': _metrics,
  'retrieval': _retrieval,
  'zero_shot': _zero_shot,
  'linear_probe': _linear_probe,
  'robustness': _robustness,
  'generation': _generation,
}


def _test_source(model: trained.Trained) -> Any:
  if not model.config.data.test.source:
    raise ConfigError(
      'A released checkpoint has no test data of its own: name some, such as '
      '--config.data.test.source=tfds:imagenet2012 '
      '--config.data.test.split=validation.'
    )
  return records.open_split(model.config, 'test')


def _labelled(
  model: trained.Trained, known: argparse.Namespace, name: str
) -> tuple[Any, str]:
  """Opens labels of `--source`, or else of the run's own data."""
  if known.train_source and not known.source:
    raise ConfigError('--train-source goes with --source: name both.')
  split = getattr(known, f'{name}_split')
  if known.source:
    source, classes = known.source, ()
    if name == 'train' and known.train_source:
      source = known.train_source
    split = split or name
  else:
    section, classes = model.config.data[name], model.config.data.classes
    source, split = section.source, split or section.split
  where = '--source' if known.source else f'config.data.{name}'
  if not source:
    raise ConfigError('Name data with labels, such as --source=folder:DIR.')
  found = records.open_source(source, split, classes, where)
  return found, f'{source} {split}'


def _prompts(
  model: trained.Trained, known: argparse.Namespace, source: Any
) -> prompts.Prompts:
  if known.prompts:
    return prompts.ordered(prompts.load(known.prompts), source.class_names)
  templates = model.config.data.text.templates or ('{}',)
  return prompts.from_names(source.class_names, templates)


def _check_pairs(model: trained.Trained, name: str) -> None:
  """Raises ConfigError for a model without texts."""
  if not hasattr(model.task, 'encode_image'):
    raise ConfigError(
      f'--tasks={name} needs a model of images and texts, such as a CLIP; this '
      f'one is a {model.config.model.name} for {model.config.task.name}.'
    )
  _check_tokenizer(model)


def _check_tokenizer(model: trained.Trained) -> None:
  """Raises ConfigError for a released model that nobody can write to."""
  if model.task.tokenizer is None:
    raise ConfigError(
      'The checkpoint has no tokenizer: name its file of merges by '
      '--config.data.text.tokenizer=FILE.'
    )


def _write_report(
  path: pathlib.Path, model: trained.Trained, tables: dict[str, Any]
) -> None:
  test = model.config.data.test
  tables = dict(tables)
  facts = {
    'model': f'{model.config.model.name}, step {model.step:,}',
    'trained on': f'{model.config.data.train.source} '
    f'{model.config.data.train.split}',
    'images': test.preprocess,
    **tables.pop('facts', {}),
  }
  page = markdown_report.write('Evaluation', facts, **tables)
  path.write_text(page, encoding='utf-8')


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
