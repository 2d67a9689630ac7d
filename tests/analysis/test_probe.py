"""What is taken out of a model is what the model computes with."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.analysis import probe
from vit_jax.config import ConfigError

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


def test_the_towers_of_clip_are_looked_into(open_clip):
  model = open_clip()
  params = model.variables['params']
  image, text = params['image'], params['text']
  np.testing.assert_array_equal(
    probe.filters(model), image['embedding']['kernel']
  )
  (table,) = probe.position_tables(model)
  np.testing.assert_array_equal(
    table.reshape(4, 8), image['position']['embedding'][0, 1:]
  )
  np.testing.assert_array_equal(
    probe.text_positions(model), text['position']['embedding'][0]
  )
  task, rng = model.task, np.random.default_rng(0)
  inputs = {
    'image': rng.normal(size=(5, 16, 16, 3)).astype(np.float32),
    'text': rng.integers(0, 514, (5, 12), np.int32),
  }
  for name in probe.TOWERS:
    found = probe.apply(model, inputs[name], probe.feature, name)
    encode = getattr(task, probe.TOWERS[name])
    _, expected = jax.jit(encode)(model.variables, inputs[name])
    np.testing.assert_allclose(found, expected['projected'], atol=1e-5)


def test_the_attention_of_a_map_head_is_what_pools(open_vit):
  model = open_vit(pooling='map')
  pooling = model.variables['params']['pooling']
  pooling['mlp']['down'] = jax.tree.map(np.zeros_like, pooling['mlp']['down'])
  weights = probe.apply(model, IMAGES, lambda out: out['pooling_weights'])
  out, params = intermediates(model), pooling['attention']
  value = np.einsum('bld,dhk->blhk', out['encoded'], params['value']['kernel'])
  mixed = np.einsum('bhl,blhk->bhk', weights, value + params['value']['bias'])
  expected = np.einsum('bhk,hkd->bd', mixed, params['out']['kernel'])
  expected += params['out']['bias']
  np.testing.assert_allclose(expected, out['pooled'], atol=1e-4)
  assert weights.shape == (5, 2, 6)


@pytest.mark.parametrize('pooling', ['end', 'last'])
def test_who_reads_a_text(open_clip, pooling):
  model = open_clip(pooling=pooling)
  text, _ = model.task.tokenizer(['a', 'abc', 'a cat and a dog'])
  module, _ = probe.tower(model, 'text')

  def missed(out):
    reader = probe.reader(module, out)
    read = jnp.einsum('bl,bld->bd', reader, out['encoded'])
    return jnp.abs(read - out['pooled'])

  assert probe.apply(model, text, missed, 'text').max() < 1e-5


@pytest.mark.parametrize(
  'position,at', [('none', 'stem'), ('relative', 'shared')]
)
def test_models_without_embeddings_of_places(open_vit, position, at):
  model = open_vit(position=position, position_at=at)
  with pytest.raises(ConfigError, match=f'position: {position}'):
    probe.position_tables(model)


def test_towers_that_do_not_match_are_refused(open_clip):
  model = open_clip()
  model = dataclasses.replace(
    model, task=types.SimpleNamespace(model=model.task.model, intermediates=0)
  )
  with pytest.raises(ConfigError, match='cannot be looked into'):
    probe.tower(model)
