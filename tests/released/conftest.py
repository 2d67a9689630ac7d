"""Models to convert, with noise in every tensor."""

import types

import jax
import numpy as np
import pytest

from vit_jax import released
from vit_jax.models.mixer import Mixer
from vit_jax.models.resnet import ResNet
from vit_jax.models.vit import ViT

MODELS = {'vit': ViT, 'resnet': ResNet, 'mixer': Mixer}
VIT = dict(
  name='vit', patch_size=4, width=24, depth=2, mlp_dim=20, num_heads=3,
)  # fmt: skip
EXAMPLES = {
  'token': VIT,
  'representation': {**VIT, 'representation_size': 10},
  'map': {**VIT, 'pooling': 'map'},
  'gap': {**VIT, 'pooling': 'gap'},
  'sincos': {**VIT, 'pooling': 'gap', 'position': 'sincos_2d'},
  'hybrid': {
    **VIT,
    'patch_size': 1,
    'backbone_stages': (1, 2),
    'backbone_width_factor': 0.5,
  },
  'mixer': dict(
    name='mixer', patch_size=4, width=24, depth=2, token_mlp_dim=12,
    channel_mlp_dim=20,
  ),
  'pre_activation': dict(name='resnet', stages=(1, 2), width_factor=0.5),
  'post_activation': dict(
    name='resnet', stages=(1, 2), width_factor=0.5, form='post_activation'
  ),
}  # fmt: skip


def make(model, num_classes=5):
  """Returns the module of a section `model`."""
  fields = {key: value for key, value in model.items() if key != 'name'}
  return MODELS[model['name']](num_classes=num_classes, **fields)


def example(name, image_shape=(16, 24, 3), num_classes=5):
  """Returns a checkpoint of one of EXAMPLES, in memory."""
  model = EXAMPLES[name] if isinstance(name, str) else name
  image = jax.ShapeDtypeStruct((1, *image_shape), np.float32)
  key = jax.eval_shape(lambda: jax.random.key(0))
  tree = jax.eval_shape(make(model, num_classes).init, key, image)['params']
  rng = np.random.default_rng(0)
  params = {
    '/'.join(part.key for part in path): rng.normal(
      0.1, 0.3, leaf.shape
    ).astype(np.float32)
    for path, leaf in jax.tree.leaves_with_path(tree)
  }
  return released.of_parameters(
    params,
    model={
      'pooling': 'token', 'position': 'learned', 'position_at': 'stem',
      'activation': 'gelu_tanh', 'norm_epsilon': 1e-6,
      'form': 'pre_activation', **model,
    } ,
    image_shape=image_shape,
    class_names=[f'c{i}' for i in range(num_classes)],
    preprocess='resize((16, 24))|value_range(-1, 1)',
  )  # fmt: skip


def assert_same(found, expected):
  """Asserts that two dicts of arrays are equal to the last bit."""
  assert found.keys() == expected.keys()
  for name, value in expected.items():
    assert found[name].dtype == value.dtype, name
    assert found[name].shape == value.shape, name
    assert found[name].tobytes() == value.tobytes(), name


@pytest.fixture
def tools():
  """What several files of tests use."""
  return types.SimpleNamespace(
    EXAMPLES=EXAMPLES, make=make, example=example, assert_same=assert_same
  )
