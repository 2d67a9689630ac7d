"""Classifies images: `python -m vit_jax.predict --workdir=D image.png ...`.

Prints the most probable classes of each, by a finished run.
"""

import itertools
import pathlib
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from rich.console import Console

from vit_jax import command_line
from vit_jax.config import ConfigError
from vit_jax.training import inputs, trained
from vit_jax.training import mesh as mesh_lib

# Images of one call of the model, at most.
_BATCH = 64


def main(arguments: Sequence[str], console: Console) -> None:
  """Prints names and probabilities; a file that is no image is named."""
  options = command_line.parser(__doc__, 'vit_jax.predict')
  options.add_argument('images', nargs='+', type=pathlib.Path)
  options.add_argument('--top', type=int, default=5, help='classes to print')
  options.add_argument(
    '--step', help='of the checkpoint: a number or "best"; newest by default'
  )
  known, overrides = command_line.split(options, arguments)
  if known.top < 1:
    raise ConfigError(f'--top={known.top} prints nothing: use 1 or more.')
  model = trained.load(
    command_line.required(known.workdir), known.step, overrides
  )
  failed = []
  for path, probabilities in _predict(model, known.images, failed):
    console.print(f'{path}', highlight=False, markup=False)
    for label in np.argsort(-probabilities)[: known.top]:
      line = f'  {probabilities[label]:6.1%}  {model.task.class_names[label]}'
      console.print(line, highlight=False, markup=False)
  if failed:
    raise ConfigError('These could not be read:\n  ' + '\n  '.join(failed))


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
