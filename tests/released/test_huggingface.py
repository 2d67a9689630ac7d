"""Folders of transformers, without transformers; see tests/interop as well."""

import dataclasses
import json

import numpy as np
import pytest
import safetensors.numpy

from vit_jax import released

# As transformers 4 and 5 write them.
NAMES = {
  'vit.embeddings.cls_token': (1, 1, 24),
  'vit.embeddings.position_embeddings': (1, 25, 24),
  'vit.embeddings.patch_embeddings.projection.weight': (24, 3, 4, 4),
  'vit.embeddings.patch_embeddings.projection.bias': (24,),
  'vit.layernorm.weight': (24,),
  'vit.layernorm.bias': (24,),
  'classifier.weight': (5, 24),
  'classifier.bias': (5,),
} | {
  f'vit.encoder.layer.{i}.{name}': shape
  for i in range(2)
  for name, shape in {
    'attention.attention.query.weight': (24, 24),
    'attention.attention.query.bias': (24,),
    'attention.attention.key.weight': (24, 24),
    'attention.attention.key.bias': (24,),
    'attention.attention.value.weight': (24, 24),
    'attention.attention.value.bias': (24,),
    'attention.output.dense.weight': (24, 24),
    'attention.output.dense.bias': (24,),
    'intermediate.dense.weight': (20, 24),
    'intermediate.dense.bias': (20,),
    'output.dense.weight': (24, 20),
    'output.dense.bias': (24,),
    'layernorm_before.weight': (24,),
    'layernorm_before.bias': (24,),
    'layernorm_after.weight': (24,),
    'layernorm_after.bias': (24,),
  }.items()
}


@pytest.fixture
def folder(tools, tmp_path):
  """A model with everything that can differ from what is usual."""
  made = tools.example('token')
  made.model.update(activation='quick_gelu', norm_epsilon=1e-7)
  del made.model['position_at']
  path = tmp_path / 'folder'
  assert released.write(path, made, 'huggingface') == ()
  return path, made


def edit(path, **values):
  config = json.loads(path.read_text())
  path.write_text(json.dumps({**config, **values}))


def weights(path):
  return safetensors.numpy.load_file(path / 'model.safetensors')


def save(path, tensors):
  safetensors.numpy.save_file(tensors, path / 'model.safetensors')


def test_names_are_those_of_transformers(folder):
  path, made = folder
  tensors = weights(path)
  assert {k: v.shape for k, v in tensors.items()} == NAMES
  query = tensors['vit.encoder.layer.1.attention.attention.query.weight']
  kernel = made.params['encoder/block_01/attention/query/kernel']
  np.testing.assert_array_equal(query, kernel.reshape(24, 24).T)
  out = tensors['vit.encoder.layer.1.attention.output.dense.weight']
  kernel = made.params['encoder/block_01/attention/out/kernel']
  np.testing.assert_array_equal(out, kernel.reshape(24, 24).T)
  patch = tensors['vit.embeddings.patch_embeddings.projection.weight']
  kernel = made.params['embedding/kernel']
  np.testing.assert_array_equal(patch[7, 2, 1, 3], kernel[1, 3, 2, 7])


def test_round_trips_are_bitwise(folder, tools, tmp_path):
  path, made = folder
  for source in (path, path / 'model.safetensors'):
    found = released.read(source)
    tools.assert_same(found.params, made.params)
    for field in (
      'model', 'num_classes', 'grid', 'image_shape', 'class_names',
      'preprocess', 'notes',
    ):  # fmt: skip
      assert getattr(found, field) == getattr(made, field)
  released.write(tmp_path / 'again', found, 'huggingface')
  for file in path.iterdir():
    assert file.read_bytes() == (tmp_path / 'again' / file.name).read_bytes()
  with pytest.raises(FileExistsError):
    released.write(path, found, 'huggingface')


def test_a_model_without_a_head_has_no_prefix_and_a_pooler(folder, tools):
  path, made = folder
  tensors = {
    k.removeprefix('vit.'): v
    for k, v in weights(path).items()
    if not k.startswith('classifier')
  }
  save(path, {**tensors, 'pooler.dense.weight': np.ones((24, 24), 'f4')})
  found = released.read(path)
  assert found.num_classes == 0 and found.class_names is None
  assert 'vit.pooler.dense.weight' in found.notes[0]
  headless = {k: v for k, v in made.params.items() if 'head' not in k}
  tools.assert_same(found.params, headless)


@pytest.mark.parametrize(
  'values,text,noted',
  [
    (
      {'image_mean': [0.25] * 3, 'image_std': [0.5] * 3},
      'resize((16, 24))|value_range(-0.5, 1.5)',
      False,
    ),
    ({'do_normalize': False}, 'resize((16, 24))|value_range(0, 1)', False),
    ({'image_mean': [0.4, 0.5, 0.5]}, None, True),
    ({'image_mean': 'x'}, None, True),
    ({'image_std': [0, 0, 0]}, None, True),
    ({'size': {'shortest_edge': 16}}, None, True),
  ],
)
def test_preprocessing_is_read(folder, values, text, noted):
  path, made = folder
  edit(path / 'preprocessor_config.json', **values)
  found = released.read(path)
  assert found.preprocess == (text or made.preprocess)
  assert any('otherwise' in note for note in found.notes) == noted


def test_preprocessing_that_transformers_does_not_have_is_reported(
  tools, tmp_path
):
  made = dataclasses.replace(
    tools.example('token'), preprocess='resize_small(20)|value_range(-1, 1)'
  )
  notes = released.write(tmp_path / 'x', made, 'huggingface')
  assert 'resize_small(20)' in notes[0]
  assert not (tmp_path / 'x' / 'preprocessor_config.json').exists()


REFUSED = [
  ({'model_type': 'deit'}, "model_type 'deit', expected 'vit'"),
  ({'hidden_act': 'relu'}, "hidden_act 'relu'.*expected one of gelu"),
  ({'hidden_act': {}}, 'hidden_act {}'),
  ({'qkv_bias': False}, 'qkv_bias False'),
  ({'num_hidden_layers': 12}, '12 blocks, but the weights are of 2'),
  ({'hidden_size': 48}, r'cls_token +\(1, 1, 48\) +\(1, 1, 24\)'),
  ({'hidden_size': None}, 'a size of None'),
  ({'num_attention_heads': 5}, r'query.weight +\(20, 24\)'),
  ({'image_size': 32}, r'position_embeddings +\(1, 65, 24\) +\(1, 25, 24\)'),
  ({'image_size': []}, r'a size of \[\]'),
  ({'id2label': {'0': 'a'}}, 'names 1 classes in id2label'),
  ({'layer_norm_eps': 'x'}, "layer_norm_eps 'x'"),
]


@pytest.mark.parametrize('values,message', REFUSED)
def test_configs_that_do_not_fit(folder, values, message):
  path, _ = folder
  edit(path / 'config.json', **values)
  with pytest.raises(released.ReleasedError, match=message):
    released.read(path)


def test_folders_that_are_not_whole(folder):
  path, _ = folder
  with pytest.raises(released.ReleasedError, match='4x4 was asked for'):
    released.read(path, grid=(4, 4))
  tensors = weights(path)
  save(path, {**tensors, 'vit.extra': np.ones(2, 'f4')})
  with pytest.raises(released.ReleasedError, match='vit.extra +nothing'):
    released.read(path)
  (path / 'model.safetensors').write_bytes(b'\x08' * 100)
  with pytest.raises(released.ReleasedError, match='is damaged'):
    released.read(path)
  save(path, tensors)
  (path / 'config.json').write_text('{"model_type"')
  with pytest.raises(released.ReleasedError, match='not valid JSON'):
    released.read(path)
  (path / 'config.json').unlink()
  with pytest.raises(released.ReleasedError, match='no config.json beside'):
    released.read(path)
