"""Figures of texts, token by token."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from vit_jax.analysis import drawing

# Letters of one width: of a line, and what the size of one is in inches.
_COLUMNS, _WIDE, _TALL = 72, drawing.WIDTH / 72, 0.26
_LETTERS = dict(family='monospace', fontsize=9, va='center')
# Of red, green and blue (ITU-R BT.601); above it, letters are black.
_LUMINANCE, _LIGHT = np.array([0.299, 0.587, 0.114]), 0.5
# Tokens of a text that attention is drawn of, at most.
_TOKENS = 32


def positions(similarity: np.ndarray) -> Figure:
  """Draws how alike positions are, [length, length]."""
  figure = drawing.new_figure(5)
  axes = figure.subplots()
  edges = (0.5, len(similarity) + 0.5)
  image = axes.imshow(
    similarity,
    vmin=min(0, similarity.min()),
    vmax=1,
    extent=(*edges, *edges[::-1]),
  )
  axes.set(xlabel='place of a token', ylabel='place of another')
  figure.colorbar(image, label='cosine similarity', shrink=0.8)
  return figure


def heated(
  tokens: Sequence[Sequence[str]], weights: Sequence[np.ndarray]
) -> Figure:
  """Draws texts whose tokens are the brighter, the more they weigh.

  Args:
    tokens: of each text.
    weights: of each token of each text; scaled for each text.
  """
  colours = matplotlib.colormaps[drawing.HEAT]
  shades = [colours(x / max(x.max(), 1e-9))[:, :3] for x in weights]
  return coloured(tokens, shades)


def coloured(
  tokens: Sequence[Sequence[str]], colours: Sequence[np.ndarray]
) -> Figure:
  """Draws texts, each token on its colour.

  Args:
    tokens: of each text.
    colours: of each token of each text, [tokens, 3], from 0 to 1.
  """
  boxes, line = [], 0
  for text, shades in zip(tokens, colours):
    column = 0
    for token, colour in zip(text, shades):
      token = cut(token, _COLUMNS - 2)
      wide = max(1, len(token)) + 1
      if column + wide > _COLUMNS:
        line, column = line + 1, 2  # What goes on is set in.
      boxes.append((line, column, wide, token, colour))
      column += wide
    line += 1.4
  figure, axes = _page(line, max(box[1] + box[2] for box in boxes))
  for line, column, wide, token, colour in boxes:
    corner = (column + 0.05, line - 0.45)
    axes.add_patch(Rectangle(corner, wide - 0.1, 0.9, color=colour))
    ink = 'black' if colour @ _LUMINANCE > _LIGHT else 'white'
    middle = column + wide / 2
    axes.text(middle, line, token, color=ink, ha='center', **_LETTERS)
  return figure


def neighbours(
  names: Sequence[str], order: np.ndarray, similarity: np.ndarray
) -> Figure:
  """Lists texts, each with those that are most like it.

  Args:
    names: the texts.
    order: which are most like the first texts, [queries, number].
    similarity: of them, likewise.
  """
  queries, number = order.shape
  longest = max(map(len, names))
  figure, axes = _page(queries * (number + 1.6), longest + 8)
  for query, (others, values) in enumerate(zip(order, similarity)):
    line = query * (number + 1.6)
    text = cut(names[query], _COLUMNS)
    axes.text(0, line, text, fontweight='bold', **_LETTERS)
    for below, (other, value) in enumerate(zip(others, values), 1):
      text = f'{value:6.2f}  {cut(names[other], _COLUMNS - 8)}'
      axes.text(0, line + below, text, **_LETTERS)
  return figure


def heads(tokens: Sequence[str], weights: np.ndarray, causal: bool) -> Figure:
  """Draws which token attends to which, beside the tokens.

  Args:
    tokens: of the text.
    weights: from row to column, [layers, heads, tokens, tokens].
    causal: whether later tokens are hidden, which stay white.
  """
  tokens, weights = tokens[:_TOKENS], weights[..., :_TOKENS, :_TOKENS]
  layers, number = weights.shape[:2]
  widest = min(16, max(map(len, tokens)) + 4)
  beside = widest * _WIDE
  size = min((drawing.WIDTH - beside) / number, drawing.HEIGHT / layers)
  list_tall = _TALL * len(tokens)
  figure = drawing.new_figure(
    max(list_tall, size * layers) + 0.6, beside + size * number + 0.6
  )
  left, right = figure.subplots(1, 2, width_ratios=(beside, size * number))
  left.set_axis_off()
  tall = max(list_tall, size * layers) / _TALL
  left.set(xlim=(0, widest), ylim=(tall - 0.5, -0.5))
  for line, token in enumerate(tokens):
    text = f'{line + 1:2} {cut(token, widest - 3)}'
    left.text(0, line, text, **_LETTERS)
  tiles = (weights / weights.max(axis=(2, 3), keepdims=True))[..., None]
  if causal:
    later = np.triu(np.ones(weights.shape[-2:], bool), 1)[..., None]
    tiles = np.where(later, np.nan, tiles)
  drawing.show_tiles(right, tiles, vmin=0, vmax=1, cmap=drawing.HEAT)
  drawing.number_tiles(right, tiles)
  right.set_anchor('N')
  right.set(xlabel='head', ylabel='layer')
  return figure


def _page(lines: float, columns: int) -> tuple[Figure, Axes]:
  """Returns an empty figure whose unit is one letter of a line."""
  columns = min(columns, _COLUMNS)
  figure = drawing.new_figure(_TALL * lines + 0.1, columns * _WIDE)
  axes = figure.subplots()
  axes.set_axis_off()
  axes.set(xlim=(0, columns), ylim=(lines - 0.5, -0.6))
  return figure, axes


def cut(text: str, room: int) -> str:
  """Returns as much of a text as there is room for."""
  return text if len(text) <= room else f'{text[: room - 3]}...'
