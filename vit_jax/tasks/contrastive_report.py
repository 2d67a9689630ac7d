"""What a contrastive model shows of test data: images beside their texts."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from matplotlib.figure import Figure

_SHOWN = 8


def matches(
  task: Any, variables: Mapping[str, Any], batches: Iterable[Mapping]
) -> Figure:
  """Returns how similar the first images and texts are, as a table.

  Args:
    task: a `Contrastive`.
    variables: of its model.
    batches: of test data, of which the first is looked at.
  """
  batch = next(iter(batches))

  @jax.jit
  def look(variables, batch):
    image, _ = task.encode_image(variables, batch['image'])
    text, _ = task.encode_text(variables, batch['text'])
    return image @ text.T, batch['image'], batch['text'], batch['mask']

  # Every process takes part, though but one draws.
  found = multihost_utils.process_allgather(look(variables, batch), tiled=True)
  table, images, tokens, mask = map(np.asarray, found)
  shown = np.flatnonzero(mask)[:_SHOWN]
  table, images = table[np.ix_(shown, shown)], images[shown]
  texts = [task.tokenizer.decode(row).strip() for row in tokens[shown]]
  return _draw(images, texts, table)


def _draw(images: np.ndarray, texts: list[str], table: np.ndarray) -> Figure:
  count = len(texts)
  figure = Figure(figsize=(8, 6), layout='constrained')
  grid = figure.add_gridspec(2, count, height_ratios=[1, count])
  for number, image in enumerate(images):
    axes = figure.add_subplot(grid[0, number])
    low, high = image.min(), image.max()
    axes.imshow((image - low) / max(high - low, 1e-6), cmap='gray')
    axes.axis('off')
  axes = figure.add_subplot(grid[1, :])
  axes.imshow(table.T, vmin=-1, vmax=1, cmap='coolwarm', aspect='auto')
  axes.set_xticks([])
  axes.set_yticks(range(count), texts, fontsize=8, parse_math=False)
  for row, column in np.ndindex(table.shape):
    axes.text(
      row, column, f'{table[row, column]:.2f}', ha='center', va='center'
    )
  figure.suptitle('Similarity of images and texts of the test data')
  return figure
