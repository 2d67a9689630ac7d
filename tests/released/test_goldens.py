"""Files made with the original implementations, read as they are."""

import json
import pathlib

import flax
import jax
import numpy as np
import pytest

from vit_jax import released

GOLDENS = pathlib.Path(__file__).parents[1] / 'goldens'
VIT = {
  'logits': 'logits',
  'with_posemb': 'tokens',
  'block0': 'blocks/block_00/output',
  'encoded': 'encoded',
}
BIG_VISION = {**VIT, 'stem': 'patches', 'pre_logits': 'pooled'}
RESNET = {
  'logits': 'logits',
  'stem': 'backbone/root',
  'stage4': 'backbone/stage_4',
  'pre_logits': 'pooled',
}
# Dialect, grid to give, our names of the outputs.
CASES = {
  'vit_token': ('google', None, {**VIT, 'pre_logits': 'pre_logits'}),
  'vit_token_norep': ('google', (4, 6), VIT),
  'vit_gap': ('big_vision', None, BIG_VISION),
  'vit_map': ('big_vision', None, BIG_VISION),
  'vit_map_scan': ('big_vision', None, BIG_VISION),
  'vit_tok_bv': ('big_vision', None, BIG_VISION),
  'vit_sincos2d': (
    'big_vision',
    (4, 6),
    {**BIG_VISION, 'pre_logits': 'pre_logits'},
  ),
  'hybrid_r50': (
    'google',
    None,
    {
      **VIT,
      'block2_resnet': 'backbone/stage_2',
      'block3_resnet': 'backbone/stage_3',
    },
  ),
  'hybrid_stem': ('google', None, VIT),
  'mixer': (
    'mixer',
    None,
    {
      'logits': 'logits',
      'stem': 'patches',
      'block0': 'blocks/block_00/output',
      'pre_head_layer_norm': 'encoded',
    },
  ),
  'bit_v1': ('big_vision', (2, 2), RESNET),
  'bit_v2': ('bit', (2, 2), {**RESNET, 'stage2': 'backbone/stage_2'}),
}


def tensors(path):
  """Returns the parameters of a golden file, and its other arrays."""
  found = released.tensors(path)
  params = {k: v for k, v in found.items() if k.startswith('params/')}
  return params, {k: v for k, v in found.items() if k not in params}


@pytest.mark.parametrize('name', CASES)
def test_computes_what_the_original_computed(name, tools):
  dialect, grid, outputs = CASES[name]
  path = GOLDENS / f'{name}.npz'
  _, golden = tensors(path)
  found = released.read(path, grid=grid)
  assert found.dialect == dialect
  assert found.image_shape == golden['input/image'].shape[1:]
  assert any('input/image' in note for note in found.notes)
  model = tools.make(found.model, found.num_classes)
  params = flax.traverse_util.unflatten_dict(found.params, sep='/')
  logits, out = jax.jit(model.apply)({'params': params}, golden['input/image'])
  assert logits.shape == golden['output/logits'].shape
  ours = {
    '/'.join(k): v for k, v in flax.traverse_util.flatten_dict(out).items()
  }
  convolutional = 'backbone_stages' in found.model or 'stages' in found.model
  for theirs, path in outputs.items():
    expected = golden[f'output/{theirs}']
    value = np.asarray(ours[path]).reshape(
      len(expected), -1, expected.shape[-1]
    )
    flat = expected.reshape(value.shape[0], -1, value.shape[-1])
    # big_vision says what it has before there is a class token.
    value = value[:, value.shape[1] - flat.shape[1] :]
    size = max(1, np.abs(expected).max()) if convolutional else 1
    np.testing.assert_allclose(value, flat, atol=1e-4 * size, rtol=0)


@pytest.mark.parametrize('name', CASES)
def test_what_is_written_again_is_the_same_to_the_last_bit(
  name, tools, tmp_path
):
  path, target = GOLDENS / f'{name}.npz', tmp_path / 'again.npz'
  found = released.read(path, grid=CASES[name][1])
  released.write(target, found, found.dialect)
  prefix = 'params/' if found.dialect != 'big_vision' else ''
  again = {prefix + k: v for k, v in released.tensors(target).items()}
  if name == 'vit_map_scan':  # Written with a tensor a block.
    tools.assert_same(released.read(target).params, found.params)
  else:
    tools.assert_same(again, tensors(path)[0])


def test_sizes_are_those_that_the_files_say():
  for name in CASES:
    golden = released.tensors(GOLDENS / f'{name}.npz')
    said = json.loads(str(golden['meta']))['hyperparameters']
    model = released.read(GOLDENS / f'{name}.npz', grid=CASES[name][1]).model
    for ours, theirs in (
      ('num_heads', 'num_heads'),
      ('mlp_dim', 'mlp_dim'),
      ('norm_epsilon', 'layer_norm_eps'),
      ('backbone_width_factor', 'resnet_width_factor'),
      ('width_factor', 'width'),
    ):
      if ours in model:
        assert model[ours] == said[theirs], (name, ours)
