"""Models to look into, with noise in every tensor."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from vit_jax import config as config_lib
from vit_jax.data import tokenizer
from vit_jax.models.resnet import ResNet
from vit_jax.models.vit import ViT
from vit_jax.tasks.classification import Classification
from vit_jax.training import build, schema, trained
from vit_jax.training import mesh as mesh_lib

SHAPE = (8, 12, 1)  # Of 2 x 3 patches.


SIZES = dict(width=8, depth=2, mlp_dim=8, num_heads=2)


def _trained(config, task):
  """Returns a model as if it had been trained and opened."""
  shapes = jax.eval_shape(task.init, jax.random.key(0))
  rng = np.random.default_rng(0)
  variables = jax.tree.map(
    lambda leaf: rng.normal(0, 0.5, leaf.shape).astype(np.float32), shapes
  )
  # Some statistics are variances.
  others = {name: variables[name] for name in variables if name != 'params'}
  variables |= jax.tree.map(lambda leaf: np.abs(leaf) + 0.5, others)
  mesh = mesh_lib.make(mesh_lib.Settings())
  return trained.Trained(config, task, mesh, variables, 0, names_known=True)


def _opened(model, source):
  names = ('a', 'b', 'c')
  task = Classification(model=model, class_names=names, image_shape=SHAPE)
  test = dict(
    source=source,
    split='test',
    preprocess='resize((8, 12))|value_range(-2, 1)',
  )
  config = dict(
    task=dict(name='classification'),
    model=dict(name='vit'),
    data=dict(test=test, classes=()),
  )
  return _trained(ConfigDict(config), task)


@pytest.fixture(scope='session')
def open_vit():
  """A function that returns a small ViT."""

  def make(source='digits', **fields):
    model = ViT(num_classes=3, patch_size=4, **SIZES, **fields)
    return _opened(model, source)

  return make


@pytest.fixture(scope='session')
def resnet():
  """A small ResNet."""
  model = ResNet(num_classes=3, stages=(1,), width_factor=0.5)
  return _opened(model, 'digits')


@pytest.fixture(scope='session')
def open_clip():
  """A function that returns a small CLIP; its tokens are single letters."""

  def make(image=None, **text):
    vit = dict(name='vit', patch_size=8, pre_norm=True, **SIZES)
    text = dict(vocabulary_size=514, length=12, **SIZES) | text
    data = dict(
      source='shapes:pixels=16',
      split='train',
      preprocess='value_range(-1, 1)',
    )
    pixels = 16
    if image and image['name'] == 'modified_resnet':
      pixels = 64
      data |= dict(source='shapes:pixels=64')
    config = config_lib.resolve(
      dict(
        task=dict(name='contrastive'),
        model=dict(name='clip', width=8, image=image or vit, text=text),
        data=dict(train=data, test=data | dict(split='test')),
        batch_size=8,
        total='1steps',
        optimizer=dict(name='adamw', learning_rate=1e-3),
        schedule=dict(name='constant'),
        eval=dict(every='100%'),
        checkpoint=dict(every='100%'),
      ),
      (),
      schema.SCHEMA,
    )
    words = tokenizer.Tokenizer((), text['length'])
    known = build.Known((), (pixels, pixels, 3), words)
    return _trained(config, build.make_task(config, known, to_steps=None))

  return make


@dataclasses.dataclass(frozen=True)
class Codes:
  """Stands for a discrete VAE: a code is the darkest of 4 x 4 pixels."""

  image_shape: tuple = (8, 12, 3)
  model = types.SimpleNamespace(vocabulary_size=5)

  def init(self, key):
    return {'params': {}}

  def encode(self, variables, image):
    cells = image.reshape(-1, 2, 4, 3, 4, 3).min((2, 4, 5))
    return (cells * 5).astype(jnp.int32).clip(0, 4)

  def decode(self, variables, codes):
    bright = jnp.repeat(jnp.repeat(codes, 4, 1), 4, 2)[..., None] / 4
    return jnp.broadcast_to(bright, (*bright.shape[:-1], 3))


@pytest.fixture(scope='session')
def open_dalle():
  """A function that returns a small DALL-E; its tokens are single letters."""

  def make(codes=Codes(), **fields):
    data = dict(
      source='shapes:pixels=16',
      split='train',
      preprocess='resize((8, 12))|value_range(0, 1)',
    )
    model = dict(
      name='dalle', text_vocabulary=514, text_length=12, image_vocabulary=5,
      grid=(2, 3), patterns=('row', 'column'), **SIZES,
    ) | fields  # fmt: skip
    config = config_lib.resolve(
      dict(
        task=dict(name='text_to_image'),
        model=model,
        data=dict(train=data, test=data | dict(split='test')),
        batch_size=8,
        total='1steps',
        optimizer=dict(name='adamw', learning_rate=1e-3),
        schedule=dict(name='constant'),
        eval=dict(every='100%'),
        checkpoint=dict(every='100%'),
      ),
      (),
      schema.SCHEMA,
    )
    words = tokenizer.Tokenizer((), model['text_length'])
    known = build.Known((), (8, 12, 3), words)
    frozen = codes and types.SimpleNamespace(
      task=codes, variables=codes.init(None)
    )
    task = build.make_task(config, known, to_steps=None, frozen=frozen)
    return _trained(config, task)

  return make
