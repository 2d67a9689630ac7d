"""CLIP as others have released it: OpenAI, transformers, big_vision."""

import json
import pathlib

import flax
import jax
import numpy as np
import pytest
import safetensors.numpy

from vit_jax import released
from vit_jax.models import clip
from vit_jax.released import clip_shapes

GOLDENS = pathlib.Path(__file__).parents[1] / 'goldens'
QUICK = {'activation': 'quick_gelu'}
TOWERS = {
  'image_features': 'image/projected',
  'text_features': 'text/projected',
  'text_ln_final': 'text/encoded',
}
# Dialect, what has to be told, our names of the outputs.
CASES = {
  'clip_vit': (
    'openai',
    {**QUICK, 'image_heads': 3, 'text_heads': 2},
    {
      **TOWERS,
      'ln_pre': 'image/normed',
      'visual_transformer': 'image/blocks/block_02/output',
    },
  ),
  'clip_vit_head64': ('openai', QUICK, TOWERS),
  'clip_resnet': (
    'openai',
    {**QUICK, 'text_heads': 2},
    {
      **TOWERS,
      'stem': 'image/stem',
      'layer1': 'image/stage_1',
      'layer4': 'image/stage_4',
    },
  ),
  'siglip': (
    'big_vision',
    None,
    {
      'img_encoded': 'image/encoded',
      'img_pre_logits': 'image/pooled',
      'txt_transformed': 'text/encoded',
      'txt_pre_logits': 'text/pooled',
      'b': 'logit_bias',
    },
  ),
}


def golden(name):
  return np.load(GOLDENS / f'{name}.npz')


def read(name):
  return released.read(GOLDENS / f'{name}.npz', told=CASES[name][1])


def nested(paths):
  return flax.traverse_util.unflatten_dict(paths, sep='/')


def run(found, image, text):
  """Returns features and intermediates of a checkpoint."""
  fields = {key: value for key, value in found.model.items() if key != 'name'}
  variables = {'params': nested(found.params)}
  if found.statistics:
    variables['batch_stats'] = nested(found.statistics)
  model = clip.make(**fields)
  features, out = jax.jit(model.apply)(variables, image, text)
  return features, flax.traverse_util.flatten_dict(out, sep='/')


@pytest.mark.parametrize('name', CASES)
def test_computes_what_the_original_computed(name):
  dialect, _, outputs = CASES[name]
  arrays, found = golden(name), read(name)
  assert found.dialect == dialect
  image = arrays['input/image']
  if dialect == 'openai':
    image = image.transpose(0, 2, 3, 1)
  assert found.image_shape == image.shape[1:]
  (image, text), out = run(found, image, arrays['input/text'])
  logits = np.exp(out['logit_scale']) * image @ text.T
  out |= {'logits': logits, 'logits_per_image': logits, 'zi': image, 'zt': text}
  pairs = {
    **outputs,
    **({'logits_per_image': 'logits'} if dialect == 'openai' else {}),
  }
  if dialect == 'big_vision':
    out['logits'] += out['logit_bias']
    pairs |= {'logits': 'logits', 'zimg': 'zi', 'ztxt': 'zt'}
  for theirs, ours in pairs.items():
    expected, value = arrays[f'output/{theirs}'], np.asarray(out[ours])
    if value.ndim == 4:
      value = value.transpose(0, 3, 1, 2)
    size = max(1, np.abs(expected).max()) if name == 'clip_resnet' else 1
    np.testing.assert_allclose(
      value.reshape(expected.shape), expected, atol=1e-4 * size, rtol=0
    )


@pytest.mark.parametrize('name', ['clip_vit', 'clip_vit_head64', 'clip_resnet'])
def test_what_is_written_again_is_the_same_to_the_last_bit(
  name, tools, tmp_path
):
  found = read(name)
  path = tmp_path / 'again.safetensors'
  with pytest.raises(released.ReleasedError, match='.safetensors file, which'):
    released.write(tmp_path / 'again.npz', found, 'openai')
  released.write(path, found, 'openai')
  arrays, written = golden(name), released.tensors(path)
  params = {k for k in arrays.files if k.startswith('params/')}
  assert {f'params/{k}' for k in written} == params
  counters = {k for k in written if k.endswith('num_batches_tracked')}
  assert all(written[k].dtype == np.int64 for k in counters)
  tools.assert_same(
    {k: v for k, v in written.items() if k not in counters},
    {k: arrays[f'params/{k}'] for k in written.keys() - counters},
  )
  # What its names do not say is in its metadata.
  again = released.read(path)
  tools.assert_same(again.params, found.params)
  tools.assert_same(again.statistics, found.statistics)
  assert again.model == found.model


def test_folders_of_transformers(tools, tmp_path):
  found, path = read('clip_vit'), tmp_path / 'folder'
  notes = released.write(path, found, 'huggingface')
  assert len(notes) == 1 and 'tokenizer' in notes[0]
  again = released.read(path)
  tools.assert_same(again.params, found.params)
  for field in ('model', 'grid', 'image_shape', 'preprocess', 'tokenizer'):
    assert getattr(again, field) == getattr(found, field)
  (path / 'merges.txt').write_text('#version: 0.2')
  assert released.read(path).tokenizer == str(path / 'merges.txt')
  released.write(tmp_path / 'again', again, 'huggingface')
  for name in ('config.json', 'model.safetensors', 'preprocessor_config.json'):
    assert (path / name).read_bytes() == (
      tmp_path / 'again' / name
    ).read_bytes()
  with pytest.raises(released.ReleasedError, match='cannot be told of this'):
    released.read(path, told=QUICK)


def edit(path, section, **values):
  config = json.loads(path.read_text())
  (config[section] if section else config).update(values)
  path.write_text(json.dumps(config))


# Section and keys of the config, what is refused or how the model changes.
CONFIGS = [
  ('text_config', {'eos_token_id': 2}, None),
  ('text_config', {'eos_token_id': 49_407}, 'eos_token_id 49407, expected the'),
  ('text_config', {'hidden_act': 'relu'}, "hidden_act 'relu'"),
  ('vision_config', {'layer_norm_eps': None}, 'layer_norm_eps None'),
  ('vision_config', {'num_attention_heads': 5}, r'q_proj.weight +\(45, 48\)'),
  ('vision_config', {'image_size': 40}, r'position_embedding.weight +\(26, 48'),
  ('text_config', {'num_hidden_layers': 3}, 'layers.2.*nothing'),
  ('', {'projection_dim': True}, 'a size of True'),
  ('', {'text_config': 3}, 'text_config that is no JSON object'),
  ('', {'model_type': 'siglip'}, "model_type 'siglip', expected"),
]


@pytest.mark.parametrize('section,values,message', CONFIGS)
def test_configs_of_transformers(section, values, message, tools, tmp_path):
  found = read('clip_vit')
  released.write(tmp_path, found, 'huggingface')
  edit(tmp_path / 'config.json', section, **values)
  if message is None:
    assert released.read(tmp_path).model == found.model
    return
  with pytest.raises(released.ReleasedError, match=message):
    released.read(tmp_path)


def test_each_tower_has_its_own_activation_and_epsilon(tmp_path):
  released.write(tmp_path, read('clip_vit'), 'huggingface')
  config = tmp_path / 'config.json'
  edit(config, 'text_config', hidden_act='gelu', layer_norm_eps=1e-6)
  # As configs of old say it, which have sections twice.
  edit(config, '', vision_config_dict={'hidden_act': 'gelu_pytorch_tanh'})
  found = released.read(tmp_path)
  model = found.model
  assert model['text']['activation'] == 'gelu'
  assert model['text']['norm_epsilon'] == 1e-6
  assert model['image']['activation'] == 'gelu_tanh'
  assert model['image']['norm_epsilon'] == 1e-5
  released.write(tmp_path, found, 'huggingface', overwrite=True)
  assert released.read(tmp_path).model == model
  with pytest.raises(released.ReleasedError, match='norm_epsilon is 1e-06'):
    released.write(tmp_path / 'x.safetensors', found, 'openai')


@pytest.mark.parametrize(
  'values,text',
  [
    ({'image_mean': [0.5, 0.25, 0.1]}, 'standardize((0.5, 0.25, 0.1)'),
    # As older files say it.
    ({'size': 32, 'crop_size': 32}, 'standardize((0.48145466,'),
    ({'resample': 2}, None),
    ({'image_std': [0.5]}, None),
  ],
)
def test_preprocessing_is_read(values, text, tmp_path):
  released.write(tmp_path, read('clip_vit'), 'huggingface')
  edit(tmp_path / 'preprocessor_config.json', '', **values)
  found = released.read(tmp_path)
  assert found.preprocess.startswith(
    "resize_small(32, 'bicubic')|central_crop("
  )
  assert (text or '') in found.preprocess
  assert any('otherwise' in note for note in found.notes) == (text is None)


def broken(change):
  """Returns the tensors of a golden file after a change."""
  arrays = golden('clip_vit_head64')
  tensors = {
    k.removeprefix('params/'): arrays[k]
    for k in arrays.files
    if k.startswith('params/')
  }
  change(tensors)
  return tensors


STACK = 'transformer.resblocks.1.attn.in_proj_weight'
REFUSED = [
  (dict, {}, 'activation is None, expected one of quick_gelu.*open_clip has'),
  (dict, {'activation': 'relu'}, "activation is 'relu'"),
  (dict, {'activatoin': 'gelu'}, "Did you mean 'activation'"),
  (dict, {**QUICK, 'text_heads': 7}, 'A width of 64 is not shared by 7'),
  (dict, {**QUICK, 'image_heads': '2'}, "by '2' attention heads"),
  (lambda x: x.pop('visual.proj'), QUICK, 'without visual.layer1'),
  (lambda x: x.pop('ln_final.bias'), QUICK, 'ln_final.bias +.64,. +nothing'),
  (lambda x: x.update(extra=np.ones(2)), QUICK, 'extra +nothing +.2,.'),
  (lambda x: x.update({STACK: np.ones(7)}), QUICK, 'three times the width'),
  (lambda x: x.pop(STACK), QUICK, 'attn.in_proj.query.weight .*nothing'),
]


@pytest.mark.parametrize('change,told,message', REFUSED)
def test_what_does_not_fit_is_refused_by_name(change, told, message, tmp_path):
  path = tmp_path / 'x.safetensors'
  safetensors.numpy.save_file(broken(change), path)
  with pytest.raises(released.ReleasedError, match=message):
    released.read(path, told=told)


def test_two_towers_of_google_in_other_spellings(tools, tmp_path):
  arrays, found = golden('siglip'), read('siglip')
  tensors = {k: arrays[k] for k in arrays.files if k.startswith('params/')}

  def again(change):
    copy = dict(tensors)
    change(copy)
    np.savez(tmp_path / 'x.npz', **copy)
    return released.read(tmp_path / 'x.npz')

  def stack(x):
    for name in list(x):
      if 'txt/Encoder_0/encoderblock_0' in name:
        pair = [x.pop(name), x.pop(name.replace('block_0', 'block_1'))]
        x[name.replace('block_0', 'block')] = np.stack(pair)

  tools.assert_same(again(stack).params, found.params)
  # LiT has no bias, and may have a head for images.
  lit = again(lambda x: x.pop('params/b'))
  assert 'initial_bias' not in lit.model
  head = {'kernel': np.ones((32, 32), 'f4'), 'bias': np.ones(32, 'f4')}
  lit = again(
    lambda x: x.update({f'params/img/head/{k}': v for k, v in head.items()})
  )
  assert lit.model['image_head'] == 'affine'
  for change, message in (
    (lambda x: x.pop('params/t'), r't +\(1,\) +nothing'),
    (lambda x: x.update({'params/c': np.ones(1)}), r'c +nothing'),
    (
      lambda x: x.update({'params/txt/head/kernel': np.ones((32, 9))}),
      r'head/kernel +\(32, 32\) +\(32, 9\)',
    ),
  ):
    with pytest.raises(released.ReleasedError, match=message):
      again(change)


def test_parameters_of_a_run_become_openais(tools, tmp_path):
  for name in ('clip_vit', 'clip_resnet'):
    found = read(name)
    model = {**found.model, 'initial_scale': 14.0}
    model['text'] = {**model['text'], 'scan': False, 'dropout': 0.1}
    run = released.of_parameters(
      found.params,
      model=model,
      image_shape=found.image_shape,
      statistics=found.statistics,
    )
    assert run.grid == found.grid
    path = tmp_path / f'{name}.safetensors'
    released.write(path, run, 'openai')
    tools.assert_same(released.read(path).params, found.params)


IMPOSSIBLE = [
  ('siglip', 'openai', "text_head is 'affine'.*\n.*image_head is 'none'"),
  ('siglip', 'huggingface', "text_head is 'affine'"),
  ('siglip', 'big_vision', 'Dialects of clip: '),
  ('clip_resnet', 'huggingface', 'square images, not a modified_resnet'),
]


@pytest.mark.parametrize('name,dialect,message', IMPOSSIBLE)
def test_models_that_a_dialect_cannot_express(name, dialect, message, tmp_path):
  path = tmp_path / 'x.safetensors'
  with pytest.raises(released.ReleasedError, match=message):
    released.write(path, read(name), dialect)
  assert not path.exists()


def test_of_other_models_openai_has_none(tools, tmp_path):
  with pytest.raises(released.ReleasedError, match='holds a CLIP, not a vit'):
    released.write(tmp_path / 'x.safetensors', tools.example('token'), 'openai')


@pytest.mark.parametrize(
  'name', ['RN50', 'RN50x64', 'ViT-B/32', 'ViT-L/14@336', 'map']
)
def test_shapes_are_those_of_the_models(name):
  if name == 'map':
    size, fields = 32, read('siglip').model | {'name': None}
    del fields['name']
    fields['text'] = {**fields['text'], 'pooling': 'map'}
  else:
    size, fields = clip.VARIANTS[name].image_size, clip.variant(name)
  module = clip.make(**fields)
  image = jax.ShapeDtypeStruct((1, size, size, 3), np.float32)
  text = jax.ShapeDtypeStruct((1, module.text.length), np.int32)
  variables = jax.eval_shape(module.init, jax.random.key(0), image, text)
  expected = {}
  for tree in variables.values():
    flat = flax.traverse_util.flatten_dict(tree, sep='/')
    expected |= {path: leaf.shape for path, leaf in flat.items()}
  head = fields.get('image_head', 'linear')
  model = {'image_head': head, 'text_head': 'linear', **fields}
  model['text'] = {'pooling': 'end', **model['text']}
  usual = {'pooling': 'token', 'position': 'learned', 'representation_size': 0}
  model['image'] = {**usual, **model['image']}
  assert clip_shapes.of_model(model, expected.get) == expected
