"""A training step of DALL-E as it is configured: on a mesh, in bfloat16."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from vit_jax import config as config_lib
from vit_jax.training import mesh as mesh_lib
from vit_jax.training import rules, schema
from vit_jax.training import run as run_lib

CONFIG = pathlib.Path(__file__).parents[2] / 'configs' / 'dalle.py'
# Two periods of patterns in a loop, and the last layer after it.
SMALL = dict(
  text_vocabulary=9, text_length=5, image_vocabulary=14, grid=(4, 6), width=32,
  depth=5, mlp_dim=64, num_heads=4, patterns=('row', 'column'),
)  # fmt: skip
# SGD, as Adam's first steps turn rounding into signs; of a large step not much
# is lost in the parameters it is added to.
SGD = dict(name='sgd', learning_rate=10.0, momentum=0.0)
FLOAT32 = 'precision.compute=float32'


def batch(spec):
  """Returns texts of several lengths, and codes."""
  rng = np.random.default_rng(0)
  text = rng.integers(0, SMALL['text_vocabulary'] - 1, spec['text'].shape)
  ends = np.arange(len(text)) % text.shape[1]
  text[np.arange(len(text)), ends] = SMALL['text_vocabulary'] - 1
  codes = rng.integers(0, SMALL['image_vocabulary'], spec['codes'].shape)
  found = {name: np.zeros(x.shape, x.dtype) for name, x in spec.items()}
  return found | {'text': np.int32(text), 'codes': np.int32(codes)}


@functools.cache
def one_step(*overrides, devices=1):
  """Returns the run, noise, what a step makes of it, and the loss."""
  loaded = config_lib.load(f'{CONFIG}:0.3b')
  loaded.model.update(SMALL)
  loaded.optimizer = ConfigDict(SGD)
  # Without a warmup, of which the first step has a rate of 0.
  loaded.schedule = ConfigDict(dict(name='constant'))
  arguments = [f'--config.{x}' for x in ('batch_size=8', *overrides)]
  settings = config_lib.resolve(loaded, arguments, schema.SCHEMA)
  run = run_lib.prepare(settings, jax.devices()[:devices], planned=True)
  # Not what a run starts with: heads and biases are zero there, where much
  # would be the same by chance.
  rng = np.random.default_rng(1)
  noise = jax.tree.map(
    lambda x: rng.normal(scale=0.3, size=x.shape).astype(x.dtype),
    run.state.params,
  )
  zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), run.state)
  places = jax.tree.map(lambda x: x.sharding, run.state)
  with jax.set_mesh(run.mesh):
    after, metrics = run.train_step(
      jax.device_put(zeros.replace(params=noise), places),
      mesh_lib.to_mesh(batch(run.batch), run.mesh),
    )
  return run, noise, jax.device_get(after.params), float(metrics['loss'])


def differences(before, one, other):
  """Returns how unlike two steps are, each parameter's as a share, by path."""

  def share(before, one, other):
    return np.linalg.norm(one - other) / np.linalg.norm(one - before)

  found = rules.by_path(jax.tree.map(share, before, one, other))
  # It adds the same to all logits of a query, which softmax does not see.
  return {path: x for path, x in found.items() if 'key/bias' not in path}


def test_a_mesh_computes_what_one_device_does():
  run, _, split, loss = one_step(
    FLOAT32, 'mesh.fsdp=2', 'mesh.tensor=2', 'mesh.fsdp_minimum_mib=0',
    devices=8,
  )  # fmt: skip
  assert dict(run.mesh.shape) == {'data': 2, 'fsdp': 2, 'tensor': 2}
  places = rules.by_path(run.state.params)
  kernel = 'encoder/blocks/block_01/attention/query/kernel'
  assert places[kernel].sharding.spec == jax.P(None, 'fsdp', 'tensor', None)
  assert 'fsdp' in places['image_embedding'].sharding.spec
  _, before, alone, expected = one_step(FLOAT32)
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  unlike = differences(before, alone, split)
  assert np.max([*unlike.values()]) < 1e-3, unlike


def test_bfloat16_steps_as_float32_does():
  run, before, low, loss = one_step()
  assert run.config.precision.compute == 'bfloat16'
  tokens = (jax.ShapeDtypeStruct((8, n), jnp.int32) for n in (5, 24))
  (text, image), out = jax.eval_shape(
    run.task.model.apply, {'params': before}, *tokens
  )
  assert out['encoded'].dtype == jnp.bfloat16
  assert (text.dtype, image.dtype) == (jnp.float32, jnp.float32)
  assert {x.dtype for x in jax.tree.leaves(low)} == {np.dtype(np.float32)}
  _, _, exact, expected = one_step(FLOAT32)
  assert abs(loss - expected) < 0.02
  unlike = differences(before, exact, low)
  assert np.max([*unlike.values()]) < 0.5, unlike
  assert np.median([*unlike.values()]) < 0.05, unlike
