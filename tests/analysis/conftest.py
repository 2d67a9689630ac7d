"""Models to look into, with noise in every tensor."""

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from vit_jax.models.resnet import ResNet
from vit_jax.models.vit import ViT
from vit_jax.tasks.classification import Classification
from vit_jax.training import mesh as mesh_lib
from vit_jax.training import trained

SHAPE = (8, 12, 1)  # Of 2 x 3 patches.


def _opened(model, source):
  """Returns a model as if it had been trained and opened."""
  names = ('a', 'b', 'c')
  task = Classification(model=model, class_names=names, image_shape=SHAPE)
  shapes = jax.eval_shape(task.init, jax.random.key(0))
  rng = np.random.default_rng(0)
  variables = jax.tree.map(
    lambda leaf: rng.normal(0, 0.5, leaf.shape).astype(np.float32), shapes
  )
  test = dict(
    source=source,
    split='test',
    preprocess='resize((8, 12))|value_range(-2, 1)',
  )
  return trained.Trained(
    config=ConfigDict(dict(data=dict(test=test, classes=()))),
    task=task,
    mesh=mesh_lib.make(mesh_lib.Settings()),
    variables=variables,
    step=0,
    names_known=True,
  )


@pytest.fixture(scope='session')
def open_vit():
  """A function that returns a small ViT."""

  def make(source='digits', **fields):
    model = ViT(
      num_classes=3, patch_size=4, width=8, depth=2, mlp_dim=8, num_heads=2,
      **fields,
    )  # fmt: skip
    return _opened(model, source)

  return make


@pytest.fixture(scope='session')
def resnet():
  """A small ResNet."""
  model = ResNet(num_classes=3, stages=(1,), width_factor=0.5)
  return _opened(model, 'digits')
