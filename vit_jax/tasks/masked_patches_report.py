"""What a model says that hidden patches look like."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from matplotlib.figure import Figure

from vit_jax.tasks.first_examples import first_examples

# Images on the sheet, in so many columns of three.
_IMAGES, _COLUMNS = 12, 3
_TITLES = ('original', 'corrupted', 'predicted')


def make_look(reconstruct: Callable) -> Callable[[Mapping, Mapping], tuple]:
  """Returns a jitted function: the first images of a batch in three states.

  Args:
    reconstruct: from variables and images [batch, height, width, channels] to
      the images, corrupted and predicted.

  Returns:
    A function from variables and a batch (`image` and `mask` [batch], 0 where
    an example is padding) to which examples are real, and the three.
  """

  @jax.jit
  def look(variables, batch):
    images = reconstruct(variables, batch['image'])
    return first_examples((batch['mask'] > 0, images), _IMAGES)

  return look


def collect(
  look: Callable,
  variables: Mapping[str, Any],
  batches: Iterable[Mapping[str, jax.Array]],
) -> tuple[np.ndarray, ...]:
  """Returns the first images of a data set, on the host, in three states.

  Args:
    look: see `make_look`.
    variables: of the model.
    batches: on the devices.
  """
  # Every process takes part, though but one draws.
  real, images = multihost_utils.process_allgather(
    look(variables, next(iter(batches))), tiled=True
  )
  return tuple(x[real][:_IMAGES] for x in images)


def draw(
  original: np.ndarray, corrupted: np.ndarray, predicted: np.ndarray
) -> Figure:
  """Draws images beside each other, [images, height, width, channels]."""
  rows = -(-len(original) // _COLUMNS)
  height = 0.8 + 1.1 * rows
  figure = Figure(figsize=(10.2, height), dpi=120)
  figure.suptitle(
    'Patches of test images: as they are, as they are seen, as predicted',
    x=0.02,
    y=1 - 0.12 / height,
    ha='left',
  )
  # An empty column keeps the threes apart.
  grid = figure.subplots(
    rows,
    4 * _COLUMNS - 1,
    squeeze=False,
    width_ratios=([1, 1, 1, 0.2] * _COLUMNS)[:-1],
  )
  figure.subplots_adjust(
    0.02, 0.1 / height, 0.98, 1 - 0.75 / height, wspace=0.05, hspace=0.06
  )
  for axes in grid.flat:
    axes.axis('off')
  for number, images in enumerate(zip(original, corrupted, predicted)):
    row, column = divmod(number, _COLUMNS)
    for offset, (image, title) in enumerate(zip(images, _TITLES)):
      axes = grid[row, 4 * column + offset]
      shown = image if image.shape[-1] == 3 else image[..., 0]
      axes.imshow(shown, cmap='gray', vmin=0, vmax=1)
      if row == 0:
        axes.set_title(title, fontsize=8, weight='normal', loc='center')
  return figure
