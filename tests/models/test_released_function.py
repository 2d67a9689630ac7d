"""Hybrids, ResNets and Mixer compute what the released models compute."""

import json
import pathlib
import re

import flax
import flax.linen as nn
import jax
import numpy as np
import pytest

from vit_jax.models.mixer import Mixer
from vit_jax.models.resnet import ResNet
from vit_jax.models.vit import ViT

GOLDENS = pathlib.Path(__file__).parents[1] / 'goldens'

# Patterns of the names in the files, each with the name in this package.
BACKBONE = [
  (r'conv_root/', 'backbone/root/'),
  (r'gn_root/', 'backbone/root_norm/'),
  (r'block(\d)/unit(\d)/', r'backbone/stage_\1/unit_0\2/'),
  (r'conv(\d)/', r'conv_\1/'),
  (r'gn(\d)/', r'norm_\1/'),
  (r'conv_proj/', 'projection/'),
  (r'gn_proj/', 'projection_norm/'),
]
NAMES = {
  'hybrid': [
    *BACKBONE,
    (r'^cls$', 'class_token'),
    (r'Transformer/posembed_input/pos_embedding', 'position/embedding'),
    (r'Transformer/encoderblock_(\d)/', r'encoder/block_0\1/'),
    (r'Transformer/encoder_norm', 'encoder/norm'),
    (r'LayerNorm_0', 'attention_norm'),
    (r'LayerNorm_2', 'mlp_norm'),
    (r'MultiHeadDotProductAttention_1', 'attention'),
    (r'MlpBlock_3/Dense_0', 'mlp/up'),
    (r'MlpBlock_3/Dense_1', 'mlp/down'),
  ],
  'bit_v1': BACKBONE,
  'bit_v2': [
    (r'resnet/root_block/standardized_conv2d', 'backbone/root'),
    (r'resnet/block(\d)/unit(\d\d)', r'backbone/stage_\1/unit_\2'),
    (r'a/proj/standardized_conv2d', 'projection'),
    (r'a/standardized_conv2d', 'conv_1'),
    (r'b/standardized_conv2d', 'conv_2'),
    (r'c/standardized_conv2d', 'conv_3'),
    (r'a/group_norm', 'norm_1'),
    (r'b/group_norm', 'norm_2'),
    (r'c/group_norm', 'norm_3'),
    (r'resnet/group_norm', 'backbone/norm'),
    (r'resnet/head/conv2d', 'head'),
    (r'gamma$', 'scale'),
    (r'beta$', 'bias'),
  ],
  'mixer': [
    (r'^stem/', 'embedding/'),
    (r'MixerBlock_(\d)/', r'block_0\1/'),
    (r'LayerNorm_0', 'token_norm'),
    (r'LayerNorm_1', 'channel_norm'),
    (r'token_mixing/Dense_0', 'token_mlp/up'),
    (r'token_mixing/Dense_1', 'token_mlp/down'),
    (r'channel_mixing/Dense_0', 'channel_mlp/up'),
    (r'channel_mixing/Dense_1', 'channel_mlp/down'),
    (r'pre_head_layer_norm', 'norm'),
  ],
}


def released_params(golden, names, expected):
  """Returns a file's parameters as this package names and shapes them."""
  expected = flax.traverse_util.flatten_dict(expected, sep='/')
  params = {}
  for key in golden.files:
    name = key.removeprefix('params/')
    if name == key:
      continue
    for pattern, ours in names:
      name = re.sub(pattern, ours, name)
    value = golden[key]
    # Norms are stored as [1, 1, 1, channels], and a head as a convolution.
    squeezed = 'norm' in name or name == 'head/kernel'
    params[name] = value.squeeze() if squeezed else value
  assert {k: v.shape for k, v in params.items()} == {
    k: v.shape for k, v in expected.items()
  }
  return flax.traverse_util.unflatten_dict(params, sep='/')


def pooled_root(root_norm):
  """What follows the root's norm, which is in the files of hybrids."""
  return nn.max_pool(nn.relu(root_norm), (3, 3), (2, 2), 'SAME')


def hybrid(sizes):
  return ViT(
    num_classes=sizes['num_classes'],
    patch_size=sizes['patch_size'][0],
    width=sizes['hidden_size'],
    depth=sizes['num_layers'],
    mlp_dim=sizes['mlp_dim'],
    num_heads=sizes['num_heads'],
    backbone_stages=tuple(sizes['resnet_num_layers']),
    backbone_width_factor=sizes['resnet_width_factor'],
  )


def bit(form):
  return lambda sizes: ResNet(
    num_classes=sizes['num_classes'],
    stages=tuple(sizes['depth']),
    width_factor=sizes['width'],
    form=form,
  )


def mixer(sizes):
  return Mixer(
    num_classes=sizes['num_classes'],
    patch_size=sizes['patch_size'][0],
    width=sizes['hidden_dim'],
    depth=sizes['num_blocks'],
    token_mlp_dim=sizes['tokens_mlp_dim'],
    channel_mlp_dim=sizes['channels_mlp_dim'],
  )


# Names of the outputs in the files, with the path of the intermediate.
HYBRID_OUTPUTS = {
  'with_posemb': 'tokens',
  'block0': 'blocks/block_00/output',
  'encoded': 'encoded',
  'logits': 'logits',
}
BIT_OUTPUTS = {
  'stem': 'backbone/root',
  'stage2': 'backbone/stage_2',
  'stage4': 'backbone/stage_4',
  'pre_logits': 'pooled',
  'logits': 'logits',
}
RELEASED = {
  'hybrid_r50': (
    hybrid,
    'hybrid',
    {
      'block2_resnet': 'backbone/stage_2',
      'block3_resnet': 'backbone/stage_3',
      **HYBRID_OUTPUTS,
    },
  ),
  'hybrid_stem': (hybrid, 'hybrid', HYBRID_OUTPUTS),
  'bit_v1': (bit('post_activation'), 'bit_v1', BIT_OUTPUTS),
  'bit_v2': (bit('pre_activation'), 'bit_v2', BIT_OUTPUTS),
  'mixer': (
    mixer,
    'mixer',
    {
      'stem': 'patches',
      'block0': 'blocks/block_00/output',
      'pre_head_layer_norm': 'encoded',
      'logits': 'logits',
    },
  ),
}


@pytest.mark.parametrize('name', RELEASED)
def test_computes_what_the_released_model_computes(name):
  make, names, outputs = RELEASED[name]
  golden = np.load(GOLDENS / f'{name}.npz')
  model = make(json.loads(str(golden['meta']))['hyperparameters'])
  image = golden['input/image']
  expected = jax.eval_shape(model.init, jax.random.key(0), image)['params']
  params = released_params(golden, NAMES[names], expected)
  _, out = jax.jit(model.apply)({'params': params}, image)
  out = flax.traverse_util.flatten_dict(out, sep='/')
  pairs = [
    (out[ours], golden[f'output/{theirs}'])
    for theirs, ours in outputs.items()
    if f'output/{theirs}' in golden.files
  ]
  if 'output/stem_last_image' in golden.files:
    root = pooled_root(golden['output/stem_last_image'])
    pairs.insert(0, (out['backbone/root'][-1:], root))
  for value, expected in pairs:
    atol = 1e-4 * max(1, np.abs(expected).max())
    np.testing.assert_allclose(value, expected, atol=atol, rtol=0)
