"""PowerSGD between eight replicas: what is sent, kept and added up."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from vit_jax.training import mesh as mesh_lib
from vit_jax.training import powersgd, rules

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
  specs = powersgd.state_specs(state)
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


def test_other_numbers_of_replicas_keep_the_mean_error():
  _, _, state = run(1, rank=1)
  fewer = powersgd.for_replicas(state, 2)
  for path, error in state.error.items():
    assert fewer.error[path].shape == (2, *error.shape[1:])
    np.testing.assert_allclose(fewer.error[path].mean(0), error.mean(0))


def test_impossible_numbers_are_refused():
  with pytest.raises(ValueError, match='rank is 0 and replicas 8'):
    powersgd.power_sgd(rank=0, replicas=8)
