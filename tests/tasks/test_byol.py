"""BYOL: its loss, its target, and what tells of a collapse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.models.mixer import Mixer
from vit_jax.models.modified_resnet import ModifiedResNet
from vit_jax.models.resnet import ResNet
from vit_jax.models.vit import ViT
from vit_jax.tasks.byol import BYOL, distance, variance

KEY = jax.random.key(0)
STEPS = 20


def vit(**fields):
  return ViT(patch_size=4, width=16, depth=1, mlp_dim=24, num_heads=2, **fields)


def task(model=None, size=8, **fields):
  return BYOL(
    model or vit(),
    (size, size, 3),
    lambda length: {'100%': STEPS}[length],
    **{'hidden': 24, 'projection': 12, **fields},
  )


def batch(size=8, examples=6):
  rng = np.random.default_rng(1)
  shape = (examples, size, size, 3)
  return {
    name: rng.normal(size=shape).astype(np.float32)
    for name in ('image', 'view')
  }


def initialised(made, seed=2):
  """Returns variables with noise on every tensor but the step."""
  rng = np.random.default_rng(seed)

  def draw(x):
    if x.dtype != jnp.float32:
      return x
    return x + 0.2 * np.abs(rng.normal(size=x.shape)).astype(np.float32)

  return jax.tree.map(draw, jax.jit(made.init)(KEY))


def run(made, variables, step=0, train=True):
  loss = jax.jit(made.loss, static_argnames='train')
  return loss(variables, batch(), KEY, jnp.int32(step), train=train)


def close(a, b, atol=1e-5):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol), a, b)


def test_distance_and_variance_by_hand():
  a = jnp.asarray([[2.0, 0], [0, 3], [1, 1], [-1, 0]])
  b = jnp.asarray([[5.0, 0], [1, 0], [-2, -2], [0, 0]])
  np.testing.assert_allclose(distance(a, b), [0, 2, 4, 2], atol=1e-6)
  all_of_them = jnp.ones(4)
  one_way = jnp.asarray([[1.0, 1]]) * jnp.arange(1, 5)[:, None]
  assert variance(one_way, all_of_them).mean() < 1e-6
  four_ways = jnp.asarray([[1.0, 0], [0, 2], [-3, 0], [0, -4]])
  np.testing.assert_allclose(variance(four_ways, all_of_them), 1, atol=1e-6)
  two = variance(four_ways, jnp.asarray([1, 1, 0, 0]))
  np.testing.assert_allclose(two[:2], 0.5, atol=1e-6)


def norm(x, stats, params, train):
  mean, var = stats['mean'], stats['var']
  if train:
    mean, var = x.mean(0), x.var(0)
  return (x - mean) / np.sqrt(var + 1e-5) * params['scale'] + params['bias']


def perceptron(x, params, stats, train):
  x = x @ params['hidden']['kernel'] + params['hidden']['bias']
  x = norm(x, stats['norm'], params['norm'], train)
  return np.maximum(x, 0) @ params['output']['kernel']


def cosine(a, b):
  return (a * b).sum(-1) / np.sqrt((a**2).sum(-1) * (b**2).sum(-1))


@pytest.mark.parametrize('train', [True, False])
def test_loss_by_hand(train):
  made = task()
  variables = initialised(made)
  pooled = jax.jit(lambda params, image: made.model.apply(params, image)[0])

  def outputs(network, image, last):
    x = np.asarray(pooled({'params': network['params']}, image))
    for name in ('projector', 'predictor')[:last]:
      params = network['params']['task'][name]
      x = perceptron(x, params, network['batch_stats']['task'][name], train)
    return x

  views = batch()['image'], batch()['view']
  predictions = [outputs(variables, view, 2) for view in views]
  projections = [outputs(variables['target'], view, 1) for view in views]
  each = 4 - 2 * cosine(predictions[0], projections[1])
  each -= 2 * cosine(predictions[1], projections[0])
  if train:
    loss, _, _ = run(made, variables)
    np.testing.assert_allclose(loss, each.mean(), atol=1e-4)
  else:
    found = jax.jit(made.metrics)(variables, batch())
    np.testing.assert_allclose(found['loss'], each, atol=1e-4)
    assert found['feature_variance'].shape == (6,)


def test_batch_norm_learns_from_both_views_in_turn():
  made = task()
  variables = initialised(made)
  _, _, others = run(made, variables)
  pooled = jax.jit(lambda params, image: made.model.apply(params, image)[0])
  for network, after in (
    (variables, others),
    (variables['target'], others['target']),
  ):
    params = network['params']['task']['projector']['hidden']
    expected = network['batch_stats']['task']['projector']['norm']['mean']
    for view in ('image', 'view'):
      x = pooled({'params': network['params']}, batch()[view])
      hidden = x @ params['kernel'] + params['bias']
      expected = 0.9 * expected + 0.1 * hidden.mean(0)
    found = after['batch_stats']['task']['projector']['norm']['mean']
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize('step', [0, 1, 8, STEPS])
def test_target_follows_with_the_decay_of_the_step_before(step):
  made = task(target_decay=0.9)
  variables = initialised(made)
  _, metrics, others = run(made, variables, step)
  decay = 1 - 0.1 * (np.cos(np.pi * (step - 1) / STEPS) + 1) / 2
  decay = decay if step else 1.0
  online = dict(variables['params'])
  online['task'] = {'projector': online['task']['projector']}
  moved = jax.tree.map(
    lambda old, new: decay * old + (1 - decay) * new,
    variables['target']['params'],
    online,
  )
  close(others['target']['params'], moved, 1e-6)
  assert others['target']['step'] == step
  now = 1 - 0.1 * (np.cos(np.pi * step / STEPS) + 1) / 2
  np.testing.assert_allclose(metrics['target_decay'], now, atol=1e-6)
  # A second micro-batch of the step finds the target as it is.
  _, _, again = run(made, {**variables, **others}, step)
  close(again['target']['params'], moved, 1e-6)


def test_nothing_learns_through_the_target():
  made = task(target_decay=0.0)
  variables = initialised(made)

  @jax.jit
  def slope(online, target):
    # The step after the first moves the target all the way.
    def loss(params, target):
      given = {**variables, 'params': params, 'target': target}
      return made.loss(given, batch(), KEY, jnp.int32(1))[0]

    return jax.grad(loss)(online, target)

  found = slope(variables['params'], variables['target'])
  online = {**variables['params'], 'task': dict(variables['params']['task'])}
  del online['task']['predictor']
  fixed = {**variables['target'], 'params': online, 'step': jnp.int32(1)}
  close(found, slope(variables['params'], fixed), 1e-4)
  assert all(jnp.abs(x).max() > 0 for x in jax.tree.leaves(found['embedding']))


def test_learning_brings_views_together_without_collapse():
  made = task()
  rng = np.random.default_rng(3)
  images = rng.normal(size=(16, 8, 8, 3)).astype(np.float32)

  @jax.jit
  def step(variables, velocity, number, given):
    def loss(params):
      given_all = {**variables, 'params': params}
      value, metrics, others = made.loss(given_all, given, KEY, number)
      return value, (metrics, others)

    (value, (metrics, others)), slope = jax.value_and_grad(loss, has_aux=True)(
      variables['params']
    )
    velocity = jax.tree.map(lambda v, g: 0.9 * v + g, velocity, slope)
    params = jax.tree.map(
      lambda p, v: p - 0.02 * v, variables['params'], velocity
    )
    return {'params': params, **others}, velocity, (value, metrics)

  variables = jax.jit(made.init)(KEY)
  velocity = jax.tree.map(jnp.zeros_like, variables['params'])
  seen = []
  for number in range(STEPS * 4):
    noise = rng.normal(size=(2, *images.shape)).astype(np.float32)
    given = dict(zip(('image', 'view'), images + 0.3 * noise))
    variables, velocity, found = step(
      variables, velocity, jnp.int32(number), given
    )
    seen.append(found)
  losses = [float(value) for value, _ in seen]
  assert np.mean(losses[-5:]) < 0.5 * losses[0]
  assert seen[-1][1]['feature_variance'] > 0.2


@pytest.mark.parametrize(
  'model',
  [
    vit(pooling='gap', dropout=0.1),
    Mixer(patch_size=16, variant='S/16', depth=1),
    ResNet(variant='R26x1', num_classes=0),
    ModifiedResNet((1, 1, 1, 1), 8, num_heads=2),
  ],
  ids=lambda model: type(model).__name__,
)
def test_any_image_tower_learns_and_is_a_plain_model_to_others(model):
  made = task(model, size=32)
  spec = made.batch_spec(4)
  variables = jax.eval_shape(made.init, KEY)
  alone = jax.eval_shape(model.init, KEY, spec['image'])
  assert set(variables['params']) == {*alone['params'], 'task'}
  assert set(variables['batch_stats']) == {
    *alone.get('batch_stats', {}),
    'task',
  }
  loss, _, others = jax.eval_shape(made.loss, variables, spec, KEY, 0)
  assert loss.shape == ()
  expected = {name: variables[name] for name in ('batch_stats', 'target')}
  assert jax.tree.structure(others) == jax.tree.structure(expected)
  assert jax.eval_shape(made.intermediates, variables, spec['image'])


def test_images_that_all_look_the_same_are_a_collapse():
  made = task()
  alike = {name: np.ones_like(x) for name, x in batch().items()}
  loss = jax.jit(made.loss)
  found = [
    loss(initialised(made), given, KEY, jnp.int32(0))[1]['feature_variance']
    for given in (batch(), alike)
  ]
  said = [made.warning({'feature_variance': float(x)}) for x in found]
  assert said[0] == '' and said[1].startswith('collapsed')


def test_what_cannot_be_compared_is_refused():
  with pytest.raises(ValueError, match='choose a pooling'):
    jax.eval_shape(task(vit(pooling='none')).init, KEY)
  with pytest.raises(ValueError, match='target_decay is 1.5'):
    task(target_decay=1.5)
  with pytest.raises(ValueError, match='hidden is 0'):
    task(hidden=0)
