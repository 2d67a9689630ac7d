"""Every configuration is read, checked and traced; recipes hold figures."""

import functools
import math
import pathlib
import re
import runpy
from unittest import mock

import jax
import numpy as np
import pytest
from PIL import Image

from vit_jax import config
from vit_jax.analysis import compute
from vit_jax.data import splits
from vit_jax.models.vit import count_parameters
from vit_jax.tasks import ramp
from vit_jax.training import build, frozen, optimizer, schema
from vit_jax.training import run as run_lib

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted(path.stem for path in (ROOT / 'configs').glob('*.py'))
# Of one's own images nobody knows the number; with these they can be planned.
OWN_IMAGES = {
  name: (
    '--config.data.expected.train_examples=1000',
    '--config.data.expected.classes=10',
    f'--config.data.expected.image_shape=({side}, {side}, 3)',
  )
  for name, side in (
    ('folder', 64),
    ('clip_emoji', 48),
    ('dalle_emoji', 48),
    ('dvae_emoji', 48),
  )
}
# Whose argument is a path, or which have none.
ANY_ARGUMENT = (
  'clip_emoji', 'dalle_emoji', 'dalle_shapes', 'digits', 'dvae', 'dvae_emoji',
  'dvae_shapes', 'fashion_mnist', 'folder',
)  # fmt: skip
# How many examples TensorFlow Datasets' splits have.
SPLIT_SIZES = {
  'caltech101': dict(train=3_057, test=6_084),
  'cifar10': dict(train=50_000, test=10_000),
  'cifar100': dict(train=50_000, test=10_000),
  'dtd': dict(train=1_880, validation=1_880, test=1_880),
  'eurosat/rgb': dict(train=27_000),
  'imagenet2012': dict(train=1_281_167, validation=50_000),
  'imagenet21k': dict(full=14_197_122),
  'oxford_flowers102': dict(train=1_020, validation=1_020, test=6_149),
  'oxford_iiit_pet': dict(train=3_680, test=3_669),
  'resisc45': dict(train=31_500),
  'svhn_cropped': dict(train=73_257, test=26_032),
}


@functools.cache
def contents(name):
  return runpy.run_path(str(ROOT / 'configs' / f'{name}.py'))


def variants(name):
  return contents(name).get('VARIANTS', ('',))


def spec(name, variant=''):
  path = str(ROOT / 'configs' / f'{name}.py')
  return f'{path}:{variant}' if variant else path


def resolve(name, variant='', overrides=()):
  loaded = config.load(spec(name, variant))
  return config.resolve(loaded, overrides, schema.SCHEMA)


def prepare(name, variant=''):
  overrides = OWN_IMAGES.get(name, ())
  if name in ('dalle_emoji', 'dalle_shapes'):
    # Without the discrete VAE, whose codes it takes.
    overrides = (*overrides, '--config.task.image_codes=')
  settings = resolve(name, variant, overrides)
  if name == 'noisy_student':
    with mock.patch.object(frozen, 'load', teacher):
      return run_lib.prepare(settings, planned=True)
  return run_lib.prepare(settings, planned=True)


def teacher(student):
  """Returns a classifier with the model of a student, and zeros in it."""
  sections = {**student.to_dict(), 'task': {'name': 'classification'}}
  expected = student.data.expected
  names = tuple(f'class {i}' for i in range(expected.classes))
  task = build.make_task(
    config.resolve(sections, (), schema.SCHEMA),
    build.Known(names, expected.image_shape),
  )
  variables = jax.tree.map(
    lambda leaf: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape),
    jax.eval_shape(task.init, jax.random.key(0)),
  )
  return frozen.Frozen(task, variables, {})


def trace(name, variant):
  """Traces a step: shapes of everything are right, nothing is computed."""
  run = prepare(name, variant)
  state, metrics = jax.eval_shape(run.train_step, run.state, run.batch)

  def same(a, b):
    return (a.shape, a.dtype) == (b.shape, b.dtype)

  assert all(jax.tree.leaves(jax.tree.map(same, state, run.state)))
  assert metrics['loss'].shape == ()


@pytest.mark.parametrize(
  'size', ['XS', *(pytest.param(x, marks=pytest.mark.slow) for x in 'SML')]
)
def test_rivals_of_one_size_need_the_same_compute(size):
  kinds = ('vit', 'hybrid', 'resnet')
  runs = [prepare('rivals', f'{kind}-{size}') for kind in kinds]
  flops = np.array([compute.of_task(run.task).training_flops for run in runs])
  np.testing.assert_allclose(flops / flops.mean(), 1, atol=0.1)


def own_images(folder, *parts):
  """Makes a folder of images, some classes a part."""
  rng = np.random.default_rng(0)
  for part in parts:
    for label in ('cat', 'dog'):
      (folder / part / label).mkdir(parents=True)
      for number in range(10):
        pixels = rng.integers(0, 256, (80, 90, 3), np.uint8)
        Image.fromarray(pixels).save(folder / part / label / f'{number}.png')
  return folder


@pytest.mark.parametrize('name', FILES)
def test_every_variant_resolves(name):
  for variant in variants(name):
    resolve(name, variant)


@pytest.mark.parametrize('name', FILES)
def test_default_is_traced(name):
  trace(name, variants(name)[0])


@pytest.mark.slow
@pytest.mark.parametrize('name', FILES)
def test_every_variant_is_traced(name):
  # Of a large grid a sample: 19 divides none of its axes, so that it has
  # every model and every word.
  step = 19 if len(variants(name)) > 100 else 1
  for variant in variants(name)[::step]:
    trace(name, variant)


@pytest.mark.parametrize('name', FILES)
def test_header_says_command_expected_result_and_cost(name):
  header = contents(name)['__doc__']
  assert f'--config=configs/{name}.py' in header
  assert re.search('^Expected', header, re.MULTILINE)
  assert re.search('^Cost', header, re.MULTILINE)


@pytest.mark.parametrize(
  'name',
  [name for name in FILES if name not in ANY_ARGUMENT],
)
def test_unknown_argument_is_refused_with_the_known_ones(name):
  known = variants(name)[0]
  with pytest.raises(config.ConfigError, match=re.escape(known)):
    config.load(spec(name, 'Q/99'))


@functools.cache
def ranges(split, source):
  """Returns the (name, range) pairs that a split of TFDS data stands for."""
  sizes = SPLIT_SIZES[source]
  return [
    (part.name, part.resolve(sizes[part.name]))
    for part in splits.parse_split(split)
  ]


@pytest.mark.parametrize('name', FILES)
def test_expected_examples_are_those_of_the_split(name):
  for variant in variants(name):
    data = resolve(name, variant).data
    source = data.train.source.removeprefix('tfds:')
    if source not in SPLIT_SIZES:
      continue
    train = ranges(data.train.split, source)
    test = ranges(data.test.split, source)
    found = sum(len(indices) for _, indices in train)
    assert found == data.expected.train_examples, variant
    for part, a in train:
      for other, b in test:
        overlap = part == other and a.start < b.stop and b.start < a.stop
        assert not overlap, variant


# Steps, peak and final learning rate, weight decay times the learning rate,
# batch size.
RECIPES = [
  ('vit_imagenet', 'B/16', 92_897, 3e-3, 0, 0.3, 4096),
  ('vit_imagenet', 'L/32', 92_897, 3e-3, 0, 0.3, 4096),
  ('vit_imagenet21k', 'B/16', 310_823, 1e-3, 1e-5, 0.03, 4096),
  ('vit_imagenet21k', 'L/16,30ep', 103_608, 1e-3, 1e-5, 0.03, 4096),
  ('vit_jft', 'B/32', 517_822, 8e-4, 1e-5, 0.1, 4096),
  ('vit_jft', 'L/32', 517_822, 6e-4, 1e-5, 0.1, 4096),
  ('vit_jft', 'L/16', 517_822, 4e-4, 1e-5, 0.1, 4096),
  ('vit_jft', 'L/16,14ep', 1_035_645, 4e-4, 1e-5, 0.1, 4096),
  ('vit_jft', 'H/14', 1_035_645, 3e-4, 1e-5, 0.1, 4096),
  ('vit_s16_90ep', '90ep', 111_477, 1e-3, 0, 0.1, 1024),
  ('vit_s16_90ep', '300ep', 371_588, 1e-3, 0, 0.1, 1024),
  ('augreg', 'B/16', 92_897, 1e-3, 0, 0.1, 4096),
  ('augreg', 'S/32,none,reg,wd0.03,i21k', 1_036_078, 1e-3, 0, 0.03, 4096),
  ('scaling_vit', 'G/14', 1_000_000, 8e-4, 0, 0.03, 16_384),
  ('masked_patches', 'mean_color', 1_000_000, 2e-4, 0, 0, 4096),
  # Zhai et al., arXiv:2111.07991, and arXiv:2303.15343.
  ('lit', 'B/16', 60_000, 1e-3, 0, 0.1, 16_384),
  ('siglip', 'B/16', 274_658, 1e-3, 0, 0.1, 32_768),
  # Ramesh et al., arXiv:2102.12092, appendices A.2 and B.
  ('dvae', '', 3_000_000, 1e-4, 1.25e-6, 1e-4, 512),
  ('dalle', '12b', 430_000, 4.5e-4, 4.5e-4 / 32, 0.045, 1024),
]
# Steps until the peak, where they are not 10,000.
WARMUPS = {'dvae': 0, 'dalle': 5_000}


@pytest.mark.parametrize(
  ('name', 'variant', 'steps', 'peak', 'final', 'decay', 'batch_size'), RECIPES
)
def test_schedule_of_recipe(
  name, variant, steps, peak, final, decay, batch_size
):
  settings = resolve(name, variant)
  assert settings.batch_size == batch_size
  examples = settings.data.expected.train_examples
  total = config.to_steps(
    settings.total,
    batch_size=settings.batch_size,
    examples=examples,
    total=None,
  )
  schedule = schedule_of(settings, total)

  def rate(step):
    return settings.optimizer.learning_rate * float(schedule(step))

  assert total == steps
  warmup = WARMUPS.get(name, 10_000)
  if warmup:
    assert rate(0) == 0
    assert rate(warmup // 2) == pytest.approx(peak / 2)
  assert rate(warmup) == pytest.approx(peak)
  assert rate(warmup + 1) <= peak
  assert rate(steps) == pytest.approx(final, rel=1e-4, abs=1e-12)
  found = optimizer.decay_times_learning_rate(settings.optimizer)
  assert found == pytest.approx(decay)


def schedule_of(settings, total):
  """Returns the schedule of a recipe without its data and model."""
  own = {k: v for k, v in settings.schedule.items() if k != 'name'}

  def to_steps(duration):
    return config.to_steps(
      duration,
      batch_size=settings.batch_size,
      examples=settings.data.expected.train_examples,
      total=total,
    )

  return run_lib.SCHEDULES[settings.schedule.name](total, to_steps, **own)


# Table 4 of the paper: steps.
@pytest.mark.parametrize(
  ('name', 'steps', 'warmup'),
  [
    ('imagenet', 20_000, 500),
    ('cifar10', 10_000, 500),
    ('cifar100', 10_000, 500),
    ('pets', 500, 100),
    ('flowers', 500, 100),
    ('vtab-svhn', 2_500, 500),
  ],
)
def test_fine_tuning(name, steps, warmup):
  settings = resolve('finetune', name)
  schedule = schedule_of(settings, steps)
  assert settings.total == f'{steps}steps'
  assert settings.batch_size == 512
  assert settings.optimizer.name == 'sgd'
  assert settings.optimizer.momentum == 0.9
  assert settings.optimizer.weight_decay == 0
  assert float(schedule(0)) == 0
  assert float(schedule(warmup)) == 1
  assert float(schedule(steps)) == pytest.approx(0, abs=1e-6)


def test_fine_tuning_is_at_another_resolution_for_other_classes():
  run = prepare('finetune', 'cifar10,B/16,384')
  assert run.config.init.path == 'PRETRAINED'
  assert run.batch['image'].shape == (512, 384, 384, 3)
  # 1000 classes at 384 px, less the classes that CIFAR-10 lacks.
  assert count_parameters(run.state.params) == 86_859_496 - 990 * 769


def test_dalle_has_the_parameters_of_the_paper():
  # "12-billion": 12 width^2 for each layer, and embeddings.
  model = resolve('dalle', '12b').model
  layers = 12 * model.width**2 * model.depth
  assert (model.width, model.depth, model.num_heads) == (3968, 64, 62)
  assert model.mlp_dim == 4 * model.width
  assert layers == pytest.approx(12e9, rel=0.01)


def test_dalle_has_the_optimizer_of_the_paper():
  adam = resolve('dalle', '12b').optimizer
  assert adam.name == 'adamw'
  assert (adam.b1, adam.b2, adam.epsilon) == (0.9, 0.96, 1e-8)
  assert adam.clip_norm == 4
  # 0.99 every 25 updates.
  assert adam.average**25 == pytest.approx(0.99, abs=1e-4)


def test_discrete_vae_is_trained_as_in_the_paper():
  settings = resolve('dvae')
  adam = settings.optimizer
  assert (adam.name, adam.average) == ('adamw', 0.999)
  assert (adam.b1, adam.b2, adam.epsilon) == (0.9, 0.999, 1e-8)
  schedule = schedule_of(settings, 3_000_000)
  to_steps = functools.partial(
    config.to_steps, batch_size=512, examples=1, total=3_000_000
  )

  def values(name, *steps):
    found = ramp.parse(settings.task[name], name)
    return [float(found.at(step, to_steps)) for step in steps]

  # All along half a cosine, and then constant.
  temperature = values('temperature', 0, 50_000, 150_000, 3_000_000)
  assert temperature == pytest.approx([1, 1 - 15 / 64, 1 / 16, 1 / 16])
  kl_weight = values('kl_weight', 0, 2_500, 5_000, 3_000_000)
  assert kl_weight == pytest.approx([0, 3.3, 6.6, 6.6])
  rate = [float(schedule(step)) for step in (300_000, 1_100_000, 1_200_000)]
  share = [(1 + math.cos(math.pi * x)) / 2 for x in (1 / 4, 11 / 12, 1)]
  assert rate == pytest.approx([0.0125 + 0.9875 * x for x in share])


def test_parameters_of_the_76_5_percent_baseline():
  run = prepare('vit_s16_90ep')
  assert count_parameters(run.state.params) == 22_122_472


def test_augreg_words_in_any_order():
  assert resolve('augreg', 'B/16,i21k,wd0.03,reg,strong2') == resolve(
    'augreg', 'B/16,strong2,reg,wd0.03,i21k'
  )


def test_augreg_settings():
  plain = resolve('augreg', 'S/16,none,noreg,wd0.1,i1k')
  assert 'randaugment' not in plain.data.train.preprocess
  assert (plain.task.mixup, plain.model.dropout) == (0, 0)
  strong = resolve('augreg', 'S/16,strong1,reg,wd0.1,i1k')
  assert 'randaugment(2, 20)' in strong.data.train.preprocess
  assert strong.task.mixup == 0.5
  assert (strong.model.dropout, strong.model.stochastic_depth) == (0.1, 0.1)


@pytest.mark.parametrize(
  ('argument', 'message'),
  [
    ('B/16,strong3', 'strong3'),
    ('B/16,light1,light2', 'both'),
    ('medium2,B/16', 'begin'),
  ],
)
def test_augreg_refuses(argument, message):
  with pytest.raises(config.ConfigError, match=message):
    config.load(spec('augreg', argument))


@pytest.mark.parametrize(
  ('parts', 'train', 'test'),
  [
    (('.',), 'all[:90%]', 'all[90%:]'),
    (('train',), 'train[:90%]', 'train[90%:]'),
    (('train', 'test'), 'train', 'test'),
    (('train', 'val'), 'train', 'val'),
  ],
)
def test_own_folder(tmp_path, parts, train, test):
  settings = resolve('folder', own_images(tmp_path, *parts))
  assert settings.data.train.split == train
  assert settings.data.test.split == test
  run = run_lib.prepare(settings)
  assert run.batch['image'].shape[1:] == (64, 64, 3)
  assert run.task.class_names == ('cat', 'dog')
