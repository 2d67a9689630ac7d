"""What a model of text to image draws, beside the images of the same texts."""

import textwrap
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from matplotlib.figure import Figure

from vit_jax.models import decoding
from vit_jax.tasks.first_examples import first_examples

# Texts on the sheet, and images of each.
_TEXTS, _IMAGES = 8, 4
# Inches: of an image, and of the text above.
_SIDE, _HEAD = 1.3, 0.75

_first = jax.jit(first_examples, static_argnums=1)


def make_draw(task: Any) -> Callable[[Mapping, Mapping], tuple]:
  """Returns a jitted function that draws images of the texts of a batch.

  Drawn without guidance and from all codes, with the same random numbers each
  time.

  Args:
    task: a `TextToImage` with a discrete VAE.

  Returns:
    A function from variables and a batch to the batch's images, those that are
    drawn [texts, images, height, width, channels], texts and mask.
  """

  @jax.jit
  def draw(variables, batch):
    keys = decoding.candidate_keys(0, len(batch['text']), _IMAGES)
    codes = task.sample(variables, batch['text'], keys, decoding.Sampling())
    drawn = task.decode(variables, codes.reshape(-1, *task.model.grid))
    drawn = drawn.reshape(*keys.shape, *drawn.shape[1:])
    if 'image' in batch:
      real = batch['image']
    else:
      real = task.decode(
        variables, batch['codes'].reshape(-1, *task.model.grid)
      )
    return real, drawn, batch['text'], batch['mask']

  return draw


def samples(
  draw: Callable,
  tokenizer: Any,
  variables: Mapping[str, Any],
  batches: Iterable[Mapping],
) -> Figure:
  """Returns a sheet: a column for a text, the real image, images drawn of it.

  Args:
    draw: see `make_draw`.
    tokenizer: that the texts went through.
    variables: of the model.
    batches: of test data, of which the first is looked at.
  """
  # All of it goes through, as it lies on the devices, which may be those of
  # several hosts.
  found = multihost_utils.process_allgather(
    draw(variables, _first(next(iter(batches)), _TEXTS)), tiled=True
  )
  real, drawn, text, mask = (np.asarray(x) for x in found)
  shown = np.flatnonzero(mask)[:_TEXTS]
  texts = [tokenizer.decode(row).strip() for row in text[shown]]
  rows = np.concatenate([real[shown, None], drawn[shown]], axis=1)
  return _draw(texts, rows)


def _draw(texts: list[str], images: np.ndarray) -> Figure:
  """Draws [texts, images, height, width, channels], the first image is real."""
  columns, rows = images.shape[:2]
  size = (_SIDE * columns + 0.6, _HEAD + _SIDE * rows)
  figure = Figure(figsize=size, dpi=120, layout='constrained')
  panels = figure.subplots(rows, columns, squeeze=False)
  for column, (text, several) in enumerate(zip(texts, images)):
    title = '\n'.join(textwrap.wrap(text, 20, max_lines=4, placeholder='...'))
    panels[0, column].set_title(title, fontsize=7)
    for axes, image in zip(panels[:, column], several):
      grey = image.shape[-1] == 1
      axes.imshow(image[..., 0] if grey else image, 'gray', vmin=0, vmax=1)
      axes.set(xticks=[], yticks=[])
      axes.spines[:].set(visible=True, color='silver', linewidth=0.5)
  panels[0, 0].set_ylabel('real')
  for axes in panels[1:, 0]:
    axes.set_ylabel('drawn')
  return figure
