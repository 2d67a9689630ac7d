"""The names and shapes of every kind of file."""

import re

import jax
import ml_dtypes
import numpy as np
import pytest

from vit_jax import released
from vit_jax.released import shapes

NPZ = {
  'google': ('token', 'representation', 'gap', 'hybrid'),
  'big_vision': (
    'token', 'representation', 'map', 'gap', 'sincos', 'pre_activation',
    'post_activation',
  ),
  'bit': ('pre_activation',),
  'mixer': ('mixer',),
}  # fmt: skip
GRID = {'hybrid': (2, 3), 'pre_activation': (2, 3), 'post_activation': (2, 3)}


def grid_of(name):
  return GRID.get(name, (4, 6))


def vit_b16_names():
  """Names of a released ViT, spelled out."""
  block = [
    f'{layer}/{leaf}'
    for layer, leaves in (
      ('LayerNorm_0', ('scale', 'bias')),
      ('LayerNorm_2', ('scale', 'bias')),
      *(
        (f'MultiHeadDotProductAttention_1/{name}', ('kernel', 'bias'))
        for name in ('query', 'key', 'value', 'out')
      ),
      ('MlpBlock_3/Dense_0', ('kernel', 'bias')),
      ('MlpBlock_3/Dense_1', ('kernel', 'bias')),
    )
    for leaf in leaves
  ]
  return {
    'cls', 'embedding/kernel', 'embedding/bias', 'head/kernel', 'head/bias',
    'Transformer/posembed_input/pos_embedding',
    'Transformer/encoder_norm/scale', 'Transformer/encoder_norm/bias',
    *(f'Transformer/encoderblock_{i}/{x}' for x in block for i in range(12)),
  }  # fmt: skip


def resnet_names(units):
  """Names of the ResNet of a released hybrid, spelled out."""
  names = {'conv_root/kernel', 'gn_root/scale', 'gn_root/bias'}
  for stage, length in enumerate(units, 1):
    for unit in range(1, length + 1):
      ending = ('1', '2', '3', '_proj') if unit == 1 else ('1', '2', '3')
      for end in ending:
        names |= {
          f'block{stage}/unit{unit}/conv{end}/kernel',
          f'block{stage}/unit{unit}/gn{end}/scale',
          f'block{stage}/unit{unit}/gn{end}/bias',
        }
  return names


def test_a_file_of_google_has_the_released_names(tools, tmp_path):
  sizes = dict(
    name='vit', width=24, depth=12, mlp_dim=8, num_heads=12, patch_size=16
  )
  hybrid = dict(
    patch_size=1, backbone_stages=(3, 4, 9), backbone_width_factor=0.5
  )
  path = tmp_path / 'x.npz'
  vit = tools.example(sizes, (32, 32, 3))
  released.write(path, vit, 'google')
  found = released.tensors(path)
  assert found.keys() == vit_b16_names() and len(found) == 200
  kernel = 'Transformer/encoderblock_11/MultiHeadDotProductAttention_1/{}/{}'
  for name, shape in (
    (kernel.format('query', 'kernel'), (24, 12, 2)),
    (kernel.format('query', 'bias'), (12, 2)),
    (kernel.format('out', 'kernel'), (12, 2, 24)),
    ('Transformer/posembed_input/pos_embedding', (1, 5, 24)),
  ):
    assert found[name].shape == shape
  released.write(
    path, tools.example({**sizes, **hybrid}, (32, 32, 3)), 'google',
    overwrite=True,
  )  # fmt: skip
  found = released.tensors(path)
  assert found.keys() == vit_b16_names() | resnet_names((3, 4, 9))
  assert len(found) == 356
  assert found['block2/unit1/gn3/scale'].shape == (1, 1, 1, 256)


@pytest.mark.parametrize(
  'dialect,name', [(d, name) for d, names in NPZ.items() for name in names]
)
def test_round_trips_are_bitwise(dialect, name, tools, tmp_path):
  made, path = tools.example(name), tmp_path / 'x.npz'
  if dialect == 'big_vision' and name in ('token', 'representation'):
    # Has no position of the class token: see the next test.
    made.params['position/embedding'][:, 0] = 0
    made.params['class_token'][0, 0, :3] = (-0.0, 0.0, np.nan)
  notes = released.write(path, made, dialect)
  assert 'class names' in notes[0]
  found = released.read(path, grid=grid_of(name))
  assert found.dialect == dialect
  tools.assert_same(found.params, made.params)
  for field in ('model', 'num_classes', 'grid', 'image_shape'):
    if field == 'model':
      made.model.pop('position_at', None)
    assert getattr(found, field) == getattr(made, field)


def test_big_vision_adds_the_position_of_the_class_token_to_it(tools, tmp_path):
  made, path = tools.example('token'), tmp_path / 'x.npz'
  released.write(path, made, 'big_vision')
  found = released.read(path, grid=(4, 6)).params
  token, table = made.params['class_token'], made.params['position/embedding']
  np.testing.assert_array_equal(found['class_token'], token + table[:, :1])
  np.testing.assert_array_equal(
    found['position/embedding'][:, 1:], table[:, 1:]
  )
  assert not found['position/embedding'][:, 0].any()


def renamed(tensors, *rules):
  for pattern, new in rules:
    tensors = {re.sub(pattern, new, k): v for k, v in tensors.items()}
  return tensors


LINEN = (
  ('LayerNorm_2', 'LayerNorm_1'),
  ('DotProductAttention_1', 'DotProductAttention_0'),
  ('MlpBlock_3', 'MlpBlock_0'),
)


def stacked(tensors):
  pattern = r'Transformer/encoderblock_\d/'
  blocks = {k for k in tensors if re.match(pattern, k)}
  result = {k: v for k, v in tensors.items() if k not in blocks}
  for name in blocks:
    rest = re.sub(pattern, '', name)
    result[f'Transformer/encoderblock/{rest}'] = np.stack(
      [tensors[f'Transformer/encoderblock_{i}/{rest}'] for i in range(2)]
    )
  return result


def old_mixer(tensors):
  tensors = renamed(
    tensors,
    ('stem', 'embedding'),
    ('pre_head_layer_norm', 'Mixer/encoder_norm'),
    ('MixerBlock_', 'Mixer/encoderblock_'),
    (r'_mixing/Dense_0/(\w+)', r'_mixing_phase_0/\g<1>1'),
    (r'_mixing/Dense_1/(\w+)', r'_mixing_phase_0/\g<1>2'),
    ('LayerNorm_1', 'LayerNorm_2'),
  )
  return {k: v[None] if 'phase' in k else v for k, v in tensors.items()}


def with_optimizer(tensors):
  prefixed = {f'opt/target/{k}': v for k, v in tensors.items()}
  moments = {f'opt/state/param_states/{k}/m': v for k, v in tensors.items()}
  return {**prefixed, **moments, 'opt/state/step': np.int32(7)}


def of_two_towers(tensors):
  return {
    **{f'params/img/{k}': v for k, v in tensors.items()},
    'params/txt/Encoder_0/encoderblock_0/LayerNorm_0/scale': np.ones(3),
    'params/t': np.ones(1),
  }


# How a file may be written otherwise; what is said about it.
VARIANTS = [
  ('token', 'google', with_optimizer, 'opt/state (41 tensors)'),
  ('token', 'google', of_two_towers, 'params/txt'),
  ('token', 'google', lambda x: renamed(x, *LINEN), None),
  ('token', 'google', stacked, 'stacked along a leading axis'),
  (
    'token',
    'google',
    lambda x: renamed(x, ('posembed_input/', ''), *LINEN),
    None,
  ),
  (
    'gap',
    'google',
    lambda x: renamed(x, ('Transformer/posembed_input/', '')),
    None,
  ),
  ('gap', 'google', lambda x: {k: v.T.copy().T for k, v in x.items()}, None),
  (
    'gap',
    'google',
    lambda x: {k: v.astype('>f4') for k, v in x.items()},
    None,
  ),
  (
    'hybrid',
    'google',
    lambda x: {
      k: v.squeeze() if '/gn' in k or k.startswith('gn_') else v
      for k, v in x.items()
    },
    None,
  ),
  (
    'post_activation',
    'big_vision',
    lambda x: {
      k: v[None, None, None] if '/gn' in k else v for k, v in x.items()
    },
    None,
  ),
  ('mixer', 'mixer', old_mixer, 'oldest'),
  (
    'pre_activation',
    'bit',
    lambda x: renamed(x, ('proj/standardized_conv2d', r'\g<0>_1')),
    'numbered',
  ),
]


@pytest.mark.parametrize('name,dialect,change,note', VARIANTS)
def test_other_spellings_are_the_same(
  name, dialect, change, note, tools, tmp_path
):
  made, path = tools.example(name), tmp_path / 'x.npz'
  released.write(path, made, dialect)
  np.savez(tmp_path / 'y.npz', **change(released.tensors(path)))
  found = released.read(tmp_path / 'y.npz', grid=grid_of(name))
  tools.assert_same(found.params, made.params)
  assert note is None or any(note in said for said in found.notes)


@pytest.mark.parametrize('kind', ['bfloat16', 'float16', 'float64'])
def test_other_types_are_read_as_float32(kind, tools, tmp_path):
  made, path = tools.example('token'), tmp_path / 'x.npz'
  dtype = ml_dtypes.bfloat16 if kind == 'bfloat16' else np.dtype(kind)
  released.write(path, made, 'google')
  # NumPy stores bfloat16 as two bytes that it knows nothing about.
  narrow = {k: v.astype(dtype) for k, v in released.tensors(path).items()}
  np.savez(path, **narrow)
  assert (released.tensors(path)['cls'].dtype == 'V2') == (kind == 'bfloat16')
  found = released.read(path, grid=(4, 6))
  assert f'Stored as {kind}; made float32.' in found.notes
  expected = {k: v.astype(dtype).astype('f4') for k, v in made.params.items()}
  tools.assert_same(found.params, expected)


@pytest.mark.parametrize(
  'fields,size',
  [
    (dict(name='vit', variant='B/16'), 224),
    (dict(name='vit', variant='Ti/16', pooling='map', position='none'), 224),
    (dict(name='vit', variant='R50+B/16', representation_size=-1), 384),
    (dict(name='vit', variant='R+Ti/16'), 224),
    (dict(name='mixer', variant='B/32'), 224),
    (dict(name='resnet', variant='R50x1'), 224),
    (dict(name='resnet', variant='R26x1', form='post_activation'), 224),
  ],
)
def test_shapes_are_those_of_the_models(fields, size, tools):
  module = tools.make(fields, 21)
  image = jax.ShapeDtypeStruct((1, size, size, 3), np.float32)
  tree = jax.eval_shape(module.init, jax.random.key(0), image)['params']
  expected = {
    '/'.join(part.key for part in path): leaf.shape
    for path, leaf in jax.tree.leaves_with_path(tree)
  }
  names = ('pooling', 'position', 'representation_size', 'form')
  model = {'name': fields['name'], **module.sizes}
  model |= {n: getattr(module, n) for n in names if hasattr(module, n)}
  model.setdefault('backbone_width_factor', 1.0)
  assert shapes.of_model(model, expected.get) == expected


def test_a_grid_is_guessed_only_where_it_is_a_square(tools, tmp_path):
  path = tmp_path / 'x.npz'

  def write(grid, dialect, change=dict):
    made = tools.example('token', (4 * grid[0], 4 * grid[1], 3))
    released.write(path, made, dialect, overwrite=True)
    tensors = {
      k.removeprefix('params/'): v for k, v in released.tensors(path).items()
    }
    np.savez(path, **change(tensors))

  write((3, 3), 'big_vision')
  assert released.read(path).grid == (3, 3)
  # 4 rows of position embeddings and a class token: 3 patches and not 2 x 2.
  write((3, 1), 'google')
  with pytest.raises(released.ReleasedError, match='of 3 patches.*--grid'):
    released.read(path)
  found = released.read(path, grid=(3, 1))
  assert found.grid == (3, 1) and found.image_shape == (12, 4, 3)
  with pytest.raises(released.ReleasedError, match='4x4 is 16 patches'):
    released.read(path, grid=(4, 4))
  # At the top level both are possible, with the class token and without.
  top = (('Transformer/posembed_input/', ''),)
  write((3, 3), 'google', lambda x: renamed(x, *top))
  found = released.read(path)
  assert found.grid == (3, 3)
  assert found.params['position/embedding'][0, 0].any()


def test_parameters_of_a_scanned_model_are_unstacked(tools):
  made = tools.example('token')
  stack = {}
  for path in list(made.params):
    if 'block_00' in path:
      parts = [made.params[path.replace('00', f'0{i}')] for i in range(2)]
      stack[path.replace('block_00', 'blocks')] = np.stack(parts)
  rest = {k: v for k, v in made.params.items() if 'block_' not in k}
  again = released.of_parameters(
    {**rest, **stack}, model=made.model, image_shape=made.image_shape
  )
  tools.assert_same(again.params, made.params)
  assert again.model == made.model and again.grid == (4, 6)
  with pytest.raises(released.ReleasedError, match="model 'gpt'"):
    released.of_parameters({}, model={'name': 'gpt'}, image_shape=(1, 1, 1))
