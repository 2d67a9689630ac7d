"""What is taken out of a model is what the model computes with."""

import dataclasses
import types

import jax
import numpy as np
import pytest

from vit_jax.analysis import probe
from vit_jax.config import ConfigError
from vit_jax.models.clip import CLIP
from vit_jax.models.text import TextTransformer

IMAGES = np.random.default_rng(0).normal(size=(5, 8, 12, 1)).astype(np.float32)


def intermediates(model):
  return jax.jit(model.task.model.apply)(model.variables, IMAGES)[1]


@pytest.mark.parametrize('position', ['learned', 'learned_2d', 'sincos_2d'])
@pytest.mark.parametrize('pooling', ['token', 'gap'])
def test_positions_are_what_is_added_to_patches(open_vit, position, pooling):
  model = open_vit(position=position, pooling=pooling)
  out = intermediates(model)
  before = int(pooling == 'token')
  patches = out['patches'].reshape(5, 6, 8)
  added = out['tokens'][:, before:] - patches
  (found,) = probe.position_tables(model)
  np.testing.assert_allclose(
    np.broadcast_to(found.reshape(6, 8), added.shape), added, atol=1e-5
  )


@pytest.mark.parametrize('scan', [False, True])
def test_positions_of_every_layer(open_vit, scan):
  model = open_vit(position='learned', position_at='every_layer', scan=scan)
  tables = probe.position_tables(model)
  assert tables.shape == (2, 2, 3, 8)
  encoder = model.variables['params']['encoder']
  if scan:
    second = encoder['blocks']['position']['embedding'][1]
  else:
    second = encoder['block_01']['position']['embedding']
  np.testing.assert_array_equal(tables[1].reshape(6, 8), second[0, 1:])
  shared = open_vit(position='learned_2d', position_at='shared')
  assert probe.position_tables(shared).shape == (1, 2, 3, 8)


@pytest.mark.parametrize('scan', [False, True])
def test_attention_of_each_layer_in_order(open_vit, scan):
  model = open_vit(scan=scan)
  out = intermediates(model)
  layers = probe.attention_layers(out)
  assert [layer.shape for layer in layers] == [(5, 2, 7, 7)] * 2
  encoder, x = model.variables['params']['encoder'], out['tokens']
  params = encoder['blocks'] if scan else encoder['block_00']
  if scan:
    params = jax.tree.map(lambda leaf: leaf[0], params)
  x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
  x = x * params['attention_norm']['scale'] + params['attention_norm']['bias']
  query, key = (
    np.einsum('bld,dhk->bhlk', x, params['attention'][name]['kernel'])
    + params['attention'][name]['bias'][:, None]
    for name in ('query', 'key')
  )
  expected = jax.nn.softmax(query @ key.swapaxes(-1, -2) / 2, axis=-1)
  np.testing.assert_allclose(layers[0], expected, atol=1e-5)


def test_any_number_of_images_is_applied(open_vit, monkeypatch):
  model = open_vit()
  monkeypatch.setattr(probe, '_BATCH', 3)  # 8, as there are 8 devices.
  many = np.concatenate([IMAGES] * 4)
  found = probe.apply(model, many, lambda out: out['pooled'])
  expected = np.concatenate([intermediates(model)['pooled']] * 4)
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_image_tower_of_clip_is_looked_into(open_vit):
  alone = open_vit()
  text = TextTransformer(
    vocabulary_size=9, length=4, width=8, depth=1, mlp_dim=8, num_heads=2
  )
  clip = CLIP(image=alone.task.model, text=text, width=8)
  towers = {'image': alone.variables['params'], 'text': {}}
  task = types.SimpleNamespace(model=clip, batch_spec=alone.task.batch_spec)
  model = dataclasses.replace(alone, task=task, variables={'params': towers})
  for look in (probe.filters, probe.position_tables):
    np.testing.assert_array_equal(look(model), look(alone))
  assert probe.attention_grid(model) == (2, 3)
  found, expected = (
    probe.apply(x, IMAGES, lambda out: out['pooled']) for x in (model, alone)
  )
  np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
  'position,at', [('none', 'stem'), ('relative', 'shared')]
)
def test_models_without_embeddings_of_places(open_vit, position, at):
  model = open_vit(position=position, position_at=at)
  with pytest.raises(ConfigError, match=f'position: {position}'):
    probe.position_tables(model)
