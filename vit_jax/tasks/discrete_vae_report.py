"""What codes keep of images, and how often each code is used."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from matplotlib.figure import Figure

from vit_jax.tasks.first_examples import first_examples

Array = jax.Array

# Images on the sheet; each has its reconstruction below it.
_IMAGES, _COLUMNS = 32, 8


def _fetch(tree: Any) -> Any:
  """Returns arrays that may lie on several hosts, on each of them."""
  return multihost_utils.process_allgather(tree, tiled=True)


def make_look(
  encode: Callable[[Mapping[str, Any], Array], Array],
  decode: Callable[[Mapping[str, Any], Array], Array],
  vocabulary_size: int,
) -> Callable[..., tuple]:
  """Returns a jitted function that looks at a batch.

  Args:
    encode: from variables and images [batch, height, width, channels], 0..1,
      to codes [batch, rows, columns].
    decode: from variables and codes to images.
    vocabulary_size: number of codes.

  Returns:
    A function from variables, a batch (`image`, and `mask` [batch], 0 where an
    example is padding), and, by name, whether it `shows` images, to how often
    each code is used, [vocabulary_size], and the first images, their
    reconstructions and their mask, or None.
  """

  def look(variables, batch, shows):
    codes = encode(variables, batch['image'])
    real = jnp.broadcast_to(batch['mask'][:, None, None], codes.shape)
    counts = jnp.bincount(
      codes.ravel(), real.ravel().astype(int), length=vocabulary_size
    )
    if not shows:
      return counts, None
    image, codes, mask = first_examples(
      (batch['image'], codes, batch['mask']), _IMAGES
    )
    return counts, (image, decode(variables, codes), mask)

  return jax.jit(look, static_argnames='shows')


def pictures(
  look: Callable,
  variables: Mapping[str, Any],
  batches: Iterable[Mapping[str, Array]],
) -> Iterator[tuple[str, Figure]]:
  """Yields name and figure: of the first images, then of the codes of all.

  No batch is read before it is needed.

  Args:
    look: see `make_look`.
    variables: of the model.
    batches: on the devices.
  """
  batches = iter(batches)
  total, pairs, count = 0, [], 0
  for batch in batches:
    counts, (image, made, mask) = _fetch(look(variables, batch, shows=True))
    total += counts.astype(int)
    pairs.append(np.stack([image, made], axis=1)[mask > 0])
    count += len(pairs[-1])
    if count >= _IMAGES:
      break
  yield 'reconstructions', draw_reconstructions(np.concatenate(pairs)[:_IMAGES])
  for batch in batches:
    counts, _ = look(variables, batch, shows=False)
    total += _fetch(counts).astype(int)
  yield 'codes_used', draw_usage(total)


def draw_reconstructions(pairs: np.ndarray) -> Figure:
  """Draws images, and below each what its codes keep of it.

  Args:
    pairs: [images, 2, height, width, channels], 0..1.
  """
  rows = -(-len(pairs) // _COLUMNS)
  error = np.square(pairs[:, 0] - pairs[:, 1]).mean()
  # In inches: a cell is an image, or two above each other, and a gap.
  side, gap, head = 1.1, 0.08, 0.4
  width = _COLUMNS * (side + gap) + gap
  height = head + rows * 2 * (side + gap)
  figure = Figure(figsize=(width, height), dpi=120)
  figure.suptitle(
    f'Images, and below each what its codes keep (squared error {error:.2g})',
    x=gap / width,
    y=1 - 0.1 / height,
    ha='left',
  )
  for i, pair in enumerate(pairs):
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


def draw_usage(counts: np.ndarray) -> Figure:
  """Draws how often each code is used, [codes], the most frequent first."""
  shares = -np.sort(-counts / counts.sum())
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
