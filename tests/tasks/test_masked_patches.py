"""Masked patches: what is corrupted, what is to be said of it, what counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

from vit_jax.evaluation import few_shot
from vit_jax.models.mixer import Mixer
from vit_jax.models.vit import ViT
from vit_jax.tasks.masked_patches import MaskedPatches, draw_corruption

KEY = jax.random.key(0)
TARGETS = ('mean_color', 'downsized', 'pixels')


def vit(**fields):
  sizes = dict(patch_size=4, width=16, depth=1, mlp_dim=24, num_heads=2)
  return ViT(**{**sizes, **fields})


def task(target='mean_color', channels=3, model=None, **fields):
  return MaskedPatches(model or vit(), (8, 12, channels), target, **fields)


def batch(channels=3, size=5):
  rng = np.random.default_rng(1)
  image = rng.uniform(-1, 1, (size, 8, 12, channels)).astype(np.float32)
  return {'image': image, 'mask': np.ones(size, np.float32)}


def initialised(made):
  """Returns variables with noise on every tensor, so that nothing is zero."""
  leaves, tree = jax.tree.flatten(jax.jit(made.init)(KEY))
  rng = np.random.default_rng(2)
  return jax.tree.unflatten(
    tree,
    [x + 0.3 * rng.normal(size=x.shape).astype(np.float32) for x in leaves],
  )


def drawn_by(key):
  draw = jax.jit(draw_corruption, static_argnums=(1, 2, 3))
  return jax.device_get(draw(key, 5, 6, 0.5))


@pytest.mark.parametrize('share, count', [(0.5, 98), (0.15, 29)])
def test_statistics_of_corruption(share, count):
  patches, size = 196, 400
  drawn = jax.jit(draw_corruption, static_argnums=(1, 2, 3))(
    KEY, size, patches, share
  )
  index, masked, source = map(np.asarray, drawn)
  assert index.shape == (size, count)
  assert all(len(set(row)) == count for row in index)
  chosen = np.zeros((size, patches), bool)
  np.put_along_axis(chosen, index, True, axis=1)
  replaced = source != np.arange(patches)
  assert not (masked & ~chosen).any() and not (replaced & ~chosen).any()
  assert not (masked & replaced).any()
  assert masked.sum() / chosen.sum() == pytest.approx(0.8, abs=0.015)
  assert replaced.sum() / chosen.sum() == pytest.approx(0.1, abs=0.01)
  # Every place is as likely as any other, to be chosen and to be the source.
  assert abs(chosen.mean(0) - share).max() < 0.12
  offsets = (source - np.arange(patches))[replaced] % patches
  assert np.histogram(offsets, 5)[0].std() < 0.1 * len(offsets) / 5


@pytest.mark.parametrize(
  'target, channels, outputs',
  [
    ('mean_color', 3, 512),
    ('downsized', 3, 16 * 512),
    ('pixels', 3, 768),
    ('mean_color', 1, 8),
    ('downsized', 1, 16 * 8),
    ('pixels', 1, 256),
  ],
)
def test_layer_that_predicts_is_that_of_the_paper(target, channels, outputs):
  made = MaskedPatches(ViT(variant='B/16'), (224, 224, channels), target)
  params = jax.eval_shape(made.init, KEY)['params']
  assert params['task']['prediction']['kernel'].shape == (768, outputs)
  assert params['task']['mask'].shape == (768,)


def test_targets_by_hand():
  image = np.full((1, 8, 12, 3), -1, np.float32)
  # The fourth of six patches: left half red, right half a blue of 0.4.
  image[0, 4:, :2] = [1, -1, -1]
  image[0, 4:, 2:4] = [-1, -1, -0.2]
  # Mean red 0.5, level 4; mean blue 0.2, level 1.
  mean = task('mean_color').targets(image)
  np.testing.assert_array_equal(mean[0, :, 0], [0, 0, 0, 4 * 64 + 1, 0, 0])
  small = task('downsized').targets(image)
  # Four rows of red, red, blue of level 3, the same.
  np.testing.assert_array_equal(small[0, 3], [448, 448, 3, 3] * 4)
  assert not small[0, [0, 1, 2, 4, 5]].any()
  pixels = task('pixels').targets(image)
  np.testing.assert_array_equal(pixels[0, 3], image[0, 4:, :4].reshape(-1))
  bright = task('mean_color', value_range=(-1.0, 3.0)).targets(image)
  assert bright[0, 3, 0] == 2 * 64


@pytest.mark.parametrize('target', TARGETS)
@pytest.mark.parametrize('pooling', ['token', 'gap'])
def test_loss_is_that_of_corrupted_patches_only(target, pooling):
  made = task(target, model=vit(pooling=pooling))
  variables = initialised(made)
  loss, metrics, others = jax.jit(made.loss)(variables, batch(), KEY, 0)
  assert others == {}
  image = batch()['image']
  # The same by another way: corrupted embeddings put in place one by one.
  drawn = drawn_by(jax.random.split(KEY)[0])
  apply = jax.jit(
    lambda seen: made.model.apply(
      variables, image, corrupt=seen if seen is None else lambda x: seen
    )[1]
  )
  embeddings = np.asarray(apply(None)['patches']).reshape(5, 6, 16)
  seen = embeddings.copy()
  for i, j in np.ndindex(5, 6):
    seen[i, j] = embeddings[i, drawn.source[i, j]]
    if drawn.masked[i, j]:
      seen[i, j] = variables['params']['task']['mask']
  last = variables['params']['task']['prediction']
  outputs = np.asarray(apply(seen)['encoded'])[:, -6:]
  outputs = outputs @ np.asarray(last['kernel']) + np.asarray(last['bias'])
  wanted = np.asarray(made.targets(image))
  losses, right = [], []
  for i, j in np.ndindex(drawn.index.shape):
    patch = drawn.index[i, j]
    given, truth = outputs[i, patch], wanted[i, patch]
    if target == 'pixels':
      losses.append(np.square(given - truth).mean())
      continue
    chance = np.exp(given.reshape(len(truth), 512))
    chance /= chance.sum(-1, keepdims=True)
    losses.append(-np.log(chance[np.arange(len(truth)), truth]).mean())
    right.append((chance.argmax(-1) == truth).mean())
  np.testing.assert_allclose(loss, np.mean(losses), atol=1e-4)
  if target == 'pixels':
    assert metrics == {}
  else:
    np.testing.assert_allclose(metrics['accuracy'], np.mean(right), atol=1e-6)


@pytest.mark.parametrize('target', ['mean_color', 'pixels'])
def test_gray_images_are_learned(target):
  made = task(target, channels=1)
  variables = jax.jit(made.init)(KEY)
  # Each image has one grey, which its patches tell of each other.
  greys = np.linspace(-0.9, 0.9, 8, dtype=np.float32)[:, None, None, None]
  given = {'image': np.broadcast_to(greys, (8, 8, 12, 1))}

  @jax.jit
  def step(params, velocity, number):
    def loss(params):
      key = jax.random.fold_in(KEY, number)
      return made.loss({'params': params}, given, key, number)[0]

    value, slope = jax.value_and_grad(loss)(params)
    velocity = jax.tree.map(lambda v, g: 0.9 * v + g, velocity, slope)
    params = jax.tree.map(lambda p, v: p - 0.05 * v, params, velocity)
    return params, velocity, value

  params = variables['params']
  velocity, losses = jax.tree.map(jnp.zeros_like, params), []
  for number in range(150):
    params, velocity, value = step(params, velocity, number)
    losses.append(float(value))
  assert np.mean(losses[-10:]) < 0.35 * losses[0]


def test_evaluation_is_fixed_and_one_value_an_example():
  made = task()
  variables = initialised(made)
  first, second = (jax.jit(made.metrics)(variables, batch()) for _ in range(2))
  assert {name: x.shape for name, x in first.items()} == {
    'loss': (5,),
    'accuracy': (5,),
  }
  np.testing.assert_array_equal(first['loss'], second['loss'])


def test_the_tower_is_a_plain_model_to_others():
  made = task()
  variables = jax.jit(made.init)(KEY)
  alone = jax.eval_shape(made.model.init, KEY, batch()['image'])['params']
  assert set(variables['params']) == {*alone, 'task'}
  features = few_shot.make_features(made, 'encoded')
  found = features(variables, batch())['features']
  _, out = jax.jit(made.model.apply)(variables, batch()['image'])
  np.testing.assert_allclose(found, out['encoded'].mean(1), atol=1e-5)


@pytest.mark.parametrize('target', TARGETS)
@pytest.mark.parametrize('channels', [1, 3])
def test_pictures_show_corrupted_patches_and_leave_the_others(target, channels):
  made = task(target, channels)
  variables = initialised(made)
  given = batch(channels)
  original, seen, predicted = jax.device_get(
    jax.jit(made.reconstruct)(variables, given['image'])
  )
  np.testing.assert_allclose(2 * original - 1, given['image'], atol=1e-5)
  drawn = drawn_by(jax.random.key(0))
  for i, j in np.ndindex(5, 6):
    row, column = divmod(j, 3)
    here = (i, slice(4 * row, 4 * row + 4), slice(4 * column, 4 * column + 4))
    kept = drawn.source[i, j] == j and not drawn.masked[i, j]
    assert bool((seen[here] == original[here]).all()) == kept
    assert bool(drawn.masked[i, j]) == bool((seen[here] == 0.5).all())
    same = bool((predicted[here] == original[here]).all())
    assert same == (j not in drawn.index[i])
  given['mask'][3:] = 0
  ((name, figure),) = made.pictures(variables, [given])
  assert name == 'masked_patches' and isinstance(figure, Figure)
  assert sum(bool(axes.images) for axes in figure.axes) == 3 * 3


@pytest.mark.parametrize(
  'fields, message',
  [
    (dict(model=Mixer(variant='S/32')), "name 'vit'"),
    (dict(model=vit(patch_dropout=0.5)), 'patch_dropout 0'),
    (dict(corrupted=0.0), 'more than 0'),
    (dict(bits=9), '1 to 8'),
    (dict(value_range=(1, -1)), 'smallest and the largest'),
  ],
)
def test_what_cannot_be_meant_is_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    task(**fields)


def test_a_single_patch_has_no_others():
  made = MaskedPatches(vit(patch_size=8), (8, 8, 3))
  with pytest.raises(ValueError, match='a single patch'):
    jax.eval_shape(made.init, KEY)
