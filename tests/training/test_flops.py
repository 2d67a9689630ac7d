"""FLOPs read from a jaxpr equal the paper's formula."""

import jax
import jax.numpy as jnp
import pytest

from vit_jax.models import vit
from vit_jax.tasks.classification import Classification
from vit_jax.training import flops


def formula(size, patch, image, classes):
  """Multiplications of a forward pass: ViT with a class token."""
  patches = (image // patch) ** 2
  tokens, width = patches + 1, size.width
  block = (
    4 * tokens * width**2
    + 2 * tokens**2 * width
    + 2 * tokens * width * size.mlp_dim
  )
  stem = patches * patch**2 * 3 * width
  return stem + size.depth * block + width * classes


def saved_in_the_last_block(size, patch, image):
  """What the patches' outputs would take, which no class token needs."""
  patches, width = (image // patch) ** 2, size.width
  return patches * (
    2 * width**2 + 2 * (patches + 1) * width + 2 * width * size.mlp_dim
  )


# GMACs of a forward pass (table of the released models).
GMACS = {
  'Ti/16': 1.25,
  'S/16': 4.60,
  'B/16': 17.56,
  'B/32': 4.41,
  'L/16': 61.55,
}


@pytest.mark.parametrize('variant', GMACS)
@pytest.mark.parametrize('scan', [False, True])
def test_counts_what_the_formula_counts(variant, scan):
  model = vit.ViT(1000, variant=variant, scan=scan)
  task = Classification(model, tuple(map(str, range(1000))), (224, 224, 3))
  name, _, patch = variant.partition('/')
  macs = formula(vit.VARIANTS[name], int(patch), 224, 1000)
  assert round(macs / 1e9, 2) == GMACS[variant]
  if not scan:
    macs -= saved_in_the_last_block(vit.VARIANTS[name], int(patch), 224)
  assert flops.training_flops(task) == 3 * 2 * macs


def test_counts_convolutions_and_loops():
  def convolve(x, kernel):
    return jax.lax.conv_general_dilated(
      x, kernel, (2, 2), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )

  x, kernel = jnp.zeros((1, 8, 8, 3)), jnp.zeros((3, 3, 3, 5))
  one = 2 * 16 * 5 * 3 * 3 * 3
  assert flops.count_flops(convolve, x, kernel) == one

  def loop(x, kernel):
    return jax.lax.scan(
      lambda carry, _: (carry, convolve(x, kernel).sum()), 0, length=7
    )

  assert flops.count_flops(loop, x, kernel) == 7 * one


def test_counts_what_all_devices_do():
  mesh = jax.make_mesh((4, 2), ('data', 'other'))
  split = jax.sharding.PartitionSpec('data')

  def product(x, y):
    return jax.shard_map(
      lambda x, y: x @ y,
      mesh=mesh,
      in_specs=(split, jax.sharding.PartitionSpec()),
      out_specs=split,
      axis_names={'data'},
    )(x, y)

  x, y = jnp.zeros((8, 3)), jnp.zeros((3, 5))
  with jax.set_mesh(mesh):
    assert flops.count_flops(product, x, y) == 2 * 8 * 3 * 5
