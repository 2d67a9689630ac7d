"""The discrete VAE computes what OpenAI's does, and chooses what it should."""

import functools
import pathlib
import re

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.models import discrete_vae as dvae
from vit_jax.models import discrete_vae_stacks as stacks

GOLDENS = pathlib.Path(__file__).parents[1] / 'goldens'
SMALL = dict(
  width=8, blocks_per_group=1, groups=2, vocabulary_size=12, code_width=6,
  stem_size=3, patch_size=2,
)  # fmt: skip
# Patterns of OpenAI's names, each with the name in this package.
NAMES = [
  (r'^decoder/blocks\.input', 'codebook'),
  (r'blocks\.', ''),
  (r'\.block_', '_block_'),
  (r'res_path\.', ''),
  (r'id_path', 'identity'),
  (r'output\.conv', 'output'),
  (r'\.w$', '/kernel'),
  (r'\.b$', '/bias'),
  (r'\.', '/'),
]


def golden(side):
  return np.load(GOLDENS / f'dvae_{side}.npz')


def channels_last(x):
  return np.moveaxis(x, 1, -1)


def released_params():
  """Returns the parameters of both files as this package has them."""
  params = {}
  for side in ('encoder', 'decoder'):
    file = golden(side)
    for key in file.files:
      name = key.replace('params/', f'{side}/')
      if name != key:
        for pattern, ours in NAMES:
          name = re.sub(pattern, ours, name)
        value = file[key]
        value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value
        params[name] = value[0, 0] if name == 'codebook/kernel' else value
  return {'params': flax.traverse_util.unflatten_dict(params, sep='/')}


@functools.partial(jax.jit, static_argnames=('model', 'method', 'train'))
def apply(model, variables, *inputs, **options):
  return model.apply(variables, *inputs, **options)


def assert_close(value, expected):
  np.testing.assert_allclose(value, expected, atol=1e-4, rtol=0)


def test_computes_what_the_released_model_computes():
  model = dvae.DiscreteVae(width=16, vocabulary_size=48, code_width=12)
  variables, file = released_params(), golden('encoder')
  image = channels_last(file['input/image'])
  shapes = jax.tree.map(jnp.shape, variables)
  made = jax.eval_shape(model.init, jax.random.key(0), image)
  assert jax.tree.map(lambda x: x.shape, made) == shapes

  logits, out = apply(model, variables, image, method='encode')
  for name in ('input', 'group_1', 'group_4'):
    assert_close(out[name], channels_last(file[f'output/{name}']))
  assert_close(logits, channels_last(file['output/logits']))
  np.testing.assert_array_equal(logits.argmax(-1), file['output/codes'])

  file = golden('decoder')
  decoded, out = apply(model, variables, file['input/codes'], method='decode')
  for name in ('input', 'group_1'):
    assert_close(out[name], channels_last(file[f'output/{name}']))
  assert_close(decoded, channels_last(file['output/decoded']))
  assert_close(dvae.to_pixels(decoded), channels_last(file['output/pixels']))
  soft = channels_last(file['input/soft_codes'])
  decoded, _ = apply(model, variables, soft, method='decode')
  assert_close(decoded, channels_last(file['output/decoded_soft']))


def test_pixels_are_mapped_as_in_the_released_code():
  file = golden('encoder')
  mapped = dvae.map_pixels(file['input/image'])
  assert_close(mapped, file['output/map_pixels'])
  file = golden('decoder')
  assert_close(
    dvae.unmap_pixels(file['input/unmap_in']), file['output/unmap_out']
  )


def made(**fields):
  """Returns a small model with noise in every parameter, and two images."""
  model = dvae.DiscreteVae(**{**SMALL, **fields})
  image = jax.random.uniform(jax.random.key(0), (2, 8, 12, model.channels))
  tree = jax.eval_shape(model.init, jax.random.key(0), image)
  rng = np.random.default_rng(0)
  variables = jax.tree.map(
    lambda leaf: rng.normal(scale=0.5, size=leaf.shape).astype(np.float32), tree
  )
  return model, variables, image


def test_a_patch_is_the_channels_of_one_position():
  model, variables, image = made(
    patch_size=2, channels=1, stem_size=1, pixel_mean=0.9, pixel_std=0.3
  )
  kernel = variables['params']['encoder']['input']['kernel'][0, 0]
  bias = variables['params']['encoder']['input']['bias']
  _, out = apply(model, variables, image, method='encode')
  patch = dvae.map_pixels(image[1, 2:4, 6:8]).ravel()
  patch = (patch - 0.9) / 0.3
  assert_close(out['input'][1, 1, 3], patch @ kernel + bias)
  # Without blocks that mix positions, what is written is where it was read.
  x = jnp.arange(2 * 4 * 6 * 3.0).reshape(2, 4, 6, 3)
  back = stacks.from_patches(stacks.to_patches(x, 2), 2)
  np.testing.assert_array_equal(back, x)


def test_how_far_around_its_patch_a_code_sees():
  reach = {}
  for kernel in (1, 3):
    model, variables, image = made(
      groups=1, stem_size=1, encoder_kernel=kernel, blocks_per_group=1
    )
    image = jnp.tile(image, (1, 4, 4, 1))
    before, _ = apply(model, variables, image, method='encode')
    other = image.at[:, 16:18, 24:26].add(0.1)
    after, _ = apply(model, variables, other, method='encode')
    changed = np.abs(after - before).max((0, 3)) > 1e-6
    reach[kernel] = np.argwhere(changed) - (8, 12)
  np.testing.assert_array_equal(reach[1], [[0, 0]])
  # Three convolutions of 3 x 3.
  assert np.abs(reach[3]).max() == 3


@pytest.mark.parametrize('quantization', ['gumbel', 'vector'])
def test_without_training_the_likeliest_codes_are_decoded(quantization):
  model, variables, image = made(quantization=quantization)
  statistics, out = apply(model, variables, image)
  codes = out['logits'].argmax(-1)
  assert out['codes'].shape == (2, 2, 3)
  assert len(np.unique(codes)) > 1
  np.testing.assert_array_equal(out['codes'], codes)
  expected, _ = apply(model, variables, codes, method='decode')
  assert statistics.shape == (2, 8, 12, 6)
  assert_close(statistics, expected)


def test_vectors_choose_the_nearest_code_and_pass_gradients_through():
  model, variables, image = made(quantization='vector')
  _, out = apply(model, variables, image, train=True)
  book = variables['params']['codebook']['kernel']
  book = book / np.linalg.norm(book, axis=-1, keepdims=True)
  vectors = np.asarray(out['vectors'])
  distance = np.square(vectors[..., None, :] - book).sum(-1)
  np.testing.assert_array_equal(out['codes'], distance.argmin(-1))
  assert_close(out['chosen'], book[distance.argmin(-1)])

  def output(params):
    return jnp.square(apply(model, {'params': params}, image)[0]).sum()

  gradients = jax.jit(jax.grad(output))(variables['params'])
  assert np.abs(gradients['encoder']['input']['kernel']).max() > 1e-3
  assert np.abs(gradients['codebook']['kernel']).max() == 0


def test_the_relaxation_samples_codes_as_often_as_the_logits_say():
  logits = jnp.log(jnp.asarray([0.1, 0.2, 0.7]))
  logits = jnp.broadcast_to(logits, (20_000, 3))
  soft = dvae.gumbel_softmax(logits, 1e-3, jax.random.key(0))
  np.testing.assert_allclose(soft.mean(0), [0.1, 0.2, 0.7], atol=0.02)
  np.testing.assert_allclose(soft.max(-1).mean(), 1, atol=0.01)
  soft = dvae.gumbel_softmax(logits, 1e3, jax.random.key(0))
  np.testing.assert_allclose(soft, 1 / 3, atol=0.02)


def test_rematerialisation_changes_no_gradient():
  def gradients(remat):
    model, variables, image = made(remat=remat)

    def loss(variables):
      rngs = {'codes': jax.random.key(1)}
      output, _ = apply(model, variables, image, train=True, rngs=rngs)
      return jnp.square(output).mean()

    return jax.jit(jax.grad(loss))(variables)

  jax.tree.map(assert_close, gradients('full'), gradients('none'))


@pytest.mark.parametrize(
  'fields,message',
  [
    (dict(width=6), 'width is 6, expected a multiple of 4'),
    (dict(stem_size=4), 'stem_size is 4, expected an odd'),
    (dict(encoder_kernel=2), 'encoder_kernel is 2, expected an odd'),
    (dict(pixel_std=0.0), 'pixel_std is 0.0, expected more'),
    (dict(groups=0), 'groups is 0, expected 1 or more'),
    (dict(patch_size=3), '6x6 pixels, which do not divide an image of 8x12'),
    (dict(channels=1), 'have 3 channels, but model.channels is 1'),
  ],
)
def test_sizes_that_cannot_work(fields, message):
  model = dvae.DiscreteVae(**{**SMALL, **fields})
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 8, 12, 3)))
