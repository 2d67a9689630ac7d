"""DALL-E's discrete VAE as OpenAI has released it, in and out."""

import json
import pathlib

import flax
import jax
import numpy as np
import pytest

from vit_jax import released
from vit_jax.models.discrete_vae import DiscreteVae
from vit_jax.released import openai_dvae

GOLDENS = pathlib.Path(__file__).parents[1] / 'goldens'
SIDES = ('encoder', 'decoder')


def tensors(side):
  """Returns the tensors of a golden file by OpenAI's names."""
  with np.load(GOLDENS / f'dvae_{side}.npz') as file:
    names = [name for name in file.files if name.startswith('params/')]
    return {name.removeprefix('params/'): file[name] for name in names}


@pytest.fixture
def folder(tmp_path):
  """A folder with both parts, as state dicts."""
  for side in SIDES:
    np.savez(tmp_path / f'{side}.npz', **tensors(side))
  return tmp_path


def test_sizes_are_those_that_the_files_say(folder):
  found = released.read(folder)
  said = json.loads(str(np.load(GOLDENS / 'dvae_decoder.npz')['meta']))
  said = said['hyperparameters']
  assert found.dialect == 'openai'
  assert found.model == {
    'name': 'discrete_vae',
    'width': said['n_hid'],
    'blocks_per_group': said['n_blk_per_group'],
    'groups': said['group_count'],
    'vocabulary_size': said['vocab_size'],
    'code_width': said['n_init'],
    'stem_size': 7,
    'encoder_kernel': 3,
    'patch_size': 1,
    'channels': said['output_channels'],
    'pixel_mean': 0.0,
    'pixel_std': 1.0,
    'quantization': 'gumbel',
  }
  assert (found.grid, found.image_shape) == ((32, 32), (256, 256, 3))
  found = released.read(folder, grid=(4, 6))
  assert found.image_shape == (32, 48, 3)
  assert found.preprocess == (
    'resize_small(48)|central_crop((32, 48))|value_range(0, 1)'
  )


def test_what_is_written_again_is_the_same_to_the_last_bit(
  folder, tools, tmp_path
):
  found, path = released.read(folder), tmp_path / 'both.safetensors'
  notes = released.write(path, found, 'openai')
  assert notes == ('Not in it: how images are prepared.',)
  expected = {
    f'{side}.{name}': tensor
    for side in SIDES
    for name, tensor in tensors(side).items()
  }
  tools.assert_same(released.tensors(path), expected)
  again = released.read(path)
  assert again.model == found.model
  tools.assert_same(again.params, found.params)


SMALL = dict(
  width=8, blocks_per_group=1, groups=3, vocabulary_size=10, code_width=6,
  stem_size=3, patch_size=2, channels=1,
)  # fmt: skip


def parameters(model):
  """Returns noise for each parameter of a model, by path."""
  image = jax.ShapeDtypeStruct((1, 16, 16, model.channels), np.float32)
  tree = jax.eval_shape(model.init, jax.random.key(0), image)['params']
  rng = np.random.default_rng(0)
  return {
    path: rng.normal(size=leaf.shape).astype(np.float32)
    for path, leaf in flax.traverse_util.flatten_dict(tree, sep='/').items()
  }


@pytest.mark.parametrize('fields', [SMALL, {}])
def test_shapes_are_those_of_the_model(fields):
  module = DiscreteVae(**fields)
  model = {name: getattr(module, name) for name in openai_dvae.FIELDS}
  image = jax.ShapeDtypeStruct((1, 16, 16, module.channels), np.float32)
  tree = jax.eval_shape(module.init, jax.random.key(0), image)['params']
  flat = flax.traverse_util.flatten_dict(tree, sep='/')
  expected = {path: leaf.shape for path, leaf in flat.items()}
  assert openai_dvae.of_model(model) == expected


def test_of_runs_only_those_like_the_paper_s_are_written(tmp_path):
  module = DiscreteVae(**SMALL)
  found = released.of_parameters(
    parameters(module),
    model={'name': 'discrete_vae', 'remat': 'none'}
    | {name: getattr(module, name) for name in openai_dvae.FIELDS},
    image_shape=(16, 24, 1),
  )
  assert found.grid == (2, 3)
  with pytest.raises(released.ReleasedError, match='groups is 3, can be 4'):
    released.write(tmp_path / 'x.safetensors', found, 'openai')


def test_what_does_not_fit_is_refused_by_name(folder):
  changed = tensors('decoder')
  changed['blocks.extra.w'] = changed.pop('blocks.output.conv.b')
  np.savez(folder / 'decoder.npz', **changed)
  with pytest.raises(released.ReleasedError, match=r'decoder\.blocks\.extra'):
    released.read(folder)
  (folder / 'decoder.npz').unlink()
  with pytest.raises(released.ReleasedError, match='encoder.. and decoder'):
    released.read(folder)
