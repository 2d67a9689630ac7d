"""Figures of texts and the images that are drawn after them."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from vit_jax.analysis import drawing, text_drawing

# Of the words of a text, beside each other; and of each, letters.
_COLUMNS, _LETTERS = 8, 10
# Inches: of a line of letters.
_LINE = 0.22


def positions(similarity: Sequence[np.ndarray]) -> Figure:
  """Draws how alike places are: in a text, rows and columns, [n, n] each."""
  figure = drawing.new_figure(2.6)
  panels = figure.subplots(1, 3)
  lowest = min(0, *(x.min() for x in similarity))
  names = ('place in the text', 'row of the image', 'column of the image')
  for axes, table, name in zip(panels, similarity, names):
    edges = (0.5, len(table) + 0.5)
    extent = (*edges, *edges[::-1])
    image = axes.imshow(table, vmin=lowest, vmax=1, extent=extent)
    axes.set_xlabel(name)
    for axis in (axes.xaxis, axes.yaxis):
      axis.set_major_locator(MaxNLocator(5, integer=True))
  figure.colorbar(image, ax=panels, label='cosine similarity', shrink=0.8)
  return figure


def words(
  pixels: Sequence[np.ndarray],
  texts: Sequence[Sequence[str]],
  maps: Sequence[np.ndarray],
) -> Figure:
  """Draws images, each followed by its words with the places they light up.

  Args:
    pixels: of each image, [height, width, 3].
    texts: the words of each.
    maps: of the words of each, [words, rows, columns]; dark up to 1, and as
      bright as it can be at the largest of a text.
  """
  rows = [max(1, -(-len(text) // _COLUMNS)) for text in texts]
  tall = pixels[0].shape[0] / pixels[0].shape[1]
  side = drawing.WIDTH / (1 + _COLUMNS)
  figure = drawing.new_figure(sum(rows) * (tall * side + _LINE))
  panels = figure.subplots(sum(rows), 1 + _COLUMNS, squeeze=False)
  for axes in panels.ravel():
    axes.set_axis_off()
  first = 0
  for image, text, of_words, number in zip(pixels, texts, maps, rows):
    axes = panels[first, 0]
    axes.set_axis_on()
    drawing.show_image(axes, image)
    if len(text):
      above = np.maximum(of_words - 1, 0)
      brightest = max(above.max(), 1e-9)
      shown = drawing.overlaid(np.stack([image] * len(text)), above, brightest)
      free = panels[first : first + number, 1:].ravel()
      for axes, word, heat in zip(free, text, shown):
        axes.imshow(heat)
        axes.set_title(text_drawing.cut(word, _LETTERS), pad=2, fontsize=9)
    first += number
  return figure


def heads(
  pixels: np.ndarray,
  place: tuple[int, int],
  weights: np.ndarray,
  tokens: Sequence[str],
  shares: np.ndarray,
) -> Figure:
  """Draws what a place of an image is drawn from.

  Args:
    pixels: [height, width, 3].
    place: its row and column.
    weights: of places of the image, NaN where they are hidden, [layers, heads,
      rows, columns].
    tokens: of the text.
    shares: of each layer, of the start of the stream, those tokens, padding
      and the image, [layers, tokens + 3].
  """
  layers, number, rows, columns = weights.shape
  beside = drawing.WIDTH / 4
  wide = min(
    (drawing.WIDTH - beside) / number,
    drawing.HEIGHT / 2 / layers * columns / rows,
  )
  tall = max(beside, wide * layers * rows / columns) + 0.6
  below = 1.2 + _LINE * layers
  figure = drawing.new_figure(tall + below)
  upper, lower = figure.subfigures(2, 1, height_ratios=(tall, below))
  left, right = upper.subplots(1, 2, width_ratios=(beside, wide * number))
  left.set_anchor('N')
  right.set_anchor('N')
  drawing.show_image(left, pixels)
  _frame(left, pixels, place, (rows, columns))
  largest = np.nanmax(weights, axis=(2, 3), initial=1e-9, keepdims=True)
  tiles = (weights / largest)[..., None]
  drawing.show_tiles(right, tiles, vmin=0, vmax=1, cmap=drawing.HEAT)
  drawing.number_tiles(right, tiles)
  right.set(xlabel='head', ylabel='layer')
  axes = lower.subplots()
  image = axes.imshow(shares, vmin=0, cmap=drawing.HEAT, aspect='auto')
  names = ('<stream>', *tokens, 'padding', 'image')
  axes.set_xticks(range(len(names)), names, rotation=60, ha='right', fontsize=9)
  axes.set_yticks(range(layers), [str(x + 1) for x in range(layers)])
  axes.set_ylabel('layer')
  lower.colorbar(image, label='share')
  return figure


def _frame(
  axes: Axes,
  pixels: np.ndarray,
  place: tuple[int, int],
  grid: tuple[int, int],
) -> None:
  """Draws a line around a place of an image."""
  tall, wide = np.array(pixels.shape[:2]) / grid
  corner = (place[1] * wide - 0.5, place[0] * tall - 0.5)
  axes.add_patch(
    Rectangle(corner, wide, tall, fill=False, color='red', linewidth=1.5)
  )
