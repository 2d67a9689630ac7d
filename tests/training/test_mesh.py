"""Any number of examples on the mesh, some at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.training import mesh as mesh_lib


@pytest.mark.parametrize('count', [1, 8, 13, 16])
def test_any_number_of_examples_goes_through_one_program(count):
  mesh = mesh_lib.make(mesh_lib.Settings(fsdp=2))
  keys = jax.random.split(jax.random.key(0), count)
  prepared, traced = [], []

  def prepare(some):
    prepared.extend(some)
    return {'x': np.array(some), 'key': keys[np.array(some)], 'none': None}

  @jax.jit
  def compiled(batch):
    assert mesh_lib.batch_shards(jax.sharding.get_abstract_mesh()) == 8
    traced.append(batch['x'].shape)
    return 2 * batch['x'], (jax.vmap(jax.random.uniform)(batch['key']), None)

  def function(batch):
    assert batch['x'].sharding == mesh_lib.batch_sharding(mesh)
    return compiled(batch)

  found = list(mesh_lib.in_batches(function, range(count), 8, mesh, prepare))
  doubled, (random, nothing) = jax.tree.map(
    lambda *rows: np.concatenate(rows), *found
  )
  np.testing.assert_array_equal(doubled, 2 * np.arange(count))
  np.testing.assert_allclose(
    random, jax.vmap(jax.random.uniform)(keys), rtol=1e-6
  )
  assert nothing is None and isinstance(doubled, np.ndarray)
  assert traced == [(8,)] and prepared == list(range(count))


def test_a_mesh_is_set_only_while_the_function_runs():
  mesh = mesh_lib.make(mesh_lib.Settings())
  found = mesh_lib.in_batches(jnp.sin, np.zeros((9, 2)), 8, mesh)
  assert next(found).shape == (8, 2)
  assert jax.sharding.get_abstract_mesh().empty
  assert next(found).shape == (1, 2)
