"""Classifies images: `python -m vit_jax.predict --workdir=D image.png ...`.

Prints the most probable classes of each file, and of each image file in a
folder. `--checkpoint=FILE` takes a released checkpoint in place of a run.

With a model of images and texts, the classes are what you say,

  --labels='a cat|a dog'

and images are found by text, the best of them on one sheet:

  --search='red apple' --images=FOLDER --output=found.png
"""

import argparse
import csv
import itertools
import json
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from rich.console import Console

from vit_jax import command_line
from vit_jax.analysis import contact_sheet
from vit_jax.config import ConfigError
from vit_jax.data import folder_source, images
from vit_jax.training import inputs, matching, records, trained
from vit_jax.training import mesh as mesh_lib

# Images of one call of the model, at most.
_BATCH = 64

# Shows the names and probabilities of the top classes of a file.
Show = Callable[[pathlib.Path, list[tuple[str, float]]], None]


def main(arguments: Sequence[str], console: Console) -> None:
  """Prints names and probabilities; a file that is no image is named."""
  options = command_line.parser(__doc__, 'vit_jax.predict')
  command_line.add_model(options)
  options.formatter_class = argparse.RawDescriptionHelpFormatter
  options.add_argument('files', nargs='*', type=pathlib.Path)
  options.add_argument(
    '--images', action='append', type=pathlib.Path, help='file or folder'
  )
  options.add_argument('--labels', help="texts, with '|' between them")
  options.add_argument('--search', help='text of the images to find')
  options.add_argument(
    '--output',
    type=pathlib.Path,
    default=pathlib.Path('found.png'),
    help='sheet of what --search finds; found.png by default',
  )
  options.add_argument(
    '--top', type=int, help='classes to print, or images to find'
  )
  options.add_argument(
    '--format', choices=_FORMATS, default='text', help='of what is printed'
  )
  known, overrides = command_line.split(options, arguments)
  if known.top is not None and known.top < 1:
    raise ConfigError(f'--top={known.top} prints nothing: use 1 or more.')
  if known.search and known.format != 'text':
    raise ConfigError('--format is of classes: leave it out with --search.')
  if known.search and known.labels:
    raise ConfigError('Give --labels or --search, not both.')
  paths = list(_files([*known.files, *(known.images or ())]))
  if not paths:
    raise ConfigError('Name image files or folders.')
  model = command_line.open_model(known, overrides)
  failed = []
  if known.search:
    _search(model, paths, known, failed, console)
  else:
    _classify(model, paths, known, failed, console)
  if failed:
    raise ConfigError('These could not be read:\n  ' + '\n  '.join(failed))


def _classify(
  model: trained.Trained,
  paths: Sequence[pathlib.Path],
  known: argparse.Namespace,
  failed: list[str],
  console: Console,
) -> None:
  """Shows the most probable classes, or labels, of each file."""
  if known.labels:
    names = [label.strip() for label in known.labels.split('|')]
    predict = matching.Matcher(model).classifier(names)
  elif hasattr(model.task, 'predict'):
    names, predict = model.task.class_names, model.task.predict
  else:
    raise ConfigError(
      f'The model was trained for {model.config.task.name}, which has no '
      'classes. '
      + (
        "Name some, as in --labels='a cat|a dog'."
        if hasattr(model.task, 'encode_text')
        else ''
      )
    )
  show = _FORMATS[known.format](console)
  for path, probabilities in _applied(model, predict, paths, failed):
    best = np.argsort(-probabilities)[: known.top or 5]
    show(path, [(names[label], float(probabilities[label])) for label in best])


def _search(
  model: trained.Trained,
  paths: Sequence[pathlib.Path],
  known: argparse.Namespace,
  failed: list[str],
  console: Console,
) -> None:
  """Shows the files that a text describes best, and draws a sheet of them."""
  matcher = matching.Matcher(model)
  score = matcher.scorer([known.search])
  scores = {
    path: float(score[0])
    for path, score in _applied(model, score, paths, failed)
  }
  best = sorted(scores, key=scores.get, reverse=True)[: known.top or 16]
  for path in best:
    line = f'{scores[path]:8.4f}  {path}'
    console.print(line, highlight=False, markup=False)
  if not best:
    return
  sheet = contact_sheet.draw(
    [images.decode(path.read_bytes()) for path in best],
    [f'{scores[path]:.3f}' for path in best],
    title=known.search,
  )
  sheet.save(known.output)
  console.print(f'Written to {known.output}.', highlight=False, markup=False)


def _as_text(console: Console) -> Show:
  def show(path, top):
    console.print(f'{path}', highlight=False, markup=False)
    for name, probability in top:
      line = f'  {probability:6.1%}  {name}'
      console.print(line, highlight=False, markup=False)

  return show


def _as_csv(unused_console: Console) -> Show:
  writer = csv.writer(sys.stdout, lineterminator='\n')
  writer.writerow(['file', 'rank', 'class', 'probability'])

  def show(path, top):
    for rank, (name, probability) in enumerate(top, 1):
      writer.writerow([path, rank, name, probability])

  return show


def _as_json(unused_console: Console) -> Show:
  """One object a line, so that a long output can be read as it comes."""

  def show(path, top):
    classes = [
      {'class': name, 'probability': probability} for name, probability in top
    ]
    print(json.dumps({'file': str(path), 'classes': classes}))

  return show


_FORMATS = {'text': _as_text, 'csv': _as_csv, 'json': _as_json}


def _files(paths: Sequence[pathlib.Path]) -> Iterator[pathlib.Path]:
  """Yields the files, and the image files in each folder, sorted."""
  for path in paths:
    if not path.is_dir():
      yield path
      continue
    found = sorted(folder_source.image_files(path))
    if not found:
      raise ConfigError(f'There is no image file in the folder {path}.')
    yield from (path / name for name in found)


def _applied(
  model: trained.Trained,
  function: Callable,
  paths: Sequence[pathlib.Path],
  failed: list[str],
) -> Iterator[tuple[pathlib.Path, np.ndarray]]:
  """Yields each readable file with the result of a function for it.

  Args:
    model: whose variables are its first argument.
    function: of variables and images, a row for each.
    paths: of the files.
    failed: is told what is no image.
  """
  predict = jax.jit(function)
  size = model.whole_batch(min(_BATCH, len(paths)))
  readable = _read(model, paths, failed)
  while chunk := list(itertools.islice(readable, size)):
    paths, prepared = zip(*chunk)
    # Of one shape, the last as well, so that it is compiled once.
    image = np.zeros((size, *model.task.image_shape), np.float32)
    image[: len(chunk)] = prepared
    with jax.set_mesh(model.mesh):
      batch = mesh_lib.to_mesh({'image': image}, model.mesh)
      probabilities = predict(model.variables, batch['image'])
    yield from zip(paths, jax.device_get(probabilities))


def _read(
  model: trained.Trained, paths: Sequence[pathlib.Path], failed: list[str]
) -> Iterator[tuple[pathlib.Path, np.ndarray]]:
  """Yields files with their images; notes in `failed` what is no image."""
  transform = records.open_preprocess(model.config, 'test')
  for path in paths:
    try:
      record = {'image': path.read_bytes()}
      image = transform(record, None)['image']
      yield path, inputs.with_channels(image, model.task.image_shape)
    except (OSError, ValueError) as error:
      failed.append(f'{path}: {error}')


if __name__ == '__main__':
  command_line.run(main)
