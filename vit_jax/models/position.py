"""Position embeddings of a grid of patches (ViT, arXiv:2010.11929, D.4)."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


class Learned(nn.Module):
  """One learned vector for every token ("1-D" in the paper)."""

  deviation: float = 0.02

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns [1, length, width] for tokens [batch, length, width]."""
    return self.param(
      'embedding', nn.initializers.normal(self.deviation), (1, *x.shape[1:])
    )


class Learned2d(nn.Module):
  """A learned vector for every row and column, each half of the width.

  Attributes:
    grid: rows and columns of patches. Tokens before them (the class token)
      get zeros.
  """

  grid: tuple[int, int]

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns [1, length, width] for tokens [batch, length, width]."""
    (rows, columns), width = self.grid, x.shape[-1]
    init = nn.initializers.normal(0.02)
    row = self.param('row', init, (rows, width // 2))
    column = self.param('column', init, (columns, width - width // 2))
    table = jnp.concatenate(
      [
        jnp.broadcast_to(row[:, None], (rows, columns, row.shape[-1])),
        jnp.broadcast_to(column[None], (rows, columns, column.shape[-1])),
      ],
      axis=-1,
    ).reshape(1, rows * columns, width)
    before = x.shape[1] - rows * columns
    return jnp.pad(table, ((0, 0), (before, 0), (0, 0)))


def sincos_2d(grid: tuple[int, int], width: int) -> np.ndarray:
  """Fixed sines and cosines of column and row (MoCo v3, arXiv:2104.02057).

  Args:
    grid: rows and columns.
    width: a multiple of 4: sines and cosines of x, then of y.

  Returns:
    float32 [1, rows * columns, width].
  """
  if width % 4:
    raise ValueError(
      f'sincos_2d positions need a width that 4 divides, not {width}.'
    )
  frequencies = 10_000.0 ** -np.linspace(0, 1, width // 4)
  y, x = np.mgrid[: grid[0], : grid[1]].reshape(2, -1, 1) * frequencies
  table = np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1)
  return table[None].astype(np.float32)


class SinCos2d(nn.Module):
  """`sincos_2d` as a module; tokens before the grid get zeros."""

  grid: tuple[int, int]

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns [1, length, width] for tokens [batch, length, width]."""
    table = sincos_2d(self.grid, x.shape[-1])
    before = x.shape[1] - table.shape[1]
    return jnp.asarray(np.pad(table, ((0, 0), (before, 0), (0, 0))))


def resize(
  embedding: np.ndarray,
  old_grid: tuple[int, int],
  new_grid: tuple[int, int],
  method: Literal['align_corners', 'half_pixel'] = 'align_corners',
) -> np.ndarray:
  """Interpolates learned position embeddings linearly to another grid.

  Args:
    embedding: [1, tokens, width]; tokens before the grid (the class token)
      are kept.
    old_grid: rows and columns that the embedding is of.
    new_grid: rows and columns that it should be of.
    method: 'align_corners' keeps the corners of the grid where they are, as
      the released fine-tuning code does (ViT, section 3.2); 'half_pixel' the
      outer edges of the patches, as resizing of images does.

  Returns:
    float32 [1, tokens, width], with the tokens of the new grid.

  Raises:
    ValueError: the embedding is not of `old_grid`, or there is no such method.
  """
  weights = {'align_corners': _align_corners, 'half_pixel': _half_pixel}
  if method not in weights:
    raise ValueError(
      f'There is no method {method!r}. Known: {", ".join(weights)}.'
    )
  embedding = np.asarray(embedding)
  before = embedding.shape[1] - old_grid[0] * old_grid[1]
  if before not in (0, 1) or min(*old_grid, *new_grid) < 1:
    raise ValueError(
      f'Position embeddings of {embedding.shape[1]} tokens cannot be resized '
      f'from {old_grid[0]}x{old_grid[1]} to {new_grid[0]}x{new_grid[1]}: '
      f'expected {old_grid[0]} times {old_grid[1]}, or one more (the class '
      'token).'
    )
  rows, columns = (
    weights[method](old, new) for old, new in zip(old_grid, new_grid)
  )
  table = embedding[0, before:].reshape(*old_grid, -1)
  table = np.einsum('ai,bj,ijd->abd', rows, columns, table, optimize=True)
  table = table.reshape(1, new_grid[0] * new_grid[1], -1)
  return np.concatenate(
    [embedding[:, :before], table.astype(np.float32)], axis=1, dtype=np.float32
  )


def _align_corners(old: int, new: int) -> np.ndarray:
  """Returns the weights of linear interpolation, float64 [new, old]."""
  return _linear(np.linspace(0, old - 1, new), old)


def _half_pixel(old: int, new: int) -> np.ndarray:
  """Returns the weights of linear interpolation, float64 [new, old]."""
  return _linear((np.arange(new) + 0.5) * old / new - 0.5, old)


def _linear(at: np.ndarray, length: int) -> np.ndarray:
  """Returns how much each of `length` points has of the values at `at`."""
  at = np.clip(at, 0, length - 1)[:, None]
  return np.maximum(0, 1 - np.abs(at - np.arange(length)))
