"""Figures from numbers, such as a paper could print."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from vit_jax.models import position

STYLE = {
  'axes.spines.right': False,
  'axes.spines.top': False,
  'axes.titlesize': 10,
  # Large enough for a phone.
  'font.size': 11,
  'image.interpolation': 'nearest',
  'legend.frameon': False,
  'savefig.bbox': 'tight',
  'savefig.dpi': 200,
  'savefig.pad_inches': 0.05,
}
# Inches: a page of a paper, without its margins.
WIDTH, HEIGHT = 6.5, 8.5
# Between tiles, in shares of their size.
_GAP = 0.12
# Of what is attended to; and how much of an image it covers.
HEAT, _COVER = 'inferno', 0.65
# Behind what is told apart.
_BEHIND = ('#d4e6f7', '#fbe3c8', '#d6f0d2', '#ece0f5')
# Numbers on an axis of tiles, at most.
_TICKS = 16


def filters(components: np.ndarray, shares: np.ndarray) -> Figure:
  """Draws filters side by side; grey is zero.

  Args:
    components: [n, height, width, channels].
    shares: of the variance, [n].
  """
  number = len(components)
  columns = min(7, number)
  rows = -(-number // columns)
  largest = np.abs(components).max(axis=(1, 2, 3), keepdims=True)
  tiles = np.full((rows * columns, *components.shape[1:]), np.nan)
  tiles[:number] = 0.5 + 0.5 * components / largest
  figure = new_figure(0.5 + 0.9 * rows, max(3, 0.9 * columns))
  axes = figure.subplots()
  tiles = _rgb(tiles.reshape(rows, columns, *tiles.shape[1:]))
  show_tiles(axes, tiles)
  _frame_tiles(axes, tiles, number)
  axes.set_xlabel(
    f'{number} principal components: {shares.sum():.0%} of the variance'
  )
  return figure


def positions(similarity: np.ndarray) -> Figure:
  """Draws a grid of grids.

  Args:
    similarity: of patch and patch, [rows, columns, rows, columns].
  """
  rows, columns = similarity.shape[:2]
  figure = new_figure(0.5 + 5.2 * rows / columns)
  axes = figure.subplots()
  tiles = similarity[..., None]
  image = show_tiles(axes, tiles, vmin=min(0, tiles.min()), vmax=1)
  number_tiles(axes, tiles)
  axes.set(xlabel='column of the patch', ylabel='row of the patch')
  figure.colorbar(image, label='cosine similarity', shrink=0.8)
  return figure


def distances(
  mean: np.ndarray,
  all_alike: np.ndarray,
  unit: str,
  kinds: Sequence[str] = (),
) -> Figure:
  """Draws the distance of every head.

  Args:
    mean: [layers, heads].
    all_alike: of attention to everything alike; of all layers, or [layers].
    unit: of both.
    kinds: of each layer, which a colour behind it tells apart.
  """
  figure = new_figure(4)
  axes = figure.subplots()
  layers = np.arange(1, len(mean) + 1)
  for kind, colour in zip(dict.fromkeys(kinds), _BEHIND):
    heights = np.where(np.array(kinds) == kind, 1, 0)
    axes.bar(
      layers, heights, 1, color=colour, label=kind, zorder=0,
      transform=axes.get_xaxis_transform(),
    )  # fmt: skip
  axes.hlines(
    np.broadcast_to(all_alike, layers.shape),
    layers - 0.5,
    layers + 0.5,
    color='gray',
    linestyle='--',
    linewidth=1,
    label='all alike',
  )
  heads = mean.shape[1]
  colours = matplotlib.colormaps['turbo'](np.linspace(0.05, 0.95, heads))
  for head, colour in enumerate(colours):
    label = f'head {head + 1}'
    axes.plot(layers, mean[:, head], 'o', color=colour, label=label)
  axes.set(
    xlabel='layer',
    ylabel=f'mean attention distance, {unit}',
    ylim=(0, 1.08 * max(mean.max(), np.max(all_alike))),
  )
  axes.set_xticks(layers[:: -(-len(layers) // _TICKS)])
  axes.grid(alpha=0.3)
  figure.legend(loc='outside right upper', ncols=-(-heads // 20))
  return figure


def overlaid(
  pixels: np.ndarray, maps: np.ndarray, brightest: float | None = None
) -> np.ndarray:
  """Lays colours over grey images: the brighter, the more is attended to.

  Args:
    pixels: from 0 to 1, [images, height, width, 3].
    maps: of patches, [images, rows, columns].
    brightest: what has the brightest colour; None for the largest of each map.
  """
  images, *grid = maps.shape
  height, width = pixels.shape[1:3]
  flat = maps.reshape(images, -1).T[None]
  flat = position.resize(flat, tuple(grid), (height, width), 'half_pixel')
  heat = flat[0].T.reshape(images, height, width)
  heat = heat / (brightest or heat.max(axis=(1, 2), keepdims=True))
  colours = matplotlib.colormaps[HEAT](heat)[..., :3]
  grey = pixels.mean(-1, keepdims=True)
  return (1 - _COVER) * grey + _COVER * colours


def blocky(colours: np.ndarray, pixels: np.ndarray) -> np.ndarray:
  """Enlarges patches [images, rows, columns, 3] to the size of the images."""
  (rows, columns), (height, width) = colours.shape[1:3], pixels.shape[1:3]
  row = np.arange(height) * rows // height
  column = np.arange(width) * columns // width
  return colours[:, row[:, None], column]


def pairs(left: np.ndarray, right: np.ndarray) -> Figure:
  """Draws a sheet of pairs of images, each [images, height, width, 3]."""
  number, height, width = left.shape[:3]
  columns = min(4, number)
  rows = -(-number // columns)
  figure = new_figure(WIDTH / 2 * rows / columns * height / width + 0.1)
  panels = figure.subplots(rows, columns, squeeze=False).ravel()
  for axes, *pair in zip(panels, left, right):
    tiles = np.stack(pair)[None]
    show_tiles(axes, tiles)
    _frame_tiles(axes, tiles, 1)
  for axes in panels[number:]:
    axes.set_axis_off()
  return figure


def attention_map(name: str, pixels: np.ndarray, weights: np.ndarray) -> Figure:
  """Draws an image, what is attended to, and both together.

  Args:
    name: of the image.
    pixels: [height, width, 3].
    weights: of patches, 1 on average, [rows, columns].
  """
  figure = new_figure(0.2 + 2 * pixels.shape[0] / pixels.shape[1])
  panels = figure.subplots(1, 3)
  show_image(panels[0], pixels)
  heat = panels[1].imshow(weights, vmin=0, cmap=HEAT)
  panels[2].imshow(overlaid(pixels[None], weights[None])[0])
  figure.colorbar(heat, ax=panels[1], shrink=0.7)
  titles = (_short(name), 'times the average', 'both')
  for axes, title in zip(panels, titles):
    axes.set(xticks=[], yticks=[], title=title)
    axes.spines[:].set_visible(axes is panels[0])
  return figure


def heads(pixels: np.ndarray, weights: np.ndarray, pools: bool) -> Figure:
  """Draws what every head attends to, beside the image.

  Args:
    pixels: [height, width, 3].
    weights: of patches, [layers, heads, rows, columns].
    pools: whether the last layer is attention that pools.
  """
  layers, number, rows, columns = weights.shape
  beside = WIDTH / 4
  wide = min((WIDTH - beside) / number, HEIGHT / layers * columns / rows)
  tall = wide * layers * rows / columns
  figure = new_figure(max(beside, tall) + 0.6, beside + wide * number + 0.6)
  ratios = (beside, wide * number)
  left, right = figure.subplots(1, 2, width_ratios=ratios)
  left.set_anchor('N')
  right.set_anchor('N')
  show_image(left, pixels)
  tiles = (weights / weights.max(axis=(2, 3), keepdims=True))[..., None]
  show_tiles(right, tiles, vmin=0, vmax=1, cmap=HEAT)
  number_tiles(right, tiles, 'pool' if pools else None)
  right.set(xlabel='head', ylabel='layer')
  return figure


def neighbours(
  pixels: np.ndarray, order: np.ndarray, similarity: np.ndarray
) -> Figure:
  """Draws images, one a row, each with those that are most like it.

  Args:
    pixels: [images, height, width, 3].
    order: which are most like the first images, [queries, number].
    similarity: of them, likewise.
  """
  queries, number = order.shape
  size = WIDTH / (number + 1) * pixels.shape[1] / pixels.shape[2]
  figure = new_figure(queries * (size + 0.2))
  panels = figure.subplots(queries, number + 1)
  panels = panels.reshape(queries, number + 1)
  for row, axes in enumerate(panels):
    for panel, index in zip(axes, (row, *order[row])):
      show_image(panel, pixels[index])
    for panel, value in zip(axes[1:], similarity[row]):
      panel.set_title(f'{value:.2f}', pad=2)
  panels[0, 0].set_title('image', pad=2, fontweight='bold')
  return figure


def new_figure(height: float, width: float = WIDTH) -> Figure:
  """Returns an empty figure, sizes in inches."""
  return Figure(figsize=(width, height), layout='constrained')


def show_image(axes: Axes, pixels: np.ndarray) -> None:
  """Draws an image with a line around it: it may be white."""
  axes.imshow(pixels)
  axes.set(xticks=[], yticks=[])
  axes.spines[:].set(visible=True, color='lightgray')


def _rgb(tiles: np.ndarray) -> np.ndarray:
  """Makes grey [..., 1] colours; leaves colours as they are."""
  return np.broadcast_to(tiles, (*tiles.shape[:-1], 3))


def _gap(tiles: np.ndarray) -> int:
  return max(1, round(_GAP * max(tiles.shape[2:4])))


def show_tiles(axes: Axes, tiles: np.ndarray, **options):
  """Draws tiles [rows, columns, height, width, channels] beside each other.

  Args:
    axes: to draw on.
    tiles: of 3 channels, or of 1 that has a colour map; NaN stays free.
    **options: of `imshow`.
  """
  rows, columns, height, width, channels = tiles.shape
  gap = _gap(tiles)
  space = ((0, 0), (0, 0), (0, gap), (0, gap), (0, 0))
  padded = np.pad(tiles.astype(np.float32), space, constant_values=np.nan)
  whole = padded.transpose(0, 2, 1, 3, 4).reshape(
    rows * (height + gap), columns * (width + gap), channels
  )[:-gap, :-gap]
  if channels == 3:
    whole = np.nan_to_num(whole, nan=1)
  axes.spines[:].set_visible(False)
  axes.set(xticks=[], yticks=[])
  return axes.imshow(whole, **options)


def _frame_tiles(axes: Axes, tiles: np.ndarray, number: int) -> None:
  """Draws a line around the first tiles: what is white in them has an end."""
  columns, height, width = tiles.shape[1:4]
  for index in range(number):
    row, column = np.array(divmod(index, columns)) * (
      np.array([height, width]) + _gap(tiles)
    )
    corner = (column - 0.5, row - 0.5)
    frame = Rectangle(corner, width, height, fill=False, color='gray')
    axes.add_patch(frame)


def number_tiles(
  axes: Axes, tiles: np.ndarray, last: str | None = None
) -> None:
  """Labels rows and columns of tiles with their numbers, from 1.

  Args:
    axes: to draw on.
    tiles: as for `show_tiles`.
    last: row, by name in place of its number.
  """
  gap = _gap(tiles)
  for axis, number, size in zip(
    (axes.yaxis, axes.xaxis), *np.reshape(tiles.shape[:4], (2, 2))
  ):
    shown = np.arange(0, number, -(-number // _TICKS))
    names = [*map(str, shown + 1)]
    if last and axis is axes.yaxis:
      shown = [*shown[:-1], number - 1]
      names = [*names[:-1], last]
    axis.set_ticks(np.array(shown) * (size + gap) + (size - 1) / 2, names)
  axes.tick_params(length=0)


def _short(name: str) -> str:
  """Returns a name that can stand above an image."""
  name = name.rpartition('/')[2]
  return f'{name[:17]}...' if len(name) > 20 else name
