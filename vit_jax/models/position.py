"""Position embeddings of a grid of patches (ViT, arXiv:2010.11929, D.4)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


class Learned(nn.Module):
  """One learned vector for every token ("1-D" in the paper)."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns [1, length, width] for tokens [batch, length, width]."""
    return self.param(
      'embedding', nn.initializers.normal(0.02), (1, *x.shape[1:])
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
