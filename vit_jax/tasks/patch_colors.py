"""Images as patches, and colours as classes."""

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array

# Rows and columns of a patch that is made small.
DOWNSIZED = 4


def color_classes(color: Array, bits: int) -> Array:
  """Returns the class of each colour, int32 [...], of colours [..., channels].

  A channel has 2**bits levels of the same width. The class is the number whose
  digits they are, the first channel's first: with 3 bits there are 512 classes
  of RGB, and 8 of grey.

  Args:
    color: from 0 to 1.
    bits: of a channel.
  """
  levels, channels = 2**bits, color.shape[-1]
  digits = jnp.clip(jnp.floor(color * levels), 0, levels - 1)
  values = levels ** np.arange(channels)[::-1]
  return (digits.astype(jnp.int32) * values).sum(-1)


def class_colors(classes: Array, bits: int, channels: int) -> Array:
  """Returns the middle of each class, [..., channels] from 0 to 1."""
  levels = 2**bits
  values = levels ** np.arange(channels)[::-1]
  return (classes[..., None] // values % levels + 0.5) / levels


def cut(image: Array, grid: tuple[int, int]) -> Array:
  """Cuts [batch, height, width, channels] into patches.

  Returns:
    [batch, patches, patch height, patch width, channels].
  """
  batch, height, width, channels = image.shape
  rows, columns = grid
  size = height // rows, width // columns
  x = image.reshape(batch, rows, size[0], columns, size[1], channels)
  x = x.transpose(0, 1, 3, 2, 4, 5)
  return x.reshape(batch, rows * columns, *size, channels)


def join(patches: Array, grid: tuple[int, int]) -> Array:
  """Puts together what `cut` has cut."""
  (rows, columns), (batch, _, height, width, channels) = grid, patches.shape
  x = patches.reshape(batch, rows, columns, height, width, channels)
  x = x.transpose(0, 1, 3, 2, 4, 5)
  return x.reshape(batch, rows * height, columns * width, channels)


def downsize(patches: Array) -> Array:
  """Averages [..., height, width, channels] to [..., 4, 4, channels]."""
  *before, height, width, channels = patches.shape
  if height % DOWNSIZED or width % DOWNSIZED:
    raise ValueError(
      f"The target 'downsized' needs patches whose sides are multiples of "
      f'{DOWNSIZED} pixels, these are {height}x{width}. Choose another patch '
      "size, or the target 'mean_color' or 'pixels'."
    )
  size = height // DOWNSIZED, width // DOWNSIZED
  x = patches.reshape(*before, DOWNSIZED, size[0], DOWNSIZED, size[1], channels)
  return x.mean((-4, -2))
