"""Position embeddings moved to another grid."""

import pathlib

import jax
import numpy as np
import pytest
from scipy import ndimage

from vit_jax.models import position

GOLDENS = pathlib.Path(__file__).parents[1] / 'goldens'


def table(rows, columns, before=0, width=5):
  rng = np.random.default_rng(0)
  shape = (1, before + rows * columns, width)
  return rng.normal(size=shape).astype(np.float32)


GRIDS = [
  ((14, 14), (24, 24)),
  ((4, 6), (9, 5)),
  ((7, 7), (3, 7)),
  ((3, 5), (1, 5)),
  ((1, 4), (3, 8)),
]


@pytest.mark.parametrize('old,new', GRIDS)
@pytest.mark.parametrize('before', [0, 1])
def test_align_corners_is_what_the_released_code_does(old, new, before):
  x = table(*old, before)
  grid = x[0, before:].reshape(*old, -1).astype(np.float64)
  zoom = (new[0] / old[0], new[1] / old[1], 1)
  expected = ndimage.zoom(grid, zoom, order=1).reshape(1, new[0] * new[1], -1)
  ours = position.resize(x, old, new)
  assert ours.dtype == np.float32
  np.testing.assert_allclose(ours[:, before:], expected, atol=1e-6, rtol=0)
  np.testing.assert_array_equal(ours[:, :before], x[:, :before])


@pytest.mark.parametrize('old,new', GRIDS)
def test_half_pixel_is_what_image_resizing_does(old, new):
  x = table(*old)
  expected = jax.image.resize(
    x.reshape(*old, -1), (*new, x.shape[-1]), 'linear', antialias=False
  )
  ours = position.resize(x, old, new, 'half_pixel').reshape(*new, -1)
  np.testing.assert_allclose(ours, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize('size', [3, 6])
def test_reproduces_both_released_implementations(size):
  golden = np.load(GOLDENS / 'posemb_resize.npz')
  x, new = golden['input/posemb'], (size, size)
  expected = {
    f'vit_jax_{size}x{size}_with_class_token': x,
    f'vit_jax_{size}x{size}_grid_only': x[:, 1:],
    f'big_vision_{size}x{size}_grid_only': x[:, 1:],
  }
  for name, given in expected.items():
    ours = position.resize(given, (4, 4), new)
    np.testing.assert_allclose(
      ours, golden[f'output/{name}'], atol=1e-6, rtol=0
    )


def test_what_cannot_be_resized_is_refused():
  x = table(4, 4, before=1)
  for old, new, method, message in (
    ((4, 5), (8, 8), 'align_corners', '17 tokens .* expected 4 times 5'),
    ((3, 5), (8, 8), 'align_corners', '17 tokens'),
    ((4, 4), (0, 8), 'align_corners', 'to 0x8'),
    ((4, 4), (8, 8), 'bicubic', "'bicubic'. Known: align_corners, half_pixel"),
  ):
    with pytest.raises(ValueError, match=message):
      position.resize(x, old, new, method)
