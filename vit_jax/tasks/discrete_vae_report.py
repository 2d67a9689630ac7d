"""What codes keep of images, and how often each code is used."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from matplotlib.figure import Figure

Array = jax.Array

# Images on the sheet; each has its reconstruction below it.
_IMAGES, _COLUMNS = 32, 8


@dataclasses.dataclass(frozen=True)
class Reconstructions:
  """What a discrete VAE makes of a data set.

  Attributes:
    images: the first few, [images, height, width, channels], 0..1.
    reconstructions: what is decoded from the codes of these.
    counts: [vocabulary_size], how often each code is used in all of it.
    squared_error: mean over all pixels of the images that are kept.
  """

  images: np.ndarray
  reconstructions: np.ndarray
  counts: np.ndarray

  @property
  def squared_error(self) -> float:
    return float(np.square(self.images - self.reconstructions).mean())


def _fetch(tree: Any) -> Any:
  """Returns arrays that may lie on several hosts, on each of them."""
  return multihost_utils.process_allgather(tree, tiled=True)


def collect(
  encode: Callable[[Mapping[str, Any], Array], Array],
  decode: Callable[[Mapping[str, Any], Array], Array],
  variables: Mapping[str, Any],
  batches: Iterable[Mapping[str, Array]],
  vocabulary_size: int,
) -> Reconstructions:
  """Encodes all images, and decodes the first few.

  Args:
    encode: from variables and images [batch, height, width, channels], 0..1,
      to codes [batch, rows, columns].
    decode: from variables and codes to images.
    variables: of the model.
    batches: on the devices: `image`, and `mask` [batch], 0 where an example
      is padding.
    vocabulary_size: number of codes.
  """

  @jax.jit
  def count(variables, batch):
    codes = encode(variables, batch['image'])
    real = jnp.broadcast_to(batch['mask'][:, None, None], codes.shape)
    counts = jnp.bincount(
      codes.ravel(), real.ravel().astype(int), length=vocabulary_size
    )
    return codes, counts

  decode = jax.jit(decode)
  images, made, total, shown = [], [], np.zeros(vocabulary_size, int), 0
  for batch in batches:
    codes, counts = count(variables, batch)
    total += np.asarray(_fetch(counts)).astype(int)
    if shown < _IMAGES:
      kept = _fetch((batch['image'], decode(variables, codes), batch['mask']))
      real = np.asarray(kept[2]) > 0
      images.append(kept[0][real][: _IMAGES - shown])
      made.append(kept[1][real][: _IMAGES - shown])
      shown += len(images[-1])
  return Reconstructions(np.concatenate(images), np.concatenate(made), total)


def draw_reconstructions(found: Reconstructions) -> Figure:
  """Draws images, and below each what its codes keep of it."""
  rows = -(-len(found.images) // _COLUMNS)
  # In inches: a cell is an image, or two above each other, and a gap.
  side, gap, head = 1.1, 0.08, 0.4
  width = _COLUMNS * (side + gap) + gap
  height = head + rows * 2 * (side + gap)
  figure = Figure(figsize=(width, height), dpi=120)
  figure.suptitle(
    'Images, and below each what its codes keep '
    f'(squared error {found.squared_error:.2g})',
    x=gap / width,
    y=1 - 0.1 / height,
    ha='left',
  )
  for i, pair in enumerate(zip(found.images, found.reconstructions)):
    row, column = divmod(i, _COLUMNS)
    left = gap + column * (side + gap)
    for j, image in enumerate(pair, 1):
      bottom = height - head - row * 2 * (side + gap) - j * side
      box = left / width, bottom / height, side / width, side / height
      # A frame: many drawings are on white.
      axes = figure.add_axes(box, xticks=[], yticks=[])
      is_grey = image.shape[-1] != 3
      axes.imshow(image[..., 0] if is_grey else image, 'gray', vmin=0, vmax=1)
      axes.spines[:].set(visible=True, color='silver', linewidth=0.5)
  return figure


def draw_usage(found: Reconstructions) -> Figure:
  """Draws how often each code is used, the most frequent first."""
  shares = -np.sort(-found.counts / found.counts.sum())
  used = int((shares > 0).sum())
  entropy = -(shares[:used] * np.log(shares[:used])).sum()
  figure = Figure(figsize=(8, 4.5), dpi=120, layout='constrained')
  axes = figure.subplots()
  axes.set_title(
    f'{used:,} of {len(shares):,} codes are used, perplexity '
    f'{np.exp(entropy):,.0f}'
  )
  axes.step(np.arange(1, used + 1), shares[:used], where='mid')
  axes.axhline(1 / len(shares), color='gray', linestyle=':')
  axes.set(
    xlabel='code, the most frequent first',
    ylabel='share of all codes',
    yscale='log',
    xlim=(0, len(shares) + 1),
  )
  return figure


PICTURES = {
  'reconstructions': draw_reconstructions,
  'codes_used': draw_usage,
}
