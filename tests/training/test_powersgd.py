"""PowerSGD between eight replicas: what is sent, kept and added up."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from vit_jax.config import ConfigError
from vit_jax.planning import program as program_lib
from vit_jax.training import checkpoint, checks, powersgd, rules, schema
from vit_jax.training import mesh as mesh_lib
from vit_jax.training import run as run_lib
from vit_jax.training import state as state_lib
from vit_jax.training import step as step_lib

REPLICAS = 8
SHAPES = {
  'blocks': {
    # Two layers, heads at the end and at the start.
    'attention': {
      'query': {'kernel': (2, 12, 3, 4)},
      'out': {'kernel': (2, 3, 4, 12)},
    },
  },
  'mlp': {'up': {'kernel': (12, 20), 'bias': (20,)}},
  'head': {'kernel': (12, 16)},
}


def gradients(steps):
  """Returns gradients of each step and replica."""
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda shape: jnp.asarray(
      rng.normal(size=(steps, REPLICAS, *shape)), jnp.float32
    ),
    {'encoder': SHAPES},
    is_leaf=lambda x: isinstance(x, tuple),
  )


def run(steps, **options):
  """Returns what was given, what every replica applied, and the last state."""
  given = gradients(steps)
  transform = powersgd.power_sgd(replicas=REPLICAS, **options)
  state = transform.init(jax.tree.map(lambda x: x[0, 0], given))
  specs = powersgd.state_specs()
  mesh = mesh_lib.make(mesh_lib.Settings())

  @jax.jit
  @jax.shard_map(
    mesh=mesh,
    in_specs=(PartitionSpec('data'), specs),
    out_specs=(PartitionSpec('data'), PartitionSpec(), specs),
  )
  def update(gradient, state):
    gradient = jax.tree.map(lambda x: x[0], gradient)
    # The second says that it is known to be the same on all replicas.
    updates, state = transform.update(gradient, state)
    return jax.tree.map(lambda x: x[None], updates), updates, state

  applied = []
  for step in range(steps):
    each, updates, state = update(
      jax.tree.map(lambda x, step=step: x[step], given), state
    )
    each, updates = rules.by_path(each), rules.by_path(updates)
    for path in each:
      for one in np.asarray(each[path]):
        np.testing.assert_array_equal(one, updates[path])
    applied.append(updates)
  return rules.by_path(given), applied, state


COMPRESSED = {
  'encoder/blocks/attention/query/kernel',
  'encoder/blocks/attention/out/kernel',
  'encoder/mlp/up/kernel',
}


@pytest.mark.parametrize('rank', [1, 3])
def test_what_is_applied_and_what_is_kept_add_up(rank):
  given, applied, state = run(5, rank=rank)
  assert {*state.error} == COMPRESSED
  for path in given:
    total = sum(one[path] for one in applied)
    if path in COMPRESSED:
      assert np.abs(state.error[path]).max() > 0.1
      total = total + np.asarray(state.error[path]).mean(0)
    expected = given[path].sum(0).mean(0)
    np.testing.assert_allclose(total, expected, atol=1e-5, rtol=0)


def test_gradients_have_the_rank_that_is_asked_for():
  _, applied, _ = run(2, rank=3)
  for path, rows, columns in (
    ('encoder/blocks/attention/query/kernel', 12, 12),
    ('encoder/blocks/attention/out/kernel', 12, 12),
    ('encoder/mlp/up/kernel', 12, 20),
  ):
    for matrix in np.asarray(applied[-1][path]).reshape(-1, rows, columns):
      values = np.linalg.svd(matrix, compute_uv=False)
      assert values[2] > 0.1
      np.testing.assert_allclose(values[3:], 0, atol=1e-5)


def test_full_rank_is_exact():
  given = np.random.default_rng(0).normal(size=(4, 6, 9)).astype(np.float32)
  projection = np.random.default_rng(1).normal(size=(4, 9, 6))
  found = powersgd._low_rank(
    jnp.asarray(given), jnp.asarray(projection, jnp.float32), lambda x: x
  )
  np.testing.assert_allclose(found, given, atol=1e-5)


def test_whole_gradients_until_the_start():
  given, applied, state = run(3, rank=1, start=2)
  for path in COMPRESSED:
    for step in range(2):
      expected = given[path][step].mean(0)
      np.testing.assert_allclose(applied[step][path], expected, atol=1e-6)
    assert np.abs(applied[2][path] - given[path][2].mean(0)).max() > 0.1
    np.testing.assert_allclose(
      applied[2][path] + np.asarray(state.error[path]).mean(0),
      given[path][2].mean(0),
      atol=1e-5,
    )


def test_what_the_rank_of_the_paper_saves():
  def sent(rank):
    """Returns numbers that are sent and that there are, by the matrix."""
    width, heads = 3968, (62, 64)
    shapes = {
      'attention/query/kernel': (width, *heads),
      'attention/key/kernel': (width, *heads),
      'attention/value/kernel': (width, *heads),
      'attention/out/kernel': (*heads, width),
      'mlp/up/kernel': (width, 4 * width),
      'mlp/down/kernel': (4 * width, width),
    }
    params = {
      path: jax.ShapeDtypeStruct(shape, jnp.float32)
      for path, shape in shapes.items()
    }
    transform = powersgd.power_sgd(rank=rank, replicas=1)
    factors = jax.eval_shape(transform.init, params).projection
    sizes = {path: int(np.prod(shape)) for path, shape in shapes.items()}
    numbers = {
      path: rank * (x.shape[0] + sizes[path] // x.shape[0])
      for path, x in factors.items()
    }
    return numbers, sizes

  numbers, sizes = sent(896)
  saved = 1 - sum(numbers.values()) / sum(sizes.values())
  assert numbers.keys() == sizes.keys()
  assert f'{saved:.0%}' == '66%'
  assert '66 %' in powersgd.power_sgd.__doc__
  # More than half of a square's side is more than the square.
  numbers, _ = sent(3968 * 5 // 8)
  assert {*numbers} == {'mlp/up/kernel', 'mlp/down/kernel'}


def test_impossible_numbers_are_refused():
  with pytest.raises(ValueError, match='rank is 0 and replicas 8'):
    powersgd.power_sgd(rank=0, replicas=8)


RATE = 0.5
RUN = (
  'optimizer.name=sgd', f'optimizer.learning_rate={RATE}',
  'optimizer.momentum=0.0', 'optimizer.weight_decay=0.0',
  'schedule.name=constant', 'schedule.warmup=0steps', 'model.dropout=0.0',
  'model.depth=1',
)  # fmt: skip
SHARDED = ('mesh.fsdp=2', 'mesh.fsdp_minimum_mib=0')


@pytest.fixture
def prepared(tiny):
  """Returns what prepares a tiny run, on eight devices, and its batches."""

  def make(*overrides, devices=None):
    run = run_lib.prepare(tiny(*RUN, *overrides), devices)
    # Random numbers, so that all replicas have gradients of their own.
    rng = np.random.default_rng(0)
    batch = {
      'image': rng.normal(size=(32, 8, 8, 1)).astype(np.float32),
      'label': rng.integers(10, size=32).astype(np.int32),
    }
    assert {name: x.shape for name, x in batch.items()} == {
      name: spec.shape for name, spec in run.batch.items()
    }
    return run, mesh_lib.to_mesh(batch, run.mesh)

  return make


def states(run, batch, steps):
  """Returns the states after each of so many steps."""
  with jax.set_mesh(run.mesh):
    state, found = run.init(), []
    for _ in range(steps):
      state, _ = run.train_step(state, batch)
      # The next step gives the memory of this one away.
      found.append(jax.tree.map(jnp.copy, state))
  return found


@pytest.mark.parametrize('mesh', [(), SHARDED])
def test_runs_apply_and_keep_what_others_apply(prepared, mesh):
  # The head starts as zeros, so that one step moves nothing else.
  first, plain = states(*prepared(*mesh), steps=2)
  # The same first step, so that the second has the same gradients.
  run, batch = prepared(
    'optimizer.compression_rank=2', 'optimizer.compression_start=1steps', *mesh
  )
  _, state = states(run, batch, steps=2)
  error = jax.device_get(state.exchange.error)
  assert len(error) == 6  # Four matrices of attention, two of the MLP.
  first, plain, found = (
    rules.by_path(jax.device_get(x.params)) for x in (first, plain, state)
  )
  for path, expected in plain.items():
    kept = 0
    if path in error:
      matrix = found[path] - first[path]
      rows = 32 if '/out/' not in path else -1
      columns = -1 if rows == 32 else 32
      values = np.linalg.svd(matrix.reshape(rows, columns), compute_uv=False)
      np.testing.assert_allclose(values[2:], 0, atol=1e-6)
      kept = error[path].mean(0)
      assert np.abs(kept).max() > 1e-4
      places = run.state.exchange.error[path].sharding.spec
      assert places[0] == 'data' and ('fsdp' in places) == bool(mesh)
    np.testing.assert_allclose(found[path] - RATE * kept, expected, atol=1e-5)


def test_runs_send_less(prepared):
  sent = {}
  for rank in (0, 1):
    run, batch = prepared(f'optimizer.compression_rank={rank}')
    with jax.set_mesh(run.mesh):
      text = run.train_step.lower(run.state, batch).compile().as_text()
    sent[rank] = program_lib.read(text).collectives['all-reduce'].bytes
  sizes = rules.shapes_by_path(run.state.params)
  matrices = [np.prod(sizes[path]) for path in run.state.exchange.error]
  # Two factors in place of each matrix.
  factors = sum(2 * 32 for _ in matrices)
  saved = 4 * (sum(matrices) - factors)
  assert abs(sent[0] - sent[1] - saved) < 0.01 * saved
  assert sent[1] < sent[0] / 3


def test_resumed_runs_go_on_as_if_nothing_happened(prepared, tmp_path):
  run, batch = prepared('optimizer.compression_rank=1')
  _, second, third = states(run, batch, steps=3)
  with checkpoint.Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(2, second, meta={}, wait=True)
    state, _, _ = checkpoints.restore(run.state)
  with jax.set_mesh(run.mesh):
    found, _ = run.train_step(state, batch)
  jax.tree.map(np.testing.assert_array_equal, *jax.device_get((found, third)))


def test_runs_resume_on_another_number_of_replicas(prepared, tmp_path):
  rank = 'optimizer.compression_rank=1'
  eight, batch = prepared(rank)
  _, state, expected = states(eight, batch, steps=3)
  four, batch = prepared(rank, devices=jax.devices()[:4])

  def mean(error):
    return jax.tree.map(lambda x: np.asarray(x).mean(0), error)

  def moved(state, run, directory):
    with checkpoint.Checkpoints(directory) as checkpoints:
      checkpoints.save(2, state, meta={}, wait=True)
      found, _, _ = checkpoints.restore(run.state)
    for path, error in found.exchange.error.items():
      assert error.shape == run.state.exchange.error[path].shape
      assert error.sharding == run.state.exchange.error[path].sharding
      assert np.abs(error).max() > 1e-4
    jax.tree.map(
      lambda *two: np.testing.assert_allclose(*two, atol=1e-7),
      mean(found.exchange.error),
      mean(state.exchange.error),
    )
    jax.tree.map(
      np.testing.assert_array_equal,
      *jax.device_get(
        [
          x.replace(exchange=x.exchange._replace(error=None))
          for x in (found, state)
        ]
      ),
    )
    return found

  state = moved(state, four, tmp_path / 'fewer')
  with jax.set_mesh(four.mesh):
    state, _ = four.train_step(state, batch)
  found = moved(state, eight, tmp_path / 'more')
  # Another part of the same gradient is applied now, the rest is kept.
  expected, found = (
    (rules.by_path(jax.device_get(x.params)), mean(x.exchange.error))
    for x in (expected, found)
  )
  for path, kept in expected[1].items():
    np.testing.assert_allclose(
      found[0][path] - RATE * found[1][path],
      expected[0][path] - RATE * kept,
      atol=1e-5,
    )


def test_replicas_draw_their_own_random_numbers():
  class Task:
    def loss(self, variables, batch, key, step, train):
      drawn = jax.random.uniform(key)
      metrics = {'drawn': drawn, 'square': drawn**2}
      return variables['params']['x'].sum() * 0, metrics, {}

  exchange = powersgd.power_sgd(rank=1, replicas=REPLICAS)
  settings = types.SimpleNamespace(accumulate=1, freeze=(), average=0)
  state = state_lib.create(
    {'params': {'x': jnp.ones(3)}}, optax.sgd(0.1), state_lib.random_key(0),
    average=False, exchange=exchange,
  )  # fmt: skip
  step = step_lib.make_train_step(Task(), optax.sgd(0.1), settings, exchange)
  with jax.set_mesh(mesh_lib.make(mesh_lib.Settings())):
    _, metrics = jax.jit(step)(state, jnp.zeros(REPLICAS))
  assert metrics['square'] > metrics['drawn'] ** 2 + 1e-3


@pytest.mark.parametrize(
  'task,variables,message',
  [
    ('contrastive', {}, 'the loss of contrastive compares all examples'),
    ('classification', {'batch_stats': {}}, 'the model has batch norm'),
  ],
)
def test_what_needs_whole_batches_is_refused(tiny, task, variables, message):
  config = tiny('optimizer.compression_rank=3')
  config.task.name = task
  with pytest.raises(
    ConfigError, match=f'compression_rank is 3, but {message}'
  ):
    checks.check_compression(config, schema.TASKS[task], variables)


def test_split_moments_do_not_go_with_compression(tiny):
  config = tiny('optimizer.compression_rank=3', 'mesh.split_optimizer=true')
  with pytest.raises(ConfigError, match='split_optimizer=True needs whole'):
    checks.check_compression(config, schema.TASKS['classification'], {})
