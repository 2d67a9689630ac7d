"""Distillation: losses by hand, and a teacher that stays as it is."""

import dataclasses
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.tasks.classification import Classification
from vit_jax.tasks.distillation import Distillation

NAMES = ('a', 'b', 'c')
SHAPE = (1, 1, 4)
KEY = jax.random.key(0)
LABELS = np.array([2, 0, 1, 1], np.int32)


class Scores(nn.Module):
  """A linear classifier of the pixels."""

  @nn.compact
  def __call__(self, image, train=False):
    x = image.reshape(image.shape[0], -1)
    return nn.Dense(3, name='head')(x), {}


def noise(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def teacher(class_names=NAMES, image_shape=SHAPE, **fields):
  task = Classification(Scores(), class_names, image_shape, **fields)
  params = {'head': {'kernel': noise(1, 4, 3), 'bias': noise(2, 3)}}
  return types.SimpleNamespace(task=task, variables={'params': params})


def make(frozen=None, **fields):
  return Distillation(
    model=Scores(),
    class_names=NAMES,
    image_shape=SHAPE,
    teacher_path='runs/teacher',
    frozen=frozen or teacher(),
    **fields,
  )


def batch():
  return {
    'image': noise(3, 4, *SHAPE),
    'view': noise(4, 4, *SHAPE),
    'label': LABELS,
  }


def scores(params, image):
  head = params['head']
  return np.asarray(image.reshape(4, -1) @ head['kernel'] + head['bias'])


def softmax(x):
  x = np.exp(x)
  return x / x.sum(-1, keepdims=True)


def cross_entropy(logits, targets):
  return -(targets * np.log(softmax(logits))).sum(-1).mean()


@pytest.mark.parametrize('sees', ['image', 'view'])
@pytest.mark.parametrize('targets', ['soft', 'hard'])
@pytest.mark.parametrize('share', [0.0, 0.3])
def test_loss_by_hand(sees, targets, share):
  temperature = 3.0 if targets == 'soft' else 1.0
  task = make(
    teacher_sees=sees,
    targets=targets,
    temperature=temperature,
    true_labels=share,
    label_smoothing=0.3,
  )
  given = batch()
  if not share:
    # Labels that count for nothing are not there.
    del given['label']
  assert set(task.batch_spec(4)) == {*given} - ({'view'} - {sees})
  assert set(task.test_batch_spec(4)) == {'image', 'label'}
  variables = task.init(KEY)
  said = scores(task.frozen.variables['params'], batch()[sees])
  wanted = softmax(said / temperature)
  if targets == 'hard':
    wanted = np.eye(3)[said.argmax(-1)]
  logits = scores(variables['params'], batch()['image'])
  labels = 0.7 * np.eye(3)[LABELS] + 0.1
  taught = temperature**2 * cross_entropy(logits / temperature, wanted)
  expected = (1 - share) * taught + share * cross_entropy(logits, labels)
  loss, metrics, others = jax.jit(task.loss)(variables, given, KEY, 0)
  np.testing.assert_allclose(loss, expected, atol=1e-5)
  assert others == {}
  same = (said.argmax(-1) == logits.argmax(-1)).mean()
  np.testing.assert_allclose(metrics.pop('agreement'), same)
  right = {}
  if share:
    right['accuracy'] = (logits.argmax(-1) == LABELS).mean()
    right['teacher_accuracy'] = (said.argmax(-1) == LABELS).mean()
  assert metrics == pytest.approx(right)


def test_batch_norm_learns_of_the_student_alone():
  class Normed(nn.Module):
    """A linear classifier of normalised pixels."""

    @nn.compact
    def __call__(self, image, train=False):
      x = nn.BatchNorm(use_running_average=not train, name='norm')(image)
      return nn.Dense(3)(x.reshape(x.shape[0], -1)), {}

  learned = Classification(Normed(), NAMES, SHAPE)
  variables = learned.init(jax.random.key(1))
  frozen = types.SimpleNamespace(task=learned, variables=variables)
  task = dataclasses.replace(make(frozen), model=Normed())
  _, _, changed = task.loss(task.init(KEY), batch(), KEY, 0)
  assert set(changed) == {'batch_stats'}
  mean = batch()['image'].mean((0, 1, 2))
  found = changed['batch_stats']['norm']['mean']
  np.testing.assert_allclose(found, 0.01 * mean, atol=1e-6)


def test_sigmoid_teacher_gives_each_class_its_own_probability():
  frozen = teacher(loss_function='sigmoid')
  task = make(frozen, loss_function='sigmoid')
  variables = task.init(KEY)
  wanted, chance = (
    1 / (1 + np.exp(-scores(params, batch()['image'])))
    for params in (frozen.variables['params'], variables['params'])
  )
  each = wanted * np.log(chance) + (1 - wanted) * np.log(1 - chance)
  loss, _, _ = task.loss(variables, batch(), KEY, 0)
  np.testing.assert_allclose(loss, -each.sum(-1).mean(), atol=1e-5)


def test_mixup_mixes_images_and_what_the_teacher_said_of_them():
  task = make(mixup=0.5)
  variables = task.init(KEY)
  mixed, _, _ = task.loss(variables, batch(), KEY, 0)
  share = jax.random.beta(jax.random.split(KEY)[0], 0.5, 0.5)
  share = np.maximum(share, 1 - share)
  image = batch()['image']
  wanted = softmax(scores(task.frozen.variables['params'], image))
  image, wanted = (
    share * x + (1 - share) * np.roll(x, 1, axis=0) for x in (image, wanted)
  )
  expected = cross_entropy(scores(variables['params'], image), wanted)
  np.testing.assert_allclose(mixed, expected, atol=1e-5)


def test_student_becomes_the_teacher_which_does_not_learn():
  task = make()
  variables = task.init(KEY)
  kernel = variables['frozen']['params']['head']['kernel']
  np.testing.assert_array_equal(kernel, noise(1, 4, 3))

  def loss(variables):
    return task.loss(variables, batch(), KEY, 0)[0]

  slope = jax.jit(jax.grad(loss))
  assert not any(
    jnp.any(x) for x in jax.tree.leaves(slope(variables)['frozen'])
  )
  for _ in range(300):
    step = slope(variables)['params']
    params = jax.tree.map(lambda p, g: p - g, variables['params'], step)
    variables = {**variables, 'params': params}
  np.testing.assert_allclose(
    task.predict(variables, batch()['image']),
    teacher().task.predict(teacher().variables, batch()['image']),
    atol=0.01,
  )


@pytest.mark.parametrize(
  'fields, message',
  [
    (dict(temperature=0.0), 'more than 0'),
    (dict(targets='hard', temperature=2.0), 'leave it 1'),
    (dict(true_labels=1.0), 'less than 1'),
    (dict(frozen=teacher(('a', 'b'))), 'knows 2 classes, but the data has 3'),
    (dict(frozen=teacher(image_shape=(2, 2, 1))), r'takes images of \(2, 2, 1'),
    (
      dict(frozen=types.SimpleNamespace(task='embedding')),
      'does not classify: its task is str',
    ),
  ],
)
def test_what_cannot_be_learned_is_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    make(**fields)
