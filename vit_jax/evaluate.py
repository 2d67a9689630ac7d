"""Scores a trained model: `python -m vit_jax.evaluate --workdir=D`.

`--config.data.test.source=folder:OTHER` scores it on other data, and
`--checkpoint=FILE` a released checkpoint in place of a run. What `--tasks` can
name:

  metrics       means of what the model was trained for; the default
  retrieval     finding images by text and text by image
  zero_shot     classifying by the names of classes
  linear_probe  a linear classifier of frozen features
  few_shot      one of a few examples a class; `vit_jax.few_shot` can do more
  robustness    accuracy on corrupted images
  generation    how good the pictures are that a model draws of captions

generation draws pictures of the test captions. With --network=NETWORK they are
compared with the real ones by the Frechet distance of its features and, if it
knows classes, the Inception score: NETWORK is a workdir or a released
checkpoint of a classifier or a CLIP. Of pt_inception-2015-12-05-6726825d.pth,
the Inception-v3 of FID, they are FID and Inception score as papers have them.

zero_shot, linear_probe, few_shot and robustness read labels: of --source, or
else of the run's own config.eval.few_shot for few_shot, config.eval.zero_shot
for zero_shot and for robustness where classes are told by their names, or else
of its training and test data. With --variants=imagenet_v2,imagenet_a robustness
is accuracy on these sets, of a classifier of ImageNet or by the names of its
classes.
"""

import argparse
import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
from etils import epath
from rich.console import Console

from vit_jax import command_line, evaluate_options
from vit_jax.config import ConfigError, did_you_mean
from vit_jax.evaluation import (
  corruptions,
  few_shot,
  imagenet_variants,
  linear_probe,
  markdown_report,
  mean_metrics,
  retrieval,
  zero_shot,
)
from vit_jax.generation import feature_networks, sampler, scores
from vit_jax.training import (
  baseline,
  classifying,
  few_shot_inputs,
  image_codes,
  inputs,
  matching,
  records,
  scoring,
  trained,
)


def main(arguments: Sequence[str], console: Console) -> None:
  """Prints the scores; `--report` writes them as a page of Markdown."""
  options = evaluate_options.parser(__doc__)
  known, overrides = command_line.split(options, arguments)
  names = _chosen(known.tasks)
  evaluate_options.check_read(command_line.given(options, arguments), names)
  command_line.check_writable('--report', known.report)
  model = command_line.open_model(known, overrides)
  if known.random:
    fresh = trained.fresh_variables(model)
    model = dataclasses.replace(model, variables=fresh, step=0)
  # Nothing but JSON goes where JSON is expected.
  notes = command_line.make_console(stderr=True) if known.json else console
  trained.fit_batches(model)
  scorer = scoring.Scorer(
    model.task, model.config, model.mesh, command_line.tell_broken(notes)
  )
  figures, tables, data = {}, {}, {}
  with jax.set_mesh(model.mesh):
    for name in names:
      found, results, where = _TASKS[name](model, scorer, known)
      figures |= found
      data[where] = None
      for kind, rows in results.items():
        tables.setdefault(kind, {}).update(rows)
  if known.json:
    print(json.dumps({'step': model.step, **figures}))
  else:
    heading = f'step {model.step:,} on {" and ".join(data)}'
    console.print(heading, highlight=False, markup=False)
    width = max(12, *map(len, figures))
    for name, value in figures.items():
      shown = f'{value:,}' if isinstance(value, int) else f'{value:.4f}'
      console.print(f'  {name:<{width}} {shown}')
  for text in tables.get('facts', {}).values():
    notes.print(text, highlight=False, markup=False)
  # Last, so that figures are seen even if the disk is full by now.
  if known.report:
    _write_report(known.report, model, tables)


def _chosen(text: str) -> list[str]:
  for name in (names := text.split(',')):
    if name not in _TASKS:
      hint = did_you_mean(name, _TASKS)
      raise ConfigError(f'--tasks={name} is not measured.{hint}')
  return names


# Figures by name, results as `markdown_report` takes them, and what data they
# are of.
Scores = tuple[dict[str, float], dict[str, dict], str]


def _metrics(
  model: trained.Trained, scorer: scoring.Scorer, known: argparse.Namespace
) -> Scores:
  """Scores what the model was trained for, on `config.data.test`."""
  del known
  source, where = _test_source(model)
  if records.reads(model.config) == 'captions':
    matching.check_tokenizer(model)
  if records.reads(model.config) == 'labels':
    classifying.check_classes(model, source.class_names)
  transform = records.open_transform(
    model.config, 'test', getattr(model.task, 'tokenizer', None)
  )
  shape = model.task.image_shape
  records.check_shape(source, transform, shape, 'config.data.test')
  found = mean_metrics.mean_metrics(
    mean_metrics.make_summed(model.task),
    model.variables,
    scorer.batches(source, transform),
  )
  return found, {'metric_results': {where: found}}, where


def _retrieval(
  model: trained.Trained, scorer: scoring.Scorer, known: argparse.Namespace
) -> Scores:
  _check_pairs(model, 'retrieval')
  source, where = _test_source(model)
  if not hasattr(source, 'captions'):
    raise ConfigError(
      f'{model.config.data.test.source!r} has no captions to find. Name a '
      'source of captions by --config.data.test.source.'
    )
  found, among = scorer.retrieval(model.variables, source, known.captions)
  figures, rows = retrieval.figures(found), {where: found}
  if known.baseline:
    rows['n-grams of colours'] = baseline.evaluate(scorer, source, among)
    figures |= retrieval.figures(rows['n-grams of colours'], 'baseline')
  rows['chance'] = among.chance()
  return figures, {'retrieval_results': rows}, where


def _zero_shot(
  model: trained.Trained, scorer: scoring.Scorer, known: argparse.Namespace
) -> Scores:
  _check_pairs(model, 'zero_shot')
  source, where, prompts_name = _named(model, known)
  named = classifying.named(model.config, prompts_name, source.class_names)
  found = scorer.zero_shot(model.variables, source, named)
  return zero_shot.figures(found), {'zero_shot_results': {where: found}}, where


def _linear_probe(
  model: trained.Trained, scorer: scoring.Scorer, known: argparse.Namespace
) -> Scores:
  train, _ = _labelled(model, known, 'train')
  test, where = _labelled(model, known, 'test')
  inputs.check_classes(train.class_names, test.class_names)
  feature = known.feature or 'pooled'
  found = scorer.linear_probe(model.variables, train, test, feature)
  results = {'linear_probe_results': {where: found}}
  return linear_probe.figures(found), results, where


def _few_shot(
  model: trained.Trained, scorer: scoring.Scorer, known: argparse.Namespace
) -> Scores:
  if known.train_source:
    raise ConfigError(
      '--train-source is of linear_probe: few_shot chooses its examples from '
      '--source.'
    )
  # Of --source, splits of these names, as for the other tasks.
  settings = few_shot_inputs.settings(
    model.config.eval.few_shot,
    source=known.source,
    train_split=known.train_split or (known.source and 'train'),
    test_split=known.test_split or (known.source and 'test'),
    feature=known.feature,
  )
  measure = few_shot_inputs.make_measure(model, settings, scorer.say)
  found, test = measure(model.variables), model.config.data.test
  split = settings.test_split or test.split
  where = f'{settings.source or test.source} {split}'
  figures = few_shot.figures(found, with_l2=len(settings.l2) > 1)
  return figures, {'few_shot_results': {where: found}}, where


def _robustness(
  model: trained.Trained, scorer: scoring.Scorer, known: argparse.Namespace
) -> Scores:
  if known.variants:
    names = known.variants.split(',')
    found = classifying.variants(model, scorer, names, known.prompts)
    figures = imagenet_variants.figures(found)
    return figures, {'variant_results': found}, ', '.join(found)
  source, where, prompts_name = _named(model, known)
  measure = classifying.measure(model, scorer, source.class_names, prompts_name)
  found = scorer.robustness(
    source, lambda worse, transform: measure(worse, transform=transform).top_1
  )
  results = {'corruption_results': {where: found}}
  return corruptions.figures(found), results, where


def _generation(
  model: trained.Trained, scorer: scoring.Scorer, known: argparse.Namespace
) -> Scores:
  """Scores pictures that a model draws of test captions."""
  del scorer
  if not hasattr(model.task, 'sample'):
    raise ConfigError(
      '--tasks=generation needs a model that draws pictures; this one is a '
      f'{model.config.model.name} for {model.config.task.name}.'
    )
  drawer = sampler.Sampler(model)
  if image_codes.about(model.config, 'test'):
    raise ConfigError(
      '--tasks=generation compares with images, but config.data.test.source '
      'has codes: name the source of the images.'
    )
  command_line.check_seed(known.seed)
  sampling = command_line.sampling(known)
  matcher = command_line.open_clip(known)
  source, where = _test_source(model)
  network = None
  if known.network:
    network = feature_networks.of_path(epath.Path(known.network))
  found, notes = scores.evaluate(
    drawer,
    scores.read(drawer, source, known.count),
    sampling=sampling,
    seed=known.seed,
    best_of=known.best_of,
    matcher=matcher,
    network=network,
  )
  results = {
    'facts': {'pictures': ' '.join(notes)},
    'metric_results': {f'pictures of the captions of {where}': found},
  }
  return found, results, where


_TASKS = {
  'metrics': _metrics,
  'retrieval': _retrieval,
  'zero_shot': _zero_shot,
  'linear_probe': _linear_probe,
  'few_shot': _few_shot,
  'robustness': _robustness,
  'generation': _generation,
}


def _test_source(model: trained.Trained) -> tuple[Any, str]:
  """Opens `config.data.test`; returns what it is called as well."""
  test = model.config.data.test
  if not test.source:
    raise ConfigError(
      'A released checkpoint has no test data of its own: name some, such as '
      '--config.data.test.source=tfds:imagenet2012 '
      '--config.data.test.split=validation.'
    )
  frozen = getattr(model.task, 'frozen', None)
  image_codes.check_readable(model.config, 'test', frozen)
  image_codes.check_same_vae(model.config, 'test', frozen)
  return records.open_split(model.config, 'test'), f'{test.source} {test.split}'


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


def _named(
  model: trained.Trained, known: argparse.Namespace
) -> tuple[Any, str, str | None]:
  """Opens labels that are told by their names, as the run itself has it.

  Returns:
    The source, what it is called, and the name of the prompts.
  """
  own = model.config.eval.zero_shot
  if known.source or not own.source:
    return *_labelled(model, known, 'test'), known.prompts
  split = known.test_split or own.split
  found = records.open_source(own.source, split, (), 'config.eval.zero_shot')
  return found, f'{own.source} {split}', known.prompts or own.prompts


def _check_pairs(model: trained.Trained, name: str) -> None:
  """Raises ConfigError for a model without texts."""
  if not hasattr(model.task, 'encode_image'):
    raise ConfigError(
      f'--tasks={name} needs a model of images and texts, such as a CLIP; this '
      f'one is a {model.config.model.name} for {model.config.task.name}.'
    )
  matching.check_tokenizer(model)


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


if __name__ == '__main__':
  command_line.run(main)
