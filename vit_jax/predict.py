"""Classifies images: `python -m vit_jax.predict --workdir=D image.png ...`.

Prints the most probable classes of each, by a finished run.
"""

import pathlib
from collections.abc import Sequence

import jax
import numpy as np
from rich.console import Console

from vit_jax import command_line
from vit_jax.config import ConfigError
from vit_jax.training import inputs, trained


def main(arguments: Sequence[str], console: Console) -> None:
  """Prints names and probabilities; a file that is no image is named."""
  options = command_line.parser(__doc__, 'vit_jax.predict')
  options.add_argument('images', nargs='+', type=pathlib.Path)
  options.add_argument('--top', type=int, default=5, help='classes to print')
  options.add_argument(
    '--step', help='of the checkpoint: a number or "best"; newest by default'
  )
  known, overrides = command_line.split(options, arguments)
  model = trained.load(
    command_line.required(known.workdir), known.step, overrides
  )
  transform = inputs.open_preprocess(model.config, 'test')
  predict = jax.jit(model.task.predict)
  failed = []
  for path in known.images:
    try:
      record = {'image': path.read_bytes(), 'label': 0}
      image = transform(record, None)['image']
      image = inputs.with_channels(image, model.task.image_shape)
    except (OSError, ValueError) as error:
      failed.append(f'{path}: {error}')
      continue
    probabilities = np.asarray(predict(model.variables, image[None])[0])
    console.print(f'{path}', highlight=False)
    for label in np.argsort(-probabilities)[: known.top]:
      name = model.task.class_names[label]
      console.print(f'  {probabilities[label]:6.1%}  {name}', highlight=False)
  if failed:
    raise ConfigError('These could not be read:\n  ' + '\n  '.join(failed))


if __name__ == '__main__':
  command_line.run(main)
