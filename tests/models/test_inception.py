"""Inception-v3 against NumPy: what sets the graph of FID apart from others."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.models import inception

SHAPES = {
  'Conv2d_1a_3x3': (149, 149, 32),
  'Conv2d_2a_3x3': (147, 147, 32),
  'Conv2d_2b_3x3': (147, 147, 64),
  'Conv2d_3b_1x1': (73, 73, 80),
  'Conv2d_4a_3x3': (71, 71, 192),
  'Mixed_5b': (35, 35, 256),
  'Mixed_5c': (35, 35, 288),
  'Mixed_5d': (35, 35, 288),
  'Mixed_6a': (17, 17, 768),
  'Mixed_6b': (17, 17, 768),
  'Mixed_6c': (17, 17, 768),
  'Mixed_6d': (17, 17, 768),
  'Mixed_6e': (17, 17, 768),
  'Mixed_7a': (8, 8, 1280),
  'Mixed_7b': (8, 8, 2048),
  'Mixed_7c': (8, 8, 2048),
  'pooled': (2048,),
  'logits_without_bias': (1008,),
}


def abstract(side):
  """Returns shapes of variables, logits and intermediates."""
  model = inception.InceptionV3()
  image = jax.ShapeDtypeStruct((2, side, side, 3), jnp.float32)
  variables = jax.eval_shape(model.init, jax.random.key(0), image)
  return variables, *jax.eval_shape(model.apply, variables, image)


def test_sizes_are_those_of_the_paper_s_graph():
  variables, logits, out = abstract(299)
  assert {name: x.shape[1:] for name, x in out.items()} == SHAPES
  assert logits.shape == (2, 1008)
  numbers = {
    name: sum(x.size for x in jax.tree.leaves(variables[name]))
    for name in ('params', 'batch_stats')
  }
  # By the tensors of the published file: 23,885,392 together.
  assert numbers == {'params': 23_850_960, 'batch_stats': 34_432}


def test_sizes_that_cannot_be():
  assert abstract(75)[2]['Mixed_7c'].shape == (2, 1, 1, 2048)
  model = inception.InceptionV3()
  for shape in ((1, 74, 299, 3), (1, 299, 299, 1)):
    with pytest.raises(ValueError, match='75 pixels or more .* 3 channels'):
      jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(shape))


def windows(x, height, width, fill):
  """Returns [batch, rows, columns, channels, height, width] around each."""
  sides = (0, 0), (height // 2,) * 2, (width // 2,) * 2, (0, 0)
  padded = np.pad(x, sides, constant_values=fill)
  return np.lib.stride_tricks.sliding_window_view(
    padded, (height, width), (1, 2)
  )


class Reference:
  """The same by NumPy, of variables [path -> array] of a block."""

  def __init__(self, variables):
    flat = flax.traverse_util.flatten_dict(variables, sep='/')
    self.tensors = {path.partition('/')[2]: x for path, x in flat.items()}

  def __call__(self, x, *names):
    for name in names:
      kernel = self.tensors[f'{name}/conv/kernel']
      around = windows(x, *kernel.shape[:2], 0)
      x = np.einsum('bhwcij,ijcf->bhwf', around, kernel, optimize=True)
      scale, bias, mean, var = (
        self.tensors[f'{name}/norm/{leaf}']
        for leaf in ('scale', 'bias', 'mean', 'var')
      )
      x = np.maximum((x - mean) / np.sqrt(var + 1e-3) * scale + bias, 0)
    return x


def block_a(x, apply):
  return [
    apply(x, 'branch1x1'),
    apply(x, 'branch5x5_1', 'branch5x5_2'),
    apply(x, 'branch3x3dbl_1', 'branch3x3dbl_2', 'branch3x3dbl_3'),
    apply(np.nanmean(windows(x, 3, 3, np.nan), (4, 5)), 'branch_pool'),
  ]


def block_e(x, apply, pool):
  single = apply(x, 'branch3x3_1')
  double = apply(x, 'branch3x3dbl_1', 'branch3x3dbl_2')
  return [
    apply(x, 'branch1x1'),
    *(apply(single, f'branch3x3_2{side}') for side in 'ab'),
    *(apply(double, f'branch3x3dbl_3{side}') for side in 'ab'),
    apply(pool(windows(x, 3, 3, np.nan), (4, 5)), 'branch_pool'),
  ]


@pytest.mark.parametrize(
  'block,reference',
  [
    (inception.BlockA(7), block_a),
    (inception.BlockE(), lambda x, f: block_e(x, f, np.nanmean)),
    (inception.BlockE(True), lambda x, f: block_e(x, f, np.nanmax)),
  ],
)
def test_blocks_count_nothing_outside_of_the_image(block, reference):
  rng = np.random.default_rng(0)
  # Of one sign, so that a border of zeros would show.
  x = rng.normal(-2, 1, (2, 4, 5, 6))
  tree = jax.eval_shape(block.init, jax.random.key(0), x)
  variables = jax.tree.map(lambda y: rng.normal(0.1, 0.2, y.shape), tree)
  # Small ones show a wrong epsilon.
  variables['batch_stats'] = jax.tree.map(
    lambda y: np.abs(y) ** 3, variables['batch_stats']
  )
  expected = np.concatenate(reference(x, Reference(variables)), -1)
  found = jax.jit(block.apply)(variables, x)
  scale = np.abs(expected).max()
  np.testing.assert_allclose(found / scale, expected / scale, atol=1e-5)


@pytest.mark.parametrize('shape', [(48, 64), (299, 640), (5, 299)])
def test_pictures_are_scaled_as_by_tensorflow_1(shape):
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
  found = np.asarray(inception.prepare(image[None])[0])
  assert found.shape == (299, 299, 3)

  def axis(place, length):
    """Returns the pixels before and after, and the share of the latter."""
    at = place * length / 299
    return int(at), min(int(at) + 1, length - 1), at - int(at)

  for row, column in ((0, 0), (1, 298), (298, 3), (298, 298), (150, 77)):
    up, down, low = axis(row, shape[0])
    left, right, far = axis(column, shape[1])
    value = (
      (1 - low) * (1 - far) * image[up, left].astype(float)
      + (1 - low) * far * image[up, right]
      + low * (1 - far) * image[down, left]
      + low * far * image[down, right]
    )
    np.testing.assert_allclose(
      found[row, column], value / 128 - 1, atol=1e-4, err_msg=(row, column)
    )
