"""Classifies images: `python -m vit_jax.predict --workdir=D image.png ...`.

Prints the most probable classes of each file, and of each image file in a
folder. `--checkpoint=FILE` takes a released checkpoint in place of a run.
"""

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
from vit_jax.config import ConfigError
from vit_jax.data import folder_source
from vit_jax.training import inputs, trained
from vit_jax.training import mesh as mesh_lib

# Images of one call of the model, at most.
_BATCH = 64

# Shows the names and probabilities of the top classes of a file.
Show = Callable[[pathlib.Path, list[tuple[str, float]]], None]


def main(arguments: Sequence[str], console: Console) -> None:
  """Prints names and probabilities; a file that is no image is named."""
  options = command_line.parser(__doc__, 'vit_jax.predict')
  command_line.add_model(options)
  options.add_argument('images', nargs='+', type=pathlib.Path)
  options.add_argument('--top', type=int, default=5, help='classes to print')
  options.add_argument(
    '--format', choices=_FORMATS, default='text', help='of what is printed'
  )
  known, overrides = command_line.split(options, arguments)
  if known.top < 1:
    raise ConfigError(f'--top={known.top} prints nothing: use 1 or more.')
  paths = list(_files(known.images))
  model = command_line.open_model(known, overrides)
  failed = []
  show = _FORMATS[known.format](console)
  for path, probabilities in _predict(model, paths, failed):
    best = np.argsort(-probabilities)[: known.top]
    names = model.task.class_names
    show(path, [(names[label], float(probabilities[label])) for label in best])
  if failed:
    raise ConfigError('These could not be read:\n  ' + '\n  '.join(failed))


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


def _predict(
  model: trained.Trained, paths: Sequence[pathlib.Path], failed: list[str]
) -> Iterator[tuple[pathlib.Path, np.ndarray]]:
  """Yields each readable file with the probabilities of all classes."""
  predict = jax.jit(model.task.predict)
  size = model.whole_batch(min(_BATCH, len(paths)))
  readable = _read(model, paths, failed)
  while chunk := list(itertools.islice(readable, size)):
    paths, images = zip(*chunk)
    # Of one shape, the last as well, so that it is compiled once.
    image = np.zeros((size, *model.task.image_shape), np.float32)
    image[: len(chunk)] = images
    with jax.set_mesh(model.mesh):
      batch = mesh_lib.to_mesh({'image': image}, model.mesh)
      probabilities = predict(model.variables, batch['image'])
    yield from zip(paths, jax.device_get(probabilities))


def _read(
  model: trained.Trained, paths: Sequence[pathlib.Path], failed: list[str]
) -> Iterator[tuple[pathlib.Path, np.ndarray]]:
  """Yields files with their images; notes in `failed` what is no image."""
  transform = inputs.open_preprocess(model.config, 'test')
  for path in paths:
    try:
      record = {'image': path.read_bytes(), 'label': 0}
      image = transform(record, None)['image']
      yield path, inputs.with_channels(image, model.task.image_shape)
    except (OSError, ValueError) as error:
      failed.append(f'{path}: {error}')


if __name__ == '__main__':
  command_line.run(main)
