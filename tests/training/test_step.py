"""One step of training: the same on every mesh, and as it is configured."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.config import ConfigError
from vit_jax.data import pipeline
from vit_jax.training import inputs as inputs_lib
from vit_jax.training import mesh as mesh_lib
from vit_jax.training import rules
from vit_jax.training import run as run_lib
from vit_jax.training import state as state_lib
from vit_jax.training import step as step_lib

STEPS = 3


def trained(config, devices=1, steps=STEPS):
  """Returns the state and the losses of a few steps on some devices."""
  run = run_lib.prepare(config, jax.devices()[:devices])
  losses = []
  with jax.set_mesh(run.mesh):
    state = run.init()
    batches = pipeline.train_batches(
      run.inputs.source['train'],
      run.inputs.preprocess['train'],
      batch_size=config.batch_size,
      seed=config.seed,
    )
    for _ in range(steps):
      batch = mesh_lib.to_mesh(next(batches), run.mesh)
      state, metrics = run.train_step(state, batch)
      losses.append(float(metrics['loss']))
    batches.close()
  return run, jax.device_get(state), losses


def distance(a, b):
  differences = jax.tree.map(lambda x, y: np.abs(x - y).max(), a, b)
  return max(jax.tree.leaves(differences))


# SGD, as Adam's first steps turn rounding into signs.
SGD = ('optimizer.name=sgd', 'optimizer.learning_rate=0.5')


@pytest.fixture
def plain(tiny):
  """Overrides of a run without the keys that only AdamW has."""
  return lambda *more: tiny(*SGD, *more)


MESHES = [
  ('data', ['mesh.data=8'], 8),
  ('optimizer', ['mesh.data=8', 'mesh.split_optimizer=true'], 8),
  ('fsdp', ['mesh.data=1', 'mesh.fsdp=8'], 8),
  ('tensor', ['mesh.data=1', 'mesh.tensor=4'], 4),
  ('all, scanned', ['mesh.fsdp=2', 'mesh.tensor=2', 'model.scan=true'], 8),
]


@pytest.mark.parametrize('name,overrides,devices', MESHES)
def test_every_mesh_computes_the_same(plain, name, overrides, devices):
  scan = [o for o in overrides if 'scan' in o]
  _, alone, losses = trained(plain(*scan))
  run, state, other = trained(
    plain('mesh.fsdp_minimum_mib=0', *overrides), devices
  )
  np.testing.assert_allclose(other, losses, rtol=1e-5)
  assert distance(state.params, alone.params) < 1e-5
  split = {
    path: leaf.sharding.spec
    for path, leaf in rules.by_path(run.state).items()
    if any(leaf.sharding.spec)
  }
  kernels = [path for path in split if path.endswith('mlp/up/kernel')]
  # Parameters and their moments, in every block.
  blocks = 1 if scan else 2
  assert len(kernels) == blocks * {'data': 0, 'optimizer': 1}.get(name, 2)
  for path in kernels:
    assert split[path][0] is None if scan else True


def test_accumulation_is_the_same_as_one_batch(plain):
  _, state, losses = trained(plain('model.dropout=0.0'))
  _, parts, other = trained(
    plain('model.dropout=0.0', 'optimizer.accumulate=4')
  )
  np.testing.assert_allclose(other, losses, rtol=1e-5)
  assert distance(state.params, parts.params) < 1e-5


def test_accumulation_gives_each_micro_batch_a_key_of_its_own():
  class Task:
    def loss(self, variables, batch, key, step, train):
      drawn = jax.random.uniform(key)
      metrics = {'drawn': drawn, 'square': drawn**2}
      return variables['params'] * 0.0, metrics, {}

  key = jax.random.key(0, impl='rbg')
  state = state_lib.State(0, jnp.ones(()), {}, (), None, key)
  ((_, metrics), _, _), _ = step_lib._accumulated(
    Task(), state, {'x': jnp.zeros((8, 1))}, key, 4
  )
  assert metrics['square'] > metrics['drawn'] ** 2 + 1e-3  # They differ.


def test_average_follows_the_parameters(plain):
  _, one, _ = trained(plain('optimizer.average=0.999'), steps=1)
  _, two, _ = trained(plain('optimizer.average=0.999'), steps=2)
  decay = (1 + 1) / (10 + 1)  # The second step's: early steps weigh more.
  expected = jax.tree.map(
    lambda a, p: decay * a + (1 - decay) * p, one.average, two.params
  )
  assert distance(two.average, expected) < 1e-6
  assert two.evaluated['params'] is two.average


def test_frozen_parameters_stay_bit_for_bit(plain):
  run, state, _ = trained(
    plain("optimizer.freeze=('encoder/.*',)", 'optimizer.weight_decay=0.1')
  )
  with jax.set_mesh(run.mesh):
    start = jax.device_get(run.init())
  moved = {
    path: not np.array_equal(leaf, rules.by_path(start.params)[path])
    for path, leaf in rules.by_path(state.params).items()
  }
  assert {path for path in moved if not moved[path]} == {
    path for path in moved if path.startswith('encoder/')
  }


def updates(config):
  """Returns how far one step at the peak moves each parameter."""
  run, state, _ = trained(config, steps=1)
  with jax.set_mesh(run.mesh):
    start = jax.device_get(run.init())
  moved = jax.tree.map(np.subtract, state.params, start.params)
  return rules.by_path(moved), rules.by_path(start.params)


@pytest.mark.parametrize(
  'convention,decay', [('times_learning_rate', 10.0), ('independent', 0.01)]
)
def test_rules_and_weight_decay_together(tiny, convention, decay):
  peak = ('schedule.name=constant', 'schedule.warmup=0steps')
  base, start = updates(tiny(*peak, 'optimizer.weight_decay=0.0'))
  both, _ = updates(
    tiny(
      *peak,
      f'optimizer.weight_decay={decay}',
      f'optimizer.weight_decay_convention={convention}',
      "optimizer.learning_rate_rules=(('encoder/.*', 0.5),)",
    )
  )
  for path in base:
    factor = 0.5 if path.startswith('encoder/') else 1.0
    # Independent decay is times the schedule only.
    of_decay = 1.0 if convention == 'independent' else factor
    loss = 0.01 * of_decay * start[path] if path.endswith('kernel') else 0
    expected = base[path] * factor - loss
    np.testing.assert_allclose(both[path], expected, atol=1e-6)


def test_rules_of_learning_rate_and_weight_decay(tiny):
  peak = ('schedule.name=constant', 'schedule.warmup=0steps')
  base, start = updates(tiny(*peak, 'optimizer.weight_decay=0.0'))
  half, _ = updates(
    tiny(
      *peak,
      'optimizer.weight_decay=0.0',
      "optimizer.learning_rate_rules=(('encoder/.*', 0.5),)",
    )
  )
  decayed, _ = updates(tiny(*peak, 'optimizer.weight_decay=10.0'))
  independent, _ = updates(
    tiny(
      *peak,
      'optimizer.weight_decay=0.01',
      'optimizer.weight_decay_convention=independent',
    )
  )
  for path in base:
    factor = 0.5 if path.startswith('encoder/') else 1.0
    np.testing.assert_allclose(half[path], base[path] * factor, atol=1e-6)
    # lr * weight decay = 1e-3 * 10 of a kernel; nothing of anything else.
    loss = 0.01 * start[path] if path.endswith('kernel') else 0
    np.testing.assert_allclose(decayed[path], base[path] - loss, atol=1e-6)
    np.testing.assert_allclose(independent[path], decayed[path], atol=1e-6)


@pytest.mark.parametrize(
  'name,rate',
  [('adamw', 3e-3), ('sgd', 0.3), ('adafactor', 3e-3), ('muon', 3e-3)],
)
def test_optimizers_learn_and_store_moments_as_told(tiny, name, rate):
  config = tiny(
    f'optimizer.name={name}',
    f'optimizer.learning_rate={rate}',
    'optimizer.moment_dtype=bfloat16',
    'total=100steps',
    # As easy as can be.
    'data.train.preprocess=value_range(-1, 1)',
    'model.position=sincos_2d',
    'model.dropout=0.0',
  )
  _, state, losses = trained(config, steps=80)
  assert np.mean(losses[-5:]) < losses[0] - 0.2
  dtypes = [leaf.dtype for leaf in jax.tree.leaves(state.optimizer)]
  assert jnp.bfloat16 in dtypes


@pytest.mark.parametrize('scan', ['false', 'true'])
def test_muon_moves_matrices_in_all_directions_alike(tiny, scan):
  peak = ('schedule.name=constant', 'schedule.warmup=0steps')
  rate = ('optimizer.name=muon', 'optimizer.learning_rate=1e-3')
  config = tiny(
    *peak, *rate, 'optimizer.weight_decay=0.0', f'model.scan={scan}'
  )
  # At first the head is zero, and nothing moves that it hides.
  (_, before, _), (_, after, _) = (trained(config, steps=n) for n in (2, 3))
  moved = jax.tree.map(np.subtract, after.params, before.params)
  matrices = 0
  for path, update in rules.by_path(moved).items():
    if not path.startswith('encoder/') or not path.endswith('/kernel'):
      continue
    layers = update if '/blocks/' in path else [update]
    for update in layers:
      rows = -1 if '/out/' in path else update.shape[0]
      matrix = update.reshape(rows, update.shape[-1] if rows == -1 else -1)
      size = 1e-3 * 0.2 * max(matrix.shape) ** 0.5
      values = np.linalg.svd(matrix, compute_uv=False) / size
      # Five iterations bring singular values to 0.7 .. 1.2, but for those
      # that are next to nothing in the gradient.
      assert values.max() < 1.3, path
      assert np.median(values) > 0.6, path
      matrices += 1
  assert matrices == 6 * 2


def test_clipping_bounds_the_update(tiny):
  peak = ('schedule.name=constant', 'schedule.warmup=0steps', *SGD)
  moved, _ = updates(
    tiny(*peak, 'optimizer.weight_decay=0.0', 'optimizer.clip_norm=0.01')
  )
  norm = np.sqrt(sum(np.square(x).sum() for x in moved.values()))
  np.testing.assert_allclose(norm, 0.5 * 0.01, rtol=1e-4)


REFUSED = [
  ('batch_size=30', 8, 'use a multiple of 8'),
  ('mesh.fsdp=3', 8, 'does not fit 8 devices'),
  ('mesh.tensor=8', 8, 'cannot be split by .tensor@-2.'),
  ('model.patch_size=3', 1, '3x3 pixels do not divide'),
  ("optimizer.freeze=('encodr/.*',)", 1, 'no parameter matches'),
  ('optimizer.learning_rate=0.0', 1, 'expected more than 0'),
  ('total=0steps', 1, 'less than one step'),
  ('schedule.warmup=99steps', 1, 'longer than the whole run'),
  ('data.train.split=trian', 1, 'trian'),
  ('data.test.preprocess=flip_lr|value_range(-1,1)', 1, 'must not be'),
  ('data.train.preprocess=resise(8)', 1, 'resize'),
  ('data.train.preprocess=resize(16)|value_range(-1,1)', 1, 'same size'),
  ('data.expected.classes=7', 1, 'but the data has 10'),
  ('data.test.preprocess=central_crop(9)|value_range(-1,1)', 1, 'record was'),
  ('data.train.preprocess=random_crop(8)', 1, 'value_range'),
  ('data.max_broken=1.0', 1, 'less than 1'),
  ('data.workers=-1', 1, '0 or more'),
  ('seed=-1', 1, 'seed is -1'),
  ('batch_size=0', 1, '1 or more'),
  ('log_every=0steps', 1, 'config.log_every is .0steps., expected more'),
  ('eval.every=0ep', 1, 'config.eval.every'),
  ('checkpoint.every=0%', 1, 'config.checkpoint.every'),
  ('checkpoint.keep=0', 1, '1 or more'),
  ('checkpoint.best=test/acuracy', 1, "Did you mean 'test/accuracy'"),
  ("init.fresh=('head/.*',)", 1, 'without config.init.path'),
  ('mesh.rules=(("head/.*", "tensr@-1"),)', 1, 'expected words such as'),
  ('mesh.rules=(("head/.*", "tensor@x"),)', 1, 'expected words such as'),
  ('mesh.rules=(("head/.*", 1),)', 1, 'expected words such as'),
  ('mesh.rules=(("head/kernel", "fsdp@5"),)', 1, 'has no axis 5'),
  ('model.depth=0', 1, 'depth is 0, expected 1 or more'),
  ('model.dropout=1.5', 1, 'dropout is 1.5'),
  ('model.stochastic_depth=-0.1', 1, 'stochastic_depth is -0.1'),
  ('model.representation_size=-2', 1, 'representation_size is -2'),
  ('model.norm_epsilon=0.0', 1, 'more than 0'),
  ('model.pooling=none', 1, 'pooling must not be'),
  ('optimizer.accumulate=0', 1, '1 or more'),
  ('optimizer.b2=1.0', 1, 'less than 1'),
  ('optimizer.clip_norm=-1.0', 1, '0 or more'),
  ('optimizer.weight_decay=-0.1', 1, '0 or more'),
  ('optimizer.learning_rate_rules=((".*", "1"),)', 1, 'expected a number'),
  ('optimizer.weight_decay_rules=((".*", -1.0),)', 1, 'expected a number'),
  ('optimizer.freeze=(1,)', 1, 'a rule is a pair'),
]


@pytest.mark.parametrize('override,devices,message', REFUSED)
def test_what_cannot_work_is_refused(tiny, override, devices, message):
  with pytest.raises(ConfigError, match=message):
    run_lib.prepare(tiny(override), jax.devices()[:devices])


def test_positions_need_something_to_tell(tiny):
  config = tiny('model.position=none', 'model.position_at=shared')
  with pytest.raises(ConfigError, match='there is nothing to tell'):
    run_lib.prepare(config, jax.devices()[:1])


EXPECTED = (
  'data.train.source=folder:/nowhere',
  'data.train.preprocess=inception_crop(8)|value_range(-1, 1)',
  'data.expected.train_examples=100',
  'data.expected.classes=10',
  'data.expected.image_shape=(8, 8, 1)',
)
REFUSED_IN_PLANNING = [
  ('data.train.source=foldr:/nowhere', "did you mean 'folder'"),
  ('data.train.source=folder:/nowhere + foldr:/nowhere', "mean 'folder'"),
  ('data.train.split=train[:99', 'bad split'),
  ('data.test.split=tset', 'no split'),
  ('data.train.preprocess=inception_crop(9)|value_range(-1, 1)', '9, 9, 1'),
  ('data.train.preprocess=inception_crop(8)', 'value_range'),
  ('data.expected.image_shape=(8, 8)', 'such as .224, 224, 3.'),
  ('data.expected.classes=None', 'no folder /nowhere'),
]


@pytest.mark.parametrize('override,message', REFUSED_IN_PLANNING)
def test_what_cannot_be_planned_is_refused(tiny, override, message):
  with pytest.raises(ConfigError, match=message):
    run_lib.prepare(tiny(*EXPECTED, override), jax.devices()[:1], planned=True)


def test_absent_data_can_be_planned_with(tiny):
  config = tiny(*EXPECTED)
  run = run_lib.prepare(config, jax.devices()[:1], planned=True)
  assert run.inputs.planned and run.inputs.train_examples == 100
  with pytest.raises(ConfigError, match='no folder /nowhere'):
    run_lib.prepare(config, jax.devices()[:1])


def test_the_first_batch_does_not_wait_for_others(tiny, monkeypatch):
  made = []

  class Batches:
    broken = {}

    def __iter__(self):
      for number in range(100):
        made.append(number)
        yield {'image': number, 'label': number}

    def close(self):
      pass

  config = tiny()
  run = run_lib.prepare(config, jax.devices()[:1])
  monkeypatch.setattr(pipeline, 'train_batches', lambda *_, **__: Batches())
  monkeypatch.setattr(mesh_lib, 'to_mesh', lambda batch, mesh: batch)
  batches = inputs_lib.train_batches(config, run.inputs, run.mesh, 0, print)
  numbers = (batch['image'] for batch in batches)
  assert (next(numbers), made) == (0, [0])
  assert (next(numbers), made) == (1, [0, 1, 2, 3])
  assert [next(numbers) for _ in range(5)] == [2, 3, 4, 5, 6]
